"""The adaptive LIF neuron of Bellec et al. (LSNN, e-prop), fused."""

from typing import Any

from torch import Tensor

from ..annotations import SpikeGrad, StateQuant, Values
from ..reference import ALIF as _ALIF
from .base import SpikingNeuron


class ALIF(SpikingNeuron):
    """Adaptive leaky integrate-and-fire neurons: a trace of a neuron's spikes raises its threshold.

    The neuron of Bellec et al., "Long short-term memory and learning-to-learn in networks of spiking neurons"
    (NeurIPS 2018) and "A solution to the learning dilemma for recurrent networks of spiking neurons" (Nature
    Communications 11, 3625, 2020), with snnTorch's arguments; snnTorch has none of its own::

        charge[t]     = beta * mem[t-1] + x[t]
        spike[t]      = charge[t] > threshold + strength * adaptation[t-1]
        mem[t]        = charge[t] - spike[t] * threshold
        adaptation[t] = rho * adaptation[t-1] + spike[t]

    The papers write the adaptation that a step fires with, here it is the one that it leaves; and they take the reset
    from the next step, here the spiking one has it. Gradients flow through the adaptation, with the spike's surrogate,
    and as in e-prop none through the reset. `csrc/neuron/alif.h` and `snnfast/reference/alif.py` state the equations.

    Args:
        beta: decay of the membrane per step, clamped to [0, 1] (alpha in the papers). A number, or a tensor (or array)
            that broadcasts over the neuron dimensions.
        rho: decay of the adaptation per step, clamped to [0, 1]; exp(-1 / tau) for a time constant of tau steps.
        strength: of the adaptation: by how much a spike raises the threshold (beta in the papers).
        threshold: the threshold without adaptation. Default 1.
        learn_rho, learn_strength: make it an `nn.Parameter`.
        reset_mechanism: "subtract" the threshold without adaptation (default), set to "zero", or "none".

    The other arguments, dtypes and errors are those of `Leaky`. `snnfast.reset(net)` resets hidden states;
    `snntorch.utils.reset` does not know this neuron.

    Shapes: current, membrane and adaptation [B, ...] in a step, [T, B, ...] in `unroll`.

    Examples:
        >>> lif = snn.ALIF(beta=0.95, rho=0.99, strength=0.1)
        >>> spk, mem, adaptation = lif.unroll(torch.rand(100, 8, 20))
    """

    model = _ALIF
    state_names = ("mem", "adaptation")
    beta: Tensor
    rho: Tensor
    strength: Tensor
    mem: Tensor
    adaptation: Tensor
    reset_delay = False

    def __init__(
        self,
        beta: Values,
        rho: Values,
        strength: Values,
        threshold: Values = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_rho: bool = False,
        learn_strength: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant = False,
        output: bool = False,
        graded_spikes_factor: Values = 1.0,
        learn_graded_spikes_factor: bool = False,
    ) -> None:
        super().__init__(
            *(threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold, reset_mechanism),
            *(state_quant, output, graded_spikes_factor, learn_graded_spikes_factor),
        )
        self._add_parameter("beta", beta, learn_beta)
        self._add_parameter("rho", rho, learn_rho)
        self._add_parameter("strength", strength, learn_strength)
        self._add_states()

    def forward(self, input_: Tensor, mem: Tensor | None = None, adaptation: Tensor | None = None) -> Any:
        """One time step, as `Leaky.forward`: (spikes, membrane, adaptation), all [B, ...]."""
        return self._step(input_, mem, adaptation)
