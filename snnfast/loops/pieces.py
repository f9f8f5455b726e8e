"""Steps of a stack that a window computed at once, and their gradients.

What took a step within its window took it from the stack: the gradient of the step alone is a part of what a loop would
give. Whoever asks for one (`torch.autograd.grad`, `retain_grad`, `register_hook`) gets the stack's at that step.
"""

import functools
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _torch
from .known import VIEWS, written_by

WHOLE, OWN, NOBODYS = range(3)


class Piece(NamedTuple):
    """A step of a stack; None: memory that is nobody's but the step's.

    gradient: WHOLE: the stack's at that step is the step's; OWN: the tensor's own is; NOBODYS: there is none of states,
    which the next step takes within one operator, and of what is the same at every step.
    """

    ref: weakref.ref
    stack: Tensor | None
    step: int
    gradient: int


class View(NamedTuple):
    """A tensor that the loop has in the memory of another, its base, and how it is taken from that."""

    ref: weakref.ref
    base: weakref.ref
    again: Callable[[Tensor], Tensor]


known: dict[int, Piece] = {}
"""By the id of the step's tensor, for as long as that lives."""

views: dict[int, View] = {}
"""By the id of the view, for as long as that lives."""

orphans: dict[int, weakref.ref] = {}
"""Views of what nobody has any more: others may be of the same memory."""

_views_of: dict[int, set[int]] = {}
"""Ids of the views of a base, by its own."""

_grad, _retain_grad, _register_hook = torch.autograd.grad, Tensor.retain_grad, Tensor.register_hook


def note(tensor: Tensor, stack: Tensor | None, step: int, gradient: int) -> None:
    """Remembers a tensor as a step of a stack."""
    key = id(tensor)
    if not known and Tensor.retain_grad is _retain_grad:
        _watch()
    known[key] = Piece(weakref.ref(tensor, lambda _: known.pop(key, None)), stack, step, gradient)


def of(tensor: Tensor) -> Piece | None:
    """The piece that a tensor is."""
    found = known.get(id(tensor))
    return found if found is not None and found.ref() is tensor else None


def forget(tensor: Tensor) -> None:
    """The tensor is about to be another."""
    known.pop(id(tensor), None)


def shares_memory(tensor: Tensor) -> bool:
    """Whether a step of another stack is a view of the memory that this one is in, its stack's."""
    mine = known[id(tensor)]
    if mine.stack is None:
        return False
    memory = mine.stack.untyped_storage()._cdata
    if tensor.untyped_storage()._cdata != memory:
        return False
    stacks = {id(piece.stack): piece.stack for piece in list(known.values()) if piece.stack is not None}
    return any(one is not mine.stack and one.untyped_storage()._cdata == memory for one in stacks.values())


def note_view(view: Tensor, base: Tensor, again: Callable[[Tensor], Tensor]) -> None:
    """Remembers a tensor as a view of another that is, or comes of, a step of a stack; `again` gives it of its base."""
    key, its = id(view), id(base)

    def forget_view(_) -> None:
        views.pop(key, None)
        _views_of.get(its, set()).discard(key)

    views[key] = View(weakref.ref(view, forget_view), weakref.ref(base), again)
    if its not in _views_of:
        weakref.finalize(base, _views_of.pop, its, None).atexit = False
    _views_of.setdefault(its, set()).add(key)


def note_orphan(view: Tensor) -> None:
    """Remembers a tensor as a view of what nobody has any more."""
    key = id(view)
    orphans[key] = weakref.ref(view, lambda _: orphans.pop(key, None))


def run(call: Callable, func, args: tuple, kwargs: dict):
    """`call(func, args, kwargs)`, before which steps that it writes get memory of their own."""
    if not (known or views):
        return call(func, args, kwargs)
    for tensor in written_by(func, args, kwargs) or ():
        own(tensor)
    result = call(func, args, kwargs)
    if func in VIEWS and args and (of(args[0]) is not None or id(args[0]) in views):
        _note_results(func, args, kwargs, result)
    return result


