"""The recorder: it learns a loop's period from two that run as written, and lets further ones wait."""

import contextlib
import functools
import sys
import threading
import time
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_flatten

from .. import memory
from ..neurons.base import was_reset
from . import functions, known, pieces, settings, unseen
from .packing import Window, step_of
from .period import (
    LITERAL,
    MADE,
    REAL,
    SAME,
    Like,
    Logged,
    Operation,
    Period,
    leaves_of,
    nesting_of,
    same_calls,
    step_outputs,
)
from .placeholder import Pending, any_pending, become, compute, describes, make_pending, new
from .report import Loops, Story
from .series import in_modes, modes, without_autocast
from .settings import Settings

STEPS_TO_LEARN = 16
"""Calls of the first layer among which a loop must repeat itself, or it runs as it is."""

OPERATIONS_TO_LEARN = 2000

SECONDS_BEFORE_BUILDING = 1.0

OPERATIONS_OF_A_STEP = 500
"""Beyond so many others between two steps of its first layer, a loop is none."""


class Recorder(TorchFunctionMode):
    """Sees every operation of its thread from a layer's step on."""

    def __init__(self):
        super().__init__()
        self.lock = threading.RLock()
        self.settings = Settings()
        self.first = None
        self.is_there = False
        self.packing = self.stepping = False
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
        return self.packing or self.stepping

    def _forget(self) -> None:
        """Neither learns nor records."""
        self.period = None
        self.operations = ()
        self.place = self.number = 0
        self.waiting = False
        self.read, self.snapshots, self.fixed = {}, {}, {}
        self.log, self.marks, self.made, self.learning = [], [], {}, False
        self.memories, self.looks, self.why, self.others = {}, [], "", 0

    # In and out of the thread's stack of modes: always at its bottom, as users' contexts take away what is on its top.

    def enter(self) -> None:
        if not self.is_there:
            _put_at_bottom(self)
            unseen.watch(1)
            self.is_there = True

    def _go(self) -> None:
        if self.is_there:
            _take_away(self)
            unseen.watch(-1)
            self.is_there = False

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
        return outs if layer._returns_states() else outs[0]

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
            if landmark is not self.first and (self.period is not None or self.learning):
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
        if self.learning:
            if self.why:
                self._give_up(loops, self.why)
                return False
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
        self.learning = True
        self.marks = [0]
        return False

    def _key(self, leaves: list) -> tuple:
        known_shapes = (leaves[0].shape, leaves[0].dtype, leaves[0].device) if isinstance(leaves[0], Tensor) else None
        return known_shapes, modes(), self.settings, getattr(self.first, "training", None)

    def _may_have_learnt(self, loops: Loops) -> bool:
        """The first layer again: whether the log ends in two periods that are alike."""
        self.others = 0
        self.marks.append(len(self.log))
        for count in range(1, (len(self.marks) - 1) // 2 + 1):
            now, middle, before = self.marks[-1], self.marks[-1 - count], self.marks[-1 - 2 * count]
            if same_calls(self.log[before:middle], self.log[middle:now]):
                if any(before <= look for look, _ in self.looks):
                    self._give_up(loops, f"{self.looks[-1][1]} needs its values at every step")
                    return False
                if why := _statistics_in_between(self.log[middle:now]):
                    self._give_up(loops, why)
                    return False
                exact = self.settings.numbers == "exact"
                period = Period(self.log[before:middle], self.log[middle:now], middle, exact)
                loops.keep(self.key, period)
                self._forget()
                self._take_up(period)
                return True
        if self.why or len(self.marks) > STEPS_TO_LEARN or len(self.log) > OPERATIONS_TO_LEARN:
            self._give_up(loops, self.why or "its steps are not alike")
        return False

    def _give_up(self, loops: Loops, why: str) -> None:
        self._forget()
        loops.fail(why)

    def _take_up(self, period: Period) -> None:
        self.period, self.operations = period, period.operations
        self._plan()
        for operation in self.operations:
            operation.forget()

    def _run_step(self, layer, leaves: list):
        """A step as written."""
        compute(leaves)
        with self.aside():
            outs = step_of(layer, leaves)
        out = layer._taken(outs)
        if self.learning:
            # What the layer keeps may be a copy.
            kept = (getattr(layer, name, out) for name, out in zip(step_outputs(layer)[1:], outs[1:], strict=True))
            self._log(layer, (*leaves,), {}, (outs[0], *kept), tuple, None, ())
        return out

    # An autograd function of the user's.

    def may_begin_at(self, landmark) -> bool:
        """Whether a loop may begin with what a module, or another piece of code, calls."""
        return landmark is self.first or not (self.waiting or self.learning)

    def begin_at(self, landmark, function: type, args: tuple, chosen: Settings):
        """What an autograd function gives that a loop may begin with."""
        self._take_settings(chosen)
        found = self._meet(landmark, function, args)
        if found is not None:
            return _result(*found)
        if self.learning:
            return self._learn_call(function, args)
        return NotImplemented

    def call(self, function: type, args: tuple):
        """What an autograd function gives in a loop that is learnt or recorded, if it may wait there."""
        if (
            self.period is not None
            and (outs := self._record(operation := self.operations[self.place], args)) is not None
        ):
            return _result(operation, outs)
        if not functions.is_layer(self.first) and (functions.caller() or function) is self.first:
            return self.begin_at(self.first, function, args, self.settings)
        return self._learn_call(function, args) if self.learning else NotImplemented

    # Any other operation.

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.stepping:
            return func(*args, **kwargs)
        if self.period is not None:
            if func in _TRANSLATED:
                func, args, kwargs = _translated(func, args, kwargs)
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
                written = self._record_in_place(operation, args, kwargs)
                if written is not None:
                    return written
            reads = func in known.READERS and not (self.read or self.waiting) and func not in _JOINS
            if reads and (not kwargs or (kwargs.get("out") is None and not kwargs.get("inplace"))):
                return func(*args, **kwargs)
            return self._otherwise(func, args, kwargs)
        if self.learning:
            return self._learn(func, args, kwargs)
        if self.period is None and not pieces.known:
            return func(*args, **kwargs)
        return self._otherwise(func, args, kwargs)

    def _record(self, operation: Operation, leaves) -> tuple | None:
        """Lets an operation wait; None where it is not the one that was expected, or must see what waits."""
        if operation.modes != modes() or len(leaves) != len(operation.slots):
            return None
        if self.place == self.period.cut and self._is_long():
            self._pack_window()
        if self.fixed and self._is_written_unseen():
            self.pack()
        entries = self._entries(operation, leaves)
        if entries is None:
            return None
        if operation.same_as is not None:
            self._next()
            return (leaves[operation.same_as],)
        if not operation.count:
            operation.start = self.number
            if operation.is_step:
                for parameter in operation.function._tensors_of_step():
                    self._to_read_in_place(parameter)
        given = operation.given
        for place, value in entries:
            given[place].append(value)
        number = self.number
        outs = tuple([new(self, operation, output, number) for output in operation.numbers])
        operation.made.append(outs)
        operation.count += 1
        self.waiting = True
        self._next()
        return outs

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
                entries.append((place, self._to_read(value)))
            elif kind == SAME:
                if value is not what:
                    return None
                if not begun:
                    self._to_read_in_place(value)
            elif kind == LITERAL:
                if value is not what and (type(value) is not type(what) or value != what):
                    return None
            elif kind == REAL:
                given = given_of[place]
                if not given or value is not given[-1]:
                    if not self._fits(value, like, False, operation.moving):
                        return None
                    value = self._to_read(value)
                elif self.snapshots:
                    value = self._to_read(value)
                if place in operation.writes:
                    self.read.pop(id(value), None)
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

    def _to_read(self, tensor: Tensor) -> Tensor:
        """A tensor that waiting operations will read, as it is now."""
        key = id(tensor)
        if key not in self.read:
            self.read[key] = tensor, _version(tensor)
            if (not tensor.is_leaf or not tensor.requires_grad) and _is_shared_with_others(tensor):
                self.snapshots[key] = tensor.clone()
        if key in self.snapshots:
            kept = self.snapshots[key]
            if not torch.equal(kept, tensor):
                kept = self.snapshots[key] = tensor.clone()
            return kept
        return tensor

    def _to_read_in_place(self, tensor: Tensor) -> None:
        """A parameter or buffer that waiting operations will read where it is."""
        key = id(tensor)
        if key not in self.read:
            self.read[key] = tensor, _version(tensor)
            if _is_shared_with_others(tensor):
                self.fixed[key] = tensor, tensor.detach().clone()

    def _is_written_unseen(self) -> bool:
        return not all(torch.equal(tensor, kept) for tensor, kept in self.fixed.values())

    @contextlib.contextmanager
    def _as_read(self):
        """Within it, parameters that were written to unseen are what the waiting operations were to read."""
        written = [(tensor, kept) for tensor, kept in self.fixed.values() if not torch.equal(tensor, kept)]
        now = [tensor.detach().clone() for tensor, _ in written]
        for tensor, kept in written:
            tensor.data.copy_(kept)
        try:
            yield
        finally:
            for (tensor, _), value in zip(written, now, strict=True):
                tensor.data.copy_(value)

    def _record_in_place(self, operation: Operation, args: tuple, kwargs: dict):
        """`x.add_(y)` where `x = x.add(y)` may wait: the object is from now on what will have been written to it."""
        target = args[0]
        leaves = operation.leaves(args, kwargs)
        like = operation.outputs[0]
        if leaves is None or not _may_be_written(target, like):
            return None
        pending = type(target) is Pending
        if pending and self._is_viewed(target):
            return None
        if not pending and any(id(target) == key for key in self.read):
            return None
        if pending:
            _, maker, written, period = target.made_by
            outs = self._record(operation, leaves)
            if outs is None:
                return None
            (made,) = outs
            if type(target) is not Pending:
                # What waited was computed first.
                self._stand_for(target, operation, made)
                return target
            _replace(maker, written, period, made)
            target.made_by, made.made_by = made.made_by, target.made_by
            operation.made[-1] = (target,)
            return target
        before = make_pending(target, self, operation, 0, self.number)
        outs = self._record(operation, [before, *leaves[1:]])
        if outs is None:
            self.read.pop(id(before), None)
            become(target, before)
            return None
        target.made_by = outs[0].made_by
        operation.made[-1] = (target,)
        return target

    def _stand_for(self, target: Tensor, operation: Operation, made: Pending) -> None:
        """A computed tensor is from now on what an operation that was given it will have written to it."""
        before = make_pending(target, *made.made_by)
        given = operation.given[0]
        if given and given[-1] is target:
            given[-1] = before
            self.read.pop(id(target), None)
            self._to_read(before)
        operation.made[-1] = (target,)

    def _is_viewed(self, target: Pending) -> bool:
        """Whether another placeholder may be of the same memory."""
        maker = target.made_by[1]
        if maker.function in known.VIEWS:
            return True
        return any(user.function in known.VIEWS or user.same_as is not None for user, _ in self.period.consumers[maker])

    # While it learns.

    def _learn(self, func, args, kwargs):
        """Runs an operation as written, and notes it where it may wait in further periods."""
        if modes()[2]:
            return self._learn_other(func, args, kwargs)
        func, args, kwargs = _translated(func, args, kwargs)
        if func is None:
            return args
        written = known.IN_PLACE.get(func)
        if func not in known.DEFERRABLE and written is None:
            return self._learn_other(func, args, kwargs)
        nested = nesting_of(func, args, kwargs)
        leaves = leaves_of(nested, args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
            return self._learn_other(func, args, kwargs)
        if func is Tensor.__getitem__ and id(args[0]) not in self.made and not all(map(known.is_whole, leaves[1:])):
            return self._learn_other(func, args, kwargs)
        if not tensors or (written and id(args[0]) not in self.made and not self._touches(leaves[1:])):
            return self._learn_other(func, args, kwargs)
        sources = [self.made.get(id(leaf)) if isinstance(leaf, Tensor) else None for leaf in leaves]
        out, changed = _run_watching(func, args, kwargs, tensors)
        out = args[0] if func is Tensor.__setitem__ else out
        outs = out if isinstance(out, (tuple, list)) else (out,)
        if not all(type(one) is Tensor for one in outs):
            return out
        writes = ()
        if written is not None:
            if out._is_view() or len(self.memories.get(_memory(out), ())) > 1:
                self._note_writes(changed)
                return out
        elif changed:
            self._note_writes(changed)
            return out
        elif func in known.STATISTICS:
            kept = known.STATISTICS[func](args, kwargs)
            writes = tuple(place for place, leaf in enumerate(leaves) if any(leaf is one for one in kept))
        same = next((place for place, leaf in enumerate(leaves) if leaf is out), None) if written is None else None
        several = type(out) if isinstance(out, (tuple, list)) else None
        self._log(written or func, args, kwargs, outs, several, same, writes, sources)
        return out

    def _learn_call(self, function: type, args: tuple):
        """Runs an autograd function as written, and notes it where it may wait in further periods."""
        tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
        if modes()[2] or not tensors or any(type(tensor) not in (Tensor, nn.Parameter) for tensor in tensors):
            return NotImplemented
        sources = [self.made.get(id(leaf)) if isinstance(leaf, Tensor) else None for leaf in args]
        out, changed = _run_watching(functools.partial(functions.run, function), (args,), {}, tensors)
        outs = out if isinstance(out, tuple) else (out,)
        is_new = all(
            type(one) is Tensor and not one._is_view() and not any(one is leaf for leaf in args) for one in outs
        )
        if changed or not is_new:
            self._note_writes(changed)
            self.looks.append((len(self.log), function.__name__))
            return out
        self._log(function, args, {}, outs, tuple if isinstance(out, tuple) else None, None, (), sources)
        return out

    def _learn_other(self, func, args, kwargs):
        """Runs what cannot wait; what it does to values of the loop tells whether the loop can be recorded."""
        if describes(func, args) or func in known.OF_SHAPE:
            return func(*args, **kwargs)
        tensors = [leaf for leaf in _flat(args, kwargs) if isinstance(leaf, Tensor)]
        if func in known.ENDS or func in pieces.GRAD or len(self.log) - self.marks[-1] > OPERATIONS_OF_A_STEP:
            # The loop has ended before it was learnt.
            self._give_up(functions.loops_of(self.first), "it has too few steps")
            return func(*args, **kwargs)
        self.others += 1
        if self.others > OPERATIONS_OF_A_STEP:
            self._give_up(functions.loops_of(self.first), "too much else is between its steps")
            return func(*args, **kwargs)
        out, changed = _run_watching(func, args, kwargs, tensors)
        self._note_writes(changed)
        if self._touches(tensors):
            self.looks.append((len(self.log), getattr(func, "__name__", str(func))))
        return out

    def _note_writes(self, tensors: list) -> None:
        if any(_memory(tensor) in self.memories for tensor in tensors):
            self.why = "a value that its step made is written to, or to a view of it"

    def _touches(self, leaves) -> bool:
        return any(isinstance(leaf, Tensor) and id(leaf) in self.made for leaf in leaves)

    def _log(self, function, args, kwargs, outs, several, same_as, writes, sources=None) -> None:
        is_step = isinstance(function, nn.Module)
        nested = (None,) * len(args) if is_step else nesting_of(function, args, kwargs)
        leaves = list(leaves_of(nested, args, kwargs))
        if sources is None:
            sources = [self.made.get(id(leaf)) if isinstance(leaf, Tensor) else None for leaf in leaves]
        number = len(self.log)
        self.log.append(
            Logged(function, nested, tuple(kwargs), leaves, sources, tuple(outs), several, modes(), same_as, writes)
        )
        if same_as is None:
            for output, out in enumerate(outs):
                self.made[id(out)] = number, output
                self.memories.setdefault(_memory(out), set()).add(id(out))
        elif sources[same_as] is not None:
            self.made[id(outs[0])] = sources[same_as]

    # What is not expected.

    def _otherwise(self, func, args, kwargs):
        """Runs an operation as written, after all that waits where that could make a difference."""
        if func in _JOINS and (joined := self._join(func, args, kwargs)) is not None:
            return joined
        if any_pending(args) or (kwargs and any_pending(kwargs.values())):
            if describes(func, args):
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            if func in known.OF_SHAPE and type(args[0]) is Pending and not any_pending(args[1:]):
                return func(_stand_in(args[0]), *args[1:], **kwargs)
            # A step whose gradient is wanted is one that steps were computed from.
            self.pack(func, as_written=any_pending(pieces.asked_for_gradients(func, args, kwargs)))
        elif self.read and not describes(func, args) and not self._may_come_first(func, args, kwargs):
            self.pack(func)
        if pieces.known and (written := known.written_by(func, args, kwargs)):
            for tensor in written:
                self._own(tensor)
        return func(*args, **kwargs)

    def _may_come_first(self, func, args, kwargs) -> bool:
        """Whether a call on computed tensors may run before what waits."""
        return self._is_harmless(func, args, kwargs) and self._may_precede(args, kwargs)

    def _is_harmless(self, func, args, kwargs) -> bool:
        """Whether a call on computed tensors leaves alone what waiting operations will read and write."""
        written = known.written_by(func, args, kwargs)
        if written is None:
            return func in _SWITCHES
        memories = {_memory(tensor) for tensor in written if type(tensor) is not Pending}
        if not written and not self.period_writes():
            return True
        read = {_memory(tensor) for tensor, _ in self.read.values()}
        if memories & read:
            return False
        given = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)]
        touched = {_memory(tensor) for tensor in given}
        return not touched & self.period_writes()

    def _may_precede(self, args, kwargs) -> bool:
        """Whether a call may come before what waits: gradients are summed in the order of calls."""
        if self.settings.numbers != "exact" or not torch.is_grad_enabled():
            return True
        tensors = [leaf for leaf in _flat(args, kwargs) if isinstance(leaf, Tensor)]
        return not any(tensor.requires_grad and id(tensor) in self.read for tensor in tensors)

    def period_writes(self) -> set:
        """The memory that waiting operations will write."""
        return {
            _memory(tensor)
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
        tensors = None if args is None else [leaf for leaf in _flat(args, {}) if isinstance(leaf, Tensor)]
        if self.waiting:
            read = {_memory(tensor) for tensor, _ in self.read.values()} if tensors else ()
            if tensors is None or any(type(tensor) is Pending or _memory(tensor) in read for tensor in tensors):
                self.pack()
        if self.learning and (tensors is None or self._touches(tensors)):
            self.looks.append((len(self.log), name))

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
                    self._check_versions()
                    with self._as_read() if self.fixed else contextlib.nullcontext():
                        self._pack(as_written)
            finally:
                self.packing = False
            if not goes_on or self.fixed or self.snapshots:
                self._forget_steady()
            else:
                needed = {id(tensor) for given, _ in self.period.steady.values() for tensor in given}
                self.read = {key: read for key, read in self.read.items() if key in needed}
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
        alive = {operation: _alive(operation) for operation in pending}
        held = {(operation, output) for operation in pending for _, outs in alive[operation] for output, _ in outs}
        early = {
            (operation, output)
            for operation in pending
            for step, outs in alive[operation]
            for output, _ in outs
            if step < operation.count - 1
        }
        window = self._computed(early, held, as_written)
        values = self._values(window, alive)
        for placeholder, value in values:
            become(placeholder, value)
        for operation in pending:
            operation.forget()
        self.waiting = False
        self._plan()

    def _forget_steady(self) -> None:
        """Nothing that was read is remembered any more."""
        self.read, self.snapshots, self.fixed = {}, {}, {}
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

    def _values(self, window: Window, alive) -> list[tuple[Pending, Tensor]]:
        values, used = [], {id(tensor) for tensor, _ in self.read.values()}
        for operation, steps in alive.items():
            by_output = {}
            for step, outputs in steps:
                for output, placeholder in outputs:
                    by_output.setdefault(output, []).append((step, placeholder))
            for output, wanted in by_output.items():
                values += self._pieces_of(window, operation, output, wanted, used)
        return values

    def _pieces_of(self, window, operation, output, wanted, used) -> list:
        made = []
        series = window.series.get((operation, output))
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
                is_inner = (operation, output) in window.inner
                pieces.note(placeholder, stack, step, _whose_gradient(operation, output, series, is_inner))
        return made

    def _check_versions(self) -> None:
        for tensor, version in self.read.values():
            if _version(tensor) != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(tensor.shape)} that steps of a recorded loop read was written to before "
                    "they were computed, in a way that torch.overrides does not see; run with SNNFAST_AUTO=0, or this "
                    "loop outside snnfast.accelerate"
                )

    def _judge(self) -> None:
        """Sees whether the waiting was worth it."""
        period = self.period
        if period is not None and period.windows >= 8 and period.steps < 2.5 * period.windows:
            loops = functions.loops_of(self.first)
            loops.drop(period)
            self._give_up(loops, "it looks at values too often")

    def _join(self, func, args, kwargs):
        """A stack of steps, of which most are together already."""
        lanes = args[0] if args else None
        if (*args[1:], *kwargs.values()) not in ((), (0,)) or set(kwargs) - {"dim"}:
            return None
        if not isinstance(lanes, (list, tuple)) or not all(isinstance(lane, Tensor) for lane in lanes):
            return None
        if not any(type(lane) is Pending or id(lane) in pieces.known for lane in lanes):
            return None
        if self.settings.numbers == "exact" and torch.is_grad_enabled():
            return None
        if self.waiting:
            self.pack(func)
        parts = [
            stack if count == len(stack) else stack[first : first + count] for stack, first, count in self._runs(lanes)
        ]
        if len(parts) > len(lanes) // 2 or len({part.shape[1:] for part in parts}) > 1:
            return None
        joined = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
        return joined if func is torch.stack else joined.flatten(0, 1)

    def _runs(self, lanes) -> list:
        """(stack, first, count) of which the lanes are made in turn."""
        runs, alone = [], []
        for lane in lanes:
            piece = pieces.of(lane)
            if piece is None or piece.stack is None:
                alone.append(lane)
                continue
            if alone:
                runs.append([torch.stack(alone), 0, len(alone)])
                alone = []
            _, stack, step, _ = piece
            if runs and runs[-1][0] is stack and runs[-1][1] + runs[-1][2] == step:
                runs[-1][2] += 1
            else:
                runs.append([stack, step, 1])
        if alone:
            runs.append([torch.stack(alone), 0, len(alone)])
        return runs


