"""Looks for a number of snnTorch's that snnfast does not give: random neurons and networks on both, side by side.

    python tests/differential.py --cases 2000
    python tests/differential.py --snntorch ~/snntorch     # that checkout, in the place of the installed one
    python tests/differential.py --only 1234               # print a case and compare it

Outputs (spikes, states, the loss) are compared to the bit. So are gradients, but where README says that they are added
in another order: of parameters, of the steps of a few neurons, through a product over several steps; these may differ
by `ROUNDING` of the largest. Exit status 1: something differs.
"""

import argparse
import os
import random
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import snntorch
import torch
from snntorch import surrogate, utils
from torch import Tensor, nn

import snnfast
from cases import RESETS, identical

ROUNDING = 1e-3
SURROGATES = {
    "atan": ({}, {"alpha": 1.3}),
    "fast_sigmoid": ({"slope": 25}, {"slope": 3.7}),
    "triangular": ({}, {"threshold": 0.4}),
    "straight_through_estimator": ({},),
    "heaviside": ({},),
}
NEURONS = ("Leaky", "Synaptic", "Alpha", "Lapicque", "RLeaky", "RSynaptic")


@dataclass
class Layer:
    """A neuron layer of either library, drawn for steps of [B, features ...]."""

    name: str
    options: dict
    surrogate: str
    constants: dict

    def make(self, library) -> nn.Module:
        torch.manual_seed(0)
        spike_grad = getattr(surrogate, self.surrogate)(**self.constants)
        layer = getattr(library, self.name)(**deepcopy(self.options), spike_grad=spike_grad)
        for parameter in self.weights(layer):
            # Sums of a few such numbers are exact, in whatever order a product adds them.
            parameter.data.mul_(64).round_().div_(64)
        return layer

    @staticmethod
    def weights(layer) -> list:
        recurrent = getattr(layer, "recurrent", None)
        return [*recurrent.parameters()] if isinstance(recurrent, (nn.Linear, nn.Conv2d)) else []

    @property
    def through_weights(self) -> bool:
        return self.options.get("all_to_all", self.name.startswith("R")) is True

    @property
    def in_terms(self) -> bool:
        """Whether a step called by itself hands on as one sum what snnTorch adds one by one."""
        return self.name != "Leaky" and (self.name == "Alpha" or self.options["reset_mechanism"] == "zero")

    @property
    def hears_itself(self) -> bool:
        """Whether the spikes have two sums of gradients, of the layer and of what follows, where snnTorch has one."""
        return self.options.get("all_to_all") is False


def random_layer(rng: random.Random, shape: tuple, **options) -> Layer:
    """A layer for steps of this shape [features], or [channels, height, width]."""
    name = rng.choice(NEURONS)
    draw = torch.Generator().manual_seed(rng.randrange(2**31))

    def number(low, high):
        size = rng.choice([(), (), shape[:1] + (1,) * (len(shape) - 1), shape])
        values = torch.rand(size, generator=draw) * (high - low) + low
        return values if size else values.item()

    def decay():
        return rng.choice([0.0, 1.0, torch.tensor(1.0)]) if rng.random() < 0.15 else number(0.3, 1.05)

    options |= {"threshold": number(0.2, 1.1), "reset_mechanism": rng.choice(RESETS)}
    learnt = ["threshold"]
    if name == "Lapicque":
        options |= {"R": rng.uniform(0.5, 2), "C": rng.uniform(1, 3), "time_step": rng.uniform(0.3, 1)}
    elif name == "Alpha":
        options |= {"alpha": number(0.8, 0.95), "beta": number(0.2, 0.7)}
        learnt += ["beta"]
    else:
        decays = ("alpha", "beta") if name.endswith("Synaptic") else ("beta",)
        options |= {name: decay() for name in decays}
        learnt += decays
        options["reset_delay"] = name == "RSynaptic" or rng.random() < 0.6
    if name == "Leaky" and rng.random() < 0.3:
        options["graded_spikes_factor"] = number(0.5, 2)
        learnt += ["graded_spikes_factor"]
    if name.startswith("R"):
        options |= random_recurrence(rng, shape, number)
    options |= {f"learn_{name}": True for name in learnt if rng.random() < 0.5}
    kind = rng.choice(list(SURROGATES))
    return Layer(name, options, kind, rng.choice(SURROGATES[kind]))


def random_recurrence(rng: random.Random, shape: tuple, number) -> dict:
    if rng.random() < 0.5:
        return {"all_to_all": False, "V": number(-0.5, 0.5), "learn_recurrent": rng.random() < 0.5}
    if len(shape) == 1:
        return {"linear_features": shape[0]}
    return {"conv2d_channels": shape[0], "kernel_size": 3}


