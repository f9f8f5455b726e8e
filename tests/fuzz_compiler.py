"""Looks for a program that the compiler gets wrong: random programs, compiled and not, side by side.

    python tests/fuzz_compiler.py --programs 5000 --processes 2
    python tests/fuzz_compiler.py --backend recorded    # loops of more steps, recorded; `all`: the same compiled too
    python tests/fuzz_compiler.py --only 1234 --shrink

Compared are outputs, gradients, buffers, hidden states, arguments written in place, and the random number generator,
over two calls. "failed": the backend changed something. "captured wrong": under torch's own backend "eager" they differ
as well, for what Dynamo or snnfast makes of the program under capture.
"""

import argparse
import importlib
import multiprocessing
import random
import sys
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from tqdm import tqdm

import snnfast as snn
from programs import Program, random_program
from snnfast.compiler import graph as g
from snnfast.compiler.backend import is_sequence_call, listening
from snnfast.compiler.chains import NEURONS
from snnfast.loops import recording, report
from snnfast.loops.settings import Settings

CALLS = 2
WRONG = ("failed", "captured wrong")


@dataclass(frozen=True)
class Options:
    """How a program is compiled, and how it is called."""

    window: int | None = None
    products: str = "batched"
    backend: str = "snnfast"
    warm: bool = False
    """Whether the hidden states are those of a call before: the first call then meets no empty membranes."""
    joint: bool = False
    """One backward through both calls, else one after each."""
    blind: bool = False
    """Whether the second call is made under no_grad."""
    region: bool = True
    """Recorded: whether all that waits is computed at the end of each call, else when it is looked at."""
    long: bool = False
    """Whether the program is one of more steps, most of them alike."""

    @property
    def calls(self) -> int:
        """A recorder knows a loop from its second call on."""
        return CALLS + self.is_recorded

    @property
    def is_recorded(self) -> bool:
        return self.backend == "recorded"


def random_options(seed: int, backend: str = "snnfast") -> Options:
    """The options that go with a seed."""
    rng = random.Random(f"options {seed}")
    return Options(
        window=rng.choice([None, None, 1, 2, 3]),
        products=rng.choice(["batched", "batched", "per-step"]),
        backend=backend,
        warm=rng.random() < 0.7,
        joint=rng.random() < 0.15,
        blind=rng.random() < 0.15,
        region=rng.random() < 0.5,
        long=backend == "recorded",
    )


class Raised(Exception):
    """A program does not run, compiled or not."""


def check(program: Program, options: Options) -> dict[str, int]:
    """Runs a program compiled and not; counts graphs, those that Dynamo broke, and fused layers.

    Raises:
        AssertionError: the two differ; with the difference and the source.
        Raised: the program fails in eager mode.
    """
    options, net, expected = run_eager(program, options)
    report.stories.clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        with fusion() as layers, recorded(options) if options.is_recorded else nullcontext():
            found = run(program, net, net if options.is_recorded else compiled(net, options), options)
    except Exception as error:
        raise AssertionError(f"{traceback.format_exc(limit=-6)}\n{options}\n{program}") from error
    differences = compare(program, expected, found, exact=options.products == "per-step")
    assert not differences, "\n".join([*differences[:12], str(options), str(program)])
    counters = torch._dynamo.utils.counters
    if options.is_recorded:
        stories = report.stories.values()
        waited, plain = sum(story.recorded for story in stories), sum(story.plain for story in stories)
        return {"programs recorded": int(waited > 0), "steps recorded": waited, "steps plain": plain}
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "programs in pieces": int(bool(counters["unimplemented"])),
        "layers": len(layers),
        "layers fused": sum(sequences > 0 and alone == 0 for sequences, alone in layers),
        "layers fused in part": sum(sequences > 0 and alone > 0 for sequences, alone in layers),
    }


