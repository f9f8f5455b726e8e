"""Norse's LIF and LI neurons and its encoders, fused: the names, arguments, states and numbers of Norse 1.1.0.

Cells take one step [B, ...], layers a sequence [T, B, ...], time first; both return (output, state). Numbers are those
of Norse (norse/torch/{functional,module}/{lif,leaky_integrator,encode}.py) to the bit, in the spikes, voltages and
currents and in the gradients of inputs and of initial states. What differs:

- Outputs come in the input's dtype. States are float32, and float64 where the input or a state is.
- Gradients of a cell's voltage beside those of its spikes may round differently; those of `LIF` do not.
- An initial state that is made here needs no gradient.
- The inputs of `LIFRecurrent` meet their weights in one product for all steps, which may round differently.
- Spikes are dense, and "adjoint" is no method.

Source: C. Pehle and J. E. Pedersen, Norse - A deep learning library for spiking neural networks (2021),
doi:10.5281/zenodo.4422025.

Voltages are in mV by Norse's convention, inverse time constants in 1/s with dt in s.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import products, surrogate, transforms
from .functional import check_count, check_current, check_data, run, run_dense
from .loops import recording
from .ops import Options, Recurrence
from .reference import LI as LI_MODEL
from .reference import LIF as LIF_MODEL
from .reference import LIF_RECURRENT, Model

__all__ = [
    "LI",
    "LIF",
    "ConstantCurrentLIFEncoder",
    "LICell",
    "LIFCell",
    "LIFFeedForwardState",
    "LIFParameters",
    "LIFRecurrent",
    "LIFRecurrentCell",
    "LIFState",
    "LILinearCell",
    "LIParameters",
    "LIState",
    "PoissonEncoder",
    "SpikeLatencyEncoder",
    "SpikeLatencyLIFEncoder",
]

METHODS = {
    "super": lambda alpha: surrogate.fast_sigmoid(1.0),
    "heaviside": lambda alpha: surrogate.disabled(),
    "triangle": surrogate.triangle,
    "tanh": surrogate.tanh,
    "circ": surrogate.circ,
    "heavi_erfc": surrogate.erfc,
}


class LIFParameters(NamedTuple):
    """Parameters of LIF neurons: numbers, or tensors that broadcast over one step [B, ...].

    Attributes:
        tau_syn_inv: inverse time constant of the synaptic current.
        tau_mem_inv: inverse time constant of the membrane.
        v_leak: leak potential.
        v_th: threshold.
        v_reset: reset potential.
        method: surrogate gradient of a spike: "super" (of slope 1, as Norse 1.1.0 leaves alpha out of it), "heaviside"
            (none), "triangle", "tanh", "circ" or "heavi_erfc".
        alpha: parameter of the surrogate, one number.

    Examples:
        >>> norse.LIFParameters(v_th=torch.tensor(0.5)).method
        'super'
    """

    tau_syn_inv: Tensor = torch.as_tensor(1.0 / 5e-3)
    tau_mem_inv: Tensor = torch.as_tensor(1.0 / 1e-2)
    v_leak: Tensor = torch.as_tensor(0.0)
    v_th: Tensor = torch.as_tensor(1.0)
    v_reset: Tensor = torch.as_tensor(0.0)
    method: str = "super"
    alpha: float = torch.as_tensor(100.0)


class LIParameters(NamedTuple):
    """Parameters of leaky integrators: the first three of `LIFParameters`.

    Examples:
        >>> norse.LIParameters().v_leak
        tensor(0.)
    """

    tau_syn_inv: Tensor = torch.as_tensor(1.0 / 5e-3)
    tau_mem_inv: Tensor = torch.as_tensor(1.0 / 1e-2)
    v_leak: Tensor = torch.as_tensor(0.0)


_LIF_DEFAULTS, _LI_DEFAULTS = LIFParameters(), LIParameters()


class LIFState(NamedTuple):
    """Spikes, voltage and synaptic current of recurrent LIF neurons [B, ..., hidden].

    Examples:
        >>> _, state = norse.LIFRecurrentCell(4, 8)(torch.rand(16, 4))
        >>> state.z.shape
        torch.Size([16, 8])
    """

    z: Tensor
    v: Tensor
    i: Tensor


class LIFFeedForwardState(NamedTuple):
    """Voltage and synaptic current of LIF neurons [B, ...].

    Examples:
        >>> _, state = norse.LIFCell()(torch.rand(16, 4))
        >>> state.v.shape
        torch.Size([16, 4])
    """

    v: Tensor
    i: Tensor


class LIState(NamedTuple):
    """Voltage and synaptic current of leaky integrators [B, ...].

    Examples:
        >>> _, state = norse.LICell()(torch.rand(16, 4))
        >>> state.i.shape
        torch.Size([16, 4])
    """

    v: Tensor
    i: Tensor


class _Neuron(nn.Module):
    """Base of cells and layers: parameters, their products with dt, and states."""

    model: Model
    state_type: type
    sequence = False

    # As `SpikingNeuron` has them: with which settings, and what is remembered.
    _recorded = None
    _loops = None

    def __init__(self, p: Any, dt: float) -> None:
        super().__init__()
        self.dt = dt
        self.p = p

    @property
    def p(self) -> Any:
        """The neuron's parameters. They are no parameters of the module, as in Norse: they move to no device by it."""
        return self._p

    @p.setter
    def p(self, p: Any) -> None:
        if recording.is_on:
            recording.about_to_change(self)
        self.__dict__["_p"] = _checked(p, LIFParameters if self.model.spikes else LIParameters)
        self.__dict__["_surrogate"] = _surrogate(p) if self.model.spikes else surrogate.disabled()
        self.__dict__["_constants"] = {}

    def extra_repr(self) -> str:
        return f"p={self.p}, dt={self.dt}"

    def __getstate__(self):
        return {**super().__getstate__(), "_constants": {}, "_loops": None}

    # What the recorder asks of a layer (`SpikingNeuron` says what each is): a cell's step, and many of them.

    state_names = "v", "i"
    """As `state_type` has them; "spk" where the output is a state, which a loop then hands on as one tensor."""

    def _may_wait(self) -> bool:
        return True

    def _sums_otherwise_in_sequence(self) -> bool:
        return True

    def _parameters_of_model(self) -> list[Tensor]:
        return [value for value in self.p if isinstance(value, Tensor)]

    def _tensors_of_step(self) -> list[Tensor]:
        return [*self._parameters_of_model(), *self.parameters()]

    def _returns_states(self) -> bool:
        return True

    def _keep(self, name: str, state: Tensor) -> None:
        """A cell keeps no state."""

    def _taken(self, outs: tuple) -> tuple:
        return outs

    def _step_fused(self, x: Tensor, states: tuple) -> tuple:
        output, after = self._step_alone(x, states)
        return output, *(after[name] for name in self.state_names if name != "spk")

    def _step_alone(self, x: Tensor, states: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        output, after = self._advance(x, self._by_name(states))
        return output, {**after, "spk": output}

    def _sequence(self, x: Tensor, states: tuple, want_seqs: bool) -> tuple[Tensor, dict, dict]:
        names, by_name = self.model.states, self._by_name(states)
        given, options = tuple(by_name[name] for name in names), self._options()._replace(unroll=True)
        output, last, seqs = run(self.model, x, given, self._parameters_of_call(x), options, want_seqs)
        return self._as_recorded(output, last, seqs if want_seqs else ())

    def _by_name(self, states: tuple) -> dict[str, Tensor]:
        return dict(zip(self.state_names, states, strict=True))

    def _as_recorded(self, output: Tensor, last: tuple, seqs: tuple) -> tuple[Tensor, dict, dict]:
        """What the recorder wants of a sequence: its output, and by name the last states and those of all steps."""
        names = self.model.states
        last, seqs = dict(zip(names, last, strict=True)), dict(zip(names, seqs, strict=False))
        return output, {**last, "spk": output[-1].clone()} if "spk" in self.state_names else last, seqs

    def _step(self, x: Tensor, states: dict[str, Tensor | None]) -> tuple:
        """One step of a cell: its output and the states that are not it, recorded where that is wanted."""
        given = tuple(states[name] for name in self.state_names)
        if not recording.is_on:
            return self._step_fused(x, given)
        return recording.step(self, x, tuple(torch.zeros_like(x) if state is None else state for state in given))

    def _options(self) -> Options:
        return Options(self._surrogate, "none", True, self.sequence)

    def _parameters_of_call(self, x: Tensor) -> tuple:
        """The model's parameters; those that nothing can change meanwhile are computed once for each device."""
        p = self.p[:5]
        passing = torch.compiler.is_compiling() or transforms.functional()
        if passing or any(isinstance(value, Tensor) and value.requires_grad for value in p):
            return _products(p, self.dt)
        versions = (value._version if isinstance(value, Tensor) and not value.is_inference() else 0 for value in p)
        key = (x.device, self.dt, torch.is_inference_mode_enabled(), *versions)
        found = self._constants.get(key)
        if found is None:
            found = tuple(_on_device(value, x.device) for value in _products(p, self.dt))
            if all(type(value) in (Tensor, float, int) for value in found):
                self._constants.clear()
                self._constants[key] = found
        return found

    def _states_before(self, state, x: Tensor, shape: torch.Size) -> dict[str, Tensor | None]:
        """The states that a call starts from, by name: the given, or rest."""
        if state is None:
            v_leak = self.p.v_leak
            rest = v_leak.detach() if isinstance(v_leak, Tensor) else torch.tensor(float(v_leak))
            return {"v": _over(rest, x, shape), "i": None}
        fields = self.state_type._fields
        if not all(hasattr(state, field) for field in fields):
            raise TypeError(
                f"state must be None or have the fields {', '.join(fields)} of {self.state_type.__name__}, "
                f"got {type(state).__name__}"
            )
        return {field: _over(getattr(state, field), x, shape) for field in fields}

    def _advance(self, x: Tensor, states: dict, rec: Tensor | None = None, want_seqs: bool = False):
        """Runs the neuron; returns its output and, by name, the last states or those of all steps."""
        names = self.model.states
        given = tuple(states[name] for name in names)
        params = self._parameters_of_call(x)
        output, last, seqs = run(self.model, x, given, params, self._options(), want_seqs, rec=rec)
        return output, dict(zip(names, seqs if want_seqs else last, strict=True))


def _products(p: tuple, dt: float) -> tuple:
    """mem_rate, syn_rate and the voltages, as the kernels take them: multiplied as Norse multiplies."""
    tau_syn_inv, tau_mem_inv, *voltages = p
    return dt * tau_mem_inv, dt * tau_syn_inv, *voltages


def _on_device(value, device):
    return value.to(device) if isinstance(value, Tensor) and value.dim() == 0 else value


def _over(state, x: Tensor, shape: torch.Size):
    """A state over one step; one number stands for all of its neurons and has no say in the dtype."""
    if not isinstance(state, Tensor):
        return state
    if state.dim() == 0 and state.is_floating_point():
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        state = state.to(x.device, wide)
    return state.expand(shape) if state.dim() < len(shape) and _fits(state.shape, shape) else state


def _fits(part: torch.Size, shape: torch.Size) -> bool:
    return all(size in (1, whole) for size, whole in zip(reversed(part), reversed(shape), strict=False))


def _checked(p, wanted: type):
    """Parameters of the wanted fields, each a real number or tensor; of LIF neurons, numbers become tensors."""
    if not all(hasattr(p, field) for field in wanted._fields):
        raise TypeError(
            f"p must have the fields of {wanted.__name__} ({', '.join(wanted._fields)}), got {type(p).__name__}"
        )
    values = {field: getattr(p, field) for field in wanted._fields}
    for field, value in values.items():
        if field == "method":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
            raise TypeError(f"p.{field} must be a number or a tensor, got {type(value).__name__}")
        if isinstance(value, Tensor) and (value.dtype == torch.bool or value.dtype.is_complex):
            raise TypeError(f"p.{field} must have a real dtype, got {value.dtype}")
        if wanted is LIFParameters:
            values[field] = torch.as_tensor(value)
    return wanted(**values)


def _surrogate(p) -> surrogate.Surrogate:
    if p.method not in METHODS:
        raise ValueError(f"p.method must be one of {', '.join(METHODS)}; got {p.method!r}")
    alpha = torch.as_tensor(p.alpha)
    if alpha.numel() != 1:
        raise ValueError(f"p.alpha must be one number, got a tensor of shape {tuple(alpha.shape)}")
    return METHODS[p.method](float(alpha.detach()))


class _FeedForward(_Neuron):
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

    def __init__(self, p: LIFParameters = _LIF_DEFAULTS, dt: float = 0.001) -> None:
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

    def __init__(self, p: LIFParameters = _LIF_DEFAULTS, dt: float = 0.001, record_states: bool = False) -> None:
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

    def __init__(self, p: LIParameters = _LI_DEFAULTS, dt: float = 0.001) -> None:
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

    def __init__(self, p: LIParameters = _LI_DEFAULTS, dt: float = 0.001, record_states: bool = False) -> None:
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

    def __init__(self, input_size: int, hidden_size: int, p: LIParameters = _LI_DEFAULTS, dt: float = 0.001) -> None:
        super().__init__(p, dt)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.input_weights = nn.Parameter(torch.randn(hidden_size, input_size) / math.sqrt(input_size))

    def forward(self, input_tensor: Tensor, state: LIState | None = None) -> tuple[Tensor, LIState]:
        """One step: spikes [B, input_size] to (voltages [B, hidden_size], state). Raises as `LICell`."""
        return super().forward(_weighted(input_tensor, self.input_weights, unroll=False), state)

    def extra_repr(self) -> str:
        return f"input_size={self.input_size}, hidden_size={self.hidden_size}, {super().extra_repr()}"


def _weighted(x: Tensor, weights: Tensor, unroll: bool) -> Tensor:
    x = check_current(x, unroll)
    if x.dim() == 0 or x.shape[-1] != weights.shape[-1]:
        raise ValueError(f"input_tensor must have {weights.shape[-1]} features last, got shape {tuple(x.shape)}")
    return products.linear(x, weights) if unroll else F.linear(x, weights)


class LIFRecurrentCell(_Neuron):
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
        p: LIFParameters = _LIF_DEFAULTS,
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
        x = _weighted(input_tensor, self.input_weights, unroll=False)
        states = self._recurrent_states_before(state, x, x.shape)
        states["spk"] = x.new_zeros(x.shape) if states["z"] is None else states["z"]
        spk, *after = self._step(x, states)
        return spk, LIFState(spk, *after)

    def _step_alone(self, x, states):
        by_name = self._by_name(states)
        spk, after = self._advance(x, by_name, F.linear(by_name["spk"], self.recurrent_weights))
        return spk, {**after, "spk": spk}

    def _sequence(self, x, states, want_seqs):
        by_name = self._by_name(states)
        own = tuple(by_name[name] for name in self.model.states)
        recurrence, options = Recurrence(self.recurrent_weights, None), self._options()._replace(unroll=True)
        spikes, last, seqs = run_dense(
            self.model, x, by_name["spk"], own, self._parameters_of_call(x), recurrence, options, want_seqs
        )
        return self._as_recorded(spikes, last, seqs if want_seqs else ())

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
        p: LIFParameters = _LIF_DEFAULTS,
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
        x = _weighted(input_tensor, self.input_weights, unroll=True)
        if x.dim() < 2:
            raise ValueError(f"input_tensor must be [T, ..., {self.input_size}], got shape {tuple(input_tensor.shape)}")
        states = self._recurrent_states_before(state, x, x.shape[1:])
        names = self.model.states
        spikes, last, seqs = run_dense(
            self.model,
            x,
            states["z"],
            tuple(states[name] for name in names),
            self._parameters_of_call(x),
            Recurrence(self.recurrent_weights, None),
            self._options()._replace(unroll=True),
            self.record_states,
        )
        if self.record_states:
            return spikes, LIFState(z=spikes, **dict(zip(names, seqs, strict=True)))
        z = states["z"]
        if len(spikes) or z is None:
            z = spikes[-1] if len(spikes) else x.new_zeros(x.shape[1:])
        return spikes, LIFState(z=z, **dict(zip(names, last, strict=True)))


class _Encoder(nn.Module):
    """Base of the encoders that drive LIF neurons, without a synapse, by a constant current."""

    def __init__(self, seq_length: int, p: LIFParameters = _LIF_DEFAULTS, dt: float = 0.001) -> None:
        super().__init__()
        self.seq_length = check_count("seq_length", seq_length)
        self.p = _checked(p, LIFParameters)
        self._surrogate = _surrogate(p)
        self.dt = dt

    def extra_repr(self) -> str:
        return f"seq_length={self.seq_length}, p={self.p}, dt={self.dt}"

    def _spikes(self, current: Tensor, v: Tensor) -> Tensor:
        """Spikes [seq_length, ...] of a current [...] on voltages v [...]."""
        if self._is_fusible(current, v):
            # A synapse that forgets at once hands the current on as it is.
            mem_rate, _, *voltages = _products(self.p[:5], self.dt)
            x = current.to(v.dtype).expand(self.seq_length, *current.shape)
            options = Options(self._surrogate, "none", True, True)
            return run(LIF_MODEL, x, (None, None), (mem_rate, 1.0, *voltages), options).spk
        spikes = []
        mem_rate = self.dt * self.p.tau_mem_inv
        for _ in range(self.seq_length):
            v = v + mem_rate * ((self.p.v_leak - v) + current)
            spk = self._surrogate(v - self.p.v_th)
            v = v - spk * (v - self.p.v_reset)
            spikes.append(spk)
        return torch.stack(spikes) if spikes else v.new_empty(0, *v.shape)

    def _is_fusible(self, current: Tensor, v: Tensor) -> bool:
        """Whether the fused neuron gives these numbers: its reset is another where v_reset is not 0."""
        if torch.compiler.is_compiling() or v.dtype not in (torch.float32, torch.float64):
            return False
        tensors = (current, *self.p[:5])
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return False
        if any(p.dim() > 0 or (p.dtype == torch.float64 and v.dtype != p.dtype) for p in self.p[:5]):
            return False
        return bool(self.p.v_reset == 0)


class ConstantCurrentLIFEncoder(_Encoder):
    """Spikes of LIF neurons without a synapse, each driven by a constant current.

    Args:
        seq_length: number of time steps.
        p: parameters. Default: Norse's.
        dt: time step in s. Default 0.001.

    Raises:
        TypeError: a parameter that is no number.
        ValueError: an unknown method, a negative length.

    Examples:
        >>> norse.ConstantCurrentLIFEncoder(25)(torch.rand(16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def forward(self, input_currents: Tensor) -> Tensor:
        """Currents [...] of any real dtype to spikes [seq_length, ...], float32; voltages start from 0."""
        check_data("input_currents", input_currents)
        wide = torch.float64 if input_currents.dtype == torch.float64 else torch.get_default_dtype()
        v = torch.zeros(input_currents.shape, device=input_currents.device, dtype=wide)
        return self._spikes(input_currents, v).to(torch.get_default_dtype())


class SpikeLatencyLIFEncoder(_Encoder):
    """The first spike of each neuron of `ConstantCurrentLIFEncoder`. Args as there.

    Examples:
        >>> norse.SpikeLatencyLIFEncoder(25)(torch.rand(16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def forward(self, input_current: Tensor) -> Tensor:
        """Currents [...] to spikes [seq_length, ...] in their dtype, which is a floating one."""
        check_data("input_current", input_current)
        if not input_current.is_floating_point():
            raise TypeError(f"input_current must have a floating dtype, got {input_current.dtype}")
        return _first_spikes(self._spikes(input_current, torch.zeros_like(input_current)))


class SpikeLatencyEncoder(nn.Module):
    """Leaves of each neuron's spikes the first.

    Examples:
        >>> norse.SpikeLatencyEncoder()(torch.rand(25, 16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def forward(self, input_spikes: Tensor) -> Tensor:
        """Spikes [T, ...], 0 or 1, of any dtype to spikes of the same shape and dtype."""
        check_data("input_spikes", input_spikes)
        if input_spikes.dim() == 0:
            raise ValueError("input_spikes must have a time dimension [T, ...], got a tensor of 0 dimensions")
        return _first_spikes(input_spikes)


def _first_spikes(spikes: Tensor) -> Tensor:
    fired = (spikes.detach() > 0).cumsum(0)
    before = torch.cat([torch.zeros_like(fired[:1]), fired[:-1]])
    return torch.where(before > 0, torch.zeros_like(spikes), spikes)


class PoissonEncoder(nn.Module):
    """Random spikes at rates of up to f_max; the same seed gives the spikes that Norse draws.

    Args:
        seq_length: number of time steps.
        f_max: rate of an input of 1, in Hz. Default 100.
        dt: time step in s. Default 0.001.

    Examples:
        >>> norse.PoissonEncoder(25)(torch.rand(16, 4)).shape
        torch.Size([25, 16, 4])
    """

    def __init__(self, seq_length: int, f_max: float = 100, dt: float = 0.001) -> None:
        super().__init__()
        self.seq_length = check_count("seq_length", seq_length)
        self.f_max = f_max
        self.dt = dt

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [...] from 0 to 1 to spikes [seq_length, ...], float32."""
        check_data("x", x)
        return (torch.rand(self.seq_length, *x.shape, device=x.device).float() < self.dt * self.f_max * x).float()

    def extra_repr(self) -> str:
        return f"seq_length={self.seq_length}, f_max={self.f_max}, dt={self.dt}"
