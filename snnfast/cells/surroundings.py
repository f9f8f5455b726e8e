"""What the code of a cell can read besides its arguments: modules, closures, globals, attributes."""

import copy
import dataclasses
import functools
import operator
import sys
import sysconfig
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..over_time import Onlooker

_PLAIN = (type(None), bool, int, str, bytes, complex, type(Ellipsis), torch.dtype, torch.device, torch.Size, range)
# An environment may be laid over another one, whose libraries are found as its own are.
_PYTHONS = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")} | {
    folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))
}
_OF_LOOPS = "_seen", "_recorded", "_loops", "_like", "_waits"
_OWN = str(Path(__file__).parent.parent)


class Same:
    """Stands for an object that is only equal to itself, and keeps it alive."""

    __slots__ = ("object",)

    def __init__(self, object):
        self.object = object

    def __eq__(self, other):
        return type(other) is Same and other.object is self.object

    def __hash__(self):
        return id(self.object)


class Surroundings:
    """A snapshot: what a cell reads, as far as one can see without running it.

    Attributes:
        key: all of it but the tensors' values, hashable; of cells with equal keys one program does for both, each with
            its own tensors.
        tensors: every tensor, once, in an order that the key fixes.
        unseen: the type of an object that may change while nobody sees it; "" where there is none.

    Installed libraries are taken to be the same throughout: of their functions only what is bound to them counts.
    """

    def __init__(self, cell):
        self.tensors: list[Tensor] = []
        self.unseen = ""
        self._seen: dict[int, int] = {}
        self._classes: set[int] = set()
        self._alive = []  # so that no id is given anew
        self._contents: list[tuple] = []  # a container, what it holds, how many hidden states besides
        self._globals: list[tuple[dict, str, object]] = []
        self._cells: list[tuple[types.CellType, object]] = []
        self._modules: list[dict] = []
        self._key: list = []
        self._walk(cell)
        self.key = tuple(self._key)
        self._kinds = [_kind(tensor) for tensor in self.tensors]
        # Else nothing would die that a snapshot is kept of.
        del self._alive, self._seen, self._key

    def changed(self) -> str | None:
        """The name of something that is no longer the same object; None: all is. Quick."""
        for container, content, hidden in self._contents:
            if isinstance(container, (list, set)):
                if len(container) != len(content) or any(map(operator.is_not, container, content)):
                    return type(container).__name__
            elif len(container) != len(content) + hidden or any(
                container.get(name, self) is not value for name, value in content.items()
            ):
                return next((str(n) for n in content if container.get(n, self) is not content[n]), "an attribute")
        for names, name, value in self._globals:
            if names.get(name) is not value:
                return name
        for cell, value in self._cells:
            if cell.cell_contents is not value:
                return "a variable of an outer function"
        return None if self._kinds == [*map(_kind, self.tensors)] else "a tensor's kind"

    def restore(self) -> None:
        """Puts back what lists, dictionaries and attributes held."""
        for container, content, hidden in self._contents:
            _refill(container, content, bool(hidden))

    @contextmanager
    def as_seen(self) -> Iterator[None]:
        """Within it, lists, dictionaries, attributes, globals and outer variables hold what was seen, whoever changed
        them since."""
        now = [
            copy.copy(container) if isinstance(container, (list, set, dict)) else None for container in self._places()
        ]
        names = [(names, name, names.get(name, self)) for names, name, _ in self._globals]
        cells = [(cell, cell.cell_contents) for cell, _ in self._cells]
        self._put([(names, name, value) for names, name, value in self._globals], self._cells)
        self.restore()
        try:
            yield
        finally:
            self._put(names, cells)
            for container, content in zip(self._places(), now, strict=True):
                _refill(container, content)

    def _places(self) -> list:
        return [container for container, *_ in self._contents]

    def _put(self, names: list[tuple], cells: list[tuple]) -> None:
        for where, name, value in names:
            if value is not self and where.get(name, self) is not value:
                where[name] = value
        for cell, value in cells:
            if cell.cell_contents is not value:
                cell.cell_contents = value

    @contextmanager
    def placed(self, others: list[Tensor]) -> Iterator[TorchFunctionMode]:
        """Within it, and the mode that it gives, the cell reads these tensors in the place of its own."""
        by_id = {id(tensor): other for tensor, other in zip(self.tensors, others, strict=True)}
        # By hand wherever that can be: autograd functions take their arguments around all modes.
        places = [(names, name, value) for names, name, value in self._globals if id(value) in by_id]
        for container, content, _ in self._contents:
            if isinstance(container, (dict, list)):
                items = content.items() if isinstance(content, dict) else enumerate(content)
                places += [(container, name, value) for name, value in items if id(value) in by_id]
        cells = [(cell, value) for cell, value in self._cells if id(value) in by_id]
        try:
            for container, name, value in places:
                container[name] = by_id[id(value)]
            for cell, value in cells:
                cell.cell_contents = by_id[id(value)]
            yield _Substituted(by_id)
        finally:
            for container, name, value in places:
                container[name] = value
            for cell, value in cells:
                cell.cell_contents = value

    @contextmanager
    def substituted(self, others: list[Tensor]) -> Iterator[None]:
        """`placed`, within its mode."""
        with self.placed(others) as mode, mode:
            yield

    def hooked(self) -> bool:
        """Whether a module has hooks, but for those that only look on."""
        names = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
        hooks = (hook for module in self._modules for name in names for hook in module[name].values())
        return not all(isinstance(hook, Onlooker) for hook in hooks)

    def _walk(self, value) -> None:
        if isinstance(value, _PLAIN):
            self._key += type(value), value
            return
        if isinstance(value, float):
            self._key += float, value.hex()
            return
        if id(value) in self._seen:
            self._key += "again", self._seen[id(value)]
            return
        self._seen[id(value)] = len(self._seen)
        self._alive.append(value)
        self._key += (type(value),)
        if isinstance(value, Tensor):
            self._key += value.dtype, value.shape, value.device, value.requires_grad
            self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self._modules.append(vars(value))
            self._walk_class(type(value))
            # Hidden states come as arguments; what is remembered of loops is no business of a step's.
            self._walk_dict(vars(value), (*getattr(value, "state_names", ()), *_OF_LOOPS))
        elif isinstance(value, types.FunctionType):
            self._walk_function(value)
        elif isinstance(value, types.MethodType):
            self._walk(value.__func__)
            self._walk(value.__self__)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._walk(part)
        elif isinstance(value, type):
            self._key.append(Same(value))
            self._walk_class(value)
        elif isinstance(value, dict):
            self._walk_dict(value)
        elif isinstance(value, (list, tuple, set, frozenset)):
            if isinstance(value, (list, set)):
                self._contents.append((value, type(value)(value), 0))
            self._key.append(len(value))
            for part in value:
                self._walk(part)
        elif (
            isinstance(value, (types.ModuleType, types.BuiltinFunctionType))
            or not hasattr(value, "__dict__")
            or type(value).__module__.partition(".")[0] == "torch"
        ):
            self._key.append(Same(value))
            if _changes_unseen(value):
                self.unseen = type(value).__name__
        else:
            self._walk_class(type(value))
            self._walk_dict(vars(value))
        if dataclasses.is_dataclass(value) and not hasattr(value, "__dict__"):
            for field in dataclasses.fields(value):
                self._walk(getattr(value, field.name))

    def _walk_dict(self, value: dict, hidden: tuple[str, ...] = ()) -> None:
        content = {name: part for name, part in value.items() if name not in hidden and not isinstance(part, Onlooker)}
        self._contents.append((value, content, len(value) - len(content)))
        self._key.append(len(content))
        for name, part in content.items():
            self._walk(name)
            self._walk(part)

    def _walk_class(self, cls: type) -> None:
        """What the user's own classes hold: constants, and what their methods read."""
        for base in cls.__mro__:
            if _is_installed(_file_of(base)) or id(base) in self._classes:
                continue
            self._classes.add(id(base))
            self._contents.append((base.__dict__, dict(base.__dict__), 0))
            for name, part in vars(base).items():
                if not (name.startswith("__") and name.endswith("__")) or name in ("__call__", "__init__"):
                    part = part.__func__ if isinstance(part, (staticmethod, classmethod)) else part
                    part = part.fget if isinstance(part, property) else part
                    if not isinstance(part, (types.GetSetDescriptorType, types.MemberDescriptorType)):
                        self._key.append(name)
                        self._walk(part)

    def _walk_function(self, function: Callable) -> None:
        self._key.append(function.__code__)
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:
                self._key.append("empty")
                continue
            self._cells.append((cell, content))
            self._walk(content)
        if _is_installed(function.__code__.co_filename):
            return
        self._walk(function.__defaults__)
        self._walk(function.__kwdefaults__)
        for code in _codes(function.__code__):
            for name in code.co_names:
                if name in function.__globals__:
                    self._globals.append((function.__globals__, name, function.__globals__[name]))
                    self._walk_global(function.__globals__[name], code)

    def _walk_global(self, value, code) -> None:
        if isinstance(value, types.ModuleType) and not _is_installed(getattr(value, "__file__", None)):
            for name in code.co_names:
                if name in vars(value):
                    self._globals.append((vars(value), name, vars(value)[name]))
                    self._walk(vars(value)[name])
        else:
            self._walk(value)


