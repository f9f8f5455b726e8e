"""The torch.compile backend: the loops that people write come out fused over time, and nothing comes out wrong.

Most tests compare a loop with itself: run by Python, and compiled. A loop is a function of a network and its inputs,
with the network's layers beside it.
"""

import copy
import operator
import pickle
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import snntorch
import torch
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.fx import Graph
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import snnfast as snn
import snnfast.norse as norse
from fuzz_compiler import Raised, check, random_options
from measure import peak_bytes
from programs import random_program
from published import LOOPS, maximum_loss
from snnfast import images
from snnfast.compiler import graph as g
from snnfast.compiler.backend import is_sequence_call
from snnfast.compiler.effects import FENCE, NONE, Effects, Watcher
from snnfast.compiler.order import Order, effect_edges
from snnfast.ops import CAPTURED

T, B = 4, 3
LIF = {"beta": 0.9, "threshold": 0.6}
PRODUCTS = ["batched", "per-step"]
# Graphs of neurons written in plain torch are large; in so many steps all their layers fire.
STEPS = {"zero-reset-fc": 4, "norse-conv": 10}
PROGRAMS = 60
ONCE_WRONG = (94, 1025, 1043, 9041, 11147, 20739, 20823, 20945, 20946, 21315, 21838, 31200, 31863)
ON_LEAKY = ["rate-fc", "poisson-fc", "current-fc"]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


class Graphs(list):
    """An inner backend that keeps the fused graphs it is given, one for each compilation, and runs them as they are."""

    def __call__(self, graph_module, example_inputs):
        self.append(graph_module)
        return graph_module

    def calls(self) -> Counter:
        """How many calls of a neuron each layer has in all graphs: sequences, and steps that stayed alone."""
        nodes = [node for graph_module in self for node in graph_module.graph.nodes]
        steps = [captured.step for captured in CAPTURED.values()]
        return Counter(
            g.layer_of(node)
            for node in nodes
            if is_sequence_call(node) or any(g.is_operator(node, step) for step in steps)
        )

    def sequences(self) -> Counter:
        """Those of them that run a sequence."""
        nodes = [node for graph_module in self for node in graph_module.graph.nodes]
        return Counter(g.layer_of(node) for node in nodes if is_sequence_call(node))


class Net(nn.Module):
    """Layers by name, and a forward that is a function of the network and its inputs."""

    def __init__(self, loop, layers):
        super().__init__()
        self.loop = loop
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.loop(self, *inputs)


@dataclass(frozen=True)
class Row:
    """A loop and what it takes to run it.

    Attributes:
        layers: makes the network's layers.
        inputs: makes what the loop is called with.
        training: the modes in which it is tested.
        pieces: sequence calls that a layer's steps become, where it is not one.
        why: for each layer that must not be fused, what its report must mention.
        recurrent: layers whose spikes come back through weights, which stay loops where products stay one a step.
    """

    loop: Callable
    layers: Callable[[], dict[str, nn.Module]]
    inputs: Callable[[], tuple]
    training: tuple[bool, ...]
    pieces: int
    why: dict[str, str]
    recurrent: tuple[str, ...] = ()

    def build(self, training: bool = True) -> Net:
        """The network in float64, with weights large enough that all its neurons fire."""
        torch.manual_seed(4)
        net = Net(self.loop, self.layers())
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
                elif name.endswith("bias"):
                    parameter.normal_(mean=0.2, std=0.3)
            for name, buffer in net.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(std=0.2)
        return net.double().train(training)


FUSED, APART = {}, {}


def frames():
    """x [T, B, 6]."""
    return (normal(T, B, 6),)


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def fused(layers, inputs=frames, training=(True,), pieces=1, recurrent=()):
    """The decorated loop must run as sequences, one for each layer."""

    def keep(loop):
        FUSED[loop.__name__] = Row(loop, layers, inputs, training, pieces, {}, recurrent)
        return loop

    return keep


def apart(why, layers, inputs=frames):
    """The decorated loop has layers that must not be fused: `why` names them, with a word of the reason."""

    def keep(loop):
        APART[loop.__name__] = Row(loop, layers, inputs, (True,), 1, why)
        return loop

    return keep


def one_layer(**options):
    return lambda: {"fc": nn.Linear(6, 8), "lif": snn.Leaky(**LIF | options)}


def two_layers(**options):
    return lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.Leaky(**LIF | options),
        "fc2": nn.Linear(8, 5),
        "lif2": snn.Leaky(**LIF | options),
    }


