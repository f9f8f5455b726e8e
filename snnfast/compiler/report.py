"""What became of each layer: fused over time or not, and why not."""

from dataclasses import dataclass, field

from torch.fx import Node

from . import graph as g
from .chains import Chain, what_broke

KEPT_PER_STEP = 'its recurrent products would round otherwise in one call: products="per-step" keeps them'


@dataclass
class LayerReport:
    """One layer's steps in a captured graph, and the calls they became; `reasons`: why these are not fewer."""

    layer: str
    steps: int = 0
    calls: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def fused(self) -> bool:
        """Whether sequence calls took the place of all steps."""
        return self.calls < self.steps and not self.reasons

    def __str__(self):
        plural = "s" if self.steps > 1 else ""
        if self.fused:
            what = f"fused over time: {self.steps} steps in {self.calls} sequence call{'s' if self.calls > 1 else ''}"
        elif self.calls < self.steps:
            what = f"fused in part: {self.steps} steps in {self.calls} calls"
        else:
            what = f"not fused: {self.steps} step{plural}, one call each"
        why = "".join(f"\n    {reason}" for reason in dict.fromkeys(self.reasons))
        return f"{self.layer or 'a neuron that is itself what is compiled'}: {what}{why}"


def report(chains: list[Chain], packing) -> list[LayerReport]:
    """The layers of a graph in the order of their first steps."""
    layers = {}
    for chain in chains:
        layer = layers.setdefault(chain.layer, LayerReport(chain.layer))
        packs = {id(packing.pack_of[step]) for step in chain.steps if step in packing.pack_of}
        alone = [step for step in chain.steps if step not in packing.pack_of]
        layer.steps += len(chain.steps)
        layer.calls += len(packs) + len(alone)
        layer.reasons += [_feedback(packing.refused[step]) for step in chain.steps if step in packing.refused and alone]
        if len(chain.steps) == 1 and what_broke(chain):
            layer.reasons.append(what_broke(chain))
        elif len(chain.steps) > 1 and chain.neuron.recurrent and packing.exact:
            layer.reasons.append(KEPT_PER_STEP)
    for layer in layers.values():
        if layer.steps == 1:
            layer.reasons.append(
                "only one of its steps is in the graph: a loop over time must be inside what is compiled"
            )
    return list(layers.values())


def _feedback(path: list[Node]) -> str:
    through = [g.layer_of(node) or g.name_of(node) for node in path if g.is_call(node)]
    steps = list(dict.fromkeys(name for name in through if name))
    return f"a step depends on an earlier one through {', '.join(steps)}"
