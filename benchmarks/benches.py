"""The benches: what is run, how a contender's result is checked, and what bounds the time."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import measure
from contenders import Contender

# A rounding that differs flips a spike now and then, and the neuron's later spikes with it.
SPIKES_OFF = 1e-3
GRADIENTS_OFF = 1e-2


class WrongResult(Exception):
    """A contender's spikes or gradient are not those of its specification."""


@dataclass(frozen=True)
class Size:
    """T time steps, B samples, N neurons."""

    T: int
    B: int
    N: int


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

    def gradient(self):
        """dx [T, B, N]."""
        return self.x.grad


class LifBench:
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

    def limit(self) -> measure.CopyWorkload:
        """What is timed among the contenders to know the limit."""
        return measure.CopyWorkload(self.device)

    def limit_row(self, limit: measure.CopyWorkload, timing: measure.Timing) -> dict:
        """The copy's bytes per second, and the milliseconds of the least traffic at that."""
        bytes_per_second = limit.bytes_per_second(timing)
        least = 6 * self.x.numel() * self.x.element_size()
        return {
            "copy_bytes_per_s": bytes_per_second,
            "limit_ms": 1e3 * least / bytes_per_second,
        }

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

    def gradient(self):
        """Gradient of the first weight [N, inputs], which every spike and surrogate reaches."""
        return self.linears[0].weight.grad


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


class RateFcBench:
    """Training 784-N-10 on prepared rate-coded spikes. The limit is the matrix products alone."""

    name = "rate-fc"
    sizes = (Size(25, 128, 1000),)
    quick_sizes = (Size(5, 16, 100),)
    inputs, outputs = 784, 10

    def __init__(self, size: Size, dtype: torch.dtype, device: torch.device):
        self.size, self.dtype, self.device = size, dtype, device
        generator = torch.Generator().manual_seed(0)
        # About as many dark pixels as MNIST has.
        pixels = F.relu(torch.rand(size.B, self.inputs, generator=generator) - 0.8) * 5
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

    def limit_row(self, limit: ProductsWorkload, timing: measure.Timing) -> dict:
        """The milliseconds of the products."""
        return {"limit_ms": timing.summary()["forward_backward_ms"]}

    def exact(self, contender: Contender) -> bool:
        """Never: one product over all steps rounds otherwise than a product per step."""
        return False


BENCHES = {bench.name: bench for bench in (LifBench, RateFcBench)}


def outcome(workload) -> tuple[torch.Tensor, torch.Tensor]:
    """Spikes and gradient of one pass, detached."""
    workload.reset()
    spikes = workload.forward()
    workload.backward(spikes)
    return spikes.detach(), workload.gradient().detach()


def check(spikes, gradient, expected_spikes, expected_gradient, exact: bool) -> None:
    """Raises `WrongResult` unless spikes and gradient are the expected ones.

    Not `exact`: the share of spikes that differ, and of gradient entries that differ visibly, must
    be small. Spikes are compared by value, since libraries disagree on their dtype.
    """
    if not expected_spikes.any():
        raise WrongResult("the check is void: no neuron fires on this input")
    if spikes.shape != expected_spikes.shape:
        raise WrongResult(f"spikes have shape {tuple(spikes.shape)}")
    off = (spikes.double() != expected_spikes.double()).double().mean().item()
    if off > (0 if exact else SPIKES_OFF):
        raise WrongResult(f"{off:.2%} of the spikes differ from the specification")
    if exact:
        wrong = 1 - torch.eq(gradient, expected_gradient).double().mean().item()
    else:
        wrong = _visibly_different(gradient, expected_gradient)
    if wrong > (0 if exact else GRADIENTS_OFF):
        raise WrongResult(f"{wrong:.2%} of the gradient differs from the specification")


def _visibly_different(gradient, expected):
    tolerance = max(1e-3, 4 * torch.finfo(expected.dtype).eps)
    scale = expected.double().abs().mean()
    distance = (gradient.double() - expected.double()).abs()
    # Negated, so that NaN counts as different.
    return (~(distance <= tolerance * (scale + expected.double().abs()))).double().mean().item()
