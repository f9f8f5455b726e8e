"""snnTorch's own layers, fused from behind: what `snnfast.install` does to their classes.

A layer keeps its class, its attributes and its buffers as snnTorch has them, so that `type`, `isinstance`, pickles,
copies, printed networks, `utils.reset` and whatever else looks at it find a layer of snnTorch's. Only `forward` of the
class is another function. It runs the fused step on a layer of snnfast's that shares the attributes: both objects have
one `__dict__`. Where the fused step would not do what the layer's own does, that one runs.
"""

import dataclasses
import functools
import weakref

import snntorch
import torch
from torch import Tensor, nn

from .. import _torch, surrogate, transforms
from ..functional import runs_reference
from ..loops import recording, settings
from ..loops.placeholder import Pending
from ..loops.report import unfit
from ..neurons import FUSED, SpikingNeuron, own
from ..neurons.recurrent import ONE_TO_ONE, is_plain
from ..ops import why_no_kernel_runs
from ..reference import ALPHA, LEAKY, RLEAKY_ONE_TO_ONE, RSYNAPTIC_ONE_TO_ONE

KEY = "_snnfast"
"""Where a layer keeps the fused one behind it."""

TENSORS = {Tensor, Pending}
"""The classes of tensors that fused steps take. (A parameter as a state is an error in snnTorch.)"""

_EXACT = tuple(
    getattr(surrogate, name)
    for name in ("atan", "fast_sigmoid", "straight_through_estimator", "triangular", "heaviside", "SFS", "disabled")
)
"""Surrogates whose gradients are snnTorch's to the bit."""

_SUM_OTHERWISE = ALPHA, RLEAKY_ONE_TO_ONE, RSYNAPTIC_ONE_TO_ONE

SMALL = 1 << 15
"""Of so few neurons a step is quicker in snnTorch, where no loop over it is recorded."""

_NO_COPY = None, 0, None

_behind = weakref.WeakSet()


class Behind:
    """What the fused layer behind one of snnTorch's does otherwise than one of its own: states stay buffers."""

    __slots__ = ()

    def _keep(self, name, state):
        self._buffers[name] = state

    def _step_alone(self, input_, states):
        spk, after = super()._step_alone(input_, states)
        # Backward of a fused step needs the membrane as it was; that of snnTorch's does not, and it may be written to.
        if after["mem"].requires_grad:
            after["mem"] = after["mem"].clone()
        return spk, after

    def _parameters_of_call(self):
        """Likewise buffers, such as a threshold: copies that are made anew when one was written to."""
        parameters = self._parameters_of_model()
        if not torch.is_grad_enabled():
            return parameters
        with _torch.unwatched():
            return tuple(map(self._unwritten, self.model.params, parameters))

    def _unwritten(self, name: str, parameter: Tensor) -> Tensor:
        if self._buffers.get(name) is not parameter or parameter.requires_grad or parameter.is_inference():
            return parameter
        original, version, copy = self._copies.get(name, _NO_COPY)
        if original is not parameter or version != parameter._version:
            copy = parameter.clone()
            self._copies[name] = parameter, parameter._version, copy
        return copy

    @property
    def reset_mechanism(self):
        """What charges the layer: in snnTorch this is chosen once, and set or loaded mechanisms change nothing."""
        return self._mechanism

    def __reduce_ex__(self, protocol):
        return type(None), ()  # Copies and pickles of a layer get their own.


def _class_behind(fused: type[SpikingNeuron]) -> type[SpikingNeuron]:
    slots = "_function", "_surrogate", "_surrogate_key", "_mechanism", "_copies", "_loops"
    return type(fused.__name__, (Behind, fused), {"__slots__": slots, "__module__": __name__})


def _mechanisms_of(theirs: type) -> dict:
    """What snnTorch's own methods that charge a layer do to reset it."""
    charges = ((getattr(theirs, charge), mechanism) for mechanism, charge in own.CHARGES.items())
    return {charge: mechanism for charge, mechanism in charges if own.is_function(charge, theirs, charge.__name__)}


_CLASSES = {theirs: _class_behind(fused) for theirs, fused in FUSED.items()}
_mechanisms = {charge: reset for theirs in _CLASSES for charge, reset in _mechanisms_of(theirs).items()}


def replacements() -> dict[type, dict]:
    """What each class of snnTorch's gets in place of its own attributes; none where `forward` is the user's already."""
    fronts = {}
    for theirs, behind in _CLASSES.items():
        if own.is_librarys(theirs, "forward"):
            fronts[theirs] = {
                "forward": _front(theirs, behind),
                "__getstate__": _state_of_snntorch(theirs),
                "__copy__": _copy_of_snntorch,
                "__setattr__": _telling(theirs.__setattr__),
            }
    return fronts


