"""The operators as autograd sees them: one `torch.autograd.Function`, fake kernels, and the nodes of a captured graph.

The only file that names `torch.ops.snnfast`. Arguments arrive checked, in the state's dtype and on one device, from
`snnfast.functional`. Every neuron model (`snnfast.reference.MODELS`) has the same operators under its own name.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ext, reference, surrogate
from .reference import Model

cuda_import_error = _ext.import_error


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


def run(
    model: Model, x: Tensor, rec: Tensor | None, states: tuple, params: tuple, options: Options, want_seqs: bool
) -> Result:
    """Runs the fused neuron. states: one for each of the model's, or none: zeros."""
    tensors = (x, rec, *states, *params)
    if _differentiated(tensors):
        outputs = _Neuron.apply(model, options, want_seqs, *tensors)
    else:
        outputs = _forward(model, options, x, rec, states, params, model.stored if want_seqs else 0, False)
    spk, count = outputs[0], len(model.states)
    last, seqs = tuple(outputs[1 : 1 + count]), None
    if want_seqs and options.unroll:
        seqs = tuple(outputs[1 + count : 1 + count + model.stored])
        seqs = seqs if model.output is None else (*seqs, spk)
    return Result(spk, last, seqs)


def _differentiated(tensors: tuple) -> bool:
    # Forward-mode differentiation is not implemented; a Function says so, a bare operator would drop tangents.
    if not torch.compiler.is_compiling() and forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the states for currents of this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


CHUNK = 16
"""Steps that backward runs again at a time (csrc/op/scan.h)."""


def _forward(model, options, x, rec, states, params, saved, save_extras, every=1):
    forward = getattr(torch.ops.snnfast, f"{model.name}_fwd")
    reset = options.reset_mechanism, options.reset_delay, options.surrogate.inclusive
    return forward(x, rec, states, params, options.unroll, *reset, saved, every, save_extras)


def _recomputes(model, options, x, want_seqs) -> bool:
    """Whether a sequence's backward runs its steps again.

    In half precision, where nobody wants the states of all steps, x and the states before every 16th are the smaller
    traffic and memory. A compiler decides itself what it keeps, and an `evaluated` surrogate asks for all states.
    """
    return (
        model.recomputable
        and options.unroll
        and x.dtype in (torch.float16, torch.bfloat16)
        and not want_seqs
        and not isinstance(options.surrogate, surrogate.evaluated)
        and not torch.compiler.is_compiling()
    )


class _Neuron(torch.autograd.Function):
    """Outputs: spikes, last states, states of all steps (as many as backward or the caller needs), extras.

    What backward reads are outputs, not copies: a membrane that the user asked for is kept once, and a second backward
    finds the graph that leads to it. Where backward runs the steps again, the last two are no outputs.
    """

    @staticmethod
    def forward(ctx, model, options, want_seqs, x, rec, *tensors):
        first = len(tensors) - len(model.params)
        states, params = tensors[:first], tensors[first:]
        needs_params = any(ctx.needs_input_grad[5 + first :])
        saved = model.stored if want_seqs or needs_params else model.needed
        again = _recomputes(model, options, x, want_seqs)
        outputs = _forward(model, options, x, rec, states, params, saved, not again, CHUNK if again else 1)
        spk, count = outputs[0], len(model.states)
        last, rest = outputs[1 : 1 + count], outputs[1 + count :]
        seqs, extras = (rest[:saved], rest[saved:]) if options.unroll else (last[:saved], rest)
        if model.output is not None and (needs_params or not seqs):
            seqs = (*seqs, spk)
        ctx.model, ctx.options, ctx.dtype = model, options, x.dtype
        ctx.counts = len(seqs), len(extras), len(states)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*seqs, *extras, *states, *params, *((x,) if again else ()))
        if again:
            outputs = outputs[: 1 + count]
        graded = "graded_spikes_factor" in model.params and params[model.params.index("graded_spikes_factor")]
        learns_height = isinstance(graded, Tensor) and graded.requires_grad
        if model.spikes and isinstance(options.surrogate, surrogate.disabled) and not learns_height:
            ctx.mark_non_differentiable(spk)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, grad_spk, *grads):
        saved = _Saved(ctx)
        count = len(ctx.model.states)
        last, rest = grads[:count], grads[count:]
        stored = len(rest) - len(saved.extras)
        seqs, extras = rest[:stored], rest[stored:]
        # No caller sees `extras`: a gradient reaches them only when a first backward was itself differentiated.
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if differentiable or any(grad is not None for grad in extras):
            found = _reference_backward(ctx, _with_all_states(ctx, saved), grad_spk, last, seqs, extras)
        else:
            found = _fused_backward(ctx, saved, grad_spk, last, seqs)
        return None, None, None, *found


