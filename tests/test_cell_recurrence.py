"""Neurons of the user's own whose spikes come back through weights: `snn.scan`, recorded loops, captured graphs."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from cells import Super
from snnfast import cells
from snnfast.loops import report

T, B, N = 9, 3, 7


def lif(weight, bias):
    """Spikes, which are a state, and a membrane; no gradient through the reset."""

    def cell(x, z, v):
        v = 0.9 * v + x + F.linear(z, weight, bias)
        z = Super.apply(v - 0.5, 10.0)
        return z, z, v * (1 - z.detach())

    return cell


def adaptive(weight, bias):
    """The spikes before reach a step by weights, by the adaptation and by the reset: their gradients are a sum."""

    def cell(x, z, v, a):
        a = 0.8 * a + 0.3 * z
        v = 0.9 * v + x + F.linear(z, weight, bias) * 0.7 - 0.1 * a - 0.2 * z
        z = Super.apply(v - 0.5, 10.0)
        return z, z, v, a

    return cell


def gated(weight, bias):
    """Two products, of two states; the second's weights are made of parameters."""

    def cell(x, z, v):
        gate = torch.sigmoid(F.linear(v, weight, bias) + x)
        v = gate * v + (1 - gate) * torch.tanh(x + torch.mm(z, 0.5 * weight))
        z = Super.apply(v - 0.1, 10.0)
        return z, z, v

    return cell


STATES = {lif: 2, adaptive: 3, gated: 2}


def run_loop(cell, xs, states):
    outs = []
    for x in xs:
        out, *states = cell(x, *states)
        outs.append(out)
    return torch.stack(outs), tuple(states)


def results(run, cell, tensors, seed=0):
    """Outputs and last states, and gradients of all that tensors hold: x, states, parameters."""
    draw = torch.Generator().manual_seed(seed)
    x, states, params = tensors
    leaves = [t.clone().requires_grad_() for t in (x, *states)]
    outs, last = run(cell, leaves[0], tuple(leaves[1:]))
    roots = [outs, *last]
    grads = [torch.randn(root.shape, generator=draw, dtype=torch.float64).to(root) for root in roots]
    found = torch.autograd.grad(roots, [*leaves, *params], grads, allow_unused=True)
    return roots, found[: len(leaves)], found[len(leaves) :]


