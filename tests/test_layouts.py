"""Neurons are elementwise: a current in any dense layout passes untouched, with the same numbers; results keep it."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from snnfast import functional, ops, surrogate
from snnfast.reference import MODELS

ORDERS = {"channels last": (0, 2, 3, 1), "batch last": (1, 2, 3, 0), "turned": (0, 1, 3, 2)}
SHAPE = (3, 4, 5, 6)


def laid_out(x, order):
    """x, or its steps where it has one dimension more, with these dimensions from the outermost in memory."""
    time = x.dim() - len(order)
    order = [*range(time), *(dim + time for dim in order)]
    return x.detach().permute(order).contiguous().permute([order.index(dim) for dim in range(x.dim())])


def order_of(x):
    return sorted(range(x.dim()), key=lambda dim: -x.stride(dim))


def computed(model, unroll, order, given_order):
    """Outputs and gradients of one call: everything in one layout, the gradients that arrive in another."""
    draw = torch.Generator().manual_seed(len(model.name))
    sizes = itertools.cycle([SHAPE[1:], (), (SHAPE[1], 1, 1), SHAPE[-1:]])

    def leaf(shape, scale=1.0):
        drawn = torch.randn(shape, generator=draw) * scale
        return (laid_out(drawn, order) if len(shape) >= len(order) else drawn).requires_grad_()

    shape = ((5,) if unroll else ()) + SHAPE
    x, rec = leaf(shape, 2.0), leaf(shape) if model.recurrent else None
    states = tuple(leaf(SHAPE) for _ in model.states)
    params = tuple(
        (torch.rand(size, generator=draw) * 0.5 + 0.4).requires_grad_()
        for _, size in zip(model.params, sizes, strict=False)
    )
    options = ops.Options(surrogate.atan(2.0), "subtract", True, unroll)
    spk, last, seqs = functional.run(model, x, states, params, options, want_seqs=unroll, rec=rec)
    outputs = [spk, *last, *(seqs or ())]
    grads = [laid_out(torch.randn(out.shape, generator=draw), given_order) for out in outputs]
    differentiable = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
    leaves = [leaf for leaf in (x, rec, *states, *params) if leaf is not None]
    outs, given = zip(*differentiable, strict=True)
    return outputs, torch.autograd.grad(outs, leaves, given, allow_unused=True)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_model_keeps_the_layout_of_its_current(model, order, unroll):
    plain = (0, 1, 2, 3)
    outputs, grads = computed(model, unroll, plain, plain)
    for given_order in (ORDERS[order], plain):
        ours, our_grads = computed(model, unroll, ORDERS[order], given_order)
        learnt = len(model.params)
        for one, other in zip((*ours, *our_grads[:-learnt]), (*outputs, *grads[:-learnt]), strict=True):
            assert one is other is None or one.equal(other)
        # Sums over neurons, in another order.
        torch.testing.assert_close(our_grads[-learnt:], grads[-learnt:], rtol=1e-5, atol=1e-5)
        # Where a step is torch's operations, they go by all that they are given.
        own = [*ours, our_grads[0]] if unroll or model.fuses_steps else ours
        assert all(order_of(one)[-4:] == [dim + one.dim() - 4 for dim in ORDERS[order]] for one in own)


def test_nothing_is_copied(monkeypatch):
    given = []
    call = ops.calls.call
    monkeypatch.setattr(ops.calls, "call", lambda name, *rest, **more: given.append(rest) or call(name, *rest, **more))
    x = laid_out(torch.randn(4, *SHAPE), ORDERS["channels last"]).requires_grad_()
    spk, mem = functional.leaky(x, beta=torch.rand(4, 1, 1))
    (spk + mem).sum().backward()
    forward, backward = given
    assert forward[0].is_contiguous() and backward[0].is_contiguous() and forward[0].shape == (4, 3, 5, 6, 4)
    assert forward[3][0].shape == (4,)


def test_dense_recurrence_keeps_the_order_of_what_leads_to_features():
    x = torch.randn(4, 3, 5, 6)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    layer = snn.RLeaky(0.9, linear_features=6)
    outputs, ours = layer.unroll(x), layer.unroll(turned)
    assert all(one.equal(other) for one, other in zip(outputs, ours, strict=True))
    assert ours[0].stride() == turned.stride()


@pytest.mark.parametrize("recompute", [False, True])
def test_convolutions_in_channels_last_stay_so(recompute):
    """Graded spikes of another height in every channel, kept as bits, come back as they lay."""
    seen = []

    def watch(module, given, out):
        seen.append(out.is_contiguous(memory_format=torch.channels_last))

    height = torch.rand(6, 1, 1) + 0.5
    neuron = snn.Leaky(0.8, threshold=0.2, graded_spikes_factor=height)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), neuron, nn.Conv2d(6, 5, 3), snn.Leaky(0.9))
    x = torch.randn(4, 2, 3, 7, 7)
    plain = snn.Unroll(layers)(x)
    layers.to(memory_format=torch.channels_last)
    for layer in (layers[0], layers[2]):
        layer.register_forward_hook(watch)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2))
    out = snn.Unroll(layers, recompute=recompute)(x)
    out.sum().backward()
    assert (out - plain).count_nonzero() <= 2 and out.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert all(seen) and len(seen) == (4 if recompute else 2)


def test_one_step_in_channels_last():
    x = torch.randn(SHAPE).contiguous(memory_format=torch.channels_last)
    lif = snn.Leaky(0.9, init_hidden=True)
    for _ in range(3):
        assert lif(x).stride() == x.stride() and lif.mem.stride() == x.stride()


def test_spikes_of_a_recorded_loop_lie_as_in_the_loop():
    """A sum over them adds up in the order in which they lie."""
    torch.manual_seed(0)
    weight, lif = torch.randn(4, 67), snn.Leaky(0.9, threshold=0.3)
    x = torch.rand(12, 33, 4)

    def loop(x):
        mem, sums = lif.init_leaky(), []
        for step in x:
            spk, mem = lif((weight.t() @ step.t()).t(), mem)
            sums.append((mem * 1.1).abs().mean() + (spk * 1.1).mean())
        return torch.stack(sums), mem

    with torch.no_grad():
        expected, last = loop(x)
        recorded = snn.accelerate(loop)
        for _ in range(3):
            sums, mem = recorded(x)
            assert torch.equal(sums, expected) and torch.equal(mem, last) and mem.stride() == last.stride()


PRODUCTS = {
    "linear": lambda bias, spk, weight: F.linear(spk, weight, bias),
    "@": lambda bias, spk, weight: spk @ weight.t(),
    "matmul": lambda bias, spk, weight: torch.matmul(weight, spk[..., None])[..., 0],
    "outer": lambda bias, spk, weight: torch.outer(bias, spk.flatten()).t() @ bias[:, None],
    "conv1d": lambda bias, spk, weight: F.conv1d(spk[:, None], weight[:30, None], padding=2),
    "conv_transpose1d": lambda bias, spk, weight: F.conv_transpose1d(spk[:, None], weight[None, :30]),
    "addmm": lambda bias, spk, weight: torch.addmm(bias, spk, weight.t()),
    "Tensor.addmm": lambda bias, spk, weight: bias.addmm(spk, weight.t()),
    "mm": lambda bias, spk, weight: torch.mm(weight, spk.t()).t(),
    "bmm": lambda bias, spk, weight: torch.bmm(spk[None], weight.t()[None])[0],
    "Tensor.bmm": lambda bias, spk, weight: spk[None].bmm(weight.t()[None])[0],
    "baddbmm": lambda bias, spk, weight: torch.baddbmm(bias, spk[:, None], weight.t().expand(len(spk), -1, -1))[:, 0],
    "Tensor.baddbmm": lambda bias, spk, weight: bias.expand(len(spk), 1, -1).baddbmm(
        spk[:, None], weight.t().expand(len(spk), -1, -1)
    )[:, 0],
    "mv": lambda bias, spk, weight: torch.stack([torch.mv(weight, one) for one in spk.unbind()]),
    "Tensor.mv": lambda bias, spk, weight: torch.stack([weight.mv(one) for one in spk.unbind()]),
    "addmv": lambda bias, spk, weight: torch.stack([torch.addmv(bias, weight, one) for one in spk.unbind()]),
    "Tensor.addmv": lambda bias, spk, weight: torch.stack([bias.addmv(weight, one) for one in spk.unbind()]),
    "dot": lambda bias, spk, weight: torch.stack([torch.dot(weight[0], one) for one in spk.unbind()])[:, None] + bias,
    "Tensor.dot": lambda bias, spk, weight: torch.stack([weight[0].dot(one) for one in spk.unbind()])[:, None] + bias,
    "einsum": lambda bias, spk, weight: torch.einsum("bk,nk->bn", spk, weight),
    "bilinear": lambda bias, spk, weight: F.bilinear(spk, spk, weight[:30, :, None].expand(-1, -1, 33).contiguous()),
}


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_of_a_recorded_loop_begin_in_memory_as_in_the_loop(product, learns):
    """How a product adds up may go by that, and of 33 neurons every other step of a stack begins elsewhere."""
    torch.manual_seed(0)
    bias, weight = torch.randn(257), torch.randn(257, 33, requires_grad=learns)
    lif, x = snn.Leaky(0.9, threshold=0.3), torch.rand(9, 2, 33)

    def loop(x):
        mem, made = lif.init_leaky(), []
        for step in x:
            spk, mem = lif(step, mem)
            made.append(PRODUCTS[product](bias, mem * 1.1, weight))
        return torch.stack(made)

    expected, recorded = loop(x), snn.accelerate(loop)
    for _ in range(3):
        assert torch.equal(recorded(x), expected)
