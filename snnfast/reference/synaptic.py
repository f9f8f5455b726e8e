"""`snntorch.Synaptic` (snntorch/_neurons/synaptic.py)."""

from .model import Model


def charge(x, states, params, reset, call):
    """The synaptic current decays and takes up x, the membrane takes up the synaptic current."""
    (mem, syn), (alpha, beta, threshold, _) = states, params
    syn = alpha.clamp(0, 1) * syn + x
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
)
