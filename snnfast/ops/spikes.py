"""What is no neuron's: products with spikes, images, encoders, bits. Each operator is written as its fake kernel."""

from functools import wraps

import torch
from torch import Tensor

from .. import transforms
from . import calls


def _operator(counted: int | None = None):
    """Makes a function that gives an operator's results without values its fake kernel, and the function its call.

    counted: which argument says how many steps of the first the results have.
    """

    def decorate(kernel):
        name = kernel.__name__.lstrip("_")
        calls.fake(name)(kernel)

        @wraps(kernel)
        def call(*arguments):
            return calls.call(name, *arguments, steps=None if counted is None else arguments[counted])

        return call

    return decorate


@_operator()
def _spike_linear(spk, weight, bias):
    """spk [..., in] @ weight.T [in, out] + bias [out], at the cost of what is not zero."""
    return spk.new_empty(*spk.shape[:-1], len(weight))


@_operator()
def spike_linear_in_order(spk: Tensor, weight: Tensor, bias: Tensor | None, ends: tuple) -> list[Tensor]:
    """The same, its terms added one after another up to each of the inputs `ends`, the sums of these runs to the bias;
    nothing where that would not be the fastest."""
    return [spk.new_empty(*spk.shape[:-1], len(weight))]


@_operator()
def _spike_linear_grad(grad, spk):
    return grad.new_empty(grad.shape[-1], spk.shape[-1])


@_operator()
def _spike_linear_grad_spk(grad, weight):
    return grad.new_empty(*grad.shape[:-1], weight.shape[1])


def grad_weight(grad: Tensor, spk: Tensor) -> Tensor:
    """dL/dweight [out, in] of spk [..., in] and dL/doutput [..., out]."""
    if spk.device.type == "cpu" and not transforms.functional() and not transforms.any_batched((grad,), legacy=True):
        return _spike_linear_grad(grad, spk)
    return torch.atleast_2d(grad).flatten(0, -2).T @ torch.atleast_2d(spk).flatten(0, -2)


def spike_linear(spk: Tensor, weight: Tensor, bias: Tensor | None = None, values: Tensor | None = None) -> Tensor:
    """spk [..., in] @ weight.T [in, out] + bias [out] on a CPU, at the cost of what is not zero.

    values: what the product is taken to be, where that is known; gradients are the product's all the same.
    """
    tensors = (spk, weight) if bias is None else (spk, weight, bias)
    if transforms.differentiated(tensors):
        return _SpikeLinear.apply(spk, weight, bias, values)
    return _spike_linear(spk, weight, bias) if values is None else values


class _SpikeLinear(torch.autograd.Function):
    """As `torch.nn.functional.linear`; what is differentiated again are products that autograd knows."""

    @staticmethod
    def forward(ctx, spk, weight, bias, values):
        ctx.save_for_backward(spk if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return _spike_linear(spk, weight, bias) if values is None else values

    @staticmethod
    def backward(ctx, grad):
        spk, weight = ctx.saved_tensors
        by_torch = torch.is_grad_enabled() or transforms.functional() or transforms.any_batched((grad,), legacy=True)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_spk = None
        if weight is not None:
            grad_spk = grad @ weight if by_torch else _spike_linear_grad_spk(grad, weight)
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        if spk is None:
            return grad_spk, None, grad_bias, None
        if by_torch:
            return grad_spk, rows.T @ spk.reshape(-1, spk.shape[-1]), grad_bias, None
        return grad_spk, _spike_linear_grad(grad, spk), grad_bias, None


@_operator()
def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
    """x [B, C, H, W], weight [outputs, C, rows, columns]: `torch.conv2d`, at the cost of what of x is not zero."""
    return x.new_empty((len(x), len(weight), *_window_places(x.shape, weight.shape[2:], stride, padding)))


@_operator()
def conv2d_grad_weight(grad: Tensor, x: Tensor, weight: tuple, stride: tuple, padding: tuple, by_grad: bool) -> Tensor:
    """dL/dweight, of this shape, at the cost of what of x is not zero, or `by_grad` of what of dL/doutput is not."""
    return x.new_empty(weight)


@_operator()
def conv2d_grad_input(grad: Tensor, weight: Tensor, x: tuple, stride: tuple, padding: tuple) -> Tensor:
    """dL/dx, of this shape, at the cost of what of dL/doutput is not zero."""
    return grad.new_empty(x)


@_operator()
def conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, size: tuple, stride: tuple, padding: tuple
) -> Tensor:
    """x [B, C, H, W], weight [C, outputs, rows, columns]: `torch.conv_transpose2d` that gives images of this height and
    width, at the cost of what of x is not zero."""
    return x.new_empty((len(x), weight.shape[1], *size))


@_operator()
def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> list[Tensor]:
    """Every step of x [T, B, C, ...] normalised by its own samples; and of each, [T, C]: means, 1 / deviations, sums of
    squares about the means."""
    of_steps = len(x), x.shape[2]
    return [torch.empty_like(x, memory_format=torch.contiguous_format), *(x.new_empty(of_steps) for _ in range(3))]


@_operator()
def max_pool2d(x: Tensor, size: tuple, stride: tuple, padding: tuple) -> list[Tensor]:
    """The largest values of windows over x [B, C, H, W], and which of its taps each is, counted by rows: uint8."""
    shape = (*x.shape[:2], *_window_places(x.shape, size, stride, padding))
    return [x.new_empty(shape), x.new_empty(shape, dtype=torch.uint8)]


@_operator()
def max_pool2d_grad(grad: Tensor, taps: Tensor, x: tuple, size: tuple, stride: tuple, padding: tuple) -> Tensor:
    """dL/dx, of this shape."""
    return grad.new_empty(x)


def _window_places(x: tuple, window: tuple, stride: tuple, padding: tuple) -> list[int]:
    return [(x[2 + dim] + 2 * padding[dim] - window[dim]) // stride[dim] + 1 for dim in (0, 1)]


@_operator(counted=2)
def encode_rate(x, seed, steps, silent, gain, offset, dtype) -> Tensor:
    """Random spikes of x [...] for so many `steps`, or of x [T, ...] where they are None; seed: int64 []."""
    return x.new_empty((silent + x.shape[0], *x.shape[1:]) if steps is None else (steps, *x.shape), dtype=dtype)


@_operator(counted=1)
def encode_latency(times, steps, ramp, on, off, dtype) -> Tensor:
    """`on` at the whole `times` [...] of `steps`, elsewhere `off`, or with `ramp` a line up to them."""
    return times.new_empty((steps, *times.shape), dtype=dtype)


@_operator()
def encode_delta(x, threshold, padding, off_spike, dtype) -> Tensor:
    """Spikes at the rises, and with `off_spike` the falls, of x [T, ...]."""
    return x.new_empty(x.shape, dtype=dtype)


@_operator()
def pack_spikes(spk: Tensor) -> Tensor:
    """A bit of each value of spk [...], 1 where it is not 0: uint8, eight values a byte, in row-major order."""
    return spk.new_empty(((spk.numel() + 7) // 8,), dtype=torch.uint8)


@_operator()
def unpack_spikes(bits: Tensor, height: Tensor, shape: tuple) -> Tensor:
    """Spikes of this shape, in height's dtype: `height`, laid out over the trailing dimensions, for a bit, else 0."""
    return height.new_empty(shape)
