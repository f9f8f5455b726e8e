"""norse-recurrent: Norse's recurrent network 784-100-10 on images coded by LIF neurons.

100 LIF neurons, each connected with all others, see 32 steps of 1 ms; leaky integrators add up their weighted spikes,
and the digit is the integrator with the highest voltage. Reported: about 96.5 % on MNIST after 10 epochs.
"""

import torch
from torch import Tensor, nn

from recipes.coding import NORSE_ENCODERS, cells_of
from recipes.recipe import VOLTAGE, Recipe

HIDDEN = 100
CLASSES = 10


def network(library: str, shape: torch.Size) -> nn.Module:
    """From spikes [T, B, H, W] to voltages [T, B, 10]."""
    return (StepLoop if library == "norse" else Sequence)(cells_of(library), shape.numel())


class Sequence(nn.Module):
    """Each layer runs the whole sequence in one call."""

    def __init__(self, norse, pixels: int):
        super().__init__()
        self.l1 = norse.LIFRecurrent(pixels, HIDDEN, p=_parameters(norse))
        self.fc_out = nn.Linear(HIDDEN, CLASSES, bias=False)
        self.out = norse.LI()

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.l1(x.flatten(2))
        voltages, _ = self.out(self.fc_out(spikes))
        return voltages


class StepLoop(nn.Module):
    """The layers run step by step, as Norse's authors write it."""

    def __init__(self, norse, pixels: int):
        super().__init__()
        self.l1 = norse.LIFRecurrentCell(pixels, HIDDEN, p=_parameters(norse))
        self.fc_out = nn.Linear(HIDDEN, CLASSES, bias=False)
        self.out = norse.LICell()

    def forward(self, x: Tensor) -> Tensor:
        s1 = so = None
        voltages = []
        for step in x.flatten(2).unbind(0):
            z, s1 = self.l1(step, s1)
            vo, so = self.out(self.fc_out(z), so)
            voltages.append(vo)
        return torch.stack(voltages)


def _parameters(norse) -> tuple:
    return norse.LIFParameters(method="super", alpha=torch.tensor(100.0), v_th=torch.tensor(0.5))


RECIPE = Recipe(
    original="norse",
    network=network,
    encoders=NORSE_ENCODERS,
    readouts=VOLTAGE,
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3),
    steps=32,
    epochs=10,
    batch_size=256,
    membranes=lambda voltages: voltages,
)