_known: OrderedDict[tuple, tuple[weakref.ref, Surroundings]] = OrderedDict()
_KNOWN = 64


def surroundings_of(cell) -> Surroundings:
    """Those of a cell, walked through anew only if something is another object than at the last call."""
    owner, method = (cell.__self__, cell.__func__) if isinstance(cell, types.MethodType) else (cell, None)
    place = id(owner), method
    known = _known.get(place)
    if known is not None and known[0]() is owner and known[1].changed() is None:
        return known[1]
    found = Surroundings(cell)
    try:
        _known[place] = weakref.ref(owner, lambda _: _known.pop(place, None)), found
    except TypeError:
        return found
    while len(_known) > _KNOWN:
        _known.popitem(last=False)
    return found


def _refill(container, content, more: bool = False) -> None:
    """Has a list, set or dictionary hold what another one holds; more: and what else it has."""
    if isinstance(container, list):
        container[:] = content
    elif isinstance(container, set):
        container.clear()
        container.update(content)
    elif isinstance(container, dict):
        for name in () if more else [name for name in container if name not in content]:
            del container[name]
        container.update(content)


def _changes_unseen(value) -> bool:
    """Whether an object holds what may change while it stays the same: an array, a deque, one with slots."""
    kind = type(value)
    if any(hasattr(kind, name) for name in ("__setitem__", "__next__", "append")):
        return True
    slots = [name for base in kind.__mro__ for name in vars(base).get("__slots__", ())]
    return bool(slots) and not _is_installed(_file_of(kind))


def _kind(tensor: Tensor) -> tuple:
    return tensor.dtype, tensor.shape, tensor.device, tensor.requires_grad


class _Substituted(TorchFunctionMode):
    def __init__(self, by_id: dict[int, Tensor]):
        super().__init__()
        self._by_id = by_id

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*self._map(args), **{name: self._map(arg) for name, arg in (kwargs or {}).items()})

    def _map(self, value):
        if isinstance(value, Tensor):
            return self._by_id.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)(map(self._map, value))
        return value


def _codes(code) -> Iterator:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


@functools.cache
def _is_installed(file: str | None) -> bool:
    """Whether code in this file is a library's, or Python's; what has no file is Python's too."""
    if file is None:
        return True
    if file.startswith("<"):
        return file.startswith("<frozen")
    path = str(Path(file))
    return path.startswith(_OWN) or any(path.startswith(folder) for folder in _PYTHONS)


def _file_of(cls: type) -> str | None:
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "builtins":
        return None
    # What is defined at a prompt or in a notebook has no file.
    return getattr(module, "__file__", None) or ("<main>" if cls.__module__ == "__main__" else None)
