"""What the code of an autograd function does besides computing: only what reads nothing but its arguments, and plain
values that are looked at again at each call, may wait."""

import builtins
import contextlib
import dis
import functools
import types
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)
_PURE = """abs bool callable dict float getattr hasattr int isinstance len list max min pow property range round slice
    staticmethod str sum super tuple type zip enumerate ValueError TypeError RuntimeError AssertionError"""
_PYTHONS = {getattr(builtins, name) for name in _PURE.split()}
_DRAWING = (
    *("rand", "bernoulli", "normal", "poisson", "multinomial", "dropout", "exponential_", "uniform_", "random"),
    *("log_normal", "geometric", "cauchy", "seed", "manual_seed", "set_rng_state", "default_generator", "Generator"),
)
_ACTING = {"mark_dirty", "print", "input", "open", "item", "tolist", "numpy"}
_LIBRARIES = ("torch", "math", "numpy")


class Impure(Exception):
    """A function does, or may read, more than that."""


def is_one(function) -> bool:
    """Whether an operation is an autograd function."""
    return isinstance(function, type) and issubclass(function, torch.autograd.Function)


class Reads:
    """What an autograd function's code reads besides its arguments.

    Attributes:
        places: of plain values: (owner, name), the owner a namespace, a class, or a variable of an outer function.
        last: their values at the last call.
        wanders: whether they changed while calls of it waited: it does not wait any more.
    """

    def __init__(self, function: type):
        self.places: dict[tuple[int, str], tuple[object, str]] = {}
        self.wanders = False
        self._codes: set[types.CodeType] = set()
        for method in _methods(function):
            self._function(method)
        self.last = self.values()

    def values(self) -> tuple:
        """What stands in the places now."""
        return tuple([_value(owner, name) for owner, name in self.places.values()])

    @contextlib.contextmanager
    def as_last(self) -> Iterator[None]:
        """Within it, what stood in the places at the last call stands there."""
        now = self.values()
        self._put(self.last)
        try:
            yield
        finally:
            self._put(now)

    def _put(self, values: tuple) -> None:
        for (owner, name), value in zip(self.places.values(), values, strict=True):
            if isinstance(owner, dict):
                owner[name] = value
            else:
                setattr(owner, name, value)

    def _function(self, function: types.FunctionType) -> None:
        code = function.__code__
        if code in self._codes or code.co_filename.startswith(str(torch.__path__[0])):
            return
        self._codes.add(code)
        _refuse_effects(code)
        attributes = set(code.co_names)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            if not _is_plain(default):
                raise Impure
        for name in {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}:
            if name in function.__globals__:
                self._read(function.__globals__, name, function.__globals__[name], attributes)
            else:
                self._read(vars(builtins), name, getattr(builtins, name, Impure), attributes)
        for cell in function.__closure__ or ():
            try:
                self._read(cell, "cell_contents", cell.cell_contents, attributes)
            except ValueError:
                raise Impure from None

    def _read(self, owner, name: str, value, attributes: set[str]) -> None:
        """What is read of a value under its name, and of that those attributes."""
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if _is_plain(value):
            self.places[id(owner), name] = owner, name
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.ModuleType):
            of_library = value.__name__.partition(".")[0] in _LIBRARIES
            for one in () if of_library else attributes & set(vars(value)):
                self._read(vars(value), one, vars(value)[one], attributes)
        elif isinstance(value, type):
            self._class(value, attributes)
        elif not _is_librarys(value):
            raise Impure

    def _class(self, cls: type, attributes: set[str]) -> None:
        if cls in _PYTHONS or cls.__module__.partition(".")[0] == "torch":
            return
        if not is_one(cls):
            raise Impure
        if "apply" in attributes:
            for method in _methods(cls):
                self._function(method)
        found: dict[str, type] = {}
        for base in cls.__mro__[: cls.__mro__.index(torch.autograd.Function)]:
            for name in vars(base):
                found.setdefault(name, base)
        for name in attributes & set(found):
            self._read(found[name], name, vars(found[name])[name], attributes)


@functools.lru_cache(maxsize=1024)
def reads_of(function: type) -> Reads | None:
    """What an autograd function of the user's reads; None where it does more than that, or is a library's."""
    if function.__module__.partition(".")[0] in ("torch", "snnfast"):
        return None
    try:
        return Reads(function)
    except Impure:
        return None


def may_wait(function: type, args: Iterable) -> bool:
    """Whether a call of it reads its arguments and plain values, gives new tensors, and does nothing else."""
    reads = reads_of(function)
    return reads is not None and not reads.wanders and all(isinstance(arg, Tensor) or _is_plain(arg) for arg in args)


def has_changed(function: type) -> bool:
    """Whether its code reads other values than at its last call."""
    reads = reads_of(function)
    return reads is not None and not all(map(_is_same, reads.values(), reads.last))


def take_changes(function: type, wanders: bool) -> None:
    """Its calls from now on read the values that are there now; wanders: earlier ones waited."""
    reads = reads_of(function)
    reads.last = reads.values()
    reads.wanders |= wanders or not all(map(_is_plain, reads.last))


@contextlib.contextmanager
def as_last(functions: Iterable[type]) -> Iterator[None]:
    """Within it, the code of those that changed reads what it did at their last calls."""
    with contextlib.ExitStack() as stack:
        for function in functions:
            if has_changed(function):
                stack.enter_context(reads_of(function).as_last())
        yield


def last_values(function: type) -> tuple:
    """What its code read at the last call."""
    reads = reads_of(function)
    return () if reads is None else reads.last


def _methods(function: type) -> list[types.FunctionType]:
    classes = [cls for cls in function.__mro__ if cls is not torch.autograd.Function and is_one(cls)]
    names = {name for cls in classes for name in vars(cls) if name in ("forward", "backward", "setup_context")}
    methods = [getattr(function, name) for name in names]
    if "forward" not in names or not all(isinstance(method, types.FunctionType) for method in methods):
        raise Impure
    return methods


def _refuse_effects(code: types.CodeType) -> None:
    ctx, before = code.co_varnames[:1], None
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if name in ("STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME", "YIELD_VALUE", "DELETE_ATTR", "STORE_DEREF"):
            raise Impure
        if name == "STORE_ATTR" and (before is None or _last_of(before.argval) not in ctx):
            raise Impure
        before = instruction
    read = set(code.co_names)
    if read & _ACTING or any(name.startswith(_DRAWING) for name in read):
        raise Impure
    if any(isinstance(one, types.CodeType) for one in code.co_consts):
        raise Impure


def _last_of(loaded):
    """What an instruction that loads one variable, or two, leaves on top."""
    return loaded[-1] if isinstance(loaded, tuple) else loaded


def _is_plain(value) -> bool:
    return isinstance(value, _PLAIN) or (type(value) is tuple and all(map(_is_plain, value)))


def _is_librarys(value) -> bool:
    if not isinstance(value, types.BuiltinFunctionType):
        return False
    return value in _PYTHONS or (getattr(value, "__module__", None) or "").partition(".")[0] in ("torch", "math")


def _is_same(value, other) -> bool:
    return value is other or (type(value) is type(other) and _is_plain(value) and value == other)


def _value(owner, name: str):
    return owner.get(name) if isinstance(owner, dict) else getattr(owner, name)
