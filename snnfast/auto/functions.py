"""Functions of snnTorch's that take long, with the same numbers in less: random rate coding, losses over time."""

import functools

import snntorch.functional
import snntorch.spikegen
import torch
from snntorch.functional import loss as losses
from torch import Tensor, nn

from .. import encoding

_SEEN = "1.0.0"
"""The snnTorch whose losses these are."""


def replacements(encoders: str) -> dict[object, dict]:
    """What each module and class of snnTorch's gets in place of its own."""
    spikegen = snntorch.spikegen
    replaced = {spikegen: {"rate": (_fast_rate if encoders == "fast" else _rate)(spikegen.rate)}}
    if snntorch.__version__ == _SEEN:
        for loss, computed in ((losses.ce_rate_loss, _ce_rate), (losses.mse_membrane_loss, _mse_membrane)):
            replaced[loss] = {"_compute_loss": computed(loss._compute_loss)}
        first = losses.SpikeTime.FirstSpike
        replaced[first] = {"backward": staticmethod(_first_spike_backward(first.backward))}
    return replaced


def _rate(own_rate):
    """Draws from one copy of the probabilities, which snnTorch copies for every step: the same random numbers."""
    own_drawing = snntorch.spikegen.rate_conv

    @functools.wraps(own_rate)
    def rate(data, num_steps=False, gain=1, offset=0, first_spike_time=0, time_var_input=False):
        options = num_steps, gain, offset, first_spike_time, time_var_input
        # How threads of a GPU share out random numbers goes by the layout of what they draw from.
        is_plain = _is_plain(data, *options) and data.device.type == "cpu"
        if not is_plain or snntorch.spikegen.rate_conv is not own_drawing:
            return own_rate(data, *options)
        chances = torch.clamp(data * gain + offset, min=0, max=1)
        spikes = chances.new_empty((num_steps, *chances.shape)).bernoulli_(chances.expand(num_steps, *chances.shape))
        spikes[:first_spike_time] = 0
        return spikes

    return rate


def _fast_rate(own_rate):
    @functools.wraps(own_rate)
    def rate(data, num_steps=False, gain=1, offset=0, first_spike_time=0, time_var_input=False):
        options = num_steps, gain, offset, first_spike_time, time_var_input
        if not _is_plain(data, *options):
            return own_rate(data, *options)
        return encoding.rate(data, num_steps, gain, offset, first_spike_time)

    return rate


def _is_plain(data, num_steps, gain, offset, first_spike_time, time_var_input) -> bool:
    """Data that is the same at every step, with numbers that snnTorch takes without an error."""
    if type(data) is not Tensor or data.dtype not in encoding.DTYPES or not data.is_floating_point():
        return False
    if data.layout is not torch.strided or (data.requires_grad and torch.is_grad_enabled()):
        return False
    if type(num_steps) is not int or type(first_spike_time) is not int or time_var_input:
        return False
    return 0 <= first_spike_time < num_steps and all(type(number) in (int, float) for number in (gain, offset))


def _ce_rate(own_loss):
    @functools.wraps(own_loss)
    def _compute_loss(self, spk_out, targets):
        if self.population_code:
            return own_loss(self, spk_out, targets)
        self._prediction_check(spk_out)
        loss = nn.NLLLoss(reduction=self._intermediate_reduction(), weight=self.weight)
        steps = nn.functional.log_softmax(spk_out, -1).unbind(0)
        shape = spk_out.size(1) if loss.reduction == "none" else 1
        return _added_up(loss, steps, [targets] * len(steps), shape, spk_out) / len(steps)

    return _compute_loss


def _mse_membrane(own_loss):
    @functools.wraps(own_loss)
    def _compute_loss(self, mem_out, targets):
        _, num_steps, num_outputs = self._prediction_check(mem_out)
        wanted = snntorch.spikegen.targets_convert(
            targets, num_classes=num_outputs, on_target=self.on_target, off_target=self.off_target
        )
        loss = nn.MSELoss(reduction=self._intermediate_reduction())
        shape = mem_out[0].shape if loss.reduction == "none" else 1
        wanted = wanted.unbind(0)[:num_steps] if self.time_var_targets else [wanted] * num_steps
        added = _added_up(loss, mem_out.unbind(0), wanted, shape, mem_out)
        return (added if self.weight is None else added * self.weight[targets]) / num_steps

    return _compute_loss


def _added_up(loss: nn.Module, steps: tuple, targets, shape, like: Tensor) -> Tensor:
    """The losses of all steps, added in turn.

    Backward of `unbind` is one operation; that of every `steps[t]`, as in snnTorch, fills a tensor of all steps.
    """
    added = torch.zeros(shape, dtype=losses.dtype, device=like.device)
    for step, target in zip(steps, targets, strict=True):
        added += loss(step, target)
    return added


def _first_spike_backward(own_backward):
    @functools.wraps(own_backward)
    def backward(ctx, grad_output):
        first, spikes = ctx.saved_tensors
        if first.dim() != 2:
            return own_backward(ctx, grad_output)
        rows = torch.arange(first.size(0), device=first.device)[:, None]
        columns = torch.arange(first.size(1), device=first.device)
        fires_first = torch.zeros_like(spikes)
        fires_first[first.long(), rows, columns] = 1.0
        return -grad_output * fires_first, None

    return backward
