"""Ordinary networks, as people write them: each takes its neurons from a library of snnTorch's names.

A network's forward takes x [T, B, ...] and loops over time; it returns what a loss is made of, a tensor or several.
"""

from collections.abc import Callable
from dataclasses import dataclass

import snntorch
import snntorch.surrogate
import torch
from torch import nn
from torch.nn import functional as F

from cells import Spike

T, B, CLASSES = 6, 4, 5
FLAT, IMAGE = (12,), (2, 8, 8)


@dataclass(frozen=True)
class Network:
    """`build(library)` makes it; inputs have shape [T, B, *shape]. `rounds`: its gradients may differ in the last bits,
    since it learns parameters of neurons or has a surrogate of its own."""

    build: Callable
    shape: tuple = FLAT
    rounds: bool = False


NETWORKS: dict[str, Network] = {}


def network(shape=FLAT, rounds=False):
    def enter(build):
        NETWORKS[build.__name__] = Network(build, shape, rounds)
        return build

    return enter


class Steps(nn.Module):
    """One step after another, as `step(x)` says; states by `reset`."""

    def reset(self):
        for module in self.modules():
            if hasattr(module, "reset_mem"):
                module.reset_mem()

    def step(self, x):
        raise NotImplementedError

    def forward(self, x):
        self.reset()
        outputs = []
        for t in range(x.shape[0]):
            outputs.append(self.step(x[t]))
        return torch.stack(outputs)


class Layers(Steps):
    """A Sequential with hidden states, stepped."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def step(self, x):
        return self.layers(x)


class Explicit(nn.Module):
    """The tutorials' form: two layers, membranes by hand."""

    def __init__(self, lif1, lif2, hidden=16):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(FLAT[0], hidden), lif1
        self.fc2, self.lif2 = nn.Linear(hidden, CLASSES), lif2

    def forward(self, x):
        states1, states2 = self.start(self.lif1), self.start(self.lif2)
        spikes, membranes = [], []
        for step in range(x.size(0)):
            spk, *states1 = self.lif1(self.fc1(x[step]), *states1)
            spk, *states2 = self.lif2(self.fc2(spk), *states2)
            spikes.append(spk)
            membranes.append(states2[-1])
        return torch.stack(spikes), torch.stack(membranes)

    @staticmethod
    def start(layer):
        states = layer.reset_mem()
        return states if isinstance(states, tuple) else (states,)


@network()
def membranes_by_hand(lib):
    return Explicit(lib.Leaky(0.9), lib.Leaky(0.8))


@network()
def hidden_states(lib):
    return Layers(
        *(nn.Linear(12, 16), lib.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(16, CLASSES), lib.Leaky(0.8, init_hidden=True)),
    )


@network()
def fast_sigmoid(lib):
    spike_grad = snntorch.surrogate.fast_sigmoid(slope=25)
    return Explicit(lib.Leaky(0.9, spike_grad=spike_grad), lib.Leaky(0.9, spike_grad=spike_grad))


@network()
def reset_to_zero(lib):
    return Explicit(lib.Leaky(0.9, reset_mechanism="zero"), lib.Leaky(0.8, reset_mechanism="zero"))


@network()
def no_reset(lib):
    return Explicit(lib.Leaky(0.9), lib.Leaky(0.8, reset_mechanism="none"))


@network()
def reset_in_the_same_step(lib):
    return Explicit(lib.Leaky(0.9, reset_delay=False), lib.Leaky(0.8, reset_mechanism="zero", reset_delay=False))


@network(rounds=True)
def learnt_neurons(lib):
    return Explicit(lib.Leaky(0.9, learn_beta=True, learn_threshold=True), lib.Leaky(0.8, learn_beta=True))


@network(rounds=True)
def learnt_beta_of_each_neuron(lib):
    return Explicit(lib.Leaky(torch.linspace(0.5, 0.95, 16), learn_beta=True), lib.Leaky(0.8))


@network()
def beta_of_each_neuron(lib):
    return Explicit(lib.Leaky(torch.linspace(0.5, 0.95, 16), threshold=torch.linspace(0.5, 1, 16)), lib.Leaky(0.8))