_DROPOUTS = {F.dropout1d, F.dropout2d, F.dropout3d}
_TRANSLATED = {F.dropout, F.relu, *_DROPOUTS}
_JOINS = {torch.stack, torch.cat, torch.concat}
_SWITCHES = {torch._C._set_grad_enabled}


def _translated(func, args, kwargs):
    """A call in the form in which it may wait; (None, x, {}) where it gives its argument."""
    if func is F.dropout or func in _DROPOUTS:
        return _with_mask(func, args, kwargs)
    if func is F.relu and (kwargs.get("inplace") or len(args) > 1 and args[1]):
        return Tensor.relu_, args[:1], {}
    return func, args, kwargs


def _with_mask(func, args, kwargs):
    """Dropout as a product with the mask that it draws here and now; (None, x, {}) where it changes nothing."""
    given = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | kwargs
    x, p, training = given.get("input"), given.get("p", 0.5), given.get("training", True)
    if given.get("inplace") or not isinstance(x, Tensor) or not 0 <= p < 1:
        return func, args, kwargs
    if not training or p == 0 or not x.numel():
        return (None, x, {}) if func is F.dropout else (func, args, kwargs)
    shape = tuple(x.shape)
    if func is not F.dropout:
        if len(shape) != 2 + {F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}[func]:
            return func, args, kwargs
        shape = (*shape[:2], *(1,) * (len(shape) - 2))
    if func is F.dropout:
        # It draws in memory order.
        with torch.no_grad():
            ones = torch.ones_like(_stand_in(x))
    else:
        ones = torch.ones(shape, dtype=x.dtype, device=x.device)
    return torch.mul, (x, func(ones, p, True)), {}


