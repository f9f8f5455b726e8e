"""What came of a network over time: counted in a run, with the causes that torch gives."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch._dynamo.utils import get_compilation_metrics
from torch._guards import TracingContext
from torch._subclasses import FakeTensor
from torch.fx import Interpreter, Node

from .. import _torch, ops
from ..loops import recording
from ..loops.learning import LEARNT
from ..loops.report import advice_on, stories
from ..loops.settings import Settings, default_numbers
from ..neurons import SpikingNeuron, fused_class, own
from . import graph as g
from .accelerate import Accelerated, captured
from .backend import Fused, listening, make_options
from .report import ONE_STEP, OWN, GraphReport, LayerReport, Reason, is_users, line_of, place, said_by_torch
from .trial import modules_of, trial

UNSEEN = "it did not run"
NO_CAPTURE = (
    "take what torch cannot capture out of the loop over time, or call the layer's unroll on the whole sequence "
    "(snnfast.Unroll for a network), which needs no capture"
)
ONE_CALL = Reason(
    "a call of the network is one step",
    "explain the function with the loop over time: explain(forward_pass, net, x)",
)
STEPPED = Reason(
    "it was called step by step by a loop outside what is accelerated",
    "put the loop over time into the forward that is accelerated, or call the layer's unroll on the whole sequence",
)


class Explanation:
    """What one run of a network came to; printing it says what was fused, and why the rest was not.

    Attributes:
        layers: a `LayerReport` for each spiking layer that ran: layer, steps, calls, where, reasons, advice, fused.
        unseen: by name, why a spiking layer took no part.
        operators: how often the run called each operator of this library, by the profiler's names.
        graphs: a `GraphReport` for each graph that torch captured and ran: window, left, ended.
        breaks: what torch says of functions that it could not capture in one graph, and where that was.
        as_given: whether what ran was accelerated already, or any part of it; else `accelerate` would run it so.
    """

    def __init__(
        self,
        layers: list[LayerReport],
        unseen: dict[str, str],
        operators: Counter,
        graphs: list[GraphReport],
        breaks: list[str],
        as_given: bool,
        recorded: bool = False,
    ):
        self._how = "" if recorded else "(compile=True)"
        self.layers, self.unseen, self.operators, self.graphs, self.breaks = layers, unseen, operators, graphs, breaks
        self.as_given = as_given

    @property
    def kernels(self) -> int:
        """Forward kernels of neurons that ran: the sum of the layers' calls."""
        return sum(layer.calls for layer in self.layers)

    def __str__(self):
        lines = [str(layer) for layer in self.layers]
        lines += [f"{name}: not fused\n    {reason}" for name, reason in self.unseen.items()]
        if not lines:
            return "no spiking layer ran"
        said = "" if self.as_given else f", as accelerate{self._how} would run it"
        lines.append(f"kernels of neurons: {self.kernels}{said}")
        lines += dict.fromkeys(f"window: {graph.window}" for graph in self.graphs if graph.window)
        if len(self.graphs) > 1:
            pieces = len(self.graphs)
            lines.append(f"torch.compile broke the forward into {pieces} graphs; steps in different ones stay apart")
        told = "".join(lines)
        lines += [f"torch could not go on: {cause}" for cause in self.breaks if cause not in told]
        left = sum((graph.left for graph in self.graphs), Counter())
        if left:
            lines.append("left step by step:")
            lines += [f"    {count} x {name}{f' ({where})' if where else ''}" for (name, where), count in left.items()]
        return "\n".join(lines)


