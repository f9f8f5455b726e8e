"""Neurons as functions of tensors: argument checks, defaults, and the choice between the kernels and the reference.

Currents are `x` [T, B, ...] (time first) for a sequence and [B, ...] for a step; any number of neuron dimensions
works, 0 included. Membranes are float32 for float32, float16 and bfloat16 currents and float64 for float64 ones; spikes
come in the current's dtype. Integer currents are taken as torch's default dtype.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import _torch, layouts, ops, reference, transforms
from .annotations import SpikeGrad, StateQuant
from .capture import constant
from .checks import (
    RESET_MECHANISMS,
    as_parameters,
    check_current,
    check_fits,
    check_recurrence,
    check_reset_mechanism,
    check_states,
)
from .loops import recording
from .ops import Options, Recurrence, Result
from .reference import LEAKY, Model
from .snntorchs import fallback
from .surrogate import Surrogate, named, resolve

# Losses, probes and the like are snnTorch's; with a path, though empty, its modules can be imported as this one's.
_from_snntorch, __dir__ = fallback(__name__)
__path__ = []

__all__ = ["RESET_MECHANISMS", "leaky", "leaky_step", "use_reference"]

_reference_forced = False
_said = set()


def __getattr__(name: str) -> Any:
    return _from_snntorch(name)


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Within it, every snnfast layer runs the pure-PyTorch reference loop: the same numbers, for comparison.

    Examples:
        >>> lif, x = snn.Leaky(0.9), torch.rand(10, 2, 3)
        >>> with snn.use_reference():
        ...     spk, mem = lif.unroll(x)
        >>> torch.equal(mem, lif.unroll(x)[1])
        True
    """
    global _reference_forced
    before, _reference_forced = _reference_forced, True
    try:
        yield
    finally:
        _reference_forced = before


def leaky(
    x: Tensor,
    mem: Tensor | None = None,
    *,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    surrogate: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    return_mem: str = "all",
) -> tuple[Tensor, Tensor]:
    """The leaky integrate-and-fire neuron of `snntorch.Leaky` over a whole sequence, in one launch.

    Args:
        x: input current [T, B, ...].
        mem: membrane before the first step [B, ...]; None: zeros.
        beta: decay of the membrane per step, clamped to [0, 1]. A number or a tensor that broadcasts over [B, ...].
        threshold: a neuron fires where mem > threshold; broadcasts as beta.
        graded_spikes_factor: the height of a spike; broadcasts as beta.
        surrogate: surrogate gradient of a spike, see `snnfast.surrogate.resolve`. Default: atan(alpha=2).
        reset_mechanism: "subtract" the threshold, set to "zero", or "none".
        reset_delay: reset one step after the spike (True) or in the same step.
        return_mem: "all" membranes [T, B, ...], or the "last" one [B, ...], for which inference stores no others.

    Returns:
        spikes [T, B, ...] and membranes.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, device, layout or option.

    Examples:
        >>> spk, mem = snn.functional.leaky(torch.rand(100, 8, 20), beta=0.9)
    """
    if return_mem not in ("all", "last"):
        raise ValueError(f"return_mem must be 'all' or 'last', got {return_mem!r}")
    options = checked_options(surrogate, reset_mechanism, reset_delay, unroll=True)
    params = (beta, threshold, graded_spikes_factor)
    spk, (last,), seqs = run(LEAKY, x, (mem,), params, options, want_seqs=return_mem == "all")
    return spk, last if seqs is None else seqs[0]


def leaky_step(
    x: Tensor,
    mem: Tensor | None = None,
    *,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    graded_spikes_factor: float | Tensor = 1.0,
    surrogate: SpikeGrad | None = None,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
) -> tuple[Tensor, Tensor]:
    """One step of `leaky`: current x and membrane mem [B, ...] to spikes and membrane [B, ...].

    The other arguments and the errors are those of `leaky`.

    Examples:
        >>> spk, mem = snn.functional.leaky_step(torch.rand(8, 20), beta=0.9)
    """
    options = checked_options(surrogate, reset_mechanism, reset_delay, unroll=False)
    spk, (mem,), _ = run(LEAKY, x, (mem,), (beta, threshold, graded_spikes_factor), options)
    return spk, mem


