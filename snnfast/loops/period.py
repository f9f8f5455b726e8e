"""One period of a loop: its operations, and in which order they may run at once."""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from . import known, worth
from .operation import LITERAL, MADE, NUMBER, REAL, SAME, Like, Operation, Slot
from .reading import versions_of
from .window import Stage, choose


class Logged(NamedTuple):
    """An operation as it was run; `sources`: of each leaf the logged operation that made it, and which output it is."""

    function: object
    nested: tuple
    names: tuple[str, ...]
    leaves: list
    sources: list
    outs: tuple
    several: type | None
    modes: tuple
    same_as: int | None
    writes: tuple[int, ...]
    where: str = ""
    label: str = ""


class Plan(NamedTuple):
    """How many periods were computed, and how many wait at most, window by window."""

    done: int
    sizes: tuple[int, ...]

    def is_full(self, count: int) -> bool:
        """Whether the window that waits has all its periods."""
        return count >= self.sizes[0]

    def after(self, count: int, sizes: tuple[int, ...]) -> "Plan":
        """Once these have been computed; sizes: of windows of a loop that goes on for longer than was planned."""
        return Plan(self.done + count, self.sizes[1:] or sizes)


class Period:
    """The operations of one period, in their order."""

    def __init__(self, before: list[Logged], now: list[Logged], first: int, exact: bool = False):
        """`first`: the number of the first operation of `now` in the log, those of `before` standing right before;
        exact: what shares a parameter runs in the loop's order, as the parameter's gradient is summed in that."""
        self.operations = []
        places = []
        for earlier, logged in zip(before, now, strict=True):
            operation = Operation(
                logged.function, logged.nested, logged.names, [Like.of(out) for out in logged.outs],
                logged.several, logged.modes, logged.same_as, logged.writes, logged.where, logged.label,
            )  # fmt: skip
            self.operations.append(operation)
            places.append((earlier, logged))
        for place, (operation, (earlier, logged)) in enumerate(zip(self.operations, places, strict=True)):
            sources = zip(earlier.leaves, logged.leaves, logged.sources, strict=True)
            slots = [self._slot(old, new, source, first) for old, new, source in sources]
            operation.connect(slots, self.operations[:place])
        self.alike = set() if exact else self._alike(places)
        """The operations that were given the same in two periods."""
        self.consumers = {operation: [] for operation in self.operations}
        """For each operation who takes what it makes, and in which slot, its own states aside."""
        for user in self.operations:
            for slot in user.slots:
                if slot.kind == MADE and not (slot.what is user and user.is_chain):
                    self.consumers[slot.what].append((user, slot))
        shared = _sharing(self.operations) if exact else {}
        self.parts = _parts(self.operations, shared)
        self.cut = 0
        """Before which operation a window ends."""
        self.cells = self._cells(shared)
        """Neurons of the user's own, by their first operation."""
        self.taken = [_users_of_others(part) for part in self.parts]
        self.unordered = self.out_of_order() if exact else []
        self.length = self.length_before = None
        """How many periods waited in a row, as the last ones did, and those before them."""
        self._windows = {}
        self.windows = self.steps = self.fused = 0
        self.judged, self.gained, self.others = 0, 0.0, 0
        """How many windows were judged, the microseconds that these gained, and the calls seen that are none of it."""
        self.seconds = 0.0
        self.as_written = False
        self.steady = {}
        """Of operations that are given the same at every step what they were given and gave, from window to window, and
        how often that was written to."""

    def out_of_order(self) -> list[tuple[Operation, int, int]]:
        """(operation, output, takers) of values whose takers run in another order over many periods than in the loop:
        the gradients of three or more add up to other bits then."""
        place = {operation: number for number, operation in enumerate(self.operations)}
        part_of = {operation: number for number, part in enumerate(self.parts) for operation in part}
        takers = {}
        for user in self.operations:
            for slot in user.slots:
                if slot.kind == MADE and slot.what.outputs[slot.output].requires_grad:
                    twice = user.is_step and slot.lag and not getattr(user.function.model, "fuses_steps", False)
                    takers.setdefault((slot.what, slot.output), []).extend([(slot.lag, user)] * (1 + twice))
        found = []
        for (operation, output), users in takers.items():
            in_loop = sorted(users, key=lambda user: (user[0], place[user[1]]))
            as_run = sorted(in_loop, key=lambda user: part_of[user[1]])
            if in_loop != as_run:
                found.append((operation, output, len(users)))
        return found

    def _cells(self, shared: dict) -> dict:
        """The parts that may run as cells, each a part from now on."""
        from . import cell

        groups = cell.find(self)
        self.cut = _best_cut(self.operations, lambda cut: all(cell.begins_at(cut, group, self) for group in groups))
        if groups:
            together = {operation: set(group) - {operation} for group in groups for operation in group}
            both = {one: shared.get(one, set()) | together.get(one, set()) for one in self.operations}
            self.parts = _parts(self.operations, both)
        found = [set(group) for group in groups]
        return {part[0]: cell.Cell(part, self) for part in self.parts if set(part) in found}

    def _slot(self, old, new, source, first: int) -> Slot:
        if source is not None:
            number, output = source
            count = len(self.operations)
            if number >= first - count:
                lag = int(number < first)
                maker = self.operations[(number - first) % count]
                return Slot(MADE, maker, output, lag, Like.of(new))
        if isinstance(new, nn.Parameter):
            return Slot(SAME, new)
        if isinstance(new, Tensor):
            return Slot(REAL, None, like=Like.of(new))
        if type(old) is type(new) and (old is new or old == new):
            return Slot(LITERAL, new)
        return Slot(NUMBER, type(new))

    def _alike(self, places: list[tuple[Logged, Logged]]) -> set[Operation]:
        """The operations that were given the same in both periods: they are computed once."""
        alike = set()
        for operation, (earlier, logged) in zip(self.operations, places, strict=True):
            same = all(
                (slot.what in alike and not slot.lag) if slot.kind == MADE else slot.kind != NUMBER and old is new
                for slot, old, new in zip(operation.slots, earlier.leaves, logged.leaves, strict=True)
                if slot.kind != LITERAL
            )
            if same and not operation.is_mark and not operation.writes:
                alike.add(operation)
        return alike

    @functools.cached_property
    def saved(self) -> dict[Operation, float]:
        """The microseconds that a step of each operation costs less as one of a call."""
        inner = {operation for own in self.cells.values() for operation in own.shift}
        return {operation: worth.saved_by(operation, operation in inner) for operation in self.operations}

    @functools.cached_property
    def beginning(self) -> list[Operation]:
        """What comes after the last layer, on the way to the next period's first, and is alike at every step."""
        last = max(place for place, operation in enumerate(self.operations) if operation.is_mark)
        return [operation for operation in self.operations[last + 1 :] if operation in self.alike]

    def remember(self, operation: Operation, given: list, outs: tuple) -> None:
        """Keeps what an operation gives that is given the same at every step."""
        self.steady[operation] = given, outs, versions_of((*given, *outs))

    def remembered(self, operation: Operation, given: list) -> tuple | None:
        """What an operation gave that was given the same, if nothing of it was written to since."""
        before, outs, versions = self.steady.get(operation, ((), (), ()))
        same = len(before) == len(given) and all(map(operator.is_, before, given))
        return outs if same and versions == versions_of((*given, *outs)) else None

    @property
    def count(self) -> int:
        """How many periods wait."""
        return max(operation.count for operation in self.operations)

    def plan(self) -> "Plan":
        """The windows of a loop, which may be as long as the last ones were: one that is looked at in its first step is
        two in turns, a short and a long one."""
        known = [length for length in (self.length, self.length_before) if length]
        return Plan(0, self.windows_of(max(known, default=None)))

    def ran(self, steps: int, done: int) -> None:
        """Remembers that so many periods were computed, after others that waited in the same row."""
        if not done:
            self.length_before = self.length
        self.length = done + steps

    def windows_of(self, length: int | None) -> tuple[int, ...]:
        """The sizes of the windows of a loop of that many periods; None: of one whose length is not known."""
        if length not in self._windows:
            device = self.operations[0].outputs[0].device
            self._windows[length] = choose(self._stages(), length, device)[0].sizes
        return self._windows[length]

    def _stages(self) -> list[Stage]:
        """What each operation makes and keeps, the last layer's step at the end."""
        last = max(place for place, operation in enumerate(self.operations) if operation.is_mark)
        stages = []
        ordered = (*self.operations[last + 1 :], *self.operations[: last + 1])
        # A recurrent one keeps more than the loop, however long its windows: these go by the loop.
        own_steps = [own for own in self.cells.values() if not own.why and not own.products]
        cells = {operation: own for own in own_steps for operation in own.shift}
        ends = {own: operation for operation in ordered if (own := cells.get(operation))}
        for operation in ordered:
            if operation in cells:
                if operation is ends[cells[operation]]:
                    stages.append(cells[operation].stage())
                continue
            first, *states = operation.outputs
            if operation.same_as is not None or operation.function in known.VIEWS:
                continue
            if operation.is_step:
                kept, made = states, first.bytes
            else:
                kept = [slot.like for slot in operation.slots if slot.kind == MADE]
                made = sum(like.bytes for like in operation.outputs)
            weights = sum(slot.what.nbytes for slot in operation.slots if slot.kind == SAME and _learns(slot.what))
            kept, loops = sum(like.bytes for like in kept if like.requires_grad), 0
            if operation.function in known.POOLS_BY_TAPS and kept:
                kept, loops = made // 4, self._kept_by_pool(operation)
            if operation in self.alike:
                made, kept, loops = 0, 0, loops + kept
            stages.append(Stage(made, kept, weights, operation.is_mark, loops))
        return stages

    @staticmethod
    def _kept_by_pool(operation: Operation) -> int:
        """Bytes that torch's pooling keeps: where each largest value stood, and what a product made for nobody else."""
        (slot,) = (slot for slot in operation.slots if slot.kind == MADE)
        for_it_alone = slot.what.function in known.PRODUCTS
        return 8 * operation.outputs[0].shape.numel() + for_it_alone * slot.like.bytes - operation.outputs[0].bytes // 4


