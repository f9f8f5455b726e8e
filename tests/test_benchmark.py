"""`benchmark`: a network timed in its own ways, which leaves no trace."""

import copy

import pytest
import snntorch
import torch
from torch import nn

import snnfast as snn
from networks import Explicit, Layers
from snnfast.benchmark import Benchmark, Timing, _on_snntorch

T, B = 6, 2


def x():
    return torch.rand(T, B, 12, generator=torch.Generator().manual_seed(0)) * 2


def hidden_states(lib):
    return Layers(
        *(nn.Linear(12, 16), lib.Leaky(0.9, threshold=0.4, init_hidden=True), nn.Dropout(0.2)),
        *(nn.Linear(16, 5), lib.Synaptic(0.8, 0.9, init_hidden=True, spike_grad=snn.surrogate.fast_sigmoid(10))),
    )


def names(result):
    return [timing.name for timing in result.timings]


@pytest.mark.parametrize("lib", [snn, snntorch])
def test_a_loop_is_timed_in_every_way_with_the_same_outputs(lib, capsys):
    net = hidden_states(lib)
    result = snn.benchmark(net, x(), loss=lambda spk: spk.mean(), seconds=0.01)
    other = "dropped in" if lib is snntorch else "snntorch"
    assert sorted(names(result)) == sorted(["as it is", other, "accelerated"]) and names(result)[0] == "as it is"
    assert all(timing.difference == 0 and timing.rounds >= 3 for timing in result.timings)
    assert all(timing.total == timing.forward + timing.backward > timing.backward > 0 for timing in result.timings)
    printed = capsys.readouterr().out.rstrip()
    assert printed == str(result) and printed.splitlines()[-1] == f"-> {result.advice}"
    assert printed.splitlines()[1].startswith("as it is") and "1.00x  the same" in printed.splitlines()[1]


def test_unroll_is_compared_with_the_loop_on_snntorch():
    net = snn.Unroll(
        nn.Linear(12, 8), snn.Leaky(0.9, threshold=0.4), nn.Sequential(nn.Linear(8, 3), snn.Alpha(0.9, 0.8))
    )
    result = snn.benchmark(net, x(), seconds=0.01)
    assert names(result) == ["as it is", "snntorch"] and result.timings[1].difference == 0
    assert result.refused == {"accelerated": "Unroll runs whole sequences as it is"}
    both = snn.Unroll(nn.Linear(12, 8), snn.Leaky(0.9, init_hidden=True, output=True))
    assert snn.benchmark(both, x(), seconds=0.01).timings[1].difference == 0


def test_a_loop_outside_and_every_neuron_of_snntorchs():
    layers = [
        snn.Leaky(0.9, learn_beta=True, graded_spikes_factor=1.5, reset_mechanism="zero"),
        snn.Lapicque(beta=0.8),
        snn.RLeaky(0.9, linear_features=12, threshold=0.4),
        snn.RSynaptic(0.8, 0.9, V=0.5, all_to_all=False),
        snn.Leaky(0.9, surrogate_disable=True, reset_delay=False),
    ]
    for layer in layers:

        def run(net, x):
            states = ()
            outputs = []
            for step in x:
                spk, *states = net(step, *states)
                outputs.append(spk)
            return torch.stack(outputs)

        result = snn.benchmark(layer, x(), run=run, seconds=0.01)
        assert names(result) == ["as it is", "accelerated", "snntorch"], layer
        # The recurrent product of a whole sequence rounds in its own order.
        assert all(timing.difference == 0 for timing in result.timings if timing.name != "accelerated"), layer


def test_the_layers_of_snntorchs_have_the_nets_own_gradients():
    layer = snn.Leaky(0.9, threshold=0.6, spike_grad=snn.surrogate.fast_sigmoid(3), learn_threshold=True)
    theirs = _on_snntorch(layer, {})
    assert type(theirs) is snntorch.Leaky
    gradients = []
    for lif in (layer, theirs):
        current = x()[0].requires_grad_()
        lif(current)[0].sum().backward()
        gradients.append((current.grad, lif.threshold.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_nothing_is_left_behind():
    net = hidden_states(snn)
    net(x()).sum().backward()
    entered = len(snntorch.SpikingNeuron.instances)
    before = copy.deepcopy(net.state_dict())
    grads = [param.grad.clone() for param in net.parameters()]
    states = [net.layers[1].mem, net.layers[4].syn]
    attributes = {name: set(vars(module)) for name, module in net.named_modules()}
    generator = torch.get_rng_state()
    snn.benchmark(net, x(), seconds=0.01)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(param.grad, grad) for param, grad in zip(net.parameters(), grads, strict=True))
    assert net.layers[1].mem is states[0] and net.layers[4].syn is states[1] and states[0].grad_fn is not None
    assert {name: set(vars(module)) for name, module in net.named_modules()} == attributes
    assert len(snntorch.SpikingNeuron.instances) == entered


def test_what_cannot_be_timed_is_named():
    result = snn.benchmark(
        nn.Sequential(nn.Linear(12, 4), snn.ALIF(0.9, 0.9, 0.1, init_hidden=True)), x()[0], seconds=0.01
    )
    assert result.refused == {"snntorch": "it has no ALIF"}
    result = snn.benchmark(snn.accelerate(hidden_states(snn)), x(), seconds=0.01)
    assert result.refused == {"accelerated": "it is accelerated or compiled as it is"}
    assert "accelerated: not timed, it is accelerated or compiled as it is" in str(result)


def test_mistakes_are_named():
    for given, kind, message in [
        (dict(net=3), TypeError, "net must be a torch.nn.Module, got int"),
        (dict(net=lambda x: x), TypeError, "got function; a function that steps one is run: benchmark"),
        (dict(net=nn.Linear(12, 1)), ValueError, "net must have a spiking layer to time; Linear has none"),
        (dict(seconds=0), ValueError, "seconds must be positive, got 0"),
        (dict(loss=lambda out: out), TypeError, r"loss must return a scalar tensor, got shape \(6, 2, 5\)"),
        (dict(x=(x(), 3)), TypeError, "positional argument"),
    ]:
        with pytest.raises(kind, match=message):
            snn.benchmark(**({"net": hidden_states(snn), "x": x(), "seconds": 0.01} | given))


def of(**totals):
    timings = tuple(Timing(name.replace("_", " "), total, 0.0, 0.0, 3) for name, total in totals.items())
    return Benchmark(timings)


def test_advice_is_what_the_figures_say():
    assert of(as_it_is=10.0, accelerated=2.0).advice == "net = snn.accelerate(net): 5 times as fast as it is"
    assert of(as_it_is=10.0, dropped_in=4.0, accelerated=5.0).advice.startswith("net = snn.convert(net): 2.5 times")
    assert of(as_it_is=10.0, accelerated=9.9).advice.startswith("leave it as it is")
    assert of(as_it_is=10.0, accelerated=12.0, snntorch=5.0).advice.startswith("snnTorch is 2 times as fast here")


def test_a_tuple_is_several_arguments_and_explicit_states_work():
    class Net(Explicit):
        def forward(self, x, gain):
            return super().forward(x * gain)

    net = Net(snn.Leaky(0.9, threshold=0.3), snn.Leaky(0.8, threshold=0.3))
    result = snn.benchmark(net, (x(), 2.0), loss=lambda out: out[0].sum() + out[1].mean(), seconds=0.01)
    assert names(result) == ["as it is", "accelerated", "snntorch"]
    assert all(timing.difference == 0 for timing in result.timings)
