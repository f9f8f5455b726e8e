"""norse-conv: Norse's convolutional network on images coded by LIF neurons.

Two convolutions and a Linear, each followed by LIF neurons, see 48 steps of 1 ms; leaky integrators add up the weighted
spikes, and the digit is the integrator with the highest voltage.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.coding import NORSE_ENCODERS, cells_of
from recipes.recipe import VOLTAGE, Recipe
from snnfast import images

CHANNELS = (20, 50)
KERNEL = 5
HIDDEN = 500
CLASSES = 10


def network(library: str, shape: torch.Size) -> nn.Module:
    """From spikes [T, B, H, W] to voltages [T, B, 10]."""
    return (StepLoop if library == "norse" else Sequence)(cells_of(library), shape)


class ConvNet(nn.Module):
    """The layers with weights; the neurons have none."""

    def __init__(self, norse, shape: torch.Size):
        super().__init__()
        height, width = (((side - KERNEL + 1) // 2 - KERNEL + 1) // 2 for side in shape)
        self.conv1 = nn.Conv2d(1, CHANNELS[0], KERNEL)
        self.conv2 = nn.Conv2d(*CHANNELS, KERNEL)
        self.fc1 = nn.Linear(height * width * CHANNELS[1], HIDDEN)
        self.out = norse.LILinearCell(HIDDEN, CLASSES)
        self.p = norse.LIFParameters(method="super", alpha=torch.tensor(80.0))


class Sequence(ConvNet):
    """Each layer of neurons runs the whole sequence in one call, each other layer all T * B images at once."""

    def __init__(self, norse, shape: torch.Size):
        super().__init__(norse, shape)
        self.lif0, self.lif1, self.lif2 = (norse.LIF(self.p) for _ in range(3))
        self.li = norse.LI()

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[:2]
        z = images.conv2d(x.flatten(0, 1).unsqueeze(1), self.conv1.weight, self.conv1.bias)
        z, _ = self.lif0(z.unflatten(0, steps))
        z = images.max_pool2d(z.flatten(0, 1), 2, 2)
        z = 10 * images.conv2d(z, self.conv2.weight, self.conv2.bias)
        z, _ = self.lif1(z.unflatten(0, steps))
        z = images.max_pool2d(z.flatten(0, 1), 2, 2)
        z, _ = self.lif2(self.fc1(z.flatten(1)).unflatten(0, steps))
        voltages, _ = self.li(F.linear(F.relu(z), self.out.input_weights))
        return voltages


class StepLoop(ConvNet):
    """The layers run step by step, as Norse's authors write it."""

    def __init__(self, norse, shape: torch.Size):
        super().__init__(norse, shape)
        self.lif0, self.lif1, self.lif2 = (norse.LIFCell(self.p) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        s0 = s1 = s2 = so = None
        voltages = []
        for step in x.unsqueeze(2).unbind(0):
            z, s0 = self.lif0(self.conv1(step), s0)
            z = F.max_pool2d(z, 2, 2)
            z, s1 = self.lif1(10 * self.conv2(z), s1)
            z = F.max_pool2d(z, 2, 2)
            z, s2 = self.lif2(self.fc1(z.flatten(1)), s2)
            v, so = self.out(F.relu(z), so)
            voltages.append(v)
        return torch.stack(voltages)


RECIPE = Recipe(
    original="norse",
    network=network,
    encoders=NORSE_ENCODERS,
    readouts=VOLTAGE,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    steps=48,
    epochs=5,
    batch_size=256,
    smallest_image=16,
    membranes=lambda voltages: voltages,
)