def _learns(value) -> bool:
    return isinstance(value, nn.Parameter) and value.requires_grad


def same_calls(before: list[Logged], now: list[Logged]) -> bool:
    """Whether two stretches of a log are two periods of one loop."""
    if len(before) != len(now):
        return False
    for a, b in zip(before, now, strict=True):
        if a.function is not b.function or a.nested != b.nested or a.names != b.names or a.modes != b.modes:
            return False
        if a.several is not b.several or a.same_as != b.same_as or a.writes != b.writes:
            return False
        if [(out.shape, out.dtype) for out in a.outs] != [(out.shape, out.dtype) for out in b.outs]:
            return False
        if not all(map(_may_be_one_slot, a.leaves, b.leaves)):
            return False
    return True


def _may_be_one_slot(old, new) -> bool:
    if isinstance(new, nn.Parameter):
        return old is new
    if isinstance(new, Tensor):
        return isinstance(old, Tensor)
    if type(old) is not type(new):
        return False
    return type(new) in (int, float) or old is new or bool(old == new)


def _edges(operations: list[Operation]) -> dict[Operation, set[Operation]]:
    """Who needs whom, of whatever period."""
    needs = {}
    for operation in operations:
        own = operation if operation.is_chain else None
        needs[operation] = {s.what for s in operation.slots if s.kind == MADE and s.what is not own}
    return needs


