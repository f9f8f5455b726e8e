"""The nodes of a captured graph: a model's step and sequence as one operator each, of torch's operations and ours."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .. import reference
from ..reference import Model
from .neuron import Recurrence, Result


class Captured(NamedTuple):
    """A model's step and sequence as torch.compile captures them: one differentiable node each.

    Both take x, the states, each of which may be None or of a shape that does not fit, for zeros, and the parameters;
    then the surrogate's name and constants, reset_mechanism and reset_delay, and the sequence whether all states are
    wanted. They return the spikes and the states; the sequence then all stored states, empty where not wanted. Those of
    a recurrent model take after x: the step rec, the sequence a `Recurrence`. `snnfast.functional` gives them their
    kernels.
    """

    step: Callable
    sequence: Callable


_library = torch.library.Library("snnfast", "FRAGMENT")


def _captured(model: Model) -> Captured:
    recs, feedback = "", ""
    if model.recurrent:
        recs, feedback = ", Tensor? rec", ", Tensor weight, Tensor? bias, Tensor? spk"
    rest = ", ".join([*(f"Tensor? {state}" for state in model.states), *(f"Tensor {param}" for param in model.params)])
    rest += ", str surrogate, float[] constants, str reset_mechanism, bool reset_delay"
    last, seqs = (", Tensor" * count for count in (len(model.states), model.stored))
    step, sequence = f"{model.name}_step", f"{model.name}_seq"
    _library.define(f"{step}(Tensor x{recs}, {rest}) -> (Tensor{last})")
    _library.define(f"{sequence}(Tensor x{feedback}, {rest}, bool want_seqs) -> (Tensor{last}{seqs})")
    return Captured(getattr(torch.ops.snnfast, step), getattr(torch.ops.snnfast, sequence))


def captured_run(model, x, rec, states, params, options, want_seqs) -> Result:
    """As `run`, on unchecked arguments: one node in the graph that torch.compile captures."""
    name, constants = options.surrogate.key
    recs = tuple(rec) if isinstance(rec, Recurrence) else (rec,) if model.recurrent else ()
    arguments = (x, *recs, *states, *params, name, constants, options.reset_mechanism, options.reset_delay)
    count = len(model.states)
    if not options.unroll:
        spk, *last = CAPTURED[model.name].step(*arguments)
        return Result(spk, tuple(last), None)
    spk, *rest = CAPTURED[model.name].sequence(*arguments, want_seqs)
    seqs = tuple(rest[count:]) if model.output is None else (*rest[count:], spk)
    return Result(spk, tuple(rest[:count]), seqs if want_seqs else None)


def composite(operator: str, function) -> None:
    """Makes a function of torch operations the kernel of an operator on every device."""
    _library.impl(operator, function, "CompositeImplicitAutograd")


CAPTURED = {model.name: _captured(model) for model in reference.MODELS}
