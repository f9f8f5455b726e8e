"""Norse's neurons that take a current: LIF and LI, a cell each and a layer."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import products
from ..checks import check_current
from ..loops import recording
from ..reference import LI as LI_MODEL
from ..reference import LIF as LIF_MODEL
from .neuron import NorseNeuron
from .parameters import LI_DEFAULTS, LIF_DEFAULTS, LIFFeedForwardState, LIFParameters, LIParameters, LIState


class _FeedForward(NorseNeuron):
    """A neuron that takes a current."""

    record_states = False

    def forward(self, input_tensor: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step, or of a layer a whole sequence in one launch.

        Args:
            input_tensor: current: of a cell [B, ...], of a layer [T, B, ...].
            state: before the (first) step; each field [B, ...] or of a shape that broadcasts to it. None: at rest.

        Returns:
            (spikes or voltages of the input's shape and dtype, state after the (last) step; with record_states that
            of all steps, stacked).

        Raises:
            TypeError: a current or a state that is none.
            ValueError: a wrong shape, device or layout.
        """
        x = check_current(input_tensor, self.sequence)
        states = self._states_before(state, x, x.shape[1:] if self.sequence else x.shape)
        if not self.sequence:
            output, *after = self._step(x, states)
            return output, self._state_of(output, after)
        output, states = self._advance(x, states, want_seqs=self.record_states)
        return output, self.state_type(states["v"], states["i"])

    def _state_of(self, output: Tensor, after: list[Tensor]):
        return self.state_type(*after)


class LIFCell(_FeedForward):
    """One step of current-based LIF neurons; a gradient flows through the reset.

    Args:
        p: parameters. Default: Norse's.
        dt: time step in s. Default 0.001.

    Raises:
        TypeError: a parameter that is no number.
        ValueError: an unknown method.

    Examples:
        >>> spk, state = norse.LIFCell()(torch.rand(16, 4))
    """

    model = LIF_MODEL
    state_type = LIFFeedForwardState

    def __init__(self, p: LIFParameters = LIF_DEFAULTS, dt: float = 0.001) -> None:
        super().__init__(p, dt)


class LIF(LIFCell):
    """A sequence of `LIFCell`.

    Args:
        p, dt: as `LIFCell`.
        record_states: return the states of all steps [T, B, ...] in the place of the last ones.

    Examples:
        >>> spk, state = norse.LIF()(torch.rand(25, 16, 4))
    """

    sequence = True

    def __init__(self, p: LIFParameters = LIF_DEFAULTS, dt: float = 0.001, record_states: bool = False) -> None:
        super().__init__(p, dt)
        self.record_states = record_states


class LICell(_FeedForward):
    """One step of leaky integrators, whose output is the voltage.

    Args:
        p: parameters. Default: Norse's.
        dt: time step in s. Default 0.001.

    Raises:
        TypeError: a parameter that is no number.

    Examples:
        >>> v, state = norse.LICell()(torch.rand(16, 4))
    """

    model = LI_MODEL
    state_type = LIState
    state_names = "spk", "i"

    def __init__(self, p: LIParameters = LI_DEFAULTS, dt: float = 0.001) -> None:
        super().__init__(p, dt)

    def _state_of(self, output, after):
        return LIState(*after) if len(after) == 2 else LIState(output, *after)

    def _by_name(self, states):
        return {"v": states[0], "i": states[1]}

    def _step(self, x, states):
        if x.dtype in (torch.float16, torch.bfloat16):
            # Its output is no state, which is wider.
            recording.stop()
            output, after = self._advance(x, states)
            return output, after["v"], after["i"]
        return super()._step(x, {**states, "spk": states["v"]})


class LI(LICell):
    """A sequence of `LICell`. Args as `LIF`.

    Examples:
        >>> v, state = norse.LI()(torch.rand(25, 16, 4))
    """

    sequence = True

    def __init__(self, p: LIParameters = LI_DEFAULTS, dt: float = 0.001, record_states: bool = False) -> None:
        super().__init__(p, dt)
        self.record_states = record_states


class LILinearCell(LICell):
    """`LICell` behind weights of its own: [B, input_size] to voltages [B, hidden_size].

    Args:
        input_size, hidden_size: widths. `input_weights` [hidden_size, input_size] start as Norse's.
        p, dt: as `LICell`.

    Examples:
        >>> v, state = norse.LILinearCell(4, 8)(torch.rand(16, 4))
    """

    def __init__(self, input_size: int, hidden_size: int, p: LIParameters = LI_DEFAULTS, dt: float = 0.001) -> None:
        super().__init__(p, dt)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.input_weights = nn.Parameter(torch.randn(hidden_size, input_size) / math.sqrt(input_size))

    def forward(self, input_tensor: Tensor, state: LIState | None = None) -> tuple[Tensor, LIState]:
        """One step: spikes [B, input_size] to (voltages [B, hidden_size], state). Raises as `LICell`."""
        return super().forward(weighted(input_tensor, self.input_weights, unroll=False), state)

    def extra_repr(self) -> str:
        return f"input_size={self.input_size}, hidden_size={self.hidden_size}, {super().extra_repr()}"


def weighted(x: Tensor, weights: Tensor, unroll: bool) -> Tensor:
    x = check_current(x, unroll)
    if x.dim() == 0 or x.shape[-1] != weights.shape[-1]:
        raise ValueError(f"input_tensor must have {weights.shape[-1]} features last, got shape {tuple(x.shape)}")
    return products.linear(x, weights) if unroll else F.linear(x, weights)
