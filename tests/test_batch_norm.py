"""Batch-norm in training over all steps of a loop is the loop's: values and statistics to the bit."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from snnfast import batch_norm, ops

T, B, C = 7, 4, 5
SHAPES = [(B, C), (2, C), (2, C, 1, 1), (B, C, 6), (B, C, 3, 5), (B, C, 2, 3, 2)]


def looped(x, mean, var, weight, bias, momenta, eps):
    steps = [
        F.batch_norm(one, mean, var, weight, bias, True, momentum, eps)
        for one, momentum in zip(x, momenta, strict=True)
    ]
    return torch.stack(steps)


def arguments(x, tracked, affine, dtype):
    draw = torch.Generator().manual_seed(1)
    kept, learnt = (torch.rand(2, C, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    return (
        x.detach().clone().requires_grad_(),
        *(one.clone() if tracked else None for one in kept),
        *(one.clone().requires_grad_() if affine else None for one in learnt),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tracked, affine", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_loop(shape, tracked, affine, dtype):
    draw = torch.Generator().manual_seed(0)
    x, weights = (torch.randn(T, *shape, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    momenta, eps = [1 / (step + 1) for step in range(T)], 1e-3
    results = []
    for function in (batch_norm.over_time, looped):
        given = arguments(x, tracked, affine, dtype)
        out = function(*given, momenta, eps)
        learnt = [one for one in given if one is not None and one.requires_grad]
        grads = torch.autograd.grad(out, learnt, weights)
        results.append((out.detach(), *given[1:3], *grads))
    for one, two in zip(*results, strict=True):
        assert (one is two is None) or one.equal(two)


def test_the_kernel_for_images_is_taken_where_it_gives_torch_s_bits(monkeypatch):
    assert batch_norm._is_torchs(torch.Size((6, 13, 5, 5)), False, True, torch.get_num_threads())
    x = torch.randn(2, 6, 13, 5, 5)
    expected = looped(x, None, None, None, None, [0.1] * 2, 1e-5)
    monkeypatch.setattr(batch_norm, "_torchs", None)
    monkeypatch.setattr(batch_norm, "_is_torchs", lambda *_: True)
    assert batch_norm.over_time(x, None, None, None, None, [0.1] * 2, 1e-5).equal(expected)
    torch.library.opcheck(torch.ops.snnfast.batch_norm.default, (x, torch.rand(13), None, 1e-5))
    with pytest.raises(RuntimeError, match=r"x must be \[T, B, C, ...\], got 2 dimensions"):
        ops.batch_norm(x[0, 0, :, :, 0], None, None, 1e-5)
    with pytest.raises(RuntimeError, match="weight must have 13 elements, got 12"):
        ops.batch_norm(x, torch.rand(12), None, 1e-5)


def test_an_input_that_stays_is_normalised_once_and_counted_at_every_step():
    one, weights, momenta = torch.randn(B, C, 3, 3), torch.randn(T, B, C, 3, 3), [0.1] * T
    given, plain = arguments(one, True, True, torch.float32), arguments(one, True, True, torch.float32)
    out = batch_norm.over_time(given[0][None], *given[1:], momenta, 1e-5)
    expected = looped([plain[0]] * T, *plain[1:], momenta, 1e-5)
    assert out.expand(T, B, C, 3, 3).equal(expected) and given[1].equal(plain[1]) and given[2].equal(plain[2])
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for place in (0, 3, 4):
        torch.testing.assert_close(given[place].grad, plain[place].grad)


def test_gradients_of_gradients():
    x = torch.randn(T, B, C, dtype=torch.float64)
    found = []
    for function in (batch_norm.over_time, looped):
        given = arguments(x, True, True, torch.float64)
        learnt = given[0], *given[3:]
        grads = torch.autograd.grad(function(*given, [0.1] * T, 1e-5).pow(3).sum(), learnt, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), learnt))
    torch.testing.assert_close(*found)


class Normed(nn.Module):
    """Norms of an input that stays, of features with a momentum that falls, and without statistics or weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3))
        self.second = nn.Sequential(nn.Linear(48, 6, bias=False), nn.BatchNorm1d(6, momentum=None))
        self.third = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
        self.lif1, self.lif2 = snn.Leaky(0.9, threshold=0.5), snn.Leaky(0.8, threshold=0.3)

    def forward(self, x, steps):
        mem1, mem2, outs = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(steps):
            spk, mem1 = self.lif1(self.first(x), mem1)
            spk, mem2 = self.lif2(self.third(self.second(spk.flatten(1))), mem2)
            outs.append(mem2)
        return torch.stack(outs)


