"""What Norse's cells and layers share: parameters, states, and a step or a sequence of them."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import surrogate, transforms
from ..functional import run
from ..loops import recording
from ..ops import Options
from ..reference import Model
from .parameters import LIFParameters, LIParameters, checked, products_with_dt, surrogate_of


class NorseNeuron(nn.Module):
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
        self.__dict__["_p"] = checked(p, LIFParameters if self.model.spikes else LIParameters)
        self.__dict__["_surrogate"] = surrogate_of(p) if self.model.spikes else surrogate.disabled()
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
            return products_with_dt(p, self.dt)
        versions = (value._version if isinstance(value, Tensor) and not value.is_inference() else 0 for value in p)
        key = (x.device, self.dt, torch.is_inference_mode_enabled(), *versions)
        found = self._constants.get(key)
        if found is None:
            found = tuple(_on_device(value, x.device) for value in products_with_dt(p, self.dt))
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
