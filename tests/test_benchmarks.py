"""The benchmarks: complete rows, refused contenders, honest measures, tables that cannot drift."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import snntorch
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
def written(tmp_path_factory):
    """All rows of a tiny run in which the peers cannot be imported, snnTorch but, but for those of calls."""
    folder = tmp_path_factory.mktemp("benchmarks")
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
    return json.loads((folder / "rows.json").read_text())


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


@pytest.mark.parametrize("encoder", ["rate", "latency", "delta"])
def test_a_wrong_encoder_is_refused(module, encoder):
    contenders, benches, run = module("contenders"), module("benches"), module("run")

    class Injected(contenders.SnnFast):
        def encoders(self):
            def late(*arguments, **options):
                return getattr(snnfast.encoding, encoder)(*arguments, **options).roll(1, 0)

            def restless(*arguments, **options):
                return 1 - snnfast.encoding.rate(*arguments, **options)

            return SimpleNamespace(**{encoder: restless if encoder == "rate" else late})

    bench = benches.EncodingBench(encoder, benches.Size(T, B, N), torch.float32, torch.device("cpu"))
    assert "spikes: off" in run.enter(Injected, bench, compile_max_t=0, common={}).row["error"]


def _measured_with(module, contender_class):
    """What calls.py prints of a contender that is not one of the list's."""
    calls = module("calls")
    return calls.measured(contender_class(), module("benches").Size(T, B, N), torch.device("cpu"))


def test_a_layer_that_compiles_for_every_size_shows_it(module):
    class Compiling(module("contenders").SnnFast):
        def lif(self):
            seen, layer = set(), super().lif()

            class Module(nn.Module):
                def forward(self, x):
                    if x.shape not in seen:
                        seen.add(x.shape)
                        time.sleep(0.2)
                    return layer(x)

            return Module()

    row = _measured_with(module, Compiling)
    for name in ("first_call_ms", "new_t_ms", "new_b_ms", "new_n_ms"):
        assert row[name] > 200 > row["repeated_call_ms"]


def test_calls_say_what_went_wrong_and_do_without_a_step(module):
    contenders = module("contenders")

    class WithoutStep(contenders.SnnFast):
        def step(self):
            raise NotImplementedError

    class Broken(contenders.SnnFast):
        def lif(self):
            raise ValueError("no\nlayer")

    row = _measured_with(module, WithoutStep)
    assert row["step_us"] is None and row["first_call_ms"] > 0
    assert _measured_with(module, Broken) == {"error": "ValueError: no"}


@pytest.mark.parametrize("name", ["SnnFast", "Reference", "SnnTorch"])
def test_steps_are_the_layers(module, name):
    contenders = module("contenders")
    contender, x_seq = getattr(contenders, name)(), 0.3 + torch.randn(T, B, N)
    spikes = contenders.CellLoop(contender.step())(x_seq)
    assert spikes.any() and torch.equal(spikes, contender.lif()(x_seq))


def _onm_entry(module, wrong, matmul):
    class Injected(module("contenders").SnnFast):
        def network(self, *linears):
            return wrong(super().network(*linears))

    bench = module("benches").OnmBench(module("benches").Size(40, B, N), matmul, torch.device("cpu"))
    return module("run").enter(Injected, bench, compile_max_t=0, common={})


@pytest.mark.parametrize("matmul", ["float32", "bf16"])
def test_a_wrong_network_is_refused(module, matmul):
    assert _onm_entry(module, lambda network: network, matmul).row["error"] is None
    assert "spikes: off" in _onm_entry(module, _EveryStepAlone, matmul).row["error"]
    assert "gradient of weight: off" in _onm_entry(module, _DoubledGradient, matmul).row["error"]


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


