"""The benches: what is run, how a contender's result is checked, and what bounds the time."""

import copy
import functools
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

import measure
import published
from contenders import (
    ENCODING_CONTENDERS,
    LAYER_CONTENDERS,
    LOOP_CONTENDERS,
    RLIF_CONTENDERS,
    Contender,
    SnnTorch,
    Torch,
)

# A rounding that differs flips a spike now and then, and the neuron's later spikes with it.
SPIKES_OFF = 1e-3
VALUES_OFF = 1e-2


class WrongResult(Exception):
    """A contender's spikes, membranes or gradients are not those of its specification."""


@dataclass(frozen=True)
class Size:
    """T time steps, B samples, N neurons."""

    T: int
    B: int
    N: int

    def __str__(self):
        return f"T={self.T}, B={self.B}, N={self.N}"


class LifWorkload:
    """A LIF layer over currents x [T, B, N] and back from a gradient on its spikes to dx."""

    def __init__(self, module, reset, x, spike_gradient):
        self.module, self._reset = module, reset
        self.x, self.spike_gradient = x, spike_gradient
        self.held = (x,)

    def reset(self):
        self.x.grad = None
        self._reset(self.module)

    def forward(self):
        return self.module(self.x)

    def backward(self, spikes):
        if self.spike_gradient.dtype != spikes.dtype:
            self.spike_gradient = self.spike_gradient.to(spikes.dtype)
        spikes.backward(self.spike_gradient)

    def results(self, spikes):
        """The spikes and dx, both [T, B, N]."""
        return {"spikes": spikes, "gradient": self.x.grad}


