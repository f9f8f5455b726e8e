"""`benchmark`: a network of one's own timed as it is, dropped in, accelerated and on snnTorch."""

import copy
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from . import surrogate
from .accelerate import accelerate
from .compiler.trial import same_draws
from .convert import convert, reset
from .loops import recording
from .neurons import LAYERS, SpikingNeuron, fused_class, snntorch
from .unroll import Unroll, _flat

__all__ = ["Benchmark", "Timing", "benchmark"]

ROUNDS = 3, 50
GAIN = 1.1
"""What is worth a line of advice."""


@dataclass(frozen=True)
class Timing:
    """One way to run the network.

    Attributes:
        name: "as it is", "dropped in", "accelerated" or "snntorch".
        forward: median in ms of forward with loss.
        backward: that of backward, 0 where nothing needs a gradient.
        difference: largest absolute difference of its outputs to those of the network as it is.
        rounds: of how many runs the medians are.
    """

    name: str
    forward: float
    backward: float
    difference: float
    rounds: int

    @property
    def total(self) -> float:
        """ms of forward, loss and backward."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured; printing it shows the table.

    Attributes:
        timings: a `Timing` for each way that could run, the network as it is first.
        refused: by name, why another way could not.
        advice: what to do, in one line.
    """

    timings: tuple[Timing, ...]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def fastest(self) -> Timing:
        """The way of the least time among snnfast's and the network as it is."""
        return min((timing for timing in self.timings if timing.name != "snntorch"), key=lambda timing: timing.total)

    @property
    def advice(self) -> str:
        """What to do, in one line."""
        first, best = self.timings[0], self.fastest
        gain = first.total / best.total
        others = [timing for timing in self.timings if timing.name == "snntorch" and timing.total * GAIN < best.total]
        if others:
            return f"snnTorch is {best.total / others[0].total:.2g} times as fast here: please report this network"
        if gain >= GAIN:
            line = {"accelerated": "net = snn.accelerate(net)", "dropped in": "net = snn.convert(net)"}[best.name]
            return f"{line}: {gain:.2g} times as fast as it is"
        return "leave it as it is: print(snn.explain(net, x)) tells what each layer runs as"

    def __str__(self) -> str:
        first = self.timings[0].total
        rows = [("", "forward ms", "backward ms", "total ms", "speed-up", "outputs")]
        for timing in self.timings:
            same = "the same" if not timing.difference else f"differ by {timing.difference:.2g}"
            figures = (f"{value:.3g}" for value in (timing.forward, timing.backward, timing.total))
            rows.append((timing.name, *figures, f"{first / timing.total:.2f}x", same))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([name.ljust(widths[0]), *map(str.rjust, figures, widths[1:])]) for name, *figures in rows]
        lines += [f"{name}: not timed, {why}" for name, why in self.refused.items()]
        return "\n".join([*lines, f"-> {self.advice}"])


