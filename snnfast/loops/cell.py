"""Elementwise operations that close a loop over steps: a neuron of the user's own, which runs as one cell.

A period may begin in the middle of such a neuron's step. Its steps are therefore counted from the cut of the period,
where a window ends: what comes after the cut is of the step that the next period goes on with.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .. import ops
from ..cells import products
from . import functions, known, purity
from .operation import LITERAL, MADE, NUMBER, SAME, Operation
from .series import Series, in_modes
from .window import Stage

X, STATE, INNER, CONSTANT, FIXED = range(5)
"""Where a cell's operation takes an argument from: inputs, states, its own operations, tensors, values."""


def find(period) -> list[list[Operation]]:
    """The operations of a period that may run as cells, a list for each cell."""
    groups = [list(part) for part in period.parts]
    cores = [group for group in groups if _is_core(group)]
    for core in cores:
        grown = True
        while grown:
            grown = False
            for group in groups:
                if group is not core and group and core and _fits(core, group) and _may_join(period, core, group):
                    core += group
                    group.clear()
                    grown = True
    return [core for core in cores if len(core) > 1]


def _is_core(group: list[Operation]) -> bool:
    """Whether it is elementwise but for products of its states, and needs the step before or a gradient of the user's
    own."""
    closes = len(group) > 1 or group[0].is_call or group[0].needs_itself
    fits = all(_is_elementwise(operation) or _is_recurrence(operation, group) for operation in group)
    return closes and fits and len({_shape(operation) for operation in group}) == 1


def _is_recurrence(operation: Operation, group: list[Operation]) -> bool:
    """Whether it is a product of what the group makes with weights from outside."""
    if not products.is_one(operation.function, operation.names) or any(operation.nested):
        return False
    x = operation.slots[products.operand(operation.function)]
    inside = [slot for slot in operation.slots if slot.kind == MADE and slot.what in group]
    return inside == [x] and x.like.shape == _shape(operation) and x.like.device.type == "cpu"


def begins_at(cut: int, group: list[Operation], period) -> bool:
    """Whether the products of a cell take what the step before made, if a step begins at this place of the period."""
    places = {operation: place for place, operation in enumerate(period.operations)}
    products_in = [operation for operation in group if _is_recurrence(operation, group)]
    taken = [(one, one.slots[products.operand(one.function)]) for one in products_in]
    return all(slot.lag + (places[one] >= cut) - (places[slot.what] >= cut) > 0 for one, slot in taken)


def _is_elementwise(operation: Operation) -> bool:
    if operation.writes or operation.same_as is not None or any(slot.kind == NUMBER for slot in operation.slots):
        return False
    if any(operation.nested) or operation.outputs[0].device.type != "cpu":
        return False
    if any(one.shape != _shape(operation) for one in operation.outputs):
        return False
    return operation.is_call or operation.function in known.ELEMENTWISE


def _shape(operation: Operation) -> torch.Size:
    return operation.outputs[0].shape


def _fits(core: list[Operation], group: list[Operation]) -> bool:
    return all(map(_is_elementwise, group)) and all(_shape(operation) == _shape(core[0]) for operation in group)


def _may_join(period, core: list[Operation], group: list[Operation]) -> bool:
    """Whether one takes what the other makes, and nothing in between takes it from one to the other."""
    both = {*core, *group}
    takes = any(
        slot.kind == MADE and slot.what in other
        for one, other in ((core, group), (group, core))
        for operation in one
        for slot in operation.slots
    )
    if not takes:
        return False
    reached, new = set(), [user for operation in both for user, _ in period.consumers[operation] if user not in both]
    while new:
        operation = new.pop()
        if operation in reached:
            continue
        reached.add(operation)
        for user, _ in period.consumers[operation]:
            if user in both:
                return False
            new.append(user)
    return True


