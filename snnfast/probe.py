"""`record`: spikes and states of every neuron in a network, while the network runs."""

import contextlib
import sys
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .loops import recording
from .loops.settings import Settings, default_numbers
from .neurons import SpikingNeuron, state_names
from .over_time import Onlooker

__all__ = ["Recording", "record"]


class Recording:
    """What the neurons of a network have computed within `record`, each by its name in `net.named_modules()`.

    Attributes:
        spk: by layer, the spikes of all steps [T, B, ...].
        mem: by layer, the membranes [T, B, ...].

    Other states go by their own names: `syn`, `adaptation`, those of a `Cell`; of `snnfast.norse` v and i, of its
    sequence layers with record_states=True.

    Raises:
        AttributeError: no layer has a state of that name.
        KeyError: no recorded layer has that name, or it has not run.
        RuntimeError: no recorded layer has run at all.
        ValueError: a layer has run with inputs of different shapes, which are no one sequence; `clear` between them.
    """

    def __init__(self, layers: dict[str, nn.Module]):
        self._series: dict[str, dict[str, _Series]] = {
            name: {state: _Series() for state in ("spk", *_states_of(layer))} for name, layer in layers.items()
        }

    def __getattr__(self, state: str) -> "Mapping[str, Tensor]":
        series = self.__dict__.get("_series", {})
        known = list(dict.fromkeys(name for states in series.values() for name in states))
        if state not in known:
            raise AttributeError(f"no recorded layer has a state {state!r}; they have {', '.join(known)}")
        return _OfState(state, {name: states[state] for name, states in series.items() if state in states})

    def clear(self) -> None:
        """Forgets what has been seen, so that the next run stands alone."""
        for states in self._series.values():
            for series in states.values():
                series.clear()

    def __repr__(self) -> str:
        ran = [f"{name} ({', '.join(states)})" for name, states in self._series.items() if states["spk"]]
        return f"Recording of {', '.join(ran) or 'nothing yet'}"


class _OfState(Mapping[str, Tensor]):
    """One state of all layers that have run, in the order of the network."""

    def __init__(self, state: str, series: dict[str, "_Series"]):
        self._state, self._all = state, series

    def _ran(self) -> list[str]:
        ran = [name for name, series in self._all.items() if series]
        if not ran:
            raise RuntimeError(f"none of the recorded layers has run within record: {', '.join(self._all)}")
        return ran

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self._all:
            raise KeyError(f"no recorded layer {layer!r} has {self._state}; there are {', '.join(self._all)}")
        if not self._all[layer]:
            raise KeyError(f"layer {layer!r} has not run; those that have: {', '.join(self._ran())}")
        return self._all[layer].sequence(layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ran())

    def __len__(self) -> int:
        return len(self._ran())

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{name!r}: {tuple(self[name].shape)}' for name in self)}}}"


