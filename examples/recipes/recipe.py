"""What a recipe consists of, and the readouts that several recipes share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Readout(NamedTuple):
    """What is made of a network's output.

    Attributes:
        scores: output to [B, 10]; the prediction is the largest.
        loss: (output, target [B]) to a scalar, the mean over the batch.
    """

    scores: Callable[..., Tensor]
    loss: Callable[..., Tensor]


def by_scores(scores: Callable[..., Tensor]) -> Readout:
    """The readout whose loss is the cross-entropy of its scores."""
    return Readout(scores, lambda output, target: F.cross_entropy(scores(output), target))


def spike_count(spikes: Tensor) -> Tensor:
    """Spike count [B, 10] of spikes [T, B, 10]."""
    return spikes.sum(0)


COUNT = {"count": by_scores(spike_count)}
"""Networks that put out spikes: the digit is the output neuron that fires most often."""

# The cross-entropy of the scores is Norse's negative log-likelihood of their log-softmax.
VOLTAGE = {
    "maximum": by_scores(lambda voltages: voltages.max(0).values),
    "last": by_scores(lambda voltages: voltages[-1]),
}
"""Networks that put out voltages [T, B, 10]: their maximum over time, or the last."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A reference system: its network, and how its authors fed and trained it.

    Attributes:
        original: the library that the authors used: "snntorch", "norse", or "torch" for neurons of their own.
        network: (library, image shape [H, W]) to a module from what the encoder gives to an output over time, with
            initial weights from torch's seed: the same parameters, by the same names, whatever the library.
        encoders: by name, the authors' first: (images [B, H, W] from 0 to 1, steps, generator, library) to spikes or
            currents [T, B, ...]: the same whatever the library, which only says whose code computes them.
        readouts: by name, the authors' first.
        optimizer: parameters to an optimizer.
        steps: number of time steps in training.
        epochs, batch_size, seed: what the authors trained with.
        test_steps: number of time steps in evaluation. Default: as in training.
        subset: train on so many images, drawn by the seed. Default: on all.
        drop_last: leave out an epoch's last batch if it is not full.
        smallest_image: least height and width that the network takes.
        spikes: output to the output neurons' spikes [T, B, 10]. None: they do not fire.
        membranes: output to their membranes [T, B, 10]. None: it has none.
        threshold: at which they fire, where there are membranes.
    """

    original: str
    network: Callable[[str, torch.Size], nn.Module]
    encoders: Mapping[str, Callable[[Tensor, int, torch.Generator, str], Tensor]]
    readouts: Mapping[str, Readout]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    steps: int
    epochs: int
    batch_size: int
    seed: int = 0
    test_steps: int | None = None
    subset: int | None = None
    drop_last: bool = False
    smallest_image: int = 1
    spikes: Callable[..., Tensor] | None = None
    membranes: Callable[..., Tensor] | None = None
    threshold: float | None = None

    @property
    def libraries(self) -> tuple[str, ...]:
        """Whose neurons it runs on; "reference" are snnfast's as a loop in plain PyTorch."""
        return ("snnfast", self.original, "reference")