def explain(net: Callable[..., Any], *inputs: Any, **options: Any) -> Explanation:
    """Runs `net` once and counts for each spiking layer its steps and the calls they became; says why not fewer.

    What is accelerated runs as it is, with its own options where none are given here, anything else as `accelerate`
    would have it with these options. What is recorded runs twice before, so that its loops are known. Neurons of your
    own that were found in a loop are named by their surrogate gradients. It is a copy that runs, or
    where there is none `net` itself, whose attributes and tensors are put back: state, buffers, gradients and random
    generators stay as they are. An inner backend is left out: it compiles the same calls.

    Args:
        net: a module or function as it is given to `torch.compile`, `accelerate`d or not.
        inputs: what it is called with.
        options: `compile=True`, and those that go with it, as in `accelerate`.

    Returns:
        An `Explanation`, to be printed.

    Raises:
        TypeError, ValueError: an option has a wrong value.

    Examples:
        >>> net = snn.Unroll(nn.Linear(4, 8), snn.Leaky(0.9))
        >>> report = snn.explain(net, torch.rand(25, 16, 4))
        >>> report.kernels, [layer.fused for layer in report.layers]
        (1, [True])
    """
    if not callable(net):
        raise TypeError(f"net must be a torch.nn.Module or a function, got {type(net).__name__}")
    compiled = options.pop("compile", bool(options))
    make_options(**options)
    net = getattr(net, "_orig_mod", net)
    limits_met = [] if options else _limits_met(net)
    settings = None if compiled else recording.settings_of(net)
    with trial(net, inputs, in_place=bool(limits_met)) as (one, given):
        count = _Count(one, given)
        if settings is not None:
            return _of_recorded(count, one, given, settings, as_given=True)
        as_given = isinstance(one, nn.Module) and any("_accelerated" in vars(module) for module in one.modules())
        if not (compiled or as_given or limits_met):
            return _of_recorded(count, one, given, Settings(default_numbers()), as_given=False)
        if not isinstance(one, nn.Module):
            one = captured(one, getattr(one, "__name__", type(one).__name__), options, [])
        elif options or not as_given:
            Accelerated(one, options)
        with listening(count), ops.listening(count.heard):
            one(*given)
        return count.explanation(as_given, limits_met)


def _of_recorded(count: "_Count", one: Callable, given: tuple, settings: Settings, as_given: bool) -> Explanation:
    """What a run comes to whose loops are known from one before it."""
    count.recorded = True
    for _ in range(2):  # a cell is traced in the first
        with ops.listening(count.passed), recording.region(settings):
            one(*given)
    before = _own_neurons()
    with ops.listening(count.heard), recording.region(settings):
        one(*given)
    count.own_neurons(before, _own_neurons())
    return count.explanation(as_given, [])


def _own_neurons() -> dict[tuple[str, str], list]:
    """What is told of neurons of the user's own, by the loop's place and name."""
    return {(place, name): list(told) for place, story in stories.items() for name, told in story.own.items()}


def _limits_met(net) -> list[str]:
    """What was said of an accelerated network of which torch captures no more: a copy would be captured anew."""
    modules = net.modules() if isinstance(net, nn.Module) else ()
    accelerated = [vars(module)["_accelerated"] for module in modules if "_accelerated" in vars(module)]
    return [said for one in accelerated for said in one.limits_met]


