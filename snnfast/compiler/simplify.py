"""Makes the graph smaller and its steps alike, without changing what it computes.

Dead code goes, in-place operators become functional where nobody can observe it, calls that return their argument
vanish, equal calls are merged (a layer fed the same static input at every step becomes one call), and a training-mode
dropout becomes the drawing of a mask, which depends on no data, and a product.
"""

import operator

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map

from . import graph as g
from .effects import Watcher
from .order import mutated_storages

IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ipow: operator.pow,
}
DROPOUTS = (F.dropout, torch.dropout)


def simplify(graph: Graph, exact: bool) -> Watcher:
    """Rewrites the graph in place; returns the effects of what is left.

    `exact` keeps apart equal calls whose gradients would otherwise be summed before, not after, their backward.
    """
    watcher = Watcher(graph)
    _name_sizes(graph)
    _merge_bodies(graph)
    if g.grad_enabled_throughout(graph):
        _make_functional(graph, watcher)
    _skip_identities(graph, watcher)
    _draw_masks(graph)
    _merge_equals(graph, watcher, exact)
    _drop_dead(graph, watcher)
    return watcher


def _name_sizes(graph: Graph) -> None:
    """Every computed size that is an input's symbol becomes that input, so that steps use the same node."""
    symbols = {}
    for node in list(graph.nodes):
        size = g.value(node)
        if not isinstance(size, torch.SymInt):
            continue
        if node.op == "placeholder":
            symbols[str(size)] = node
        elif str(size) in symbols:
            node.replace_all_uses_with(symbols[str(size)])


def _merge_bodies(graph: Graph) -> None:
    """The graphs that equal calls run, such as forward and backward of an autograd.Function, become one node."""
    first = {}
    for node in list(graph.nodes):
        body = g.value(node)
        if isinstance(body, GraphModule) and not any(inner.op == "get_attr" for inner in body.graph.nodes):
            node.replace_all_uses_with(first.setdefault(g.text(body.graph), node))


def _make_functional(graph: Graph, watcher: Watcher) -> None:
    writers = {}
    for node in graph.nodes:
        for storage in watcher.written(node):
            writers.setdefault(storage, []).append(node)
    homes = {}
    for node in graph.nodes:
        if not isinstance(g.value(node), (tuple, list)):
            for storage in g.storages(node):
                homes.setdefault(storage, []).append(node)
    for storage, written_by in writers.items():
        origin, *others = homes.get(storage, [None])
        if origin is None or not g.is_call(origin) or others != written_by:
            continue
        twins = [_functional_twin(node) for node in written_by]
        if all(twins) and all(node.args[0] in (origin, *others) for node in written_by):
            _replace_writers(graph, origin, written_by, twins)


def _functional_twin(node: Node):
    """(op, target, kwargs) of the same operator that returns a new tensor; None where there is none."""
    kwargs = {key: item for key, item in node.kwargs.items() if key != "inplace"}
    if node.op == "call_method":
        name = node.target[:-1]
        found = node.target.endswith("_") and not node.target.endswith("__") and hasattr(Tensor, name)
        twin = ("call_method", name, kwargs) if found and name != "detach" else None
    elif node.target in IN_PLACE:
        twin = ("call_function", IN_PLACE[node.target], kwargs)
    elif node.kwargs.get("inplace") is True:
        twin = ("call_function", node.target, kwargs)
    else:
        name = getattr(node.target, "__name__", "")
        known = getattr(torch, name[:-1], None) if name.endswith("_") else None
        twin = ("call_function", known, kwargs) if callable(known) else None
    return twin if twin and _same_result(node, *twin) else None


def _same_result(node: Node, op, target, kwargs) -> bool:
    """Whether the functional form gives dtype, shape and differentiability of the in-place one."""
    try:
        with g.value(node).fake_mode:
            result = g.run(op, target, *tree_map(_value_of, (node.args, kwargs)))
    except Exception:
        return False
    wanted = g.value(node)
    alike = isinstance(result, Tensor) and g.signature(result) == g.signature(wanted)
    return alike and result.requires_grad == wanted.requires_grad


def _value_of(leaf):
    return g.value(leaf) if isinstance(leaf, Node) else leaf


