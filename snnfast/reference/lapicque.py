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


LAPICQUE = Model(
    "lapicque",
    "Lapicque",
    states=("mem",),
    params=("R", "rate", "time_step", "decay", "threshold", "graded_spikes_factor"),
    charge=charge,
    delay_optional=False,
)
