"""Neurons of the user's own in a captured graph: elementwise calls that close a loop over steps, around the autograd
function of a surrogate gradient."""

import operator
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._guards import tracing
from torch.fx import Graph, Node

from ..cells import products
from ..loops.cell import CONSTANT, FIXED, INNER, STATE, Step, X
from . import graph as g
from . import rules

_LEAST = 3
"""Steps from which a circle is a loop."""

_LIKE = (torch.zeros_like, torch.ones_like, torch.full_like)


@dataclass(eq=False)
class Column:
    """A call of every step; `nodes`: of the last step it may be absent, where nobody needs it."""

    nodes: list[Node]

    @property
    def like(self) -> Node:
        return self.nodes[0]


class _Applied:
    """An autograd function as a captured graph calls it. It is one object for all functions of equal bodies, by which
    they share a program."""

    __slots__ = "__weakref__", "_bodies", "_options", "_target"

    def __init__(self, mark: Node):
        self._target, self._bodies = mark.target, tuple(g.value(body) for body in mark.args[:2])
        self._options = dict(mark.kwargs)

    def __call__(self, *values):
        return self._target(*self._bodies, *values, **self._options)

    @staticmethod
    def of(mark: Node) -> "_Applied":
        """That of a call."""
        text = "\n".join([*(g.text(g.value(body).graph) for body in mark.args[:2]), str(mark.kwargs)])
        return _applied.setdefault(text, _Applied(mark))


_applied: WeakValueDictionary[str, _Applied] = WeakValueDictionary()


class Misfit(Exception):
    """Why calls around a surrogate gradient are no cell."""


@dataclass(eq=False)
class OwnNeuron:
    """The steps of a neuron of the user's own.

    Attributes:
        marks: the calls of its surrogate gradient, in the order of steps.
        calls: of a step, in its order; `entries`: for each where its arguments come from, as `Step` has them.
        xs: the inputs of all steps; states: what the next step takes; initial: what the first step has for them.
        constants: tensors that are the same at every step.
        shared: nodes that another neuron computes too, such as the decay of one zero that both begin with.
        why: why its steps run one by one; "" where they do not.
    """

    marks: list[Node]
    calls: list[Column] = field(default_factory=list)
    entries: list = field(default_factory=list)
    xs: list[tuple] = field(default_factory=list)
    states: list[tuple[int, int]] = field(default_factory=list)
    initial: list[Node] = field(default_factory=list)
    constants: list[Node] = field(default_factory=list)
    shared: set[Node] = field(default_factory=set)
    why: str = ""

    @property
    def shape(self) -> torch.Size:
        return g.value(self.marks[0])[0].shape


def find_own(graph: Graph) -> list[OwnNeuron]:
    """All of a graph, those too that are no cells."""
    found = []
    for marks in _chains(graph):
        one = OwnNeuron(marks)
        try:
            _Growth(one).run()
        except Misfit as misfit:
            one.why = str(misfit)
        found.append(one)
    takers = Counter(node for one in found for column in one.calls for node in {*column.nodes} - {None})
    for one in found:
        one.shared = {node for node, count in takers.items() if count > 1}
    return found


def _chains(graph: Graph) -> list[list[Node]]:
    """The surrogate gradients that hand on to themselves through elementwise calls."""
    following, led = {}, set()
    marks = [node for node in graph.nodes if _is_mark(node)]
    for mark in marks:
        reached = [other for other in _later_marks(mark) if other.args[:2] == mark.args[:2] and other not in led]
        same = [other for other in reached if _home(other) == _home(mark)]
        if same:
            following[mark] = min(same)
            led.add(following[mark])
    chains = []
    for mark in marks:
        if mark not in led:
            chain = [mark]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            chains.append(chain)
    return [chain for chain in chains if len(chain) >= _LEAST]


def _is_mark(node: Node) -> bool:
    if node.op != "call_function" or getattr(node.target, "__name__", "") != "autograd_function_apply":
        return False
    values = g.value(node)
    if not isinstance(values, (tuple, list)) or not values or len(node.args) < 3:
        return False
    return (
        isinstance(values[0], Tensor) and isinstance(node.args[2], Node) and isinstance(g.value(node.args[2]), Tensor)
    )


