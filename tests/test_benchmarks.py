"""The benchmarks: complete rows, refused contenders, honest measures, tables that cannot drift."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import snnfast

pytestmark = pytest.mark.long

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
REQUIRED = (
    *("bench", "contender", "version", "device", "dtype", "T", "B"),
    *("forward_ms", "forward_backward_ms", "peak_bytes", "retained_bytes"),
    *("limit_share", "commit", "date"),
)
T, B, N = 8, 4, 64
GPU_CONTENDERS = (
    *("spikingjelly-triton", "spikingjelly-precision", "spikingjelly-native", "spikingjelly-cupy"),
    "sinabs-exodus",
)
LAYER_CONTENDERS = (
    *("snnfast", "reference", "snntorch", "snntorch-compile", "snntorch-state"),
    *("norse-lifbox", "norse-lifbox-compile", "jaxpike", "spyx", "spikingjelly", "spikingjelly-compile"),
    *GPU_CONTENDERS,
)
RLIF_CONTENDERS = (
    *("snnfast", "norse", "norse-compile"),
    *("snnfast-rleaky", "snntorch", "snntorch-compile", "jaxpike", "spyx", "torch-rnn"),
)
COMPILED = ["snnfast-record", "snnfast-compile"] if hasattr(snnfast, "accelerate") else []
ON_SNNTORCH = ["snntorch", "snnfast-loop", *COMPILED, "snntorch-compile"]
ON_TORCH = ["torch", *COMPILED, "torch-compile"]
LOOPS = {
    "rate-fc": ON_SNNTORCH,
    "poisson-fc": ON_SNNTORCH,
    "current-fc": ON_SNNTORCH,
    "zero-reset-fc": ["snnfast-loop", *ON_TORCH],
    "norse-recurrent": ON_TORCH,
    "norse-conv": ON_TORCH,
}


@pytest.fixture(scope="module")
def written(once):
    """All rows of a tiny run in which the peers cannot be imported, snnTorch but, but for those of calls."""
    return json.loads((once("benchmarks", run_tiny) / "rows.json").read_text())


def run_tiny(folder):
    """Writes a tiny run's rows."""
    for library in ("spikingjelly", "norse", "jaxpike", "spyx"):
        blocked = folder / library
        blocked.mkdir()
        (blocked / "__init__.py").write_text("raise ImportError('blocked by the test')")
    command = [sys.executable, BENCHMARKS / "run.py", "--quick", "--json", folder / "rows.json"]
    command += ["--sizes", f"{T},{B},{N}", "--device", "cpu", "--threads", "1"]
    command += ["--rounds", "3", "--compile-max-t", "1"]
    command += ["--bench", "lif", "onm", "rate-fc", "rlif", "encoding", "cells", "loops"]
    command += ["--contenders", *{*LAYER_CONTENDERS, *RLIF_CONTENDERS, *ON_SNNTORCH, *ON_TORCH, "snnfast-layer"}]
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No figures for spikingjelly" in done.stdout


@pytest.fixture(scope="module")
def rows(written):
    """The rows of the benches of layers and network, by bench and contender."""
    layers = ("lif", "rate-fc", "rlif")
    return {(row["bench"], row["contender"]): row for row in written if row["bench"] in layers}


@pytest.fixture(scope="module")
def onm_rows(written):
    """The rows of Open Neuromorphic's benchmark, by kind of product and contender."""
    return {(row["matmul"], row["contender"]): row for row in written if row["bench"] == "onm"}


@pytest.fixture(scope="module")
def encoding_rows(written):
    """The rows of the encoders, by encoder and contender."""
    return {(row["encoder"], row["contender"]): row for row in written if row["bench"] == "encoding"}


@pytest.fixture(scope="module")
def cell_rows(written):
    """The rows of neurons in plain PyTorch, by neuron and contender."""
    return {(row["cell"], row["contender"]): row for row in written if row["bench"] == "cells"}


@pytest.fixture(scope="module")
def loop_rows(written):
    """The rows of the published loops, by loop and contender."""
    return {(row["loop"], row["contender"]): row for row in written if row["bench"] == "loops"}


