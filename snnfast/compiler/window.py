"""How many steps run at once."""

import torch

from . import graph as g
from .chains import Chain

SMALL = 1 << 20
"""Bytes of currents, over all layers and steps, that are not worth a second call."""

IN_CACHE = 16 << 20
"""Bytes of currents of one window that a CPU's cache holds together with what is computed from them."""


def choose_window(chains: list[Chain]) -> int:
    """Steps that run as one call, the same for all layers so that their windows meet.

    A window's currents and their gradients exist beside all that the loop keeps for its backward. Half of the steps at
    once, at most, keeps the whole below what the loop needs.
    """
    steps = max(len(chain.steps) for chain in chains)
    together = sum(map(_bytes, chains))
    device = g.value(chains[0].steps[0].args[0]).device
    windows = 1 if together <= SMALL else max(2, -(-together // _limit(device)))
    return -(-steps // min(windows, max(1, steps // 2)))


def is_light(chain: Chain, chains: list[Chain]) -> bool:
    """Whether a layer is so small beside the others, as readouts are, that all of its steps may run as one call."""
    return 8 * _bytes(chain) <= sum(map(_bytes, chains))


def _limit(device: torch.device) -> int:
    """Bytes of currents in one window."""
    return IN_CACHE if device.type != "cuda" else torch.cuda.get_device_properties(device).total_memory // 16


def _bytes(chain: Chain) -> int:
    """The currents of all steps."""
    current = g.value(chain.steps[0].args[0])
    count = len(chain.steps) * current.element_size()
    for size in current.shape:
        count *= size if isinstance(size, int) else size.node.hint or 1
    return count