def _with_all_states(ctx, saved):
    """What a forward that keeps the states of all steps saves, with the graph that leads to them."""
    if not saved.others:
        return saved
    with torch.enable_grad():
        outputs = _Neuron.apply(ctx.model, ctx.options, True, *saved.others, None, *saved.states, *saved.params)
    first = 1 + len(ctx.model.states)
    saved.seqs, saved.extras = outputs[first : first + ctx.model.stored], outputs[first + ctx.model.stored :]
    return saved


class Recurrence(NamedTuple):
    """All-to-all recurrence: rec[t] = spk[t-1] @ weight.T + bias, weight [N, N], bias [N] or None."""

    weight: Tensor
    bias: Tensor | None


def run_dense(
    model: Model,
    x: Tensor,
    recurrence: Recurrence,
    spk: Tensor | None,
    states: tuple,
    params: tuple,
    options: Options,
    want_seqs: bool,
) -> Result:
    """Runs a recurrent model over x [T, ..., N], its spikes fed back; spk [..., N]: those before the first step."""
    tensors = (x, *recurrence, spk, *states, *params)
    if _differentiated(tensors):
        outputs = _Dense.apply(model, options, want_seqs, *tensors)
    else:
        saved = model.stored if want_seqs else 0
        outputs = _dense_forward(model, options, x, recurrence, spk, states, params, saved, False)
    count = len(model.states)
    seqs = tuple(outputs[1 + count : 1 + 2 * count]) if want_seqs else None
    return Result(outputs[0], tuple(outputs[1 : 1 + count]), seqs)


def _dense_forward(model, options, x, recurrence, spk, states, params, saved, save_extras):
    forward = getattr(torch.ops.snnfast, f"{model.name}_dense_fwd")
    reset = options.reset_mechanism, options.reset_delay, options.surrogate.inclusive
    return forward(x, *recurrence, spk, states, params, *reset, saved, save_extras)


class _Dense(torch.autograd.Function):
    """As `_Neuron`, for a sequence with all-to-all recurrence; backward once."""

    @staticmethod
    def forward(ctx, model, options, want_seqs, x, weight, bias, initial, *tensors):
        first = len(tensors) - len(model.params)
        states, params = tensors[:first], tensors[first:]
        needs_params = any(ctx.needs_input_grad[7 + first :])
        kept = 0 if model.keeps_charge else model.needed
        saved = model.stored if want_seqs or needs_params else kept
        recurrence = Recurrence(weight, bias)
        outputs = _dense_forward(model, options, x, recurrence, initial, states, params, saved, True)
        count = len(model.states)
        seqs, extras = outputs[1 + count : 1 + count + saved], outputs[1 + count + saved :]
        ctx.model, ctx.options, ctx.dtype = model, options, x.dtype
        ctx.counts = len(seqs), len(extras), len(states)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*seqs, *extras, *states, *params, weight, outputs[0], initial)
        ctx.mark_non_differentiable(*extras)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, grad_spk, *grads):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "all-to-all recurrence has no double backward (create_graph=True): run it under snnfast.use_reference()"
            )
        saved, model, options = _Saved(ctx), ctx.model, ctx.options
        count = len(model.states)
        needs_x, needs_weight, needs_bias, needs_initial, *needs = ctx.needs_input_grad[3:]
        needs_params = needs[len(saved.states) :]
        weight, spk, initial = saved.others
        grad_x, grad_initial, *found = getattr(torch.ops.snnfast, f"{model.name}_dense_bwd")(
            spk,
            grad_spk,
            grads[:count],
            grads[count : count + len(saved.seqs)],
            saved.seqs,
            saved.extras,
            weight,
            saved.states,
            saved.params,
            _derivative(ctx, saved),
            options.reset_mechanism,
            options.reset_delay,
            options.surrogate.inclusive,
            options.surrogate.name,
            options.surrogate.constants,
            ctx.dtype,
            any(needs_params),
        )
        grad_rec = grad_x.to(weight.dtype)
        return (
            *(None, None, None),
            grad_x if needs_x else None,
            _grad_recurrent_weight(grad_rec, spk.to(weight.dtype), initial) if needs_weight else None,
            grad_rec.flatten(0, -2).sum(0) if needs_bias else None,
            grad_initial if needs_initial else None,
            *(found[k] if needed else None for k, needed in enumerate(needs[: len(saved.states)])),
            *_grad_params(found, saved.params, needs_params),
        )


