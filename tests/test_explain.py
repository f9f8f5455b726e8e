"""`explain` counts: what it says of a run is what the profiler sees of one, and a run leaves no trace."""

import copy
import gc
import inspect
import random
import re
import threading
from collections import Counter

import pytest
import snntorch
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import snnfast as snn

T, B = 4, 3


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def lif(**options):
    return snn.Leaky(0.9, threshold=0.3, **options)


class Stepped(nn.Module):
    """Two layers in a loop, by a first argument of another name."""

    def __init__(self, **options):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 6), lif()
        self.fc2, self.lif2 = nn.Linear(6, 4), lif(**options)

    def forward(net, x):
        mem1, mem2, spikes = net.lif1.init_leaky(), net.lif2.init_leaky(), []
        for step in x:
            spk, mem1 = net.lif1(net.fc1(step), mem1)
            spk, mem2 = net.lif2(net.fc2(spk), mem2)
            spikes.append(spk)
        return torch.stack(spikes)


class Broken(Stepped):
    """torch cannot capture the call before its second layer."""

    def forward(self, x):
        mem1, mem2, spikes = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spk, mem1 = self.lif1(self.fc1(step), mem1)
            gc.isenabled()
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            spikes.append(spk)
        return torch.stack(spikes)


class Unrolled(Stepped):
    """Whole sequences by hand, after a call that torch cannot capture."""

    def forward(self, x):
        gc.isenabled()
        spk, _ = self.lif1.unroll(self.fc1(x))
        return self.lif2.unroll_spikes(self.fc2(spk))


class Uncapturable(Stepped):
    """torch gives up on the whole of it: the break lies in a block that it cannot leave and enter again."""

    def forward(self, x):
        with threading.Lock():
            return super().forward(x)


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), lif(init_hidden=True), nn.Linear(6, 4), lif(init_hidden=True))

    def forward(self, x):
        return torch.stack([self.body(step) for step in x])


class Inner(nn.Module):
    """An accelerated part in a network that is not."""

    def __init__(self):
        super().__init__()
        self.first, self.last = snn.accelerate(Stepped(), compile=True), lif()

    def forward(self, x):
        mem, spikes = self.last.init_leaky(), []
        for step in self.first(x):
            spk, mem = self.last(step, mem)
            spikes.append(spk)
        return torch.stack(spikes)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lif = snn.RLeaky(0.8, linear_features=5, threshold=0.3)

    def forward(self, x):
        (spk, mem), spikes = self.lif.init_rleaky(), []
        for step in x:
            spk, mem = self.lif(step, spk, mem)
            spikes.append(spk)
        return torch.stack(spikes)


class Encoded(Stepped):
    def forward(self, x):
        return super().forward(snn.encoding.latency(x[0], T, threshold=0.01))


def unrolled():
    return snn.Unroll(nn.Linear(5, 6), lif(), nn.Sequential(nn.Linear(6, 4), lif(output=True)))


# By name: a network, and the steps and calls of each of its layers.
RUNS = {
    "loop": (lambda: snn.accelerate(Stepped(), compile=True), {"lif1": (T, 1), "lif2": (T, 1)}),
    "windows": (lambda: snn.accelerate(Stepped(), window=2, compile=True), {"lif1": (T, 2), "lif2": (T, 2)}),
    "per-step": (
        lambda: snn.accelerate(Stepped(), products="per-step", compile=True),
        {"lif1": (T, 1), "lif2": (T, 1)},
    ),
    "Unroll": (unrolled, {"1": (T, 1), "2.1": (T, 1)}),
    "accelerated Unroll": (lambda: snn.accelerate(unrolled(), compile=True), {"1": (T, 1), "2.1": (T, 1)}),
    "inner backend": (
        lambda: snn.accelerate(Stepped(), inner="aot_eager", compile=True),
        {"lif1": (T, 1), "lif2": (T, 1)},
    ),
    "unroll": (lambda: snn.accelerate(Unrolled(), compile=True), {"lif1": (T, 1), "lif2": (T, 1)}),
    "broken": (lambda: snn.accelerate(Broken(), compile=True), {"lif1": (T, T), "lif2": (T, T)}),
    "uncapturable": (lambda: snn.accelerate(Uncapturable(), compile=True), {"lif1": (T, 1), "lif2": (T, 1)}),
    "hidden": (lambda: snn.accelerate(Hidden(), compile=True), {"body.1": (T, 1), "body.3": (T, 1)}),
    "inner": (Inner, {"first.lif1": (T, 1), "first.lif2": (T, 1), "last": (T, T)}),
    "plain": (lambda: snn.accelerate(Stepped(inhibition=True), compile=True), {"lif1": (T, 1), "lif2": (T, 1)}),
    "recurrent": (lambda: snn.accelerate(Recurrent(), compile=True), {"lif": (T, 1)}),
    "encoded": (lambda: snn.accelerate(Encoded(), compile=True), {"lif1": (T, 1), "lif2": (T, 1)}),
    "own surrogate": (
        lambda: snn.accelerate(
            Stepped(spike_grad=snntorch.surrogate.custom_surrogate(lambda u, grad, spk: grad)), compile=True
        ),
        {"lif1": (T, 1), "lif2": (T, 1)},
    ),
}


