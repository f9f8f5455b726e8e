"""Kernels that take half precision as it is: backward runs steps again from the currents, to the same bits."""

import itertools

import pytest
import torch

from cases import each_saved_tensor_moved
from snnfast import ops, surrogate
from snnfast.reference import LAPICQUE, LEAKY, MODELS

SURROGATES = [surrogate.atan(2.0), surrogate.fast_sigmoid(25.0), surrogate.sigmoid(3.0)]
OPTIONS = ops.Options(SURROGATES[0], "subtract", True, True)
RESETS = [("subtract", True), ("zero", True), ("none", True), ("subtract", False), ("zero", False)]


def leaves(model, steps, neurons, dtype, device, learn):
    """x, the initial membrane and the parameters, the first of them one a neuron."""
    x = (0.2 + torch.randn(steps, 2, neurons, device=device)).to(dtype)
    params = [torch.rand((neurons,) if k == 0 else (), device=device) + 0.3 for k in range(len(model.params))]
    return [
        x.requires_grad_(),
        torch.randn(2, neurons, device=device, requires_grad=True),
        *(p.requires_grad_(learn) for p in params),
    ]


def outcome(model, tensors, options):
    """Spikes, last membrane and the gradients of everything that needs one."""
    x, mem, *params = tensors
    result = ops.run(model, x, None, (mem,), tuple(params), options, False)
    weights = torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape).to(x.dtype)
    loss = (result.spk * weights).sum() + result.last[0].sum()
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    return [result.spk, *result.last, *torch.autograd.grad(loss, wanted)]


SIZES = [(0, 4), (1, 5), (15, 4), (16, 3), (17, 32), (33, 7), (48, 64)]


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(
    "steps, neurons, dtype", [*((*size, torch.bfloat16) for size in SIZES), (17, 32, torch.float16)]
)
def test_steps_run_again_change_no_bit(steps, neurons, learn, dtype, half_device, monkeypatch):
    for model, (reset, delay), spike_grad in itertools.product([LEAKY, LAPICQUE], RESETS, SURROGATES):
        if not (delay or model.delay_optional):
            continue
        options = ops.Options(spike_grad, reset, delay, True)
        tensors = leaves(model, steps, neurons, dtype, half_device, learn)
        again = outcome(model, tensors, options)
        with monkeypatch.context() as patch:
            patch.setattr(ops.neuron, "_reruns", lambda *call: False)
            stored = outcome(model, tensors, options)
        assert all(map(torch.equal, again, stored)), (model.name, options)


def test_steps_that_share_a_row_are_run_again_to_the_same_bits(half_device):
    x, mem, *params = leaves(LEAKY, 33, 32, torch.bfloat16, half_device, learn=False)

    def trained(x, gradient):
        x = x.detach().requires_grad_()
        spk = ops.run(LEAKY, x, None, (mem,), tuple(params), OPTIONS, False).spk
        return spk, *torch.autograd.grad(spk, x, gradient)

    shared = x[:1].expand_as(x)
    copied = shared.clone(memory_format=torch.contiguous_format)
    assert all(map(torch.equal, trained(shared, shared), trained(copied, copied)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_neuron_is_the_wide_one_between_rounded_ends(dtype, half_device):
    """Currents and their gradients are rounded, states are not; also where steps are not run again."""
    key = half_device.upper()
    present = [m for m in MODELS if torch._C._dispatch_has_kernel_for_dispatch_key(f"snnfast::{m.name}_fwd", key)]
    assert LEAKY in present
    for model, want_seqs in itertools.product(present, (True, False)):
        rec = torch.randn(9, 2, 5, device=half_device) if model.recurrent else None
        x, _, *params = leaves(model, 9, 5, dtype, half_device, learn=False)
        options = OPTIONS._replace(reset_delay=model.delay_optional)
        found = []
        for current in (x, x.float()):
            spk, last, seqs = ops.run(model, current, rec, (), tuple(params), options, want_seqs)
            (grad,) = torch.autograd.grad([spk, *last], x, [torch.ones_like(spk), *map(torch.ones_like, last)])
            found.append([spk.to(dtype), *last, *(seqs or ())[: model.stored], grad])
        assert all(map(torch.equal, *found)), (model.name, want_seqs)


@pytest.mark.parametrize("neurons", [32, 300])
def test_saved_tensors_may_lie_at_any_address(neurons, half_device):
    """As hooks on saved tensors may give them back: the currents, and the states before each chunk of steps."""
    x, mem, *params = leaves(LEAKY, 33, neurons, torch.bfloat16, half_device, learn=False)

    def gradient():
        result = ops.run(LEAKY, x, None, (mem,), tuple(params), OPTIONS._replace(reset_delay=False), False)
        return torch.autograd.grad(result.spk.float().sum(), x)[0]

    first, *others = each_saved_tensor_moved(gradient)
    assert len(others) > len(params) and all(torch.equal(first, other) for other in others)


def test_memory_kept_is_that_of_the_currents(half_device):
    x, mem, *params = leaves(LEAKY, 64, 100, torch.bfloat16, half_device, learn=False)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops.run(LEAKY, x, None, (mem,), tuple(params), OPTIONS, False)
    for given in (mem, *params):
        kept.pop(given.untyped_storage().data_ptr())
    assert sum(kept.values()) == x.numel() * 2 + 3 * 200 * 4


@pytest.mark.parametrize("delay", [True, False])
def test_gradients_of_gradients(delay, half_device, monkeypatch):
    options = OPTIONS._replace(reset_delay=delay)
    tensors = leaves(LEAKY, 20, 3, torch.bfloat16, half_device, learn=True)

    def twice():
        x, mem, *params = tensors
        spk = ops.run(LEAKY, x, None, (mem,), tuple(params), options, False).spk
        (grad,) = torch.autograd.grad(spk.float().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.float().square().sum(), [x, mem, *params[:2]])

    again = twice()
    monkeypatch.setattr(ops.neuron, "_reruns", lambda *call: False)
    assert all(map(torch.equal, again, twice()))


def test_writing_to_the_currents_is_an_error(half_device):
    x, mem, *params = leaves(LEAKY, 4, 3, torch.bfloat16, half_device, learn=False)
    current = x * 1
    spk = ops.run(LEAKY, current, None, (mem,), tuple(params), OPTIONS, False).spk
    current += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spk.sum().backward()
