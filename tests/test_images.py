"""Convolutions and pooling behind spikes: what is computed from the values that are not zero is torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import snnfast as snn
from snnfast import images, ops, products

# C, outputs, filter, image, stride, padding: odd sizes around the vectors, and rows of filters longer than registers.
LAYERS = [
    (1, 12, (5, 5), (28, 28), (1, 1), (0, 0)),
    (9, 17, (3, 2), (7, 11), (2, 3), (1, 0)),
    (20, 50, (5, 5), (12, 12), (1, 1), (0, 0)),
    (40, 66, (3, 3), (6, 5), (1, 2), (1, 2)),
    (3, 130, (1, 1), (5, 5), (1, 1), (0, 0)),
]


def spikes(*shape, share, dtype=torch.float32):
    draw = torch.Generator().manual_seed(shape[-1])
    heights = torch.randn(*shape, generator=draw, dtype=torch.float64)
    return torch.where(torch.rand(*shape, generator=draw) < share, heights, 0.0).to(dtype)


def layer(inputs, outputs, filters, image, share, batch=9, dtype=torch.float32):
    draw = torch.Generator().manual_seed(outputs)
    weight, bias = (torch.randn(size, generator=draw).to(dtype) for size in ((outputs, inputs, *filters), outputs))
    return spikes(batch, inputs, *image, share=share, dtype=dtype), weight, bias


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("inputs, outputs, filters, image, stride, padding", LAYERS)
def test_the_operators(inputs, outputs, filters, image, stride, padding, share):
    """Float32 errs at most one and a half times as much as torch's own convolution, against that in float64."""

    def results(dtype, ours):
        x, weight, bias = layer(inputs, outputs, filters, image, share, dtype=dtype)
        y = F.conv2d(x, weight, bias, stride, padding)
        grad = spikes(*y.shape, share=max(share, 0.3), dtype=dtype)
        if ours:
            return (
                ops.conv2d(x, weight, bias, stride, padding),
                ops.conv2d_grad_input(grad, weight, x.shape, stride, padding),
                ops.conv2d_grad_weight(grad, x, weight.shape, stride, padding, False),
                ops.conv2d_grad_weight(grad, x, weight.shape, stride, padding, True),
                ops.conv_transpose2d(grad, weight, weight.sum((0, 2, 3)), image, stride, padding),
            )
        wanted = True, True, False
        options = stride, padding, (1, 1), False, (0, 0), 1, wanted
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, [outputs], *options)
        return y, of_x, of_weight, of_weight, of_x + weight.sum((0, 2, 3))[:, None, None]

    exact = results(torch.float64, False)
    for one, theirs, true in zip(results(torch.float32, True), results(torch.float32, False), exact, strict=True):
        floor = torch.finfo(torch.float32).eps * true.abs().max()
        assert (one - true).abs().max() <= 1.5 * (theirs - true).abs().max() + floor


def test_huge_tiny_and_cancelling_values():
    x, weight, bias = layer(4, 16, (3, 3), (8, 8), 0.3)
    x[0] *= 1e30
    x[1] *= 1e-42
    x[2, :2], weight[:, :2] = x[2, 2:], -weight[:, 2:]
    true = F.conv2d(x.double(), weight.double(), bias.double())
    found = ops.conv2d(x, weight, bias, (1, 1), (0, 0)), F.conv2d(x, weight, bias)
    errors = [(one - true).abs().amax((1, 2, 3)) for one in found]
    assert (errors[0] <= 1.5 * errors[1] + 1e-6 * true.abs().amax((1, 2, 3))).all()


def test_threads_give_the_same_sums():
    x, weight, _ = layer(8, 16, (3, 3), (9, 9), 0.2, batch=70)
    grad = torch.randn(70, 16, 7, 7)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.conv2d_grad_weight(grad, x, weight.shape, (1, 1), (0, 0), False))
    torch.set_num_threads(before)
    assert found[0].equal(found[1]) and found[0].equal(found[2])


def watched(monkeypatch):
    """The names of the operators that are called from now on."""
    called, call = [], ops.calls.call
    monkeypatch.setattr(ops.calls, "call", lambda name, *rest, **more: called.append(name) or call(name, *rest, **more))
    return called


TRANSPOSED = [
    ((16, 24, (3, 3), (8, 8)), {"stride": 2, "padding": 1, "output_padding": 1}),
    ((16, 24, (3, 4), (8, 6)), {"stride": (1, 2), "padding": (0, 2)}),
    ((40, 2, (5, 5), (9, 9)), {"stride": 3}),
    ((16, 24, (3, 3), (8, 8)), {"dilation": 2}),
]