class Bench:
    """Base of the benches."""

    @classmethod
    def left_out(cls, options) -> list[str]:
        """What of the command line's is not run, and why: a line for each reason."""
        return []

    def expected(self, contender: Contender, results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """What the contender's results must be; None where nothing says it."""
        return outcome(self.specified(contender))


class LayerBench(Bench):
    """A bench of snnfast's own interface, at any sizes."""

    @classmethod
    def chosen(cls, options) -> Iterator["LayerBench"]:
        """One bench for each size of the command line's that this machine can run, made when its turn comes."""
        sizes = [size for size in cls._sizes(options) if not cls.hinders(size, options)]
        return (cls(size, options.dtype, options.device) for size in sizes)

    @classmethod
    def left_out(cls, options):
        reasons = {}
        for size in cls._sizes(options):
            if reason := cls.hinders(size, options):
                reasons.setdefault(reason, []).append(str(size))
        return [f"Left out, {reason}: {'; '.join(sizes)}" for reason, sizes in reasons.items()]

    @classmethod
    def hinders(cls, size: Size, options) -> str | None:
        """Why a size is not run here; None where it is."""
        return None

    @classmethod
    def _sizes(cls, options):
        return options.sizes or (cls.quick_sizes if options.quick else cls.sizes)

    def contenders(self) -> tuple[type[Contender], ...]:
        """Who takes part."""
        return LAYER_CONTENDERS

    def limit_row(self, limit: measure.Workload, timing: measure.Timing) -> dict:
        """The limit's milliseconds, and how they were found: by default, those of what is timed for it."""
        return {"limit_ms": timing.summary()["forward_backward_ms"]}

    def described(self) -> dict:
        """What tells this bench's rows from those of its other sizes."""
        return asdict(self.size)


class MemoryBound(LayerBench):
    """A bench whose limit is its least traffic at copy bandwidth."""

    def least_bytes(self) -> int:
        """What must be read and written."""
        raise NotImplementedError

    def limit(self) -> measure.CopyWorkload:
        """What is timed among the contenders to know the limit."""
        return measure.CopyWorkload(self.device)

    def limit_row(self, limit: measure.CopyWorkload, timing: measure.Timing) -> dict:
        """The copy's bytes per second, and the milliseconds of the least traffic at that."""
        bytes_per_second = limit.bytes_per_second(timing)
        return {
            "copy_bytes_per_s": bytes_per_second,
            "limit_ms": 1e3 * self.least_bytes() / bytes_per_second,
        }


class LifBench(MemoryBound):
    """The layer alone. The limit is the traffic of six tensors [T, B, N] at copy bandwidth.

    Forward reads the current and writes the spike and the membrane; backward reads the spike
    gradient and the membrane and writes the current's gradient.
    """

    name = "lif"
    sizes = (Size(25, 128, 1000), Size(500, 16, 512))
    quick_sizes = (Size(10, 16, 256),)

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        generator = torch.Generator().manual_seed(0)
        shape = (size.T, size.B, size.N)
        current = 0.1 + 0.5 * torch.randn(shape, generator=generator)
        self.x = current.to(device, dtype).requires_grad_()
        self.spike_gradient = torch.randn(shape, generator=generator).to(device, dtype)

    def workload(self, contender: Contender) -> LifWorkload:
        """The contender's layer on this bench's currents."""
        return self._workload(contender.lif().to(self.device), contender.reset)

    def specified(self, contender: Contender) -> LifWorkload:
        """What the contender's layer must compute."""
        return self._workload(contender.specification(), lambda module: None)

    def _workload(self, module, reset):
        return LifWorkload(module, reset, self.x, self.spike_gradient)

    def least_bytes(self):
        return 6 * self.x.numel() * self.x.element_size()

    def exact(self, contender: Contender) -> bool:
        """Whether this contender's bits must be the specification's."""
        return contender.exact


class RateFcWorkload:
    """One training iteration: forward is the network, backward all the rest.

    The rest: zero_grad, cross-entropy on the spike counts, backward and an Adam step.
    """

    def __init__(self, module, reset, linears, x, labels):
        self.module, self._reset, self.linears = module, reset, linears
        self.x, self.labels = x, labels
        self.parameters = [p for linear in linears for p in linear.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters, lr=5e-4)
        self.held = (x, *self.parameters)

    def reset(self):
        self._reset(self.module)

    def forward(self):
        return self.module(self.x)

    def backward(self, spikes):
        self.optimizer.zero_grad()
        F.cross_entropy(spikes.sum(0), self.labels).backward()
        self.optimizer.step()

    def results(self, spikes):
        """The spikes, and the gradient of the first weight [N, inputs], which every spike and surrogate reaches."""
        return {"spikes": spikes, "gradient": self.linears[0].weight.grad}


class ProductsWorkload:
    """The matrix products of one training iteration, over whole sequences, and nothing else."""

    def __init__(self, fc1, fc2, x):
        self.w1, self.w2 = fc1.weight.detach(), fc2.weight.detach()
        self.x = x.flatten(0, 1)
        self.hidden = self.x @ self.w1.T
        self.output = self.hidden @ self.w2.T

    def reset(self):
        pass

    def forward(self):
        return self.x @ self.w1.T, self.hidden @ self.w2.T

    def backward(self, products):
        hidden_gradient, output_gradient = products
        return (
            output_gradient @ self.w2,
            output_gradient.T @ self.hidden,
            hidden_gradient.T @ self.x,
        )


class RateFcBench(LayerBench):
    """Training 784-N-10 on prepared rate-coded spikes. The limit is the matrix products alone."""

    name = "rate-fc"
    sizes = (Size(25, 128, 1000),)
    quick_sizes = (Size(5, 16, 100),)
    inputs, outputs = 784, 10

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        generator = torch.Generator().manual_seed(0)
        pixels = published.images(generator, size.B, self.inputs)
        rate = torch.rand(size.T, size.B, self.inputs, generator=generator) < pixels
        self.x = rate.to(device, dtype)
        self.labels = torch.randint(self.outputs, (size.B,), generator=generator).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._linears = (nn.Linear(self.inputs, size.N), nn.Linear(size.N, self.outputs))

    def _fresh_linears(self):
        return [copy.deepcopy(linear).to(self.device, self.dtype) for linear in self._linears]

    def workload(self, contender: Contender) -> RateFcWorkload:
        """The contender's network, with the same initial weights for every contender."""
        fc1, fc2 = self._fresh_linears()
        module = contender.rate_fc(fc1, fc2).to(self.device)
        return RateFcWorkload(module, contender.reset, (fc1, fc2), self.x, self.labels)

    def specified(self, contender: Contender) -> RateFcWorkload:
        """The same network with the contender's specification for its neurons."""
        fc1, fc2 = self._fresh_linears()
        lif = contender.specification()

        def network(x_seq):
            return lif(fc2(lif(fc1(x_seq))))

        return RateFcWorkload(network, lambda module: None, (fc1, fc2), self.x, self.labels)

    def limit(self) -> ProductsWorkload:
        """What is timed among the contenders to know the limit."""
        return ProductsWorkload(*self._fresh_linears(), self.x)

    def exact(self, contender: Contender) -> bool:
        """Never: one product over all steps rounds otherwise than a product per step."""
        return False


class AlongSpikes(nn.Module):
    """Steps over time that hear given spikes [T, B, N] in place of their own, with the gradient of their own.

    A rounding that differs flips a spike, and through the weights all later ones; along the same spikes it stays alone.
    """

    def __init__(self, step, spikes):
        super().__init__()
        self.step, self.spikes = step, spikes

    def forward(self, x_seq):
        state, own = None, []
        for x, given in zip(x_seq.unbind(0), self.spikes.unbind(0), strict=True):
            spk, state = self.step(x, state)
            own.append(spk)
            state = (given + (spk - spk.detach()), *state[1:])
        return torch.stack(own)


class RlifWorkload(LifWorkload):
    """A recurrent layer over spikes x [T, B, N] and back from a gradient on its spikes to its weights."""

    def __init__(self, module, reset, x, spike_gradient, names):
        super().__init__(module, reset, x, spike_gradient)
        self.parameters, self._names = list(module.parameters()), names
        self.held = (x, *self.parameters)

    def reset(self):
        for parameter in self.parameters:
            parameter.grad = None
        super().reset()

    def results(self, spikes):
        """The spikes, and the gradients of all weights by the specification's names."""
        gradients = {f"gradient of {name}": p.grad for name, p in zip(self._names, self.parameters, strict=True)}
        return {"spikes": spikes} | gradients


class RecurrentProductsWorkload:
    """The matrix products of one pass: the input's over all steps, the recurrent ones step by step."""

    def __init__(self, w_input, w_recurrent, x):
        self.w_input, self.w_recurrent, self.x = w_input, w_recurrent, x

    def reset(self):
        pass

    def forward(self):
        for spikes in self.x[:-1]:
            spikes @ self.w_recurrent.T
        return self.x @ self.w_input.T

    def backward(self, gradient):
        for step in gradient[1:]:
            step @ self.w_recurrent
        before, after = self.x[:-1].flatten(0, 1), gradient[1:].flatten(0, 1)
        return gradient.flatten(0, 1).T @ self.x.flatten(0, 1), after.T @ before


class RlifBench(LayerBench):
    """A recurrent layer, all-to-all, behind input weights, trained. The limit is the matrix products alone.

    Norse's layer and snnTorch's are different neurons: each has its specification, its library's own step along the
    contender's spikes.
    """

    name = "rlif"
    sizes = tuple(Size(*size) for size in itertools.product((32, 100, 500), (1, 32, 256), (100, 256, 512, 1024)))
    quick_sizes = (Size(10, 16, 64),)
    rate = 0.2
    # What keeps a size below a minute or two on two cores, compilers aside.
    cpu_neuron_steps = 2**21
    # Tensors [T, B, N] that a loop and its check hold at their peak, with what the allocator keeps beside them.
    loop_tensors = 24

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        generator = torch.Generator().manual_seed(0)
        shape = (size.T, size.B, size.N)
        self.x = (torch.rand(shape, generator=generator) < self.rate).to(device, dtype)
        self.spike_gradient = torch.randn(shape, generator=generator).to(device, dtype)

    @classmethod
    def hinders(cls, size, options):
        neuron_steps = size.T * size.B * size.N
        if options.device.type == "cpu" and not options.sizes and neuron_steps > cls.cpu_neuron_steps:
            return f"slow on a CPU with more than {cls.cpu_neuron_steps} neuron-steps (--sizes runs them)"
        free, needed = measure.free_bytes(options.device), cls.loop_tensors * neuron_steps * options.dtype.itemsize
        return f"too much for {free / 1e9:.1f} GB of free memory" if free is not None and needed > free else None

    def contenders(self):
        return RLIF_CONTENDERS

    def _seeded(self, build):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = build(self.size.N)
        return None if module is None else module.to(self.device, self.dtype)

    def _workload(self, module, reset, step):
        names = [name for name, _ in (step or module).named_parameters()]
        return RlifWorkload(module, reset, self.x, self.spike_gradient, names)

    def workload(self, contender: Contender) -> RlifWorkload:
        """The contender's layer, with the weights of its specification."""
        module, step = self._seeded(contender.rlif), self._seeded(contender.rlif_step)
        if step is not None:
            with torch.no_grad():
                for mine, specified in zip(module.parameters(), step.parameters(), strict=True):
                    mine.copy_(specified)
        return self._workload(module, contender.reset, step)

    def expected(self, contender, results):
        step = self._seeded(contender.rlif_step)
        if step is None:
            return None
        along = AlongSpikes(step, results["spikes"])
        return outcome(self._workload(along, lambda module: None, step))

    def limit(self) -> RecurrentProductsWorkload:
        """What is timed among the contenders to know the limit."""
        weights = torch.randn(2, self.size.N, self.size.N, generator=torch.Generator().manual_seed(0))
        return RecurrentProductsWorkload(*weights.to(self.device, self.dtype), self.x)

    def exact(self, contender: Contender) -> bool:
        """Never: the order in which a product is summed is free."""
        return False


class EncodingWorkload:
    """An encoder; there is no way back."""

    def __init__(self, encode, data, certain):
        self.encode, self.data, self.certain = encode, data, certain
        self.held = (data,)

    def reset(self):
        pass

    def forward(self):
        return self.encode(self.data)

    def backward(self, spikes):
        pass

    def results(self, spikes):
        """The spikes that are not left to chance."""
        return {"spikes": spikes * self.certain}


class EncodingBench(MemoryBound):
    """Data to spikes [T, B, N], as snnTorch encodes them. The limit is to write them and to read the data.

    Of random spikes, those of probability 0 and 1 are checked.
    """

    name = "encoding"
    sizes = (Size(200, 512, 784),)
    quick_sizes = (Size(10, 16, 64),)
    encoders = ("rate", "latency", "delta")

    def __init__(self, encoder: str, size: Size, dtype: torch.dtype, device: torch.device):
        self.encoder, self.size, self.dtype, self.device = encoder, size, dtype, device
        generator = torch.Generator().manual_seed(0)
        pixels = published.images(generator, size.B, size.N)
        pixels[:, ::8] = 1
        if encoder == "delta":
            pixels = pixels * torch.rand(size.T, 1, 1, generator=generator)
        self.x = pixels.to(device, dtype)
        self.certain = (self.x == 0) | (self.x == 1) if encoder == "rate" else torch.ones_like(self.x)

    @classmethod
    def chosen(cls, options):
        """One bench for each encoder and size."""
        pairs = itertools.product(cls.encoders, cls._sizes(options))
        return (cls(encoder, size, options.dtype, options.device) for encoder, size in pairs)

    def contenders(self):
        return ENCODING_CONTENDERS

    def described(self):
        return {"encoder": self.encoder, **super().described()}

    def workload(self, contender: Contender) -> EncodingWorkload:
        """The contender's encoder on this bench's data."""
        encode = getattr(contender.encoders(), self.encoder)
        options = {"rate": {"num_steps": self.size.T}, "latency": {"num_steps": self.size.T, "normalize": True}}
        return EncodingWorkload(functools.partial(encode, **options.get(self.encoder, {})), self.x, self.certain)

    def specified(self, contender: Contender) -> EncodingWorkload:
        """snnTorch's encoder."""
        return self.workload(SnnTorch())

    def least_bytes(self):
        spikes = self.size.T * self.size.B * self.size.N
        return (spikes + self.x.numel()) * self.x.element_size()

    def exact(self, contender: Contender) -> bool:
        """Always."""
        return True


class LoopWorkload:
    """One training iteration of a published loop: forward is the network, backward its loss and the gradients."""

    def __init__(self, contender, network, loop, x, targets):
        self.parameters = dict(network.named_parameters())
        self.module, self.loop = contender.prepared(network), loop
        self.x, self.targets = x, targets
        self.held = (x, *self.parameters.values())

    def reset(self):
        for parameter in self.parameters.values():
            parameter.grad = None

    def forward(self):
        return self.module(self.x)

    def backward(self, output):
        self.loop.loss(output, self.targets).backward()

    def results(self, output):
        """What the network returns, and the gradients of all parameters."""
        gradients = {f"gradient of {name}": each.grad for name, each in self.parameters.items()}
        return self.loop.named(output) | gradients


class LoopsBench(Bench):
    """A published network as its author writes it, a Python loop over time steps; its limit is not known.

    The specification is the author's own network, not compiled.
    """

    name = "loops"

    def __init__(self, loop: str, sizes: published.Sizes, dtype: torch.dtype, device: torch.device):
        self.loop_name, self.loop, self.size = loop, published.LOOPS[loop], sizes
        self.dtype, self.device = dtype, device
        x, targets = self.loop.inputs(torch.Generator().manual_seed(0), sizes)
        self.x, self.targets = x.to(device, dtype), targets.to(device)

    @classmethod
    def chosen(cls, options) -> list["LoopsBench"]:
        """One bench for each loop of the command line's."""
        loops = {name: published.LOOPS[name] for name in options.loops}
        return [
            cls(name, loop.small if options.quick else loop.published, options.dtype, options.device)
            for name, loop in loops.items()
        ]

    def contenders(self) -> tuple[type[Contender], ...]:
        """Who has a form of this loop."""
        return tuple(contender for contender in LOOP_CONTENDERS if contender.runs(self.loop))

    def described(self) -> dict:
        """Which loop it is, and its sizes."""
        return {"loop": self.loop_name, "T": self.size.T, "B": self.size.B, "layers": list(self.size.layers)}

    def workload(self, contender: Contender) -> LoopWorkload:
        """The contender's form of the network, with the same initial weights for every contender."""
        network = self.loop.build(self.size, contender.neurons(self.loop)).to(self.device, self.dtype)
        return LoopWorkload(contender, network, self.loop, self.x, self.targets)

    def specified(self, contender: Contender) -> LoopWorkload:
        """The author's network."""
        author = next(each for each in (SnnTorch, Torch) if each.runs(self.loop))
        return self.workload(author())

    def limit(self) -> None:
        """Nothing is timed beside the contenders."""

    def exact(self, contender: Contender) -> bool:
        """On snnTorch's neurons and their equals, and on the author's own; Leaky in place of those rounds otherwise."""
        return contender.exact and self.loop.library in ("snntorch", contender.package)


BENCHES = {bench.name: bench for bench in (LifBench, RateFcBench, RlifBench, EncodingBench, LoopsBench)}


def outcome(workload) -> dict[str, torch.Tensor]:
    """The results of one pass by name, detached."""
    workload.reset()
    output = workload.forward()
    workload.backward(output)
    return {name: result.detach() for name, result in workload.results(output).items()}


def check(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], exact: bool) -> None:
    """Raises `WrongResult` unless the results are the expected ones.

    Not `exact`: the share of "spikes" that differ, and the distance of all else, must be small. Results are compared
    by value, since libraries disagree on the dtype of spikes.
    """
    for name, wanted in expected.items():
        if not wanted.any():
            nothing = "no neuron fires" if name == "spikes" else f"the {name} is zero"
            raise WrongResult(f"the check is void: {nothing} on this input")
        result = results[name]
        if result.shape != wanted.shape:
            raise WrongResult(f"{name}: shape {tuple(result.shape)}, not {tuple(wanted.shape)}")
        off, allowed = _off(name, result, wanted, exact)
        # Negated, so that NaN counts as different.
        if not off <= allowed:
            raise WrongResult(f"{name}: off by {off:.2%} from the specification")


def _off(name, result, wanted, exact):
    """By how much a result is off, and by how much it may be: the share that differs, or the relative distance."""
    if exact or name == "spikes":
        return (result.double() != wanted.double()).double().mean().item(), 0 if exact else SPIKES_OFF
    distance = (result.double() - wanted.double()).abs().sum() / wanted.double().abs().sum()
    return distance.item(), max(VALUES_OFF, 4 * torch.finfo(wanted.dtype).eps)
