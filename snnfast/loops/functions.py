"""Autograd functions of the user's: which of them may wait, and who calls them."""

import builtins
import dis
import functools
import sys
import types
import weakref

import torch
from torch import nn

from .. import spike
from .report import Loops

apply = vars(torch.autograd.Function)["apply"]
"""torch's own, whatever stands in its place meanwhile."""

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, types.ModuleType, type)
_PURE = """abs bool callable dict float getattr hasattr int isinstance len list max min pow property range round slice
    staticmethod str sum super tuple type zip enumerate ValueError TypeError RuntimeError AssertionError"""
_PYTHONS = {getattr(builtins, name) for name in _PURE.split()}
_DRAWING = ("rand", "bernoulli", "normal", "poisson", "multinomial", "dropout", "exponential_", "uniform_", "random")
_DEPTH = 8


def run(function: type, args):
    """`function.apply(*args)`, which no recorder sees."""
    return apply.__get__(None, function)(*args)


def is_one(function) -> bool:
    """Whether an operation is an autograd function."""
    return isinstance(function, type) and issubclass(function, torch.autograd.Function)


def may_wait(function: type, args: tuple) -> bool:
    """Whether a call reads its arguments and gives new tensors, and nothing else."""
    if function is spike.Spike:
        return getattr(args[1], "key", None) is not None
    return _is_pure_by_code(function)


@functools.lru_cache(maxsize=1024)
def _is_pure_by_code(function: type) -> bool:
    """Whether it draws nothing, keeps nothing but in its `ctx`, and reads nothing that could be another thing a step
    later."""
    if function.__module__.partition(".")[0] in ("torch", "snnfast"):
        return False
    methods = [vars(cls) for cls in function.__mro__ if cls is not torch.autograd.Function and is_one(cls)]
    names = {name for names in methods for name in names if name in ("forward", "backward", "setup_context")}
    given = [getattr(function, name) for name in names]
    return "forward" in names and all(_is_pure(method, set()) for method in given)


def _is_pure(value, seen: set) -> bool:
    """Whether calling it, or reading it, has no effects and depends on nothing that changes."""
    if isinstance(value, types.FunctionType):
        return value.__code__ in seen or _is_pure_function(value, seen)
    if isinstance(value, types.BuiltinFunctionType):
        return value in _PYTHONS or (getattr(value, "__module__", None) or "").partition(".")[0] in ("torch", "math")
    if isinstance(value, type) and value.__module__ == "builtins":
        return value in _PYTHONS
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(_is_pure(one, seen) for one in value))


def _is_pure_function(function: types.FunctionType, seen: set) -> bool:
    code = function.__code__
    seen.add(code)
    if code.co_filename.startswith(str(torch.__path__[0])):
        return True
    ctx = code.co_varnames[:1]
    before = None
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in ("STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME", "YIELD_VALUE", "DELETE_ATTR"):
            return False
        if name == "STORE_ATTR" and (before is None or _last_of(before.argval) not in ctx):
            return False
        before = instruction
    read = {*code.co_names}
    if read & {"mark_dirty", "print", "input", "open", "item", "tolist", "numpy"}:
        return False
    if any(name.startswith(_DRAWING) for name in read):
        return False
    known = {**vars(builtins), **function.__globals__}
    try:
        outer = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:
        return False
    if any(isinstance(one, types.CodeType) for one in code.co_consts):
        return False
    return all(_is_pure(one, seen) for one in (*(known[name] for name in read if name in known), *outer))


def _last_of(loaded):
    """What an instruction that loads one variable, or two, leaves on top."""
    return loaded[-1] if isinstance(loaded, tuple) else loaded


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
