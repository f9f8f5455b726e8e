"""Convolutions and pooling of images [B, C, H, W], such as all steps of a loop: torch's functions, faster on a CPU.

A convolution behind spikes visits those alone, transposed or not, and so do its gradients; pooling keeps a byte of each
window for backward. Where that would be no faster, or a call asks for what csrc/cpu/convolution.cpp and pooling.cpp
lack (another dtype, device or layout, dilation, groups), torch's own function runs, as it does after
`snnfast.products.choose("torch")`.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import ops, products, transforms
from .functional import is_exported

FEW = 0.25
"""The share of an input that is not zero up to which visiting that alone is faster: measured on 11 layers."""

FEW_FOR_WEIGHT = 0.2
"""The same for the weight's gradient."""

FEW_GRADIENTS = 0.5
"""The same, of the output's gradient, for the input's: behind pooling a quarter of it is not zero."""

FEW_TO_TRANSPOSE = 0.15
"""The same for a transposed convolution and its weight's gradient: measured on 3 layers."""

FEW_FOR_FEW = 0.05
"""The same for one that gives fewer channels than `LANES`."""

LANES = 8
"""Channels that torch's kernels take at once: of fewer, most of their work is for nothing."""

SAMPLE, LEAST_IMAGES = 1 << 16, 8
"""Values that tell how many are zero, and of how many images at least: a look at more would cost what it saves."""

ROW = 13 * LANES
"""Weights of a filter's row whose sums the kernels hold in registers at once: with strides they are faster then than
torch's, whatever is zero (measured on 10 layers)."""

LEAST = 1 << 22
"""Multiplications of a convolution that are worth a choice."""

KEPT = 1 << 25
"""Bytes from which memory that torch takes is the system's, and each of its pages cleared at first use."""

_aten = torch.ops.aten


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, steps: int | None = None) -> Tensor:
    """`torch.nn.functional.conv2d`, at the cost of what is not zero.

    Its sums are in another order than torch's, and as accurate. A zero multiplies nothing, which is no matter while all
    values are finite; where they are not, torch's function runs.

    Args:
        steps: the input is so many steps of a loop, [steps * B, ...], and each is to be to the bit what torch gives of
            it alone: where it is not, torch's forward runs on all of them. None: no matter.
    """
    where = _pair(stride), _pair(padding)
    plain = None not in where and _pair(dilation) == (1, 1) and groups == 1
    ours = plain and _fits(input, weight, bias) and _is_worth_it(input, weight, *where)
    if not ours or not math.isfinite(weight.detach().sum()):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    stride, padding = where
    few = _share(input) <= FEW and _may_be_few(input, weight, stride, padding)
    few = few and (steps is None or _same_sums(ops.conv2d, input, weight, bias, where, steps))
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (input, weight, bias)):
        return _Conv2d.apply(input, weight, bias, stride, padding, few)
    return _forward(input, weight, bias, stride, padding, few)


def conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, steps: int | None = None
) -> Tensor:
    """`torch.nn.functional.conv_transpose2d`, at the cost of what is not zero; steps, and its sums: as in `conv2d`."""
    where = _pair(stride), _pair(padding), _pair(output_padding)
    plain = None not in where and _pair(dilation) == (1, 1) and groups == 1
    ours = plain and _fits(input, weight, bias) and _is_worth_transposing(input, weight, *where)
    # Where many are not zero nothing here is faster.
    most = FEW_TO_TRANSPOSE if ours and weight.shape[1] >= LANES else FEW_FOR_FEW
    if not ours or _share(input) > most or not math.isfinite(weight.detach().sum()):
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    few = steps is None or _same_sums(ops.conv_transpose2d, input, weight, bias, where, steps)
    if torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (input, weight, bias)):
        return _ConvTranspose2d.apply(input, weight, bias, *where, few)
    return _transposed(input, weight, bias, *where, few)


def max_pool2d(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> Tensor | tuple[Tensor, Tensor]:
    """`torch.nn.functional.max_pool2d`, to the bit."""
    size = _pair(kernel_size)
    step, border = size if stride is None or stride == [] else _pair(stride), _pair(padding)
    plain = None not in (size, step, border) and _pair(dilation) == (1, 1) and not ceil_mode and not return_indices
    if not plain or not _fits(input) or not _fit_windows(input, size, step, border):
        return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if torch.is_grad_enabled() and input.requires_grad:
        return _MaxPool2d.apply(input, size, step, border)
    return ops.max_pool2d(input, size, step, border)[0]


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, few):
        ctx.save_for_backward(x, weight)
        ctx.where = stride, padding
        return _forward(x, weight, bias, stride, padding, few)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforms.any_batched((grad,), legacy=True):
            wanted = [needs_x, needs_weight, needs_bias]
            return *_torch_backward(grad, x, weight, *ctx.where, wanted), None, None, None
        total = grad.sum((0, 2, 3))
        # A zero would hide that what it multiplies is no number.
        finite = math.isfinite(total.sum())
        return (
            _grad_input(grad, x, weight, *ctx.where) if needs_x else None,
            _grad_weight(grad, x, weight, *ctx.where, finite) if needs_weight else None,
            total if needs_bias else None,
            *(None, None, None),
        )


