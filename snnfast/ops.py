"""The operators as autograd sees them: one `torch.autograd.Function`, fake kernels, and the nodes of a captured graph.

The only file that names `torch.ops.snnfast`. Arguments arrive checked, in the state's dtype and on one device, from
`snnfast.functional`. Every neuron model (`snnfast.reference.MODELS`) has the same operators under its own name.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import _ext, reference, surrogate, transforms
from .capture import constant
from .reference import Model
from .transforms import Fold

why_no_kernel_runs = constant(_ext.why_no_kernel_runs)


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


NO_NEURON = -1
_listeners = []


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


def run(
    model: Model, x: Tensor, rec: Tensor | None, states: tuple, params: tuple, options: Options, want_seqs: bool
) -> Result:
    """Runs the fused neuron. states: one for each of the model's, or none: zeros."""
    tensors = (x, rec, *states, *params)
    if _differentiated(tensors):
        learns = transforms.functional() or any(param.requires_grad for param in params)
        saved = model.stored if want_seqs or learns else len(model.needed)
        outputs = transforms.apply(_Neuron, model, options, saved, _recomputes(model, options, x, want_seqs), *tensors)
    else:
        outputs = _forward(model, options, x, rec, states, params, model.stored if want_seqs else 0, False)
    spk, count = outputs[0], len(model.states)
    last, seqs = tuple(outputs[1 : 1 + count]), None
    if want_seqs and options.unroll:
        seqs = tuple(outputs[1 + count : 1 + count + model.stored])
        seqs = seqs if model.output is None else (*seqs, spk)
    return Result(spk, last, seqs)


def _differentiated(tensors: tuple) -> bool:
    # A transform of torch.func may differentiate what does not say so, and takes Functions apart, not bare operators.
    if transforms.functional():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the states for currents of this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


CHUNK = 16
"""Steps that backward runs again at a time (csrc/op/scan.h)."""


LARGE = 1 << 24
"""Elements from which an operator's memory is asked for beforehand."""

_FAKES = {}


def _call(name: str, *arguments, steps: int | None = None):
    """Calls an operator. Where memory does not suffice, torch's allocator says so, as for its own operators.

    The stable ABI turns an exception of torch's into one without type and reason, after it has printed a C++ trace. So
    what an operator allocates, which is what its fake kernel returns, is allocated here where it is large or failed.
    """
    if not torch.compiler.is_compiling() and _listeners and not name.endswith("_fwd"):
        tell(name, arguments, NO_NEURON)
    first = arguments[0]
    large = type(first) is Tensor and first.numel() * (steps or 1) >= LARGE
    if large and not torch.compiler.is_compiling():
        _FAKES[name](*arguments)
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
    held = _FAKES[name](*arguments), [tensor.new_empty(tensor.shape) for tensor in copied]
    del held


def _forward(model, options, x, rec, states, params, saved, save_extras, every=1):
    if _listeners:
        tell(f"{model.name}_fwd", (x,), x.shape[0] if options.unroll else None)
    reset = options.reset_mechanism, options.reset_delay, options.surrogate.inclusive
    return _call(f"{model.name}_fwd", x, rec, states, params, options.unroll, *reset, saved, every, save_extras)


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
        and not transforms.functional()
    )


