"""The benchmarks: complete rows, refused contenders, honest measures, tables that cannot drift."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
REQUIRED = (
    *("bench", "contender", "version", "device", "dtype", "T", "B", "N"),
    *("forward_ms", "forward_backward_ms", "peak_bytes", "retained_bytes"),
    *("limit_share", "commit", "date"),
)
T, B, N = 8, 4, 64


@pytest.fixture
def module(monkeypatch):
    """Imports one of the benchmarks' files as the scripts do, by its bare name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of a tiny run in which SpikingJelly cannot be imported, by bench and contender."""
    folder = tmp_path_factory.mktemp("benchmarks")
    blocked = folder / "spikingjelly"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ImportError('blocked by the test')")
    command = [sys.executable, BENCHMARKS / "run.py", "--quick", "--json", folder / "rows.json"]
    command += ["--sizes", f"{T},{B},{N}", "--device", "cpu", "--threads", "1"]
    command += ["--rounds", "3", "--compile-max-t", "1"]
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No figures for spikingjelly" in done.stdout
    written = json.loads((folder / "rows.json").read_text())
    return {(row["bench"], row["contender"]): row for row in written}


def test_every_contender_has_a_complete_row(rows):
    names = ("snnfast", "reference", "snntorch", "snntorch-compile", "spikingjelly")
    assert set(rows) == {(bench, name) for bench in ("lif", "rate-fc") for name in names}
    for row in rows.values():
        assert set(REQUIRED) <= set(row)
        assert (row["T"], row["B"], row["N"], row["dtype"]) == (T, B, N, "float32")


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


def test_a_check_of_silence_is_void(module):
    benches = module("benches")
    silence = torch.zeros(T, B, N)
    with pytest.raises(benches.WrongResult, match="no neuron fires"):
        benches.check(silence, silence, silence, silence, exact=True)


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
