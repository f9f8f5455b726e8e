"""Neurons of the user's own that nobody named: found in recorded loops, and run as one cell."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from cells import Spike
from snnfast import norse
from snnfast.loops import report

T, B, N = 9, 3, 7


class SteepSpike(Spike):
    """The same with a steepness."""

    @staticmethod
    def forward(ctx, u, alpha):
        ctx.alpha = alpha
        ctx.save_for_backward(u)
        return torch.heaviside(u, torch.zeros((), dtype=u.dtype))

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (ctx.alpha * u.abs() + 1) ** 2, None


class Own(nn.Module):
    """A neuron of the user's, stepped with its state."""

    def forward(self, x, state):
        raise NotImplementedError

    def initial(self, x):
        return torch.zeros_like(x)


class ZeroReset(Own):
    def forward(self, x, mem):
        mem = 0.9 * mem + x
        spk = Spike.apply(mem - 1.0)
        return spk, mem * (1 - spk)


class Learnt(Own):
    """Parameters of its own, per neuron and for all."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.linspace(0.5, 0.95, N))
        self.threshold = nn.Parameter(torch.tensor(0.8))

    def forward(self, x, mem):
        mem = torch.clamp(self.beta, 0, 1) * mem + x
        spk = SteepSpike.apply(mem - self.threshold, 5.0)
        return spk, mem - spk.detach() * self.threshold


class TwoStates(Own):
    def initial(self, x):
        return torch.zeros_like(x), torch.ones_like(x)

    def forward(self, x, state):
        mem, trace = state
        mem = mem * 0.8 + x * torch.sigmoid(trace)
        spk = Spike.apply(mem - 0.5 - 0.1 * trace)
        return spk, (torch.where(spk > 0, torch.zeros_like(mem), mem), 0.9 * trace + spk)


class Kept(Own):
    """Keeps its state to itself."""

    def initial(self, x):
        self.mem = torch.zeros_like(x)

    def forward(self, x, _):
        self.mem = self.mem.mul(0.7).add(x)
        spk = SteepSpike.apply(self.mem - 1, 2.0)
        self.mem = self.mem - spk
        return spk, None


class NoReset(Own):
    """The surrogate closes no loop: the membrane does."""

    def forward(self, x, mem):
        mem = 0.9 * mem + x
        return Spike.apply(mem - 1.0), mem


class ForwardPass(nn.Module):
    """Linear, neuron, Linear, neuron."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, N), nn.Linear(N, N)
        self.lif1, self.lif2 = neuron(), neuron()
        with torch.no_grad():
            self.fc1.weight *= 3
            self.fc2.weight *= 3

    def forward(self, x):
        first = self.fc1(x[0])
        state1, state2, spikes = self.lif1.initial(first), self.lif2.initial(first), []
        for step in range(len(x)):
            spk, state1 = self.lif1(self.fc1(x[step]), state1)
            spk, state2 = self.lif2(self.fc2(spk), state2)
            spikes.append(spk)
        return torch.stack(spikes)


class StaticPass(ForwardPass):
    """The same on an input that all steps share."""

    def forward(self, x):
        return super().forward(x[0].expand(len(x), *x.shape[1:]))


NEURONS = [ZeroReset, Learnt, TwoStates, Kept, NoReset]


@pytest.fixture(autouse=True)
def _alone():
    report.stories.clear()
    torch.manual_seed(0)


def calls_of(name):
    """(steps, calls over time, single steps) of each neuron by that name."""
    told = [entry for story in report.stories.values() for entry in (*story.layers.items(), *story.own.items())]
    return [counts[:3] for layer, counts in told if layer.startswith(name)]