def test_a_recorded_loop_runs_each_norm_once(monkeypatch):
    called, over_time = [], batch_norm.over_time
    monkeypatch.setattr(batch_norm, "over_time", lambda x, *rest: called.append(len(x)) or over_time(x, *rest))
    net = Normed()
    plain, recorded = copy.deepcopy(net), snn.accelerate(net)
    for call in range(3):
        x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(call))
        outs = [one(x, 12) for one in (plain, recorded)]
        assert outs[0].equal(outs[1])
        for one, two in zip(plain.buffers(), recorded.buffers(), strict=True):
            assert one.equal(two)
        for out in outs:
            out.square().sum().backward()
        for one, two in zip(plain.parameters(), recorded.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4)
        plain.zero_grad(), recorded.zero_grad()
    # What stays is normalised once a window; of the others all twelve steps less the first two, which are learnt from.
    windows = [size for size in called if size > 1]
    assert sum(windows) == 2 * (10 + 12 + 12) and len(called) == len(windows) * 3 / 2, called


def test_other_layouts_and_dtypes_run_step_by_step():
    x, weight = torch.rand(T, B, C, 4, 4), torch.rand(C)
    assert batch_norm.fits(x, weight, None) and batch_norm.fits(x[::2], weight)
    others = x.bfloat16(), x.transpose(-1, -2), x[0].to(memory_format=torch.channels_last)[None], x[:0], x[0, 0, 0]
    assert not any(batch_norm.fits(other, weight) for other in others)
    assert not batch_norm.fits(x, weight.double())


NORMS = {
    "1d": (nn.BatchNorm1d(C), (B, C)),
    "1d over places": (nn.BatchNorm1d(C, momentum=None), (B, C, 6)),
    "2d": (nn.BatchNorm2d(C, eps=1e-2, momentum=0.3), (B, C, 3, 5)),
    "2d without": (nn.BatchNorm2d(C, affine=False, track_running_stats=False), (B, C, 3, 5)),
    "3d": (nn.BatchNorm3d(C), (B, C, 2, 3, 2)),
}


@pytest.mark.parametrize("name", NORMS)
def test_unroll_normalises_all_steps_in_one_call(name):
    """As a loop over T calls would, to the bit, and leaves behind what they would."""
    layer, shape = NORMS[name]
    x, weights = torch.randn(2, T, *shape, generator=torch.Generator().manual_seed(0))
    results = []
    for unrolled in (True, False):
        norm, given = copy.deepcopy(layer), x.clone().requires_grad_()
        calls = []
        norm._check_input_dim = lambda step, calls=calls: calls.append(step)
        for _ in range(2):
            out = snn.Unroll(norm)(given) if unrolled else torch.stack([norm(step) for step in given])
        grads = torch.autograd.grad(out, [given, *norm.parameters()], weights)
        results.append([out, *norm.buffers(), *grads])
        assert len(calls) == (2 if unrolled else 2 * T)
    assert all(map(torch.equal, *results))


def test_unroll_leaves_to_torch_what_is_no_plain_batch_norm():
    x, seen = torch.randn(T, B, C), []
    hooked, other = nn.BatchNorm1d(C), nn.BatchNorm1d(C)
    hooked.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    other.track_running_stats = False
    for norm, calls in ((hooked, T), (other, 0), (nn.BatchNorm1d(C).double(), None), (nn.BatchNorm1d(C + 1), None)):
        alone = copy.deepcopy(norm)
        del seen[:]
        if calls is None:
            with pytest.raises(RuntimeError) as of_torch:
                alone(x[0])
            with pytest.raises(RuntimeError, match=re.escape(str(of_torch.value))):
                snn.Unroll(norm)(x)
            continue
        assert snn.Unroll(norm)(x).equal(torch.stack([alone(step) for step in x]))
        assert all(map(torch.equal, norm.buffers(), alone.buffers()))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        snn.Unroll(nn.BatchNorm1d(C))(x[:, :1])
    with pytest.raises(ValueError, match="expected 4D input"):
        snn.Unroll(nn.BatchNorm2d(C))(x)