def _grad_recurrent_weight(grad_rec: Tensor, spk: Tensor, initial: Tensor | None) -> Tensor:
    """The product over all steps of dL/drec [T, ..., N] and the spikes before each."""
    total = _grad_weight(grad_rec[1:], spk[:-1])
    if initial is None or not len(grad_rec):
        return total
    return total.add_(_grad_weight(grad_rec[0], initial))


def _grad_weight(grad: Tensor, spk: Tensor) -> Tensor:
    """dL/dweight [out, in] of spk [..., in] and dL/doutput [..., out]."""
    if spk.device.type == "cpu":
        return torch.ops.snnfast.spike_linear_grad(grad, spk)
    return grad.reshape(-1, grad.shape[-1]).T @ spk.reshape(-1, spk.shape[-1])


def spike_linear(spk: Tensor, weight: Tensor) -> Tensor:
    """spk [..., in] @ weight.T [in, out] on a CPU, at the cost of what is not zero."""
    linear = _SpikeLinear.apply if _differentiated((spk, weight)) else torch.ops.snnfast.spike_linear
    return linear(spk, weight)


class _SpikeLinear(torch.autograd.Function):
    """As `torch.nn.functional.linear`; what is differentiated again are products that autograd knows."""

    @staticmethod
    def forward(ctx, spk, weight):
        ctx.save_for_backward(spk, weight)
        return torch.ops.snnfast.spike_linear(spk, weight)

    @staticmethod
    def backward(ctx, grad):
        spk, weight = ctx.saved_tensors
        grad_spk = grad @ weight if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_spk, None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return grad_spk, grad.flatten(0, -2).T @ spk.flatten(0, -2)
        return grad_spk, _grad_weight(grad, spk)


def encode_rate(x, seed, steps, silent, gain, offset, dtype) -> Tensor:
    """Random spikes of x [...] for so many `steps`, or of x [T, ...] where they are None; seed: int64 []."""
    return torch.ops.snnfast.encode_rate(x, seed, steps, silent, gain, offset, dtype)


def encode_latency(times, steps, ramp, on, off, dtype) -> Tensor:
    """`on` at the whole `times` [...] of `steps`, elsewhere `off`, or with `ramp` a line up to them."""
    return torch.ops.snnfast.encode_latency(times, steps, ramp, on, off, dtype)


def encode_delta(x, threshold, padding, off_spike, dtype) -> Tensor:
    """Spikes at the rises, and with `off_spike` the falls, of x [T, ...]."""
    return torch.ops.snnfast.encode_delta(x, threshold, padding, off_spike, dtype)


def pack_spikes(spk: Tensor) -> Tensor:
    """A bit of each value of spk [...], 1 where it is not 0: uint8, eight values a byte, in row-major order."""
    return torch.ops.snnfast.pack_spikes(spk)


