"""What the code of a cell can read besides its arguments: modules, closures, globals, attributes."""

import dataclasses
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PLAIN = (type(None), bool, int, str, bytes, complex, type(Ellipsis), torch.dtype, torch.device, torch.Size, range)
_PYTHONS = {sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
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

    Installed libraries are taken to be the same throughout: of their functions only what is bound to them counts.
    """

    def __init__(self, cell):
        self.tensors: list[Tensor] = []
        self._seen: dict[int, int] = {}
        self.root = cell
        self._held = []  # so that no id is given anew
        self._contents: list[tuple] = []
        self._modules: list[nn.Module] = []
        self._key: list = []
        self._walk(cell)
        self.key = tuple(self._key)

    def restore(self) -> None:
        """Puts back what lists, dictionaries and attributes held."""
        for container, content in self._contents:
            if isinstance(container, list):
                container[:] = content
            elif isinstance(container, set):
                container.clear()
                container.update(content)
            elif list(container.items()) != list(content.items()):
                container.clear()
                container.update(content)

    @contextmanager
    def substituted(self, others: list[Tensor]) -> Iterator[None]:
        """Within it, the cell reads these tensors in the place of its own."""
        by_id = {id(tensor): other for tensor, other in zip(self.tensors, others, strict=True)}
        # Within modules by hand: autograd functions take their arguments around all modes.
        places = [
            (tensors, name, tensor)
            for module in self._modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        try:
            for tensors, name, tensor in places:
                tensors[name] = by_id[id(tensor)]
            with _Substituted(by_id):
                yield
        finally:
            for tensors, name, tensor in places:
                tensors[name] = tensor

    def hooked(self) -> nn.Module | None:
        """A module that has hooks."""
        for module in self._modules:
            hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
            if any(hooks):
                return module
        return None

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
        self._held.append(value)
        self._key += (type(value),)
        if isinstance(value, Tensor):
            self._key += value.dtype, value.shape, value.device, value.requires_grad
            self.tensors.append(value)
        elif isinstance(value, nn.Module):
            self._modules.append(value)
            self._walk_class(type(value))
            self._walk_dict(vars(value))
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
                self._contents.append((value, type(value)(value)))
            self._key.append(len(value))
            for part in value:
                self._walk(part)
        elif isinstance(value, types.CellType):
            self._walk(value.cell_contents if value != types.CellType() else None)
        elif isinstance(value, (types.ModuleType, types.BuiltinFunctionType)) or not hasattr(value, "__dict__"):
            self._key.append(Same(value))
        else:
            self._walk_class(type(value))
            self._walk_dict(vars(value))
        if dataclasses.is_dataclass(value) and not hasattr(value, "__dict__"):
            for field in dataclasses.fields(value):
                self._walk(getattr(value, field.name))

    def _walk_dict(self, value: dict) -> None:
        self._contents.append((value, value.copy()))
        self._key.append(len(value))
        for name, part in value.items():
            self._walk(name)
            self._walk(part)

    def _walk_class(self, cls: type) -> None:
        """What the user's own classes hold: constants, and what their methods read."""
        for base in cls.__mro__:
            if _is_installed(_file_of(base)) or id(base.__dict__) in self._seen:
                continue
            self._seen[id(base.__dict__)] = len(self._seen)
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
                self._walk(cell.cell_contents)
            except ValueError:
                self._key.append("empty")
        if _is_installed(function.__code__.co_filename):
            return
        self._walk(function.__defaults__)
        self._walk(function.__kwdefaults__)
        for code in _codes(function.__code__):
            for name in code.co_names:
                if name in function.__globals__:
                    self._walk_global(function.__globals__[name], code)

    def _walk_global(self, value, code) -> None:
        if isinstance(value, types.ModuleType) and not _is_installed(getattr(value, "__file__", None)):
            for name in code.co_names:
                if name in vars(value):
                    self._walk(vars(value)[name])
        else:
            self._walk(value)


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
