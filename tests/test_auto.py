"""`snnfast.install`: snnTorch's own classes, fused, and as they were to whoever looks."""

import copy
import operator
import pickle
import subprocess
import sys
import warnings

import pytest
import snntorch
import snntorch.functional as SF
import snntorch.utils
import torch
from snntorch import spikegen
from torch import nn

import snnfast
from snnfast.auto import functions, layers
from snnfast.loops import functions as recorded_functions
from snnfast.loops import recording, report, settings
from snnfast.loops.report import Loops

CLASSES = {
    "Leaky": lambda **options: snntorch.Leaky(0.9, **options),
    "Synaptic": lambda **options: snntorch.Synaptic(0.8, 0.9, **options),
    "RLeaky": lambda **options: snntorch.RLeaky(0.9, linear_features=6, **options),
    "RLeaky one to one": lambda **options: snntorch.RLeaky(0.9, V=0.3, all_to_all=False, **options),
    "RSynaptic": lambda **options: snntorch.RSynaptic(0.8, 0.9, linear_features=6, **options),
    "Lapicque": lambda **options: snntorch.Lapicque(0.9, **options),
    "Alpha": lambda **options: snntorch.Alpha(0.9, 0.8, **options),
}


@pytest.fixture
def installed():
    snnfast.install()
    yield
    snnfast.uninstall()


@pytest.fixture
def fused_steps(monkeypatch):
    """A list that grows with every step of a fused layer."""
    steps = []
    for behind in layers._CLASSES.values():
        monkeypatch.setattr(behind, "_step", _noting(behind._step, steps))
    return steps


def _noting(step, steps):
    def noting(self, *args, **kwargs):
        steps.append(self)
        return step(self, *args, **kwargs)

    return noting


def train(make, steps=8, batches=3, hidden=False):
    """Losses, and the parameters after training two layers of a kind."""
    torch.manual_seed(1)
    options = {"init_hidden": hidden}
    net = nn.ModuleList([nn.Linear(6, 6), make(**options), nn.Linear(6, 6), make(**options)])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(batches):
        loss = _loss(net, torch.rand(steps, 4, 6) * 2, hidden)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses), [parameter.detach() for parameter in net.parameters()], net


def _loss(net, x, hidden):
    states, record = {}, []
    for layer in net[1::2]:
        zeros = layer.reset_mem()
        states[layer] = () if hidden else zeros if isinstance(zeros, tuple) else (zeros,)
    for step in x:
        for linear, layer in zip(net[::2], net[1::2], strict=True):
            output = layer(linear(step), *states[layer])
            if not hidden:
                states[layer] = output if "spk" in layer._buffers else output[1:]
            step = output if hidden else output[0]
        record.append(step if hidden else step + output[-1])
    return (torch.stack(record).mean(0) - torch.eye(6)[:4]).square().mean()


@pytest.mark.parametrize("numbers", settings.NUMBERS)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_training_is_stock_snntorchs(name, hidden, numbers, fused_steps):
    # Weights that differ by rounding may let other neurons fire in the next batch.
    batches = 3 if numbers == "exact" else 1
    losses, parameters, _ = train(CLASSES[name], batches=batches, hidden=hidden)
    snnfast.install(numbers)
    try:
        again, trained, net = train(CLASSES[name], batches=batches, hidden=hidden)
    finally:
        snnfast.uninstall()
    exact = numbers == "exact" and name not in ("Alpha", "RLeaky one to one")
    assert len(fused_steps) == (0 if numbers == "exact" and not exact else batches * 8 * 2)
    assert torch.equal(losses[0], again[0])
    torch.testing.assert_close(again, losses)
    for ours, theirs in zip(trained, parameters, strict=True):
        assert torch.equal(ours, theirs) if numbers == "exact" else torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert type(net[1]) is type(CLASSES[name]())


