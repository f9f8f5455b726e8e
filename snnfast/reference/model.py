"""What a neuron model is, and the loops over it: the specification that the kernels are held to."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transforms import vjp
from . import firing
from .firing import Call


@dataclass(frozen=True)
class Model:
    """A neuron model: what one step computes, and how the operators of this name take it.

    A step charges the states and then fires. Parameters broadcast over a step [...]; states have its shape, and of a
    model that spikes the membrane comes first. `contract.check` raises where its functions do something else than it
    says here; the tests ask it, not the import: torch's autograd starts threads, and a forked child has none of them.

    Attributes:
        name: of the operators.
        layer: as people know it.
        states, params: in the order in which every function takes them.
        charge: (x, states, params, reset, call) to the charged states; linear in x and states. A recurrent model
            takes (x, rec), two currents, for x.
        fire: (charged states, reset, params, call) to spikes and states. It calls `call.spike_grad` once, on the
            charged membrane less the threshold.
        reset: (states, params, call) to what the last spikes leave to this step, without gradient.
        threshold: (charged states, params) to what the membrane exceeds where it fires. It may vary with time.
        current: (states before, charged states, params, reset, call) to the step's current, where the parameters'
            gradients depend on it; None: they do not.
        needed: the states that backward needs of all steps for the gradients of current and initial states, which are
            the first ones; for the parameters' it has all. A charged value among the extras is needed no second time.
        changed: the states that `fire` may change, reset delay or not. Without the delay it may change the membrane.
        held: the states that `charge` hands on as they were before the step.
        clamped: the parameters that a step clamps to [0, 1].
        output: the state that is the output itself and needs no place of its own, always the last; None: no such.
        recurrent: whether it takes a second current.
        spikes: whether the output is spikes, whose gradient is a surrogate.
        fuses_steps: whether a single step is an operator of its own; else it runs in torch's operations, so that
            autograd adds a state's gradients one by one, as in the library.
        delay_optional: whether the reset may come in the step that fires, or has its one time.
    """

    name: str
    layer: str
    states: tuple[str, ...]
    params: tuple[str, ...]
    charge: Callable
    fire: Callable = firing.fire
    reset: Callable = firing.reset
    threshold: Callable = firing.threshold
    current: Callable | None = None
    needed: tuple[str, ...] = ("mem",)
    changed: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    clamped: tuple[str, ...] = ()
    output: str | None = None
    recurrent: bool = False
    spikes: bool = True
    fuses_steps: bool = True
    delay_optional: bool = True

    def kept(self, reset_delay: bool) -> tuple[str, ...]:
        """The states whose charged values are a step's extras: neither the states before it nor after it have them."""
        changed = {*self.changed, *(self.states[:1] if self.delay_optional and not reset_delay else ())}
        return tuple(state for state in self.states if state in changed - {*self.held})

    def charged(self, reset_delay: bool, before: tuple, after: tuple, extras: tuple) -> tuple:
        """The charged states of a step, or of all, by those before and after and the extras."""
        kept = dict(zip(self.kept(reset_delay), extras, strict=True))
        each = zip(self.states, before, after, strict=True)
        return tuple(kept.get(name, earlier if name in self.held else later) for name, earlier, later in each)

    @property
    def rerunnable(self) -> bool:
        """Whether backward may rerun the steps from the currents, in the place of reading their states."""
        return len(self.states) == 1 and self.spikes and not self.recurrent

    @property
    def stored(self) -> int:
        """How many states, from the first, are stored for all steps when all are wanted."""
        return len(self.states) - (self.output is not None)


def step(
    model: Model, x: Tensor, states: tuple, params: tuple, call: Call, rec: Tensor | None = None
) -> tuple[Tensor, tuple]:
    """One step: current x [...] and states [...] to spikes and states [...]."""
    reset = model.reset(states, params, call)
    states = model.charge((x, rec) if model.recurrent else x, states, params, reset, call)
    if call.state_quant:
        states = tuple(call.state_quant(state) for state in states)
    return model.fire(states, reset, params, call)


