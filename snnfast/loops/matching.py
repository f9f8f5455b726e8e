"""Whether a call is the operation that a period has next, and what of its arguments is new."""

import torch
from torch import Tensor, nn

from ..neurons.states import was_reset
from .operation import LITERAL, MADE, REAL, SAME, Like, Operation
from .placeholder import Pending


def entries(recorder, operation: Operation, leaves) -> list | None:
    """What is new in the slots of an operation: (slot, value); None where one does not fit."""
    found, given_of, begun, reading = [], operation.given, operation.count, recorder.reading
    for place, ((kind, what, output, lag, like), value) in enumerate(zip(operation.slots, leaves, strict=True)):
        if kind == MADE:
            if type(value) is Pending:
                of, maker, made, period = value.made_by
                if maker is not what or made != output or period != recorder.number - lag or of is not recorder:
                    return None
                continue
            state = operation.is_chain and place > 0
            if not fits(value, like, state):
                return None
            if begun and (state or len(given_of[place]) < begun):
                # The loop goes on from something else: what waits is of before, and placeholders are no more.
                recorder.pack()
                return entries(recorder, operation, leaves)
            found.append((place, reading.add(value)))
        elif kind == SAME:
            if value is not what:
                return None
            if not begun:
                reading.add_in_place(value)
        elif kind == LITERAL:
            if value is not what and (type(value) is not type(what) or value != what):
                return None
        elif kind == REAL:
            given = given_of[place]
            if not given or value is not given[-1]:
                if not fits(value, like, False, operation.moving):
                    return None
                value = reading.add(value)
            elif reading.snapshots:
                value = reading.add(value)
            if place in operation.writes:
                reading.drop(value)
            found.append((place, value))
        elif type(value) is not what:
            return None
        else:
            found.append((place, value))
    return found


def fits(value, like: Like, state: bool, moving: int | None = None) -> bool:
    """Whether a computed tensor can stand where one like that stood; state: as a layer's state, which may be unset."""
    if type(value) is not Tensor and type(value) is not nn.Parameter:
        return False
    if value.dtype is not like.dtype or value.device != like.device:
        return state and value.shape == (0,)
    if state:
        return value.shape == like.shape or value.shape == (0,) or was_reset(value)
    same = value.shape == like.shape
    if not same and moving is not None:
        same = _without(value.shape, moving) == _without(like.shape, moving)
    return same and (value.requires_grad == like.requires_grad or not value.requires_grad)


def _without(shape: torch.Size, dim: int) -> tuple:
    """The sizes but for one dimension's."""
    return len(shape), shape[:dim], shape[dim + 1 :]
