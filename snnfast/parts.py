"""Products with spikes on a GPU's tensor cores, with float32's accuracy: three bfloat16 parts.

A float32 number is the sum of three bfloat16 numbers, and a spike, its height aside, is one. So three products of
bfloat16, each into float32 sums of its own, give what one of float32 would, at a third of bfloat16's rate.
"""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from . import transforms

COUNT = 3
"""Parts of a float32 number: its 24 digits, eight at a time."""

_FIRST = ~0xFFFF


def cut(numbers: Tensor) -> list[Tensor]:
    """The bfloat16 parts of float32 `numbers`, largest first, whose sum is just that. Infinite ones' are these and 0.

    Digits are cut off, not rounded: no finite number has an infinite part.
    """
    found, rest = [], numbers
    for _ in range(COUNT):
        part = (rest.view(torch.int32) & _FIRST).view(torch.float32)
        found.append(part.bfloat16())
        rest = torch.where(rest.isinf(), 0.0, rest - part)
    return found


def forward(x: Tensor, weight: Tensor) -> Tensor:
    """x [n, in] @ weight.T [in, out] of spikes x, in float32; errors as `linear`."""
    ones, heights = _without_heights(x)
    weight = weight * heights
    scale = _scale(weight)
    return _sum(_mm(ones, part.T) for part in reversed(cut(weight * scale))).div_(scale)


def grad_weight(grad: Tensor, x: Tensor) -> Tensor:
    """grad.T [out, n] @ x [n, in] of spikes x, in float32; errors as `linear`."""
    ones, heights = _without_heights(x)
    scale = _scale(grad)
    return _sum(_mm(part.T, ones) for part in reversed(cut(grad * scale))).div_(scale).mul_(heights)


def _scale(numbers: Tensor) -> Tensor:
    """What makes numbers so large that none of their parts is denormal, unless they are very large themselves."""
    return torch.where(numbers.abs().amax() < 2.0**60, 2.0**40, 1.0)


def _sum(products: Iterable[Tensor]) -> Tensor:
    """The smallest first: each has been summed apart, rounded at its own size."""
    return functools.reduce(lambda total, sums: sums.add_(total), products)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, values: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` of spikes x [..., in] in float32: each feature's are 0, or one height up or down.

    values: what the product is taken to be, where that is known; gradients are the product's all the same.

    Raises:
        RuntimeError: x holds other finite numbers. On a GPU it is raised when the device is next waited for, as nothing
            waits for it here.
    """
    return _Linear.apply(x, weight, bias, values)


class _Linear(torch.autograd.Function):
    """Differentiated again, it is products that autograd knows."""

    @staticmethod
    def forward(ctx, x, weight, bias, values):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        if values is not None:
            return values
        out = forward(x.flatten(0, -2), weight)
        return (out if bias is None else out.add_(bias)).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        by_torch = torch.is_grad_enabled() or transforms.functional() or transforms.any_batched((grad,), legacy=True)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_x = None if weight is None else grad @ weight
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        if x is None:
            return grad_x, None, grad_bias, None
        spk = x.flatten(0, -2)
        return grad_x, rows.T @ spk if by_torch else grad_weight(rows, spk), grad_bias, None


def _without_heights(x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes x [n, k] as 0, 1 or -1 in bfloat16, and how high those of each feature are, [k]."""
    heights = x.abs().amax(0)
    heights = torch.where((heights > 0) & heights.isfinite(), heights, 1.0)
    ones = x / heights
    are_spikes = ((ones == 0) | (ones.abs() == 1) | ~ones.isfinite()).all()
    torch._assert_async(are_spikes, 'with products.choose("parts"), every Linear must be behind spikes of one height')
    return ones.bfloat16(), heights


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """The product of bfloat16 in float32."""
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    # A CPU has no such product: the same terms, added up in float32.
    return left.float() @ right.float()
