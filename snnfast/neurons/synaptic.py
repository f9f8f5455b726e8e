"""`snntorch.Synaptic`, fused."""

from torch import Tensor

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
    """

    model = SYNAPTIC
    state_names = ("syn", "mem")

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
        reset_mechanism="subtract",
        state_quant=False,
        output=False,
        reset_delay=True,
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
        self.reset_delay = reset_delay
        self._add_states()

    def forward(self, input_: Tensor, syn: Tensor | None = None, mem: Tensor | None = None):
        """One time step, as `Leaky.forward`: (spikes, synaptic current, membrane), all [B, ...]."""
        return self._step(input_, syn, mem)

    def init_synaptic(self) -> tuple[Tensor, Tensor]:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()
