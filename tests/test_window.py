"""How many steps run at once: the rule, and that it costs no more memory than the loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cells
import snnfast as snn
from measure import peak_bytes
from snnfast.loops import recording, report
from snnfast.loops.settings import Settings
from snnfast.loops.window import AT_FIRST, IN_CACHE, SMALL, Stage, Windows, choose, every

CPU = torch.device("cpu")


def fully_connected(*sizes, batch):
    """The stages of linear layers with leaky neurons, in float32."""
    stages = []
    for given, made in zip(sizes, sizes[1:], strict=False):
        kept = 4 * batch * given if stages else 0
        stages.append(Stage(4 * batch * made, kept, 4 * given * made))
        stages.append(Stage(4 * batch * made, 4 * batch * made, is_step=True))
    return stages


def sizes(stages, steps, device=CPU):
    return choose(stages, steps, device)[0].sizes


@pytest.mark.parametrize("steps", [1, 2, 3, 25, 100, 2000])
@pytest.mark.parametrize("batch", [1, 32, 512])
def test_windows_cover_the_loop_and_stay_in_the_cache(steps, batch):
    found = sizes(fully_connected(100, 300, 10, batch=batch), steps)
    assert sum(found) == steps and min(found) >= 1
    assert max(found) * 4 * batch * 310 <= max(IN_CACHE, 2 * 4 * batch * 310)


def test_what_takes_no_more_than_the_loop_is_one_window():
    """The weights' gradients, of which the loop has several, outweigh the steps of small batches."""
    assert sizes(fully_connected(784, 1000, 10, batch=32), 25) == (25,)
    assert len(sizes(fully_connected(784, 1000, 10, batch=128), 25)) == 2
    assert SMALL > 4 * 100 * 2 * 16 and sizes(fully_connected(2, 16, 2, batch=2), 100) == (100,)


def test_the_last_window_is_the_smaller_the_more_a_step_takes():
    last = [sizes(fully_connected(100, 500, 10, batch=batch), 50)[-1] for batch in (1, 8, 16, 32, 64, 128)]
    assert last == sorted(last, reverse=True) and last[0] == 50 and last[-1] < 8


def test_windows_grow_by_what_those_after_them_have_freed():
    found = sizes(fully_connected(100, 500, 10, batch=128), 100)
    assert found[-1] < found[-6] < max(found) and len(found) < 10 and sorted(found[1:], reverse=True) == list(found[1:])


