"""`torch.compile(net, backend="snnfast")`: a user's loop over time steps, run layer by layer over whole sequences."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from .. import transforms
from ..loops.window import every
from . import graph as g
from .cells import find_own
from .chains import NEURONS, find_chains
from .emission import emit
from .packing import Packing
from .report import GraphReport, report
from .simplify import simplify
from .window import choose_windows, is_light

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


listeners = []
"""Who is told of every function that torch captured or did not (`compiled`), and runs its graphs (`run`)."""


@contextlib.contextmanager
def listening(listener) -> Iterator[None]:
    """Within it `listener` is one of `listeners`."""
    listeners.append(listener)
    try:
        yield
    finally:
        listeners.remove(listener)


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
        fused, known = fuse(graph_module, chosen)
    if chosen.inner is None:
        return Fused(fused, fused, known)
    inner = torch._dynamo.lookup_backend(chosen.inner) if isinstance(chosen.inner, str) else chosen.inner
    return Fused(inner(fused, example_inputs), fused, known)


class Fused:
    """What runs in a captured graph's place.

    Attributes:
        run: the compiled graph.
        graph_module: the fused graph, whose calls an inner backend compiled.
        report: what is known of it, where somebody listened when it was compiled.
    """

    def __init__(self, run: Callable, graph_module: GraphModule, report: GraphReport | None):
        self.run, self.graph_module, self.report = run, graph_module, report

    def __call__(self, *inputs):
        if torch.is_grad_enabled():
            # States that inference mode left come as copies where a backward may follow, as in eager steps.
            inputs = [i.clone() if isinstance(i, torch.Tensor) and i.is_inference() else i for i in inputs]
        return listeners[-1].run(self, inputs) if listeners else self.run(*inputs)


def fuse(graph_module: GraphModule, options: Options) -> tuple[GraphModule, GraphReport | None]:
    """The captured graph with its loops over time packed, the same where there is nothing to pack; and its report."""
    graph = _copy(graph_module)
    exact = options.products == "per-step"
    watcher = simplify(graph, exact)
    chains = find_chains(graph)
    packing = Packing(graph, watcher, exact)
    packs, said, owns = [], "", find_own(graph)
    for own in owns:
        own.why = own.why or _why_left(options, len(own.marks))
        packs += packing.pack_own(own)
    looped = any(len(chain.steps) > 1 for chain in chains)
    if packs or looped:
        steps = max(len(one.steps) for one in (*chains, *packs))
        windows, why = every(options.window or steps, steps), "as asked"
        if options.window is None:
            windows, why = choose_windows(graph, chains) if looped else (windows, "neurons of your own run over all")
        said = f"{windows} steps at a time: {why}"
        for chain in chains:
            whole = options.window is None and is_light(chain, chains)
            packs += packing.pack_chain(chain, every(steps, steps) if whole else windows)
        for pack in packs:
            packing.grow(pack, windows)
        packing.pack_joined(windows)
    known = report(graph_module, chains, owns, packing, said) if listeners else None
    if not packs:
        return graph_module, known
    fused = GraphModule(graph_module, emit(packing))
    fused.graph.lint()
    return fused, known


def _why_left(options: Options, steps: int) -> str:
    """Which option leaves the steps of a user's neuron alone: one call takes all of them, which no other compiler
    reads."""
    if options.inner is not None:
        return f"inner={options.inner!r} compiles its steps"
    if options.window is not None and options.window < steps:
        return f"window={options.window} is given, and it would run over all {steps} steps"
    return ""


def _copy(graph_module: GraphModule) -> Graph:
    copied = Graph()
    nodes = {}
    for node in graph_module.graph.nodes:
        nodes[node] = copied.node_copy(node, nodes.__getitem__)
        if node.op == "get_attr":
            nodes[node].meta.setdefault("example_value", g.attribute(graph_module, node.target))
    return copied


def is_sequence_call(node: Node) -> bool:
    """Whether a node of a fused graph runs a neuron over a sequence."""
    return node.op == "call_function" and any(node.target is neuron.sequence for neuron in NEURONS)
