"""Batch-norm in training over the steps of a loop: each is normalised by its own samples, as in the loop to the bit,
and all go into one tensor."""

import functools

import torch
from torch import Tensor

from . import ops, transforms

_aten = torch.ops.aten

ENOUGH = 4096
"""Numbers that are compared with torch's before a kernel is trusted to give its bits."""


def over_time(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momenta: list[float],
    eps: float,
) -> Tensor:
    """`torch.nn.functional.batch_norm(..., training=True)` of every step, which `fits` allows.

    Args:
        x: [T, B, C, ...], or [1, B, C, ...] of an input that is the same at all steps.
        running_mean, running_var: [C], updated once a step, in turn; None: not kept.
        weight, bias: [C]; None: 1 and 0.
        momenta: of each step how much it counts in the running statistics.
        eps: what is added to the variance.

    Returns:
        [T, B, C, ...], or [1, B, C, ...].
    """
    return _BatchNorm.apply(x, weight, bias, running_mean, running_var, momenta, eps)


def fits(x: Tensor, *others: Tensor | None) -> bool:
    """Whether steps of x [T, B, C, ...] and the other arguments are what the kernels here give the loop's bits of."""
    if transforms.at_work() or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    if x.dim() < 3 or x.numel() == 0 or not x[0].is_contiguous():
        return False
    return all(one is None or (one.dtype is x.dtype and one.is_contiguous()) for one in others)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momenta, eps):
        ours = x.dtype is torch.float32 and _is_torchs(
            x.shape[1:], weight is None, bias is None, torch.get_num_threads()
        )
        forward = _ours if ours else _torchs
        out, means, scales = forward(x, weight, bias, running_mean, running_var, momenta, eps)
        ctx.save_for_backward(x, weight, means, scales)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight, means, scales = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        plain = not (torch.is_grad_enabled() or transforms.any_batched((grad,), legacy=True))
        grad_x = ops.fresh(x.shape, x.dtype) if plain and wanted[0] and len(x) > 1 else None
        found = []
        for step, (one, lane, mean, scale) in enumerate(zip(grad, x, means, scales, strict=True)):
            # The kernel for contiguous images is several times as fast.
            options = None, None, mean, scale, True, ctx.eps, wanted
            of_x, *rest = _aten.native_batch_norm_backward(one.contiguous(), lane, weight, *options)
            found.append((None if grad_x is not None else of_x, *rest))
            if grad_x is not None:
                grad_x[step] = of_x
        of_steps, *shared = zip(*found, strict=True)
        if wanted[0] and grad_x is None:
            grad_x = torch.stack(of_steps) if len(x) > 1 else of_steps[0][None]
        # Last step first, as a loop adds them up.
        sums = [sum(one[-2::-1], one[-1]) if asked else None for one, asked in zip(shared, wanted[1:], strict=True)]
        return grad_x, *sums, None, None, None, None


def _ours(x, weight, bias, running_mean, running_var, momenta, eps) -> tuple[Tensor, Tensor, Tensor]:
    """What all steps give, their means and 1 / deviations [T, C]; the running statistics are written."""
    out, means, scales, squares = ops.batch_norm(x, weight, bias, eps)
    if running_mean is not None:
        # As by torch's operator, their versions say nothing of it: what saved them for backward does not read them.
        mean, variance = running_mean.data, running_var.data
        unbiased = squares / (x[0].numel() // x.shape[2] - 1)
        for step, momentum in enumerate(momenta):
            step, new = min(step, len(x) - 1), torch.tensor(momentum, dtype=x.dtype)
            mean.mul_(1 - new).add_(means[step] * new)
            variance.mul_(1 - new).add_(unbiased[step], alpha=momentum)
    return out, means, scales


def _torchs(x, weight, bias, running_mean, running_var, momenta, eps) -> tuple[Tensor, Tensor, Tensor]:
    """The same, step by step by torch's operator."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    means, scales = (x.new_empty(len(x), x.shape[2]) for _ in range(2))
    kept = weight, bias, running_mean, running_var
    for one, momentum, *into in zip(x, momenta, out, means, scales, strict=False):
        given = dict(zip(("out", "save_mean", "save_invstd"), into, strict=True))
        _aten.native_batch_norm.out(one, *kept, True, momentum, eps, **given)
    if running_mean is not None:
        for momentum in momenta[len(x) :]:
            _aten.batch_norm_update_stats(x[-1], running_mean, running_var, momentum)
    return out, means, scales


@functools.lru_cache
def _is_torchs(shape, without_weight, without_bias, threads) -> bool:
    """Whether ours gives torch's bits: tried once for each shape, as which of its kernels torch runs goes by that."""
    if shape[2:].numel() == 1:
        # Torch adds up features in another order, which of few samples is the same by chance.
        return False
    draw, steps = torch.Generator().manual_seed(0), -(-ENOUGH // shape.numel())
    x, channels = torch.randn(steps, *shape, generator=draw) + 1, torch.rand(4, shape[1], generator=draw)
    results = []
    for forward in (_ours, _torchs):
        weight, bias, *kept = channels.clone()
        learnt = None if without_weight else weight, None if without_bias else bias
        results.append([*forward(x, *learnt, *kept, [1 / 3, 0.1] * steps, 1e-5), *kept])
    return all(map(torch.equal, *results))