@pytest.mark.filterwarnings("ignore:Inhibition", "ignore:Leaky. inhibition")
@pytest.mark.parametrize("name", RUNS)
def test_what_is_counted_is_what_the_profiler_sees(name):
    build, expected = RUNS[name]
    net, x = build(), torch.rand(T, B, 5)
    for _ in range(3):
        net(x)
    with profile(activities=[ProfilerActivity.CPU]) as events:
        net(x)
    seen = Counter({e.key: e.count for e in events.key_averages() if e.key.startswith("snnfast::")})
    if name == "inner backend":
        seen["snnfast::leaky_seq"] = 2  # around the kernel, where this backend alone captured the call
    explanation = snn.explain(net, x)
    assert {layer.layer: (layer.steps, layer.calls) for layer in explanation.layers} == expected, str(explanation)
    assert explanation.operators == seen
    # A plain layer is a neuron of the user's own, whose generated kernel is no operator.
    assert explanation.kernels == sum(count for key, count in seen.items() if key.endswith("_fwd")) + (name == "plain")
    assert explanation.unseen == {}
    assert {layer.layer: layer.fused for layer in explanation.layers} == {
        layer: 0 < calls < steps for layer, (steps, calls) in expected.items()
    }


def lines_of(function, *texts):
    """file:line of the lines of a function that hold these texts."""
    lines, first = inspect.getsourcelines(function)
    return [next(first + k for k, line in enumerate(lines) if text in line) for text in texts]


def test_every_layer_has_its_line():
    for net in (Stepped(), Unrolled()):
        calls = ("lif1(", "lif2(") if type(net) is Stepped else ("lif1.unroll(", "lif2.unroll_spikes(")
        layers = snn.explain(net, torch.rand(T, B, 5)).layers
        found = [layer.where.rsplit("/", 1)[-1] for layer in layers]
        assert found == [f"test_explain.py:{line}" for line in lines_of(type(net).forward, *calls)]


def test_a_graph_break_is_told_as_torch_has_it_with_its_line_and_what_to_do():
    explanation = snn.explain(Broken(), torch.rand(T, B, 5), compile=True)
    (line,) = lines_of(Broken.forward, "isenabled")
    for layer in explanation.layers:
        cause = " ".join(layer.reasons)
        assert "isenabled" in cause and f"test_explain.py:{line}" in cause, str(explanation)
        assert any("snnfast.Unroll" in advice for advice in layer.advice)
    found = [layer.where.rsplit("/", 1)[-1] for layer in explanation.layers]
    assert found == [f"test_explain.py:{line}" for line in lines_of(Broken.forward, "lif1(", "lif2(")]


def test_what_keeps_its_place_is_named():
    class Switched(Stepped):
        def forward(self, x):
            mem, spikes = self.lif1.init_leaky(), []
            for step in x:
                with torch.no_grad():
                    step = step * 2
                spk, mem = self.lif1(self.fc1(step), mem)
                spikes.append(spk)
            return torch.stack(spikes)

    (layer,) = snn.explain(Switched(), torch.rand(T, B, 5), compile=True).layers
    assert not layer.fused and "_set_grad_enabled" in layer.reasons[0], str(layer)
    # torch says of a switch no line; the next one that it says is that of the product or of the layer.
    lines = lines_of(Switched.forward, "step * 2", "lif1(")
    assert any(f"test_explain.py:{line}) out of the loop" in layer.advice[0] for line in lines), str(layer)


