"""Whether a call that is no part of a loop may run before what waits of it."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .. import _torch
from . import known
from .operation import Operation
from .placeholder import Pending
from .reading import Reading, memory_of

_SWITCHES = {_torch.switches_grad[0]}


def is_harmless(func, args: tuple, kwargs: dict, reading: Reading, waiting: list[Operation]) -> bool:
    """Whether a call on computed tensors leaves alone what waiting operations will read and write."""
    written = known.written_by(func, args, kwargs)
    if written is None:
        return func in _SWITCHES
    memories, theirs = {memory_of(tensor) for tensor in written if type(tensor) is not Pending}, _written_by(waiting)
    if not written and not theirs:
        return True
    if memories & reading.memories():
        return False
    given = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)]
    touched = {memory_of(tensor) for tensor in given}
    return not touched & theirs


def keeps_order(args: tuple, kwargs: dict, reading: Reading) -> bool:
    """Whether gradients are summed as in the loop, whose order of calls that goes by."""
    if not torch.is_grad_enabled():
        return True
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    return not any(tensor.requires_grad and tensor in reading for tensor in tensors)


def _written_by(operations: list[Operation]) -> set:
    """The memory that waiting operations will write."""
    return {
        memory_of(tensor)
        for operation in operations
        for place in operation.writes
        for tensor in operation.given[place][:1]
    }


def may_come_first(recorder, func, args: tuple, kwargs: dict) -> bool:
    """Whether a call on computed tensors may run before what waits."""
    if not is_harmless(func, args, kwargs, recorder.reading, recorder.operations):
        return False
    return recorder.settings.numbers != "exact" or keeps_order(args, kwargs, recorder.reading)
