"""The benches: what is run, how a contender's result is checked, and what bounds the time."""

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

import measure
import neurons
import published
from contenders import (
    CELL_CONTENDERS,
    DEEP_CONTENDERS,
    ENCODING_CONTENDERS,
    LAYER_CONTENDERS,
    LOOP_CONTENDERS,
    RLIF_CONTENDERS,
    Contender,
    Refused,
    SnnFastLayer,
    SnnTorch,
    Torch,
    TorchRnn,
    each_before,
)
from deep import DEEP

# A rounding that differs flips a spike now and then, and the neuron's later spikes with it.
SPIKES_OFF = 1e-3
VALUES_OFF = 1e-2


class WrongResult(Exception):
    """A contender's spikes, membranes or gradients are not those of its specification."""


def dtype_name(dtype: torch.dtype) -> str:
    """Its name on the command line and in rows."""
    return str(dtype).removeprefix("torch.")


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

    dtype: torch.dtype
    cuda_dtypes: tuple[torch.dtype, ...] = (torch.float32,)

    @classmethod
    def left_out(cls, options) -> list[str]:
        """What of the command line's is not run, and why: a line for each reason."""
        return []

    @classmethod
    def _dtypes(cls, options):
        return options.dtype or (cls.cuda_dtypes if options.device.type == "cuda" else (torch.float32,))

    def settings(self) -> contextlib.AbstractContextManager:
        """What holds for torch as a whole while this bench runs."""
        return contextlib.nullcontext()

    def same_neuron(self, contender: type[Contender]) -> bool:
        """Whether the contender computes what snnfast does."""
        return contender.same_neuron

    def expected(self, contender: Contender, results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
        """What the contender's results must be; None where nothing says it."""
        return outcome(self.specified(contender))


class LayerBench(Bench):
    """A bench of snnfast's own interface, at any sizes."""

    sizes: tuple[Size, ...]
    quick_sizes: tuple[Size, ...]
    # Instead of `sizes` on a GPU; none: the same.
    cuda_sizes: tuple[Size, ...] = ()

    @classmethod
    def chosen(cls, options) -> Iterator["LayerBench"]:
        """One bench for each size of the command line's that this machine can run, made when its turn comes."""
        pairs = itertools.product(cls._dtypes(options), cls._sizes(options))
        runs = [(size, dtype) for dtype, size in pairs if not cls.hinders(size, dtype, options)]
        return (cls(size, dtype, options.device) for size, dtype in runs)

    @classmethod
    def left_out(cls, options):
        reasons, dtypes = {}, cls._dtypes(options)
        for dtype, size in itertools.product(dtypes, cls._sizes(options)):
            if reason := cls.hinders(size, dtype, options):
                name = str(size) if len(dtypes) == 1 else f"{size}, {dtype_name(dtype)}"
                reasons.setdefault(reason, []).append(name)
        return [f"Left out, {reason}: {'; '.join(sizes)}" for reason, sizes in reasons.items()]

    @classmethod
    def hinders(cls, size: Size, dtype: torch.dtype, options) -> str | None:
        """Why a size is not run here; None where it is."""
        free, needed = measure.free_bytes(options.device), cls.needed_bytes(size, dtype)
        return f"too much for {free / 1e9:.1f} GB of free memory" if free is not None and needed > free else None

    @classmethod
    def needed_bytes(cls, size: Size, dtype: torch.dtype) -> int:
        """What a size holds at its peak, contenders' checks included; 0 where that has not been measured."""
        return 0

    @classmethod
    def _sizes(cls, options):
        if options.sizes:
            return options.sizes
        if options.quick:
            return cls.quick_sizes
        return cls.cuda_sizes if options.device.type == "cuda" and cls.cuda_sizes else cls.sizes

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


class LeakyBench(LayerBench):
    """A bench of LIF layers, in which a contender whose membranes have 16 bits is another neuron, and not checked."""

    def contenders(self) -> tuple[type[Contender], ...]:
        """Who takes part."""
        return LAYER_CONTENDERS

    @property
    def neuron_dtype(self) -> torch.dtype:
        """The dtype of what the neurons are given."""
        return self.dtype

    def _specifies(self, contender):
        return contender.wide_state or self.neuron_dtype.itemsize >= 4

    def same_neuron(self, contender):
        return contender.same_neuron and self._specifies(contender)

    def expected(self, contender, results):
        return super().expected(contender, results) if self._specifies(contender) else None

    def _specification(self, contender):
        return contender.specification().to(self.device)

    def _specified_network(self, contender, linears):
        return nn.Sequential(*each_before(lambda: self._specification(contender), linears))


class LifBench(LeakyBench, MemoryBound):
    """The layer alone. The limit is the traffic of six tensors [T, B, N] at copy bandwidth.

    Forward reads the current and writes the spike and the membrane; backward reads the spike
    gradient and the membrane and writes the current's gradient.
    """

    name = "lif"
    sizes = (Size(25, 128, 1000), Size(500, 16, 512))
    quick_sizes = (Size(10, 16, 256),)
    # B*N from 4k to 16M.
    cuda_sizes = tuple(Size(T, 64, N) for T in (4, 16, 64, 250, 1000) for N in (2**n for n in (6, 9, 12, 14, 16, 18)))
    cuda_dtypes = (torch.float32, torch.bfloat16)
    # A neuron-step's: a loop's check holds 48 at its peak, in float32 whatever it is given, and an allocator some more.
    check_bytes = 64

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        # On the device, where billions of them take no time; in place, where two of them might not fit.
        normal = functools.partial(
            torch.randn, size.T, size.B, size.N, generator=torch.Generator(device).manual_seed(0), device=device
        )
        self.x = normal().mul_(0.5).add_(0.1).to(dtype).requires_grad_()
        self.spike_gradient = normal().to(dtype)

    @classmethod
    def needed_bytes(cls, size, dtype):
        return cls.check_bytes * size.T * size.B * size.N

    def workload(self, contender: Contender) -> LifWorkload:
        """The contender's layer on this bench's currents."""
        return self._workload(contender.lif().to(self.device), contender.reset)

    def specified(self, contender: Contender) -> LifWorkload:
        """What the contender's layer must compute."""
        return self._workload(self._specification(contender), lambda module: None)

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

    def __init__(self, weights, x):
        self.weights, self.inputs = weights, [x.flatten(0, -2)]
        for weight in weights[:-1]:
            self.inputs.append(self.inputs[-1] @ weight.T)

    def reset(self):
        pass

    def forward(self):
        return tuple(x @ weight.T for x, weight in zip(self.inputs, self.weights, strict=True))

    def backward(self, products):
        """The gradients of the weights, and of all inputs but the first; a product stands for its own gradient."""
        of_inputs = [gradient @ weight for gradient, weight in zip(products[1:], self.weights[1:], strict=True)]
        return of_inputs, [gradient.T @ x for gradient, x in zip(products, self.inputs, strict=True)]


class RateFcBench(LeakyBench):
    """Training 784-N-10 on prepared rate-coded spikes. The limit is the matrix products alone."""

    name = "rate-fc"
    sizes = (Size(25, 128, 1000),)
    quick_sizes = (Size(10, 16, 100),)
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
        linears = self._fresh_linears()
        module = contender.network(*linears).to(self.device)
        return RateFcWorkload(module, contender.reset, linears, self.x, self.labels)

    def specified(self, contender: Contender) -> RateFcWorkload:
        """The same network with the contender's specification for its neurons."""
        linears = self._fresh_linears()
        network = self._specified_network(contender, linears)
        return RateFcWorkload(network, lambda module: None, linears, self.x, self.labels)

    def limit(self) -> ProductsWorkload:
        """What is timed among the contenders to know the limit."""
        weights = [linear.weight.detach() for linear in self._fresh_linears()]
        return ProductsWorkload(weights, self.x)

    def exact(self, contender: Contender) -> bool:
        """Never: one product over all steps rounds otherwise than a product per step."""
        return False


@dataclass(frozen=True)
class Matmul:
    """How a product of float32 matrices is computed.

    Attributes:
        precision: torch's setting for float32 products.
        dtype: what its factors and its result are, under autocast where that is not float32.
        devices: where there is such a product.
    """

    precision: str
    dtype: torch.dtype
    devices: tuple[str, ...] = ("cpu", "cuda")


MATMULS = {
    "float32": Matmul("highest", torch.float32),
    "tf32": Matmul("high", torch.float32, ("cuda",)),
    "bf16": Matmul("highest", torch.bfloat16),
}


class OnmWorkload:
    """A Linear and a LIF layer over x [T, B, n] without gradient, and back from the sum of the spikes."""

    def __init__(self, module, reset, linear, x, dtype):
        self.module, self._reset, self.linear = module, reset, linear
        self.x, self.dtype = x, dtype
        self.held = (x, *linear.parameters())

    def reset(self):
        for parameter in self.linear.parameters():
            parameter.grad = None
        self._reset(self.module)

    def forward(self):
        with torch.autocast(self.x.device.type, self.dtype, enabled=self.dtype != self.x.dtype):
            return self.module(self.x)

    def backward(self, spikes):
        spikes.sum().backward()

    def results(self, spikes):
        """The spikes, and the gradients of the weight [n, n] and the bias [n]."""
        return {"spikes": spikes} | {f"gradient of {name}": p.grad for name, p in self.linear.named_parameters()}


class OnmBench(LeakyBench):
    """The Open Neuromorphic benchmark, one model for all: a Linear and a LIF layer, with float32 parameters and input.

    https://github.com/open-neuromorphic/snn-library-benchmarks. The limit is the two matrix products alone, computed
    as the Linear's are.
    """

    name = "onm"
    sizes = (Size(500, 16, 512),)
    cuda_sizes = tuple(Size(500, 16, n) for n in (512, 4096, 8192, 16384))
    quick_sizes = (Size(10, 4, 64),)

    def __init__(self, size: Size, matmul: str, device: torch.device, density: float | None = None):
        self.size, self.matmul, self.device, self.density = size, matmul, device, density
        self.dtype = torch.float32
        generator = torch.Generator(device).manual_seed(0)
        draw = torch.randn if density is None else torch.rand
        self.x = draw(size.T, size.B, size.N, generator=generator, device=device)
        if density is not None:
            self.x = (self.x < density).to(self.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._linear = nn.Linear(size.N, size.N, device=device)

    @property
    def neuron_dtype(self):
        return MATMULS[self.matmul].dtype

    @classmethod
    def chosen(cls, options) -> Iterator["OnmBench"]:
        """One bench for each size, kind of product and input: the benchmark's own, or spikes of a density."""
        sizes = [size for size in cls._sizes(options) if not cls.hinders(size, torch.float32, options)]
        matmuls = [matmul for matmul in options.matmul if options.device.type in MATMULS[matmul].devices]
        runs = itertools.product(sizes, matmuls, options.density or [None])
        return (cls(size, matmul, options.device, density) for size, matmul, density in runs)

    @classmethod
    def left_out(cls, options):
        missing = [each for each in options.matmul if options.device.type not in MATMULS[each].devices]
        return super().left_out(options) + [f"Left out, not on {options.device.type}: {each}" for each in missing]

    @classmethod
    def _dtypes(cls, options):
        return (torch.float32,)

    @classmethod
    def needed_bytes(cls, size, dtype):
        """Every contender has a weight and its gradient."""
        weights = 2 * len(LAYER_CONTENDERS) * size.N**2
        return weights * dtype.itemsize + LifBench.needed_bytes(size, dtype)

    @contextlib.contextmanager
    def settings(self):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(MATMULS[self.matmul].precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def described(self):
        density = {} if self.density is None else {"density": self.density}
        return {"matmul": self.matmul, **density, **super().described()}

    def _workload(self, network, reset, linear):
        return OnmWorkload(network.to(self.device), reset, linear, self.x, self.neuron_dtype)

    def workload(self, contender: Contender) -> OnmWorkload:
        """The contender's network, with the same initial weight for every contender."""
        if self.matmul == "bf16" and not contender.autocasts:
            raise Refused("torch's autocast does not reach its products")
        linear = copy.deepcopy(self._linear)
        return self._workload(contender.network(linear), contender.reset, linear)

    def specified(self, contender: Contender) -> OnmWorkload:
        """The same network with the contender's specification for its neurons."""
        linear = copy.deepcopy(self._linear)
        return self._workload(self._specified_network(contender, [linear]), lambda module: None, linear)

    def limit(self) -> ProductsWorkload:
        """What is timed among the contenders to know the limit."""
        return ProductsWorkload([self._linear.weight.detach().to(self.neuron_dtype)], self.x.to(self.neuron_dtype))

    def exact(self, contender: Contender) -> bool:
        """Never: one product over all steps rounds otherwise than a product per step."""
        return False


class CallsBench(LeakyBench):
    """First calls of the layer in a process of its own, and calls of one step: what calls.py measures."""

    name = "calls"
    sizes = (Size(25, 128, 1000),)
    quick_sizes = (Size(5, 16, 64),)

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device

    @classmethod
    def _dtypes(cls, options):
        return (torch.float32,)


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
    def hinders(cls, size, dtype, options):
        neuron_steps = size.T * size.B * size.N
        if options.device.type == "cpu" and not options.sizes and neuron_steps > cls.cpu_neuron_steps:
            return f"slow on a CPU with more than {cls.cpu_neuron_steps} neuron-steps (--sizes runs them)"
        return super().hinders(size, dtype, options)

    @classmethod
    def needed_bytes(cls, size, dtype):
        return cls.loop_tensors * size.T * size.B * size.N * dtype.itemsize

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


class ShdWorkload(RlifWorkload):
    """A recurrent layer and a Linear, trained: forward gives the layer's spikes, backward all the rest.

    The rest: cross-entropy of the Linear's mean over time, and the gradients.
    """

    def __init__(self, module, reset, x, readout, labels, names):
        super().__init__(module, reset, x, None, names)
        self.readout, self.labels = readout, labels
        self.parameters += readout.parameters()
        self._names = [*names, *(f"readout {name}" for name, _ in readout.named_parameters())]
        self.held = (x, *self.parameters)

    def backward(self, spikes):
        F.cross_entropy(self.readout(spikes).mean(0), self.labels).backward()


class ShdBench(RlifBench):
    """A recurrent net of the shape that is trained on the Spiking Heidelberg Digits, N-N-20."""

    name = "shd"
    sizes = (Size(256, 256, 128),)
    quick_sizes = (Size(20, 8, 64),)
    outputs = 20
    cpu_neuron_steps = 2**24

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device):
        super().__init__(size, dtype, device)
        self.labels = torch.randint(self.outputs, (size.B,), generator=torch.Generator().manual_seed(0)).to(device)

    def contenders(self):
        return tuple(each for each in RLIF_CONTENDERS if each is not TorchRnn)

    def _workload(self, module, reset, step):
        names = [name for name, _ in step.named_parameters()]
        readout = self._seeded(lambda features: nn.Linear(features, self.outputs))
        return ShdWorkload(module, reset, self.x, readout, self.labels, names)


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
        each = itertools.product(cls.encoders, cls._sizes(options), cls._dtypes(options))
        return (cls(encoder, size, dtype, options.device) for encoder, size, dtype in each)

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


class CellWorkload:
    """A neuron in plain PyTorch over currents x [T, B, N], and back from a gradient on its outputs."""

    def __init__(self, scan, cell, x, gradient):
        self._scan, self.x, self.gradient = scan, x, gradient
        self._leaves = (x, *(cell.parameters() if isinstance(cell, nn.Module) else ()))
        self._state = torch.zeros_like(x[0])
        self.held = self._leaves

    def reset(self):
        for leaf in self._leaves:
            leaf.grad = None

    def forward(self):
        return self._scan(self.x, self._state)[0]

    def backward(self, out):
        out.backward(self.gradient)

    def results(self, out):
        """The outputs and dx, both [T, B, N]."""
        return {"outputs": out, "gradient": self.x.grad}


class CellsBench(MemoryBound):
    """Neurons that a user writes in plain PyTorch, forward and backward. The limit is that of the bench lif."""

    name = "cells"
    sizes = (Size(25, 128, 1000), Size(100, 32, 256))
    quick_sizes = (Size(10, 16, 64),)

    def __init__(self, cell: str, size: Size, dtype: torch.dtype, device: torch.device):
        self.cell, self.size, self.dtype, self.device = cell, size, dtype, device
        generator = torch.Generator().manual_seed(0)
        x, gradient = (torch.randn(size.T, size.B, size.N, generator=generator).to(device, dtype) for _ in range(2))
        self.x, self.gradient = (0.5 * x + 0.1).requires_grad_(), gradient

    @classmethod
    def chosen(cls, options):
        """One bench for each neuron and size."""
        each = itertools.product(neurons.CELLS, cls._sizes(options), cls._dtypes(options))
        return (cls(cell, size, dtype, options.device) for cell, size, dtype in each)

    def contenders(self):
        return tuple(each for each in CELL_CONTENDERS if each is not SnnFastLayer or self.cell == "leaky")

    def described(self):
        return {"cell": self.cell, **super().described()}

    def workload(self, contender: Contender) -> CellWorkload:
        """The contender's way over the sequence."""
        cell = neurons.CELLS[self.cell](self.size.N)
        if isinstance(cell, nn.Module):
            cell.to(self.device, self.dtype)
        return CellWorkload(contender.scanned(self.cell, cell), cell, self.x, self.gradient)

    def specified(self, contender: Contender) -> CellWorkload:
        """The loop."""
        return self.workload(Torch())

    def least_bytes(self):
        return 6 * self.x.numel() * self.x.element_size()

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
            cls(name, loop.small if options.quick else loop.published, dtype, options.device)
            for name, loop in loops.items()
            for dtype in cls._dtypes(options)
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


class DeepWorkload:
    """One training iteration of a deep network but for its update: forward gives the logits [B, classes]."""

    def __init__(self, module, reset, x, labels):
        self.module, self._reset, self.x, self.labels = module, reset, x, labels
        self.parameters = list(module.parameters())
        self.held = (x, *self.parameters)

    def reset(self):
        for parameter in self.parameters:
            parameter.grad = None
        self._reset(self.module)

    def forward(self):
        return self.module(self.x)

    def backward(self, logits):
        F.cross_entropy(logits, self.labels).backward()

    def results(self, logits):
        """The logits, and the gradients of the first and the last weight."""
        weights = [parameter for parameter in self.parameters if parameter.dim() > 1]
        return {"logits": logits, "first gradient": weights[0].grad, "last gradient": weights[-1].grad}


class _Specified(Contender):
    """A contender's specification in place of its layer, in the plainest form of a network."""

    def __init__(self, contender):
        self.lif = contender.specification


class DeepBench(Bench):
    """A deep network with batch-norm or convolutions, trained; its limit is not known.

    The specification is the same network with the contender's specification for its neurons.
    """

    name = "deep"

    def __init__(self, network: str, sizes: published.Sizes, dtype: torch.dtype, device: torch.device):
        self.network_name, self.network, self.size = network, DEEP[network], sizes
        self.dtype, self.device = dtype, device
        x, labels = self.network.inputs(sizes)
        self.x, self.labels = x.to(device, dtype), labels.to(device)

    @classmethod
    def chosen(cls, options) -> list["DeepBench"]:
        """One bench for each network of the command line's."""
        sizes = {name: DEEP[name].small if options.quick else DEEP[name].full for name in options.deep}
        runs = itertools.product(sizes.items(), cls._dtypes(options))
        return [cls(name, size, dtype, options.device) for (name, size), dtype in runs]

    def contenders(self) -> tuple[type[Contender], ...]:
        """Who takes part."""
        return DEEP_CONTENDERS

    def described(self) -> dict:
        """Which network it is, and its sizes."""
        return {"network": self.network_name, "T": self.size.T, "B": self.size.B, "layers": list(self.size.layers)}

    def _workload(self, contender, reset):
        network = self.network.network(contender, self.size).to(self.device, self.dtype)
        return DeepWorkload(network, reset, self.x, self.labels)

    def workload(self, contender: Contender) -> DeepWorkload:
        """The contender's form of the network."""
        return self._workload(contender, contender.reset)

    def specified(self, contender: Contender) -> DeepWorkload:
        """The network on the contender's specification."""
        return self._workload(_Specified(contender), lambda module: None)

    def limit(self) -> None:
        """Nothing is timed beside the contenders."""

    def exact(self, contender: Contender) -> bool:
        """Never: products and statistics over all steps may round otherwise."""
        return False


BENCHES = {
    bench.name: bench
    for bench in (
        *(LifBench, OnmBench, RateFcBench, CallsBench, RlifBench, ShdBench, EncodingBench, CellsBench, LoopsBench),
        DeepBench,
    )
}


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
        differ = sum((mine != specified).sum() for mine, specified in _pieces(result, wanted))
        return differ.item() / wanted.numel(), 0 if exact else SPIKES_OFF
    distance = sum((mine.double() - specified.double()).abs().sum() for mine, specified in _pieces(result, wanted))
    size = sum(specified.double().abs().sum() for _, specified in _pieces(result, wanted))
    return (distance / size).item(), max(VALUES_OFF, 4 * torch.finfo(wanted.dtype).eps)


def _pieces(result, wanted):
    """Pairs of parts: doubles of a whole sequence would be the peak of a run's memory."""
    return zip(result.flatten().split(2**24), wanted.flatten().split(2**24), strict=True)