@fused(two_layers())
def linear(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk2_rec, mem2_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk2_rec.append(spk2)
        mem2_rec.append(mem2)
    return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


@fused(two_layers())
def everything_recorded(net, x):
    mem1, mem2 = net.lif1.reset_mem(), net.lif2.reset_mem()
    records = [], [], [], []
    for step in range(x.shape[0]):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        for record, value in zip(records, (spk1, mem1, spk2, mem2), strict=True):
            record.append(value)
    return [torch.stack(record) for record in records], records[3][-1]


@fused(lambda: {"fc": nn.Linear(6, 8), "lif": snn.ALIF(0.9, 0.8, 0.3, threshold=0.6)})
def adaptive(net, x):
    mem, adaptation = net.lif.reset_mem()
    spikes, adaptations = [], []
    for step in range(T):
        spk, mem, adaptation = net.lif(net.fc(x[step]), mem, adaptation)
        spikes.append(spk)
        adaptations.append(adaptation)
    return torch.stack(spikes), torch.stack(adaptations)


@fused(
    lambda: {
        "conv1": nn.Conv2d(1, 3, 3),
        "lif1": snn.Leaky(beta=0.5, threshold=3.0),
        "conv2": nn.Conv2d(3, 4, 3, padding=1),
        "lif2": snn.Leaky(**LIF),
        "fc": nn.Linear(4, 5),
        "lif3": snn.Leaky(**LIF),
    },
    inputs=lambda: (normal(T, B, 1, 8, 8),),
)
def convolutions(net, x):
    mem1, mem2, mem3 = net.lif1.init_leaky(), net.lif2.init_leaky(), net.lif3.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(x.size(0)):
        spk1, mem1 = net.lif1(F.max_pool2d(net.conv1(x[step]), 2), mem1)
        spk2, mem2 = net.lif2(F.avg_pool2d(net.conv2(spk1), 2), mem2)
        spk3, mem3 = net.lif3(net.fc(spk2.view(spk2.size(0), -1)), mem3)
        spk_rec.append(spk3)
        mem_rec.append(mem3)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(
    lambda: {
        "features": nn.Sequential(nn.Conv1d(2, 3, 3), nn.MaxPool1d(2), nn.Flatten()),
        "lif1": snn.Leaky(**LIF),
        "pooled": nn.Sequential(nn.Unflatten(1, (3, 3)), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(6, 4)),
        "lif2": snn.Leaky(**LIF),
    },
    inputs=lambda: (normal(T, B, 2, 8),),
)
def convolutions_in_1d(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for frame in x:
        spk1, mem1 = net.lif1(net.features(frame), mem1)
        spk2, mem2 = net.lif2(net.pooled(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@fused(
    lambda: {
        "conv": nn.Conv2d(1, 3, 3),
        "bn1": nn.BatchNorm2d(3),
        "lif1": snn.Leaky(**LIF),
        "fc": nn.Linear(27, 5),
        "bn2": nn.BatchNorm1d(5),
        "lif2": snn.Leaky(**LIF),
    },
    inputs=lambda: (normal(T, B, 1, 5, 5),),
    training=(True, False),
)
def batch_norm(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.bn1(net.conv(x[step])), mem1)
        spk2, mem2 = net.lif2(net.bn2(net.fc(spk1.flatten(1))), mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem2)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(
    lambda: {
        "fc": nn.Linear(6, 8),
        "norms": nn.ModuleList(nn.BatchNorm1d(8) for _ in range(T)),
        "lif": snn.Leaky(**LIF),
    },
    training=(True, False),
)
def a_norm_for_each_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.norms[step](net.fc(x[step])), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(
    lambda: {**two_layers()(), "dropout1": nn.Dropout(0.4), "dropout2": nn.Dropout(0.2)},
    training=(True, False),
)
def dropout(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.dropout1(net.fc1(x[step])), mem1)
        spk2, mem2 = net.lif2(net.dropout2(net.fc2(spk1)), mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem2)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(lambda: {**two_layers()(), "dropout": nn.Dropout(0.4)})
def dropout_of_the_spikes(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(net.dropout(spk1)), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem1, mem2


@fused(
    lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.Leaky(**LIF),
        "fc2": nn.Linear(8, 8),
        "lif2": snn.Leaky(**LIF),
        "out": nn.Linear(8, 4),
    }
)
def residual(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    out_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(spk1 + net.fc2(spk1), mem2)
        out_rec.append(net.out(spk1 + spk2))
    return torch.stack(out_rec)


@fused(lambda: {**two_layers()(), "act": nn.Sequential(nn.GELU(), nn.LayerNorm(8), nn.LeakyReLU(0.1))})
def activations(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    out_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.act(net.fc1(torch.tanh(x[step]))), mem1)
        _, mem2 = net.lif2(net.fc2(spk1).sigmoid() * 2 - 0.5, mem2)
        out_rec.append(F.log_softmax(mem2, dim=-1))
    return torch.stack(out_rec)


@fused(lambda: {**one_layer()(), "relu": nn.ReLU(inplace=True), "bias": nn.Linear(8, 8)})
def written_in_place(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        cur = net.fc(x[step])
        cur += net.bias.bias
        cur.mul_(1.5)
        spk, mem = net.lif(net.relu(cur), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(one_layer())
def seen_through_a_view(net, x):
    mem = net.lif.init_leaky()
    spk_rec, head_rec = [], []
    for step in range(T):
        cur = net.fc(x[step])
        head = cur[:, :3]
        cur.mul_(1.5)
        spk, mem = net.lif(cur, mem)
        spk_rec.append(spk)
        head_rec.append(head + 0.5)
    return torch.stack(spk_rec), torch.stack(head_rec)


@fused(one_layer())
def written_in_part(net, x):
    mem = net.lif.init_leaky()
    spk_rec, cur_rec = [], []
    for step in range(T):
        cur = net.fc(x[step])
        cur[:, 0] = 0.5
        spk, mem = net.lif(cur, mem)
        cur[:, 1:3].zero_()
        spk_rec.append(spk)
        cur_rec.append(cur)
    return torch.stack(spk_rec), torch.stack(cur_rec)


@fused(
    lambda: {
        "fc": nn.Linear(6, 8),
        "lif": snn.Leaky(**LIF),
        "left": nn.Linear(8, 3),
        "right": nn.Linear(8, 3),
    },
    inputs=lambda: (normal(T, B, 6), torch.randint(3, (B,))),
)
def two_readouts(net, x, targets):
    mem, loss = net.lif.init_leaky(), 0
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        loss = loss + F.cross_entropy(net.left(spk), targets) - F.cross_entropy(net.right(spk), targets)
    return loss


@fused(two_layers())
def stacked_after_the_batch(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem1)
    return torch.stack(spk_rec, dim=1), torch.stack(mem_rec, dim=-1)


@fused(two_layers())
def concatenated(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2.unsqueeze(0))
        mem_rec.append(mem2[None])
    return torch.cat(spk_rec), torch.cat(mem_rec, dim=0)


@fused(two_layers(), inputs=lambda: (normal(B, 6),))
def static_input(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for _ in range(T):
        spk1, mem1 = net.lif1(net.fc1(x), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@fused(two_layers(), inputs=lambda: (normal(B, T, 6),))
def batch_first(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for t in range(x.shape[1]):
        spk1, mem1 = net.lif1(net.fc1(x[:, t]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec, 1), mem2


@fused(one_layer(), inputs=lambda: (normal(B, T, 6),))
def unbound(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in x.unbind(1):
        spk, mem = net.lif(net.fc(step), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(
    lambda: {**two_layers()(), "other": nn.Linear(4, 8)},
    inputs=lambda: (normal(T, B, 6), normal(B, T, 4), normal(B, 8)),
)
def several_inputs(net, x, events, bias):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]) + net.other(events[:, step]) + bias, mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem2


@fused(
    lambda: {
        "fc": nn.Linear(6, 8),
        "late": nn.Linear(6, 8),
        "lif": snn.Leaky(**LIF),
        "gain": nn.ParameterList([torch.linspace(0.5, 1.5, 8).repeat(T, 1)]),
    },
    # As many samples as steps: neither a gain [T, 8] nor a drive [T] may be taken for one of the samples.
    inputs=lambda: (normal(2 * T, T, 6), normal(T)),
)
def other_numbers_at_each_step(net, x, drive):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        cur = net.gain[0][step] * net.fc(x[2 * step + 1]) + net.late(x[T - 1 - step]) * drive[step] + 0.1
        spk, mem = net.lif(cur, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(two_layers(), inputs=lambda: (normal(T, B, 6), torch.randint(5, (B,))))
def loss_of_each_step(net, x, targets):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    loss = torch.zeros((), dtype=x.dtype)
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        _, mem2 = net.lif2(net.fc2(spk1), mem2)
        loss = loss + F.cross_entropy(mem2, targets)
    return loss


@fused(two_layers(), pieces=2)
def truncated_backpropagation(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    mem_rec = []
    for step in range(T):
        if step == T // 2:
            mem1, mem2 = mem1.detach(), mem2.detach()
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        _, mem2 = net.lif2(net.fc2(spk1), mem2)
        mem_rec.append(mem2)
    return torch.stack(mem_rec)


@fused(
    lambda: {
        "encoder": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 6), nn.Tanh()),
        **one_layer()(),
    },
    inputs=lambda: (normal(T, B, 1, 5, 5),),
)
def early_layers_without_neurons(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(net.encoder(x[step])), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


def hidden_sequential():
    first, last = snn.Leaky(**LIF, init_hidden=True), snn.Leaky(**LIF, init_hidden=True, output=True)
    return {"seq": nn.Sequential(nn.Linear(6, 8), first, nn.Linear(8, 5), last)}


@fused(hidden_sequential)
def hidden_states(net, x):
    snn.reset(net)
    spk_rec, mem_rec = [], []
    for step in range(T):
        spk, mem = net.seq(x[step])
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec)


@fused(hidden_sequential)
def hidden_states_without_a_reset(net, x):
    mem_rec = []
    for step in x:
        _, mem = net.seq(step)
        mem_rec.append(mem)
    return torch.stack(mem_rec), net.seq[1].mem


@fused(one_layer(), inputs=lambda: (normal(T, B, 6), normal(B, 8)))
def given_state(net, x, mem):
    spk_rec = []
    for step in x:
        spk, mem = net.lif(net.fc(step), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(two_layers(learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True))
def learned_parameters(net, x):
    return linear(net, x)


@fused(
    lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.Leaky(torch.linspace(0.5, 0.95, 8), torch.linspace(0.4, 0.9, 8), learn_beta=True),
        "fc2": nn.Linear(8, 5),
        "lif2": snn.Leaky(torch.linspace(0.5, 0.95, 5), 0.6, learn_beta=True, learn_threshold=True),
    }
)
def parameters_of_each_neuron(net, x):
    return linear(net, x)


@fused(two_layers(spike_grad=snn.surrogate.fast_sigmoid(slope=5), surrogate_disable=False))
def another_surrogate(net, x):
    return linear(net, x)


@fused(one_layer(), pieces=2)
def a_layer_called_twice_a_step(net, x):
    left, right = (torch.zeros(x.shape[1], 8, dtype=x.dtype) for _ in range(2))
    spk_rec = []
    for step in range(T):
        cur = net.fc(x[step])
        spk_left, left = net.lif(cur, left)
        spk_right, right = net.lif(-cur, right)
        spk_rec.append(spk_left + spk_right)
    return torch.stack(spk_rec), left, right


@fused(one_layer())
def weights_used_twice_a_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) * 0.5 + net.fc(x[0].sin()).relu(), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(two_layers())
def recorded_every_second_step(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk1_rec, spk2_rec = [], []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk2_rec.append(spk2)
        if step % 2:
            spk1_rec.append(spk1)
    return torch.stack(spk1_rec), torch.stack(spk2_rec), mem2


@fused(two_layers())
def spike_count(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    count = 0
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        count = count + spk2
    return count, mem2


@fused(two_layers())
def counted_in_place(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    count = torch.zeros(x.shape[1], 5, dtype=x.dtype)
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        count += spk2
    return count, mem2


@fused(lambda: {**one_layer()(), "offset": nn.BatchNorm1d(8)})
def a_buffer_written_each_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) + net.offset.running_mean.sin(), mem)
        net.offset.running_mean.mul_(-0.9)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem, net.offset.running_mean.clone()


@fused(two_layers())
def preallocated(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    out = torch.zeros(T, x.shape[1], 5, dtype=x.dtype)
    for t in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[t]), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        out[t] = spk2
    return out, mem2


def recurrent_leaky(**options):
    return lambda: {"fc": nn.Linear(6, 8), "lif": snn.RLeaky(0.8, linear_features=8, threshold=0.6, **options)}


@fused(recurrent_leaky(learn_beta=True, learn_threshold=True), recurrent=("lif",))
def spikes_back_through_weights(net, x):
    spk, mem = net.lif.init_rleaky()
    spk_rec, mem_rec = [], []
    for step in x:
        spk, mem = net.lif(net.fc(step), spk, mem)
        spk_rec.append(spk)
        mem_rec.append(mem)
    return torch.stack(spk_rec), torch.stack(mem_rec), spk, mem


@fused(recurrent_leaky(learn_recurrent=False, reset_mechanism="zero", reset_delay=False), recurrent=("lif",))
def spikes_back_through_frozen_weights(net, x):
    return spikes_back_through_weights(net, x)


@fused(
    recurrent_leaky(),
    inputs=lambda: (normal(T, B, 6), torch.randint(2, (B, 8)).double(), normal(B, 8)),
    recurrent=("lif",),
)
def spikes_back_from_a_given_state(net, x, spk, mem):
    spk_rec = []
    for step in x:
        spk, mem = net.lif(net.fc(step), spk, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@fused(
    lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.RSynaptic(0.7, 0.8, linear_features=8, threshold=0.6, learn_alpha=True),
        "fc2": nn.Linear(8, 5),
        "lif2": snn.RLeaky(torch.linspace(0.5, 0.9, 5), linear_features=5, threshold=0.4),
        "out": nn.Linear(8, 4),
    },
    recurrent=("lif1", "lif2"),
)
def recurrent_layers(net, x):
    """Each layer's spikes go back, on to the next layer, to a readout, and to what is returned."""
    spk1, syn1, mem1 = net.lif1.init_rsynaptic()
    spk2, mem2 = net.lif2.init_rleaky()
    records = [], [], []
    for step in x:
        spk1, syn1, mem1 = net.lif1(net.fc1(step), spk1, syn1, mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), spk2, mem2)
        for record, value in zip(records, (spk2, syn1, net.out(spk1)), strict=True):
            record.append(value)
    return *map(torch.stack, records), spk1, mem2


@fused(
    lambda: {
        "seq": nn.Sequential(
            nn.Linear(6, 8),
            snn.RLeaky(0.8, linear_features=8, threshold=0.6, init_hidden=True),
            nn.Linear(8, 5),
            snn.RSynaptic(0.7, 0.8, linear_features=5, threshold=0.4, init_hidden=True, output=True),
        )
    },
    recurrent=("seq.1", "seq.3"),
)
def hidden_recurrent_states(net, x):
    snn.reset(net)
    spk_rec = []
    for step in x:
        spk, syn, mem = net.seq(step)
        spk_rec.append(spk)
    return torch.stack(spk_rec), syn, mem, net.seq[1].spk


def norse_cell():
    return {"cell": norse.LIFRecurrentCell(6, 8, p=norse.LIFParameters(v_th=torch.tensor(0.3)))}


@fused(norse_cell, recurrent=("cell",))
def norse_recurrent_cell(net, x):
    state, spk_rec, i_rec = None, [], []
    for step in x:
        spk, state = net.cell(step, state)
        spk_rec.append(spk)
        i_rec.append(state.i)
    return torch.stack(spk_rec), torch.stack(i_rec), state


@fused(
    norse_cell,
    inputs=lambda: (normal(T, B, 6), torch.randint(2, (B, 8)).double(), normal(B, 8), normal(B, 8)),
    recurrent=("cell",),
)
def norse_recurrent_cell_from_a_given_state(net, x, z, v, i):
    state, spk_rec = norse.LIFState(z, v, i), []
    for step in x:
        spk, state = net.cell(step, state)
        spk_rec.append(spk)
    return torch.stack(spk_rec), state.v


def each_to_itself(**options):
    return lambda: {
        "fc1": nn.Linear(6, 8),
        "lif1": snn.RLeaky(0.8, V=torch.linspace(-0.5, 0.5, 8), all_to_all=False, threshold=0.6, **options),
        "fc2": nn.Linear(8, 5),
        "lif2": snn.RSynaptic(0.7, 0.8, V=0.3, all_to_all=False, threshold=0.4, **options),
    }


@fused(each_to_itself(learn_beta=True))
def spikes_back_to_themselves(net, x):
    spk1, mem1 = net.lif1.init_rleaky()
    spk2, syn2, mem2 = net.lif2.init_rsynaptic()
    spk_rec, mem_rec = [], []
    for step in x:
        spk1, mem1 = net.lif1(net.fc1(step), spk1, mem1)
        spk2, syn2, mem2 = net.lif2(net.fc2(spk1), spk2, syn2, mem2)
        spk_rec.append(spk2)
        mem_rec.append(mem1)
    return torch.stack(spk_rec), torch.stack(mem_rec), syn2, spk1


@fused(each_to_itself(init_hidden=True))
def hidden_spikes_back_to_themselves(net, x):
    snn.reset(net)
    spk_rec = [net.lif2(net.fc2(net.lif1(net.fc1(step)))) for step in x]
    return torch.stack(spk_rec), net.lif1.mem, net.lif2.spk


@apart({"lif1": "depends on an earlier one through .*lif2", "lif2": "depends on an earlier one"}, two_layers())
def fed_back_to_an_earlier_layer(net, x):
    mem1, mem2 = net.lif1.init_leaky(), net.lif2.init_leaky()
    spk2 = torch.zeros(x.shape[1], 5, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]) + spk2.sum(1, keepdim=True), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem1


@apart(
    {"lif": "depends on an earlier one through .*recurrent"},
    lambda: {**one_layer()(), "recurrent": nn.Linear(8, 8)},
)
def fed_back_to_itself(net, x):
    mem = net.lif.init_leaky()
    spk = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) + net.recurrent(spk), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "state passes through mul"}, one_layer(), lambda: (normal(T, B, 6), torch.randint(2, (T, B, 8))))
def membrane_masked_each_step(net, x, mask):
    mem = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem * mask[step])
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif1": "state passes through detach"}, two_layers())
def detached_each_step(net, x):
    mem1, mem2 = torch.zeros(x.shape[1], 8, dtype=x.dtype), net.lif2.init_leaky()
    spk_rec = []
    for step in range(T):
        spk1, mem1 = net.lif1(net.fc1(x[step]), mem1.detach())
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spk_rec.append(spk2)
    return torch.stack(spk_rec), mem1, mem2


@apart(
    dict.fromkeys(["lif1", "lif2"], "goes on from the state of another layer"),
    lambda: {"fc": nn.Linear(6, 8), "lif1": snn.Leaky(0.9, 0.6), "lif2": snn.Leaky(0.5, 0.4)},
)
def layers_in_turn_on_one_state(net, x):
    mem = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_rec = []
    for step in range(T):
        lif = net.lif2 if step % 2 else net.lif1
        spk, mem = lif(net.fc(x[step]), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart(
    {"lif": "depends on an earlier one through .*set_grad_enabled"},
    lambda: {**one_layer()(), "eyes": nn.Linear(6, 6)},
)
def frozen_encoder(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        with torch.no_grad():
            seen = net.eyes(x[step])
        spk, mem = net.lif(net.fc(seen), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "depends on an earlier one through lif, (add|sub)"}, one_layer())
def crossed_states(net, x):
    """The layer steps twice, and each call takes the other's membrane and spikes of the step before."""
    left = right = torch.zeros(x.shape[1], 8, dtype=x.dtype)
    spk_left = spk_right = left
    spk_rec = []
    for step in range(T):
        cur = net.fc(x[step])
        (spk_left, left), (spk_right, right) = net.lif(cur + spk_right, right), net.lif(cur - spk_left, left)
        spk_rec.append(spk_left + 2 * spk_right)
    return torch.stack(spk_rec), left, right


@apart({"lif": "state_quant"}, one_layer(state_quant=lambda mem: (mem * 8).round() / 8))
def quantised(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "inhibition"}, one_layer(inhibition=True))
def inhibited(net, x):
    return quantised(net, x)


def steep(u):
    """A surrogate by the straight-through trick, under no name of snnfast's."""
    smooth = torch.sigmoid(4 * u)
    return smooth + ((u > 0).to(u.dtype) - smooth).detach()


@fused(one_layer(spike_grad=steep))
def custom_surrogate(net, x):
    return quantised(net, x)


@apart({"lif": "snnTorch"}, lambda: {"fc": nn.Linear(6, 8), "lif": snntorch.Leaky(**LIF)})
def unconverted(net, x):
    return quantised(net, x)


@apart({"lif": "steps are in different graphs"}, one_layer())
def printed_each_step(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        print(step, end=" ")
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "steps are in different graphs"}, one_layer())
def stopped_when_silent(net, x):
    mem = net.lif.init_leaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), mem)
        spk_rec.append(spk)
        if spk.sum().item() < 0:
            break
    return torch.stack(spk_rec), mem


def recurrent_through(*modules):
    """A layer whose spikes come back through these modules."""

    def layers():
        made = recurrent_leaky()()
        made["lif"].recurrent = nn.Sequential(*(module() for module in modules))
        return made

    return layers


@apart({"lif": "come back through mul"}, recurrent_through(lambda: nn.Linear(8, 8), lambda: nn.Dropout(0.3)))
def spikes_back_through_weights_and_dropout(net, x):
    return spikes_back_through_weights(net, x)


@apart({"lif": "no spikes of the step before"}, recurrent_through(lambda: nn.Dropout(0.3), lambda: nn.Linear(8, 8)))
def spikes_back_through_dropout_and_weights(net, x):
    return spikes_back_through_weights(net, x)


@apart(
    {"lif": "come back through conv2d"},
    lambda: {"lif": snn.RLeaky(0.8, conv2d_channels=2, kernel_size=3, threshold=0.6)},
    inputs=lambda: (normal(T, B, 2, 4, 4),),
)
def spikes_back_through_a_convolution(net, x):
    spk, mem = net.lif.init_rleaky()
    spk_rec = []
    for step in x:
        spk, mem = net.lif(step, spk, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


@apart({"lif": "no spikes of the step before"}, recurrent_leaky(), lambda: (normal(T, B, 6), normal(T, B, 8)))
def spikes_changed_on_their_way_back(net, x, drive):
    spk, mem = net.lif.init_rleaky()
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]), spk, mem)
        spk_rec.append(spk)
        spk = spk + drive[step]
    return torch.stack(spk_rec), mem


