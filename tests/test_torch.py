"""Rules of the installed torch that differ from one torch to the next: a neuron follows them as snnTorch does."""

import pytest
import snntorch
import torch
from torch import nn

import snnfast
from cases import RESETS
from snnfast import functional, layouts, reference

# At, beside and beyond the bounds of the clamp of decays, whose gradient at a bound changed with torch 2.14.
FACTORS = [-0.5, -0.0, 0.0, 1e-45, 0.5, 1 - 2**-24, 1.0, 1 + 2**-23, 1.5, float("nan")]
LEARNT = [
    ("Leaky", "beta"),
    *((name, decay) for name in ("Synaptic", "RSynaptic") for decay in ("alpha", "beta")),
    *(("RLeaky", "beta"), ("Alpha", "beta")),
]


def layer_with(library, name, learnt, decays, dense=False, **options):
    """A layer of neurons with these decays [N], learnt by name."""
    if name.startswith("R"):
        options |= {"linear_features": len(decays)} if dense else {"all_to_all": False, "V": 0.3}
    arguments = {"beta": 0.7, learnt: decays}
    if name == "Alpha":
        # Its alpha, at most 1, has to be above its beta.
        arguments = {"alpha": 1.0, "beta": decays.where(decays < 1, torch.nan)}
    elif name.endswith("Synaptic"):
        arguments = {"alpha": 0.6, **arguments}
    torch.manual_seed(1)
    return getattr(library, name)(**arguments, **options, init_hidden=True, output=True, **{f"learn_{learnt}": True})


def stepped(layer, x):
    layer.reset_mem()
    return [torch.stack(column) for column in zip(*(layer(current) for current in x), strict=True)]


class Loop(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return stepped(self.layer, x)


def unrolled(layer, x):
    layer.reset_mem()
    return layer.unroll(x)


def gradients(outputs, layer, create_graph=False):
    # A NaN is no reason for a neuron's gradient to reach its neighbours.
    loss = sum((torch.nan_to_num(output) * (k + 1)).sum() for k, output in enumerate(outputs))
    params = dict(layer.named_parameters())
    return dict(zip(params, torch.autograd.grad(loss, params.values(), create_graph=create_graph), strict=True))


def assert_same_rule(ours, theirs):
    """The same elements have a gradient, and it is the same to rounding."""
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, equal_nan=True)
        assert torch.equal(ours[name] == 0, gradient == 0), name


def layers_and_gradients(name, learnt, device, dtype=torch.float32, **options):
    """A layer of ours and its copy of snnTorch's, a current, and what snnTorch's learns from it."""
    decays = torch.tensor(FACTORS, dtype=dtype)
    ours, theirs = (layer_with(library, name, learnt, decays, **options).to(device) for library in (snnfast, snntorch))
    x = torch.randn(5, 3, len(FACTORS), device=device).to(dtype) + 0.5
    return ours, x, gradients(stepped(theirs, x), theirs)


@pytest.mark.parametrize("name, learnt", LEARNT, ids=str)
@pytest.mark.parametrize("reset", RESETS)
def test_a_decay_at_its_bounds_learns_as_in_snntorch(name, learnt, reset, device):
    for dtype in (torch.float32, torch.float64):
        ours, x, expected = layers_and_gradients(name, learnt, device, dtype, reset_mechanism=reset)
        assert_same_rule(gradients(stepped(ours, x), ours), expected)
        assert_same_rule(gradients(unrolled(ours, x), ours), expected)
        assert_same_rule(gradients(unrolled(ours, x), ours, create_graph=True), expected)
        with snnfast.use_reference():
            assert_same_rule(gradients(unrolled(ours, x), ours), expected)


@pytest.mark.parametrize("name", ["RLeaky", "RSynaptic"])
def test_a_decay_at_its_bounds_learns_in_a_layer_that_hears_itself(name, device):
    ours, x, expected = layers_and_gradients(name, "beta", device, dense=True)
    assert_same_rule(gradients(unrolled(ours, x), ours), expected)


def test_a_decay_at_its_bounds_learns_in_a_fused_network(device):
    ours, x, expected = layers_and_gradients("Leaky", "beta", device)
    assert_same_rule(gradients(snnfast.accelerate(Loop(ours), compile=True)(x), ours), expected)
    ours.reset_mem()
    again = snnfast.Unroll(nn.Sequential(ours), recompute=True)
    assert_same_rule(gradients(again(x), ours), expected)


def test_a_decay_beside_its_bound_in_double_is_clamped_in_double():
    """A number as float64 beside float32 currents: only just beyond the bound, where in float32 it would be at it."""
    x = torch.ones(4, 2)
    for beta in (1 + 1e-12, 1 - 1e-12):
        found = []
        for library in (snntorch, snnfast):
            decay = torch.tensor(beta, dtype=torch.float64)
            layer = library.Leaky(decay, learn_beta=True, init_hidden=True, output=True)
            found.append(gradients(stepped(layer, x), layer)["beta"])
        torch.testing.assert_close(*reversed(found), rtol=1e-6, atol=0)
        assert (found[0] == 0) == (beta > 1)


@pytest.mark.parametrize("model", [model for model in reference.MODELS if model.clamped], ids=lambda model: model.name)
def test_a_learnt_parameter_that_a_step_clamps_is_clamped_by_torch(model):
    """What reaches the kernels: within the bounds, and behind torch's clamp in the graph, in every model."""
    params = tuple(torch.tensor(1.5, requires_grad=True) for _ in model.params)
    layout = layouts.of(torch.ones(2, 3), time=0)
    kernels = functional._for_kernels(model, params, (3,), torch.float32, layout)
    for name, param in zip(model.params, kernels, strict=True):
        assert param.item() == (1.0 if name in model.clamped else 1.5)
    assert set(model.clamped) == {"alpha", "beta", "rho"} & set(model.params)
