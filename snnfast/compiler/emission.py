"""Emission: the packed graph, in an order in which it may run.

A value of one step that is needed alone is taken from its stack; a column of values that is no stack is stacked.
"""

import operator

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_map

from . import graph as g
from .cells import CellPack
from .packing import CallPack, Packing, SequencePack
from .rules import Stacked, is_stacked

ALIGNMENT = 64
"""Bytes to which torch aligns new memory on a CPU; more on a GPU, where the products that matter are larger."""


def emit(packing: Packing) -> Graph:
    """A graph with the same placeholders and output that computes the packs at once."""
    return _Emitter(packing).run()


def repeated(x: Tensor, steps: int) -> Tensor:
    """The same value at every step: [...] as [steps, ...]."""
    return x.expand(steps, *x.shape)


def stacked_at(x: Tensor, dim: int) -> Tensor:
    """What `torch.stack(steps, dim)` gives, from [T, ...]."""
    return x.movedim(0, dim).contiguous()


def joined_at(x: Tensor, dim: int) -> Tensor:
    """What `torch.cat(steps, dim)` gives, from [T, ...]."""
    return x.movedim(0, dim).flatten(dim, dim + 1).contiguous()


def step_of(stacks: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
    """What a call with several outputs gave at one step."""
    return tuple(stack[step] for stack in stacks)


class _OwnMemory(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.clone()


def own_memory(x: Tensor) -> Tensor:
    """A step's value, and its gradient, aligned as every new tensor is: products round by where their operands lie."""
    return _OwnMemory.apply(x)


class _LastOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx, last, states):
        return states[-1]

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def last_of(last: Tensor, states: Tensor) -> Tensor:
    """`last`, of which `states` [T, ...] holds a copy, as a piece of that: what keeps it for backward keeps no more."""
    return _LastOf.apply(last, states)


def _fills_lines(step: Tensor) -> bool:
    """Whether the steps of a stack begin where a new tensor might."""
    return all(isinstance(size, int) for size in step.shape) and step.nbytes % ALIGNMENT == 0


class _Emitter:
    def __init__(self, packing: Packing):
        self._packing = packing
        self._graph = Graph()
        self._single = {}
        self._taken = {}
        self._made = {}
        self._stacks = {}
        self._unbound = {}
        self._columns = {}
        self._joined = {}
        self._owners = {}
        self._pieces = packing.storages_of_pieces()

    def run(self) -> Graph:
        for group in self._packing.order.groups():
            done = len(self._graph.nodes)
            pack = self._packing.pack_of.get(group[0])
            if pack is None:
                for node in group:
                    self._copy(node)
            elif isinstance(pack, SequencePack):
                self._sequence(pack)
            elif isinstance(pack, CallPack):
                self._call(pack)
            elif isinstance(pack, CellPack):
                self._cell(pack)
            else:
                self._slice(pack)
            self._sign(len(self._graph.nodes) - done, group[0])
        return self._graph

    def _sign(self, made: int, origin: Node) -> None:
        """Notes where in the user's program the last `made` nodes come from."""
        node = self._graph._root.prev
        for _ in range(made):
            for key in ("nn_module_stack", "stack_trace"):
                if key in origin.meta:
                    node.meta.setdefault(key, origin.meta[key])
            node = node.prev

    def _new(self, target, *args) -> Node:
        return self._graph.call_function(target, args)

    def _copy(self, node: Node) -> None:
        if node.op == "output":
            returned = {leaf: self._returned(leaf) for leaf in node.all_input_nodes}
            self._graph.output(tree_map(lambda leaf: returned.get(leaf, leaf), node.args[0]))
        else:
            self._single[node] = self._join(node) or self._graph.node_copy(node, self._one)
            if self._packing.is_fence(node):
                # What was taken from stacks before a mode switch, such as no_grad, is taken anew after it.
                self._taken.clear()
                self._unbound.clear()
                self._columns.clear()

    def _returned(self, node: Node) -> Node:
        """An output in memory of its own, no piece of a stack that backward or another output reads."""
        own = node in self._packing.pack_of and self._is_last_state(node)
        piece = not own and bool(self._pieces & g.storages(node))
        if piece or not self._owns_its_stacks(node):
            return self._graph.call_method("clone", (self._one(node),))
        return self._one(node)

    def _owns_its_stacks(self, node: Node) -> bool:
        """Whether no other output joined the same steps: they would be one tensor where the user made two."""
        for storage in g.storages(node):
            for step in self._joined.get(storage, ()):
                if self._owners.setdefault(step, storage) != storage:
                    return False
        return True

    def _join(self, node: Node) -> Node | None:
        """A stack or concatenation of steps, where a pack has them together already."""
        lanes, dim = self._packing.joined(node)
        if not lanes or not self._is_one_run(lanes):
            return None
        rank = g.value(lanes[0]).dim()
        if node.target is torch.stack:
            joined = self._new(stacked_at, self._column(lanes), dim % (rank + 1))
        else:
            joined = self._new(joined_at, self._column(lanes), dim % rank)
        self._joined.update(dict.fromkeys(g.storages(node), self._memory_of(lanes)))
        pack, _, _ = self._place(lanes[0])
        return (
            joined
            if isinstance(pack, (SequencePack, CellPack, CallPack))
            else self._graph.call_method("clone", (joined,))
        )

    def _sequence(self, pack: SequencePack) -> None:
        rest = pack.neuron.sequence_arguments(pack.steps[0])
        rest = [self._start(arg) if isinstance(arg, Node) else arg for arg in rest]
        self._made[pack] = self._new(pack.neuron.sequence, self._column(pack.current.lanes), *rest, False)

    def _start(self, node: Node) -> Node:
        """A parameter of a sequence, or a state that it starts from."""
        if node not in self._packing.pack_of or not self._is_last_state(node) or not g.value(node).requires_grad:
            return self._one(node)
        pack, output, _ = self._place(node)
        if not pack.neuron.keeps_all:
            return self._one(node)
        return self._new(last_of, self._one(node), self._stack(pack, output))

    def _call(self, pack: CallPack) -> None:
        def operand(leaf):
            if isinstance(leaf, Stacked):
                column = self._column(leaf.lanes)
                return self._new(leaf.before, column) if leaf.before else column
            return self._one(leaf) if isinstance(leaf, Node) else leaf

        batched = pack.batched
        args, kwargs = tree_map(operand, (batched.args, batched.kwargs), is_leaf=is_stacked)
        made = self._graph.create_node(batched.op, batched.target, args, kwargs)
        self._stacks[pack, 0] = self._new(batched.after, made) if batched.after else made

    def _cell(self, pack: CellPack) -> None:
        own = pack.own
        xs = [self._column(lanes) for lanes in own.xs]
        made = self._new(pack.run, xs, [*map(self._one, own.initial)], [*map(self._one, own.constants)])
        for output in range(len(pack.given)):
            self._stacks[pack, output] = self._new(operator.getitem, made, output)

    def _slice(self, pack) -> None:
        made = self._one(pack.source)
        if any(entry != slice(None) for entry in pack.index):
            made = self._new(operator.getitem, made, pack.index)
        self._stacks[pack, 0] = self._new(torch.movedim, made, pack.dim, 0) if pack.dim else made

    def _place(self, node: Node) -> tuple:
        """(pack, output, step) of a packed node."""
        pack = self._packing.pack_of[node]
        if isinstance(pack, (SequencePack, CellPack)):
            return pack, *pack.outputs[node]
        return pack, 0, pack.steps[node]

    def _memory_of(self, lanes: tuple) -> set[int]:
        """The user's memory of all steps of the stacks that packed nodes are pieces of."""
        stacks = {self._place(lane)[:2] for lane in lanes}
        pieces = [piece for pack, _ in stacks for piece in pack.pieces if self._place(piece)[:2] in stacks]
        return set().union(*map(g.storages, pieces))

    def _is_last_state(self, node: Node) -> bool:
        pack, output, step = self._place(node)
        return isinstance(pack, SequencePack) and output > 0 and step == len(pack.steps) - 1

    def _stack(self, pack, output: int) -> Node:
        """All steps of a pack's output, [T, ...]."""
        if (pack, output) not in self._stacks:
            made, position = self._made[pack], output
            if output > 0:
                made.args = (*made.args[:-1], True)
                position = pack.neuron.output_of_all(output)
            self._stacks[pack, output] = self._new(operator.getitem, made, position)
        return self._stacks[pack, output]

    def _one(self, node: Node) -> Node:
        """The value of one node."""
        if node in self._single:
            return self._single[node]
        if node not in self._taken:
            pack, output, step = self._place(node)
            if self._is_last_state(node):
                self._taken[node] = self._new(operator.getitem, self._made[pack], output)
            elif not isinstance(g.value(node), Tensor):
                self._taken[node] = self._new(step_of, self._stack(pack, output), step)
            else:
                if (pack, output) not in self._unbound:
                    self._unbound[pack, output] = self._new(torch.unbind, self._stack(pack, output))
                taken = self._new(operator.getitem, self._unbound[pack, output], step)
                self._taken[node] = self._aligned(node, taken)
        return self._taken[node]

    def _aligned(self, node: Node, made: Node) -> Node:
        """A step's value between a stack and a product that must round as the loop's."""
        step = g.value(node)
        if not self._packing.exact or not step.is_floating_point() or _fills_lines(step):
            return made
        return self._new(own_memory, made)

    def _column(self, lanes: tuple) -> Node:
        """The values of the lanes, [T, ...]."""
        if lanes in self._columns:
            return self._columns[lanes]
        if len(set(lanes)) == 1:
            column = self._new(repeated, self._one(lanes[0]), len(lanes))
        else:
            parts = [self._part(run) for run in self._runs(lanes)]
            column = parts[0] if len(parts) == 1 else self._graph.call_function(torch.cat, (parts,))
        # A stack is a copy: of memory that is written to later, it would not be the same twice.
        if not any(self._packing.is_mutated(lane) for lane in lanes):
            self._columns[lanes] = column
        return column

    def _part(self, run: tuple) -> Node:
        if run[0] not in self._packing.pack_of:
            return self._graph.call_function(torch.stack, ([self._aligned(lane, self._one(lane)) for lane in run],))
        pack, output, first = self._place(run[0])
        stride = self._place(run[1])[2] - first if len(run) > 1 else 1
        stack = self._stack(pack, output)
        if len(run) == len(pack.steps):
            return stack
        return self._new(operator.getitem, stack, slice(first, first + stride * (len(run) - 1) + 1, stride))

    def _is_one_run(self, lanes: tuple) -> bool:
        return all(lane in self._packing.pack_of for lane in lanes) and len(self._runs(lanes)) <= self._packs_in(lanes)

    def _packs_in(self, lanes: tuple) -> int:
        return len({id(self._packing.pack_of[lane]) for lane in lanes})

    def _runs(self, lanes: tuple) -> list[tuple]:
        """The lanes in pieces: steps of one stack at a constant positive stride, or nodes of no stack."""
        runs = []
        for lane in lanes:
            if runs and self._continues(runs[-1], lane):
                runs[-1].append(lane)
            else:
                runs.append([lane])
        return [tuple(run) for run in runs]

    def _continues(self, run: list, lane: Node) -> bool:
        packed = lane in self._packing.pack_of
        if packed != (run[-1] in self._packing.pack_of) or not packed:
            return not packed and run[-1] not in self._packing.pack_of
        pack, output, step = self._place(lane)
        before = self._place(run[-1])
        if (pack, output) != before[:2] or step <= before[2]:
            return False
        return len(run) < 2 or step - before[2] == before[2] - self._place(run[-2])[2]