def checked_options(surrogate: SpikeGrad | None, reset_mechanism: str, reset_delay: bool, unroll: bool) -> Options:
    """Checked options of a call."""
    check_reset_mechanism(reset_mechanism)
    return Options(resolve(surrogate), reset_mechanism, bool(reset_delay), unroll)


def run(
    model: Model,
    x: Tensor,
    states: tuple,
    params: tuple,
    options: Options,
    want_seqs: bool = False,
    state_quant: StateQuant = False,
    inhibition: bool = False,
    rec: Tensor | Recurrence | None = None,
) -> Result:
    """A step or a sequence of any neuron: in a captured graph as one node, else by `_run`.

    Args:
        x: current [T, B, ...] when unrolled, else [B, ...].
        states: the model's states before it [B, ...], each a tensor or None: zeros.
        params: numbers or tensors that broadcast over [B, ...].
        want_seqs: whether the states of all steps are wanted of a sequence.
        rec: a recurrent model's second current, of x's shape, None: zeros; or, of a sequence, the `Recurrence` that it
            comes from, in any floating dtype.
    """
    key = getattr(options.surrogate, "key", None)
    if torch.compiler.is_compiling() and fits_one_operator(key, state_quant, inhibition):
        shape = x.shape[1:] if options.unroll else x.shape
        if options.unroll:
            check_states(model, states, x, shape)
        params = as_parameters(model, params, x, shape)
        return ops.captured_run(model, x, rec, states, params, options, want_seqs)
    recording.compute(x, states, params, rec)
    return _run(model, x, states, params, options, want_seqs, state_quant, inhibition, rec)


def fits_one_operator(surrogate_key: tuple | None, state_quant: StateQuant, inhibition: bool) -> bool:
    """Whether names and numbers say all about a neuron that is being captured, and its caller wants the kernels."""
    if surrogate_key is None or state_quant or inhibition:
        return False
    return not _reference_forced and not _torch.is_exporting()


def _composite(model: Model, unroll: bool):
    """The kernel of a captured step or sequence: arguments as `ops.Captured` lists them."""
    inputs = 1 + (model.recurrent and (3 if unroll else 1))
    first_param = inputs + len(model.states)
    first_option = first_param + len(model.params)

    def kernel(*arguments):
        x, *recs = arguments[:inputs]
        shape = x.shape[1:] if unroll else x.shape
        states = tuple(
            state if state is not None and state.shape == shape else in_place_of_unfit(shape, x.device)
            for state in arguments[inputs:first_param]
        )
        surrogate, constants, *resets = arguments[first_option : first_option + 4]
        options = Options(named(surrogate, constants), *resets, unroll)
        params = arguments[first_param:first_option]
        want_seqs = unroll and arguments[-1]
        rec = None if not recs else Recurrence(*recs) if unroll else recs[0]
        spk, last, seqs = _run(model, x, states, params, options, want_seqs, rec=rec)
        if not unroll:
            return spk, *last
        stored = [last[0].new_empty(0) for _ in range(model.stored)] if seqs is None else seqs[: model.stored]
        return spk, *last, *stored

    return kernel


for _model in reference.MODELS:
    ops.composite(f"{_model.name}_step", _composite(_model, unroll=False))
    ops.composite(f"{_model.name}_seq", _composite(_model, unroll=True))