def assert_trains_alike(net, accelerated, xs, exact=False):
    """Outputs and losses of each input to the bit, and gradients to rounding, or to the bit."""
    for x in xs:
        found = []
        for one in (net, accelerated):
            one.zero_grad()
            given = x.clone().requires_grad_()
            out = one(given)
            (out * torch.linspace(0, 1, out.shape[-1], dtype=out.dtype)).sum().backward()
            found.append((out, given.grad, *(parameter.grad for parameter in one.parameters())))
        for number, (a, b) in enumerate(zip(*found, strict=True)):
            if number == 0 or exact:
                assert torch.equal(a, b), number
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert out.detach().sum() > 0


@pytest.mark.parametrize("network", [ForwardPass, StaticPass])
@pytest.mark.parametrize("neuron", NEURONS)
def test_own_neurons_run_as_one_cell(neuron, network):
    net = network(neuron)
    accelerated = snn.accelerate(copy.deepcopy(net))
    assert_trains_alike(net, accelerated, [torch.rand(steps, B, 5) for steps in (T, T, 2 * T, T)])
    told = calls_of(neuron.__name__)
    assert told and all(calls < steps / 3 for steps, calls, _ in told), report.summary()


class Scaled(ForwardPass):
    """What is elementwise before a neuron is its input, in whose likeness it makes its first state."""

    def forward(self, x):
        state1, state2, spikes = None, None, []
        for step in x:
            cur = 2 * self.fc1(step)
            spk, state1 = self.lif1(cur, self.lif1.initial(cur) if state1 is None else state1)
            cur = 1.5 * self.fc2(spk)
            spk, state2 = self.lif2(cur, self.lif2.initial(cur) if state2 is None else state2)
            spikes.append(spk)
        return torch.stack(spikes)


@pytest.mark.parametrize("network", [ForwardPass, Scaled])
@pytest.mark.parametrize("neuron", [ZeroReset, Learnt, TwoStates, NoReset])
def test_own_neurons_run_as_one_cell_in_a_captured_graph(neuron, network):
    torch.compiler.reset()
    net, x = network(neuron), torch.rand(T, B, 5)
    assert_trains_alike(net, snn.accelerate(copy.deepcopy(net), compile=True), [x, 2 * x])
    layers = snn.explain(net, x, compile=True).layers
    assert [(layer.layer, layer.steps, layer.calls, layer.fused) for layer in layers] == [
        ("lif1", T, 1, True),
        ("lif2", T, 1, True),
    ]


def test_why_own_neurons_are_not_one_cell_in_a_captured_graph():
    class Recurrent(ForwardPass):
        def forward(self, x):
            state, spk = torch.zeros(B, N), torch.zeros(B, N)
            for step in x:
                spk, state = self.lif1(self.fc1(step) + self.fc2(spk).softmax(-1), state)
            return spk

    torch.compiler.reset()
    (told,) = snn.explain(Recurrent(ZeroReset), torch.rand(T, B, 5), compile=True).layers
    assert not told.fused and told.layer == "a neuron of your own, lif1"
    assert told.reasons == ["a step depends on an earlier one through lif1, fc2, softmax, add"]
    exact = snn.explain(ForwardPass(ZeroReset), torch.rand(T, B, 5), products="per-step").layers
    assert [layer.reasons for layer in exact] == [
        ['products="per-step" keeps the order in which its gradients are summed']
    ] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_numbers_are_the_loops(dtype):
    net = ForwardPass(ZeroReset).to(dtype)
    accelerated = snn.accelerate(copy.deepcopy(net), numbers="exact")
    xs = [torch.rand(T, B, 5, dtype=dtype) for _ in range(3)]
    assert_trains_alike(net, accelerated, xs, exact=True)
    assert any(calls for _, calls, _ in calls_of("ZeroReset"))


def test_a_function_and_a_region():
    net = ForwardPass(ZeroReset)
    x = torch.rand(T, B, 5)
    expected = net(x)
    for run in (snn.accelerate(lambda x: net(x)), lambda x: net(x)):
        with snn.accelerated():
            for _ in range(3):
                assert torch.equal(run(x), expected)
    assert sum(calls for _, calls, _ in calls_of("ZeroReset")) >= 6