class Step:
    """One step of a cell, as `snnfast.cells.fused` traces it: it holds what the operations are, no placeholders."""

    def __init__(self, calls: list, outputs: list, states: list, constants: list[Tensor]):
        self.calls, self.outputs, self.states, self.constants = calls, outputs, states, constants

    def __call__(self, xs: tuple, states: tuple) -> tuple[tuple, tuple]:
        made = []

        def value(kind, place, output):
            if kind == INNER:
                return made[place][output]
            return (xs, states, None, self.constants)[kind][place] if kind != FIXED else place

        for function, names, entries in self.calls:
            values = [value(*entry) for entry in entries]
            count = len(values) - len(names)
            if purity.is_one(function):
                out = functions.run(function, values)
            else:
                out = products.call(function, values[:count], dict(zip(names, values[count:], strict=True)))
            made.append(out if isinstance(out, tuple) else (out,))
        return tuple(made[place][output] for place, output in self.outputs), tuple(
            made[place][output] for place, output in self.states
        )


class Cell:
    """Operations of a period that run as one cell.

    Attributes:
        operations: in the order of a step that begins at the cut.
        states: (operation, output) that the step after takes.
        taken: (operation, output) that operations outside take.
        why: why they run one by one; "" where they do not.
    """

    def __init__(self, operations: list[Operation], period):
        places = {operation: place for place, operation in enumerate(period.operations)}
        self.products = [operation for operation in operations if _is_recurrence(operation, operations)]
        cuts = [period.cut, *(places[operation] for operation in self.products)]
        cut = next((cut for cut in cuts if begins_at(cut, operations, period)), period.cut)
        self.shift = {operation: int(places[operation] >= cut) for operation in operations}
        self.operations = sorted(operations, key=lambda operation: (1 - self.shift[operation], places[operation]))
        self.states = []
        for operation in self.operations:
            for slot in operation.slots:
                if self.is_state(operation, slot) and (slot.what, slot.output) not in self.states:
                    self.states.append((slot.what, slot.output))
        users = [(user, slot) for operation in operations for user, slot in period.consumers[operation]]
        self.taken = {(slot.what, slot.output) for user, slot in users if user not in self.shift}
        self.inner = {(slot.what, slot.output) for user, slot in users if user in self.shift}
        self.why = ""
        self._shape = _shape(operations[0])
        self._last = None

    def is_state(self, operation: Operation, slot) -> bool:
        """Whether it is made in the step before."""
        return self.is_inside(slot) and slot.lag + self.shift[operation] - self.shift[slot.what] > 0

    def is_inside(self, slot) -> bool:
        """Whether an operation of the cell makes what stands in a slot."""
        return slot.kind == MADE and slot.what in self.shift

    def stage(self) -> Stage:
        """What a step of it makes, and keeps for backward: what it is given, and its states where they are not run
        again; what the loop keeps beside: both factors of its products."""
        slots = [slot for one in self.operations for slot in one.slots if slot.kind == MADE]
        learns = {(s.what, s.output) for s in slots if s.like.requires_grad and s.like.shape == self._shape}
        kept = {key for key in learns if key[0] not in self.shift}
        if not self._is_run_again:
            kept |= {key for key in self.states if key[0].outputs[key[1]].requires_grad}
        products = [one for one in self.operations if one.function in known.MULTIPLIES]
        factors = [{(slot.what, slot.output) for slot in one.slots if slot.kind == MADE} & learns for one in products]
        beside = set().union(*(both for both in factors if len(both) == 2)) - kept
        size = self.operations[0].outputs[0].bytes
        spikes = sum(maker.outputs[output].bytes for maker, output in self.taken)
        return Stage(spikes, size * len(kept), is_step=True, loops=size * len(beside))

    @functools.cached_property
    def _is_run_again(self) -> bool:
        """Whether backward has the states again from what comes from outside, as far as can be told before it is
        traced."""
        cheap = known.BY_LIBRARY.isdisjoint(one.function for one in self.operations)
        return cheap and not self.products and not self.taken & {*self.states}

    def first(self, operation: Operation) -> int:
        """The step, counted from the cut, in which an operation is first pending."""
        return operation.start + self.shift[operation]

    def computed(self, given: "_Inputs", outputs: list, states: list) -> tuple[tuple, tuple] | None:
        """Outputs [T, ...] and last states; None, and `why`, where it cannot run as one."""
        from .. import cells

        try:
            with ops.unheard():  # who listens is told by `report`, whose neuron it is
                return self._call(given, outputs, states)(given.xs, states)
        except (cells.Refused, cells.BuildFailed) as refused:
            self.why = str(refused)
        return None

    def _call(self, given: "_Inputs", outputs: list, states: list) -> Callable:
        from .. import cells

        read = tuple(purity.last_values(one.function) for one in self.operations if one.is_call)
        key = tuple(outputs), tuple(map(id, given.constants)), given.form, read
        if self._last is None or self._last[0] != key:
            numbers = {operation: number for number, operation in enumerate(self.operations)}
            outs, after = ([(numbers[one], output) for one, output in some] for some in (outputs, self.states))
            step = Step(given.calls, outs, after, given.constants)
            self._last = key, cells.fused(step, [x[0] for x in given.xs], states)
        return self._last[1]


