"""Learning a loop: what its first steps do as written, until two periods of it are alike."""

import functools

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from . import functions, known, pieces, purity
from .operation import leaves_of, nesting_of
from .period import Logged, Period, same_calls
from .placeholder import describes
from .reading import memory_of, version_of
from .report import place_of_caller
from .series import modes
from .translated import translated

LEARNT = 3
"""Steps of a loop, at least, that is recorded: two run as written."""

LOOKS = frozenset(
    {*("item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__len__", "__iter__")}
    | {*("__repr__", "__str__", "__format__", "__contains__", "equal", "allclose", "is_nonzero", "data_ptr", "unique")}
)
"""Names of calls that tell Python what a value is."""

STEPS = 16
"""Calls of the loop's first among which it must repeat itself, or it runs as it is."""

OPERATIONS = 2000

OPERATIONS_OF_A_STEP = 500
"""Beyond so many others between two calls of its first, a loop is none."""


class Learning:
    """The log of a loop's operations, from its first on.

    Attributes:
        log: what was noted of it.
        failed: why the loop cannot be recorded; "" where nothing is known against it.
    """

    def __init__(self, exact: bool):
        self._exact = exact
        self.failed = ""
        self.log, self._marks = [], [0]
        self._made = {}  # by id: the logged operation that made it, and which output it is
        self._memories = {}  # by memory: ids of what was made in it
        self._looks = []  # (place in the log, name) of what saw a value of the loop
        self._others = 0

    def again(self) -> Period | None:
        """At the loop's first again: the period, if the log ends in two that are alike."""
        if self.failed:
            return None
        self._others = 0
        self._marks.append(len(self.log))
        for count in range(1, (len(self._marks) - 1) // 2 + 1):
            now, middle, before = self._marks[-1], self._marks[-1 - count], self._marks[-1 - 2 * count]
            if same_calls(self.log[before:middle], self.log[middle:now]):
                return self._period(before, middle, now)
        if len(self._marks) > STEPS or len(self.log) > OPERATIONS:
            self.failed = "its steps are not alike"
        return None

    def _period(self, before: int, middle: int, now: int) -> Period | None:
        if any(before <= look for look, _ in self._looks):
            name = self._looks[-1][1]
            self.failed = f"{name} needs its values at every step" if name in LOOKS else f"there is no rule for {name}"
        self.failed = self.failed or _statistics_in_between(self.log[middle:now])
        if self.failed:
            return None
        return Period(self.log[before:middle], self.log[middle:now], middle, self._exact)

    def step(self, layer: nn.Module, leaves: list, outs: tuple) -> None:
        """Notes a layer's step, which was run."""
        self._note(layer, (*leaves,), {}, outs, tuple, None, ())

    def operation(self, func, args: tuple, kwargs: dict):
        """Runs an operation as written, and notes it where it may wait in further periods."""
        if modes()[2]:
            return self._other(func, args, kwargs)
        func, args, kwargs = translated(func, args, kwargs)
        if func is None:
            return args
        written = known.IN_PLACE.get(func)
        if func not in known.DEFERRABLE and written is None:
            return self._other(func, args, kwargs)
        nested = nesting_of(func, args, kwargs)
        leaves = leaves_of(nested, args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not self._may_be_noted(func, args, leaves, tensors, written):
            return self._other(func, args, kwargs)
        sources = self._sources(leaves)
        out, changed = _run_watching(func, args, kwargs, tensors)
        out = args[0] if func is Tensor.__setitem__ else out
        outs = out if isinstance(out, (tuple, list)) else (out,)
        if not all(type(one) is Tensor for one in outs):
            return out
        is_view = written is not None and (out._is_view() or len(self._memories.get(memory_of(out), ())) > 1)
        if is_view or (written is None and changed):
            self._note_writes(changed)
            return out
        writes = ()
        if func in known.STATISTICS:
            kept = known.STATISTICS[func](args, kwargs)
            writes = tuple(place for place, leaf in enumerate(leaves) if any(leaf is one for one in kept))
        same = next((place for place, leaf in enumerate(leaves) if leaf is out), None) if written is None else None
        several = type(out) if isinstance(out, (tuple, list)) else None
        self._note(written or func, args, kwargs, outs, several, same, writes, sources)
        return out

    def _may_be_noted(self, func, args, leaves, tensors: list, written) -> bool:
        if not tensors or not _are_plain(leaves):
            return False
        is_made = id(args[0]) in self._made if args else False
        if func is Tensor.__getitem__ and not is_made and not all(map(known.is_whole, leaves[1:])):
            return False
        return not (written and not is_made and not self._touches(leaves[1:]))

    def call(self, function: type, args: tuple):
        """Runs an autograd function as written, and notes it where it may wait in further periods; NotImplemented where
        it is to run as any other call."""
        tensors = [leaf for leaf in args if isinstance(leaf, Tensor)]
        if self.failed or modes()[2] or not tensors or not _are_plain(args):
            return NotImplemented
        sources = self._sources(args)
        out, changed = _run_watching(functools.partial(functions.run, function), (args,), {}, tensors)
        outs = out if isinstance(out, tuple) else (out,)
        given = set(map(id, args))
        if changed or not all(type(one) is Tensor and not one._is_view() and id(one) not in given for one in outs):
            self._note_writes(changed)
            self.look(function.__name__)
            return out
        self._note(function, args, {}, outs, tuple if isinstance(out, tuple) else None, None, (), sources)
        return out

    def look(self, name: str, tensors: list[Tensor] | None = None) -> None:
        """A call sees these values, or any."""
        if tensors is None or self._touches(tensors):
            self._looks.append((len(self.log), name))

    def _other(self, func, args, kwargs):
        """Runs what cannot wait; what it does to values of the loop tells whether the loop can be recorded."""
        if describes(func, args) or func in known.OF_SHAPE:
            return func(*args, **kwargs)
        if func in known.ENDS or func in pieces.GRAD or len(self.log) - self._marks[-1] > OPERATIONS_OF_A_STEP:
            # The loop has ended before it was learnt.
            self.failed = "it has too few steps"
            return func(*args, **kwargs)
        self._others += 1
        if self._others > OPERATIONS_OF_A_STEP:
            self.failed = "too much else is between its steps"
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        out, changed = _run_watching(func, args, kwargs, tensors)
        self._note_writes(changed)
        self.look(getattr(func, "__name__", str(func)), tensors)
        return out

    def _note_writes(self, tensors: list[Tensor]) -> None:
        if any(memory_of(tensor) in self._memories for tensor in tensors):
            self.failed = "a value that its step made is written to, or to a view of it"

    def _touches(self, leaves) -> bool:
        return any(isinstance(leaf, Tensor) and id(leaf) in self._made for leaf in leaves)

    def _sources(self, leaves) -> list:
        return [self._made.get(id(leaf)) if isinstance(leaf, Tensor) else None for leaf in leaves]

    def _note(self, function, args, kwargs, outs, several, same_as, writes, sources=None) -> None:
        is_step = isinstance(function, nn.Module)
        nested = (None,) * len(args) if is_step else nesting_of(function, args, kwargs)
        leaves = list(leaves_of(nested, args, kwargs))
        sources = self._sources(leaves) if sources is None else sources
        number = len(self.log)
        self.log.append(
            Logged(function, nested, tuple(kwargs), leaves, sources, tuple(outs), several, modes(), same_as, writes)
        )
        if purity.is_one(function):
            owner = functions.caller()
            label = type(owner).__name__ if isinstance(owner, nn.Module) else function.__name__
            self.log[-1] = self.log[-1]._replace(where=place_of_caller(), label=label)
        if same_as is None:
            for output, out in enumerate(outs):
                self._made[id(out)] = number, output
                self._memories.setdefault(memory_of(out), set()).add(id(out))
        elif sources[same_as] is not None:
            self._made[id(outs[0])] = sources[same_as]


def _are_plain(leaves) -> bool:
    """Whether what a call is given is neither a subclass of tensors' nor an array that is no tensor."""
    return not any(
        type(leaf) not in (Tensor, nn.Parameter) if isinstance(leaf, Tensor) else known.is_array(leaf)
        for leaf in leaves
    )


def _statistics_in_between(logged: list[Logged]) -> str:
    """Why running statistics, which are written when all steps' are known, would not be what the loop sees of them."""
    written = [memory_of(one.leaves[place]) for one in logged for place in one.writes]
    for one in logged:
        for place, leaf in enumerate(one.leaves):
            if place not in one.writes and isinstance(leaf, Tensor) and memory_of(leaf) in written:
                return "running statistics are looked at between its steps"
    return "a batch-norm is used twice in a step" if len(set(written)) < len(written) else ""


def _run_watching(func, args, kwargs, tensors: list[Tensor]) -> tuple:
    """What a call returns, and which of these tensors it has written."""
    before = [version_of(tensor) for tensor in tensors]
    out = func(*args, **kwargs)
    return out, [tensor for tensor, version in zip(tensors, before, strict=True) if version_of(tensor) != version]
