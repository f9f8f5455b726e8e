"""The gradients of a neuron's operators: by the kernels, and again by the reference's operations."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import reference, surrogate, transforms
from ..reference import Model
from ..transforms import Fold
from . import calls, spikes
from .calls import wide


class Asked(NamedTuple):
    """What a backward is of, and what it is to give.

    dL/dx, with want_states those of the states, and with want_params [parameters, neurons], the parameters' before any
    sum over neurons.
    """

    model: Model
    options: Any
    dtype: torch.dtype
    want_states: bool
    want_params: bool


class Groups(NamedTuple):
    """The tensors of a backward, by kind: dL/dspikes, dL/dlast, dL/dseqs; the others as `_Neuron` has them."""

    grad_spk: Tensor | None
    grad_last: Sequence[Tensor | None]
    grad_seqs: Sequence[Tensor | None]
    seqs: Sequence[Tensor]
    extras: Sequence[Tensor]
    states: Sequence[Tensor]
    params: Sequence[Tensor]

    def flat(self) -> tuple:
        return self[0], *(tensor for group in self[1:] for tensor in group)

    def counts(self) -> tuple[int, ...]:
        return tuple(map(len, self[1:]))


def _grouped(items: Sequence, counts: tuple[int, ...]) -> Groups:
    """The tensors, or what is said of them, as they were before `Groups.flat`."""
    groups, first = [items[0]], 1
    for count in counts:
        groups.append(items[first : first + count])
        first += count
    return Groups(*groups)


def fused(asked: Asked, given: Groups, x: Tensor | None = None, weight: Tensor | None = None) -> list[Tensor]:
    """By the kernels; x: where steps are rerun; weight: of a recurrence, then with dL/dspk before them as last."""
    model, options, dtype = asked.model, asked.options, wide(asked.dtype)
    arguments = calls.Backward(
        like=(*given.seqs, *given.extras)[0] if x is None else x,
        x=x,
        grad_spk=given.grad_spk,
        grad_last=given.grad_last,
        grad_seqs=given.grad_seqs,
        seqs=[seq.to(dtype) for seq in given.seqs] if model.output is not None else given.seqs,
        extras=given.extras,
        states=given.states,
        params=given.params,
        evaluated=_derivative(asked, given),
        unroll=options.unroll,
        reset_mechanism=options.reset_mechanism,
        reset_delay=options.reset_delay,
        inclusive=options.surrogate.inclusive,
        surrogate=options.surrogate.name,
        constants=options.surrogate.constants,
        dtype=asked.dtype,
        want_states=asked.want_states,
        want_params=asked.want_params,
        weight=weight,
    )
    return calls.call(f"{model.name}_bwd", *arguments)


def differentiable(asked: Asked, given: Groups) -> tuple[Tensor, ...]:
    """By the kernels, as something that can be differentiated itself."""
    return transforms.apply(_Differentiable, asked, given.counts(), *given.flat())


class _Differentiable(torch.autograd.Function):
    """`fused`, whose own backward is by the reference's operations."""

    @staticmethod
    def forward(asked, counts, *tensors):
        return tuple(fused(asked, _grouped(tensors, counts)))

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.asked, ctx.counts, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors = ctx.saved_tensors
        given = [k for k, tensor in enumerate(tensors) if tensor is not None]

        def by_torch(*present):
            all_tensors = [None] * len(tensors)
            for k, tensor in zip(given, present, strict=True):
                all_tensors[k] = tensor
            return by_reference(ctx.asked, _grouped(all_tensors, ctx.counts), ())

        found = dict(zip(given, transforms.vjp(by_torch, [tensors[k] for k in given], grads), strict=True))
        return None, None, *(found.get(k) for k in range(len(tensors)))

    @staticmethod
    def vmap(info, in_dims, asked, counts, *tensors):
        given = _grouped(list(zip(tensors, in_dims[2:], strict=True)), counts)
        fold = Fold.of(info.batch_size, *(*given.seqs, *given.extras)[0], asked.options.unroll)
        kinds = (fold.state, fold.sequence, fold.sequence, fold.sequence, fold.state, fold.param)
        folded = Groups(
            fold.sequence(*given.grad_spk),
            *([kind(*pair) for pair in pairs] for kind, pairs in zip(kinds, given[1:], strict=True)),
        )
        outputs = list(differentiable(asked, folded))
        dims = [int(asked.options.unroll), *[0] * (len(outputs) - 1)]
        if asked.want_params:
            outputs[-1], dims[-1] = outputs[-1].unflatten(1, (info.batch_size, -1)), 1
        return tuple(outputs), tuple(dims)


