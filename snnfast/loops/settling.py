"""What placeholders become when their window has been computed."""

import functools
import sys

from torch import Tensor

from . import known, pieces
from .operation import MADE, NUMBER, REAL, Operation
from .packing import Window
from .placeholder import Pending
from .series import in_modes


def values(window: Window, alive: dict, used: set[int]) -> list[tuple[Pending, Tensor]]:
    """Each placeholder with its value, a tensor that is nobody else's; used: ids of tensors that are somebody's."""
    found = []
    for operation, steps in alive.items():
        by_output = {}
        for step, outputs in steps:
            for output, placeholder in outputs:
                by_output.setdefault(output, []).append((step, placeholder))
        for output, wanted in by_output.items():
            found += _pieces_of(window, operation, output, wanted, used)
    _note_views(alive)
    return found


def _note_views(alive: dict) -> None:
    """Which of the placeholders the loop would have in the memory of others."""
    viewing = [operation for operation in alive if operation.function in known.VIEWS]
    if not viewing:
        return
    made = {
        (operation, output, operation.start + step): placeholder
        for operation, steps in alive.items()
        for step, outputs in steps
        for output, placeholder in outputs
    }
    for operation in viewing:
        for step, outputs in alive[operation]:
            for output, placeholder in outputs:
                base, calls = _base_of(operation, output, step, made)
                if base is None:
                    pieces.note_orphan(placeholder)
                else:
                    pieces.note_view(placeholder, base, functools.partial(_viewed, calls))


def _base_of(operation: Operation, output: int, step: int, made: dict) -> tuple[Tensor | None, list]:
    """The tensor that somebody has, of which a step of an operation is a view, and the calls that give it."""
    calls = []
    while operation.function in known.VIEWS and 0 <= step < operation.count:
        slot, *others = operation.slots
        if any(other.kind == MADE for other in others):
            break
        rest = [
            operation.given[place][step] if other.kind in (REAL, NUMBER) else other.what
            for place, other in enumerate(others, 1)
        ]
        calls.insert(0, (operation, rest, output))
        if slot.kind != MADE:
            return (operation.given[0][step] if slot.kind == REAL else slot.what), calls
        period = operation.start + step - slot.lag
        base = made.get((slot.what, slot.output, period))
        if base is not None:
            return base, calls
        operation, output, step = slot.what, slot.output, period - slot.what.start
    return None, calls


def _viewed(calls: list, base: Tensor) -> Tensor:
    for operation, rest, output in calls:
        args, kwargs = operation.values([base, *rest])
        with in_modes(operation.modes):
            out = operation.function(*args, **kwargs)
        base = out if operation.several is None else out[output]
    return base


def _pieces_of(window: Window, operation: Operation, output: int, wanted: list, used: set[int]) -> list:
    made = []
    series = window.series.get((operation, output))
    whose = _whose_gradient(operation, output, series, (operation, output) in window.inner)
    for step, placeholder in wanted:
        if step == operation.count - 1 and (operation, output) in window.last:
            value = window.last[operation, output]
        elif series.is_steady:
            value = _once_more(operation, series.steady)
        elif series._stack is not None and len(wanted) < 3:
            value = series.stack()[step]
        else:
            value = series.apart()[step]
        if id(value) in used and operation.function is not known.set_item:
            value = value.view_as(value)
        used.add(id(value))
        made.append((placeholder, value))
        stack = None if series is None else series._stack
        if stack is not None or operation.is_step or series is None or series.is_steady:
            pieces.note(placeholder, stack, step, whose)
    return made


def _once_more(operation: Operation, steady: Tensor) -> Tensor:
    """What an operation gives when it is run again: a view of the same memory, or other memory."""
    return steady.view_as(steady) if operation.function in known.VIEWS and steady._is_view() else steady.clone()


def _whose_gradient(operation: Operation, output: int, series, is_inner: bool) -> int:
    if series is None or series.is_apart:
        return pieces.OWN
    of_state = is_inner or (operation.is_step and output in operation.state_outputs)
    return pieces.NOBODYS if of_state or series.is_steady else pieces.WHOLE


def alive(operation: Operation) -> list:
    """For each step the placeholders that others than the recorder have: (step, [(output, placeholder)])."""
    found = []
    for step, outs in enumerate(operation.made):
        held = []
        for output in operation.numbers:
            out = outs[output]
            # Referred to by its tuple, by `out`, and by the call that counts.
            if sys.getrefcount(out) > 3 and type(out) is Pending:
                held.append((output, out))
        if held:
            found.append((step, held))
    return found


def held(alive: dict) -> tuple[set, set]:
    """(operation, output) that others than the recorder have: of steps before the last, and of any."""
    early, ever = set(), set()
    for operation, steps in alive.items():
        for step, outs in steps:
            ever.update((operation, output) for output, _ in outs)
            if step < operation.count - 1:
                early.update((operation, output) for output, _ in outs)
    return early, ever