@pytest.mark.parametrize("name", ["snnfast", "reference"])
def test_the_limit_halves_with_the_width_and_snnfast_stays_exact(module, name):
    benches, contenders = module("benches"), module("contenders")
    wide, narrow = (
        benches.LifBench(benches.Size(40, B, N), dtype, torch.device("cpu"))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (wide.least_bytes(), narrow.least_bytes()) == (24 * 40 * B * N, 12 * 40 * B * N)
    row = module("run").enter(contenders.CONTENDERS[name], narrow, compile_max_t=0, common={}).row
    assert (row["error"], row["check"], row["same_neuron"]) == (None, "exact", True)


def test_snntorch_with_membranes_of_16_bits_is_another_neuron(module):
    benches, contenders = module("benches"), module("contenders")
    bench = benches.LifBench(benches.Size(40, B, N), torch.bfloat16, torch.device("cpu"))
    entry = module("run").enter(contenders.SnnTorch, bench, compile_max_t=0, common={})
    assert (entry.row["error"], entry.row["check"], entry.row["same_neuron"]) == (None, None, False)
    assert entry.workload is not None


class _Selection:
    """SpikingJelly's choice of kernels, on a machine without GPU; `runs` is what it has in truth."""

    def __init__(self, runs):
        self._requested, self._selections, self._runs = "auto", {}, runs

    def _select(self, index):
        if self._requested not in self._runs:
            raise RuntimeError(f"No available sj_lif CUDA implementation. {self._requested}: not built")
        return self._runs[self._requested]

    def implementation(self, neuron, device):
        return {"implementation": self._selections[device.index]}


@pytest.fixture
def kernels(module, monkeypatch):
    """Makes the contenders of SpikingJelly's kernels, Triton's first, on a choice of kernels that is given."""

    def make(runs):
        selection = _Selection(runs)
        modules = {
            "spikingjelly._ops.lif": SimpleNamespace(_selection=selection),
            "spikingjelly.activation_based.functional": SimpleNamespace(
                neuron_implementation=selection.implementation, lif_multi_step=None
            ),
            "spikingjelly.activation_based.neuron": SimpleNamespace(LIFNode=lambda **options: nn.Identity()),
            "spikingjelly.activation_based.surrogate": SimpleNamespace(ATan=lambda alpha: None),
            "spikingjelly": SimpleNamespace(),
        }
        contenders = module("contenders")
        monkeypatch.setattr(contenders, "import_module", modules.__getitem__)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        return selection, contenders.SpikingJellyTriton(), contenders.SpikingJellyNative()

    return make


def test_each_pass_selects_spikingjellys_kernel_anew(kernels):
    selection, triton, native = kernels({"triton": "triton", "cuda": "cuda"})
    triton_layer, native_layer = triton.lif(), native.lif()
    triton.reset(triton_layer)
    assert (selection._requested, selection._selections) == ("triton", {0: "triton"})
    native.reset(native_layer)
    assert (selection._requested, selection._selections) == ("cuda", {0: "cuda"})


@pytest.mark.parametrize(("name", "storage"), [("SpikingJellyTriton", None), ("SpikingJellyPrecision", torch.bfloat16)])
def test_spikingjellys_kernels_get_a_float32_membrane(module, name, storage):
    given = {}

    def lif_multi_step(x_seq, v, *options, neuron_storage=None):
        given.update(x=x_seq.dtype, v=v.dtype, storage=neuron_storage, options=options)
        return (x_seq, None, None)

    node = SimpleNamespace(
        tau=20.0,
        decay_input=False,
        v_threshold=1.0,
        v_reset=None,
        surrogate_function="atan",
        detach_reset=True,
        store_v_seq=False,
    )
    contenders = module("contenders")
    layer = contenders.WideLif(lif_multi_step, node, getattr(contenders, name).narrow_storage)
    layer(torch.zeros(T, B, N, dtype=torch.bfloat16))
    assert (given["x"], given["v"], given["storage"]) == (torch.bfloat16, torch.float32, storage)
    assert given["options"] == (20.0, False, 1.0, None, "atan", True, False)


def test_spikingjelly_may_not_run_another_kernel_or_none(kernels):
    _, triton, native = kernels({"triton": "torch"})
    with pytest.raises(RuntimeError, match="runs 'torch' in place of 'triton'"):
        triton.lif()
    with pytest.raises(RuntimeError, match="cuda: not built"):
        native.lif()


class _DoubledGradient(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        spikes = self.layer(x_seq)
        return spikes + (spikes - spikes.detach())


class _EveryStepAlone(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        return self.layer(x_seq.flatten(0, 1)[None]).view_as(x_seq)


class _OneSpikeMore(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        spikes = self.layer(x_seq)
        silent = torch.zeros_like(spikes)
        silent.view(-1)[(spikes.detach().view(-1) == 0).nonzero()[0]] = 1
        return spikes + silent


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("wrong", "message"), [(_EveryStepAlone, "spikes"), (_DoubledGradient, "gradient")])
def test_a_wrong_layer_is_refused(module, exact, wrong, message):
    row, workload = _enter(module, wrong, exact)
    assert row["error"].startswith("WrongResult") and message in row["error"]
    assert workload is None and row["forward_backward_ms"] is None


def test_an_exact_contender_may_not_be_off_by_one_spike(module):
    assert "spikes" in _enter(module, _OneSpikeMore, exact=True)[0]["error"]
    assert _enter(module, _OneSpikeMore, exact=False)[0]["error"] is None


def test_a_right_layer_is_timed(module):
    row, workload = _enter(module, lambda layer: layer, exact=True)
    assert row["error"] is None and workload is not None


def _enter(module, wrong, exact):
    contenders, benches, run = module("contenders"), module("benches"), module("run")
    demanded = exact

    class Injected(contenders.SnnFast):
        name = "injected"
        exact = demanded

        def lif(self):
            return wrong(super().lif())

    bench = benches.LifBench(benches.Size(40, B, N), torch.float32, torch.device("cpu"))
    entry = run.enter(Injected, bench, compile_max_t=100, common={})
    return entry.row, entry.workload


RECURRENT = {"snnfast": "SnnFast", "snnfast-rleaky": "SnnFastRLeaky"}


def _recurrent(module, name, wrong, steps=40):
    """The row of a contender that does something wrong to the recurrent layer."""
    contenders, benches, run = module("contenders"), module("benches"), module("run")

    class Injected(getattr(contenders, RECURRENT[name])):
        def rlif(self, features):
            return wrong(super().rlif(features))

    bench = benches.RlifBench(benches.Size(steps, B, N), torch.float32, torch.device("cpu"))
    return run.enter(Injected, bench, compile_max_t=0, common={}).row


class _Deaf(nn.Module):
    """Forgets the state after every 20 steps."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        return torch.cat([self.layer(part) for part in x_seq.split(20)])


def _enlarged_gradient(index):
    def wrong(layer):
        list(layer.parameters())[index].register_hook(lambda gradient: 1.05 * gradient)
        return layer

    return wrong


@pytest.mark.parametrize("name", RECURRENT)
def test_a_right_recurrent_layer_passes(module, name):
    row = _recurrent(module, name, lambda layer: layer)
    assert (row["error"], row["check"]) == (None, "close")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        *((name, _Deaf, "spikes: off") for name in RECURRENT),
        *((name, _DoubledGradient, "gradient of") for name in RECURRENT),
        ("snnfast", _enlarged_gradient(0), "gradient of input_weights: off by 5.00%"),
        ("snnfast", _enlarged_gradient(1), "gradient of recurrent_weights: off by 5.00%"),
        ("snnfast-rleaky", _enlarged_gradient(0), "gradient of linear.weight: off by 5.00%"),
        ("snnfast-rleaky", _enlarged_gradient(2), "gradient of neuron.recurrent.weight: off by 5.00%"),
    ],
)
def test_a_wrong_recurrent_layer_is_refused(module, name, wrong, message):
    assert message in _recurrent(module, name, wrong)["error"]


class _Flipped(nn.Module):
    """Steps a recurrent cell, with one early spike flipped that the later steps hear."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x_seq):
        state, spikes = None, []
        for step, x in enumerate(x_seq.unbind(0)):
            spk, state = self.cell(x, state)
            if step == 20:
                flip = torch.zeros_like(spk)
                flip[0, 0] = 1 - 2 * spk[0, 0].detach()
                spk = spk + flip
                state = (spk, *state[1:])
            spikes.append(spk)
        return torch.stack(spikes)


def test_a_flipped_spike_is_one_difference_though_all_later_steps_hear_it(module):
    contenders, benches, cells = module("contenders"), module("benches"), []

    def wrong(layer):
        cells.append(contenders.SnnFast().rlif_step(N))
        return _Flipped(cells[0])

    assert _recurrent(module, "snnfast", wrong, steps=150)["error"] is None
    bench = benches.RlifBench(benches.Size(150, B, N), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        free, flipped = contenders.CellLoop(cells[0])(bench.x), _Flipped(cells[0])(bench.x)
    assert (free != flipped).float().mean() > 10 * benches.SPIKES_OFF


@pytest.mark.parametrize("features", [100, 256, 512, 1024])
def test_recurrent_neurons_fire_neither_rarely_nor_always(module, features):
    contenders, benches = module("contenders"), module("benches")
    bench = benches.RlifBench(benches.Size(32, 4, features), torch.float32, torch.device("cpu"))
    for contender in (contenders.SnnFast(), contenders.SnnFastRLeaky()):
        with torch.no_grad():
            rate = bench.workload(contender).forward().mean()
        assert 0.01 < rate < 0.4


def test_norse_is_used_where_it_is_installed(module, monkeypatch):
    contenders, published = module("contenders"), module("published")
    monkeypatch.setitem(sys.modules, "norse", None)
    monkeypatch.delitem(sys.modules, "norse.torch", raising=False)
    absent = contenders.Norse()
    assert (absent.library, absent.version) == (published, "1.1.0 in plain PyTorch")
    library = SimpleNamespace(
        LIFRecurrentCell=lambda *sizes, p: published.LIFRecurrentCell(*sizes, p), LIFParameters=published.LIFParameters
    )
    monkeypatch.setitem(sys.modules, "norse", SimpleNamespace(torch=library))
    monkeypatch.setitem(sys.modules, "norse.torch", library)
    present = contenders.Norse()
    assert present.library is library and present.version != absent.version
    assert present.rlif(N)(torch.zeros(2, B, N)).shape == (2, B, N)


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


def test_no_contender_leaves_precision_flags_that_break_others(module):
    for contender in module("contenders").RLIF_CONTENDERS:
        with contextlib.suppress(ImportError):
            contender()
    torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),))
    assert not torch.backends.cudnn.allow_tf32


def test_free_memory_is_some(module):
    assert (module("measure").free_bytes(torch.device("cpu")) or 1e9) > 1e6


def _publish(module, loop, wrong):
    """The row of a contender that does something wrong to the published network."""
    contenders, benches, run, published = module("contenders"), module("benches"), module("run"), module("published")

    class Injected(contenders.SnnFastCompiled):
        name = "injected"
        compiles = False

        def prepared(self, network):
            return wrong(network)

    small = published.LOOPS[loop].small
    bench = benches.LoopsBench(loop, small, torch.float32, torch.device("cpu"))
    return run.enter(Injected, bench, compile_max_t=0, common={}).row


def _slipped(index):
    """Wraps a network so that one of its outputs is that of the next step."""

    def wrong(network):
        def forward(x):
            output = network(x)
            outputs = list(output) if isinstance(output, tuple) else [output]
            outputs[index] = outputs[index].roll(-1, 0)
            return tuple(outputs) if isinstance(output, tuple) else outputs[0]

        return forward

    return wrong


def _enlarged_bias_gradient(network):
    network.fc1.bias.register_hook(lambda gradient: 1.05 * gradient)
    return network


@pytest.mark.parametrize(
    ("loop", "wrong", "message"),
    [
        ("rate-fc", _slipped(0), "spikes: off"),
        ("current-fc", _slipped(1), "membranes: off"),
        ("norse-recurrent", _slipped(0), "voltages: off"),
        ("norse-conv", _enlarged_bias_gradient, "gradient of fc1.bias: off by 5.00%"),
    ],
)
def test_a_wrong_loop_is_refused(module, loop, wrong, message):
    assert message in _publish(module, loop, wrong)["error"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_right_loop_passes(module, loop):
    assert _publish(module, loop, lambda network: network)["error"] is None


def test_compiled_loops_do_not_share_what_dynamo_decided(module):
    contenders, loop = module("contenders"), module("published").LOOPS["rate-fc"]
    x, _ = loop.inputs(torch.Generator().manual_seed(0), loop.small)

    def graphs(snn):
        found = []
        network = contenders._on_own_code(loop.build(loop.small, snn))
        torch.compile(network, backend=lambda graph, inputs: found.append(graph) or graph)(x)
        return len(found)

    # snntorch.Leaky breaks the graph in the loop, and Dynamo gives that code up.
    assert graphs(snntorch) > 1
    assert graphs(snnfast) == 1


def test_norses_cells_take_norses_euler_steps(module):
    published = module("published")
    current, threshold = torch.tensor([[1.0]]), published.LIFParameters(v_th=torch.as_tensor(0.25))

    voltage, state = published.LICell()(current)
    assert (voltage.item(), state[1].item()) == pytest.approx((0.1, 0.8))
    voltage, state = published.LICell()(current, state)
    assert (voltage.item(), state[1].item()) == pytest.approx((0.27, 1.44))

    cell = published.LIFCell(threshold)
    spike, state = cell(current)
    assert (spike.item(), state[0].item()) == pytest.approx((0, 0.1))
    spike, state = cell(current, state)
    assert (spike.item(), state[0].item(), state[1].item()) == pytest.approx((1, 0, 1.44))


def test_norses_recurrence_feeds_spikes_back_but_to_no_neuron_itself(module):
    published = module("published")
    cell = published.LIFRecurrentCell(2, 2, published.LIFParameters(v_th=torch.as_tensor(0.05)))
    with torch.no_grad():
        cell.input_weights.copy_(torch.eye(2))
        cell.recurrent_weights.copy_(torch.tensor([[0.0, 3.0], [5.0, 0.0]]))
    first = torch.tensor([[1.0, 0.0]])
    spikes, state = cell(first)
    assert spikes.tolist() == [[1, 0]]
    spikes, (_, _, current) = cell(torch.zeros(1, 2), state)
    assert current.tolist() == [pytest.approx([0.64, 4.0])]
    (spikes * torch.tensor([3.0, 7.0])).sum().backward()
    assert cell.recurrent_weights.grad.diagonal().tolist() == [0, 0]
    assert cell.recurrent_weights.grad[1, 0] > 0


def test_a_check_of_silence_is_void(module):
    benches = module("benches")
    silence, anything = torch.zeros(T, B, N), torch.ones(N)
    with pytest.raises(benches.WrongResult, match="no neuron fires"):
        benches.check({"spikes": silence}, {"spikes": silence}, exact=True)
    with pytest.raises(benches.WrongResult, match="the gradient is zero"):
        results = {"spikes": anything, "gradient": silence}
        benches.check(results, results, exact=False)


def test_a_check_takes_few_flipped_spikes_and_no_nan(module):
    benches = module("benches")
    spikes, gradient = torch.ones(10_000), torch.ones(3)

    def checked(flipped, entry):
        results = {"spikes": spikes.clone(), "gradient": gradient.clone()}
        results["spikes"][:flipped] = 0
        results["gradient"][0] = entry
        benches.check(results, {"spikes": spikes, "gradient": gradient}, exact=False)

    checked(10, 1.02)
    for flipped, entry, message in ((11, 1.0, "spikes: off by 0.11%"), (0, 1.04, "gradient"), (0, torch.nan, "nan")):
        with pytest.raises(benches.WrongResult, match=message):
            checked(flipped, entry)


def test_held_bytes_are_those_that_the_graph_allocated(module, device):
    held_bytes = module("measure").held_bytes
    x = torch.ones(1024, requires_grad=True, device=device)
    for forward, expected in ((x.exp, 0), (lambda: x.exp().sin(), 4096), (lambda: (x.exp().sin(), x.cos()), 4096)):
        forward()
        assert held_bytes(forward, x.device) == expected


def test_retained_bytes_are_those_of_the_living_graph(module):
    retained_bytes = module("measure").retained_bytes
    x = torch.rand(1000, requires_grad=True)
    assert retained_bytes(lambda: x.exp(), [x]) == 0
    assert retained_bytes(lambda: x.exp().sin(), [x]) == 4000
    assert retained_bytes(lambda: x.sin(), []) == 4000

    def abandons_a_graph():
        x.exp().sin()
        return x.exp()

    assert retained_bytes(abandons_a_graph, [x]) == 0


def test_peak_bytes_count_what_is_held_at_once(module):
    peak_bytes = module("measure").peak_bytes
    kilobyte = 256

    def one_then_two_at_once():
        torch.empty(5 * kilobyte)
        held = torch.empty(kilobyte), torch.empty(3 * kilobyte)
        return len(held)

    assert peak_bytes(one_then_two_at_once, torch.device("cpu")) == 5 * 1024
    assert peak_bytes(lambda: None, torch.device("cpu")) == 0


def test_peak_bytes_leave_out_the_end_of_what_was_there_before(module):
    peak_bytes = module("measure").peak_bytes
    blocks = []
    peak_bytes(lambda: blocks.extend(torch.empty(4096) for _ in range(100)), torch.device("cpu"))
    addresses = {block.data_ptr() for block in blocks}
    blocks.clear()
    blocks.extend(torch.empty(4096) for _ in range(100))
    assert addresses & {block.data_ptr() for block in blocks}

    def free_then_take():
        blocks.clear()
        torch.empty(256)

    assert peak_bytes(free_then_take, torch.device("cpu")) == 1024


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


def _bench_row(contender, whole_ms, date, **others):
    row = dict.fromkeys(REQUIRED) | {
        "bench": "lif",
        "contender": contender,
        "same_neuron": True,
        "check": "close",
        "device": "a CPU",
        "dtype": "float32",
        "T": 2,
        "B": 3,
        "N": 5,
        "torch": "2",
        "forward_ms": 1.0,
        "forward_backward_ms": whole_ms,
        "limit_share": 0.5,
        "retained_bytes": 120,
        "peak_bytes": 3_000_000,
        "copy_bytes_per_s": 2e10,
        "date": date,
        "error": None,
    }
    return row | others


def _loop_row(loop, contender, whole_ms, date, **others):
    row = (
        _bench_row(
            contender, whole_ms, date, bench="loops", loop=loop, compiles="compile" in contender, first_call_s=0.5
        )
        | others
    )
    del row["N"]
    return row


def test_loops_compare_with_their_author_and_with_snnfasts_loop(module):
    old, new = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    text = module("table").render(
        [
            _loop_row("rate-fc", "snntorch", 100.0, old),
            _loop_row("rate-fc", "snntorch", 60.0, new),
            _loop_row("rate-fc", "snnfast-loop", 30.0, new),
            _loop_row("rate-fc", "snnfast-compile", 6.0, new),
            _loop_row("norse-conv", "torch", 8.0, old),
            _loop_row("norse-conv", "snnfast-compile", 2.0, old),
            _loop_row("norse-conv", "torch-compile", None, old, error="Refused: too long"),
        ]
    )
    assert text.count("| contender |") == 1
    assert "| rate-fc, T=2, B=3 | snnfast-compile | 1 | 6 | 10x | 5x | 0.5 | 3.0 | 0.0 |" in text
    assert "| norse-conv, T=2, B=3 | snnfast-compile | 1 | 2 | 4x | - | 0.5 | 3.0 | 0.0 |" in text
    assert "| rate-fc, T=2, B=3 | snnfast-loop | 1 | 30 | 2x | 1x | - | 3.0 | 0.0 |" in text
    assert "No figures for norse-conv, T=2, B=3, torch-compile: Refused: too long" in text
    assert "2026-01-01, 2026-01-02" in text and "| 100 |" not in text


def _encoding_row(encoder, contender, ms, date, **others):
    return _bench_row(contender, ms, date, bench="encoding", encoder=encoder, **others)


def test_encoders_compare_with_snntorchs(module):
    old, new = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    text = module("table").render(
        [
            _encoding_row("rate", "snntorch", 90.0, old),
            _encoding_row("rate", "snntorch", 60.0, new),
            _encoding_row("rate", "snnfast", 5.0, new),
            _encoding_row("delta", "snnfast", 4.0, old),
            _encoding_row("delta", "snntorch", None, old, error="Refused: too long"),
        ]
    )
    assert text.count("| encoder | contender |") == 1
    assert "| rate, T=2, B=3, N=5 | snnfast | 5 | 12x | 50% | 3.0 |" in text
    assert "| delta, T=2, B=3, N=5 | snnfast | 4 | - | 50% | 3.0 |" in text
    assert "No figures for delta, T=2, B=3, N=5, snntorch: Refused: too long" in text and "| 90 |" not in text


def _rlif_row(size, contender, whole_ms, date, **others):
    steps, batch, neurons = size
    row = _bench_row(contender, whole_ms, date, bench="rlif", limit_ms=whole_ms and 3.0, T=steps, B=batch, N=neurons)
    return row | others


def test_recurrent_layers_compare_with_their_own_neuron(module):
    old, new, size = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", (32, 2, 5)
    text = module("table").render(
        [
            _rlif_row(size, "snnfast", 40.0, old),
            _rlif_row(size, "snnfast", 4.0, new),
            _rlif_row(size, "norse", 10.0, new),
            _rlif_row(size, "snnfast-rleaky", 5.0, new),
            _rlif_row(size, "snntorch", 20.0, new),
            _rlif_row(size, "norse-compile", None, new, error="Refused: too long"),
            _rlif_row(size, "torch-rnn", 2.0, new, same_neuron=False, check=None),
            _rlif_row((100, 2, 5), "norse", 8.0, old),
            _rlif_row((100, 2, 5), "norse-compile", None, old, error="Refused: too long"),
            _rlif_row((500, 2, 5), "norse-compile", None, old, error="Refused: longer"),
        ]
    )
    assert text.count("| size | limit |") == 1
    assert "| snnfast-rleaky | snntorch | torch-rnn (another neuron, not checked) |\n" in text
    assert "| T=32, B=2, N=5 | 3 | 4 | 10 (2.5x) | 5 | 20 (4x) | 2 |" in text
    assert "| T=100, B=2, N=5 | 3 | - | 8 | - | - | - |" in text
    assert "No figures for norse-compile: Refused: too long (T=32, B=2, N=5; T=100, B=2, N=5)" in text
    assert "No figures for norse-compile: Refused: longer (T=500, B=2, N=5)" in text
    assert "2026-01-01, 2026-01-02" in text and "| 40 " not in text and "| T=500" not in text


def test_a_run_of_some_loops_has_a_file_of_its_own(module):
    run, loops = module("run"), list(module("published").LOOPS)
    common = {"device": "a CPU, 2 threads", "date": "2026-01-02T00:00:00+00:00"}
    assert run.default_path("loops", loops, common).name == "loops-a-cpu-2-threads-2026-01-02.json"
    some = run.default_path("loops", ["rate-fc", "norse-conv"], common)
    assert some.name == "loops-rate-fc-norse-conv-a-cpu-2-threads-2026-01-02.json"
    assert run.default_path("lif", loops[:1], common).name == "lif-a-cpu-2-threads-2026-01-02.json"


def _recipe_row(seed, accuracy, date):
    return {
        "recipe": "rate-fc",
        "library": "snnfast",
        "version": "1",
        "device": "a CPU",
        "epochs": 2,
        "seed": seed,
        "test_accuracy": accuracy,
        "seconds_per_epoch": 10.0,
        "peak_bytes": None,
        "commit": "abc",
        "date": date,
    }


def test_tables_compare_within_the_newest_run(module):
    old, new = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    text = module("table").render(
        [
            _bench_row("snntorch", 100.0, old),
            _bench_row("snnfast", 50.0, old),
            _bench_row("snntorch", 20.0, new),
            _bench_row("snnfast", 4.0, new),
            _bench_row("absent", None, new, error="ImportError: no such | peer"),
        ]
    )
    assert "| snnfast | 1 | 4 | 5x | 50% | 4 | 3.0 |" in text
    assert "copies at 20.0 GB/s" in text
    assert "No figures for absent: ImportError: no such | peer" in text
    assert "2026-01-01" not in text and "| 50 |" not in text


def test_open_neuromorphics_table_has_forward_and_backward_apart(module):
    old, new = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"

    def row(matmul, contender, ms, date, **others):
        return _bench_row(contender, ms, date, bench="onm", matmul=matmul, backward_ms=2.5, **others)

    text = module("table").render(
        [
            row("float32", "snntorch", 30.0, old),
            row("float32", "snntorch", 20.0, new),
            row("float32", "snnfast", 4.0, new),
            row("bf16", "snnfast", 3.0, old),
            row("bf16", "absent", None, old, error="ImportError: no such peer"),
        ]
    )
    assert text.count("| backward ms |") == 1
    assert "| T=2, B=3, N=5 | float32 | snnfast | 1 | 2.5 | 4 | 5x | 50% | 3.0 |" in text
    assert "| T=2, B=3, N=5 | bf16 | snnfast | 1 | 2.5 | 3 | - | 50% | 3.0 |" in text
    assert "No figures for absent: ImportError: no such peer (T=2, B=3, N=5, bf16)" in text and "| 30 |" not in text


def test_calls_have_a_table(module):
    calls = {"first_call_ms": 1500.0, "repeated_call_ms": 2.0, "new_t_ms": 3.0, "new_b_ms": 4.0, "new_n_ms": 5.0}
    date, gpu = "2026-01-01T00:00:00+00:00", {"bench": "calls", "error": "Refused: not on cpu"}
    text = module("table").render(
        [
            _bench_row("snnfast", None, date, bench="calls", step_us=6.0, **calls),
            _bench_row("without-step", None, date, bench="calls", step_us=None, **calls),
            _bench_row("one", None, date, **gpu),
            _bench_row("two", None, date, **gpu),
        ]
    )
    assert "| snnfast | 1500 | 2 | 3 | 4 | 5 | 6 |" in text
    assert "| without-step | 1500 | 2 | 3 | 4 | 5 | - |" in text
    assert "No figures for one, two: Refused: not on cpu" in text


def _lif_grid(steps, neurons, contender, ms, **others):
    return _bench_row(contender, ms, "2026-01-01T00:00:00+00:00", T=steps, N=neurons, limit_ms=ms and 0.5, **others)


GRID = [
    _lif_grid(steps, neurons, contender, ms)
    for steps in (4, 16, 64)
    for neurons in (1024, 2048)
    for contender, ms in (("snnfast", 2.0), ("snntorch", 10.0))
] + [_lif_grid(4, 1024, "absent", None, error="ImportError: no such peer")]


def test_many_sizes_are_lines_of_one_table(module):
    text = module("table").render(GRID)
    assert text.count("| size | limit | snnfast | snntorch |") == 1
    assert "(and how many times snnfast's, and snnfast's share of the limit)" in text
    assert "| T=64, B=3, N=2048 | 0.5 | 2 (50%) | 10 (5x) |" in text
    assert "No figures for absent: ImportError: no such peer (T=4, B=3, N=1024)" in text
    assert module("table").render(GRID[:4]).count("| contender |") == 2


def test_pictures_show_every_contender_and_the_limit(module, tmp_path):
    plots = module("plots")
    date = "2026-01-01T00:00:00+00:00"
    onm = [
        _bench_row("snnfast", ms, date, bench="onm", matmul="bf16", N=neurons, limit_ms=1.0)
        for neurons, ms in ((512, 2.0), (4096, 40.0))
    ]
    calls = dict.fromkeys(("first_call_ms", "repeated_call_ms", "new_t_ms", "new_b_ms", "new_n_ms"), 3.0)
    rows = [
        *(*GRID, *onm),
        _bench_row("snnfast", 2.0, date, bench="rate-fc", limit_ms=1.0),
        _bench_row("snnfast", None, date, bench="calls", **calls),
        _bench_row("snnfast", 2.0, date, bench="deep", network="conv"),
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert plots.main([str(tmp_path / "rows.json"), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("lif-over-t-float32-a-cpu.png", "lif-over-bn-float32-a-cpu.png", "onm-over-n-float32-a-cpu.png"),
        *("rate-fc-t2-b3-n5-float32-a-cpu.png", "calls-t2-b3-n5-float32-a-cpu.png"),
        "deep-conv-float32-a-cpu.png",
    }
    timed = [row for row in GRID if not row["error"]]
    figure = dict(plots._lif(timed, "title"))["over-t"]
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == ["B·N = 3k", "B·N = 6k"]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert set(lines) == {"snnfast", "snntorch", "copy bandwidth"}
    assert list(lines["copy bandwidth"].get_xdata()) == [4, 16, 64]
    # Milliseconds to nanoseconds a neuron-step.
    assert lines["copy bandwidth"].get_ydata()[0] == pytest.approx(0.5e6 / (4 * 3 * 1024))
    assert lines["snntorch"].get_ydata()[2] == pytest.approx(10e6 / (64 * 3 * 1024))
    (floor,) = (
        line
        for line in dict(plots._onm(onm, "title"))["over-n"].axes[0].get_lines()
        if line.get_label() == "the products alone"
    )
    assert [*floor.get_ydata()] == [1.0, 1.0]


def test_without_timed_rows_there_is_nothing_to_draw(module, tmp_path, capsys):
    (tmp_path / "rows.json").write_text(json.dumps(GRID[-1:]))
    assert module("plots").main([str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "nothing to draw" in capsys.readouterr().err


def test_the_backward_is_what_the_forward_leaves_of_a_pass(module):
    summary = module("measure").Timing(forward=[1.0, 2.0, 6.0], whole=[4.0, 4.0, 9.0]).summary()
    assert (summary["forward_ms"], summary["backward_ms"], summary["forward_backward_ms"]) == (2.0, 3.0, 4.0)


def test_recipes_show_the_mean_over_seeds(module):
    rows = [
        _recipe_row(0, 0.10, "2026-01-01"),
        _recipe_row(0, 0.96, "2026-01-02"),
        _recipe_row(1, 0.98, "2026-01-02"),
    ]
    text = module("table").render(rows)
    assert "| rate-fc | snnfast 1 | a CPU | 2 | 97.00% ± 1.41% (2 seeds) | 10 | - |" in text


def test_check_detects_drift(module, tmp_path, capsys):
    table = module("table")
    results, page = tmp_path / "results", tmp_path / "benchmarks.md"
    results.mkdir()
    rows = [_bench_row("snntorch", 20.0, "2026-01-01")]
    (results / "lif.json").write_text(json.dumps(rows))
    (results / "recipe.json").write_text(json.dumps(_recipe_row(0, 0.97, "2026-01-01")))
    page.write_text(f"before\n{table.START}\nstale\n{table.END}\nafter\n")
    arguments = ["--results", str(results), "--page", str(page)]

    assert table.main([*arguments, "--check"]) == 1
    assert "stale" in page.read_text()
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "| snntorch | 1 | 20 | 1x |" in written and "97.00%" in written

    rows[0]["forward_backward_ms"] = 21.0
    (results / "lif.json").write_text(json.dumps(rows))
    assert table.main([*arguments, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out


def test_a_page_without_the_markers_is_an_error(module):
    with pytest.raises(ValueError, match="benchmarks:start"):
        module("table").replace_section("no markers", "tables")
