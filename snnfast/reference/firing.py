"""How snnTorch 1.0.0's neurons fire and are reset (snntorch/_neurons/neurons.py), in its order of operations."""

import torch
from torch import Tensor


def reset(states: tuple, params: tuple, call) -> Tensor:
    """The delayed reset: where the membrane stands above the threshold already. Without gradient."""
    *_, threshold, _ = params
    return call.spike_grad(states[0] - threshold).clone().detach()


def fire(states: tuple, reset: Tensor, params: tuple, call) -> tuple[Tensor, tuple]:
    """Spikes of the charged membrane; without the reset delay, the membrane reset in the same step."""
    mem, *others = states
    *_, threshold, graded_spikes_factor = params
    spk = _spikes(mem, threshold, graded_spikes_factor, call)
    if not call.reset_delay:
        again = spk / graded_spikes_factor - reset
        if call.reset_mechanism == "subtract":
            mem = mem - again * threshold
        elif call.reset_mechanism == "zero":
            mem = mem - again * mem
    return spk, (mem, *others)


def _spikes(mem, threshold, graded_spikes_factor, call):
    if call.inhibition:
        mem_shift = mem - threshold
        winner = torch.argmax(mem_shift, dim=1, keepdim=True)
        spk = call.spike_grad(mem_shift)
        return spk * torch.zeros_like(spk).scatter(1, winner, 1)
    if call.state_quant:
        mem = call.state_quant(mem)
    return call.spike_grad(mem - threshold) * graded_spikes_factor