def test_what_is_left_step_by_step_is_listed():
    (left,) = [graph.left for graph in snn.explain(Stepped(), torch.rand(T, B, 5), products="per-step").graphs]
    first, second = lines_of(Stepped.forward, "fc1(", "fc2(")
    assert {(name, where.rsplit(":")[-1]): count for (name, where), count in left.items()} == {
        ("linear", str(first)): T,
        ("linear", str(second)): T,
    }
    assert f"{T} x linear" in str(snn.explain(Stepped(), torch.rand(T, B, 5), products="per-step"))
    assert "left step by step" not in str(snn.explain(Stepped(), torch.rand(T, B, 5)))


def test_the_window_and_its_reason():
    x = torch.rand(T, B, 5)
    assert f"{T} steps at a time: each step keeps 192 B for backward" in str(snn.explain(Stepped(), x, compile=True))
    assert "2 steps at a time: as asked" in str(snn.explain(Stepped(), x, window=2))
    large = snn.explain(Stepped(), torch.rand(50, 400, 5), compile=True)
    assert re.search(r"\d+ and \d+ steps at a time: each step keeps \d+(\.\d+)? KiB for backward", str(large))


class Inverted(snn.Leaky):
    def _base_state_function(self, input_):
        return input_ - self.beta * self.mem


def test_overridden_methods_are_a_neuron_of_the_users_own():
    """Which a recorded loop runs as one, within Unroll too."""
    net, x = Stepped(), torch.rand(3 * T, B, 5)
    net.lif1 = Inverted(0.5)
    unrolled = snn.Unroll(nn.Linear(5, 6), Inverted(0.5))
    for explained in (snn.explain(net, x), snn.explain(unrolled, x)):
        (own,) = [layer for layer in explained.layers if "Inverted of 6" in layer.layer]
        assert own.fused and own.steps > 2 * T, str(explained)
        assert "not fused" not in str(explained)


@pytest.mark.parametrize("accelerated", [True, False])
def test_overridden_methods_in_a_captured_graph(accelerated):
    net = Stepped()
    net.lif1 = Inverted(0.5)
    x = torch.rand(T, B, 5)
    explained = snn.explain(snn.accelerate(net, compile=True), x) if accelerated else snn.explain(net, x, compile=True)
    layers = {layer.layer: layer for layer in explained.layers}
    assert (layers["lif1"].steps, layers["lif1"].calls) == (T, 1) and "test_explain.py" in layers["lif1"].where
    assert layers["lif1"].fused and layers["lif2"].fused
    unrolled = snn.explain(snn.Unroll(nn.Linear(5, 6), Inverted(0.5)), x, compile=True)
    assert unrolled.unseen == {"1": "Inverted._base_state_function is not snnfast's"}


def test_a_layer_that_did_not_run_and_one_that_nobody_converted():
    net = Stepped()
    net.unused, net.theirs = lif(), snntorch.Leaky(0.9)
    unseen = snn.explain(net, torch.rand(T, B, 5)).unseen
    assert unseen.keys() == {"unused", "theirs"}
    assert "did not run" in unseen["unused"] and "snnfast.convert" in unseen["theirs"]


def hooked(net, calls):
    net.lif1.register_forward_hook(lambda *_: calls.append(1))
    return net


class Normed(Stepped):
    """With running statistics, dropout, a counter, a list, and random numbers of Python's own."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.calls, self.seen = nn.BatchNorm1d(5), nn.Dropout(), 0, []

    def forward(self, x):
        self.calls += 1
        self.seen.append(random.random())
        return super().forward(self.drop(self.norm(x.flatten(0, 1)).view_as(x)))


class Locked(Normed):
    """Nobody can copy a lock."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def state_of(net):
    """Everything of a network that a run could change."""
    tensors = {name: value.clone() for name, value in net.state_dict().items()}
    hidden = {name: (id(m.mem), m.mem.detach().clone()) for name, m in net.named_modules() if hasattr(m, "mem")}
    plain = {name: copy.copy(value) for name, value in vars(net).items() if isinstance(value, (int, list))}
    return tensors, hidden, plain, sorted(vars(net))


