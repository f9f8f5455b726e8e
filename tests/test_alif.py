"""The adaptive neuron of LSNN and e-prop against its equations as the papers write them, and as a layer."""

import copy
import pickle

import pytest
import snntorch
import torch
from torch import nn

import snnfast as snn
from cases import RESETS, identical
from cells import Atan

LEARNT = ("beta", "rho", "strength", "threshold", "graded_spikes_factor")


def layer(dtype=torch.float32, **options):
    """Of five neurons with parameters of their own, all learnt."""
    draw = torch.Generator().manual_seed(3)
    values = {name: (torch.rand(5, generator=draw) * 0.4 + 0.5).to(dtype) for name in LEARNT}
    return snn.ALIF(**values, **{f"learn_{name}": True for name in LEARNT}, **options)


def currents(dtype=torch.float32, steps=25):
    return torch.randn(steps, 4, 5, generator=torch.Generator().manual_seed(4)).add(0.5).to(dtype).requires_grad_()


def by_the_papers(x, lif, reset_mechanism):
    """z[t] and the adaptation that it fires with, a[t] = rho a[t-1] + z[t-1], as in Bellec et al. 2020, equation 5."""
    v = a = z = torch.zeros_like(x[0])
    spikes, voltages, adaptations = [], [], []
    for current in x:
        a = lif.rho * a + z
        v = lif.beta * v + current
        z = Atan.apply(v - lif.threshold - lif.strength * a)
        if reset_mechanism == "subtract":
            v = v - z.detach() * lif.threshold
        elif reset_mechanism == "zero":
            v = torch.where(z.detach() > 0, 0, v)
        spikes.append(z * lif.graded_spikes_factor)
        voltages.append(v)
        adaptations.append(lif.rho * a + z)
    return tuple(map(torch.stack, (spikes, voltages, adaptations)))


@pytest.mark.parametrize("reset_mechanism", RESETS)
def test_equations_and_gradients_are_the_papers(reset_mechanism, device):
    lif = layer(torch.float64, reset_mechanism=reset_mechanism).to(device)
    outcomes = []
    for run in (lambda x: lif.unroll(x), lambda x: by_the_papers(x, lif, reset_mechanism)):
        x = currents(torch.float64).to(device).detach().requires_grad_()
        outputs = run(x)
        loss = sum((output * torch.linspace(-1, 2, x.numel()).to(x).view_as(x)).sum() for output in outputs)
        outcomes.append([*outputs, *torch.autograd.grad(loss, (x, *lif.parameters()))])
    assert 0.1 < (outcomes[0][0] > 0).double().mean() < 0.7
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_adaptation_makes_spikes_rarer():
    x = torch.full((200, 1, 1), 0.4)
    rates = [snn.ALIF(0.9, 0.99, strength).unroll(x)[0].mean() for strength in (0.0, 0.05, 0.5)]
    assert rates[0] > 1.2 * rates[1] > 2 * rates[2] > 0
    assert identical(snn.ALIF(0.9, 0.99, 0.0).unroll(x)[0], snn.ALIF(0.9, 0.5, 0.0).unroll(x)[0])


def test_steps_hidden_states_and_sequences_are_one_neuron(device):
    x = currents().to(device).detach()
    lif, hidden = layer().to(device), layer(init_hidden=True).to(device)
    expected = lif.unroll(x)
    spikes, states = [], lif.reset_mem()
    for current in x:
        spk, *states = lif(current, *states)
        spikes.append(spk)
    assert identical(torch.stack(spikes), expected[0])
    assert all(identical(state, seq[-1]) for state, seq in zip(states, expected[1:], strict=True))
    net = snn.Unroll(nn.Sequential(nn.Identity(), hidden))
    assert identical(torch.cat([net(x[:9]), net(x[9:])]), expected[0])
    assert identical(hidden.adaptation, states[1])
    snn.reset(net)
    assert not hidden.adaptation.any() and not hidden.mem.any()
    assert identical(snn.Unroll(nn.Sequential(lif), recompute=True)(x), expected[0])


def test_is_a_layer_like_the_others():
    lif = snn.ALIF(0.9, 0.97, 0.2)
    assert isinstance(lif, snntorch.SpikingNeuron)
    assert repr(lif) == "ALIF(beta=0.9, rho=0.97, strength=0.2, reset_mechanism='subtract', reset_delay=False)"
    assert list(dict(layer().named_parameters())) == ["threshold", "graded_spikes_factor", "beta", "rho", "strength"]
    x = currents().detach()
    other = layer()
    other.load_state_dict(layer().state_dict())
    for same in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert identical(same.unroll(x)[0], other.unroll(x)[0])
    with pytest.raises(TypeError, match="rho must be a number or a tensor, got str"):
        snn.ALIF(0.9, "slow", 0.2)
    with pytest.raises(ValueError, match="adaptation must have shape .4, 5., got .5,."):
        layer().unroll(x, None, torch.zeros(5))


def test_convert_leaves_layers_without_a_namesake_alone():
    """`convert` goes through all modules of a net, also those that snnTorch has no class for."""
    lif = snn.ALIF(0.9, 0.97, 0.2)
    net = snn.convert(nn.Sequential(snntorch.Leaky(0.9), lif))
    assert type(net[0]) is snn.Leaky and net[1] is lif and type(lif) is snn.ALIF


def test_surrogate_disabled_lets_no_gradient_through_a_spike():
    x = currents()
    spk, mem, adaptation = snn.ALIF(0.9, 0.97, 0.2, surrogate_disable=True).unroll(x)
    assert not spk.requires_grad
    (grad,) = torch.autograd.grad(mem[-1].sum() + adaptation.sum(), x)
    expected = 0.9 ** torch.arange(len(x) - 1, -1, -1.0)
    torch.testing.assert_close(grad, expected.view(-1, 1, 1).expand_as(x))
