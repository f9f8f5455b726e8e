"""Chains: the calls of one neuron layer that hand their state from step to step."""

import operator
from dataclasses import dataclass

from torch.fx import Node

from .. import ops
from ..reference import MODELS, Model
from . import graph as g

FROM_ELSEWHERE = "it goes on from the state of another layer, or with other parameters than the step before"


@dataclass(frozen=True)
class NeuronOperators:
    """A neuron's step and sequence operators.

    Both take the current first; the step has the states at the positions `states`. It returns spikes, then the states;
    the sequence takes [T, ...] and a last argument, whether all states are wanted, and returns spikes, last states, and
    all values of the first `stored` states; a state beyond them is the spikes. A `recurrent` step has a second current,
    which in a sequence is what one linear layer makes of the spikes of the step before. `keeps_all`: backward keeps
    these values, wanted or not.
    """

    step: object
    sequence: object
    states: tuple[int, ...]
    stored: int
    recurrent: bool
    keeps_all: bool

    def output_of_all(self, output: int) -> int:
        """Which output of the sequence holds all values of the state that is this output of a step."""
        return output + len(self.states) if output <= self.stored else 0

    def sequence_arguments(self, step: Node) -> tuple:
        """What a sequence that begins with this step takes after the currents."""
        if not self.recurrent:
            return step.args[1:]
        spk, weight, bias = g.linear_arguments(step.args[1])
        return weight, bias, spk, *step.args[2:]

    def inner_nodes(self, steps) -> list[Node]:
        """What only the sequence of these steps computes, besides the steps: products of their spikes."""
        return [step.args[1] for step in steps if self.recurrent and len(step.args[1].users) == 1]

    def shared_arguments(self, step: Node) -> list:
        """The arguments that are the same at every step."""
        recs = g.linear_arguments(step.args[1]) if self.recurrent else None
        return [*(recs or ())[1:], *step.args[self.states[-1] + 1 :]]


def _neuron(model: Model) -> NeuronOperators:
    first = 1 + model.recurrent
    positions = tuple(range(first, first + len(model.states)))
    keeps_all = model.stored == len(model.needed)
    return NeuronOperators(*ops.CAPTURED[model.name], positions, model.stored, model.recurrent, keeps_all)


NEURONS = tuple(_neuron(model) for model in MODELS)


@dataclass
class Chain:
    """Steps of one layer, each but the first starting from the states that the one before it left."""

    neuron: NeuronOperators
    steps: list[Node]

    @property
    def layer(self) -> str:
        return g.layer_of(self.steps[0])


def find_chains(graph) -> list[Chain]:
    """All chains, in the order of their first steps; a step that is linked to none is a chain of one."""
    ends, chains = {}, []
    for node in graph.nodes:
        neuron = next((neuron for neuron in NEURONS if g.is_operator(node, neuron.step)), None)
        if neuron is None:
            continue
        before = _step_before(node, neuron)
        if before in ends and _why_apart(before, node, neuron) is None:
            chain = ends.pop(before)
            chain.steps.append(node)
        else:
            chain = Chain(neuron, [node])
            chains.append(chain)
        ends[node] = chain
    return chains


def _step_before(node: Node, neuron: NeuronOperators) -> Node | None:
    """The step all of whose states this one starts from."""
    origins = set()
    for output, position in enumerate(neuron.states, 1):
        state = node.args[position]
        picked = isinstance(state, Node) and state.target is operator.getitem
        origins.add(state.args[0] if picked and _is_output(state, output, neuron) else None)
    return origins.pop() if len(origins) == 1 else None


def _is_output(picked: Node, output: int, neuron: NeuronOperators) -> bool:
    """Whether a node picks this output of a step, or in its place spikes that are its equal."""
    if picked.args[1] != 0 or output <= neuron.stored:
        return picked.args[1] == output
    values = g.value(picked.args[0])
    return g.signature(values[0]) == g.signature(values[output])


def _why_apart(before: Node, node: Node, neuron: NeuronOperators) -> str | None:
    """Why two steps, of which one starts from what the other left, are not two of one sequence."""
    reason = _why_not_fed_back(before, node) if neuron.recurrent else None
    if reason is None and not _alike(before, node, neuron):
        reason = FROM_ELSEWHERE
    return reason


def _alike(before: Node, node: Node, neuron: NeuronOperators) -> bool:
    """The same neurons: equal parameters and options, and currents of one shape."""
    if neuron.shared_arguments(before) != neuron.shared_arguments(node) or g.kind(before) != g.kind(node):
        return False
    currents = zip(before.args[: neuron.states[0]], node.args[: neuron.states[0]], strict=True)
    return all(g.signatures(earlier) == g.signatures(later) for earlier, later in currents)


def _why_not_fed_back(before: Node, node: Node) -> str | None:
    """Why a step's second current is more, or less, than a linear layer's of the spikes of the step before."""
    rec = node.args[1]
    linear = g.linear_arguments(rec)
    if linear is None:
        through = f" through {g.name_of(rec)}" if isinstance(rec, Node) else "nowhere"
        return f"its spikes come back{through}, where only a linear layer is fused"
    spk, weight, _ = linear
    if spk.target is not operator.getitem or spk.args != (before, 0):
        return "what comes back to it are no spikes of the step before, as they are"
    if len(rec.users) > 1:
        return "what comes back is used elsewhere too"
    if len({tensor.dtype for value in (node.args[0], rec, weight, node) for tensor in g.tensors(value)}) > 1:
        return "its spikes come back in another dtype than its states, as in half precision"
    return None


def what_broke(chain: Chain) -> str | None:
    """Why the first step of a chain does not go on another one, though it starts from what an earlier step left."""
    step = chain.steps[0]
    for position in chain.neuron.states:
        state = step.args[position]
        if not isinstance(state, Node) or not _follows_a_step(state, chain.neuron):
            continue
        if state.target is not operator.getitem:
            return f"its state passes through {g.name_of(state)} between the steps"
        before = state.args[0]
        return (g.is_operator(before, chain.neuron.step) and _why_apart(before, step, chain.neuron)) or FROM_ELSEWHERE
    return None


def _follows_a_step(node: Node, neuron: NeuronOperators, within: int = 8) -> bool:
    """Whether a value is made, by a few calls, of what some step returned."""
    if g.is_operator(node, neuron.step):
        return True
    return within > 0 and any(_follows_a_step(before, neuron, within - 1) for before in node.all_input_nodes)
