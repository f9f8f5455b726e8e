"""Unroll: a sequential network run layer by layer over whole sequences."""

import warnings
from collections import OrderedDict

import torch
from torch import Tensor, nn

from .neurons import SpikingNeuron


class Unroll(nn.Sequential):
    """Runs layers over time: stateless ones see [T*B, ...] once, neurons unroll over T in one launch.

    Takes layers, or one `nn.Sequential` whose layers (and parameter names) it takes over; sequentials may nest. The
    input is [T, B, ...], the output the last layer's [T, B, ...]; where that is a neuron with output=True, its
    (spikes, membranes). Sequences start from zero membranes, except in neurons with init_hidden=True.

    Training-mode batch-norm sees all T*B samples at once, not one step's B as in a loop over time. Forward hooks of
    neurons and of nested sequentials do not run.

    Raises:
        TypeError: a layer that hides neurons from the container, or snnTorch's own neuron (`snnfast.convert` it first).
    """

    def __init__(self, *layers: nn.Module):
        if len(layers) == 1 and type(layers[0]) is nn.Sequential:
            super().__init__(OrderedDict(layers[0].named_children()))
        else:
            super().__init__(*layers)
        for name, layer in self.named_children():
            _check_layer(name, layer)

    def forward(self, x: Tensor):
        """x [T, B, ...] to the last layer's output [T, B, ...]."""
        if not isinstance(x, Tensor) or x.dim() < 2:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor [T, B, ...], got {got}")
        return _run(self, x)


def _run(layers: nn.Sequential, x: Tensor):
    *inner, last = layers if len(layers) else [nn.Identity()]
    for layer in inner:
        x = _spikes_or_output(layer, x)
    if isinstance(last, SpikingNeuron) and last.output:
        _warn_of_hooks(last)
        return last.unroll(x)
    return _spikes_or_output(last, x)


def _spikes_or_output(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, SpikingNeuron):
        _warn_of_hooks(layer)
        return layer.unroll_spikes(x)
    if _is_plain_sequential(layer):
        _warn_of_hooks(layer)
        return _run(layer, x)
    steps, batch = x.shape[:2]
    return layer(x.flatten(0, 1)).unflatten(0, (steps, batch))


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
