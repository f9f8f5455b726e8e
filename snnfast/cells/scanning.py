"""`scan`: a cell over a whole sequence, fused where it can be, and otherwise step by step."""

import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import ops, transforms
from ..functional import runs_reference
from . import trees
from .building import BuildFailed
from .program import KERNELS, Program
from .surroundings import Surroundings, surroundings_of
from .tracing import Refused, Step, lock

_PROGRAMS = 256
_programs: OrderedDict[tuple, Program | Exception] = OrderedDict()
_said = set()


def scan(cell: Callable[..., Any], x: Any, state: Any = None) -> tuple[Any, Any]:
    """A cell over a whole sequence: what a loop that calls it at every step computes, to the bit, as one kernel.

    Args:
        cell: a function or module, `out, state = cell(x, state)`, in plain PyTorch. With a state that is a tuple of
            several tensors, a cell that takes so many arguments is called with each: `spk, syn, mem = cell(x, syn,
            mem)`, and the tuple's parts are what it returns after its output.
        x: inputs [T, B, ...], or a nest (tuple, list, dict, NamedTuple, dataclass) of such.
        state: before the first step, a tensor [B, ...] or a nest of tensors; None where the cell makes its own.

    Returns:
        (out, state): the outputs of all steps [T, B, ...], nested as the cell nests them, and the last state.

    A cell is fused if its step is elementwise: arithmetic, comparisons, `torch.where`, exp, tanh, sigmoid ... of
    tensors of one shape, of numbers, and of parameters and buffers that broadcast over it; on the CPU also products of
    a state before the step with square weights, all-to-all recurrence, which torch computes. Autograd functions of your
    own (surrogate gradients) are traced with their backward. Outputs, states and gradients of inputs and of the initial
    state are then the loop's to the bit in float32 and float64; gradients of parameters are sums, which round
    otherwise. Its C++ is compiled at the first call (seconds) and kept on disk. Where a cell cannot be fused, or there
    is no compiler, the loop runs, and a warning says why, once. `snnfast.cells.why_not_fused` tells of it.

    Raises:
        ValueError: an input without a time dimension, or inputs of different lengths; no steps for a cell that is not
            fused.
        TypeError: a cell that is not callable, an input that is no tensor.

    Examples:
        >>> def cell(x, mem):
        ...     mem = 0.9 * mem + x
        ...     return torch.tanh(mem), mem
        >>> out, mem = snn.scan(cell, torch.rand(100, 8, 20), torch.zeros(8, 20))
        >>> out.shape, mem.shape
        (torch.Size([100, 8, 20]), torch.Size([8, 20]))
    """
    if not callable(cell):
        raise TypeError(f"cell must be a function or module, got {type(cell).__name__}")
    call = _Call(cell, x, state)
    reason = _left_to_loop(call)
    if reason is None:
        try:
            return call.fused()
        except (Refused, BuildFailed) as refused:
            reason = str(refused)
    if reason:
        _say_once(call.cell.name, reason)
    return call.looped()


def why_not_fused(cell: Callable[..., Any], x: Any, state: Any = None) -> str | None:
    """Why `scan(cell, x, state)` runs the loop; None: it is fused. Where the state is None, a first step is run."""
    call = _Call(cell, x, state)
    reason = _left_to_loop(call)
    if reason is not None:
        return reason or "plain PyTorch is asked for here"
    before = Surroundings(cell)
    try:
        if call.makes_its_state():
            with torch.no_grad():
                call = _Call(cell, x, call.first_step([x[0] for x in call.xs])[1])
        program, _ = call.program()
        program.check_layout(call.xs, call._states)
    except (Refused, BuildFailed) as refused:
        return str(refused)
    finally:
        before.restore()
    return None


