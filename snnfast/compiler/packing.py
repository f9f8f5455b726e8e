"""Packing: which calls of different steps become one call over time.

Chains are packed first, window by window. From each pack the search walks up through its argument columns and down
through its users, and from every stack of steps up through what was stacked: T isomorphic calls whose operator has a
batching rule become one. Whatever cannot be packed stays as the user wrote it.
"""

import contextlib
import operator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import Graph, Node
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .. import _torch
from ..loops.window import Windows
from . import graph as g
from . import rules
from .cells import CellPack, OwnNeuron
from .chains import Chain, NeuronOperators
from .effects import Watcher
from .order import Order, accumulation_edges, effect_edges, mutated_storages
from .rules import Batched, Call, Stacked


@dataclass(eq=False)
class SequencePack:
    """Steps of a neuron that run as one sequence; `outputs`: the nodes that pick a step's output, (output, step)."""

    neuron: NeuronOperators
    steps: tuple[Node, ...]
    outputs: dict[Node, tuple[int, int]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        return [*self.steps, *self.outputs, *self.neuron.inner_nodes(self.steps)]

    @property
    def pieces(self) -> list[Node]:
        """The nodes whose values become pieces of the pack's stacks."""
        return list(self.outputs)

    @property
    def inputs(self) -> list[tuple]:
        """The columns of what it takes at every step."""
        return [self.current.lanes]

    @property
    def current(self) -> Stacked:
        return Stacked(tuple(step.args[0] for step in self.steps))


@dataclass(eq=False)
class CallPack:
    """Calls that run as one batched call; `steps`: which step each belongs to."""

    steps: dict[Node, int]
    batched: Batched

    @property
    def nodes(self) -> list[Node]:
        return list(self.steps)

    pieces = nodes


@dataclass(eq=False)
class SlicePack:
    """Reads of regular steps of one tensor: `source[index]`, in which time is dimension `dim`."""

    steps: dict[Node, int]
    source: Node
    index: tuple
    dim: int

    @property
    def nodes(self) -> list[Node]:
        return list(self.steps)

    pieces = ()


class Packing:
    """The packs of a graph, and the order in which they and all other nodes may run."""

    def __init__(self, graph: Graph, watcher: Watcher, exact: bool):
        self.graph, self.watcher, self.exact = graph, watcher, exact
        self._mutated = mutated_storages(graph, watcher)
        self._mode = g.fake_mode(graph)
        self._checked = {}
        edges = effect_edges(graph, watcher) + (accumulation_edges(graph) if exact else [])
        self.order = Order(graph, edges)
        self.pack_of = {}
        self.refused = {}
        """For a step that stayed alone: the path of nodes through which it feeds back to its own layer."""

    def pack_chain(self, chain: Chain, sizes: Windows) -> list[SequencePack]:
        """Packs a chain window by window; a window that feeds back to itself is halved."""
        if self.exact and chain.neuron.recurrent:
            return []
        packs, windows = [], sizes.split(chain.steps)
        while windows:
            steps = windows.pop(0)
            if len(steps) < 2:
                continue
            pack = self._sequence_pack(chain.neuron, steps)
            path = self._register(pack) if pack else [steps[0], steps[1]]
            if path is None:
                packs.append(pack)
            else:
                self.refused.setdefault(steps[0], path)
                middle = (len(steps) + 1) // 2
                windows[:0] = [steps[:middle], steps[middle:]]
        return packs

    def _sequence_pack(self, neuron: NeuronOperators, steps: tuple[Node, ...]) -> SequencePack | None:
        pack = SequencePack(neuron, steps)
        for step, node in enumerate(steps):
            for user in node.users:
                if user.target is not operator.getitem:
                    return None
                pack.outputs[user] = (user.args[1], step)
        inside = set(pack.nodes)
        others = [arg for node in steps for arg in (node.args[0], *neuron.shared_arguments(node))]
        if any(isinstance(arg, Node) and arg in inside for arg in others) or not self._stays(pack.nodes):
            return None
        return pack

    def is_mutated(self, node: Node) -> bool:
        """Whether some node writes the memory that this one's value lives in."""
        return bool(self._mutated & g.storages(node))

    def is_fence(self, node: Node) -> bool:
        """Whether a node switches a mode."""
        return self.watcher.effects(node).fence

    def storages_of_pieces(self) -> set[int]:
        """The memory of all values that become pieces of computed stacks."""
        return set().union(*(g.storages(node) for pack in set(self.pack_of.values()) for node in pack.pieces))

    def joined(self, node: Node) -> tuple[tuple, int]:
        """The steps that a `torch.stack` or `torch.cat` joins, and along which dimension; no steps for another call."""
        if node.op != "call_function" or node.target not in (torch.stack, torch.cat) or self.is_mutated(node):
            return (), 0
        given = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
        lanes, dim = given.get("tensors"), given.get("dim", 0)
        if set(given) - {"tensors", "dim"} or not isinstance(lanes, (list, tuple)) or not isinstance(dim, int):
            return (), 0
        if len(lanes) < 2 or not all(isinstance(lane, Node) for lane in lanes):
            return (), 0
        same = len({g.signatures(lane) for lane in lanes}) == 1 and not any(map(self.is_mutated, lanes))
        return (tuple(lanes), dim) if same else ((), 0)

    def pack_own(self, own: OwnNeuron) -> list[CellPack]:
        """Packs all steps of a neuron of the user's own; `own.why` is set where that cannot be."""
        from ..cells import BuildFailed, Refused

        if self.exact:
            own.why = own.why or 'products="per-step" keeps the order in which its gradients are summed'
        if own.why:
            return []
        pack = CellPack(own)
        try:
            if pack.takes_its_own or not self._stays(pack.nodes):
                raise Refused("it begins with a value of its own, or writes to memory that is read elsewhere")
            path = self.order.way_back(pack.nodes)
            if path is not None:
                self.refused[own.marks[0]] = path
                return []
            pack.run = pack.call()
        except (Refused, BuildFailed) as refused:
            own.why = str(refused)
            return []
        self._register(pack)
        return [pack]

    def grow(self, pack: SequencePack | CellPack, windows: Windows) -> None:
        """Packs what leads to a sequence and what follows from it, as far as it goes, in windows."""
        for given in pack.inputs:
            for lanes in windows.split(given):
                self._grow_up(lanes)
        columns = {}
        for node, (output, step) in pack.outputs.items():
            columns.setdefault(output, {})[step] = node
        for column in columns.values():
            if len(column) == len(pack.steps):
                for lanes in windows.split([column[step] for step in range(len(pack.steps))]):
                    self._grow_down(lanes)

    def pack_joined(self, windows: Windows) -> None:
        """Packs what stacks and concatenations of steps are made of."""
        for node in self.graph.nodes:
            lanes, _ = self.joined(node)
            for column in windows.split(lanes):
                self._grow_up(column)

    def _grow_up(self, lanes: tuple) -> None:
        """Packs a column of nodes, then the columns of its arguments."""
        columns = [lanes]
        while columns:
            pack = self._pack_column(columns.pop())
            if isinstance(pack, CallPack):
                columns += [operand.lanes for operand in rules.stacked(pack.batched)]

    def _grow_down(self, lanes: tuple) -> None:
        columns = [lanes]
        while columns:
            lanes = columns.pop()
            users = [[user for user in lane.users if self._is_open(user)] for lane in lanes]
            for user in users[0]:
                column = self._matching_users(user, users)
                if column and self._pack_column(column):
                    columns.append(column)

    def _is_open(self, user: Node) -> bool:
        """A call that no sequence took up: products of the same spikes for this layer and for the next are alike."""
        return g.is_call(user) and not isinstance(self.pack_of.get(user), (SequencePack, CellPack))

    @staticmethod
    def _matching_users(first: Node, users: list[list[Node]]) -> tuple | None:
        """The users of the other steps that do what `first` does: the n-th of that kind where it is the n-th."""
        column = []
        rank = [user for user in users[0] if user.target == first.target].index(first)
        for of_step in users:
            alike = [user for user in of_step if user.target == first.target]
            if rank >= len(alike):
                return None
            column.append(alike[rank])
        return tuple(column)

    def _pack_column(self, lanes: tuple):
        if len(lanes) < 2 or len(set(lanes)) != len(lanes):
            return None
        if any(not isinstance(lane, Node) or lane in self.pack_of for lane in lanes):
            return None
        if not self._stays(lanes) or len({g.kind(lane) for lane in lanes}) > 1:
            return None
        pack = self._slice_pack(lanes) or self._call_pack(lanes)
        if pack is None or self._register(pack) is not None:
            return None
        return pack

    def _stays(self, lanes) -> bool:
        """Nothing is known of the lanes but their values: no memory that is written to, and no effects but those of
        batch-norm, which happen in the lanes' order."""
        in_order = list(lanes) == sorted(lanes)
        for lane in lanes:
            if lane.op not in ("call_function", "call_method") or self.is_mutated(lane):
                return False
            if self.watcher.effects(lane) and not (in_order and rules.takes_statistics(lane)):
                return False
        return True

    def _register(self, pack) -> list[Node] | None:
        path = self.order.contract(list(pack.nodes))
        if path is None:
            self.pack_of.update(dict.fromkeys(pack.nodes, pack))
        return path

    def _call_pack(self, lanes: tuple) -> CallPack | None:
        call = match(lanes)
        if call is None:
            return None
        operands = {node for leaf in rules.stacked(call) for node in leaf.lanes}.union(call.shared())
        if operands & set(lanes):
            return None
        for leaf in rules.stacked(call):
            # Several outputs can be picked from one call over time, but not stacked.
            if not isinstance(g.value(leaf.lanes[0]), Tensor):
                self._pack_column(leaf.lanes)
                if any(not isinstance(self.pack_of.get(lane), CallPack) for lane in leaf.lanes):
                    return None
        batched = rules.batch(call)
        if batched is None or (self.exact and not batched.exact) or not self._computes(batched, lanes):
            return None
        return CallPack(_numbered(lanes), batched)

    def _computes(self, batched: Batched, lanes: tuple) -> bool:
        """Whether the batched call, run on fake values, gives a stack of what the steps gave."""
        leaves, nesting = tree_flatten((batched.args, batched.kwargs), is_leaf=rules.is_stacked)
        kinds = tuple(_kind(leaf) for leaf in leaves)
        target = lanes[0].target
        key = lanes[0].op, target, kinds, str(nesting), len(lanes), g.signatures(lanes[0])
        if key not in self._checked:
            self._checked[key] = self._runs_to(batched, leaves, nesting, lanes)
        return self._checked[key]

    def _runs_to(self, batched, leaves, nesting, lanes) -> bool:
        def fake(leaf):
            if isinstance(leaf, Stacked):
                stack = tree_map(lambda one: _stack_of(one, len(lanes)), g.value(leaf.lanes[0]))
                return leaf.before(stack) if leaf.before else stack
            return g.value(leaf) if isinstance(leaf, Node) else leaf

        try:
            # Without Python's dispatcher some operators, such as linear without bias, tie the graph to its batch size.
            with self._mode, enable_python_dispatcher(), _no_loop_inside_vmap():
                args, kwargs = tree_unflatten([fake(leaf) for leaf in leaves], nesting)
                result = g.run(batched.op, batched.target, args, kwargs)
                result = batched.after(result) if batched.after else result
                wanted = tree_map(lambda one: _stack_of(one, len(lanes)), g.value(lanes[0]))
        except Exception:
            return False
        got, want = tree_flatten(result)[0], tree_flatten(wanted)[0]
        return [g.signature(leaf) for leaf in got] == [g.signature(leaf) for leaf in want]

    def _slice_pack(self, lanes: tuple) -> SlicePack | None:
        """`x[0], x[1], ...`, `x[:, 0], x[:, 1], ...` or the steps of `x.unbind(dim)`."""
        source = lanes[0].args[0] if lanes[0].args else None
        if any(lane.target is not operator.getitem or lane.args[0] is not source for lane in lanes):
            return None
        if _is_unbound(source):
            dim = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)
            source, dim = source.args[0], dim % g.value(source.args[0]).dim()
            indices = [(slice(None),) * dim + (lane.args[1],) for lane in lanes]
        else:
            indices = [lane.args[1] if isinstance(lane.args[1], tuple) else (lane.args[1],) for lane in lanes]
        if not isinstance(g.value(source), Tensor):
            return None
        return _regular_slice(lanes, source, indices)


