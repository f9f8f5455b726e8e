"""What is accelerated stays accelerated: no call, no other network and no copy makes it run step by step."""

import copy
import gc
import importlib
import pickle
import warnings
import weakref

import pytest
import snntorch
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import snnfast as snn
from cells import Spike

B = 2
# The package's attribute of this name is the function.
accelerating = importlib.import_module("snnfast.compiler.accelerate")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


class Sign(torch.autograd.Function):
    """Weights of one bit."""

    @staticmethod
    def forward(ctx, weight, scale):
        ctx.save_for_backward(weight)
        ctx.scale = scale
        return weight.sign() * scale

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return grad * (weight.abs() <= 0.3) * ctx.scale, None


class Net(nn.Module):
    def __init__(self, spike_grad=None):
        super().__init__()
        self.fc = nn.Linear(5, 6)
        self.lif = snntorch.Leaky(0.9, threshold=0.3, spike_grad=spike_grad)

    def current(self, x):
        return self.fc(x)

    def forward(self, x):
        mem, spikes = self.lif.init_leaky(), []
        for step in range(len(x)):
            spk, mem = self.lif(self.current(x[step]), mem)
            spikes.append(spk)
        return torch.stack(spikes) if spikes else x.new_zeros(0, x.shape[1], 6)


class Broken(Net):
    """Its own forward is what torch captures, after a call that it cannot."""

    def forward(self, x):
        gc.isenabled()
        return super().forward(x)


class Binary(Net):
    def current(self, x):
        return F.linear(x, Sign.apply(self.fc.weight, 0.5), self.fc.bias)


class Rounded(Net):
    """An autograd.Function on what differs from step to step."""

    def current(self, x):
        return Sign.apply(self.fc(x), 0.5)


def steps(count, batch=B, dtype=torch.float32):
    return torch.rand(count, batch, 5, dtype=dtype)


def kernels(net, x) -> int:
    """Forward kernels of a call that compiles nothing."""
    net(x)
    with profile(activities=[ProfilerActivity.CPU]) as events:
        net(x)
    return sum(event.count for event in events.key_averages() if event.key.endswith("_fwd"))


def trained(net, x):
    x = x.clone().requires_grad_()
    out = net(x)
    (out * torch.linspace(0.1, 1, out.numel()).view(out.shape)).sum().backward()
    found = {"out": out.detach(), "x": x.grad} | {name: p.grad for name, p in net.named_parameters()}
    net.zero_grad()
    return found