@contextmanager
def fusion():
    """Collects the calls of each layer in each graph that runs: of sequences, and of steps that stayed alone."""
    ran, layers = Ran(), []
    with listening(ran):
        yield layers
    for graph_module in ran.values():
        nodes = list(graph_module.graph.nodes)
        sequences = Counter(g.layer_of(node) for node in nodes if is_sequence_call(node))
        alone = Counter(g.layer_of(node) for node in nodes if any(g.is_operator(node, n.step) for n in NEURONS))
        layers += [(sequences[layer], alone[layer]) for layer in {*sequences, *alone}]


class Ran(dict):
    """The fused graphs that ran, which run as they do when nobody listens."""

    def compiled(self, code, result):
        pass

    def run(self, fused, inputs):
        self[id(fused)] = fused.graph_module
        return fused.run(*inputs)


def run_eager(program: Program, options: Options) -> tuple[Options, torch.nn.Module, dict[str, Tensor]]:
    """The options that the program allows, a copy of the network before the calls, and what the calls give."""
    if program.dtype != torch.float64:
        # Products of bfloat16 round so coarsely that other batches of them would flip spikes.
        options = replace(options, products="per-step")
    try:
        net = program.build()
        if options.warm:
            with torch.no_grad():
                net(*program.inputs(options.calls))
        kept = deepcopy(net)
        try:
            return options, kept, run(program, net, net, options)
        except RuntimeError:
            if not options.joint:
                raise
        options = replace(options, joint=False)
        net = deepcopy(kept)
        return options, kept, run(program, net, net, options)
    except Exception as error:
        raise Raised(f"{type(error).__name__}: {str(error).splitlines()[0][:60]}") from error


@contextmanager
def recorded(options: Options):
    """Within it, all loops are recorded."""
    numbers = "forward" if options.products == "batched" else "exact"
    recording.record_everywhere(Settings(numbers))
    try:
        yield
    finally:
        recording.record_everywhere(None)


def compiled(net: torch.nn.Module, options: Options):
    """The network under torch.compile."""
    if options.backend != "snnfast":
        return torch.compile(net, backend=options.backend)
    chosen = {"window": options.window, "products": options.products}
    return torch.compile(net, backend="snnfast", options=chosen)


def run(program: Program, net: torch.nn.Module, function, options: Options) -> dict[str, Tensor]:
    """Everything that two calls of `function` leave behind, by name."""
    seen, losses = {}, []
    for call in range(options.calls):
        inputs = program.inputs(call)
        torch.manual_seed(program.seed + call)
        with torch.no_grad() if options.blind and call else nullcontext():
            outputs = pytree.tree_leaves(function(*inputs))
        if options.region:
            recording.stop()
        seen[f"call {call} generator"] = torch.get_rng_state()
        seen[f"call {call} grad mode"] = torch.tensor(torch.is_grad_enabled())
        outputs = [leaf if isinstance(leaf, Tensor) else torch.tensor(leaf) for leaf in outputs]
        seen |= {f"call {call} output {k}": leaf.detach().clone() for k, leaf in enumerate(outputs)}
        seen |= {f"call {call} argument {k}": leaf.detach().clone() for k, leaf in enumerate(inputs)}
        seen |= {f"call {call} {name}": state.detach().clone() for name, state in states(net).items()}
        seen[f"call {call} outputs that share memory"] = shared_memory(outputs)
        seen[f"call {call} outputs that require grad"] = torch.tensor([leaf.requires_grad for leaf in outputs])
        seen[f"call {call} states that require grad"] = torch.tensor([s.requires_grad for s in states(net).values()])
        losses += [(call, inputs, weighted_sum(outputs, program.seed + call))]
        if not options.joint:
            seen |= gradients(net, losses)
            losses = []
            detach(net)
    return seen | gradients(net, losses)


