"""Random programs around `snnfast.Leaky` and its recurrent kin: loops over time as people write them, as source text.

`random_program(seed)` writes a module statement by statement. An emitter is a function that writes a statement or two
and returns the `Value` they compute, or None where it does not apply; a `Draft` holds the lines so far.
"""

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
        net = module.Net()
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

    def __init__(self, seed: int, long: bool = False):
        self.rng = random.Random(seed)
        self.long = long
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


# Operations on a value v of any shape.

ACTIVATIONS = (
    "torch.relu({v})",
    "F.relu({v})",
    "F.leaky_relu({v}, 0.1)",
    "torch.tanh({v})",
    "{v}.sigmoid() * 2",
    "F.gelu({v})",
    "F.softplus({v})",
    "F.elu({v})",
    "F.hardtanh({v}, -1.0, 1.5)",
    "torch.exp(-{v}.abs())",
)
ACTIVATION_MODULES = (
    "nn.ReLU()",
    "nn.Tanh()",
    "nn.GELU()",
    "nn.LeakyReLU(0.2)",
    "nn.PReLU()",
    "nn.Identity()",
)
ARITHMETIC = (
    "{v} * 1.3",
    "0.7 * {v} + 0.1",
    "1 - {v}",
    "{v} / 1.5",
    "-{v}",
    "{v}.abs()",
    "{v} + {v}.detach()",
    "{v} ** 2",
    "torch.add({v}, 0.2)",
    "torch.mul(input={v}, other=0.9)",
    "{v}.clamp(-1.0, 1.5)",
    "{v}.clamp(min=-0.5)",
    "{v}.clone()",
    "{v}.contiguous()",
)
COMPARISONS = (
    "torch.where({v} > 0.05, {v}, 0.2 * {v})",
    "torch.where({v} > 0.3, 1.0, {v})",
    "({v} > 0.1).to({v}.dtype) * {v} + 0.3",
    "{v}.masked_fill({v} < -0.5, 0.4)",
    "torch.maximum({v}, 0.1 - {v})",
    "{v} * ({v} < 1.0)",
)
ACROSS_FEATURES = (
    "torch.softmax({v}, dim=-1) * 2",
    "{v}.softmax(1)",
    "{v} - 0.5 * {v}.mean(-1, keepdim=True)",
    "{v} / (1 + {v}.abs().sum(1, keepdim=True))",
    "{v}.cumsum(-1)",
    "{v}.flip(-1)",
    "{v}.roll(1, dims=-1)",
    "{v} + {v}.amax(dim=1, keepdim=True)",
    "F.layer_norm({v}, {v}.shape[1:])",
    "F.normalize({v}, dim=1)",
)
ACROSS_BATCH = (
    "{v} - 0.5 * {v}.mean(0, keepdim=True)",
    "{v} - 0.5 * {v}.mean()",
    "{v} / (1 + {v}.norm())",
    "{v} + {v}.sum(0)",
    "{v}.flip(0)",
    "{v}.roll(1, 0)",
    "{v}.cumsum(0) * 0.7",
    "{v}[torch.arange({v}.shape[0] - 1, -1, -1)]",
)
RANDOM = (
    "F.dropout({v}, 0.3)",
    "torch.bernoulli({v}.sigmoid())",
    "{v} + 0.2 * torch.rand_like({v})",
    "{v} + 0.1 * torch.randn({v}.shape, dtype={v}.dtype)",
    "{v} * (torch.rand_like({v}) > 0.2)",
)


def activation(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ACTIVATIONS).format(v=v), v.shape)


def activation_module(d: Draft, v: Value) -> Value:
    return d.let("h", f"{d.module('act', d.pick(*ACTIVATION_MODULES))}({v})", v.shape)


def arithmetic(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ARITHMETIC).format(v=v), v.shape)


def comparison(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*COMPARISONS).format(v=v), v.shape)


def across_features(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ACROSS_FEATURES).format(v=v), v.shape)


def across_batch(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*ACROSS_BATCH).format(v=v), v.shape)


def random_operator(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(*RANDOM).format(v=v), v.shape)


def dropout(d: Draft, v: Value) -> Value:
    layer = d.module("dropout", "nn.Dropout2d(0.3)" if len(v.shape) == 3 and d.chance(0.5) else "nn.Dropout(0.3)")
    return d.let("h", f"{layer}({v})", v.shape)


def learned_scale(d: Draft, v: Value) -> Value:
    gain = d.parameter("gain", v.shape[-1]) if d.chance(0.6) else d.module("gain", "nn.Parameter(torch.tensor(1.2))")
    return d.let(
        "h", d.pick("{v} * {gain}", "{gain} * {v}", "{v} + {gain}", "{gain} - {v}").format(v=v, gain=gain), v.shape
    )


def scalar_of_the_step(d: Draft, v: Value) -> Value:
    t = d.time()
    return d.let("h", d.pick(f"{v} * 0.9**{t}", f"{v} * ({t} + 1) / 2", f"{v} + 0.1 * {t}"), v.shape)


def tensor_of_the_step(d: Draft, v: Value) -> Value:
    code = d.parameter("code", d.steps, v.shape[-1])
    return d.let("h", d.pick(f"{v} + {code}[{d.time()}]", f"{code}[{d.time()}] * {v}"), v.shape)


def layer_norm(d: Draft, v: Value) -> Value | None:
    if v.shape[-1] == 1:
        return None
    return d.let("h", f"{d.module('norm', f'nn.LayerNorm({v.shape[-1]})')}({v})", v.shape)


