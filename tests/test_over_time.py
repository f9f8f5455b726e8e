"""What a loop over steps does to layers that depend on the call: batch-norm in training, state of any kind, hooks.

`Unroll` and `accelerate` train next to the loop: losses, parameters, statistics and evaluation agree.
"""

import copy
import warnings

import pytest
import snntorch
import torch
from snntorch.functional import probe
from torch import nn
from torch.ao.quantization import MovingAverageMinMaxObserver
from torch.nn.utils import parametrizations, prune, spectral_norm

import snnfast as snn

T, B = 4, 6
LIF = {"beta": 0.8, "threshold": 0.2}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(snn.over_time, "_said", set())
    torch.manual_seed(6)


class Loop(nn.Module):
    """The layers of an Unroll, step by step."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        neurons = [layer for layer in self.layers.modules() if isinstance(layer, snn.SpikingNeuron)]
        states = {layer: layer.reset_mem() for layer in neurons}
        steps = []
        for t in range(len(x)):
            steps.append(self.step(self.layers, t, x[t], states))
        return torch.stack(steps)

    def step(self, layers, t, h, states):
        for layer in layers:
            if isinstance(layer, snn.SpikingNeuron):
                h, states[layer] = layer(h, states[layer])
            elif type(layer) is nn.Sequential:
                h = self.step(layer, t, h, states)
            else:
                h = layer[t](h) if isinstance(layer, nn.ModuleList) else layer(h)
        return h


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return x + self.bn(self.conv(x)).relu()


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class MovingAverage(nn.Module):
    """Subtracts the mean of all calls so far, newer ones weighing more: written to behind autograd's back."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean.data.mul_(0.7).add_(x.detach().mean(0), alpha=0.3)
        return x - self.mean


def flat(*norms):
    return [nn.Linear(5, 8), *norms, snn.Leaky(**LIF), nn.Linear(8, 3), snn.Leaky(**LIF)]


def maps(*norms):
    return [nn.Unflatten(1, (1, 5, 1)), nn.Conv2d(1, 3, 3, padding=1), *norms, snn.Leaky(**LIF), nn.Flatten()]


def volumes(*norms):
    return [nn.Unflatten(1, (1, 5, 1, 1)), nn.Conv3d(1, 3, 3, padding=1), *norms, snn.Leaky(**LIF), nn.Flatten()]


def signals(*norms):
    return [nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 3, padding=1), *norms, snn.Leaky(**LIF), nn.Flatten()]


NETWORKS = {
    "1d": lambda: flat(nn.BatchNorm1d(8)),
    "two in a nested sequential": lambda: flat(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8)), nn.BatchNorm1d(8)),
    "1d of signals": lambda: signals(nn.BatchNorm1d(3)),
    "2d": lambda: maps(nn.BatchNorm2d(3)),
    "3d": lambda: volumes(nn.BatchNorm3d(3)),
    "cumulative average": lambda: flat(nn.BatchNorm1d(8, momentum=None)),
    "momentum 1, wide eps": lambda: flat(nn.BatchNorm1d(8, momentum=1.0, eps=0.1)),
    "nothing tracked": lambda: flat(nn.BatchNorm1d(8, track_running_stats=False)),
    "nothing learnt": lambda: flat(nn.BatchNorm1d(8, affine=False)),
    "nothing tracked or learnt": lambda: maps(nn.BatchNorm2d(3, affine=False, track_running_stats=False)),
    "frozen": lambda: flat(nn.BatchNorm1d(8).requires_grad_(False)),
    "synchronised": lambda: maps(nn.SyncBatchNorm(3)),
    "of each step": lambda: flat(nn.ModuleList(nn.BatchNorm1d(8) for _ in range(T + 1))),
    "snnTorch's 1d of each step": lambda: flat(snntorch.BatchNormTT1d(8, T)),
    "snnTorch's 2d of each step": lambda: maps(snntorch.BatchNormTT2d(3, T)),
    "instance norm": lambda: maps(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)),
    "instance norm without statistics": lambda: signals(nn.InstanceNorm1d(3, affine=True)),
    "inside a residual block": lambda: maps(Residual()),
    "inside a sequential's subclass": lambda: flat(Doubled(nn.Linear(8, 8), nn.BatchNorm1d(8))),
    "spectral norm": lambda: flat(parametrizations.spectral_norm(nn.Linear(8, 8))),
    "spectral norm by hook": lambda: flat(spectral_norm(nn.Linear(8, 8))),
    "a moving average": lambda: flat(MovingAverage()),
    "an observer": lambda: flat(MovingAverageMinMaxObserver()),
    "pruned": lambda: flat(prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.3)),
}
QUIET = pytest.mark.filterwarnings("ignore:.*runs step by step in Unroll")