def fused(step: Step, xs: Sequence[Tensor], states: Sequence[Tensor]) -> Callable:
    """A sequence call for a step that somebody else has cut out of a loop.

    Args:
        step: (inputs, states) -> (outputs, states), tuples of tensors: any callable, such as one that calls a
            `torch.fx.GraphModule` on them. It is traced, not kept as it is: two with equal code, constants and tensors
            of equal kinds share one program, each with its own tensors.
        xs, states: tensors like those of one step, all of one shape.

    Returns:
        `run(xs, states) -> (outputs, last states)`: sequences [T, ...] to sequences, states [...] to states,
        differentiable.

    Raises:
        Refused: it cannot be fused; its message says why, naming the operator.
        BuildFailed: there is no compiler, or it failed.
    """
    surroundings = surroundings_of(step)
    program = _program((), step, xs, states, surroundings)
    if program.writes_states:
        raise Refused("its step writes to its states in place")
    return lambda xs, states: program.run((step, surroundings), xs, states)


class _Nested:
    """A cell as a step on flat tensors. It holds no tensors: backward keeps it."""

    def __init__(self, cell: Callable, x_form: trees.Form, state_form: trees.Form, spread: bool):
        self.cell, self.x_form, self.state_form, self.spread = cell, x_form, state_form, spread
        owner = getattr(cell, "__self__", None)
        of_layer = isinstance(owner, nn.Module)
        self.name = type(owner).__qualname__ if of_layer else getattr(cell, "__qualname__", type(cell).__qualname__)
        self.out_form = None

    def step(self, x, state) -> tuple:
        """out, state of one step, as the cell nests them."""
        result = self.cell(x, *state) if self.spread else self.cell(x, state)
        wanted = 1 + len(state) if self.spread else 2
        if not isinstance(result, tuple) or len(result) != wanted:
            got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise TypeError(f"{self.name} must return its output and its state, {wanted} values, got {got}")
        return (result[0], tuple(result[1:])) if self.spread else result

    def __call__(self, inputs: tuple, states: tuple) -> tuple[tuple, tuple]:
        """Outputs and states. Raises Refused where it does not fit what it has."""
        out, state = self.step(trees.unflatten(self.x_form, inputs), trees.unflatten(self.state_form, states))
        outs, self.out_form = trees.flatten(out)
        new, form = trees.flatten(state)
        if form != self.state_form:
            raise Refused("it returns another kind of state than it takes")
        for name, values in (("output", outs), ("state", new)):
            for value in values:
                if not isinstance(value, Tensor) or value.shape != inputs[0].shape:
                    got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                    raise Refused(f"its {name} is {got}, its input {tuple(inputs[0].shape)}")
        for before, after in zip(states, new, strict=True):
            if before.dtype != after.dtype:
                raise Refused(f"its state has dtype {before.dtype} before a step and {after.dtype} after it")
        return tuple(outs), tuple(new)


