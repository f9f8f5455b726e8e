"""Norse's LIF neurons that are connected with each other."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import run
from ..ops import Recurrence
from ..reference import LIF_RECURRENT
from .feed_forward import weighted
from .neuron import NorseNeuron
from .parameters import LIF_DEFAULTS, LIFParameters, LIFState


class LIFRecurrentCell(NorseNeuron):
    """One step of LIF neurons connected with each other; no gradient flows through the reset.

    Args:
        input_size, hidden_size: widths.
        p: parameters. Default: Norse's.
        input_weights [hidden_size, input_size], recurrent_weights [hidden_size, hidden_size]: default: parameters that
            start as Norse's.
        autapses: let neurons feed themselves. Default False: their weights, the given ones too, are 0 and stay it.
        dt: time step in s. Default 0.001.

    Raises:
        TypeError: a parameter that is no number, weights that are no tensor.
        ValueError: an unknown method, weights of another shape.

    Examples:
        >>> spk, state = norse.LIFRecurrentCell(4, 8)(torch.rand(16, 4))
    """

    model = LIF_RECURRENT
    state_type = LIFState
    state_names = "spk", "v", "i"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        p: LIFParameters = LIF_DEFAULTS,
        input_weights: Tensor | None = None,
        recurrent_weights: Tensor | None = None,
        autapses: bool = False,
        dt: float = 0.001,
    ) -> None:
        super().__init__(p, dt)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.autapses = autapses
        self.input_weights = _weights("input_weights", input_weights, hidden_size, input_size)
        self.recurrent_weights = _weights("recurrent_weights", recurrent_weights, hidden_size, hidden_size)
        if not autapses:
            with torch.no_grad():
                self.recurrent_weights.fill_diagonal_(0.0)
            self.recurrent_weights.requires_grad = True
        self._forbid_autapses()

    def _forbid_autapses(self):
        if not self.autapses:
            self.recurrent_weights.register_hook(_without_diagonal)

    def __setstate__(self, state):
        super().__setstate__(state)
        # Copies of a tensor leave its hooks behind.
        self._forbid_autapses()

    def extra_repr(self) -> str:
        sizes = f"input_size={self.input_size}, hidden_size={self.hidden_size}"
        return f"{sizes}, p={self.p}, autapses={self.autapses}, dt={self.dt}"

    def forward(self, input_tensor: Tensor, state: LIFState | None = None) -> tuple[Tensor, LIFState]:
        """One step.

        Args:
            input_tensor: spikes [B, ..., input_size].
            state: before the step, each field [B, ..., hidden_size]. None: at rest, without spikes.

        Returns:
            (spikes [B, ..., hidden_size] in the dtype of the input's product with its weights, state).

        Raises:
            TypeError: an input or a state that is none.
            ValueError: a wrong shape, device or layout.
        """
        x = weighted(input_tensor, self.input_weights, unroll=False)
        states = self._recurrent_states_before(state, x, x.shape)
        states["spk"] = x.new_zeros(x.shape) if states["z"] is None else states["z"]
        spk, *after = self._step(x, states)
        return spk, LIFState(spk, *after)

    def _step_alone(self, x, states):
        by_name = self._by_name(states)
        spk, after = self._advance(x, by_name, F.linear(by_name["spk"], self.recurrent_weights))
        return spk, {**after, "spk": spk}

    def _sequence(self, x, states, want_seqs):
        spikes, last, seqs = self._unroll(x, self._by_name(states), want_seqs)
        return self._as_recorded(spikes, last, seqs if want_seqs else ())

    def _unroll(self, x, states, want_seqs):
        own = tuple(states[name] for name in self.model.states)
        rec, options = Recurrence(self.recurrent_weights, spk=states["spk"]), self._options()._replace(unroll=True)
        return run(self.model, x, own, self._parameters_of_call(x), options, want_seqs, rec=rec)

    def _recurrent_states_before(self, state, x, shape):
        states = self._states_before(state, x, shape)
        z = states.get("z")
        states["z"] = z
        if z is None:
            return states
        if not isinstance(z, Tensor):
            raise TypeError(f"z must be a tensor, got {type(z).__name__}")
        if z.layout != torch.strided:
            raise ValueError(f"z must be a dense tensor, got layout {z.layout}")
        if z.shape != shape:
            raise ValueError(f"z must have shape {tuple(shape)}, got {tuple(z.shape)}")
        return states


def _weights(name: str, given: Tensor | None, outputs: int, inputs: int) -> Tensor:
    if given is None:
        return nn.Parameter(torch.randn(outputs, inputs) * torch.sqrt(2.0 / torch.as_tensor(outputs)))
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor or None, got {type(given).__name__}")
    if given.shape != (outputs, inputs):
        raise ValueError(f"{name} must have shape {(outputs, inputs)}, got {tuple(given.shape)}")
    return given


def _without_diagonal(gradient: Tensor) -> Tensor:
    return gradient.clone().fill_diagonal_(0.0)


class LIFRecurrent(LIFRecurrentCell):
    """A sequence of `LIFRecurrentCell`.

    Args:
        record_states: return the states of all steps [T, B, ..., hidden_size] in the place of the last ones.
        The others: as `LIFRecurrentCell`.

    Examples:
        >>> spk, state = norse.LIFRecurrent(4, 8)(torch.rand(25, 16, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        p: LIFParameters = LIF_DEFAULTS,
        input_weights: Tensor | None = None,
        recurrent_weights: Tensor | None = None,
        autapses: bool = False,
        dt: float = 0.001,
        record_states: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, p, input_weights, recurrent_weights, autapses, dt)
        self.record_states = record_states

    def forward(self, input_tensor: Tensor, state: LIFState | None = None) -> tuple[Tensor, LIFState]:
        """A whole sequence: spikes [T, B, ..., input_size] to spikes [T, B, ..., hidden_size] and the state."""
        x = weighted(input_tensor, self.input_weights, unroll=True)
        if x.dim() < 2:
            raise ValueError(f"input_tensor must be [T, ..., {self.input_size}], got shape {tuple(input_tensor.shape)}")
        states = self._recurrent_states_before(state, x, x.shape[1:])
        names = self.model.states
        spikes, last, seqs = self._unroll(x, {**states, "spk": states["z"]}, self.record_states)
        if self.record_states:
            return spikes, LIFState(z=spikes, **dict(zip(names, seqs, strict=True)))
        z = states["z"]
        if len(spikes) or z is None:
            z = spikes[-1] if len(spikes) else x.new_zeros(x.shape[1:])
        return spikes, LIFState(z=z, **dict(zip(names, last, strict=True)))
