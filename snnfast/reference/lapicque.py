"""`snntorch.Lapicque` (snntorch/_neurons/lapicque.py)."""

from .model import Model


def charge(x, states, params, reset, call):
    """Leak and current of the RC circuit, delayed reset."""
    (mem,), (R, rate, time_step, decay, threshold, _) = states, params
    mem = x * R * rate * time_step + decay * mem
    if call.reset_mechanism == "subtract":
        mem = mem - reset * threshold
    elif call.reset_mechanism == "zero":
        mem = mem - reset * mem
    return (mem,)


def current(before, charged, params, reset, call):
    """The current of a step, but where a reset to zero took it: no gradient depends on it there."""
    (mem,), (base,), (R, rate, time_step, decay, threshold, _) = before, charged, params
    if call.reset_mechanism == "subtract":
        base = base + reset * threshold
    return (base - decay * mem) / (R * rate * time_step)


LAPICQUE = Model(
    "lapicque",
    "Lapicque",
    states=("mem",),
    params=("R", "rate", "time_step", "decay", "threshold", "graded_spikes_factor"),
    charge=charge,
    current=current,
    delay_optional=False,
)