def _replace_writers(graph: Graph, origin: Node, written_by: list[Node], twins: list[tuple]) -> None:
    aliases = {origin, *written_by}
    current = origin
    waiting = dict(zip(written_by, twins, strict=True))
    for node in list(graph.nodes):
        if node in waiting:
            op, target, kwargs = waiting[node]
            with graph.inserting_before(node):
                twin = graph.create_node(op, target, node.args, kwargs)
            for alias in aliases:
                twin.replace_input_with(alias, current)
            twin.meta = dict(node.meta)
            with g.value(node).fake_mode:
                twin.meta["example_value"] = torch.empty_like(g.value(node)).requires_grad_(g.value(node).requires_grad)
            current = twin
        elif node not in aliases and any(leaf in aliases for leaf in node.all_input_nodes):
            for alias in aliases:
                node.replace_input_with(alias, current)
    for node in reversed(written_by):
        graph.erase_node(node)


def _skip_identities(graph: Graph, watcher: Watcher) -> None:
    """Calls that hand back their first argument itself, such as `.to(dtype)` of a tensor of that dtype."""
    for node in list(graph.nodes):
        first = node.args[0] if g.is_call(node) and node.args else None
        if not isinstance(first, Node) or not isinstance(g.value(first), Tensor):
            continue
        if g.value(node) is g.value(first) and not watcher.effects(node):
            node.replace_all_uses_with(first)


def _draw_masks(graph: Graph) -> None:
    """`dropout(x)` as `x * dropout(ones)`: the same numbers, and the draws no longer wait for data."""
    sizes = {str(g.value(node)): node for node in graph.nodes if isinstance(g.value(node), torch.SymInt)}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in DROPOUTS or not isinstance(node.args[0], Node):
            continue
        x = g.value(node.args[0])
        shape = [sizes.get(str(size)) if isinstance(size, torch.SymInt) else size for size in x.shape]
        if None in shape or not x.is_contiguous() or not _is_random_dropout(node):
            continue
        with graph.inserting_before(node):
            ones = graph.call_function(torch.ones, (shape,), {"dtype": x.dtype, "device": x.device})
            mask = graph.call_function(node.target, (ones, *node.args[1:]), dict(node.kwargs))
            product = graph.call_function(operator.mul, (node.args[0], mask))
        with x.fake_mode:
            for made in (ones, mask):
                made.meta = {**node.meta, "example_value": torch.ones(x.shape, dtype=x.dtype, device=x.device)}
        product.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.erase_node(node)


def _is_random_dropout(node: Node) -> bool:
    """Training mode, out of place, 0 < p < 1."""
    names = ("p", "training", "inplace") if node.target is F.dropout else ("p", "train")
    given = {"p": 0.5, "training": True, "inplace": False} | dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    training = given.get("train", given["training"])
    return training is True and not given["inplace"] and isinstance(given["p"], float) and 0 < given["p"] < 1


def _merge_equals(graph: Graph, watcher: Watcher, exact: bool) -> None:
    mutated = mutated_storages(graph, watcher)
    returned = set().union(*map(g.storages, graph.output_node().all_input_nodes))
    first, region = {}, 0
    for node in list(graph.nodes):
        effects = watcher.effects(node)
        region += effects.fence
        if not g.is_call(node) or effects:
            continue
        # Two results in each other's memory, or in that of an output, are not one result.
        if returned & g.storages(node) or mutated & g.storages(node).union(*map(g.storages, node.all_input_nodes)):
            continue
        differentiable = any(tensor.requires_grad for tensor in g.tensors(node))
        if exact and differentiable and not _picks_an_output(node):
            continue
        try:
            key = region, node.op, node.target, _hashable((node.args, node.kwargs))
            if key in first:
                node.replace_all_uses_with(first[key])
                graph.erase_node(node)
            else:
                first[key] = node
        except TypeError:
            continue


def _picks_an_output(node: Node) -> bool:
    return node.target is operator.getitem and isinstance(g.value(node.args[0]), (tuple, list))


def _hashable(arguments):
    leaves, nesting = tree_flatten(arguments)
    return tuple((type(leaf), leaf) for leaf in leaves), nesting


def _drop_dead(graph: Graph, watcher: Watcher) -> None:
    for node in reversed(list(graph.nodes)):
        if g.is_call(node) and not node.users and not watcher.effects(node):
            graph.erase_node(node)