def test_every_contender_has_a_complete_row(rows, written):
    feed_forward = {(bench, name) for bench in ("lif", "rate-fc") for name in LAYER_CONTENDERS}
    assert set(rows) == feed_forward | {("rlif", name) for name in RLIF_CONTENDERS}
    for row in written:
        assert set(REQUIRED) <= set(row)
        assert row["dtype"] == "float32"
    for row in rows.values():
        assert (row["T"], row["B"], row["N"]) == (T, B, N)


def test_every_loop_has_the_rows_of_its_contenders(loop_rows):
    assert set(loop_rows) == {(loop, name) for loop, names in LOOPS.items() for name in names}


@pytest.mark.parametrize(("loop", "names"), LOOPS.items())
def test_loops_are_timed_or_refused(loop_rows, loop, names):
    *timed, compiled = (loop_rows[loop, name] for name in names)
    assert "--compile-max-t 1" in compiled["error"]
    for row in timed:
        assert row["error"] is None
        assert 0 < row["forward_ms"] < row["forward_backward_ms"] < 1e4
        assert 0 < row["first_call_s"] < 60
        assert row["peak_bytes"] >= row["retained_bytes"] > 0
        assert row["limit_ms"] is None and row["limit_share"] is None


def test_on_snntorchs_loops_snnfast_is_checked_bit_for_bit(loop_rows):
    checks = {loop: loop_rows[loop, "snnfast-loop"]["check"] for loop, names in LOOPS.items() if names[0] != "torch"}
    assert checks == {"rate-fc": "exact", "poisson-fc": "exact", "current-fc": "exact", "zero-reset-fc": "close"}


TIMED = {
    "lif": (["snnfast", "reference", "snntorch"], "exact"),
    "rate-fc": (["snnfast", "reference", "snntorch"], "close"),
    "rlif": (["snnfast", "norse", "snnfast-rleaky", "snntorch"], "close"),
}


@pytest.mark.parametrize(
    ("bench", "name", "check"),
    [(bench, name, check) for bench, (names, check) in TIMED.items() for name in names] + [("rlif", "torch-rnn", None)],
)
def test_timed_rows_are_sane(rows, bench, name, check):
    row = rows[bench, name]
    assert row["error"] is None
    assert row["check"] == check
    assert 0 < row["forward_min_ms"] <= row["forward_ms"] < row["forward_backward_ms"] < 1e4
    assert row["forward_backward_min_ms"] <= row["forward_backward_ms"]
    assert row["limit_share"] == pytest.approx(row["limit_ms"] / row["forward_backward_ms"])
    assert row["limit_ms"] > 0
    assert row["rounds"] == 3
    assert row["peak_bytes"] >= row["retained_bytes"] > 0


def test_snnfast_retains_one_membrane_per_neuron_step(rows):
    assert rows["lif", "snnfast"]["retained_bytes"] <= 4.1 * T * B * N


def test_compiled_recurrent_loops_are_refused_beyond_the_bound(rows):
    for name in ("norse-compile", "snntorch-compile"):
        assert "--compile-max-t 1" in rows["rlif", name]["error"]


def test_peers_without_figures_say_why(rows):
    for bench in ("lif", "rate-fc"):
        for name in ("spikingjelly", "spikingjelly-compile", "norse-lifbox", "jaxpike", "spyx"):
            assert "blocked by the test" in rows[bench, name]["error"]
            assert rows[bench, name]["forward_backward_ms"] is None
        assert "--compile-max-t 1" in rows[bench, "snntorch-compile"]["error"]
        assert rows[bench, "snntorch-compile"]["limit_share"] is None
        for name in GPU_CONTENDERS:
            assert rows[bench, name]["error"] == "Refused: not on cpu"


def test_open_neuromorphics_rows_are_checked_and_timed(onm_rows):
    assert set(onm_rows) == set(itertools.product(("float32", "bf16"), LAYER_CONTENDERS))
    for matmul, name in itertools.product(("float32", "bf16"), ("snnfast", "reference", "snntorch")):
        row = onm_rows[matmul, name]
        unchecked = matmul == "bf16" and name == "snntorch"
        assert (row["error"], row["check"]) == (None, None if unchecked else "close")
        assert row["same_neuron"] is not unchecked
        assert row["forward_ms"] > 0 and row["backward_ms"] > 0
        assert row["limit_share"] == pytest.approx(row["limit_ms"] / row["forward_backward_ms"])
        # The gradient of the weight and the spikes are held at once.
        assert row["peak_bytes"] >= 4 * N * N + 2 * T * B * N


