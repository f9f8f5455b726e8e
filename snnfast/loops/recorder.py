"""The recorder: it learns a loop's period from two that run as written, and lets further ones wait."""

import contextlib
import threading
import time
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from ..neurons.base import was_reset
from . import functions, in_place, known, pieces, recording, settings, settling, stack, unseen
from .before import Before
from .joining import JOINS, join, lanes_of
from .learning import Learning
from .packing import Window, step_of
from .period import LITERAL, MADE, REAL, SAME, Like, Operation, Period, step_outputs
from .placeholder import Pending, any_pending, become, compute, describes, new
from .reading import Reading, memory_of
from .report import Loops, Story
from .series import in_modes, modes, without_autocast
from .settings import Settings
from .translated import TRANSLATED, stand_in, translated

SECONDS_BEFORE_BUILDING = 1.0
"""Of an unmodified script's loop, before its own neurons are compiled."""

_SWITCHES = {torch._C._set_grad_enabled}


class Recorder(TorchFunctionMode):
    """Sees every operation of its thread from a layer's step on."""

    def __init__(self):
        super().__init__()
        self.lock = threading.RLock()
        self.settings = Settings()
        self.reading = Reading()
        self.before = Before()
        self.first = None
        self.is_there = False
        self.packing = self.stepping = self.handling = False
        self._forget()

    @contextlib.contextmanager
    def aside(self):
        """Within it, it sees nothing: what runs is one operation of the loop."""
        before, self.stepping = self.stepping, True
        try:
            yield
        finally:
            self.stepping = before

    @property
    def is_busy(self) -> bool:
        """Whether what is called now is called by the recorder."""
        return self.packing or self.stepping or self.handling

    def _forget(self) -> None:
        """Neither learns nor records."""
        self.period = None
        self.operations = ()
        self.place = self.number = 0
        self.waiting = False
        self.learning = None
        self.reading.clear()

    # In and out of the thread's stack of modes.

    def enter(self) -> None:
        if not self.is_there:
            stack.put_at_bottom(self)
            unseen.watch(1)
            self.is_there = True

    def _go(self) -> None:
        if self.is_there:
            stack.take_away(self)
            unseen.watch(-1)
            self.is_there = False

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within it, it is not there, where it has nothing to see: what runs has nothing to do with a loop."""
        goes = self.is_there and not (self.waiting or self.learning or self.is_busy)
        if goes:
            self._go()
        try:
            yield
        finally:
            if goes and recording.of_this_thread() is self:
                self.enter()

    def leave(self) -> None:
        try:
            self.pack()
        finally:
            self._forget()
            self._go()

    # A layer's step.

    def expects(self, layer) -> bool:
        """Whether a step of this layer is what comes next."""
        return self.period is not None and self.operations[self.place].function is layer

    def step(self, layer, input_, states: tuple, chosen: Settings):
        """One step of a layer, in or outside a recorded loop."""
        self._take_settings(chosen)
        leaves = [input_, *self._states(layer, states)]
        found = self._meet(layer, layer, leaves)
        if found is None:
            return self._run_step(layer, leaves)
        operation, outs = found
        for name, output in operation.kept:
            layer._keep(name, outs[output])
        # A tuple of its own: what only the recorder's refers to is nobody's any more.
        return (*outs,) if layer._returns_states() else outs[0]

    def _take_settings(self, chosen: Settings) -> None:
        if chosen is not self.settings and chosen != self.settings:
            self.pack()
            self._forget()
            self.settings = chosen

    def _meet(self, landmark, function, leaves) -> tuple[Operation, tuple] | None:
        """What a function gives with which a loop may begin, recorded; None: it is to run as written."""
        for again in (False, True):
            if self.period is not None:
                operation = self.operations[self.place]
                if operation.function is function:
                    outs = self._record(operation, leaves)
                    if outs is not None:
                        return operation, outs
                self.pack(function)
            if self.period is not None and landmark is not self.first:
                # Another layer, or another path: the first layer's next step begins anew.
                self._forget()
            if landmark is not self.first and (self.period is not None or self.learning is not None):
                return None
            if again or not self._begin(landmark, leaves):
                functions.loops_of(landmark).story.plain += 1
                return None
        return None

    @staticmethod
    def _states(layer, states: tuple) -> list:
        given = zip(layer.state_names, states, strict=True)
        return [getattr(layer, name) if state is None else state for name, state in given]

    def _begin(self, landmark, leaves: list) -> bool:
        """At what may be a loop's first: goes on learning, or takes up what is known. Whether it can be recorded."""
        loops = functions.loops_of(landmark)
        if self.learning is not None:
            return self._may_have_learnt(loops)
        if loops.skip:
            loops.skip -= 1
            self._forget()
            self._go()
            return False
        self._forget()
        self.first = landmark
        self.key = self._key(leaves)
        self.enter()
        period = loops.find(self.key)
        if period is not None:
            self._take_up(period)
            return True
        self.learning = Learning(self.settings.numbers == "exact")
        return False

    def _may_have_learnt(self, loops: Loops) -> bool:
        """The first layer again: whether the loop is known by now."""
        period = self.learning.again()
        if period is None:
            self._look_whether_it_failed()
            return False
        loops.keep(self.key, period)
        self._forget()
        self._take_up(period)
        return True

    def _look_whether_it_failed(self) -> None:
        if self.learning is not None and self.learning.failed:
            self._give_up(functions.loops_of(self.first), self.learning.failed)

    def _key(self, leaves: list) -> tuple:
        known_shapes = (leaves[0].shape, leaves[0].dtype, leaves[0].device) if isinstance(leaves[0], Tensor) else None
        return known_shapes, modes(), self.settings, getattr(self.first, "training", None)

    def _give_up(self, loops: Loops, why: str) -> None:
        self._forget()
        loops.fail(why)

    def _take_up(self, period: Period) -> None:
        self.period, self.operations = period, period.operations
        self._plan()
        self.before.watch(period)
        self.before.take_over(period)
        for operation in self.operations:
            operation.forget()

    def _run_step(self, layer, leaves: list):
        """A step as written."""
        compute(leaves)
        with self.aside():
            outs = step_of(layer, leaves)
        out = layer._taken(outs)
        if self.learning is not None:
            # What the layer keeps may be a copy.
            kept = (getattr(layer, name, out) for name, out in zip(step_outputs(layer)[1:], outs[1:], strict=True))
            self.learning.step(layer, leaves, (outs[0], *kept))
        return out

    # An autograd function of the user's.

    def may_begin_at(self, landmark) -> bool:
        """Whether a loop may begin with what a module, or another piece of code, calls."""
        return landmark is self.first or not self.waiting and self.learning is None

    def begin_at(self, landmark, function: type, args: tuple, chosen: Settings):
        """What an autograd function gives that a loop may begin with."""
        self._take_settings(chosen)
        found = self._meet(landmark, function, args)
        if found is not None:
            return _result(*found)
        if self.learning is not None:
            return self._learnt_call(function, args)
        return NotImplemented

    def call(self, function: type, args: tuple):
        """What an autograd function gives in a loop that is learnt or recorded, if it may wait there."""
        if (
            self.period is not None
            and (outs := self._record(operation := self.operations[self.place], args)) is not None
        ):
            return _result(operation, outs)
        if functions.caller() is self.first:
            return self.begin_at(self.first, function, args, self.settings)
        return NotImplemented if self.learning is None else self._learnt_call(function, args)

    def _learnt_call(self, function: type, args: tuple):
        return NotImplemented if self.learning.failed else self.learning.call(function, args)

    # Any other operation.

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # Torch has taken the mode off the stack meanwhile: nothing that this calls may lay it there, or take it away.
        self.handling = True
        try:
            return self._handle(func, args, kwargs or {})
        finally:
            self.handling = False

    def _handle(self, func, args: tuple, kwargs: dict):
        if self.stepping:
            return func(*args, **kwargs)
        if self.period is not None:
            if func in TRANSLATED:
                func, args, kwargs = translated(func, args, kwargs)
                if func is None:
                    return args
            operation = self.operations[self.place]
            if func is operation.function:
                leaves = operation.leaves(args, kwargs)
                if leaves is not None:
                    outs = self._record(operation, leaves)
                    if outs is not None:
                        return _result(operation, outs)
            elif func in known.IN_PLACE and known.IN_PLACE[func] is operation.function:
                written = in_place.record(self, operation, args, kwargs)
                if written is not None:
                    return written
            reads = func in known.READERS and not (self.reading or self.waiting) and func not in JOINS
            if reads and (not kwargs or (kwargs.get("out") is None and not kwargs.get("inplace"))):
                return self.before.run(func, args, kwargs)
            return self._otherwise(func, args, kwargs)
        if self.learning is not None:
            if self.learning.failed:
                self._look_whether_it_failed()
                return self._otherwise(func, args, kwargs)
            return self.learning.operation(func, args, kwargs)
        if self.period is None and not pieces.known:
            return self.before.run(func, args, kwargs)
        return self._otherwise(func, args, kwargs)

    def _record(self, operation: Operation, leaves) -> tuple | None:
        """Lets an operation wait; None where it is not the one that was expected, or must see what waits."""
        if operation.modes != modes() or len(leaves) != len(operation.slots):
            return None
        if self.place == self.period.cut and self._is_long():
            self._pack_window()
        if self.reading.fixed and self.reading.is_written_unseen():
            self.pack()
        goes_on = operation.count and not self.reading.snapshots and operation.goes_on(leaves)
        if not goes_on and not self._begins(operation, leaves):
            return None
        if operation.same_as is not None:
            self._next()
            return (leaves[operation.same_as],)
        number = self.number
        outs = tuple([new(self, operation, output, number) for output in operation.numbers])
        operation.made.append(outs)
        operation.count += 1
        self.waiting = True
        self._next()
        return outs

    def _begins(self, operation: Operation, leaves) -> bool:
        """Takes the arguments of an operation whatever they are, if they fit."""
        entries = self._entries(operation, leaves)
        if entries is None:
            return False
        if operation.same_as is not None:
            return True
        if not operation.count:
            operation.start = self.number
            if operation.is_step:
                for parameter in operation.function._tensors_of_step():
                    self.reading.add_in_place(parameter)
        given = operation.given
        for place, value in entries:
            given[place].append(value)
        return True

    def _next(self) -> None:
        self.place += 1
        if self.place == len(self.operations):
            self.place = 0
            self.number += 1

    def _plan(self) -> None:
        """Plans the windows of a loop, which may be as long as the last one was."""
        self.done, self.sizes = 0, self.period.windows_of(self.period.length)
        self.most = self.sizes[0]

    def _is_long(self) -> bool:
        return self.waiting and self._count() >= self.most

    def _count(self) -> int:
        return max(operation.count for operation in self.operations)

    def _pack_window(self) -> None:
        """Computes what waits in the middle of a loop."""
        done, sizes = self.done + self._count(), self.sizes[1:] or self.sizes
        self.pack(goes_on=True)
        self.done, self.sizes, self.most = done, sizes, sizes[0]

    def _entries(self, operation: Operation, leaves) -> list | None:
        """What is new in the slots of an operation: (slot, value); None where one does not fit."""
        entries, given_of, begun = [], operation.given, operation.count
        for place, ((kind, what, output, lag, like), value) in enumerate(zip(operation.slots, leaves, strict=True)):
            if kind == MADE:
                if type(value) is Pending:
                    recorder, maker, made, period = value.made_by
                    if maker is not what or made != output or period != self.number - lag or recorder is not self:
                        return None
                    continue
                state = operation.is_chain and place > 0
                if not self._fits(value, like, state):
                    return None
                if begun and (state or len(given_of[place]) < begun):
                    # The loop goes on from something else: what waits is of before, and placeholders are no more.
                    self.pack()
                    return self._entries(operation, leaves)
                entries.append((place, self.reading.add(value)))
            elif kind == SAME:
                if value is not what:
                    return None
                if not begun:
                    self.reading.add_in_place(value)
            elif kind == LITERAL:
                if value is not what and (type(value) is not type(what) or value != what):
                    return None
            elif kind == REAL:
                given = given_of[place]
                if not given or value is not given[-1]:
                    if not self._fits(value, like, False, operation.moving):
                        return None
                    value = self.reading.add(value)
                elif self.reading.snapshots:
                    value = self.reading.add(value)
                if place in operation.writes:
                    self.reading.drop(value)
                entries.append((place, value))
            elif type(value) is not what:
                return None
            else:
                entries.append((place, value))
        return entries

    @staticmethod
    def _fits(value, like: Like, state: bool, moving: int | None = None) -> bool:
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

    # What is not expected.

    def _otherwise(self, func, args, kwargs):
        """Runs an operation as written, after all that waits where that could make a difference."""
        if func in JOINS and (joined := self._joined(func, args, kwargs)) is not None:
            return joined
        if any_pending(args) or (kwargs and any_pending(kwargs.values())):
            if describes(func, args):
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            if func in known.OF_SHAPE and type(args[0]) is Pending and not any_pending(args[1:]):
                return func(stand_in(args[0]), *args[1:], **kwargs)
            # A step whose gradient is wanted is one that steps were computed from.
            self.pack(func, as_written=any_pending(pieces.asked_for_gradients(func, args, kwargs)))
        elif self.reading and not describes(func, args) and not self._may_come_first(func, args, kwargs):
            self.pack(func)
        if pieces.known and (written := known.written_by(func, args, kwargs)):
            for tensor in written:
                self._own(tensor)
        return self.before.run(func, args, kwargs)

    def _joined(self, func, args, kwargs) -> Tensor | None:
        """A stack of steps that are together already; None where they are not."""
        lanes = lanes_of(args, kwargs)
        if lanes is None or (self.settings.numbers == "exact" and torch.is_grad_enabled()):
            return None
        if self.waiting:
            self.pack(func)
        return join(func, lanes)

    def _may_come_first(self, func, args, kwargs) -> bool:
        """Whether a call on computed tensors may run before what waits."""
        return self._is_harmless(func, args, kwargs) and self._may_precede(args, kwargs)

    def _is_harmless(self, func, args, kwargs) -> bool:
        """Whether a call on computed tensors leaves alone what waiting operations will read and write."""
        written = known.written_by(func, args, kwargs)
        if written is None:
            return func in _SWITCHES
        memories = {memory_of(tensor) for tensor in written if type(tensor) is not Pending}
        if not written and not self.period_writes():
            return True
        read = self.reading.memories()
        if memories & read:
            return False
        given = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)]
        touched = {memory_of(tensor) for tensor in given}
        return not touched & self.period_writes()

    def _may_precede(self, args, kwargs) -> bool:
        """Whether a call may come before what waits: gradients are summed in the order of calls."""
        if self.settings.numbers != "exact" or not torch.is_grad_enabled():
            return True
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        return not any(tensor.requires_grad and tensor in self.reading for tensor in tensors)

    def period_writes(self) -> set:
        """The memory that waiting operations will write."""
        return {
            memory_of(tensor)
            for operation in self.operations
            for place in operation.writes
            for tensor in operation.given[place][:1]
        }

    def layer_changes(self, layer) -> None:
        """An attribute of a layer is about to change."""
        if self.waiting and not self.packing and any(operation.function is layer for operation in self.operations):
            self.pack()

    def _own(self, tensor) -> None:
        """Gives a step of a stack, that is about to be written, memory of its own, unless others are views of it."""
        piece = pieces.of(tensor) if isinstance(tensor, Tensor) else None
        if piece is not None and not pieces.shares_memory(tensor):
            pieces.forget(tensor)
            torch._C._swap_tensor_impl(tensor, tensor.clone())

    def is_about_to_run(self, name: str, args: tuple | None) -> None:
        """A call that no mode sees is about to run, of these arguments, or of what nobody knows."""
        if not self.waiting and self.learning is None:
            return
        tensors = None if args is None else [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor)]
        if self.waiting:
            read = self.reading.memories() if tensors else ()
            if tensors is None or any(type(tensor) is Pending or memory_of(tensor) in read for tensor in tensors):
                self.pack()
        if self.learning is not None:
            self.learning.look(name, tensors)

    # Packing.

    def pack(self, reason=None, as_written: bool = False, goes_on: bool = False) -> None:
        """Computes all that waits. Every placeholder that somebody still has is its value from now on.

        goes_on: nobody asked for it; a window is full, and the loop goes on with nothing else in between.
        """
        with self.lock:
            if self.packing:
                return
            if not self.waiting:
                self._forget_steady()
                return
            self.packing = True
            try:
                with torch._C.DisableTorchFunction(), in_modes((True, False, False)), without_autocast():
                    self.reading.check()
                    with self.reading.as_read() if self.reading.fixed else contextlib.nullcontext():
                        self._pack(as_written)
            finally:
                self.packing = False
            if not goes_on or self.reading.fixed or self.reading.snapshots:
                self._forget_steady()
            else:
                self.reading.keep([tensor for given, *_ in self.period.steady.values() for tensor in given])
            if not goes_on:
                self.period.windows += 1
                self.period.steps += self.period.length or 0
            if reason is not None:
                functions.loops_of(self.first).story.ends[getattr(reason, "__name__", type(reason).__name__)] += 1
                self._judge()

    def _pack(self, as_written: bool) -> None:
        pending = [operation for operation in self.operations if operation.count]
        # What comes before a first step may be the beginning of something else.
        steps = max((operation.count for operation in pending if operation.is_mark), default=0)
        if steps:
            self.period.length = self.done + steps
        alive = {operation: settling.alive(operation) for operation in pending}
        held = {(operation, output) for operation in pending for _, outs in alive[operation] for output, _ in outs}
        early = {
            (operation, output)
            for operation in pending
            for step, outs in alive[operation]
            for output, _ in outs
            if step < operation.count - 1
        }
        window = self._computed(early, held, as_written)
        values = settling.values(window, alive, {id(tensor) for tensor, _ in self.reading.tensors.values()})
        for placeholder, value in values:
            become(placeholder, value)
        for operation in pending:
            operation.forget()
        self.waiting = False
        self._plan()

    def _forget_steady(self) -> None:
        """Nothing that was read is remembered any more."""
        self.reading.clear()
        if self.period is not None:
            self.period.steady.clear()

    def _computed(self, early: set, held: set, as_written: bool) -> Window:
        """The window, computed; verified where that is asked for."""
        story, exact = functions.loops_of(self.first).story, self.settings.numbers == "exact"
        start = time.perf_counter()
        # An unmodified script is not to wait for a compiler before it has run for a while.
        builds = self.settings is not settings.everywhere or self.period.seconds > SECONDS_BEFORE_BUILDING
        window = Window(self.period, exact, builds)
        try:
            given = (None, None) if story.verified < self.settings.verify else (early, held)
            window.run(*given, as_written or self.period.as_written)
        except Exception:
            if any(operation.writes or operation.function is known.set_item for operation in window.done):
                # What is written would be written twice.
                raise
            # As one call it may want what single steps do not, such as memory; as written it fails as the loop would.
            self.period.as_written = True
            window = Window(self.period, exact)
            window.run(as_written=True)
        self.period.seconds += time.perf_counter() - start
        story.seconds += time.perf_counter() - start
        if story.verified < self.settings.verify:
            story.verified += 1
            window = self._verified(window, story)
        story.count(window, self.operations[0])
        self.period.fused += sum(calls for one, (calls, _) in window.done.items() if one.is_mark or not exact)
        return window

    def _verified(self, window: Window, story: Story) -> Window:
        """The window, or where the written loop gives something else, that."""
        written = Window(self.period, window.exact)
        written.run(as_written=True)
        differences = window.differences(written)
        if not differences:
            return window
        story.differences += differences
        self.period.as_written = True
        warnings.warn(
            f"snnfast: {story.place}: {differences[0]}; the loop runs as written from now on. Please report it",
            stacklevel=2,
        )
        return written

    def _judge(self) -> None:
        """Sees whether the waiting was worth it."""
        period = self.period
        if period is None:
            return
        why = ""
        if period.windows >= 8 and period.steps < 2.5 * period.windows:
            why = "it looks at values too often"
        elif period.windows >= 4 and not period.fused:
            exact = self.settings.numbers == "exact"
            why = "with exact numbers no layer's steps run as one" if exact else "none of its steps run as one"
        if why:
            loops = functions.loops_of(self.first)
            loops.drop(period)
            self._give_up(loops, why)


def _without(shape: torch.Size, dim: int) -> tuple:
    """The sizes but for one dimension's."""
    return len(shape), shape[:dim], shape[dim + 1 :]


def _result(operation: Operation, outs: tuple):
    """What a call gives whose outputs are these."""
    kind = operation.several
    return outs[0] if kind is None else list(outs) if kind is list else (*outs,) if kind is tuple else kind(outs)