@network(rounds=True)
def graded_spikes(lib):
    return Explicit(lib.Leaky(0.9, graded_spikes_factor=1.5, learn_graded_spikes_factor=True), lib.Leaky(0.8))


@network()
def synaptic(lib):
    return Explicit(lib.Synaptic(0.8, 0.9), lib.Synaptic(0.7, 0.8))


@network()
def alpha(lib):
    return Explicit(lib.Alpha(0.9, 0.8), lib.Alpha(0.8, 0.6))


@network()
def lapicque(lib):
    return Explicit(lib.Lapicque(R=2.0, C=1.5), lib.Lapicque(beta=0.8))


@network()
def recurrent(lib):
    return Explicit(lib.RLeaky(0.9, linear_features=16), lib.Leaky(0.8))


@network()
def recurrent_one_to_one(lib):
    return Explicit(lib.RLeaky(0.9, V=0.3, all_to_all=False, learn_recurrent=False), lib.Leaky(0.8))


@network()
def recurrent_synaptic(lib):
    return Explicit(lib.RSynaptic(0.8, 0.9, linear_features=16), lib.Leaky(0.8))


@network()
def a_readout_of_membranes(lib):
    class Net(Explicit):
        def forward(self, x):
            return super().forward(x)[1]

    return Net(lib.Leaky(0.9), lib.Leaky(0.95, reset_mechanism="none", threshold=1e9))


def convolution(lib, *between, **options):
    return Layers(
        *(nn.Conv2d(2, 6, 3, padding=1, **options), *between, lib.Leaky(0.9, threshold=0.3, init_hidden=True)),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, CLASSES), lib.Leaky(0.8, init_hidden=True)),
    )


@network(IMAGE)
def convolutions(lib):
    return convolution(lib)


@network(IMAGE)
def batch_norm_in_training(lib):
    return convolution(lib, nn.BatchNorm2d(6), bias=False)


@network(IMAGE)
def batch_norm_frozen(lib):
    return convolution(lib, nn.BatchNorm2d(6).eval().requires_grad_(False))


@network(IMAGE)
def batch_norm_without_statistics(lib):
    return convolution(lib, nn.BatchNorm2d(6, track_running_stats=False))


@network(IMAGE)
def group_norm(lib):
    return convolution(lib, nn.GroupNorm(2, 6))


@network()
def batch_norm_of_features(lib):
    return Layers(
        *(nn.Linear(12, 16), nn.BatchNorm1d(16, momentum=None), lib.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(16, CLASSES), nn.BatchNorm1d(CLASSES, affine=False), lib.Leaky(0.8, init_hidden=True)),
    )


@network()
def layer_norm(lib):
    return Layers(
        *(nn.Linear(12, 16), nn.LayerNorm(16), lib.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(16, CLASSES), lib.Leaky(0.8, init_hidden=True)),
    )


@network()
def dropout(lib):
    return Layers(
        *(nn.Linear(12, 16), lib.Leaky(0.9, init_hidden=True), nn.Dropout(0.3)),
        *(nn.Linear(16, CLASSES), lib.Leaky(0.8, init_hidden=True)),
    )


class Residual(nn.Module):
    """conv - norm - neuron - conv - norm, and the input added before the last neuron, or after it (SEW)."""

    def __init__(self, lib, channels, after):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.lif1 = lib.Leaky(0.9, threshold=0.5, init_hidden=True)
        self.lif2 = lib.Leaky(0.9, threshold=0.5, init_hidden=True)
        self.after = after

    def forward(self, x):
        out = self.second(self.lif1(self.first(x)))
        return self.lif2(out) + x if self.after else self.lif2(out + x)


@network(IMAGE)
def residual_block(lib):
    head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, CLASSES), lib.Leaky(0.8, init_hidden=True)
    return Layers(Residual(lib, 2, False), *head)


@network(IMAGE)
def residual_blocks_of_spikes(lib):
    head = nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, CLASSES), lib.Leaky(0.8, init_hidden=True)
    return Layers(Residual(lib, 2, True), Residual(lib, 2, True), *head)


