"""How a surrogate fires under autograd, and whether a function of the user's fires as one."""

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import transforms


class Spike(torch.autograd.Function):
    """The step function of u = mem - threshold with a surrogate's gradient."""

    @staticmethod
    def forward(ctx, u, surrogate):
        ctx.surrogate = surrogate
        ctx.save_for_backward(u)
        return surrogate.fires(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return ctx.surrogate.gradient(u, grad), None


class TransformedSpike(Spike):
    """As `Spike`, in the form that transforms ask for, which is slower and which Dynamo does not take."""

    @staticmethod
    def forward(u, surrogate):
        return surrogate.fires(u)

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, ctx.surrogate = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def jvp(ctx, tangent, _):
        (u,) = ctx.saved_tensors
        return ctx.surrogate.gradient(u, tangent)

    @staticmethod
    def vmap(info, in_dims, u, surrogate):
        return TransformedSpike.apply(u, surrogate), in_dims[0]


def fire(u: Tensor, surrogate: Any) -> Tensor:
    """Spikes of u, whose backward is the surrogate's `gradient`."""
    if not torch.compiler.is_compiling() and torch.jit.is_tracing():
        return _traced(u, surrogate)
    return (TransformedSpike if transforms.at_work() else Spike).apply(u, surrogate)


def _traced(u: Tensor, surrogate: Any) -> Tensor:
    """Spikes with this backward in operations that a TorchScript file can hold, which `Spike` is not.

    What is added to the spikes is 0, and its derivative that of the surrogate.
    """
    fixed = u.detach()
    return surrogate.fires(fixed) + (u - fixed) * surrogate.gradient(fixed, torch.ones_like(fixed))


def derivative(function: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    """The derivative of an elementwise function at every element of u, by autograd."""
    if transforms.at_work():
        return Derivative.apply(u, function, 1)
    differentiable = u.requires_grad
    with torch.enable_grad():
        u = u if differentiable else u.detach().requires_grad_()
        spikes = function(u)
        return torch.autograd.grad(spikes, u, torch.ones_like(spikes), create_graph=differentiable)[0]


class Derivative(torch.autograd.Function):
    """The derivative of this order of an elementwise function, under transforms for which that was not made."""

    @staticmethod
    def forward(u, function, order):
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = function(u)
            for _ in range(order):
                if not value.requires_grad:
                    return torch.zeros_like(u)
                value = torch.autograd.grad(
                    value, u, torch.ones_like(value), create_graph=True, materialize_grads=True
                )[0]
        return value.detach()

    @staticmethod
    def setup_context(ctx, inputs, output):
        u, ctx.function, ctx.order = inputs
        ctx.save_for_backward(u)
        ctx.save_for_forward(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return Derivative.apply(u, ctx.function, ctx.order + 1) * grad, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        (u,) = ctx.saved_tensors
        return Derivative.apply(u, ctx.function, ctx.order + 1) * tangent

    @staticmethod
    def vmap(info, in_dims, u, function, order):
        return Derivative.apply(u, function, order), in_dims[0]


def maker_and_numbers(closure: Any, module: str) -> tuple[str, dict[str, float]]:
    """The function of a module that made a closure `<name>.<locals>.inner`, and the numbers that it is over.

    No name and no numbers of any other object, or where the closure is over something else.
    """
    if getattr(closure, "__module__", None) != module or not inspect.isfunction(closure):
        return "", {}
    found = inspect.getclosurevars(closure).nonlocals
    if not all(isinstance(value, (int, float)) for value in found.values()):
        return "", {}
    return closure.__qualname__.split(".")[0], {name: float(value) for name, value in found.items()}


def inclusive_step(spike_grad: Callable[[Tensor], Tensor]) -> bool | None:
    """Whether the function fires at 0 too; None unless it is a plain step whose linear backward a derivative says."""
    if isinstance(spike_grad, nn.Module) and any(True for _ in spike_grad.parameters()):
        return None
    found = []
    # A thread of its own has none of the modes, saved-tensor hooks and transforms that the caller is in.
    trial = threading.Thread(target=lambda: found.append(_tried(spike_grad)))
    trial.start()
    trial.join()
    return found[0] if found else None


def _tried(spike_grad) -> bool | None:
    magnitudes = torch.logspace(-6, 6, 25, device="cpu", dtype=torch.float32)
    u = torch.cat([-magnitudes, torch.zeros(1, device="cpu", dtype=torch.float32), magnitudes])

    def backward(go):
        # Not torch.manual_seed, which seeds the generators of all devices.
        torch.default_generator.manual_seed(0)
        leaf = u.clone().requires_grad_()
        spikes = spike_grad(leaf)
        return torch.autograd.grad(spikes, leaf, torch.full_like(spikes, go))[0]

    try:
        with torch.random.fork_rng(devices=[]), torch.autograd.set_detect_anomaly(False):
            spikes = spike_grad(u)
            inclusive = bool(spikes[len(magnitudes)] > 0)
            if spikes.requires_grad or not torch.equal(spikes.float(), ((u >= 0) if inclusive else (u > 0)).float()):
                return None
            derivative = backward(1.0)
            linear = all(torch.allclose(backward(go), go * derivative, equal_nan=True) for go in (0.05, -3.0, 100.0))
            return inclusive if linear else None
    except Exception:
        # The user's function has its say when the layer calls it, with the user's own tensors.
        return None
