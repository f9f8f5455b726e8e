"""The benchmarks: complete rows, refused contenders, honest measures, tables that cannot drift."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import snntorch
import torch
from torch import nn

import snnfast

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
REQUIRED = (
    *("bench", "contender", "version", "device", "dtype", "T", "B"),
    *("forward_ms", "forward_backward_ms", "peak_bytes", "retained_bytes"),
    *("limit_share", "commit", "date"),
)
T, B, N = 8, 4, 64
LAYER_CONTENDERS = ("snnfast", "reference", "snntorch", "snntorch-compile", "spikingjelly")
COMPILED = ["snnfast-compile"] if hasattr(snnfast, "accelerate") else []
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


@pytest.fixture
def module(monkeypatch):
    """Imports one of the benchmarks' files as the scripts do, by its bare name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All rows of a tiny run in which SpikingJelly cannot be imported."""
    folder = tmp_path_factory.mktemp("benchmarks")
    blocked = folder / "spikingjelly"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('blocked by the test')")
    command = [sys.executable, BENCHMARKS / "run.py", "--quick", "--json", folder / "rows.json"]
    command += ["--sizes", f"{T},{B},{N}", "--device", "cpu", "--threads", "1"]
    command += ["--rounds", "3", "--compile-max-t", "1"]
    command += ["--contenders", *{*LAYER_CONTENDERS, *ON_SNNTORCH, *ON_TORCH}]
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No figures for spikingjelly" in done.stdout
    return json.loads((folder / "rows.json").read_text())


@pytest.fixture(scope="module")
def rows(written):
    """The rows of the benches of layer and network, by bench and contender."""
    return {(row["bench"], row["contender"]): row for row in written if row["bench"] != "loops"}


@pytest.fixture(scope="module")
def loop_rows(written):
    """The rows of the published loops, by loop and contender."""
    return {(row["loop"], row["contender"]): row for row in written if row["bench"] == "loops"}


def test_every_contender_has_a_complete_row(rows, written):
    assert set(rows) == {(bench, name) for bench in ("lif", "rate-fc") for name in LAYER_CONTENDERS}
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


@pytest.mark.parametrize("bench", ["lif", "rate-fc"])
@pytest.mark.parametrize("name", ["snnfast", "reference", "snntorch"])
def test_timed_rows_are_sane(rows, bench, name):
    row = rows[bench, name]
    assert row["error"] is None
    assert row["check"] == ("exact" if bench == "lif" else "close")
    assert 0 < row["forward_min_ms"] <= row["forward_ms"] < row["forward_backward_ms"] < 1e4
    assert row["forward_backward_min_ms"] <= row["forward_backward_ms"]
    assert row["limit_share"] == pytest.approx(row["limit_ms"] / row["forward_backward_ms"])
    assert row["limit_ms"] > 0
    assert row["rounds"] == 3
    assert row["peak_bytes"] >= row["retained_bytes"] > 0


def test_snnfast_retains_one_membrane_per_neuron_step(rows):
    assert rows["lif", "snnfast"]["retained_bytes"] <= 4.1 * T * B * N


def test_peers_without_figures_say_why(rows):
    for bench in ("lif", "rate-fc"):
        missing, refused = rows[bench, "spikingjelly"], rows[bench, "snntorch-compile"]
        assert "blocked by the test" in missing["error"]
        assert "--compile-max-t 1" in refused["error"]
        assert missing["forward_backward_ms"] is None
        assert refused["limit_share"] is None


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


def test_json_is_written_whole_or_not_at_all(module, tmp_path):
    write_json = module("run").write_json
    path = tmp_path / "results" / "lif.json"
    write_json([{"bench": "lif"}], path)
    with pytest.raises(TypeError):
        write_json([{"bench": object()}], path)
    assert json.loads(path.read_text()) == [{"bench": "lif"}]
    assert os.listdir(path.parent) == ["lif.json"]


def _bench_row(contender, whole_ms, date, **others):
    row = dict.fromkeys(REQUIRED) | {
        "bench": "lif",
        "contender": contender,
        "same_neuron": True,
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
    results, readme = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    rows = [_bench_row("snntorch", 20.0, "2026-01-01")]
    (results / "lif.json").write_text(json.dumps(rows))
    (results / "recipe.json").write_text(json.dumps(_recipe_row(0, 0.97, "2026-01-01")))
    readme.write_text(f"before\n{table.START}\nstale\n{table.END}\nafter\n")
    arguments = ["--results", str(results), "--readme", str(readme)]

    assert table.main([*arguments, "--check"]) == 1
    assert "stale" in readme.read_text()
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    written = readme.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "| snntorch | 1 | 20 | 1x |" in written and "97.00%" in written

    rows[0]["forward_backward_ms"] = 21.0
    (results / "lif.json").write_text(json.dumps(rows))
    assert table.main([*arguments, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out


def test_a_readme_without_the_markers_is_an_error(module):
    with pytest.raises(ValueError, match="benchmarks:start"):
        module("table").replace_section("no markers", "tables")
