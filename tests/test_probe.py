"""`record` and `detach`: what a network's neurons compute, seen from outside."""

import copy
import pickle
import warnings

import pytest
import snntorch
import torch
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

import snnfast as snn
import snnfast.norse as norse
from cells import Spike
from networks import Explicit, Layers
from snnfast import ops

T, B = 9, 3
NETS = {
    "states by hand": lambda lib: Explicit(lib.Leaky(0.9, threshold=0.4), lib.Synaptic(0.8, 0.9, threshold=0.4)),
    "hidden states": lambda lib: Layers(
        *(nn.Linear(12, 16), lib.Leaky(0.9, threshold=0.4, init_hidden=True)),
        *(nn.Linear(16, 5), lib.Synaptic(0.8, 0.9, threshold=0.4, init_hidden=True)),
    ),
    "recurrent": lambda lib: Explicit(lib.RLeaky(0.9, linear_features=16, threshold=0.4), lib.Leaky(0.8)),
}
WAYS = {
    "dropped in": lambda net: net,
    "accelerated": snn.accelerate,
    "exact": lambda net: snn.accelerate(net, numbers="exact"),
    "compiled": lambda net: snn.accelerate(net, compile=True),
}


def inputs(call=0):
    return torch.rand(T, B, 12, generator=torch.Generator().manual_seed(call)) * 2


def made(build, lib):
    torch.manual_seed(0)
    return build(lib)


