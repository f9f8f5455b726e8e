"""Names that snnfast does not define, taken from snnTorch: a script written for it changes one import and no more."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

_with_fallback = set()


def fallback(module: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a module of snnfast, which know the names of snnTorch's namesake too."""
    _with_fallback.add(module)
    theirs = _namesake(module)

    def __getattr__(name):
        reason = ""
        if not name.startswith("_"):
            try:
                namesake = importlib.import_module(theirs)
                return (
                    getattr(namesake, name) if hasattr(namesake, name) else importlib.import_module(f"{theirs}.{name}")
                )
            except ImportError as error:
                reason = _why_not(f"{theirs}.{name}", f"{module}.{name}", error)
        raise AttributeError(f"module {module!r} has no attribute {name!r}{reason}")

    def __dir__():
        return sorted({*vars(sys.modules[module]), *_public_names(theirs)})

    return __getattr__, __dir__


class _Finder(MetaPathFinder, Loader):
    """Lets `import snnfast.spikegen` import `snntorch.spikegen`: the same module under a second name."""

    def find_spec(self, fullname, path=None, target=None):
        parent, _, name = fullname.rpartition(".")
        if parent not in _with_fallback or name.startswith("_"):
            return None
        if _is_missing():
            raise ModuleNotFoundError(f"No module named {fullname!r}{_origin(fullname)}", name="snntorch")
        try:
            found = find_spec(_namesake(fullname))
        except ModuleNotFoundError:
            found = None
        return None if found is None else ModuleSpec(fullname, self)

    def exec_module(self, module):
        sys.modules[module.__name__] = importlib.import_module(_namesake(module.__name__))


sys.meta_path.append(_Finder())


def _namesake(module: str) -> str:
    return "snntorch" + module.removeprefix("snnfast")


def _is_missing() -> bool:
    return find_spec("snntorch") is None


def _why_not(theirs: str, ours: str, error: ImportError) -> str:
    if _is_missing():
        return _origin(ours)
    return f", nor is there a {theirs}" if error.name == theirs else f"; {theirs} cannot be imported: {error}"


def _origin(ours: str) -> str:
    return f"; {ours} would come from snnTorch: pip install snntorch"


def _public_names(theirs: str) -> list[str]:
    if _is_missing():
        return []
    namesake = importlib.import_module(theirs)
    modules = (found.name for found in pkgutil.iter_modules(getattr(namesake, "__path__", ())))
    return [name for name in (*dir(namesake), *modules) if not name.startswith("_")]