class _Neuron(torch.autograd.Function):
    """Outputs: spikes, last states, the first `saved` states of all steps, extras; with `again` starts, no extras.

    What backward reads are outputs, not copies: a membrane that the user asked for is kept once, and a second backward
    finds the graph that leads to it. With `again`, backward runs the steps again, from the starts.
    """

    @staticmethod
    def forward(model, options, saved, again, x, rec, *tensors):
        first = len(tensors) - len(model.params)
        states, params = tensors[:first], tensors[first:]
        return tuple(_forward(model, options, x, rec, states, params, saved, not again, CHUNK if again else 1))

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        model, options, saved, again, x = inputs[:5]
        first = len(inputs) - len(model.params)
        states, params = inputs[6:first], inputs[first:]
        spk, count = outputs[0], len(model.states)
        last, rest = outputs[1 : 1 + count], outputs[1 + count :]
        seqs, extras = (rest[:saved], rest[saved:]) if options.unroll else (last[:saved], rest)
        if model.output is not None and (not seqs or any(ctx.needs_input_grad[first:])):
            seqs = (*seqs, spk)
        ctx.model, ctx.options, ctx.dtype = model, options, x.dtype
        ctx.counts = len(seqs), len(extras), len(states)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*seqs, *extras, *states, *params, *((x,) if again else ()))
        fixed = seqs if again else ()
        if model.spikes and isinstance(options.surrogate, surrogate.disabled) and not _learns_height(model, params):
            fixed = (spk, *fixed)
        if fixed:
            ctx.mark_non_differentiable(*fixed)

    @staticmethod
    def backward(ctx, grad_spk, *grads):
        saved = _Saved(ctx)
        last, rest = _split(grads, len(ctx.model.states))
        seqs, extras = _split(rest, len(rest) - len(saved.extras))
        if saved.others:
            seqs = ()
        needs_x, needs_rec, *needs = ctx.needs_input_grad[4:]
        needs_states, needs_params = _split(needs, len(saved.states))
        wanted = any(needs_states), any(needs_params)
        # No caller sees `extras`: a gradient reaches them only when a first backward was itself differentiated.
        again = any(grad is not None for grad in extras) or transforms.forward_mode()
        # What maps over a backward alone takes no batching rules, but torch's operations it can map over.
        again = again or transforms.any_batched((grad_spk, *grads), legacy=True)
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling() or transforms.functional()
        if again or differentiable:
            saved = _with_all_states(ctx, saved)
        call = _Backward(ctx.model, ctx.options, ctx.dtype, *wanted, *map(len, (last, seqs, *saved.groups)))
        groups = grad_spk, last, seqs, *saved.groups
        if again:
            found = _reference_backward(call, groups, extras)
        elif differentiable:
            found = transforms.apply(
                _NeuronBackward, call, grad_spk, *(tensor for group in groups[1:] for tensor in group)
            )
        else:
            found = _fused_backward(call, groups, *saved.others)
        grad_x, *found = found
        return (
            *(None, None, None, None),
            grad_x if needs_x else None,
            grad_x.to(_wide(ctx.dtype)) if needs_rec else None,
            *(found[k] if needed else None for k, needed in enumerate(needs_states)),
            *_grad_params(found, saved.params, needs_params),
        )

    @staticmethod
    def vmap(info, in_dims, model, options, saved, again, x, rec, *tensors):
        *_, x_dim, rec_dim = in_dims[:6]
        fold = Fold.of(info.batch_size, x, x_dim, options.unroll)
        states, params = _split(list(zip(tensors, in_dims[6:], strict=True)), len(tensors) - len(model.params))
        outputs = transforms.apply(
            _Neuron,
            *(model, options, saved, again, fold.sequence(x, x_dim), fold.sequence(rec, rec_dim)),
            *(fold.state(*state) for state in states),
            *(fold.param(*param) for param in params),
        )
        place, count = int(options.unroll), len(model.states)
        return outputs, (place, *[0] * count, *[place] * (len(outputs) - 1 - count))


def _learns_height(model, params) -> bool:
    named = dict(zip(model.params, params, strict=True))
    return "graded_spikes_factor" in named and named["graded_spikes_factor"].requires_grad


def _split(items, first: int) -> tuple:
    return items[:first], items[first:]


def _with_all_states(ctx, saved):
    """What a forward that keeps the states of all steps saves, with the graph that leads to them."""
    if not saved.others:
        return saved
    model = ctx.model
    with torch.enable_grad():
        outputs = transforms.apply(
            _Neuron, model, ctx.options, model.stored, False, *saved.others, None, *saved.states, *saved.params
        )
    first = 1 + len(model.states)
    saved.seqs, saved.extras = outputs[first : first + model.stored], outputs[first + model.stored :]
    saved.others = ()
    return saved


