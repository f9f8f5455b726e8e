"""The current-based LIF neurons of Norse 1.1.0 (norse/torch/functional/lif.py), feed-forward and recurrent."""

from .li import decay, input_of, integrate
from .model import Model


def charge(x, states, params, reset, call):
    """Input, leak and decay."""
    v, i = states
    return _charge(v, i + x, params)


def charge_recurrent(x, states, params, reset, call):
    """As `charge`, with the current from the layer's own spikes."""
    (x, rec), (v, i) = x, states
    return _charge(v, i + x + rec, params)


def _charge(v, jump, params):
    mem_rate, syn_rate, v_leak, *_ = params
    return integrate(v, jump, mem_rate, v_leak), decay(jump, syn_rate)


def fire(states, reset, params, call):
    """Spikes, and the voltage reset in the step that fires; a gradient flows through the reset."""
    (v, i), (*_, v_th, v_reset) = states, params
    spk = call.spike_grad(v - v_th)
    return spk, ((1 - spk) * v + spk * v_reset, i)


def fire_recurrent(states, reset, params, call):
    """As `fire`, without gradient through the reset."""
    (v, i), (*_, v_th, v_reset) = states, params
    spk = call.spike_grad(v - v_th)
    fired = spk.detach()
    return spk, ((1 - fired) * v + fired * v_reset, i)


def threshold(states, params):
    """What the voltage must exceed to fire."""
    *_, v_th, _ = params
    return v_th


def current(before, charged, params, reset, call):
    """The input of a step."""
    (v, i), (charged_v, charged_i) = before, charged
    return input_of(v, i, charged_v, charged_i, params)


def _lif(name, layer, **options):
    return Model(
        name,
        layer,
        states=("v", "i"),
        params=("mem_rate", "syn_rate", "v_leak", "v_th", "v_reset"),
        reset=lambda states, params, call: None,
        threshold=threshold,
        current=current,
        needed=(),
        changed=("v",),
        delay_optional=False,
        **options,
    )


LIF = _lif("lif", "LIF", charge=charge, fire=fire)
LIF_RECURRENT = _lif("lif_recurrent", "LIFRecurrent", charge=charge_recurrent, fire=fire_recurrent, recurrent=True)