def unpack_spikes(bits: Tensor, height: Tensor, shape: tuple) -> Tensor:
    """Spikes of this shape, in height's dtype: `height`, laid out over the trailing dimensions, for a bit, else 0."""
    return torch.ops.snnfast.unpack_spikes(bits, height, shape)


def _derivative(ctx, saved) -> Tensor | None:
    """The derivative of a surrogate that only Python knows, at every step and neuron."""
    if not isinstance(ctx.options.surrogate, surrogate.evaluated):
        return None
    threshold = saved.params[ctx.model.params.index(ctx.model.threshold)]
    return ctx.options.surrogate.derivative(saved.charge - _per_step(threshold)).contiguous()


class _Saved:
    """What forward kept, by what it is."""

    def __init__(self, ctx):
        seqs, extras, states = ctx.counts
        tensors = ctx.saved_tensors
        self.seqs = tensors[:seqs]
        self.extras = tensors[seqs : seqs + extras]
        self.states = tensors[seqs + extras : seqs + extras + states]
        first = seqs + extras + states
        self.params = tensors[first : first + len(ctx.model.params)]
        self.others = tensors[first + len(ctx.model.params) :]

    @property
    def charge(self) -> Tensor:
        """The membranes that fired."""
        return self.extras[0] if self.extras else self.seqs[0]


def _fused_backward(ctx, saved, grad_spk, grad_last, grad_seqs):
    model, options = ctx.model, ctx.options
    needs_x, needs_rec, *needs = ctx.needs_input_grad[3:]
    needs_states, needs_params = needs[: len(saved.states)], needs[len(saved.states) :]
    dtype = _wide(ctx.dtype)
    x = saved.others[0] if saved.others else None
    grad_x, *found = getattr(torch.ops.snnfast, f"{model.name}_bwd")(
        saved.seqs[0] if x is None else x,
        x,
        grad_spk,
        grad_last,
        grad_seqs,
        [seq.to(dtype) for seq in saved.seqs] if model.output is not None else saved.seqs,
        saved.extras,
        saved.states,
        saved.params,
        _derivative(ctx, saved),
        options.unroll,
        options.reset_mechanism,
        options.reset_delay,
        options.surrogate.inclusive,
        options.surrogate.name,
        options.surrogate.constants,
        ctx.dtype,
        any(needs_states),
        any(needs_params),
    )
    return (
        grad_x if needs_x else None,
        grad_x.to(dtype) if needs_rec else None,
        *(found[k] if needed else None for k, needed in enumerate(needs_states)),
        *_grad_params(found, saved.params, needs_params),
    )


def _grad_params(found: list, params: tuple, needed: list) -> tuple:
    """The parameters' gradients, of which an operator that was asked for any gave the terms last."""
    wanted = enumerate(zip(params, needed, strict=True))
    return tuple(_sum_to(found[-1][k], param) if needs else None for k, (param, needs) in wanted)


def _reference_backward(ctx, saved, grad_spk, grad_last, grad_seqs, grad_extras):
    """Double backward (create_graph=True): the same gradients in operations that autograd can differentiate again."""
    model, options = ctx.model, ctx.options

    def as_sequence(tensor):
        return tensor if tensor is None or options.unroll else tensor.unsqueeze(0)

    dtype = _wide(ctx.dtype)
    seqs = [as_sequence(seq).to(dtype) for seq in saved.seqs]
    states = len(model.states)
    unstored = [torch.zeros_like(seqs[0])] * (states - len(seqs))
    initial = saved.states or tuple(torch.zeros_like(seqs[0][0:1]).sum(0) for _ in model.states)
    grad_seqs = [as_sequence(grad) for grad in grad_seqs] if options.unroll else []
    with torch.enable_grad():
        grad_x, grad_states, grad_params = reference.backward(
            model,
            torch.zeros_like(seqs[0]) if grad_spk is None else as_sequence(grad_spk).to(dtype),
            grad_last,
            (*grad_seqs, *[None] * (states - len(grad_seqs))),
            as_sequence(grad_extras[0]) if grad_extras else None,
            (*seqs, *unstored),
            as_sequence(saved.extras[0]) if saved.extras else None,
            initial,
            tuple(_per_step(param) for param in saved.params),
            reference.Call(options.surrogate, options.reset_mechanism, options.reset_delay),
        )
    grad_x = grad_x if options.unroll else grad_x.squeeze(0)
    return (
        grad_x.to(ctx.dtype),
        grad_x if ctx.needs_input_grad[4] else None,
        *(grad_states if saved.states else ()),
        *(grad.sum(0).view(param.shape) for grad, param in zip(grad_params, saved.params, strict=True)),
    )


