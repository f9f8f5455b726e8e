"""A run that leaves no trace: of a copy where there can be one, else of the thing itself, put back as it was."""

import contextlib
import copy
import inspect
import random
import sys
import types
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def trial(function, inputs: tuple, in_place: bool) -> Iterator[tuple]:
    """Gives what is called in place of a module or function, and its inputs; random generators stay as they are.

    What a function reaches by a global name is no copy: such modules get their state back at the end.
    """
    called = None
    with same_draws():
        # What knows no copy, as locks, files and generators do not, runs itself.
        with contextlib.suppress(Exception):
            called = None if in_place else _copy(function, inputs)
        originals = [function, inputs] if called is None else []
        with _put_back([*originals, *_globals_of(function)]):
            yield called or (function, inputs)


def reached(*origins) -> Iterator:
    """Every module, tensor, container and object of the user's that leads off from these, each once."""
    seen, waiting = set(), list(origins)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType, str, bytes, int, float)):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, (list, tuple, set, frozenset)):
            waiting += thing
        elif isinstance(thing, types.MethodType):
            waiting.append(thing.__self__)
        elif isinstance(thing, nn.Module):
            waiting += vars(thing).values()
        elif _is_users(thing):
            waiting += _captured_by(thing) if isinstance(thing, types.FunctionType) else vars(thing).values()


def modules_of(function, inputs: tuple) -> dict[str, nn.Module]:
    """The modules that a call runs, by name: those of a module as in `named_modules`, else of all that are at hand."""
    if isinstance(function, nn.Module):
        return dict(function.named_modules())
    at_hand = {f"input {k}": value for k, value in enumerate(inputs)}
    if isinstance(function, types.FunctionType):
        names = inspect.getclosurevars(function)
        at_hand |= dict(names.globals) | dict(names.nonlocals)
    elif isinstance(function, types.MethodType):
        at_hand["self"] = function.__self__
    roots = {name: value for name, value in at_hand.items() if isinstance(value, nn.Module)}
    if len(roots) == 1:
        return dict(next(iter(roots.values())).named_modules())
    return {f"{root}.{name}".rstrip("."): m for root, module in roots.items() for name, m in module.named_modules()}


def _is_users(thing) -> bool:
    """Whether it is neither a value nor a part of torch or of this library, which lead off to all they know."""
    module = thing.__module__ if isinstance(thing, types.FunctionType) else type(thing).__module__
    return hasattr(thing, "__dict__") and (module or "").split(".")[0] not in ("torch", "snnfast")


def _captured_by(function: types.FunctionType) -> list:
    cells = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty cell
            cells.append(cell.cell_contents)
    return cells


def _copy(function, inputs: tuple) -> tuple:
    # Only leaves can be copied; a state that a run left behind hangs on the graph of that run.
    memo = {}
    for tensor in reached(function, inputs):
        if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
            memo[id(tensor)] = _cut(tensor)
    copied, given = copy.deepcopy((function, inputs), memo)
    for module in [thing for thing in reached(copied, given) if isinstance(thing, nn.Module)]:
        hooks = [value for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, dict)]
        for functions in (vars(module), *hooks):
            functions |= {name: _own(value, memo) for name, value in functions.items()}
    return _own(copied, memo), given


def _own(function, memo: dict):
    """A function that has copies of what it captured, as hooks that count have; anything else as it is."""
    if not isinstance(function, types.FunctionType) or not function.__closure__:
        return function
    cells = tuple(types.CellType(copy.deepcopy(value, memo)) for value in _captured_by(function))
    if len(cells) < len(function.__closure__):
        return function
    own = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _cut(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _globals_of(function) -> list:
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        return []
    return [value for value in inspect.getclosurevars(function).globals.values() if isinstance(value, nn.Module)]


@contextlib.contextmanager
def _put_back(origins: list) -> Iterator[None]:
    """Attributes, containers and tensors as they were before; tensors that hang on a graph are shown as leaves."""
    attributes, tensors = [], []
    for thing in reached(*origins):
        if isinstance(thing, nn.Module):
            attributes.append((vars(thing), dict(vars(thing))))
        elif isinstance(thing, (dict, set)):
            attributes.append((thing, thing.copy()))
        elif isinstance(thing, list):
            attributes.append((thing, list(thing)))
        elif isinstance(thing, Tensor) and not thing.is_inference():
            tensors.append((thing, thing.detach().clone()))
        elif isinstance(thing, torch.Generator):
            tensors.append((thing, thing.get_state()))
    for held, before in attributes:
        if isinstance(held, dict):
            held |= {k: _cut(v) for k, v in before.items() if isinstance(v, Tensor) and v.grad_fn is not None}
    try:
        yield
    finally:
        for held, before in attributes:
            held.clear()
            held.extend(before) if isinstance(held, list) else held.update(before)
        with torch.no_grad():
            for held, before in tensors:
                if isinstance(held, torch.Generator):
                    held.set_state(before)
                elif not torch.equal(held, before):
                    # A graph may keep it for its backward, which may go on: it has the value it had.
                    held.data.copy_(before)


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Within it, who draws random numbers leaves no trace."""
    numpy = sys.modules.get("numpy")
    drawn = random.getstate(), numpy and numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(drawn[0])
        if numpy:
            numpy.random.set_state(drawn[1])