def _telling(own_setattr):
    """Sets an attribute of a layer, of whose recorded steps the ones that wait are those of before."""

    def __setattr__(self, name, value):
        fused = self.__dict__.get(KEY)
        if fused is not None and recording.is_on and name not in fused.state_names:
            recording.about_to_change(fused)
        own_setattr(self, name, value)

    return __setattr__


def _state_of_snntorch(theirs: type):
    """What is pickled and copied of a layer: what snnTorch's would be, but that it can be, at any time."""

    def __getstate__(self):
        state = self.__dict__.copy()
        if type(self) is theirs:
            state.pop(KEY, None)
            state["_buffers"] = {name: _cut_off(buffer) for name, buffer in self._buffers.items()}
            known = surrogate.named_in_snntorch(self.spike_grad)
            if known is not None:
                state["spike_grad"] = _Closure(self.spike_grad, known)
        return state

    return __getstate__


def _cut_off(buffer: Tensor | None) -> Tensor | None:
    return buffer if buffer is None or buffer.is_leaf else buffer.detach()


def _copy_of_snntorch(self):
    copied = self.__class__.__new__(self.__class__)
    copied.__dict__.update(self.__dict__)
    copied.__dict__.pop(KEY, None)
    return copied


class _Closure:
    """Stands in a pickle for a surrogate of snnTorch's, a function within a function that no pickle takes."""

    def __init__(self, function, known: surrogate.Surrogate):
        self._function, self._known = function, known

    def __reduce__(self):
        factory = getattr(snntorch.surrogate, type(self._known).__name__)
        return functools.partial(factory, **dataclasses.asdict(self._known)), ()

    def __deepcopy__(self, memo):
        return self._function


def let_go() -> None:
    """Leaves all layers as if they had never been fused."""
    for layer in list(_behind):
        vars(layer).pop(KEY, None)
    _behind.clear()


def _front(theirs: type, behind: type[SpikingNeuron]):
    own_forward = theirs.forward

    @functools.wraps(own_forward)
    def forward(self, input_, *states, **named):
        if torch.compiler.is_compiling() or type(self) is not theirs or theirs.forward is not forward:
            return own_forward(self, input_, *states, **named)
        fused = _fused(self, behind)
        if not named and recording.goes_on(fused, input_) and all(type(state) is Pending for state in states):
            # Nothing has changed since the step that was checked: that would have ended what waits.
            return fused._step(input_, *states, *(None,) * (len(fused.state_names) - len(states)))
        if type(input_) is Tensor and recording.passes(fused) and input_.numel() < SMALL:
            return recording.run_plainly(own_forward, self, input_, *states, **named)
        given = _by_name(fused, states, named)
        if given is None or not _fits(self, fused, input_, given):
            unfit[type(self).__name__, _why_unfit(fused, input_)] += 1
            return own_forward(self, input_, *states, **named)
        # Not an instance's own: that is what has called this.
        return behind.forward(fused, input_, **given)

    own.FRONTS.add(forward.__code__)
    return forward


def _fused(layer: nn.Module, behind: type[SpikingNeuron]) -> SpikingNeuron:
    attributes = layer.__dict__
    fused = attributes.get(KEY)
    # A copy of the attributes, as torch's replicas have it, has the fused layer of another.
    if fused is None or fused.__dict__ is not attributes:
        fused = object.__new__(behind)
        fused.__dict__ = attributes
        fused._function, fused._mechanism, fused._copies, fused._loops = None, None, {}, None
        attributes[KEY] = fused
        _behind.add(layer)
    return fused


def _by_name(fused: SpikingNeuron, states: tuple, named: dict) -> dict | None:
    """The states that a call was given; None where its arguments are wrong."""
    names = fused.state_names
    given = dict(zip(names, states, strict=False))
    if named:
        if given.keys() & named.keys() or named.keys() - set(names):
            return None
        given.update(named)
    return given if len(states) <= len(names) else None


def _fits(layer: nn.Module, fused: SpikingNeuron, input_, given: dict) -> bool:
    """Whether the fused step computes what the layer's own does, in numbers, types and errors."""
    with _torch.unwatched():
        return (
            type(input_) in TENSORS
            and _is_as_made(layer, fused)
            and _differentiates_alike(fused)
            and _takes(fused, input_, given)
            and not (transforms.at_work() or runs_reference())
        )