def test_beside_layers_of_snnfast():
    class Mixed(ForwardPass):
        def __init__(self):
            super().__init__(ZeroReset)
            self.lif1 = snn.Leaky(beta=0.9)

        def forward(self, x):
            mem1, mem2, spikes = self.lif1.init_leaky(), torch.zeros(B, N), []
            for step in range(len(x)):
                spk, mem1 = self.lif1(self.fc1(x[step]), mem1)
                spk, mem2 = self.lif2(self.fc2(spk), mem2)
                spikes.append(spk)
            return torch.stack(spikes)

    net = Mixed()
    accelerated = snn.accelerate(copy.deepcopy(net))
    assert_trains_alike(net, accelerated, [torch.rand(T, B, 5) for _ in range(3)])
    assert all(calls < steps / 3 for steps, calls, _ in calls_of("ZeroReset") + calls_of("Leaky"))


def test_two_nets_with_one_surrogate_take_turns():
    nets = [ForwardPass(ZeroReset), ForwardPass(Learnt)]
    accelerated = [snn.accelerate(copy.deepcopy(net)) for net in nets]
    for _ in range(3):
        for net, one in zip(nets, accelerated, strict=True):
            assert_trains_alike(net, one, [torch.rand(T, B, 5)])
    assert len(calls_of("ZeroReset")) and len(calls_of("Learnt"))


def with_function(spike, constant=None):
    """A neuron that fires by an autograd function."""

    class Neuron(Own):
        def forward(self, x, mem):
            mem = 0.9 * mem + x
            spk = spike.apply(mem - 1.0)
            return spk, mem * (1 - spk)

    return Neuron


def test_effects_of_a_function_are_those_of_the_loop():
    """One that counts, prints or draws runs when it is called."""
    seen = []

    class Counting(Spike):
        @staticmethod
        def forward(ctx, u):
            seen.append(len(seen))
            return Spike.forward(ctx, u)

    class Drawing(Spike):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return (u > 0.1 * torch.rand_like(u)).to(u.dtype)

    class Global(Spike):
        calls = 0

        @staticmethod
        def forward(ctx, u):
            Global.calls += 1
            return Spike.forward(ctx, u)

    for function in (Counting, Drawing, Global):
        net = ForwardPass(with_function(function))
        accelerated = snn.accelerate(copy.deepcopy(net))
        for _ in range(3):
            x, outs, counts = torch.rand(T, B, 5), [], []
            for one in (net, accelerated):
                torch.manual_seed(1)
                seen.clear()
                Global.calls = 0
                outs.append(one(x))
                counts.append((len(seen), Global.calls, torch.rand(())))
            assert torch.equal(*outs) and counts[0] == counts[1]


def test_a_backward_that_is_not_linear_runs_for_every_step():
    """The gradient of weights that every step makes anew is a sum of clipped ones, not a clipped sum."""

    class Binary(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return torch.sign(weight)

        @staticmethod
        def backward(ctx, grad):
            return torch.clamp(grad, -0.1, 0.1)

    class BinaryWeights(ForwardPass):
        def forward(self, x):
            mem, spikes = torch.zeros(B, N), []
            for step in range(len(x)):
                spk, mem = self.lif1(F.linear(x[step], Binary.apply(self.fc1.weight)), mem)
                spikes.append(spk)
            return torch.stack(spikes)

    for neuron in (ZeroReset, lambda: snn.Leaky(beta=0.9)):
        net = BinaryWeights(neuron)
        for one in ("fc2", "lif2"):
            delattr(net, one)
        assert_trains_alike(net, snn.accelerate(copy.deepcopy(net)), [torch.rand(T, B, 5) for _ in range(3)])


def test_states_written_in_the_loop_and_values_looked_at():
    class Looking(ForwardPass):
        def forward(self, x):
            mem, spikes, looks = torch.zeros(B, N), [], 0
            for step in range(len(x)):
                spk, mem = self.lif1(self.fc1(x[step]), mem)
                if step == 5:
                    looks += spk.sum().item()
                    mem = mem.detach()
                if step == 7:
                    mem[0] = 0.5
                spikes.append(spk)
            return torch.stack(spikes) + looks

    net = Looking(ZeroReset)
    for one in ("fc2", "lif2"):
        delattr(net, one)
    assert_trains_alike(net, snn.accelerate(copy.deepcopy(net)), [torch.rand(2 * T, B, 5) for _ in range(4)])


def test_a_loss_of_the_users_own_is_no_loop():
    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            ctx.save_for_backward(out)
            return (out * out).sum()

        @staticmethod
        def backward(ctx, grad):
            return grad * 2 * ctx.saved_tensors[0]

    net = ForwardPass(ZeroReset)
    accelerated = snn.accelerate(copy.deepcopy(net))
    for _ in range(4):
        x, found = torch.rand(T, B, 5), []
        for one in (net, accelerated):
            one.zero_grad()
            loss = Loss.apply(one(x))
            loss.backward()
            found.append((loss, one.fc1.weight.grad))
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1])
    assert all(calls < steps / 3 for steps, calls, _ in calls_of("ZeroReset"))


