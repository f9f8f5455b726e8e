"""Layers of which only the input is kept for backward, which runs them again: spikes as one bit each."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import layouts, ops, over_time, transforms
from .functional import runs_reference
from .neurons import RecurrentOneToOne, SpikingNeuron, own

# What draws no random numbers, whatever its options and mode: a CUDA graph being captured cannot restore a generator.
DRAWS_NOTHING = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Unflatten, nn.Identity, nn.ReLU),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.LayerNorm, nn.GroupNorm),
)


def applies() -> bool:
    """Whether there will be a backward that is ours to arrange."""
    if torch.compiler.is_compiling() or transforms.at_work():
        return False
    return torch.is_grad_enabled() and not runs_reference()


def groups(layers: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """The layers, cut after every neuron, and around what holds neurons of its own: a sequential with hooks."""
    group = []
    for layer in layers:
        holds_neurons = any(isinstance(module, SpikingNeuron) for module in layer.modules())
        if group and holds_neurons and not isinstance(layer, SpikingNeuron):
            yield group
            group = []
        group.append(layer)
        if holds_neurons:
            yield group
            group = []
    if group:
        yield group


def recomputed(run: Callable, group: list[nn.Module], before: nn.Module | None, x: Tensor):
    """`run(group, x)`, of which nothing but x is kept until backward runs it again; before: the layer that gave x."""
    if not _may_recompute(group, x):
        return run(group, x)
    # What a hook of the neuron returned in place of its spikes may be anything.
    spikes = isinstance(before, SpikingNeuron) and not over_time.is_hooked(before)
    given = _Input(x, before.height_of(x) if spikes else None)
    written = _versions(group)

    def anew(kept):
        if _versions(group) != written:
            names = ", ".join(type(layer).__name__ for layer in group)
            raise RuntimeError(
                "parameters and buffers under Unroll(recompute=True) must stay as they were in forward until backward "
                f"has run their layers again; written to or replaced: one of {names}"
            )
        return run(group, given.take(kept))

    # The tensor kept is an argument: its device says which generator's state to restore, and its version is checked.
    return checkpoint(anew, given.kept, use_reentrant=False, preserve_rng_state=not _is_capturing(x))


class _Input:
    """A group's input: the tensor itself in forward, later what is made of the bits that were kept of it."""

    def __init__(self, x: Tensor, height: Tensor | None):
        self.height, self.requires_grad = height, x.requires_grad
        self.first, self.kept = None, x
        if height is not None:
            # What is recomputed gets them as they lay: sums of products go by that.
            self.layout = layouts.of(x, 1)
            if height.numel() > 1:
                self.height = self.layout.put_param(height, x.dim() - 1).expand(self.layout.of_step(x.shape[1:]))
            laid_out = self.layout.put(x.detach())
            self.first, self.shape, self.kept = x, tuple(laid_out.shape), ops.pack_spikes(laid_out)

    def take(self, kept: Tensor) -> Tensor:
        if self.height is None:
            return kept
        x, self.first = self.first, None
        if x is not None:
            return x
        spikes = self.layout.back(ops.unpack_spikes(kept, self.height, self.shape))
        return spikes.requires_grad_(self.requires_grad)


def _may_recompute(group: list[nn.Module], x: Tensor) -> bool:
    """Whether a second run computes what the first did, and leaves nothing behind."""
    modules = [module for layer in group for module in layer.modules()]
    neurons = [module for module in modules if isinstance(module, SpikingNeuron)]
    if any(neuron.init_hidden or neuron._seen or own.of_sequence(neuron) for neuron in neurons):
        return False
    others = [module for layer in group if not isinstance(layer, SpikingNeuron) for module in layer.modules()]
    # A sequential with hooks sees to the neurons in it.
    if any(isinstance(module, SpikingNeuron) for module in others):
        return False
    inside = (module for module in modules if not isinstance(module, (SpikingNeuron, RecurrentOneToOne)))
    if any(map(over_time.keeps_state, inside)):
        return False
    known = (isinstance(module, SpikingNeuron) or type(module) in DRAWS_NOTHING for module in modules)
    return not _is_capturing(x) or all(known)


def _is_capturing(x: Tensor) -> bool:
    return x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _versions(group: list[nn.Module]) -> list[tuple[int, int]]:
    """Which tensors a group computes with, and how often they were written to."""
    tensors = [param for layer in group for param in layer.parameters()]
    # DistributedDataParallel overwrites buffers, with equal values, at every forward.
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        tensors += [buffer for layer in group for buffer in layer.buffers()]
    return [(id(tensor), tensor._version) for tensor in tensors]