def _per_step(param: Tensor) -> Tensor:
    """A parameter as it broadcasts over a step: laid out over the trailing dimensions already, or one number."""
    return param.reshape(()) if param.numel() == 1 else param


def _sum_to(per_neuron: Tensor, param: Tensor) -> Tensor:
    """Sums a gradient [neurons] over the neurons that share a parameter, in double: a total as good as its terms."""
    total = per_neuron.view(-1, param.numel()).sum(0, dtype=torch.float64)
    return total.to(param.dtype).view(param.shape)


def _fake_forward(model):
    def fake(x, rec, states, params, unroll, reset_mechanism, reset_delay, inclusive, saved, every, save_extras):
        dtype = _wide(x.dtype)
        shape = x.shape[1:] if unroll else x.shape
        last = [x.new_empty(shape, dtype=dtype) for _ in model.states]
        extras = [x.new_empty(x.shape, dtype=dtype) for _ in range(model.extras(reset_delay) if save_extras else 0)]
        stored = x.shape if every == 1 else (max(x.shape[0] - 1, 0) // every, *shape)
        seqs = [x.new_empty(stored, dtype=dtype) for _ in range(saved if unroll else 0)]
        return [x.new_empty(x.shape), *last, *seqs, *extras]

    return fake


def _fake_backward(model):
    def fake(like, x, grad_spk, grad_last, grad_seqs, seqs, extras, states, params, evaluated, unroll, *options):
        *_, dtype, want_states, want_params = options
        state = _wide(dtype)
        shape = like.shape[1:] if unroll else like.shape
        results = [like.new_empty(like.shape, dtype=dtype)]
        if want_states:
            results += [like.new_empty(shape, dtype=state) for _ in model.states]
        if want_params:
            results.append(like.new_empty((len(model.params), shape.numel()), dtype=state))
        return results

    return fake


def _fake_dense_forward(model):
    def fake(x, weight, bias, spk, states, params, reset_mechanism, reset_delay, inclusive, saved, save_extras):
        fake = _fake_forward(model)
        return fake(x, None, states, params, True, reset_mechanism, reset_delay, inclusive, saved, 1, save_extras)

    return fake


def _fake_dense_backward(model):
    def fake(like, grad_spk, grad_last, grad_seqs, seqs, extras, weight, states, params, evaluated, *options):
        *_, dtype, want_params = options
        arguments = (like, None, grad_spk, grad_last, grad_seqs, seqs, extras, states, params, evaluated, True)
        grad_x, *rest = _fake_backward(model)(*arguments, dtype, True, want_params)
        return [grad_x, torch.empty_like(rest[0]), *rest]

    return fake


class Captured(NamedTuple):
    """A model's step and sequence as torch.compile captures them: one differentiable node each.

    Both take x, the states, each of which may be None or of a shape that does not fit, for zeros, and the parameters;
    then the surrogate's name and constants, reset_mechanism and reset_delay, and the sequence whether all states are
    wanted. They return the spikes and the states; the sequence then all stored states, empty where not wanted. Those of
    a recurrent model take after x: the step rec, the sequence a `Recurrence` and the spikes before the first step.
    `snnfast.functional` gives them their kernels.
    """

    step: object
    sequence: object


_library = torch.library.Library("snnfast", "FRAGMENT")


def _captured(model: Model) -> Captured:
    recs, feedback = "", ""
    if model.recurrent:
        recs, feedback = ", Tensor? rec", ", Tensor weight, Tensor? bias, Tensor? spk"
    rest = ", ".join([*(f"Tensor? {state}" for state in model.states), *(f"Tensor {param}" for param in model.params)])
    rest += ", str surrogate, float[] constants, str reset_mechanism, bool reset_delay"
    last, seqs = (", Tensor" * count for count in (len(model.states), model.stored))
    step, sequence = f"{model.name}_step", sequence_name(model)
    _library.define(f"{step}(Tensor x{recs}, {rest}) -> (Tensor{last})")
    _library.define(f"{sequence}(Tensor x{feedback}, {rest}, bool want_seqs) -> (Tensor{last}{seqs})")
    return Captured(getattr(torch.ops.snnfast, step), getattr(torch.ops.snnfast, sequence))


def sequence_name(model: Model) -> str:
    """The captured sequence: of a recurrent model, one with all-to-all recurrence."""
    return f"{model.name}_dense_seq" if model.recurrent else f"{model.name}_seq"


def captured_run(model, x, rec, states, params, options, want_seqs) -> Result:
    """As `run`, on unchecked arguments: one node in the graph that torch.compile captures."""
    name, constants = options.surrogate.key
    recs = (rec,) if model.recurrent else ()
    arguments = (x, *recs, *states, *params, name, constants, options.reset_mechanism, options.reset_delay)
    count = len(model.states)
    if not options.unroll:
        spk, *last = CAPTURED[model.name].step(*arguments)
        return Result(spk, tuple(last), None)
    spk, *rest = CAPTURED[model.name].sequence(*arguments, want_seqs)
    seqs = tuple(rest[count:]) if model.output is None else (*rest[count:], spk)
    return Result(spk, tuple(rest[:count]), seqs if want_seqs else None)


def composite(operator: str, function) -> None:
    """Makes a function of torch operations the kernel of an operator on every device."""
    _library.impl(operator, function, "CompositeImplicitAutograd")


CAPTURED = {model.name: _captured(model) for model in reference.MODELS}

torch.library.register_fake("snnfast::spike_linear")(lambda spk, weight: spk.new_empty(*spk.shape[:-1], len(weight)))
torch.library.register_fake("snnfast::spike_linear_grad")(
    lambda grad, spk: grad.new_empty(grad.shape[-1], spk.shape[-1])
)


@torch.library.register_fake("snnfast::encode_rate")
def _fake_encode_rate(x, seed, steps, silent, gain, offset, dtype):
    shape = (silent + x.shape[0], *x.shape[1:]) if steps is None else (steps, *x.shape)
    return x.new_empty(shape, dtype=dtype)


@torch.library.register_fake("snnfast::encode_latency")
def _fake_encode_latency(times, steps, ramp, on, off, dtype):
    return times.new_empty((steps, *times.shape), dtype=dtype)


@torch.library.register_fake("snnfast::encode_delta")
def _fake_encode_delta(x, threshold, padding, off_spike, dtype):
    return x.new_empty(x.shape, dtype=dtype)


torch.library.register_fake("snnfast::pack_spikes")(
    lambda spk: spk.new_empty(((spk.numel() + 7) // 8,), dtype=torch.uint8)
)
torch.library.register_fake("snnfast::unpack_spikes")(lambda bits, height, shape: height.new_empty(shape))

for _model in reference.MODELS:
    torch.library.register_fake(f"snnfast::{_model.name}_fwd")(_fake_forward(_model))
    torch.library.register_fake(f"snnfast::{_model.name}_bwd")(_fake_backward(_model))
    if _model.recurrent:
        torch.library.register_fake(f"snnfast::{_model.name}_dense_fwd")(_fake_dense_forward(_model))
        torch.library.register_fake(f"snnfast::{_model.name}_dense_bwd")(_fake_dense_backward(_model))
