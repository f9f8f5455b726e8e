"""TrainingStep: the numbers of a plain loop, whether steps run eagerly or from a graph.

`recorded` puts a stand-in for CUDA graphs in the CPU's place. Like a graph it executes nothing while it captures, reads
the captured inputs, and writes to the captured results and gradients; unlike one it runs Python again to do so.
"""

import copy
import inspect
import re
import warnings
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

import snnfast as snn
from snnfast import step as step_module

STEPS, FEATURES, CLASSES = 6, 12, 3


class Recorder:
    """The capturer's two methods on the CPU; `log` says what happened."""

    log: list[str] = []
    generators: tuple = ()
    watched: list = []

    def __init__(self, device):
        self.log.append("pool")

    def eager(self, run):
        self.log.append("eager")
        return run()

    def capture(self, run, generators):
        self.log.append("capture")
        Recorder.generators = generators
        model, optimizer = self.watched
        tensors = [
            *model.parameters(),
            *model.buffers(),
            *tree_leaves([list(s.values()) for s in optimizer.state.values()]),
        ]
        before, states = (
            [t.detach().clone() for t in tensors],
            [g.get_state() for g in (torch.default_generator, *generators)],
        )
        held = [p.grad for p in model.parameters()]
        old = [None if g is None else g.clone() for g in held]
        results = tree_map(torch.Tensor.detach, run())
        # Gradients that were there are added to where they are.
        kept = [value if p.grad is g else None for p, g, value in zip(model.parameters(), held, old, strict=True)]
        gradients = [p.grad for p in model.parameters()]
        written = [g for g, old in zip(gradients, kept, strict=True) if g is not None and old is None]
        with torch.no_grad():
            for gradient, old in zip(gradients, kept, strict=True):
                if old is not None:
                    gradient.copy_(old)
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)
            for tensor in (*tree_leaves(results), *written):
                tensor.fill_(-1)
        for generator, state in zip((torch.default_generator, *generators), states, strict=True):
            generator.set_state(state)

        def replay():
            self.log.append("replay")
            held = [p.grad for p in model.parameters()]
            with torch.enable_grad():
                new = run()
            for static, value in zip(tree_leaves(results), tree_leaves(new), strict=True):
                static.copy_(value)
            for static, parameter in zip(gradients, model.parameters(), strict=True):
                if static is not None:
                    static.copy_(parameter.grad)
            for parameter, gradient in zip(model.parameters(), held, strict=True):
                parameter.grad = gradient

        return replay, results


@pytest.fixture
def recorded(monkeypatch):
    """Steps on the CPU are recorded; call it with the model and optimiser before the first step."""
    monkeypatch.setitem(step_module._BACKENDS, "cpu", Recorder)
    monkeypatch.setattr(Recorder, "log", [])

    def watch(model, optimizer):
        monkeypatch.setattr(Recorder, "watched", [model, optimizer])
        return Recorder.log

    return watch


def network(device="cpu", dropout=0.0):
    torch.manual_seed(1)
    layers = [nn.Linear(FEATURES, 16), snn.Leaky(0.9), nn.Dropout(dropout), nn.Linear(16, CLASSES), snn.Leaky(0.9)]
    return snn.Unroll(*layers).to(device)


def batches(count, size=8, device="cpu"):
    draw = torch.Generator().manual_seed(2)
    x = torch.rand(count, size, FEATURES, generator=draw).to(device)
    return list(zip(x, torch.randint(CLASSES, (count, size), generator=draw).to(device), strict=True))


def constant(x):
    return 2 * x.expand(STEPS, *x.shape)


def rate(x):
    return torch.bernoulli(x.expand(STEPS, *x.shape))


def loss(spk, target):
    return F.cross_entropy(scores(spk), target)


def scores(spk):
    return spk.sum(0)


def adam(net):
    """As a TrainingStep arranges it on a GPU, where it runs in graphs."""
    return torch.optim.Adam(net.parameters(), lr=torch.tensor(0.01), fused=True)


def plain(net, optimizer, data, encode=constant):
    losses = []
    for x, target in data:
        optimizer.zero_grad()
        losses.append(loss(net(encode(x)), target))
        losses[-1].backward()
        optimizer.step()
    return torch.stack(losses).detach()


