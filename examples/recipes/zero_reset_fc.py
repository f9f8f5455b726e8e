"""zero-reset-fc: a fully connected network 784-512-256-10 of neurons that its author wrote in plain PyTorch.

The neurons fire at the threshold, are reset to zero in the same step, and let a gradient through that reset. They see
10 steps of Bernoulli spikes in training and 100 in evaluation; the digit is the output neuron that fires most often.
Reported: 97.5 % on MNIST.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipes.coding import rate
from recipes.recipe import COUNT, Recipe

HIDDEN = (512, 256)
CLASSES = 10
BETA = 0.95
SLOPE = 10


def network(library: str, shape: torch.Size) -> nn.Module:
    """From spikes [T, B, pixels] to spikes [T, B, 10]."""
    if library == "torch":
        return StepLoop(*_layers(ZeroResetLIF, shape.numel()))
    import snnfast as snn

    def leaky() -> nn.Module:
        spike_grad = snn.surrogate.logistic(SLOPE, inclusive=True)
        return snn.Leaky(BETA, spike_grad=spike_grad, reset_mechanism="zero", reset_delay=False)

    return snn.Unroll(*_layers(leaky, shape.numel()))


class LogisticSpike(torch.autograd.Function):
    """Fires where u >= 0; the derivative is s (1 - s) with s = logistic(10 u), without logistic's own factor of 10."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        s = torch.sigmoid(SLOPE * u)
        return gradient * s * (1 - s)


class ZeroResetLIF(nn.Module):
    """One step of the author's neurons: current and membrane [B, N] to (spikes, membrane)."""

    def forward(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        mem = BETA * mem + x
        spk = LogisticSpike.apply(mem - 1.0)
        return spk, mem * (1 - spk)


class StepLoop(nn.Sequential):
    """The layers run step by step, as the author writes it."""

    def forward(self, x: Tensor) -> Tensor:
        """Run spikes [T, B, pixels] through the layers, from resting neurons, to [T, B, 10]."""
        fc1, lif1, fc2, lif2, fc3, lif3 = self
        mem1, mem2, mem3 = (x.new_zeros(x.shape[1], fc.out_features) for fc in (fc1, fc2, fc3))
        spikes = []
        for step in x.unbind(0):
            spk1, mem1 = lif1(fc1(step), mem1)
            spk2, mem2 = lif2(fc2(spk1), mem2)
            spk3, mem3 = lif3(fc3(spk2), mem3)
            spikes.append(spk3)
        return torch.stack(spikes)


def _layers(neuron: Callable[[], nn.Module], pixels: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((pixels, *HIDDEN), (*HIDDEN, CLASSES), strict=True):
        layers += [nn.Linear(inputs, outputs), neuron()]
    return layers


RECIPE = Recipe(
    original="torch",
    network=network,
    encoders={"rate": rate},
    readouts=COUNT,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    steps=10,
    test_steps=100,
    epochs=5,
    batch_size=128,
    seed=42,
    spikes=lambda spikes: spikes,
)
