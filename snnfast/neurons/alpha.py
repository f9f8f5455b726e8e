"""`snntorch.Alpha`, fused."""

import torch
from torch import Tensor

from ..reference import ALPHA
from .base import SpikingNeuron, snntorch_class


class Alpha(SpikingNeuron, *snntorch_class("Alpha")):
    """Alpha-function neurons with the arguments, states and numbers of `snntorch.Alpha` 1.0.0.

    `csrc/neuron/alpha.h` and `snnfast/reference/alpha.py` state the equations.

    Args:
        alpha: decay of the excitatory current per step, clamped to [0, 1]. A number, or a tensor (or array) that
            broadcasts over the neuron dimensions.
        beta: decay of the inhibitory current per step, likewise; smaller than alpha, and not 1.
        reset_mechanism: default "zero".
        learn_alpha: make alpha an `nn.Parameter` (which snnTorch 1.0.0 refuses with a TypeError).

    The other arguments, shapes, dtypes and errors are those of `Leaky`.

    Raises:
        ValueError: alpha is not greater than beta, or beta is 1.
    """

    model = ALPHA
    state_names = ("syn_exc", "syn_inh", "mem")

    def __init__(
        self,
        alpha,
        beta,
        threshold=1.0,
        spike_grad=None,
        surrogate_disable=False,
        init_hidden=False,
        inhibition=False,
        learn_alpha=False,
        learn_beta=False,
        learn_threshold=False,
        reset_mechanism="zero",
        state_quant=False,
        output=False,
    ):
        super().__init__(
            threshold,
            spike_grad,
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
        )
        self._add_parameter("beta", beta, learn_beta)
        self._add_parameter("alpha", alpha, learn_alpha)
        with torch.no_grad():
            self.alpha.clamp_(0, 1) if learn_alpha else setattr(self, "alpha", self.alpha.clamp(0, 1))
            if (self.alpha <= self.beta).any():
                raise ValueError(f"alpha must be greater than beta, got {self.alpha} and {self.beta}")
            if (self.beta == 1).any():
                raise ValueError("beta must not be 1: tau_alpha would be divided by zero")
        self._add_states()

    def _parameters_of_model(self):
        alpha, beta = self.alpha.clamp(0, 1), self.beta.clamp(0, 1)
        tau_alpha = torch.log(alpha) / (torch.log(beta) - torch.log(alpha)) + 1
        return self.alpha, self.beta, tau_alpha, self.threshold, self.graded_spikes_factor

    def forward(
        self, input_: Tensor, syn_exc: Tensor | None = None, syn_inh: Tensor | None = None, mem: Tensor | None = None
    ):
        """One time step, as `Leaky.forward`: (spikes, excitatory, inhibitory current, membrane), all [B, ...]."""
        return self._step(input_, syn_exc, syn_inh, mem)

    def init_alpha(self) -> tuple[Tensor, Tensor, Tensor]:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()