@network(IMAGE)
def separable_convolutions(lib):
    return Layers(
        *(nn.Conv2d(2, 4, 3, groups=2, padding=1), nn.Conv2d(4, 8, 1), lib.Leaky(0.9, 0.3, init_hidden=True)),
        *(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, CLASSES), lib.Leaky(0.8, init_hidden=True)),
    )


@network(IMAGE)
def autoencoder(lib):
    return Layers(
        *(nn.Conv2d(2, 4, 3, stride=2, padding=1), lib.Leaky(0.9, 0.3, init_hidden=True)),
        *(nn.ConvTranspose2d(4, 2, 2, stride=2), lib.Leaky(0.8, 0.3, init_hidden=True), nn.Flatten()),
    )


@network()
def two_heads(lib):
    class Net(Steps):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(12, 16), lib.Leaky(0.9, init_hidden=True))
            self.left = nn.Sequential(nn.Linear(16, CLASSES), lib.Leaky(0.8, init_hidden=True))
            self.right = nn.Sequential(nn.Linear(16, CLASSES), lib.Synaptic(0.7, 0.8, init_hidden=True))

        def step(self, x):
            spk = self.trunk(x)
            return torch.cat((self.left(spk), self.right(spk)), -1)

    return Net()


@network()
def weight_norm(lib):
    net = hidden_states(lib)
    nn.utils.parametrizations.weight_norm(net.layers[0])
    return net


@network()
def spectral_norm(lib):
    net = hidden_states(lib)
    nn.utils.parametrizations.spectral_norm(net.layers[2])
    return net


@network()
def quantised_weights(lib):
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return torch.round(weight * 8) / 8

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Net(Steps):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(12, 16), lib.Leaky(0.9, init_hidden=True)
            self.fc2, self.lif2 = nn.Linear(16, CLASSES), lib.Leaky(0.8, init_hidden=True)

        def step(self, x):
            spk = self.lif1(F.linear(x, Rounded.apply(self.fc1.weight), self.fc1.bias))
            return self.lif2(self.fc2(spk))

    return Net()


@network()
def attention_over_recorded_spikes(lib):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Layers(nn.Linear(12, 16), lib.Leaky(0.9, init_hidden=True))
            self.attention, self.head = nn.MultiheadAttention(16, 2), nn.Linear(16, CLASSES)

        def forward(self, x):
            spk = self.body(x)
            return self.head(self.attention(spk, spk, spk, need_weights=False)[0])

    return Net()


@network()
def lstm_over_recorded_spikes(lib):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Layers(nn.Linear(12, 16), lib.Leaky(0.9, init_hidden=True))
            self.lstm = nn.LSTM(16, CLASSES)

        def forward(self, x):
            return self.lstm(self.body(x))[0]

    return Net()


@network()
def a_neuron_of_ones_own(lib):
    class Own(nn.Module):
        def forward(self, x, mem):
            mem = 0.9 * mem + x
            spk = Spike.apply(mem - 1)
            return spk, mem * (1 - spk)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.own = nn.Linear(12, 16), Own()
            self.fc2, self.lif = nn.Linear(16, CLASSES), lib.Leaky(0.8)

        def forward(self, x):
            own, mem, outputs = x.new_zeros(x.shape[1], 16), self.lif.reset_mem(), []
            for current in x:
                spk, own = self.own(self.fc1(current), own)
                spk, mem = self.lif(self.fc2(spk), mem)
                outputs.append(spk)
            return torch.stack(outputs)

    return Net()


@network(rounds=True)
def a_surrogate_of_ones_own(lib):
    def spike_grad(shift):
        return Spike.apply(shift)

    return Explicit(lib.Leaky(0.9, spike_grad=spike_grad), lib.Leaky(0.8, spike_grad=Spike.apply))


@network()
def equations_of_ones_own(lib):
    class Inverted(lib.Leaky):
        def _base_state_function(self, input_):
            return input_ - self.beta.clamp(0, 1) * self.mem

    return Explicit(Inverted(0.5), lib.Leaky(0.8))


@network()
def a_wrapped_forward(lib):
    net = hidden_states(lib)
    lif = net.layers[1]
    forward = lif.forward
    lif.forward = lambda x: forward(x * 1.5)
    return net