def benchmark(
    net: nn.Module,
    x: Any,
    *,
    loss: Callable[[Any], Tensor] | None = None,
    run: Callable[[nn.Module, Any], Any] | None = None,
    seconds: float = 5.0,
) -> Benchmark:
    """Times a network of yours as it is, dropped in, accelerated, and under snnTorch; prints the table and what to do.

    Copies run, in turn, from zero states and one and the same random state, first to compare their outputs, then for
    the medians. The network, its gradients and states, and the random generators stay as they are.

    - "as it is": a copy of `net`.
    - "dropped in": `snn.convert`, where it has neurons of snnTorch's.
    - "accelerated": `snn.accelerate`, for loops over steps; `Unroll` needs none.
    - "snntorch": the same layers of snnTorch's, stepped, where that is installed and has all of the net's neurons.

    Args:
        net: on the device that is to be timed.
        x: what it is called with; a tuple are several arguments.
        loss: from what `net` returns to a scalar. Default: the sum of the first tensor that it returns.
        run: `run(net, x)`, where the loop over time stands outside of `net`. Default: `net(x)`.
        seconds: for how long to measure, about; three rounds in any case.

    Returns:
        a `Benchmark`, which has been printed.

    Raises:
        TypeError: `net` is no module, or `loss` gives no scalar tensor.
        ValueError: `net` cannot be copied or has no neurons, or `seconds` is not positive.

    Examples:
        >>> net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True))
        >>> def run(net, x):
        ...     return torch.stack([net(step) for step in x])
        >>> result = snn.benchmark(net, torch.rand(10, 2, 4), run=run, seconds=0.1)  # doctest: +ELLIPSIS
                     forward ms ...
        >>> [timing.name for timing in result.timings][:2]
        ['as it is', 'accelerated']
    """
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"net must be a torch.nn.Module, got {type(net).__name__}; a function that steps one is run: "
            "benchmark(net, x, run=lambda net, x: ...)"
        )
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if not any(isinstance(module, SpikingNeuron) or fused_class(module) for module in net.modules()):
        raise ValueError(f"net must have a spiking layer to time; {type(net).__name__} has none")
    given = x if isinstance(x, tuple) else (x,)
    call = (lambda net: net(*given)) if run is None else (lambda net: run(net, x))
    entered = None if snntorch is None else list(snntorch.SpikingNeuron.instances)
    try:
        with same_draws():
            contenders, refused = _contenders(net)
            result = _measured(contenders, refused, call, loss or _sum_of_first, seconds)
    finally:
        recording.stop()
        if entered is not None:
            snntorch.SpikingNeuron.instances[:] = entered
    print(result)
    return result


