"""Spiking layers as `torch.nn.Module`s with snnTorch's constructor arguments, buffers and state_dict keys."""

from .base import SpikingNeuron, snntorch_class
from .leaky import Leaky
from .synaptic import Synaptic

LAYERS = (Leaky, Synaptic)

__all__ = ["LAYERS", "Leaky", "SpikingNeuron", "Synaptic", "fused_class"]


def fused_class(module) -> type[SpikingNeuron] | None:
    """The layer that takes the place of snnTorch's own one, which is no subclass of it; None for any other module."""
    return next((layer for layer in LAYERS if type(module) in snntorch_class(layer.__name__)), None)