def run(window, cell: Cell, early: set | None, held: set | None) -> bool:
    """Computes a cell's part of a window; False where it has to be step by step.

    Args:
        early, held: (operation, output) that others than the loop have of steps before the last, and of any; None: all.
    """
    operations = cell.operations
    first = max(map(cell.first, operations))
    end = min(cell.first(operation) + operation.count for operation in operations)
    if cell.why or end - first < 2 or len({operation.modes for operation in operations}) > 1:
        return False
    before = [_given_before(cell, key, first) for key in cell.states]
    if not _goes_on(cell, first) or any(state is None for state in before):
        return False
    given = _Inputs(window, cell, first, end - first)
    if given.why or (window.exact and any(tensor.requires_grad for tensor in given.constants)):
        cell.why = given.why
        return False
    outputs = _outputs(cell, early, held)
    with in_modes(operations[0].modes):
        made = window.steps_alone(operations, cell.shift, end=first)
        states = [
            made[maker, first - 1 - cell.shift[maker]][output] if state is MADE else state
            for (maker, output), state in zip(cell.states, before, strict=True)
        ]
        found = cell.computed(given, outputs, states)
        if found is None:
            return False
        outs, last = (
            [
                value if key[0].outputs[key[1]].requires_grad else value.detach()
                for key, value in zip(*pair, strict=True)
            ]
            for pair in ((outputs, found[0]), (cell.states, found[1]))
        )
        for (maker, output), state in zip(cell.states, last, strict=True):
            values = made.setdefault((maker, end - 1 - cell.shift[maker]), [None] * len(maker.outputs))
            values[output] = state
        window.steps_alone(operations, cell.shift, start=end, made=made)
    for (operation, output), out in zip(outputs, outs, strict=True):
        window.series[operation, output] = _series(cell, operation, output, out, made, first, end)
    _keep_last(window, cell, made)
    window.inner |= cell.inner
    for operation in operations:
        window.done[operation] = 0, operation.count - (end - first)
    marks = [operation for operation in operations if operation.is_call] or operations
    window.done[marks[0]] = 1, window.done[marks[0]][1]
    return True


def _outputs(cell: Cell, early: set | None, held: set | None) -> list[tuple[Operation, int]]:
    """What of all steps is wanted outside the cell."""
    every = [(operation, output) for operation in cell.operations for output in operation.numbers]
    if held is None:
        return every
    return [key for key in every if key in cell.taken or key in early or (key in held and key not in cell.states)]


def _series(cell: Cell, operation: Operation, output: int, out: Tensor, made: dict, first: int, end: int) -> Series:
    """An output's values: of steps before those that ran as one, of these, and of steps after them."""
    start = first - cell.shift[operation]
    stop, last = end - cell.shift[operation], operation.start + operation.count
    leads = [made[operation, period][output] for period in range(operation.start, start)]
    rest = [made[operation, period][output] for period in range(stop, last)]
    if not leads and not rest:
        return Series(operation.start, operation.count, stack=out)
    parts = [torch.stack(steps) for steps in (leads, rest) if steps]
    parts.insert(bool(leads), out)
    return Series(operation.start, operation.count, stack=torch.cat(parts))


