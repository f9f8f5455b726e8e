"""One line for a model that was written for snnTorch, and what came of it."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from ..convert import convert
from ..neurons import SpikingNeuron
from ..neurons.leaky import is_snntorch_leaky
from .backend import backend, listening, make_options


def accelerate(
    net: nn.Module, *, window: int | None = None, products: str = "batched", inner: str | Callable | None = None
) -> nn.Module:
    """Makes a network run fused over time, in place: `convert`, then `torch.compile` with this backend.

    The module object, its parameters and its state_dict stay as they are. The first call of a shape compiles; the loop
    over time must be inside the module's `forward`.

    Args:
        net: a module whose forward loops over time steps.
        window: steps that run as one call; None: chosen from the sizes and the device.
        products: "batched": matrix products of all steps of a window are one product, whose sum may round otherwise
            than that of small ones; "per-step": only what is exact is batched, results and gradients of input and weights equal the
            loop's to the bit.
        inner: another torch.compile backend (such as "inductor") that compiles the fused graph in turn.

    Returns:
        `net`.

    Raises:
        TypeError, ValueError: `net` is no module, or an option has a wrong value.
    """
    options = {"window": window, "products": products, "inner": inner}
    make_options(**options)
    convert(net)
    net.compile(backend=backend, options=options)
    return net


class Explanation:
    """The layers of a network, graph by graph; printing it says what was fused, and why the rest was not."""

    def __init__(self, graphs: list, unseen: dict[str, str]):
        self.graphs, self.unseen = graphs, unseen

    @property
    def layers(self) -> list:
        """`LayerReport`s: layer, steps, calls, reasons, fused."""
        return [layer for graph in self.graphs for layer in graph]

    def __str__(self):
        lines = [str(layer) for layer in self.layers]
        lines += [f"{name}: not fused\n    {reason}" for name, reason in self.unseen.items()]
        if len(self.graphs) > 1:
            lines.append(
                f"torch.compile broke the forward into {len(self.graphs)} graphs; steps in different ones stay apart"
            )
        return "\n".join(lines) or "no spiking layer ran"


def explain(net: Callable, *inputs, **options) -> Explanation:
    """Runs a copy of `net` once and reports for each spiking layer whether it was fused over time, and why not.

    Args:
        net: a module or function as it is given to `torch.compile`, `accelerate`d or not. Neither its state nor the
            random generator of the CPU is touched.
        inputs: what it is called with.
        options: as in `accelerate`.

    Returns:
        An `Explanation`, to be printed.
    """
    make_options(**options)
    one = copy.deepcopy(net) if isinstance(net, nn.Module) else net
    with listening() as graphs, torch.random.fork_rng(devices=[]):
        function = one.forward if isinstance(one, nn.Module) else one
        torch.compile(function, backend=backend, options=options)(*inputs)
    seen = {layer.layer for graph in graphs for layer in graph}
    return Explanation([graph for graph in graphs if graph], _unseen(one, seen))


def _unseen(net, seen: set[str]) -> dict[str, str]:
    if not isinstance(net, nn.Module):
        return {}
    unseen = {}
    for name, module in net.named_modules():
        if is_snntorch_leaky(module):
            unseen[name] = "it is snnTorch's own; see snnfast.convert"
        elif isinstance(module, SpikingNeuron) and name not in seen:
            unseen[name] = _why_unseen(module)
        elif not isinstance(module, SpikingNeuron) and hasattr(module, "reset_mem"):
            unseen[name] = f"{type(module).__name__} is not among snnfast's neurons"
    return unseen


def _why_unseen(layer: SpikingNeuron) -> str:
    if layer.state_quant:
        return "state_quant is not fused"
    if layer.inhibition:
        return "inhibition is not fused"
    if layer._surrogate_key is None:
        return "its spike_grad has no name that the kernels know"
    return "it did not run"
