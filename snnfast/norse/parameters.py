"""Parameters and states of Norse's neurons."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import surrogate

METHODS = {
    "super": lambda alpha: surrogate.fast_sigmoid(1.0),
    "heaviside": lambda alpha: surrogate.disabled(),
    "triangle": surrogate.triangle,
    "tanh": surrogate.tanh,
    "circ": surrogate.circ,
    "heavi_erfc": surrogate.erfc,
}


class LIFParameters(NamedTuple):
    """Parameters of LIF neurons: numbers, or tensors that broadcast over one step [B, ...].

    Attributes:
        tau_syn_inv: inverse time constant of the synaptic current.
        tau_mem_inv: inverse time constant of the membrane.
        v_leak: leak potential.
        v_th: threshold.
        v_reset: reset potential.
        method: surrogate gradient of a spike: "super" (of slope 1, as Norse 1.1.0 leaves alpha out of it), "heaviside"
            (none), "triangle", "tanh", "circ" or "heavi_erfc".
        alpha: parameter of the surrogate, one number.

    Examples:
        >>> norse.LIFParameters(v_th=torch.tensor(0.5)).method
        'super'
    """

    tau_syn_inv: Tensor = torch.as_tensor(1.0 / 5e-3)
    tau_mem_inv: Tensor = torch.as_tensor(1.0 / 1e-2)
    v_leak: Tensor = torch.as_tensor(0.0)
    v_th: Tensor = torch.as_tensor(1.0)
    v_reset: Tensor = torch.as_tensor(0.0)
    method: str = "super"
    alpha: float = torch.as_tensor(100.0)


class LIParameters(NamedTuple):
    """Parameters of leaky integrators: the first three of `LIFParameters`.

    Examples:
        >>> norse.LIParameters().v_leak
        tensor(0.)
    """

    tau_syn_inv: Tensor = torch.as_tensor(1.0 / 5e-3)
    tau_mem_inv: Tensor = torch.as_tensor(1.0 / 1e-2)
    v_leak: Tensor = torch.as_tensor(0.0)


LIF_DEFAULTS, LI_DEFAULTS = LIFParameters(), LIParameters()


class LIFState(NamedTuple):
    """Spikes z, voltage v and synaptic current i of recurrent LIF neurons [B, ..., hidden].

    Examples:
        >>> _, state = norse.LIFRecurrentCell(4, 8)(torch.rand(16, 4))
        >>> state.z.shape
        torch.Size([16, 8])
    """

    z: Tensor
    v: Tensor
    i: Tensor


class LIFFeedForwardState(NamedTuple):
    """Voltage v and synaptic current i of LIF neurons [B, ...].

    Examples:
        >>> _, state = norse.LIFCell()(torch.rand(16, 4))
        >>> state.v.shape
        torch.Size([16, 4])
    """

    v: Tensor
    i: Tensor


class LIState(NamedTuple):
    """Voltage v and synaptic current i of leaky integrators [B, ...].

    Examples:
        >>> _, state = norse.LICell()(torch.rand(16, 4))
        >>> state.i.shape
        torch.Size([16, 4])
    """

    v: Tensor
    i: Tensor


def products_with_dt(p: tuple, dt: float) -> tuple:
    """mem_rate, syn_rate and the voltages, as the kernels take them: multiplied as Norse multiplies."""
    tau_syn_inv, tau_mem_inv, *voltages = p
    return dt * tau_mem_inv, dt * tau_syn_inv, *voltages


def checked(p, wanted: type):
    """Parameters of the wanted fields, each a real number or tensor; of LIF neurons, numbers become tensors."""
    if not all(hasattr(p, field) for field in wanted._fields):
        raise TypeError(
            f"p must have the fields of {wanted.__name__} ({', '.join(wanted._fields)}), got {type(p).__name__}"
        )
    values = {field: getattr(p, field) for field in wanted._fields}
    for field, value in values.items():
        if field == "method":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
            raise TypeError(f"p.{field} must be a number or a tensor, got {type(value).__name__}")
        if isinstance(value, Tensor) and (value.dtype == torch.bool or value.dtype.is_complex):
            raise TypeError(f"p.{field} must have a real dtype, got {value.dtype}")
        if wanted is LIFParameters:
            values[field] = torch.as_tensor(value)
    return wanted(**values)


def surrogate_of(p) -> surrogate.Surrogate:
    if p.method not in METHODS:
        raise ValueError(f"p.method must be one of {', '.join(METHODS)}; got {p.method!r}")
    alpha = torch.as_tensor(p.alpha)
    if alpha.numel() != 1:
        raise ValueError(f"p.alpha must be one number, got a tensor of shape {tuple(alpha.shape)}")
    return METHODS[p.method](float(alpha.detach()))