def test_without_a_compiler_its_steps_run_as_written(monkeypatch, tmp_path):
    class Unbuilt(Spike):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return (u > 0.0625).to(u.dtype)

    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setenv("SNNFAST_CACHE", str(tmp_path))
    net = ForwardPass(with_function(Unbuilt))
    accelerated = snn.accelerate(copy.deepcopy(net))
    assert_trains_alike(net, accelerated, [torch.rand(T + 1, B + 1, 5) for _ in range(2)])
    assert all(not calls for _, calls, _ in calls_of("Neuron"))
    assert "which is not to be found" in report.summary()


class AsLayer(snn.Cell):
    """`ZeroReset` as a layer."""

    states = ("mem",)

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.9))

    def step(self, x, mem):
        mem = self.beta * mem + x
        spk = Spike.apply(mem - 1.0)
        return spk, mem * (1 - spk)

    def initial(self, x):
        return (torch.full_like(x, 0.5),)


class Cells(ForwardPass):
    """Two cells, the second with its states in itself."""

    def __init__(self, neuron=AsLayer):
        super().__init__(neuron)
        self.lif2.init_hidden = True

    def forward(self, x):
        mem, spikes = None, []
        snn.reset(self)
        for step in range(len(x)):
            spk, mem = self.lif1(self.fc1(x[step]), mem)
            spikes.append(self.lif2(self.fc2(spk)))
        return torch.stack(spikes)


def test_cells_are_recorded():
    net = Cells()
    accelerated = snn.accelerate(copy.deepcopy(net))
    assert_trains_alike(net, accelerated, [torch.rand(T, batch, 5) for batch in (B, B, B + 1, B)])
    told = calls_of("AsLayer")
    assert len(told) == 2 and all(calls < steps / 3 for steps, calls, _ in told), report.summary()


def test_a_cell_with_effects_is_not_recorded():
    class Noisy(AsLayer):
        def step(self, x, mem):
            return super().step(x + 0.1 * torch.rand_like(x), mem)

    net = Cells(Noisy)
    accelerated = snn.accelerate(copy.deepcopy(net))
    for _ in range(3):
        x, outs = torch.rand(T, B, 5), []
        for one in (net, accelerated):
            torch.manual_seed(1)
            outs.append(one(x))
        assert torch.equal(*outs)


class NorsePass(nn.Module):
    """Norse's neurons: recurrent, with a current of their own, leaky."""

    def __init__(self):
        super().__init__()
        self.l1 = norse.LIFRecurrentCell(5, N, p=norse.LIFParameters(v_th=torch.tensor(0.4)))
        self.fc = nn.Linear(N, N)
        self.lif = norse.LIFCell(norse.LIFParameters(v_th=torch.tensor(0.1)))
        self.out = norse.LILinearCell(N, 4)

    def forward(self, x):
        s1 = s2 = s3 = None
        voltages = []
        for step in x:
            z, s1 = self.l1(step, s1)
            z, s2 = self.lif(5 * self.fc(z), s2)
            v, s3 = self.out(z, s3)
            voltages.append(v)
        return torch.stack(voltages) + s3.i


