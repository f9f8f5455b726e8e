"""`snntorch.Synaptic`, fused."""

from typing import Any

from torch import Tensor

from ..annotations import SpikeGrad, StateQuant, Values
from ..reference import SYNAPTIC
from .base import SpikingNeuron, snntorch_class


class Synaptic(SpikingNeuron, *snntorch_class("Synaptic")):
    """Second-order integrate-and-fire neurons with the arguments, states and numbers of `snntorch.Synaptic` 1.0.0.

    `csrc/neuron/synaptic.h` and `snnfast/reference/synaptic.py` state the equations.

    Args:
        alpha: decay of the synaptic current per step, clamped to [0, 1]. A number, or a tensor (or array) that
            broadcasts over the neuron dimensions.
        beta: decay of the membrane per step, likewise.
        learn_alpha: make alpha an `nn.Parameter`.

    The other arguments, shapes, dtypes and errors are those of `Leaky`.

    Source: J. K. Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep Learning", Proceedings
    of the IEEE 111 (2023), and snnTorch 1.0.0.

    Examples:
        >>> spk, syn, mem = snn.Synaptic(alpha=0.8, beta=0.9).unroll(torch.rand(100, 8, 20))
    """

    model = SYNAPTIC
    state_names = ("syn", "mem")
    alpha: Tensor
    beta: Tensor
    syn: Tensor
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
        reset_mechanism: str = "subtract",
        state_quant: StateQuant = False,
        output: bool = False,
        reset_delay: bool = True,
    ) -> None:
        super().__init__(
            *(threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold),
            *(reset_mechanism, state_quant, output),
        )
        self._add_parameter("beta", beta, learn_beta)
        self._add_parameter("alpha", alpha, learn_alpha)
        self.reset_delay = reset_delay
        self._add_states()

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None) -> Any:
        """One time step, as `Leaky.forward`: (spikes, synaptic current, membrane), all [B, ...]."""
        return self._step(input_, syn, mem)

    def init_synaptic(self) -> tuple[Tensor, Tensor]:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()
