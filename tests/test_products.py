"""Linear layers behind spikes: products computed from what is not zero err no more than torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from snnfast import ops, products
from snnfast.loops import packing

# Inputs, outputs: below, at and above the blocks of both, and what is left of them.
SIZES = ((1, 1), (3, 2), (15, 10), (16, 16), (37, 33), (64, 64), (65, 100), (130, 130), (784, 200), (1500, 47))


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch):
    monkeypatch.setattr(products, "_LEAST", 1)


def spikes(*shape, share, heights=None):
    draw = torch.Generator().manual_seed(shape[-1])
    fired = torch.rand(*shape, generator=draw) < share
    return torch.where(fired, torch.ones(shape) if heights is None else heights, 0.0)


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def results(linear, x, weight, bias, grad, dtype=torch.float32):
    """Product, and the gradients of input, weight and bias."""
    given = [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)]
    product = linear(*given)
    return product.detach(), *torch.autograd.grad(product, given, grad.to(dtype))


def check_errors(x, weight, bias, grad):
    """The errors of ours against float64, the largest and in the mean, are at most 1.5 of torch's.

    And half a unit in the last place of the largest number (one of few numbers), which is a matter of chance.
    """
    exact = results(F.linear, x, weight, bias, grad, torch.float64)
    both = [results(linear, x, weight, bias, grad) for linear in (products.linear, F.linear)]
    for name, ours, torchs, true in zip(("product", "dx", "dweight", "dbias"), *both, exact, strict=True):
        assert ours.shape == true.shape and ours.dtype == torch.float32, name
        off, allowed = ((result.double() - true).abs() for result in (ours, torchs))
        unit = torch.finfo(torch.float32).eps * true.abs().max()
        chance, few = (unit, unit) if off.numel() < 100 else (unit / 2, 0)
        assert off.max() <= 1.5 * allowed.max() + chance, name
        assert off.square().mean().sqrt() <= 1.5 * allowed.square().mean().sqrt() + few, name


def are_by_lists(x, weight) -> bool:
    """Whether a product is not torch's, by its last bits: its sums are in another order."""
    ours, torchs = (linear(x, weight).detach() for linear in (products.linear, F.linear))
    return not ours.equal(torchs)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("inputs, outputs", SIZES)
def test_product_and_its_gradients_err_no_more_than_torchs(inputs, outputs, graded, share):
    x = spikes(60, 9, inputs, share=share, heights=normal(60, 9, inputs) if graded else None)
    weight, bias, grad = normal(outputs, inputs), normal(outputs, seed=1), normal(60, 9, outputs, seed=2)
    check_errors(x, weight, bias, grad)


def cancelling(rows, columns):
    """Pairs of neighbours that nearly cancel, far larger than what is left."""
    values = normal(rows, columns)
    values[:, 1::2] = -values[:, 0 : columns - columns % 2 : 2] * (1 + 1e-4 * values[:, 1::2])
    return values * 1e3


HARD = {
    "cancelling": lambda rows, columns: cancelling(rows, columns),
    "denormal": lambda rows, columns: normal(rows, columns) * 1e-40,
    "huge": lambda rows, columns: normal(rows, columns) * 1e36,
    "of all sizes": lambda rows, columns: normal(rows, columns) * 10 ** (normal(rows, columns, seed=3) * 6),
}


@pytest.mark.parametrize("hard", HARD)
def test_hard_numbers(hard):
    x, bias = spikes(70, 9, 320, share=0.2), torch.zeros(130)
    weight, grad = HARD[hard](130, 320), HARD[hard](630, 130).view(70, 9, 130)
    check_errors(x, weight, bias, grad)


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", ["x", "weight", "grad", "sum"])
def test_where_a_number_is_infinite_or_none_all_is_torchs(place, odd):
    x, weight, bias, grad = spikes(40, 5, 96, share=0.1), normal(70, 96), normal(70), normal(40, 5, 70)
    if place == "sum":
        x[3, 2, :4], weight[5, :4] = 1, 3e38 if odd > 0 else -3e38
    else:
        # An input that is silent throughout, whose weights a dense product multiplies by zero.
        x[..., 7] = 0
        {"x": x[1, 1], "weight": weight[3], "grad": grad[2, 2]}[place][7] = odd
    for ours, torchs in zip(
        results(products.linear, x, weight, bias, grad), results(F.linear, x, weight, bias, grad), strict=True
    ):
        if ours.isfinite().all():
            torch.testing.assert_close(ours, torchs)
        else:
            assert ours.nan_to_num(1.0, 2.0, 3.0).equal(torchs.nan_to_num(1.0, 2.0, 3.0))


