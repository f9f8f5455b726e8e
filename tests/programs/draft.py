"""A program while it is written: its inputs, values, layers and lines."""

import linecache
import math
import random
import sys
import types
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

IMPORTS = """import torch
import torch.nn.functional as F
from torch import nn

import snnfast as snn
import snnfast.norse as norse
from snnfast import surrogate


"""


SURROGATES = (
    "surrogate.atan(alpha=2.0)",
    "surrogate.fast_sigmoid(slope=4.0)",
    "surrogate.sigmoid(slope=3.0)",
    "surrogate.triangular(threshold=1.0)",
    "surrogate.straight_through_estimator()",
)


MAX_NEURONS = 64


@dataclass(frozen=True)
class Input:
    """An argument of forward. In `shape`, "B" stands for the batch size."""

    name: str
    shape: tuple[int | str, ...]
    kind: str = "normal"
    requires_grad: bool = False

    def draw(self, batch: int, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
        """A random tensor: normal numbers, or with kind "labels" class numbers."""
        shape = [batch if size == "B" else size for size in self.shape]
        if self.kind == "labels":
            return torch.randint(2, shape, generator=generator)
        drawn = torch.randn(shape, dtype=dtype, generator=generator) * 1.5
        return drawn.requires_grad_(self.requires_grad)


def firing(net: nn.Module) -> nn.Module:
    """The network with weights so large that its neurons fire, and statistics that are not what they start as."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(mean=0.2, std=0.3)
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return net


@dataclass(frozen=True)
class Program:
    """A module as text, with all it takes to run it."""

    seed: int
    source: str
    arguments: tuple[Input, ...]
    steps: int
    batches: tuple[int, ...]
    training: bool
    dtype: torch.dtype
    features: frozenset[str]

    def build(self) -> nn.Module:
        """The module, with seeded weights large enough that neurons fire."""
        filename = f"<program {self.seed}>"
        # Dynamo imports the module that a function comes from.
        module = sys.modules[f"program_{self.seed}"] = types.ModuleType(f"program_{self.seed}")
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(True), filename)
        exec(compile(self.source, filename, "exec"), module.__dict__)
        torch.manual_seed(self.seed)
        net = firing(module.Net())
        return net.to(self.dtype).train(self.training)

    def inputs(self, call: int = 0) -> tuple[torch.Tensor, ...]:
        """Fresh arguments for a call; the calls differ in numbers and may differ in batch size."""
        generator = torch.Generator().manual_seed(1000 * self.seed + call)
        batch = self.batches[call % len(self.batches)]
        return tuple(argument.draw(batch, self.dtype, generator) for argument in self.arguments)

    def __str__(self):
        arguments = ", ".join(
            f"{a.name} {list(a.shape)}{' requires grad' if a.requires_grad else ''}" for a in self.arguments
        )
        mode = "training" if self.training else "eval"
        return f"{self.source}\n# seed {self.seed}: {arguments}; B = {self.batches}; {mode}, {self.dtype}"


@dataclass(frozen=True)
class Value:
    """An expression of the program, and its shape without the batch dimension."""

    name: str
    shape: tuple[int, ...]

    def __str__(self):
        return self.name

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass
class Layer:
    """A spiking layer that has taken its step; `mem` is None where the layer keeps the membrane."""

    lif: str
    cur: Value
    spk: Value
    mem: Value | None
    start: str
    constructor: str


class Draft:
    """A program being written: its lines, and the values that a statement may use."""

    def __init__(self, seed: int, long: bool = False, captured: bool = False):
        self.rng = random.Random(seed)
        self.long, self.captured = long, captured
        # Drawn apart: the other seeds' programs stay those that once found a mistake.
        self.recurrent = random.Random(f"heard {seed}").random() < 0.12
        self.features = set()
        self.steps = self.pick(5, 6, 8, 9, 11, 12) if long else self.pick(2, 2, 3, 3, 3, 4, 4, 5, 6)
        self.training = self.chance(0.6)
        self.no_grad = self.chance(0.12)
        self.common_shape = self.pick((3,), (4,), (5,), (2, 3)) if self.chance(0.35) else None
        self.autocast = self.pick("product", "loop") if self.chance(0.04) else None
        self.min_batch = 1
        self.arguments: list[Input] = []
        self.init: list[str] = []
        self.forward: list[str] = []
        self.setup: list[str] = []
        self.body: list[str] = []
        self.closing: list[str] = []
        self.ending: list[str] = []
        self.outputs: list[str] = []
        self.scope: list[Value] = []
        self.layers: list[Layer] = []
        self.slots: list[tuple[int, Value]] = []
        self.numbers = Counter()
        self.depth = 0
        self.uses_t = False
        self.running = False
        self.skips = False
        self.reversed = False

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, *options):
        return self.rng.choice(options)

    def new(self, stem: str) -> str:
        """A fresh name."""
        self.numbers[stem] += 1
        return f"{stem}{self.numbers[stem] - 1}"

    def note(self, feature: str) -> None:
        self.features.add(feature)

    def module(self, stem: str, constructor: str) -> str:
        """A submodule `self.<stem><n>`."""
        name = self.new(stem)
        self.init.append(f"self.{name} = {constructor}")
        return f"self.{name}"

    def parameter(self, stem: str, *sizes: int) -> str:
        """A learned tensor."""
        return self.module(stem, f"nn.Parameter(torch.randn({', '.join(map(str, sizes))}) * 0.5)")

    def buffer(self, stem: str, tensor: str) -> str:
        name = self.new(stem)
        self.init.append(f'self.register_buffer("{name}", {tensor})')
        return f"self.{name}"

    def say(self, line: str) -> None:
        """A statement of the time step."""
        self.body.append("    " * self.depth + line)

    @contextmanager
    def block(self, header: str):
        """Statements under `header`."""
        self.say(header)
        self.depth += 1
        yield
        self.depth -= 1

    def let(self, stem: str, expression: str, shape: tuple[int, ...]) -> Value:
        """An assignment in the time step."""
        value = Value(self.new(stem), tuple(shape))
        self.say(f"{value} = {expression}")
        self.scope.append(value)
        return value

    def time(self) -> str:
        """The number of the step."""
        self.uses_t = True
        return "t"

    def choose(self, emitters, *arguments):
        """What the first of the shuffled emitters returns that applies, else None."""
        for emit in self.rng.sample(emitters, len(emitters)):
            value = emit(self, *arguments)
            if value is not None:
                self.note(emit.__name__)
                return value
        return None

    def zeros(self, shape: tuple[int, ...]) -> str:
        """A tensor of zeros for one step, of the input's dtype."""
        sizes = ", ".join(["batch", *map(str, shape)])
        return self.pick(f"torch.zeros({sizes}, dtype=x.dtype)", f"x.new_zeros({sizes})")
