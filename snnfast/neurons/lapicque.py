"""`snntorch.Lapicque`, fused."""

from typing import Any

import torch
from torch import Tensor, nn

from ..annotations import SpikeGrad, StateQuant, Values
from ..reference import LAPICQUE
from .base import SpikingNeuron, snntorch_class


class Lapicque(SpikingNeuron, *snntorch_class("Lapicque")):
    """Lapicque's RC neurons with the arguments, states and numbers of `snntorch.Lapicque` 1.0.0.

    `csrc/neuron/lapicque.h` and `snnfast/reference/lapicque.py` state the equations. Of decay, resistance and
    capacitance two determine the third: C = time_step / (R ln(1 / beta)). With beta alone, R is 1.

    Args:
        beta: decay of the membrane per step that R and C are derived from, in (0, 1); False: not given. The decay of
            the Euler step that runs is 1 - time_step / (R C) = 1 + ln(beta), as in snnTorch.
        R: resistance; False: not given.
        C: capacitance; False: not given.
        time_step: length of a step. Default 1.
        learn_beta: make beta an `nn.Parameter`; what derives from it follows it, where snnTorch 1.0.0 derives it once
            and fails in the second backward.

    The other arguments, shapes, dtypes and errors are those of `Leaky`.

    Raises:
        ValueError: neither beta nor both of R and C are given.

    Source: L. Lapicque, "Recherches quantitatives sur l'excitation électrique des nerfs traitée comme une
    polarisation", Journal de Physiologie et de Pathologie Générale 9 (1907), as snnTorch 1.0.0 discretises it.

    Examples:
        >>> spk, mem = snn.Lapicque(R=5.0, C=2.0, time_step=1).unroll(torch.rand(100, 8, 20))
    """

    model = LAPICQUE
    state_names = ("mem",)
    beta: Tensor
    R: Tensor
    C: Tensor
    time_step: Tensor
    mem: Tensor
    _derived: str | None = None

    def __init__(
        self,
        beta: Values = False,
        R: Values = False,
        C: Values = False,
        time_step: Values = 1,
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
    ) -> None:
        super().__init__(
            *(threshold, spike_grad, surrogate_disable, init_hidden, inhibition, learn_threshold),
            *(reset_mechanism, state_quant, output),
        )
        given = {name: value for name, value in (("beta", beta), ("R", R), ("C", C)) if _is_given(value)}
        if "beta" not in given and len(given) < 2:
            raise ValueError(f"Lapicque must be given beta, or R and C; got {', '.join(given) or 'none of them'}")
        self._add_parameter("beta", beta if "beta" in given else _decay(R, C, time_step), learn_beta)
        self._add_parameter("time_step", time_step, False)
        if "beta" in given and len(given) == 1:
            given["R"] = 1
        for name in ("R", "C"):
            if name in given:
                self._add_parameter(name, given[name], False)
        self._derived = next((name for name in ("C", "R") if name not in given), None)
        if self._derived is not None:
            self._add_parameter(self._derived, self._derive().detach(), False)
        self._add_states()

    def _derive(self) -> Tensor:
        other = self.R if self._derived == "C" else self.C
        return self.time_step / (other * torch.log(1 / self.beta))

    def _derives_anew(self) -> bool:
        return self._derived is not None and isinstance(self.beta, nn.Parameter)

    def _step_by_methods(self, input_, states):
        if not self._derives_anew():
            return super()._step_by_methods(input_, states)
        setattr(self, self._derived, self._derive())
        try:
            return super()._step_by_methods(input_, states)
        finally:
            setattr(self, self._derived, getattr(self, self._derived).detach())

    def _parameters_of_model(self):
        R, C = self.R, self.C
        if self._derives_anew():
            derived = self._derive()
            R, C = (R, derived) if self._derived == "C" else (derived, C)
            setattr(self, self._derived, derived.detach())
        rc = R * C
        return R, 1 / rc, self.time_step, 1 - self.time_step / rc, self.threshold, self.graded_spikes_factor

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Any:
        """One time step, as `Leaky.forward`: (spikes, membrane), both [B, ...]."""
        return self._step(input_, mem)

    def init_lapicque(self) -> Tensor:
        """Deprecated in snnTorch for `reset_mem`."""
        return self.reset_mem()


def _is_given(value) -> bool:
    return value is not None and (bool(value) if not isinstance(value, Tensor) else bool(value.any()))


def _decay(R, C, time_step) -> Tensor:
    return torch.exp(torch.ones(1) * (-torch.as_tensor(time_step) / (R * C)))
