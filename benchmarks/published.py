"""Six published networks as their authors write them: a Python loop over time steps, one call per layer and step.

Benchmarks time them, tests compare what accelerates them. The networks on snnTorch's `Leaky` take it from the module
`snn`, snntorch or snnfast. Norse's cells stand here in plain PyTorch, with the numbers of Norse 1.1.0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TutorialNet(nn.Module):
    """snnTorch's tutorial: two Linears and two Leakys on coded spikes x [T, B, inputs].

    Returns the output neurons' spikes and membranes, both [T, B, outputs].
    """

    def __init__(self, snn, num_steps, num_inputs, num_hidden, num_outputs, **neuron):
        super().__init__()
        self.num_steps = num_steps
        self.fc1 = nn.Linear(num_inputs, num_hidden)
        self.lif1 = snn.Leaky(**neuron)
        self.fc2 = nn.Linear(num_hidden, num_outputs)
        self.lif2 = snn.Leaky(**neuron)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for step in range(self.num_steps):
            cur1 = self.fc1(x[step])
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class StaticTutorialNet(TutorialNet):
    """The same on pixels x [B, inputs], which every step sees anew."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for _ in range(self.num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class LogisticSpike(torch.autograd.Function):
    """Fires where u = mem - threshold >= 0; the surrogate derivative is s(1 - s) with s = logistic(10 u)."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        s = torch.sigmoid(10 * u)
        return grad_output * s * (1 - s)


class LogisticSpikeAbove(LogisticSpike):
    """Fires where u > 0, as `Leaky` does and asks of its surrogates."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > 0).to(u.dtype)


class ZeroResetLIF(nn.Module):
    """One step of current and membrane [B, N] to (spikes, membrane), reset to zero in the step that fires."""

    def __init__(self, beta=0.95, threshold=1.0):
        super().__init__()
        self.beta = beta
        self.threshold = threshold

    def forward(self, x, mem):
        mem = self.beta * mem + x
        spk = LogisticSpike.apply(mem - self.threshold)
        mem = mem * (1 - spk)
        return spk, mem


class ZeroResetNet(nn.Module):
    """Three Linears and three neurons on spikes x [T, B, inputs]; returns the last one's spikes [T, B, outputs].

    `neuron()` makes a layer of neurons: a module from (current, membrane) to (spikes, membrane).
    """

    def __init__(self, neuron, num_inputs, num_hidden1, num_hidden2, num_outputs):
        super().__init__()
        self.fc1 = nn.Linear(num_inputs, num_hidden1)
        self.lif1 = neuron()
        self.fc2 = nn.Linear(num_hidden1, num_hidden2)
        self.lif2 = neuron()
        self.fc3 = nn.Linear(num_hidden2, num_outputs)
        self.lif3 = neuron()

    def forward(self, x):
        num_steps, batch_size = x.shape[:2]
        mem1 = x.new_zeros(batch_size, self.fc1.out_features)
        mem2 = x.new_zeros(batch_size, self.fc2.out_features)
        mem3 = x.new_zeros(batch_size, self.fc3.out_features)
        spikes = []
        for t in range(num_steps):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            spikes.append(spk3)
        return torch.stack(spikes)


class LIFParameters(NamedTuple):
    """Norse's defaults, 0-dimensional as there: inverse time constants in 1/s, voltages, the surrogate's steepness."""

    tau_syn_inv: Tensor = torch.as_tensor(1.0 / 5e-3)
    tau_mem_inv: Tensor = torch.as_tensor(1.0 / 1e-2)
    v_leak: Tensor = torch.as_tensor(0.0)
    v_th: Tensor = torch.as_tensor(1.0)
    v_reset: Tensor = torch.as_tensor(0.0)
    alpha: Tensor = torch.as_tensor(100.0)