def transposed_layer(inputs, outputs, filters, image, share, batch=48):
    x, weight, _ = layer(inputs, outputs, filters, image, share, batch)
    return x, weight.transpose(0, 1).contiguous(), torch.linspace(-1, 1, outputs)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.9])
def test_transposed_convolutions(share, monkeypatch):
    called = watched(monkeypatch)
    for sizes, options in TRANSPOSED:
        called.clear()
        given = transposed_layer(*sizes, share)
        ours, theirs = (trained(f, *given, **options) for f in (images.conv_transpose2d, F.conv_transpose2d))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        ran = share < 0.1 and "dilation" not in options
        assert called == ["conv_transpose2d", "conv2d_grad_weight"] * ran
    x, weight, _ = given
    torch.testing.assert_close(images.conv_transpose2d(x, weight), F.conv_transpose2d(x, weight), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="to have 16 channels, but got 15"):
        images.conv_transpose2d(x[:, 1:], weight)
    with pytest.raises(RuntimeError, match="output padding must be smaller"):
        images.conv_transpose2d(x, weight, output_padding=1)


def test_steps_of_transposed_convolutions_are_the_loop_s_to_the_bit(monkeypatch):
    called = watched(monkeypatch)
    for sizes, options in TRANSPOSED[:3]:
        x, weight, bias = transposed_layer(*sizes, 0.03, batch=96)
        with torch.no_grad():
            at_once = images.conv_transpose2d(x, weight, bias, **options, steps=4)
            assert at_once.equal(torch.cat([F.conv_transpose2d(step, weight, bias, **options) for step in x.chunk(4)]))
    assert "conv_transpose2d" in called


def test_gradients_of_gradients_of_transposed_convolutions():
    x, weight, bias = transposed_layer(16, 24, (3, 3), (8, 8), 0.03)
    found = []
    for function in (images.conv_transpose2d, F.conv_transpose2d):
        given = [one.clone().requires_grad_() for one in (x, weight, bias)]
        out = function(*given, stride=2)
        grads = torch.autograd.grad(out.square().mean(), given, create_graph=True)
        found.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), given))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def trained(function, x, weight, bias, **options):
    given = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    out = function(*given, **options)
    return out, torch.autograd.grad(out, given, torch.ones_like(out) * (torch.arange(out.shape[-1]) % 3))


