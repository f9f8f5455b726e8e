"""Train a spiking network on data of your own: python examples/own_data.py --data edges.

Two data sets stand here for yours: events of a camera (edges that move in four directions, made on the spot), and a
table of numbers (scikit-learn's wines). docs/howto/own_data.md says what to change for another one.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import snnfast as snn

STEPS = 16
SENSOR = (16, 16)


class MovingEdges(Dataset):
    """Event recordings of an edge that crosses the sensor to the right, left, down or up (label 0 to 3), with noise.

    Every recording has one polarity for its edge, bright or dark at random, so that no single frame shows where the
    edge goes: only the order of its events in time does.
    """

    def __init__(self, recordings: int, seed: int = 0):
        self._recordings, self._seed = recordings, seed

    def __len__(self) -> int:
        return self._recordings

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Recording `index`: counts [T, 2, H, W] and its label."""
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        label = int(torch.randint(4, (), generator=draw))
        return snn.bin_events(*self._events(label, draw), STEPS, SENSOR).clamp(max=1), label

    def _events(self, label: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = SENSOR[0]
        time = torch.arange(n).repeat_interleave(n)
        across = time if label % 2 == 0 else n - 1 - time
        along = torch.arange(n).repeat(n)
        seen = torch.rand(n * n, generator=draw) < 0.7
        jitter = 0.3 * torch.rand(n * n, generator=draw)
        x, y = (across, along) if label < 2 else (along, across)
        polarity = torch.randint(2, (), generator=draw).expand(n * n)
        noise = torch.randint(n, (3, 2 * n), generator=draw)
        return (
            torch.cat([(time + jitter)[seen], noise[0]]),
            torch.cat([x[seen], noise[1]]),
            torch.cat([y[seen], noise[2]]),
            torch.cat([polarity[seen], torch.randint(2, (2 * n,), generator=draw)]),
        )


class Task(NamedTuple):
    """What differs from one data set to the next. encode: a batch as the data set gives it -> [T, B, ...]."""

    train: Dataset
    test: Dataset
    network: nn.Module
    encode: Callable[[Tensor], Tensor]


def edges() -> Task:
    """Events, which are a sequence as they are: encoding only puts time first."""
    network = snn.Unroll(
        nn.Conv2d(2, 16, 5, stride=2, padding=2),
        snn.Leaky(beta=0.8, threshold=0.5),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        snn.Leaky(beta=0.8, threshold=0.5),
        nn.Flatten(),
        nn.Linear(32 * SENSOR[0] * SENSOR[1] // 16, 4),
        snn.Leaky(beta=0.9),
    )
    return Task(MovingEdges(1024), MovingEdges(256, seed=1), network, lambda x: x.transpose(0, 1))


def wines() -> Task:
    """A table: standardised, each row is fed as a constant current."""
    from sklearn.datasets import load_wine

    features, labels = map(torch.tensor, load_wine(return_X_y=True))
    seen, held_out = torch.randperm(len(labels)).split([128, len(labels) - 128])
    mean, deviation = features[seen].mean(0), features[seen].std(0)
    features = ((features - mean) / deviation).float()
    train, test = (TensorDataset(features[rows], labels[rows]) for rows in (seen, held_out))
    network = snn.Unroll(nn.Linear(13, 64), snn.Leaky(beta=0.9), nn.Linear(64, 3), snn.Leaky(beta=0.9))
    return Task(train, test, network, lambda x: x.expand(STEPS, *x.shape))


TASKS = {"edges": edges, "wines": wines}


def resident(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """All samples of a data set, stacked on the device: x [N, ...] and labels int64 [N]."""
    samples = [dataset[index] for index in range(len(dataset))]
    x, labels = zip(*samples, strict=True)
    return torch.stack(x).to(device), torch.tensor([int(label) for label in labels], device=device)


def scores(spk: Tensor) -> Tensor:
    """Spike count [B, classes] of the output spikes [T, B, classes]."""
    return spk.sum(0)


def loss(spk: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the spike counts."""
    return F.cross_entropy(scores(spk), target)


def train(task: Task, epochs: int, device: torch.device, batch_size: int = 64) -> list[float]:
    """Train, print a line per epoch, and return the test accuracy after each."""
    network = task.network.to(device)
    x, labels = resident(task.train, device)
    test_x, test_labels = resident(task.test, device)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    step = snn.TrainingStep(network, optimizer, loss, task.encode, scores=scores)
    history = []
    for epoch in range(1, epochs + 1):
        network.train()
        losses, right = [], []
        for index in torch.randperm(len(x), device=device).split(batch_size):
            batch_loss, correct = step(x[index], labels[index])
            losses.append(batch_loss)
            right.append(correct)
        history.append(accuracy(task, test_x, test_labels, batch_size))
        print(
            f"epoch {epoch}/{epochs}: loss {torch.stack(losses).mean():.3f}, "
            f"accuracy {sum(right) / len(x):.1%}, test accuracy {history[-1]:.1%}",
            flush=True,
        )
    return history


@torch.no_grad()
def accuracy(task: Task, x: Tensor, labels: Tensor, batch_size: int) -> float:
    """Share of x [N, ...] that the network gives its label."""
    task.network.eval()
    batches = zip(x.split(batch_size), labels.split(batch_size), strict=True)
    right = [(scores(task.network(task.encode(batch))).argmax(1) == label).sum() for batch, label in batches]
    return (sum(right) / len(x)).item()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (default: sys.argv) and return the exit code."""
    parser = argparse.ArgumentParser(description="Train a spiking network on data that is not MNIST.")
    parser.add_argument("--data", choices=TASKS, default="edges", help="what to learn (%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the data (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="fixes start and order (%(default)s)")
    args = parser.parse_args(arguments)
    if args.epochs < 1:
        parser.error(f"argument --epochs: {args.epochs} given, must be at least 1")
    torch.manual_seed(args.seed)
    train(TASKS[args.data](), args.epochs, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
