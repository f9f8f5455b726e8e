"""Spiking layers as `torch.nn.Module`s with snnTorch's constructor arguments, buffers and state_dict keys."""

from torch import Tensor, nn

from .alif import ALIF
from .alpha import Alpha
from .base import SpikingNeuron, snntorch
from .lapicque import Lapicque
from .leaky import Leaky
from .recurrent import RecurrentOneToOne, RLeaky, RSynaptic
from .synaptic import Synaptic

LAYERS = (Leaky, Synaptic, RLeaky, RSynaptic, Lapicque, Alpha, ALIF)

# snnTorch's class is a base of the layer that takes its place; a layer without such a base takes nothing's.
FUSED = {base: layer for layer in LAYERS for base in layer.__bases__ if base.__module__.startswith("snntorch.")}

__all__ = [
    *(layer.__name__ for layer in LAYERS),
    "LAYERS",
    "RecurrentOneToOne",
    "SpikingNeuron",
    "fused_class",
    "state_names",
]


def fused_class(module) -> type[SpikingNeuron] | None:
    """The layer that takes the place of snnTorch's own one, which is no subclass of it; None for any other module."""
    return FUSED.get(type(module))


def state_names(module: nn.Module) -> tuple[str, ...]:
    """Attributes that hold the hidden state of a spiking layer, snnTorch's own included; none of another module."""
    if isinstance(module, SpikingNeuron):
        return module.state_names
    if snntorch is None or not isinstance(module, snntorch.SpikingNeuron):
        return ()
    named = ("spk", "syn_exc", "syn_inh", "syn", "mem")
    return tuple(name for name in named if isinstance(getattr(module, name, None), Tensor))
