"""What a call's arguments must be: each check raises what names the argument, the rule and what was given."""

from typing import Any

import torch
from torch import Tensor

from .ops import Recurrence
from .reference import Model

RESET_MECHANISMS = ("subtract", "zero", "none")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_reset_mechanism(reset_mechanism: str) -> None:
    """Raises ValueError for an unknown reset mechanism."""
    if reset_mechanism not in RESET_MECHANISMS:
        raise ValueError(f"reset_mechanism must be one of {', '.join(RESET_MECHANISMS)}; got {reset_mechanism!r}")


def _check_strided(name: str, value: Any, wanted: str = "a tensor", cure: str = "") -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {value.layout}{cure}")


def check_current(x: Tensor, unroll: bool) -> Tensor:
    """A current the kernels can read: dense, floating; integers become torch's default dtype."""
    _check_strided("x", x, cure="; use x.to_dense()")
    if x.dtype not in FLOATS:
        if x.dtype == torch.bool or x.dtype.is_floating_point or x.dtype.is_complex or x.is_quantized:
            raise TypeError(f"x must have dtype float32, float64, float16 or bfloat16, got {x.dtype}")
        x = x.to(torch.get_default_dtype())
    if unroll and x.dim() == 0:
        raise ValueError("x must have a time dimension [T, B, ...], got a tensor of 0 dimensions")
    return x


def check_count(name: str, value: Any) -> int:
    """A number of steps: an int from 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, got {value}")
    return value


def check_data(name: str, value: Any) -> None:
    """What an encoder can read: a dense tensor of any real dtype."""
    _check_strided(name, value)
    if value.dtype.is_complex or value.is_quantized:
        raise TypeError(f"{name} must have a real dtype, got {value.dtype}")


def check_states(model: Model, states: tuple, x: Tensor, shape: torch.Size) -> None:
    """Initial states fit one step of the current, in shape and device."""
    for name, state in zip(model.states, states, strict=True):
        if state is not None:
            check_fits(name, state, x, shape)


def check_fits(name: str, tensor: Tensor, x: Tensor, shape: torch.Size) -> None:
    """A state or second current that goes with x: its device, this shape."""
    _check_strided(name, tensor, wanted="a tensor or None")
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must have dtype float32, float64, float16 or bfloat16, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on {x.device} as x is, got {tensor.device}")


def check_recurrence(recurrence: Recurrence, x: Tensor) -> None:
    """All-to-all recurrence fits a current [T, ..., N]."""
    if x.dim() < 2:
        raise ValueError(f"x must have a time and a neuron dimension [T, ..., N], got {tuple(x.shape)}")
    neurons, weight = x.shape[-1], recurrence.weight
    if weight.shape != (neurons, neurons):
        raise ValueError(f"the recurrent layer's weights {tuple(weight.shape)} do not fit {neurons} neurons")
    if recurrence.spk is not None:
        check_fits("spk", recurrence.spk, x, x.shape[1:])


def as_parameters(model: Model, params: tuple, x: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """The neuron's parameters, each as `as_parameter` makes it."""
    return tuple(as_parameter(name, param, x, shape) for name, param in zip(model.params, params, strict=True))


def as_parameter(name: str, value: Any, x: Tensor, shape: torch.Size) -> Tensor:
    """A parameter as a tensor on x's device that broadcasts over one step's shape."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
        return torch.full((), value, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    _check_strided(name, value)
    if value.dtype.is_complex or value.dtype == torch.bool or value.is_quantized:
        raise TypeError(f"{name} must have a real dtype, got {value.dtype}")
    if value.device != x.device:
        if value.dim() > 0:
            raise ValueError(f"{name} must be on {x.device} as x is, got {value.device}")
        value = value.to(x.device)
    if value.numel() == 1 and value.dim() > len(shape):
        return value.reshape(())
    if value.numel() != 1 and not _broadcasts(value.shape, shape):
        raise ValueError(f"{name} must broadcast over one step's shape {tuple(shape)}, got shape {tuple(value.shape)}")
    return value


def _broadcasts(param: torch.Size, shape: torch.Size) -> bool:
    if len(param) > len(shape):
        return False
    pairs = zip(reversed(param), reversed(shape), strict=False)
    return all(size in (1, wanted) for size, wanted in pairs)
