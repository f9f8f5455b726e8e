"""How snnTorch 1.0.0's neurons fire and are reset (snntorch/_neurons/neurons.py), in its order of operations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """The options of a call.

    `spike_grad` maps `mem - threshold` to spikes; `state_quant` (a callable or False) quantises the states;
    `inhibition` lets only the largest membrane along dimension 1 fire.
    """

    spike_grad: Callable[[Tensor], Tensor]
    reset_mechanism: str = "subtract"
    reset_delay: bool = True
    state_quant: Any = False
    inhibition: bool = False


def threshold(states: tuple, params: tuple) -> Tensor:
    """What the membrane must exceed to fire: a parameter, before the height of a spike."""
    *_, threshold, _ = params
    return threshold


def reset(states: tuple, params: tuple, call: Call) -> Tensor:
    """The delayed reset: where the membrane stands above the threshold already. Without gradient."""
    return call.spike_grad(states[0] - threshold(states, params)).clone().detach()


def fire(states: tuple, reset: Tensor, params: tuple, call: Call) -> tuple[Tensor, tuple]:
    """Spikes of the charged membrane; without the reset delay, the membrane reset in the same step."""
    (mem, *others), limit, graded_spikes_factor = states, threshold(states, params), params[-1]
    spk = spikes(mem, limit, call)
    if not call.inhibition:
        spk = spk * graded_spikes_factor
    if not call.reset_delay:
        mem = reset_at_once(mem, spk, reset, (limit, graded_spikes_factor), call.reset_mechanism)
    return spk, (mem, *others)


def reset_at_once(mem: Tensor, spk: Tensor, reset: Tensor, params: tuple, reset_mechanism: str) -> Tensor:
    """The membrane reset in the step that fires, where the delayed reset has not done so already."""
    limit, graded_spikes_factor = params
    due = spk / graded_spikes_factor - reset
    if reset_mechanism == "subtract":
        return mem - due * limit
    return mem - due * mem if reset_mechanism == "zero" else mem


def spikes(mem: Tensor, threshold: Tensor, call: Call) -> Tensor:
    """Where the membrane exceeds the threshold: spikes of height 1."""
    if call.inhibition:
        mem_shift = mem - threshold
        winner = torch.argmax(mem_shift, dim=1, keepdim=True)
        spk = call.spike_grad(mem_shift)
        return spk * torch.zeros_like(spk).scatter(1, winner, 1)
    if call.state_quant:
        mem = call.state_quant(mem)
    return call.spike_grad(mem - threshold)