@dataclass
class Difference:
    """What one way of running a case gave beside what snnTorch did."""

    outputs: bool
    gradients: float
    parameters: float
    exact: bool
    """Whether the gradients have to be equal to the bit."""

    @property
    def wrong(self) -> bool:
        far = max(self.gradients, self.parameters) > ROUNDING
        return not self.outputs or far or (self.exact and self.gradients > 0)


def compare(ours: dict, theirs: dict, exact: bool) -> Difference:
    outputs = all(identical(a, b) for a, b in zip(ours["outputs"], theirs["outputs"], strict=True))
    gradients = max((distance(a, b) for a, b in zip(ours["gradients"], theirs["gradients"], strict=True)), default=0.0)
    names = theirs["parameters"].keys() | ours["parameters"].keys()
    found = (distance(ours["parameters"].get(name), theirs["parameters"].get(name)) for name in names)
    return Difference(outputs, gradients, max(found, default=0.0), exact)


def distance(ours: Tensor | None, theirs: Tensor | None) -> float:
    """The largest difference, in units of the largest gradient (or 1); no gradient is zeros."""
    ours, theirs = (torch.zeros_like(b) if a is None else a for a, b in ((ours, theirs), (theirs, ours)))
    if identical(ours, theirs):
        return 0.0
    if not torch.equal(ours.isfinite(), theirs.isfinite()):
        return float("inf")
    finite = theirs.isfinite()
    ours, theirs = ours[finite].double(), theirs[finite].double()
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


def results(outputs: list[Tensor], x: list[Tensor], module: nn.Module) -> dict:
    """Outputs and gradients of a loss in which every element has another weight."""
    draw = torch.Generator().manual_seed(len(outputs))
    loss = sum((output * torch.randn(output.shape, generator=draw)).sum() for output in outputs)
    loss.backward()
    return {
        "outputs": [loss.detach(), *(output.detach() for output in outputs)],
        "gradients": [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in x],
        "parameters": {name: p.grad for name, p in module.named_parameters() if p.grad is not None},
    }


def leaves(tensors) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


@dataclass
class NeuronCase:
    """One layer, with states handed over by its caller or kept by itself."""

    layer: Layer
    x: Tensor = field(repr=False)
    initial: tuple[Tensor, ...] | None = field(repr=False)

    def compared(self) -> dict[str, Difference]:
        stock = self.layer.make(snntorch)
        theirs = self.step(stock)
        exact = not self.layer.in_terms
        whole = not self.layer.through_weights
        return {
            "step": compare(self.step(self.layer.make(snnfast)), theirs, exact),
            "converted": compare(self.step(snnfast.convert(self.layer.make(snntorch))), theirs, exact),
            "sequence": compare(self.unroll(self.layer.make(snnfast)), theirs, whole),
        }

    @property
    def title(self) -> str:
        return self.layer.name

    def step(self, layer: nn.Module) -> dict:
        x, *initial = leaves((self.x, *(self.initial or ())))
        steps, states, count = [], initial, len(getattr(snnfast, self.layer.name).state_names)
        for current in x.unbind(0):
            steps.append(layer(current, *states))
            states = steps[-1][-count:] if self.initial is not None else ()
        return results([torch.stack(column) for column in zip(*steps, strict=True)], [x, *initial], layer)

    def unroll(self, layer: nn.Module) -> dict:
        x, *initial = leaves((self.x, *(self.initial or ())))
        return results(list(layer.unroll(x, *initial)), [x, *initial], layer)


