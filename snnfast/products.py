"""Linear layers behind spikes on the CPU: `torch.nn.functional.linear` at the cost of what is not zero.

A layer whose float32 input is mostly zeros, such as a neuron's or an encoder's spikes, multiplies only what is not,
forward and for the gradient of its weights. A sample of the input's rows decides; where most is not zero, sizes are
small, or numbers are infinite or NaN, the product is torch's own. Sums are in another order than torch's, and err no
more. `Unroll`, loops that are recorded or compiled, and Norse's recurrent layers compute with them, but for what they
promise to be a loop's to the bit: a recorded loop has its spikes from torch's products, its gradients from these.

`SNNFAST_SPIKE_PRODUCTS=torch` in the environment, or `snnfast.products.choose("torch")`, leaves all products to torch.
"""

import os

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import ops, transforms
from .functional import is_exported

WAYS = ("auto", "torch")
"""What may be chosen: "auto": by what is seen of the input; "torch": always torch's own product."""

_VARIABLE = "SNNFAST_SPIKE_PRODUCTS"
_LEAST = 1 << 21
_way = "auto"


def chosen() -> str:
    """The way that was chosen, one of WAYS."""
    return _way


def choose(way: str) -> None:
    """Computes all further products so, in this process.

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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., in], weight [out, in], bias [out] or None to [..., out]."""
    return ops.spike_linear(x, weight, bias) if are_ours(x, weight, bias) else F.linear(x, weight, bias)


def matmul(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight`, weight [in, out]."""
    return ops.spike_linear(x, weight.T, None) if are_ours(x, weight.T, None) else x @ weight


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
    return ops.spike_linear(x, weight, bias, values)


def are_ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether snnfast computes the product, which may still find that torch's is the faster."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if _way == "torch" or is_exported() or transforms.at_work() or torch.compiler.is_compiling():
        return False
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in given):
        return False
    if any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in given):
        return False
    if x.dim() < 2 or weight.dim() != 2 or weight.shape[1] != x.shape[-1] or torch.is_autocast_enabled("cpu"):
        return False
    return (bias is None or bias.shape == weight.shape[:1]) and x.numel() * weight.shape[0] >= _LEAST


_TORCHS = {linear: F.linear, matmul: torch.matmul}


OURS = {F.linear: linear}
"""For functions of torch those that compute the same of layers behind spikes; `snnfast.images` adds its own."""


class BehindSpikes(TorchFunctionMode):
    """Within it, layers behind spikes are computed by OURS, wherever in a module they stand."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (OURS.get(func, func) if args else func)(*args, **kwargs or {})


choose(os.environ.get(_VARIABLE) or "auto")
