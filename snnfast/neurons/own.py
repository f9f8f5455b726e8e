"""The user's own equations: which methods of a layer somebody has overridden, and the step that calls them.

A step of snnTorch's neurons (`forward` in snntorch/_neurons/*.py) calls methods of the layer, which a subclass, an
instance or a patch of a class can override. A kernel calls none of them. So where one that a step would call is not
the library's, the layer takes this step, and a whole sequence goes through it step by step.
"""

import inspect
import sys
import warnings
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .. import ops
from ..capture import constant
from ..checks import check_current, check_fits
from ..reference import Call, firing

CHARGES = {"subtract": "_base_sub", "zero": "_base_zero", "none": "_base_int"}
"""The method that charges a layer, by its reset mechanism: snnTorch's constructor sets it as `state_function`."""

EQUATIONS = (
    "mem_reset",
    "fire",
    "fire_inhibition",
    "_base_state_function",
    "_base_state_reset_zero",
    "_base_state_reset_sub_function",
)
"""What a step calls by name; not every neuron has all."""

# How each is called shows when it is called, so that these are looked up anew and the others at construction.
SET_ON_INSTANCES = ("forward", "state_function", *EQUATIONS)

FRONTS = set()
"""Code of the functions that `snnfast.install` puts before snnTorch's own `forward`s, which are the library's too."""

_said = set()


class Methods:
    """The methods of a class that a step calls, and the names of those that are not the library's.

    A class can be patched at any time: `are_those_of` says, quickly, whether this is still what it has.
    """

    def __init__(self, cls: type):
        # Both libraries' layers, for `forward`: ours take snnTorch's place, but who patches that means these too.
        self._theirs = next((base for base in cls.__mro__ if _library(base) == "snntorch"), nn.Module)
        self._forward = self._theirs.forward
        names = [name for name in EQUATIONS if hasattr(cls, name)]
        self._read = attrgetter(*names)
        self._found = self._read(cls)
        own = [name for name in names if not is_librarys(cls, name)]
        # The base class has none: our layer has no namesake.
        if self._forward is not nn.Module.forward and not is_librarys(self._theirs, "forward"):
            own.append("forward")
        self.own = tuple(own)

    def are_those_of(self, cls: type) -> bool:
        return self._read(cls) == self._found and self._theirs.forward is self._forward

    @property
    def theirs_forward(self):
        """snnTorch's `forward`, as somebody patched it; None where nobody did."""
        return self._forward if "forward" in self.own else None


@constant
def own_of_class(cls: type) -> tuple[str, ...]:
    """The names of the methods of a step that this class does not have from the library."""
    return _methods(cls).own


def _methods(cls: type) -> Methods:
    methods = cls._methods
    if not methods.are_those_of(cls):
        methods = cls._methods = Methods(cls)
    return methods


def is_librarys(cls: type, name: str) -> bool:
    """Whether a class has this method from the library that defines the neuron, under its own name."""
    return is_function(getattr(cls, name, None), cls, name)


def is_function(function, cls: type, name: str) -> bool:
    """Whether a function is the library's own of this name for this class."""
    code = getattr(function, "__code__", None)
    # Not by __module__ or __qualname__, which functools.wraps copies.
    return code is not None and code.co_name == name and (code.co_filename in _files(cls) or code in FRONTS)


def _files(cls: type) -> set:
    bases = [base for base in cls.__mro__ if _library(base) in ("snnfast", "snntorch")]
    return {getattr(sys.modules.get(base.__module__), "__file__", None) for base in bases}