@pytest.mark.parametrize("share", [0.05, 0.9])
def test_as_a_function(share, monkeypatch):
    called = watched(monkeypatch)
    x, weight, bias = layer(16, 32, (3, 3), (12, 12), share, batch=16)
    for options in ({}, {"stride": 2, "padding": 1}, {"stride": (1, 2)}, {"padding": "same"}, {"dilation": 2}):
        ours, theirs = trained(images.conv2d, x, weight, bias, **options), trained(F.conv2d, x, weight, bias, **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ("conv2d" in called) == ("conv2d_grad_weight" in called) == (share < 0.1)
    grouped = layer(8, 32, (3, 3), (12, 12), share)[1]
    assert images.conv2d(x, grouped, bias, groups=2).equal(F.conv2d(x, grouped, bias, groups=2))


def test_steps_are_the_loop_s_to_the_bit():
    x, weight, bias = layer(12, 64, (5, 5), (12, 12), 0.1, batch=32)
    with torch.no_grad():
        at_once = images.conv2d(x, weight, bias, steps=4)
        assert at_once.equal(torch.cat([F.conv2d(step, weight, bias) for step in x.chunk(4)]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_transposed_what_it_reaches_in_torch(bad):
    x, weight, bias = transposed_layer(16, 24, (3, 3), (8, 8), 0.03)
    for spoilt in (x, weight, None):
        given = [one.clone() for one in (x, weight)]
        for one, like in zip(given, (x, weight), strict=True):
            if spoilt is like:
                one[0, 0, 1, 1] = bad
        learnt = given[1].requires_grad_()
        found = []
        for function in (images.conv_transpose2d, F.conv_transpose2d):
            out = function(given[0], learnt, bias)
            grad = torch.ones_like(out)
            grad[0, 0] = bad if spoilt is None else 1.0
            found.append((out.isfinite(), torch.autograd.grad(out, learnt, grad)[0].isfinite()))
        assert all(map(torch.equal, *found))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_what_it_reaches_in_torch(bad):
    x, weight, bias = layer(16, 32, (3, 3), (12, 12), 0.05, batch=16)
    for place in (x, weight):
        spoilt = place.clone()
        spoilt[0, 0, 1, 1] = bad
        given = [spoilt if one is place else one for one in (x, weight)]
        ours, theirs = (function(*given, bias).isfinite() for function in (images.conv2d, F.conv2d))
        assert ours.equal(theirs)
    grads = []
    for function in (images.conv2d, F.conv2d):
        learnt = weight.clone().requires_grad_()
        out = function(x, learnt, bias)
        grad = torch.ones_like(out)
        grad[0, 0] = bad
        grads.append(torch.autograd.grad(out, learnt, grad)[0].isfinite())
    assert grads[0].equal(grads[1]) and not grads[0].all()


@pytest.mark.parametrize("size, stride, padding", [(2, 2, 0), (3, 2, 1), ((2, 3), (1, 2), (1, 0)), (2, 3, 0)])
def test_pooling(size, stride, padding):
    x = torch.randn(5, 3, 9, 23).round()
    x[0, 0, 0, 0], x[1], x[2, 1, 3] = float("nan"), -float("inf"), float("inf")
    given = [x.clone().requires_grad_() for _ in range(2)]
    functions = images.max_pool2d, F.max_pool2d
    ours, theirs = (f(one, size, stride, padding) for f, one in zip(functions, given, strict=True))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    weights = torch.randn_like(ours).round().requires_grad_()
    pairs = zip((ours, theirs), given, strict=True)
    grads = [torch.autograd.grad(out, one, weights, create_graph=True)[0] for out, one in pairs]
    assert grads[0].equal(grads[1]) and grads[0].signbit().equal(grads[1].signbit())
    again = [torch.autograd.grad(grad, weights, torch.ones_like(grad))[0] for grad in grads]
    assert again[0].equal(again[1])


@pytest.mark.parametrize("inputs, stride, ours", [(32, 2, True), (32, 1, False), (40, 2, False)])
def test_dense_gradients_with_strides(inputs, stride, ours, monkeypatch):
    """Filters' rows whose sums stay in registers are faster than torch's with strides alone."""
    called = watched(monkeypatch)
    x, weight = torch.rand(8, inputs, 16, 16, requires_grad=True), torch.randn(64, inputs, 3, 3)
    (grad,) = torch.autograd.grad(images.conv2d(x, weight, None, stride, 1).square().sum(), x)
    (theirs,) = torch.autograd.grad(F.conv2d(x, weight, None, stride, 1).square().sum(), x)
    assert ("conv2d_grad_input" in called) == ours
    torch.testing.assert_close(grad, theirs, rtol=1e-4, atol=1e-2)


def test_pooling_that_is_torch_s_own():
    x = torch.randn(2, 3, 9, 11)
    for options in ({"ceil_mode": True}, {"return_indices": True}, {"dilation": 2}, {"kernel_size": 17, "padding": 8}):
        options = {"kernel_size": 2, "stride": 2} | options
        ours, theirs = images.max_pool2d(x, **options), F.max_pool2d(x, **options)
        assert all(map(torch.equal, ours, theirs)) if isinstance(ours, tuple) else ours.equal(theirs)
    last = x.contiguous(memory_format=torch.channels_last)
    assert images.max_pool2d(last, 2).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        images.max_pool2d(x, 2, padding=2)


def network(lib, **options):
    first = nn.Conv2d(1, 8, 3), nn.MaxPool2d(2), lib.Leaky(0.7, **options)
    second = nn.Conv2d(8, 16, 3), lib.Leaky(0.8, **options)
    return nn.Sequential(*first, *second, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 4), lib.Leaky(0.9, **options))


def test_unroll_runs_convolutions_on_spikes(monkeypatch):
    called = watched(monkeypatch)
    net, x = network(snn), torch.rand(6, 64, 1, 14, 14)
    results = []
    for way in ("ours", "torch's"):
        if way != "ours":
            monkeypatch.setattr(products, "OURS", {})
        net.zero_grad()
        out = snn.Unroll(net)(x)
        out.sum().backward()
        results.append((out, net[0].weight.grad.clone()))
    assert {"conv2d", "conv2d_grad_weight", "max_pool2d", "max_pool2d_grad"} <= set(called)
    assert (results[0][0] - results[1][0]).count_nonzero() <= 2
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-3)


def test_an_image_that_stays_is_convolved_and_pooled_once(monkeypatch):
    called = watched(monkeypatch)
    net, x = network(snn, init_hidden=True)[:3], torch.rand(128, 1, 28, 28)

    def run():
        net.zero_grad()
        snn.reset(net)
        spikes = torch.stack([net(x) for _ in range(6)])
        spikes.square().sum().backward()
        return spikes, net[0].weight.grad.clone()

    expected = run()
    recorded = snn.accelerate(net)
    run()
    called.clear()
    spikes, grad = run()
    assert recorded is net and spikes.equal(expected[0])
    torch.testing.assert_close(grad, expected[1], rtol=1e-4, atol=1e-3)
    assert [called.count(name) for name in ("max_pool2d", "max_pool2d_grad", "conv2d_grad_weight")] == [1, 1, 1]


def test_a_recorded_loop_keeps_its_bits(monkeypatch):
    called = watched(monkeypatch)
    net, x = network(snn, init_hidden=True), torch.rand(12, 32, 1, 14, 14)

    def run():
        snn.reset(net)
        return torch.stack([net(step) for step in x])

    plain = run()
    with snn.accelerated():
        recorded = run()
    assert recorded.equal(plain) and "conv2d" in called
    recorded.sum().backward()
    assert "conv2d_grad_weight" in called


def test_others_run_torch_s_own(monkeypatch):
    monkeypatch.setattr(ops.calls, "call", None)
    x, weight, bias = layer(16, 32, (3, 3), (12, 12), 0.05, batch=16)
    last = x.contiguous(memory_format=torch.channels_last)
    assert images.conv2d(last, weight, bias).is_contiguous(memory_format=torch.channels_last)
    for one, matrix in ((x.double(), weight.double()), (x[:1], weight)):
        assert images.conv2d(one, matrix).equal(F.conv2d(one, matrix))
    products.choose("torch")
    try:
        assert images.conv2d(x, weight, bias).equal(F.conv2d(x, weight, bias))
    finally:
        products.choose("auto")
    with pytest.raises(RuntimeError, match="expected input"):
        images.conv2d(x, weight[:, :7])


def test_wrong_arguments_of_the_operators():
    x, weight, grad = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 3, 3), torch.zeros(2, 4, 6, 6)
    names = ("conv2d", "conv2d_grad_weight", "conv2d_grad_input", "conv_transpose2d", "max_pool2d", "max_pool2d_grad")
    conv, by_weight, by_input, transposed, pool, by_pool = (getattr(torch.ops.snnfast, name) for name in names)
    one, none = [1, 1], [0, 0]
    taps = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    wrong = [
        (lambda: conv(x[0], weight, None, one, none), r"must be \[B, C, H, W\]"),
        (lambda: conv(x, weight[:, :2], None, one, none), r"must be \[B, C, H, W\]"),
        (lambda: conv(x, weight, None, none, none), "stride must be 1 or more"),
        (lambda: conv(x[..., :2], weight, None, one, none), "must not be larger than the padded image"),
        (lambda: conv(x.double(), weight, None, one, none), "x must have dtype Float, got Double"),
        (lambda: by_weight(grad[:, :3], x, [4, 3, 3, 3], one, none, False), "grad must have 288 elements, got 216"),
        (lambda: by_input(grad, weight.double(), [2, 3, 8, 8], one, none), "weight must have dtype Float, got Double"),
        (lambda: transposed(grad[0], weight, None, [8, 8], one, none), r"x and weight must be \[B, inputs, H, W\]"),
        (lambda: transposed(grad, weight, None, [8, 9], one, none), "x must have 336 elements, got 288"),
        (lambda: transposed(grad, weight, torch.zeros(4), [8, 8], one, none), "bias must have 3 elements, got 4"),
        (lambda: pool(x, [16, 16], one, [8, 8]), "at most 255 taps, got 256"),
        (lambda: pool(x, [2, 2], one, [2, 2]), "padding from 0 to half the size"),
        (lambda: by_pool(torch.zeros(2, 3, 4, 4), taps[:1], [2, 3, 8, 8], [2, 2], [2, 2], none), "taps must have 96"),
    ]
    for call, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            call()
    assert by_pool(torch.ones(2, 3, 4, 4), taps + 255, [2, 3, 8, 8], [2, 2], [2, 2], none).shape == x.shape


def test_operators_follow_torch_s_rules():
    x, weight, bias = layer(3, 5, (3, 3), (6, 6), 0.3, batch=2)
    y = F.conv2d(x, weight, bias)
    one, none = [1, 1], [0, 0]
    taps = torch.zeros(2, 3, 3, 3, dtype=torch.uint8)
    calls = [
        ("conv2d", (x, weight, bias, one, none)),
        ("conv2d_grad_weight", (y, x, list(weight.shape), one, none, True)),
        ("conv_transpose2d", (y, weight, x[0, :, 0, 0], [6, 6], one, none)),
        ("conv2d_grad_input", (y, weight, list(x.shape), one, none)),
        ("max_pool2d", (x, [2, 2], [2, 2], none)),
        ("max_pool2d_grad", (torch.ones(2, 3, 3, 3), taps, list(x.shape), [2, 2], [2, 2], none)),
    ]
    for name, arguments in calls:
        torch.library.opcheck(getattr(torch.ops.snnfast, name).default, arguments)