class _ConvTranspose2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, more, few):
        ctx.save_for_backward(x, weight)
        ctx.where = stride, padding, more
        return _transposed(x, weight, bias, stride, padding, more, few)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforms.any_batched((grad,), legacy=True):
            wanted = [needs_x, needs_weight, needs_bias]
            return *_torch_backward(grad, x, weight, *ctx.where, wanted), *(None,) * 4
        total, grad_x, grad_weight = grad.sum((0, 2, 3)), None, None
        if needs_x:
            grad_x = _in_parts(grad, x, weight, *ctx.where)
        if needs_weight and math.isfinite(total.sum()):
            stride, padding, _ = ctx.where
            grad_weight = ops.conv2d_grad_weight(x, grad, tuple(weight.shape), stride, padding, True)
        elif needs_weight:
            grad_weight = _torch_backward(grad, x, weight, *ctx.where, [False, True, False])[1]
        return grad_x, grad_weight, total if needs_bias else None, *(None,) * 4


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, size, stride, padding):
        largest, taps = ops.max_pool2d(x, size, stride, padding)
        ctx.where = tuple(x.shape), size, stride, padding
        ctx.save_for_backward(taps)
        return largest

    @staticmethod
    def backward(ctx, grad):
        return _MaxPool2dBackward.apply(grad, *ctx.saved_tensors, *ctx.where), None, None, None


class _MaxPool2dBackward(torch.autograd.Function):
    """It only moves values: its own backward moves them back."""

    @staticmethod
    def forward(ctx, grad, taps, *where):
        ctx.where = where
        ctx.save_for_backward(taps)
        return ops.max_pool2d_grad(grad, taps, *where)

    @staticmethod
    def backward(ctx, grad):
        (taps,) = ctx.saved_tensors
        (*_, height, width), size, stride, padding = ctx.where
        rows, columns = (torch.arange(count, device=grad.device) for count in taps.shape[2:])
        taps = taps.long()
        y = rows[:, None] * stride[0] - padding[0] + taps // size[1]
        x = columns * stride[1] - padding[1] + taps % size[1]
        places = (y * width + x).flatten(2)
        return grad.flatten(2).gather(2, places).view(taps.shape), *(None,) * 5


def _forward(x, weight, bias, stride, padding, few) -> Tensor:
    return ops.conv2d(x, weight, bias, stride, padding) if few else F.conv2d(x, weight, bias, stride, padding)


def _transposed(x, weight, bias, stride, padding, more, few) -> Tensor:
    if not few:
        return F.conv_transpose2d(x, weight, bias, stride, padding, more)
    return ops.conv_transpose2d(x, weight, bias, _size_transposed(x, weight, stride, padding, more), stride, padding)


def _grad_input(grad, x, weight, stride, padding) -> Tensor:
    in_part = weight.shape[0] % LANES and weight.shape[1] % LANES and len(weight) > LANES
    apart = max(stride) > 1 and weight.shape[1] * weight.shape[3] <= ROW
    if in_part or apart or _share(grad) <= FEW_GRADIENTS:
        return ops.conv2d_grad_input(grad, weight, tuple(x.shape), stride, padding)
    return _in_parts(grad, x, weight, stride, padding)


