"""The graphs of one step of a cell, forward and joint with its backward. The one file that names torch's tracer."""

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor
from torch.fx import GraphModule

from .products import Products
from .surroundings import Surroundings

lock = threading.RLock()
"""One thread traces at a time: torch's tracer keeps state of the process's, and the user's modules hold other tensors
meanwhile."""


class Refused(Exception):
    """Why a cell is not fused, in words that follow its name."""


Step = Callable[[tuple, tuple], tuple[tuple, tuple]]
"""step(inputs, states) -> (outputs, states), tuples of tensors."""


@dataclass(frozen=True)
class Present:
    """Which gradients a step's backward has: of outputs, of states, and from outside of the states before it."""

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


@functools.cache
def _fake_mode() -> type:
    # Here and below: with them comes sympy, which nobody needs who has no cell.
    from torch._subclasses.fake_tensor import FakeTensorMode

    class FakeMode(FakeTensorMode):
        """One that leaves torch's guard of devices alone, which other threads use."""

        avoid_device_init = False

    return FakeMode


class Tracer:
    """Traces steps of cells for inputs, states and tensors like these; it holds none of them."""

    def __init__(self, xs: Sequence[Tensor], states: Sequence[Tensor], tensors: Sequence[Tensor]):
        with lock:
            self._mode = _fake_mode()(allow_non_fake_inputs=True)
            self._xs, self._states, self._tensors = map(self._fakes, (xs, states, tensors))

    def forward(self, step: Step, surroundings: Surroundings) -> Traced:
        """Raises Refused."""
        told = {}

        def run(xs, states, tensors):
            with torch.no_grad(), Products(xs[0].shape), surroundings.substituted(tensors):
                outs, new = step(tuple(xs), tuple(states))
            told["out_is_state"] = tuple(next((k for k, s in enumerate(new) if s is out), None) for out in outs)
            told["outs"] = tuple(outs)
            return *outs, *new

        module = self._captured(run, surroundings, self._xs, self._states, self._tensors)
        return Traced(module, **told)

    def joint(self, step: Step, surroundings: Surroundings, traced: Traced, present: Present, written: bool) -> Joint:
        """The graph from inputs, states, tensors and gradients to gradients.

        Args:
            written: whether the step writes to its states in place.

        Placeholders: inputs, states, tensors, gradients of outputs, of states, outer ones. Outputs: gradients of
        inputs, states and tensors (None: autograd has none), then the new states. Raises Refused.
        """
        told = {}

        def like(tensors):
            with self._mode:
                return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]

        def run(xs, states, tensors, grad_outs, grad_states, outers):
            learn = [tensor.requires_grad for tensor in surroundings.tensors]
            leaves = [*map(_leaf, xs)], [*map(_leaf, states)], [*map(_leaf, tensors, learn)]
            # Autograd's own functions would take the mode's tensors for those of the cell.
            with torch.enable_grad(), surroundings.placed(leaves[2]) as mode:
                # No leaves, to which nobody may write in place.
                inputs, before = [x.clone() for x in leaves[0]], [state.clone() for state in leaves[1]]
                given = [state.clone() for state in before] if written else before
                with Products(xs[0].shape), mode:
                    outs, new = step(tuple(inputs), tuple(given))
                told["outs"] = tuple(out.requires_grad for out in outs)
                told["states"] = tuple(state.requires_grad for state in new)
                # Roots' own gradients come first in autograd's sums, as those from outside do in a loop's.
                pairs = [*compress(zip(before, outers, strict=True), present.outer)]
                own = [has and place is None for has, place in zip(present.outs, traced.out_is_state, strict=True)]
                pairs += compress(zip(outs, grad_outs, strict=True), own)
                pairs += compress(zip(new, grad_states, strict=True), present.states)
                pairs = [(root, grad) for root, grad in pairs if root.requires_grad]
                wanted = [leaf for group in leaves for leaf in group if leaf.requires_grad]
                own = [tensor for tensor in surroundings.tensors if tensor.requires_grad]
                found = [None] * len(wanted)
                if pairs and wanted:
                    roots, grads = zip(*pairs, strict=True)
                    found = torch.autograd.grad(roots, [*wanted, *own], grads, allow_unused=True)
            if any(grad is not None for grad in found[len(wanted) :]):
                raise Refused("an autograd function takes a tensor that learns from where it cannot be traced")
            found = iter(found)
            grads = [next(found) if leaf.requires_grad else None for group in leaves for leaf in group]
            return *grads, *new

        gradients = like(traced.outs), like(self._states), like(self._states)
        module = self._captured(run, surroundings, self._xs, self._states, self._tensors, *gradients)
        return Joint(module, **told)

    def _fakes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [self._mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in tensors]

    def _captured(self, run: Callable, surroundings: Surroundings, *given: list[Tensor]) -> GraphModule:
        from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
        from torch.fx.experimental.proxy_tensor import make_fx

        try:
            with lock, surroundings.as_seen(), self._mode:
                module = make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)(*given)
                changed = surroundings.changed()
            constants = [getattr(module, node.target) for node in module.graph.nodes if node.op == "get_attr"]
            if any(constant is tensor for constant in constants for tensor in surroundings.tensors):
                raise Refused("it reads a tensor from where that cannot be traced")
            if changed is not None:
                raise Refused(f"its step changes something that it shares with other code: {changed}")
            return module
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise Refused(f"{error.func}: what follows depends on the values") from error
        except Refused:
            raise
        except Exception as error:  # noqa: BLE001
            # The loop that runs instead says better what is wrong with the cell.
            raise Refused(f"it cannot be traced: {type(error).__name__}: {error}") from error


def _leaf(tensor: Tensor, learns: bool = True) -> Tensor:
    return tensor.detach().requires_grad_() if learns and tensor.is_floating_point() else tensor