def convolutional(batch, loops=True):
    """The stages of a convolution, pooling that keeps a byte of each window, and neurons, twice; and of a readout."""
    stages, kept = [], 0
    for made, pooled, weights in ((12 * 24 * 24, 12 * 12 * 12, 300), (64 * 8 * 8, 64 * 4 * 4, 19200)):
        made, pooled = 4 * batch * made, 4 * batch * pooled
        stages += [Stage(made, kept, 4 * weights)]
        stages += [Stage(pooled, pooled // 4, loops=loops * (made + 2 * pooled)), Stage(pooled, pooled, is_step=True)]
        kept = pooled
    return [*stages, Stage(40 * batch, kept, 4 * 10240), Stage(40 * batch, 40 * batch, is_step=True)]


def test_what_the_loop_keeps_beside_leaves_room_for_longer_windows_all_alike():
    assert sizes(convolutional(128), 50) == (10,) * 5 and sizes(convolutional(128), 25) == (9, 8, 8)
    without = sizes(convolutional(128, loops=False), 50)
    assert sum(without) == 50 and without[-1] < 10


def test_windows_are_alike_where_that_is_no_more_of_them():
    found = sizes(fully_connected(784, 1000, 10, batch=128), 25)
    assert len(found) == 2 and max(found) - min(found) <= 1


def test_steps_too_large_for_the_cache_run_several_at_once_in_training_where_memory_allows():
    kept = [Stage(IN_CACHE, IN_CACHE, is_step=True, loops=2 * IN_CACHE)]
    assert sizes(kept, 48) == (8,) * 6 and sizes(kept, None) == (2,)
    assert sizes([Stage(IN_CACHE, 0, is_step=True)], 48) == (2,)


def test_why_windows_are_as_long_as_they_are_is_said_as_it_is():
    small, large = Stage(1 << 16, 1 << 16, is_step=True), Stage(IN_CACHE, IN_CACHE, is_step=True, loops=2 * IN_CACHE)
    assert "spikes of a window take up to 16 MiB" in choose([small], 1000, CPU)[1]
    why = choose([large], 48, CPU)[1]
    assert "take up to" not in why and "up to 8 steps, whose spikes take more than 16 MiB" in why


def test_without_a_backward_the_cache_is_the_limit():
    stages = [Stage(1 << 20, 0), Stage(1 << 20, 0, is_step=True)]
    assert sizes(stages, 40) == (14,) and Windows((14,)).split(range(40))[-1] == tuple(range(28, 40))
    assert sizes(stages, 10) == (10,)


def test_a_loop_of_unknown_length():
    assert sizes(fully_connected(100, 500, 10, batch=32), None) == (AT_FIRST,)


def test_splitting():
    assert Windows((3, 2, 1)).split("abcdef") == [tuple("abc"), tuple("de"), ("f",)]
    assert Windows((3, 2, 1)).split("abc") == [tuple("abc")]
    assert every(2, 5).split("abcde") == [tuple("ab"), tuple("cd"), ("e",)]
    assert every(9, 5).split("abcde") == [tuple("abcde")]


class Stepped(nn.Module):
    def __init__(self, *sizes):
        super().__init__()
        self.fcs = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        self.lifs = nn.ModuleList(snn.Leaky(0.9) for _ in sizes[1:])

    def forward(self, x):
        mems, spikes = [lif.init_leaky() for lif in self.lifs], []
        for step in range(len(x)):
            spk = x[step]
            for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
                spk, mems[i] = lif(fc(spk), mems[i])
            self.look(step, spk)
            spikes.append(spk)
        return torch.stack(spikes)

    def look(self, step, spk):
        pass


def training(net, x, way):
    labels = torch.zeros(x.shape[1], dtype=torch.long, device=x.device)
    net = net.to(x.device)
    if way == "compiled":
        torch._dynamo.reset()
        snn.accelerate(net, compile=True)

    def train():
        with recording.region(Settings() if way == "recorded" else None):
            net.zero_grad()
            F.cross_entropy(net(x).sum(0), labels).backward()

    for _ in range(3):
        train()
    return train


NETS = {
    "small": ((100, 100, 10), 25, 8),
    "weights outweigh": ((784, 500, 10), 25, 16),
    "steps outweigh": ((100, 500, 10), 25, 32),
}


@pytest.mark.parametrize("way", ["recorded", "compiled"])
@pytest.mark.parametrize("name", NETS)
def test_training_needs_no_more_memory_than_the_loop(name, way, device):
    layers, steps, batch = NETS[name]
    x = torch.rand(steps, batch, layers[0], device=device)
    peaks = [peak_bytes(training(Stepped(*layers), x, one), torch.device(device)) for one in ("plain", way)]
    assert peaks[1] <= peaks[0], peaks


class OfOnesOwn(Stepped):
    """With neurons of the user's own in the place of the library's."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.lifs = nn.ModuleList(cells.ZeroReset() for _ in sizes[1:])

    def forward(self, x):
        mems, spikes = [torch.zeros(x.shape[1], fc.out_features, device=x.device) for fc in self.fcs], []
        for spk in x:
            for i, (fc, lif) in enumerate(zip(self.fcs, self.lifs, strict=True)):
                spk, mems[i] = lif(fc(spk), mems[i])
            spikes.append(spk)
        return torch.stack(spikes)


def test_neurons_of_ones_own_need_no_more_memory_than_the_loop():
    """Of which it keeps the current alone, where the loop keeps both factors of a product: that is room for all steps
    at once."""
    layers, x = (50, 400, 400, 10), torch.rand(40, 64, 50)
    trains = [training(OfOnesOwn(*layers), x, way) for way in ("plain", "recorded")]
    (story,) = [story for story in report.stories.values() if story.own]
    before = story.windows
    peaks = [peak_bytes(train, CPU) for train in trains]
    assert peaks[1] <= peaks[0], peaks
    assert story.windows - before <= 2, story.text()


class Looking(Stepped):
    """Looks at the spikes of its first step."""

    def look(self, step, spk):
        assert step or spk.sum().item() >= 0


def test_a_loop_that_is_looked_at_in_its_first_step_is_planned_for_what_follows(device):
    """Windows were as long as the steps before the look: one each."""
    net, x = Looking(100, 50, 10), torch.rand(25, 8, 100, device=device)
    train = training(net, x, "recorded")
    ((_, period),) = net.lifs[0]._loops.periods
    story = net.lifs[0]._loops.story
    before = story.windows
    train()
    assert story.windows - before <= 2 + len(period.windows_of(len(x))), story.text()


def test_a_recorded_loop_is_planned_by_the_length_of_the_last(device):
    net, x = Stepped(100, 500, 10), torch.rand(25, 32, 100, device=device)
    train = training(net, x, "recorded")
    ((_, period),) = net.lifs[0]._loops.periods
    assert period.length == len(x) and sum(period.windows_of(period.length)) == len(x)
    story = net.lifs[0]._loops.story
    before = story.windows
    train()
    assert story.windows - before == len(period.windows_of(len(x)))
