"""The hidden state of a layer: where a call starts from, resets, and snnTorch's list of all layers."""

import warnings
from typing import Any

import torch
from torch import Tensor

from .. import transforms
from ..functional import in_place_of_unfit
from ..reference import Model
from . import own
from .instances import enter, layer_of

try:
    import snntorch
except ImportError:
    snntorch = None


class HiddenState:
    """Keeps a layer's states, which are plain tensors, and resets them."""

    model: Model | None
    state_names: tuple[str, ...]
    init_hidden: bool

    if snntorch is None:
        instances = []

    def _init_mem(self) -> None:
        """Makes the hidden state, the last thing that a constructor does; a subclass may add states of its own."""
        for name in self.state_names:
            self._keep(name, torch.zeros(0))

    def _add_states(self) -> None:
        for name in self.state_names:
            self.__dict__.pop(name, None)
        self._init_mem()
        self._keep_buffers_as_states()

    def _keep_buffers_as_states(self) -> None:
        """States are no buffers, whoever registered them as such."""
        for name in self.state_names:
            if name in self._buffers:
                self._keep(name, self._buffers.pop(name))
                self._non_persistent_buffers_set.discard(name)

    def _keep(self, name: str, state: Tensor) -> None:
        """Stores a state without nn.Module's search for parameters of that name: a step is short."""
        object.__setattr__(self, name, state)

    def _initial(self, name: str, given: Tensor | None, shape: torch.Size, device) -> Tensor | None:
        """The state a call starts from: the given, else the stored one; None (zeros) where its shape does not fit."""
        state = getattr(self, name) if given is None else given
        if not isinstance(state, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(state).__name__}")
        if state.shape == shape:
            state = state if given is not None else state.to(device)
            frozen = not torch.compiler.is_compiling() and torch.is_grad_enabled() and state.is_inference()
            return state.clone() if frozen else state
        if given is not None and not torch.compiler.is_compiling() and not _is_known_to_be_zeros(given):
            warnings.warn(
                f"{type(self).__name__}: {name} of shape {tuple(given.shape)} does not fit the input's "
                f"{tuple(shape)} and is replaced by zeros, as in snnTorch",
                stacklevel=3,
            )
        return in_place_of_unfit(shape, device)

    def _states_before(self, input_, states, unroll) -> dict[str, Tensor | None]:
        """What a call starts from, by name: the given states, the layer's own where it keeps them, or None: zeros."""
        if isinstance(input_, Tensor) and (not unroll or input_.dim() > 0):
            shape = input_.shape[1:] if unroll else input_.shape
            loop = unroll and not self.init_hidden
            if loop and all(state is None for state in states):
                states = self._states_of_reset()
            fit = self._fitted if loop else self._initial
            places = zip(self.state_names, states, strict=True)
            states = tuple(fit(name, state, shape, input_.device) for name, state in places)
        return dict(zip(self.state_names, states, strict=True))

    def _fitted(self, name: str, given: Tensor | None, shape: torch.Size, device) -> Tensor | None:
        """A state given to a sequence, which must fit, but for the zeros that a reset made for another batch."""
        if not isinstance(given, Tensor) or given.shape == shape:
            return given
        return None if given.shape == (0,) or was_reset(given) else given

    def _states_of_reset(self) -> tuple:
        """What a loop over steps begins with: zeros, None for each, or what the user's own `reset_mem` has made."""
        names = ("reset_mem",) if self.model is None else (f"init_{self.model.layer.lower()}", "reset_mem")
        reset = next((name for name in names if name in self.__dict__ or own.overrides(type(self), name)), None)
        if reset is None:
            return (None,) * len(self.state_names)
        states = getattr(self, reset)()
        states = states if isinstance(states, tuple) else (states,)
        if len(states) != len(self.state_names) or not all(isinstance(state, Tensor) for state in states):
            states = tuple(getattr(self, name) for name in self.state_names)
        return states

    def reset_mem(self) -> Any:
        """Sets the states to zeros (of shape (0,) before the first call, which every call takes for "zeros").

        Returns:
            the state, or the states in the order in which calls return them.
        """
        self.reset_state()
        states = tuple(getattr(self, name) for name in self.state_names)
        return states[0] if len(states) == 1 else states

    def reset_state(self) -> None:
        """Sets the hidden state to zeros, cut off from any graph."""
        for name in self.state_names:
            if torch.compiler.is_compiling():
                # Zeros of the state's own shape would tie the graph to that shape, which the first call changes.
                self._keep(name, torch.zeros(0))
            else:
                setattr(self, name, zeros(getattr(self, name)))

    def detach_state(self) -> None:
        """Cuts the hidden state off from its graph, in place: truncated backpropagation through time."""
        for name in self.state_names:
            state = getattr(self, name)
            # A view cannot be detached in place; Dynamo cannot ask whether it is one.
            view = not torch.compiler.is_compiling() and state._is_view()
            self._keep(name, state.detach() if view else state.detach_())

    def _register_instance(self) -> None:
        """Enters snnTorch's list of instances without keeping the layer alive."""
        enter(self, _root().instances)

    def set_through_list(self, name: str, value: Any) -> None:
        """Sets what snnTorch's `reset_hidden` sets of every layer in its list of instances."""
        setattr(self, name, value)

    @classmethod
    def init(cls) -> None:
        """Forgets all layers, snnTorch's too: `reset_hidden` and `detach_hidden` reach those made after it."""
        _root().instances = []

    @classmethod
    def reset_hidden(cls) -> None:
        """Resets every living layer of this class, as snnTorch does; `snnfast.reset(net)` resets one net."""
        for layer in cls._living():
            layer.reset_state()

    @classmethod
    def detach_hidden(cls) -> None:
        """Detaches every living layer of this class."""
        for layer in cls._living():
            layer.detach_state()

    @classmethod
    def _living(cls) -> list:
        """Strong references, so that no layer dies underway."""
        return [layer for layer in map(layer_of, list(_root().instances)) if isinstance(layer, cls)]


def zeros(state: Tensor) -> Tensor:
    """Zeros as a state, without what zeros_like keeps of a transform of torch.func around it.

    They are known as zeros for as long as nobody writes to them.
    """
    zeros = torch.zeros(state.shape, dtype=state.dtype, device=state.device)
    zeros.version_of_reset = _version(zeros)
    return zeros


def _root() -> type:
    """The class that holds the list of all layers."""
    return snntorch.SpikingNeuron if snntorch else HiddenState


def was_reset(state: Tensor) -> bool:
    """Whether a state is still the zeros that a reset made."""
    return getattr(state, "version_of_reset", -1) == _version(state)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_known_to_be_zeros(state: Tensor) -> bool:
    """Without asking a GPU, which would have to be waited for, or what vmap maps over."""
    if was_reset(state):
        return True
    return state.device.type == "cpu" and not transforms.functional() and not state.any()
