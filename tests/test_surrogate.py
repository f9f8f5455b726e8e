"""Surrogates: recognised in every form users hand them in, the same formula in Python and in the kernels."""

import pickle

import numpy as np
import pytest
import snntorch.surrogate as theirs
import torch

import published
import snnfast
from cases import EXACT_SURROGATES, ROUNDED_SURROGATES, VARIED, identical
from snnfast import functional
from snnfast import surrogate as ours

ALL = {**EXACT_SURROGATES, **ROUNDED_SURROGATES}


@pytest.mark.parametrize("name", ALL)
def test_snntorch_closures_become_named_surrogates(name):
    constants = VARIED.get(name, ALL[name])
    resolved = ours.resolve(getattr(theirs, name)(**constants))
    assert resolved == getattr(ours, name)(**constants)


def test_default_constants_are_snntorchs():
    for name in ALL:
        assert ours.resolve(getattr(theirs, name)()) == getattr(ours, name)()
    assert ours.resolve(None) == ours.resolve(snnfast.Leaky(0.9).spike_grad) == ours.atan(alpha=2.0)


@pytest.mark.parametrize("name", EXACT_SURROGATES)
def test_python_formula_is_snntorchs_bit_for_bit(name):
    for constants in (ALL[name], VARIED.get(name, ALL[name])):
        grads = []
        for module in (ours, theirs):
            u = torch.linspace(-4, 4, 4001, requires_grad=True)
            spikes = getattr(module, name)(**constants)(u)
            assert torch.equal(spikes, (u > 0).float())
            spikes.backward(torch.linspace(-2, 3, 4001))
            grads.append(u.grad)
        assert identical(*grads)


@pytest.mark.parametrize("name", ALL)
def test_kernel_and_python_formula_agree(name, device):
    """One step of an undecayed neuron: dL/dx is the surrogate's gradient itself."""
    surrogate = getattr(ours, name)(**ALL[name])
    x = torch.linspace(-4, 4, 4001, device=device, requires_grad=True)
    go = torch.linspace(-2, 3, 4001, device=device)
    spk, _ = functional.leaky_step(x, beta=0.0, surrogate=surrogate, reset_mechanism="none")
    spk.backward(go)
    expected = surrogate.gradient(x.detach() - 1, go)
    if name in EXACT_SURROGATES:
        assert identical(x.grad, expected)
    else:
        torch.testing.assert_close(x.grad, expected, rtol=2e-6, atol=0)


def test_derivatives_are_those_of_smooth_primitives():
    """Finite differences of the function whose derivative each surrogate is, up to the sign snnTorch gives it."""
    u = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    h = 1e-6
    primitives = {
        ours.atan(2.0): lambda v: torch.atan(torch.pi * v) / torch.pi,
        ours.fast_sigmoid(7.0): lambda v: v / (1 + 7 * v.abs()),
        ours.sigmoid(5.0): lambda v: torch.sigmoid(5 * v),
        ours.spike_rate_escape(2.0, 3.0): lambda v: 1.5 * torch.sign(v - 1) * (1 - torch.exp(-2 * (v - 1).abs())),
    }
    for surrogate, primitive in primitives.items():
        slope = (primitive(u + h) - primitive(u - h)) / (2 * h)
        torch.testing.assert_close(surrogate.gradient(u, torch.ones_like(u)), slope, rtol=1e-5, atol=1e-6)


def test_sigmoid_is_finite_where_snntorch_overflows(device):
    u = torch.linspace(-50, 50, 101, device=device, requires_grad=True)
    theirs.sigmoid(slope=25)(u).sum().backward()
    assert u.grad.isnan().any()
    spk, _ = functional.leaky_step(u, beta=0.5, surrogate=theirs.sigmoid(slope=25))
    (grad,) = torch.autograd.grad(spk.sum(), u)
    assert grad.isfinite().all() and grad[51] > 0


def test_surrogates_pickle_compare_and_print():
    for name, constants in ALL.items():
        surrogate = getattr(ours, name)(**constants)
        assert pickle.loads(pickle.dumps(surrogate)) == surrogate
        assert repr(surrogate).startswith(f"{name}(")


