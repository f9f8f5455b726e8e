"""Neurons in plain PyTorch, fused: the loop's numbers, what is refused, and how they are built."""

import warnings

import cells
import pytest
import torch
from torch import Tensor, nn

import snnfast
from snnfast.cells import trees, why_not_fused

NAMES = [*cells.cases(1, torch.float32)]


@pytest.fixture(scope="module", autouse=True)
def _kept(tmp_path_factory):
    """One cache for this file: nothing of a user's is read, nothing is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        pass
        yield


@pytest.fixture(autouse=True)
def _nothing_unsaid():
    """A cell that is not fused warns, which fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def loop(cell, x, state):
    """What `scan` has to equal: the loop that a user writes."""
    xs, form = trees.flatten(x)
    spread = type(state) is tuple
    outs = []
    for step in zip(*(x.unbind(0) for x in xs), strict=True):
        inputs = trees.unflatten(form, step)
        out, *state = cell(inputs, *state) if spread else cell(inputs, state)
        state = tuple(state) if spread else state[0]
        outs.append(out)
    return torch.stack(outs), state


def leaves_of(*values) -> list[Tensor]:
    return [leaf for value in values for leaf in trees.flatten(value)[0] if isinstance(leaf, Tensor)]


def copied(value):
    leaves, form = trees.flatten(value)
    learning = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in leaves]
    return trees.unflatten(form, learning), trees.unflatten(
        form, [t.clone() if isinstance(t, Tensor) else t for t in learning]
    )


def results(run, cell, x, state, with_last):
    """Outputs, states, and gradients of inputs, initial states and parameters."""
    (x, x_given), (state, state_given) = copied(x), copied(state)
    out, last = run(cell, x_given, state_given)
    generator = torch.Generator().manual_seed(1)
    roots = [t for t in leaves_of(out, last if with_last else ()) if t.requires_grad]
    grads = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in roots]
    params = list(cell.parameters()) if isinstance(cell, nn.Module) else []
    wanted = leaves_of(x, state)
    found = torch.autograd.grad(roots, [*wanted, *params], grads, allow_unused=True)
    return leaves_of(out, last), found[: len(wanted)], found[len(wanted) :]


def assert_equal(cell, x, state, with_last=True):
    fused = results(snnfast.scan, cell, x, state, with_last)
    looped = results(loop, cell, x, state, with_last)
    for what, a, b in zip(("values", "gradients"), fused, looped, strict=False):
        for k, (one, other) in enumerate(zip(a, b, strict=True)):
            assert (one is None) == (other is None), (what, k)
            assert one is None or one.dtype == other.dtype and torch.equal(one, other), (what, k)
    for one, other in zip(fused[2], looped[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_loops(name, dtype):
    cell, ins, state = cells.cases(7, dtype)[name]
    xs = [torch.randn(6, 3, 7, dtype=dtype) * 1.5 for _ in range(ins)]
    x = xs[0] if ins == 1 else tuple(xs)
    for with_last in (True, False):
        assert_equal(cell, x, state, with_last)


class Own(snnfast.Cell):
    states = ("mem", "trace")

    def __init__(self, **options):
        super().__init__(**options)
        self.beta = nn.Parameter(torch.tensor([0.9, 0.8, 0.7]))
        self.fire = snnfast.surrogate.fast_sigmoid(5.0)

    def step(self, x, mem, trace):
        mem = self.beta * mem + x
        spk = self.fire(mem - 1.0 - trace)
        return spk, mem - spk.detach(), 0.5 * trace + spk


def stepped(layer, x):
    columns, states = [], ()
    for step in x.unbind(0):
        out = layer(step, *states)
        columns.append(out)
        states = out[1:]
    return tuple(map(torch.stack, zip(*columns, strict=True)))


def test_a_layer_of_ones_own_has_a_neurons_ways():
    layer, x = Own(), torch.randn(5, 2, 3, requires_grad=True)
    looped, fused = stepped(Own(), x), layer.unroll(x)
    assert len(fused) == 3 and all(map(torch.equal, fused, looped))
    grads = [torch.autograd.grad(out[0].sum() + out[1].sum(), x)[0] for out in (fused, looped)]
    assert torch.equal(*grads)
    assert layer.why_not_fused(x) is None
    assert [*layer.state_dict()] == ["beta"]
    net = snnfast.Unroll(nn.Linear(3, 3), layer, nn.Linear(3, 2), snnfast.Leaky(0.9))
    assert net(x).shape == (5, 2, 2)
    hidden = Own(init_hidden=True)
    first = hidden.unroll(x[:2])
    assert torch.equal(torch.cat([first, hidden.unroll(x[2:])]), looped[0])
    assert torch.equal(hidden.mem, looped[1][-1])
    snnfast.reset(hidden)
    assert not hidden.mem.any() and hidden(x[0]).shape == (2, 3)
    with pytest.raises(TypeError, match="init_hidden"):
        hidden(x[0], hidden.mem)
    with pytest.raises(ValueError, match="trace must have the input's shape"):
        layer.unroll(x, trace=torch.zeros(3, 3))
