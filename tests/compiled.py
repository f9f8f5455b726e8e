"""A loop is a function of a network and its inputs, with the network's layers beside it; and what it comes to."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import snnfast as snn
import snnfast.norse as norse
from programs.draft import firing
from published import LOOPS, maximum_loss
from snnfast.compiler import graph as g
from snnfast.compiler.backend import is_sequence_call
from snnfast.ops import CAPTURED

T, B = 4, 3


LIF = {"beta": 0.9, "threshold": 0.6}


PRODUCTS = ["batched", "per-step"]


# Graphs of neurons written in plain torch are large; in so many steps all their layers fire.
STEPS = {"zero-reset-fc": 4, "norse-conv": 10}


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
        net = firing(Net(self.loop, self.layers()))
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


def said_of(explanation) -> dict[str, str]:
    """What an explanation says of each layer."""
    said = {}
    for layer in explanation.layers:
        said[layer.layer] = said.get(layer.layer, "") + str(layer)
    return said | explanation.unseen


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
