"""Neurons in plain PyTorch, as their authors write them, that tests and `fuzz_cells.py` run fused."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Spike(torch.autograd.Function):
    """Fires above 0, with a fast sigmoid's derivative."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (1 + u.abs()) ** 2


class Atan(Spike):
    """snnTorch's, which squares in place."""

    alpha = 2.0

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return Atan.alpha / 2 / (1 + (math.pi / 2 * Atan.alpha * u).pow_(2)) * grad


class Super(torch.autograd.Function):
    """Norse's, which takes a tensor beside its input."""

    @staticmethod
    def forward(ctx, u, alpha):
        ctx.save_for_backward(u, torch.as_tensor(alpha))
        return torch.gt(u, torch.as_tensor(0.0)).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        u, alpha = ctx.saved_tensors
        return grad / (alpha * torch.abs(u) + 1.0).pow(2), None


class Logistic(torch.autograd.Function):
    """That of the second reference system: the spike at the threshold, a logistic derivative."""

    @staticmethod
    def forward(ctx, mem):
        ctx.save_for_backward(mem)
        return (mem >= 1.0).float().to(mem.dtype)

    @staticmethod
    def backward(ctx, grad):
        (mem,) = ctx.saved_tensors
        s = torch.sigmoid(10 * (mem - 1.0))
        return grad * s * (1 - s)


class ZeroReset(nn.Module):
    """The second reference system's neuron."""

    def __init__(self, beta=0.95):
        super().__init__()
        self.beta = beta

    def forward(self, x, mem):
        mem = self.beta * mem + x
        spk = Logistic.apply(mem)
        mem = mem * (1 - spk)
        return spk, mem


def leaky(x, mem):
    """snnTorch's Leaky(0.9), reset by subtraction."""
    reset = (mem - 1.0 > 0).to(mem.dtype).detach()
    mem = 0.9 * mem + x - reset * 1.0
    return Atan.apply(mem - 1.0), mem


class Parameters(NamedTuple):
    tau_syn_inv: Tensor = torch.as_tensor(200.0)
    tau_mem_inv: Tensor = torch.as_tensor(100.0)
    v_leak: Tensor = torch.as_tensor(0.0)
    v_th: Tensor = torch.as_tensor(1.0)
    v_reset: Tensor = torch.as_tensor(0.0)
    alpha: Tensor = torch.as_tensor(100.0)


class State(NamedTuple):
    v: Tensor
    i: Tensor


class CurrentBased(nn.Module):
    """A current-based neuron in Norse's style: parameters in plain tensors, a NamedTuple for state, at first None."""

    def __init__(self, p=None, dt=0.001):
        super().__init__()
        self.p, self.dt = Parameters() if p is None else p, dt

    def forward(self, x, state=None):
        if state is None:
            state = State(v=torch.full_like(x, self.p.v_leak.item()), i=torch.zeros_like(x))
            state.v.requires_grad = True
        p = self.p
        dv = self.dt * p.tau_mem_inv * ((p.v_leak - state.v) + state.i)
        v_decayed = state.v + dv
        i_decayed = state.i + -self.dt * p.tau_syn_inv * state.i
        z = Super.apply(v_decayed - p.v_th, p.alpha)
        v_new = (1 - z.detach()) * v_decayed + z.detach() * p.v_reset
        return z, State(v_new, i_decayed + x)


class Integrator(nn.Module):
    """Norse's readout: its output is its state, which makes itself."""

    def forward(self, x, state=None):
        v, i = (torch.zeros_like(x),) * 2 if state is None else state
        i = i + x
        v = v + 0.1 * ((0.0 - v) + i)
        return v, State(v, i - 0.2 * i)


class Adaptive(nn.Module):
    """Learns a decay per neuron and one for all."""

    def __init__(self, n):
        super().__init__()
        self.decay = nn.Parameter(torch.randn(n))
        self.rho = nn.Parameter(torch.tensor(0.95))
        self.register_buffer("threshold", torch.tensor(0.8))

    def forward(self, x, mem, trace, spk):
        beta = torch.sigmoid(self.decay)
        trace = self.rho * trace + (1 - self.rho) * spk
        threshold = self.threshold + 1.8 * trace
        mem = beta * mem + (1 - beta) * x * 4 - threshold * spk
        spk = Atan.apply(mem - threshold)
        return spk, mem, trace, spk


class Izhikevich(nn.Module):
    def __init__(self, a=0.02, b=0.2, c=-65.0, d=8.0):
        super().__init__()
        self.a, self.b, self.c, self.d = a, b, c, d

    def forward(self, x, v, u):
        v = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + 10 * x)
        u = u + self.a * (self.b * v - u)
        z = Atan.apply(v - 30.0)
        v = torch.where(z > 0, torch.full_like(v, self.c), v)
        u = u + self.d * z
        return z, v, u


def exponential(x, v):
    v = v + 0.1 * (-v + torch.exp((v - 0.5) * 2.0) * 0.3 + x)
    spk = Atan.apply(v - 1.0)
    return spk, v * (1 - spk)


class Gate(nn.Module):
    """Not spiking: a gated unit with weights of its own for every neuron."""

    def __init__(self, n):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(n)) for _ in range(4)])

    def forward(self, x, h):
        a, b, c, d = self.weights
        z = torch.sigmoid(a * x + b * h)
        h = (1 - z) * h + z * torch.tanh(c * x + d * h)
        return h, h


def long_short_term(gates, syn, mem):
    """What is elementwise in snnTorch's SLSTM: its four gates' sums come in."""
    i, f, g, o = gates
    reset = (mem > 0.2).to(mem.dtype).detach()
    syn = torch.sigmoid(f) * syn + torch.sigmoid(i) * torch.tanh(g)
    mem = torch.sigmoid(o) * torch.tanh(syn) - reset * 0.2
    return Atan.apply(mem - 0.2), syn, mem


def in_place(x, mem):
    """Writes to what it computes, and to its state."""
    mem.mul_(0.9).add_(x)
    spk = Atan.apply(mem - 1.0)
    mem = mem - spk.detach()
    mem[spk > 0] = 0.1
    return spk, mem


def cases(n, dtype):
    """(cell, inputs' count, states) by name. n: neurons."""

    def states(count, scale=1.0):
        return tuple(torch.randn(3, n, dtype=dtype) * scale for _ in range(count))

    return {
        "zero-reset": (ZeroReset(), 1, states(1)[0]),
        "leaky": (leaky, 1, states(1)[0]),
        "current-based": (CurrentBased().to(dtype), 1, State(*states(2))),
        "current-based-none": (CurrentBased(), 1, None),
        "integrator-none": (Integrator(), 1, None),
        "adaptive": (Adaptive(n).to(dtype), 1, states(3)),
        "izhikevich": (Izhikevich(), 1, (states(1, 5)[0] - 65, states(1)[0] - 13)),
        "exponential": (exponential, 1, states(1)[0]),
        "gate": (Gate(n).to(dtype), 1, states(1)[0]),
        "long-short-term": (long_short_term, 4, states(2)),
        "in-place": (in_place, 1, states(1)[0]),
    }
