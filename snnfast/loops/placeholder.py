"""Placeholders: tensors that a recorded operation has yet to compute."""

import torch
from torch import Tensor

from .. import _torch
from .._ext import native

_DESCRIBED = [
    "shape",
    "dtype",
    "device",
    "ndim",
    "layout",
    "is_cuda",
    "is_sparse",
    "is_quantized",
    "is_meta",
    "is_complex",
    "itemsize",
]

DESCRIPTIONS = frozenset(
    [getattr(Tensor, name).__get__ for name in _DESCRIBED if hasattr(getattr(Tensor, name), "__get__")]
    + [getattr(Tensor, name) for name in ("size", "dim", "numel", "nelement", "ndimension", "__len__", "element_size")]
    + [
        Tensor.is_floating_point,
        Tensor.is_complex,
        Tensor.is_inference,
        Tensor.get_device,
        Tensor.__hash__,
        torch.is_floating_point,
    ]
    + [torch.is_complex, torch.numel, Tensor.type, Tensor.requires_grad.__get__]
)
"""What a placeholder can tell of its value without computing it."""

_EQUALITY = frozenset([Tensor.__eq__, Tensor.__ne__])


class Pending(Tensor):
    """A tensor that a recorded operation will give.

    It has the shape, dtype, device and `requires_grad` of its value, and computes when anything else is asked of it.
    Once computed the object is an ordinary tensor, of class `Tensor`.
    """

    made_by: tuple
    """(recorder, operation, output, period)."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not describes(func, args):
            compute(args, kwargs)
        with _torch.unwatched_by_subclasses():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(
            f"{func} was given a step of a recorded loop in a way that torch.overrides does not see, so that it could "
            "not be computed first; ask for its value before (as by `tensor + 0`), or run with SNNFAST_AUTO=0"
        )


make = Tensor._make_wrapper_subclass


def describes(func, args) -> bool:
    """Whether a call asks only what a placeholder knows."""
    if func in DESCRIPTIONS:
        return not (func is Tensor.type and len(args) > 1)
    # `mem == None`, as snnTorch's own steps ask of each of their states: a tensor is not None, whatever it holds.
    return func in _EQUALITY and len(args) == 2 and args[1] is None


def arguments_of_placeholder(like) -> tuple[tuple, dict]:
    """Of `make`, for what stands for a value like that."""
    return (Pending, like.shape), {"dtype": like.dtype, "device": like.device, "requires_grad": like.requires_grad}


def new(recorder, operation, output: int, period: int) -> Pending:
    """The placeholder of an operation's output in a period."""
    args, kwargs, _ = operation.placeholders[output]
    made = make(*args, **kwargs)
    made.made_by = (recorder, operation, output, period)
    return made


def become(placeholder: Pending, value: Tensor) -> None:
    """Makes the object be its value, whoever refers to it. `value` is nobody else's."""
    del placeholder.made_by
    placeholder.__class__ = Tensor
    native.show(placeholder)
    try:
        _torch.swap_tensors(placeholder, value)
    except RuntimeError:
        # A profiler that records shapes still refers to what an operator was given.
        _torch.swap_tensors(placeholder, value.view_as(value))


def make_pending(tensor: Tensor, recorder, operation, output: int, period: int) -> Tensor:
    """Makes an ordinary tensor the placeholder of what is written to it; returns what it was before."""
    before = new(recorder, operation, output, period)
    place = before.made_by
    become(before, tensor)
    tensor.__class__ = Pending
    tensor.made_by = place
    return before


def compute(*values) -> None:
    """Computes all placeholders in (nested) arguments."""
    for value in values:
        if type(value) is Pending:
            value.made_by[0].pack()
        elif isinstance(value, (list, tuple)):
            compute(*value)
        elif isinstance(value, dict):
            compute(*value.values())


def any_pending(values) -> bool:
    """Whether (nested) arguments hold a placeholder."""
    for value in values:
        if type(value) is Pending:
            return True
        if isinstance(value, (list, tuple)) and any_pending(value):
            return True
        if isinstance(value, dict) and any_pending(value.values()):
            return True
    return False
