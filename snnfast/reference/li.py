"""The leaky integrator of Norse 1.1.0 (norse/torch/functional/leaky_integrator.py), which never fires."""

import torch

from .model import Model


def integrate(v, jump, mem_rate, v_leak):
    """The voltage a step later, given the synaptic current with its input."""
    return v + mem_rate * ((v_leak - v) + jump)


def decay(jump, syn_rate):
    """The synaptic current a step later."""
    return jump + -syn_rate * jump


def input_of(v, i, charged_v, charged_i, params):
    """The current that took v, i to charged_v, charged_i: good to rounding."""
    mem_rate, syn_rate, v_leak, *_ = params
    decays_at_once = syn_rate == 1
    from_voltage = (charged_v - v) / torch.where(decays_at_once, mem_rate, 1.0) - (v_leak - v)
    from_current = charged_i / torch.where(decays_at_once, 0.5, 1 - syn_rate)
    return torch.where(decays_at_once, from_voltage, from_current) - i


def charge(x, states, params, reset, call):
    """Input, leak and decay."""
    (i, v), (mem_rate, syn_rate, v_leak) = states, params
    jump = i + x
    v = integrate(v, jump, mem_rate, v_leak)
    return decay(jump, syn_rate), v


def fire(states, reset, params, call):
    """The voltage is the output."""
    return states[1], states


def current(before, charged, params, reset, call):
    """The input of a step."""
    (i, v), (charged_i, charged_v) = before, charged
    return input_of(v, i, charged_v, charged_i, params)


LI = Model(
    "li",
    "LI",
    states=("i", "v"),
    params=("mem_rate", "syn_rate", "v_leak"),
    charge=charge,
    fire=fire,
    reset=lambda states, params, call: None,
    current=current,
    needed=(),
    output="v",
    spikes=False,
    fuses_steps=False,
    delay_optional=False,
)
