"""One line for a model that was written for snnTorch, and what came of it."""

import copy
import types
from collections.abc import Callable

import torch
from torch import nn

from ..convert import convert
from ..neurons import SpikingNeuron, fused_class
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
            than that of small ones; "per-step": only what is exact is batched, so that results and gradients of input
            and weights equal the loop's to the bit; spikes that come back through weights do so step by step.
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
            pieces = len(self.graphs)
            lines.append(f"torch.compile broke the forward into {pieces} graphs; steps in different ones stay apart")
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
    net = getattr(net, "_orig_mod", net)
    one = _copy(net) if isinstance(net, nn.Module) else net
    with listening() as graphs, torch.random.fork_rng(devices=[]):
        torch.compile(one, backend=backend, options=options)(*inputs)
    graphs = [graph for graph in graphs if graph]
    seen = {layer.layer for graph in graphs for layer in graph}
    broken = len(graphs) > 1
    return Explanation(graphs, _unseen(one, seen, broken))


def _copy(net: nn.Module) -> nn.Module:
    """A copy whose forward Dynamo has not met: it never captures again what it once gave up."""
    copied = copy.deepcopy(net)
    forward = copied.forward
    if isinstance(forward, types.MethodType) and not forward.__module__.startswith("torch."):
        met = forward.__func__
        function = types.FunctionType(
            met.__code__.replace(), met.__globals__, met.__name__, met.__defaults__, met.__closure__
        )
        function.__kwdefaults__ = met.__kwdefaults__
        copied.forward = types.MethodType(function, copied)
    return copied


def _unseen(net, seen: set[str], broken: bool) -> dict[str, str]:
    if not isinstance(net, nn.Module):
        return {}
    unseen = {}
    for name, module in net.named_modules():
        if fused_class(module) is not None:
            unseen[name] = "it is snnTorch's own; see snnfast.convert"
        elif isinstance(module, SpikingNeuron) and name not in seen:
            unseen[name] = _why_unseen(module, broken)
        elif not isinstance(module, SpikingNeuron) and hasattr(module, "reset_mem"):
            unseen[name] = f"{type(module).__name__} is not among snnfast's neurons"
    return unseen


def _why_unseen(layer: SpikingNeuron, broken: bool) -> str:
    if layer.state_quant:
        return "state_quant is not fused"
    if layer.inhibition:
        return "inhibition is not fused"
    if layer._surrogate_key is None:
        return "its spike_grad has no name that the kernels know"
    return "its steps are in different graphs, if it ran" if broken else "it did not run"