def built(name):
    torch.manual_seed(6)
    return nn.Sequential(*NETWORKS[name]()).double()


def trained(net, loop, xs):
    """Losses of three steps of SGD, evaluation, and everything in the state of `loop`, which may be inside `net`."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = []
    for x in xs:
        optimizer.zero_grad()
        loss = (net(x).mean(0) - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    with torch.no_grad():
        found.append(net.eval()(xs[0]))
    return [*found, *loop.state_dict().values()]


def drives():
    return [torch.randn(T, B, 5, dtype=torch.float64) for _ in range(3)]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def assert_fires(spk):
    assert 0.05 < (spk != 0).double().mean() < 0.95


@QUIET
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_unroll_trains_as_the_loop(name, recompute):
    (one, two), xs = (built(name), built(name)), drives()
    expected = trained(Loop(one), one, xs)
    assert_fires(expected[3])
    assert_close(trained(snn.Unroll(*two, recompute=recompute), two, xs), expected)


@pytest.mark.parametrize("products", ["batched", "per-step"])
@pytest.mark.parametrize("name", NETWORKS)
def test_accelerate_trains_as_the_loop(name, products):
    (one, two), xs = (built(name), built(name)), drives()
    expected = trained(Loop(one), one, xs)
    found = trained(snn.accelerate(Loop(two), products=products, compile=True), two, xs)
    # What Dynamo captures of a write behind autograd's back adds up gradients in another order, whatever the backend.
    if products == "batched" or name == "a moving average":
        assert_close(found, expected)
    else:
        assert all(map(torch.equal, found, expected))


class Backwards(Loop):
    """The last step is normalised first."""

    def forward(self, x):
        linear, norm, lif, *_ = self.layers
        currents, spikes, mem = {}, [], lif.reset_mem()
        for t in reversed(range(len(x))):
            currents[t] = norm(linear(x[t]))
        for t in range(len(x)):
            spk, mem = lif(currents[t], mem)
            spikes.append(spk)
        return torch.stack(spikes)


class Twice(Loop):
    """One batch-norm has two inputs a step."""

    def forward(self, x):
        linear, norm, lif, *_ = self.layers
        spikes, mem = [], lif.reset_mem()
        for t in range(len(x)):
            h = linear(x[t])
            spk, mem = lif(norm(h) + norm(h * h), mem)
            spikes.append(spk)
        return torch.stack(spikes)


@pytest.mark.parametrize("products", ["batched", "per-step"])
@pytest.mark.parametrize("loop", [Backwards, Twice])
def test_statistics_are_updated_in_the_loops_order(loop, products):
    (one, two), xs = (built("1d"), built("1d")), drives()
    expected = trained(loop(one), one, xs)
    assert_close(trained(snn.accelerate(loop(two), products=products, compile=True), two, xs), expected)


def test_lazy_batch_norm_takes_its_shape_from_the_first_step():
    nets = [nn.Sequential(*flat(nn.LazyBatchNorm1d(), nn.LazyLinear(8))).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    xs = drives()
    found = []
    for run, net in zip((Loop, snn.Unroll), nets, strict=True):
        torch.manual_seed(6)
        run = run(net)
        run(xs[0])
        found.append(trained(run, net, xs))
    assert_close(*found)


def test_too_few_layers_for_the_steps_are_refused():
    with pytest.raises(ValueError, match="a ModuleList in Unroll must have a layer for each of 4 steps, got 3"):
        snn.Unroll(nn.Linear(5, 8), snntorch.BatchNormTT1d(8, 3))(torch.randn(T, B, 5))


def test_batch_norm_of_no_step_is_refused():
    with pytest.raises(ValueError, match="x must have at least one step for layers that run step by step"):
        snn.Unroll(nn.BatchNorm1d(5))(torch.randn(0, B, 5))


def test_batch_norm_of_one_sample_is_refused_as_in_a_loop():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        snn.Unroll(nn.BatchNorm1d(5))(torch.randn(T, 1, 5))


def test_channels_last_steps_stay_so():
    x = torch.randn(T * B, 3, 4, 4).to(memory_format=torch.channels_last).unflatten(0, (T, B))
    assert snn.Unroll(nn.BatchNorm2d(3))(x).flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_what_runs_step_by_step_is_named_once():
    x = torch.randn(T, B, 5)
    net = snn.Unroll(*maps(Residual()))
    with pytest.warns(UserWarning, match="Residual runs step by step in Unroll.* its bn .BatchNorm2d. may keep state"):
        net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(x)
        net.eval()(x)
        for name in ("1d", "of each step", "synchronised", "pruned", "instance norm without statistics"):
            snn.Unroll(*NETWORKS[name]())(x)
    with pytest.warns(UserWarning, match="MovingAverage runs step by step in Unroll.*, it may keep state"):
        snn.Unroll(*flat(MovingAverage()))(x)


def test_what_keeps_no_state_runs_once():
    """In eval mode, pruned, or normalised by sample."""
    rows = []
    names = "inside a residual block", "a moving average", "1d", "instance norm", "pruned"
    for name in names:
        net = snn.Unroll(*NETWORKS[name]()).train(name == "pruned")
        before = next(place for place, layer in enumerate(net) if isinstance(layer, snn.Leaky)) - 1
        net[before].register_forward_hook(lambda layer, given, output: rows.append(len(output)))
        net(torch.randn(T, B, 5))
    assert rows == [T * B] * 5


# Hooks


def probed(layer, seen):
    """Notes in `seen` what every kind of hook of a layer is given: shapes, with the kind."""

    def note(kind):
        def hook(module, *given):
            assert module is layer
            tensors = [tensor for item in given for tensor in (item if isinstance(item, tuple) else (item,))]
            seen.append((kind, *(tuple(tensor.shape) for tensor in tensors if tensor is not None)))

        return hook

    layer.register_forward_pre_hook(note("before"))
    layer.register_forward_hook(note("after"))
    layer.register_full_backward_pre_hook(note("gradient of outputs"))
    layer.register_full_backward_hook(note("gradients"))


@pytest.mark.parametrize("recompute", [False, True])
def test_hooks_of_neurons_see_the_whole_sequence_once(recompute):
    net = snn.Unroll(*flat(), recompute=recompute)
    plain, seen = copy.deepcopy(net), []
    probed(net[1], seen)
    x = torch.randn(T, B, 5, requires_grad=True)
    spk = net(x)
    spk.sum().backward()
    shape = (T, B, 8)
    forward, backward = [("before", shape), ("after", shape, shape)], [("gradient of outputs", shape)]
    backward += [("gradients", shape, shape)]
    # Checkpoints run again as far as something is needed.
    assert seen[:2] == forward and [given for given in seen[2:] if given not in forward] == backward
    assert "forward" not in vars(net[1])
    expected = torch.autograd.grad(plain(x).sum(), x)
    assert spk.equal(plain(x)) and x.grad.equal(expected[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_hooks_of_nested_sequentials_see_the_whole_sequence_once(recompute):
    inner = nn.Sequential(nn.Linear(8, 8), snn.Leaky(**LIF), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    last = snn.Unroll(nn.Linear(8, 8), snn.Leaky(**LIF, output=True))
    net = snn.Unroll(*flat()[:2], inner, last, recompute=recompute)
    plain, seen = copy.deepcopy(net), []
    for layer in (inner, inner[2], last):
        probed(layer, seen)
    x = torch.randn(T, B, 5, requires_grad=True)
    spk, mem = net(x)
    (spk + mem).sum().backward()
    shape = (T, B, 8)
    once = [("before", shape), ("after", shape, shape)]
    assert seen[:6] == [once[0], once[0], once[1], once[1], once[0], ("after", shape, shape, shape)]
    counted = [kind for kind, *_ in seen[6:]]
    assert counted.count("gradients") == counted.count("gradient of outputs") == 3
    expected = plain(x)
    assert spk.equal(expected[0]) and mem.equal(expected[1])
    assert x.grad.equal(torch.autograd.grad(sum(expected).sum(), x)[0])


def test_hooks_of_other_layers_see_all_samples_and_of_batch_norm_every_step():
    net, seen = snn.Unroll(*flat(nn.BatchNorm1d(8))), []
    for layer in net[:2]:
        layer.register_forward_hook(lambda layer, given, output: seen.append((type(layer).__name__, len(output))))
    net(torch.randn(T, B, 5))
    assert seen == [("Linear", T * B)] + [("BatchNorm1d", B)] * T


@pytest.mark.parametrize("recompute", [False, True])
def test_what_hooks_return_goes_on(recompute):
    """A hook may replace a neuron's input, and its spikes by what are none."""
    lif, after = snn.Leaky(**LIF), nn.Linear(8, 3)
    net, x = snn.Unroll(nn.Linear(5, 8), lif, after, snn.Leaky(**LIF), recompute=recompute), torch.randn(T, B, 5)
    lif.register_forward_pre_hook(lambda layer, given: (given[0] + 0.3,))
    lif.register_forward_hook(lambda layer, given, output: output * 0.7 + 0.1)
    spk = net(x)
    hidden = lif.unroll_spikes(net[0](x) + 0.3) * 0.7 + 0.1
    expected = net[3].unroll_spikes(after(hidden))
    assert spk.equal(expected)
    weights = list(after.parameters())
    assert_close(torch.autograd.grad(spk.sum(), weights), torch.autograd.grad(expected.sum(), weights))