def _note_results(func, args: tuple, kwargs: dict, result) -> None:
    def again(base: Tensor, place: int | None = None) -> Tensor:
        found = func(base, *args[1:], **kwargs)
        return found if place is None else found[place]

    if isinstance(result, Tensor):
        note_view(result, args[0], again)
    elif isinstance(result, (tuple, list)):
        for place, one in enumerate(result):
            note_view(one, args[0], functools.partial(again, place=place))


def own(tensor) -> None:
    """Gives a step of a stack, that is about to be written, memory of its own, and its views that memory."""
    if not isinstance(tensor, Tensor):
        return
    base = tensor
    while (view := views.get(id(base))) is not None and view.ref() is base and view.base() is not None:
        base = view.base()
    piece = of(base)
    if piece is not None and (id(base) not in orphans or not shares_memory(base)):
        forget(base)
        _torch.swap_tensors(base, base.clone())
    _renew_views_of(base)


def _renew_views_of(base: Tensor) -> None:
    for found in [views[key] for key in _views_of.get(id(base), ())]:
        view = found.ref()
        if view is not None and found.base() is base:
            forget(view)
            _torch.swap_tensors(view, found.again(base))
            _renew_views_of(view)


def _of_gradient(tensor) -> Piece | None:
    piece = of(tensor) if known else None
    if piece is None or not tensor.requires_grad or piece.gradient == OWN:
        return None
    if piece.gradient == NOBODYS:
        raise RuntimeError(
            "the gradient of a step's state was asked for after the steps were computed at once, which has no such "
            "tensor: ask for it (retain_grad, register_hook) in the loop, or run the loop within "
            "snnfast.accelerated(enabled=False)"
        )
    return piece


@functools.wraps(_grad)
def _grad_of_pieces(outputs, inputs, *args, **kwargs):
    asked = [inputs] if isinstance(inputs, Tensor) else list(inputs) if isinstance(inputs, (list, tuple)) else []
    pieces = [_of_gradient(one) for one in asked]
    if not any(pieces):
        return _grad(outputs, inputs, *args, **kwargs)
    whole = [one if piece is None else piece.stack for one, piece in zip(asked, pieces, strict=True)]
    batched = kwargs.get("is_grads_batched", args[5] if len(args) > 5 else False)
    return tuple(
        grad if piece is None or grad is None else grad.select(1 if batched else 0, piece.step)
        for grad, piece in zip(_grad(outputs, whole, *args, **kwargs), pieces, strict=True)
    )


@functools.wraps(_retain_grad)
def _retain_grad_of_pieces(tensor):
    piece = _of_gradient(tensor)
    if piece is None:
        return _retain_grad(tensor)

    def keep(grad):
        kept, step = piece.ref(), grad[piece.step].detach()
        if kept is not None:
            kept.grad = step.clone() if kept.grad is None else kept.grad + step

    piece.stack.register_hook(keep)


@functools.wraps(_register_hook)
def _register_hook_of_pieces(tensor, hook):
    piece = _of_gradient(tensor)
    if piece is None:
        return _register_hook(tensor, hook)

    def on_step(grad):
        changed = hook(grad[piece.step])
        if changed is None:
            return None
        grad = grad.clone()
        grad[piece.step] = changed
        return grad

    return _register_hook(piece.stack, on_step)


GRAD = frozenset({_grad, _grad_of_pieces})
_ASKS = frozenset({_retain_grad, _register_hook, _retain_grad_of_pieces, _register_hook_of_pieces})


def asked_for_gradients(function, args: tuple, kwargs: dict) -> tuple:
    """Of which tensors a call wants to know the gradient."""
    if function in _ASKS:
        return args[:1]
    if function not in GRAD:
        return ()
    inputs = kwargs["inputs"] if "inputs" in kwargs else args[1]
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _watch() -> None:
    torch.autograd.grad = _grad_of_pieces
    Tensor.retain_grad = _retain_grad_of_pieces
    Tensor.register_hook = _register_hook_of_pieces
