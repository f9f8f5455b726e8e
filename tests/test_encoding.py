"""Encoders: snnTorch's spikes where it is right, the promised probabilities, and seeds that decide every spike."""

import itertools
import re

import numpy as np
import pytest
import torch
from snntorch import spikegen

import snnfast
from snnfast import encoding

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
X = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))


def features(*shape, dtype=torch.float32, device="cpu"):
    """Values in [0, 1], its ends and the usual threshold among them."""
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values.view(-1)[:4] = torch.tensor([0.0, 1.0, 0.01, 0.5])
    return values.to(device, dtype)


def within(spk, p, deviations=6):
    """Whether each neuron's share of spikes [T, ...] lies so many standard deviations of its mean about p."""
    return ((spk.double().mean(0) - p).abs() <= deviations * (p * (1 - p) / len(spk)).sqrt() + 1e-12).all()


# Rate and Poisson


@pytest.mark.parametrize("dtype", FLOATS)
def test_rate_fires_with_the_clamped_probability(dtype, device):
    data = torch.linspace(-0.3, 1.3, 601, device=device).to(dtype)
    spk = encoding.rate(data, 4001, gain=0.9, offset=0.02)
    p = (data.double() * 0.9 + 0.02).clamp(0, 1)
    assert spk.shape == (4001, 601) and spk.dtype == dtype
    assert ((spk == 0) | (spk == 1)).all()
    assert within(spk, p)
    assert 0.2 < spk.double().mean() < 0.8


def test_impossible_and_certain_spikes(device):
    data = torch.tensor([0.0, -1.0, torch.nan, -torch.inf, 1.0, 2.0, torch.inf], device=device)
    spk = encoding.rate(data, 10_000)
    assert spk.mean(0).tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_probabilities_are_not_rounded_away(dtype, device):
    data = torch.full((1000, 1000), 1e-5, dtype=dtype, device=device)
    assert abs(encoding.rate(data, 20).double().sum().item() - 200) < 6 * 200**0.5


def test_poisson_draws_anew_at_its_rate(device):
    data = torch.tensor([0.0, 0.25, 1.0, 30.0], device=device).repeat(2000, 1)
    spk = encoding.poisson(data, 200, max_rate_hz=80, dt=2e-3)
    assert within(spk.flatten(0, 1), (data[0] * 0.16).clamp(0, 1).double())
    assert (spk[0] != spk[1]).any()
    assert not spk[..., 0].any() and spk[..., 3].all()


def test_neighbours_in_time_and_space_are_independent(device):
    spk = encoding.rate(torch.full((256, 256), 0.5, device=device), 64).double() - 0.5
    for dim, lag in itertools.product(range(3), (1, 2, 3, 4, 8, 16)):
        length = spk.shape[dim] - lag
        pairs = spk.narrow(dim, 0, length) * spk.narrow(dim, lag, length)
        assert pairs.mean().abs() < 6 * 0.25 / pairs.numel() ** 0.5, (dim, lag)


