"""Modules over whole sequences [T, B, ...]: a layer without neurons, and a module's hooks around its sequence."""

import threading
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.prune import BasePruningMethod

from . import batch_norm, images, products  # noqa: F401, images has its functions run in place of torch's
from .capture import constant

OBSERVERS = ("ObserverBase", "FakeQuantizeBase")
"""What quantisation collects ranges with, in eval mode too; by name, as torch.ao is slow to import."""

_BATCH_NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d

_said = set()
_HOOKED = threading.RLock()


def run(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer without neurons over [T, B, ...]: on [T*B, ...], or step by step where a loop may give something else.

    Of an `nn.ModuleList`, such as `snntorch.BatchNormTT1d` makes, every step has its own layer.
    """
    if isinstance(layer, nn.ModuleList) and type(layer).forward is nn.Module.forward:
        if len(layer) < len(x):
            raise ValueError(f"a ModuleList in Unroll must have a layer for each of {len(x)} steps, got {len(layer)}")
        return _by_step(layer, x)
    if _normalises_at_once(layer, x):
        return _normalised(layer, x)
    told = by_step(layer)
    if told is None:
        return _at_once(layer, x.flatten(0, 1)).unflatten(0, x.shape[:2])
    # A normalisation holds up no layer but itself.
    if not isinstance(layer, _NormBase):
        _say_once(type(layer).__name__, *told)
    return _by_step([layer] * len(x), x)


def _normalises_at_once(layer: nn.Module, x: Tensor) -> bool:
    """Whether it is torch's batch-norm, of every step by itself, and one call gives what T calls would."""
    if type(layer) not in _BATCH_NORMS or not _takes_statistics(layer) or torch.compiler.is_compiling():
        return False
    kept = layer.running_mean, layer.running_var, layer.weight, layer.bias
    keeps = {one is not None for one in (*kept[:2], layer.num_batches_tracked)}
    if "forward" in vars(layer) or is_hooked(layer) or keeps != {layer.track_running_stats}:
        return False
    if not batch_norm.fits(x, *kept):
        return False
    layer._check_input_dim(x[0])
    return x.shape[2] == layer.num_features and x[0].numel() > layer.num_features


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    """What T calls of a batch-norm give and leave behind."""
    statistics, momenta = (None, None), [0.0] * len(x)
    if layer.training and layer.track_running_stats:
        statistics, before = (layer.running_mean, layer.running_var), layer.num_batches_tracked.item()
        averaged = [1 / (before + step) for step in range(1, len(x) + 1)]
        momenta = averaged if layer.momentum is None else [layer.momentum] * len(x)
        layer.num_batches_tracked.add_(len(x))
    return batch_norm.over_time(x, *statistics, layer.weight, layer.bias, momenta, layer.eps)


def _at_once(layer: nn.Module, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return layer(x)
    with products.BehindSpikes():
        return layer(x)


def by_step(layer: nn.Module) -> tuple[str, str] | None:
    """Name and type of the module for which a layer without neurons may need a call a step; None without any."""
    for name, module in layer.named_modules():
        if keeps_state(module) or _takes_statistics(module):
            return name, type(module).__name__
    return None


def keeps_state(module: nn.Module) -> bool:
    """Whether a call of a module without neurons may leave behind what the next call takes up, submodules aside."""
    observes = any(cls.__name__ in OBSERVERS for cls in type(module).__mro__)
    if not module.training and not observes:
        return False
    pruned = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, BasePruningMethod)]
    masks = [f"{hook._tensor_name}_mask" for hook in pruned]
    return any(buffer is not None and name not in masks for name, buffer in module._buffers.items())


def _takes_statistics(module: nn.Module) -> bool:
    """Batch-norm that normalises every call by its own samples."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def _by_step(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    if not len(x):
        raise ValueError(f"x must have at least one step for layers that run step by step, got {tuple(x.shape)}")
    # Stacked, channels-last steps would become contiguous ones.
    steps = [layer(step) for layer, step in zip(layers, x.unbind(0), strict=False)]
    return torch.cat(steps).unflatten(0, x.shape[:2])


@constant
def _say_once(layer: str, name: str, kind: str) -> None:
    """Warns in Python, also where torch.compile traces the call."""
    if (layer, name, kind) not in _said:
        _said.add((layer, name, kind))
        part = f"its {name} ({kind})" if name else "it"
        warnings.warn(
            f"{layer} runs step by step in Unroll, as in a loop: in the mode it is in, {part} may keep state from call "
            "to call, or depend on a call's other samples. Layers that are Unroll's own (or an nn.Sequential's in it) "
            "run at once wherever they can; one whose buffers never change does so in eval mode",
            stacklevel=5,
        )


class Onlooker:
    """A hook that keeps what it sees and changes nothing: none that has to run at every step."""


def is_hooked(module: nn.Module) -> bool:
    """Whether a call of the module is more than its forward: it has hooks, or all modules have."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks) or bool(_has_any_global_hook())


def call(module: nn.Module, forward: Callable, x: Tensor):
    """`module(x)`, hooks included, with `forward` in place of the module's own."""
    if not is_hooked(module):
        return forward(x)
    if torch.compiler.is_compiling():
        from .compiler import uncaptured

        return uncaptured.call_hooked(module, forward, x)
    return call_hooked(module, forward, x)


def call_hooked(module: nn.Module, forward: Callable, x: Tensor):
    """`call` of a module that is hooked."""

    def once(*args, **kwargs):
        # Before it runs, so that it finds the module as it is.
        _put_forward(module, own)
        return forward(*args, **kwargs)

    # Threads may share a module.
    with _HOOKED:
        own = vars(module).get("forward")
        module.forward = once
        try:
            return module(x)
        finally:
            _put_forward(module, own)


def _put_forward(module, own):
    """An instance's own forward, or None for its class'."""
    if own is not None:
        module.forward = own
    elif "forward" in vars(module):
        del module.forward