class _Backward(NamedTuple):
    """A backward: what was called, what is wanted, and how many tensors of a kind it is given.

    The tensors: dL/dspikes; then as many as it says dL/dlast and dL/dseqs, seqs, extras and states before the first
    step as `_Neuron` has them, and parameters. It returns dL/dx, with want_states those of the states, and with
    want_params [parameters, neurons], the parameters' before any sum over neurons.
    """

    model: Model
    options: Options
    dtype: torch.dtype
    want_states: bool
    want_params: bool
    grads_last: int
    grads_seqs: int
    seqs: int
    extras: int
    states: int
    params: int

    def groups(self, items) -> list:
        """The tensors, or what is said of them, by kind."""
        groups, first = [items[0]], 1
        for count in self[5:]:
            groups.append(items[first : first + count])
            first += count
        return groups


class _NeuronBackward(torch.autograd.Function):
    """The fused backward, whose own is by the reference's operations."""

    @staticmethod
    def forward(call, *tensors):
        return tuple(_fused_backward(call, call.groups(tensors)))

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        call, *tensors = inputs
        ctx.call = call
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors = ctx.saved_tensors
        given = [k for k, tensor in enumerate(tensors) if tensor is not None]

        def again(*present):
            all_tensors = [None] * len(tensors)
            for k, tensor in zip(given, present, strict=True):
                all_tensors[k] = tensor
            return _reference_backward(ctx.call, ctx.call.groups(all_tensors), ())

        found = dict(zip(given, transforms.vjp(again, [tensors[k] for k in given], grads), strict=True))
        return None, *(found.get(k) for k in range(len(tensors)))

    @staticmethod
    def vmap(info, in_dims, call, *tensors):
        pairs = list(zip(tensors, in_dims[1:], strict=True))
        grad_spk, last, grads_seqs, seqs, extras, states, params = call.groups(pairs)
        fold = Fold.of(info.batch_size, *(*seqs, *extras)[0], call.options.unroll)
        folded = (
            [fold.sequence(*grad_spk)],
            *([fold.state(*pair) for pair in last], [fold.sequence(*pair) for pair in (*grads_seqs, *seqs, *extras)]),
            *([fold.state(*pair) for pair in states], [fold.param(*pair) for pair in params]),
        )
        outputs = list(transforms.apply(_NeuronBackward, call, *(tensor for group in folded for tensor in group)))
        dims = [int(call.options.unroll), *[0] * (len(outputs) - 1)]
        if call.want_params:
            outputs[-1], dims[-1] = outputs[-1].unflatten(1, (info.batch_size, -1)), 1
        return tuple(outputs), tuple(dims)


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
    if _listeners:
        tell(f"{model.name}_dense_fwd", (x,), x.shape[0])
    reset = options.reset_mechanism, options.reset_delay, options.surrogate.inclusive
    return _call(f"{model.name}_dense_fwd", x, *recurrence, spk, states, params, *reset, saved, save_extras)