def assert_same(net, other):
    for (name, ours), theirs in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_steps_are_those_of_a_plain_loop(device):
    data = batches(9, device=device) + batches(1, 5, device)
    net, other = network(device), network(device)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    step = snn.TrainingStep(net, optimizer, loss, encode=constant)
    losses, outputs = zip(*(step(*batch) for batch in data), strict=True)
    expected = plain(other, torch.optim.Adam(other.parameters(), 0.01), data)
    assert [tuple(output.shape) for output in outputs] == [(STEPS, len(x), CLASSES) for x, _ in data]
    if device == "cpu":
        assert torch.equal(torch.stack(losses), expected)
        assert_same(net, other)
    else:
        torch.testing.assert_close(torch.stack(losses), expected)
    assert not any(t.requires_grad for t in (*losses, *outputs))


def test_a_cpu_step_leaves_the_optimiser_as_it_is():
    net = network()
    optimizer = torch.optim.Adagrad(net.parameters(), 0.01)
    options = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    snn.TrainingStep(net, optimizer, loss, constant)(*batches(1)[0])
    assert {name: value for name, value in optimizer.param_groups[0].items() if name != "params"} == options


def test_learns(device):
    x = batches(1, 32, device)[0][0]
    brightest_third = x.unflatten(1, (CLASSES, -1)).sum(2).argmax(1)
    net = network(device)
    step = snn.TrainingStep(net, torch.optim.Adam(net.parameters(), 0.02), loss, constant, scores=scores)
    losses, correct = zip(*(step(x, brightest_third) for _ in range(60)), strict=True)
    assert losses[-1] < 0.5 * losses[0]
    assert correct[-1].dtype == torch.int64 and correct[-1].dim() == 0
    assert correct[0] < 20 and correct[-1] > 28


def test_warms_up_captures_and_replays(recorded):
    net, other = network(), network()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    log = recorded(net, optimizer)
    data = batches(6) + batches(1, 5) + batches(2)
    step = snn.TrainingStep(net, optimizer, loss, constant, scores=scores)
    losses = torch.stack([step(*batch)[0] for batch in data])
    assert log == ["pool", *["eager"] * 3, "capture", *["replay"] * 3, "eager", "replay", "replay"]
    assert torch.equal(losses, plain(other, adam(other), data))
    assert_same(net, other)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_the_last_batch_of_an_epoch_gets_its_own_graph(recorded):
    net, other = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    log = recorded(net, optimizer)
    data = (batches(3) + batches(1, 5)) * 6
    step = snn.TrainingStep(net, optimizer, loss, constant)
    for x, target in data:
        step(x, target)
        gradients = [parameter.grad.clone() for parameter in net.parameters()]
    assert log.count("capture") == 2 and log.count("eager") == 6 and log.count("replay") == 18
    plain(other, torch.optim.SGD(other.parameters(), torch.tensor(0.1), momentum=0.9, fused=True), data)
    assert_same(net, other)
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, other.parameters(), strict=True))


def test_gradients_are_the_last_steps_after_switching_graphs(recorded):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, constant)
    big, small = batches(1)[0], batches(1, 5)[0]
    expected = {}
    for batch in (big, small):
        loss(net(constant(batch[0])), batch[1]).backward()
        expected[len(batch[0])] = [parameter.grad for parameter in net.parameters()]
        optimizer.zero_grad()
    for batch in [big, small] * 6:
        step(*batch)
        for gradient, parameter in zip(expected[len(batch[0])], net.parameters(), strict=True):
            assert torch.equal(gradient, parameter.grad)


def test_results_are_the_callers_to_keep(recorded):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, constant)
    kept, copies = [], []
    for x, target in batches(8):
        kept.append(step(x, target))
        copies.append(tuple(result.clone() for result in kept[-1]))
        x.zero_()
    for (loss_value, output), (loss_copy, output_copy) in zip(kept, copies, strict=True):
        assert torch.equal(loss_value, loss_copy) and torch.equal(output, output_copy)
    assert len({value.item() for value, _ in kept}) > 4


