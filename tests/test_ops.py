"""The operators as torch sees them: schema, fake kernels, autograd registration, AOT dispatch."""

import itertools

import pytest
import torch

from cases import each_saved_tensor_moved, moved
from snnfast import functional, ops, surrogate
from snnfast.reference import MODELS

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def operators(model):
    return (getattr(torch.ops.snnfast, f"{model.name}_{direction}").default for direction in ("fwd", "bwd"))


def inputs(model, unroll, initial, dtype, device, sizes=(3, 4)):
    """x, rec, states and parameters, the first of them one value per neuron."""
    x = torch.randn(5, *sizes, device=device, dtype=dtype)
    shape = x.shape[1:] if unroll else x.shape
    state = {"device": device, "dtype": torch.float64 if dtype == torch.float64 else torch.float32}
    params = [torch.rand(sizes[-1:] if k == 0 else (), **state) + 0.5 for k in range(len(model.params))]
    states = [torch.randn(shape, **state) for _ in model.states] if initial else []
    return x, torch.randn(x.shape, **state) if model.recurrent else None, states, params


def grid():
    """Every combination for one model; the operators are the same code for all, which see those that change shapes."""
    dtypes = (torch.float32, torch.float64, *((torch.float16, torch.bfloat16) if torch.cuda.is_available() else ()))
    for model in MODELS:
        for dtype, unroll, reset_delay, save, mem in itertools.product(dtypes, *[(True, False)] * 4):
            if model is MODELS[0] or (dtype == torch.float32 and save == mem == reset_delay):
                name = f"{model.name}-{dtype}-{unroll}-{reset_delay}-{save}-{mem}"
                yield pytest.param(model, dtype, unroll, reset_delay, save, mem, id=name)


