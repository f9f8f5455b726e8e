"""The benchmark of the field's libraries: deep and recurrent nets, libraries on JAX, stages apart from each other."""

import json

import pytest
import torch
from torch import nn

import snnfast

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
# Of peers and of what compiles, the machine's own benchmark runs every form.
PLAIN = ["snnfast", "snntorch"]


@pytest.fixture
def deep(module):
    """A deep network's bench at its small size."""
    networks, benches = module("deep").DEEP, module("benches")
    return lambda name: benches.DeepBench(name, networks[name].small, torch.float32, CPU)


def row(module, contender_class, bench):
    return module("run").enter(contender_class, bench, compile_max_t=0, common={}).row


@pytest.mark.parametrize("contender", PLAIN)
@pytest.mark.parametrize("network", ["sew-resnet18", "spikformer", "conv"])
def test_deep_networks_are_checked(module, deep, network, contender):
    found = row(module, module("contenders").CONTENDERS[contender], deep(network))
    assert (found["error"], found["check"]) == (None, "close")
    assert found["peak_bytes"] >= found["retained_bytes"] > 0


@pytest.mark.parametrize("network", ["sew-resnet18", "spikformer", "conv"])
def test_a_deep_network_on_another_neuron_is_refused(module, deep, network):
    class Injected(module("contenders").SnnFast):
        def _leaky(self):
            return snnfast.Leaky(beta=0.5)

    assert "off by" in row(module, Injected, deep(network))["error"]


def test_every_neuron_of_a_deep_network_fires(deep, module):
    for network in ("sew-resnet18", "spikformer", "conv"):
        bench, seen = deep(network), []

        class Seen(nn.Module):
            def __init__(self, layer, seen):
                super().__init__()
                self.layer, self.seen = layer, seen

            def forward(self, x):
                spikes = self.layer(x)
                self.seen.append(spikes.mean().item())
                return spikes

        class Listening(module("contenders").SnnTorch):
            def lif(self, seen=seen):
                return Seen(super().lif(), seen)  # noqa: B023

            def network(self, *linears):
                return module("contenders").Contender.network(self, *linears)

        bench.workload(Listening()).forward()
        assert len(seen) == {"sew-resnet18": 20, "spikformer": 7, "conv": 3}[network]
        assert all(0 < rate < 0.9 for rate in seen), (network, seen)


def test_the_residual_network_is_resnet_18(module):
    deep = module("deep")
    network = deep.SewResNet18(nn.Identity, 3, 64, 10)
    # As everybody's ResNet-18 for CIFAR-10.
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_173_962
    assert network.blocks(network.stem(torch.randn(1, 1, 3, 32, 32))).shape == (1, 1, 512, 4, 4)


@pytest.mark.parametrize("contender", ["snnfast", "snnfast-rleaky", "norse", "snntorch"])
def test_the_net_of_spoken_digits_is_checked(module, contender):
    benches = module("benches")
    bench = benches.ShdBench(benches.Size(12, 4, 48), torch.float32, CPU)
    found = row(module, module("contenders").CONTENDERS[contender], bench)
    assert (found["error"], found["check"]) == (None, "close")


def test_a_wrong_readout_is_refused(module):
    benches, contenders = module("benches"), module("contenders")
    bench = benches.ShdBench(benches.Size(12, 4, 48), torch.float32, CPU)
    contender = contenders.SnnFast()
    results = benches.outcome(bench.workload(contender))
    assert "gradient of readout weight" in results
    bench.labels = (bench.labels + 1) % bench.outputs
    with pytest.raises(benches.WrongResult, match="gradient"):
        benches.check(results, bench.expected(contender, results), exact=False)


def test_stateleaky_is_the_sum_that_it_documents(module):
    benches, contenders = module("benches"), module("contenders")
    bench = benches.LifBench(benches.Size(20, 4, 16), torch.float32, CPU)
    found = row(module, contenders.SnnTorchState, bench)
    assert (found["error"], found["check"], found["same_neuron"]) == (None, "close", False)
    bench.size = benches.Size(contenders.SnnTorchState.steps_at_most + 1, 4, 16)
    assert "not run beyond T=" in row(module, contenders.SnnTorchState, bench)["error"]