def test_calls_are_timed_in_a_process_of_their_own(module, tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["--bench", "calls", "--quick", "--device", "cpu", "--compile-max-t", "1", "--json", str(path)]
    arguments += ["--contenders", "snnfast", "snntorch-compile", *GPU_CONTENDERS]
    assert module("run").main(arguments) == 0
    snnfast_row, compiled, *others = json.loads(path.read_text())
    assert set(REQUIRED) <= set(snnfast_row) and snnfast_row["error"] is None
    for name in module("table").CALLS:
        assert 0 < snnfast_row[name] < 1e5
    assert "--compile-max-t 1" in compiled["error"]
    assert [row["contender"] for row in others] == list(GPU_CONTENDERS)
    assert "sinabs-exodus (another neuron): Refused: not on cpu\n" in capsys.readouterr().out


def test_encoders_are_checked_and_timed(encoding_rows):
    assert set(encoding_rows) == set(itertools.product(("rate", "latency", "delta"), ("snnfast", "snntorch")))
    for row in encoding_rows.values():
        assert (row["error"], row["check"]) == (None, "exact")
        assert (row["T"], row["B"], row["N"]) == (T, B, N)
        assert 0 < row["forward_ms"] <= row["forward_backward_ms"] < 1e4
        assert row["limit_share"] == pytest.approx(row["limit_ms"] / row["forward_backward_ms"])
        assert row["peak_bytes"] >= 4 * T * B * N and row["retained_bytes"] == 0


def test_neurons_in_plain_pytorch_are_checked_and_timed(cell_rows):
    neurons = "leaky", "zero-reset", "zero-reset-logistic", "gate"
    assert set(cell_rows) == {*itertools.product(neurons, ("snnfast", "torch")), ("leaky", "snnfast-layer")}
    for row in cell_rows.values():
        assert (row["error"], row["check"]) == (None, "exact")
        assert 0 < row["forward_ms"] < row["forward_backward_ms"] < 1e4


def test_products_are_computed_as_asked(module):
    benches = module("benches")
    before = torch.get_float32_matmul_precision()
    for matmul, precision, dtype in (
        ("float32", "highest", torch.float32),
        ("tf32", "high", torch.float32),
        ("bf16", "highest", torch.bfloat16),
    ):
        bench = benches.OnmBench(benches.Size(T, B, N), matmul, torch.device("cpu"))
        with bench.settings():
            assert torch.get_float32_matmul_precision() == precision
        assert torch.get_float32_matmul_precision() == before
        (product,) = bench.limit().forward()
        _, (gradient,) = bench.limit().backward((product,))
        assert (product.dtype, gradient.dtype) == (dtype, dtype)
        assert (product.shape, gradient.shape) == ((T * B, N), (N, N))
        seen = []
        linear = nn.Linear(N, N)
        linear.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output.dtype))
        bench._workload(linear, lambda module: None, linear).forward()
        assert seen == [dtype]


def test_what_a_cpu_has_no_product_for_is_left_out(module):
    benches, run = module("benches"), module("run")
    options = run.parse_options(["--device", "cpu"])
    assert "Left out, not on cpu: tf32" in benches.OnmBench.left_out(options)
    assert [bench.matmul for bench in benches.OnmBench.chosen(options)] == ["float32", "bf16"]
    assert [size.N for size in benches.OnmBench._sizes(options)] == [512]


def test_a_gpu_has_a_grid_in_two_dtypes_as_far_as_its_memory_goes(module, monkeypatch):
    benches, run = module("benches"), module("run")
    options = run.parse_options(["--device", "cuda"])
    monkeypatch.setattr(module("measure"), "free_bytes", lambda device: 139e9)
    sizes = benches.LifBench._sizes(options)
    assert {size.T for size in sizes} == {4, 16, 64, 250, 1000}
    assert {size.B * size.N for size in sizes} == {2**12, 2**15, 2**18, 2**20, 2**22, 2**24}
    assert benches.LifBench._dtypes(options) == (torch.float32, torch.bfloat16)
    (line,) = benches.LifBench.left_out(options)
    start = "Left out, too much for 139.0 GB of free memory: T=250, B=64, N=262144, float32; "
    assert line.startswith(start) and line.count("T=1000") == 4 and line.count("T=") == 6
    assert {size.N for size in benches.OnmBench._sizes(options)} == {512, 4096, 8192, 16384}
    assert len(benches.OnmBench.left_out(options)) == 0


