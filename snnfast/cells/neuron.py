"""`Cell`: a neuron of one's own as a layer."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..loops import recording
from ..neurons import SpikingNeuron
from .scanning import scan, why_not_fused


class Cell(SpikingNeuron):
    """Base of neurons of your own, written in plain PyTorch, that have what `Leaky` has.

    A subclass names its states and writes one step; parameters and buffers are an `nn.Module`'s. Steps are calls of
    `step` as it is written; whole sequences (`unroll`, `Unroll`) go through `snnfast.scan`: fused, with the numbers of
    the loop over steps, where `step` is elementwise, and else step by step, which a warning says (as `why_not_fused`).

    Args:
        init_hidden: keep the states in the layer; a call then takes the current alone and returns the spikes alone.
        output: return states even with init_hidden.

    States start from zeros of the input's shape, in its dtype (float32 for float16 and bfloat16); override `initial` to
    start from something else. They are no buffers, and not in the `state_dict`.

    Examples:
        >>> class Integrator(snn.Cell):
        ...     states = ("mem",)
        ...
        ...     def __init__(self, beta):
        ...         super().__init__()
        ...         self.beta = nn.Parameter(torch.tensor(beta))
        ...
        ...     def step(self, x, mem):
        ...         mem = self.beta * mem + x
        ...         return torch.tanh(mem), mem
        >>> out, mem = Integrator(0.9).unroll(torch.rand(100, 8, 20))

    Raises:
        TypeError: a subclass without a `step`, or without names of its states.
    """

    states: tuple[str, ...] = ()
    """Names of the states, as attributes, in the order in which `step` takes and returns them."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if isinstance(cls.states, str) or not all(isinstance(name, str) for name in cls.states):
            raise TypeError(f"{cls.__name__}.states must be a tuple of names, got {cls.states!r}")
        cls.state_names = tuple(cls.states)

    # What the last input was like, and whether a step of it may be computed later.
    _like = None
    _waits = None

    _surrogate_key = ("cell",)
    """Its surrogate is the step's own affair."""

    def __init__(self, init_hidden: bool = False, output: bool = False) -> None:
        nn.Module.__init__(self)
        if not self.state_names:
            raise TypeError(f"{type(self).__name__}.states must name its states, such as ('mem',)")
        self.init_hidden, self.output = init_hidden, output
        self.inhibition = self.state_quant = False
        self._init_mem()
        self._register_instance()

    # A subclass names its states, which mypy takes for the same signature for Any's sake.
    def step(self, x: Tensor, *states: Any, **_: Any) -> Any:
        """One time step, for a subclass to write: current and states [B, ...] to spikes and states."""
        raise TypeError(f"{type(self).__name__} must have a step(self, x, {', '.join(self.state_names)})")

    def initial(self, x: Tensor) -> tuple[Tensor, ...]:
        """The states before the first step, for a current like x [B, ...]."""
        dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        return tuple(torch.zeros(x.shape, dtype=dtype, device=x.device) for _ in self.state_names)

    def forward(self, input_: Tensor, *states: Tensor | None) -> Any:
        """One time step.

        Args:
            input_: current [B, ...].
            states: in the order of `states` [B, ...]. Without them the layer goes on from its own.

        Returns:
            (spikes, *states); the spikes alone with init_hidden=True and output=False.

        Raises:
            TypeError: states together with init_hidden=True, or too many of them.
            ValueError: a state of another shape.
        """
        given = self._checked(input_, self._ordered(states, {}))
        if recording.is_on:
            object.__setattr__(self, "_like", (input_.shape, input_.dtype, input_.device))
            return recording.step(self, input_, given)
        return self._step_fused(input_, given)

    def _step_fused(self, input_, states):
        spk, after = self._step_alone(input_, self._before(input_, states, own=True))
        self._keep_states(after.values())
        return self._output(spk)

    def _step_alone(self, input_, states):
        ops.tell("cell", (input_, *states), None)
        before = self._before(input_, self._fitting(input_, states), own=False)
        spk, *after = self._taken_apart(self.step(input_, *before))
        return spk, dict(zip(self.state_names, after, strict=True))

    def _sequence(self, input_, states, want_seqs):
        before = self._before(input_[0], self._fitting(input_[0], states), own=False)
        out, last = scan(self._spikes_and_states if want_seqs else self._spikes, input_, before)
        spk, *seqs = out if want_seqs else (out,)
        names = self.state_names
        return spk, dict(zip(names, last, strict=True)), dict(zip(names, seqs, strict=True)) if want_seqs else {}

    @staticmethod
    def _fitting(x: Tensor, states: tuple) -> tuple:
        """The states but for those of a reset, or of another batch that the layer kept, which stand for none."""
        return tuple(state if state is not None and state.shape == x.shape else None for state in states)

    def _may_wait(self):
        # A step that is traced draws nothing and has no effects; which others have any, nobody knows.
        if self._waits is None or self._waits[0] != self._like:
            # Who is being recorded must not see the tracing.
            recording.stop()
            shape, dtype, device = self._like
            like = torch.zeros(1, *shape, dtype=dtype, device=device)
            reason = why_not_fused(self._spikes, like, self.initial(like[0]))
            object.__setattr__(self, "_waits", (self._like, reason is None))
        return self._waits[1]

    def _parameters_of_model(self):
        return tuple(self.parameters())

    def _tensors_of_step(self):
        return [*self.parameters(), *self.buffers()]

    def why_not_fused(self, input_: Tensor) -> str | None:
        """Why `unroll` of such a sequence [T, B, ...] runs step by step; None: it is fused."""
        return why_not_fused(self._spikes, input_, self._before(input_[0], self._ordered((), {}), own=False))

    def height_of(self, spk: Tensor) -> None:
        """What the output holds is the step's own affair."""
        return None

    def _unroll(self, input_, states, want_seqs):
        if not isinstance(input_, Tensor) or input_.dim() == 0 or not len(input_):
            got = tuple(input_.shape) if isinstance(input_, Tensor) else type(input_).__name__
            raise ValueError(f"the input must be a tensor [T, B, ...] of one step or more, got {got}")
        states = self._checked(input_[0], states)
        before = self._before(input_[0], states, own=self.init_hidden)
        out, last = scan(self._spikes_and_states if want_seqs else self._spikes, input_, before)
        if self.init_hidden:
            self._keep_states(last)
        return out

    def _spikes(self, x: Tensor, *states: Tensor):
        return self._taken_apart(self.step(x, *states))

    def _spikes_and_states(self, x: Tensor, *states: Tensor):
        spk, *states = self._taken_apart(self.step(x, *states))
        return (spk, *states), *states

    def _before(self, x: Tensor, given: tuple, own: bool) -> tuple[Tensor, ...]:
        """The states before a step with the current x: given ones, else the layer's where they fit, else new ones."""
        states = list(given)
        for k, name in enumerate(self.state_names):
            if given[k] is None and own and getattr(self, name).shape == x.shape:
                states[k] = getattr(self, name)
        if any(state is None for state in states):
            new = self.initial(x)
            states = [new[k] if state is None else state for k, state in enumerate(states)]
        return tuple(states)

    def _checked(self, x: Tensor, given: tuple) -> tuple:
        """The given states; None for those that a reset gave, which stand for new ones."""
        self._refuse_states(given)
        given = tuple(None if isinstance(state, Tensor) and state.shape == (0,) else state for state in given)
        for name, state in zip(self.state_names, given, strict=True):
            if isinstance(state, Tensor) and state.shape != x.shape:
                raise ValueError(f"{name} must have the input's shape {tuple(x.shape)}, got {tuple(state.shape)}")
        return given

    def _taken_apart(self, found) -> tuple:
        """What `step` returned: its spikes, and as many states as there are names."""
        names = ", ".join(self.state_names)
        if not isinstance(found, (tuple, list)) or len(found) != 1 + len(self.state_names):
            got = f"{len(found)} values" if isinstance(found, (tuple, list)) else type(found).__name__
            raise TypeError(f"{type(self).__name__}.step must return its spikes and {names}, got {got}")
        return tuple(found)

    def reset_state(self) -> None:
        if type(self).initial is Cell.initial:
            super().reset_state()
        else:
            # Of a shape that no current has: the next step asks for initial states.
            self._init_mem()

    def _keep_states(self, states) -> None:
        for name, state in zip(self.state_names, states, strict=True):
            self._keep(name, state)

    def __setattr__(self, name, value):
        if recording.is_on and name not in self.state_names:
            recording.about_to_change(self)
            object.__setattr__(self, "_waits", None)
        nn.Module.__setattr__(self, name, value)

    def __delattr__(self, name):
        nn.Module.__delattr__(self, name)

    def __setstate__(self, state):
        nn.Module.__setstate__(self, state)
        self._register_instance()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={tuple(param.shape)}" for name, param in self.named_parameters(recurse=False))