def test_snntorchs_monitor_records_sequences():
    net = snn.Unroll(*flat())
    monitor = probe.OutputMonitor(net, instance=snn.Leaky)
    x = torch.randn(T, B, 5)
    spk = net(x)
    assert [tuple(record.shape) for record in monitor.records] == [(T, B, 8), (T, B, 3)] and monitor["3"][0].equal(spk)
    monitor.remove_hooks()
    net(x)
    assert len(monitor.records) == 2


def test_hooks_of_all_modules_see_neurons():
    net, seen = snn.Unroll(*flat()), []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: seen.append(type(layer).__name__))
    try:
        net(torch.randn(T, B, 5))
    finally:
        handle.remove()
    assert seen == ["Linear", "Leaky", "Linear", "Leaky", "Unroll"]


def test_a_hook_that_fails_leaves_the_neuron_as_it_was():
    net = snn.Unroll(*flat())
    handle = net[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(torch.randn(T, B, 5))
    handle.remove()
    assert "forward" not in vars(net[1])
    assert net[1](torch.randn(B, 8))[0].shape == (B, 8)


def test_a_compiled_unroll_runs_hooks_and_batch_norm():
    net, seen = snn.Unroll(*flat(nn.BatchNorm1d(8))), []
    plain = copy.deepcopy(net)
    net[2].register_forward_hook(lambda layer, given, output: seen.append(len(output)))
    x = torch.randn(T, B, 5)
    compiled = torch.compile(net, backend="aot_eager")
    assert compiled(x).equal(plain(x)) and seen == [T]
    assert_close(list(net.state_dict().values()), list(plain.state_dict().values()))
    torch._dynamo.reset()
    net = copy.deepcopy(plain)
    assert torch.compile(net, backend="aot_eager", fullgraph=True)(x).equal(plain(x))
    assert_close(list(net.state_dict().values()), list(plain.state_dict().values()))


def test_unroll_takes_numbers_without_features_where_no_linear_comes_first():
    net = snn.Unroll(nn.Embedding(7, 5), nn.Linear(5, 3), snn.Leaky(0.9))
    assert net(torch.randint(7, (4, 2))).shape == (4, 2, 3)
