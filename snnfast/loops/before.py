"""What ran right before a loop's first step: where a loop does the same at every step, it is done already."""

from collections import deque
from typing import NamedTuple

from torch import Tensor

from . import known
from .operation import LITERAL, MADE, REAL, SAME, Operation
from .period import Period
from .reading import is_shared_with_others, versions_of
from .series import modes


class Call(NamedTuple):
    """A call that ran as written."""

    function: object
    args: tuple
    out: Tensor
    versions: list[int]
    modes: tuple


class Before:
    """The last calls of functions with which a known loop's steps begin, as long as nothing was written since: as many
    as the loop has of them."""

    def __init__(self):
        self.calls = deque(maxlen=0)
        self._functions = set()

    def run(self, func, args: tuple, kwargs: dict):
        """Runs a call as written."""
        out = func(*args, **kwargs)
        if func in self._functions and type(out) is Tensor and not kwargs:
            self.calls.append(Call(func, args, out, versions_of((*args, out)), modes()))
        else:
            self.see(func)
        return out

    def see(self, func) -> None:
        """A call that others run: what it writes, as through `tensor.data`, may not show in versions."""
        if self.calls and func not in known.READERS:
            self.calls.clear()

    def take_over(self, period: Period) -> None:
        """Tells a period what of it was computed already, and remembers from now on what it may begin with."""
        made = {}
        self._functions.update(operation.function for operation in period.beginning)
        for operation in period.beginning:
            for call in self.calls:
                if _is_one(operation, call, made):
                    made[operation] = call.out
                    period.remember(operation, list(call.args), (call.out,))
                    break
        self.calls = deque(maxlen=max(self.calls.maxlen, len(period.beginning)))


def _is_one(operation: Operation, call: Call, made: dict) -> bool:
    """Whether a call is what an operation will be."""
    if call.function is not operation.function or call.modes != operation.modes or not operation.is_flat:
        return False
    if len(call.args) != len(operation.slots) or call.versions != versions_of((*call.args, call.out)):
        return False
    return all(_fits(slot, value, made) for slot, value in zip(operation.slots, call.args, strict=True))


def _fits(slot, value, made: dict) -> bool:
    if slot.kind == MADE:
        return not slot.lag and value is not None and value is made.get(slot.what)
    if slot.kind == SAME:
        return value is slot.what
    if slot.kind == LITERAL:
        return type(value) is type(slot.what) and value == slot.what
    return slot.kind == REAL and isinstance(value, Tensor) and not is_shared_with_others(value)
