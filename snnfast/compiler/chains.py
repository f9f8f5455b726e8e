"""Chains: the calls of one neuron layer that hand their state from step to step."""

import operator
from dataclasses import dataclass

from torch.fx import Node

from .. import ops
from ..reference import MODELS, Model
from . import graph as g


@dataclass(frozen=True)
class Neuron:
    """A neuron's step and sequence operators.

    Both take the current first and the states at the positions `states`. The step returns spikes, then the states; the
    sequence takes [T, ...] and a last argument, whether all states are wanted, and returns spikes, last states, and
    all values of the first `stored` states; a state beyond them is the spikes.
    """

    step: object
    sequence: object
    states: tuple[int, ...]
    stored: int

    def output_of_all(self, output: int) -> int:
        """Which output of the sequence holds all values of the state that is this output of a step."""
        return output + len(self.states) if output <= self.stored else 0


def _neuron(model: Model) -> Neuron:
    positions = tuple(range(1, 1 + len(model.states)))
    return Neuron(*ops.CAPTURED[model.name], positions, model.stored)


NEURONS = tuple(_neuron(model) for model in MODELS if not model.recurrent)


@dataclass
class Chain:
    """Steps of one layer, each but the first starting from the states that the one before it left."""

    neuron: Neuron
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
        if before in ends and _alike(before, node, neuron):
            chain = ends.pop(before)
            chain.steps.append(node)
        else:
            chain = Chain(neuron, [node])
            chains.append(chain)
        ends[node] = chain
    return chains


def _step_before(node: Node, neuron: Neuron) -> Node | None:
    """The step all of whose states this one starts from."""
    origins = set()
    for output, position in enumerate(neuron.states, 1):
        state = node.args[position]
        picked = isinstance(state, Node) and state.target is operator.getitem and state.args[1] == output
        origins.add(state.args[0] if picked else None)
    return origins.pop() if len(origins) == 1 else None


def _alike(before: Node, node: Node, neuron: Neuron) -> bool:
    """The same neurons: equal parameters and options, and currents of one shape."""
    rest = [index for index in range(1, len(node.args)) if index not in neuron.states]
    if any(before.args[index] != node.args[index] for index in rest):
        return False
    return g.kind(before) == g.kind(node) and g.signatures(before.args[0]) == g.signatures(node.args[0])


def what_broke(chain: Chain) -> str | None:
    """Why the first step of a chain does not go on another one, though it starts from what an earlier step left."""
    step = chain.steps[0]
    for position in chain.neuron.states:
        state = step.args[position]
        if not isinstance(state, Node) or not _follows_a_step(state, chain.neuron):
            continue
        if state.target is operator.getitem:
            return "it goes on from the state of another layer, or with other parameters than the step before"
        return f"its state passes through {getattr(state.target, '__name__', state.target)} between the steps"
    return None


def _follows_a_step(node: Node, neuron: Neuron, within: int = 8) -> bool:
    """Whether a value is made, by a few calls, of what some step returned."""
    if g.is_operator(node, neuron.step):
        return True
    return within > 0 and any(_follows_a_step(before, neuron, within - 1) for before in node.all_input_nodes)
