"""Products with spikes on a CPU's matrix unit, emulated: all sizes of them, and that they err no more than torch's."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from snnfast import _ext, products
from test_products import HARD, SIZES, check_errors, normal, results, spikes

NONE, AMX, EMULATED = 0, 1, 2


@pytest.fixture(autouse=True)
def emulated(monkeypatch):
    """All products of this thread are the emulated unit's, but for those that it refuses."""
    monkeypatch.setattr(products, "_LEAST", 1)
    _ext.native.force_unit(EMULATED)
    yield
    _ext.native.force_unit(NONE)
    _ext.native.use_unit(NONE)


def without_unit(f, *arguments):
    _ext.native.force_unit(NONE)
    try:
        return f(*arguments)
    finally:
        _ext.native.force_unit(EMULATED)


def by_tiles(x, weight, grad) -> tuple[bool, bool]:
    """Whether the product and the weights' gradient are not those without a unit, by their bits."""
    zeros = torch.zeros(len(weight))
    both = [run(results, products.linear, x, weight, zeros, grad) for run in (lambda f, *a: f(*a), without_unit)]
    return tuple(not ours.equal(others) for ours, others in list(zip(*both, strict=True))[:3:2])


# Besides sizes around those of tiles, more terms than a chunk of them, and more rows than a task.
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("inputs, outputs", [*SIZES, (2100, 33)])
def test_products_and_gradients_err_no_more_than_torchs(inputs, outputs, share):
    x = spikes(60, 9, inputs, share=share)
    check_errors(x, normal(outputs, inputs), normal(outputs, seed=1), normal(60, 9, outputs, seed=2))


@pytest.mark.parametrize("rows", [1, 31, 33, 256, 289, 1025, 2070])
def test_any_number_of_rows(rows):
    x, weight, grad = spikes(rows, 1, 70, share=0.2), normal(40, 70), normal(rows, 1, 40)
    check_errors(x, weight, normal(40), grad)
    if rows > 1:
        assert by_tiles(x, weight, grad) == (True, True)


HEIGHTS = {
    "one": 1.0,
    "one of float32's": 0.3,
    "below the least bfloat16": 1e-40,
    "signs": normal(60, 9, 320, seed=5).sign(),
    "bfloat16": normal(60, 9, 320, seed=5).abs().clamp_min(2**-10).bfloat16().float(),
}


@pytest.mark.parametrize("height", HEIGHTS)
def test_heights(height):
    x = spikes(60, 9, 320, share=0.4) * HEIGHTS[height]
    weight, grad = normal(130, 320), normal(60, 9, 130, seed=2)
    check_errors(x, weight, normal(130), grad)
    assert by_tiles(x, weight, grad) == (True, True)


REFUSED = {
    "other heights": normal(60, 9, 320, seed=5),
    "too small": torch.full((60, 9, 320), 2.0**-11),
    "two heights": normal(60, 9, 320, seed=5).sign() * 0.3,
    # Which a sample of rows does not show.
    "one of another height": torch.ones(540, 320).index_put((torch.tensor(261),), torch.tensor(0.3)).view(60, 9, 320),
    "one that is no height": torch.full((540, 320), 0.3)
    .index_put((torch.tensor(261),), torch.tensor(1.0))
    .view(60, 9, 320),
}


@pytest.mark.parametrize("share", [0.05, 1.0])
@pytest.mark.parametrize("refused", REFUSED)
def test_heights_that_are_refused_are_what_they_are_without_a_unit(refused, share):
    x = spikes(60, 9, 320, share=share) * REFUSED[refused]
    weight, grad = normal(130, 320), normal(60, 9, 130, seed=2)
    check_errors(x, weight, normal(130), grad)
    assert by_tiles(x, weight, grad) == (False, False)


@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize("hard", [*HARD, "smallest", "largest of all"])
def test_hard_numbers(hard, share):
    numbers = HARD | {
        # Parts of these would be denormal, which the unit takes for zero.
        "smallest": lambda rows, columns: normal(rows, columns) * 1e-33,
        "largest of all": lambda rows, columns: normal(rows, columns).sign() * torch.finfo(torch.float32).max / rows,
    }
    x = spikes(70, 9, 320, share=share)
    weight, grad = numbers[hard](130, 320), numbers[hard](630, 130).view(70, 9, 130)
    check_errors(x, weight, torch.zeros(130), grad)
    if hard in ("cancelling", "smallest"):
        assert by_tiles(x, weight, grad) == (True, True)
    if hard in ("huge", "largest of all"):
        assert by_tiles(x, weight, grad) == (False, False)


