"""What became of each layer in a captured graph: run as sequences or not, and why not."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.fx import Node

from ..neurons.base import snntorch
from . import graph as g
from .cells import OwnNeuron
from .chains import Chain, what_broke

HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep
TORCH = os.path.dirname(torch.__file__) + os.sep
SNNTORCH = (os.path.dirname(snntorch.__file__) + os.sep,) if snntorch else ()


class Reason(NamedTuple):
    """Why a layer's steps are not one call, and what its owner can do."""

    cause: str
    advice: str


KEPT_PER_STEP = Reason(
    'its recurrent products would round otherwise in one call: products="per-step" keeps them',
    'take products="batched" where equal bits are not needed',
)
ONE_STEP = Reason(
    "only one of its steps is in the graph: a loop over time must be inside what is compiled",
    "put the loop over time into the forward that is accelerated, or give the whole sequence to the layer's unroll",
)
STATE = "hand the state that one step returned to the next step as it is, and let one layer have one state"
WAY_BACK = "send its spikes back through one linear layer and nothing else, as RLeaky does"
OWN = "snnfast.Cell and snnfast.scan say what a step must be like to run as one kernel"
LOOP = "what runs in a circle from step to step stays a loop; break the circle, or leave it: the rest is fused"


@dataclass
class LayerReport:
    """One layer in one run.

    Attributes:
        layer: its name, as in `named_modules`.
        steps: time steps that it computed.
        calls: calls of its kernels, which is what the profiler counts; steps of the plain PyTorch loop are none.
        alone: the steps that were no part of a sequence.
        where: file:line of its call.
        why: reasons for steps that stayed alone.
    """

    layer: str
    steps: int = 0
    calls: int = 0
    alone: int = 0
    where: str = ""
    why: list[Reason] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """The causes, each once."""
        return list(dict.fromkeys(reason.cause for reason in self.why))

    @property
    def advice(self) -> list[str]:
        """What can be done about them."""
        return list(dict.fromkeys(reason.advice for reason in self.why))

    @property
    def fused(self) -> bool:
        """Whether sequence calls took the place of all steps."""
        return self.alone == 0 and not self.why

    def __str__(self):
        sequences = self.calls - self.alone
        if self.alone == 0:
            what = f"fused over time: {_count(self.steps, 'step')} in {_count(self.calls, 'sequence call')}"
        elif self.calls == 0:
            what = f"not fused: {_count(self.steps, 'step')} in plain PyTorch, no kernel"
        elif sequences > 0:
            what = f"fused in part: {_count(self.steps, 'step')} in {_count(self.calls, 'call')}"
        else:
            what = f"not fused: {_count(self.steps, 'step')}, one call each"
        lines = [f"{self.layer or 'a neuron that is itself what is compiled'}: {what}"]
        lines[0] += f" ({self.where})" if self.where else ""
        lines += [f"    {cause}" for cause in self.reasons]
        lines += [f"    to do: {advice}" for advice in self.advice]
        return "\n".join(lines)


@dataclass
class GraphReport:
    """What is known of a captured graph before it runs.

    Attributes:
        why: by the path of a layer, as torch names it, reasons for its steps that stay alone.
        captured: by the path of a module, how often it was called, and its line.
        own: neurons of the user's own whose steps stay alone.
        window: how many steps run at once, and why; empty where there is no loop.
        left: how often an operator is left at a line of the user's, where it is there more than once.
        ended: why the graph ends where the function does not, and where that is; empty where it does.
    """

    why: dict[str, list[Reason]]
    captured: dict[str, tuple[int, str]]
    own: list[LayerReport]
    window: str
    left: Counter
    ended: str


def report(graph_module, chains: list[Chain], owns: list[OwnNeuron], packing, window: str) -> GraphReport:
    """The report of a graph that is packed and not yet emitted."""
    why = {}
    for chain in chains:
        why.setdefault(chain.layer, []).extend(_why_alone(chain, packing))
    steps = Counter()
    for chain in chains:
        steps[chain.layer] += len(chain.steps)
    for layer, reasons in why.items():
        if steps[layer] == 1:
            reasons.append(ONE_STEP)
    left = Counter(
        (g.name_of(node), line_of(node))
        for node in packing.graph.nodes
        if g.is_call(node) and node not in packing.pack_of and g.name_of(node) != "getitem"
    )
    left = Counter({key: count for key, count in left.items() if count > 1})
    alone = [_own_alone(own, packing) for own in owns if own.marks[0] not in packing.pack_of]
    return GraphReport(why, _captured(graph_module), alone, window, left, _ended(graph_module))