def _home(mark: Node) -> tuple:
    """What is the same of all marks of a neuron."""
    return g.layer_of(mark), g.signatures(mark)


def _later_marks(mark: Node) -> list[Node]:
    """Those that a mark, or the membrane that it is given, leads to through elementwise calls."""
    membranes = [mark.args[2], *(mark.args[2].all_input_nodes if _is_elementwise(mark.args[2]) else ())]
    shape = g.value(mark)[0].shape
    todo = [user for node in membranes if g.value(node).shape == shape for user in node.users] + [*mark.users]
    found, seen = [], set()
    while todo:
        node = todo.pop()
        if node in seen or not mark < node:
            continue
        seen.add(node)
        if _is_mark(node):
            found.append(node)
        elif _is_elementwise(node):
            todo += node.users
    return found


def _is_elementwise(node: Node) -> bool:
    if node.op == "call_function" and node.target is operator.getitem:
        return isinstance(node.args[0], Node) and _is_mark(node.args[0])
    if node.op == "call_function" and node.target in _LIKE:
        return isinstance(node.args[0], Node)
    table = {"call_function": rules.TABLE, "call_method": rules.METHODS}.get(node.op, {})
    return isinstance(g.value(node), Tensor) and table.get(node.target) is rules.pointwise


def _is_product(node: Node) -> bool:
    """Whether it is a product of what has its own shape with weights."""
    function = getattr(Tensor, node.target, None) if node.op == "call_method" else node.target
    x = _operand(node) if products.is_one(function, tuple(node.kwargs)) else None
    return isinstance(x, Node) and isinstance(g.value(node), Tensor) and g.value(x).shape == g.value(node).shape


def _operand(node: Node) -> Node:
    return node.args[products.operand(node.target)]


