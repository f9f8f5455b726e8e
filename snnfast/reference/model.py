"""What a neuron model is, and the loops over it: the specification that the kernels are held to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..transforms import vjp
from . import firing


class Call(NamedTuple):
    """The options of a call.

    `spike_grad` maps `mem - threshold` to spikes; `state_quant` (a callable or False) quantises the states;
    `inhibition` lets only the largest membrane along dimension 1 fire.
    """

    spike_grad: Callable[[Tensor], Tensor]
    reset_mechanism: str = "subtract"
    reset_delay: bool = True
    state_quant: Any = False
    inhibition: bool = False


@dataclass(frozen=True)
class Model:
    """A neuron model: what one step computes, and how the operators of this name take it.

    A step charges the states and then fires. Parameters broadcast over a step [...]; states have its shape, the
    membrane comes first.

    Attributes:
        name: of the operators.
        layer: as people know it.
        states, params: in the order in which every function takes them.
        charge: (x, states, params, reset, call) to the charged states; linear in x and states. A recurrent model
            takes (x, rec), two currents, for x.
        fire: (charged states, reset, params, call) to spikes and states.
        reset: (states, params, call) to what the last spikes leave to this step, without gradient.
        current: (states before, charged states, params) to the step's current, where the parameters' gradients depend
            on it; None: they do not.
        threshold: the parameter that the membrane exceeds where it fires.
        output: the state that is the output itself and needs no place of its own, always the last; None: no such.
        recurrent: whether it takes a second current.
        spikes: whether the output is spikes, whose gradient is a surrogate.
        fuses_steps: whether a single step is an operator of its own; else it runs in torch's operations, so that
            autograd adds a state's gradients one by one, as in the library.
        delay_optional: whether the reset may come in the step that fires, or has its one time.
        keeps_charge: whether the membrane that fired is another than the one after the step, reset delay or not.
    """

    name: str
    layer: str
    states: tuple[str, ...]
    params: tuple[str, ...]
    charge: Callable
    fire: Callable = firing.fire
    reset: Callable = firing.reset
    current: Callable | None = None
    threshold: str = "threshold"
    output: str | None = None
    recurrent: bool = False
    spikes: bool = True
    fuses_steps: bool = True
    keeps_charge: bool = False
    delay_optional: bool = True

    def extras(self, reset_delay: bool) -> int:
        """How many values of a step backward needs beside the states: the charge, where the membrane is not."""
        return int(self.spikes and (self.keeps_charge or (self.delay_optional and not reset_delay)))

    @property
    def recomputable(self) -> bool:
        """Whether backward may run the steps again from the currents, in the place of reading their states."""
        return len(self.states) == 1 and self.spikes and not self.recurrent

    @property
    def stored(self) -> int:
        """How many states, from the first, are stored for all steps when all are wanted."""
        return len(self.states) - (self.output is not None)

    @property
    def needed(self) -> int:
        """How many of them backward needs for the gradients of current and initial states."""
        return int(self.spikes)


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
    grad_spk: Tensor,
    grad_last: tuple,
    grad_seqs: tuple,
    grad_charge: Tensor | None,
    seqs: tuple,
    charge: Tensor | None,
    initial: tuple,
    params: tuple,
    call: Call,
) -> tuple[Tensor, tuple, tuple]:
    """The backward of `loop` in differentiable operations, which is what makes double backward possible.

    Each step is differentiated where forward was, at the states that it stored: they carry the graph to x.

    Args:
        grad_spk: dL/dspikes [T, ...].
        grad_last, grad_seqs: dL/d(last states) [...] and dL/d(all states) [T, ...], a tensor or None for each.
        grad_charge: dL/dcharge [T, ...], or None.
        seqs: the states after each step [T, ...]; zeros where they were not stored.
        charge: the membranes that fired [T, ...]; None where they are the membranes.
        initial: the states before the first step [...].

    Returns:
        dL/dx [T, ...], dL/dinitial [...], and per step the gradients of the parameters [T, ...].
    """
    count = len(initial)
    carry = [torch.zeros_like(i) if g is None else g for i, g in zip(initial, grad_last, strict=True)]
    steps = []
    for t in reversed(range(len(seqs[0]))):
        before = tuple(seq[t - 1] if t > 0 else i for seq, i in zip(seqs, initial, strict=True))
        charged = tuple(seq[t] for seq in (seqs[0] if charge is None else charge, *seqs[1:]))
        grads = [c if g is None else g[t] + c for g, c in zip(grad_seqs, carry, strict=True)]
        reset = model.reset(before, params, call)

        def fire(*given, reset=reset):
            spk, states = model.fire(given[:count], reset, given[count:], call)
            return spk, *states

        def charge_from(x, *given, reset=reset):
            return model.charge((x, x) if model.recurrent else x, given[:count], given[count:], reset, call)

        grads = vjp(fire, (*charged, *params), (grad_spk[t], *grads))
        of_charged, of_params = grads[:count], grads[count:]
        if grad_charge is not None:
            of_charged[0] = of_charged[0] + grad_charge[t]
        x = _current(model, before, charged, params)
        of_x, *grads = vjp(charge_from, (x, *before, *params), of_charged)
        carry = grads[:count]
        steps.append((of_x / 2 if model.recurrent else of_x, *map(torch.add, of_params, grads[count:])))
    if not steps:
        return torch.zeros_like(seqs[0]), tuple(carry), tuple(p.new_zeros(0, *p.shape) for p in params)
    grad_x, *grad_params = (torch.stack(column[::-1]) for column in zip(*steps, strict=True))
    return grad_x, tuple(carry), tuple(grad_params)


def _current(model, before, charged, params) -> Tensor:
    """The current of a step, or zeros where no gradient depends on it; of a recurrent model, each half of the sum."""
    if model.current is None:
        return torch.zeros_like(before[0])
    current = model.current(before, charged, params)
    return current / 2 if model.recurrent else current