@pytest.mark.parametrize("numbers", ["forward", "exact"])
def test_norses_cells_are_recorded(numbers):
    torch.manual_seed(2)
    net = NorsePass()
    torch.manual_seed(2)
    accelerated = snn.accelerate(NorsePass(), numbers=numbers)
    xs = [5 * torch.rand(3 * T, B, 5) for _ in range(3)]
    assert_trains_alike(net, accelerated, xs, exact=numbers == "exact")
    if numbers == "forward":
        told = calls_of("LIFCell") + calls_of("LICell") + calls_of("LILinearCell")
        assert len(told) == 2 and all(calls < steps / 3 for steps, calls, _ in told), report.summary()


@pytest.mark.parametrize("taker", ["none", "one more"])
def test_exact_gradients_of_an_output_that_is_a_state(taker):
    """Three gradients of one voltage add up in the loop's order: of the step after, of another taker, of the loss."""
    net = norse.LILinearCell(N, 4)
    for seed in range(3):
        found = []
        x = 5 * torch.rand(T, B, N, generator=torch.Generator().manual_seed(seed))
        for enabled in (False, True):
            given, state, voltages = x.clone().requires_grad_(), None, []
            with snn.accelerated(enabled, numbers="exact"):
                for step in given:
                    v, state = net(step, state)
                    voltages.append(v * 1 if taker == "one more" else v)
                    if len(voltages) in (3, 5, 6):
                        v.sum().item()
                out = torch.stack(voltages)
                (out * torch.linspace(0, 1, 4)).sum().backward()
            found.append((out, given.grad))
        assert all(map(torch.equal, *found))


def test_inputs_that_were_one_tensor_and_are_two():
    neuron = ZeroReset()

    def run(x, y):
        mem, spikes = torch.zeros(B, N), []
        for t in range(len(x)):
            spk, mem = neuron(x[t], mem + 0.1 * y[t])
            spikes.append(spk)
        return torch.stack(spikes)

    x, y = torch.rand(2, T, B, N).unbind(0)
    first, second = x.unbind(0), y.unbind(0)
    for given in ((first, first), (first, second), (first, first)):
        expected = run(*given)
        with snn.accelerated():
            assert torch.equal(run(*given), expected)


def test_explain_names_neurons_of_the_users_own():
    (found,) = snn.explain(ForwardPass(ZeroReset), torch.rand(T, B, 5)).layers
    assert found.fused and found.steps == 2 * T and "ZeroReset of 7" in found.layer
    assert found.where.startswith("test_found.py:")
    cells = snn.explain(snn.accelerate(Cells()), torch.rand(T, B, 5)).layers
    assert [(layer.layer, layer.steps, layer.calls, layer.fused) for layer in cells] == [
        ("lif1", T, 2, True),
        ("lif2", T, 2, True),
    ]


def test_what_needs_no_gradient_says_so():
    """Spikes that are no function's, beside a membrane that learns."""
    fc = nn.Linear(5, N)

    def run(x):
        mem, spikes = torch.zeros(B, N), []
        slow = torch.zeros(B, N)
        for step in x:
            slow = 0.8 * slow + Spike.apply(fc(step) - 0.5)
            mem = 0.8 * mem + fc(step)
            spk = (mem > 0.5).to(mem.dtype)
            mem = mem - 0.5 * spk
            spikes.append(spk)
        return torch.stack(spikes), mem, slow

    x = torch.rand(T, B, 5)
    expected = run(x)
    for _ in range(3):
        with snn.accelerated():
            found = run(x)
        assert [out.requires_grad for out in found] == [out.requires_grad for out in expected] == [False, True, True]
        assert all(map(torch.equal, found, expected))