def test_every_layout():
    weight, bias = normal(33, 200), normal(33)
    x = spikes(64, 6, 200, share=0.1)
    by_lists = [x[0], x, x.transpose(0, 1), x[:, ::2], x.unsqueeze(0), x.transpose(0, 2).contiguous().transpose(0, 2)]
    for given in by_lists:
        torch.testing.assert_close(products.linear(given, weight, bias), F.linear(given, weight, bias))
    assert are_by_lists(x, weight)
    torch.testing.assert_close(products.linear(x, normal(200, 33).T), F.linear(x, normal(200, 33).T))
    torch.testing.assert_close(products.matmul(x, weight.T), x @ weight.T)
    # A gradient that is one number, expanded.
    weight.requires_grad_()
    (ours,) = torch.autograd.grad(products.linear(x, weight).sum(), weight)
    torch.testing.assert_close(ours, torch.autograd.grad(F.linear(x, weight).sum(), weight)[0])


def test_a_sequence_too_long_for_all_its_lists_at_once():
    x, grad = spikes(9000, 2000, share=0.002), normal(9000, 17)
    torch.testing.assert_close(torch.ops.snnfast.spike_linear_grad(grad, x), grad.T @ x)


def test_empty_ones_are_torchs():
    x, weight = spikes(6, 7, 12, share=0.1), normal(5, 12)
    for given, weights in ((x[:0], weight), (x, weight[:0]), (x[..., :0], weight[:, :0])):
        assert ops.spike_linear(given, weights).equal(F.linear(given, weights))


@pytest.mark.parametrize("outputs", [10, 200])
def test_result_does_not_depend_on_the_number_of_threads(outputs):
    x, weight = spikes(700, 300, share=0.05), normal(outputs, 300).requires_grad_()
    found = []
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        product = products.linear(x, weight)
        found.append((product.detach(), *torch.autograd.grad(product.sin().sum(), weight)))
    torch.set_num_threads(threads)
    assert are_by_lists(x, weight)
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


def test_one_dense_sample_is_no_dense_input():
    """Rows are looked at here and there, not all of one sample."""
    x = spikes(64, 64, 200, share=0.05)
    x[:, 0] = 1
    assert are_by_lists(x, normal(32, 200))


def test_what_is_not_sparse_and_what_the_operator_does_not_take_is_torchs_to_the_bit(device):
    x, weight, bias = spikes(64, 80, share=0.1).to(device), normal(40, 80).to(device), normal(40).to(device)
    dense = normal(64, 80).to(device)

    def equal(x, weight, bias=None):
        return products.linear(x, weight, bias).equal(F.linear(x, weight, bias))

    assert device != "cpu" or are_by_lists(x, weight)
    assert equal(dense, weight, bias) and equal(x.double(), weight.double(), bias.double())
    assert equal(x.bfloat16(), weight.bfloat16()) and equal(x[0], weight)
    with torch.autocast(device, torch.bfloat16):
        assert equal(x, weight, bias)
    with pytest.raises(RuntimeError):
        products.linear(x, weight[:, :7])
    assert "aten::linear" in str(torch.jit.trace(products.linear, (x, weight)).graph)


def test_the_way_that_is_chosen(monkeypatch):
    x, weight = spikes(64, 80, share=0.1), normal(40, 80)
    assert products.chosen() == "auto"
    products.choose("torch")
    try:
        assert products.linear(x, weight).equal(F.linear(x, weight))
    finally:
        products.choose("auto")
    assert are_by_lists(x, weight)
    with pytest.raises(ValueError, match="way must be one of auto, events, parts, torch; got 'blas'"):
        products.choose("blas")