class _Count:
    """Hears of what a run captures and calls."""

    def __init__(self, net, inputs: tuple):
        self.modules = modules_of(net, inputs)
        self._name_of = {id(module): name for name, module in self.modules.items()}
        self._owner = _owners(self.modules)
        self.operators = Counter()
        self._layers, self._graphs, self._breaks = {}, {}, []
        self._paths, self._lines, self._found = {}, {}, set()
        self._captured = Counter()
        self.running = None
        self.recorded = False

    def compiled(self, code, result) -> None:
        """A function was captured, or could not be."""
        if result.guarded_code is not None or not is_users(code.co_filename):
            return
        metrics = get_compilation_metrics()
        last = metrics[-1] if metrics else None
        if (
            last is not None
            and last.fail_reason
            and (last.co_name, last.co_filename) == (code.co_name, code.co_filename)
        ):
            where = ""
            if last.fail_user_frame_filename:
                where = place(last.fail_user_frame_filename, last.fail_user_frame_lineno)
            self._breaks.append(said_by_torch(last.fail_reason, where))

    def run(self, fused: Fused, inputs: tuple):
        """Runs a captured graph node by node, so that a call's node is known."""
        if fused.report is not None:
            self._graphs[id(fused)] = fused
            for path, (calls, where) in fused.report.captured.items():
                self._captured[path, where] += calls
        return _Counted(fused.graph_module, self).run(*inputs)

    def passed(self, operator: str, arguments: tuple, steps: int | None) -> None:
        """An operator was called in a run that is not counted: where single steps are called."""
        if steps is None:
            name, where = self._of_frame()
            self._lines.setdefault(name, where)

    def heard(self, operator: str, arguments: tuple, steps: int | None) -> None:
        """An operator was called; as `ops.listening` has it."""
        # What is being captured is called on tensors without data.
        if TracingContext.try_get() is not None or any(isinstance(value, FakeTensor) for value in arguments):
            return
        if operator not in ("reference", "cell"):
            self.operators[f"snnfast::{operator}"] += 1
        if steps == ops.NO_NEURON:
            return
        name, where = self._of_node() if self.running else self._of_frame()
        if self.recorded and recording.is_computing():
            # It is computed where its values are asked for, which is no call of the layer's.
            where = self._lines.get(name, "")
        layer = self._layers.setdefault(name, LayerReport(name, where=where))
        layer.steps += 1 if steps is None else steps
        layer.calls += operator != "reference"
        if steps is None or operator == "reference":
            layer.alone += 1 if steps is None else steps
        if not self.running and not self.recorded and steps is None and not _is_captured():
            layer.why.append(STEPPED)

    def own_neurons(self, before: dict, after: dict) -> None:
        """Neurons of the user's own that were found in recorded loops."""
        for key, (*now, why, where) in after.items():
            steps, calls, alone = (one - other for one, other in zip(now, before.get(key, (0, 0, 0)), strict=False))
            if steps:
                kind = key[1].split(" of ")[0]
                plain = [name for name, layer in self._layers.items() if not layer.calls and self._is(name, kind)]
                for name in plain:
                    del self._layers[name]
                self._found.update(plain)
                named = f"{', '.join(plain)} ({key[1]})" if plain else f"a neuron of your own, {key[1]}"
                layer = LayerReport(named, where=where)
                layer.steps, layer.calls, layer.alone = steps, calls + alone, alone
                layer.why = [Reason(why, OWN)] if why else []
                self._layers[layer.layer] = layer

    def _is(self, name: str, kind: str) -> bool:
        return type(self.modules.get(name)).__name__ == kind

    def _of_node(self) -> tuple[str, str]:
        """Layer and line of the node that runs: by the layer's own tensors, else by the name that torch has for it."""
        interpreter, node = self.running
        path = g.layer_of(node)
        values = interpreter.map_nodes_to_values(node.args, node)
        owners = {self._owner[id(value)] for value in values if isinstance(value, Tensor) and id(value) in self._owner}
        name = owners.pop() if len(owners) == 1 else self._named(path)
        self._paths[path] = name
        return name, line_of(node) or self._of_frame()[1]

    def _named(self, path: str) -> str:
        """A module's name, of which torch may know only the end, or have more."""
        if path in self.modules:
            return path
        fitting = [name for name in self.modules if name and (path.endswith(f".{name}") or name.endswith(f".{path}"))]
        return max(fitting, key=len) if fitting else path

    def _of_frame(self) -> tuple[str, str]:
        """Layer and line by the Python frames that led here."""
        name, where, frame = None, "", sys._getframe(2)
        while frame is not None and frame.f_code is not explain.__code__:
            code = frame.f_code
            owner = frame.f_locals.get(code.co_varnames[0]) if code.co_varnames else None
            if name is None and isinstance(owner, nn.Module):
                name = self._name_of.get(id(owner))
            if not where and is_users(code.co_filename):
                where = place(code.co_filename, frame.f_lineno)
            frame = frame.f_back
        return name or "", where

    def explanation(self, as_given: bool, limits_met: list[str]) -> Explanation:
        """All that was heard."""
        graphs = [fused.report for fused in self._graphs.values()]
        breaks = [*limits_met, *(graph.ended for graph in graphs if graph.ended), *self._breaks]
        breaks = list(dict.fromkeys(breaks))
        for graph in graphs:
            for path, reasons in graph.why.items():
                if path in self._paths:
                    self._layers[self._paths[path]].why += reasons
        self._add_plain_layers()
        for layer in (layer for graph in graphs for layer in graph.own):
            self._layers[layer.layer, layer.where] = layer
        for layer in self._layers.values():
            if self.recorded and layer.calls > layer.alone and 3 * layer.alone <= layer.steps:
                layer.alone = 0  # a loop's first and last step may run as they are written
            layer.why = self._causes(layer, breaks)
        unseen = {name: why for name, module in self.modules.items() if (why := self._why_unseen(name, module))}
        return Explanation(list(self._layers.values()), unseen, self.operators, graphs, breaks, as_given, self.recorded)

    def _add_plain_layers(self) -> None:
        """Layers whose steps were captured as plain PyTorch, beneath which nothing is heard."""
        heard = set(self._layers)
        for (path, where), steps in self._captured.items():
            name = self._named(path)
            if isinstance(self.modules.get(name), SpikingNeuron) and name not in heard:
                layer = self._layers.setdefault(name, LayerReport(name, where=where))
                layer.steps += steps
                layer.alone += steps

    def _causes(self, layer: LayerReport, breaks: list[str]) -> list[Reason]:
        module = self.modules.get(layer.layer)
        plain = _why_plain(module) if isinstance(module, SpikingNeuron) else []
        if plain and layer.calls == 0:
            return plain
        if layer.alone and breaks and STEPPED not in layer.why:
            apart = [reason for reason in layer.why if reason is not ONE_STEP]
            return [*apart, *(Reason(f"its steps are in different graphs: {cause}", NO_CAPTURE) for cause in breaks)]
        if layer.alone and self.recorded and not layer.why:
            if layer.steps == 1:
                return [ONE_CALL]
            return [Reason(cause, advice) for cause, advice in self._why_not_recorded(layer.steps)]
        if layer.alone and not layer.why:
            return [Reason("torch ran it as it is and did not say why", NO_CAPTURE)]
        return layer.why

    def _why_not_recorded(self, steps: int) -> list[tuple[str, str]]:
        """What kept loops from being recorded, and what helps."""
        loops = [module._loops for module in self.modules.values() if isinstance(module, SpikingNeuron)]
        told = {known.why: advice_on(known.why) for known in loops if known is not None and known.why}
        if told:
            return list(told.items())
        if steps < LEARNT:
            return [("it has too few steps", advice_on("too few steps"))]
        return [
            (
                "no two steps of its loop were seen to be alike",
                "a branch on the step's number, or a write into a step's tensor (`mem[0] = 0`), has it run as written",
            )
        ]

    def _why_unseen(self, name: str, module: nn.Module) -> str | None:
        if fused_class(module) is not None:
            return "it is snnTorch's own; see snnfast.convert"
        if isinstance(module, SpikingNeuron):
            if name in self._layers or name in self._found:
                return None
            # Where torch captured it within Unroll, its operations bear no name of a layer.
            return "; ".join(reason.cause for reason in _why_plain(module)) or UNSEEN
        if hasattr(module, "reset_mem"):
            return f"{type(module).__name__} is not among snnfast's neurons"
        return None


