"""Unroll: a sequential network run layer by layer over whole sequences."""

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import Tensor, nn

from . import followed, over_time, recompute
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
            bit. Groups with a neuron of init_hidden=True or with methods of your own, or with a layer that keeps state
            (batch-norm in training mode), run once, and keep what they keep without `recompute`; so do all layers under
            torch.compile and within transforms of torch.func, and, while a CUDA graph is captured, groups with any
            layer that may draw random numbers. Hooks run in both. A nested Unroll runs as the outermost one says.
            Default False.

    Every result is a loop's, in which all layers take one step after the other. So in batch-norm in training mode (and
    without running statistics) every step has statistics of its own, and the running ones are updated T times. A layer
    that holds a module that has buffers in training mode, which it may write to, runs step by step: spectral norm,
    weight observers, a residual block around a batch-norm. A warning names it, unless it is a normalisation of torch's.
    Its hooks, too, run at every step. An `nn.ModuleList` (`snntorch.BatchNormTT1d`) takes step t through its t-th
    layer. A layer that mixes the samples of a call in other ways has to be a loop of yours.

    Hooks of neurons and of nested sequentials run once and see [T, B, ...], those of other layers [T*B, ...].

    Raises:
        TypeError: a layer that hides neurons from the container, or snnTorch's own neuron (`snnfast.convert` it first).
        RuntimeError: in backward with `recompute`, where an input, parameter or buffer was written to after forward.

    Examples:
        >>> net = snn.Unroll(nn.Linear(784, 100), snn.Leaky(0.9), nn.Linear(100, 10), snn.Leaky(0.9))
        >>> net(torch.rand(25, 8, 784)).shape
        torch.Size([25, 8, 10])
    """

    recompute = False

    def __init__(self, *layers: nn.Module, recompute: bool = False) -> None:
        if len(layers) == 1 and type(layers[0]) is nn.Sequential:
            super().__init__(OrderedDict(layers[0].named_children()))
        else:
            named = len(layers) == 1 and isinstance(layers[0], OrderedDict)
            for layer in layers[0].values() if named else layers:
                if not isinstance(layer, nn.Module):
                    raise TypeError(f"Unroll takes layers, as in Unroll(*layers), got {type(layer).__name__}")
            super().__init__(*layers)
        for name, layer in self.named_children():
            _check_layer(name, layer)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Any:
        """x [T, B, ...] to the last layer's output [T, B, ...]."""
        features = isinstance(next(iter(self), None), nn.Linear)
        if not isinstance(x, Tensor) or x.dim() < 2 + features:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x must be a tensor [T, B, {'features' if features else '...'}], got {got}")
        if followed.applies():
            return followed.run(_flat(self) or [nn.Identity()], x)
        return _run(self, x, self.recompute)


def _run(net: nn.Sequential, x: Tensor, recomputes: bool, states: bool = True):
    """All layers of a sequential; states: a last neuron of output=True returns its own."""
    layers = _flat(net) or [nn.Identity()]
    if _is_steady(x):
        x, layers = _run_steady(layers, x)
    if not recomputes or not recompute.applies():
        return _run_layers(layers, x, recomputes, states)
    *inner, last = recompute.groups(layers)
    before = None
    for group in inner:
        x = recompute.recomputed(partial(_run_layers, recomputes=recomputes, states=False), group, before, x)
        before = group[-1]
    return recompute.recomputed(partial(_run_layers, recomputes=recomputes, states=states), last, before, x)


def _flat(layers: nn.Sequential) -> list[nn.Module]:
    """The layers, with those of nested sequentials in their place, but for sequentials that have hooks."""
    flat = []
    for layer in layers:
        flat += _flat(layer) if _is_plain_sequential(layer) and not over_time.is_hooked(layer) else [layer]
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
    return not over_time.is_hooked(layer)


def _run_layers(layers: list[nn.Module], x: Tensor, recomputes: bool, states: bool):
    """The output of the last layer, of neurons the spikes; the last, where it has output=True, adds `states`."""
    for place, layer in enumerate(layers, 1):
        wanted = states and place == len(layers)
        if isinstance(layer, SpikingNeuron):
            x = over_time.call(layer, layer.unroll if wanted and layer.output else layer.unroll_spikes, x)
        elif _is_plain_sequential(layer):
            x = over_time.call(layer, partial(_run, layer, recomputes=recomputes, states=wanted), x)
        else:
            x = over_time.run(layer, x)
    return x


def _is_plain_sequential(layer: nn.Module) -> bool:
    """A sequential that runs its layers one after the other and does nothing else."""
    return type(layer).forward in (nn.Sequential.forward, Unroll.forward)


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
