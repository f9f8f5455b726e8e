"""`snntorch.RLeaky` (snntorch/_neurons/rleaky.py), given what its own spikes bring back."""

from .model import Model
from .recurrence import one_to_one


def charge(x, states, params, reset, call):
    """Leak, current, recurrent current, delayed reset: to zero, it takes the currents along."""
    (x, rec), (mem,), (beta, threshold, _) = x, states, params
    mem = beta.clamp(0, 1) * mem + x + rec
    if call.reset_mechanism == "subtract":
        mem = mem - reset * threshold
    elif call.reset_mechanism == "zero":
        mem = mem - reset * mem
    return (mem,)


RLEAKY = Model(
    "rleaky",
    "RLeaky",
    states=("mem",),
    params=("beta", "threshold", "graded_spikes_factor"),
    charge=charge,
    clamped=("beta",),
    recurrent=True,
)

RLEAKY_ONE_TO_ONE = one_to_one(RLEAKY)