def states(net: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, hidden states and options: what a call may change.

    Membranes of zeros count as empty ones, as every call takes them.
    """
    found = dict(net.named_parameters()) | dict(net.named_buffers())
    for name, layer in net.named_modules():
        if isinstance(layer, snn.SpikingNeuron):
            for state in layer.state_names:
                value = getattr(layer, state)
                found[f"{name}.{state}"] = value if value.any() else torch.zeros(0)
            found[f"{name}.reset_mechanism"] = torch.tensor(ord(layer.reset_mechanism[0]))
    return found


def detach(net: torch.nn.Module) -> None:
    for layer in net.modules():
        if isinstance(layer, snn.SpikingNeuron):
            layer.detach_state()


def weighted_sum(outputs: list[Tensor], seed: int) -> Tensor | None:
    """A loss in which every element of every differentiable output has a weight of its own."""
    generator = torch.Generator().manual_seed(seed)
    weighted = []
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        if output.requires_grad:
            weighted.append((output * weights.to(output.dtype)).sum())
    return sum(weighted) if weighted else None


def gradients(net: torch.nn.Module, losses: list) -> dict[str, Tensor]:
    """The gradients of the losses' sum, of all parameters and arguments; where there are none, zeros."""
    differentiable = [loss for _, _, loss in losses if loss is not None]
    if differentiable:
        sum(differentiable).backward()
    seen = {}
    for call, inputs, loss in losses:
        leaves = {f"argument {k}": leaf for k, leaf in enumerate(inputs) if leaf.requires_grad}
        leaves |= dict(net.named_parameters())
        for name, leaf in leaves.items():
            seen[f"call {call} gradient of {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
        seen[f"call {call} differentiable"] = torch.tensor(loss is not None)
    net.zero_grad()
    return seen


def shared_memory(outputs: list[Tensor]) -> Tensor:
    """Which pairs of outputs overlap, and so change together when one is written in place."""
    spans = [(o.data_ptr(), o.data_ptr() + o.element_size() * (1 + _reach(o)) if o.numel() else 0) for o in outputs]
    return torch.tensor([[a < d and c < b for c, d in spans] for a, b in spans], dtype=torch.bool)


def _reach(tensor: Tensor) -> int:
    return sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def compare(program: Program, expected: dict[str, Tensor], found: dict[str, Tensor], exact: bool) -> list[str]:
    """A line for each difference."""
    if expected.keys() != found.keys():
        return [f"found {sorted(found.keys() ^ expected.keys())} in one of the two only"]
    lines = []
    for name, wanted in expected.items():
        got = found[name]
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            lines.append(f"{name}: {got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}")
            continue
        tolerance = _tolerance(program, name, wanted, exact)
        if not torch.allclose(got.double(), wanted.double(), rtol=0, atol=tolerance, equal_nan=True):
            off = (got.double() - wanted.double()).abs().max().item()
            lines.append(f"{name}: off by {off:.3g} (tolerance {tolerance:.3g})\n  {got}\n  instead of\n  {wanted}")
    return lines


def _tolerance(program: Program, name: str, wanted: Tensor, exact: bool) -> float:
    """Nothing for spikes, counts and generators; rounding, in units of the largest element, for the rest."""
    if not wanted.is_floating_point() or wanted.numel() == 0:
        return 0.0
    if "gradient" not in name and (exact or torch.equal(wanted, wanted.round())):
        return 0.0
    unit = 1e-9 if program.dtype == torch.float64 else 5e-2
    largest = wanted.abs().nan_to_num(0.0, 0.0, 0.0).max().item()
    return unit * max(1.0, largest)


def shrink(program: Program, options: Options) -> Program:
    """Drops lines for as long as the rest still runs in eager mode and still differs in the same place."""
    place = _place_of_difference(program, options)
    lines = program.source.splitlines(True)
    position = len(lines) - 1
    while position >= 0:
        smaller = _without(lines, position)
        candidate = replace(program, source="".join(smaller))
        if _place_of_difference(candidate, options) == place:
            lines, program = smaller, candidate
        position = min(position, len(lines)) - 1
    return program


def _place_of_difference(program: Program, options: Options) -> str | None:
    try:
        check(program, options)
    except AssertionError as error:
        return str(error).split(":")[0]
    except Raised:
        pass
    return None


def _without(lines: list[str], position: int) -> list[str]:
    """The lines but for one and the block under it."""

    def indent(line):
        return len(line) - len(line.lstrip())

    end = position + 1
    while end < len(lines) and lines[end].strip() and indent(lines[end]) > indent(lines[position]):
        end += 1
    return lines[:position] + lines[end:]


def program_of(seed: int, options: Options) -> Program:
    """The program that goes with a seed and its options."""
    everywhere = options.backend == "all"
    return random_program(seed, options.long or everywhere, captured=not (options.is_recorded or everywhere))


def try_seed(arguments: tuple[int, Options]) -> tuple[int, str, str, dict[str, int]]:
    """(seed, "passed" / "skipped" / "failed" / "captured wrong", reason, counts) of a program."""
    seed, options = arguments
    if options.backend == "all":
        counted = Counter()
        for backend in ("snnfast", "recorded"):
            _, outcome, reason, counts = try_seed((seed, replace(options, backend=backend, long=True)))
            counted.update(counts)
            if outcome != "passed":
                break
        return seed, outcome, reason, counted
    program = program_of(seed, options)
    try:
        return seed, "passed", "", check(program, options)
    except Raised as error:
        return seed, "skipped", str(error), {}
    except AssertionError as error:
        message = str(error)
    try:
        if options.is_recorded:
            return seed, "failed", message, {}
        if options.backend == "snnfast":
            check(program, replace(options, backend="eager"))
            return seed, "failed", message, {}
    except AssertionError:
        pass
    return seed, "captured wrong", message, {}


def start_process() -> None:
    """One thread, no warnings, and the compiler imported."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch._logging.set_logs(dynamo=50)
    with suppress(ImportError):
        importlib.import_module("snnfast.compiler.backend")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first program; the next ones count up")
    parser.add_argument("--only", type=int, metavar="SEED", help="print and check one program")
    parser.add_argument("--shrink", action="store_true", help="with --only: drop lines while the program still fails")
    parser.add_argument("--window", default="random", help="random, none or a number of steps")
    parser.add_argument("--products", default="random", choices=["random", "batched", "per-step"])
    parser.add_argument("--backend", default="snnfast", help="torch.compile's, recorded, or all")
    parser.add_argument("--processes", type=int, default=1)
    return parser.parse_args()


def options_of(arguments: argparse.Namespace, seed: int) -> Options:
    """A seed's random options, but for what the command line fixes."""
    options = random_options(seed, arguments.backend)
    if arguments.window != "random":
        options = replace(options, window=None if arguments.window == "none" else int(arguments.window))
    if arguments.products != "random":
        options = replace(options, products=arguments.products)
    return options


def check_one(arguments: argparse.Namespace) -> int:
    start_process()
    seed = arguments.only
    options = options_of(arguments, seed)
    program = program_of(seed, options)
    print(program)
    _, outcome, reason, counts = try_seed((seed, options))
    print(f"\n{outcome} {counts or ''}\n{reason}")
    if outcome in WRONG and arguments.shrink:
        print(f"\nShrunk:\n\n{shrink(program, options)}")
    return int(outcome in WRONG)


def check_many(arguments: argparse.Namespace) -> int:
    outcomes, skips, counts = Counter(), Counter(), Counter()
    seeds = range(arguments.seed, arguments.seed + arguments.programs)
    tasks = [(seed, options_of(arguments, seed)) for seed in seeds]
    # A process is replaced now and then, for Dynamo keeps some of what it compiled.
    pool = multiprocessing.get_context("spawn").Pool(arguments.processes, start_process, maxtasksperchild=400)
    with pool, tqdm(total=len(tasks), smoothing=0.05) as progress:
        for seed, outcome, reason, counted in pool.imap_unordered(try_seed, tasks):
            outcomes[outcome] += 1
            counts.update(counted)
            if outcome == "skipped":
                skips[reason] += 1
            elif outcome != "passed":
                progress.write(f"--- seed {seed}: {outcome}\n{reason}\n")
            progress.set_postfix({name: outcomes[name] for name in WRONG})
            progress.update()
    for reason, count in skips.most_common():
        print(f"skipped {count}: {reason}")
    print(", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common()), dict(counts))
    return int(any(outcomes[name] for name in WRONG))


if __name__ == "__main__":
    arguments = parse_arguments()
    sys.exit(check_many(arguments) if arguments.only is None else check_one(arguments))
