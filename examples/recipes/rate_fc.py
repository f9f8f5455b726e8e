"""rate-fc: snnTorch's fully connected network 784-1000-10 on rate-coded images.

Two layers of Leaky neurons (beta 0.95, arctangent surrogate, reset by subtraction) see 25 steps of
Bernoulli spikes; the digit is the output neuron that fires most often. Reported: 97.63 % on MNIST.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 25
HIDDEN = 1000
CLASSES = 10
BETA = 0.95
EPOCHS = 2
BATCH_SIZE = 128


def network(library: str, pixels: int) -> nn.Module:
    """Build the network on the neurons of `library`: "snnfast", "reference" or "snntorch".

    All three have the same parameters under the same names, drawn in the same order.
    """
    if library == "snntorch":
        import snntorch

        return StepLoop(*_layers(snntorch.Leaky, pixels))
    import snnfast

    return snnfast.Unroll(*_layers(snnfast.Leaky, pixels))


def encode(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rate coding: float images [B, H, W] from 0 to 1 to spikes [T, B, H * W] of the same dtype.

    Every pixel fires in every step with a probability equal to its brightness.
    """
    brightness = images.flatten(1)
    return torch.bernoulli(brightness.expand(STEPS, *brightness.shape), generator=generator)


def loss(spikes: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the spike counts of spikes [T, B, 10] against target [B]."""
    return F.cross_entropy(scores(spikes), target)


def scores(spikes: Tensor) -> Tensor:
    """Spike count [B, 10] of spikes [T, B, 10]."""
    return spikes.sum(0)


def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam as the authors set it."""
    return torch.optim.Adam(parameters, lr=5e-4, betas=(0.9, 0.999))


class StepLoop(nn.Sequential):
    """The layers run step by step, as snnTorch's authors write it."""

    def forward(self, x: Tensor) -> Tensor:
        """Run spikes [T, B, pixels] through the layers, from resting neurons, to [T, B, 10]."""
        fc1, lif1, fc2, lif2 = self
        mem1, mem2 = lif1.reset_mem(), lif2.reset_mem()
        spikes = []
        for step in x.unbind(0):
            spk1, mem1 = lif1(fc1(step), mem1)
            spk2, mem2 = lif2(fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


def _layers(leaky: type[nn.Module], pixels: int) -> list[nn.Module]:
    return [
        nn.Linear(pixels, HIDDEN),
        leaky(beta=BETA),
        nn.Linear(HIDDEN, CLASSES),
        leaky(beta=BETA),
    ]
