"""Calls of operators: their arguments by the names of the registered schema, who is told, and memory that fails.

The only file, beside `captured`, that names `torch.ops.snnfast`.
"""

import contextlib
import math
from collections import namedtuple
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .. import reference

NO_NEURON = -1
LARGE = 1 << 24
"""Elements from which an operator's memory is asked for beforehand."""

_LEAST_OWN = 1 << 20
"""Bytes from which memory is snnfast's own (csrc/cpu/memory.cpp), which only then is worth an operator's call."""

fakes: dict[str, Callable] = {}
_listeners = []


def _arguments(name: str, operator: str) -> type[tuple]:
    """A tuple of an operator's arguments, with the names and the defaults of its schema (`csrc/op/arguments.h`)."""
    arguments = getattr(torch.ops.snnfast, operator).default._schema.arguments
    defaults = [argument.default_value for argument in arguments if argument.has_default_value()]
    return namedtuple(name, [argument.name for argument in arguments], defaults=defaults)


# Every model's operators have those of the first.
Forward = _arguments("Forward", f"{reference.MODELS[0].name}_fwd")
Backward = _arguments("Backward", f"{reference.MODELS[0].name}_bwd")


@contextlib.contextmanager
def listening(heard: Callable[[str, tuple, int | None], None]) -> Iterator[None]:
    """Within it `heard(operator, arguments, steps)` is told of every call of an operator.

    `steps`: of a neuron's forward those of its sequence, or None for one step; NO_NEURON for any other operator. Steps
    of a neuron that no kernel runs are told as operator "reference".
    """
    _listeners.append(heard)
    try:
        yield
    finally:
        _listeners.remove(heard)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Within it nobody is told of a call."""
    listeners, _listeners[:] = list(_listeners), []
    try:
        yield
    finally:
        _listeners[:] = listeners


def tell(operator: str, arguments: tuple, steps: int | None) -> None:
    """Tells who listens of a call."""
    for heard in _listeners:
        heard(operator, arguments, steps)


def call(name: str, *arguments, steps: int | None = None):
    """Calls an operator. Where memory does not suffice, torch's allocator says so, as for its own operators.

    The stable ABI turns an exception of torch's into one without type and reason, after it has printed a C++ trace. So
    what an operator allocates, which is what its fake kernel returns, is allocated here where it is large or failed.
    """
    first = arguments[0]
    large = type(first) is Tensor and first.numel() * (steps or 1) >= LARGE
    if (large or _listeners) and not torch.compiler.is_compiling():
        if not name.endswith("_fwd"):
            tell(name, arguments, NO_NEURON)
        if large:
            fakes[name](*arguments)
    try:
        return getattr(torch.ops.snnfast, name)(*arguments)
    except RuntimeError as error:
        if "API call failed" not in str(error):
            raise
        failed = error
    # Outside of `except`, which would tie what is raised now to the words of the stable ABI.
    _allocate(name, arguments)
    raise failed


def _allocate(name: str, arguments: tuple) -> None:
    """Takes the memory of an operator's results, and of copies in row-major order, and gives it back."""
    given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
    copied = [tensor for tensor in given if not tensor.is_contiguous() and 0 not in tensor.stride()]
    held = fakes[name](*arguments), [tensor.new_empty(tensor.shape) for tensor in copied]
    del held


def fake(name: str) -> Callable[[Callable], Callable]:
    """Decorates the fake kernel of an operator: its results without values."""

    def register(kernel: Callable) -> Callable:
        fakes[name] = kernel
        torch.library.register_fake(f"snnfast::{name}")(kernel)
        return kernel

    return register


@fake("fresh")
def _fake_fresh(like: Tensor, sizes: list[int]) -> Tensor:
    return like.new_empty(sizes)


def fresh(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, a large one in memory of snnfast's own, as operators' results are."""
    if math.prod(shape) * dtype.itemsize < _LEAST_OWN:
        return torch.empty(shape, dtype=dtype)
    with unheard():
        return call("fresh", torch.empty((), dtype=dtype), list(shape), steps=math.prod(shape))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the states for currents of this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_forward(model: reference.Model, given: tuple) -> list[Tensor]:
    x, dtype = given.x, wide(given.x.dtype)
    shape = x.shape[1:] if given.unroll else x.shape
    last = [x.new_empty(shape, dtype=dtype) for _ in model.states]
    extras = [x.new_empty(x.shape, dtype=dtype) for _ in (model.kept(given.reset_delay) if given.save_extras else ())]
    stored = x.shape if given.every == 1 else (max(x.shape[0] - 1, 0) // given.every, *shape)
    seqs = [x.new_empty(stored, dtype=dtype) for _ in range(given.saved if given.unroll else 0)]
    return [x.new_empty(x.shape), *last, *seqs, *extras]


def _fake_backward(model: reference.Model, given: tuple) -> list[Tensor]:
    like, dtype = given.like, wide(given.dtype)
    shape = like.shape[1:] if given.unroll else like.shape
    results = [like.new_empty(like.shape, dtype=given.dtype)]
    if given.want_states:
        results += [like.new_empty(shape, dtype=dtype) for _ in model.states]
    if given.want_params:
        results.append(like.new_empty((len(model.params), shape.numel()), dtype=dtype))
    return results if given.weight is None else [*results, like.new_empty(shape, dtype=dtype)]


def _register(model: reference.Model) -> None:
    fake(f"{model.name}_fwd")(lambda *arguments: _fake_forward(model, Forward(*arguments)))
    fake(f"{model.name}_bwd")(lambda *arguments: _fake_backward(model, Backward(*arguments)))


for _model in reference.MODELS:
    _register(_model)
