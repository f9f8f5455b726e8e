"""The operators as torch sees them: schema, fake kernels, autograd registration, AOT dispatch."""

import itertools

import pytest
import torch

import snnfast  # noqa: F401 - registers the operators

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def leaky_fwd_arguments(unroll, reset_delay, save, mem, dtype, device):
    x = torch.randn(5, 3, 4, device=device, dtype=dtype)
    shape = x.shape[1:] if unroll else x.shape
    state = torch.float64 if dtype == torch.float64 else torch.float32
    params = [torch.tensor(v, device=device, dtype=state) for v in (0.9, 0.5, 1.5)]
    params[0] = params[0].expand(4).clone()
    mem = torch.randn(shape, device=device, dtype=state) if mem else None
    return (x, mem, *params, unroll, "subtract", reset_delay, save, save)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("unroll, reset_delay, save, mem", itertools.product([True, False], repeat=4))
def test_opcheck_forward_and_backward(unroll, reset_delay, save, mem, dtype, device):
    if device == "cpu" and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    arguments = leaky_fwd_arguments(unroll, reset_delay, save, mem, dtype, device)
    torch.library.opcheck(torch.ops.snnfast.leaky_fwd.default, arguments, test_utils=CHECKS)
    x, initial, *params = arguments[:5]
    spk, last, mem_seq, charge = torch.ops.snnfast.leaky_fwd(*arguments[:8], True, True)
    saved = mem_seq if unroll else last
    backward = (
        torch.randn_like(spk),
        torch.randn_like(last),
        torch.randn_like(mem_seq) if unroll else None,
        saved,
        None if reset_delay else charge,
        initial,
        *params,
        torch.randn_like(saved) if mem else None,
        unroll,
        "subtract",
        "evaluated" if mem else "atan",
        [] if mem else [3.14, 1.0],
        dtype,
        save,
        mem,
    )
    torch.library.opcheck(torch.ops.snnfast.leaky_bwd.default, backward, test_utils=CHECKS)


def test_outputs_nobody_wants_are_empty(device):
    arguments = leaky_fwd_arguments(True, True, False, False, torch.float32, device)
    spk, last, mem_seq, charge = torch.ops.snnfast.leaky_fwd(*arguments)
    assert spk.shape == (5, 3, 4) and last.shape == (3, 4)
    assert mem_seq.numel() == charge.numel() == 0