def test_only_so_many_shapes_are_captured(recorded):
    net, other = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    log = recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, constant, max_graphs=1)
    data = batches(4) + batches(6, 5)
    for batch in data:
        step(*batch)
    assert log.count("capture") == 1 and log[-6:] == ["eager"] * 6
    plain(other, torch.optim.SGD(other.parameters(), torch.tensor(0.1), fused=True), data)
    assert_same(net, other)


def test_random_numbers_are_drawn_anew_and_follow_the_seed(device):
    data = batches(1, device=device) * 8
    losses = []
    for seed in (5, 5, 6):
        net = network(device, dropout=0.5)
        step = snn.TrainingStep(net, torch.optim.SGD(net.parameters(), 0.0), loss, rate)
        torch.manual_seed(seed)
        losses.append([step(*batch)[0].item() for batch in data])
    assert losses[0] == losses[1] != losses[2]
    assert len(set(losses[0][4:])) == 4


def test_generators_reach_the_graph(device, recorded):
    generator = torch.Generator(device)
    net = network(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    recorded(net, optimizer)

    def encode(x):
        return torch.bernoulli(x.expand(STEPS, *x.shape), generator=generator)

    step = snn.TrainingStep(net, optimizer, loss, encode, generators=[generator])
    batch = batches(1, device=device)[0]
    runs = []
    for _ in range(2):
        generator.manual_seed(7)
        runs.append([step(*batch)[0].item() for _ in range(6)])
    assert runs[0] == runs[1] and len(set(runs[0])) > 3
    assert device != "cpu" or Recorder.generators == (generator,)


CHANGES = {
    "learning rate": lambda net, optimizer: optimizer.param_groups[0].update(lr=0.3),
    "momentum": lambda net, optimizer: optimizer.param_groups[0].update(momentum=0.5),
    "optimiser state": lambda net, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "mode of one layer": lambda net, optimizer: net[2].eval(),
    "frozen weight": lambda net, optimizer: net[0].weight.requires_grad_(False),
    "weights elsewhere": lambda net, optimizer: setattr(net[0].weight, "data", net[0].weight.data.clone()),
    "buffer": lambda net, optimizer: setattr(net[1], "threshold", torch.tensor(0.5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_the_capture_is_noticed(recorded, name):
    net, other = network(dropout=0.3), network(dropout=0.3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, foreach=True)
    reference = torch.optim.SGD(other.parameters(), 0.1, momentum=0.9, foreach=True)
    log = recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, rate)
    data = batches(14)
    torch.manual_seed(3)
    losses = [step(*batch)[0] for batch in data[:7]]
    CHANGES[name](net, optimizer)
    losses += [step(*batch)[0] for batch in data[7:]]
    torch.manual_seed(3)
    expected = [plain(other, reference, data[:7], rate)]
    CHANGES[name](other, reference)
    expected.append(plain(other, reference, data[7:], rate))
    assert torch.equal(torch.stack(losses), torch.cat(expected))
    run = ["pool", *["eager"] * 3, "capture", *["replay"] * 4]
    assert log == run * 2


def test_a_schedule_reaches_the_graph(recorded):
    net, other = network(), network()
    optimizer, reference = torch.optim.Adam(net.parameters(), 0.01), adam(other)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (optimizer, reference)]
    log = recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, constant)
    for batch in batches(12):
        step(*batch)
        plain(other, reference, [batch])
        for schedule in schedules:
            schedule.step()
    assert log.count("capture") == 1 and log.count("replay") == 9
    assert_same(net, other)


def test_options_that_change_with_every_step_are_warned_of(recorded):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, foreach=True)
    recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, constant)
    with pytest.warns(UserWarning, match="changed right after the step was captured"):
        for index, batch in enumerate(batches(6)):
            optimizer.param_groups[0]["lr"] = 0.1 / (index + 1)
            step(*batch)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_the_optimiser_is_made_capturable(recorded, steps_before):
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), 0.01)
    if steps_before:
        plain(net, optimizer, batches(steps_before))
    recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, constant)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in batches(5):
            step(*batch)
    (group,) = optimizer.param_groups
    assert group["capturable"] and group["fused"] and group["lr"].item() == pytest.approx(0.01)
    assert {state["step"].item() for state in optimizer.state.values()} == {5 + steps_before}


