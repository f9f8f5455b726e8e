"""What every spiking layer shares: parameters, hidden state, reset mechanism, saving and loading.

The surface is that of `snntorch._neurons.neurons.SpikingNeuron` 1.0.0, of which these layers are subclasses where
snnTorch is installed, so that its `utils.reset`, `backprop` and NIR export find them. Where 1.0.0 contradicts itself
the layer does what the documentation promises; the README lists each such deviation.
"""

import contextlib
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops, surrogate, transforms
from ..annotations import SpikeGrad, StateQuant, Values
from ..checks import RESET_MECHANISMS, check_reset_mechanism
from ..functional import fits_one_operator, run, spike_height
from ..loops import recording
from ..loops.settings import Settings
from ..reference import Model
from . import own
from .states import HiddenState, snntorch, zeros


def snntorch_class(name: str) -> tuple:
    """The class of snnTorch that a layer takes the place of, as bases for it; none where snnTorch has none."""
    return (getattr(snntorch, name),) if hasattr(snntorch, name) else ()


class SpikingNeuron(HiddenState, snntorch.SpikingNeuron if snntorch else own.Equations):
    """Base of the fused layers. Subclasses name model and states and give `forward` their arguments.

    Methods that a step of snnTorch calls (`mem_reset`, `state_function`, `fire`, ...) may be overridden, in a subclass
    or on an instance, as may `forward`: the layer then calls them at every step, as snnTorch does, and says so once. A
    neuron of your own derives from this class with a `forward`.

    Args: as `Leaky`.

    Examples:
        >>> class Clipped(snn.Leaky):
        ...     def fire(self, mem):
        ...         return super().fire(mem.clamp(max=2.0))
        >>> isinstance(Clipped(0.9), snn.SpikingNeuron)
        True
    """

    model: Model | None = None
    """What the layer computes, with the layer's attributes of these names, unless `_parameters_of_model` says else;
    None: what a `forward` of its own says."""

    state_names: tuple[str, ...] = ()
    """Attributes that hold the hidden state, in the order in which calls take and return them: plain tensors, so that
    DistributedDataParallel leaves them alone."""

    reset_delay: bool = True

    threshold: Tensor
    graded_spikes_factor: Tensor
    reset_mechanism_val: Tensor
    spike_grad: SpikeGrad

    # Which methods are the user's: of the class, and names of those of the instance; and what charges it (`own`).
    _methods: own.Methods
    _own: tuple[str, ...] = ()
    _charge = None

    # What looks on at its sequences (`probe`).
    _seen: tuple = ()

    # With which settings loops over the layer are recorded, and what is remembered of those that it begins (`loops`).
    _recorded = None
    _loops = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._methods = own.Methods(cls)

    if snntorch is None:
        reset_dict = {name: value for value, name in enumerate(RESET_MECHANISMS)}

    def __init__(
        self,
        threshold: Values = 1.0,
        spike_grad: SpikeGrad | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: StateQuant = False,
        output: bool = False,
        graded_spikes_factor: Values = 1.0,
        learn_graded_spikes_factor: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        check_reset_mechanism(reset_mechanism)
        if state_quant and not callable(state_quant):
            raise TypeError(f"state_quant must be callable or False, got {type(state_quant).__name__}")
        if inhibition:
            warnings.warn(
                "Inhibition is an unstable feature that has only been tested for dense (fully-connected) layers. "
                "Use with caution!",
                UserWarning,
                stacklevel=3,
            )
        self.spike_grad = surrogate.disabled() if surrogate_disable else spike_grad
        self.surrogate_disable = surrogate_disable
        self.init_hidden = init_hidden
        self.inhibition = inhibition
        self.output = output
        self.state_quant = state_quant
        self._add_parameter("threshold", threshold, learn_threshold)
        self._add_parameter("graded_spikes_factor", graded_spikes_factor, learn_graded_spikes_factor)
        self.register_buffer("reset_mechanism_val", torch.tensor(RESET_MECHANISMS.index(reset_mechanism)))
        self._reset_mechanism = reset_mechanism
        own.choose_charge(self)
        # A constructor that fails after this leaves a layer in the list until it is collected.
        HiddenState._init_mem(self)
        self._register_instance()

    def _add_parameter(self, name: str, value, learn: bool) -> None:
        """A learnable parameter or a buffer. Numbers and arrays as torch.as_tensor takes them, tensors as they are."""
        try:
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}") from error
        if tensor.dtype == torch.bool or tensor.dtype.is_complex:
            raise TypeError(f"{name} must have a real dtype, got {tensor.dtype}")
        if not learn:
            self.register_buffer(name, tensor)
        else:
            floating = tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
            self.register_parameter(name, nn.Parameter(floating))

    def __setattr__(self, name, value):
        if recording.is_on and name[0] != "_" and name not in self.state_names:
            recording.about_to_change(self)
        if name == "spike_grad":
            value = self._resolve_spike_grad(value)
        super().__setattr__(name, value)
        if name in own.SET_ON_INSTANCES:
            own.note(self)

    def __delattr__(self, name):
        super().__delattr__(name)
        if name in own.SET_ON_INSTANCES:
            own.note(self)

    def __getattr__(self, name):
        # First what a step asks for; then states, for which snnTorch's AttributeMonitor calls this as for buffers.
        buffers = self.__dict__.get("_buffers", ())
        if name in buffers:
            return buffers[name]
        return self.__dict__[name] if name in self.__dict__ else super().__getattr__(name)

    def _resolve_spike_grad(self, spike_grad):
        """Keeps the fused form beside `spike_grad`, which stays the user's object unless it is a known closure."""
        resolved = surrogate.resolve(spike_grad)
        # Around nn.Module.__setattr__, which would register a module a second time.
        self.__dict__["_surrogate"] = resolved
        self._name_surrogate()
        if isinstance(spike_grad, nn.Module):
            return spike_grad
        self._modules.pop("spike_grad", None)
        return spike_grad if isinstance(resolved, surrogate.evaluated) else resolved

    def _name_surrogate(self) -> None:
        """Keeps the key, of which Python's own surrogates have one in every process and copy."""
        self.__dict__["_surrogate_key"] = getattr(self._surrogate, "key", None)

    @property
    def reset_mechanism(self) -> str:
        """One of "subtract", "zero", "none"; assigning it changes the dynamics and `reset_mechanism_val` (0, 1, 2)."""
        return self._reset_mechanism

    @reset_mechanism.setter
    def reset_mechanism(self, name: str) -> None:
        check_reset_mechanism(name)
        self.reset_mechanism_val = torch.full_like(self.reset_mechanism_val, RESET_MECHANISMS.index(name))
        self._reset_mechanism = name
        own.choose_charge(self)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        value = state_dict.get(prefix + "reset_mechanism_val")
        if value is not None and not value.is_meta:
            if int(value) not in range(len(RESET_MECHANISMS)):
                errors.append(f"{prefix}reset_mechanism_val must be 0, 1 or 2, got {int(value)}")
                return
            self._reset_mechanism = RESET_MECHANISMS[int(value)]
            own.choose_charge(self)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        # Checkpoints older than graded spikes lack the factor; the layer's own value is what they meant.
        graded = prefix + "graded_spikes_factor"
        if graded in missing:
            missing.remove(graded)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        for name in self.state_names:
            setattr(self, name, fn(getattr(self, name)))
        return self

    def __getstate__(self):
        state = self.__dict__.copy()
        for name in self.state_names:
            left = transforms.is_left_behind(state[name])
            state[name] = zeros(state[name]) if left else state[name].detach()
        # A method of a class is found by its name, which a patched one may not have.
        state.pop("_charge", None)
        state.pop("_loops", None)
        state.pop("_seen", None)
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self._name_surrogate()
        own.choose_charge(self)
        self._register_instance()
        if "_recorded" in state:
            recording.switch(layers=True)

    def _parameters_of_call(self) -> tuple[Tensor, ...]:
        """The neuron's parameters, as backward may keep them.

        DistributedDataParallel overwrites buffers, with equal values, at every forward; autograd would refuse to go
        back through the steps before, so there they are copies.
        """
        parameters = self._parameters_of_model()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return parameters
        return tuple(p if p.requires_grad else p.clone() for p in parameters)

    def _parameters_of_model(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.model.params)

    def state_function(self, input_: Tensor) -> Any:
        """Charges the layer as its reset mechanism has it: by `_base_sub`, `_base_zero` or `_base_int`."""
        return self._charge(self, input_)

    def _step(self, input_: Tensor, *states: Tensor | None):
        """One call: as `forward` of the neurons describes it."""
        self._refuse_states(states)
        if (self._own or own.own_of_class(type(self))) and (names := own.of_step(self)):
            own.say_once(type(self).__name__, names)
            return self._step_by_methods(input_, states)
        if recording.is_on:
            return recording.step(self, input_, states)
        return self._step_fused(input_, states)

    def _step_by_methods(self, input_: Tensor, states: tuple):
        patched = own.patched_forward(self)
        if patched is not None:
            return patched(self, input_, *(() if all(state is None for state in states) else states))
        return self._output(own.step(self, input_, states))

    def _step_fused(self, input_: Tensor, states: tuple):
        if torch.compiler.is_compiling() and self._fits_one_operator():
            # What `_run` comes to in a captured graph, but quicker to trace: a loop comes here at every step.
            given = {n: getattr(self, n) if s is None else s for n, s in zip(self.state_names, states, strict=True)}
            options = *self._surrogate_key, self.reset_mechanism, self.reset_delay
            spk, *last = ops.CAPTURED[self.model.name].step(
                input_, *(given[name] for name in self.model.states), *self._parameters_of_model(), *options
            )
            last = dict(zip(self.model.states, last, strict=True))
        else:
            spk, last = self._step_alone(input_, states)
        for name, state in last.items():
            self._keep(name, state)
        return self._output(spk)

    def _fits_one_operator(self) -> bool:
        return fits_one_operator(self._surrogate_key, self.state_quant, self.inhibition)

    def record_loops(self, settings: Settings) -> None:
        """Has loops over this layer recorded with these settings (`snnfast.accelerate`)."""
        self.__dict__["_recorded"] = settings
        recording.switch(layers=True)

    def _tensors_of_step(self) -> list[Tensor]:
        """What a step reads besides its input and states."""
        return [tensor for tensor in (*self.parameters(), *self.buffers()) if tensor is not self.reset_mechanism_val]

    def _step_alone(self, input_: Tensor, states: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        """Spikes of one step and the states after it, by name, which the layer does not keep."""
        spk, last, _ = self._run(input_, states, unroll=False)
        return spk, dict(zip(self.model.states, last, strict=True))

    def _taken(self, outs: tuple):
        """What a step returns that gave spikes and the states that are not spikes, which the layer keeps."""
        names = ("spk", *(name for name in self.state_names if name != "spk"))
        for name, state in zip(names, outs, strict=True):
            if name in self.state_names:
                self._keep(name, state)
        return self._output(outs[0])

    def _output(self, spk: Tensor):
        """What a step returns, with the states as the layer has them."""
        return (spk, *(getattr(self, name) for name in self._returned())) if self._returns_states() else spk

    def unroll(self, input_: Tensor, *states: Tensor | None, **named_states: Tensor | None) -> Any:
        """A whole sequence in one launch: what T calls of `forward` compute.

        Args:
            input_: current [T, B, ...].
            states: those that `forward` takes, in order or by name, before the first step [B, ...]. Without them the
                sequence starts from zeros, or with init_hidden=True from the layer's own, where the last are kept.

        Returns:
            (spikes, states ...), each [T, B, ...]; the spikes alone with init_hidden=True and output=False.

        Raises:
            TypeError: as `forward`.
            ValueError: as `forward`, and a state of another shape.
        """
        return self._unroll_seen(input_, self._ordered(states, named_states), self._returns_states())

    def unroll_spikes(self, input_: Tensor) -> Tensor:
        """`unroll` for who needs no states: the spikes [T, B, ...], at less memory."""
        return self._unroll_seen(input_, self._ordered((), {}), False)

    def see(self, door: Any) -> None:
        """Lets one look on at sequences: `snnfast.record`."""
        self.__dict__["_seen"] = (*self._seen, door)

    def unsee(self, door: Any) -> None:
        """Undoes `see`."""
        left = tuple(other for other in self._seen if other is not door)
        self.__dict__.pop("_seen")
        if left:
            self.__dict__["_seen"] = left

    def _unroll_seen(self, input_, states, want_seqs):
        """`_unroll`, all of which those see who look on."""
        if not self._seen:
            return self._unroll(input_, states, want_seqs)
        with contextlib.ExitStack() as stack:
            for door in self._seen:
                stack.enter_context(door.unrolling(input_))
            outputs = self._unroll(input_, states, True)
        for door in self._seen:
            door.sequence(outputs)
        return outputs if want_seqs or not isinstance(outputs, tuple) else outputs[0]

    def height_of(self, spk: Tensor) -> Tensor | None:
        """The height of the spikes in the layer's output [T, B, ...]; None where that may not be spikes and zeros."""
        if own.of_sequence(self):
            return None
        params = self._parameters_of_call()
        return spike_height(self.model, spk, params, self._surrogate, self.state_quant, self.inhibition)

    def _ordered(self, states: tuple, named: dict) -> tuple:
        given = dict(zip(self.state_names, states, strict=False))
        if len(states) > len(self.state_names) or given.keys() & named.keys() or named.keys() - set(self.state_names):
            got = f"{len(states)} tensors and {', '.join(named) or 'no names'}"
            raise TypeError(f"unroll takes the states {', '.join(self.state_names)}, each once; got {got}")
        return tuple({**given, **named}.get(name) for name in self.state_names)

    def _unroll(self, input_, states, want_seqs):
        self._refuse_states(states)
        if names := own.of_sequence(self):
            own.say_once(type(self).__name__, names)
            return own.unroll(self, input_, states, want_seqs)
        spk, last, seqs = self._sequence(input_, states, want_seqs)
        if self.init_hidden:
            for name, state in last.items():
                setattr(self, name, state)
        return (spk, *(seqs[name] for name in self._returned())) if want_seqs else spk

    def _may_wait(self) -> bool:
        """Whether a step draws nothing, and has no effects, so that a recorded loop may compute it later."""
        return True

    def _sums_otherwise_in_sequence(self) -> bool:
        """Whether a sequence holds products whose sums may round otherwise than those of single steps."""
        return False

    def _sequence(self, input_: Tensor, states: tuple, want_seqs: bool) -> tuple[Tensor, dict, dict]:
        """Spikes of all steps, the last states and, if wanted, all states, by name; the layer keeps none."""
        spk, last, seqs = self._run(input_, states, unroll=True, want_seqs=want_seqs)
        seqs = dict(zip(self.model.states, seqs, strict=True)) if want_seqs else {}
        return spk, dict(zip(self.model.states, last, strict=True)), seqs

    def _run(self, input_, states, unroll, want_seqs=False):
        by_name = self._states_before(input_, states, unroll)
        return run(
            self.model,
            input_,
            tuple(by_name[name] for name in self.model.states),
            self._parameters_of_call(),
            self._options(unroll),
            want_seqs,
            self.state_quant,
            self.inhibition,
        )

    def _charging(self, input_: Tensor) -> tuple[Model, Tensor | tuple[Tensor, Tensor], tuple[Tensor, ...]]:
        """The model that charges the layer, its currents and its parameters."""
        return self.model, input_, self._parameters_of_model()

    def _options(self, unroll: bool) -> ops.Options:
        return ops.Options(self._surrogate, self.reset_mechanism, bool(self.reset_delay), unroll)

    def _returned(self) -> tuple[str, ...]:
        """The states that a call returns after the spikes, which may be a state themselves."""
        return tuple(name for name in self.state_names if name != "spk")

    def _refuse_states(self, states):
        if self.init_hidden and any(state is not None for state in states):
            names = " and ".join(self.state_names)
            raise TypeError(f"{names} must not be passed while init_hidden=True: the layer keeps its own")

    def _returns_states(self) -> bool:
        return self.output or not self.init_hidden

    def extra_repr(self) -> str:
        params = () if self.model is None else self.model.params
        shown = [name for name in params if name in ("alpha", "beta", "rho", "strength")]
        values = [f"{name}={_brief(getattr(self, name))}" for name in shown]
        learnt = [f"learn_{name}=True" for name in self._learnt()]
        resets = f"reset_mechanism={self.reset_mechanism!r}", f"reset_delay={self.reset_delay}"
        return ", ".join([*values, *resets, *learnt])

    def _learnt(self) -> list[str]:
        """What of the neuron is trained, as the constructor's `learn_...` names it."""
        return sorted(name for name, param in self.named_parameters(recurse=False) if param.requires_grad)

    def __repr__(self):
        return f"{type(self).__name__}({self.extra_repr()})"


def _brief(param: Tensor) -> str:
    return f"{param.item():.4g}" if param.numel() == 1 and not param.is_meta else str(tuple(param.shape))
