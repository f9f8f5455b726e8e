"""`snntorch.Alpha` (snntorch/_neurons/alpha.py)."""

from .model import Model


def charge(x, states, params, reset, call):
    """The two currents decay and take up x and -x, the membrane is their scaled sum; delayed reset of all three."""
    (_, exc, before), (alpha, beta, tau_alpha, threshold, _) = states, params
    exc = alpha.clamp(0, 1) * exc + x
    inh = beta.clamp(0, 1) * before - x
    mem = tau_alpha * (exc + inh)
    if call.reset_mechanism == "subtract":
        exc = exc - threshold * reset
        inh = inh - inh * reset
        mem = mem - -before * reset
    elif call.reset_mechanism == "zero":
        exc = exc - exc * reset
        inh = inh - inh * reset
        mem = mem - mem * reset
    return mem, exc, inh


ALPHA = Model(
    "alpha",
    "Alpha",
    states=("mem", "syn_exc", "syn_inh"),
    params=("alpha", "beta", "tau_alpha", "threshold", "graded_spikes_factor"),
    charge=charge,
    clamped=("alpha", "beta"),
    delay_optional=False,
)
