"""Spiking layers as `torch.nn.Module`s with snnTorch's constructor arguments, buffers and state_dict keys."""

from .base import SpikingNeuron
from .leaky import Leaky

__all__ = ["Leaky", "SpikingNeuron"]