def _statistics_in_between(logged: list[Logged]) -> str:
    """Why running statistics, which are written when all steps' are known, would not be what the loop sees of them."""
    written = [_memory(one.leaves[place]) for one in logged for place in one.writes]
    for one in logged:
        for place, leaf in enumerate(one.leaves):
            if place not in one.writes and isinstance(leaf, Tensor) and _memory(leaf) in written:
                return "running statistics are looked at between its steps"
    return "a batch-norm is used twice in a step" if len(set(written)) < len(written) else ""


def _once_more(operation: Operation, steady: Tensor) -> Tensor:
    """What an operation gives when it is run again: a view of the same memory, or other memory."""
    return steady.view_as(steady) if operation.function in known.VIEWS and steady._is_view() else steady.clone()


def _whose_gradient(operation: Operation, output: int, series, is_inner: bool) -> int:
    if series is None or series.is_apart:
        return pieces.OWN
    of_state = is_inner or (operation.is_step and output in operation.state_outputs())
    return pieces.NOBODYS if of_state or series.is_steady else pieces.WHOLE


def _alive(operation: Operation) -> list:
    """For each step the placeholders that others than the recorder have: (step, [(output, placeholder)])."""
    alive = []
    for step, outs in enumerate(operation.made):
        held = []
        for output in operation.numbers:
            out = outs[output]
            # Referred to by its tuple, by `out`, and by the call that counts.
            if sys.getrefcount(out) > 3 and type(out) is Pending:
                held.append((output, out))
        if held:
            alive.append((step, held))
    return alive