def _run(
    model: Model,
    x: Tensor,
    states: tuple,
    params: tuple,
    options: Options,
    want_seqs: bool = False,
    state_quant: StateQuant = False,
    inhibition: bool = False,
    rec: Tensor | Recurrence | None = None,
) -> Result:
    """Checks the tensors, then runs the kernels or the reference."""
    x = check_current(x, options.unroll)
    shape = x.shape[1:] if options.unroll else x.shape
    recurrent = isinstance(rec, Recurrence)
    if recurrent:
        check_recurrence(rec, x)
    elif rec is not None:
        check_fits("rec", rec, x, x.shape)
    check_states(model, states, x, shape)
    params = as_parameters(model, params, x, shape)
    dtype = _state_dtype(x, states, params)
    spk_dtype = x.dtype
    if dtype == torch.float64 or x.device.type == "cpu":
        # The CPU kernels compute where they store; on a GPU the bytes of half precision are the point.
        x = _cast(x, dtype)
    states = _filled(states, x, shape, dtype)
    if rec is not None:
        rec = Recurrence(*(_cast(tensor, dtype) for tensor in rec)) if recurrent else _cast(rec, dtype)
    reasons = _reasons_not_to_fuse(x, options.surrogate, state_quant, inhibition)
    if recurrent and transforms.functional() and not transforms.forward_mode():
        reasons.append("all-to-all recurrence within a transform of torch.func")
    fused = options.unroll or model.fuses_steps
    if reasons or not fused or runs_reference():
        for reason in reasons:
            _say_once(model.layer, reason)
        call = reference.Call(*options[:3], state_quant, inhibition)
        result = _run_reference(model, x.to(dtype), rec, states, params, call, options.unroll)
    else:
        result = _run_fused(model, x, rec, states, params, dtype, options, want_seqs)
    return Result(_cast(result.spk, spk_dtype), result.last, result.seqs if want_seqs else None)


def _run_fused(model, x, rec, states, params, dtype, options, want_seqs) -> Result:
    """The kernels on tensors as they want them, in the order of memory."""
    recurrent = isinstance(rec, Recurrence)
    layout = layouts.of(x, int(options.unroll), but=int(recurrent))
    shape = x.shape[1:] if options.unroll else x.shape
    rec = rec._replace(spk=layout.put_step(rec.spk)) if recurrent else layout.put(rec)
    params = _for_kernels(model, params, shape, dtype, layout)
    result = ops.run(model, layout.put(x), rec, layout.put_steps(states), params, options, want_seqs)
    if layout.order is None:
        return result
    spk, last, seqs = result
    return Result(layout.back(spk), layout.back_steps(last), seqs and tuple(map(layout.back, seqs)))


def spike_height(
    model: Model, spk: Tensor, params: tuple, surrogate, state_quant=False, inhibition: bool = False
) -> Tensor | None:
    """The height that `ops.unpack_spikes` takes, where a neuron's output spk [T, B, ...] is spikes and zeros alone.

    None where the kernels do not run, which may also be because the output is no step function's.
    """
    if _reasons_not_to_fuse(spk, surrogate, state_quant, inhibition):
        return None
    shape = spk.shape[1:]
    params = as_parameters(model, params, spk, shape)
    height = params[model.params.index("graded_spikes_factor")].detach()
    return _over_trailing_dims(height.to(_state_dtype(spk, (), params)).to(spk.dtype), shape)


def runs_reference() -> bool:
    """Whether every layer runs the reference loop, as `use_reference` and exporters have it."""
    return _reference_forced or is_exported()


def is_exported() -> bool:
    """An exporter wants operations that its runtime knows, not ours."""
    return _torch.is_exporting() or torch.jit.is_tracing()


def in_place_of_unfit(shape: torch.Size, device: torch.device) -> Tensor | None:
    """What a step starts from where the state that it has does not fit: None, which stands for zeros.

    Under saved-tensor hooks, zeros: a checkpoint that runs a loop again may find some that fit where `reset_mem` had
    others to give the first time, and wants the same tensors saved.
    """
    return torch.zeros(shape, dtype=torch.float32, device=device) if transforms.saves_through_hooks() else None


