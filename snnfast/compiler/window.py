"""How many steps run at once."""

import math

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from . import graph as g
from .chains import Chain

SMALL = 1 << 16
"""Bytes of currents, over all layers and steps, that are not worth a second call."""

IN_CACHE = 16 << 20
"""Bytes of currents of one window that a CPU's cache holds together with what is computed from them."""

SHARE = 6
"""A window of one in so many steps costs less memory than a loop spends besides what it keeps for backward."""


def choose_window(graph: Graph, chains: list[Chain]) -> tuple[int, str]:
    """Steps that run as one call, the same for all layers so that their windows meet; and why so many.

    A window's currents and their gradients exist beside all that is kept for backward, where the loop has those of one
    step, but also the gradients of its weights twice, as it adds one step's to the others'. Measured, windows of these
    sizes stay below the loop.
    """
    steps = max(len(chain.steps) for chain in chains)
    together = sum(map(_bytes, chains))
    currents = f"the currents of all {steps} steps take {_size(together)}"
    if together <= SMALL:
        return steps, f"{currents}, and up to {_size(SMALL)} run as one"
    weights = sum(tensor.nbytes for node in graph.nodes if node.op == "placeholder" for tensor in _learned(node))
    device = g.value(chains[0].steps[0].args[0]).device
    most = min(max(together / SHARE, 2 * weights), _limit(device))
    windows = max(2, math.ceil(together / most))
    window = -(-steps // min(windows, max(1, steps // 2)))
    holds = f"a {SHARE}th of that, or twice the {_size(weights)} of weights, up to {_size(_limit(device))}"
    return window, f"{currents}, and a window is to hold {_size(most)} ({holds})"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _learned(node: Node) -> list[Tensor]:
    return [tensor for tensor in g.tensors(node) if isinstance(tensor, nn.Parameter) and tensor.requires_grad]


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
