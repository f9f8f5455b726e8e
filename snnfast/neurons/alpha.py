"""`snntorch.Alpha`, fused."""

from typing import Any

import torch
from torch import Tensor

from ..annotations import SpikeGrad, StateQuant, Values
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

    Source: the spike response model of W. Gerstner and W. M. Kistler, Spiking Neuron Models, Cambridge University Press
    (2002), as snnTorch 1.0.0 computes it.

    Examples:
        >>> spk, syn_exc, syn_inh, mem = snn.Alpha(alpha=0.9, beta=0.8).unroll(torch.rand(100, 8, 20))
    """

    model = ALPHA
    state_names = ("syn_exc", "syn_inh", "mem")
    alpha: Tensor
    beta: Tensor
    syn_exc: Tensor
    syn_inh: Tensor
    mem: Tensor

    def __init__(
        self,
        alpha: Values,
        beta: Values,
        threshold: Values = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_alpha: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "zero",
        state_quant: StateQuant = False,
        output: bool = False,
    ) -> None:
        super().__init__(
            *(threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold),
            *(reset_mechanism, state_quant, output),
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
    ) -> Any:
        """One time step, as `Leaky.forward`: (spikes, excitatory, inhibitory current, membrane), all [B, ...]."""
        return self._step(input_, syn_exc, syn_inh, mem)

    def init_alpha(self) -> tuple[Tensor, Tensor, Tensor]:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()
