"""The adaptive LIF neuron of Bellec et al., NeurIPS 2018 (LSNN) and Nature Communications 11, 3625, 2020 (e-prop)."""

from . import firing
from .model import Model


def charge(x, states, params, reset, call):
    """Leak and current; the adaptation is of the last spikes."""
    (mem, adaptation), (beta, *_) = states, params
    # An alias: the step hands one gradient of it on, as it does where it is an operator, and not one for each use.
    return beta.clamp(0, 1) * mem + x, adaptation.view_as(adaptation)


def threshold(states, params):
    """The threshold, raised by the adaptation."""
    (_, adaptation), (_, _, strength, threshold, _) = states, params
    return threshold + strength * adaptation


def fire(states, reset, params, call):
    """Spikes, the membrane reset in the step that fires, without gradient, and what they add to the adaptation."""
    (mem, adaptation), (_, rho, _, amount, graded_spikes_factor) = states, params
    spike = firing.spikes(mem, threshold(states, params), call)
    fired = spike.detach()
    if call.reset_mechanism == "subtract":
        mem = mem - fired * amount
    elif call.reset_mechanism == "zero":
        mem = (1 - fired) * mem
    adaptation = rho.clamp(0, 1) * adaptation + spike
    return spike * graded_spikes_factor, (mem, adaptation)


ALIF = Model(
    "alif",
    "ALIF",
    states=("mem", "adaptation"),
    params=("beta", "rho", "strength", "threshold", "graded_spikes_factor"),
    charge=charge,
    fire=fire,
    reset=lambda states, params, call: None,
    threshold=threshold,
    needed=("mem", "adaptation"),
    changed=("mem", "adaptation"),
    held=("adaptation",),
    clamped=("beta", "rho"),
    delay_optional=False,
)
