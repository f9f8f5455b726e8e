"""What a call does besides its result: which memory it writes, whether it draws random numbers, or switches a mode.

Hardly anything is listed by name: each kind of call is run once on fake tensors, and the operators it comes down to
are watched.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from . import graph as g


@dataclass(frozen=True)
class Effects:
    """`writes`: positions of the written tensors among the call's inputs; `fence`: nothing may cross it."""

    writes: tuple[int, ...] = ()
    random: bool = False
    fence: bool = False

    def __bool__(self):
        return bool(self.writes) or self.random or self.fence


# They change a tensor's part in the autograd graph, beneath which no operator runs.
ON_AUTOGRAD = ("detach_", "requires_grad_", "retain_grad", "register_hook", torch.detach_)
# What an assignment to `tensor.data` is captured as: the tensor has other memory from then on, and its version is the
# one before, of which no operator tells either.
ON_MEMORY = ("set_", "_lower_version_count_by_1")

NONE = Effects()
FENCE = Effects(fence=True)


class Watcher:
    """The effects of a graph's nodes; calls alike in everything but their data are run once."""

    def __init__(self, graph: Graph):
        self._mode = g.fake_mode(graph)
        self._known = {}
        self._of = {}

    def effects(self, node: Node) -> Effects:
        """The effects of one node."""
        if node not in self._of:
            self._of[node] = self._find(node)
        return self._of[node]

    def _find(self, node: Node) -> Effects:
        if not g.is_call(node):
            return NONE
        if node.target in ON_AUTOGRAD:
            return Effects(writes=(0,))
        if getattr(node.target, "__name__", node.target) in ON_MEMORY:
            return FENCE
        leaves = tree_flatten((node.args, node.kwargs))[0]
        given = [leaf for leaf in leaves if isinstance(leaf, Node)]
        if not any(g.tensors(leaf) for leaf in given) and not g.tensors(node):
            return NONE if _is_number(g.value(node)) else FENCE
        key = node.op, node.target, str(tree_map(_kind, (node.args, node.kwargs)))
        if key not in self._known:
            self._known[key] = self._observe(node)
        return self._known[key]

    def written(self, node: Node) -> set[int]:
        """The storages that a node writes."""
        positions = self.effects(node).writes
        if not positions:
            return set()
        given = [leaf for leaf in tree_flatten((node.args, node.kwargs))[0] if isinstance(leaf, Node)]
        return set().union(*(g.storages(given[position]) for position in positions))

    def _observe(self, node: Node) -> Effects:
        if self._mode is None:
            return FENCE
        fresh, owners = {}, {}

        def stand_in(leaf):
            if not isinstance(leaf, Node):
                return leaf
            if leaf not in fresh:
                fresh[leaf] = tree_map(_fresh, g.value(leaf))
            return fresh[leaf]

        try:
            with self._mode, torch.no_grad():
                args, kwargs = tree_map(stand_in, (node.args, node.kwargs))
                given = [leaf for leaf in tree_flatten((node.args, node.kwargs))[0] if isinstance(leaf, Node)]
                for position, leaf in enumerate(given):
                    for tensor in tree_flatten(fresh[leaf])[0]:
                        if isinstance(tensor, Tensor):
                            owners.setdefault(tensor.untyped_storage()._cdata, []).append(position)
                with _Watch() as watch:
                    g.run(node.op, node.target, args, kwargs)
        except Exception:
            return FENCE
        writes = {position for storage in watch.written for position in owners.get(storage, ())}
        return Effects(tuple(sorted(writes)), watch.random)


class _Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.written = set()
        self.random = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.random |= torch.Tag.nondeterministic_seeded in func.tags
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        # Batch-norm's older schemas do not own up to the statistics they update.
        trains = bool(named.get("training", named.get("train", False)))
        for argument in func._schema.arguments:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes or (trains and argument.name in ("running_mean", "running_var")):
                for tensor in tree_flatten(named.get(argument.name))[0]:
                    if isinstance(tensor, Tensor):
                        self.written.add(tensor.untyped_storage()._cdata)
        return func(*args, **kwargs)


def _fresh(leaf):
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=leaf.device)


def _kind(leaf):
    return g.signatures(leaf) if isinstance(leaf, Node) else leaf


def _is_number(result) -> bool:
    leaves = tree_flatten(result)[0]
    numbers = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
    return bool(leaves) and all(isinstance(leaf, numbers) for leaf in leaves)
