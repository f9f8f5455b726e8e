"""Linear layers behind spikes: `torch.nn.functional.linear` at the cost of what is not zero.

On the CPU, a layer whose float32 input is mostly zeros, such as a neuron's or an encoder's spikes, multiplies only what
is not, forward and for the gradient of its weights. A CPU with AMX multiplies spikes on its matrix unit instead where
that is faster: in three bfloat16 parts, and once they have been seen to err no more than torch. A sample of the input's
rows decides; where neither is faster, sizes are small, or numbers are infinite or NaN, the product is torch's own. Sums
are in another order than torch's, and err no more. `Unroll`, loops that are recorded or compiled, and Norse's recurrent
layers compute with them. A recorded loop's spikes are to be the loop's to the bit: there they multiply in the order in
which torch adds, where that can be seen, and torch multiplies where it cannot.

`SNNFAST_SPIKE_PRODUCTS=torch` in the environment, or `snnfast.products.choose("torch")`, leaves all products to torch;
WAYS has what else there is.
"""

import os
import warnings
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import _ext, _torch, ops, parts, transforms
from .functional import is_exported

WAYS = ("auto", "events", "parts", "torch")
"""What `choose` takes."""

_VARIABLE = "SNNFAST_SPIKE_PRODUCTS"
_LEAST = 1 << 21
_WIDE = 2048  # of fewer outputs the passes over input and weights would take as long as the products, by their bytes
_MOST_TO_SEE = 1 << 30
_HUGE = 2.0**60
_NO_UNIT, _AMX = 0, 1
_way = "auto"


def chosen() -> str:
    """The way that was chosen, one of WAYS."""
    return _way


def choose(way: str) -> None:
    """Computes all further products so, in this process.

    Args:
        way: "auto": on the CPU, the fastest way for what is seen of the input; on a GPU, torch's own product.
            "events": the same, without the CPU's matrix unit (AMX).
            "parts": as "auto", and on a GPU layers of 2048 outputs and more multiply three bfloat16 parts on the tensor
            cores, with float32's accuracy. All of those must be behind spikes that are 0 or one height for each neuron:
            another input is a RuntimeError. Where torch may compute float32 products in TF32, it does. Not measured so
            far; `benchmarks/gpu.sh` does.
            "torch": always torch's own product.

    Raises:
        ValueError: `way` is none of WAYS.

    Examples:
        >>> snn.products.choose("torch")
        >>> snn.products.chosen()
        'torch'
        >>> snn.products.choose("auto")
    """
    global _way
    if way not in WAYS:
        raise ValueError(f"way must be one of {', '.join(WAYS)}; got {way!r}")
    _way = way
    if way in ("events", "torch"):
        _ext.native.use_unit(_NO_UNIT)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., in], weight [out, in], bias [out] or None to [..., out]."""
    return _ours(x, weight, bias) if are_ours(x, weight, bias) else F.linear(x, weight, bias)


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight`, weight [in, out]."""
    return _ours(x, weight.T, None) if are_ours(x, weight.T, None) else x @ weight


def torchs(target):
    """What torch has for `linear` and `matmul`; another function itself."""
    return _TORCHS.get(target, target)


def factors(target, args: tuple, kwargs: dict) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What a call of `linear` or `matmul` takes as `linear` takes it, where snnfast computes that; else None."""
    if target not in _TORCHS:
        return None
    x, weight, *bias = (*args, *kwargs.values())
    given = (x, weight.T, None) if target is matmul else (x, weight, bias[0] if bias else None)
    return given if are_ours(*given) else None


def with_values(values: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product that is known, from elsewhere, with the gradients of `linear`; of factors that `are_ours`."""
    return _ours(x, weight, bias, values)


