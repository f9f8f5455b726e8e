"""Products with spikes in three bfloat16 parts, as a GPU's tensor cores compute them, on the CPU: `parts._mm` does."""

import pytest
import torch
from torch.nn import functional as F

import snnfast as snn
from snnfast import parts, products
from test_products import HARD, check_errors, normal, spikes


@pytest.fixture(autouse=True)
def in_place_of_ours(monkeypatch):
    """products.linear as it is on a GPU."""
    monkeypatch.setattr(products, "_LEAST", 1)
    monkeypatch.setattr(products, "_ours", parts.linear)


@pytest.mark.parametrize("inputs, outputs", [(1, 1), (37, 33), (784, 200)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("height", ["one", "0.3", "of each neuron"])
def test_products_and_gradients_err_no_more_than_torchs(inputs, outputs, share, height):
    heights = {"one": 1.0, "0.3": 0.3, "of each neuron": normal(inputs, seed=7)}[height]
    x = spikes(60, 9, inputs, share=share) * heights
    check_errors(x, normal(outputs, inputs), normal(outputs, seed=1), normal(60, 9, outputs, seed=2))


@pytest.mark.parametrize("hard", HARD)
def test_hard_numbers(hard):
    x = spikes(70, 9, 320, share=0.2)
    weight, grad = HARD[hard](130, 320), HARD[hard](630, 130).view(70, 9, 130)
    check_errors(x, weight, torch.zeros(130), grad)


def test_parts_are_the_number():
    numbers = torch.cat([normal(1000), normal(1000) * 1e-30, torch.tensor([0.0, -0.0, 3.4028235e38])])
    cut = parts.cut(numbers)
    assert len(cut) == 3 and all(part.dtype == torch.bfloat16 for part in cut)
    assert (sum(part.double() for part in cut) == numbers.double()).all()
    odd = parts.cut(torch.tensor([torch.inf, -torch.inf, torch.nan]))
    assert sum(part.float() for part in odd).nan_to_num(5.0, 1.0, 2.0).tolist() == [1.0, 2.0, 5.0]


def test_the_sums_of_each_part_are_apart(monkeypatch):
    """What is multiplied are three pairs of bfloat16, none of them longer than the product, the smallest first."""
    seen = []

    def mm(left, right):
        assert left.dtype == right.dtype == torch.bfloat16
        seen.append((left, right))
        return left.float() @ right.float()

    monkeypatch.setattr(parts, "_mm", mm)
    x, weight = spikes(50, 40, share=0.3), normal(30, 40)
    parts.forward(x, weight)
    assert [(*left.shape, *right.shape) for left, right in seen] == [(50, 40, 40, 30)] * 3
    sizes = [right.abs().max() for _, right in seen]
    assert sizes[0] < 2**-6 * sizes[1] < 2**-12 * sizes[2]


def test_an_input_that_is_no_spikes_is_an_error():
    x, weight = spikes(60, 9, 40, share=0.3), normal(30, 40)
    for wrong in (
        normal(60, 9, 40),
        x.index_put((torch.tensor(3), torch.tensor(2), torch.tensor(5)), torch.tensor(0.5)),
    ):
        wrong[0, 0, 5] = 1
        with pytest.raises(RuntimeError, match='choose."parts".*behind spikes of one height'):
            parts.linear(wrong, weight)
    # A network that diverged says so itself.
    x[2, 3, 4] = torch.nan
    out = parts.linear(x, weight)
    assert out[2, 3].isnan().all() and out.isnan().sum() == 30


def test_known_values_and_gradients_of_gradients():
    x, weight = spikes(40, 6, share=0.2), normal(3, 6)
    given = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    known = normal(40, 3)
    out = products.with_values(known, *given, None)
    assert out.equal(known)
    for ours, torchs in zip(
        torch.autograd.grad(out.sum(), given), torch.autograd.grad(F.linear(*given).sum(), given), strict=True
    ):
        torch.testing.assert_close(ours, torchs)

    def penalty(linear):
        (grad,) = torch.autograd.grad(linear(*given).square().sum(), given[1], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), given)

    for ours, torchs in zip(penalty(products.linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(ours, torchs)


def test_parts_are_for_wide_layers_where_tf32_is_not_allowed():
    wide, narrow = torch.empty(2048, 8), torch.empty(2047, 8)
    matmul = torch.backends.cuda.matmul
    allowed = matmul.allow_tf32
    try:
        for matmul.allow_tf32 in (True, False):
            assert products._are_for_tensor_cores(wide) is not matmul.allow_tf32
            assert not products._are_for_tensor_cores(narrow)
    finally:
        matmul.allow_tf32 = allowed


def test_unroll_multiplies_parts(device, monkeypatch):
    monkeypatch.undo()
    if device == "cpu":
        monkeypatch.setattr(products, "_ours", parts.linear)
    monkeypatch.setattr(products, "_LEAST", 1)
    monkeypatch.setattr(products, "_WIDE", 1)
    net = snn.Unroll(snn.Leaky(0.9), torch.nn.Linear(40, 64), snn.Leaky(0.9)).to(device)
    x = normal(12, 16, 40).to(device).requires_grad_()
    products.choose("parts")
    try:
        ours = torch.autograd.grad(net(x).sum(), [x, *net.parameters()])
    finally:
        products.choose("auto")
    with snn.use_reference():
        torchs = torch.autograd.grad(net(x).sum(), [x, *net.parameters()])
    for mine, theirs in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
