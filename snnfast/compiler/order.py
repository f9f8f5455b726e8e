"""The order in which a graph may run, and whether some of its nodes may run as one.

Besides the data's own edges, order is kept between writes and reads of the same memory, between random draws, and
across mode switches. A set of nodes may become one node exactly if the graph stays acyclic: that rejects every true
recurrence (feedback between layers, spikes fed back) that does not lie within the set, so that nothing else needs to
know about it.
"""

from torch.fx import Graph, Node

from . import graph as g
from .effects import Watcher


def mutated_storages(graph: Graph, watcher: Watcher) -> set[int]:
    """The memory that some node writes."""
    return set().union(*(watcher.written(node) for node in graph.nodes))


def effect_edges(graph: Graph, watcher: Watcher) -> list[tuple[Node, Node]]:
    """Pairs (earlier, later) that must keep their order though no data flows."""
    mutated = mutated_storages(graph, watcher)
    edges = []
    last_random = last_fence = None
    since_fence, last_write, readers = [], {}, {}
    for node in graph.nodes:
        effects = watcher.effects(node)
        if node.op == "output" or effects.fence:
            edges += [(earlier, node) for earlier in since_fence]
            since_fence = []
        if last_fence is not None:
            edges.append((last_fence, node))
        if effects.fence:
            last_fence = node
        else:
            since_fence.append(node)
        if effects.random:
            if last_random is not None:
                edges.append((last_random, node))
            last_random = node
        touched = g.storages(node).union(*map(g.storages, node.all_input_nodes))
        written = watcher.written(node)
        for storage in touched & mutated:
            if storage in last_write:
                edges.append((last_write[storage], node))
            if storage in written:
                edges += [(reader, node) for reader in readers.pop(storage, ())]
                last_write[storage] = node
            else:
                readers.setdefault(storage, []).append(node)
    return edges


def accumulation_edges(graph: Graph) -> list[tuple[Node, Node]]:
    """Pairs that keep the order in which autograd adds up what several calls give to one input's gradient."""
    edges = []
    for node in graph.nodes:
        if node.op == "placeholder" and any(tensor.requires_grad for tensor in g.tensors(node)):
            users = sorted(node.users)
            edges += zip(users, users[1:], strict=False)
    return edges


class Order:
    """A topological order of the graph in which sets of nodes were contracted to groups."""

    def __init__(self, graph: Graph, extra_edges: list[tuple[Node, Node]]):
        nodes = list(graph.nodes)
        self._members = [[node] for node in nodes]
        self._group = {node: index for index, node in enumerate(nodes)}
        self._position = list(range(len(nodes)))
        self._at = list(range(len(nodes)))
        self._after = {node: list(node.users) for node in nodes}
        self._before = {node: list(node.all_input_nodes) for node in nodes}
        for earlier, later in extra_edges:
            self._after[earlier].append(later)
            self._before[later].append(earlier)

    def groups(self) -> list[list[Node]]:
        """The groups, in an order in which they may run."""
        return [self._members[group] for group in self._at if group is not None]

    def contract(self, nodes: list[Node]) -> list[Node] | None:
        """Makes one group of `nodes`, none of which is in one yet; or returns a path that leaves and re-enters them.

        Edges among `nodes` are the caller's to judge.
        """
        path = self.way_back(nodes)
        if path is None:
            inside = {self._group[node] for node in nodes}
            self._rearrange(nodes, inside, sorted(self._position[group] for group in inside))
        return path

    def way_back(self, nodes: list[Node]) -> list[Node] | None:
        """A path that leaves `nodes` and re-enters them, which keeps them from becoming one group."""
        inside = {self._group[node] for node in nodes}
        return self._way_back(inside, max(self._position[group] for group in inside))

    def _way_back(self, inside: set[int], last: int) -> list[Node] | None:
        came_from = {}
        stack = []
        for group in inside:
            for node in self._members[group]:
                stack += [(later, node) for later in self._after[node] if self._group[later] not in inside]
        while stack:
            node, origin = stack.pop()
            group = self._group[node]
            if group in inside:
                return self._trace(node, origin, came_from, inside)
            if group in came_from or self._position[group] > last:
                continue
            came_from[group] = (node, origin)
            for member in self._members[group]:
                stack += [(later, member) for later in self._after[member]]
        return None

    def _trace(self, node, origin, came_from, inside) -> list[Node]:
        path = [node, origin]
        while self._group[path[-1]] not in inside:
            entry, before = came_from[self._group[path[-1]]]
            path += [entry, before] if entry is not path[-1] else [before]
        return path[::-1]

    def _rearrange(self, nodes, inside, places) -> None:
        """Ancestors of the group keep their place before it, everything else in its span comes after it."""
        first, last = places[0], places[-1]
        ancestors, stack = set(), [before for node in nodes for before in self._before[node]]
        while stack:
            group = self._group[stack.pop()]
            if group in inside or group in ancestors or self._position[group] < first:
                continue
            ancestors.add(group)
            for member in self._members[group]:
                stack += self._before[member]
        span = [group for group in self._at[first : last + 1] if group is not None]
        one = min(inside)
        arranged = [group for group in span if group in ancestors] + [one]
        arranged += [group for group in span if group not in ancestors and group not in inside]
        self._members[one] = list(nodes)
        for node in nodes:
            self._group[node] = one
        self._at[first : last + 1] = arranged + [None] * (last + 1 - first - len(arranged))
        for place, group in enumerate(arranged, first):
            self._position[group] = place
