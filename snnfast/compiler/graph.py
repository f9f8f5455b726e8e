"""What the passes ask of a captured graph: values, storages, shapes, names of layers."""

import operator
import re

from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map

from .. import _torch


def value(node: Node):
    """The fake value that Dynamo computed for a node: a tensor without data, a tuple of them, a SymInt, None ...

    Of a `get_attr` node it is what the attribute holds, which may be a graph.
    """
    return node.meta.get("example_value")


def attribute(graph_module: GraphModule, target: str):
    """What a `get_attr` node of this target gives: a constant tensor, or a graph that a call runs."""
    return operator.attrgetter(target)(graph_module)


def tensors(node: Node) -> list[Tensor]:
    """The tensors of a node's value."""
    return [leaf for leaf in tree_flatten(value(node))[0] if isinstance(leaf, Tensor)]


def storages(node: Node) -> set[int]:
    """The memory that a node's value lives in: equal for a tensor and its views."""
    return {tensor.untyped_storage()._cdata for tensor in tensors(node)}


def signature(leaf) -> tuple:
    """What must agree for two values to be stacked: dtype, device and shape; symbolic sizes compare by name."""
    if isinstance(leaf, Tensor):
        return leaf.dtype, leaf.device, tuple(map(str, leaf.shape))
    return type(leaf), str(leaf)


def signatures(node: Node) -> tuple:
    """The signatures of all of a node's values, and how they nest."""
    leaves, nesting = tree_flatten(value(node))
    return tuple(map(signature, leaves)), nesting


def kind(node: Node) -> tuple:
    """What must agree for calls to become one: the signatures of their results, and whether these have gradients."""
    return signatures(node), tuple(tensor.requires_grad for tensor in tensors(node))


def is_operator(node: Node, packet) -> bool:
    """Whether a node calls this torch operator, by packet or by overload."""
    return node.op == "call_function" and getattr(node.target, "overloadpacket", node.target) is packet


def linear_arguments(node) -> tuple | None:
    """Input, weight and bias of a call of `F.linear`; None for anything else."""
    if not isinstance(node, Node) or node.op != "call_function" or node.target is not F.linear:
        return None
    given = {"bias": None} | dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    return given["input"], given["weight"], given["bias"]


def name_of(node: Node) -> str:
    """What a node calls, as people know it."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def text(graph: Graph) -> str:
    """A graph in words, the same for two that differ in names of values alone."""
    names = {node: f"%{number}" for number, node in enumerate(graph.nodes)}
    return "\n".join(
        f"{node.op} {'' if node.op == 'placeholder' else node.target} "
        f"{tree_map(lambda leaf: names.get(leaf, leaf) if isinstance(leaf, Node) else leaf, (node.args, node.kwargs))}"
        for node in graph.nodes
    )


def is_call(node: Node) -> bool:
    """Whether a node computes something."""
    return node.op in ("call_function", "call_method", "call_module")


def fake_mode(graph: Graph):
    """The mode under which the graph's fake values were made; None for a graph without tensors."""
    for node in graph.nodes:
        for tensor in tensors(node):
            mode = getattr(tensor, "fake_mode", None)
            if mode is not None:
                return mode
    return None


def layer_of(node: Node) -> str:
    """The name of the module that a node was written in, as in `named_modules`; "" for the captured function itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = [name for name, _ in stack.values()]
    return path_of(path[-1]) if path else ""


def path_of(path: str) -> str:
    """`L['self']._modules['blocks']._modules['0'].lif` as `blocks.0.lif`, `G['lif']` as `lif`."""
    path = re.sub(r"^L\['(self|fn|mod)'\](\.__self__|\._orig_mod)*|^[LG](?=\[)|\b_modules\b", "", path)
    return ".".join(re.findall(r"\w+", path))


def run(node_op: str, target, args, kwargs):
    """Calls what a node calls, on given values."""
    if node_op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def grad_enabled_throughout(graph: Graph) -> bool:
    """Whether no node switches the gradient mode."""
    return not any(node.op == "call_function" and node.target in _torch.switches_grad for node in graph.nodes)