def assert_same(expected, found):
    for one, other in zip(expected[0] + list(expected[1]), found[0] + list(found[1]), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(expected[2], found[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * one.abs().max().item())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", STATES)
def test_scan_is_the_loop_to_the_bit(make, dtype):
    for steps, *shape in ((1, 1, 5), (2, 4, 16), (3, 3, 7), (40, 33, 20), (4, 2, 3, 5)):
        draw = torch.Generator().manual_seed(steps)
        x, *states = (
            torch.randn(size, generator=draw, dtype=dtype) for size in ((steps, *shape), *[shape] * STATES[make])
        )
        weight = torch.randn(shape[-1], shape[-1], generator=draw, dtype=dtype) / shape[-1] ** 0.5
        bias = torch.randn(shape[-1], generator=draw, dtype=dtype) if make is not adaptive else None
        params = [p.requires_grad_() for p in (weight, bias) if p is not None]
        tensors = x, states, params
        cell = make(weight, bias)
        if make is gated and len(shape) > 2:
            continue
        assert cells.why_not_fused(cell, x, tuple(states)) is None
        assert_same(results(run_loop, cell, tensors), results(snn.scan, cell, tensors))


def test_what_is_no_product_of_states_is_refused_by_name():
    weight, wide = torch.randn(N, N), torch.randn(2 * N, N)
    x, state = torch.randn(T, B, N), torch.zeros(B, N)

    def of_input(x, z):
        z = torch.tanh(F.linear(x, weight) + z)
        return z, z

    def twice(x, z):
        z = torch.tanh(F.linear(torch.tanh(F.linear(z, weight)), weight) + x)
        return z, z

    def split(x, z):
        a, b = F.linear(z, wide).chunk(2, -1)
        z = torch.tanh(a) * x + b
        return z, z

    for cell in (of_input, twice):
        assert "no state before the step" in cells.why_not_fused(cell, x, state)
    assert "aten." in cells.why_not_fused(split, x, state)


@pytest.mark.filterwarnings("error")
def test_weights_that_change_and_weights_without_gradient():
    draw = torch.Generator().manual_seed(0)
    x, states = torch.randn(T, B, N, generator=draw), [torch.zeros(B, N)] * 2
    weight = torch.randn(N, N, generator=draw)
    bias = torch.randn(N, generator=draw).requires_grad_()
    cell = lif(weight, bias)
    for _ in range(2):
        tensors = x, states, [bias]
        assert_same(results(run_loop, cell, tensors), results(snn.scan, cell, tensors))
        weight *= -0.5
    with torch.no_grad():
        expected, found = (run(cell, x, tuple(states)) for run in (run_loop, snn.scan))
    assert torch.equal(expected[0], found[0]) and all(map(torch.equal, expected[1], found[1]))


def test_a_first_state_that_lies_otherwise_runs_the_loop():
    """Sums of a product of transposed values are others."""
    weight, x = torch.randn(33, 33), torch.randn(3, 20, 33)
    states = torch.randn(33, 20).T, torch.zeros(20, 33)
    with pytest.warns(UserWarning, match="row by row"):
        found = snn.scan(lif(weight, None), x, states)
    assert torch.equal(found[0], run_loop(lif(weight, None), x, states)[0])


def test_a_weight_written_to_before_backward_is_an_error():
    weight = torch.randn(N, N).requires_grad_()
    out, _ = snn.scan(lif(weight, None), torch.randn(T, B, N), (torch.zeros(B, N),) * 2)
    with torch.no_grad():
        weight *= 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


class Layer(nn.Module):
    """A recurrent neuron of the user's own."""

    def __init__(self, features=N, bias=True):
        super().__init__()
        self.rec = nn.Linear(features, features, bias=bias)

    def forward(self, x, state):
        z, v = state
        v = 0.8 * v + x + self.rec(z)
        z = Super.apply(v - 0.3, 10.0)
        return z, (z, v - 0.3 * z.detach())


class Norses(Layer):
    """Norse's: the product of plain weights, beside that of the input."""

    def __init__(self, features=N):
        super().__init__(features)
        self.weight = nn.Parameter(torch.randn(features, features) / features**0.5)

    def forward(self, x, state):
        z, v = state
        v = 0.8 * v + F.linear(x, self.rec.weight) + z @ self.weight
        z = Super.apply(v - 0.3, 10.0)
        return z, (z, v * (1 - z.detach()))


class Net(nn.Module):
    """Two recurrent layers in a loop, the first's state given and returned."""

    def __init__(self, layer=Layer, features=N):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, features), nn.Linear(features, features)
        self.lif1, self.lif2 = layer(features), layer(features)
        with torch.no_grad():
            self.fc1.weight *= 3
            self.fc2.weight *= 3

    def forward(self, x, state=None):
        rest = x.new_zeros(x.shape[1], self.fc1.out_features)
        state1, state2, spikes = state or (rest, rest), (rest, rest), []
        for step in range(len(x)):
            spk, state1 = self.lif1(self.fc1(x[step]), state1)
            spk, state2 = self.lif2(self.fc2(spk), state2)
            spikes.append(spk)
        return torch.stack(spikes), state1


@pytest.fixture(autouse=True)
def _alone():
    report.stories.clear()
    torch.manual_seed(0)


def assert_trains_alike(net, accelerated, xs, loss=lambda net, out: out.sum()):
    """Outputs and last states to the bit, gradients to rounding, of calls that continue one another."""
    states = None, None
    for x in xs:
        found, after = [], []
        for one, state in zip((net, accelerated), states, strict=True):
            one.zero_grad()
            given = x.clone().requires_grad_()
            out, state = one(given, state)
            loss(one, out * torch.linspace(0, 1, out.shape[-1])).backward()
            after.append(tuple(part.detach() for part in state))
            found.append((given.grad, *(parameter.grad for parameter in one.parameters())))
            found[-1] = [out, *state], found[-1]
        assert all(map(torch.equal, found[0][0], found[1][0])) and found[0][0][0].sum() > 0
        for a, b in zip(found[0][1], found[1][1], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        states = after if x.shape[1] == xs[-1].shape[1] else (None, None)


def assert_fused():
    """Neurons of the user's own ran in few calls."""
    told = [counts for story in report.stories.values() for counts in story.own.values()]
    assert told and all(0 < calls < steps / 3 for steps, calls, *_ in told), report.summary()


@pytest.mark.parametrize("layer", [Layer, Norses])
def test_recorded_loops_run_recurrent_neurons_as_one(layer):
    net = Net(layer)
    accelerated = snn.accelerate(copy.deepcopy(net))
    assert_trains_alike(net, accelerated, [torch.rand(steps, B, 5) for steps in (T, T, 40, T)])
    assert_fused()
    with torch.no_grad():
        x = torch.rand(T, B, 5)
        assert all(map(torch.equal, net(x)[0], accelerated(x)[0]))


def test_recorded_weights_frozen_changed_and_used_elsewhere():
    def loss(net, out):
        return out.sum() + (net.lif1.rec.weight**2).sum()

    net = Net()
    net.lif2.rec.weight.requires_grad_(False)
    accelerated = snn.accelerate(copy.deepcopy(net))
    for _ in range(2):
        assert_trains_alike(net, accelerated, [torch.rand(T, B, 5) for _ in range(2)], loss)
        with torch.no_grad():
            for one in (net, accelerated):
                one.lif1.rec.weight *= -0.7
    assert_fused()


class Transposed(Layer):
    """Weights that an operation of every step gives."""

    def forward(self, x, state):
        z, v = state
        v = 0.8 * v + x + torch.addmm(self.rec.bias, z, self.rec.weight.t())
        z = Super.apply(v - 0.3, 10.0)
        return z, (z, v - 0.3 * z.detach())


def test_a_batch_as_large_as_the_layer():
    """Weights have the shape of a step then."""
    net = Net(Transposed)
    accelerated = snn.accelerate(copy.deepcopy(net))
    assert_trains_alike(net, accelerated, [torch.rand(T, N, 5) for _ in range(3)])
    assert_fused()


def test_exact_numbers_run_as_written():
    net = Net()
    accelerated = snn.accelerate(copy.deepcopy(net), numbers="exact")
    for _ in range(3):
        x, found = torch.rand(T, B, 5), []
        for one in (net, accelerated):
            one.zero_grad()
            out, _ = one(x)
            out.sum().backward()
            found.append((out, *(parameter.grad for parameter in one.parameters())))
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize("layer", [Layer, Norses])
def test_captured_graphs_run_recurrent_neurons_as_one(layer):
    torch.compiler.reset()
    # Steps as long as whole lines of memory: one product of all steps has the bits of each alone.
    net, x = Net(layer, 16), torch.rand(T, 4, 5)
    accelerated = snn.accelerate(copy.deepcopy(net), compile=True)
    assert_trains_alike(net, accelerated, [x, 2 * x])
    told = snn.explain(net, x, compile=True).layers
    assert [(layer.steps, layer.calls, layer.fused) for layer in told] == [(T, 1, True)] * 2, told


class Twice(Layer):
    """A product of what another one gives, which no kernel has."""

    def forward(self, x, state):
        z, v = state
        v = 0.8 * v + x + self.rec(torch.tanh(self.rec(z)))
        z = Super.apply(v - 0.3, 10.0)
        return z, (z, v - 0.3 * z.detach())


def test_a_loop_that_stays_step_by_step_is_left_alone():
    net = Net(Twice)
    accelerated = snn.accelerate(copy.deepcopy(net))
    assert_trains_alike(net, accelerated, [torch.rand(T, B, 5) for _ in range(6)])
    (story,) = report.stories.values()
    assert story.failures and story.why.startswith("it gains less by waiting"), report.summary()
    assert "a product takes what is no state before the step" in report.summary()