@contextlib.contextmanager
def _no_loop_inside_vmap():
    """Within it, vmap refuses operators that it could only run sample by sample."""
    before = _torch.vmap_falls_back()
    _torch.let_vmap_fall_back(False)
    try:
        yield
    finally:
        _torch.let_vmap_fall_back(before)


def _numbered(lanes: tuple) -> dict[Node, int]:
    return {lane: step for step, lane in enumerate(lanes)}


def match(lanes: tuple) -> Call | None:
    """The lanes as one call: the same operator everywhere, with arguments that are the same or differ by their node."""
    flat = [tree_flatten((lane.args, lane.kwargs)) for lane in lanes]
    leaves, nesting = flat[0]
    if any(lane.op != lanes[0].op or lane.target != lanes[0].target for lane in lanes):
        return None
    if any(other_nesting != nesting for _, other_nesting in flat):
        return None
    merged = []
    for column in zip(*(leaves for leaves, _ in flat), strict=True):
        if all(leaf is column[0] for leaf in column):
            merged.append(column[0])
        elif all(isinstance(leaf, Node) for leaf in column):
            if len({g.signatures(leaf) for leaf in column}) > 1 or not g.tensors(column[0]):
                return None
            merged.append(Stacked(tuple(column)))
        elif all(type(leaf) is type(column[0]) and leaf == column[0] for leaf in column):
            merged.append(column[0])
        else:
            return None
    args, kwargs = tree_unflatten(merged, nesting)
    return Call(lanes, args, kwargs)


