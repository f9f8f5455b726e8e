"""Autograd functions of the user's: which of them may wait, and who calls them."""

import sys
import weakref

from torch import nn

from .. import _torch, spike
from . import purity
from .report import Loops

_DEPTH = 8


def run(function: type, args):
    """`function.apply(*args)`, which no recorder sees."""
    return _torch.apply.__get__(None, function)(*args)


def may_wait(function: type, args: tuple) -> bool:
    """Whether a call reads its arguments and plain values, gives new tensors, and does nothing else."""
    if function is spike.Spike:
        return getattr(args[1], "key", None) is not None
    return purity.may_wait(function, args)


def caller():
    """The module that calls an autograd function, else the code that does, of the user's."""
    frame, code, depth = sys._getframe(1), None, 0
    own = __file__.rpartition("/")[0]
    while frame is not None and depth < _DEPTH:
        called = frame.f_code
        if not called.co_filename.startswith(own):
            code, depth = code or called, depth + 1
            if called.co_argcount and isinstance(module := frame.f_locals.get(called.co_varnames[0]), nn.Module):
                return module
        frame = frame.f_back
    return code


_loops = weakref.WeakKeyDictionary()


def loops_of(landmark) -> Loops:
    """What is remembered of the loops that begin with a layer's step, or with a function that a module calls."""
    if hasattr(landmark, "_step_alone"):  # a layer of snnfast, whose steps the recorder knows
        if landmark._loops is None:
            object.__setattr__(landmark, "_loops", Loops())
        return landmark._loops
    if landmark not in _loops:
        _loops[landmark] = Loops()
    return _loops[landmark]