def _replace(maker: Operation, output: int, period: int, made) -> None:
    """An object stands for another operation from now on: `made` takes its place."""
    step = period - maker.start
    if 0 <= step < len(maker.made):
        outs = list(maker.made[step])
        outs[output] = made
        maker.made[step] = tuple(outs)


def _may_be_written(target, like: Like) -> bool:
    """Whether an object may stand for what is written to it: nobody else has its memory."""
    if not isinstance(target, Tensor) or target.shape != like.shape or target.dtype != like.dtype:
        return False
    if type(target) is Pending:
        return True
    if type(target) is not Tensor or target._is_view() or (target.is_leaf and target.requires_grad):
        return False
    storage = target.untyped_storage()
    if _is_shared_with_others(target) or storage.nbytes() != target.nbytes:
        return False
    return torch._C._storage_Use_Count(storage._cdata) <= 2


def _without(shape: torch.Size, dim: int) -> tuple:
    """The sizes but for one dimension's."""
    return len(shape), shape[:dim], shape[dim + 1 :]


def _stand_in(x: Tensor) -> Tensor:
    """A tensor like x, or like what x will be, in memory order too, but for what is in it."""
    if type(x) is not Pending:
        return x
    _, operation, output, _ = x.made_by
    like = operation.outputs[output]
    return torch.empty_strided(like.shape, like.strides, dtype=like.dtype, device=like.device)


