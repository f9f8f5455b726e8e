"""A neuron's operators under autograd: one `torch.autograd.Function` for steps, sequences and recurrence."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import surrogate, transforms
from ..reference import Model
from ..transforms import Fold
from . import calls, gradients
from .calls import wide

CHUNK = 16
"""Steps that backward reruns at a time (csrc/op/scan.h)."""


class Options(NamedTuple):
    """How a neuron runs; `unroll`: x's first dimension is time."""

    surrogate: surrogate.Surrogate
    reset_mechanism: str
    reset_delay: bool
    unroll: bool


class Result(NamedTuple):
    """Spikes (x's shape and dtype), the last states [...], and where wanted all states [T, ...], else None."""

    spk: Tensor
    last: tuple
    seqs: tuple | None


class Recurrence(NamedTuple):
    """All-to-all recurrence over x [T, ..., N]: rec[t] = spk[t-1] @ weight.T + bias.

    weight [N, N], bias [N] or None, spk [..., N]: the spikes before the first step, None: none.
    """

    weight: Tensor
    bias: Tensor | None = None
    spk: Tensor | None = None


class _Call(NamedTuple):
    """saved: how many states of all steps forward keeps; reruns: backward reruns the steps, from chunks' starts."""

    model: Model
    options: Options
    saved: int
    reruns: bool
    initial: int

    def split(self, tensors: tuple) -> tuple[tuple, tuple, tuple]:
        """States before the first step, parameters, and a recurrence's tensors, or what is said of each of them."""
        params = self.initial + len(self.model.params)
        return tensors[: self.initial], tensors[self.initial : params], tensors[params:]


def run(
    model: Model,
    x: Tensor,
    rec: Tensor | Recurrence | None,
    states: tuple,
    params: tuple,
    options: Options,
    want_seqs: bool,
) -> Result:
    """Runs the fused neuron.

    Args:
        rec: a recurrent model's second current, or the recurrence that it comes from.
        states: one for each of the model's, or none: zeros.
    """
    rec, recurrence = (None, rec) if isinstance(rec, Recurrence) else (rec, ())
    tensors = (x, rec, *states, *params, *recurrence)
    if transforms.differentiated(tensors):
        learns = transforms.functional() or any(param.requires_grad for param in params)
        saved = model.stored if want_seqs or learns else len(model.needed)
        call = _Call(model, options, saved, _reruns(model, options, x, want_seqs), len(states))
        outputs = transforms.apply(_Neuron, call, *tensors)
    else:
        outputs = _forward(model, options, x, rec, states, params, recurrence, model.stored if want_seqs else 0)
    spk, count = outputs[0], len(model.states)
    last, seqs = tuple(outputs[1 : 1 + count]), None
    if want_seqs and options.unroll:
        seqs = tuple(outputs[1 + count : 1 + count + model.stored])
        seqs = seqs if model.output is None else (*seqs, spk)
    return Result(spk, last, seqs)


def _forward(model, options, x, rec, states, params, recurrence, saved, every=1, save_extras=False) -> list[Tensor]:
    name = f"{model.name}_fwd"
    calls.tell(name, (x,), x.shape[0] if options.unroll else None)
    weight, bias, spk = recurrence or (None, None, None)
    given = calls.Forward(
        x=x,
        rec=rec,
        states=states,
        params=params,
        unroll=options.unroll,
        reset_mechanism=options.reset_mechanism,
        reset_delay=options.reset_delay,
        inclusive=options.surrogate.inclusive,
        saved=saved,
        every=every,
        save_extras=save_extras,
        weight=weight,
        bias=bias,
        spk=spk,
    )
    return calls.call(name, *given)


def _reruns(model: Model, options: Options, x: Tensor, want_seqs: bool) -> bool:
    """Whether a sequence's backward reruns its steps.

    In half precision, where nobody wants the states of all steps, x and the states before every 16th are the smaller
    traffic and memory. A compiler decides itself what it keeps, and an `evaluated` surrogate asks for all states.
    """
    return (
        model.rerunnable
        and options.unroll
        and x.dtype in (torch.float16, torch.bfloat16)
        and not want_seqs
        and not isinstance(options.surrogate, surrogate.evaluated)
        and not torch.compiler.is_compiling()
        and not transforms.functional()
    )


