"""`snntorch.Leaky` (snntorch/_neurons/leaky.py)."""

from .model import Model


def charge(x, states, params, reset, call):
    """Leak, current, delayed reset."""
    (mem,), (beta, threshold, _) = states, params
    if call.reset_mechanism == "zero":
        mem = (1 - reset) * mem
    mem = beta.clamp(0, 1) * mem + x
    if call.reset_mechanism == "subtract":
        mem = mem - reset * threshold
    return (mem,)


LEAKY = Model(
    "leaky",
    "Leaky",
    states=("mem",),
    params=("beta", "threshold", "graded_spikes_factor"),
    charge=charge,
    clamped=("beta",),
)