def test_small_products_are_torchs(monkeypatch):
    monkeypatch.setattr(products, "_LEAST", 1 << 21)
    assert not are_by_lists(spikes(64, 80, share=0.1), normal(40, 80))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differentiated_again_and_by_transforms_of_torch_func(dtype):
    x, weight = spikes(40, 6, share=0.2).to(dtype), normal(3, 6, dtype=dtype)
    given = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(products.linear, given)
        assert torch.autograd.gradgradcheck(products.linear, given)

    def penalty(linear):
        (grad,) = torch.autograd.grad(linear(*given).square().sum(), given[1], create_graph=True)
        return torch.autograd.grad(grad.square().sum(), given)

    for ours, torchs in zip(penalty(products.linear), penalty(F.linear), strict=True):
        torch.testing.assert_close(ours, torchs)

    def loss(linear):
        return lambda weight: linear(x, weight).square().sum()

    for transform in (torch.func.grad, torch.func.hessian, lambda f: torch.vmap(f, in_dims=0)):
        at = weight.expand(2, 3, 6) if transform not in (torch.func.grad, torch.func.hessian) else weight
        torch.testing.assert_close(transform(loss(products.linear))(at), transform(loss(F.linear))(at))
    rows = torch.eye(3, dtype=dtype).unsqueeze(1).expand(3, 40, 3)
    (ours,) = torch.autograd.grad(products.linear(*given), given[1], rows, is_grads_batched=True)
    torch.testing.assert_close(ours, torch.autograd.grad(F.linear(*given), given[1], rows, is_grads_batched=True)[0])