def loop(
    model: Model,
    x: Tensor,
    states: tuple,
    params: tuple,
    call: Call,
    spk: Tensor | None = None,
    feed_back: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, tuple, tuple]:
    """A whole sequence: x [T, ...], states [...] to spikes [T, ...], last states [...] and all states [T, ...].

    A recurrent model has the last spikes, at first spk [...], fed back through `feed_back`.
    """
    spikes, history = [], []
    for current in x.unbind(0):
        rec = feed_back(spk) if model.recurrent else None
        spk, states = step(model, current, states, params, call, rec)
        spikes.append(spk)
        history.append(states)
    if not spikes:
        return x.new_empty(x.shape), states, tuple(state.new_empty(x.shape) for state in states)
    return torch.stack(spikes), states, tuple(torch.stack(column) for column in zip(*history, strict=True))


def backward(
    model: Model,
    grad_spk: Tensor | None,
    grad_last: tuple,
    grad_seqs: tuple,
    grad_extras: tuple,
    seqs: tuple,
    extras: tuple,
    initial: tuple,
    params: tuple,
    call: Call,
) -> tuple[Tensor, tuple, tuple]:
    """The backward of `loop` in differentiable operations, which is what makes double backward possible.

    Each step is differentiated where forward was, at the states that it stored: they carry the graph to x.

    Args:
        grad_spk: dL/dspikes [T, ...], or None.
        grad_last, grad_seqs: dL/d(last states) [...] and dL/d(all states) [T, ...], a tensor or None for each.
        grad_extras: dL/dextras [T, ...], a tensor or None for each.
        seqs: the states after each step [T, ...]; zeros where they were not stored.
        extras: the charged values that the states do not tell [T, ...], as `Model.kept` lists them.
        initial: the states before the first step [...].

    Returns:
        dL/dx [T, ...], dL/dinitial [...], and per step the gradients of the parameters [T, ...].
    """
    count, kept = len(initial), model.kept(call.reset_delay)
    carry = [torch.zeros_like(i) if g is None else g for i, g in zip(initial, grad_last, strict=True)]
    steps = []
    for t in reversed(range(len(seqs[0]))):
        before = tuple(seq[t - 1] if t > 0 else i for seq, i in zip(seqs, initial, strict=True))
        charged = model.charged(call.reset_delay, before, tuple(seq[t] for seq in seqs), tuple(e[t] for e in extras))
        grads = [c if g is None else g[t] + c for g, c in zip(grad_seqs, carry, strict=True)]
        reset = model.reset(before, params, call)

        def fire(*given, reset=reset):
            spk, states = model.fire(given[:count], reset, given[count:], call)
            return spk, *states

        def charge_from(x, *given, reset=reset):
            return model.charge((x, x) if model.recurrent else x, given[:count], given[count:], reset, call)

        grads = vjp(fire, (*charged, *params), (None if grad_spk is None else grad_spk[t], *grads))
        of_charged, of_params = list(grads[:count]), grads[count:]
        for name, grad in zip(kept, grad_extras, strict=True):
            if grad is not None:
                place = model.states.index(name)
                of_charged[place] = of_charged[place] + grad[t]
        x = _current(model, before, charged, params, reset, call)
        of_x, *grads = vjp(charge_from, (x, *before, *params), of_charged)
        carry = grads[:count]
        steps.append((of_x / 2 if model.recurrent else of_x, *map(torch.add, of_params, grads[count:])))
    if not steps:
        return torch.zeros_like(seqs[0]), tuple(carry), tuple(p.new_zeros(0, *p.shape) for p in params)
    grad_x, *grad_params = (torch.stack(column[::-1]) for column in zip(*steps, strict=True))
    return grad_x, tuple(carry), tuple(grad_params)


def _current(model, before, charged, params, reset, call) -> Tensor:
    """The current of a step, or zeros where no gradient depends on it; of a recurrent model, each half of the sum."""
    if model.current is None:
        return torch.zeros_like(before[0])
    current = model.current(before, charged, params, reset, call)
    return current / 2 if model.recurrent else current