class _Dense(torch.autograd.Function):
    """As `_Neuron`, for a sequence with all-to-all recurrence; backward once."""

    @staticmethod
    def forward(ctx, model, options, want_seqs, x, weight, bias, initial, *tensors):
        first = len(tensors) - len(model.params)
        states, params = tensors[:first], tensors[first:]
        needs_params = any(ctx.needs_input_grad[7 + first :])
        saved = model.stored if want_seqs or needs_params else len(model.needed)
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
        given = grad_spk, *grads
        if transforms.any_batched(given) or transforms.any_batched(given, legacy=True):
            raise RuntimeError(
                "all-to-all recurrence has no backward over a batch of gradients (vmap of torch.autograd.grad, "
                "is_grads_batched=True, vectorize=True): run it under snnfast.use_reference()"
            )
        saved, model, options = _Saved(ctx), ctx.model, ctx.options
        count = len(model.states)
        needs_x, needs_weight, needs_bias, needs_initial, *needs = ctx.needs_input_grad[3:]
        needs_params = needs[len(saved.states) :]
        weight, spk, initial = saved.others
        grad_x, grad_initial, *found = _call(
            f"{model.name}_dense_bwd",
            spk,
            grad_spk,
            grads[:count],
            grads[count : count + len(saved.seqs)],
            saved.seqs,
            saved.extras,
            weight,
            saved.states,
            saved.params,
            _derivative(ctx, saved.seqs, saved.extras, saved.states, saved.params),
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
    if spk.device.type == "cpu" and not transforms.functional() and not transforms.any_batched((grad,), legacy=True):
        return _call("spike_linear_grad", grad, spk)
    return torch.atleast_2d(grad).flatten(0, -2).T @ torch.atleast_2d(spk).flatten(0, -2)


def spike_linear(spk: Tensor, weight: Tensor, bias: Tensor | None = None, values: Tensor | None = None) -> Tensor:
    """spk [..., in] @ weight.T [in, out] + bias [out] on a CPU, at the cost of what is not zero.

    values: what the product is taken to be, where that is known; gradients are the product's all the same.
    """
    tensors = (spk, weight) if bias is None else (spk, weight, bias)
    if _differentiated(tensors):
        return _SpikeLinear.apply(spk, weight, bias, values)
    return _call("spike_linear", spk, weight, bias) if values is None else values


class _SpikeLinear(torch.autograd.Function):
    """As `torch.nn.functional.linear`; what is differentiated again are products that autograd knows."""

    @staticmethod
    def forward(ctx, spk, weight, bias, values):
        ctx.save_for_backward(spk if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _call("spike_linear", spk, weight, bias) if values is None else values

    @staticmethod
    def backward(ctx, grad):
        spk, weight = ctx.saved_tensors
        by_torch = torch.is_grad_enabled() or transforms.functional() or transforms.any_batched((grad,), legacy=True)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_spk = None
        if weight is not None:
            grad_spk = grad @ weight if by_torch else _call("spike_linear_grad_spk", grad, weight)
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        if spk is None:
            return grad_spk, None, grad_bias, None
        if by_torch:
            return grad_spk, rows.T @ spk.reshape(-1, spk.shape[-1]), grad_bias, None
        return grad_spk, _call("spike_linear_grad", grad, spk), grad_bias, None


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
    """x [B, C, H, W], weight [outputs, C, rows, columns]: `torch.conv2d`, at the cost of what of x is not zero."""
    return _call("conv2d", x, weight, bias, stride, padding)


def conv2d_grad_weight(grad: Tensor, x: Tensor, weight: tuple, stride: tuple, padding: tuple) -> Tensor:
    """dL/dweight, of this shape, at the cost of what of x is not zero."""
    return _call("conv2d_grad_weight", grad, x, weight, stride, padding)


def conv2d_grad_input(grad: Tensor, weight: Tensor, x: tuple, stride: tuple, padding: tuple) -> Tensor:
    """dL/dx, of this shape, at the cost of what of dL/doutput is not zero."""
    return _call("conv2d_grad_input", grad, weight, x, stride, padding)


def max_pool2d(x: Tensor, size: tuple, stride: tuple, padding: tuple) -> list[Tensor]:
    """The largest values of windows over x [B, C, H, W], and which of its taps each is, counted by rows: uint8."""
    return _call("max_pool2d", x, size, stride, padding)


def max_pool2d_grad(grad: Tensor, taps: Tensor, x: tuple, size: tuple, stride: tuple, padding: tuple) -> Tensor:
    """dL/dx, of this shape."""
    return _call("max_pool2d_grad", grad, taps, x, size, stride, padding)


def encode_rate(x, seed, steps, silent, gain, offset, dtype) -> Tensor:
    """Random spikes of x [...] for so many `steps`, or of x [T, ...] where they are None; seed: int64 []."""
    return _call("encode_rate", x, seed, steps, silent, gain, offset, dtype, steps=steps)


def encode_latency(times, steps, ramp, on, off, dtype) -> Tensor:
    """`on` at the whole `times` [...] of `steps`, elsewhere `off`, or with `ramp` a line up to them."""
    return _call("encode_latency", times, steps, ramp, on, off, dtype, steps=steps)


def encode_delta(x, threshold, padding, off_spike, dtype) -> Tensor:
    """Spikes at the rises, and with `off_spike` the falls, of x [T, ...]."""
    return _call("encode_delta", x, threshold, padding, off_spike, dtype)


def pack_spikes(spk: Tensor) -> Tensor:
    """A bit of each value of spk [...], 1 where it is not 0: uint8, eight values a byte, in row-major order."""
    return _call("pack_spikes", spk)


def unpack_spikes(bits: Tensor, height: Tensor, shape: tuple) -> Tensor:
    """Spikes of this shape, in height's dtype: `height`, laid out over the trailing dimensions, for a bit, else 0."""
    return _call("unpack_spikes", bits, height, shape)


def _derivative(call, seqs, extras, states, params) -> Tensor | None:
    """The derivative of a surrogate that only Python knows, at every step and neuron."""
    if not isinstance(call.options.surrogate, surrogate.evaluated):
        return None
    charged = _charged(call, seqs, extras, states)
    threshold = call.model.threshold(charged, tuple(_per_step(param) for param in params))
    return call.options.surrogate.derivative(charged[0] - threshold).contiguous()


def _charged(call, seqs, extras, states) -> tuple:
    """The charged states of all steps [T, ...], or of a step [...]; None for those that backward does not need."""
    model, options, dtype = call.model, call.options, _wide(call.dtype)
    after = [seq.to(dtype) for seq in seqs] + [None] * (len(model.states) - len(seqs))
    initial = states or [None] * len(after)
    before = tuple(
        _before(seq, first, options.unroll) if name in model.held and seq is not None else None
        for name, seq, first in zip(model.states, after, initial, strict=True)
    )
    return model.charged(options.reset_delay, before, tuple(after), extras)


def _before(seq: Tensor, initial: Tensor | None, unroll: bool) -> Tensor:
    """A state before each step, from that after each and the initial one; None: zeros."""
    if not unroll:
        return torch.zeros_like(seq) if initial is None else initial
    first = seq.new_zeros(1, *seq.shape[1:]) if initial is None else initial.unsqueeze(0)
    return torch.cat([first, seq])[: len(seq)]


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
    def groups(self) -> tuple:
        """As a `_Backward` takes them."""
        return self.seqs, self.extras, self.states, self.params


def _fused_backward(call, groups, x=None):
    model, options = call.model, call.options
    grad_spk, grad_last, grad_seqs, seqs, extras, states, params = groups
    dtype = _wide(call.dtype)
    return _call(
        f"{model.name}_bwd",
        (*seqs, *extras)[0] if x is None else x,
        x,
        grad_spk,
        grad_last,
        grad_seqs,
        [seq.to(dtype) for seq in seqs] if model.output is not None else seqs,
        extras,
        states,
        params,
        _derivative(call, seqs, extras, states, params),
        options.unroll,
        options.reset_mechanism,
        options.reset_delay,
        options.surrogate.inclusive,
        options.surrogate.name,
        options.surrogate.constants,
        call.dtype,
        call.want_states,
        call.want_params,
    )


def _grad_params(found: list, params: tuple, needed: list) -> tuple:
    """The parameters' gradients, of which an operator that was asked for any gave the terms last."""
    wanted = enumerate(zip(params, needed, strict=True))
    return tuple(_sum_to(found[-1][k], param) if needs else None for k, (param, needs) in wanted)


def _reference_backward(call, groups, grad_extras) -> tuple:
    """The same gradients as `_fused_backward` in operations that autograd can differentiate again."""
    model, options = call.model, call.options
    grad_spk, grad_last, grad_seqs, seqs, extras, given, params = groups
    # A first backward that ran the steps again had no extras that a gradient could reach.
    grad_extras = grad_extras or (None,) * len(extras)

    def as_sequence(tensor):
        return tensor if tensor is None or options.unroll else tensor.unsqueeze(0)

    dtype = _wide(call.dtype)
    like = as_sequence((*seqs, *extras)[0]).to(dtype)
    seqs = [as_sequence(seq).to(dtype) for seq in seqs]
    states = len(model.states)
    unstored = [torch.zeros_like(like)] * (states - len(seqs))
    initial = given or tuple(torch.zeros_like(like[0:1]).sum(0) for _ in model.states)
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
    grad_x = (grad_x if options.unroll else grad_x.squeeze(0)).to(call.dtype)
    terms = torch.stack([term.sum(0).reshape(-1) for term in terms])
    return grad_x, *(grad_states if call.want_states else ()), *((terms,) if call.want_params else ())


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
        extras = [x.new_empty(x.shape, dtype=dtype) for _ in (model.kept(reset_delay) if save_extras else ())]
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


def _fake_encode_rate(x, seed, steps, silent, gain, offset, dtype):
    shape = (silent + x.shape[0], *x.shape[1:]) if steps is None else (steps, *x.shape)
    return x.new_empty(shape, dtype=dtype)


def _fake_encode_latency(times, steps, ramp, on, off, dtype):
    return times.new_empty((steps, *times.shape), dtype=dtype)


def _fake_encode_delta(x, threshold, padding, off_spike, dtype):
    return x.new_empty(x.shape, dtype=dtype)


def _fake_max_pool2d(x, size, stride, padding):
    shape = (*x.shape[:2], *_window_places(x.shape, size, stride, padding))
    return [x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)]


def _window_places(x, window, stride, padding) -> list:
    return [(x[2 + dim] + 2 * padding[dim] - window[dim]) // stride[dim] + 1 for dim in (0, 1)]


_FAKES |= {
    "conv2d": lambda x, weight, bias, stride, padding: x.new_empty(
        (len(x), len(weight), *_window_places(x.shape, weight.shape[2:], stride, padding))
    ),
    "conv2d_grad_weight": lambda grad, x, weight, stride, padding: x.new_empty(weight),
    "conv2d_grad_input": lambda grad, weight, x, stride, padding: grad.new_empty(x),
    "max_pool2d": _fake_max_pool2d,
    "max_pool2d_grad": lambda grad, taps, x, size, stride, padding: grad.new_empty(x),
    "spike_linear": lambda spk, weight, bias: spk.new_empty(*spk.shape[:-1], len(weight)),
    "spike_linear_grad": lambda grad, spk: grad.new_empty(grad.shape[-1], spk.shape[-1]),
    "spike_linear_grad_spk": lambda grad, weight: grad.new_empty(*grad.shape[:-1], weight.shape[1]),
    "encode_rate": _fake_encode_rate,
    "encode_latency": _fake_encode_latency,
    "encode_delta": _fake_encode_delta,
    "pack_spikes": lambda spk: spk.new_empty(((spk.numel() + 7) // 8,), dtype=torch.uint8),
    "unpack_spikes": lambda bits, height, shape: height.new_empty(shape),
}
for _model in reference.MODELS:
    _FAKES |= {f"{_model.name}_fwd": _fake_forward(_model), f"{_model.name}_bwd": _fake_backward(_model)}
    if _model.recurrent:
        _FAKES |= {
            f"{_model.name}_dense_fwd": _fake_dense_forward(_model),
            f"{_model.name}_dense_bwd": _fake_dense_backward(_model),
        }
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"snnfast::{_name}")(_fake)