@apart({"lif": "state passes through detach"}, recurrent_leaky())
def recurrent_states_detached(net, x):
    spk, mem = net.lif.init_rleaky()
    spk_rec = []
    for step in x:
        spk, mem = net.lif(net.fc(step), spk, mem.detach())
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


def watched():
    """What the recurrent weights make is the loop's to see."""
    layers = recurrent_leaky()()
    layers["lif"].recurrent.register_forward_hook(lambda module, _, output: module.seen.append(output))
    layers["lif"].recurrent.seen = []
    return layers


@apart({"lif": "what comes back is used elsewhere too"}, watched)
def recurrent_current_seen(net, x):
    net.lif.recurrent.seen.clear()
    spk_rec, _, _, mem = spikes_back_through_weights(net, x)
    seen = torch.stack(net.lif.recurrent.seen)
    net.lif.recurrent.seen.clear()
    return spk_rec, mem, seen


@apart(
    dict.fromkeys(["lif", "other"], "no spikes of the step before"),
    lambda: {**recurrent_leaky()(), "other": snn.RLeaky(0.8, linear_features=8, threshold=0.6)},
)
def spikes_of_another_layer(net, x):
    (spk, mem), (_, other) = net.lif.init_rleaky(), net.other.init_rleaky()
    spk_rec = []
    for step in x:
        heard, other = net.other(net.fc(step), spk, other)
        spk, mem = net.lif(net.fc(step), heard, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem, other


def cells_alike_but_for_their_weights():
    even, odd = norse_cell()["cell"], norse_cell()["cell"]
    odd.p = even.p
    return {"even": even, "odd": odd}


@apart(dict.fromkeys(["even", "odd"], "with other parameters"), cells_alike_but_for_their_weights)
def recurrent_cells_in_turn_on_one_state(net, x):
    state, spk_rec = None, []
    for step in range(T):
        spk, state = (net.odd if step % 2 else net.even)(x[step], state)
        spk_rec.append(spk)
    return torch.stack(spk_rec), state


@apart({"lif": "depends on an earlier one through .*back"}, lambda: {**recurrent_leaky()(), "back": nn.Linear(8, 8)})
def fed_back_besides_the_recurrent_weights(net, x):
    spk, mem = torch.zeros(B, 8, dtype=x.dtype), None
    spk_rec = []
    for step in range(T):
        spk, mem = net.lif(net.fc(x[step]) + net.back(spk), spk, mem)
        spk_rec.append(spk)
    return torch.stack(spk_rec), mem


def everything_of(net, function, inputs, seed=5) -> dict[str, torch.Tensor]:
    """Outputs, gradients of inputs and parameters, and buffers after one training iteration, by name."""
    inputs = [leaf.clone().requires_grad_(leaf.is_floating_point()) for leaf in inputs]
    torch.manual_seed(seed)
    outputs = tree_leaves(function(*inputs))
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]
    pairs = zip(outputs, weights, strict=True)
    sum((output * weight).sum() for output, weight in pairs if output.requires_grad).backward()
    found = {f"output {k}": output.detach() for k, output in enumerate(outputs)}
    found |= {f"gradient of input {k}": leaf.grad for k, leaf in enumerate(inputs) if leaf.requires_grad}
    found |= {f"gradient of {name}": parameter.grad for name, parameter in net.named_parameters()}
    found |= {f"buffer {name}": buffer.clone() for name, buffer in net.named_buffers()}
    found["generator"] = torch.get_rng_state()
    net.zero_grad()
    return {name: value for name, value in found.items() if value is not None}