def assert_equal_state(found, expected):
    for ours, wanted in zip(found[:2], expected[:2], strict=True):
        assert ours.keys() == wanted.keys()
        for name, value in wanted.items():
            pair = (ours[name], value) if isinstance(value, torch.Tensor) else (ours[name][1], value[1])
            assert torch.equal(*pair), name
    assert {name: key for name, (key, _) in found[1].items()} == {name: key for name, (key, _) in expected[1].items()}
    assert found[2:] == expected[2:]


@pytest.mark.parametrize("net", [Normed, Locked])
@pytest.mark.parametrize("accelerated", [False, True])
def test_a_run_leaves_no_trace(net, accelerated):
    calls, x = [], torch.rand(T, B, 5)
    net = net() if net is Locked else hooked(net(), calls)
    if accelerated:
        snn.accelerate(net, compile=True)
    loss = net(x).sum() + net.lif1.mem.sum()  # a state with a graph, as a run leaves it
    before, draws = state_of(net), (torch.get_rng_state(), random.getstate())
    count = len(calls)
    explanation = snn.explain(net, x)
    assert all(layer.fused for layer in explanation.layers), str(explanation)
    assert_equal_state(state_of(net), before)
    assert torch.equal(torch.get_rng_state(), draws[0]) and random.getstate() == draws[1]
    assert len(calls) == count
    assert all(parameter.grad is None for parameter in net.parameters())
    loss.backward()


def test_a_function_and_what_it_is_given():
    net = Stepped()

    def forward_pass(net, x):
        mem, spikes = net.lif1.init_leaky(), []
        for step in x:
            spk, mem = net.lif1(net.fc1(step), mem)
            spikes.append(spk)
        return torch.stack(spikes)

    x = torch.rand(T, B, 5)
    given = snn.explain(forward_pass, net, x)
    caught = snn.explain(lambda x: forward_pass(net, x), x)
    for explanation in (given, caught):
        assert [(layer.layer, layer.steps, layer.calls) for layer in explanation.layers] == [("lif1", T, 1)]
    assert net.lif1.mem.numel() == 0


def test_a_recorded_loop_is_explained_as_it_runs():
    """By calls that were counted; the line is that of the layer's steps, not of where their values are asked for."""
    explained = snn.explain(snn.accelerate(Stepped()), torch.rand(3 * T, 2, 5))
    assert [(layer.layer, layer.steps, layer.calls) for layer in explained.layers] == [
        ("lif1", 3 * T, 1),
        ("lif2", 3 * T, 1),
    ]
    lines = lines_of(Stepped.forward, "lif1(", "lif2(")
    assert [layer.where.rpartition(":")[2] for layer in explained.layers] == [str(line) for line in lines]


def test_a_network_that_makes_one_step_a_call_is_explained_by_the_function_that_loops():
    net = nn.Sequential(nn.Linear(5, 6), snn.Leaky(0.9, init_hidden=True))

    def forward_pass(net, x):
        return torch.stack([net(step) for step in x])

    (layer,) = snn.explain(net, torch.rand(B, 5)).layers
    assert "explain(forward_pass, net, x)" in layer.advice[0]
    assert snn.explain(forward_pass, net, torch.rand(T, B, 5)).layers[0].fused


def test_a_reason_is_this_networks():
    """Another network of the class was looked into; this one's loop is short."""

    class Looked(nn.Module):
        def __init__(self, looks):
            super().__init__()
            self.fc, self.lif, self.looks = nn.Linear(4, 5), snn.Leaky(0.9), looks

        def forward(self, x):
            mem, spikes = self.lif.init_leaky(), []
            for x_t in x:
                spk, mem = self.lif(self.fc(x_t), mem)
                if self.looks:
                    spk.sum().item()
                spikes.append(spk)
            return torch.stack(spikes)

    looked = snn.accelerate(Looked(True))
    assert "item needs its values at every step" in str(snn.explain(looked, torch.rand(20, 3, 4)))
    short = str(snn.explain(snn.accelerate(Looked(False)), torch.rand(2, 3, 4)))
    assert "item" not in short and "it has too few steps" in short


def test_what_can_be_explained_is_said():
    with pytest.raises(TypeError, match=r"net must be a torch.nn.Module or a function, got Tensor"):
        snn.explain(torch.rand(5, 3, 4), nn.Linear(4, 5))