def philox(counter, key):
    """Philox4x32-10 in whole numbers, as published."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        low = 0xFFFFFFFF
        c = [(second >> 32) ^ c[1] ^ k[0], second & low, (first >> 32) ^ c[3] ^ k[1], first & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


def test_draws_are_philox(device):
    # The known answer of Random123's kat_vectors for philox4x32 with 10 rounds.
    digits = ("243f6a88", "85a308d3", "13198a2e", "03707344"), ("a4093822", "299f31d0")
    answer = [int(word, 16) for word in ("d16cfe09", "94fdcceb", "5001e420", "24126ea1")]
    assert philox(*([int(word, 16) for word in words] for words in digits)) == answer

    seed, neurons, steps = 0x299F31D0A4093822, 21, 9
    words = [[philox((i, 0, block, 0), (seed & 0xFFFFFFFF, seed >> 32)) for block in range(3)] for i in range(neurons)]
    uniform = torch.tensor(words, dtype=torch.float64).view(neurons, -1)[:, :steps].T.to(device)
    uniform = (uniform / 4).floor() / 2**30
    for p in (0.1, 0.5, 0.9):
        data = torch.full((neurons,), p, dtype=torch.float64, device=device)
        given = torch.tensor(seed, device=device)
        spk = torch.ops.snnfast.encode_rate(data, given, steps, 0, 1.0, 0.0, torch.bool)
        assert spk.equal(uniform < p)


def test_the_same_spikes_for_any_number_of_threads():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(5)
            found.append(encoding.rate(features(13, 1031), 37))
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1]) and found[0].equal(found[2])


@pytest.mark.parametrize("encode", [encoding.rate, encoding.poisson])
def test_seed_and_generator_decide(encode, device):
    data = torch.full((40, 40), 0.5, device=device)

    def spikes(seed, generator=None):
        (generator or torch).manual_seed(seed)
        return encode(data, 10, generator=generator)

    assert spikes(1).equal(spikes(1)) and not spikes(1).equal(spikes(2))
    generator = torch.Generator(device)
    first, state = spikes(3, generator), torch.get_rng_state()
    second = encode(data, 10, generator=generator)
    assert first.equal(spikes(3, generator)) and not first.equal(second)
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(1)
    assert not encode(data, 10).equal(encode(data, 10))


def test_time_varying_data_follows_the_silent_steps(device):
    data = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], device=device)
    spk = encoding.rate(data, time_var_input=True, first_spike_time=2)
    assert spk.tolist() == [[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]]
    inverted = encoding.rate(data, time_var_input=True, gain=-1, offset=1)
    assert inverted.equal(1 - data)
    assert encoding.rate(torch.ones(2, 3, device=device), 6, first_spike_time=5).sum(dim=(1, 2)).tolist() == [0] * 5 + [
        6
    ]


def test_time_varying_probabilities(device):
    p = torch.rand(4, 1, 1, device=device).expand(4, 100, 1000)
    spk = encoding.rate(p, time_var_input=True)
    assert within(spk.flatten(1).T, p[:, 0, 0].double())


# Latency and delta


LATENCY = [
    *({"normalize": True, "linear": linear, "clip": clip} for linear in (False, True) for clip in (False, True)),
    {"tau": 3.3, "bypass": True},
    {"tau": 1, "threshold": 0.2},
    {"tau": 7, "linear": True, "first_spike_time": 2},
    {"tau": 2.5, "linear": True, "clip": True, "threshold": 0.3, "bypass": True},
    {"normalize": True, "first_spike_time": 3},
    {"normalize": True, "first_spike_time": 3, "linear": True, "threshold": 0.5},
    {"tau": 5, "first_spike_time": 4, "bypass": True, "clip": True},
    {"normalize": True, "on_target": 1.25, "off_target": 0.25},
    {"normalize": True, "threshold": 0.9},
    {"tau": 3, "epsilon": 1e-2, "threshold": 0.2, "bypass": True},
    {"normalize": True, "epsilon": 1e-3},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [20, 101])
@pytest.mark.parametrize("options", LATENCY, ids=str)
def test_latency_is_snntorchs(options, steps, dtype, device):
    data = features(70, 91, dtype=dtype, device=device)
    expected = spikegen.latency(data, steps, **options)
    spk = encoding.latency(data, steps, **options)
    assert spk.dtype == dtype and expected.any()
    assert spk.equal(expected.to(dtype))


@pytest.mark.parametrize(
    "options", [{"tau": 3}, {"tau": 9, "linear": True}, {"tau": 2, "first_spike_time": 2}], ids=str
)
def test_the_last_spike_sets_the_number_of_steps(options, device):
    data = features(4, 33, device=device)
    expected = spikegen.latency(data, bypass=True, **options)
    assert encoding.latency(data, bypass=True, **options).equal(expected)


@pytest.mark.parametrize("options", [{}, {"on_target": 1.25, "off_target": 0.25}, {"linear": True}], ids=str)
def test_interpolated_latency(options, device):
    data = features(7, 33, device=device)
    expected = spikegen.latency(data, 50, normalize=True, interpolate=True, **options)
    spk = encoding.latency(data, 50, normalize=True, interpolate=True, **options)
    fired = spikegen.latency(data, 50, normalize=True, linear=options.get("linear", False)).bool()
    assert spk[~fired].equal(expected[~fired])
    assert (spk[fired] == options.get("on_target", 1)).all()
    clipped = encoding.latency(data, 50, normalize=True, interpolate=True, clip=True, **options)
    assert (clipped[:, data < 0.01] == options.get("off_target", 0)).all()
    assert clipped[:, data >= 0.01].equal(spk[:, data >= 0.01])


def test_a_line_to_a_spike_out_of_reach_is_not_begun():
    for start in (0.0, 0.5):
        spk = encoding.latency(torch.tensor([start]), 10, tau=20, linear=True, interpolate=True, bypass=True)
        assert not spk.any()


def test_silent_steps_hold_the_off_target():
    for on, off in ((1, -1), (-1, 0), (0, 1)):
        spk = encoding.latency(X, 10, normalize=True, on_target=on, off_target=off)
        fired = encoding.latency(X, 10, normalize=True).bool()
        assert spk.equal(torch.where(fired, float(on), float(off)))


def test_a_threshold_that_rounds_away_leaves_one_time():
    spk = encoding.latency(torch.full((3,), 0.9), 5, threshold=1e-20, first_spike_time=1, normalize=True)
    assert spk.sum(1).tolist() == [0, 3, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latency_has_the_times_of_float32(dtype, device):
    data = features(20, 31, dtype=dtype, device=device)
    spk = encoding.latency(data, 200, normalize=True)
    assert spk.dtype == dtype
    assert spk.float().equal(spikegen.latency(data.float(), 200, normalize=True))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("padding, off_spike", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("threshold", [0, 0.1, 0.5, 1])
def test_delta_is_snntorchs(threshold, padding, off_spike, dtype, device):
    data = torch.randn(23, 3, 701, device=device).to(dtype)
    data[5] = data[4] + threshold
    data[7, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    expected = spikegen.delta(data, threshold, padding, off_spike)
    spk = encoding.delta(data, threshold, padding, off_spike)
    assert spk.dtype == dtype and expected.any()
    assert spk.equal(expected)


def test_delta_of_bytes_does_not_wrap():
    data = torch.tensor([1, 2, 0, 5], dtype=torch.uint8)
    assert encoding.delta(data, 1, off_spike=True).tolist() == [1, 1, -1, 1]


# All of them

ENCODERS = {
    "rate": lambda data, **options: encoding.rate(data, 6, **options),
    "varying rate": lambda data, **options: encoding.rate(data, time_var_input=True, **options),
    "poisson": lambda data, **options: encoding.poisson(data, 6, 300, **options),
    "latency": lambda data, **options: encoding.latency(data, 6, normalize=True, **options),
    "delta": lambda data, **options: encoding.delta(data, **options),
}
every_encoder = pytest.mark.parametrize("encode", ENCODERS.values(), ids=ENCODERS)


@every_encoder
@pytest.mark.parametrize("dtype", encoding.DTYPES)
def test_dtypes_change_no_spike(encode, dtype, device):
    data = features(6, 2, 517, device=device)
    torch.manual_seed(0)
    expected = encode(data)
    torch.manual_seed(0)
    spk = encode(data, dtype=dtype)
    assert expected.dtype == torch.float32 and spk.dtype == dtype
    assert expected.any() and spk.float().equal(expected)


@every_encoder
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_are_taken_as_the_default_dtype(encode, dtype, device):
    data = (features(6, 5, device=device) > 0.5).to(dtype)
    torch.manual_seed(0)
    expected = encode(data.float())
    torch.manual_seed(0)
    assert encode(data).equal(expected)


@every_encoder
def test_layouts_and_shapes(encode, device):
    data = features(6, 7, 8, device=device)
    for given in (data.transpose(0, 2), data[:, ::2], data[0, 0], data[:1], data[:, :0], data[:1].expand(6, 7, 8)):
        torch.manual_seed(0)
        expected = encode(given.contiguous())
        torch.manual_seed(0)
        assert encode(given).equal(expected)
        assert expected.shape in ((6, *given.shape), given.shape)


@every_encoder
def test_an_empty_batch(encode, device):
    data = torch.zeros(4, 0, 784, device=device)
    assert encode(data).shape in ((6, 4, 0, 784), data.shape)


@every_encoder
def test_spikes_need_no_gradient(encode, device):
    data = features(6, 5, device=device).requires_grad_()
    assert not encode(data).requires_grad


@every_encoder
def test_compiled_without_a_break(encode, device):
    torch._dynamo.reset()
    data = features(6, 2, 517, device=device)
    compiled = torch.compile(lambda x: encode(x, dtype=torch.bfloat16).float(), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    expected = encode(data)
    torch.manual_seed(0)
    assert compiled(data).equal(expected)


def test_opcheck(device):
    data, seed = features(4, 5, device=device), torch.tensor(3, device=device)
    rate, latency, delta = (
        getattr(torch.ops.snnfast, f"encode_{name}").default for name in ("rate", "latency", "delta")
    )
    for dtype in encoding.DTYPES:
        torch.library.opcheck(rate, (data, seed, 3, 1, 1.0, 0.0, dtype), test_utils=CHECKS)
        torch.library.opcheck(rate, (data, seed, None, 1, 1.0, 0.0, dtype), test_utils=CHECKS)
        torch.library.opcheck(latency, ((3 * data).round(), 3, False, 1.0, 0.0, dtype), test_utils=CHECKS)
        torch.library.opcheck(delta, (data, 0.1, False, False, dtype), test_utils=CHECKS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_cuda_graph_draws_anew_at_every_replay():
    data = torch.full((40, 40), 0.5, device="cuda")
    encoding.rate(data, 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        spk = encoding.rate(data, 8)
    graph.replay()
    first = spk.clone()
    graph.replay()
    assert not spk.equal(first) and 0.4 < spk.mean() < 0.6


# Bad input

NAN = float("nan")
MISTAKES = {
    "no tensor": (TypeError, "data must be a tensor, got list", lambda: encoding.rate([0.5], 3)),
    "an array": (TypeError, "data must be a tensor, got ndarray", lambda: encoding.delta(np.ones(3))),
    "sparse": (ValueError, "data must be a dense tensor", lambda: encoding.latency(X.to_sparse(), 3)),
    "complex": (TypeError, "data must have a real dtype", lambda: encoding.rate(X.to(torch.complex64), 3)),
    "rate without steps": (ValueError, "num_steps must be given; data with a time", lambda: encoding.rate(X)),
    "rate of 0 steps": (ValueError, "num_steps must be 1 or more, got 0", lambda: encoding.rate(X, 0)),
    "rate of -1 steps": (ValueError, "num_steps must be 0 or more, got -1", lambda: encoding.rate(X, -1)),
    "rate of 2.0 steps": (TypeError, "num_steps must be an int, got float", lambda: encoding.rate(X, 2.0)),
    "rate of True steps": (TypeError, "num_steps must be an int, got bool", lambda: encoding.rate(X, True)),
    "rate with two times": (
        ValueError,
        "num_steps must not be given with time_var_input, got 3",
        lambda: encoding.rate(X, 3, time_var_input=True),
    ),
    "rate over no time": (
        ValueError,
        "data must have one time step [T, B, ...] or more, got shape (0, 5)",
        lambda: encoding.rate(X[:0], time_var_input=True),
    ),
    "rate of a number over time": (
        ValueError,
        "data must have one time step [T, B, ...] or more, got shape ()",
        lambda: encoding.rate(X[0, 0], time_var_input=True),
    ),
    "rate begins too late": (
        ValueError,
        "first_spike_time must be less than num_steps = 3, got 3",
        lambda: encoding.rate(X, 3, first_spike_time=3),
    ),
    "rate begins too early": (
        ValueError,
        "first_spike_time must be 0 or more, got -1",
        lambda: encoding.rate(X, 3, first_spike_time=-1),
    ),
    "gain is a tensor": (TypeError, "gain must be a number, got Tensor", lambda: encoding.rate(X, 3, gain=X)),
    "gain is NaN": (ValueError, "gain must be finite, got nan", lambda: encoding.rate(X, 3, gain=NAN)),
    "offset is text": (TypeError, "offset must be a number, got str", lambda: encoding.rate(X, 3, offset="0")),
    "dtype is int": (TypeError, "dtype must be one of torch.float32", lambda: encoding.rate(X, 3, dtype=torch.int32)),
    "dtype is text": (TypeError, "got 'float32'", lambda: encoding.delta(X, dtype="float32")),
    "generator is a seed": (
        TypeError,
        "generator must be a torch.Generator or None, got int",
        lambda: encoding.rate(X, 3, generator=1),
    ),
    "generator is elsewhere": (
        ValueError,
        "generator must be on meta as data is, got cpu",
        lambda: encoding.rate(X.to("meta"), 3, generator=torch.Generator()),
    ),
    "poisson of 0 steps": (ValueError, "num_steps must be 1 or more, got 0", lambda: encoding.poisson(X, 0)),
    "poisson without steps": (ValueError, "num_steps must be given", lambda: encoding.poisson(X, None)),
    "a negative rate": (ValueError, "max_rate_hz must be 0 or more, got -1", lambda: encoding.poisson(X, 3, -1)),
    "a time step of 0": (ValueError, "dt must be more than 0, got 0", lambda: encoding.poisson(X, 3, dt=0)),
    "latency without steps": (ValueError, "num_steps must be given, unless", lambda: encoding.latency(X)),
    "latency normalized to nothing": (
        ValueError,
        "num_steps must be given, unless bypass=True without normalize",
        lambda: encoding.latency(X, normalize=True, bypass=True),
    ),
    "latency of 0 steps": (
        ValueError,
        "num_steps must be 1 or more, got 0",
        lambda: encoding.latency(X, 0, bypass=True),
    ),
    "latency of -1 steps": (ValueError, "num_steps must be 0 or more, got -1", lambda: encoding.latency(X, -1)),
    "latency of too little": (
        ValueError,
        "data must lie in [0, 1], got values from -0.5 to 0.5",
        lambda: encoding.latency(torch.tensor([-0.5, 0.5]), 3),
    ),
    "latency of too much": (
        ValueError,
        "data must lie in [0, 1], got values from 0.5 to 255.0",
        lambda: encoding.latency(torch.tensor([0.5, 255]), 3),
    ),
    "latency of NaN": (
        ValueError,
        "data must lie in [0, 1], got values from nan to nan",
        lambda: encoding.latency(torch.tensor([0.5, NAN]), 3),
    ),
    "threshold 0": (ValueError, "threshold must be between 0 and 1, got 0", lambda: encoding.latency(X, 3, 0)),
    "threshold 1": (ValueError, "threshold must be between 0 and 1, got 1", lambda: encoding.latency(X, 3, 1)),
    "tau 0": (ValueError, "tau must be more than 0, got 0", lambda: encoding.latency(X, 3, tau=0)),
    "epsilon 0": (ValueError, "epsilon must be more than 0, got 0", lambda: encoding.latency(X, 3, epsilon=0)),
    "latency begins too late": (
        ValueError,
        "first_spike_time must be less than num_steps = 3, got 3",
        lambda: encoding.latency(X, 3, first_spike_time=3),
    ),
    "spikes too late": (
        ValueError,
        "num_steps must be more than 10, the step of the last spike, or bypass=True; got 10",
        lambda: encoding.latency(torch.tensor([0.0, 1.0]), 10, tau=10, linear=True),
    ),
    "steps of nothing": (
        ValueError,
        "num_steps must be given for data without elements",
        lambda: encoding.latency(X[:0], bypass=True),
    ),
    "a falling line": (
        ValueError,
        "on_target must be off_target or more to interpolate, got 0 and 1",
        lambda: encoding.latency(X, 9, normalize=True, on_target=0, off_target=1, interpolate=True),
    ),
    "a line of bools": (
        ValueError,
        "dtype must be floating for interpolate",
        lambda: encoding.latency(X, 9, normalize=True, interpolate=True, dtype=torch.bool),
    ),
    "half a bool": (
        ValueError,
        "targets other than 0 and 1, got torch.bool",
        lambda: encoding.latency(X, 9, normalize=True, on_target=0.5, dtype=torch.bool),
    ),
    "delta over no time": (ValueError, "data must have one time step", lambda: encoding.delta(X[:0])),
    "delta of a number": (ValueError, "data must have one time step", lambda: encoding.delta(X[0, 0])),
    "a negative threshold": (ValueError, "threshold must be 0 or more, got -1", lambda: encoding.delta(X, -1)),
    "a threshold of None": (TypeError, "threshold must be a number, got NoneType", lambda: encoding.delta(X, None)),
    "a negative bool": (
        ValueError,
        "dtype must be floating for off_spike",
        lambda: encoding.delta(X, off_spike=True, dtype=torch.bool),
    ),
}


@pytest.mark.parametrize("error, message, call", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(error, message, call):
    with pytest.raises(error, match=re.escape(message)) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_operators_refuse_what_would_reach_beyond_memory():
    encode = torch.ops.snnfast
    seed = torch.tensor(1)
    for call in (
        lambda: encode.encode_rate(X, torch.tensor([1, 2]), 3, 0, 1.0, 0.0, torch.float32),
        lambda: encode.encode_rate(X, seed.float(), 3, 0, 1.0, 0.0, torch.float32),
        lambda: encode.encode_rate(X, seed, 3, -1, 1.0, 0.0, torch.float32),
        lambda: encode.encode_rate(X, seed, -3, 0, 1.0, 0.0, torch.float32),
        lambda: encode.encode_rate(X[0, 0], seed, None, 0, 1.0, 0.0, torch.float32),
        lambda: encode.encode_rate(X, seed, 3, 0, 1.0, 0.0, torch.int32),
        lambda: encode.encode_latency(X, -1, False, 1.0, 0.0, torch.float32),
        lambda: encode.encode_delta(X[0, 0], 0.1, False, False, torch.float32),
    ):
        with pytest.raises(RuntimeError, match="must"):
            call()


def test_encoding_is_a_public_name():
    assert "encoding" in snnfast.__all__ and snnfast.encoding is encoding


def test_events_may_come_as_arrays():
    t, places = np.array([0.0, 0.3, 0.9]), np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1]])
    given = snnfast.bin_events(t, *places, steps=3, size=(2, 2))
    assert torch.equal(given, snnfast.bin_events(torch.from_numpy(t), *torch.from_numpy(places), steps=3, size=(2, 2)))