def assert_trains_as(net, expected, x):
    found = trained(net, x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("net", [Net, Broken])
@pytest.mark.parametrize("first", [0, 1])
def test_a_short_sequence_first_costs_nothing_later(net, first):
    early = snn.accelerate(net(), compile=True)
    early(steps(first))
    assert kernels(early, steps(4)) == 1
    assert kernels(snn.accelerate(net(), compile=True), steps(4)) == 1


@pytest.mark.parametrize("net", [Net, Broken])
def test_every_number_of_steps_is_fused(net):
    net = snn.accelerate(net(), compile=True)
    assert [kernels(net, steps(count)) for count in range(2, 14)] == [1] * 12
    assert kernels(net, steps(2)) == 1


@pytest.mark.parametrize("net", [Net, Broken])
def test_every_network_of_a_class_is_fused_and_goes_when_it_is_dropped(net):
    alive = []
    for _ in range(10):
        one = snn.accelerate(net(), compile=True)
        assert kernels(one, steps(3)) == 1
        alive.append(weakref.ref(one))
        del one
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 1


def test_changes_between_calls_cost_no_fusion():
    net = snn.accelerate(Net(), compile=True)
    x = steps(3)
    for batch in (4, 3, 4, 3, 1):
        assert kernels(net, steps(3, batch)) == 1
    for mode in (False, True, False):
        assert kernels(net.train(mode), x) == 1
    for context in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        with context:
            assert kernels(net, x) == 1
        assert kernels(net, x) == 1
    assert kernels(net.double(), steps(3, dtype=torch.float64)) == 1
    assert kernels(net.float(), x) == 1


class Counting(Net):
    """Its number of steps is an attribute."""

    num_steps = 3

    def forward(self, x):
        return super().forward(x.expand(self.num_steps, *x.shape))


def test_attributes_that_change_cost_no_fusion():
    net = snn.accelerate(Counting(), compile=True)
    for count in range(2, 13):
        net.num_steps = count
        assert kernels(net, steps(1)[0]) == 1


def test_torchs_limits_stay_as_they_are():
    before = torch._dynamo.config.get_config_copy()
    net = snn.accelerate(Net(), compile=True)
    for count in range(1, 4):
        net(steps(count))
    assert torch._dynamo.config.get_config_copy() == before


def test_where_a_limit_is_met_one_warning_says_so(monkeypatch):
    monkeypatch.setattr(accelerating, "VARIANTS", 2)
    net, x = Net(), steps(5)
    plain = snn.convert(copy.deepcopy(net))
    snn.accelerate(net, compile=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for count in (2, 3, 4, 5, 4):
            net(steps(count))
    said = [str(warning.message) for warning in said if "snnfast.Unroll" in str(warning.message)]
    assert len(said) == 1 and "Net: torch has captured" in said[0] and "2 different calls" in said[0]
    assert kernels(net, steps(3)) == 1 and kernels(net, x) == 5
    assert torch.equal(net(x), plain(x))
    (layer,) = snn.explain(net, x).layers
    assert (layer.steps, layer.calls, layer.fused) == (5, 5, False)
    assert "2 different calls" in layer.reasons[0], str(layer)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_accelerated_as_the_original(duplicate):
    net, x = snn.accelerate(Net(), window=2, compile=True), steps(4)
    expected = net(x)
    other = duplicate(net)
    with torch.no_grad():
        other.fc.weight.zero_()
        other.fc.bias.fill_(1.0)
    assert kernels(other, x) == 2 and torch.equal(net(x), expected)
    assert not torch.equal(other(x), expected)


def test_an_accelerated_network_in_another():
    inner, x = snn.accelerate(Net(), compile=True), steps(4)
    outer = snn.accelerate(nn.Sequential(inner, nn.ReLU()), compile=True)
    assert kernels(outer, x) == kernels(nn.Sequential(inner, nn.ReLU()), x) == 1
    assert torch.equal(outer(x), inner(x))


@pytest.mark.parametrize("net", [Binary, Rounded])
def test_an_autograd_function_in_the_loop(net):
    net, x = net(), steps(4)
    expected = trained(snn.convert(copy.deepcopy(net)), x)
    assert 0 < expected["out"].mean() < 1 and expected["fc.weight"].abs().sum() > 0
    net = snn.accelerate(net, products="per-step", compile=True)
    assert_trains_as(net, expected, x)
    assert kernels(net, x) == 1
    snn.accelerate(net, compile=True)
    for name, value in trained(net, x).items():
        torch.testing.assert_close(value, expected[name])
    assert kernels(net, x) == 1


class Module(nn.Module):
    """A surrogate that is a module without parameters, and changes as training goes on."""

    slope = 3.0

    def forward(self, u):
        return Spike.apply(u * self.slope)


SURROGATES = {
    "function": Spike.apply,
    "lambda": lambda u: Spike.apply(2 * u),
    "custom_surrogate": snntorch.surrogate.custom_surrogate(lambda u, grad, spikes: grad * torch.exp(-u.abs())),
    "module": Module(),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_a_surrogate_of_ones_own_is_fused(name):
    net, x = Net(SURROGATES[name]), steps(4)
    expected = trained(snn.convert(copy.deepcopy(net)), x)
    assert expected["fc.weight"].abs().sum() > 0
    for inner in (None, "aot_eager"):
        one = snn.accelerate(copy.deepcopy(net), products="per-step", inner=inner, compile=True)
        assert_trains_as(one, expected, x)
        assert kernels(one, x) == 1


def test_a_surrogate_that_changes_is_followed():
    net, x = Net(Module()), steps(4)
    plain = snn.convert(copy.deepcopy(net))
    snn.accelerate(net, products="per-step", compile=True)
    for slope in (3.0, 5.0):
        net.lif.spike_grad.slope = plain.lif.spike_grad.slope = slope
        assert_trains_as(net, trained(plain, x), x)
    net.lif.spike_grad = plain.lif.spike_grad = Spike.apply
    assert_trains_as(net, trained(plain, x), x)


def test_a_copied_surrogate_outlives_its_original():
    net, x = snn.accelerate(Net(Module()), products="per-step", compile=True), steps(4)
    expected = trained(net, x)
    other = copy.deepcopy(net)
    del net
    gc.collect()
    assert_trains_as(other, expected, x)
