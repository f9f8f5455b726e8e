"""Every other neuron of snnTorch 1.0.0 against snnTorch itself: the same numbers, bit for bit."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import snntorch
import snntorch.surrogate
import torch

import snnfast
from cases import RESETS, identical
from snnfast import surrogate

SURROGATES = {"atan": {}, "fast_sigmoid": {"slope": 25}, "triangular": {}, "straight_through_estimator": {}}


@dataclass(frozen=True)
class Neuron:
    """A class of snnTorch's name: the parameters it learns, and how a case draws its arguments."""

    name: str
    arguments: Callable[[Callable, tuple], dict]
    learned: tuple[str, ...]
    delays: tuple[bool, ...] = (True, False)
    snntorchs_delays: tuple[bool, ...] = (True, False)

    def layer(self, library, case, device, dtype=torch.float32, **options):
        draw = torch.Generator().manual_seed(case.seed)
        arguments = self.arguments(lambda *shape: torch.rand(shape, generator=draw, dtype=torch.float64), case.params)
        arguments = {n: v.to(dtype) if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
        delay = {} if self.delays == (True,) else {"reset_delay": case.reset_delay}
        learn = {f"learn_{name}": True for name in self.learned}
        spike_grad = getattr(surrogate if library is snnfast else snntorch.surrogate, case.surrogate)
        options = {"spike_grad": spike_grad(**SURROGATES[case.surrogate]), **options}
        layer = getattr(library, self.name)(
            **arguments, **learn, **delay, reset_mechanism=case.reset_mechanism, **options
        )
        return layer.to(device)


def decay(draw, params):
    return draw(*params) * 0.6 + 0.38


NEURONS = (
    Neuron(
        "Synaptic",
        lambda draw, p: {"alpha": decay(draw, p), "beta": decay(draw, p), "threshold": draw(*p) * 0.5 + 0.4},
        ("alpha", "beta", "threshold"),
    ),
    Neuron(
        "RLeaky",
        lambda draw, p: {"beta": decay(draw, p), "V": draw(*p) - 0.4, "all_to_all": False, "threshold": draw(*p) + 0.3},
        ("beta", "threshold"),
    ),
    Neuron(
        "RSynaptic",
        lambda draw, p: {
            **{"alpha": decay(draw, p), "beta": decay(draw, p), "V": draw(*p) - 0.4},
            **{"all_to_all": False, "threshold": draw(*p) + 0.3},
        },
        ("alpha", "beta", "threshold"),
        snntorchs_delays=(True,),
    ),
    Neuron(
        "Lapicque",
        lambda draw, p: {"R": 1.5, "C": 2.0, "time_step": 0.7, "threshold": draw(*p) * 0.3 + 0.1},
        ("threshold",),
        (True,),
    ),
    Neuron(
        "Alpha",
        lambda draw, p: {
            "alpha": draw(*p) * 0.1 + 0.8,
            "beta": draw(*p) * 0.3 + 0.4,
            "threshold": draw(*p) * 0.3 + 0.1,
        },
        ("beta", "threshold"),
        (True,),
    ),
)


@dataclass(frozen=True)
class Case:
    neuron: Neuron
    seed: int
    reset_mechanism: str
    reset_delay: bool
    surrogate: str
    steps: int
    shape: tuple[int, ...]
    per_neuron: bool
    initial: bool
    loss: str

    @property
    def params(self):
        return self.shape[-1:] if self.per_neuron else ()

    def __str__(self):
        delay = "delay" if self.reset_delay else "now"
        return f"{self.neuron.name}-seed{self.seed}-{self.reset_mechanism}-{delay}-{self.surrogate}-{self.loss}"


def cases():
    shapes = [(7, 33), (2, 600), (4, 3, 5), (3,), (5, 1031)]
    for neuron in NEURONS:
        grid = itertools.product(RESETS, neuron.delays, SURROGATES, ("spk", "states", "both"))
        for index, (reset, delay, name, loss) in enumerate(grid):
            steps, shape = (1, 2, 20, 40)[index % 4], shapes[index % 5]
            yield Case(neuron, index, reset, delay, name, steps, shape, index % 3 == 0, index % 2 == 0, loss)


CASES = list(cases())


def tensors(case, states, device, dtype):
    draw = torch.Generator().manual_seed(case.seed)

    def normal(*shape):
        return torch.randn(shape, generator=draw).to(device=device, dtype=dtype)

    x = (normal(case.steps, *case.shape) + 0.3).requires_grad_()
    initial = [normal(*case.shape).requires_grad_() for _ in range(states)] if case.initial else [None] * states
    weights = [normal(case.steps, *case.shape) for _ in range(4)]
    return x, initial, weights


def finish(case, layer, x, initial, outputs, weights):
    spk, *states = outputs
    used = {"spk": [spk], "states": states, "both": [spk, *states]}[case.loss]
    sum((output * weight).sum() for output, weight in zip(used, weights, strict=False)).backward()
    return {
        "outputs": [output.detach() for output in outputs],
        "gradients": [tensor.grad for tensor in (x, *initial) if tensor is not None],
        "parameters": {name: param.grad for name, param in layer.named_parameters()},
    }


def run(case, layer, device, unrolled=False, dtype=torch.float32):
    names = getattr(snnfast, case.neuron.name).state_names
    x, initial, weights = tensors(case, len(names), device, dtype)
    if unrolled:
        return finish(case, layer, x, initial, layer.unroll(x, *initial), weights)
    states = [torch.zeros_like(x[0]) if state is None else state for state in initial]
    steps = []
    for current in x.unbind(0):
        outputs = layer(current, *states)
        steps.append(outputs)
        states = outputs[len(outputs) - len(names) :]
    return finish(case, layer, x, initial, [torch.stack(column) for column in zip(*steps, strict=True)], weights)


def assert_identical(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or identical(a, torch.zeros_like(a) if b is None else b.to(a.dtype))


@pytest.mark.parametrize("case", [case for case in CASES if case.reset_delay in case.neuron.snntorchs_delays], ids=str)
def test_bit_identical_to_snntorch(case, device):
    theirs = run(case, case.neuron.layer(snntorch, case, device), device)
    for unrolled in (True, False):
        ours = run(case, case.neuron.layer(snnfast, case, device), device, unrolled)
        assert_identical(ours["outputs"], theirs["outputs"])
        in_terms = case.reset_mechanism == "zero" or case.neuron.name == "Alpha"
        if unrolled or not in_terms:
            assert_identical(ours["gradients"], theirs["gradients"])
        else:
            # A step hands the two terms of a reset's gradient on as one.
            for a, b in zip(ours["gradients"], theirs["gradients"], strict=True):
                torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-4, atol=1e-5)
        for name, gradient in theirs["parameters"].items():
            if gradient is not None and gradient.isfinite().all():
                size = max(1.0, gradient.abs().max().item())
                torch.testing.assert_close(ours["parameters"][name], gradient, rtol=1e-3, atol=1e-4 * size, msg=name)


def test_the_cases_are_worth_running():
    """Spikes fire, not always, in every neuron."""
    for neuron in NEURONS:
        rates = []
        for case in CASES:
            if case.neuron is neuron:
                spk = run(case, neuron.layer(snnfast, case, "cpu"), "cpu", unrolled=True)["outputs"][0]
                rates.append(spk.mean().item())
        assert 0.05 < sum(rates) / len(rates) < 0.75, (neuron.name, rates)


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: neuron.name)
def test_parameter_gradients_against_float64(neuron, device):
    """The fused gradients against autograd over the reference, both in float64, where rounding decides nothing."""
    for case in CASES:
        if case.neuron is not neuron or case.seed % 5:
            continue
        options = {"dtype": torch.float64}
        ours = run(case, neuron.layer(snnfast, case, device, **options), device, True, torch.float64)
        with snnfast.use_reference():
            loop = run(case, neuron.layer(snnfast, case, device, **options), device, True, torch.float64)
        for name, gradient in loop["parameters"].items():
            if gradient is not None and gradient.isfinite().all():
                torch.testing.assert_close(
                    ours["parameters"][name], gradient, rtol=1e-9, atol=1e-9, msg=f"{name} {case}"
                )


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: neuron.name)
def test_double_backward(neuron, device):
    for case in CASES:
        if case.neuron is not neuron or case.surrogate != "atan" or case.steps > 20:
            continue
        second = []
        for loop in (False, True):
            layer = neuron.layer(snnfast, case, device, dtype=torch.float64)
            x, initial, weights = tensors(case, len(layer.state_names), device, torch.float64)
            initial = [torch.zeros_like(x[0]) if state is None else state.detach() for state in initial]
            with snnfast.use_reference() if loop else torch.enable_grad():
                outputs = layer.unroll(x, *initial)
            loss = sum((o.square() * w).sum() for o, w in zip(outputs, weights, strict=False))
            (first,) = torch.autograd.grad(loss, x, create_graph=True)
            second.append(torch.autograd.grad(first.square().sum(), x, allow_unused=True)[0])
        ours, theirs = second
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8, msg=str(case))


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: neuron.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_float32_states(neuron, dtype, device):
    case = next(case for case in CASES if case.neuron is neuron and case.steps == 20)
    layer = neuron.layer(snnfast, case, device)
    x = torch.randn(20, 4, 33, device=device).to(dtype)
    if case.per_neuron and case.shape[-1] != 33:
        x = torch.randn(20, 4, case.shape[-1], device=device).to(dtype)
    spk, *states = layer.unroll(x)
    spk32, *states32 = layer.unroll(x.float())
    assert spk.dtype == dtype and identical(spk.float(), spk32)
    for ours, theirs in zip(states, states32, strict=True):
        assert ours.dtype == torch.float32 and identical(ours, theirs)


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: neuron.name)
def test_is_snntorchs_layer(neuron):
    """isinstance, state_dict both ways, hidden states, `convert`, `reset`, repr."""
    case = next(case for case in CASES if case.neuron is neuron)
    theirs, ours = (neuron.layer(library, case, "cpu", init_hidden=True) for library in (snntorch, snnfast))
    assert isinstance(ours, getattr(snntorch, neuron.name))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, *case.shape)
    expected = [theirs(current) for current in x]
    assert all(identical(ours(current), spk) for current, spk in zip(x, expected, strict=True))
    for name in ours.state_names:
        assert identical(getattr(ours, name).detach(), getattr(theirs, name).detach())
    net = snnfast.convert(torch.nn.Sequential(theirs))
    assert type(net[0]) is type(ours)
    current = torch.randn(case.shape)
    assert identical(net(current), ours(current))
    snnfast.reset(net)
    assert all((getattr(net[0], name) == 0).all() for name in ours.state_names)
    with pytest.raises(TypeError, match="must not be passed while init_hidden=True"):
        ours(current, *[torch.zeros(case.shape)] * len(ours.state_names))
    assert neuron.name in repr(ours)


@pytest.mark.parametrize("neuron", NEURONS, ids=lambda neuron: neuron.name)
def test_compiles_whole(neuron):
    case = next(case for case in CASES if case.neuron is neuron and case.steps == 20 and case.loss == "both")
    layer = neuron.layer(snnfast, case, "cpu")
    x = torch.randn(6, *case.shape)

    def loop(x):
        states, spikes = [torch.zeros_like(x[0])] * len(layer.state_names), []
        for current in x.unbind(0):
            outputs = layer(current, *states)
            spikes.append(outputs[0])
            states = outputs[len(outputs) - len(states) :]
        return torch.stack(spikes)

    for function in (loop, lambda x: layer.unroll(x)[0]):
        results = []
        for run_ in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
            current = x.clone().requires_grad_()
            spk = run_(current)
            spk.sum().backward()
            results.append((spk.detach(), current.grad))
        assert identical(results[0][0], results[1][0]) and identical(results[0][1], results[1][1])