def assert_same(found, expected, exact) -> None:
    """Equal to 1e-10, with `exact` to the bit; but gradients of neurons' parameters are sums over time, which round."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        of_neurons = name.endswith((".alpha", ".beta", ".threshold", ".graded_spikes_factor", ".V"))
        tolerance = 0 if exact and not of_neurons else 1e-10
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def firing_rates(net, inputs) -> dict[str, float]:
    """Spikes per neuron and step of each layer."""
    rates = {}

    def note(name):
        def hook(_, __, output):
            spk = output[0] if isinstance(output, tuple) else output
            rates.setdefault(name, []).append((spk != 0).double().mean().item())

        return hook

    net = copy.deepcopy(net)
    for name, layer in net.named_modules():
        if isinstance(layer, (snn.SpikingNeuron, norse.LIFRecurrentCell)):
            layer.register_forward_hook(note(name))
    with torch.no_grad():
        net(*inputs)
    return {name: sum(rate) / len(rate) for name, rate in rates.items()}


def compare(name, training, products, net, **options):
    """The loop of a row by Python and as `net` runs it, accelerated; returns the graphs it became."""
    row, graphs = {**FUSED, **APART}[name], Graphs()
    loop, inputs = row.build(training), row.inputs()
    expected = everything_of(loop, loop, inputs)
    snn.accelerate(net, products=products, inner=graphs, **options, compile=True)
    assert_same(everything_of(net, net, inputs), expected, exact=products == "per-step")
    return graphs


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize(("name", "training"), [(name, mode) for name, row in FUSED.items() for mode in row.training])
def test_loops_that_people_write_are_fused(name, training, products):
    row = FUSED[name]
    net = row.build(training)
    rates = firing_rates(net, row.inputs())
    assert all(0.03 < rate < 0.97 for rate in rates.values()), rates
    graphs = compare(name, training, products, net)
    loops = row.recurrent if products == "per-step" else ()
    assert graphs.calls() == {name: T if name in loops else row.pieces for name in rates}
    assert graphs.sequences() == {name: row.pieces for name in rates if name not in loops}


@pytest.mark.parametrize(
    ("name", "products_in_all"),
    [("linear", 2), ("convolutions", 3), ("residual", 3), ("two_readouts", 3), ("batch_norm", 2)],
)
def test_products_of_all_steps_are_one(name, products_in_all):
    row = FUSED[name]
    for products, times, linear in (("batched", 1, snn.products.linear), ("per-step", T, torch._C._nn.linear)):
        torch._dynamo.reset()
        graphs = Graphs()
        snn.accelerate(row.build(), products=products, inner=graphs, compile=True)(*row.inputs())
        targets = [node.target for node in graphs[0].graph.nodes]
        convolution = torch.conv2d if products == "per-step" else images.conv2d
        assert sum(target in (linear, convolution) for target in targets) == times * products_in_all


def said_of(explanation) -> dict[str, str]:
    """What an explanation says of each layer."""
    said = {}
    for layer in explanation.layers:
        said[layer.layer] = said.get(layer.layer, "") + str(layer)
    return said | explanation.unseen


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("name", [name for name in APART if name != "unconverted"])
def test_loops_that_cannot_be_fused_stay_right(name, products, capsys):
    row = APART[name]
    graphs = compare(name, True, products, row.build())
    assert not graphs.sequences().keys() & row.why.keys()


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_fused_is_named(name, capsys):
    row = APART[name]
    said = said_of(snn.explain(row.build(), *row.inputs(), compile=True))
    for layer, reason in row.why.items():
        assert re.search(reason, said[layer]), said
    # A layer without a name is one that torch.compile took for itself after a graph break.
    assert all("fused over time" in text for layer, text in said.items() if layer and layer not in row.why)


@pytest.mark.parametrize("name", ["printed_each_step", "stopped_when_silent"])
def test_graph_breaks_are_named(name, capsys):
    row = APART[name]
    assert "torch.compile broke the forward into" in str(snn.explain(row.build(), *row.inputs(), compile=True))


def test_explain_changes_nothing():
    row = FUSED["dropout"]
    net, inputs = row.build(), row.inputs()
    net.lif1(normal(B, 8))
    before, mem, generator = copy.deepcopy(net.state_dict()), net.lif1.mem.clone(), torch.get_rng_state()
    explanation = snn.explain(net, *inputs, compile=True)
    layers = [f"{name}: fused over time: {T} steps in 1 sequence call" for name in ("lif1", "lif2")]
    assert [str(layer).split(" (")[0] for layer in explanation.layers] == layers
    assert str(explanation).startswith("\n".join(map(str, explanation.layers)))
    assert torch.equal(generator, torch.get_rng_state()) and torch.equal(net.lif1.mem, mem)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net._compiled_call_impl is None


def test_explain_takes_a_function_and_an_accelerated_network():
    row = FUSED["linear"]
    net, inputs = snn.accelerate(row.build(), compile=True), row.inputs()
    assert all(layer.fused for layer in snn.explain(net, *inputs, compile=True).layers)
    assert all(layer.fused for layer in snn.explain(lambda x: net.loop(net, x), *inputs, compile=True).layers)
    assert all(layer.fused for layer in snn.explain(net, *inputs, window=2, products="per-step").layers)


def test_a_snntorch_layer_that_nobody_converted_runs_as_it_is():
    row = APART["unconverted"]
    loop, net, inputs = row.build(), row.build(), row.inputs()
    compiled = torch.compile(net, backend="snnfast")
    assert_same(everything_of(net, compiled, inputs), everything_of(loop, loop, inputs), exact=True)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_loop_outside_the_network_stays_right_and_is_named(hidden):
    layers = hidden_sequential() if hidden else one_layer()()

    def one_step(net, x, *state):
        return net.seq(x) if hidden else net.lif(net.fc(x), *state)

    net, x = Net(one_step, layers).double(), normal(T, B, 6)

    def outside(x):
        snn.reset(net)
        spk_rec, state = [], () if hidden else (torch.zeros(B, 8, dtype=x.dtype),)
        for step in x:
            spk, mem = net(step, *state)
            state = () if hidden else (mem,)
            spk_rec.append(spk)
        return torch.stack(spk_rec), mem

    said = said_of(snn.explain(net, x[0], *(() if hidden else (normal(B, 8),)), compile=True))
    assert said and all("a loop over time must be inside what is compiled" in text for text in said.values())
    expected = everything_of(net, outside, (x,))
    snn.accelerate(net, compile=True)
    assert_same(everything_of(net, outside, (x,)), expected, exact=True)


@pytest.mark.parametrize("window", [1, 2, 3, T - 1, T, T + 5])
@pytest.mark.parametrize("name", ["spikes_back_through_weights", "norse_recurrent_cell", "spikes_back_to_themselves"])
def test_windows_of_recurrent_layers(name, window):
    """The last spikes of a window come back in the next."""
    graphs = compare(name, True, "batched", FUSED[name].build(), window=window)
    assert set(graphs.calls().values()) == {-(-T // window)}


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("window", [1, 2, 3, T - 1, T, T + 5])
def test_windows(window, products):
    row = FUSED["everything_recorded"]
    graphs = compare("everything_recorded", True, products, row.build(), window=window)
    assert graphs.calls() == dict.fromkeys(["lif1", "lif2"], -(-T // window))


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("products", PRODUCTS)
def test_every_reset(reset_mechanism, reset_delay, products, monkeypatch):
    layers = two_layers(reset_mechanism=reset_mechanism, reset_delay=reset_delay, learn_beta=True)
    monkeypatch.setitem(FUSED, "reset", Row(everything_recorded, layers, frames, (True,), 1, {}))
    graphs = compare("reset", True, products, FUSED["reset"].build())
    assert graphs.calls() == graphs.sequences() == {"lif1": 1, "lif2": 1}


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
def test_every_reset_of_recurrent_layers(reset_mechanism, reset_delay, monkeypatch):
    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay}
    for name, layers in (("all", recurrent_leaky(**options)), ("each", each_to_itself(**options))):
        loop = spikes_back_through_weights if name == "all" else spikes_back_to_themselves
        monkeypatch.setitem(FUSED, name, Row(loop, layers, frames, (True,), 1, {}))
        graphs = compare(name, True, "batched", FUSED[name].build())
        assert set(graphs.calls().values()) == set(graphs.sequences().values()) == {1}


def test_products_per_step_keep_recurrent_products_and_say_so():
    row = FUSED["norse_recurrent_cell"]
    explanation = snn.explain(row.build(), *row.inputs(), products="per-step")
    assert str(explanation).startswith(f"cell: not fused: {T} steps, one call each (")
    assert 'its recurrent products would round otherwise in one call: products="per-step"' in str(explanation)
    fused = str(snn.explain(row.build(), *row.inputs(), compile=True))
    assert fused.startswith(f"cell: fused over time: {T} steps in 1 sequence call (")


def norse_tutorial(dtype=torch.float32, sizes=(20, 30, 5), steps=14, batch=4):
    """The recurrent network of Norse's tutorial on snnfast's cells, with inputs and labels."""

    def loop(net, x):
        hidden = out = None
        voltages = []
        for step in x:
            z, hidden = net.l1(step.view(step.shape[0], -1), hidden)
            v, out = net.out(net.fc_out(z), out)
            voltages.append(v)
        return torch.stack(voltages)

    torch.manual_seed(0)
    layers = {
        "l1": norse.LIFRecurrentCell(*sizes[:2], p=norse.LIFParameters(v_th=torch.tensor(0.5))),
        "fc_out": nn.Linear(*sizes[1:], bias=False),
        "out": norse.LICell(),
    }
    net = Net(loop, layers).to(dtype)
    return net, (torch.rand(steps, batch, 1, sizes[0]) < 0.3).to(dtype), torch.arange(batch) % sizes[2]


def voltages_and_gradients(net, x, labels):
    net.zero_grad()
    voltages = net(x)
    maximum_loss(voltages, labels).backward()
    return {"voltages": voltages.detach()}, {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("inner", [None, "aot_eager"])
def test_the_loop_of_norses_tutorial_is_two_sequence_calls(inner):
    net, *batch = norse_tutorial()
    expected, gradients = voltages_and_gradients(net, *batch)
    exact, *doubled = norse_tutorial(torch.float64)
    _, truth = voltages_and_gradients(exact, *doubled)
    snn.accelerate(net, inner=inner, compile=True)
    found, of_ours = voltages_and_gradients(net, *batch)
    torch.testing.assert_close(found["voltages"], expected["voltages"], rtol=1e-5, atol=1e-5)
    assert_as_exact(of_ours, gradients, truth)
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        voltages_and_gradients(net, *batch)
    counts = {event.key: event.count for event in calls.key_averages() if event.key.startswith("snnfast::")}
    for name in ("lif_recurrent_fwd", "lif_recurrent_bwd", "li_fwd", "li_bwd"):
        assert counts[f"snnfast::{name}"] == 1
    assert not any(name.endswith("step") for name in counts)


def test_recurrent_layers_at_other_batch_sizes_and_without_gradients():
    net, x, labels = norse_tutorial(torch.float64, batch=7)
    sizes = (4, 3, 7, 5)
    expected = [voltages_and_gradients(net, x[:, :size], labels[:size]) for size in sizes]
    graphs = Graphs()
    snn.accelerate(net, inner=graphs, compile=True)
    for size, (outputs, gradients) in zip(sizes, expected, strict=True):
        found, of_ours = voltages_and_gradients(net, x[:, :size], labels[:size])
        torch.testing.assert_close((found, of_ours), (outputs, gradients), rtol=1e-9, atol=1e-9)
    assert len(graphs) == 2 and graphs.calls() == graphs.sequences() == {"l1": 2, "out": 2}
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(net(x[:, :5]), expected[-1][0]["voltages"], rtol=1e-9, atol=1e-9)


def test_recurrent_products_in_half_precision_stay_the_loops():
    """In the sequence they would be computed in float32."""
    net, x, labels = norse_tutorial()
    with torch.autocast("cpu", torch.bfloat16):
        expected = voltages_and_gradients(net, x, labels)
        said = said_of(snn.explain(net, x, compile=True))
        found = voltages_and_gradients(snn.accelerate(net, products="per-step", compile=True), x, labels)
    assert "in another dtype than its states" in said["l1"] and "fused over time" in said["out"]
    assert torch.equal(found[0]["voltages"], expected[0]["voltages"])


def test_outputs_have_memory_of_their_own():
    """Pieces of one stack would change together when one is written in place, and keep the whole alive."""

    def steps_and_stacks(net, x):
        mem, spk_rec, mem_rec = net.lif.init_leaky(), [], []
        for step in x:
            spk, mem = net.lif(net.fc(step), mem)
            spk_rec.append(spk)
            mem_rec.append(mem)
        return *spk_rec, *mem_rec, torch.stack(spk_rec), torch.stack(spk_rec), torch.stack(mem_rec)

    net, inputs, graphs = Net(steps_and_stacks, one_layer()()).double(), frames(), Graphs()
    outputs = snn.accelerate(net, inner=graphs, compile=True)(*inputs)
    assert graphs.sequences() == {"lif": 1}
    assert len({output.untyped_storage().data_ptr() for output in outputs}) == len(outputs)
    assert all(output.untyped_storage().nbytes() == output.nbytes for output in outputs)


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_state_is_carried_over_calls(products):
    """The membrane that the first call returns, and the hidden one that it leaves, are where the second starts."""
    for name in ("hidden_states_without_a_reset", "given_state"):
        torch._dynamo.reset()
        row, graphs = FUSED[name], Graphs()
        loop, net, inputs = row.build(), row.build(), row.inputs()

        def twice(one, name=name):
            def run(x, *state):
                first, state = one(x[: T // 2], *state) if state else (one(x[: T // 2])[0], None)
                return first, *one(x[T // 2 :], *([] if state is None else [state]))

            return run

        expected = everything_of(loop, twice(loop), inputs)
        snn.accelerate(net, products=products, inner=graphs, compile=True)
        assert_same(everything_of(net, twice(net), inputs), expected, exact=products == "per-step")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": -3}, ValueError, "window must be at least 1, got -3"),
        ({"window": "a"}, TypeError, "window must be an integer or None, got str"),
        ({"window": True}, TypeError, "window must be an integer or None, got bool"),
        ({"window": 2.0}, TypeError, "window must be an integer or None, got float"),
        ({"products": "x"}, ValueError, "products must be one of batched, per-step; got 'x'"),
        ({"inner": 3}, TypeError, "inner must name a torch.compile backend or be one, got int"),
    ],
)
def test_refuses_wrong_options(options, error, message):
    net = nn.Sequential(snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(error, match=message):
        snn.accelerate(net, **options, compile=True)
    assert type(net[0]) is snntorch.Leaky and net._compiled_call_impl is None
    with pytest.raises(error, match=message):
        snn.explain(net, normal(B, 6), **options)
    with pytest.raises(Exception, match=message):
        torch.compile(snn.convert(net), backend="snnfast", options=options)(normal(B, 6))


def test_refuses_unknown_options_and_modes():
    net, x = snn.Leaky(0.9), normal(B, 6)
    with pytest.raises(TypeError, match="windows"):
        snn.accelerate(net, windows=2, compile=True)
    with pytest.raises(ValueError, match="options of backend snnfast are window, products, inner; got 'windows'"):
        snn.explain(net, x, windows=2)
    with pytest.raises(Exception, match="options of backend snnfast are window, products, inner; got 'windows'"):
        torch.compile(net, backend="snnfast", options={"windows": 2})(x)
    with pytest.raises(Exception, match="backend snnfast has no modes, got mode='max-autotune'"):
        torch.compile(net, backend="snnfast", mode="max-autotune")(x)
    with pytest.raises(Exception, match="no-such-backend"):
        torch.compile(net, backend="snnfast", options={"inner": "no-such-backend"})(x)


@pytest.mark.parametrize("net", [None, print, [nn.Linear(2, 2)]])
def test_accelerate_refuses_what_is_no_module(net):
    with pytest.raises(TypeError, match="net must be a torch.nn.Module"):
        snn.accelerate(net, compile=True)


def iteration(net, loop, x, targets):
    """Outputs of a published network, and the gradients of its loss by its weights and its input."""
    x = x.clone().requires_grad_()
    output = net(x)
    loop.loss(output, targets).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    return loop.named(output), gradients | {"input": x.grad}


def published(name, library, dtype=torch.float32, device="cpu"):
    """A published loop, its small network on a library's neurons, and a batch for it."""
    loop = LOOPS[name]
    sizes = replace(loop.small, T=STEPS.get(name, loop.small.T))
    net = loop.build(sizes, library).to(device, dtype)
    x, targets = loop.inputs(torch.Generator().manual_seed(0), sizes)
    return loop, net, x.to(device, dtype), targets.to(device)


