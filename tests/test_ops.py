"""The operators as torch sees them: schema, fake kernels, autograd registration, AOT dispatch."""

import itertools

import pytest
import torch

from snnfast import ops, surrogate
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
        result = ops.run_dense(model, x, ops.Recurrence(weight, None), None, states, params, options, True)
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


def moved(tensor):
    """The same values at an address that is a multiple of no more than the size of one."""
    place = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
    return place.copy_(tensor.detach())


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