def _contenders(net: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Copies to run, by name, and why others are not."""
    contenders, refused = {"as it is": _copy(net)}, {}
    modules = list(net.modules())
    theirs = any(fused_class(module) for module in modules)
    if theirs:
        contenders["dropped in"] = convert(_copy(net))
    if recording.settings_of(net) is not None or any(module._compiled_call_impl is not None for module in modules):
        refused["accelerated"] = "it is accelerated or compiled as it is"
    elif isinstance(net, Unroll):
        refused["accelerated"] = "Unroll runs whole sequences as it is"
    else:
        contenders["accelerated"] = accelerate(_copy(net))
    if not theirs or any(isinstance(module, SpikingNeuron) for module in modules):
        if snntorch is None:
            refused["snntorch"] = "it is not installed"
        elif lacking := sorted({type(module).__name__ for module in modules if _is_ours_alone(module)}):
            refused["snntorch"] = f"it has no {', '.join(lacking)}"
        else:
            contenders["snntorch"] = _on_snntorch(_uncompiled(net), {})
    return contenders, refused


def _copy(net: nn.Module) -> nn.Module:
    states = {}
    for module in net.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            # Only leaves can be copied; a state that a run left behind hangs on the graph of that run.
            if isinstance(value, Tensor) and value.grad_fn is not None:
                states[id(value)] = value.detach().clone()
    try:
        copied = copy.deepcopy(net, states)
    except Exception as error:
        raise ValueError(f"net must be one that can be copied: {type(error).__name__}: {error}") from error
    copied.zero_grad(set_to_none=True)
    return copied


def _uncompiled(net: nn.Module) -> nn.Module:
    copied = _copy(net)
    for module in copied.modules():
        module._compiled_call_impl = None
        vars(module).pop("_accelerated", None)
    return copied


def _measured(contenders: dict, refused: dict, call: Callable, loss: Callable, seconds: float) -> Benchmark:
    state, expected = torch.get_rng_state(), None
    differences, times = {}, {name: [] for name in contenders}
    for name, net in list(contenders.items()):
        try:
            for _ in range(2):  # a loop is known once it has run
                torch.set_rng_state(state)
                output = _timed(net, call, loss)[2]
        except Exception as error:
            if name == "as it is":
                raise
            refused[name] = f"it fails with {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            del contenders[name]
            continue
        expected = output if expected is None else expected
        differences[name] = _difference(expected, output)
    least, most = ROUNDS
    end = time.perf_counter() + seconds
    for done in range(most):
        if done >= least and time.perf_counter() > end:
            break
        for name, net in contenders.items():
            times[name].append(_timed(net, call, loss)[:2])
    timings = []
    for name in contenders:
        forward, backward = (1e3 * median(column) for column in zip(*times[name], strict=True))
        timings.append(Timing(name, forward, backward, differences[name], len(times[name])))
    return Benchmark(tuple(timings), refused)


def _timed(net: nn.Module, call: Callable, loss: Callable) -> tuple[float, float, list[Tensor]]:
    """Seconds forward and backward, and the outputs."""
    net.zero_grad(set_to_none=True)
    with torch.no_grad():
        reset(net)
    _wait()
    begin = time.perf_counter()
    output = call(net)
    value = loss(output)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss must return a scalar tensor, got {got}")
    value.detach().item()
    forward = time.perf_counter()
    if value.requires_grad:
        value.backward()
        _wait()
    end = time.perf_counter()
    tensors = [leaf.detach() for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    return forward - begin, end - forward, tensors


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _sum_of_first(output: Any) -> Tensor:
    tensors = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(f"loss must be given for a net that returns no tensor, got {type(output).__name__}")
    return tensors[0].sum()


def _difference(expected: list[Tensor], output: list[Tensor]) -> float:
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in output]:
        return float("inf")
    pairs = zip(expected, output, strict=True)
    return max((float((one.double() - other.double()).abs().max()) for one, other in pairs if one.numel()), default=0.0)


# Under snnTorch.


def _is_ours_alone(module: nn.Module) -> bool:
    return isinstance(module, SpikingNeuron) and _namesake(module) is None


def _namesake(layer: SpikingNeuron) -> type | None:
    """snnTorch's class of one of snnfast's own layers; None of a subclass, which may do otherwise."""
    if type(layer) not in LAYERS:
        return None
    return next((base for base in type(layer).__bases__ if base.__module__.startswith("snntorch.")), None)


def _on_snntorch(net: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """The network with snnTorch's layers in the place of snnfast's, and loops in that of `Unroll`."""
    if id(net) in made:
        return made[id(net)]
    if isinstance(net, SpikingNeuron):
        made[id(net)] = _layer_of_snntorch(net)
        return made[id(net)]
    made[id(net)] = net
    for name, child in list(net._modules.items()):
        if child is not None:
            net._modules[name] = _on_snntorch(child, made)
    if isinstance(net, Unroll):
        made[id(net)] = _Loop(_flat(net))
    return made[id(net)]


def _layer_of_snntorch(layer: SpikingNeuron) -> nn.Module:
    theirs = _namesake(layer)
    options: dict[str, Any] = {}
    for name in list(inspect.signature(theirs.__init__).parameters)[1:]:
        if name.startswith("learn_") and name != "learn_recurrent":
            options[name] = isinstance(getattr(layer, name.removeprefix("learn_")), nn.Parameter)
        elif name == "spike_grad":
            options[name] = _surrogate_of_snntorch(layer)
        elif hasattr(layer, name) and name != getattr(layer, "_derived", None):
            value = getattr(layer, name)
            options[name] = value.detach().clone() if isinstance(value, Tensor) else value
    made = theirs(**options)
    made.load_state_dict(layer.state_dict(), strict=False)
    device = layer.threshold.device
    return made.to(device).train(layer.training)


def _surrogate_of_snntorch(layer: SpikingNeuron) -> Callable:
    known = layer._surrogate
    make = getattr(snntorch.surrogate, type(known).__name__, None)
    if not isinstance(known, surrogate.Surrogate) or make is None:
        return layer.spike_grad
    return make(**vars(known))


class _Loop(nn.Module):
    """Layers of snnTorch's over [T, B, ...], one step after the other."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor):
        states: list[tuple] = [() for _ in self.layers]
        outputs = []
        for step in x.unbind(0):
            for k, layer in enumerate(self.layers):
                output = layer(step, *states[k])
                step, *kept = output if isinstance(output, tuple) else (output,)
                states[k] = () if getattr(layer, "init_hidden", False) else tuple(kept)
            last = self.layers[-1]
            outputs.append(output if isinstance(output, tuple) and last.output else (step,))
        sequences = tuple(map(torch.stack, zip(*outputs, strict=True)))
        return sequences if len(sequences) > 1 else sequences[0]