def assert_as_exact(found, expected, truth) -> None:
    """No farther from gradients in float64 than twice the loop's own, or within rounding of the loop's."""
    for name in truth:
        largest = expected[name].abs().max()
        error, own = ((gradients[name].double() - truth[name]).abs().max() for gradients in (found, expected))
        assert error <= max(2 * own, 1e-5 * largest), name
        assert largest > 0


@pytest.mark.parametrize("name", ON_LEAKY)
def test_published_loops_on_leaky_are_two_sequence_calls(name, device):
    loop, theirs, x, targets = published(name, snntorch, device=device)
    _, exact, *batch = published(name, snn, torch.float64, device)
    expected, gradients = iteration(theirs, loop, x, targets)
    _, truth = iteration(exact, loop, *batch)
    _, net, *_ = published(name, snntorch, device=device)
    graphs = Graphs()
    assert snn.accelerate(net, inner=graphs, compile=True) is net
    found, of_ours = iteration(net, loop, x, targets)
    assert graphs.calls() == graphs.sequences() == {"lif1": 1, "lif2": 1}
    assert torch.equal(found["spikes"], expected["spikes"]) and found["spikes"].sum() > 0
    torch.testing.assert_close(found["membranes"], expected["membranes"], rtol=1e-5, atol=1e-5)
    assert_as_exact(of_ours, gradients, truth)
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        iteration(net, loop, x, targets)
    counts = {event.key: event.count for event in calls.key_averages() if event.key.startswith("snnfast::leaky_")}
    assert counts["snnfast::leaky_fwd"] == counts["snnfast::leaky_bwd"] == 2
    assert "snnfast::leaky_step" not in counts