def refuse_to_capture(monkeypatch, error):
    """As torch.cuda.graph does: what breaks a capture makes its end raise too."""

    def capture(self, run, generators):
        try:
            raise error
        finally:
            raise RuntimeError("capture_end failed too")

    monkeypatch.setattr(Recorder, "capture", capture)


def test_a_step_that_cannot_be_captured_says_why(recorded, monkeypatch):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    recorded(net, optimizer)
    refuse_to_capture(monkeypatch, RuntimeError("operation not permitted when stream is capturing\nmore"))
    step = snn.TrainingStep(net, optimizer, loss, constant)
    *warmup, last = batches(4)
    for batch in warmup:
        step(*batch)
    weight = net[0].weight.clone()
    with pytest.raises(
        RuntimeError, match=r"captured in a CUDA graph \(operation not permitted .* capturing\); .*max_gr"
    ):
        step(*last)
    assert torch.equal(net[0].weight, weight)
    step(*last)
    assert not torch.equal(net[0].weight, weight)


@pytest.mark.parametrize("ends_well", [False, True])
def test_running_out_of_memory_stays_that(recorded, monkeypatch, ends_well):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    recorded(net, optimizer)
    memory = torch.OutOfMemoryError("CUDA out of memory")
    refuse_to_capture(monkeypatch, memory)
    if ends_well:
        memory.__context__ = RuntimeError("what came before")
        monkeypatch.setattr(Recorder, "capture", lambda self, run, generators: _raise(memory))
    step = snn.TrainingStep(net, optimizer, loss, constant)
    *warmup, last = batches(4)
    for batch in warmup:
        step(*batch)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        step(*last)


def _raise(error):
    raise error


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")


def test_the_calls_to_cuda_are_in_pytorchs_order(monkeypatch):
    """Without a GPU: that streams wait for each other and what a capture is given; not that CUDA accepts it."""
    log = []

    @contextmanager
    def within(name):
        log.append(f"enter {name}")
        yield
        log.append(f"leave {name}")

    graph = mock.Mock(replay="replay")
    side, current = Stream("side", log), Stream("current", log)
    real = inspect.signature(torch.cuda.graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream.name))
    monkeypatch.setattr(torch.cuda, "device", lambda device: within(str(device)))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *a, **k: within(sorted(real.bind(*a, **k).arguments)))
    step_module.side_stream.cache_clear()
    capturer = step_module._CudaCapturer(torch.device("cuda", 0))
    step_module.side_stream.cache_clear()

    assert capturer.eager(lambda: log.append("run") or "results") == "results"
    assert log == ["side waits for current", "enter side", "run", "leave side", "current waits for side"]
    log.clear()
    assert capturer.capture(lambda: log.append("run") or "results", ("generator",)) == ("replay", "results")
    arguments = ["capture_error_mode", "cuda_graph", "pool", "stream"]
    inside = ["cuda:0", "current", arguments]
    assert log == [*(f"enter {name}" for name in inside), "run", *(f"leave {name}" for name in inside[::-1])]
    graph.register_generator_state.assert_called_once_with("generator")


def test_distributed_models_warm_up_longer(recorded, monkeypatch):
    class Wrapped(nn.Sequential):
        pass

    monkeypatch.setattr(step_module, "DistributedDataParallel", Wrapped)
    net = Wrapped(network())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    log = recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, loss, constant)
    for batch in batches(13):
        step(*batch)
    assert log == ["pool", *["eager"] * 11, "capture", "replay", "replay"]


def test_containers_of_tensors(recorded):
    net, other = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    log = recorded(net, optimizer)

    def masked_loss(spk, target):
        return loss(spk * target["mask"], target["label"])

    step = snn.TrainingStep(net, optimizer, masked_loss, lambda x: constant(x[0]) + x[1])
    data = [((x, torch.ones(1)), {"label": y, "mask": torch.ones(STEPS, len(y), 1)}) for x, y in batches(6)]
    for batch in data:
        step(*batch)
    assert log.count("replay") == 3
    reference = torch.optim.SGD(other.parameters(), torch.tensor(0.1), fused=True)
    plain(other, reference, batches(6), lambda x: constant(x) + 1)
    assert_same(net, other)