@pytest.mark.parametrize("model, dtype, unroll, reset_delay, save, mem", list(grid()))
def test_opcheck_forward_and_backward(model, dtype, unroll, reset_delay, save, mem, device):
    if device == "cpu" and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    fwd, bwd = operators(model)
    x, rec, states, params = inputs(model, unroll, mem, dtype, device)
    how = (unroll, "subtract", reset_delay, False)
    saved = model.stored if save else 0
    torch.library.opcheck(fwd, (x, rec, states, params, *how, saved, 1, save), test_utils=CHECKS)
    spk, *rest = fwd(x, rec, states, params, *how, model.stored, 1, True)
    count = len(model.states)
    last, rest = rest[:count], rest[count:]
    seqs, extras = (rest[: model.stored], rest[model.stored :]) if unroll else (last[: model.stored], rest)
    assert len(extras) == len(model.kept(reset_delay))
    backward = (
        spk,
        None,
        torch.randn_like(spk),
        [torch.randn_like(state) for state in last],
        [torch.randn_like(seq) if unroll else None for seq in seqs],
        seqs if model.output is None else [*seqs, spk.to(last[0].dtype)],
        extras,
        states,
        params,
        torch.randn_like(spk, dtype=last[0].dtype) if mem else None,
        *how,
        "evaluated" if mem else "atan",
        [] if mem else [3.14, 1.0],
        dtype,
        save,
        mem,
    )
    torch.library.opcheck(bwd, backward, test_utils=CHECKS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_outputs_nobody_wants_are_absent(model, device):
    fwd, bwd = operators(model)
    x, rec, states, params = inputs(model, True, False, torch.float32, device)
    spk, *last = fwd(x, rec, states, params, True, "subtract", False, False, 0, 1, False)
    assert spk.shape == (5, 3, 4) and [state.shape for state in last] == [(3, 4)] * len(model.states)
    extras = [spk] * len(model.kept(False))
    how = (True, "subtract", False, False, "atan", [3.14, 1.0], torch.float32)
    (grad_x,) = bwd(spk, None, spk, [], [], [spk] * len(model.needed), extras, states, params, None, *how, False, False)
    assert grad_x.shape == (5, 3, 4)


def outcome(model, x, rec, states, params, gradient, weight=None):
    """Spikes, states and dL/dx for this gradient of the spikes and of all states; weight: of all-to-all recurrence."""
    options = ops.Options(surrogate.atan(2.0), "subtract", model.delay_optional, True)
    x = x.detach().requires_grad_()
    if weight is None:
        result = ops.run(model, x, rec, states, params, options, True)
    else:
        result = ops.run(model, x, ops.Recurrence(weight), states, params, options, True)
    outputs = (result.spk, *(seq for seq in result.seqs if seq is not result.spk))
    return [*outputs, *result.last, *torch.autograd.grad(outputs, x, [gradient] * len(outputs))]


def steady(row, steps):
    """A row at every step, as an expansion and as a tensor of its own."""
    shared = row.expand(steps, *row.shape)
    return shared, shared.clone(memory_format=torch.contiguous_format)


def steady_cases():
    """One a model, and all-to-all recurrence in one launch and, where the weights do not fit, step by step."""
    for model in MODELS:
        yield pytest.param(model, False, torch.float32, (8, 4), id=model.name)
        if model.recurrent:
            yield pytest.param(model, True, torch.float32, (8, 4), id=f"{model.name}-dense")
            yield pytest.param(model, True, torch.float64, (2, 200), id=f"{model.name}-dense-by-step")


@pytest.mark.parametrize("model, dense, dtype, sizes", list(steady_cases()))
def test_steps_that_share_a_row_give_the_bits_of_copies(model, dense, dtype, sizes, device):
    """A steady current, and the gradients of sums over time."""
    _, rec, states, params = inputs(model, True, True, dtype, device, sizes)
    weight = torch.randn(sizes[-1], sizes[-1], device=device, dtype=dtype) if dense else None
    rows = [torch.randn(sizes[::-1], device=device, dtype=dtype).t(), torch.randn(sizes, device=device, dtype=dtype)]
    for row in rows:
        currents = steady(row, 5)
        assert currents[0].stride(0) == 0 and currents[1].is_contiguous()
        for gradient in (*rows, torch.ones((), device=device, dtype=dtype).expand(sizes)):
            pairs = zip(currents, steady(gradient, 5), strict=True)
            found = [outcome(model, x, rec, states, params, grad, weight) for x, grad in pairs]
            assert all(map(torch.equal, *found))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_inputs_may_lie_at_any_address(model, device):
    """Also where there are so many neurons that a thread reads four of them at once."""
    given = inputs(model, True, True, torch.float32, device, sizes=(8, 4))
    gradient = torch.randn(given[0].shape, device=device)

    expected = outcome(model, *given, gradient)
    x, rec, states, params = given
    for arguments in (
        (moved(x), rec, states, params, gradient),
        (x, rec if rec is None else moved(rec), states, params, gradient),
        (x, rec, [moved(state) for state in states], params, gradient),
        (x, rec, states, params, moved(gradient)),
    ):
        assert all(map(torch.equal, outcome(model, *arguments), expected))


def surrogate_cases():
    for model in MODELS:
        yield pytest.param(model, False, id=model.name)
        if model.spikes:
            yield pytest.param(model, True, id=f"{model.name}-evaluated")


@pytest.mark.parametrize("model, mine", list(surrogate_cases()))
def test_saved_tensors_may_lie_at_any_address(model, mine, device):
    """As hooks on saved tensors, which keep them elsewhere, may give them back: states, charges, and what they make."""
    spike_grad = surrogate.evaluated(lambda u: 1 / (1 + u * u)) if mine else surrogate.atan(2.0)
    options = ops.Options(spike_grad, "zero", not model.delay_optional, True)
    x, rec, states, params = inputs(model, True, True, torch.float32, device, sizes=(8, 4))

    def gradient():
        current = x.clone().requires_grad_()
        result = ops.run(model, current, rec, states, params, options, True)
        return torch.autograd.grad([result.spk, *result.last], current, [x[0].expand_as(x), *states])[0]

    first, *others = each_saved_tensor_moved(gradient)
    assert len(others) > len(params) and all(torch.equal(first, other) for other in others)


def dense_and_not():
    for model in MODELS:
        yield pytest.param(model, False, id=model.name)
        if model.recurrent:
            yield pytest.param(model, True, id=f"{model.name}-dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("initial", [True, False], ids=["initial", "zeros"])
@pytest.mark.parametrize("model, dense", list(dense_and_not()))
def test_no_steps_leave_the_states_as_they_were(model, dense, initial, dtype, device):
    """Forward and backward of a sequence with T = 0; the gradient of the last states goes on to the initial ones."""
    x, rec, states, params = inputs(model, True, initial, dtype, device)
    x, rec = x[:0].requires_grad_(), None if rec is None else rec[:0]
    states, params = ([tensor.requires_grad_() for tensor in tensors] for tensors in (states, params))
    options = ops.Options(surrogate.atan(2.0), "subtract", model.delay_optional, True)
    others = []
    if dense:
        weight, bias, spk = (torch.randn(shape, device=device, dtype=dtype) for shape in ((4, 4), (4,), (3, 4)))
        others = [weight.requires_grad_(), bias.requires_grad_(), spk.requires_grad_()]
        result = ops.run(model, x, ops.Recurrence(weight, bias, spk), states, params, options, True)
    else:
        result = ops.run(model, x, rec, states, params, options, True)
    assert result.spk.shape == (0, 3, 4) and all(seq.shape == (0, 3, 4) for seq in result.seqs)
    expected = states or [torch.zeros(3, 4, device=device, dtype=dtype)] * len(model.states)
    assert all(map(torch.equal, result.last, expected))
    gradients = [torch.randn_like(state) for state in result.last]
    grad_x, *found = torch.autograd.grad(result.last, [x, *states, *params, *others], gradients, allow_unused=True)
    assert grad_x.shape == (0, 3, 4)
    assert all(map(torch.equal, found, gradients[: len(states)]))
    assert all(grad is None or not grad.any() for grad in found[len(states) :])


def negated(tensor):
    """The same values behind torch's negation bit, in memory as they are: the imaginary part of a conjugate is one."""
    view = torch._neg_view(-tensor)
    assert view.is_neg() and view.stride() == tensor.stride() and torch.equal(view, tensor)
    return view


def calls_of(model, device):
    """Each of a model's operators, with all of its arguments."""
    fwd, bwd = operators(model)
    x, rec, states, params = inputs(model, True, True, torch.float32, device)
    how, after = ("subtract", False, False), ("evaluated", [], torch.float32)
    yield fwd, (x, rec, states, params, True, *how, model.stored, 1, True)
    spk, *rest = fwd(x, rec, states, params, True, *how, model.stored, 1, True)
    count = len(model.states)
    seqs, extras = rest[count : count + model.stored], rest[count + model.stored :]
    grads = [torch.randn_like(x), list(map(torch.randn_like, states)), list(map(torch.randn_like, seqs))]
    seqs = seqs if model.output is None else [*seqs, spk]
    derivative = torch.randn_like(x)
    yield bwd, (spk, None, *grads, seqs, extras, states, params, derivative, True, *how, *after, True, True)
    if model.recurrent:
        recurrence = [torch.randn(shape, device=device) for shape in ((4, 4), (4,), (3, 4))]
        yield fwd, (x, None, states, params, True, *how, model.stored, 1, True, *recurrence)
        wanted = True, True, recurrence[0]
        yield bwd, (spk, None, *grads, seqs, extras, states, params, derivative, True, *how, *after, *wanted)


def other_calls(device):
    data = torch.rand(5, 3, 4, device=device)
    yield torch.ops.snnfast.encode_rate, (data, torch.tensor(7, device=device), None, 2, 0.9, 0.0, torch.float32)
    yield torch.ops.snnfast.encode_latency, (torch.round(data * 5), 5, True, 1.0, 0.0, torch.float32)
    yield torch.ops.snnfast.encode_delta, (data, 0.3, False, True, torch.float32)
    bits = torch.ops.snnfast.pack_spikes(torch.ones(12, device=device))
    yield torch.ops.snnfast.unpack_spikes, (bits, torch.rand(4, device=device), [3, 4])
    if device == "cpu":
        yield torch.ops.snnfast.spike_linear, (data, torch.randn(6, 4), None)
        yield torch.ops.snnfast.spike_linear_grad, (torch.randn(5, 3, 6), data)
        yield torch.ops.snnfast.spike_linear_grad_spk, (torch.randn(5, 3, 6), torch.randn(6, 4))


@pytest.mark.parametrize("model", [*MODELS, None], ids=lambda model: model.name if model else "others")
def test_negated_views_are_read_as_what_they_are(model, device):
    """In every argument, and every list of them, of every operator."""
    for operator, arguments in calls_of(model, device) if model else other_calls(device):
        expected = as_list(operator(*arguments))
        for place, argument in enumerate(arguments):
            many = isinstance(argument, (list, tuple))
            for k, tensor in enumerate(argument if many else [argument]):
                if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
                    continue
                one = [*argument[:k], negated(tensor), *argument[k + 1 :]] if many else negated(tensor)
                found = as_list(operator(*arguments[:place], one, *arguments[place + 1 :]))
                assert all(map(torch.equal, found, expected)), (operator, place, k)


def as_list(result):
    return [result] if isinstance(result, torch.Tensor) else result


def test_values_may_lie_between_two_addresses_of_their_type():
    """As torch.frombuffer leaves them."""
    x, rec, states, params = inputs(MODELS[0], True, True, torch.float32, "cpu")

    def apart(tensor):
        place = bytearray(1 + tensor.numel() * 4)
        place[1:] = tensor.contiguous().numpy().tobytes()
        copy = torch.frombuffer(place, dtype=torch.float32, offset=1).view(tensor.shape)
        assert copy.data_ptr() % 4 and torch.equal(copy, tensor)
        return copy

    expected = outcome(MODELS[0], x, rec, states, params, x)
    found = outcome(MODELS[0], apart(x), rec, list(map(apart, states)), list(map(apart, params)), apart(x))
    assert all(map(torch.equal, found, expected))
    for operator, arguments in other_calls("cpu"):
        expected = operator(*arguments)
        moved = [apart(a) if isinstance(a, torch.Tensor) and a.dtype == torch.float32 else a for a in arguments]
        if "spike_linear" in str(operator):
            # Where torch's own product runs, its sums go by where its operands lie.
            torch.testing.assert_close(operator(*moved), expected)
        else:
            assert operator(*moved).equal(expected), operator


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_what_no_gradient_reaches_makes_none_of_nan(model, reset_delay, reset, device):
    """A loss on some of the outputs, and membranes that are NaN and infinite: kernels and reference loop agree."""
    x, _, states, params = inputs(model, True, True, torch.float32, device)
    x[1, 0, 1], x[2, 1, 2], x[4, 2, 0] = torch.nan, torch.inf, torch.nan
    states[0][0, 3] = torch.nan
    weight = torch.randn(4, 4, device=device) * 0.3
    options = ops.Options(surrogate.atan(2.0), reset, reset_delay or not model.delay_optional, True)

    def gradients(output):
        given = [tensor.clone().requires_grad_() for tensor in (x, *states, *params)]
        current, of_states, of_params = given[0], given[1 : 1 + len(states)], given[1 + len(states) :]
        if model.recurrent:
            result = functional.run(model, current, of_states, of_params, options, True, rec=ops.Recurrence(weight))
        else:
            result = functional.run(model, current, of_states, of_params, options, True)
        outputs = [result.spk, *result.seqs, *result.last]
        if output >= len(outputs):
            return None
        loss = outputs[output]
        signs = torch.arange(loss.numel(), device=device).view(loss.shape) % 3 - 1.0
        found = torch.autograd.grad(loss, given[: 1 + len(states)], signs, allow_unused=True)
        return [torch.zeros_like(g) if f is None else f for f, g in zip(found, given, strict=False)]

    for output in itertools.count():
        fused = gradients(output)
        if fused is None:
            break
        with functional.use_reference():
            expected = gradients(output)
        for a, b in zip(fused, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, msg=lambda text, at=output: f"loss on output {at}: {text}")