def test_denormal_numbers_are_exact():
    """Sums of them are, in float32; a unit that takes them for zero would give nothing."""
    x, weight = spikes(70, 320, share=0.5), normal(130, 320) * 1e-42
    assert products.linear(x, weight).equal((x.double() @ weight.double().T).float())
    half = x * 2.0**-10
    assert (products.linear(half, weight * 2**10) != 0).any()
    assert products.linear(half, weight * 2**10).equal((half.double() @ (weight * 2**10).double().T).float())


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", ["x", "weight", "grad", "bias"])
def test_where_a_number_is_infinite_or_none_all_is_torchs(place, odd):
    x, weight, bias, grad = spikes(40, 5, 96, share=0.8), normal(70, 96), normal(70), normal(40, 5, 70)
    x[..., 7] = 0
    {"x": x[1, 1], "weight": weight[3], "grad": grad[2, 2], "bias": bias}[place][7] = odd
    for ours, torchs in zip(
        results(products.linear, x, weight, bias, grad), results(F.linear, x, weight, bias, grad), strict=True
    ):
        if ours.isfinite().all():
            torch.testing.assert_close(ours, torchs)
        else:
            assert ours.equal(torchs) or ours.nan_to_num(1.0, 2.0, 3.0).equal(torchs.nan_to_num(1.0, 2.0, 3.0))


def test_layouts():
    x, weight = spikes(64, 6, 200, share=0.5), normal(33, 200)
    for given in (x.transpose(0, 1), x[:, ::2], x.transpose(0, 2).contiguous().transpose(0, 2)):
        torch.testing.assert_close(products.linear(given, weight), F.linear(given, weight))
    torch.testing.assert_close(products.linear(x, normal(200, 33).T), F.linear(x, normal(200, 33).T))


def test_results_do_not_depend_on_the_number_of_threads():
    x, weight, grad = spikes(700, 1, 1300, share=0.3), normal(70, 1300), normal(700, 1, 70)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(results(products.linear, x, weight, torch.zeros(70), grad))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "share, inputs, outputs, forward, gradient",
    [
        (0.05, 640, 320, False, False),  # events
        (0.34, 640, 320, True, True),
        (0.9, 640, 320, True, True),
        (0.9, 320, 80, True, False),  # too few products to be worth the packing
        (0.9, 33, 17, False, False),  # tiles half empty
    ],
)
def test_the_way_is_the_fastest_that_is_expected(share, inputs, outputs, forward, gradient):
    x, weight, grad = spikes(64, 10, inputs, share=share), normal(outputs, inputs), normal(64, 10, outputs)
    _ext.native.force_unit(NONE)
    plain = results(products.linear, x, weight, torch.zeros(outputs), grad)
    _ext.native.use_unit(EMULATED)
    ours = results(products.linear, x, weight, torch.zeros(outputs), grad)
    assert (not ours[0].equal(plain[0]), not ours[2].equal(plain[2])) == (forward, gradient)


def test_a_unit_proves_itself_before_it_is_used(monkeypatch):
    """AMX, of which the emulation takes the place here."""
    products._amx_is_right.cache_clear()
    monkeypatch.setattr(products, "_AMX", EMULATED)
    monkeypatch.setattr(products, "_ext", Machine(has_amx=True))
    x, weight = spikes(64, 5, 320, share=0.9), normal(160, 320)
    _ext.native.force_unit(NONE)
    plain = F.linear(x, weight)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not products.linear(x, weight).equal(plain)
        products.choose("events")
        assert products.linear(x, weight).equal(plain)
        products.choose("auto")
        assert not products.linear(x, weight).equal(plain)
        products.choose("events")
        # One that drops the last part.
        products._amx_is_right.cache_clear()
        right = products.ops.spike_linear
        monkeypatch.setattr(
            products.ops, "spike_linear", lambda x, weight, *rest: right(x, weight, *rest) * (1 + 2**-20)
        )
        products.choose("auto")
        with pytest.warns(UserWarning, match="AMX"):
            products.linear(x, weight)
        monkeypatch.setattr(products.ops, "spike_linear", right)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert products.linear(x, weight).equal(plain)
    finally:
        products._amx_is_right.cache_clear()
        products.choose("auto")


class Machine:
    """`snnfast._ext` of another machine."""

    def __init__(self, has_amx):
        self.native = self
        self.has_amx = lambda: has_amx

    def __getattr__(self, name):
        return getattr(_ext.native, name)


def test_only_units_that_there_are():
    for wrong in (-1, 3, *([] if _ext.native.has_amx() else [AMX])):
        for call in (_ext.native.use_unit, _ext.native.force_unit):
            with pytest.raises(ValueError, match=f"unit must be 0, 2, or with AMX 1, got {wrong}"):
                call(wrong)
