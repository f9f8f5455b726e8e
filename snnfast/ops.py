"""The operators as autograd sees them: fake kernels and one `torch.autograd.Function` per neuron.

The only file that names `torch.ops.snnfast`. Arguments arrive checked, in the state's dtype and on one device, from
`snnfast.functional`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ext, reference, surrogate

cuda_import_error = _ext.import_error


class LeakyOptions(NamedTuple):
    """How a Leaky layer runs; `unroll`: x's first dimension is time."""

    surrogate: surrogate.Surrogate
    reset_mechanism: str
    reset_delay: bool
    unroll: bool


def leaky(
    x: Tensor,
    mem: Tensor | None,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    options: LeakyOptions,
    want_mem_seq: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Runs the fused neuron: spikes (x's shape and dtype), the last membrane, and all membranes [T, ...] if wanted."""
    arguments = (x, mem, beta, threshold, graded_spikes_factor)
    differentiated = torch.is_grad_enabled() and any(a is not None and a.requires_grad for a in arguments)
    # Forward-mode differentiation is not implemented; the Function says so, the bare operator would drop tangents.
    if differentiated or (not torch.compiler.is_compiling() and forward_ad._current_level >= 0):
        spk, mem_last, mem_seq, _ = _Leaky.apply(*arguments, options)
        return spk, mem_last, mem_seq if want_mem_seq else None
    spk, mem_last, mem_seq, _ = torch.ops.snnfast.leaky_fwd(
        *arguments,
        options.unroll,
        options.reset_mechanism,
        options.reset_delay,
        want_mem_seq,
        False,
    )
    return spk, mem_last, mem_seq if options.unroll and want_mem_seq else None


class _Leaky(torch.autograd.Function):
    """Outputs: spikes, last membrane, all membranes (None for a step), what fired (None where the membranes did).

    What backward reads are outputs, not copies: a membrane that the user asked for is kept once, and a second backward
    finds the graph that leads to it.
    """

    @staticmethod
    def forward(ctx, x, mem, beta, threshold, graded_spikes_factor, options):
        ctx.options = options
        ctx.dtype = x.dtype
        ctx.set_materialize_grads(False)
        spk, mem_last, mem_seq, charge_seq = torch.ops.snnfast.leaky_fwd(
            x,
            mem,
            beta,
            threshold,
            graded_spikes_factor,
            options.unroll,
            options.reset_mechanism,
            options.reset_delay,
            True,
            not options.reset_delay,
        )
        mem_seq = mem_seq if options.unroll else None
        charge = None if options.reset_delay else charge_seq
        kept = mem_last if mem_seq is None else mem_seq
        ctx.save_for_backward(kept, charge, mem, beta, threshold, graded_spikes_factor)
        if isinstance(options.surrogate, surrogate.disabled) and not graded_spikes_factor.requires_grad:
            ctx.mark_non_differentiable(spk)
        return spk, mem_last, mem_seq, charge

    @staticmethod
    def backward(ctx, grad_spk, grad_mem_last, grad_mem_seq, grad_charge):
        # No caller sees `charge`: a gradient reaches it only when a first backward was itself differentiated.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if differentiable or grad_charge is not None:
            return _reference_backward(ctx, grad_spk, grad_mem_last, grad_mem_seq, grad_charge)
        return _fused_backward(ctx, grad_spk, grad_mem_last, grad_mem_seq)


leaky_step = torch.ops.snnfast.leaky_step
leaky_seq = torch.ops.snnfast.leaky_seq

_composites = torch.library.Library("snnfast", "IMPL")


def composite(name: str):
    """Registers the decorated function, made of torch operations, as the kernel of an operator on every device."""

    def register(function):
        _composites.impl(name, function, "CompositeImplicitAutograd")
        return function

    return register


def captured_leaky(
    x: Tensor, mem: Tensor | None, params: tuple, options: LeakyOptions, want_mem_seq: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `leaky`, on unchecked arguments: one node in the graph that torch.compile captures."""
    name, constants = options.surrogate.key
    static = (name, constants, options.reset_mechanism, options.reset_delay)
    if options.unroll:
        spk, mem, mem_seq = leaky_seq(x, mem, *params, *static, want_mem_seq)
        return spk, mem, mem_seq if want_mem_seq else None
    spk, mem = leaky_step(x, mem, *params, *static)
    return spk, mem, None


def _fused_backward(ctx, grad_spk, grad_mem_last, grad_mem_seq):
    mem_seq, charge, mem, beta, threshold, graded_spikes_factor = ctx.saved_tensors
    options = ctx.options
    needs_x, needs_mem, *needs_params = ctx.needs_input_grad[:5]
    derivative = None
    if isinstance(options.surrogate, surrogate.evaluated):
        fired = mem_seq if charge is None else charge
        derivative = options.surrogate.derivative(fired - _per_step(threshold)).contiguous()
    grad_x, grad_mem, grad_params = torch.ops.snnfast.leaky_bwd(
        grad_spk,
        grad_mem_last,
        grad_mem_seq,
        mem_seq,
        charge,
        mem,
        beta,
        threshold,
        graded_spikes_factor,
        derivative,
        options.unroll,
        options.reset_mechanism,
        options.surrogate.name,
        options.surrogate.constants,
        ctx.dtype,
        needs_mem,
        any(needs_params),
    )
    params = (beta, threshold, graded_spikes_factor)
    return (
        grad_x if needs_x else None,
        grad_mem if needs_mem else None,
        *(
            _sum_to(grad_params[k], param) if needed else None
            for k, (param, needed) in enumerate(zip(params, needs_params, strict=True))
        ),
        None,
    )


def _reference_backward(ctx, grad_spk, grad_mem_last, grad_mem_seq, grad_charge):
    """Double backward (create_graph=True): the same gradients in operations that autograd can differentiate again."""
    mem_seq, charge, mem, beta, threshold, graded_spikes_factor = ctx.saved_tensors
    options = ctx.options

    def as_sequence(tensor):
        if tensor is None:
            return None
        return tensor if options.unroll else tensor.unsqueeze(0)

    mem_seq = as_sequence(mem_seq)
    params = (beta, threshold, graded_spikes_factor)
    grad_x, grad_mem, *grad_params = reference.leaky_backward(
        None if grad_spk is None else as_sequence(grad_spk).to(mem_seq.dtype),
        grad_mem_seq,
        as_sequence(grad_charge),
        grad_mem_last,
        mem_seq,
        mem_seq if charge is None else as_sequence(charge),
        mem_seq.new_zeros(mem_seq.shape[1:]) if mem is None else mem,
        *(_per_step(param) for param in params),
        options.surrogate,
        options.reset_mechanism,
        options.reset_delay,
    )
    grad_x = grad_x if options.unroll else grad_x.squeeze(0)
    return (
        grad_x.to(ctx.dtype),
        None if mem is None else grad_mem,
        *(_sum_to(grad.reshape(-1), param) for grad, param in zip(grad_params, params, strict=True)),
        None,
    )


def _per_step(param: Tensor) -> Tensor:
    """A parameter as it broadcasts over a step: laid out over the trailing dimensions already, or one number."""
    return param.reshape(()) if param.numel() == 1 else param


def _sum_to(per_neuron: Tensor, param: Tensor) -> Tensor:
    """Sums a gradient [neurons] over the neurons that share a parameter, in double: a total as good as its terms."""
    total = per_neuron.view(-1, param.numel()).sum(0, dtype=torch.float64)
    return total.to(param.dtype).view(param.shape)


@torch.library.register_fake("snnfast::leaky_fwd")
def _(x, mem, beta, threshold, graded, unroll, reset_mechanism, reset_delay, save_mem, save_charge):
    state = torch.float64 if x.dtype == torch.float64 else torch.float32

    def empty(shape):
        return x.new_empty(shape, dtype=state)

    return (
        x.new_empty(x.shape),
        empty(x.shape[1:] if unroll else x.shape),
        empty(x.shape if unroll and save_mem else (0,)),
        empty(x.shape if save_charge and not reset_delay else (0,)),
    )


@torch.library.register_fake("snnfast::leaky_bwd")
def _(
    grad_spk,
    grad_mem_last,
    grad_mem_seq,
    mem_seq,
    charge_seq,
    mem,
    beta,
    threshold,
    graded,
    evaluated,
    unroll,
    reset_mechanism,
    surrogate,
    constants,
    dtype,
    want_mem,
    want_params,
):
    neurons = mem_seq.shape[1:] if unroll else mem_seq.shape
    return (
        mem_seq.new_empty(mem_seq.shape, dtype=dtype),
        mem_seq.new_empty(neurons if want_mem else (0,)),
        mem_seq.new_empty((3, neurons.numel()) if want_params else (0,)),
    )