def _regular_slice(lanes, source, indices) -> SlicePack | None:
    """The indices as one, if they differ in one place only, by a constant positive stride."""
    shape = g.value(source).shape
    if len({len(index) for index in indices}) > 1:
        return None
    if any(not isinstance(entry, (int, slice)) or isinstance(entry, bool) for index in indices for entry in index):
        return None
    places = [place for place, column in enumerate(zip(*indices, strict=True)) if any(e != column[0] for e in column)]
    if len(places) != 1 or not isinstance(shape[places[0]], int):
        return None
    (place,) = places
    steps = [index[place] for index in indices]
    if any(not isinstance(step, int) for step in steps):
        return None
    steps = [step % shape[place] for step in steps]
    stride = steps[1] - steps[0]
    if stride < 1 or steps != list(range(steps[0], steps[0] + stride * len(steps), stride)):
        return None
    index = list(indices[0])
    index[place] = slice(steps[0], steps[-1] + 1, stride)
    if index[place] == slice(0, shape[place], 1):
        index[place] = slice(None)
    dim = sum(isinstance(entry, slice) for entry in index[:place])
    return SlicePack(_numbered(lanes), source, tuple(index), dim)


def _is_unbound(node) -> bool:
    if not isinstance(node, Node):
        return False
    return (node.op == "call_method" and node.target == "unbind") or node.target is torch.unbind


def _kind(leaf):
    if isinstance(leaf, Stacked):
        return "stacked", g.signatures(leaf.lanes[0]), leaf.before is not None
    return ("shared", g.signatures(leaf)) if isinstance(leaf, Node) else str(leaf)


def _stack_of(one, steps: int):
    if not isinstance(one, Tensor):
        return one
    return torch.empty((steps, *one.shape), dtype=one.dtype, device=one.device)