@pytest.mark.parametrize(
    "options",
    [
        {"reset_mechanism": "zero"},
        {"reset_mechanism": "none", "spike_grad": snntorch.surrogate.sigmoid()},
        {"learn_beta": True, "learn_threshold": True},
        {"reset_delay": False, "reset_mechanism": "zero"},
        {"spike_grad": torch.sigmoid},
        {"surrogate_disable": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_exact_numbers_for_every_option(options):
    def make(**hidden):
        return snntorch.Leaky(0.9, **options, **hidden)

    losses, parameters, _ = train(make)
    snnfast.install("exact")
    try:
        again, trained, _ = train(make)
    finally:
        snnfast.uninstall()
    torch.testing.assert_close((again, trained), (losses, parameters), rtol=0, atol=0, equal_nan=True)


def test_a_layer_stays_what_it_is(installed, fused_steps):
    layer = snntorch.Leaky(0.9, init_hidden=True, output=True)
    before, said = {*vars(layer)}, repr(layer)
    buffers = [name for name, _ in layer.named_buffers()]
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append((module, *output)))
    spk, mem = layer(torch.rand(2, 3))
    assert len(fused_steps) == 1 and all(map(operator.is_, seen[0], (layer, spk, mem)))
    assert type(layer) is snntorch.Leaky and repr(layer) == said and not isinstance(layer, snnfast.SpikingNeuron)
    assert [name for name, _ in layer.named_buffers()] == buffers and layer.mem is mem
    assert {*vars(layer)} - before == {layers.KEY}
    assert list(layer.state_dict()) == list(snntorch.Leaky(0.9).state_dict())
    assert layer.double().mem.dtype == torch.float64
    snntorch.utils.reset(nn.Sequential(layer))
    assert not layer.mem.any()
    snntorch.Leaky.detach_hidden()


CLASSES_OF_SNNTORCH = (*layers.FUSED, snntorch.SpikingNeuron, functions.losses.ce_rate_loss)
OWNERS = (*CLASSES_OF_SNNTORCH, functions.losses.mse_membrane_loss, functions.losses.SpikeTime.FirstSpike, spikegen)


def test_uninstall_restores_everything(fused_steps):
    before = [dict(vars(owner)) for owner in OWNERS]
    snnfast.install()
    snnfast.install("exact", verify=2, encoders="fast")
    assert settings.everywhere == settings.Settings("exact", 2)
    assert [dict(vars(owner)) for owner in OWNERS] != before
    layer = snntorch.Leaky(0.9)
    forward = layer.forward
    layer(torch.rand(2, 3))
    attributes = {*vars(snntorch.Leaky(0.9))}
    snnfast.uninstall()
    snnfast.uninstall()
    assert [dict(vars(owner)) for owner in OWNERS] == before and settings.everywhere is None
    assert {*vars(layer)} == attributes
    layer(torch.rand(2, 3)), forward(torch.rand(2, 3))
    assert len(fused_steps) == 1


def test_who_comes_before_and_after(fused_steps):
    layer = snntorch.Leaky(0.9)
    bound = layer.forward
    stock = snntorch.Synaptic.forward
    snnfast.install()
    try:
        x = torch.rand(2, 3)
        layer(x)
        assert len(fused_steps) == 1
        bound(x)  # snnTorch's own, with the same states
        assert len(fused_steps) == 1 and layer.mem.shape == x.shape
        ours = snntorch.Synaptic.forward
        patch = snntorch.Synaptic.forward = lambda self, *args: ours(self, *args)
        assert len(snntorch.Synaptic(0.8, 0.9)(x)) == 3
        assert len(fused_steps) == 1
    finally:
        snnfast.uninstall()
        left = snntorch.Synaptic.forward
        snntorch.Synaptic.forward = stock
    assert left is patch


class Halved(snntorch.Leaky):
    def fire(self, mem):
        return super().fire(mem) / 2


def _fire_less(self, mem):
    return self.spike_grad(mem - 2)


def test_own_equations_run_as_written(installed, fused_steps, monkeypatch):
    x = torch.full((2, 3), 1.5)
    assert Halved(0.9)(x)[0].eq(0.5).all()
    layer = snntorch.Leaky(0.9)
    layer.fire = lambda mem: mem * 7
    assert layer(x)[0].eq(10.5).all()
    layer = snntorch.Leaky(0.9)
    layer(x)
    assert len(fused_steps) == 1
    layer.spike_grad = lambda u: u * 3
    assert not layer(x)[0].eq(1).any()
    layer.state_function = lambda x: x * 0
    assert not layer(x)[1].any()
    monkeypatch.setattr(snntorch.Leaky, "fire", _fire_less)
    assert not snntorch.Leaky(0.9)(x)[0].any()
    assert len(fused_steps) == 1


UNFIT = {
    "half": lambda layer: layer(torch.rand(2, 3).bfloat16()),
    "double": lambda layer: layer(torch.rand(2, 3).double()),
    "a parameter as state": lambda layer: layer(torch.rand(2, 3), nn.Parameter(torch.rand(2, 3))),
    "integers": lambda layer: layer(torch.ones(2, 3, dtype=torch.long)),
    "no tensor": lambda layer: layer([1.0]),
    "a state of another dtype": lambda layer: layer(torch.rand(2, 3), torch.ones(2, 3).double()),
    "a wider parameter": lambda layer: layer(torch.rand(2, 1)),
    "too many": lambda layer: layer(torch.rand(2, 3), torch.rand(2, 3), torch.rand(2, 3)),
    "a wrong name": lambda layer: layer(torch.rand(2, 3), memory=torch.rand(2, 3)),
    "a hidden state": lambda layer: (setattr(layer, "init_hidden", True), layer(torch.rand(2, 3), torch.rand(2, 3))),
    "no surrogate": lambda layer: (setattr(layer, "spike_grad", 5), layer(torch.rand(2, 3))),
    "inhibition": lambda layer: (setattr(layer, "inhibition", True), layer(torch.rand(2, 3))),
    "state_quant": lambda layer: (setattr(layer, "state_quant", torch.round), layer(torch.rand(2, 3))),
    "a transform": lambda layer: torch.func.vmap(lambda x: layer(x)[0])(torch.rand(1, 2, 3)),
    "graph capture": lambda layer: torch.compile(layer, backend="eager", fullgraph=True)(torch.rand(2, 3)),
    "a reset loaded": lambda layer: (layer.reset_mechanism_val.fill_(1), layer(torch.rand(2, 3) + 1)),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_not_alike_runs_as_written(name, fused_steps):
    def outcome():
        torch.manual_seed(2)
        layer = snntorch.Leaky(torch.tensor([0.9, 0.8, 0.7]), reset_delay=name != "a reset loaded")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            try:
                return UNFIT[name](layer)
            except Exception as error:
                return type(error), str(error)

    expected = outcome()
    snnfast.install()
    try:
        found = outcome()
    finally:
        snnfast.uninstall()
    torch.testing.assert_close(found, expected, rtol=0, atol=0) if not isinstance(expected[0], type) else None
    assert not fused_steps and (not isinstance(expected[0], type) or found == expected)


def test_states_of_another_shape_become_zeros(installed, fused_steps):
    layer, x = snntorch.Leaky(0.9), torch.rand(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(layer(x, torch.ones(2, 1))[1], x) and torch.equal(layer(x, torch.ones(5, 3))[1], x)
    assert len(fused_steps) == 2


@pytest.mark.parametrize("written", ["mem", "threshold"])
@pytest.mark.parametrize("name", CLASSES)
def test_states_and_buffers_may_be_written_to(name, written, installed):
    def gradient():
        torch.manual_seed(3)
        layer, x, total = CLASSES[name](), (torch.rand(4, 2, 6) * 2).requires_grad_(), 0
        for step in x:
            total = total + layer(step)[0].sum()
            getattr(layer, written).mul_(0.7)
        return torch.autograd.grad(total, x)[0]

    fused = gradient()
    snnfast.uninstall()
    torch.testing.assert_close(fused, gradient())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_layers_of_their_own(copied, installed, fused_steps):
    layer = snntorch.Leaky(0.9, spike_grad=snntorch.surrogate.fast_sigmoid(slope=7))
    layer(torch.rand(2, 3).requires_grad_())
    other = copied(layer)
    assert type(other) is snntorch.Leaky and torch.equal(other.mem, layer.mem)
    assert other.spike_grad.__qualname__ == layer.spike_grad.__qualname__
    before = layer.mem.clone()
    other(torch.rand(4, 3))
    assert len(fused_steps) == 2 and torch.equal(layer.mem, before)


@pytest.mark.parametrize("copied", [copy.copy, lambda layer: layer._replicate_for_data_parallel()])
def test_shallow_copies_are_snntorchs(copied, installed, fused_steps):
    layer = snntorch.Leaky(0.9)
    layer(torch.rand(2, 3))
    other = copied(layer)
    assert other.spike_grad is layer.spike_grad and other.state_function == layer.state_function
    assert (layers.KEY in vars(other)) == (copied is not copy.copy)
    layer.reset = layer.mem_reset(layer.mem)
    other(torch.rand(2, 3))
    assert len(fused_steps) == 1
    other._buffers, other.state_function = dict(layer._buffers), other._base_sub
    before = layer.mem.clone()
    other(torch.rand(2, 3))
    assert len(fused_steps) == 2 and torch.equal(layer.mem, before)


LOADS_WITHOUT = """
import sys
sys.modules["snnfast"] = None
import pickle, torch
net = torch.load(sys.argv[1], weights_only=False)
spk, mem = net[1](net[0](torch.ones(1, 3)))
assert type(net[1]).__module__ == "snntorch._neurons.leaky" and not any("snnfast" in name for name in vars(net[1]))
print(net[1].spike_grad.__closure__[0].cell_contents)
"""


def test_copies_share_what_was_shared(installed):
    beta = torch.tensor(0.9)
    net = nn.ModuleList([snntorch.Leaky(beta), snntorch.Leaky(beta)])
    for layer in net:
        layer(torch.rand(2, 3).requires_grad_())
    copied = copy.deepcopy(net)
    assert copied[0].beta is copied[1].beta and copied[0].mem.is_leaf


def test_layers_made_in_inference_mode(installed, fused_steps):
    with torch.inference_mode():
        layer = snntorch.Leaky(0.9)
        layer(torch.rand(2, 3))
    layer(torch.rand(2, 3))
    assert len(fused_steps) == 2


def test_modules_are_saved_in_snntorchs_form(installed, tmp_path):
    net = nn.Sequential(nn.Linear(3, 2), snntorch.Leaky(0.9, spike_grad=snntorch.surrogate.atan(alpha=5.0)))
    net(torch.rand(2, 3))
    torch.save(net, tmp_path / "net.pt")
    assert b"snnfast" not in pickle.dumps(net)
    command = [sys.executable, "-c", LOADS_WITHOUT, str(tmp_path / "net.pt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "5.0\n"


def test_switched_off(monkeypatch):
    monkeypatch.setenv("SNNFAST_AUTO", "0")
    monkeypatch.setattr("snnfast.auto._said_that_off", False)
    forward = snntorch.Leaky.forward
    with pytest.warns(UserWarning, match="SNNFAST_AUTO=0"):
        snnfast.install()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snnfast.install()
    assert snntorch.Leaky.forward is forward and settings.everywhere is None


def test_options(monkeypatch):
    monkeypatch.setenv("SNNFAST_NUMBERS", "exact")
    snnfast.install()
    assert settings.everywhere.numbers == "exact"
    snnfast.uninstall()
    for wrong in ({"numbers": "some"}, {"encoders": "slow"}, {"verify": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            snnfast.install(**wrong)
    assert settings.everywhere is None


def test_notebooks():
    snnfast.load_ipython_extension(None)
    assert settings.everywhere == settings.Settings()
    snnfast.unload_ipython_extension(None)
    assert settings.everywhere is None


DATA = {
    "images": (torch.rand(3, 1, 4, 4), {"num_steps": 5}),
    "channels last": (torch.rand(3, 2, 4, 4).to(memory_format=torch.channels_last), {"num_steps": 5}),
    "transposed, float64": (torch.rand(7, 3).double().T, {"num_steps": 4, "gain": 0.5, "offset": 0.2}),
    "out of range": (torch.randn(5), {"num_steps": 6, "first_spike_time": 2}),
    "over time": (torch.rand(5, 3), {"time_var_input": True}),
    "a number": (torch.tensor(0.5), {"num_steps": 9}),
}


@pytest.mark.parametrize("name", DATA)
def test_random_spikes_are_torchs_own(name, installed):
    data, options = DATA[name]
    own_rate = spikegen.rate.__wrapped__
    found = []
    for rate in (own_rate, spikegen.rate):
        torch.manual_seed(4)
        found.append((rate(data, **options), torch.rand(3)))
    (theirs, after), (ours, ours_after) = found
    assert torch.equal(theirs, ours) and torch.equal(after, ours_after) and theirs.stride() == ours.stride()


def test_wrong_arguments_of_encoders_are_snntorchs(installed):
    for options in ({"num_steps": 0}, {"num_steps": 3, "first_spike_time": 3}, {"num_steps": -1}):
        with pytest.raises(Exception, match="num_steps"):
            spikegen.rate(torch.rand(3), **options)


def test_fast_encoders():
    snnfast.install(encoders="fast")
    try:
        torch.manual_seed(5)
        ours = spikegen.rate(torch.rand(4), num_steps=6)
        torch.manual_seed(5)
        assert torch.equal(ours, snnfast.encoding.rate(torch.rand(4), 6))
    finally:
        snnfast.uninstall()


WEIGHT = torch.tensor([0.2, 1.5, 1.0, 0.7])
LOSSES = {
    "ce_rate_loss": SF.ce_rate_loss,
    "ce_rate_loss, sum": lambda: SF.ce_rate_loss(reduction="sum"),
    "ce_rate_loss, weighted": lambda: SF.ce_rate_loss(weight=WEIGHT),
    "ce_rate_loss, weighted, none": lambda: SF.ce_rate_loss(reduction="none", weight=WEIGHT),
    "ce_rate_loss, populations": lambda: SF.ce_rate_loss(population_code=True, num_classes=2, weight=WEIGHT[:2]),
    "mse_membrane_loss": SF.mse_membrane_loss,
    "mse_membrane_loss, none": lambda: SF.mse_membrane_loss(reduction="none"),
    "mse_membrane_loss, over time": lambda: SF.mse_membrane_loss(time_var_targets=True, on_target=1.3),
    "ce_temporal_loss": SF.ce_temporal_loss,
    "mse_temporal_loss": lambda: SF.mse_temporal_loss(on_target=1, off_target=-1, tolerance=2),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_snntorchs_to_the_bit(name):
    torch.manual_seed(6)
    out = torch.randn(7, 9, 4)
    out = (out > 0.5).float() if "temporal" in name else out
    targets = torch.randint(0, 2 if "populations" in name else 4, (7 if "over time" in name else 9,))

    def computed():
        leaf = out.clone().requires_grad_()
        loss = LOSSES[name]()(leaf * 1, targets)
        return loss.detach(), torch.autograd.grad(loss.sum() * 3, leaf)[0]

    theirs = computed()
    snnfast.install()
    try:
        ours = computed()
    finally:
        snnfast.uninstall()
    assert all(torch.equal(mine, yours) for mine, yours in zip(ours, theirs, strict=True))


def test_losses_over_many_steps_are_quick(installed):
    out = torch.rand(100, 8, 4, requires_grad=True)
    loss = SF.ce_rate_loss()(out, torch.zeros(8, dtype=torch.long))
    visited, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        visited.add(node)
        nodes += [after for after, _ in node.next_functions if after is not None and after not in visited]
    assert not any("Select" in node.name() for node in visited)


def test_a_layer_that_is_not_recorded_for_a_while_is_stepped_plainly(installed, monkeypatch):
    layer, x = CLASSES["Leaky"](), torch.rand(2, 6, requires_grad=True)
    fused = layers._fused(layer, layers._CLASSES[snntorch.Leaky])
    looked, caller = [], recorded_functions.caller
    monkeypatch.setattr(recorded_functions, "caller", lambda: looked.append(1) or caller())
    layer(x, layer.init_leaky())
    fused._loops = Loops()
    fused._loops.skip = 3
    recording.stop()
    for left in (2, 1, 0):
        spk, _ = layer(x, layer.init_leaky())
        assert spk.grad_fn is not None and fused._loops.skip == left
    assert not looked


class Attenuated(snntorch.Leaky):
    """A neuron of a stranger's, on snnTorch's own step."""

    def forward(self, input_, mem=None):
        return super().forward(0.5 * input_, mem)


def test_the_step_of_a_subclass_waits_though_it_asks_whether_it_was_given_a_state(installed):
    """snnTorch asks `mem == None` of each: no value is needed for that."""
    torch.manual_seed(0)
    layer, x = Attenuated(0.9), 3 * torch.rand(12, 2, 6)

    def run():
        mem, spikes = layer.init_leaky(), []
        for step in x:
            spk, mem = layer(step, mem)
            spikes.append(spk)
        return torch.stack(spikes), mem

    snnfast.uninstall()
    expected = run()
    snnfast.install()
    report.stories.clear()
    for _ in range(4):
        assert all(map(torch.equal, run(), expected))
    recording.stop()
    (story,) = report.stories.values()
    assert story.place.startswith("test_auto.py:")
    assert "__eq__" not in story.ends and story.recorded > 2 * len(x)


def test_a_loop_that_gains_nothing_is_recorded_once_and_then_left_alone(installed):
    """Learning and recording it again every few calls would cost more than it ever did."""
    snnfast.install(numbers="exact")
    layer, x = Attenuated(0.9, learn_beta=True), torch.rand(6, 2, 3)
    for _ in range(12):
        mem, outs = layer.init_leaky(), []
        for step in x:
            spk, mem = layer(step, mem)
            outs.append(mem)
        torch.stack(outs).sum().backward()
    recording.stop()
    loops = recorded_functions.loops_of(layer)
    assert loops.failures == 1 and loops.skip > 900


def test_a_batch_size_that_comes_back_is_recorded_from_the_first_step_on(installed):
    # `utils.reset` leaves zeros of the shape of the batch before.
    report.stories.clear()
    net = nn.Sequential(nn.Linear(6, 6), *(snntorch.Leaky(0.9, init_hidden=True) for _ in range(2)))
    for batch in (8, 4, 8, 4, 8):
        snntorch.utils.reset(net)
        plain = sum(story.plain for story in report.stories.values())
        torch.stack([net(torch.rand(batch, 6)) for _ in range(9)])
    assert sum(story.plain for story in report.stories.values()) == plain
    assert len({id(story) for story in report.stories.values() if story.recorded}) == 1


def test_a_traced_network_runs_its_neurons_step_by_step(installed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(20, 40), snntorch.Leaky(beta=0.9)

        def forward(self, x):
            mem, spikes = torch.zeros(16, 40), []
            for x_t in x:
                spk, mem = self.lif(self.fc(x_t), mem)
                spikes.append(spk)
            return torch.stack(spikes)

    net, x = Net(), 3 * torch.rand(6, 16, 20)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, (x,), check_trace=False)
        assert torch.equal(traced(x), net(x))


def test_what_left_steps_to_snntorch_is_told(installed):
    report.unfit.clear()
    wide, watched = snntorch.Leaky(beta=0.9).double(), snntorch.Leaky(beta=0.9, inhibition=True)
    mem, shut = wide.init_leaky(), watched.init_leaky()
    for x in torch.rand(6, 4, 8):
        _, mem = wide(x.double(), mem)
        _, shut = watched(x, shut)
    said = report.summary()
    assert "Leaky: 6 steps by snnTorch's own: float64" in said
    assert "Leaky: 6 steps by snnTorch's own: inhibition" in said