def _own_alone(own: OwnNeuron, packing) -> LayerReport:
    """What is told of a neuron of the user's own that is not packed."""
    first, steps = own.marks[0], len(own.marks)
    name = f"a neuron of your own{f', {g.layer_of(first)}' if g.layer_of(first) else ''}"
    path = packing.refused.get(first)
    why = Reason(own.why, OWN) if path is None else _feedback(path, packing)
    return LayerReport(name, steps=steps, alone=steps, where=line_of(first), why=[why])


def _captured(graph_module) -> dict[str, tuple[int, str]]:
    calls, lines = {}, {}
    for node in graph_module.graph.nodes:
        for key, (name, _) in (node.meta.get("nn_module_stack") or {}).items():
            path = g.path_of(name)
            calls[key] = path  # torch numbers the calls of a module
            lines[path] = lines.get(path) or line_of(node)
    return {path: (count, lines[path]) for path, count in Counter(calls.values()).items()}


def _why_alone(chain: Chain, packing) -> list[Reason]:
    alone = [step for step in chain.steps if step not in packing.pack_of]
    refused = [packing.refused[step] for step in chain.steps if step in packing.refused]
    reasons = [_feedback(path, packing) for path in refused if alone]
    broke = what_broke(chain) if len(chain.steps) == 1 else None
    if broke:
        reasons.append(Reason(broke, WAY_BACK if chain.neuron.recurrent else STATE))
    elif len(chain.steps) > 1 and chain.neuron.recurrent and packing.exact:
        reasons.append(KEPT_PER_STEP)
    return reasons


def _feedback(path: list[Node], packing) -> Reason:
    calls = [node for node in path if g.is_call(node)]
    steps = list(dict.fromkeys(filter(None, (g.layer_of(node) or g.name_of(node) for node in calls))))
    cause = f"a step depends on an earlier one through {', '.join(steps)}"
    stands = next((node for node in calls if packing.watcher.effects(node)), None)
    if stands is None:
        return Reason(cause, LOOP)
    effects = packing.watcher.effects(stands)
    if effects.fence:
        does = "does what cannot be seen"
    else:
        does = "draws random numbers" if effects.random else "writes to memory that is read elsewhere"
    following = stands
    while not line_of(following) and following.op != "output":
        following = following.next  # torch says of no switch of a mode where it is
    where = line_of(following)
    name = g.name_of(stands) + (f" ({where})" if where else "")
    return Reason(f"{cause}: {name} {does}, and keeps its place among the steps", f"take {name} out of the loop")


def _ended(graph_module) -> str:
    reason = getattr(graph_module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    places = [place(frame.filename, frame.lineno) for frame in reason.user_stack if is_users(frame.filename)]
    return said_by_torch(reason.reason, places[-1] if places else "")


def said_by_torch(reason: str, where: str) -> str:
    """The message of a graph break, without its hints, and its place."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    explanation = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")]
    return ": ".join([*lines[:1], *explanation]) + (f" ({where})" if where else "")


def line_of(node: Node) -> str:
    """file:line of the user's that a node comes from; "" where it is not known."""
    frames = re.findall(r'File "(.+?)", line (\d+)', node.meta.get("stack_trace") or "")
    places = [place(name, line) for name, line in frames if is_users(name)]
    return places[-1] if places else ""


def place(filename: str, line) -> str:
    """file:line, as short as it is from the working directory."""
    return f"{filename.removeprefix(os.getcwd() + os.sep)}:{line}"


def is_users(filename: str) -> bool:
    """Whether a file is neither torch's nor of this library, nor of the one whose steps it takes over."""
    return not filename.startswith((HERE, TORCH, *SNNTORCH, "<"))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