class _Growth:
    """From the marks of a chain up to all that they need of one another."""

    def __init__(self, own: OwnNeuron):
        self._own, self._shape = own, own.shape
        self._columns: list[Column] = []
        self._place: dict[Node, tuple[int, int]] = {}
        self._products: list[list[Node]] = []

    def run(self) -> None:
        """Raises Misfit."""
        own = self._own
        if any(not isinstance(size, int) for size in self._shape):
            raise Misfit("its shape is not known before it runs")
        self._add(own.marks)
        done = 0
        while done < len(self._columns) or self._add_product():
            self._grow(self._columns[done])
            done += 1
        self._leave_what_comes_before()
        columns = sorted({place for place, _ in self._place.values()}, key=lambda k: self._columns[k].nodes[1])
        own.calls = [self._columns[k] for k in columns if self._columns[k].like.target is not operator.getitem]
        self._numbers = {id(column): number for number, column in enumerate(own.calls)}
        own.entries = [self._entries(column) for column in own.calls]
        if not own.states:
            raise Misfit("nothing of it leads from a step to the next")
        if not own.xs:
            raise Misfit("nothing of its shape comes from outside")

    def _add(self, nodes: list[Node | None]) -> None:
        column = Column(nodes)
        for step, node in enumerate(nodes):
            if node is not None:
                self._place[node] = len(self._columns), step
        self._columns.append(column)

    def _grow(self, column: Column) -> None:
        """Adds the columns of arguments that are of the neuron: made in the same step, or in the one before."""
        for lanes in _arguments(column):
            if not all(isinstance(lane, Node) for lane in lanes) or len(set(lanes)) < len(lanes):
                continue
            if any(lane in self._place for lane in lanes[1:]):
                continue
            if self._fit(lanes):
                self._add([*lanes, *[None] * (len(self._own.marks) - len(lanes))])
            elif self._fit(lanes[1:]):
                self._add([*lanes[1:], *[None] * (len(self._own.marks) + 1 - len(lanes))])
            elif self._fit(lanes, _is_product):
                self._products.append(lanes)

    def _add_product(self) -> bool:
        """Adds a column of products of what the step before made: all-to-all recurrence."""
        for lanes in self._products:
            before = [_operand(lane) for lane in lanes[1:]]
            steps = [self._place.get(node, (None, step)) for step, node in enumerate(before)]
            if steps == [(steps[0][0], step) for step in range(len(steps))] and steps[0][0] is not None:
                self._products.remove(lanes)
                if not any(lane in self._place for lane in lanes):
                    self._add([*lanes, *[None] * (len(self._own.marks) - len(lanes))])
                    return True
                return self._add_product()
        return False

    def _leave_what_comes_before(self) -> None:
        """What needs nothing of the step before is an input: a first state may be made in its likeness."""
        needs = {}
        for place, column in enumerate(self._columns):
            made = [self._place.get(node, (None, 1)) for node in column.nodes[1].all_input_nodes]
            needs[place] = [other for other, step in made if other is not None and step == 1]
            if any(step == 0 for _, step in made):
                needs[place] = [place]
        reached = {place for place, others in needs.items() if others == [place]} | {0}
        while more := {place for place, others in needs.items() if reached & {*others}} - reached:
            reached |= more
        self._place = {node: place for node, place in self._place.items() if place[0] in reached}

    def _fit(self, lanes: list[Node], is_kind: Callable[[Node], bool] = _is_elementwise) -> bool:
        first = lanes[0]
        return (
            all(is_kind(lane) and lane not in self._place for lane in lanes)
            and all(lane.op == first.op and lane.target == first.target for lane in lanes)
            and len({g.signatures(lane) for lane in lanes}) == 1
            and g.value(first).shape == self._shape
        )

    def _entries(self, column: Column) -> list:
        return [self._entry(lanes) for lanes in _arguments(column)]

    def _entry(self, lanes: list) -> tuple:
        own, first = self._own, lanes[0]
        if not isinstance(first, Node):
            if any(isinstance(lane, Node) or type(lane) is not type(first) or lane != first for lane in lanes):
                raise Misfit("a number of it differs from step to step")
            return FIXED, first, 0
        if not all(isinstance(lane, Node) for lane in lanes):
            raise Misfit("its steps are not alike")
        places = [self._place.get(lane) for lane in lanes]
        if all(place == (places[-1][0] if places[-1] else None, step) for step, place in enumerate(places)):
            return INNER, *self._made(first)
        if places[-1] and all(place == (places[-1][0], step) for step, place in enumerate(places[1:])):
            made = self._made(lanes[1])
            return STATE, self._state(made, first), 0
        if any(place is not None for place in places):
            raise Misfit("a step takes what another step than the one before it made")
        if all(lane is first for lane in lanes):
            if not isinstance(g.value(first), Tensor):
                raise Misfit(f"{g.name_of(first)} is no tensor")
            return CONSTANT, _number(own.constants, first), 0
        if len(lanes) < len(own.marks) or len({g.signatures(lane) for lane in lanes}) > 1:
            raise Misfit("its steps are not alike")
        if not isinstance(g.value(first), Tensor) or g.value(first).shape != self._shape:
            raise Misfit(f"an input changes from step to step that has not its own shape {tuple(self._shape)}")
        return X, _number(own.xs, tuple(lanes)), 0

    def _made(self, node: Node) -> tuple[int, int]:
        """The call of a step, and which of its outputs, that a node's value is."""
        place, _ = self._place[node]
        if self._columns[place].like.target is operator.getitem:
            if node.args[0] not in self._place:
                raise Misfit("it takes another surrogate gradient's spikes within a step")
            return self._made(node.args[0])[0], node.args[1]
        return self._numbers[id(self._columns[place])], 0

    def _state(self, made: tuple[int, int], initial: Node) -> int:
        own = self._own
        for k, before in enumerate(zip(own.states, own.initial, strict=True)):
            if before == (made, initial):
                return k
        if not isinstance(g.value(initial), Tensor) or g.value(initial).shape != self._shape:
            raise Misfit(f"its first state has not its own shape {tuple(self._shape)}")
        own.states.append(made)
        own.initial.append(initial)
        return len(own.states) - 1


def _arguments(column: Column) -> list[list]:
    """The arguments of all steps, by their place in a call."""
    return [list(lanes) for lanes in zip(*(_given(node) for node in column.nodes if node is not None), strict=True)]


def _given(node: Node) -> list:
    if _is_mark(node):
        return list(node.args[2:])
    return [*node.args, *(node.kwargs[name] for name in sorted(node.kwargs))]


