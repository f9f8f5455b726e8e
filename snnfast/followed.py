"""`Unroll` while somebody follows tensors from module to module: as a loop over steps calls its layers."""

import contextlib

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .neurons import SpikingNeuron

_CALL = nn.Module.__call__


def applies() -> bool:
    """Whether somebody has replaced `nn.Module.__call__`, as nirtorch does for `snntorch.export_nir`."""
    return nn.Module.__call__ is not _CALL


def run(layers: list[nn.Module], x: Tensor):
    """As a loop over steps calls the layers: each with what the one before it returned, the last giving [1, B, ...]."""
    for layer in layers:
        if isinstance(layer, SpikingNeuron) and not layer.init_hidden:
            layer.reset_state()
    *inner, last = layers
    outputs = []
    with _giving_time(last):
        for step in x.unbind(0):
            for layer in inner:
                step = _spikes_of(layer, layer(step))
            output = last(step)
            wanted = isinstance(last, SpikingNeuron) and last.output
            outputs.append(output if wanted else (_spikes_of(last, output),))
    sequences = tuple(map(torch.cat, zip(*outputs, strict=True)))
    return sequences if len(sequences) > 1 else sequences[0]


def _spikes_of(layer: nn.Module, output):
    return output[0] if isinstance(layer, SpikingNeuron) and isinstance(output, tuple) else output


@contextlib.contextmanager
def _giving_time(layer: nn.Module):
    """Within it, what the layer returns has a time dimension, as the network's own input and output."""
    forward, own = layer.forward, "forward" in vars(layer)
    layer.forward = lambda step: tree_map(lambda tensor: tensor.unsqueeze(0), forward(step))
    try:
        yield
    finally:
        if own:
            layer.forward = forward
        else:
            del layer.forward