class _Series:
    """One tensor over time: sequences as they came, steps in lists, joined when they are asked for."""

    def __init__(self) -> None:
        self._parts: list[Tensor | list[Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self._parts)

    def clear(self) -> None:
        self._parts = []

    def add(self, value: Tensor, is_sequence: bool) -> None:
        if is_sequence:
            self._parts.append(value)
        elif self._parts and isinstance(self._parts[-1], list):
            self._parts[-1].append(value)
        else:
            self._parts.append([value])

    def sequence(self, layer: str) -> Tensor:
        shapes = {step.shape for part in self._parts for step in (part if isinstance(part, list) else [part[0]])}
        if len(shapes) > 1:
            got = " and ".join(sorted(str(tuple(shape)) for shape in shapes))
            raise ValueError(f"layer {layer!r} ran with steps of shapes {got}: clear() the recording between runs")
        parts = [torch.stack(part) if isinstance(part, list) else part for part in self._parts]
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        self._parts = [joined]
        return joined


class _Door(Onlooker):
    """Stands at one layer: sees its steps as a forward hook does, and sequences as `SpikingNeuron.unroll` runs them."""

    def __init__(self, layer: nn.Module | None = None, series: dict[str, _Series] | None = None):
        self._layer, self._series = layer, series or {}
        self._unrolling = False
        self._unrolled: weakref.ref | None = None

    def __deepcopy__(self, memo) -> "_Door":
        return _Door()

    def __reduce__(self):
        return _Door, ()

    def __call__(self, layer: nn.Module, inputs: tuple, output) -> None:
        """The hook of a call, which in Unroll is one of a whole sequence."""
        whole, self._unrolled = self._unrolled, None
        if self._layer is None or self._unrolling or (whole is not None and inputs and whole() is inputs[0]):
            return
        if layer is not self._layer:
            raise RuntimeError("record sees no replicas of a layer, such as those of DataParallel: record one device")
        if is_norses := hasattr(layer, "state_type"):
            states = output[1]._asdict()
        else:
            states = {name: getattr(layer, name) for name in state_names(layer)}
        self._add(output, states, is_norses and layer.sequence)

    @contextlib.contextmanager
    def unrolling(self, input_: Tensor) -> Iterator[None]:
        """Within it, calls of the layer are steps of a sequence that is seen as a whole."""
        self._unrolling = True
        try:
            yield
        finally:
            self._unrolling = False
            self._unrolled = weakref.ref(input_) if isinstance(input_, Tensor) else None

    def sequence(self, outputs) -> None:
        """What a layer's unroll has made: spikes, and where there are, states."""
        states = outputs[1:] if isinstance(outputs, tuple) else ()
        names = [name for name in _states_of(self._layer) if name != "spk"]
        self._add(outputs, dict(zip(names, states, strict=False)), True)

    def _add(self, output, states: dict[str, Tensor], is_sequence: bool) -> None:
        spk = output[0] if isinstance(output, tuple) else output
        for name, value in {**states, "spk": spk}.items():
            # Of Norse's layers the states after the last step are no sequence.
            if name in self._series and isinstance(value, Tensor) and value.dim() == spk.dim():
                self._series[name].add(value, is_sequence)


@contextlib.contextmanager
def record(net: nn.Module, *layers: str) -> Iterator[Recording]:
    """Within it, keeps spikes and states of every neuron in `net`, whole sequences [T, B, ...] by the layer's name.

    Steps of a loop, `unroll`, `Unroll`, and networks that are accelerated are seen alike, and stay fused: steps that
    wait go on waiting. What is kept can be differentiated, so that rates are regularised in one line. Layers of
    snnTorch's own are seen too. Calls of a layer follow one another in time: two runs of T steps are 2 T, unless
    `clear()` is called in between. A compiled network runs uncompiled meanwhile, its loops recorded as
    `snnfast.accelerate` has it; `Unroll(recompute=True)` keeps what it would compute again. A CUDA graph that replays
    (`TrainingStep` on a GPU) calls no layer, and is not seen.

    Args:
        net: a network, or a single neuron, whose name is then "".
        layers: names, as in `net.named_modules()`, to record these alone. Default: all neurons.

    Returns:
        a context manager that gives a `Recording`, which can be read within and afterwards.

    Raises:
        TypeError: `net` is no module.
        ValueError: it has no neurons, or none of a given name.

    Examples:
        >>> net = snn.Unroll(nn.Linear(4, 8), snn.Leaky(0.9), nn.Linear(8, 2), snn.Leaky(0.9))
        >>> with snn.record(net) as seen:
        ...     out = net(torch.rand(25, 16, 4))
        >>> seen.spk["1"].shape, seen.mem["3"].shape
        (torch.Size([25, 16, 8]), torch.Size([25, 16, 2]))
        >>> loss = out.sum() + 1e-4 * sum(spk.mean() for spk in seen.spk.values())
    """
    found = _neurons(net, layers)
    seen = Recording(found)
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(_uncompiled(net))
        for name, layer in found.items():
            door = _Door(layer, seen._series[name])
            stack.callback(layer.register_forward_hook(door).remove)
            if isinstance(layer, SpikingNeuron):
                layer.see(door)
                stack.callback(layer.unsee, door)
        yield seen


def _neurons(net: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Module]:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    net = getattr(net, "_orig_mod", net)
    found = {name: layer for name, layer in net.named_modules() if _is_neuron(layer)}
    if not found:
        raise ValueError(f"net must have a spiking layer to record; {type(net).__name__} has none")
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"layers must be among {', '.join(found)}; got {', '.join(map(repr, unknown))}")
    return {name: layer for name, layer in found.items() if not names or name in names}


def _is_neuron(layer: nn.Module) -> bool:
    return isinstance(layer, SpikingNeuron) or bool(_states_of(layer))


def _states_of(layer: nn.Module) -> tuple[str, ...]:
    """Names of the states of a spiking layer, of snnTorch's and of `snnfast.norse`'s style."""
    fields = layer.state_type._fields if hasattr(layer, "state_type") else state_names(layer)
    return tuple(name for name in fields if name != "z")


@contextlib.contextmanager
def _uncompiled(net: nn.Module) -> Iterator[None]:
    """What torch has compiled runs as it is written, since hooks that come later are not seen there; loops fuse."""
    compiled = hasattr(net, "_orig_mod") or any(module._compiled_call_impl is not None for module in net.modules())
    given = []
    for layer in net.modules() if compiled else ():
        if isinstance(layer, SpikingNeuron) and "_recorded" not in vars(layer):
            layer.record_loops(Settings(default_numbers()))
            given.append(layer)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer in given:
            recording.stop()
            del vars(layer)["_recorded"]