def written_by_hand(net, x):
    """Spikes and states of every layer, by hooks that keep each step."""
    kept, handles = {}, []
    for name, layer in net.named_modules():
        if isinstance(layer, snntorch.SpikingNeuron):

            def hook(layer, given, out, name=name):
                steps = kept.setdefault(name, {"spk": [], "mem": [], "syn": []})
                steps["spk"].append(out[0] if isinstance(out, tuple) else out)
                steps["mem"].append(layer.mem)
                if hasattr(layer, "syn"):
                    steps["syn"].append(layer.syn)

            handles.append(layer.register_forward_hook(hook))
    net(x)
    for handle in handles:
        handle.remove()
    return {name: {key: torch.stack(value) for key, value in steps.items() if value} for name, steps in kept.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_what_is_seen_is_what_snntorch_computes(name, way):
    expected = written_by_hand(made(NETS[name], snntorch), inputs())
    net = WAYS[way](made(NETS[name], snn))
    for call in (1, 2, 3):
        net(inputs(call)).sum() if name == "hidden states" else net(inputs(call))[0].sum()
    with snn.record(net) as seen:
        net(inputs())
    assert list(seen.spk) == list(seen.mem) == list(expected)
    rounds = name == "recurrent" and way != "dropped in"
    for layer, states in expected.items():
        for state, value in states.items():
            got = getattr(seen, state)[layer]
            assert got.shape[:2] == (T, B)
            assert torch.allclose(got, value, atol=1e-5) if rounds else torch.equal(got, value), (layer, state)


@pytest.mark.parametrize("way", ["dropped in", "accelerated", "exact", "compiled"])
def test_a_rate_is_regularised_in_one_line(way):
    gradients = []
    for lib, change in ((snntorch, lambda net: net), (snn, WAYS[way])):
        net = change(made(NETS["hidden states"], lib))
        if lib is snn:
            net(inputs()).sum()
            with snn.record(net) as seen:
                out = net(inputs())
            rates = sum(spk.mean() for spk in seen.spk.values()) + seen.mem["layers.1"].square().mean()
        else:
            layers = written_by_hand(net, inputs())
            out = layers["layers.3"]["spk"]
            rates = sum(seen["spk"].mean() for seen in layers.values()) + layers["layers.1"]["mem"].square().mean()
        (out.sum() + 10 * rates).backward()
        gradients.append([param.grad for param in net.parameters()])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_an_accelerated_net_stays_fused_while_it_is_recorded():
    net = snn.accelerate(made(NETS["hidden states"], snn))

    def called():
        calls = []
        with ops.listening(lambda operator, arguments, steps: calls.append((operator, steps))):
            net(inputs()).sum().item()
        return [steps for _, steps in calls if steps != ops.NO_NEURON]

    called()
    alone = called()
    with snn.record(net) as seen:
        recorded = called()
        seen.spk["layers.1"].mean()
    assert sum(recorded) == sum(alone) == 2 * T and len(recorded) <= len(alone) == 4
    assert [layer.fused for layer in snn.explain(net, inputs()).layers] == [True, True]


def unrolled(lib, **options):
    layers = nn.Linear(12, 16), lib.Leaky(0.9, threshold=0.4), nn.Linear(16, 5), lib.Leaky(0.8, threshold=0.4)
    return lib.Unroll(*layers, **options) if lib is snn else nn.Sequential(*layers)


@pytest.mark.parametrize("recompute", [False, True])
def test_unroll_is_seen_whole_and_trains_as_ever(recompute):
    net = made(lambda lib: unrolled(lib, recompute=recompute), snn)
    alone = copy.deepcopy(net)
    # Else a run in backward ends before it could be seen.
    with set_checkpoint_early_stop(False), snn.record(net) as seen:
        out = net(inputs())
        (out.sum() + seen.spk["1"].mean()).backward()
    assert list(seen.spk) == ["1", "3"] and torch.equal(seen.spk["3"], out)
    assert len(seen.spk["1"]) == T  # what backward runs again is not seen again
    spk, mem = alone[1].unroll(alone[0](inputs()))
    assert torch.equal(seen.spk["1"], spk) and torch.equal(seen.mem["1"], mem)
    (alone(inputs()).sum() + spk.mean()).backward()
    for param, other in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(param.grad, other.grad)


def test_hooks_of_others_and_unroll_called_by_hand_are_seen_once():
    net = unrolled(snn)
    calls = []
    net[1].register_forward_hook(lambda *given: calls.append(1))
    with snn.record(net) as seen:
        net(inputs())
        net[3].unroll(torch.rand(T, B, 5))
        net[3].unroll_spikes(torch.rand(T, B, 5))
        net[3](torch.rand(B, 5))
    assert len(calls) == 1 and len(seen.spk["1"]) == T and len(seen.spk["3"]) == 3 * T + 1 == len(seen.mem["3"])


class Mine(snn.Cell):
    states = ("mem", "trace")

    def step(self, x, mem, trace):
        mem = 0.9 * mem + x
        spk = Spike.apply(mem - 0.5 - trace)
        return spk, mem, 0.8 * trace + 0.1 * spk


class Inverted(snn.Leaky):
    def _base_state_function(self, input_):
        return input_ - 0.5 * self.mem


@pytest.mark.parametrize("layer", [Mine, lambda: snn.ALIF(0.9, 0.9, 0.1), lambda: Inverted(0.5)])
def test_neurons_of_all_kinds(layer):
    torch.manual_seed(0)
    neuron, x = layer(), torch.rand(T, B, 4)
    sequence = snn.Unroll(neuron)
    with snn.record(sequence) as whole, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sequence(x)
    assert not [warning for warning in said if "hook" in str(warning.message)]
    neuron.reset_mem()
    with snn.record(neuron) as stepped:
        states = ()
        for step in x:
            _, *states = neuron(step, *states)
    for state in ("spk", *neuron.state_names):
        assert torch.equal(getattr(whole, state)["0"], getattr(stepped, state)[""]), state


def test_snntorchs_own_layers_and_one_layer_alone():
    net = nn.Sequential(nn.Linear(12, 4), snntorch.SLSTM(4, 6, init_hidden=True, output=True))
    with snn.record(net) as seen:
        for x in inputs():
            net(x)
    assert seen.spk["1"].shape == seen.mem["1"].shape == seen.syn["1"].shape == (T, B, 6)
    both = unrolled(snn)
    with snn.record(both, "3") as seen:
        both(inputs())
    assert list(seen.spk) == ["3"]


def test_runs_follow_one_another_until_cleared():
    net = unrolled(snn)
    with snn.record(net) as seen:
        net(inputs())
        assert len(seen.spk["1"]) == T
        net(inputs(1))
        assert len(seen.spk["1"]) == 2 * T
        seen.clear()
        net(inputs()[:, :2])
        assert seen.spk["1"].shape == (T, 2, 16)
        net(inputs())
        with pytest.raises(ValueError, match=r"layer '1' ran with steps of shapes \(2, 16\) and \(3, 16\): clear"):
            seen.spk["1"]


def test_nothing_is_left_behind_and_records_may_nest():
    net = unrolled(snn)
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    with snn.record(net) as outer:
        with snn.record(net, "1") as inner:
            net(inputs())
        net(inputs())
        copied = pickle.loads(pickle.dumps(copy.deepcopy(net)))
        copied(inputs())
    assert len(outer.spk["1"]) == 2 * T and len(inner.spk["1"]) == T
    net(inputs())
    assert len(outer.spk["1"]) == 2 * T
    for name, module in net.named_modules():
        assert vars(module).keys() == before[name].keys() and not module._forward_hooks


def test_mistakes_are_named():
    net = unrolled(snn)
    with pytest.raises(TypeError, match="net must be a torch.nn.Module, got list"), snn.record([net]):
        pass
    with pytest.raises(ValueError, match="net must have a spiking layer to record; Linear has none"):
        snn.record(nn.Linear(1, 1)).__enter__()
    with pytest.raises(ValueError, match="layers must be among 1, 3; got '2'"):
        snn.record(net, "2").__enter__()
    with snn.record(net) as seen:
        with pytest.raises(RuntimeError, match="none of the recorded layers has run within record: 1, 3"):
            list(seen.spk)
        net[1](torch.rand(B, 16))
        with pytest.raises(KeyError, match="layer '3' has not run; those that have: 1"):
            seen.spk["3"]
        with pytest.raises(KeyError, match="no recorded layer '2' has spk; there are 1, 3"):
            seen.spk["2"]
        with pytest.raises(AttributeError, match="no recorded layer has a state 'syn'; they have spk, mem"):
            seen.syn  # noqa: B018


@pytest.mark.parametrize("lib", [snn, snntorch])
@pytest.mark.parametrize("way", ["dropped in", "accelerated"])
def test_detach_truncates_backpropagation_through_time(lib, way):
    def chunks(detach):
        net = made(NETS["hidden states"], lib)
        net = WAYS[way](net) if lib is snn else net
        for k, chunk in enumerate(inputs().split(3)):
            sum(net.layers(x).mean() for x in chunk).backward()
            detach(net)
            assert k or net.layers[1].mem.abs().sum() > 0
        return [param.grad for param in net.parameters()]

    def by_hand(net):
        for layer in net.layers:
            for name in ("mem", "syn"):
                if hasattr(layer, name):
                    setattr(layer, name, getattr(layer, name).detach())

    for mine, theirs in zip(chunks(snn.detach), chunks(by_hand), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Mine(init_hidden=True),
        lambda: snn.ALIF(0.9, 0.9, 0.1, init_hidden=True),
        lambda: snn.RSynaptic(0.8, 0.9, linear_features=4, init_hidden=True),
    ],
)
def test_detach_reaches_every_state_and_leaves_what_others_hold(layer):
    net = nn.Sequential(nn.Linear(4, 4), layer())
    net(torch.rand(B, 4))
    held = [getattr(net[1], name) for name in net[1].state_names]
    snn.detach(net)
    assert all(state.requires_grad for state in held)
    for name, before in zip(net[1].state_names, held, strict=True):
        now = getattr(net[1], name)
        assert not now.requires_grad and torch.equal(now, before)
    with pytest.raises(TypeError, match="net must be a torch.nn.Module, got int"):
        snn.detach(3)


def test_norses_layers_are_seen():
    cell, layer = norse.LIFCell(), norse.LIF(record_states=True)
    net, x, state = nn.ModuleList([cell, layer]), torch.rand(T, B, 4) * 9, None
    with snn.record(net) as seen:
        for step in x:
            _, state = cell(step, state)
        spk, _ = layer(x)
    assert torch.equal(seen.spk["0"], seen.spk["1"]) and torch.equal(seen.spk["1"], spk) and spk.sum() > 0
    assert torch.equal(seen.v["0"], seen.v["1"]) and torch.equal(seen.i["0"], seen.i["1"])