@pytest.mark.parametrize("library", ["jaxpike", "spyx"])
def test_libraries_on_jax_compute_what_they_document(module, library):
    pytest.importorskip(library)
    benches, contender = module("benches"), module("contenders").CONTENDERS[library]
    size, matmul = benches.Size(20, 4, 32), "float32"
    for bench in (
        benches.LifBench(size, torch.float32, CPU),
        benches.OnmBench(size, matmul, CPU),
        benches.RlifBench(size, torch.float32, CPU),
    ):
        found = row(module, contender, bench)
        assert (found["error"], found["check"], found["peak_bytes"]) == (None, "close", None)


def test_torchs_autocast_is_not_timed_where_it_does_not_reach(module):
    benches, contenders = module("benches"), module("contenders")

    class Deaf(contenders.SnnFast):
        autocasts = False

    bench = benches.OnmBench(benches.Size(20, 4, 16), "bf16", CPU)
    assert "autocast" in row(module, Deaf, bench)["error"]


def test_nobody_begins_when_the_time_is_over(module, tmp_path):
    path = tmp_path / "rows.json"
    arguments = ["--bench", "lif", "--quick", "--device", "cpu", "--begin-within", "-1", "--json", str(path)]
    assert module("run").main([*arguments, "--contenders", "snntorch", "snnfast"]) == 1
    assert ["time of --begin-within" in found["error"] for found in json.loads(path.read_text())] == [True, True]


def test_stages_write_their_rows_and_say_what_failed(module, tmp_path, capfd):
    public = module("public")
    arguments = ["--quick", "--out", str(tmp_path), "--threads", "1", "--stages"]
    assert public.main([*arguments, "deep-conv", "--run", "--contenders", *PLAIN]) == 0
    (path,) = tmp_path.glob("public-deep-conv-*.json")
    found = json.loads(path.read_text())
    assert [each["contender"] for each in found] == PLAIN and not any(each["error"] for each in found)
    assert all(each["cores"] and each["load"] >= 0 and each["rounds"] >= 3 for each in found)
    assert "| conv, T=5, B=2, 16-4-5-10 | snntorch 1.0.0 |" in capfd.readouterr().out


def test_a_stage_that_fails_leaves_the_others_alone(module, monkeypatch, capfd):
    public = module("public")
    monkeypatch.setattr(public, "command", lambda stage, *_: ["false" if stage == "layer" else "true"])
    assert public.main(["--stages", "layer", "onm"]) == 1
    said = capfd.readouterr().out
    assert "--- onm: done" in said and said.endswith("\nlayer: exit status 1\n")


def test_a_stage_that_hangs_is_ended(module, monkeypatch):
    public = module("public")
    monkeypatch.setattr(public, "command", lambda *_: ["sleep", "60"])
    assert public.run_stage("layer", None, left=0.2) == "cut off"
    assert public.run_stage("layer", None, left=0) == "not run, no time left"


def test_a_table_shows_where_others_win(module):
    common = {"bench": "deep", "network": "conv", "T": 5, "B": 2, "layers": [16, 4], "device": "x", "dtype": "float32"}
    common |= {"torch": "2", "commit": "c", "date": "2026-11-30", "version": None, "same_neuron": True, "error": None}
    common |= {"forward_ms": 1.0, "first_call_s": 2.0, "peak_bytes": None, "compiles": False, "check": "close"}
    times = {"snnfast": 10.0, "snnfast-compile": 8.0, "snntorch": 16.0, "spikingjelly-compile": 4.0}
    table = module("table").bench_tables(
        [common | {"contender": name, "forward_backward_ms": time} for name, time in times.items()]
    )
    cells = {line.split("|")[2].strip(): line.split("|")[5:7] for line in table.splitlines() if "conv, T=5" in line}
    assert [cell.strip() for cell in cells["spikingjelly-compile"]] == ["4x", "0.5x"]
    assert [cell.strip() for cell in cells["snnfast"]] == ["1.6x", "1.25x"]