class StepWithModule(torch.nn.Module):
    """A step whose surrogate learns its own slope."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, u):
        smooth = torch.sigmoid(self.slope * u)
        return (u > 0).float() + smooth - smooth.detach()


def test_unknown_callables_are_told_apart():
    assert isinstance(ours.resolve(theirs.custom_surrogate(lambda u, g, s: g)), ours.evaluated)
    learning, ramp = StepWithModule(), torch.sigmoid
    assert ours.resolve(learning) is learning
    assert ours.resolve(ramp) is ramp
    with pytest.raises(TypeError, match="spike_grad must be callable or None, got str"):
        ours.resolve("atan")


def test_a_learning_surrogate_learns_on_the_reference_path():
    functional._said.clear()
    layer = snnfast.Leaky(0.9, spike_grad=StepWithModule())
    with pytest.warns(UserWarning, match="spike_grad that is no plain step"):
        spk, _ = layer.unroll(torch.randn(5, 3, 4))
    spk.sum().backward()
    assert layer.spike_grad.slope.grad.abs() > 0
    assert dict(layer.named_parameters()).keys() == {"spike_grad.slope"}


def test_a_surrogate_that_is_no_step_keeps_its_numbers():
    import snntorch

    x = torch.randn(8, 3, 5)
    results = []
    for library in (snnfast, snntorch):
        layer, mem = library.Leaky(0.9, spike_grad=torch.sigmoid), torch.zeros(3, 5)
        for step in x.unbind(0):
            spk, mem = layer(step, mem)
        results.append((spk, mem))
    assert identical(results[0][0], results[1][0]) and identical(results[0][1], results[1][1])


def test_an_unfused_surrogate_is_looked_at_once_not_at_every_step():
    calls = []

    def ramp(u):
        calls.append(1)
        return torch.sigmoid(u)

    layer = snnfast.Leaky(0.9, spike_grad=ramp)
    calls.clear()
    layer(torch.randn(2, 3))
    assert len(calls) == 2, "once for the reset and once for the spike, as in snnTorch"


def test_stochastic_surrogate_trains(device):
    x = torch.randn(6, 4, 50, device=device, requires_grad=True)
    functional.leaky(x, beta=0.9, surrogate=theirs.SSO())[0].sum().backward()
    assert x.grad.isfinite().all() and np.count_nonzero(x.grad.cpu().numpy()) > 0


def test_what_a_derivative_cannot_say_is_not_fused():
    """Backward that is not linear in the gradient, spikes of several heights, a class that only looks like ours."""
    clipped = theirs.custom_surrogate(lambda u, grad, spikes: grad.clamp(-0.1, 0.1))
    assert ours.resolve(clipped) is clipped

    def two_levels(u):
        return theirs.fast_sigmoid()(u) + theirs.fast_sigmoid()(u - 500)

    assert ours.resolve(two_levels) is two_levels

    class atan(ours.Surrogate):
        def gradient(self, u, go):
            return 7 * go

    x = torch.randn(4, 3, requires_grad=True)
    functional.leaky_step(x, beta=0.9, surrogate=atan())[0].sum().backward()
    assert (x.grad == 7).all()


def test_tensor_constants_are_left_to_the_function_that_has_them():
    slope = torch.tensor(25.0)
    assert isinstance(ours.resolve(theirs.fast_sigmoid(slope=slope)), ours.evaluated)


class ScaledStep(torch.nn.Module):
    """A surrogate module without parameters, but with a buffer to move and to save."""

    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.tensor(10.0))

    def forward(self, u):
        return theirs.fast_sigmoid(slope=self.slope)(u)


def test_a_surrogate_module_stays_a_module_of_the_layer():
    import snntorch

    step = ScaledStep()
    layer = snnfast.Leaky(0.9, spike_grad=step)
    assert layer.spike_grad is step and "spike_grad.slope" in layer.state_dict()
    assert layer.double().spike_grad.slope.dtype == torch.float64
    layer.load_state_dict(snntorch.Leaky(0.9, spike_grad=ScaledStep()).state_dict())
    layer.spike_grad = ours.heaviside()
    assert layer.spike_grad == ours.heaviside() and "spike_grad.slope" not in layer.state_dict()
    converted = snnfast.convert(snntorch.Leaky(0.9, spike_grad=step.float()))
    assert type(converted) is snnfast.Leaky and converted.spike_grad is step


NORSES = ("triangle", "tanh", "circ", "erfc")


def from_autograd(name, alpha):
    """Derivatives of Norse's and of the logistic surrogate, as their authors write them."""
    formulas = {
        "triangle": lambda u, go: go * alpha * torch.relu(1 - u.abs()),
        "tanh": lambda u, go: go * (1 - (u * alpha).tanh().pow(2)),
        "circ": lambda u, go: (
            go * (-(u**2 / (2 * (alpha**2 + u**2).pow(1.5))) + 1 / (2 * (alpha**2 + u**2).sqrt())) * 2 * alpha
        ),
        "erfc": lambda u, go: 2 * torch.exp(-(alpha * u).pow(2)) / torch.as_tensor(np.pi).sqrt() * go,
        "logistic": lambda u, go: go * torch.sigmoid(alpha * u) * (1 - torch.sigmoid(alpha * u)),
    }
    return formulas[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", [0.7, 2.0, 100.0])
@pytest.mark.parametrize("name", [*NORSES, "logistic"])
def test_norses_and_logistic_in_python_and_in_the_kernels(name, alpha, dtype, device):
    surrogate = getattr(ours, name)(alpha)
    x = torch.linspace(-4, 4, 4001, device=device, dtype=dtype, requires_grad=True)
    go = torch.linspace(-2, 3, 4001, device=device, dtype=dtype)
    expected = from_autograd(name, alpha)(x.detach() - 1, go)
    (in_python,) = torch.autograd.grad(surrogate(x - 1), x, go)
    spk, _ = functional.leaky_step(x, beta=0.0, surrogate=surrogate, reset_mechanism="none")
    spk.backward(go)
    if name == "triangle":
        assert identical(in_python, expected) and identical(x.grad, expected)
    else:
        # circ cancels, 1 - tanh(..)**2 and 1 - s do too.
        eps = torch.finfo(torch.float32).eps
        torch.testing.assert_close(in_python, expected, rtol=20 * eps, atol=20 * eps)
        torch.testing.assert_close(x.grad, expected, rtol=20 * eps, atol=20 * eps)


def test_constants_and_keys_make_surrogates_again():
    for surrogate in (
        ours.logistic(3.0, inclusive=True),
        ours.logistic(),
        *(getattr(ours, name)(1.5) for name in NORSES),
    ):
        assert ours.named(*surrogate.key) == surrogate == pickle.loads(pickle.dumps(surrogate))
        assert ours.named(*surrogate.key).inclusive is surrogate.inclusive
        assert ours.resolve(surrogate) is surrogate
    assert ours.logistic(3.0, inclusive=True).constants == [3.0]
    assert ours.logistic(3.0, inclusive=True) != ours.logistic(3.0)


@pytest.mark.parametrize("inclusive", [False, True])
def test_logistic_fires_at_the_threshold_where_inclusive(inclusive, device):
    u = torch.tensor([-1.0, -0.0, 0.0, 1.0, float("nan")], device=device)
    expected = torch.tensor([0.0, inclusive, inclusive, 1.0, 0.0], device=device)
    surrogate = ours.logistic(inclusive=inclusive)
    assert torch.equal(surrogate(u), expected)
    spk, _ = functional.leaky_step(u + 1, beta=0.0, surrogate=surrogate, reset_mechanism="none")
    assert torch.equal(spk, expected)


@pytest.mark.parametrize("spike", [published.LogisticSpike, published.LogisticSpikeAbove])
def test_a_step_that_fires_at_the_threshold_stays_fused(spike, device, monkeypatch):
    """The published neuron that resets to zero: its spikes, membranes and, but for rounding, gradients."""
    inclusive = spike is published.LogisticSpike
    assert ours.resolve(spike.apply) == ours.evaluated(spike.apply, inclusive)
    monkeypatch.setattr(published, "LogisticSpike", spike)
    # Multiples of 1/8 meet the threshold.
    x0 = torch.randint(-8, 12, (30, 4, 50), device=device) / 8
    weights = torch.randn(30, 4, 50, device=device)
    results = []
    functional._said.clear()
    for surrogate in (None, spike.apply, ours.logistic(inclusive=inclusive)):
        x, mem = x0.clone().requires_grad_(), torch.zeros(4, 50, device=device)
        if surrogate is None:
            neuron, spikes = published.ZeroResetLIF(beta=0.5), []
            for current in x.unbind(0):
                spk, mem = neuron(current, mem)
                spikes.append(spk)
            spk = torch.stack(spikes)
        else:
            spk, mem = snnfast.Leaky(0.5, spike_grad=surrogate, reset_mechanism="zero", reset_delay=False).unroll(x)
            mem = mem[-1]
        (spk * weights).sum().backward()
        results.append((spk, mem, x.grad))
    assert not functional._said
    assert (x0[0] == 1).any() and 0.1 < results[0][0].mean() < 0.6
    for spk, mem, grad in results[1:]:
        assert identical(spk, results[0][0]) and identical(mem, results[0][1])
        torch.testing.assert_close(grad, results[0][2], rtol=1e-5, atol=1e-6)