def test_a_cpu_leaves_large_recurrent_layers_to_the_command_line(module, monkeypatch):
    benches, run = module("benches"), module("run")
    monkeypatch.setattr(module("measure"), "free_bytes", lambda device: None)
    large = benches.Size(500, 256, 1024)
    assert len(benches.RlifBench.sizes) == 36
    options = run.parse_options(["--device", "cpu"])
    (line,) = benches.RlifBench.left_out(options)
    assert line.startswith("Left out, slow on a CPU") and str(large) in line
    assert "T=32, B=256, N=100;" not in line and "T=500, B=1, N=1024" not in line
    for arguments in (["--device", "cuda"], ["--device", "cpu", "--sizes", "500,256,1024"]):
        assert benches.RlifBench.left_out(run.parse_options(arguments)) == []


def test_what_memory_does_not_hold_is_left_out(module, monkeypatch, capsys, tmp_path):
    run, free = module("run"), 24 * 4 * 5 * 4 * 64
    monkeypatch.setattr(module("measure"), "free_bytes", lambda device: free)
    arguments = ["--bench", "rlif", "--device", "cpu", "--contenders", "torch-rnn", "--rounds", "3"]
    arguments += ["--json", str(tmp_path / "rows.json"), "--sizes", "5,4,64", "5,4,65"]
    assert run.main(arguments) == 0
    assert "rlif: Left out, too much for 0.0 GB of free memory: T=5, B=4, N=65\n" in capsys.readouterr().out
    assert [row["N"] for row in json.loads((tmp_path / "rows.json").read_text())] == [64]


def test_json_is_written_whole_or_not_at_all(module, tmp_path):
    write_json = module("run").write_json
    path = tmp_path / "results" / "lif.json"
    write_json([{"bench": "lif"}], path)
    with pytest.raises(TypeError):
        write_json([{"bench": object()}], path)
    assert json.loads(path.read_text()) == [{"bench": "lif"}]
    assert os.listdir(path.parent) == ["lif.json"]


def _tiny_run(module, path, *sizes):
    arguments = ["--bench", "lif", "--device", "cpu", "--contenders", "snnfast", "--rounds", "3", "--json", str(path)]
    return module("run").main([*arguments, "--sizes", *sizes])


def test_a_run_that_is_cut_off_keeps_its_sizes(module, tmp_path, monkeypatch):
    run, path = module("run"), tmp_path / "rows.json"
    run_size = run.run_size

    def cut_off(bench, *arguments):
        if bench.size.N == 65:
            raise KeyboardInterrupt
        return run_size(bench, *arguments)

    monkeypatch.setattr(run, "run_size", cut_off)
    with pytest.raises(KeyboardInterrupt):
        _tiny_run(module, path, "20,4,64", "20,4,65")
    assert [row["N"] for row in json.loads(path.read_text())] == [64]


def test_memory_that_runs_out_while_timing_is_a_row_of_its_size(module, tmp_path, monkeypatch):
    interleave, path, calls = module("measure").interleave, tmp_path / "rows.json", []

    def runs_out_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("too much")
        return interleave(*arguments)

    monkeypatch.setattr(module("measure"), "interleave", runs_out_once)
    assert _tiny_run(module, path, "20,4,64", "20,4,65") == 1
    assert [row["error"] for row in json.loads(path.read_text())] == ["OutOfMemoryError: too much", None]


def test_a_run_of_some_loops_has_a_file_of_its_own(module):
    run, loops = module("run"), list(module("published").LOOPS)
    common = {"device": "a CPU, 2 threads", "date": "2026-01-02T00:00:00+00:00"}
    assert run.default_path("loops", loops, common).name == "loops-a-cpu-2-threads-2026-01-02.json"
    some = run.default_path("loops", ["rate-fc", "norse-conv"], common)
    assert some.name == "loops-rate-fc-norse-conv-a-cpu-2-threads-2026-01-02.json"
    assert run.default_path("lif", loops[:1], common).name == "lif-a-cpu-2-threads-2026-01-02.json"
