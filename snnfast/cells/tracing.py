"""The graphs of one step of a cell, forward and joint with its backward. The one file that names torch's tracer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from .surroundings import Surroundings


class Refused(Exception):
    """Why a cell is not fused, in words that follow its name."""


Step = Callable[[tuple, tuple], tuple[tuple, tuple]]
"""step(inputs, states) -> (outputs, states), tuples of tensors."""


@dataclass(frozen=True)
class Present:
    """Which gradients a step's backward has: of its outputs, of its states, and from outside of the states before it."""

    outs: tuple[bool, ...]
    states: tuple[bool, ...]
    outer: tuple[bool, ...]


@dataclass
class Traced:
    """A forward graph: its placeholders are inputs, states and tensors of the surroundings, its outputs outputs and
    states.

    Attributes:
        out_is_state: by output, the place among the new states of the same tensor, or None.
        outs: the outputs as fake tensors.
    """

    module: GraphModule
    out_is_state: tuple[int | None, ...]
    outs: tuple[Tensor, ...]


@dataclass
class Joint:
    """A joint graph.

    Attributes:
        outs, states: which of them autograd differentiates.
    """

    module: GraphModule
    outs: tuple[bool, ...]
    states: tuple[bool, ...]


class Tracer:
    """Traces one step of a cell for inputs and states like these."""

    def __init__(self, step: Step, xs: Sequence[Tensor], states: Sequence[Tensor], surroundings: Surroundings):
        self.step, self.surroundings = step, surroundings
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._xs, self._states = self._fakes(xs), self._fakes(states)
        self._tensors = self._fakes(surroundings.tensors)
        self.shape = self._xs[0].shape

    def forward(self) -> Traced:
        """Raises Refused."""
        told = {}

        def run(xs, states, tensors):
            with torch.no_grad(), self.surroundings.substituted(tensors):
                outs, new = self.step(tuple(xs), tuple(states))
            told["out_is_state"] = tuple(next((k for k, s in enumerate(new) if s is out), None) for out in outs)
            told["outs"] = tuple(outs)
            return *outs, *new

        module = self._captured(run, self._xs, self._states, self._tensors)
        return Traced(module, told["out_is_state"], told["outs"])

    def joint(self, traced: Traced, present: Present, written: bool) -> "Joint":
        """The graph from inputs, states, tensors and gradients to gradients.

        Args:
            written: whether the step writes to its states in place.

        Placeholders: inputs, states, tensors, gradients of outputs, of states, outer ones. Outputs: gradients of
        inputs, states and tensors (None: autograd has none), then the new states. Raises Refused.
        """
        told = {}

        def like(tensors):
            return [self._mode.from_tensor(torch.empty(t.shape, dtype=t.dtype), static_shapes=True) for t in tensors]

        def run(xs, states, tensors, grad_outs, grad_states, outers):
            learn = [tensor.requires_grad for tensor in self.surroundings.tensors]
            leaves = [_leaf(t) for t in xs], [_leaf(t) for t in states], [*map(_leaf, tensors, learn)]
            with torch.enable_grad(), self.surroundings.substituted(leaves[2]):
                # No leaves, to which nobody may write in place.
                given = [x.clone() for x in leaves[0]], [s.clone() for s in leaves[1]]
                before = list(given[1])
                if written:
                    given = given[0], [s.clone() for s in before]
                outs, new = self.step(tuple(given[0]), tuple(given[1]))
                told["outs"] = tuple(out.requires_grad for out in outs)
                told["states"] = tuple(state.requires_grad for state in new)
                # Roots' own gradients come first in autograd's sums, as those from outside do in a loop's.
                pairs = [*compress(zip(before, outers, strict=True), present.outer)]
                own = [has and place is None for has, place in zip(present.outs, traced.out_is_state, strict=True)]
                pairs += compress(zip(outs, grad_outs, strict=True), own)
                pairs += compress(zip(new, grad_states, strict=True), present.states)
                pairs = [(root, grad) for root, grad in pairs if root.requires_grad]
                wanted = [leaf for group in leaves for leaf in group if leaf.requires_grad]
                if not pairs or not wanted:
                    found = [None] * len(wanted)
                else:
                    roots, grads = zip(*pairs, strict=True)
                    found = torch.autograd.grad(roots, wanted, grads, allow_unused=True)
            found = iter(found)
            grads = [next(found) if leaf.requires_grad else None for group in leaves for leaf in group]
            return *grads, *new

        given = self._xs, self._states, self._tensors, like(traced.outs), like(self._states), like(self._states)
        return Joint(self._captured(run, *given), **told)

    def _fakes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [self._mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in tensors]

    def _captured(self, run: Callable, *given: list[Tensor]) -> GraphModule:
        try:
            with self._mode:
                return make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*given)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise Refused(f"{error.func}: what follows depends on the values") from error
        except Refused:
            raise
        except Exception as error:  # noqa: BLE001
            # The loop that runs instead says better what is wrong with the cell.
            raise Refused(f"it cannot be traced: {type(error).__name__}: {error}") from error
        finally:
            self.surroundings.restore()


def _leaf(tensor: Tensor, learns: bool = True) -> Tensor:
    return tensor.detach().requires_grad_() if learns and tensor.is_floating_point() else tensor

