"""Data that is not MNIST: the example learns, events land in their bins, and the guide's code runs as it is printed."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from snnfast import bin_events

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import own_data  # noqa: E402

sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def learnt():
    """The events' task, trained on a part of its recordings, and its test accuracies, the first before training."""
    torch.manual_seed(0)
    task = own_data.edges()._replace(train=own_data.MovingEdges(512), test=own_data.MovingEdges(128, seed=1))
    untrained = own_data.accuracy(task, *own_data.resident(task.test, torch.device("cpu")), 32)
    return task, [untrained, *own_data.train(task, 3, torch.device("cpu"), batch_size=32)]


def test_learns_to_see_movement(learnt):
    _, history = learnt
    assert len(history) == 4 and history[0] < 0.4 and history[-1] > 0.95


def test_it_is_the_order_in_time_that_is_learnt(learnt):
    task, _ = learnt
    x, labels = own_data.resident(own_data.MovingEdges(128, seed=2), torch.device("cpu"))
    opposite = labels ^ 1
    assert own_data.accuracy(task, x.flip(1), opposite, 32) > 0.95
    assert own_data.accuracy(task, x.flip(1), labels, 32) < 0.05


def test_the_script_learns_a_table(capsys):
    assert own_data.main(["--data", "wines", "--epochs", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[0].startswith("epoch 1/8: loss ")
    first, last = (float(re.search(r"test accuracy (.*)%", line).group(1)) for line in (lines[0], lines[-1]))
    assert last > 85 and last > first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--data", "mnist"], "argument --data: invalid choice"), (["--epochs", "0"], "argument --epochs: 0 given")],
)
def test_mistakes_on_the_command_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        own_data.main(arguments)
    assert message in capsys.readouterr().err


def test_the_same_recording_every_time():
    recordings = own_data.MovingEdges(40)
    x, label = recordings[3]
    again, same = recordings[3]
    assert torch.equal(x, again) and label == same
    assert x.shape == (own_data.STEPS, 2, *own_data.SENSOR) and set(x.unique().tolist()) == {0.0, 1.0}
    assert {recordings[index][1] for index in range(40)} == {0, 1, 2, 3}
    assert not torch.equal(x, own_data.MovingEdges(40, seed=1)[3][0])


def test_resident_holds_any_dataset(device):
    x, labels = own_data.resident(TensorDataset(torch.arange(6.0).view(3, 2), torch.tensor([2, 0, 1])), device)
    assert x.device.type == labels.device.type == device and labels.dtype == torch.int64
    assert x.tolist() == [[0, 1], [2, 3], [4, 5]] and labels.tolist() == [2, 0, 1]


def test_events_land_in_their_bins():
    t = torch.tensor([10, 12, 19, 20, 14, 14])
    x, y = torch.tensor([0, 2, 1, 2, 1, 1]), torch.tensor([0, 0, 1, 1, 0, 0])
    p = torch.tensor([0, 1, 0, 1, 1, 1])
    counts = bin_events(t, x, y, p, steps=5, size=(2, 3))
    expected = torch.zeros(5, 2, 2, 3)
    expected[0, 0, 0, 0] = expected[1, 1, 0, 2] = expected[4, 0, 1, 1] = expected[4, 1, 1, 2] = 1
    expected[2, 1, 0, 1] = 2
    assert torch.equal(counts, expected)


def test_a_span_keeps_the_events_within():
    t = torch.tensor([-0.1, 0.0, 0.49, 0.5, 1.0, 1.01])
    zero = torch.zeros(6, dtype=torch.int64)
    counts = bin_events(t, zero, zero, zero.bool(), steps=2, size=(1, 1), span=(0.0, 1.0))
    assert counts.flatten().tolist() == [2, 0, 2, 0]


def test_no_events_and_events_at_one_time():
    none = torch.zeros(0, dtype=torch.int64)
    assert bin_events(none, none, none, none, 3, (2, 2)).eq(0).all()
    assert bin_events(none, none, none, none, 3, (2, 2)).shape == (3, 2, 2, 2)
    one = torch.ones(4, dtype=torch.int64)
    assert bin_events(7 * one, one, one, one, 3, (2, 2)).sum() == 4


def test_late_microseconds_are_told_apart():
    t = 1_700_000_000_000_000 + torch.arange(4)
    zero = torch.zeros(4, dtype=torch.int64)
    assert bin_events(t, zero, zero, zero, 4, (1, 1))[:, 0, 0, 0].tolist() == [1, 1, 1, 1]


EVENTS = {name: torch.tensor([0, 1]) for name in "txyp"}
MISTAKES = {
    "a column too far": ({"x": torch.tensor([0, 5])}, "x must be from 0 to 3, got 0 to 5"),
    "a row below 0": ({"y": torch.tensor([-1, 1])}, "y must be from 0 to 1, got -1 to 1"),
    "polarity -1": ({"p": torch.tensor([-1, 1])}, "p must be from 0 to 1, got -1 to 1"),
    "one time missing": ({"t": torch.tensor([0])}, r"one shape \[events\], got \(1,\), \(2,\), \(2,\), \(2,\)"),
    "a matrix": ({name: torch.zeros(2, 2).long() for name in "txyp"}, r"one shape \[events\], got \(2, 2\)"),
    "no steps": ({"steps": 0}, "steps must be at least 1 and span increase, got 0 and None"),
    "an empty span": ({"span": (1, 1)}, r"steps must be at least 1 and span increase, got 4 and \(1, 1\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_events_are_named(name):
    changed, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        bin_events(**(EVENTS | {"steps": 4, "size": (2, 4)} | changed))


def test_the_guides_code_runs(capsys):
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "howto" / "own_data.md").read_text(), re.MULTILINE | re.DOTALL
    )
    namespace = {}
    torch.manual_seed(0)
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/howto/own_data.md, block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    losses = [float(value) for value in re.findall(r"loss (\S+),", printed)]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert printed.count("% of the steps have a spike") == 2
    assert namespace["frames"].sum() > 0 and namespace["spk"].shape == (12, 2, 2)
