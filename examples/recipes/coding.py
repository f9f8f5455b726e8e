"""From images to spikes over time: the codings that several recipes share."""

from types import ModuleType

import torch
from torch import Tensor

from snnfast import encoding

MNIST_MEAN, MNIST_DEVIATION = 0.1307, 0.3081


def rate(images: Tensor, steps: int, generator: torch.Generator, library: str) -> Tensor:
    """Images [B, H, W] to spikes [T, B, H * W]: a pixel fires with a probability equal to its brightness."""
    return encoding.rate(images.flatten(1), steps, generator=generator)


def cells_of(library: str) -> ModuleType:
    """The module with Norse's names: Norse's own for "norse", else snnfast's."""
    if library == "norse":
        import norse.torch as norse
    else:
        import snnfast.norse as norse
    return norse


def constant_current(images: Tensor, steps: int, generator: torch.Generator, library: str) -> Tensor:
    """Images [B, H, W] to the spikes [T, B, H, W] of LIF neurons that each normalised pixel drives."""
    return cells_of(library).ConstantCurrentLIFEncoder(steps)(_normalized(images))


def spike_latency(images: Tensor, steps: int, generator: torch.Generator, library: str) -> Tensor:
    """The first spikes of `constant_current`."""
    return cells_of(library).SpikeLatencyLIFEncoder(steps)(_normalized(images))


def poisson_20hz(images: Tensor, steps: int, generator: torch.Generator, library: str) -> Tensor:
    """Images [B, H, W] to random spikes [T, B, H, W] at 20 Hz for a normalised pixel of 1."""
    return encoding.poisson(_normalized(images), steps, max_rate_hz=20.0, dt=1e-3, generator=generator)


NORSE_ENCODERS = {"constant-current": constant_current, "poisson": poisson_20hz, "spike-latency": spike_latency}


def _normalized(images: Tensor) -> Tensor:
    return (images - MNIST_MEAN) / MNIST_DEVIATION
