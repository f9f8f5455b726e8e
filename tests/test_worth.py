"""Loops that gain nothing by waiting run as they are, and so do all layers that they go through."""

import pytest
import torch
from torch import nn

import snnfast as snn
from snnfast.loops import report
from snnfast.loops.functions import loops_of

pytestmark = pytest.mark.usefixtures("no_recorder_stays")


class Net(nn.Module):
    """Two layers; `others` operations a step go on with what the second one gave the step before, and run alone."""

    def __init__(self, others: int):
        super().__init__()
        self.others = others
        self.fc, self.lif = nn.Linear(5, 6), snn.Leaky(0.9, threshold=0.4)
        self.out, self.last = nn.Linear(6, 6), snn.Leaky(0.8, threshold=0.3)

    def forward(self, x):
        mem, mem2, back, spikes = self.lif.reset_mem(), self.last.reset_mem(), None, []
        for step in x:
            current = self.fc(step)
            for _ in range(self.others):
                current = current * 0.9 if back is None else current * 0.9 + back
            spk, mem = self.lif(current, mem)
            back, mem2 = self.last(self.out(spk), mem2)
            spikes.append(back)
        return torch.stack(spikes)


def story_of(net, steps: int, calls: int = 12, after: int = 0):
    """What is told of the loop of an accelerated net, each call of which is trained; small operations come after."""
    for _ in range(calls):
        spikes = net(torch.rand(steps, 2, 5))
        spikes.sum().backward()
        for _ in range(after):
            torch.relu(spikes.detach()[0])
    (story,) = report.stories.values()
    return story


def test_a_small_net_is_recorded_for_good():
    story = story_of(snn.accelerate(Net(0)), steps=8)
    assert not story.failures and story.recorded > 80 and not story.why


def test_a_loop_whose_steps_run_alone_is_left_and_its_layers_begin_no_other():
    net = snn.accelerate(Net(12))
    story = story_of(net, steps=4)
    assert story.failures == 1 and story.why.startswith("it gains less by waiting"), story.text()
    assert "larger batches, or fewer operations that need the step before, make it pay" in story.text()
    assert loops_of(net.lif).skip > 500 and loops_of(net.last).skip > 500


def test_what_is_seen_for_nothing_counts():
    story = story_of(snn.accelerate(Net(0)), steps=3, after=400)
    assert story.failures == 1 and story.why.startswith("it gains less by waiting"), story.text()


def test_a_seed_decides_alike_however_long_it_takes(monkeypatch):
    seen = []
    for tick in (1e-9, 5.0):
        clock = iter(range(10**9))
        monkeypatch.setattr("time.perf_counter", lambda tick=tick, clock=clock: next(clock) * tick)
        report.stories.clear()
        torch.manual_seed(0)
        story = story_of(snn.accelerate(Net(12)), steps=4)
        seen.append((story.plain, story.recorded, story.failures))
    assert seen[0] == seen[1]