@pytest.mark.parametrize("name", LOOPS)
def test_published_loops_with_products_per_step_equal_the_loop(name, device):
    library = snntorch if LOOPS[name].library == "snntorch" else None
    loop, theirs, x, targets = published(name, library, device=device)
    _, net, *_ = published(name, library, device=device)
    expected = iteration(theirs, loop, x, targets)
    found = iteration(snn.accelerate(net, products="per-step", compile=True), loop, x, targets)
    for ours, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(ours[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", ["zero-reset-fc", "norse-recurrent", "norse-conv"])
def test_published_loops_on_own_neurons_stay_right(name, device):
    loop, theirs, x, targets = published(name, None, device=device)
    _, exact, *batch = published(name, None, torch.float64, device)
    _, net, *_ = published(name, None, device=device)
    expected, gradients = iteration(theirs, loop, x, targets)
    found, of_ours = iteration(snn.accelerate(net, compile=True), loop, x, targets)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5)
    assert_as_exact(of_ours, gradients, iteration(exact, loop, *batch)[1])


def test_zero_reset_on_leaky_is_fused_with_its_own_surrogate():
    loop, net, x, targets = published("zero-reset-fc", snn)
    layers = snn.explain(net, x, compile=True).layers
    assert [layer.layer for layer in layers] == ["lif1", "lif2", "lif3"] and all(layer.fused for layer in layers)
    _, theirs, *_ = published("zero-reset-fc", snntorch)
    expected, _ = iteration(theirs, loop, x, targets)
    found, _ = iteration(snn.accelerate(net, products="per-step", compile=True), loop, x, targets)
    assert torch.equal(found["spikes"], expected["spikes"])


def test_accelerate_keeps_the_module():
    _, net, x, _ = published("rate-fc", snntorch)
    net.register_forward_hook(lambda module, args, output: seen.append(module))
    seen, names, state = [], list(dict(net.named_modules())), copy.deepcopy(net.state_dict())
    parameters = {name: parameter for name, parameter in net.named_parameters()}
    assert snn.accelerate(net, compile=True) is net
    net(x)
    assert isinstance(net.lif1, snn.Leaky) and list(dict(net.named_modules())) == names and seen == [net]
    assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
    # snnTorch saves the membranes, which are no part of a model.
    assert list(net.state_dict()) == [name for name in state if not name.endswith("mem")]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_accelerating_twice_takes_the_last_options():
    loop, net, x, targets = published("rate-fc", snn)
    expected = iteration(net, loop, x, targets)[0]
    first, second = Graphs(), Graphs()
    snn.accelerate(net, inner=first, compile=True)
    iteration(net, loop, x, targets)
    snn.accelerate(net, window=5, products="per-step", inner=second, compile=True)
    found = iteration(net, loop, x, targets)[0]
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (len(first), second.calls()) == (1, {"lif1": 2, "lif2": 2})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_an_accelerated_network_is_copied(duplicate):
    _, net, x, _ = published("rate-fc", snn)
    expected = snn.accelerate(net, products="per-step", compile=True)(x)
    other = duplicate(net)
    with torch.no_grad():
        other.fc1.weight.mul_(0.0)
        other.fc1.bias.fill_(2.0)
    assert torch.equal(net(x)[1], expected[1])
    graphs = Graphs()
    silent = snn.accelerate(other, inner=graphs, compile=True)(torch.zeros_like(x))
    assert torch.equal(silent[1], other(x)[1]) and not torch.equal(silent[1], expected[1])
    assert graphs.calls() == {"lif1": 1, "lif2": 1}


def test_train_and_eval_switch_dropout():
    row = FUSED["dropout"]
    loop, net, (x,) = row.build(), snn.accelerate(row.build(), products="per-step", compile=True), row.inputs()
    for mode in (True, False, True):
        outcomes = []
        for one in (loop, net):
            torch.manual_seed(7)
            outcomes.append(one.train(mode)(x)[1])
        assert torch.equal(*outcomes)
    torch.manual_seed(8)
    assert not torch.equal(net(x)[1], outcomes[1])


def test_inference_and_training_in_turn():
    loop, net, x, targets = published("rate-fc", snn)
    expected = iteration(net, loop, x, targets)
    snn.accelerate(net, products="per-step", compile=True)
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.enable_grad):
        with context():
            spk, mem = net(x)
        assert torch.equal(mem, expected[0]["membranes"]) and mem.requires_grad == (context is torch.enable_grad)
        found = iteration(net, loop, x, targets)
        assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_changed_batch_size_costs_one_more_compilation(products):
    loop, net, x, targets = published("rate-fc", snn)
    x, targets = torch.cat([x, x.flip(0)], 1), targets.repeat(2)
    expected = {size: iteration(net, loop, x[:, :size], targets[:size]) for size in (4, 3, 7, 5, 4, 1)}
    graphs = Graphs()
    snn.accelerate(net, products=products, inner=graphs, compile=True)
    for size, (outputs, gradients) in expected.items():
        found = iteration(net, loop, x[:, :size], targets[:size])
        for ours, wanted in ((found[0], outputs), (found[1], gradients)):
            for name, value in wanted.items():
                tolerance = 0 if products == "per-step" else 1e-5
                torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance)
        assert len(graphs) <= (2 if size > 1 else 3)
    assert graphs.calls() == {"lif1": len(graphs), "lif2": len(graphs)}