class _Call:
    """One call of `scan`."""

    def __init__(self, cell: Callable, x, state):
        self.xs, x_form = trees.flatten(x)
        for tensor in self.xs:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"x must be a tensor or a nest of tensors, got {type(tensor).__name__}")
            if tensor.dim() == 0 or len(tensor) != len(self.xs[0]):
                got = ", ".join(str(tuple(tensor.shape)) for tensor in self.xs)
                raise ValueError(f"x must be tensors [T, ...] of one T, got {got}")
        if not self.xs:
            raise TypeError("x must be a tensor or a nest of tensors, got none")
        self.state = state
        self._states, form = trees.flatten(state)
        self.cell = _Nested(cell, x_form, form, _is_spread(cell, state))

    def looped(self):
        if not len(self.xs[0]):
            raise ValueError("x must have at least one step for a cell that is not fused")
        ops.tell("reference", tuple(self.xs), len(self.xs[0]))
        columns, state = [], self.state
        for inputs in zip(*(x.unbind(0) for x in self.xs), strict=True):
            out, state = self.cell.step(trees.unflatten(self.cell.x_form, inputs), state)
            leaves, form = trees.flatten(out)
            columns.append(leaves)
        return trees.unflatten(form, [*map(torch.stack, zip(*columns, strict=True))]), state

    def fused(self, heads: Sequence[Tensor] | None = None):
        """Raises Refused or BuildFailed before the cell has run. heads: outputs of a step that has been run before."""
        if self.makes_its_state():
            if heads is not None:
                raise Refused("its states are not tensors of its input's shape")
            return self._after_first_step()
        program, surroundings = self.program()
        if program.writes_states and heads is None:
            return self._after_first_step()
        if heads and any(
            p is not None and h is not self._states[p] for h, p in zip(heads, program.places, strict=True)
        ):
            raise Refused("its first output is not the state that later ones are")
        outs, last = program.run((self.cell, surroundings), self.xs, self._states, heads or ())
        return trees.unflatten(program.out_form, outs), trees.unflatten(self.cell.state_form, last)

    def program(self) -> tuple[Program, Surroundings]:
        surroundings = surroundings_of(self.cell.cell)
        if surroundings.hooked() or _has_any_global_hook():
            raise Refused("hooks have to run at every step")
        if surroundings.unseen:
            raise Refused(f"it reads an object of type {surroundings.unseen}, which may change while nobody sees it")
        key = self.cell.x_form, self.cell.state_form, self.cell.spread
        steps = [x[0] if len(x) else x.new_empty(x.shape[1:]) for x in self.xs]
        program = _program(key, self.cell, steps, self._states, surroundings)
        if program.out_form is None:
            program.out_form = self.cell.out_form
        return program, surroundings

    def makes_its_state(self) -> bool:
        """Whether the first step makes the state that later ones have."""
        shape = self.xs[0].shape[1:]
        return not all(isinstance(state, Tensor) and state.shape == shape for state in self._states)

    def first_step(self, first: Sequence[Tensor]) -> tuple:
        return self.cell.step(trees.unflatten(self.cell.x_form, first), self.state)

    def _after_first_step(self):
        """The first step as it is written, which makes the state or writes to the user's; then the rest."""
        if len(self.xs[0]) < 2:
            return self.looped()
        first, rest = zip(*(x.split([1, len(x) - 1]) for x in self.xs), strict=True)
        out, state = self.first_step([x[0] for x in first])
        heads, _ = trees.flatten(out)
        call = _Call(self.cell.cell, trees.unflatten(self.cell.x_form, rest), state)
        try:
            return call.fused(heads)
        except (Refused, BuildFailed) as refused:
            _say_once(self.cell.name, str(refused))
        outs, state = call.looped()
        outs, form = trees.flatten(outs)
        joined = [torch.cat([head.unsqueeze(0), out]) for head, out in zip(heads, outs, strict=True)]
        return trees.unflatten(form, joined), state


def _is_spread(cell: Callable, state) -> bool:
    """Whether a cell takes the parts of a tuple as arguments of their own."""
    if type(state) is not tuple or not state:
        return False
    function = cell.forward if isinstance(cell, nn.Module) else cell
    try:
        signature = inspect.signature(function)
        signature.bind(None, *state)
    except (TypeError, ValueError):
        return False
    return len(state) > 1 or any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())


def _left_to_loop(call: _Call) -> str | None:
    """Why no cell is fused here: "" where somebody asked for plain PyTorch; None: this one may be."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or runs_reference() or transforms.at_work():
        return ""
    devices = {x.device.type for x in call.xs} - {*KERNELS}
    return f"on {' and '.join(sorted(devices))} there are no kernels of generated cells" if devices else None


def _program(key: tuple, step: Step, xs, states, surroundings: Surroundings) -> Program:
    """The program for such a cell and tensors, made once. Raises Refused or BuildFailed, each time."""
    kinds = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in (*xs, *states))
    modes = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.get_default_dtype()
    key = key, kinds, modes, surroundings.key
    with lock:
        if key not in _programs:
            try:
                _programs[key] = Program(step, xs, states, surroundings)
            except (Refused, BuildFailed) as refused:
                _programs[key] = refused
            while len(_programs) > _PROGRAMS:
                _programs.popitem(last=False)
        _programs.move_to_end(key)
        found = _programs[key]
    if isinstance(found, Exception):
        raise type(found)(str(found))
    return found


def _say_once(name: str, reason: str) -> None:
    if (name, reason) not in _said:
        _said.add((name, reason))
        warnings.warn(f"{name} is not fused, its steps run one by one: {reason}", stacklevel=4)