def test_outputs_may_be_several(recorded):
    net = snn.Unroll(nn.Linear(FEATURES, CLASSES), snn.Leaky(0.9, output=True))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    recorded(net, optimizer)
    step = snn.TrainingStep(net, optimizer, lambda output, target: loss(output[1], target), constant)
    for batch in batches(5):
        value, (spk, mem) = step(*batch)
        assert torch.equal(value, loss(mem, batch[1])) and torch.equal(spk, (mem > 1).float())


def test_autocast(device):
    net = network(device)
    step = snn.TrainingStep(net, torch.optim.SGD(net.parameters(), 0.1), loss, constant, autocast=torch.bfloat16)
    exact = loss(net(constant(batches(1, device=device)[0][0])), batches(1, device=device)[0][1])
    for batch in batches(5, device=device):
        value, output = step(*batch)
        assert output.dtype == torch.bfloat16 and value.dtype == torch.float32
    assert net[0].weight.dtype == torch.float32 and net[0].weight.grad.dtype == torch.float32
    assert exact.isfinite() and value.isfinite()


def test_batches_elsewhere_are_copied_to_the_device(device):
    net = network(device)
    step = snn.TrainingStep(net, torch.optim.SGD(net.parameters(), 0.1), loss, constant, scores=scores)
    for batch in batches(5):
        value, correct = step(*batch)
    assert value.device.type == correct.device.type == device


def accumulated(net, optimizer, data, count, clip=None):
    """Losses of a plain loop that steps on the mean gradient of so many batches, and of what is left."""
    losses = []
    for first in range(0, len(data), count):
        optimizer.zero_grad()
        for x, target in data[first : first + count]:
            losses.append(loss(net(constant(x)), target))
            (losses[-1] / len(data[first : first + count])).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    return torch.stack(losses).detach()


@pytest.mark.parametrize("from_graphs", [False, True])
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("count", [1, 3])
def test_accumulated_and_clipped_gradients(recorded, monkeypatch, count, clip, from_graphs):
    data = batches(24) + batches(1, 5)
    net, other = network(), network()
    optimizer = adam(net)
    log = recorded(net, optimizer)
    if not from_graphs:
        monkeypatch.delitem(step_module._BACKENDS, "cpu")
    step = snn.TrainingStep(net, optimizer, loss, constant, accumulate=count, clip=clip, max_graphs=8)
    losses = torch.stack([step(*batch)[0] for batch in data])
    step.finish()
    expected = accumulated(other, adam(other), data, count, clip)
    torch.testing.assert_close(losses, expected)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert log.count("capture") == (0 if not from_graphs else count)


