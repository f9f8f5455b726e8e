"""How many steps run at once."""

import torch
from torch import Tensor

from . import graph as g
from .chains import Chain

CPU_BYTES = 16 << 20
"""Currents of so many bytes, all layers together, fit into the cache with what is computed from them."""


def choose_window(chains: list[Chain]) -> int:
    """Steps per sequence call, the same for all layers so that their windows meet."""
    longest = max(len(chain.steps) for chain in chains)
    currents = [g.value(chain.steps[0].args[0]) for chain in chains]
    per_step = sum(_size(current) for current in currents)
    limit = _limit(currents[0].device)
    windows = -(-longest * per_step // limit) if per_step else 1
    return -(-longest // max(1, min(windows, longest // 2)))


def _limit(device: torch.device) -> int:
    return CPU_BYTES if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory // 16


def _size(current: Tensor) -> int:
    sizes = [size if isinstance(size, int) else size.node.hint or 1 for size in current.shape]
    count = current.element_size()
    for size in sizes:
        count *= size
    return count