def _sharing(operations: list[Operation]) -> dict[Operation, set[Operation]]:
    """Who takes a parameter that others take too."""
    takers = {}
    for operation in operations:
        taken = operation.function.parameters() if operation.is_step else []
        for parameter in (*taken, *(slot.what for slot in operation.slots if slot.kind == SAME)):
            if isinstance(parameter, Tensor) and parameter.requires_grad:
                takers.setdefault(id(parameter), set()).add(operation)
    shared = {operation: set() for operation in operations}
    for together in takers.values():
        for operation in together:
            shared[operation] |= together - {operation}
    return shared


def _parts(operations: list[Operation], shared: dict[Operation, set[Operation]]) -> list[list[Operation]]:
    """The operations in the order in which they may run over many periods; those that need one another together.

    They are the strongly connected components of who needs whom (Tarjan, 1972): loop distribution.
    """
    needs, index, low, stack, parts = _edges(operations), {}, {}, [], []
    for operation, others in shared.items():
        needs[operation] |= others

    def visit(operation):
        index[operation] = low[operation] = len(index)
        stack.append(operation)
        for other in sorted(needs[operation], key=operations.index):
            if other not in index:
                visit(other)
                low[operation] = min(low[operation], low[other])
            elif other in stack:
                low[operation] = min(low[operation], index[other])
        if low[operation] == index[operation]:
            part = []
            while not part or part[-1] is not operation:
                part.append(stack.pop())
            parts.append(sorted(part, key=operations.index))

    for operation in operations:
        if operation not in index:
            visit(operation)
    return parts


def _users_of_others(part: list[Operation]) -> set:
    """What operations take of other parts: (operation, output)."""
    slots = [slot for operation in part for slot in operation.slots if slot.kind == MADE]
    return {(slot.what, slot.output) for slot in slots if slot.what not in part}


def _best_cut(operations: list[Operation], fits: Callable[[int], bool]) -> int:
    """Before which operation a window best ends: of those that fit, if there are any, where least is handed on from one
    window to the next."""
    place = {operation: number for number, operation in enumerate(operations)}

    def handed_on(cut):
        total = 0
        for user in operations:
            for slot in user.slots:
                if slot.kind != MADE or (slot.what is user and user.is_chain):
                    continue
                maker, taker = place[slot.what], place[user]
                # In units of "windows started": an operation before the cut is a period ahead of those after it.
                if slot.lag + (maker < cut) - (taker < cut) > 0:
                    total += slot.like.bytes
        return total

    cuts = range(len(operations))
    return min([cut for cut in cuts if fits(cut)] or cuts, key=handed_on)
