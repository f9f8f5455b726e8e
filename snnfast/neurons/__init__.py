"""Spiking layers as `torch.nn.Module`s with snnTorch's constructor arguments, buffers and state_dict keys."""

from .alpha import Alpha
from .base import SpikingNeuron, snntorch_class
from .lapicque import Lapicque
from .leaky import Leaky
from .recurrent import RLeaky, RSynaptic
from .synaptic import Synaptic

LAYERS = (Leaky, Synaptic, RLeaky, RSynaptic, Lapicque, Alpha)

__all__ = [*(layer.__name__ for layer in LAYERS), "LAYERS", "SpikingNeuron", "fused_class"]


def fused_class(module) -> type[SpikingNeuron] | None:
    """The layer that takes the place of snnTorch's own one, which is no subclass of it; None for any other module."""
    return next((layer for layer in LAYERS if type(module) in snntorch_class(layer.__name__)), None)
