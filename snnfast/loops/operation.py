"""One operation of a period: where it takes what it is given, and what of it is pending."""

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import known, purity
from .placeholder import arguments_of_placeholder

INDEXED = {Tensor.__getitem__, Tensor.__setitem__, known.set_item}

MADE, REAL, SAME, LITERAL, NUMBER = range(5)


class Slot(NamedTuple):
    """What an operation is given at one place.

    MADE: the `output` of `what`, an operation of the same period (lag=0) or of the one before (lag=1); REAL: a tensor
    from outside, like `what`; SAME: the object `what`; LITERAL: a value equal to `what`; NUMBER: a number of that type.
    """

    kind: int
    what: object
    output: int = 0
    lag: int = 0
    like: "Like | None" = None


class Like(NamedTuple):
    """What a placeholder knows of its value."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    strides: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor) -> "Like":
        return Like(tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride())

    @property
    def is_dense(self) -> bool:
        """Whether it lies in memory as new tensors or channels-last ones do, and so does a step of a stack: a product's
        sum goes by how its operands lie."""
        dims = range(len(self.shape) - 1, -1, -1)
        return self._lies(dims) or (len(dims) > 3 and self._lies((1, *(dim for dim in dims if dim != 1))))

    def _lies(self, dims) -> bool:
        """Whether its elements follow one another along these dimensions in turn."""
        count = 1
        for dim in dims:
            if self.shape[dim] != 1 and self.strides[dim] != count:
                return False
            count *= self.shape[dim]
        return True

    @property
    def bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


@dataclass(eq=False, repr=False)
class Operation:
    """One operation of a period, and what of it is pending.

    function: a torch function, an autograd function of the user's, or a spiking layer, of which a step is taken from
    its input and its states. is_mark: whether it is one of the latter two, with which a loop may begin.
    nested: which arguments are lists whose tensors have slots of their own; names: those of keyword arguments.
    several: the type of a result that is a tuple; None for a tensor. same_as: the slot that the result is, itself.
    writes: slots whose memory it writes, as batch-norm does. where: file:line of an autograd function's call;
    label: the module that calls it.
    alone: whether a product of all steps rounds otherwise than those of the steps. compared: of each way to compute it
    at once, how many numbers were seen to be the steps'; None: they are not.
    """

    function: object
    nested: tuple
    names: tuple[str, ...]
    outputs: list[Like]
    several: type | None
    modes: tuple
    same_as: int | None
    writes: tuple[int, ...]
    where: str = ""
    label: str = ""
    slots: list[Slot] = ()
    start: int = 0
    count: int = 0
    given: list = field(default_factory=list)
    made: list = field(default_factory=list)
    alone: bool = False
    by_steps: dict = field(default_factory=dict)
    compared: dict = field(default_factory=dict)

    def connect(self, slots: list[Slot], before: list["Operation"]) -> None:
        """Says where it takes its arguments from, once all operations of the period are there; `before`: those that
        come before it in a period."""
        self.slots = slots
        self.is_step = isinstance(self.function, nn.Module)
        self.is_call = purity.is_one(self.function)
        self.is_mark = self.is_step or self.is_call
        names = step_outputs(self.function) if self.is_step else ()
        self.state_outputs = [names.index(name) for name in self.function.state_names] if self.is_step else []
        """Which of a step's outputs its states are, in the layer's order."""
        own = [slot.kind == MADE and slot.what is self for slot in slots]
        self.is_chain = self.is_step and not own[0]
        if self.is_chain:
            states = zip(slots[1:], own[1:], self.state_outputs, strict=True)
            self.is_chain = all(is_own and slot.lag == 1 and slot.output == output for slot, is_own, output in states)
        self.needs_itself = any(own) and not self.is_chain
        """Whether a step of it needs what the step before gave, other than as a neuron's state."""
        self.numbers = range(len(self.outputs))
        self.is_dense = self.function in known.VIEWS or all(like.is_dense for like in self.outputs)
        self.is_flat = not any(self.nested)
        self.is_plain = self.is_flat and not self.names
        numbers = [place - 1 for place, slot in enumerate(slots) if slot.kind == NUMBER]
        # What csrc/cpu/recording.cpp compares in a loop that goes on.
        self.links = tuple(
            (place, slot.what, slot.output, -1 - (slot.lag if slot.what in before else 0))
            for place, slot in enumerate(slots)
            if slot.kind == MADE
        )
        self.always = tuple((place, slot.what) for place, slot in enumerate(slots) if slot.kind in (SAME, LITERAL))
        self.again = tuple(place for place, slot in enumerate(slots) if slot.kind == REAL)
        self.counted = tuple((place, slot.what) for place, slot in enumerate(slots) if slot.kind == NUMBER)
        self.placeholders = tuple((*arguments_of_placeholder(like), output) for output, like in enumerate(self.outputs))
        # `x[t]`: x may have other numbers of steps in other loops.
        self.moving = numbers[0] if numbers and self.function is Tensor.__getitem__ else None
        if self.is_step:
            self.kept = [(name, output) for output, name in enumerate(names) if name in self.function.state_names]
        self.forget()

    def leaves(self, args: tuple, kwargs: dict) -> list | tuple | None:
        """What stands in the slots of a call; None where the call has other arguments."""
        if kwargs or self.names:
            if tuple(kwargs) != self.names:
                return None
            args = (*args, *kwargs.values())
        if not self.is_flat:
            return leaves_of(self.nested, args, {})
        return args if len(args) == len(self.nested) else None

    @functools.cached_property
    def new(self) -> list[int]:
        """The slots in which stands what the loop makes, in memory of its own."""
        return [place for place in range(len(self.slots)) if self._is_new(place)]

    def _is_new(self, place: int) -> bool:
        slot = self.slots[place]
        while slot.kind == MADE and slot.what.function in known.VIEWS:
            slot = slot.what.slots[0]
        return slot.kind == MADE

    def forget(self) -> None:
        """Nothing of it is pending any more."""
        self.count = 0
        self.given = [[] if slot.kind in (MADE, REAL, NUMBER) else None for slot in self.slots]
        self.made = []

    def values(self, leaves: list | tuple) -> tuple[list | tuple, dict]:
        """Arguments and keyword arguments of a call with these values in its slots."""
        if self.is_plain:
            return leaves, {}
        values, flat = iter(leaves), []
        for nesting in self.nested:
            flat.append(next(values) if nesting is None else nesting[0](next(values) for _ in range(nesting[1])))
        count = len(flat) - len(self.names)
        return flat[:count], dict(zip(self.names, flat[count:], strict=True))

    def result(self, outs: tuple):
        """What a call gives whose outputs are these."""
        kind = self.several
        return outs[0] if kind is None else list(outs) if kind is list else (*outs,) if kind is tuple else kind(outs)

    def step_result(self, layer, outs: tuple):
        """What a layer's step gives whose outputs, and the states that it keeps, are these."""
        for name, output in self.kept:
            layer._keep(name, outs[output])
        # A tuple of its own: what only the recorder's refers to is nobody's any more.
        return (*outs,) if layer._returns_states() else outs[0]

    def __repr__(self) -> str:
        # Operations refer to one another in circles.
        return f"<{self.name}, {self.count} steps waiting>"

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        return type(self.function).__name__ if self.is_step else getattr(self.function, "__name__", str(self.function))


def step_outputs(layer) -> tuple[str, ...]:
    """What a step of a layer gives: spikes, then the states that are not spikes."""
    return ("spk", *(name for name in layer.state_names if name != "spk"))


def nesting_of(function, args: tuple, kwargs: dict) -> tuple:
    """For each argument None, or of a list that holds tensors, or an index of several, its type and length."""
    return tuple(
        (list if isinstance(a, list) else tuple, len(a))
        if isinstance(a, (list, tuple)) and (function in INDEXED or any(isinstance(one, Tensor) for one in a))
        else None
        for a in (*args, *kwargs.values())
    )


def leaves_of(nested: tuple, args: tuple, kwargs: dict) -> list | tuple | None:
    """What stands in the slots of a call; None where the call has other arguments."""
    flat = (*args, *kwargs.values()) if kwargs else args
    if len(flat) != len(nested):
        return None
    leaves = []
    for nesting, value in zip(nested, flat, strict=True):
        if nesting is None:
            leaves.append(value)
        elif not isinstance(value, (list, tuple)) or len(value) != nesting[1]:
            return None
        else:
            leaves.extend(value)
    return leaves
