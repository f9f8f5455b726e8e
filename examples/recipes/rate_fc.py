"""rate-fc: snnTorch's fully connected network 784-1000-10 on rate-coded images.

Two layers of Leaky neurons (beta 0.95, arctangent surrogate, reset by subtraction) see 25 steps of
Bernoulli spikes; the digit is the output neuron that fires most often. Reported: 97.63 % on MNIST.
"""

import torch
from torch import nn

from recipes.coding import rate
from recipes.loops import StepLoop
from recipes.recipe import COUNT, Recipe

HIDDEN = 1000
CLASSES = 10
BETA = 0.95


def network(library: str, shape: torch.Size) -> nn.Module:
    """From spikes [T, B, pixels] to spikes [T, B, 10]."""
    if library == "snntorch":
        import snntorch

        return StepLoop(*_layers(snntorch.Leaky, shape.numel()))
    import snnfast

    return snnfast.Unroll(*_layers(snnfast.Leaky, shape.numel()))


def _layers(leaky: type[nn.Module], pixels: int) -> list[nn.Module]:
    return [
        nn.Linear(pixels, HIDDEN),
        leaky(beta=BETA),
        nn.Linear(HIDDEN, CLASSES),
        leaky(beta=BETA),
    ]


RECIPE = Recipe(
    original="snntorch",
    network=network,
    encoders={"rate": rate},
    readouts=COUNT,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-4, betas=(0.9, 0.999)),
    steps=25,
    epochs=2,
    batch_size=128,
    spikes=lambda spikes: spikes,
)
