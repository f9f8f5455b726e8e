"""`snntorch.Leaky`, fused."""

from typing import Any

from torch import Tensor

from ..annotations import SpikeGrad, StateQuant, Values
from ..reference import LEAKY
from .base import SpikingNeuron, snntorch_class


class Leaky(SpikingNeuron, *snntorch_class("Leaky")):
    """Leaky integrate-and-fire neurons with the arguments, states and numbers of `snntorch.Leaky` 1.0.0.

    `csrc/neuron/leaky.h` and `snnfast/reference/leaky.py` state the equations.

    Args:
        beta: decay of the membrane per step, clamped to [0, 1]. A number, or a tensor (or array) that broadcasts over
            the neuron dimensions, such as (N,) for [B, N] or (C, 1, 1) for [B, C, H, W].
        threshold: a neuron fires where its membrane exceeds it. Default 1; broadcasts as beta.
        spike_grad: surrogate gradient: one of `snnfast.surrogate` or `snntorch.surrogate`, or any callable from
            `mem - threshold` to spikes. Default atan(alpha=2).
        surrogate_disable: let no gradient through the spike.
        init_hidden: keep the membrane in the layer; a call then takes the current alone and returns the spikes alone.
        inhibition: let only the largest membrane along dimension 1 fire. Not fused.
        learn_beta, learn_threshold, learn_graded_spikes_factor: make it an `nn.Parameter`.
        reset_mechanism: "subtract" (default), "zero" or "none".
        state_quant: a callable that quantises the membrane, or False. Not fused.
        output: return (spikes, membrane) even with init_hidden.
        graded_spikes_factor: the height of a spike. Default 1; broadcasts as beta.
        reset_delay: reset one step after the spike (default) or in the same step.

    Shapes: a step takes and returns [B, ...]; `unroll` takes [T, B, ...]. Dtypes as in `snnfast.functional`.

    Raises:
        TypeError: a parameter that is no number, a `spike_grad` or `state_quant` that is not callable.
        ValueError: an unknown reset mechanism.

    Source: J. K. Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep Learning", Proceedings
    of the IEEE 111 (2023), and snnTorch 1.0.0.

    Examples:
        >>> lif = snn.Leaky(beta=0.9, learn_beta=True)
        >>> spk, mem = lif(torch.rand(8, 20))  # a step: [B, N]
        >>> spk, mem = lif.unroll(torch.rand(100, 8, 20))  # a sequence: [T, B, N], one launch
        >>> spk.shape, mem.shape
        (torch.Size([100, 8, 20]), torch.Size([100, 8, 20]))
    """

    model = LEAKY
    state_names = ("mem",)
    beta: Tensor
    mem: Tensor

    def __init__(
        self,
        beta: Values,
        threshold: Values = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant = False,
        output: bool = False,
        graded_spikes_factor: Values = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = True,
    ) -> None:
        super().__init__(
            *(threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold, reset_mechanism),
            *(state_quant, output, graded_spikes_factor, learn_graded_spikes_factor),
        )
        self._add_parameter("beta", beta, learn_beta)
        self.reset_delay = reset_delay
        self._add_states()

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """One time step.

        Args:
            input_: current [B, ...].
            mem: membrane [B, ...]. Without it the layer goes on from its own `mem`. As in snnTorch, a membrane of
                another shape is replaced by zeros.

        Returns:
            (spikes, membrane), both [B, ...]; the spikes alone with init_hidden=True and output=False.

        Raises:
            TypeError: `mem` together with init_hidden=True, or a current that is no floating or integer tensor.
            ValueError: a sparse current, parameters that do not broadcast, tensors on several devices.
        """
        return self._step(input_, mem)

    def init_leaky(self) -> Tensor:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()