class SuperSpike(torch.autograd.Function):
    """Norse's "super": fires where u > 0. Norse 1.1.0 takes alpha and leaves it out of the derivative."""

    @staticmethod
    def forward(ctx, u, alpha):
        ctx.save_for_backward(u)
        return torch.gt(u, torch.as_tensor(0.0)).to(u.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        (u,) = ctx.saved_tensors
        return grad_output / (torch.abs(u) + 1.0).pow(2), None


def _integrate(v, i, p, dt):
    """One Euler step of voltage and synaptic current, once the input is part of the current."""
    v_decayed = v + dt * p.tau_mem_inv * ((p.v_leak - v) + i)
    i_decayed = i + -dt * p.tau_syn_inv * i
    return v_decayed, i_decayed


class LIFCell(nn.Module):
    """Norse's current-based LIF: current [B, ...] and state (v, i) to (spikes, state)."""

    def __init__(self, p=None, dt=0.001):
        super().__init__()
        self.p, self.dt = p or LIFParameters(), dt

    def forward(self, input_tensor, state=None):
        v, i = state if state is not None else (torch.zeros_like(input_tensor), torch.zeros_like(input_tensor))
        v_decayed, i_decayed = _integrate(v, i + input_tensor, self.p, self.dt)
        z = SuperSpike.apply(v_decayed - self.p.v_th, self.p.alpha)
        v_new = (1 - z) * v_decayed + z * self.p.v_reset
        return z, (v_new, i_decayed)


class LIFRecurrentCell(nn.Module):
    """Norse's LIF with all-to-all recurrence: spikes [B, inputs] and state (z, v, i) to (spikes [B, hidden], state).

    No neuron feeds itself, and no gradient flows through the reset.
    """

    def __init__(self, input_size, hidden_size, p=None, dt=0.001):
        super().__init__()
        self.p, self.dt, self.hidden_size = p or LIFParameters(), dt, hidden_size
        scale = (2.0 / hidden_size) ** 0.5
        self.input_weights = nn.Parameter(torch.randn(hidden_size, input_size) * scale)
        self.recurrent_weights = nn.Parameter(torch.randn(hidden_size, hidden_size) * scale)
        with torch.no_grad():
            self.recurrent_weights.fill_diagonal_(0.0)
        self.recurrent_weights.register_hook(lambda gradient: gradient.clone().fill_diagonal_(0.0))

    def forward(self, input_tensor, state=None):
        if state is None:
            rest = input_tensor.new_zeros(*input_tensor.shape[:-1], self.hidden_size)
            state = rest, rest, rest
        z, v, i = state
        i_jump = i + F.linear(input_tensor, self.input_weights) + F.linear(z, self.recurrent_weights)
        v_decayed, i_decayed = _integrate(v, i_jump, self.p, self.dt)
        z_new = SuperSpike.apply(v_decayed - self.p.v_th, self.p.alpha)
        v_new = (1 - z_new.detach()) * v_decayed + z_new.detach() * self.p.v_reset
        return z_new, (z_new, v_new, i_decayed)


class LICell(nn.Module):
    """Norse's leaky integrator: current [B, N] and state (v, i) to (voltage, state)."""

    def __init__(self, p=None, dt=0.001):
        super().__init__()
        self.p, self.dt = p or LIFParameters(), dt

    def forward(self, input_tensor, state=None):
        v, i = state if state is not None else (torch.zeros_like(input_tensor), torch.zeros_like(input_tensor))
        v_new, i_decayed = _integrate(v, i + input_tensor, self.p, self.dt)
        return v_new, (v_new, i_decayed)


class LILinearCell(LICell):
    """The leaky integrator behind weights of its own: [B, inputs] to voltage [B, outputs]."""

    def __init__(self, input_size, hidden_size, p=None, dt=0.001):
        super().__init__(p, dt)
        self.input_weights = nn.Parameter(torch.randn(hidden_size, input_size) / input_size**0.5)

    def forward(self, input_tensor, state=None):
        return super().forward(F.linear(input_tensor, self.input_weights), state)


class NorseRecurrentNet(nn.Module):
    """Recurrent LIF, Linear, leaky integrator: spikes x [T, B, 1, H, W] to voltages [T, B, outputs]."""

    def __init__(self, input_features, hidden_features, output_features):
        super().__init__()
        self.input_features = input_features
        self.l1 = LIFRecurrentCell(input_features, hidden_features, p=LIFParameters(v_th=torch.as_tensor(0.5)))
        self.fc_out = nn.Linear(hidden_features, output_features, bias=False)
        self.out = LICell()

    def forward(self, x):
        s1 = so = None
        voltages = []
        for ts in range(x.shape[0]):
            z = x[ts].view(-1, self.input_features)
            z, s1 = self.l1(z, s1)
            z = self.fc_out(z)
            vo, so = self.out(z, so)
            voltages += [vo]
        return torch.stack(voltages)


class NorseConvNet(nn.Module):
    """Two convolutions and a Linear, each with LIF: spikes x [T, B, 1, H, W] to voltages [T, B, outputs]."""

    def __init__(self, feature_size, channels1, channels2, hidden, outputs):
        super().__init__()
        self.features = int(((feature_size - 4) / 2 - 4) / 2)
        self.conv1 = nn.Conv2d(1, channels1, 5, 1)
        self.conv2 = nn.Conv2d(channels1, channels2, 5, 1)
        self.fc1 = nn.Linear(self.features**2 * channels2, hidden)
        p = LIFParameters(alpha=torch.as_tensor(80.0))
        self.lif0 = LIFCell(p)
        self.lif1 = LIFCell(p)
        self.lif2 = LIFCell(p)
        self.out = LILinearCell(hidden, outputs)

    def forward(self, x):
        seq_length, batch_size = x.shape[:2]
        s0 = s1 = s2 = so = None
        voltages = torch.zeros(seq_length, batch_size, self.out.input_weights.shape[0], device=x.device, dtype=x.dtype)
        for ts in range(seq_length):
            z = self.conv1(x[ts, :])
            z, s0 = self.lif0(z, s0)
            z = F.max_pool2d(z, 2, 2)
            z = 10 * self.conv2(z)
            z, s1 = self.lif1(z, s1)
            z = F.max_pool2d(z, 2, 2)
            z = z.view(batch_size, -1)
            z = self.fc1(z)
            z, s2 = self.lif2(z, s2)
            v, so = self.out(F.relu(z), so)
            voltages[ts, :, :] = v
        return voltages


@dataclass(frozen=True)
class Sizes:
    """T time steps, B samples, and the widths of the layers: pixels first, classes last."""

    T: int
    B: int
    layers: tuple[int, ...]


def images(generator: torch.Generator, batch: int, pixels: int) -> Tensor:
    """Random images [batch, pixels] from 0 to 1, about as dark as MNIST's."""
    return F.relu(torch.rand(batch, pixels, generator=generator) - 0.8) * 5


def static_inputs(generator, sizes):
    """The pixels [B, inputs] themselves, and random classes [B]."""
    pixels = images(generator, sizes.B, sizes.layers[0])
    return pixels, torch.randint(sizes.layers[-1], (sizes.B,), generator=generator)


def rate_inputs(generator, sizes, probability=1.0):
    """Spikes [T, B, inputs], at every step with `probability` times the pixel's brightness, and classes [B]."""
    pixels, targets = static_inputs(generator, sizes)
    return torch.bernoulli((probability * pixels).expand(sizes.T, *pixels.shape), generator=generator), targets


def poisson_inputs(generator, sizes):
    """Rate coding at 100 Hz for the brightest pixel, in steps of 1 ms."""
    return rate_inputs(generator, sizes, probability=100 * 1e-3)


def norse_inputs(generator, sizes):
    """Spikes [T, B, 1, H, W] of Norse's ConstantCurrentLIFEncoder on normalised images, and classes [B]."""
    pixels, targets = static_inputs(generator, sizes)
    current = (pixels - 0.1307) / 0.3081
    voltage = torch.zeros_like(current)
    spikes = []
    for _ in range(sizes.T):
        voltage = voltage + 0.1 * (current - voltage)
        spikes.append((voltage > 1).float())
        voltage = voltage * (1 - spikes[-1])
    side = math.isqrt(sizes.layers[0])
    return torch.stack(spikes).view(sizes.T, sizes.B, 1, side, side), targets


def count_loss(spikes, targets):
    """Cross-entropy of the spike counts of spikes [T, B, outputs]."""
    return F.cross_entropy(spikes.sum(0), targets)


def membrane_loss(membranes, targets):
    """The sum over the steps of the cross-entropy of membranes [T, B, outputs], step by step as in the tutorial."""
    loss = torch.zeros(1, dtype=membranes.dtype, device=membranes.device)
    for step in range(len(membranes)):
        loss += F.cross_entropy(membranes[step], targets)
    return loss


def maximum_loss(voltages, targets):
    """Negative log-likelihood of the log-softmax of the largest voltage over time."""
    maximum, _ = torch.max(voltages, 0)
    return F.nll_loss(F.log_softmax(maximum, dim=1), targets)


def _tutorial_net(network, surrogate=None, **neuron):
    def build(sizes, snn):
        spike_grad = surrogate(snn) if surrogate else None
        return network(snn, sizes.T, *sizes.layers, spike_grad=spike_grad, **neuron)

    return build


def _zero_reset_net(sizes, snn):
    def leaky():
        spike_grad = LogisticSpikeAbove.apply
        return snn.Leaky(beta=0.95, spike_grad=spike_grad, reset_mechanism="zero", reset_delay=False)

    return ZeroResetNet(leaky if snn else ZeroResetLIF, *sizes.layers)


@dataclass(frozen=True)
class Loop:
    """A published network, with what it is fed and what its training minimises.

    Attributes:
        network: (sizes, snn) to a module with its author's initial weights.
        inputs: (generator, sizes) to (x, targets), float32 and int64.
        loss: (network's output, targets) to a scalar.
        outputs: what the network returns, by name.
        library: whose neurons the author uses: "snntorch", or "torch" for own ones.
        takes_leaky: whether there is a form on `snn.Leaky`.
        gain: factor on the initial weights with which the untrained network's last neurons fire on random images.
        published, small: the author's sizes, and some for tests.
    """

    network: Callable[[Sizes, ModuleType | None], nn.Module]
    inputs: Callable[[torch.Generator, Sizes], tuple[Tensor, Tensor]]
    loss: Callable[..., Tensor]
    outputs: tuple[str, ...]
    library: str
    takes_leaky: bool
    published: Sizes
    small: Sizes
    gain: float = 1.0

    def build(self, sizes: Sizes, snn: ModuleType | None = None) -> nn.Module:
        """The network with the same weights every time.

        Args:
            sizes: its sizes.
            snn: the module that gives `Leaky`, snntorch or snnfast; None for the author's own neurons.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = self.network(sizes, snn)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(self.gain)
        return network

    def named(self, output: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The network's output by name."""
        return dict(zip(self.outputs, output if isinstance(output, tuple) else (output,), strict=True))


LOOPS = {
    "rate-fc": Loop(
        network=_tutorial_net(TutorialNet, beta=0.95),
        inputs=rate_inputs,
        loss=lambda output, targets: count_loss(output[0], targets),
        outputs=("spikes", "membranes"),
        library="snntorch",
        takes_leaky=True,
        published=Sizes(25, 128, (784, 1000, 10)),
        small=Sizes(10, 4, (60, 40, 10)),
    ),
    "poisson-fc": Loop(
        network=_tutorial_net(TutorialNet, lambda snn: snn.surrogate.fast_sigmoid(slope=25), beta=0.9),
        inputs=poisson_inputs,
        loss=lambda output, targets: count_loss(output[0], targets),
        outputs=("spikes", "membranes"),
        library="snntorch",
        takes_leaky=True,
        published=Sizes(50, 64, (784, 128, 10)),
        small=Sizes(12, 4, (200, 40, 10)),
        gain=4.0,
    ),
    "current-fc": Loop(
        network=_tutorial_net(StaticTutorialNet, beta=0.95),
        inputs=static_inputs,
        loss=lambda output, targets: membrane_loss(output[1], targets),
        outputs=("spikes", "membranes"),
        library="snntorch",
        takes_leaky=True,
        published=Sizes(200, 512, (784, 512, 10)),
        small=Sizes(12, 4, (60, 40, 10)),
    ),
    "zero-reset-fc": Loop(
        network=_zero_reset_net,
        inputs=rate_inputs,
        loss=count_loss,
        outputs=("spikes",),
        library="torch",
        takes_leaky=True,
        published=Sizes(10, 128, (784, 512, 256, 10)),
        small=Sizes(8, 4, (100, 60, 40, 10)),
        gain=3.0,
    ),
    "norse-recurrent": Loop(
        network=lambda sizes, snn: NorseRecurrentNet(*sizes.layers),
        inputs=norse_inputs,
        loss=maximum_loss,
        outputs=("voltages",),
        library="torch",
        takes_leaky=False,
        published=Sizes(32, 256, (784, 100, 10)),
        small=Sizes(14, 4, (64, 20, 10)),
    ),
    "norse-conv": Loop(
        network=lambda sizes, snn: NorseConvNet(math.isqrt(sizes.layers[0]), *sizes.layers[1:]),
        inputs=norse_inputs,
        loss=maximum_loss,
        outputs=("voltages",),
        library="torch",
        takes_leaky=False,
        published=Sizes(48, 256, (784, 20, 50, 500, 10)),
        small=Sizes(14, 2, (256, 4, 5, 30, 10)),
        gain=2.0,
    ),
}