def _library(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def choose_charge(layer) -> None:
    """Fixes what charges the layer, as snnTorch does at construction: a later patch of it meets new layers alone."""
    layer._charge = getattr(type(layer), CHARGES[layer.reset_mechanism], None)
    note(layer)


def note(layer) -> None:
    """Writes down which methods are the instance's own, for steps to see at a glance."""
    set_here = {*layer.__dict__, *(name for name in layer._modules if name == "state_function")}
    own = [name for name in SET_ON_INSTANCES if name in set_here]
    charge = CHARGES[layer.reset_mechanism]
    if layer._charge is not None and not is_function(layer._charge, type(layer), charge):
        own.append(charge)
    layer.__dict__["_own"] = tuple(own)


def of_step(layer) -> tuple[str, ...]:
    """The overridden methods that a step of this layer would call."""
    names = *layer._own, *own_of_class(type(layer))
    if not names:
        return ()
    uncalled = {
        "fire" if layer.inhibition else "fire_inhibition",
        *(() if layer.reset_mechanism == "zero" else ("_base_state_reset_zero",)),
        *(() if layer.reset_mechanism == "subtract" else ("_base_state_reset_sub_function",)),
        *(("forward",) if "forward" in layer._own else ()),
    }
    return tuple(dict.fromkeys(name for name in names if name not in uncalled))


@constant
def overrides(cls: type, name: str) -> bool:
    """Whether a class has a method of this name from somebody else than the library."""
    return hasattr(cls, name) and not is_librarys(cls, name)


@constant
def _own_around_steps(cls: type) -> tuple[str, ...]:
    called = () if cls.__call__ is nn.Module.__call__ else ("__call__",)
    return called if is_librarys(cls, "forward") else (*called, "forward")


def of_sequence(layer) -> tuple[str, ...]:
    """What makes a sequence go step by step: methods around and in a step, and parameters that a property computes."""
    return tuple(dict.fromkeys((*_around(layer), *of_step(layer), *_computed(layer))))


def _around(layer) -> tuple[str, ...]:
    return (*(("forward",) if "forward" in layer._own else ()), *_own_around_steps(type(layer)))


def _computed(layer) -> tuple[str, ...]:
    """Parameters of which nobody can tell whether they are the same at every step."""
    params = () if layer.model is None else layer.model.params
    return tuple(name for name in _properties(type(layer), params) if _may_vary(layer, name))


@constant
def _properties(cls: type, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if isinstance(getattr(cls, name, None), property))


def _may_vary(layer, name: str) -> bool:
    if not parametrize.is_parametrized(layer, name):
        return True
    return layer.training and any(True for _ in layer.parametrizations[name].buffers())


@constant
def say_once(layer: str, names: tuple[str, ...]) -> None:
    """Warns of what is not fused, once for a class and methods."""
    if (layer, names) in _said:
        return
    _said.add((layer, names))
    own = " and ".join(f"{layer}.{name}" for name in names)
    warnings.warn(
        f"{own} is not snnfast's and is called at every step: the same numbers as in snnTorch, but not fused",
        stacklevel=6,
    )


def step(layer, input_: Tensor, given: tuple) -> Tensor:
    """snnTorch's step from the layer's own methods: spikes; the states are left in the layer.

    Args:
        input_: current [B, ...].
        given: the states before it, in the order of `state_names`, or None for the layer's own.
    """
    if layer._charge is None:
        names = " and ".join(of_step(layer))
        raise NotImplementedError(
            f"{type(layer).__name__} has no step of snnTorch's that calls {names}: override forward"
        )
    if not torch.compiler.is_compiling():
        ops.tell("reference", (input_,), None)
    for name, state in zip(layer.state_names, given, strict=True):
        before = layer._initial(name, state, input_.shape, input_.device)
        layer._keep(name, torch.zeros_like(input_) if before is None else before)
    layer._keep("reset", layer.mem_reset(layer.mem))
    names = [name for name in layer.state_names if name != "spk"]
    charged = _state_function(layer)(input_)
    for name, state in zip(names, charged if len(names) > 1 else (charged,), strict=True):
        layer._keep(name, layer.state_quant(state) if layer.state_quant else state)
    mem = layer.mem
    spk = layer.fire_inhibition(mem.size(0), mem) if layer.inhibition else layer.fire(mem)
    if "spk" in layer.state_names:
        layer._keep("spk", spk)
    if not layer.reset_delay:
        params = layer.threshold, layer.graded_spikes_factor
        layer._keep("mem", firing.reset_at_once(mem, spk, layer.reset, params, layer.reset_mechanism))
    return spk


def patched_forward(layer):
    """snnTorch's `forward` where somebody patched its class; else None."""
    return _methods(type(layer)).theirs_forward if "forward" in own_of_class(type(layer)) else None


def _state_function(layer):
    own = layer.__dict__.get("state_function", layer._modules.get("state_function"))
    return layer.state_function if own is None else own


def unroll(layer, input_: Tensor, given: tuple, want_seqs: bool):
    """What T calls of the layer compute, one after the other; arguments and result as `SpikingNeuron.unroll`."""
    input_ = check_current(input_, unroll=True)
    call = layer if "__call__" in _around(layer) else layer.forward
    states, hands_on = _start(layer, input_, given)
    outputs = []
    for current in input_.unbind(0):
        output = call(current, *states)
        outputs.append(output)
        states = _handed_on(layer, output) if hands_on else ()
    if not outputs:
        return (input_, *(input_ for _ in layer._returned())) if want_seqs else input_
    if not isinstance(outputs[0], tuple):
        return torch.stack(outputs)
    columns = tuple(zip(*outputs, strict=True))
    return tuple(map(torch.stack, columns)) if want_seqs else torch.stack(columns[0])


def _start(layer, input_: Tensor, given: tuple) -> tuple[tuple, bool]:
    """The states that a loop over steps hands to the first, and whether it hands them on from each to the next."""
    if layer.init_hidden or not len(input_):
        return (), False
    first = input_[0]
    by_name = layer._states_before(input_, given, unroll=True)
    for name, state in by_name.items():
        if state is not None:
            check_fits(name, state, first, first.shape)
    states = tuple(torch.zeros_like(first) if state is None else state for state in by_name.values())
    if torch.compiler.is_compiling() or _takes(layer.forward, 1 + len(states)):
        return states, True
    for name, state in zip(layer.state_names, states, strict=True):
        layer._keep(name, state)
    return (), False


def _takes(forward, count: int) -> bool:
    """Whether a function can be called with so many positional arguments."""
    try:
        inspect.signature(forward).bind(*range(count))
    except TypeError:
        return False
    return True


def _handed_on(layer, output) -> tuple:
    """The states in what a step returned, as the next one takes them; none: it goes on from the layer's."""
    if not isinstance(output, tuple):
        return ()
    if not layer.state_names:
        return output[1:]
    by_name = dict(zip(("spk", *layer._returned()), output, strict=False))
    known = all(name in by_name for name in layer.state_names)
    return tuple(by_name[name] for name in layer.state_names) if known else ()


class Equations(nn.Module):
    """What takes the place of snnTorch's base class where that is not installed: its methods, by the reference."""

    def mem_reset(self, mem: Tensor) -> Tensor:
        """What the membrane leaves to this step to reset [B, ...], without gradient."""
        return firing.reset((mem,), (self.threshold, self.graded_spikes_factor), self._call())

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes of the charged membrane [B, ...]."""
        return firing.spikes(mem, self.threshold, self._call()) * self.graded_spikes_factor

    def fire_inhibition(self, batch_size: int, mem: Tensor) -> Tensor:
        """Spikes of the largest membrane along dimension 1."""
        return firing.spikes(mem, self.threshold, self._call(inhibition=True))

    def _call(self, inhibition=False, reset_mechanism="none") -> Call:
        return Call(self.spike_grad, reset_mechanism, True, self.state_quant, inhibition)

    def _base_state_function(self, input_: Tensor):
        return self._charged(input_, "none")

    def _base_int(self, input_: Tensor):
        return self._base_state_function(input_)

    def _base_sub(self, input_: Tensor):
        return self._charged_and_reset(input_, "subtract")

    def _base_zero(self, input_: Tensor):
        return self._charged_and_reset(input_, "zero")

    def _charged_and_reset(self, input_, reset_mechanism):
        if "_base_state_function" in (*self._own, *own_of_class(type(self))):
            raise NotImplementedError(
                f"{type(self).__name__}._base_state_function is overridden, which with "
                f"reset_mechanism={reset_mechanism!r} only snnTorch's own methods call: pip install snntorch"
            )
        return self._charged(input_, reset_mechanism)

    def _charged(self, input_, reset_mechanism):
        model, currents, params = self._charging(input_)
        states = tuple(getattr(self, name) for name in model.states)
        charged = model.charge(currents, states, params, self.reset, self._call(reset_mechanism=reset_mechanism))
        by_name = dict(zip(model.states, charged, strict=True))
        states = tuple(by_name[name] for name in self.state_names if name in by_name)
        return states if len(states) > 1 else states[0]
