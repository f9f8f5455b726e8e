"""Whether a loop gains by waiting, told by counts and sizes, not by a clock: what a seed gives, it gives again."""

from torch import Tensor

from . import known
from .operation import SAME, Operation

# Microseconds on a CPU: WAITING, OTHER and BACK as they were measured for small operations, the rest as profiles of
# small nets suggest. That a loop is worth more or less than nothing is all that they are to tell.
WAITING = 4
"""What it costs that an operation waits, beyond what it would have cost to run it."""
LATER, LATER_OF_LAYER = 12, 40
"""A step of an operation that waited, and ran alone."""
CALL, CALL_OF_LAYER = 40, 150
"""One call over time."""
OTHER = 8
"""A call that a recorder saw for nothing."""
LOST = 1000
"""So much less than nothing is no matter of chance."""
STEP, STEP_BACK = 60, 60
"""A layer's step that was one of a call."""
FUNCTION, FUNCTION_BACK = 25, 25
"""A step of an autograd function of the user's that was one of a call."""
BACK = 6
"""Backward of any other operation that was a step of a call."""

# Nanoseconds of each number that a step makes.
PASSES, PASSES_BACK = 2, 3
"""Of a layer that goes through memory once, not once for each operation."""
PASS = 1
"""Of an operation within such a neuron of the user's own."""
PRODUCT = 0.015
"""Of a product, for each number that it adds up."""


def gained(window) -> float:
    """The microseconds that a window gained over its steps as they are written."""
    saved = window.period.saved
    return sum(_gained(one, *window.done.get(one, (0, 0)), saved[one]) for one in window.period.operations)


def _gained(operation: Operation, calls: int, alone: int, saved: float) -> float:
    fused = operation.count - alone
    if operation.is_mark:
        return fused * saved - calls * CALL_OF_LAYER - alone * (WAITING + LATER_OF_LAYER)
    return fused * (saved - WAITING) - calls * CALL - alone * (WAITING + LATER)


def saved_by(operation: Operation, is_inner: bool) -> float:
    """The microseconds that a step costs less as one of a call, the call aside; is_inner: within a user's neuron."""
    grad = operation.modes[0] and any(like.requires_grad for like in operation.outputs)
    size = operation.outputs[0].shape.numel() / 1000
    if operation.is_step:
        return STEP + PASSES * size + grad * (STEP_BACK + PASSES_BACK * size)
    if operation.is_call:
        return FUNCTION + PASS * size + grad * (FUNCTION_BACK + PASS * size)
    product = PRODUCT * size * _added_up(operation) if operation.function in known.PRODUCTS else 0
    return grad * BACK + is_inner * PASS * size * (1 + grad) + product


def _added_up(operation: Operation) -> int:
    """How many numbers each number of a product is the sum of."""
    weights = [slot.what for slot in operation.slots if slot.kind == SAME and isinstance(slot.what, Tensor)]
    return max((weight.numel() // max(1, len(weight)) for weight in weights if weight.dim() > 1), default=0)
