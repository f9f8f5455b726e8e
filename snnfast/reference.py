"""The pure-PyTorch loops: the specification that the kernels are held to, and what runs where nothing is fused.

Operations stand in snnTorch 1.0.0's order (snntorch/_neurons/leaky.py and neurons.py), one rounding each, so that the
numbers are snnTorch's to the bit. Shapes: x [T, ...] for a sequence, [...] for a step; mem as one step of x; parameters
broadcast over a step.
"""

import torch
from torch import Tensor


def leaky_step(
    x: Tensor,
    mem: Tensor,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    spike_grad,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
    state_quant=False,
    inhibition: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of `snntorch.Leaky`: current x and membrane mem [...] to spikes and membrane [...].

    `spike_grad` maps `mem - threshold` to spikes; `state_quant` (a callable or False) quantises the membrane;
    `inhibition` lets only the largest membrane along dimension 1 fire.
    """
    reset = spike_grad(mem - threshold).clone().detach()
    if reset_mechanism == "zero":
        mem = (1 - reset) * mem
    mem = beta.clamp(0, 1) * mem + x
    if reset_mechanism == "subtract":
        mem = mem - reset * threshold
    if state_quant:
        mem = state_quant(mem)
    spk = _fire(mem, threshold, graded_spikes_factor, spike_grad, state_quant, inhibition)
    if not reset_delay:
        again = spk / graded_spikes_factor - reset
        if reset_mechanism == "subtract":
            mem = mem - again * threshold
        elif reset_mechanism == "zero":
            mem = mem - again * mem
    return spk, mem


def _fire(mem, threshold, graded_spikes_factor, spike_grad, state_quant, inhibition):
    if inhibition:
        mem_shift = mem - threshold
        winner = torch.argmax(mem_shift, dim=1, keepdim=True)
        spk = spike_grad(mem_shift)
        return spk * torch.zeros_like(spk).scatter(1, winner, 1)
    if state_quant:
        mem = state_quant(mem)
    return spike_grad(mem - threshold) * graded_spikes_factor


def leaky(x: Tensor, mem: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
    """A whole sequence: x [T, ...], mem [...] to spikes and membranes [T, ...]. Other arguments as `leaky_step`."""
    spk_seq, mem_seq = [], []
    for current in x.unbind(0):
        spk, mem = leaky_step(current, mem, *args, **kwargs)
        spk_seq.append(spk)
        mem_seq.append(mem)
    if not spk_seq:
        return x.new_empty(x.shape), mem.new_empty(x.shape)
    return torch.stack(spk_seq), torch.stack(mem_seq)


def leaky_backward(
    grad_spk: Tensor | None,
    grad_mem: Tensor | None,
    grad_charge: Tensor | None,
    grad_last: Tensor | None,
    mem: Tensor,
    charge: Tensor,
    initial: Tensor,
    beta: Tensor,
    threshold: Tensor,
    graded_spikes_factor: Tensor,
    surrogate,
    reset_mechanism: str = "subtract",
    reset_delay: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The backward of `leaky` in differentiable operations, which is what makes double backward possible.

    Args:
        grad_spk, grad_mem, grad_charge: dL/dspikes, dL/dmem and dL/dcharge [T, ...], or None.
        grad_last: dL/d(the last membrane), where that is an output of its own [...], or None.
        mem, charge: membranes after each step and those that fired [T, ...]; the same with a reset delay.
        initial: the membrane before the first step [...].

    Returns:
        dL/dx [T, ...], dL/dinitial [...], and what each step and neuron adds to the gradients of beta, threshold and
        graded_spikes_factor [T, ...].
    """
    decay = beta.clamp(0, 1)
    inside = (beta >= 0) & (beta <= 1)
    carry = torch.zeros_like(initial) if grad_last is None else grad_last
    steps = []
    for t in reversed(range(len(mem))):
        before = mem[t - 1] if t > 0 else initial
        reset = (before - threshold > 0).to(before.dtype)
        kept = (1 - reset) * before if reset_mechanism == "zero" else before
        u = charge[t] - threshold
        fired = surrogate(u)
        grad = carry if grad_mem is None else grad_mem[t] + carry
        go = torch.zeros_like(u) if grad_spk is None else grad_spk[t]
        grad_threshold = grad_graded = torch.zeros_like(u)
        if not reset_delay and reset_mechanism != "none":
            again = fired - reset
            if reset_mechanism == "subtract":
                grad_again = -grad * threshold
                grad_threshold = -grad * again
            else:
                grad_again = -grad * charge[t]
                grad = grad - grad * again
            go = go + grad_again / graded_spikes_factor
            grad_graded = -grad_again * (fired / graded_spikes_factor)
        grad_graded = grad_graded + go * fired
        if grad_charge is not None:
            grad = grad + grad_charge[t]
        grad_u = surrogate.gradient(u, go * graded_spikes_factor)
        grad = grad + grad_u
        grad_threshold = grad_threshold - grad_u
        if reset_mechanism == "subtract":
            grad_threshold = grad_threshold - grad * reset
        steps.append((grad, torch.where(inside, grad * kept, 0), grad_threshold, grad_graded))
        carry = grad * decay
        if reset_mechanism == "zero":
            carry = carry * (1 - reset)
    if not steps:
        return (torch.zeros_like(mem), carry, *(torch.zeros_like(mem),) * 3)
    grad_x, *grad_params = (torch.stack(column[::-1]) for column in zip(*steps, strict=True))
    return grad_x, carry, *grad_params
