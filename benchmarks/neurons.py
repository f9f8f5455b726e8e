"""Elementwise neurons as a user writes them in plain PyTorch, for the bench cells: (x, state) -> (out, state)."""

import math

import torch
from torch import nn

import published
from contenders import BETA, THRESHOLD


class AtanSpike(torch.autograd.Function):
    """Fires where u > 0; the derivative is that of snnTorch's atan."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return 1 / (1 + (math.pi * u).pow_(2)) * grad_output


def leaky(x, mem):
    """snnTorch's `Leaky`, reset by subtraction."""
    reset = (mem - THRESHOLD > 0).to(mem.dtype).detach()
    mem = BETA * mem + x - reset * THRESHOLD
    return AtanSpike.apply(mem - THRESHOLD), mem


def zero_reset(x, mem):
    """Reset to zero in the step that fires, gradients through the reset."""
    mem = BETA * mem + x
    spk = AtanSpike.apply(mem - THRESHOLD)
    return spk, mem * (1 - spk)


class Gate(nn.Module):
    """Does not spike: a gated unit with weights of its own for each of `size` neurons."""

    def __init__(self, size: int):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.linspace(0.1, 1, size)) for _ in range(4)])

    def forward(self, x, h):
        a, b, c, d = self.weights
        z = torch.sigmoid(a * x + b * h)
        h = (1 - z) * h + z * torch.tanh(c * x + d * h)
        return h, h


CELLS = {
    "leaky": lambda size: leaky,
    "zero-reset": lambda size: zero_reset,
    "zero-reset-logistic": lambda size: published.ZeroResetLIF(BETA, THRESHOLD),
    "gate": Gate,
}