def _why_unfit(fused: SpikingNeuron, input_) -> str:
    """What of a layer, or of its current, leaves a step to snnTorch, in a word or two."""
    for option in ("state_quant", "inhibition"):
        if getattr(fused, option):
            return option
    # Unseen by a recorder, which this would take longer to tell than to ask.
    with _torch.unwatched():
        dtype = input_.dtype if isinstance(input_, Tensor) else torch.float32
    if dtype is not torch.float32:
        return str(dtype).removeprefix("torch.")
    if not isinstance(getattr(fused, "_surrogate", None), surrogate.Surrogate):
        return "its surrogate"
    return "methods, states or options of its own"


def _is_as_made(layer: nn.Module, fused: SpikingNeuron) -> bool:
    """Whether the layer's step is the library's, with the options that snnfast has fused."""
    attributes = layer.__dict__
    charge = attributes.get("state_function")
    mechanism = _mechanisms.get(getattr(charge, "__func__", None))
    if mechanism != fused._mechanism:
        fused._mechanism = mechanism
    if mechanism is None or charge.__self__ is not layer or not attributes.keys().isdisjoint(own.EQUATIONS):
        return False
    if own.own_of_class(type(fused)) or fused.state_quant or fused.inhibition:
        return False
    return _resets_as_charged(layer, fused) and _recurs_as_charged(layer, fused)


def _recurs_as_charged(layer: nn.Module, fused: SpikingNeuron) -> bool:
    """Whether what comes back is asked for once a step, and by the weight that the layer shows."""
    recurrent = layer._modules.get("recurrent")
    if recurrent is None:
        return True
    if fused._mechanism == "zero" and not is_plain(recurrent, (nn.Linear, nn.Conv2d, *ONE_TO_ONE)):
        return False
    return fused.all_to_all or getattr(recurrent, "V", None) is layer.V


def _resets_as_charged(layer: nn.Module, fused: SpikingNeuron) -> bool:
    """A reset in the same step goes by another attribute than what charges the layer; RSynaptic's fails."""
    if fused.reset_delay:
        return True
    if isinstance(layer, snntorch.RSynaptic):
        return False
    return list(layer.reset_dict)[layer.reset_mechanism_val] == fused._mechanism


def _differentiates_alike(fused: SpikingNeuron) -> bool:
    function = fused.spike_grad
    if not callable(function):
        return False
    if function is not fused._function:
        bypass = function is type(fused)._surrogate_bypass
        fused._surrogate = surrogate.disabled() if bypass else surrogate.resolve(function)
        fused._surrogate_key = getattr(fused._surrogate, "key", None)
        fused._function = function
    if settings.everywhere is not None and settings.everywhere.numbers == "exact":
        return isinstance(fused._surrogate, _EXACT) and _sums_alike(fused)
    return isinstance(fused._surrogate, surrogate.Surrogate)


def _sums_alike(fused: SpikingNeuron) -> bool:
    """Whether gradients are the loop's to the bit: not where one sum stands for several of snnTorch's (README)."""
    if fused.model in _SUM_OTHERWISE or (fused._mechanism == "zero" and fused.model is not LEAKY):
        return False
    return not any(fused._parameters.get(name) is not None for name in fused.model.params)


def _takes(fused: SpikingNeuron, input_: Tensor, given: dict) -> bool:
    """Whether states and parameters go with the current; given states of another shape become zeros, as in snnTorch."""
    device, shape, dtype = input_.device, input_.shape, input_.dtype
    # snnTorch's spikes are float32 whatever the current is, and its half-precision membranes are rounded at every step.
    if dtype is not torch.float32 or input_.layout is not torch.strided or not _runs_on(device):
        return False
    names, buffers = fused.state_names, fused._buffers
    for name in names:
        state = given.get(name)
        own_state = state is None
        if own_state:
            state = buffers.get(name)
        elif fused.init_hidden:
            return False
        if type(state) not in TENSORS or state.device != device:
            return False
        if state.shape == shape:
            if state.dtype != dtype:
                return False
        elif not own_state:
            given[name] = torch.zeros(shape, dtype=dtype, device=device)
        elif state.numel():
            buffers[name] = torch.zeros(shape, dtype=dtype, device=device)
    return all(
        parameter is None or not parameter.dim() or (parameter.device == device and _broadcasts(parameter, shape))
        for parameters in (buffers, fused._parameters)
        for name, parameter in parameters.items()
        if name not in names
    )


def _runs_on(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and why_no_kernel_runs(device.index) is None)


def _broadcasts(parameter: Tensor, shape: torch.Size) -> bool:
    """Without widening what it meets."""
    sizes = parameter.shape
    if len(sizes) > len(shape):
        return False
    return all(size in (1, wanted) for size, wanted in zip(reversed(sizes), reversed(shape), strict=False))
