"""poisson-fc: a fully connected network 784-128-10 on Poisson-coded images.

Two layers of snnTorch's Leaky neurons (beta 0.9, fast-sigmoid surrogate, reset by subtraction) see 50 steps of 1 ms in
which the brightest pixel fires at 100 Hz.
Trained on 10,000 images; the digit is the output neuron that fires most often.
"""

import torch
from torch import Tensor, nn

from recipes.loops import StepLoop
from recipes.recipe import COUNT, Recipe
from snnfast import encoding

HIDDEN = 128
CLASSES = 10
BETA = 0.9
SLOPE = 25


def network(library: str, shape: torch.Size) -> nn.Module:
    """From spikes [T, B, pixels] to spikes [T, B, 10]."""
    if library == "snntorch":
        import snntorch

        return StepLoop(*_layers(snntorch, shape.numel()))
    import snnfast

    return snnfast.Unroll(*_layers(snnfast, shape.numel()))


def encode(images: Tensor, steps: int, generator: torch.Generator, library: str) -> Tensor:
    """Every pixel fires at up to 100 Hz; new spikes every time that an image is shown."""
    return encoding.poisson(images.flatten(1), steps, max_rate_hz=100.0, dt=1e-3, generator=generator)


def _layers(snn, pixels: int) -> list[nn.Module]:
    def leaky() -> nn.Module:
        return snn.Leaky(beta=BETA, spike_grad=snn.surrogate.fast_sigmoid(slope=SLOPE))

    return [nn.Linear(pixels, HIDDEN), leaky(), nn.Linear(HIDDEN, CLASSES), leaky()]


RECIPE = Recipe(
    original="snntorch",
    network=network,
    encoders={"poisson": encode},
    readouts=COUNT,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-5),
    steps=50,
    epochs=15,
    batch_size=64,
    subset=10_000,
    spikes=lambda spikes: spikes,
)
