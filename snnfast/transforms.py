"""What torch puts around a neuron: the transforms of `torch.func`, and the user's hooks on what backward keeps."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _torch

functional: Callable[[], bool] = _torch.transforms_at_work
"""Whether a transform of `torch.func` (grad, vmap, jvp ...) is at work."""


def forward_mode() -> bool:
    """Whether tensors may have tangents: within `torch.func.jvp` or a `forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def at_work() -> bool:
    """Whether any kind of transform is."""
    return functional() or forward_mode()


def differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call with these tensors goes through autograd."""
    # A transform of torch.func may differentiate what does not say so, and takes Functions apart, not bare operators.
    if functional():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def any_batched(tensors: Iterable[Tensor | None], legacy: bool = False) -> bool:
    """Whether `vmap` maps over one of them; legacy: as `torch.autograd.grad(..., is_grads_batched=True)` still does."""
    if torch.compiler.is_compiling():
        return False
    is_batched = _torch.is_mapped_by_autograd if legacy else _torch.is_mapped
    return any(tensor is not None and is_batched(tensor) for tensor in tensors)


def is_left_behind(tensor: Tensor) -> bool:
    """Whether a tensor is of a transform that has ended."""
    return _torch.is_wrapped(tensor) and not functional()


def saves_through_hooks() -> bool:
    """Whether what is saved for backward goes through hooks of the user's, as in a checkpoint."""
    return not torch.compiler.is_compiling() and hooks_of_saved() is not None


hooks_of_saved: Callable[[], tuple | None] = functools.partial(_torch.saved_tensors_hooks, False)
"""The innermost hooks of the user's on what is saved for backward; None: there are none."""


@contextlib.contextmanager
def without_hooks() -> Iterator[None]:
    """Within it, nothing that is saved for backward goes through them.

    For what runs while torch compiles, too: torch itself sees no hooks then, a backend does.
    """
    if hooks_of_saved() is None:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield


def apply(function: type[torch.autograd.Function], *args):
    """`function.apply` of one with `setup_context`, less the signature that torch binds anew in every call."""
    if functional() or torch.compiler.is_compiling():
        return function.apply(*args)
    return _torch.apply.__get__(None, function)(*_torch.unwrap_dead_wrappers(args))


class Fold(NamedTuple):
    """A dimension that is mapped over, `size` samples, becomes the first neuron dimension of a call.

    shape: of one sample's step; unroll: sequences have time before it.
    """

    size: int
    shape: torch.Size
    unroll: bool

    @classmethod
    def of(cls, size: int, sequence: Tensor, dim: int | None, unroll: bool) -> "Fold":
        """The fold of a call with this sequence, of which `dim` is mapped over."""
        shape = [length for k, length in enumerate(sequence.shape) if k != dim]
        return cls(size, torch.Size(shape[unroll:]), unroll)

    def sequence(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        """[T, ...] to [T, size, ...], or without time [...] to [size, ...]."""
        return self._placed(tensor, dim, int(self.unroll))

    def state(self, tensor: Tensor | None, dim: int | None) -> Tensor | None:
        """[...] to [size, ...]."""
        return self._placed(tensor, dim, 0)

    def param(self, tensor: Tensor, dim: int | None) -> Tensor:
        """Laid out over trailing dimensions, or one number; where samples differ in it, over all dimensions."""
        if dim is None:
            return tensor
        tensor = tensor.movedim(dim, 0)
        inner = tensor.shape[1:] if tensor[0].numel() != 1 else ()
        ones = (1,) * (len(self.shape) - len(inner))
        return tensor.reshape(self.size, *ones, *inner).expand(self.size, *self.shape)

    def _placed(self, tensor, dim, place):
        if tensor is None or dim is not None:
            return tensor if tensor is None else tensor.movedim(dim, place)
        return tensor.unsqueeze(place).expand(*tensor.shape[:place], self.size, *tensor.shape[place:])


def vjp(function: Callable, inputs: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """The gradients of `function(*inputs)`, a tuple of tensors, with respect to its inputs, themselves differentiable.

    An output whose gradient is None is as if it were none.

    Not by `torch.func.vjp` where no transform is at work: it refuses the user's saved-tensor hooks.
    """
    if at_work():
        wanted = [place for place, grad in enumerate(grads) if grad is not None]

        def reached(*inputs):
            outputs = function(*inputs)
            return tuple(outputs[place] for place in wanted)

        return list(torch.func.vjp(reached, *inputs)[1](tuple(grads[place] for place in wanted)))
    with torch.enable_grad():
        # Aliases, because the inputs may depend on each other.
        inputs = [i.view_as(i) if i.requires_grad else i.detach().requires_grad_() for i in inputs]
        pairs = [(o, g) for o, g in zip(function(*inputs), grads, strict=True) if o.requires_grad and g is not None]
        outputs, grads = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outputs, inputs, grads, create_graph=True, materialize_grads=True))
