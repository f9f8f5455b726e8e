"""current-fc: a fully connected network 784-512-10 that is fed the pixels themselves, the same at every step.

Two layers of snnTorch's Leaky neurons (beta 0.95, arctangent surrogate, reset by subtraction) run for 200 steps. The
output membranes are trained at every step; the digit is the output neuron that fires most often. Reported: 95.54 % on
MNIST, as the mean of minibatches.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.loops import StepLoop
from recipes.recipe import Readout, Recipe, spike_count

HIDDEN = 512
CLASSES = 10
BETA = 0.95


def network(library: str, shape: torch.Size) -> nn.Module:
    """From currents [T, B, pixels] to spikes and membranes, both [T, B, 10]."""
    if library == "snntorch":
        import snntorch

        return StepLoop(*_layers(snntorch.Leaky, shape.numel()))
    import snnfast

    return snnfast.Unroll(*_layers(snnfast.Leaky, shape.numel()))


def encode(images: Tensor, steps: int, generator: torch.Generator, library: str) -> Tensor:
    """The pixels at every step, in the memory of one."""
    return images.flatten(1).expand(steps, -1, -1)


def membrane_loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """The sum over time of the cross-entropy of the membranes of each step."""
    _, mem = output
    steps = len(mem)
    return steps * F.cross_entropy(mem.flatten(0, 1), target.repeat(steps))


def _layers(leaky: type[nn.Module], pixels: int) -> list[nn.Module]:
    return [
        nn.Linear(pixels, HIDDEN),
        leaky(beta=BETA),
        nn.Linear(HIDDEN, CLASSES),
        leaky(beta=BETA, output=True),
    ]


RECIPE = Recipe(
    original="snntorch",
    network=network,
    encoders={"current": encode},
    readouts={"count": Readout(lambda output: spike_count(output[0]), membrane_loss)},
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=5e-4),
    steps=200,
    epochs=3,
    batch_size=512,
    drop_last=True,
    spikes=lambda output: output[0],
    membranes=lambda output: output[1],
    threshold=1.0,
)