@pytest.mark.parametrize("share", [0.02, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(share, dtype):
    x, weight, grad = spikes(4, 5, 8, share=share).to(dtype), normal(30, 8).to(dtype), normal(4, 5, 30).to(dtype)
    for bias in (None, normal(30).to(dtype)):
        torch.library.opcheck(torch.ops.snnfast.spike_linear.default, (x, weight, bias))
    torch.library.opcheck(torch.ops.snnfast.spike_linear_grad.default, (grad, x))
    torch.library.opcheck(torch.ops.snnfast.spike_linear_grad_spk.default, (grad, weight))


def test_wrong_arguments_of_the_operators():
    x, weight, grad = torch.zeros(4, 8), torch.zeros(3, 8), torch.zeros(4, 3)
    product, gradient = torch.ops.snnfast.spike_linear, torch.ops.snnfast.spike_linear_grad
    of_spikes = torch.ops.snnfast.spike_linear_grad_spk
    wrong = [
        (lambda: product(x[0, 0], weight, None), "spk must have a dimension of features"),
        (lambda: product(x, weight[:, :7], None), r"weight must have shape \[outputs, 8\]"),
        (lambda: product(x, weight.double(), None), "weight must have dtype Float, got Double"),
        (lambda: product(x, weight, torch.zeros(4)), "bias must have 3 elements, got 4"),
        (lambda: gradient(grad[:3], x), "grad must have as many rows as spk, 4, got 3"),
        (lambda: gradient(grad.double(), x), "grad must have dtype Float, got Double"),
        (lambda: of_spikes(grad, weight[:2]), r"weight must have shape \[3, inputs\]"),
        (lambda: of_spikes(grad, weight.double()), "weight must have dtype Float, got Double"),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()


class Block(nn.Module):
    """A Linear that is not a layer of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(24, 24)

    def forward(self, x):
        return x + self.inner(x)


class Loop(nn.Module):
    """Two layers over time as a user writes them, the second weighted by `@`."""

    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(40, 24), snn.Leaky(0.9)
        self.weight, self.last = nn.Parameter(normal(24, 5)), snn.Leaky(0.9)

    def forward(self, x):
        mem, mem2, spikes = self.lif.init_leaky(), self.last.init_leaky(), []
        for step in x:
            spk, mem = self.lif(self.fc(step), mem)
            spk2, mem2 = self.last(spk @ self.weight, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


def calls_of(net, x):
    """How often a training iteration multiplies spikes, forward and for weights."""
    heard = []
    with ops.listening(lambda operator, arguments, steps: heard.append(operator)):
        net(x).sum().backward()
    return heard.count("spike_linear"), heard.count("spike_linear_grad")


def test_unroll_multiplies_spikes():
    hooked, seen = nn.Linear(24, 24), []
    hooked.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    net = snn.Unroll(nn.Linear(40, 24), snn.Leaky(0.9), hooked, snn.Leaky(0.9), Block(), snn.Leaky(0.9))
    x = spikes(12, 16, 40, share=0.05)
    assert calls_of(net, x) == (3, 3) and seen == [(192, 24)]
    with snn.use_reference():
        reference = net(x)
    assert reference.equal(net(x))
    assert calls_of(snn.Unroll(*net, recompute=True), x) == (6, 3)
    products.choose("torch")
    try:
        assert calls_of(net, x) == (0, 0)
    finally:
        products.choose("auto")


def in_runs(*ends):
    """`F.linear` that adds a run of inputs after another, ending before these, and their sums to the bias."""

    def linear(x, weight, bias=None):
        out, begin = bias, 0
        for end in ends:
            run = torch.zeros(())
            for k in range(begin, end):
                run = run + x[..., k, None] * weight[:, k]
            out, begin = run if out is None else out + run, end
        return out

    return linear


@pytest.fixture
def torchs_linear(monkeypatch):
    """Puts a function in the place of torch's."""

    def put(linear):
        products.order.cache_clear()
        monkeypatch.setattr(F, "linear", linear)

    yield put
    products.order.cache_clear()


@pytest.mark.parametrize("ends", [(12,), (5, 12), (1, 12), (10, 12), (4, 8, 12), (3, 6, 9, 12)])
@pytest.mark.parametrize("outputs", [11, 30])
def test_the_order_of_a_sum_is_seen(ends, outputs, torchs_linear):
    torchs_linear(in_runs(*ends))
    assert products.order(3, 12, outputs, 1) == ends


def test_an_order_that_is_none_of_runs_is_no_order(torchs_linear):
    def pairwise(x, weight, bias=None):
        terms = (x[..., None, :] * weight).unflatten(-1, (2, -1))
        return terms.sum(-2).cumsum(-1)[..., -1]

    torchs_linear(pairwise)
    assert products.order(3, 12, 11, 1) is None
    products.order.cache_clear()
    turned = in_runs(12)
    torchs_linear(lambda x, weight, bias=None: turned(x.flip(-1), weight.flip(-1)))
    assert products.order(3, 12, 11, 1) is None
    products.order.cache_clear()
    one, two = in_runs(12), in_runs(6, 12)
    torchs_linear(lambda x, weight, bias=None: torch.cat([one(x[:2], weight), two(x[2:], weight)]))
    assert products.order(3, 12, 11, 1) is None


@pytest.mark.parametrize("inputs, outputs, ends", [(40, 24, (40,)), (130, 70, (50, 128, 130)), (300, 33, (1, 300))])
@pytest.mark.parametrize("graded", [False, True])
def test_a_product_adds_in_the_order_it_is_given(inputs, outputs, ends, graded):
    """Of graded spikes a multiply and an add are one, which float64 gives for so few bits."""
    x, weight, bias = spikes(5, 9, inputs, share=0.1), normal(outputs, inputs), normal(outputs)
    wanted = in_runs(*ends)
    if graded:
        x = x * normal(inputs)

        def wanted(x, weight, bias=None):
            out, begin = bias, 0
            for end in ends:
                run = torch.zeros(())
                for k in range(begin, end):
                    run = (run.double() + x[..., k, None].double() * weight[:, k].double()).float()
                out, begin = run if out is None else out + run, end
            return out

    for added in (None, bias):
        (ours,) = torch.ops.snnfast.spike_linear_in_order(x, weight, added, ends)
        assert ours.equal(wanted(x, weight, added))
    for refused in (weight * torch.inf, weight.double()):
        given = x.to(refused.dtype)
        assert torch.ops.snnfast.spike_linear_in_order(given, refused, None, ends) == []
    assert torch.ops.snnfast.spike_linear_in_order(torch.ones_like(x), weight, None, ends) == []
    for wrong in ((), (inputs - 1,), (0, inputs), (3, 3, inputs)):
        with pytest.raises(RuntimeError, match=f"ends must rise to the number of inputs, {inputs}"):
            torch.ops.snnfast.spike_linear_in_order(x, weight, None, wrong)


@pytest.mark.parametrize("rows, inputs, outputs", [(16, 40, 24), (64, 784, 128), (7, 500, 65), (1, 100, 30)])
def test_a_product_in_torchs_order_has_its_bits(rows, inputs, outputs):
    x, weight, bias = spikes(rows, inputs, share=0.1), normal(outputs, inputs), normal(outputs)
    for added in (None, bias):
        ours = products.as_torch_adds(x, weight, added, rows)
        assert ours is None or ours.equal(F.linear(x, weight, added))


@pytest.mark.parametrize("is_right", [True, False])
def test_a_recorded_loop_adds_as_torch_does_or_leaves_it_to_torch(is_right, monkeypatch):
    """An order that is not the loop's shows in the first steps, and is tried no more."""
    torch.manual_seed(0)
    net, x = Loop(), spikes(12, 16, 40, share=0.05)
    spk, heard = net(x), []
    known = products.order(16, 40, 24, torch.get_num_threads())
    if not is_right:
        monkeypatch.setattr(products, "order", lambda rows, inputs, *rest: (1, inputs) if inputs == 40 else None)
    recorded = snn.accelerate(Loop())
    recorded.load_state_dict(net.state_dict())
    with torch.no_grad(), ops.listening(lambda operator, arguments, steps: heard.append(operator)):
        for _ in range(4):
            assert recorded(x).equal(spk)
    count = heard.count("spike_linear_in_order")
    assert (count > 0) == (known is not None) if is_right else count == 1


def test_a_product_in_order_is_computed_once_where_torchs_of_all_steps_is_not_trusted(monkeypatch):
    torch.manual_seed(0)
    recorded, heard, alone = snn.accelerate(Loop()), [], []
    trusted, of_steps = packing.Window._is_trusted, packing.Window._values_of_steps

    def only_in_order(window, operation, inputs, out, way):
        return way == "in order" and trusted(window, operation, inputs, out, way)

    def counted(window, operation, inputs):
        alone.append(operation)
        return of_steps(window, operation, inputs)

    monkeypatch.setattr(packing.Window, "_is_trusted", only_in_order)
    monkeypatch.setattr(packing.Window, "_values_of_steps", counted)
    monkeypatch.setattr(products, "order", lambda rows, inputs, *rest: (inputs,) if inputs == 40 else None)
    with torch.no_grad(), ops.listening(lambda operator, arguments, steps: heard.append(operator)):
        for _ in range(2):
            recorded(spikes(12, 16, 40, share=1.0))
        del alone[:], heard[:]
        recorded(spikes(12, 16, 40, share=0.05))
    # The other product is that of the second layer.
    assert heard.count("spike_linear_in_order") == len(alone) > 0


def test_the_order_of_a_sum_is_seen_whatever_the_default_device():
    products.order.cache_clear()
    with torch.device("meta"):
        found = products.order(16, 40, 24, torch.get_num_threads())
    products.order.cache_clear()
    assert found == products.order(16, 40, 24, torch.get_num_threads())


def test_a_recorded_loop_multiplies_spikes_for_its_weights_alone():
    """Its spikes are the loop's to the bit; with numbers="exact" its gradients too."""
    torch.manual_seed(0)
    net = Loop()
    x = spikes(12, 16, 40, share=0.05)
    spk = net(x)
    wanted = torch.autograd.grad(spk.sum(), list(net.parameters()))
    for numbers, is_ours in (("forward", True), ("exact", False)):
        recorded = snn.accelerate(Loop(), numbers=numbers)
        recorded.load_state_dict(net.state_dict())
        forward, gradients = calls_of(recorded, x)
        assert forward == 0 and (gradients >= 2) == is_ours, numbers
        assert recorded(x).equal(spk)
        for parameter, grad in zip(recorded.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options, calls", [({}, (2, 2)), ({"products": "per-step"}, (0, 0))])
def test_a_compiled_loop_multiplies_spikes(options, calls):
    torch.compiler.reset()
    net = snn.accelerate(Loop(), compile=True, **options)
    x = spikes(12, 16, 40, share=0.05)
    net(x)
    assert calls_of(net, x) == calls