def group_norm(d: Draft, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    return d.let("h", f"{d.module('norm', f'nn.GroupNorm(1, {v.shape[0]})')}({v})", v.shape)


def _batch_norm_of(v: Value) -> str:
    return f"nn.BatchNorm{'2d' if len(v.shape) == 3 else '1d'}({v.shape[0]})"


def batch_norm(d: Draft, v: Value) -> Value:
    """In training mode its statistics mix the batch, and its running buffers order the steps."""
    d.min_batch = 2
    d.note(f"batch_norm {'training' if d.training else 'eval'}")
    return d.let("h", f"{d.module('bn', _batch_norm_of(v))}({v})", v.shape)


def frozen_batch_norm(d: Draft, v: Value) -> Value:
    return d.let("h", f"{d.module('bn', f'{_batch_norm_of(v)}.requires_grad_(False)')}.eval()({v})", v.shape)


def batch_norm_per_step(d: Draft, v: Value) -> Value:
    d.min_batch = 2
    norms = d.module("bns", f"nn.ModuleList([{_batch_norm_of(v)} for _ in range({d.steps})])")
    return d.let("h", f"{norms}[{d.time()}]({v})", v.shape)


def residual(d: Draft, v: Value) -> Value | None:
    """A value of the same shape computed before: a skip connection, a membrane as a current."""
    others = [other for other in d.scope if other.shape == v.shape and other.name != v.name]
    if not others:
        return None
    other = d.rng.choice(others)
    forms = ("{v} + {o}", "{o} + {v}", "{v} * {o}", "torch.add({v}, {o}, alpha=0.5)", "torch.where({v} > 0, {v}, {o})")
    return d.let("h", d.pick(*forms).format(v=v, o=other), v.shape)


def shared_with_outside(d: Draft, v: Value) -> Value:
    """A value computed before the loop, used in every step and returned."""
    shared = d.new("shared")
    d.setup.append(f"{shared} = torch.tanh({d.parameter('w', v.shape[-1])})")
    d.outputs.append(f"{shared} * 2")
    return d.let("h", d.pick(f"{v} * {shared}", f"{v} + {shared}"), v.shape)


def history(d: Draft, v: Value) -> Value:
    """Steps that read what earlier steps left in a list."""
    past = d.new("past")
    d.setup.append(f"{past} = []")
    d.say(f"{past}.append({v})")
    return d.let("h", f"{v} + 0.5 * {d.pick(f'{past}[0]', f'sum({past})', f'{past}[len({past}) // 2]')}", v.shape)


def tensor_of_the_past(d: Draft, v: Value) -> Value:
    """Steps that read what earlier steps wrote into a tensor."""
    past = d.new("past")
    d.setup.append(f"{past} = torch.zeros({d.steps}, batch, {', '.join(map(str, v.shape))}, dtype=x.dtype)")
    h = d.let("h", f"{v} + 0.5 * {past}[{d.time()} - 1]", v.shape)
    d.say(f"{past}[t] = {h}")
    return h


def sequence_written_in_place(d: Draft, v: Value) -> Value | None:
    """A step writes into the frame of the next."""
    first = d.arguments[0]
    if first.shape[:2] != (d.steps, "B"):
        return None
    field, shape = d.new("field"), first.shape[2:]
    d.setup.append(f"{field} = {first.name}.clone()")
    h = d.let("h", f"{field}[{d.time()}] * 0.8 + 0.1", shape)
    d.say(f"{field}[(t + 1) % {d.steps}] += 0.2 * {fit(d, v, shape)}")
    return d.let("h", f"{v} + {fit(d, h, v.shape)}", v.shape)


def step_of_no_grad(d: Draft, v: Value) -> Value:
    """Part of a step that autograd does not see."""
    with d.block("with torch.no_grad():"):
        scale = d.let("scale", d.pick(f"1 / (1 + {v}.abs().mean())", f"1 + 0.1 * torch.rand_like({v})"), ())
    d.scope.remove(scale)
    return d.let("h", f"{v} * {scale}", v.shape)


def chosen_by_step(d: Draft, v: Value) -> Value:
    """Another operation in some steps."""
    value = Value(d.new("h"), v.shape)
    first, second = (d.pick(*ARITHMETIC, *ACTIVATIONS).format(v=v) for _ in range(2))
    d.say(f"{value} = {first} if {d.time()} % 2 == 0 else {second}")
    d.scope.append(value)
    return value


# Operations that give another shape: {rank: [(template, sizes -> new shape, or None where it does not apply)]}.

RESHAPINGS = {
    1: (
        ("{v}.unsqueeze(1)", lambda n: (1, n)),
        ("{v}.unsqueeze(-1)", lambda n: (n, 1)),
        ("{v}[:, 1:]", lambda n: (n - 1,)),
        ("{v}[:, ::2]", lambda n: ((n + 1) // 2,)),
        ("{v}[..., [0, -1]]", lambda n: (2,)),
        ("{v}.reshape({v}.shape[0], 2, -1)", lambda n: (2, n // 2) if n % 2 == 0 else None),
        ("{v}.unflatten(1, (-1, 2))", lambda n: (n // 2, 2) if n % 2 == 0 else None),
        ("{v}.contiguous().view(-1, 1, {n})", lambda n: (1, n)),
        ("F.pad({v}, (1, 0), value=0.5)", lambda n: (n + 1,)),
        ("{v}.repeat(1, 2)", lambda n: (2 * n,)),
        ("{v}.repeat_interleave(2, dim=-1)", lambda n: (2 * n,)),
        ("torch.cat([{v}, -{v}], dim=1)", lambda n: (2 * n,)),
        ("torch.cat(({v}, {v} * 0.5), -1)", lambda n: (2 * n,)),
        ("torch.stack([{v}, 1 - {v}], dim=1)", lambda n: (2, n)),
        ("{v}.mean(1, keepdim=True)", lambda n: (1,)),
        ("{v}.sum(dim=-1, keepdim=True)", lambda n: (1,)),
        ("{v}.unsqueeze(1).expand(-1, 2, -1)", lambda n: (2, n)),
        ("{v}.t().reshape({n}, -1).t()", lambda n: (n,)),
    ),
    2: (
        ("{v}.flatten(1)", lambda c, n: (c * n,)),
        ("{v}.reshape({v}.shape[0], -1)", lambda c, n: (c * n,)),
        ("{v}.transpose(1, 2)", lambda c, n: (n, c)),
        ("{v}.permute(0, 2, 1)", lambda c, n: (n, c)),
        ("{v}.mean(2)", lambda c, n: (c,)),
        ("{v}.sum(dim=1)", lambda c, n: (n,)),
        ("{v}[:, 0]", lambda c, n: (n,)),
        ("{v}[..., -1]", lambda c, n: (c,)),
        ("{v}.squeeze(1)", lambda c, n: (n,) if c == 1 else None),
        ("F.avg_pool1d({v}, 2)", lambda c, n: (c, n // 2)),
        ("F.max_pool1d({v}, 2, stride=1)", lambda c, n: (c, n - 1)),
        ("F.adaptive_avg_pool1d({v}, 2)", lambda c, n: (c, 2)),
        ("{v}.unsqueeze(1)", lambda c, n: (1, c, n)),
        ("{v} @ {v}.transpose(1, 2)", lambda c, n: (c, c)),
    ),
    3: (
        ("{v}.flatten(1)", lambda c, h, w: (c * h * w,)),
        ("{v}.flatten(2)", lambda c, h, w: (c, h * w)),
        ("{v}.reshape({v}.size(0), -1)", lambda c, h, w: (c * h * w,)),
        ("F.max_pool2d({v}, 2)", lambda c, h, w: (c, h // 2, w // 2)),
        ("F.avg_pool2d({v}, 2, stride=1)", lambda c, h, w: (c, h - 1, w - 1)),
        ("F.adaptive_avg_pool2d({v}, (2, 1))", lambda c, h, w: (c, 2, 1)),
        ("F.adaptive_max_pool2d({v}, 1)", lambda c, h, w: (c, 1, 1)),
        ("{v}.mean((2, 3))", lambda c, h, w: (c,)),
        ("{v}.sum(1)", lambda c, h, w: (h, w)),
        ("{v}.permute(0, 2, 3, 1)", lambda c, h, w: (h, w, c)),
        ("{v}.transpose(-1, -2)", lambda c, h, w: (c, w, h)),
        ("{v}[:, :, 0]", lambda c, h, w: (c, w)),
    ),
}
RESHAPING_MODULES = {
    1: (),
    2: (
        ("nn.Flatten()", lambda c, n: (c * n,)),
        ("nn.AvgPool1d(2)", lambda c, n: (c, n // 2)),
    ),
    3: (
        ("nn.Flatten()", lambda c, h, w: (c * h * w,)),
        ("nn.MaxPool2d(2)", lambda c, h, w: (c, h // 2, w // 2)),
        ("nn.AvgPool2d(2)", lambda c, h, w: (c, h // 2, w // 2)),
        ("nn.AdaptiveAvgPool2d(1)", lambda c, h, w: (c, 1, 1)),
    ),
}


def _fitting(table, v: Value):
    """The entries that apply to v, with the shapes they give."""
    shapes = [(form, shape_of(*v.shape)) for form, shape_of in table[len(v.shape)]]
    return [(form, shape) for form, shape in shapes if shape and 0 < math.prod(shape) <= MAX_NEURONS and min(shape) > 0]


def reshaping(d: Draft, v: Value) -> Value:
    form, shape = d.rng.choice(_fitting(RESHAPINGS, v))
    d.note(form.format(v="v", n="n"))
    return d.let("h", form.format(v=v, n=v.shape[0]), shape)


def reshaping_module(d: Draft, v: Value) -> Value | None:
    forms = _fitting(RESHAPING_MODULES, v)
    if not forms:
        return None
    constructor, shape = d.rng.choice(forms)
    return d.let("h", f"{d.module('pool', constructor)}({v})", shape)


def halves(d: Draft, v: Value) -> Value | None:
    if v.shape[0] % 2:
        return None
    shape = (v.shape[0] // 2, *v.shape[1:])
    first, second = Value(d.new("h"), shape), Value(d.new("h"), shape)
    d.say(f"{first}, {second} = " + d.pick(f"{v}.chunk(2, dim=1)", f"torch.split({v}, {shape[0]}, dim=1)"))
    d.scope += [first, second]
    return d.let("h", d.pick(f"{first} + {second}", f"{first} * {second}.sigmoid()"), shape)


# Products with learned weights.


def linear(d: Draft, v: Value) -> Value:
    width = d.rng.randint(2, 8)
    bias = d.pick("", "", ", bias=False")
    layer = d.module("fc", f"nn.Linear({v.shape[-1]}, {width}{bias})")
    return d.let("cur", f"{layer}({v})", (*v.shape[:-1], width))


def matrix_product(d: Draft, v: Value) -> Value:
    width = d.rng.randint(2, 8)
    weight = d.parameter("w", v.shape[-1], width)
    forms = ["{v} @ {w}", "torch.matmul({v}, {w})", "{v} @ {w}.tanh()", "F.linear({v}, {w}.t())"]
    if len(v.shape) == 1:
        forms += ["torch.mm({v}, {w})", "({w}.t() @ {v}.t()).t()", 'torch.einsum("bi,ij->bj", {v}, {w})']
        forms += [f"torch.addmm({d.parameter('b', width)}, {{v}}, {{w}})"] if d.chance(0.3) else []
    return d.let("cur", d.pick(*forms).format(v=v, w=weight), (*v.shape[:-1], width))


def convolution(d: Draft, v: Value) -> Value | None:
    if len(v.shape) < 2:
        return None
    n = len(v.shape) - 1
    channels, kernel = d.rng.randint(1, 3), d.pick(1, 3)
    options = d.pick("", ", bias=False", f", groups={v.shape[0]}", ', padding_mode="circular"')
    if "groups" in options:
        channels = v.shape[0]
    if kernel == 1 or min(v.shape[1:]) == 1:
        options = options.replace(', padding_mode="circular"', "")
    layer = d.module("conv", f"nn.Conv{n}d({v.shape[0]}, {channels}, {kernel}, padding={kernel // 2}{options})")
    return d.let("cur", f"{layer}({v})", (channels, *v.shape[1:]))


def strided_convolution(d: Draft, v: Value) -> Value | None:
    if len(v.shape) != 3 or min(v.shape[1:]) < 3:
        return None
    shape = (2, *((size - 3) // 2 + 1 for size in v.shape[1:]))
    if d.chance(0.5):
        layer = d.module("conv", f"nn.Conv2d({v.shape[0]}, 2, 3, stride=2)")
        return d.let("cur", f"{layer}({v})", shape)
    return d.let("cur", f"F.conv2d({v}, {d.parameter('w', 2, v.shape[0], 3, 3)}, stride=2)", shape)


def linear_per_step(d: Draft, v: Value) -> Value:
    layers = d.module("fcs", f"nn.ModuleList([nn.Linear({v.shape[-1]}, 4) for _ in range({d.steps})])")
    return d.let("cur", f"{layers}[{d.time()}]({v})", (*v.shape[:-1], 4))


def weight_per_step(d: Draft, v: Value) -> Value:
    weight = d.parameter("w", d.steps, v.shape[-1], 4)
    return d.let("cur", f"{v} @ {weight}[{d.time()}]", (*v.shape[:-1], 4))


def linear_twice(d: Draft, v: Value) -> Value:
    """One layer used twice in a step."""
    width = v.shape[-1]
    layer = d.module("fc", f"nn.Linear({width}, {width})")
    hidden = d.let("h", f"torch.relu({layer}({v}))", v.shape)
    return d.let("cur", f"{layer}({hidden})", v.shape)


def sequential_products(d: Draft, v: Value) -> Value:
    layer = d.module("mlp", f"nn.Sequential(nn.Linear({v.shape[-1]}, 5), nn.ReLU(), nn.Linear(5, 4))")
    return d.let("cur", f"{layer}({v})", (*v.shape[:-1], 4))


def product_in_autocast(d: Draft, v: Value) -> Value | None:
    if d.autocast != "product":
        return None
    with d.block('with torch.autocast("cpu", dtype=torch.bfloat16):'):
        cur = linear(d, v)
    d.scope.remove(cur)
    return d.let("cur", f"{cur}.float()", cur.shape)


def fast_weights(d: Draft, v: Value) -> Value | None:
    """A weight that every step reads, then rewrites."""
    if len(v.shape) > 1:
        return None
    weight = d.buffer("fast", f"0.8 * torch.eye({v.shape[0]})")
    cur = d.let("cur", f"{v} @ {weight}", v.shape)
    update = f"0.05 * {v}.detach().t() @ {cur}.detach().tanh()"
    d.say(f"{weight}.add_({update})" if d.no_grad else f"{weight} = {weight} + {update}")
    return cur


def decaying_weight(d: Draft, v: Value) -> Value:
    """A weight that every step scales in place, behind autograd's back."""
    layer = d.module("fc", f"nn.Linear({v.shape[-1]}, 4)")
    cur = d.let("cur", f"{layer}({v})", (*v.shape[:-1], 4))
    d.say(f"{layer}.weight.mul_(0.9)" if d.no_grad else f"{layer}.weight.data.mul_(0.9)")
    return cur


def fit(d: Draft, v: Value, shape: tuple[int, ...]) -> Value:
    """v brought to a wanted shape."""
    if v.shape == shape:
        return v
    flat = f"{v}.flatten(1)" if len(v.shape) > 1 else f"{v}"
    layer = d.module("fc", f"nn.Linear({v.size}, {math.prod(shape)})")
    folded = f".unflatten(1, {shape})" if len(shape) > 1 else ""
    return d.let("cur", f"{layer}({flat}){folded}", shape)


OPERATIONS = [activation, activation_module, arithmetic, comparison, across_features, across_batch, random_operator]
OPERATIONS += [dropout, learned_scale, scalar_of_the_step, tensor_of_the_step, layer_norm, group_norm, batch_norm]
OPERATIONS += [frozen_batch_norm, batch_norm_per_step, residual, residual, shared_with_outside, step_of_no_grad]
OPERATIONS += [history, tensor_of_the_past, sequence_written_in_place]
OPERATIONS += [chosen_by_step, reshaping, reshaping, reshaping, reshaping_module, reshaping_module, halves]
PRODUCTS = [linear, linear, linear, matrix_product, convolution, convolution, strided_convolution, linear_per_step]
PRODUCTS += [weight_per_step, linear_twice, sequential_products, fast_weights, decaying_weight, product_in_autocast]


ALIKE = [activation, activation_module, arithmetic, comparison, across_features, across_batch, dropout, learned_scale]
ALIKE += [scalar_of_the_step, layer_norm, group_norm, batch_norm, frozen_batch_norm, residual, shared_with_outside]
ALIKE += [step_of_no_grad, reshaping, reshaping, reshaping_module, halves]
PRODUCTS_ALIKE = [linear, linear, matrix_product, convolution, sequential_products]
"""Those of which all steps are alike."""


# Writing in place: to v, that nobody has read yet.

IN_PLACE = (
    "{v} += {b}",
    "{v}.add_({b})",
    "{v} -= 0.1",
    "{v}.mul_(0.8)",
    "{v} *= 1.2",
    "{v}[:, 0] = 0.0",
    "{v}[:, 0] += 0.5",
    "{v}[:, -1:].mul_(0.5)",
    "{v}[0].zero_()",
    "{v}.clamp_(-1.0, 2.0)",
    "{v}.relu_()",
    "F.relu({v}, inplace=True)",
    "F.dropout({v}, 0.3, self.training, inplace=True)",
    "{v}.data.mul_(0.9)",
)


def write_in_place(d: Draft, v: Value) -> Value:
    form = d.pick(*IN_PLACE)
    d.note("in place: " + form.format(v="v", b="b"))
    d.say(form.format(v=v, b=d.parameter("bias", v.shape[-1]) if "{b}" in form else ""))
    return v


def inplace_module(d: Draft, v: Value) -> Value:
    return d.let("h", f"{d.module('act', 'nn.ReLU(inplace=True)')}({v})", v.shape)


def write_through_a_view(d: Draft, v: Value) -> Value:
    view = d.new("view")
    d.say(f"{view} = " + d.pick(f"{v}[:, :1]", f"{v}.transpose(0, 1)[0]", f"{v}.flatten(1)", f"{v}.detach()"))
    d.say(d.pick(f"{view}.mul_(0.5)", f"{view} += 0.2", f"{view}.zero_()"))
    return v


def write_after_reading(d: Draft, v: Value) -> Value:
    """What was read before the write keeps the old numbers."""
    old = d.let("old", f"{v} * 0.5 + 0.1", v.shape)
    d.say(d.pick(f"{v}.add_(0.3)", f"{v}[:, 0] = 0.0", f"{v}.mul_(-0.5)"))
    return d.let("cur", f"{v} + {old}", v.shape)


WRITES = [write_in_place, write_in_place, write_in_place, inplace_module, write_through_a_view, write_after_reading]


def write_current(d: Draft, v: Value) -> Value:
    """From what arrives to the current of a layer."""
    operations = ALIKE if d.long and d.chance(0.8) else OPERATIONS
    for _ in range(d.pick(0, 0, 1, 1, 2)):
        v = d.choose(operations, v)
    if d.chance(0.8) or not v.name.isidentifier():
        v = d.choose(PRODUCTS_ALIKE if operations is ALIKE else PRODUCTS, v)
        if d.chance(0.06 if d.long else 0.3) and not d.body[-1].lstrip().startswith("self.fast"):
            v = d.choose(WRITES, v)
    for _ in range(d.pick(0, 0, 0, 0, 1, 1, 2)):
        v = d.choose(operations, v)
    if d.common_shape:
        v = fit(d, v, d.common_shape)
    elif v.size > MAX_NEURONS or d.chance(0.1):
        v = fit(d, v, (d.rng.randint(2, 6),))
    return v


# Spiking layers.


def leaky(d: Draft, shape: tuple[int, ...], *extra: str) -> str:
    """The constructor of a spiking layer over neurons of a shape."""
    learned = [f"learn_{name}=True" for name, chance in (("beta", 0.2), ("threshold", 0.15)) if d.chance(chance)]
    options = [f"beta={_per_neuron(d, shape, 0.5, 0.95)}", f"threshold={_per_neuron(d, shape, 0.15, 0.7)}"]
    if d.chance(0.7):
        surrogate = d.pick(*SURROGATES)
        d.note(surrogate.split("(")[0])
        options.append(f"spike_grad={surrogate}")
    reset = d.pick("subtract", "subtract", "zero", "none")
    delay = d.chance(0.65)
    d.note(f"reset {reset}")
    d.note(f"reset_delay={delay}")
    options += [f'reset_mechanism="{reset}"'] if reset != "subtract" else []
    options += [] if delay else ["reset_delay=False"]
    options += ["graded_spikes_factor=1.3"] if d.chance(0.04) else []
    for option in learned:
        d.note(option)
    return f"snn.Leaky({', '.join([*options, *learned, *extra])})"


def _per_neuron(d: Draft, shape: tuple[int, ...], low: float, high: float) -> str:
    if d.chance(0.7):
        return f"{d.rng.uniform(low, high):.2f}"
    d.note("per-neuron parameter")
    sizes = d.pick((shape[-1],), shape, (shape[0], *(1,) * (len(shape) - 1)))
    view = f".view{sizes}" if len(sizes) > 1 else ""
    return f"torch.linspace({low}, {high}, {math.prod(sizes)}){view}"


def start_membrane(d: Draft, lif: str, mem: str, shape: tuple[int, ...]) -> str:
    """The membrane before the first step; returns how it starts."""
    start = d.pick("init_leaky", "init_leaky", "reset_mem", "zeros", "zeros", "none", "late", "learned", "random")
    d.note(f"start {start}")
    d.setup.append(
        {
            "init_leaky": lambda: f"{mem} = {lif}.init_leaky()",
            "reset_mem": lambda: f"{mem} = {lif}.reset_mem()",
            "zeros": lambda: f"{mem} = {d.zeros(shape)}",
            "none": lambda: f"{mem} = None",
            "late": lambda: f"{mem} = None",
            "learned": lambda: (
                f"{mem} = {d.parameter('start', *shape)}.expand(batch, {', '.join(['-1'] * len(shape))})"
            ),
            "random": lambda: f"{mem} = torch.rand_like({d.zeros(shape)})",
        }[start]()
    )
    if start == "late":
        with d.block(f"if {mem} is None:"):
            d.say(f"{mem} = {lif}.reset_mem()")
    return start


CALLS = (
    "{spk}, {mem} = {lif}({cur}, {mem})",
    "{spk}, {mem} = {lif}({cur}, {mem})",
    "{spk}, {mem} = {lif}({cur}, mem={mem})",
    "out = {lif}({cur}, {mem}); {spk} = out[0]; {mem} = out[1]",
)


def explicit_layer(d: Draft, cur: Value) -> Layer:
    """The layer of every tutorial: the loop carries its membrane."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    start = start_membrane(d, lif, mem.name, cur.shape)
    for statement in d.pick(*CALLS).format(lif=lif, cur=cur, spk=spk, mem=mem).split("; "):
        d.say(statement)
    return Layer(lif, cur, spk, mem, start, constructor)


def layer_that_skips_steps(d: Draft, cur: Value) -> Layer:
    """A layer that runs in some steps only."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    d.say(f"{spk} = torch.zeros_like({cur})")
    with d.block(d.pick(f"if {d.time()} % 2 == 0:", f"if {d.time()} > 0:", f"if {d.time()} != 1:")):
        d.say(f"{spk}, {mem} = {lif}({cur}, {mem})")
    return Layer(lif, cur, spk, mem, "zeros", constructor)


def layer_without_gradient(d: Draft, cur: Value) -> Layer:
    """A layer, or some of its steps, that autograd does not see."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    with d.block(d.pick("with torch.no_grad():", f"with torch.set_grad_enabled({d.time()} > 0):")):
        d.say(f"{spk}, {mem} = {lif}({cur}, {mem})")
    return Layer(lif, cur, spk, mem, "zeros", constructor)


def hidden_layer(d: Draft, cur: Value) -> Layer:
    """A layer that keeps its membrane itself."""
    returns_mem = d.chance(0.4)
    constructor = leaky(d, cur.shape, "init_hidden=True", *(["output=True"] if returns_mem else []))
    lif = d.module("lif", constructor)
    _start_hidden(d, lif)
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.say(f"{spk}, {mem} = {lif}({cur})" if returns_mem else f"{spk} = {lif}({cur})")
    if not returns_mem and d.chance(0.3):
        d.say(f"{mem} = {lif}.mem")
        d.note("reads the hidden membrane")
    elif not returns_mem:
        mem = None
    return Layer(lif, cur, spk, mem, "hidden", constructor)


def _start_hidden(d: Draft, lif: str) -> None:
    start = d.pick("reset_mem", "reset", "carry")
    d.note(f"hidden start {start}")
    if start != "carry":
        d.setup.append("snn.reset(self)" if start == "reset" else f"{lif}.reset_mem()")


def own_membrane_layer(d: Draft, cur: Value) -> Layer:
    """Called without a membrane it goes on from its own, also from one call of the network to the next."""
    constructor = leaky(d, cur.shape)
    lif = d.module("lif", constructor)
    if d.chance(0.5):
        d.setup.append(f"{lif}.reset_mem()")
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.say(f"{spk}, {mem} = {lif}({cur})")
    return Layer(lif, cur, spk, mem, "hidden", constructor)


def layer_in_sequential(d: Draft, cur: Value) -> Layer:
    """A whole block in nn.Sequential, hidden states inside."""
    width, shape = cur.shape[-1], cur.shape
    constructor = leaky(d, shape, "init_hidden=True")
    inner = [f"nn.Linear({cur.shape[-1]}, {width})", *d.pick([], ["nn.ReLU()"], ["nn.Dropout(0.2)"]), constructor]
    block = d.module("block", f"nn.Sequential({', '.join(inner)})")
    _start_hidden(d, f"{block}[-1]")
    spk = Value(d.new("spk"), shape)
    d.say(f"{spk} = {block}({cur})")
    return Layer(f"{block}[-1]", cur, spk, None, "hidden", constructor)


def tower(d: Draft, cur: Value) -> Layer:
    """Layers in ModuleLists, membranes in a list."""
    width = cur.shape[-1]
    constructor = leaky(d, (width,))
    lifs = d.module("lifs", f"nn.ModuleList([{constructor} for _ in range(2)])")
    fcs = d.module("fcs", f"nn.ModuleList([nn.Linear({width}, {width}) for _ in range(2)])")
    mems, spk = d.new("mems"), Value(d.new("spk"), cur.shape)
    d.setup.append(f"{mems} = [lif.reset_mem() for lif in {lifs}]")
    d.say(f"{spk} = {cur}")
    with d.block(f"for i, (fc, lif) in enumerate(zip({fcs}, {lifs})):"):
        d.say(f"{spk}, {mems}[i] = lif(fc({spk}), {mems}[i])")
    return Layer(f"{lifs}[1]", cur, spk, Value(f"{mems}[1]", cur.shape), "list", constructor)


def functional_layer(d: Draft, cur: Value) -> Layer:
    """The neuron without a module."""
    beta = d.module("beta", "nn.Parameter(torch.tensor(0.8))") if d.chance(0.5) else "0.85"
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    d.say(f"{spk}, {mem} = snn.functional.leaky_step({cur}, {mem}, beta={beta}, threshold=0.4)")
    return Layer("", cur, spk, mem, "zeros", "functional")


def handwritten_layer(d: Draft, cur: Value) -> Layer:
    """A leaky integrator in plain torch."""
    spk, mem = Value(d.new("spk"), cur.shape), Value(d.new("mem"), cur.shape)
    d.setup.append(f"{mem} = {d.zeros(cur.shape)}")
    d.say(f"{mem} = 0.8 * {mem} + {cur}")
    d.say(f"{spk} = ({mem} > 0.5).to({mem}.dtype)")
    d.say(f"{mem} = {mem} - 0.5 * {spk}")
    return Layer("", cur, spk, mem, "zeros", "handwritten")


def recurrent_layer(d: Draft, cur: Value) -> Layer:
    """A layer that hears its own spikes, all of them through weights or each its own."""
    name, width = d.pick("RLeaky", "RSynaptic"), cur.shape[-1]
    constructor = leaky(d, cur.shape, *_recurrence(d, cur)).replace("graded_spikes_factor=1.3, ", "")
    constructor = constructor.replace("snn.Leaky(", f"snn.{name}(" + ("alpha=0.7, " if name == "RSynaptic" else ""))
    lif = d.module("lif", constructor)
    if "linear_features" in constructor and d.chance(0.15):
        d.note("changed on the way back")
        other = d.pick("nn.Dropout(0.2)", "nn.Tanh()", f"nn.Linear({width}, {width})")
        pair = d.rng.sample([other, f"nn.Linear({width}, {width})"], 2)
        d.init.append(f"{lif}.recurrent = nn.Sequential({', '.join(pair)})")
    states = [Value(d.new(stem), cur.shape) for stem in ("spk", *["syn"] * (name == "RSynaptic"), "mem")]
    spk, *_, mem = states
    if "init_hidden" in constructor:
        _start_hidden(d, lif)
        d.say(f"{spk} = {lif}({cur})")
        return Layer(lif, cur, spk, None, "hidden", constructor)
    names = ", ".join(map(str, states))
    if d.chance(0.5) and not any(line.startswith(f"{spk} = ") for line in d.setup):
        d.setup.append(f"{names} = {lif}.reset_mem()")
    else:
        d.setup += [f"{state} = {d.zeros(cur.shape)}" for state in states]
    d.say(f"{names} = {lif}({cur}, {names})")
    _change_spikes(d, spk)
    d.scope += states[1:-1]
    # The games know calls that return a membrane alone.
    return Layer(lif if name == "RLeaky" else "", cur, spk, mem, "recurrent", constructor)


def _recurrence(d: Draft, cur: Value) -> list[str]:
    options = ["init_hidden=True"] if d.chance(0.25) else []
    options += ["learn_recurrent=False"] if d.chance(0.2) else []
    if d.chance(0.7):
        return [f"linear_features={cur.shape[-1]}", *options]
    return [f"V={_per_neuron(d, cur.shape, -0.5, 0.7)}", "all_to_all=False", *options]


def _change_spikes(d: Draft, spk: Value) -> None:
    """What comes back may be no more the spikes."""
    if d.chance(0.15):
        form = d.pick("{spk}.detach()", "0.5 * {spk}", "F.dropout({spk}, 0.2)", "{spk}.clone()", "{spk}.view_as({spk})")
        d.note("spikes back: " + form)
        d.closing.append(f"{spk} = " + form.format(spk=spk))


def norse_layer(d: Draft, cur: Value) -> Layer:
    """Norse's recurrent cell, which has weights for its input too."""
    width = cur.shape[-1]
    parameters = f"norse.LIFParameters(v_th=torch.tensor({d.rng.uniform(0.05, 0.3):.2f}))"
    autapses = d.pick("", ", autapses=True")
    cell = d.module("cell", f"norse.LIFRecurrentCell({width}, {width}, p={parameters}{autapses})")
    spk, mem, i = (Value(d.new(stem), cur.shape) for stem in ("spk", "mem", "i"))
    d.setup += [f"{state} = {d.zeros(cur.shape)}" for state in (spk, mem, i)]
    d.say(f"{spk}, (_, {mem}, {i}) = {cell}({cur}, norse.LIFState({spk}, {mem}, {i}))")
    _change_spikes(d, spk)
    d.scope.append(i)
    return Layer("", cur, spk, mem, "recurrent", "norse")


LAYERS = [explicit_layer] * 9 + [layer_that_skips_steps, hidden_layer, hidden_layer, hidden_layer, own_membrane_layer]
LAYERS += [layer_without_gradient, layer_in_sequential, tower, functional_layer, handwritten_layer]


# What happens to a state between two steps. Each emitter returns True where it applied.


def detach_every_step(d: Draft, layer: Layer) -> bool:
    d.say(f"{layer.mem} = {layer.mem}.detach()")
    return True


def detach_some_steps(d: Draft, layer: Layer) -> bool:
    with d.block(f"if {d.time()} % {d.pick(2, 3)} == {d.pick(0, 1)}:"):
        d.say(f"{layer.mem} = {layer.mem}.detach()")
    return True


MEMBRANE_FORMS = (
    "{mem} * {mask}",
    "{mask} * {mem}",
    "{mem}.clone()",
    "{mem}.clamp(-1.0, 1.2)",
    "torch.where({spk} > 0, 0.5 * {mem}, {mem})",
    "{mem} * (1 - {spk}.detach())",
    "{mem} + 0.1 * {cur}",
    "{mem} - 0.2 * {mem}.mean(1, keepdim=True)",
    "F.dropout({mem}, 0.2, self.training)",
    "{mem}.view_as({mem})",
)


def change_membrane(d: Draft, layer: Layer) -> bool:
    mask = d.buffer("mask", f"torch.linspace(0.2, 1.0, {layer.spk.shape[-1]})")
    form = d.pick(*MEMBRANE_FORMS)
    d.note("membrane: " + form.format(mem="mem", spk="spk", cur="cur", mask="mask"))
    d.say(f"{layer.mem} = " + form.format(mem=layer.mem, spk=layer.spk, cur=layer.cur, mask=mask))
    return True


def scale_a_copy(d: Draft, layer: Layer) -> bool:
    copy = d.let("copy", f"{layer.mem} + 0", layer.spk.shape)
    d.say(d.pick(f"{copy}.mul_(0.5)", f"{copy}[:, 0] = 0.0", f"{copy} += {layer.spk}"))
    if d.chance(0.5):
        d.say(f"{layer.mem} = {copy}")
    return True


def restart_within_the_sequence(d: Draft, layer: Layer) -> bool:
    with d.block(f"if {d.time()} == 1:"):
        d.say(f"{layer.mem} = torch.zeros_like({layer.mem})")
    return True


def swap_states(d: Draft, layer: Layer) -> bool | None:
    others = [
        o for o in d.layers if o is not layer and o.mem and o.start != "hidden" and o.spk.shape == layer.spk.shape
    ]
    if not others:
        return None
    other = d.rng.choice(others)
    d.say(f"{layer.mem}, {other.mem} = {other.mem}, {layer.mem}")
    return True


def second_stream(d: Draft, layer: Layer) -> bool | None:
    """The same layer on another current, with a membrane of its own; now and then the membranes cross."""
    if not layer.lif:
        return None
    shape = layer.spk.shape
    candidates = [v for v in d.scope if v.shape == shape]
    other = d.rng.choice(candidates) if candidates else d.let("h", f"0.6 * {layer.cur} + 0.2", shape)
    spk, mem = Value(d.new("spk"), shape), Value(d.new("mem"), shape)
    d.setup.append(f"{mem} = {d.zeros(shape)}")
    d.say(f"{spk}, {mem} = {layer.lif}({other}, {mem})")
    if d.chance(0.4):
        d.note("streams cross")
        d.say(f"{layer.mem}, {mem} = {mem}, {layer.mem}")
    d.scope += [spk, mem]
    return True


def second_call_on_the_state(d: Draft, layer: Layer) -> bool | None:
    if not layer.lif:
        return None
    d.say(f"{layer.spk}, {layer.mem} = {layer.lif}(0.5 * {layer.cur}, {layer.mem})")
    return True


def peek_ahead(d: Draft, layer: Layer) -> bool | None:
    """A call whose membrane goes nowhere: the state forks."""
    if not layer.lif:
        return None
    peek = Value(d.new("peek"), layer.spk.shape)
    d.say(f"{peek}, _ = {layer.lif}({layer.cur} + 0.3, {layer.mem})")
    d.scope.append(peek)
    return True


def every_other_state(d: Draft, layer: Layer) -> bool | None:
    """Two interleaved membranes: a step goes on from the one before the last."""
    if layer.start != "zeros":
        return None
    older = d.new("older")
    d.setup.append(f"{older} = {d.zeros(layer.spk.shape)}")
    d.say(f"{layer.mem}, {older} = {older}, {layer.mem}")
    return True


def membrane_of_another_layer(d: Draft, layer: Layer) -> bool | None:
    """The other layer's membrane is where this one starts from in the next step."""
    others = [o for o in d.layers if o is not layer and o.mem and o.spk.shape == layer.spk.shape]
    if not others:
        return None
    d.closing.append(f"{layer.mem} = 0.5 * ({layer.mem} + {d.rng.choice(others).mem})")
    return True


def adapt_threshold(d: Draft, layer: Layer) -> bool | None:
    """A buffer of the layer that changes from step to step."""
    if not layer.lif or "[" in layer.lif or "learn_threshold" in layer.constructor:
        return None
    d.say(f"{layer.lif}.threshold = {layer.lif}.threshold * 1.05")
    return True


def overwrite_membrane(d: Draft, layer: Layer) -> bool:
    """Without autograd a membrane may be written in place; it is the layer's own too."""
    d.say(d.pick(f"{layer.mem}.mul_(0.7)", f"{layer.mem}[:, 0] = 0.0", f"{layer.mem} -= 0.1 * {layer.spk}"))
    return True


def overwrite_spikes(d: Draft, layer: Layer) -> bool:
    d.say(d.pick(f"{layer.spk}.mul_(0.5)", f"{layer.spk}[:, 0] = 1.0"))
    return True


def overwrite_beta(d: Draft, layer: Layer) -> bool | None:
    if not layer.lif or "[" in layer.lif:
        return None
    d.say(f"{layer.lif}.beta.mul_(0.9)")
    return True


def trace_of_spikes(d: Draft, layer: Layer) -> bool:
    """A buffer that follows the spikes in place, read in this step or in the next."""
    trace = d.buffer("trace", f"torch.zeros({layer.spk.shape[-1]})")
    update = f"{trace}.mul_(0.9).add_({layer.spk}.detach().mean({tuple(range(len(layer.spk.shape)))}))"
    read = f"{layer.cur} + {trace}"
    if d.chance(0.5):
        d.say(update)
    else:
        d.closing.append(update)
    d.let("adapted", read if d.chance(0.6) else f"{layer.cur} * {trace}.clone()", layer.spk.shape)
    return True


GAMES = [detach_every_step, detach_some_steps, change_membrane, change_membrane, change_membrane, scale_a_copy]
GAMES += [restart_within_the_sequence, swap_states, swap_states, second_stream, second_call_on_the_state, peek_ahead]
GAMES += [every_other_state, membrane_of_another_layer, adapt_threshold, trace_of_spikes]
OVERWRITES = [overwrite_membrane, overwrite_spikes, overwrite_beta]


def set_hidden_membrane(d: Draft, layer: Layer) -> bool | None:
    if "[" in layer.lif:
        return None
    d.say(f"{layer.lif}.mem = {layer.lif}.mem" + d.pick(" * 0.8", ".detach()", ".clone()", ".clamp(max=1.0)"))
    return True


def reset_hidden_within_the_sequence(d: Draft, layer: Layer) -> bool:
    with d.block(f"if {d.time()} == 1:"):
        d.say(f"{layer.lif}.reset_mem()")
    return True


def detach_hidden(d: Draft, layer: Layer) -> bool | None:
    """Dynamo breaks its graph here."""
    if d.chance(0.7):
        return None
    d.say(f"{layer.lif}.detach_state()")
    return True


HIDDEN_GAMES = [set_hidden_membrane, set_hidden_membrane, reset_hidden_within_the_sequence, trace_of_spikes]
HIDDEN_GAMES += [detach_hidden, adapt_threshold]


# Connections through time.


def own_spikes_back(d: Draft, cur: Value, spk: str) -> Value:
    """Recurrence: a layer hears its own spikes of the step before."""
    d.note("own_spikes_back")
    d.setup.append(f"{spk} = {d.zeros(cur.shape)}")
    width = cur.shape[-1]
    if d.chance(0.7):
        return d.let("cur", f"{cur} + {d.module('rec', f'nn.Linear({width}, {width})')}({spk})", cur.shape)
    return d.let("cur", f"{cur} - 0.3 * {spk}", cur.shape)


def leave_slot(d: Draft, cur: Value) -> Value:
    """A place at which a later layer's spikes of the step before may be added to this current."""
    here = d.let("cur", f"{cur} + 0.0", cur.shape)
    d.slots.append((len(d.body), here))
    return here


def fill_slot(d: Draft, layer: Layer) -> None:
    """Feedback from a later layer to an earlier one, over one step."""
    position, cur = d.slots.pop()
    d.note("feedback to an earlier layer")
    d.setup.append(f"{layer.spk} = {d.zeros(layer.spk.shape)}")
    back = d.module("back", f"nn.Linear({layer.spk.size}, {cur.size})")
    folded = f".view_as({cur})" if len(cur.shape) > 1 else ""
    d.body.insert(position, f"{cur} = {cur} + {back}({layer.spk}.flatten(1)){folded}")


def delay(d: Draft, v: Value) -> Value:
    """The next layer hears the step before."""
    d.note("delayed connection")
    late = Value(d.new("late"), v.shape)
    d.setup.append(f"{late} = {d.zeros(v.shape)}")
    d.closing.append(f"{late} = {v}")
    return late


def write_layer(d: Draft, cur: Value) -> Value:
    """A spiking layer with what surrounds it; returns what the next layer gets."""
    if d.chance(0.15):
        cur = own_spikes_back(d, cur, f"spk{d.numbers['spk']}")
    elif d.chance(0.12):
        cur = leave_slot(d, cur)
    layer = d.choose([recurrent_layer, recurrent_layer, norse_layer] if d.recurrent and d.chance(0.7) else LAYERS, cur)
    d.layers.append(layer)
    games = HIDDEN_GAMES if layer.start == "hidden" else GAMES
    if d.no_grad and layer.mem:
        games = games + OVERWRITES * (1 if d.long else 4)
    if d.long and layer.start != "hidden" and d.chance(0.7):
        games = [change_membrane, trace_of_spikes, membrane_of_another_layer, second_stream, detach_some_steps]
    for _ in range(d.pick(0, 0, 0, 1, 1, 2) if layer.start != "list" else 0):
        d.choose(games, layer)
    d.scope += [value for value in (layer.spk, layer.mem) if value is not None]
    if d.slots and d.slots[-1][0] < len(d.body) and d.chance(0.5):
        fill_slot(d, layer)
    passed = layer.mem if layer.mem and d.chance(0.1) else layer.spk
    return delay(d, passed) if d.chance(0.06) else passed


# Statements between two layers.


def dead_code(d: Draft, v: Value) -> Value:
    d.say(
        d.pick(f"unused = torch.tanh({v}) * 2", f"unused = torch.rand_like({v})", f"unused = [{v}.sum(), {v}.mean()]")
    )
    return v


def dead_layer(d: Draft, v: Value) -> Value:
    lif = d.module("lif", leaky(d, v.shape, "init_hidden=True"))
    d.say(f"{lif}({v})")
    return v


def skip_the_rest(d: Draft, v: Value) -> Value | None:
    if d.skips:
        return None
    d.skips = True
    how = "continue" if d.reversed or d.chance(0.6) else "break"
    d.note(how)
    with d.block(f"if {d.time()} == {d.pick(1, d.steps - 1)}:"):
        d.say(how)
    return v


def count_steps(d: Draft, v: Value) -> Value:
    d.say(f"{d.buffer('count', 'torch.zeros(())')} += 1")
    return v


def look_at_numbers(d: Draft, v: Value) -> Value | None:
    """A branch on the data, which Dynamo cannot capture in one graph."""
    if d.chance(0.85):
        return None
    value = d.let("h", f"{v} * 1.1", v.shape)
    with d.block(f"if {v}.mean() > 0.3:"):
        d.say(f"{value} = {value} - 0.1")
    return value


INTERLUDES = [dead_code, dead_code, dead_layer, skip_the_rest, skip_the_rest, count_steps]
INTERLUDES += [look_at_numbers]


# What a recorder of a loop meets: statements of single steps, and such that it does not see.


def look_once(d: Draft, v: Value) -> Value:
    value = d.let("h", f"{v} * 1.1", v.shape)
    with d.block(f"if {d.time()} == {d.rng.randrange(d.steps)}:"):
        d.say(
            d.pick(
                f"{value} = {value} + 0.1 * float({v}.detach().mean())",
                f"{value} = {value} * (2 if bool(({v} > 0.2).any()) else 1)",
                f"{value} = {value} - {v}.detach().numpy().mean()",
                f"{value} = __import__('copy').deepcopy({value}.detach())",
                f"{value} = torch.tensor({value}.tolist(), dtype=x.dtype)",
            )
        )
    return value


def write_once(d: Draft, v: Value) -> Value:
    value = d.let("h", f"{v} * 1.1", v.shape)
    with d.block(f"if {d.time()} == {d.rng.randrange(d.steps)}:"):
        d.say(d.pick(f"{value}[:, 0] = 0.1", f"{value}.mul_(0.5)", f"{value} += 0.2", f"{value}.data.mul_(0.9)"))
    return value


def weight_written_once(d: Draft, v: Value) -> Value | None:
    """Through `data`, as what autograd has saved would else be refused."""
    layers = [line.split(" = ")[0] for line in d.init if " = nn.Linear(" in line]
    if not layers:
        return None
    with d.block(f"if {d.time()} == {d.rng.randrange(d.steps)}:"):
        d.say(d.pick(*layers) + d.pick(".weight.data.mul_(0.9)", ".weight.data *= 1.1", ".bias.data[0] = 0.3"))
    return v


def backward_within(d: Draft, v: Value) -> Value | None:
    if d.no_grad:
        return None
    with d.block(f"if {d.time()} % {d.pick(3, 4)} == 2 and {v}.requires_grad:"):
        d.say(f"({v} ** 2).sum().backward(retain_graph=True)")
    return v


def gradient_of_a_step(d: Draft, v: Value) -> Value | None:
    """Asked for when the loop is over."""
    spk = d.layers[-1].spk
    if d.no_grad or d.skips or v is not spk or d.layers[-1].start == "recurrent":
        return None
    seq = d.new("seq")
    d.setup.append(f"{seq} = []")
    d.say(f"{seq}.append({spk})")
    step = f"{seq}[{d.rng.randrange(d.steps)}]"
    total = f"({seq}[-1].sum() + ({step} ** 2).sum())"
    asked = f"torch.autograd.grad({total}, {step}, retain_graph=True)[0]"
    d.outputs.append(f"({asked} if {step}.requires_grad and torch.is_grad_enabled() else {step})")
    return v


def user_function(d: Draft, v: Value) -> Value:
    return d.let("h", d.pick(f"Halved.apply({v})", f"{v} + Halved.apply({d.parameter('code', v.shape[-1])})"), v.shape)


def hits_counted(d: Draft, v: Value) -> Value:
    hits = d.new("hits")
    d.setup.append(f"{hits} = 0")
    with d.block("with torch.no_grad():"):
        d.say(f"{hits} = {hits} + ({v}.argmax(-1) == 0).sum()")
    d.outputs.append(f"torch.as_tensor({hits})")
    return v


def noise_of_the_step(d: Draft, v: Value) -> Value:
    return d.let("h", f"{v} + 0.1 * torch.randn_like({v}.detach())", v.shape)


IN_LONG_LOOPS = [look_once, write_once, weight_written_once, backward_within, gradient_of_a_step, gradient_of_a_step]
IN_LONG_LOOPS += [user_function, hits_counted, noise_of_the_step]

OWN_FUNCTION = """class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 0.5

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.25


"""


# Recording.

LIST_FORMS = (
    "torch.stack({s})",
    "torch.stack({s})",
    "torch.stack({s})",
    "torch.stack({s}, dim=1)",
    "torch.stack({s}, dim=-1)",
    "torch.stack({s}, 0)",
    "torch.cat([r.unsqueeze(0) for r in {s}])",
    "torch.cat([r.unsqueeze(0) for r in {s}], dim=0)",
    "torch.cat({s}, dim=1)",
    "torch.cat({s})",
    "torch.stack({s}).sum(0)",
    "torch.stack({s}).mean(dim=0)",
    "torch.stack({s})[-1]",
    "torch.stack({s}[::2])",
    "torch.stack({s}[::-1])",
    "torch.stack({s}[-2:])",
    "torch.stack({s} + {s})",
    "torch.stack([2 * r for r in {s}])",
    "sum({s})",
    "tuple({s})",
    "{s}",
    "{s}[-1]",
    "torch.stack({s}).flatten(0, 1)",
)


def record_list(d: Draft, v: Value) -> str:
    seq = d.new("seq")
    d.setup.append(f"{seq} = []")
    if d.chance(0.15):
        d.note("partial recording")
        with d.block(f"if {d.time()} % 2 == 0:"):
            d.say(f"{seq}.append({v})")
    else:
        d.say(f"{seq}.append({v})")
    for _ in range(d.pick(1, 1, 1, 2)):
        form = d.pick(*LIST_FORMS)
        d.note("record " + form.format(s="s"))
        d.outputs.append(form.format(s=seq))
    return seq


def record_in_a_tensor(d: Draft, v: Value) -> str:
    out, sizes = d.new("out"), ", ".join(map(str, v.shape))
    if d.chance(0.7):
        d.setup.append(f"{out} = torch.zeros({d.steps}, batch, {sizes}, dtype=x.dtype)")
        d.say(f"{out}[{d.time()}] = {v}")
    else:
        d.setup.append(f"{out} = x.new_zeros(batch, {d.steps}, {sizes})")
        d.say(f"{out}[:, {d.time()}] = {v}")
    d.outputs.append(out)
    return out


def record_sum(d: Draft, v: Value) -> str:
    total = d.new("total")
    d.setup.append(f"{total} = {d.pick('0', d.zeros(v.shape))}")
    forms = ("{total} = {total} + {v}", "{total} += {v}", "{total} = {total} + {v} * 0.8**t", "{total} += 2 * {v}")
    statement = d.pick(*forms).format(total=total, v=v)
    if "t" in statement.split("**")[1:]:
        d.time()
    d.say(statement)
    d.outputs.append(total)
    return total


def record_last(d: Draft, v: Value) -> str:
    d.outputs.append(v.name)
    return v.name


def record_extremes(d: Draft, v: Value) -> str:
    peak = d.new("peak")
    d.setup.append(f"{peak} = {d.zeros(v.shape)}")
    d.say(f"{peak} = torch.maximum({peak}, {v})")
    d.outputs.append(peak)
    return peak


def record_concatenated(d: Draft, v: Value) -> str:
    """A tensor that grows by a step at a time."""
    grown = d.new("grown")
    d.setup.append(f"{grown} = {d.zeros(v.shape)}.unsqueeze(0)")
    d.say(f"{grown} = torch.cat([{grown}, {v}.unsqueeze(0)])")
    d.outputs.append(grown)
    return grown


def loss_per_step(d: Draft, v: Value) -> str:
    loss = d.new("loss")
    forms = [
        f"F.mse_loss({v}, torch.full_like({v}, 0.3))",
        f"({v} ** 2).mean()",
        f"({v} - 0.2).abs().sum() / {d.steps}",
    ]
    if len(v.shape) == 1 and v.shape[0] >= 2:
        if not any(a.name == "labels" for a in d.arguments):
            d.arguments.append(Input("labels", ("B",), "labels"))
        forms += [f"F.cross_entropy({v}, labels)"] * 3
    if d.chance(0.3):
        d.setup.append(f"{loss} = []")
        d.say(f"{loss}.append({d.pick(*forms)})")
        d.outputs.append(d.pick(f"torch.stack({loss}).mean()", f"sum({loss}) / len({loss})"))
    else:
        d.setup.append(f"{loss} = {d.pick('0.0', 'torch.zeros((), dtype=x.dtype)')}")
        d.say(d.pick(f"{loss} = {loss} + {d.pick(*forms)}", f"{loss} += {d.pick(*forms)}"))
        d.outputs.append(loss)
    return loss


RECORDS = [record_list] * 6 + [record_in_a_tensor, record_in_a_tensor, record_sum, record_sum, record_last]
RECORDS += [record_extremes, record_concatenated, loss_per_step, loss_per_step]


def write_records(d: Draft) -> None:
    """What the program keeps of a step: spikes and membranes mostly."""
    records = RECORDS if not d.long or d.chance(0.15) else [r for r in RECORDS if r is not record_in_a_tensor]
    states = [v for layer in d.layers for v in (layer.spk, layer.mem) if v is not None]
    fresh = [v for v in states if v in d.scope]
    d.choose(records, d.layers[-1].spk if d.chance(0.6) else d.rng.choice(fresh or states))
    for _ in range(d.pick(0, 1, 1, 2)):
        d.choose(records, d.rng.choice([*fresh, *fresh, *(v for v in d.scope if v.name.isidentifier())]))


# Inputs and loops over time.


@dataclass(frozen=True)
class Frames:
    """How a step gets at its frame: the name that runs over `iterable`, or an expression in t."""

    value: Value
    iterable: str | None = None


def write_frames(d: Draft, name: str, layout: str, shape: tuple[int, ...]) -> Frames:
    """A way to walk through an input."""
    value, last = f"{name}_t", d.steps - 1
    if layout == "static":
        return Frames(Value(name, shape))
    iterables = {
        "time first": (f"{name}", f"{name}.unbind(0)", f"torch.unbind({name})", f"{name}.flip(0)", f"[*{name}]"),
        "batch first": (
            f"{name}.unbind(1)",
            f"{name}.transpose(0, 1)",
            f"{name}.movedim(1, 0)",
            f"{name}.unbind(dim=1)",
        ),
        "time last": (f"{name}.unbind(-1)", f"{name}.movedim(-1, 0)"),
    }
    indexed = {
        "time first": (
            f"{name}[t]",
            f"{name}[t]",
            f"{name}[t]",
            f"{name}.select(0, t)",
            f"{name}[{last} - t]",
            f"{name}[-1 - t]",
            f"{name}[t, ...]",
            f"{name}[t // 2]",
            f"{name}[t : t + 1].squeeze(0)",
            f"{name}.narrow(0, t, 1)[0]",
        ),
        "batch first": (f"{name}[:, t]", f"{name}[:, t]", f"{name}.select(1, t)", f"{name}[:, t, ...]"),
        "time last": (f"{name}[..., t]", f"{name}.select(-1, t)"),
    }
    if d.chance(0.75 if d.running else 0.4):
        d.running = True
        iterable = d.pick(*iterables[layout])
        d.note("for x_t in " + iterable.replace(name, "x"))
        return Frames(Value(value, shape), iterable)
    expression = d.pick(*indexed[layout])
    d.note(expression.replace(name, "x").replace(f"{last} - t", "last - t"))
    if d.chance(0.3):
        d.say(f"{value} = {expression}")
        d.time()
        return Frames(Value(value, shape))
    d.time()
    return Frames(Value(expression, shape))


def write_inputs(d: Draft) -> list[Frames]:
    """The arguments of forward."""
    shape = d.pick((4,), (3,), (6,), (5,), (4,), (2, 4), (2, 4), (1, 4, 4), (2, 3, 3), (1, 4, 4))
    frames = []
    for name in ("x", "y")[: d.pick(1, 1, 1, 1, 2)]:
        layout = d.pick(*["time first"] * 6, "batch first", "batch first", "static", "time last")
        d.note(layout)
        sizes = {
            "time first": (d.steps, "B", *shape),
            "batch first": ("B", d.steps, *shape),
            "static": ("B", *shape),
            "time last": ("B", *shape, d.steps),
        }[layout]
        d.arguments.append(Input(name, sizes, requires_grad=not d.no_grad and d.chance(0.4)))
        whole = whole_sequence(d, name, layout, shape) if layout != "static" and d.chance(0.2) else name
        frames.append(write_frames(d, whole, layout, shape))
    d.note(f"{len(frames)} inputs")
    return frames


def whole_sequence(d: Draft, name: str, layout: str, shape: tuple[int, ...]) -> str:
    """Something done to the whole input before the loop."""
    forms = [
        f"torch.tanh({name})",
        f"1.2 * {name}",
        f"F.dropout({name}, 0.2, self.training)",
        f"torch.bernoulli({name}.sigmoid())",
    ]
    if layout != "time last":
        forms += [f"{d.module('fc', f'nn.Linear({shape[-1]}, {shape[-1]})')}({name})"]
    whole = d.new("whole")
    d.setup.append(f"{whole} = {d.pick(*forms)}")
    d.note("whole sequence before the loop")
    return whole


def write_header(d: Draft, frames: list[Frames], steps: str) -> str:
    """The head of the time loop."""
    running = [f for f in frames if f.iterable]
    if not running:
        options = [f"range({steps})"] * 3 + ["range(self.num_steps)"]
        header = f"reversed(range({steps}))" if d.reversed else d.pick(*options)
        return f"for t in {header}:"
    names = ", ".join(f.value.name for f in running)
    iterable = running[0].iterable
    if len(running) > 1:
        iterable = f"zip({', '.join(f.iterable for f in running)})"
    if not d.uses_t:
        return f"for {names} in {iterable}:"
    return f"for t, {f'({names})' if len(running) > 1 else names} in enumerate({iterable}):"


def write_loop(d: Draft, frames: list[Frames], depth: int) -> None:
    """A loop over time with `depth` spiking layers."""
    d.reversed = not any(f.iterable for f in frames) and d.chance(0.08)
    d.scope += [f.value for f in frames]
    v = d.rng.choice(frames).value
    for other in frames:
        if other.value != v:
            v = d.let("h", f"{v} + 0.5 * {fit(d, other.value, v.shape)}", v.shape)
    for _ in range(depth):
        v = write_layer(d, write_current(d, v))
        if d.chance(0.2):
            v = d.choose(INTERLUDES, v)
        if d.long and d.chance(0.4):
            v = d.choose(IN_LONG_LOOPS, v)
    write_records(d)
    close_loop(d, frames)
    d.scope = [v for v in d.scope if v.name.isidentifier()]


def close_loop(d: Draft, frames: list[Frames]) -> None:
    """Puts the loop's lines together: setup, head, body."""
    header = write_header(d, frames, str(d.steps))
    body = d.body + d.closing
    d.forward += d.setup
    if header == f"for t in range({d.steps}):" and not d.skips and d.chance(0.08):
        d.note("while")
        loops = [("t = 0", f"while t < {d.steps}:", [*body, "t += 1"])]
    elif header == f"for t in range({d.steps}):" and d.steps > 2 and "break" not in d.features and d.chance(0.1):
        d.note("two loops over parts of the sequence")
        loops = [(None, f"for t in range({a}, {b}):", body) for a, b in ((0, 2), (2, d.steps))]
    else:
        d.note("for " + next((k for k in ("reversed", "range", "zip", "enumerate") if k in header), "frames"))
        loops = [(None, header, body)]
    for before, head, lines in loops:
        d.forward += [before] if before else []
        d.forward += [head, *("    " + line for line in lines)]
    d.setup, d.body, d.closing, d.slots, d.uses_t, d.skips = [], [], [], [], False, False


def loop_over_the_recording(d: Draft) -> None:
    """Layer by layer: another loop over what the first one recorded."""
    source = d.layers[-1].spk
    seq = d.new("seq")
    # The recording belongs at the end of the first loop's body, which is the last line of forward.
    d.forward.insert(0, f"{seq} = []")
    d.forward.append(f"    {seq}.append({source})")
    d.note("layer by layer")
    name = seq
    if d.chance(0.4):
        name = d.new("whole")
        d.setup.append(f"{name} = torch.stack({seq})")
    d.scope = [v for v in d.scope if not v.name.endswith("_t")]
    frames = Frames(Value(f"{seq}_t", source.shape), name)
    write_loop(d, [frames], 1)


def random_program(seed: int, long: bool = False) -> Program:
    """The program of a seed; the same seed gives the same program. `long`: of more steps, most of them alike."""
    d = Draft(seed, long)
    frames = write_inputs(d)
    depth = d.pick(1, 1, 1, 2, 2, 3)
    write_loop(d, frames, depth)
    if depth < 3 and d.forward[-1].strip() != "t += 1" and d.chance(0.12):
        loop_over_the_recording(d)
    d.note(f"{len(d.layers)} layers")
    batches = d.pick((2, 2), (3, 3), (1, 1), (4, 4), (2, 2), (2, 3), (1, 2), (4, 2))
    batches = tuple(max(batch, d.min_batch) for batch in batches)
    return Program(
        seed,
        assemble(d),
        tuple(d.arguments),
        d.steps,
        batches,
        d.training,
        torch.float32 if d.autocast else torch.float64,
        frozenset(d.features | {"training" if d.training else "eval"}),
    )


def assemble(d: Draft) -> str:
    """The module's text."""
    forward = [*d.forward, write_return(d)]
    if any("batch" in line for line in forward):
        forward.insert(0, f"batch = x.size({d.arguments[0].shape.index('B')})")
    if d.autocast == "loop":
        d.note("autocast around the loop")
        forward = ['with torch.autocast("cpu", dtype=torch.bfloat16):', *("    " + line for line in forward)]
    if d.no_grad:
        d.note("no_grad")
    lines = ["class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.num_steps = {d.steps}"] if any("self.num_steps" in line for line in forward) else []
    lines += ["        " + line for line in d.init] + [""]
    lines += ["    @torch.no_grad()"] if d.no_grad else []
    lines += [f"    def forward(self, {', '.join(a.name for a in d.arguments)}):"]
    lines += ["        " + line for line in forward]
    return IMPORTS + (OWN_FUNCTION if d.long else "") + "\n".join(lines) + "\n"


def write_return(d: Draft) -> str:
    """Outputs in one of the containers people return."""
    outputs = d.outputs
    if len(outputs) == 1:
        return f"return {outputs[0]}"
    if d.chance(0.1):
        d.note("returns a dict")
        return "return {" + ", ".join(f'"{k}": {output}' for k, output in enumerate(outputs)) + "}"
    return f"return {', '.join(outputs)}" if d.chance(0.8) else f"return [{', '.join(outputs)}]"