def _filled(states: tuple, x: Tensor, shape: torch.Size, dtype: torch.dtype) -> tuple:
    """All states in the state's dtype, zeros for those that are None; none where all are zeros."""
    if all(state is None for state in states):
        return ()
    zeros = None
    if any(state is None for state in states):
        zeros = x.new_zeros(shape, dtype=dtype)
    return tuple(zeros if state is None else _cast(state, dtype) for state in states)


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """`tensor.to(dtype)`, at no call where it is that: a step is short."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _state_dtype(x: Tensor, states: tuple, params: tuple) -> torch.dtype:
    """float64 where torch's type promotion would compute in float64, else float32."""
    tensors = (x, *(param for param in params if param.dim() > 0), *(state for state in states if state is not None))
    doubled = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if doubled else torch.float32


def _for_kernels(
    model: Model, params: tuple, shape: torch.Size, dtype: torch.dtype, layout: layouts.Layout
) -> tuple[Tensor, ...]:
    """Parameters as the kernels read them.

    What learns is clamped by torch: whether a gradient passes at a bound is torch's rule, and changed with torch 2.14.
    What does not, the kernels clamp themselves.
    """
    learns = model.clamped if torch.is_grad_enabled() else ()
    named_params = zip(model.params, params, strict=True)
    clamped = (p.clamp(0, 1) if n in learns and p.requires_grad else p for n, p in named_params)
    laid_out, shape = (layout.put_param(_cast(param, dtype), len(shape)) for param in clamped), layout.of_step(shape)
    return tuple(_over_trailing_dims(param, shape) for param in laid_out)


def _over_trailing_dims(param: Tensor, shape: torch.Size) -> Tensor:
    """A parameter laid out as the kernels read it: one number, or all of the trailing dimensions it varies over."""
    if param.numel() == 1:
        return param
    sizes = (1,) * (len(shape) - param.dim()) + tuple(param.shape)
    varies = next(d for d, size in enumerate(sizes) if size != 1)
    return param.reshape(sizes[varies:]).expand(shape[varies:])


def _reasons_not_to_fuse(x: Tensor, surrogate, state_quant, inhibition) -> list[str]:
    reasons = []
    if state_quant:
        reasons.append("state_quant")
    if inhibition:
        reasons.append("inhibition")
    if not isinstance(surrogate, Surrogate):
        reasons.append("a spike_grad that is no plain step function or learns parameters")
    if x.device.type == "cuda":
        why = ops.why_no_kernel_runs(x.device.index)
        if why is not None:
            reasons.append(f"CUDA, {why},")
    elif x.device.type not in ("cpu", "cuda", "meta"):
        reasons.append(f"device {x.device.type}")
    if transforms.forward_mode():
        reasons.append("forward-mode differentiation")
    return reasons


@constant
def _say_once(layer: str, reason: str) -> None:
    """Warns in Python, also where torch.compile traces the call."""
    if (layer, reason) not in _said:
        _said.add((layer, reason))
        warnings.warn(
            f"{layer}: {reason} is not fused; this layer runs the reference loop, with the same numbers but slower",
            stacklevel=5,
        )


def _run_reference(model, x, rec, states, params, call, unroll) -> Result:
    if not torch.compiler.is_compiling():
        ops.tell("reference", (x,), x.shape[0] if unroll else None)
    states = states or tuple(x.new_zeros(x.shape[1:] if unroll else x.shape) for _ in model.states)
    if call.inhibition and states[0].dim() < 2:
        raise ValueError(f"x must have a batch and a neuron dimension for inhibition, got {tuple(x.shape)}")
    if not unroll:
        rec = torch.zeros_like(x) if model.recurrent and rec is None else rec
        return Result(*reference.step(model, x, states, params, call, rec), None)
    before, feed_back = None, None
    if isinstance(rec, Recurrence):
        before = x.new_zeros(x.shape[1:]) if rec.spk is None else rec.spk

        def feed_back(spk):
            return torch.nn.functional.linear(spk, rec.weight, rec.bias)

    spk, last, seqs = reference.loop(model, x, states, params, call, before, feed_back)
    return Result(spk, tuple(state.clone() for state in last), seqs)