@network()
def spikes_fed_back_to_the_input(lib):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(12 + CLASSES, 16), lib.Leaky(0.9)
            self.fc2, self.lif2 = nn.Linear(16, CLASSES), lib.Leaky(0.8, threshold=0.2)

        def forward(self, x):
            mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
            spk, outputs = x.new_zeros(x.shape[1], CLASSES), []
            for current in x.unbind(0):
                hidden, mem1 = self.lif1(self.fc1(torch.cat((current, spk), 1)), mem1)
                spk, mem2 = self.lif2(self.fc2(hidden), mem2)
                outputs.append(spk)
            return torch.stack(outputs)

    return Net()


@network()
def spikes_of_two_steps_ago(lib):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(12, 16), lib.Leaky(0.9)
            self.fc2, self.lif2 = nn.Linear(16, CLASSES), lib.Leaky(0.8)

        def forward(self, x):
            mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
            late, outputs = [x.new_zeros(x.shape[1], 16)] * 2, []
            for current in x:
                spk, mem1 = self.lif1(self.fc1(current), mem1)
                late.append(spk)
                out, mem2 = self.lif2(self.fc2(late.pop(0)), mem2)
                outputs.append(out)
            return torch.stack(outputs)

    return Net()


@network()
def truncated_in_the_middle(lib):
    class Net(Explicit):
        def forward(self, x):
            (mem1,), (mem2,), outputs = self.start(self.lif1), self.start(self.lif2), []
            for step in range(len(x)):
                if step == 3:
                    mem1, mem2 = mem1.detach(), mem2.detach()
                spk, mem1 = self.lif1(self.fc1(x[step]), mem1)
                spk, mem2 = self.lif2(self.fc2(spk), mem2)
                outputs.append(spk)
            return torch.stack(outputs)

    return Net(lib.Leaky(0.9), lib.Leaky(0.8))


@network()
def a_running_rate(lib):
    class Net(Explicit):
        def forward(self, x):
            (mem1,), (mem2,), rate = self.start(self.lif1), self.start(self.lif2), 0.0
            for step in range(len(x)):
                spk, mem1 = self.lif1(self.fc1(x[step]), mem1)
                spk, mem2 = self.lif2(self.fc2(spk), mem2)
                rate = 0.9 * rate + spk
            return rate

    return Net(lib.Leaky(0.9), lib.Leaky(0.8))


@network()
def a_population_for_each_class(lib):
    class Net(Layers):
        def step(self, x):
            return self.layers(x).view(-1, CLASSES, 4).sum(-1)

    return Net(
        *(nn.Linear(12, 16), lib.Leaky(0.9, init_hidden=True)),
        *(nn.Linear(16, 4 * CLASSES), lib.Leaky(0.8, init_hidden=True)),
    )


@network()
def a_gate(lib):
    class Net(Steps):
        def __init__(self):
            super().__init__()
            self.fc, self.gate = nn.Linear(12, 16), nn.Linear(12, 16)
            self.lif, self.head = lib.Leaky(0.9, init_hidden=True), nn.Linear(16, CLASSES)

        def step(self, x):
            return self.head(torch.sigmoid(self.gate(x)) * self.lif(self.fc(x)))

    return Net()


@network()
def layers_in_a_list(lib):
    class Net(Steps):
        def __init__(self):
            super().__init__()
            sizes = (12, 16, 14, CLASSES)
            self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
            self.lifs = nn.ModuleList(lib.Leaky(0.9, init_hidden=True) for _ in self.fcs)

        def step(self, x):
            for fc, lif in zip(self.fcs, self.lifs, strict=True):
                x = lif(fc(x))
            return x

    return Net()


@network()
def one_layer_used_twice(lib):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)
            self.lif = lib.Leaky(0.9)

        def forward(self, x):
            mem1 = mem2 = self.lif.reset_mem()
            outputs = []
            for current in x:
                spk, mem1 = self.lif(self.fc1(current), mem1)
                spk, mem2 = self.lif(self.fc2(spk), mem2)
                outputs.append(self.head(spk))
            return torch.stack(outputs)

    return Net()
