"""In-place operations that may wait: the object is from then on what will have been written to it."""

from torch import Tensor

from .. import _torch
from . import known
from .operation import Like, Operation
from .placeholder import Pending, become, make_pending
from .reading import is_shared_with_others


def record(recorder, operation: Operation, args: tuple, kwargs: dict) -> Tensor | None:
    """`x.add_(y)` where `x = x.add(y)` may wait: the object; None where it cannot stand for what is written to it."""
    target = args[0]
    leaves = operation.leaves(args, kwargs)
    like = operation.outputs[0]
    if leaves is None or not _may_be_written(target, like):
        return None
    pending = type(target) is Pending
    if pending and _is_viewed(recorder.period, target):
        return None
    if not pending and target in recorder.reading:
        return None
    if pending:
        _, maker, written, period = target.made_by
        outs = recorder._record(operation, leaves)
        if outs is None:
            return None
        (made,) = outs
        if type(target) is not Pending:
            # What waited was computed first.
            _stand_for(recorder, target, operation, made)
            return target
        _replace(maker, written, period, made)
        target.made_by, made.made_by = made.made_by, target.made_by
        operation.made[-1] = (target,)
        return target
    before = make_pending(target, recorder, operation, 0, recorder.number)
    outs = recorder._record(operation, [before, *leaves[1:]])
    if outs is None:
        recorder.reading.drop(before)
        become(target, before)
        return None
    target.made_by = outs[0].made_by
    operation.made[-1] = (target,)
    return target


def _stand_for(recorder, target: Tensor, operation: Operation, made: Pending) -> None:
    """A computed tensor is from now on what an operation that was given it will have written to it."""
    before = make_pending(target, *made.made_by)
    given = operation.given[0]
    if given and given[-1] is target:
        given[-1] = before
        recorder.reading.drop(target)
        recorder.reading.add(before)
    operation.made[-1] = (target,)


def _is_viewed(period, target: Pending) -> bool:
    """Whether another placeholder may be of the same memory."""
    maker = target.made_by[1]
    if maker.function in known.VIEWS:
        return True
    return any(user.function in known.VIEWS or user.same_as is not None for user, _ in period.consumers[maker])


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
    if is_shared_with_others(target) or storage.nbytes() != target.nbytes:
        return False
    return _torch.storage_users(storage._cdata) <= 2