class _Neuron(torch.autograd.Function):
    """Outputs: spikes, last states, the first `saved` states of all steps, extras; with `reruns` starts, no extras.

    What backward reads are outputs, not copies: a membrane that the user asked for is kept once, and a second backward
    finds the graph that leads to it. A recurrence has no second backward.
    """

    @staticmethod
    def forward(call, x, rec, *tensors):
        states, params, recurrence = call.split(tensors)
        every = CHUNK if call.reruns else 1
        return tuple(
            _forward(*call[:2], x, rec, states, params, recurrence, call.saved, every, save_extras=not call.reruns)
        )

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        call, x, _, *tensors = inputs
        states, params, recurrence = call.split(tensors)
        model, options = call.model, call.options
        spk, count = outputs[0], len(model.states)
        last, rest = outputs[1 : 1 + count], outputs[1 + count :]
        seqs, extras = _split(rest, call.saved) if options.unroll else (last[: call.saved], rest)
        if model.output is not None and (not seqs or any(ctx.needs_input_grad[3 + len(states) :])):
            seqs = (*seqs, spk)
        others = (x,) if call.reruns else (*recurrence, spk) if recurrence else ()
        ctx.call, ctx.dtype, ctx.counts = call, x.dtype, (len(seqs), len(extras))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*seqs, *extras, *states, *params, *others)
        fixed = seqs if call.reruns else extras if recurrence else ()
        disabled = model.spikes and isinstance(options.surrogate, surrogate.disabled)
        if disabled and not recurrence and not _learns_height(model, params):
            fixed = (spk, *fixed)
        if fixed:
            ctx.mark_non_differentiable(*fixed)

    @staticmethod
    def backward(ctx, grad_spk, *grads):
        call, saved = ctx.call, _Saved(ctx)
        last, rest = _split(grads, len(call.model.states))
        seqs, grad_extras = _split(rest, len(rest) - len(saved.extras))
        if saved.x is not None:
            seqs = ()
        needs_x, needs_rec, *needs = ctx.needs_input_grad[1:]
        needs_states, needs_params, needs_recurrence = call.split(needs)
        # No caller sees `extras`: a gradient reaches them only when a first backward was itself differentiated.
        by_torch = any(grad is not None for grad in grad_extras) or transforms.forward_mode()
        # What maps over a backward alone takes no batching rules, but torch's operations it can map over.
        by_torch = by_torch or transforms.any_batched((grad_spk, *grads), legacy=True)
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling() or transforms.functional()
        if saved.recurrence:
            _refuse_for_recurrence(by_torch or transforms.any_batched((grad_spk, *grads)), differentiable)
        elif by_torch or differentiable:
            saved = _with_all_states(ctx, saved)
        groups = gradients.Groups(grad_spk, last, seqs, saved.seqs, saved.extras, saved.states, saved.params)
        asked = gradients.Asked(
            call.model, call.options, ctx.dtype, any(needs_states) or bool(needs_recurrence), any(needs_params)
        )
        if by_torch:
            found = gradients.by_reference(asked, groups, grad_extras)
        elif differentiable:
            found = gradients.differentiable(asked, groups)
        else:
            found = gradients.fused(asked, groups, saved.x, saved.recurrence[0] if saved.recurrence else None)
        grad_x, *found = found
        return (
            None,
            grad_x if needs_x else None,
            grad_x.to(wide(ctx.dtype)) if needs_rec else None,
            *(found[k] if needed else None for k, needed in enumerate(needs_states)),
            *gradients.of_params(found[len(call.model.states) * asked.want_states :], saved.params, needs_params),
            *gradients.of_recurrence(grad_x, found, saved.recurrence, needs_recurrence),
        )

    @staticmethod
    def vmap(info, in_dims, call, x, rec, *tensors):
        _, x_dim, rec_dim, *dims = in_dims
        fold = Fold.of(info.batch_size, x, x_dim, call.options.unroll)
        states, params, _ = call.split(list(zip(tensors, dims, strict=True)))
        outputs = transforms.apply(
            _Neuron,
            *(call, fold.sequence(x, x_dim), fold.sequence(rec, rec_dim)),
            *(fold.state(*state) for state in states),
            *(fold.param(*param) for param in params),
        )
        place, count = int(call.options.unroll), len(call.model.states)
        return outputs, (place, *[0] * count, *[place] * (len(outputs) - 1 - count))


def _refuse_for_recurrence(batched: bool, differentiable: bool) -> None:
    if batched:
        raise RuntimeError(
            "all-to-all recurrence has no backward over a batch of gradients (vmap of torch.autograd.grad, "
            "is_grads_batched=True, vectorize=True): run it under snnfast.use_reference()"
        )
    if differentiable:
        raise RuntimeError(
            "all-to-all recurrence has no double backward (create_graph=True): run it under snnfast.use_reference()"
        )


def _learns_height(model: Model, params: tuple) -> bool:
    named = dict(zip(model.params, params, strict=True))
    return "graded_spikes_factor" in named and named["graded_spikes_factor"].requires_grad


def _split(items: tuple, first: int) -> tuple:
    return items[:first], items[first:]


class _Saved:
    """What forward kept, by what it is; recurrence: weight, bias, the spikes before the first step and those of all."""

    def __init__(self, ctx):
        seqs, extras = ctx.counts
        tensors = ctx.saved_tensors
        self.seqs, tensors = _split(tensors, seqs)
        self.extras, tensors = _split(tensors, extras)
        self.states, self.params, others = ctx.call.split(tensors)
        self.x = others[0] if ctx.call.reruns else None
        self.recurrence = () if ctx.call.reruns else others


def _with_all_states(ctx, saved: _Saved) -> _Saved:
    """What a forward that keeps the states of all steps saves, with the graph that leads to them."""
    if saved.x is None:
        return saved
    model = ctx.call.model
    call = ctx.call._replace(saved=model.stored, reruns=False)
    with torch.enable_grad():
        outputs = transforms.apply(_Neuron, call, saved.x, None, *saved.states, *saved.params)
    saved.seqs, saved.extras = _split(outputs[1 + len(model.states) :], model.stored)
    saved.x = None
    return saved
