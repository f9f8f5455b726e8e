"""Unroll: a sequential network run layer by layer over whole sequences."""

import warnings
from collections import OrderedDict

import torch
from torch import Tensor, nn

from . import recompute
from .neurons import SpikingNeuron


class Unroll(nn.Sequential):
    """Runs layers over time: stateless ones see [T*B, ...] once, neurons unroll over T in one launch.

    Takes layers, or one `nn.Sequential` whose layers (and parameter names) it takes over; sequentials may nest. The
    input is [T, B, ...], the output the last layer's [T, B, ...]; where that is a neuron with output=True, its
    (spikes, membranes). Sequences start from zero membranes, except in neurons with init_hidden=True.

    An input that all steps share, `image.expand(T, *image.shape)`, goes through the layers before the first neuron
    once, as [B, ...], where it needs no gradient and these are linear, convolutions, pooling, flattening, ReLU or
    normalisation that does not depend on the batch, without hooks.

    Args:
        recompute: keep for backward, of each group of layers up to a neuron, the input alone, and run the group again
            in backward: a second forward for less memory. Inputs that are spikes are kept as one bit each, graded ones
            too; others (the network's own, the output of a neuron whose `spike_grad` is no plain step or whose spikes
            `inhibition` or `state_quant` picks) as they are. Spikes, gradients and dropout's masks are the same to the
            bit. Groups with a neuron of init_hidden=True, or with a layer that has buffers and is in training mode
            (batch-norm), run once, and keep what they keep without `recompute`; so do all layers under torch.compile,
            and, while a CUDA graph is captured, groups with any layer that may draw random numbers. Hooks of layers
            run in both. A nested Unroll runs as the outermost one says. Default False.

    Training-mode batch-norm sees all T*B samples at once, not one step's B as in a loop over time. Forward hooks of
    neurons and of nested sequentials do not run.

    Raises:
        TypeError: a layer that hides neurons from the container, or snnTorch's own neuron (`snnfast.convert` it first).
        RuntimeError: in backward with `recompute`, where an input, parameter or buffer was written to after forward.
    """

    recompute = False

    def __init__(self, *layers: nn.Module, recompute: bool = False):
        if len(layers) == 1 and type(layers[0]) is nn.Sequential:
            super().__init__(OrderedDict(layers[0].named_children()))
        else:
            super().__init__(*layers)
        for name, layer in self.named_children():
            _check_layer(name, layer)
        self.recompute = recompute

    def forward(self, x: Tensor):
        """x [T, B, ...] to the last layer's output [T, B, ...]."""
        if not isinstance(x, Tensor) or x.dim() < 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor [T, B, ...], got {got}")
        layers = _flat(self) or [nn.Identity()]
        if _is_steady(x):
            x, layers = _run_steady(layers, x)
        if not self.recompute or not recompute.applies():
            return _run(layers, x)
        *inner, last = recompute.groups(layers)
        before = None
        for group in inner:
            x = recompute.run_again_in_backward(_run_to_spikes, group, before, x)
            before = group[-1]
        return recompute.run_again_in_backward(_run, last, before, x)


def _flat(layers: nn.Sequential) -> list[nn.Module]:
    """The layers, with those of nested sequentials in their place."""
    flat = []
    for layer in layers:
        nested = _is_plain_sequential(layer)
        if nested or isinstance(layer, SpikingNeuron):
            _warn_of_hooks(layer)
        flat += _flat(layer) if nested else [layer]
    return flat


def _is_steady(x: Tensor) -> bool:
    """Whether all steps are the same memory. An input that needs a gradient needs one of every step."""
    return len(x) > 1 and x.stride(0) == 0 and not x.requires_grad


def _run_steady(layers: list[nn.Module], x: Tensor) -> tuple[Tensor, list[nn.Module]]:
    """A steady input through the layers before the first neuron, and the layers that are left."""
    first = next((k for k, layer in enumerate(layers) if isinstance(layer, SpikingNeuron)), 0)
    if first == 0 or not all(map(_keeps_steady, layers[:first])):
        return x, layers
    step = x[0].clone()  # which layers may overwrite
    for layer in layers[:first]:
        step = layer(step)
    return step.expand(len(x), *step.shape), layers[first:]


def _keeps_steady(layer: nn.Module) -> bool:
    """Whether the same input gives the same output, at every run and in any batch, and nobody looks on."""
    if type(layer) not in recompute.DRAWS_NOTHING or "forward" in vars(layer):
        return False
    normalises = isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    if normalises and (layer.training or layer.running_mean is None):
        return False
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return not any(hooks)


def _run(layers: list[nn.Module], x: Tensor):
    *inner, last = layers
    x = _run_to_spikes(inner, x)
    if isinstance(last, SpikingNeuron) and last.output:
        return last.unroll(x)
    return _run_to_spikes([last], x)


def _run_to_spikes(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        if isinstance(layer, SpikingNeuron):
            x = layer.unroll_spikes(x)
        else:
            steps, batch = x.shape[:2]
            x = layer(x.flatten(0, 1)).unflatten(0, (steps, batch))
    return x


def _is_plain_sequential(layer: nn.Module) -> bool:
    """A sequential that runs its layers one after the other and does nothing else."""
    return type(layer).forward in (nn.Sequential.forward, Unroll.forward)


def _warn_of_hooks(layer: nn.Module) -> None:
    if (layer._forward_hooks or layer._forward_pre_hooks) and not torch.compiler.is_compiling():
        warnings.warn(
            f"{type(layer).__name__}: forward hooks do not run inside Unroll; hook its other layers or unroll by hand",
            stacklevel=2,
        )


def _check_layer(name: str, layer: nn.Module) -> None:
    if isinstance(layer, SpikingNeuron):
        return
    if _is_plain_sequential(layer):
        for child_name, child in layer.named_children():
            _check_layer(f"{name}.{child_name}", child)
        return
    for module in layer.modules():
        if hasattr(module, "reset_mem") or isinstance(module, nn.RNNBase):
            raise TypeError(
                f"layer {name} ({type(layer).__name__}) must be stateless or a snnfast neuron, but holds a "
                f"{type(module).__module__}.{type(module).__name__}; see snnfast.convert"
            )