def test_float16_scales_the_loss_and_skips_what_overflows():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    step = snn.TrainingStep(net, optimizer, loss, constant, autocast=torch.float16, clip=1.0)
    before = copy.deepcopy(net.state_dict())
    x, target = batches(1)[0]
    scale = step.scaler.get_scale()
    for _ in range(12):
        step(x, target)
    # It begins with a scale at which gradients overflow, and halves it.
    assert step.scaler.get_scale() < scale
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    before = copy.deepcopy(net.state_dict())
    value, _ = snn.TrainingStep(
        net, optimizer, lambda spk, y: loss(spk, y) * float("inf"), constant, autocast=torch.float16
    )(x, target)
    assert not value.isfinite()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_accumulating_exchanges_gradients_once(monkeypatch):
    exchanges = []

    class Parallel(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.exchanges = module, True

        def forward(self, x):
            exchanges.append(self.exchanges)
            return self.module(x)

        @contextmanager
        def no_sync(self):
            self.exchanges = False
            yield
            self.exchanges = True

    monkeypatch.setattr(step_module, "DistributedDataParallel", Parallel)
    net = Parallel(network())
    step = snn.TrainingStep(net, torch.optim.SGD(net.parameters(), 0.1), loss, constant, accumulate=3)
    for batch in batches(6):
        step(*batch)
    assert exchanges == [False, False, True] * 2


def test_an_optimiser_that_evaluates_the_loss_itself():
    data = batches(3)
    net, other = network(), network()
    step = snn.TrainingStep(net, torch.optim.LBFGS(net.parameters(), 0.1, max_iter=3), loss, constant)
    optimizer = torch.optim.LBFGS(other.parameters(), 0.1, max_iter=3)
    for x, target in data:

        def closure(x=x, target=target):
            optimizer.zero_grad()
            value = loss(other(constant(x)), target)
            value.backward()
            return value

        assert torch.equal(step(x, target)[0], optimizer.step(closure).detach())
    assert_same(net, other)


def made(net=None, optimizer=None, objective=loss, **options):
    net = net or network()
    return snn.TrainingStep(net, optimizer or torch.optim.SGD(net.parameters(), 0.1), objective, **options)


def call(x=None, target=None, **options):
    default_x, default_target = batches(1)[0]
    return made(encode=constant, **options)(default_x if x is None else x, default_target if target is None else target)


MISTAKES = {
    "no model": (TypeError, "model must be a Module, got int", lambda: snn.TrainingStep(3, None, loss)),
    "no optimiser": (TypeError, "optimizer must be a Optimizer, got float", lambda: made(optimizer=0.1)),
    "no loss": (TypeError, "loss must be callable, got 'ce'", lambda: made(objective="ce")),
    "encode": (TypeError, "encode must be callable or None, got 'rate'", lambda: made(encode="rate")),
    "scores": (TypeError, "scores must be callable or None, got 1", lambda: made(scores=1)),
    "float64": (
        ValueError,
        "autocast must be None, torch.bfloat16 or torch.float16, got torch.float64",
        lambda: made(autocast=torch.double),
    ),
    "accumulate": (ValueError, "accumulate must be a whole number from 1, got 0", lambda: made(accumulate=0)),
    "clip": (TypeError, "clip must be a number or None, got str", lambda: made(clip="1")),
    "clip to nothing": (ValueError, "clip must be more than 0, got -1", lambda: made(clip=-1)),
    "accumulate for LBFGS": (
        ValueError,
        "accumulate and float16 are not for LBFGS",
        lambda: made(net := network(), torch.optim.LBFGS(net.parameters()), accumulate=2),
    ),
    "generators": (TypeError, "generators must hold torch.Generators, got int", lambda: made(generators=[3])),
    "max_graphs": (ValueError, "max_graphs must be a whole number from 0, got -1", lambda: made(max_graphs=-1)),
    "max_graphs is bool": (
        ValueError,
        "max_graphs must be a whole number from 0, got True",
        lambda: made(max_graphs=True),
    ),
    "no parameters": (
        ValueError,
        "model must have its parameters on one device, got no parameters",
        lambda: made(net=nn.Flatten(), optimizer=torch.optim.SGD(network().parameters(), 0.1)),
    ),
    "two devices": (
        ValueError,
        "model must have its parameters on one device, got cpu, meta",
        lambda: made(net=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))),
    ),
    "x is a list of numbers": (TypeError, "x and target must be tensors", lambda: call(x=[1.0, 2.0])),
    "target is a number": (
        TypeError,
        "x and target must be tensors or containers of tensors, got int",
        lambda: call(target=3),
    ),
    "loss per sample": (
        ValueError,
        "loss must return a scalar tensor, got shape (8,)",
        lambda: call(objective=lambda spk, y: F.cross_entropy(spk.sum(0), y, reduction="none")),
    ),
    "loss is a number": (
        ValueError,
        "loss must return a scalar tensor, got float",
        lambda: call(objective=lambda spk, y: loss(spk, y).item()),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_clear_line(name):
    kind, message, mistake = MISTAKES[name]
    with pytest.raises(kind, match=re.escape(message)):
        mistake()


def test_a_call_inside_autocast_is_refused(device):
    net = network(device)
    step = snn.TrainingStep(net, torch.optim.SGD(net.parameters(), 0.1), loss, constant)
    with torch.autocast(device, torch.bfloat16), pytest.raises(RuntimeError, match=r"inside torch.autocast: pass it"):
        step(*batches(1, device=device)[0])


def test_optimisers_that_no_graph_can_hold(recorded):
    net = network()
    optimizer = torch.optim.Adagrad(net.parameters(), 0.1)
    log = recorded(net, optimizer)
    with pytest.raises(ValueError, match=r"option capturable \(Adam, .*got Adagrad; pass such a one, or max_graphs=0"):
        snn.TrainingStep(net, optimizer, loss, constant)
    step = snn.TrainingStep(net, optimizer, loss, constant, max_graphs=0)
    for batch in batches(5):
        step(*batch)
    assert log == []
