"""`snntorch.Synaptic` and `snntorch.RSynaptic` (snntorch/_neurons/synaptic.py, rsynaptic.py)."""

from dataclasses import replace

from .model import Model
from .recurrence import one_to_one


def charge(x, states, params, reset, call):
    """The synaptic current decays and takes up x, the membrane takes up the synaptic current."""
    (mem, syn), (alpha, beta, threshold, _) = states, params
    x, *rec = x if isinstance(x, tuple) else (x,)
    syn = alpha.clamp(0, 1) * syn + x
    for current in rec:
        syn = syn + current
    mem = beta.clamp(0, 1) * mem + syn
    if call.reset_mechanism == "subtract":
        mem = mem - reset * threshold
    elif call.reset_mechanism == "zero":
        mem = mem - mem * reset
    return mem, syn


SYNAPTIC = Model(
    "synaptic",
    "Synaptic",
    states=("mem", "syn"),
    params=("alpha", "beta", "threshold", "graded_spikes_factor"),
    charge=charge,
    clamped=("alpha", "beta"),
)

RSYNAPTIC = replace(SYNAPTIC, name="rsynaptic", layer="RSynaptic", recurrent=True)

RSYNAPTIC_ONE_TO_ONE = one_to_one(RSYNAPTIC)