class Network(nn.Module):
    """Blocks in a loop over time: the spikes of the last one, and what the others gave in the mean."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor):
        record, totals = [], [0.0] * len(self.blocks)
        for step in x.unbind(0):
            for index, block in enumerate(self.blocks):
                step = block(step)
                totals[index] = totals[index] + step.mean()
            record.append(step)
        return torch.stack(record), *totals


@dataclass
class NetworkCase:
    """Random blocks: a product, perhaps a norm, pooling or dropout, and a neuron layer."""

    seed: int
    accelerated: bool
    training: bool
    layers: list[Layer] = field(default_factory=list)

    title = "network"

    def make(self) -> tuple[Network, Tensor]:
        rng = random.Random(self.seed)
        torch.manual_seed(self.seed)
        self.layers.clear()
        images = rng.random() < 0.4
        shape = (rng.choice([1, 3]), 8, 8) if images else (rng.choice([5, 12]),)
        x = torch.rand(rng.choice([2, 4, 7]), rng.choice([1, 3]), *shape)
        blocks = []
        for _ in range(rng.choice([1, 2, 3])):
            wide = rng.choice([4, 7])
            if images:
                block = [nn.Conv2d(shape[0], wide, 3, padding=1)]
                shape = (wide, *shape[1:])
                block += rng.choice([[], [nn.BatchNorm2d(wide)]])
                if shape[-1] > 2 and rng.random() < 0.5:
                    block += [nn.AvgPool2d(2)]
                    shape = (wide, shape[1] // 2, shape[2] // 2)
            else:
                block = [nn.Linear(shape[0], wide), *rng.choice([[], [nn.LayerNorm(wide)]])]
                shape = (wide,)
            layer = random_layer(rng, shape, init_hidden=True)
            self.layers.append(layer)
            blocks.append(nn.Sequential(*block, layer.make(snntorch), *rng.choice([[], [nn.Dropout(0.3)]])))
        return Network(blocks).train(self.training), x

    def compared(self) -> dict[str, Difference]:
        stock, x = self.make()
        network = snnfast.convert(deepcopy(stock))
        theirs = self.run(stock, stock, x)
        exact = not any(layer.in_terms or layer.hears_itself for layer in self.layers)
        found = {"drop-in": compare(self.run(network, network, x), theirs, exact)}
        if self.accelerated:
            network, _ = self.make()
            fused = snnfast.accelerate(network, products="per-step", compile=True)
            through_weights = any(layer.through_weights for layer in self.layers)
            found["accelerated"] = compare(self.run(fused, network, x), theirs, exact and not through_weights)
        return found

    def run(self, function, network: Network, x: Tensor) -> dict:
        torch.manual_seed(1)
        (x,) = leaves((x,))
        utils.reset(network)
        return results(list(function(x)), [x], network)


def random_case(seed: int):
    rng = random.Random(f"case {seed}")
    if seed % 4 == 0:
        return NetworkCase(seed, accelerated=seed % 40 == 0, training=rng.random() < 0.5)
    shape = rng.choice([(3,), (17,), (5,), (2, 4, 4)])
    steps, batch = rng.choice([1, 2, 10, 25]), rng.choice([1, 4])
    hidden = rng.random() < 0.4
    layer = random_layer(rng, shape, **({"init_hidden": True, "output": True} if hidden else {}))
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, batch, *shape, generator=draw) * rng.choice([0.3, 1.0, 2.0]) + 0.3
    count = len(getattr(snnfast, layer.name).state_names)
    if hidden:
        return NeuronCase(layer, x, None)
    # Spikes that come back before the first step are 0 or 1, as those of a step before would be.
    initial = [torch.randn(batch, *shape, generator=draw) * rng.choice([0.0, 1.0]) for _ in range(count)]
    if layer.name.startswith("R"):
        initial[0] = (initial[0] > 0).to(x.dtype)
    return NeuronCase(layer, x, tuple(initial))


def differ(cases) -> int:
    """Compares all cases and prints a table; the number of those that differ."""
    rows, wrong = defaultdict(list), 0
    for seed in cases:
        case = random_case(seed)
        found = case.compared()
        for way, difference in found.items():
            rows[case.title, way].append(difference)
            if difference.wrong:
                print(f"seed {seed}: {case.title}, {way}: {difference}\n{case}\n")
        wrong += any(difference.wrong for difference in found.values())
    print(f"{'':10} {'':11} cases  outputs equal  gradients equal (largest difference)  parameters' (largest)")
    for (title, way), differences in sorted(rows.items()):
        equal = sum(d.outputs for d in differences), sum(d.gradients == 0 for d in differences)
        largest = max(d.gradients for d in differences), max(d.parameters for d in differences)
        print(
            f"{title:10} {way:11} {len(differences):5}  {equal[0]:13}  {equal[1]:15} ({largest[0]:18.1e})  "
            f"{sum(d.parameters == 0 for d in differences):11} ({largest[1]:7.1e})"
        )
    return wrong


def with_checkout(path: str) -> int:
    """Runs this script in a process that finds snnTorch in a checkout first."""
    root = Path(path).expanduser().resolve()
    if not (root / "snntorch" / "__init__.py").is_file():
        raise SystemExit(f"--snntorch must be a folder that holds snntorch/__init__.py, got {path}")
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--snntorch", path, f"--snntorch={path}")]
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, __file__, *arguments], env=os.environ | {"PYTHONPATH": paths}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next ones count up")
    parser.add_argument("--only", type=int, metavar="SEED", help="print and compare one case")
    parser.add_argument("--snntorch", metavar="PATH", help="a checkout of snnTorch; by default the installed one")
    arguments = parser.parse_args()
    if arguments.snntorch:
        return with_checkout(arguments.snntorch)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    if arguments.only is not None:
        seeds = [arguments.only]
        print(random_case(arguments.only))
    start = time.perf_counter()
    wrong = differ(seeds)
    print(f"\n{wrong} of {len(seeds)} cases differ, {time.perf_counter() - start:.0f} s")
    print(f"snntorch {snntorch.__version__} in {Path(snntorch.__file__).parent}, torch {torch.__version__}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