def as_torch_adds(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor | None:
    """The values of a product of factors that `are_ours`, at the cost of what is not zero, its terms added in the order
    of torch's product of so many rows; None where that order is not known, or torch's product as fast."""
    ends = order(rows, *reversed(weight.shape), torch.get_num_threads()) if x.device.type == "cpu" else None
    if ends is None:
        return None
    x, weight, bias = (one if one is None else one.detach() for one in (x, weight, bias))
    return next(iter(ops.spikes.spike_linear_in_order(x, weight, bias, ends)), None)


@lru_cache(1024)
def order(rows: int, inputs: int, outputs: int, threads: int) -> tuple[int, ...] | None:
    """How torch, with so many threads, adds up the terms of x [rows, inputs] @ weight.T: one after another in each run
    of inputs, and then the runs' sums. Where the runs end; None if it is otherwise, or if to see it would take long.

    It is seen in sums of ones, with a huge number and its negative in the place of two neighbours: those swallow what
    has been added before them in their run, and no more. Every output has them elsewhere (after FPRev,
    arXiv:2411.00442). A run of one input is not seen: who uses the order compares a product with torch's.
    """
    if inputs < 2 or rows * inputs * outputs > _MOST_TO_SEE:
        return None
    # Modes of torch's functions, such as a recorder or a default device, have no part in it.
    with _torch.unwatched(), torch.no_grad():
        first = torch.arange(outputs) * (inputs - 2) // max(1, outputs - 1)
        weight = torch.ones(outputs, inputs, dtype=torch.float32)
        weight.scatter_(1, first[:, None], _HUGE).scatter_(1, first[:, None] + 1, -_HUGE)
        sums = F.linear(torch.ones(rows, inputs, dtype=torch.float32), weight)
        begins = sorted({0, *(begin for begin in (first + 2 - inputs + sums[0].long()).tolist() if 0 < begin < inputs)})
        ends = torch.tensor([*begins[1:], inputs])
        run, of_second = (torch.searchsorted(ends, place, right=True) for place in (first, first + 1))
        # In two runs the second swallows its own run, and the first all before.
        left = torch.where(run == of_second, inputs - 2 - first + torch.tensor(begins)[run], inputs - ends[of_second])
        return tuple(ends.tolist()) if sums.eq(left).all() else None


def _ours(x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor | None = None) -> Tensor:
    if x.device.type == "cuda":
        return parts.linear(x, weight, bias, values)
    if _way in ("auto", "parts") and _amx_is_right():
        _ext.native.use_unit(_AMX)
    return ops.spike_linear(x, weight, bias, values)


def are_ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether snnfast computes the product, which may still find that torch's is the faster."""
    given = (x, weight) if bias is None else (x, weight, bias)
    device = x.device
    if _way == "torch" or not (device.type == "cpu" or (_way == "parts" and device.type == "cuda")):
        return False
    if is_exported() or transforms.at_work() or torch.compiler.is_compiling():
        return False
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in given):
        return False
    if any(tensor.device != device or tensor.dtype != torch.float32 for tensor in given):
        return False
    if x.dim() < 2 or weight.dim() != 2 or weight.shape[1] != x.shape[-1] or torch.is_autocast_enabled(device.type):
        return False
    if not (bias is None or bias.shape == weight.shape[:1]) or x.numel() * weight.shape[0] < _LEAST:
        return False
    return device.type == "cpu" or _are_for_tensor_cores(weight)


def _are_for_tensor_cores(weight: Tensor) -> bool:
    """Whether a GPU multiplies in parts: wide layers, unless the user has allowed TF32, which is faster."""
    return len(weight) >= _WIDE and torch.backends.cuda.matmul.fp32_precision != "tf32"


@cache
def _amx_is_right() -> bool:
    """Whether this CPU has AMX, and products on it err no more than torch's; if they do, a warning says so, once."""
    if not _ext.native.has_amx():
        return False
    if _unit_is_right(_AMX):
        return True
    warnings.warn(
        "snnfast: this CPU's matrix unit (AMX) errs more than float32 may in a product that was tried, and is not used",
        stacklevel=2,
    )
    return False


def _unit_is_right(unit: int) -> bool:
    """Whether a product and a gradient by the unit err at most 1.5 of what torch's do, on random numbers."""
    draw = torch.Generator().manual_seed(0)
    # Modes of torch's functions, such as a recorder, have no part in it.
    with _torch.unwatched(), torch.no_grad():
        x = (torch.rand(300, 1100, generator=draw) < 0.2).to(torch.float32)
        weight, grad = (torch.randn(*sizes, generator=draw, dtype=torch.float32) for sizes in ((72, 1100), (300, 72)))
        _ext.native.force_unit(unit)
        try:
            ours = ops.spike_linear(x, weight), ops.spikes.grad_weight(grad, x)
        finally:
            _ext.native.force_unit(_NO_UNIT)
        for found, left, right in zip(ours, (x, grad.T), (weight.T, x), strict=True):
            exact = left.double() @ right.double()
            off, allowed = ((each.double() - exact).norm() for each in (found, left @ right))
            if not off <= 1.5 * allowed:
                return False
    return True


_TORCHS = {linear: F.linear, matmul: torch.matmul}


OURS = {F.linear: linear}
"""For functions of torch those that compute the same of layers behind spikes; `snnfast.images` adds its own."""


class BehindSpikes(TorchFunctionMode):
    """Within it, layers behind spikes are computed by OURS, wherever in a module they stand."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (OURS.get(func, func) if args else func)(*args, **kwargs or {})


choose(os.environ.get(_VARIABLE) or "auto")