def _memory(tensor: Tensor) -> int | None:
    """Which memory a tensor is in; None where it has none of its own, as within transforms."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def _flat(args, kwargs) -> list:
    return tree_flatten((args, kwargs))[0]


def _run_watching(func, args, kwargs, tensors: list) -> tuple:
    """What a call returns, and which of these tensors it has written."""
    before = [_version(tensor) for tensor in tensors]
    out = func(*args, **kwargs)
    return out, [tensor for tensor, version in zip(tensors, before, strict=True) if _version(tensor) != version]


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_shared_with_others(tensor: Tensor) -> bool:
    """Whether somebody else, such as NumPy, has this memory too, and may write to it unseen."""
    storage = tensor.untyped_storage()
    return not (storage.resizable() or storage.is_shared() or memory.is_own(storage))


def _result(operation: Operation, outs: tuple):
    """What a call gives whose outputs are these."""
    kind = operation.several
    return outs[0] if kind is None else list(outs) if kind is list else outs if kind is tuple else kind(outs)


def _put_at_bottom(mode) -> None:
    above = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    # A device's context takes itself away from the very bottom.
    if above and isinstance(above[-1], DeviceContext):
        torch._C._push_on_torch_function_stack(above.pop())
    torch._C._push_on_torch_function_stack(mode)
    for other in reversed(above):
        torch._C._push_on_torch_function_stack(other)


def _take_away(mode) -> None:
    stack = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    for other in reversed(stack):
        if other is not mode:
            torch._C._push_on_torch_function_stack(other)