def _is_captured() -> bool:
    """Whether what runs was called by something that torch captures, in whole or in pieces."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code is not explain.__code__:
        if frame.f_code.co_name == "compile_wrapper":
            return True
        frame = frame.f_back
    return False


class _Counted(Interpreter):
    """Runs a graph, and keeps the node that runs where the count finds it."""

    def __init__(self, graph_module, count: _Count):
        super().__init__(graph_module)
        self.extra_traceback = False
        self._count = count

    def run_node(self, node: Node):
        outer, self._count.running = self._count.running, (self, node)
        packet = getattr(node.target, "overloadpacket", node.target)
        if isinstance(packet, _torch.Packet) and packet._qualified_op_name.startswith("snnfast::"):
            self._count.operators[packet._qualified_op_name] += 1
        try:
            return super().run_node(node)
        finally:
            self._count.running = outer


def _owners(modules: dict[str, nn.Module]) -> dict[int, str]:
    """Names of neurons by their parameters and buffers, but for those that several share."""
    owners = {}
    for name, module in modules.items():
        if isinstance(module, SpikingNeuron):
            for tensor in (*module.parameters(False), *module.buffers(False)):
                owners.setdefault(id(tensor), set()).add(name)
    return {tensor: names.pop() for tensor, names in owners.items() if len(names) == 1}


def _why_plain(layer: SpikingNeuron) -> list[Reason]:
    """The options and methods of a layer that make it run in plain PyTorch."""
    reasons = []
    overridden = own.of_sequence(layer)
    if overridden:
        names = " and ".join(f"{type(layer).__name__}.{name}" for name in overridden)
        reasons.append(Reason(f"{names} is not snnfast's", "leave the library's own methods in place to have a kernel"))
    for option in ("state_quant", "inhibition"):
        if getattr(layer, option):
            reasons.append(Reason(f"{option} is not fused", f"leave {option} out to have a kernel"))
    if layer._surrogate_key is None:
        cause = "its spike_grad is no plain step function, or learns parameters"
        reasons.append(Reason(cause, "give a spike_grad that fires exactly where mem > threshold"))
    return reasons
