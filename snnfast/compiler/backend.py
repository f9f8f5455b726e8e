"""`torch.compile(net, backend="snnfast")`: a user's loop over time steps, run layer by layer over whole sequences."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch._dynamo.exc import SkipFrame
from torch.fx import Graph, GraphModule, Node

from .. import transforms
from .chains import NEURONS, find_chains
from .emission import emit
from .packing import Packing
from .report import LayerReport, report
from .simplify import simplify
from .window import choose_window, is_light

PRODUCTS = ("batched", "per-step")


@dataclass(frozen=True)
class Options:
    """See `accelerate`."""

    window: int | None = None
    products: str = "batched"
    inner: str | Callable | None = None

    def __post_init__(self):
        if self.window is not None and (isinstance(self.window, bool) or not isinstance(self.window, int)):
            raise TypeError(f"window must be an integer or None, got {type(self.window).__name__}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.products not in PRODUCTS:
            raise ValueError(f"products must be one of {', '.join(PRODUCTS)}; got {self.products!r}")
        if self.inner is not None and not callable(self.inner) and not isinstance(self.inner, str):
            raise TypeError(f"inner must name a torch.compile backend or be one, got {type(self.inner).__name__}")


def make_options(**given) -> Options:
    """Checked options."""
    known = list(Options.__dataclass_fields__)
    for name in given:
        if name not in known:
            raise ValueError(f"options of backend snnfast are {', '.join(known)}; got {name!r}")
    return Options(**given)


_listeners = []


@contextlib.contextmanager
def listening() -> Iterator[list[list[LayerReport]]]:
    """Collects the report of every graph that is compiled within it."""
    reports = []
    _listeners.append(reports)
    try:
        yield reports
    finally:
        _listeners.remove(reports)


def backend(graph_module: GraphModule, example_inputs: list, *, mode=None, options: dict | None = None):
    """The torch.compile backend "snnfast". Options as in `accelerate`; `mode` must be None.

    Raises:
        ValueError, TypeError: an unknown option, or a value it cannot have.
    """
    if mode is not None:
        raise ValueError(f"backend snnfast has no modes, got mode={mode!r}; set inner='inductor' and its own options")
    chosen = make_options(**(options or {}))
    # What is tried on the way is no business of a checkpoint's, in which the first call may be.
    with transforms.without_hooks():
        fused = fuse(graph_module, chosen)
    if chosen.inner is None:
        if fused is graph_module and not _listeners and _is_whole_frame(graph_module):
            # As it is written it runs faster than its graph would, and stays readable to a debugger.
            raise SkipFrame("nothing to fuse over time")
        return _outside_inference_mode(fused)
    inner = torch._dynamo.lookup_backend(chosen.inner) if isinstance(chosen.inner, str) else chosen.inner
    return _outside_inference_mode(inner(fused, example_inputs))


def _outside_inference_mode(run: Callable) -> Callable:
    """`run`, to which states that inference mode left come as copies where a backward may follow, as in eager steps."""

    def call(*inputs):
        if torch.is_grad_enabled():
            inputs = [i.clone() if isinstance(i, torch.Tensor) and i.is_inference() else i for i in inputs]
        return run(*inputs)

    return call


def _is_whole_frame(graph_module: GraphModule) -> bool:
    """Whether the captured function ends with this graph; a part of it that comes later may have a loop to fuse."""
    reason = getattr(graph_module, "compile_subgraph_reason", None)
    return reason is not None and not reason.graph_break


def fuse(graph_module: GraphModule, options: Options) -> GraphModule:
    """The captured graph with its loops over time packed; the same graph where there is nothing to pack."""
    graph = _copy(graph_module.graph)
    exact = options.products == "per-step"
    watcher = simplify(graph, exact)
    chains = find_chains(graph)
    packing = Packing(graph, watcher, exact)
    packs = []
    if any(len(chain.steps) > 1 for chain in chains):
        window = options.window or choose_window(graph, chains)
        for chain in chains:
            whole = options.window is None and is_light(chain, chains)
            packs += packing.pack_chain(chain, len(chain.steps) if whole else window)
        for pack in packs:
            packing.grow(pack, window)
        packing.pack_joined(window)
    for reports in _listeners:
        reports.append(report(chains, packing))
    if not packs:
        return graph_module
    fused = GraphModule(graph_module, emit(packing))
    fused.graph.lint()
    return fused


def _copy(graph: Graph) -> Graph:
    copied = Graph()
    nodes = {}
    for node in graph.nodes:
        nodes[node] = copied.node_copy(node, nodes.__getitem__)
    return copied


def is_sequence_call(node: Node) -> bool:
    """Whether a node of a fused graph runs a neuron over a sequence."""
    return node.op == "call_function" and any(node.target is neuron.sequence for neuron in NEURONS)
