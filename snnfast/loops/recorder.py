"""The recorder: it learns a loop's period from two that run as written, and lets further ones wait."""

import contextlib
import threading
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from .. import _torch
from .._ext import native
from . import functions, in_place, joining, known, pieces, purity, recording, settling, stack
from .alone import step_of
from .before import Before
from .computing import computed, why_it_was_no_use
from .joining import JOINS
from .learning import Learning
from .matching import entries
from .operation import Operation, step_outputs
from .period import Period
from .placeholder import Pending, any_pending, become, compute, describes, make, new
from .precedence import may_come_first
from .reading import Reading, memory_of
from .report import Loops
from .series import SEEN_IN, WAITS_UNDER_NONE, in_modes, modes, without_autocast
from .settings import Settings
from .translated import TRANSLATED, stand_in, translated

native.set_up_recording(make, (*SEEN_IN, *WAITS_UNDER_NONE))


class Recorder(stack.AtBottom):
    """Sees every operation of its thread from a layer's step on."""

    def __init__(self):
        super().__init__()
        self.lock = threading.RLock()
        self.settings = Settings()
        self.reading = Reading()
        self.before = Before()
        self.first = None
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
        self.operations = []
        self.place = self.number = self.cut = 0
        self.waiting = False
        self.learning = None
        self.reading.clear()

    def rest_for(self, writes_parameters_only: bool) -> None:
        """Sees nothing until `resume`, or a loop's next step, where nothing of a loop is at stake meanwhile."""
        if self.is_busy:
            return
        self._look_whether_it_failed()
        if not (self.waiting or self.learning or self.reading or (pieces.known and not writes_parameters_only)):
            self.before.calls.clear()
            self.rest()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within it, it is not there, where it has nothing to see: what runs has nothing to do with a loop."""
        goes = self.is_there and not (self.waiting or self.learning or self.is_busy)
        if goes:
            self.go()
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
            self.go()

    def expects(self, function) -> bool:
        """Whether a step of this layer, or a call of this function, is what comes next."""
        return self.period is not None and self.operations[self.place].function is function

    def waits_for(self, function) -> bool:
        """Whether calls of it wait."""
        return self.waiting and any(one.function is function and one.count for one in self.operations)

    def goes_on_with(self, layer) -> bool:
        """Whether a step of this layer is what comes next after others of it that wait."""
        return self.expects(layer) and self.operations[self.place].count > 0

    def step(self, layer, input_, states: tuple, chosen: Settings):
        """One step of a layer, in or outside a recorded loop."""
        self.resume()
        self._take_settings(chosen)
        leaves = [input_, *self._states(layer, states)]
        found = self._meet(layer, layer, leaves)
        if found is None:
            return self._run_step(layer, leaves)
        return found[0].step_result(layer, found[1])

    def next_step(self, layer, input_, states: tuple):
        """A step of a layer with which the loop goes on; NotImplemented where more than that is to be looked at."""
        if self.handling or self.rests:
            return NotImplemented
        operation = self.operations[self.place]
        outs = native.goes_on(self, operation, [input_, *self._states(layer, states)])
        return NotImplemented if outs is None else operation.step_result(layer, outs)

    def _take_settings(self, chosen: Settings) -> None:
        if chosen != self.settings:
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
            self.go()
            return False
        self._forget()
        self.first = landmark
        self.key = self._key(leaves)
        if not self.is_there:
            self.before.calls.clear()
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

    def _give_up(self, loops: Loops, why: str, to_no_use: bool = False) -> None:
        loops.fail(why, to_no_use)
        # Those that it goes through besides would begin the same loop.
        noted = self.operations if self.learning is None else self.learning.log
        for landmark in (one.function for one in noted if isinstance(one.function, nn.Module)):
            others = functions.loops_of(landmark)
            others.skip = max(others.skip, loops.skip)
        self._forget()

    def _take_up(self, period: Period) -> None:
        self.period, self.operations, self.cut = period, period.operations, period.cut
        self.plan = self.period.plan()
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

    def may_begin_at(self, landmark) -> bool:
        """Whether a loop may begin with what a module, or another piece of code, calls."""
        return landmark is self.first or not self.waiting and self.learning is None

    def begin_at(self, landmark, function: type, args: tuple, chosen: Settings):
        """What an autograd function gives that a loop may begin with."""
        self.resume()
        self._take_settings(chosen)
        found = self._meet(landmark, function, args)
        if found is not None:
            return found[0].result(found[1])
        if self.learning is not None:
            return self.learning.call(function, args)
        return NotImplemented

    def call(self, function: type, args: tuple):
        """What an autograd function gives in a loop that is learnt or recorded, if it may wait there."""
        self.resume()
        if (
            self.period is not None
            and (outs := self._record(operation := self.operations[self.place], args)) is not None
        ):
            return operation.result(outs)
        if functions.caller() is self.first:
            return self.begin_at(self.first, function, args, self.settings)
        return NotImplemented if self.learning is None else self.learning.call(function, args)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = native.call_goes_on(self, func, args, kwargs)
        if result is not NotImplemented:
            return result
        # Torch has taken the mode off the stack meanwhile: nothing that this calls may lay it there, or take it away.
        self.handling = True
        try:
            return self._handle(func, args, kwargs)
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
                        return operation.result(outs)
            elif func in known.IN_PLACE and known.IN_PLACE[func] is operation.function:
                written = in_place.record(self, operation, args, kwargs)
                if written is not None:
                    return written
            self.period.others += 1
            reads = func in known.READERS and not (self.reading or self.waiting) and func not in JOINS
            if reads and (not kwargs or (kwargs.get("out") is None and not kwargs.get("inplace"))):
                return self.before.run(func, args, kwargs)
            return self._otherwise(func, args, kwargs)
        if self.learning is not None:
            self.before.see(func)
            if self.learning.failed:
                self._look_whether_it_failed()
                return self._otherwise(func, args, kwargs)
            return self.learning.operation(func, args, kwargs)
        if self.period is None and not pieces.known:
            return self.before.run(func, args, kwargs)
        return self._otherwise(func, args, kwargs)

    def _record(self, operation: Operation, leaves) -> tuple | None:
        """Lets an operation wait; None where it is not the one that was expected, or must see what waits."""
        outs = native.goes_on(self, operation, leaves)
        if outs is not None:
            return outs
        if operation.modes != modes() or len(leaves) != len(operation.slots):
            return None
        if self.place == self.cut and self.window_is_full():
            self._pack_window()
        if self.reading.fixed and self.reading.is_written_unseen():
            self.pack()
        if not self._begins(operation, leaves):
            return None
        if operation.same_as is not None:
            self._next()
            return (leaves[operation.same_as],)
        outs = tuple([new(self, operation, output, self.number) for output in operation.numbers])
        operation.made.append(outs)
        operation.count += 1
        self.waiting = True
        self._next()
        return outs

    def window_is_full(self) -> bool:
        """Whether what waits is to be computed before more does."""
        return self.waiting and self.plan.is_full(self.period.count)

    def _begins(self, operation: Operation, leaves) -> bool:
        """Takes the arguments of an operation whatever they are, if they fit."""
        new_ones = entries(self, operation, leaves)
        if new_ones is None:
            return False
        if operation.same_as is not None:
            return True
        if not operation.count:
            operation.start = self.number
            if operation.is_step:
                for parameter in operation.function._tensors_of_step():
                    self.reading.add_in_place(parameter)
        given = operation.given
        for place, value in new_ones:
            given[place].append(value)
        return True

    def _next(self) -> None:
        self.place += 1
        if self.place == len(self.operations):
            self.place = 0
            self.number += 1

    def _pack_window(self) -> None:
        """Computes what waits in the middle of a loop."""
        after = self.plan.after(self.period.count, self.period.windows_of(None))
        self.pack(goes_on=True)
        self.plan = after

    def _otherwise(self, func, args, kwargs):
        """Runs an operation as written, after all that waits where that could make a difference."""
        if func in JOINS and (joined := joining.joined(self, func, args, kwargs)) is not None:
            return joined
        if any_pending(args) or (kwargs and any_pending(kwargs.values())):
            if describes(func, args):
                with _torch.unwatched_by_subclasses():
                    return func(*args, **kwargs)
            if func in known.OF_SHAPE and type(args[0]) is Pending and not any_pending(args[1:]):
                return func(stand_in(args[0]), *args[1:], **kwargs)
            # A step whose gradient is wanted is one that steps were computed from.
            self.pack(func, as_written=any_pending(pieces.asked_for_gradients(func, args, kwargs)))
        elif self.reading and not describes(func, args) and not may_come_first(self, func, args, kwargs):
            self.pack(func)
        return pieces.run(self.before.run, func, args, kwargs)

    def layer_changes(self, layer) -> None:
        """An attribute of a layer is about to change."""
        if self.waiting and not self.packing and any(operation.function is layer for operation in self.operations):
            self.pack()

    def is_about_to_run(self, name: str, args: tuple | None) -> None:
        """A call that no mode sees is about to run, of these arguments, or of what nobody knows."""
        if self.packing or (not self.waiting and self.learning is None):
            return
        tensors = None if args is None else [leaf for leaf in tree_flatten(args)[0] if isinstance(leaf, Tensor)]
        if self.waiting:
            read = self.reading.memories() if tensors else ()
            if tensors is None or any(type(tensor) is Pending or memory_of(tensor) in read for tensor in tensors):
                self.pack()
        if self.learning is not None:
            self.learning.look(name, tensors)

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
                with _torch.unwatched(), in_modes((True, False, False)), without_autocast():
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
            self.period.ran(steps, self.plan.done)
        alive = {operation: settling.alive(operation) for operation in pending}
        early, held = settling.held(alive)
        story = functions.loops_of(self.first).story
        with purity.as_last({operation.function for operation in pending if operation.is_call}):
            window = computed(self.period, self.settings, story, early, held, as_written)
        values = settling.values(window, alive, {id(tensor) for tensor, _ in self.reading.tensors.values()})
        for placeholder, value in values:
            become(placeholder, value)
        for operation in pending:
            operation.forget()
        self.waiting = False
        self.plan = self.period.plan()

    def _forget_steady(self) -> None:
        """Nothing that was read is remembered any more."""
        self.reading.clear()
        if self.period is not None:
            self.period.steady.clear()

    def _judge(self) -> None:
        """Sees whether the waiting was worth it."""
        why = "" if self.period is None else why_it_was_no_use(self.period, self.settings.numbers == "exact")
        if why:
            loops = functions.loops_of(self.first)
            loops.drop(self.period)
            self._give_up(loops, why, to_no_use=True)
