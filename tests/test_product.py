"""Products with spikes: what is computed from the entries that are not zero is what the whole product is."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from snnfast import functional, use_reference

# Inputs, outputs: below, at and above the blocks of columns, and what is left of them.
SIZES = ((1, 1), (3, 2), (10, 15), (16, 16), (37, 33), (64, 64), (65, 100), (100, 130), (784, 47))


def spikes(*shape, share, dtype=torch.float32):
    draw = torch.Generator().manual_seed(shape[-1])
    heights = torch.randn(*shape, generator=draw, dtype=torch.float64)
    fired = torch.rand(*shape, generator=draw, dtype=torch.float64) < share
    return torch.where(fired, heights, 0.0).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("inputs, outputs", SIZES)
def test_product_and_its_gradients(inputs, outputs, share, dtype, device):
    """Float32 errs at most twice as much as the dense product, against the product in float64."""
    x = spikes(40, 9, inputs, share=share, dtype=dtype)
    weight = torch.randn(outputs, inputs, dtype=dtype)
    grad = torch.randn(40, 9, outputs, dtype=dtype)

    def results(linear, dtype):
        given = [tensor.to(device, dtype).requires_grad_() for tensor in (x, weight)]
        product = linear(*given)
        return [product, *torch.autograd.grad(product, given, grad.to(device, dtype))]

    exact = results(F.linear, torch.float64)
    names = ("product", "dspk", "dweight")
    for name, ours, theirs, true in zip(
        names, results(functional.spike_linear, dtype), results(F.linear, dtype), exact, strict=True
    ):
        assert ours.shape == theirs.shape and ours.dtype == dtype, name
        if dtype == torch.float64:
            torch.testing.assert_close(ours, true)
            continue
        floor = torch.finfo(dtype).eps * true.abs().max()
        assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + floor, name


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_every_layout_and_edge(share):
    weight = torch.randn(5, 12)
    x = spikes(6, 7, 12, share=share)
    for given in (x[0], x, x.transpose(0, 1), x[:, ::2], x[:0], x.unsqueeze(0)):
        torch.testing.assert_close(functional.spike_linear(given, weight), F.linear(given, weight))
    transposed = torch.randn(12, 5).T
    torch.testing.assert_close(functional.spike_linear(x, transposed), F.linear(x, transposed))
    assert functional.spike_linear(x, weight[:0]).shape == (6, 7, 0)
    assert functional.spike_linear(x[..., :0], weight[:, :0]).equal(torch.zeros(6, 7, 5))
    with use_reference():
        assert functional.spike_linear(x, weight).equal(F.linear(x, weight))


def test_result_does_not_depend_on_the_number_of_threads():
    x, weight = spikes(300, 100, share=0.2), torch.randn(70, 100, requires_grad=True)
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        product = functional.spike_linear(x, weight)
        found.append((product, *torch.autograd.grad(product.sin().sum(), weight)))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


def test_what_is_not_a_number_spreads_and_what_is_silent_does_not():
    x = torch.zeros(9, 40)
    x[2, 5], x[3, 6] = float("nan"), float("inf")
    weight = torch.ones(3, 40)
    weight[:, 0] = float("inf")
    product = functional.spike_linear(x, weight)
    assert product[2].isnan().all() and product[3].isinf().all()
    assert product[[0, 1, 4, 5, 6, 7, 8]].equal(torch.zeros(7, 3))


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_double_backward(share):
    x = spikes(4, 6, share=share, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    # Finite differences make spikes of what is silent, at which the product is as smooth as any.
    assert torch.autograd.gradcheck(functional.spike_linear, (x, weight))
    assert torch.autograd.gradgradcheck(functional.spike_linear, (x, weight))


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(share, dtype):
    x, weight, grad = spikes(4, 5, 8, share=share, dtype=dtype), torch.randn(3, 8, dtype=dtype), torch.randn(4, 5, 3)
    torch.library.opcheck(torch.ops.snnfast.spike_linear.default, (x, weight))
    torch.library.opcheck(torch.ops.snnfast.spike_linear_grad.default, (grad.to(dtype), x))


def test_wrong_arguments_of_the_operators():
    x, weight, grad = torch.zeros(4, 8), torch.zeros(3, 8), torch.zeros(4, 3)
    product, gradient = torch.ops.snnfast.spike_linear, torch.ops.snnfast.spike_linear_grad
    wrong = [
        (lambda: product(x[0, 0], weight), "spk must have a dimension of features"),
        (lambda: product(x, weight[:, :7]), r"weight must have shape \[outputs, 8\]"),
        (lambda: product(x, weight.double()), "weight must have dtype Float, got Double"),
        (lambda: product(x.half(), weight.half()), "dtype must be one of Float, Double on this device; got Half"),
        (lambda: gradient(grad[:3], x), "grad must have as many rows as spk, 4, got 3"),
        (lambda: gradient(grad.double(), x), "grad must have dtype Float, got Double"),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_what_the_operator_does_not_take_is_a_plain_product(device):
    x, weight = spikes(3, 8, share=0.2).to(device), torch.randn(2, 8, device=device)
    for dtype, autocast in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        with torch.autocast(device, enabled=autocast):
            ours = functional.spike_linear(x.to(dtype), weight.to(dtype))
            theirs = F.linear(x.to(dtype), weight.to(dtype))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError):
        functional.spike_linear(x, weight[:, :7])