def _in_parts(grad, x, weight, *where) -> Tensor:
    """dL/dx by torch, of no more images at once than it has memory ready for."""
    count = -(-max(x.nbytes, grad.nbytes) // KEPT)
    pairs = zip(grad.chunk(count), x.chunk(count), strict=True)
    parts = [_torch_backward(*pair, weight, *where, [True, False, False])[0] for pair in pairs]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _grad_weight(grad, x, weight, stride, padding, finite) -> Tensor:
    few = 1 if weight.shape[1] * len(weight) < LANES * LANES else FEW_FOR_WEIGHT
    if finite and _share(x) <= few:
        return ops.conv2d_grad_weight(grad, x, tuple(weight.shape), stride, padding, False)
    return _torch_backward(grad, x, weight, stride, padding, [False, True, False])[1]


def _torch_backward(grad, x, weight, stride, padding, *rest) -> tuple:
    """The gradients of a convolution; rest: of a transposed one its output's padding, and which are wanted."""
    *more, wanted = rest
    options = stride, padding, (1, 1), bool(more), more[0] if more else (0, 0), 1, wanted
    return _aten.convolution_backward(grad, x, weight, [grad.shape[1]], *options)


def _pair(given) -> tuple[int, int] | None:
    """Two numbers, as torch takes one for both; None for anything else, such as padding by name."""
    given = (given, given) if isinstance(given, int) else tuple(given) if isinstance(given, (tuple, list)) else ()
    given = given * 2 if len(given) == 1 else given
    return given if len(given) == 2 and all(type(one) is int for one in given) else None


def _fits(x, *others) -> bool:
    """Whether the kernels read these tensors, and nobody asks for torch's own operations."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.dim() != 4 or x.numel() == 0:
        return False
    for one in (x, *others):
        if one is None:
            continue
        if type(one) not in (Tensor, nn.Parameter) or one.dtype is not torch.float32 or one.device.type != "cpu":
            return False
        if not one.is_contiguous() or one.is_neg():
            return False
    theirs = products.chosen() == "torch" or is_exported() or torch.is_autocast_enabled("cpu")
    return not (theirs or transforms.at_work())


def _is_worth_it(x, weight, stride, padding) -> bool:
    if weight.dim() != 4 or weight.numel() == 0 or x.shape[1] != weight.shape[1]:
        return False
    if min(stride) < 1 or min(padding) < 0:
        return False
    height, width = _size(x, weight.shape[2:], stride, padding)
    return height > 0 and width > 0 and len(x) * height * width * weight.numel() >= LEAST


def _is_worth_transposing(x, weight, stride, padding, more) -> bool:
    if weight.dim() != 4 or weight.numel() == 0 or x.shape[1] != weight.shape[0]:
        return False
    if min(stride) < 1 or min(padding) < 0 or any(not 0 <= m < s for m, s in zip(more, stride, strict=True)):
        return False
    height, width = _size_transposed(x, weight, stride, padding, more)
    return height > 0 and width > 0 and x[:, 0].numel() * weight.numel() >= LEAST


def _may_be_few(x, weight, stride, padding) -> bool:
    """Whether an output sums over enough to leave some out, or is larger than what torch has memory ready for."""
    height, width = _size(x, weight.shape[2:], stride, padding)
    many = weight.shape[1] * len(weight) >= LANES * LANES
    return many or len(x) * len(weight) * height * width * x.element_size() > KEPT


def _fit_windows(x, size, stride, padding) -> bool:
    if min(size) < 1 or min(stride) < 1 or min(padding) < 0 or size[0] * size[1] > 255:
        return False
    if any(2 * border > side for border, side in zip(padding, size, strict=True)):
        return False
    return min(_size(x, size, stride, padding)) > 0


def _size(x, window, stride, padding) -> list[int]:
    """Height and width of what a window that moves over images gives."""
    return [(x.shape[2 + dim] + 2 * padding[dim] - window[dim]) // stride[dim] + 1 for dim in (0, 1)]


def _size_transposed(x, weight, stride, padding, more) -> list[int]:
    """Height and width of what a transposed convolution gives."""
    return [
        (x.shape[2 + dim] - 1) * stride[dim] - 2 * padding[dim] + weight.shape[2 + dim] + more[dim] for dim in (0, 1)
    ]


def _share(x: Tensor) -> float:
    """Which share of the values is not zero: a sample of the images tells."""
    count = max(LEAST_IMAGES, min(64, SAMPLE // x[0].numel()))
    sample = x.detach()[:: max(1, len(x) // count)]
    return torch.count_nonzero(sample).item() / sample.numel()


def _same_sums(kind, x, weight, bias, where, steps) -> bool:
    """Whether our forward gives to the bit what torch's gives of one step; kind: the operator."""
    shape = (len(x) // steps, *x.shape[1:])
    return _sums_as_torch(kind, shape, tuple(weight.shape), bias is None, where, torch.get_num_threads())


def _drawn(size, draw: torch.Generator, most: int = 65521) -> Tensor:
    """Random numbers, so many of them that differ: drawing takes longer than what is tried with them."""
    count = math.prod(size)
    some = torch.randn(min(count, most), generator=draw)
    return some.repeat(-(-count // most))[:count].view(size)


@functools.lru_cache
def _sums_as_torch(kind, shape, weight, without_bias, where, threads) -> bool:
    """Tried once for each shape: which of its kernels torch runs goes by that."""
    draw = torch.Generator().manual_seed(0)
    x, fired, weight = (_drawn(size, draw) for size in (shape, shape, weight))
    x = x * (fired > 1)
    outputs = weight.shape[0 if kind is ops.conv2d else 1]
    bias = None if without_bias else torch.randn(outputs, generator=draw)
    forward = _forward if kind is ops.conv2d else _transposed
    with torch.no_grad():
        return forward(x, weight, bias, *where, True).equal(forward(x, weight, bias, *where, False))


products.OURS.update(dict.fromkeys((F.conv2d, torch.conv2d), conv2d))
products.OURS.update(dict.fromkeys((F.conv_transpose2d, torch.conv_transpose2d), conv_transpose2d))
products.OURS.update(dict.fromkeys((F.max_pool2d, torch.max_pool2d), max_pool2d))
SAME = {
    **dict.fromkeys((F.conv2d, torch.conv2d), functools.partial(conv2d, steps=1)),
    **dict.fromkeys((F.conv_transpose2d, torch.conv_transpose2d), functools.partial(conv_transpose2d, steps=1)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), max_pool2d),
}
"""For functions of torch those that give what torch gives to the bit, gradients to rounding."""