def _keep_last(window, cell: Cell, made: dict) -> None:
    """What the last step of each operation gave, where that is known without a stack."""
    for operation in cell.operations:
        for output, value in enumerate(made.get((operation, operation.start + operation.count - 1), ())):
            if value is not None:
                window.last[operation, output] = value


def _goes_on(cell: Cell, first: int) -> bool:
    """Whether from a step on all that the cell takes of itself is what it made."""
    for operation in cell.operations:
        for slot, given in zip(operation.slots, operation.given, strict=True):
            if cell.is_inside(slot) and cell.first(operation) + len(given) > first + cell.is_state(operation, slot):
                return False
    return True


def _given_before(cell: Cell, key: tuple, first: int):
    """A state before a step: MADE where the cell makes it, else what was given; None where that is not one tensor."""
    if cell.first(key[0]) < first:
        return MADE
    found = [
        given[0] if given else None
        for operation in cell.operations
        for slot, given in zip(operation.slots, operation.given, strict=True)
        if cell.is_state(operation, slot) and (slot.what, slot.output) == key and cell.first(operation) == first
    ]
    return found[0] if found and all(one is found[0] for one in found) else None


class _Inputs:
    """What a cell's operations take from outside, over the steps of a window.

    Attributes:
        calls: for each operation its function, names of keyword arguments, and where its arguments come from.
        form: where all of them come from.
        xs: [T, ...] inputs of the cell's shape; constants: tensors that are the same at every step.
        why: why they do not fit; "" where they do.
    """

    def __init__(self, window, cell: Cell, first: int, steps: int):
        self.xs, self.constants, self.calls, self.why = [], [], [], ""
        self._window, self._cell, self._first, self._steps = window, cell, first, steps
        self._numbers = {operation: number for number, operation in enumerate(cell.operations)}
        self._known = {}
        self._shape = _shape(cell.operations[0])
        for operation in cell.operations:
            entries = [self._entry(operation, number) for number in range(len(operation.slots))]
            self.calls.append((operation.function, operation.names, entries))
        self.form = tuple(entry for _, _, entries in self.calls for entry in entries if entry[0] != FIXED)
        if not self.xs:
            self.why = self.why or "nothing of its shape comes from outside"

    def _entry(self, operation: Operation, number: int) -> tuple:
        slot = operation.slots[number]
        if self._cell.is_state(operation, slot):
            return STATE, self._cell.states.index((slot.what, slot.output)), 0
        if self._cell.is_inside(slot):
            return INNER, self._numbers[slot.what], slot.output
        if slot.kind == LITERAL:
            return FIXED, slot.what, 0
        if slot.kind == SAME:
            return self._tensor(slot.what)
        series = self._window.input(operation, number).between(self._first - self._cell.shift[operation], self._steps)
        if series.is_steady and (series.steady.shape != self._shape or operation in self._cell.products):
            return self._tensor(series.steady)
        if slot.like.shape != self._shape:
            self.why = f"an input of shape {tuple(slot.like.shape)} changes, where its own is {tuple(self._shape)}"
            return FIXED, None, 0
        made = (slot.what, slot.output, slot.lag - self._cell.shift[operation]) if slot.kind == MADE else ()
        key = made, tuple(map(id, operation.given[number]))
        if key not in self._known:
            self._known[key] = len(self.xs)
            self.xs.append(series.stack())
        return X, self._known[key], 0

    def _tensor(self, tensor: Tensor) -> tuple:
        if id(tensor) not in self._known:
            self._known[id(tensor)] = len(self.constants)
            self.constants.append(tensor)
        return CONSTANT, self._known[id(tensor)], 0