def by_reference(asked: Asked, given: Groups, grad_extras: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The same gradients as `fused` in operations that autograd can differentiate again."""
    model, options = asked.model, asked.options
    grad_spk, grad_last, grad_seqs, seqs, extras, before, params = given
    # A first backward that reran the steps had no extras that a gradient could reach.
    grad_extras = grad_extras or (None,) * len(extras)

    def as_sequence(tensor):
        return tensor if tensor is None or options.unroll else tensor.unsqueeze(0)

    dtype = wide(asked.dtype)
    like = as_sequence((*seqs, *extras)[0]).to(dtype)
    seqs = [as_sequence(seq).to(dtype) for seq in seqs]
    states = len(model.states)
    unstored = [torch.zeros_like(like)] * (states - len(seqs))
    initial = before or tuple(torch.zeros_like(like[0:1]).sum(0) for _ in model.states)
    grad_seqs = [as_sequence(grad) for grad in grad_seqs] if options.unroll else []
    with torch.enable_grad():
        grad_x, grad_states, terms = reference.backward(
            model,
            None if grad_spk is None else as_sequence(grad_spk).to(dtype),
            grad_last,
            (*grad_seqs, *[None] * (states - len(grad_seqs))),
            tuple(map(as_sequence, grad_extras)),
            (*seqs, *unstored),
            tuple(map(as_sequence, extras)),
            initial,
            tuple(_per_step(param).expand(initial[0].shape) for param in params),
            reference.Call(options.surrogate, options.reset_mechanism, options.reset_delay),
        )
    grad_x = (grad_x if options.unroll else grad_x.squeeze(0)).to(asked.dtype)
    terms = torch.stack([term.sum(0).reshape(-1) for term in terms])
    return grad_x, *(grad_states if asked.want_states else ()), *((terms,) if asked.want_params else ())


def _per_step(param: Tensor) -> Tensor:
    """A parameter as it broadcasts over a step: laid out over the trailing dimensions already, or one number."""
    return param.reshape(()) if param.numel() == 1 else param


def _derivative(asked: Asked, given: Groups) -> Tensor | None:
    """The derivative of a surrogate that only Python knows, at every step and neuron."""
    if not isinstance(asked.options.surrogate, surrogate.evaluated):
        return None
    charged = _charged(asked, given)
    threshold = asked.model.threshold(charged, tuple(_per_step(param) for param in given.params))
    return asked.options.surrogate.derivative(charged[0] - threshold).contiguous()


def _charged(asked: Asked, given: Groups) -> tuple:
    """The charged states of all steps [T, ...], or of a step [...]; None for those that backward does not need."""
    model, options, dtype = asked.model, asked.options, wide(asked.dtype)
    after = [seq.to(dtype) for seq in given.seqs] + [None] * (len(model.states) - len(given.seqs))
    initial = given.states or [None] * len(after)
    before = tuple(
        _before(seq, first, options.unroll) if name in model.held and seq is not None else None
        for name, seq, first in zip(model.states, after, initial, strict=True)
    )
    return model.charged(options.reset_delay, before, tuple(after), given.extras)


def _before(seq: Tensor, initial: Tensor | None, unroll: bool) -> Tensor:
    """A state before each step, from that after each and the initial one; None: zeros."""
    if not unroll:
        return torch.zeros_like(seq) if initial is None else initial
    first = seq.new_zeros(1, *seq.shape[1:]) if initial is None else initial.unsqueeze(0)
    return torch.cat([first, seq])[: len(seq)]


def of_params(terms: Sequence[Tensor], params: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """The parameters' gradients; terms: what follows the states' gradients, first those per neuron where any is."""
    if True not in needed:
        return [None] * len(needed)
    return [_sum_to(terms[0][k], params[k]) if needs else None for k, needs in enumerate(needed)]


def _sum_to(per_neuron: Tensor, param: Tensor) -> Tensor:
    """Sums a gradient [neurons] over the neurons that share a parameter, in double: a total as good as its terms."""
    total = per_neuron.view(-1, param.numel()).sum(0, dtype=torch.float64)
    return total.to(param.dtype).view(param.shape)


def of_recurrence(
    grad_x: Tensor, found: Sequence[Tensor], saved: Sequence[Tensor | None], needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Those of weight, bias and the spikes before the first step; none of no recurrence. found: by the kernels.

    saved: these three, and the spikes of all steps.
    """
    if not needed:
        return ()
    (weight, _, initial, spk), (needs_weight, needs_bias, needs_initial) = saved, needed
    grad_rec = grad_x.to(weight.dtype)
    return (
        _of_recurrent_weight(grad_rec, spk.to(weight.dtype), initial) if needs_weight else None,
        grad_rec.flatten(0, -2).sum(0) if needs_bias else None,
        found[-1] if needs_initial else None,
    )


def _of_recurrent_weight(grad_rec: Tensor, spk: Tensor, initial: Tensor | None) -> Tensor:
    """The product over all steps of dL/drec [T, ..., N] and the spikes before each."""
    total = spikes.grad_weight(grad_rec[1:], spk[:-1])
    if initial is None or not len(grad_rec):
        return total
    return total.add_(spikes.grad_weight(grad_rec[0], initial))
