"""What a loop does the same at every step is done once, though its first step runs before the loop is known again."""

import copy

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import snnfast as snn
from snnfast.loops import recording

B, STEPS = 3, 7


class Net(nn.Module):
    """Two layers, of which the first has the same current at every step."""

    def __init__(self):
        super().__init__()
        self.fc, self.other, self.lif = nn.Linear(5, 6), nn.Linear(5, 6), snn.Leaky(0.9, threshold=0.4)
        self.out, self.last = nn.Linear(6, 4), snn.Leaky(0.8, threshold=0.3)


def unchanged(net, x, t, current):
    return current


def current_is_written(net, x, t, current):
    return current.mul_(0.5) if t == 0 and not current.requires_grad else current


def input_is_written(net, x, t, current):
    if t == 0 and not net.training:
        x.mul_(0.5)
    return current


def input_is_written_unseen(net, x, t, current):
    if t == 0:
        x.data.mul_(0.5)
    return current


def weight_is_written(net, x, t, current):
    if t == 0 and not net.training:
        net.fc.weight.mul_(0.5)
    return current


def weight_is_written_aside(net, x, t, current):
    if t == 0 and not net.training:
        with torch._C.DisableTorchFunction():
            net.fc.weight.mul_(0.5)
    return current


def first_is_anothers(net, x, t, current):
    return net.other(x) if t == 0 else current


def first_has_no_gradient(net, x, t, current):
    if t > 0:
        return current
    with torch.no_grad():
        return [net.fc(x), net.fc(x)][1]


def first_is_a_copy(net, x, t, current):
    return current.clone() if t == 0 else current


CHANGES = [
    unchanged,
    current_is_written,
    input_is_written,
    input_is_written_unseen,
    weight_is_written,
    weight_is_written_aside,
    first_is_anothers,
    first_has_no_gradient,
    first_is_a_copy,
]


def loop(net, x, change):
    mem, mem2, mems = net.lif.init_leaky(), net.last.init_leaky(), []
    for t in range(STEPS):
        spk, mem = net.lif(change(net, x, t, net.fc(x)), mem)
        spk, mem2 = net.last(net.out(spk), mem2)
        mems.append(mem2)
    return torch.stack(mems)


def passes(net, change, count=5) -> list:
    """Training and evaluation in turn, each of its own input."""
    seen = []
    for number in range(count):
        inputs = torch.rand(2, B, 5, generator=torch.Generator().manual_seed(number), dtype=torch.float64) * 2
        net.train()
        net.zero_grad()
        out = loop(net, inputs[0], change)
        out.square().sum().backward()
        seen += [out.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]
        net.eval()
        with torch.no_grad():
            seen.append(loop(net, inputs[1], change))
    return seen


@pytest.fixture(autouse=True)
def _no_recorder_stays():
    yield
    recording.stop()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_was_computed_before_is_taken_over_only_if_it_is_the_loops(change):
    torch.manual_seed(0)
    net = Net().double()
    expected = passes(copy.deepcopy(net), change)
    found = passes(snn.accelerate(copy.deepcopy(net)), change)
    assert len(found) == len(expected) and expected[0].unique().numel() > 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_constant_current_is_computed_once_a_pass():
    net = snn.accelerate(Net().double())
    passes(net, unchanged)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as seen:
        passes(net, unchanged, count=2)
    products = [event for event in seen.events() if event.name == "aten::addmm" and [B, 5] in event.input_shapes]
    assert len(products) == 4, len(products)
    assert not [event for event in seen.events() if event.name == "aten::flip"], "the steps were laid side by side"