def test_products_without_bias_serve_every_batch_size():
    graphs, layers = Graphs(), {"fc": nn.Linear(6, 8, bias=False), "lif": snn.Leaky(**LIF)}
    net = snn.accelerate(Net(given_state, layers).double(), inner=graphs, compile=True)
    for size in (4, 3, 7, 5):
        net(normal(T, size, 6), normal(size, 8))
    assert len(graphs) == 2 and graphs.sequences() == {"lif": 2}


@pytest.mark.parametrize("products", PRODUCTS)
def test_autocast(products):
    loop, net, x, targets = published("rate-fc", snn)
    outcomes = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            outcomes.append(iteration(net, loop, x, targets))
        snn.accelerate(net, products=products, compile=True)
    (expected, gradients), (found, of_ours) = outcomes
    assert found["spikes"].dtype == expected["spikes"].dtype == torch.bfloat16
    assert found["membranes"].dtype == expected["membranes"].dtype == torch.float32
    if products == "per-step":
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.testing.assert_close(found["membranes"], expected["membranes"], rtol=0, atol=0.02)
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_ours[name], gradient, rtol=0, atol=0.02 * gradient.abs().max().item())


def _ddp_rank(rank, path, result):
    """Each of two ranks takes half of a batch; gradients are averaged, and must be those of the whole batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    loop, net, x, targets = published("rate-fc", snn)
    expected, gradients = iteration(net, loop, x, targets)
    half = slice(2 * rank, 2 * rank + 2)
    graphs = Graphs()
    snn.accelerate(net, inner=graphs, compile=True)
    accelerated = nn.parallel.DistributedDataParallel(net)
    _, plain, *_ = published("rate-fc", snn)
    compiled = nn.parallel.DistributedDataParallel(plain)
    compiled.compile(backend="snnfast", options={"inner": graphs})
    for k, (parallel, module) in enumerate(((accelerated, net), (compiled, plain))):
        output = parallel(x[:, half])
        loop.loss(output, targets[half]).backward()
        same = torch.equal(output[0], expected["spikes"][:, half])
        close = [torch.allclose(p.grad, gradients[name], rtol=1e-5, atol=1e-6) for name, p in module.named_parameters()]
        result[rank, k] = [same, *close]
    result[rank, "calls"] = graphs.calls()
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        result = manager.dict()
        multiprocessing.spawn(_ddp_rank, (str(tmp_path / "store"), result), nprocs=2)
        result = dict(result)
    for rank in range(2):
        assert sum(result.pop((rank, "calls")).values()) == 4
    assert len(result) == 4 and all(all(outcome) for outcome in result.values()), result


@pytest.mark.parametrize("products", PRODUCTS)
def test_an_inner_backend_gives_the_same_numbers(products):
    loop, net, x, targets = published("rate-fc", snn)
    outcomes = []
    for inner in (None, "aot_eager"):
        torch._dynamo.reset()
        snn.accelerate(net, products=products, inner=inner, compile=True)
        outcomes.append(iteration(net, loop, x, targets))
    for ours, wanted in zip(*outcomes, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6)


def test_training_recurrent_layers_needs_no_more_memory_than_the_loop(device):
    net, x, labels = norse_tutorial(sizes=(100, 500, 10), steps=25, batch=32)
    net, x, labels = net.to(device), x.to(device), labels.to(device)
    peaks = []
    for one in (net, snn.accelerate(copy.deepcopy(net), compile=True)):
        voltages_and_gradients(one, x, labels)
        peaks.append(peak_bytes(lambda one=one: voltages_and_gradients(one, x, labels), torch.device(device)))
    assert peaks[1] <= peaks[0], peaks


def test_training_needs_no_more_memory_than_the_loop(device):
    loop, sizes = LOOPS["rate-fc"], replace(LOOPS["rate-fc"].small, T=25, B=32, layers=(100, 500, 10))
    x, targets = loop.inputs(torch.Generator().manual_seed(0), sizes)
    x, targets = x.to(device), targets.to(device)
    peaks = []
    for accelerate in (lambda net: net, lambda net: snn.accelerate(net, compile=True)):
        net = accelerate(loop.build(sizes, snntorch).to(device))

        def train(net=net):
            net.zero_grad()
            loop.loss(net(x), targets).backward()

        train()
        peaks.append(peak_bytes(train, torch.device(device)))
    assert peaks[1] <= peaks[0], peaks


def diamond():
    """a -> b -> d and a -> c -> d, with e, f beside it: e reads x, f reads e and d."""
    graph = Graph()
    x = graph.placeholder("x")
    a = graph.call_function(torch.neg, (x,))
    b, c = graph.call_function(torch.abs, (a,)), graph.call_function(torch.exp, (a,))
    d = graph.call_function(torch.add, (b, c))
    e = graph.call_function(torch.neg, (x,))
    f = graph.call_function(torch.add, (e, d))
    graph.output(f)
    return graph, (a, b, c, d, e, f)


def assert_runs(order, edges) -> None:
    """Every node is there once, and every edge leads forward or stays within its group."""
    groups = order.groups()
    place = {node: index for index, group in enumerate(groups) for node in group}
    assert len(place) == sum(map(len, groups))
    assert all(place[before] <= place[after] for before, after in edges)
    assert all(place[before] != place[after] or len(groups[place[before]]) > 1 for before, after in edges)


def edges_of(graph):
    return [(before, node) for node in graph.nodes for before in node.all_input_nodes]


def test_order_groups_what_does_not_depend_on_each_other():
    graph, (a, b, c, d, e, f) = diamond()
    order = Order(graph, [])
    assert order.contract([a, e]) is None and order.contract([b, c]) is None and order.contract([d, f]) is None
    assert [set(group) for group in order.groups()[1:4]] == [{a, e}, {b, c}, {d, f}]
    assert_runs(order, edges_of(graph))


def test_order_names_the_way_back():
    graph, (a, b, c, d, e, f) = diamond()
    order = Order(graph, [])
    path = order.contract([a, d])
    assert path[0] is a and path[1] in (b, c) and path[2:] == [d]
    assert order.contract([a, f]) is not None and order.contract([b, e]) is None
    # b stands for e now, on which f depends.
    assert order.contract([a, f])[0] is a
    assert_runs(order, edges_of(graph))


def test_order_keeps_extra_edges():
    graph, (a, b, c, d, e, f) = diamond()
    order = Order(graph, [(d, e)])
    path = order.contract([a, e])
    assert path[0] is a and path[-2:] == [d, e] and order.contract([b, c]) is None
    assert_runs(order, [*edges_of(graph), (d, e)])


def random_graph(rng, size):
    """A graph whose nodes read one or two earlier ones, and a few edges more."""
    graph = Graph()
    nodes = [graph.placeholder("x")]
    for _ in range(size):
        nodes.append(graph.call_function(torch.add, (rng.choice(nodes[-6:]), rng.choice(nodes))))
    extra = [tuple(nodes[k] for k in sorted(rng.sample(range(len(nodes)), 2))) for _ in range(3)]
    return graph, nodes, extra


def is_acyclic(groups, edges) -> bool:
    """Whether the groups can be put in order, by taking away what depends on nothing left."""
    group_of = {node: index for index, group in enumerate(groups) for node in group}
    before = {index: set() for index in range(len(groups))}
    for earlier, later in edges:
        if group_of[earlier] != group_of[later]:
            before[group_of[later]].add(group_of[earlier])
    while free := [group for group, waits_for in before.items() if not waits_for & before.keys()]:
        for group in free:
            del before[group]
    return not before


def test_order_accepts_exactly_what_stays_acyclic():
    rng = random.Random(0)
    accepted = refused = 0
    for _ in range(60):
        graph, nodes, extra = random_graph(rng, 14)
        order, edges = Order(graph, extra), [*edges_of(graph), *extra]
        groups, free = [[node] for node in graph.nodes], nodes[1:]
        for _ in range(6):
            wanted = rng.sample(free, min(len(free), rng.choice([2, 2, 3])))
            contracted = [group for group in groups if group[0] not in wanted] + [wanted]
            path = order.contract(wanted)
            assert (path is None) == is_acyclic(contracted, edges)
            assert path is None or (path[0] in wanted and path[-1] in wanted and len(path) > 2)
            if path is None:
                groups, free = contracted, [node for node in free if node not in wanted]
            accepted, refused = accepted + (path is None), refused + (path is not None)
            assert_runs(order, edges)
    assert accepted > 50 and refused > 50


def captured(function, *inputs) -> Graph:
    """The graph that Dynamo makes of a function."""
    graphs = Graphs()
    torch.compile(function, backend=graphs, fullgraph=True)(*inputs)
    return graphs[0].graph


def test_effects_of_calls():
    def function(x, out, mean, var):
        y = x + 1
        added = y.sin()
        added += x
        out[0] = x[0]
        dropped = F.dropout(added, 0.5, training=True)
        kept = F.dropout(added, 0.5, training=False)
        normed = F.batch_norm(dropped, mean, var, training=True)
        again = F.batch_norm(dropped, mean, var, training=False)
        with torch.no_grad():
            doubled = x * 2
        y.view(-1).zero_()
        return normed + again + kept + doubled + torch.rand_like(x) + y

    graph = captured(function, torch.randn(3, 4), torch.zeros(3, 4), torch.zeros(4), torch.ones(4))
    watcher = Watcher(graph)
    calls = [node for node in graph.nodes if g.is_call(node)]
    found = {(node.target, watcher.effects(node)) for node in calls if watcher.effects(node)}
    assert found == {
        (operator.iadd, Effects(writes=(0,))),
        (operator.setitem, Effects(writes=(0,))),
        (F.dropout, Effects(random=True)),
        (F.batch_norm, Effects(writes=(1, 2))),
        (torch._C._set_grad_enabled, FENCE),
        ("zero_", Effects(writes=(0,))),
        (torch.rand_like, Effects(random=True)),
    }
    # Of the two, the one in evaluation does nothing.
    assert [watcher.effects(node) for node in calls if node.target is F.dropout][1] == NONE
    assert [watcher.effects(node) for node in calls if node.target is F.batch_norm][1] == NONE
    viewed = next(node for node in calls if node.target == "zero_")
    added = next(node for node in calls if node.target is operator.add)
    assert watcher.written(viewed) == g.storages(added)


def effect_order(function, *inputs):
    """The order of a captured function, and its calls by target."""
    graph = captured(function, *inputs)
    calls = {}
    for node in graph.nodes:
        calls.setdefault(node.target, []).append(node)
    return Order(graph, effect_edges(graph, Watcher(graph))), calls


def test_reads_around_a_write_stay_apart():
    def function(x):
        y = x.sin()
        before, twice = y.exp(), y.cos()
        y += 1
        after, late = y.exp(), y.cos()
        return before, twice, after, late

    order, calls = effect_order(function, torch.randn(3))
    assert operator.iadd in [node.target for node in order.contract(calls["exp"])]
    assert order.contract([calls["exp"][0], calls["cos"][0]]) is None
    assert order.contract([calls["exp"][1], calls["cos"][1]]) is None


def test_random_draws_stay_in_order():
    def function(x):
        return [F.dropout(x), torch.rand_like(x), F.dropout(x)]

    order, calls = effect_order(function, torch.randn(3))
    first, last = calls[F.dropout]
    assert order.contract([first, last]) == [first, *calls[torch.rand_like], last]
    assert order.contract([first, *calls[torch.rand_like]]) is None


def test_nothing_crosses_a_change_of_mode():
    def function(x):
        inside = x.exp()
        with torch.no_grad():
            constant = x.exp()
        return inside, constant, x.exp()

    order, calls = effect_order(function, torch.randn(3))
    first, constant, last = calls["exp"]
    for pair in ([first, constant], [constant, last], [first, last]):
        assert torch._C._set_grad_enabled in [node.target for node in order.contract(pair)]


def test_functional_steps_are_fused():
    """Numbers for parameters, no module, and gradients in float64."""

    def function(x, weight):
        mem, spk_rec = None, []
        for step in x:
            spk, mem = snn.functional.leaky_step(step @ weight, mem, beta=0.85, threshold=0.4)
            spk_rec.append(spk)
        return torch.stack(spk_rec), mem

    inputs, nothing, graphs = (normal(T, B, 6), normal(6, 8)), nn.Module(), Graphs()
    compiled = torch.compile(function, backend="snnfast", options={"inner": graphs})
    assert_same(everything_of(nothing, compiled, inputs), everything_of(nothing, function, inputs), exact=False)
    assert sum(graphs.calls().values()) == sum(graphs.sequences().values()) == 1


@pytest.mark.parametrize(
    "seeds", [range(PROGRAMS // 4), pytest.param((*range(PROGRAMS), *ONCE_WRONG), marks=pytest.mark.long)]
)
def test_random_programs(seeds):
    """Some programs, and those that found a mistake; `tests/fuzz_compiler.py` runs more of them."""
    counts, failures, skipped = Counter(), [], 0
    for seed in seeds:
        try:
            counts.update(check(random_program(seed), random_options(seed)))
        except Raised:
            skipped += 1
        except AssertionError as error:
            failures.append(f"seed {seed}: {error}")
    assert not failures, "\n\n".join(failures)
    # What is left: windows of one step, feedback, states that a program changes between the steps.
    assert skipped < len(seeds) / 5 and counts["layers fused"] > counts["layers"] / 5