def _number(known: list, value) -> int:
    if value not in known:
        known.append(value)
    return known.index(value)


class CellPack:
    """Steps of a neuron of the user's own that run as one cell; `outputs`: nodes that are an (output, step) of it."""

    def __init__(self, own: OwnNeuron):
        self.own, self.steps = own, tuple(own.marks)
        self._nodes = {node for column in own.calls for node in column.nodes} - own.shared - {None}
        marks = self._nodes & {*own.marks}
        picks = {user for node in marks for user in node.users if user.target is operator.getitem}
        self._nodes |= picks
        self.outputs: dict[Node, tuple[int, int]] = {}
        self.given: list[tuple[int, int]] = []
        for number, column in enumerate(own.calls):
            is_mark = column.nodes[0] is own.marks[0]
            for step, node in enumerate(column.nodes):
                if node not in self._nodes:
                    continue
                for value in picks & set(node.users) if is_mark else (node,):
                    if any(user not in self._nodes for user in value.users):
                        self.outputs[value] = _number(self.given, (number, 0)), step

    @property
    def nodes(self) -> list[Node]:
        return sorted(self._nodes)

    @property
    def takes_its_own(self) -> bool:
        """Whether it begins with something that it makes."""
        given = {*self.own.initial, *self.own.constants, *(lane for lanes in self.own.xs for lane in lanes)}
        return bool(given & self._nodes)

    @property
    def pieces(self) -> list[Node]:
        """The nodes whose values become pieces of the pack's stacks."""
        return list(self.outputs)

    @property
    def inputs(self) -> list[tuple]:
        """Columns of what it takes from outside."""
        return self.own.xs

    def call(self) -> Callable:
        """(inputs [T, ...], states, constants) -> outputs [T, ...]. Raises Refused or BuildFailed."""
        own, calls = self.own, []
        for column, entries in zip(own.calls, own.entries, strict=True):
            node = column.like
            if _is_mark(node):
                calls.append((_Applied.of(node), (), entries))
                continue
            function = getattr(Tensor, node.target) if node.op == "call_method" else node.target
            calls.append((function, tuple(sorted(node.kwargs)), entries))
        given = [[node for node in own.calls[number].nodes if node is not None] for number, _ in self.given]
        learns = [any(t.requires_grad for node in nodes for t in g.tensors(node)) for nodes in given]
        found = _Call(calls, self.given, own.states, learns)
        lanes = [x[0] for x in own.xs], own.initial, own.constants
        with tracing(None):
            found.built(*([_like(g.value(node)) for node in group] for group in lanes))
        return found


def _like(value: Tensor) -> Tensor:
    return torch.zeros(value.shape, dtype=value.dtype, device=value.device, requires_grad=value.requires_grad)


class _Call:
    """A cell's sequence call, as a graph calls it."""

    __name__ = "own_neuron"

    def __init__(self, calls: list, outputs: list, states: list, learns: list[bool]):
        self._calls, self._outputs, self._states, self._learns = calls, outputs, states, learns
        self._known = None

    def _step(self, constants: list[Tensor]) -> Step:
        key = tuple(map(id, constants))
        if self._known is None or self._known[0] != key:
            self._known = key, Step(self._calls, self._outputs, self._states, constants)
        return self._known[1]

    def built(self, xs: list[Tensor], states: list[Tensor], constants: list[Tensor]) -> Callable:
        """Its run for steps and states like these."""
        from .. import cells

        return cells.fused(self._step(constants), xs, states)

    def __call__(self, xs, states, constants) -> tuple[Tensor, ...]:
        from .. import cells, ops
        from ..cells.program import run_loop

        step = self._step(list(constants))
        try:
            outs, _ = self.built([x[0] for x in xs], states, step.constants)(xs, states)
        except (cells.Refused, cells.BuildFailed) as refused:
            warnings.warn(f"a neuron of your own is not fused, its steps run one by one: {refused}", stacklevel=2)
            ops.tell("reference", (*xs, *states), len(xs[0]))
            outs, _ = run_loop(step, xs, states)
        return tuple(out if learns else out.detach() for out, learns in zip(outs, self._learns, strict=True))
