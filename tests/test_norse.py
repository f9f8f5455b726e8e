"""Norse's neurons: the numbers of the cells in published.py, which are Norse 1.1.0's, bit for bit."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import published
from cases import identical
from published import LOOPS
from snnfast import functional, norse, ops
from snnfast.reference import LIF as LIF_MODEL

T, SHAPE = 20, (3, 7)
ODD = {
    "tau_syn_inv": torch.tensor(130.0),
    "tau_mem_inv": torch.tensor(217.0),
    "v_leak": torch.tensor(-0.1),
    "v_th": torch.tensor(0.37),
    "v_reset": torch.tensor(0.05),
}
PARAMETERS = pytest.mark.parametrize("p", [{}, ODD], ids=["defaults", "odd"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


class Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, alpha):
        ctx.save_for_backward(u)
        ctx.alpha = alpha
        return (u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * ctx.alpha * torch.relu(1 - u.abs()), None


class Tanh(Triangle):
    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * (1 - (u * ctx.alpha).tanh().pow(2)), None


class Circ(Triangle):
    @staticmethod
    def backward(ctx, grad):
        (u,), a = ctx.saved_tensors, ctx.alpha
        r = a**2 + u.pow(2)
        return grad * (-(u.pow(2) / (2 * r.pow(1.5))) + 1 / (2 * r.sqrt())) * 2 * a, None


class Erfc(Triangle):
    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return (2 * torch.exp(-(ctx.alpha * u).pow(2))) / math.sqrt(math.pi) * grad, None


class Heaviside(Triangle):
    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad), None


EXACT = {"super": published.SuperSpike, "heaviside": Heaviside, "triangle": Triangle}
ROUNDED = {"tanh": Tanh, "circ": Circ, "heavi_erfc": Erfc}


def draw(*shape, dtype=torch.float32, device="cpu", scale=1.0):
    return (torch.randn(shape, dtype=torch.float64) * scale).to(device, dtype)


def leaf(tensor):
    return tensor.clone().requires_grad_()


def loop(cell, x, state):
    outputs, states = [], []
    for current in x.unbind(0):
        output, state = cell(current, state)
        outputs.append(output)
        states.append(state)
    return torch.stack(outputs), [torch.stack(column) for column in zip(*states, strict=True)]


def theirs(monkeypatch, method, p):
    """published.LIFCell with this surrogate, whose alpha is 1.7."""
    monkeypatch.setattr(published, "SuperSpike", {**EXACT, **ROUNDED}[method])
    return published.LIFCell(published.LIFParameters(**p, alpha=torch.tensor(1.7)))


def lif_results(run, x, v, i, weights, with_state):
    x, v, i = leaf(x), leaf(v), leaf(i)
    spk, (v_seq, i_seq) = run(x, (v, i) if with_state else None)
    loss = (spk * weights[0]).sum() + (v_seq * weights[1]).sum() + (i_seq * weights[2]).sum()
    loss.backward()
    return [spk.detach(), v_seq.detach(), i_seq.detach(), x.grad, *([v.grad, i.grad] if with_state else [])]


def our_lif(p, method, **options):
    layer = norse.LIF(norse.LIFParameters(**p, method=method, alpha=torch.tensor(1.7)), record_states=True, **options)
    return lambda x, state: layer(x, state and norse.LIFFeedForwardState(*state))


@PARAMETERS
@DTYPES
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("method", {**EXACT, **ROUNDED})
def test_lif_over_a_sequence(method, with_state, dtype, p, device, monkeypatch):
    x, weights = draw(T, *SHAPE, dtype=dtype, device=device, scale=3), draw(3, T, *SHAPE, dtype=dtype, device=device)
    v, i = draw(2, *SHAPE, dtype=dtype, device=device)
    cell = theirs(monkeypatch, method, p)

    def run_theirs(x, state):
        # Norse's layer starts from its leak; the cell of published.py from 0.
        rest = torch.zeros(SHAPE, dtype=dtype, device=device)
        return loop(cell, x, state or (rest + cell.p.v_leak, rest))

    expected = lif_results(run_theirs, x, v, i, weights, with_state)
    found = lif_results(our_lif(p, method), x, v, i, weights, with_state)
    assert 0.02 < expected[0].mean() < 0.6
    for k, (ours, wanted) in enumerate(zip(found, expected, strict=True)):
        if method in EXACT or k < 3:
            assert identical(ours, wanted), k
        else:
            torch.testing.assert_close(ours, wanted, rtol=2e-4, atol=2e-4)


@DTYPES
@PARAMETERS
def test_lif_cell_by_cell(p, dtype, device, monkeypatch):
    x0, weights = draw(T, *SHAPE, dtype=dtype, device=device, scale=3), draw(T, *SHAPE, dtype=dtype, device=device)
    results = []
    rest = torch.zeros(SHAPE, dtype=dtype, device=device)
    for cell in (norse.LIFCell(norse.LIFParameters(**p)), theirs(monkeypatch, "super", p)):
        x = leaf(x0)
        ours = isinstance(cell, norse.LIFCell)
        spk, states = loop(cell, x, None if ours else (rest + cell.p.v_leak, rest))
        (spk * weights).sum().backward()
        results.append((spk, *states, x.grad))
    assert all(identical(ours, wanted) for ours, wanted in zip(*results, strict=True))


def li_parameters(p):
    return {name: p[name] for name in norse.LIParameters._fields if name in p}


@pytest.mark.parametrize("form", ["layer", "cell"])
@DTYPES
@PARAMETERS
def test_li(p, dtype, form, device):
    x0, weights = draw(T, *SHAPE, dtype=dtype, device=device), draw(2, T, *SHAPE, dtype=dtype, device=device)
    states = draw(2, *SHAPE, dtype=dtype, device=device)
    ours = norse.LIParameters(**li_parameters(p))
    layer = norse.LI(ours, record_states=True)

    def run_layer(x, v, i):
        voltage, state = layer(x, norse.LIState(v, i))
        assert identical(voltage, state.v)
        return voltage, state

    runs = [
        run_layer if form == "layer" else lambda x, v, i: loop(norse.LICell(ours), x, norse.LIState(v, i)),
        lambda x, v, i: loop(published.LICell(published.LIFParameters(**li_parameters(p))), x, (v, i)),
    ]
    results = []
    for run in runs:
        x, v, i = leaf(x0), leaf(states[0]), leaf(states[1])
        voltage, (_, currents) = run(x, v, i)
        ((voltage * weights[0]).sum() + (currents * weights[1]).sum()).backward()
        results.append((voltage, currents, x.grad, v.grad, i.grad))
    exact = 5 if form == "layer" else 3
    for k, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert identical(found, wanted) or (k >= exact and torch.allclose(found, wanted)), k


def recurrent_pair(kind, autapses=False, **p):
    torch.manual_seed(3)
    ours = kind(5, 9, norse.LIFParameters(**p), autapses=autapses)
    torch.manual_seed(3)
    return ours, published.LIFRecurrentCell(5, 9, published.LIFParameters(**p))


@DTYPES
def test_recurrent_cell(dtype, device):
    cells = [cell.to(device, dtype) for cell in recurrent_pair(norse.LIFRecurrentCell, v_th=torch.tensor(0.5))]
    x0, weights = draw(T, 3, 5, dtype=dtype, device=device, scale=2), draw(T, 3, 9, dtype=dtype, device=device)
    results = []
    for cell in cells:
        x = leaf(x0)
        spk, states = loop(cell, x, None)
        (spk * weights).sum().backward()
        results.append((spk, *states, x.grad, cell.input_weights.grad, cell.recurrent_weights.grad))
    assert results[0][0].mean() > 0.05
    assert all(identical(ours, wanted) for ours, wanted in zip(*results, strict=True))
    assert (cells[0].recurrent_weights.grad.diagonal() == 0).all()


@pytest.mark.parametrize("record_states", [True, False])
def test_recurrent_layer(record_states, device):
    ours, cell = (net.to(device) for net in recurrent_pair(norse.LIFRecurrent))
    ours.record_states = record_states
    x0, weights = draw(T, 3, 5, device=device, scale=2), draw(T, 3, 9, device=device)
    x = leaf(x0)
    spk, state = ours(x)
    (spk * weights).sum().backward()
    y = leaf(x0)
    wanted, states = loop(cell, y, None)
    (wanted * weights).sum().backward()
    assert identical(spk, wanted)
    for found, all_steps in zip(state, states, strict=True):
        torch.testing.assert_close(found, all_steps if record_states else all_steps[-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    for name in ("input_weights", "recurrent_weights"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(cell, name).grad, rtol=1e-4, atol=1e-5)


def test_initial_weights_and_names():
    ours, theirs = recurrent_pair(norse.LIFRecurrentCell)
    assert list(ours.state_dict()) == ["input_weights", "recurrent_weights"]
    ours.load_state_dict(theirs.state_dict())
    assert ours.recurrent_weights.diagonal().eq(0).all()
    torch.manual_seed(3)
    wide = norse.LIFRecurrent(5, 9, autapses=True)
    assert wide.recurrent_weights.diagonal().ne(0).all()
    torch.testing.assert_close(wide.input_weights, theirs.input_weights)
    torch.manual_seed(4)
    linear = norse.LILinearCell(5, 9)
    torch.manual_seed(4)
    assert identical(linear.input_weights, published.LILinearCell(5, 9).input_weights)


@pytest.mark.parametrize("name", ["norse-recurrent", "norse-conv"])
def test_published_networks_keep_their_numbers(name, device, monkeypatch):
    published_loop = LOOPS[name]
    sizes = published_loop.small

    def build():
        return published_loop.build(sizes).to(device)

    expected = build()
    for cell in ("LIFCell", "LIFRecurrentCell", "LICell", "LILinearCell"):
        monkeypatch.setattr(published, cell, getattr(norse, cell))
    monkeypatch.setattr(published, "LIFParameters", norse.LIFParameters)
    ours = build()
    assert any(isinstance(module, norse.LICell) for module in ours.modules())
    ours.load_state_dict(expected.state_dict())
    x0, targets = published_loop.inputs(torch.Generator().manual_seed(1), sizes)
    results = []
    for network in (ours, expected):
        x = leaf(x0.to(device))
        voltages = network(x)
        published_loop.loss(voltages, targets.to(device)).backward()
        results.append([voltages, x.grad, *(parameter.grad for parameter in network.parameters())])
    assert results[1][1].abs().max() > 0
    assert all(identical(found, wanted) for found, wanted in zip(*results, strict=True))


def float64_gradients(values, x, weights, kind):
    params = {name: leaf(torch.tensor(value, dtype=torch.float64)) for name, value in values.items()}
    ours = kind(params)
    output, state = ours(x)
    ((output * weights[0]).sum() + (state.v * weights[1]).sum() + (state.i * weights[2]).sum()).backward()
    return torch.stack([params[name].grad for name in values])


@pytest.mark.parametrize("syn", [130.0, 1000.0])
@pytest.mark.parametrize("kind", ["lif", "li", "recurrent"])
def test_gradients_of_parameters(kind, syn, device):
    """Of Norse's parameters, as autograd finds them in published.py; also where a step forgets the current."""
    values = {"tau_syn_inv": syn, "tau_mem_inv": 217.0, "v_leak": -0.1}
    if kind != "li":
        values |= {"v_th": 0.37, "v_reset": 0.05}
    x = draw(T, 3, 5 if kind == "recurrent" else 7, dtype=torch.float64, device=device, scale=2)
    weights = draw(3, T, 3, 9 if kind == "recurrent" else 7, dtype=torch.float64, device=device)
    torch.manual_seed(3)
    recurrent = norse.LIFRecurrent(5, 9).double().to(device)

    def ours(p):
        if kind == "li":
            return norse.LI(norse.LIParameters(**p), record_states=True)
        if kind == "lif":
            return norse.LIF(norse.LIFParameters(**p), record_states=True)
        recurrent.p, recurrent.record_states = norse.LIFParameters(**p), True
        return recurrent

    def theirs(p):
        p = published.LIFParameters(**p)
        if kind == "recurrent":
            cell = published.LIFRecurrentCell(5, 9, p).double().to(device)
            cell.load_state_dict(recurrent.state_dict())
        else:
            cell = published.LICell(p) if kind == "li" else published.LIFCell(p)
        rest = torch.zeros(weights.shape[2:], dtype=torch.float64, device=device)
        v = rest + p.v_leak.detach()

        def run(x):
            spk, states = loop(cell, x, (rest, v, rest) if kind == "recurrent" else (v, rest))
            return spk, norse.LIFFeedForwardState(*states[-2:])

        return run

    found = float64_gradients(values, x, weights, ours)
    torch.testing.assert_close(found, float64_gradients(values, x, weights, theirs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("model", ["lif", "li"])
def test_double_backward(model):
    x = draw(6, 3, dtype=torch.float64, scale=3).requires_grad_()
    tau = torch.tensor(217.0, dtype=torch.float64, requires_grad=True)
    voltages = draw(6, 3, dtype=torch.float64)

    def penalty(make):
        output, v = make()
        first = torch.autograd.grad((output * voltages).sum() + (v * v).sum(), (x, tau), create_graph=True)
        total = sum((grad * grad).sum() for grad in first)
        return [*first, *torch.autograd.grad(total, (x, tau))]

    def ours():
        if model == "li":
            output, state = norse.LI(norse.LIParameters(tau_mem_inv=tau), record_states=True)(x)
        else:
            p = norse.LIFParameters(tau_mem_inv=tau, method="circ", alpha=torch.tensor(1.5))
            output, state = norse.LIF(p, record_states=True)(x)
        return output, state.v

    def theirs():
        with functional.use_reference():
            return ours()

    for found, wanted in zip(penalty(ours), penalty(theirs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", [norse.LIF, norse.LI])
def test_the_reference_gives_the_same(kind, device):
    x0 = draw(T, *SHAPE, device=device, scale=3)
    results = []
    for context in (functional.use_reference, torch.enable_grad):
        x = leaf(x0)
        with context():
            output, state = kind(record_states=True)(x)
        ((output * output).sum() + state.i.sum()).backward()
        results.append((output, *state, x.grad))
    assert all(identical(found, wanted) for found, wanted in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["LIF", "LI", "LIFCell", "LICell", "LIFRecurrent", "LIFRecurrentCell"])
def test_half_precision_keeps_states_in_float32(name, dtype, device):
    sizes = (7, 7) if "Recurrent" in name else ()
    layer = getattr(norse, name)(*sizes).to(device, dtype)
    x = draw(*(() if "Cell" in name else (T,)), *SHAPE, dtype=dtype, device=device, scale=4).requires_grad_()
    output, state = layer(x)
    assert output.dtype == dtype and state.v.dtype == state.i.dtype == torch.float32
    output.sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    if not sizes:
        wide, wide_state = layer(x.detach().float())
        assert identical(output, wide.to(dtype)) and identical(state.v, wide_state.v)


def test_initial_states(device):
    """One number for all voltages, as Norse's cells make it, or half of a step's dimensions."""
    x = draw(*SHAPE, device=device)
    rest = torch.full(SHAPE, 0.3, device=device)
    expected = norse.LIFCell()(x, norse.LIFFeedForwardState(rest, torch.zeros_like(rest)))[1]
    for v in (torch.tensor(0.3), rest[0], rest[:, :1]):
        state = norse.LIFFeedForwardState(v if v.dim() < 2 else v.expand(SHAPE), torch.zeros_like(rest))
        assert identical(norse.LIFCell()(x, state)[1].v, expected.v)
    v = torch.tensor(0.3, requires_grad=True)
    norse.LIFCell()(x, norse.LIFFeedForwardState(v, torch.zeros_like(rest)))[1].v.sum().backward()
    assert v.grad.shape == ()
    layer = norse.LIF(norse.LIFParameters(v_leak=torch.tensor(0.3), v_th=torch.tensor(2.0)))
    assert identical(layer(torch.zeros(1, *SHAPE, device=device))[1].v, rest)


def test_parameters_per_neuron_and_numbers(device):
    x = draw(T, *SHAPE, device=device, scale=3)
    threshold = torch.rand(7, device=device) + 0.5
    spk, _ = norse.LIF(norse.LIFParameters(v_th=threshold))(x)
    alone = [norse.LIF(norse.LIFParameters(v_th=threshold[k]))(x[..., k])[0] for k in range(7)]
    assert identical(spk, torch.stack(alone, -1))
    numbers = norse.LIParameters(200.0, 100.0, 0.0)
    torch.testing.assert_close(norse.LI(numbers)(x)[0], norse.LI()(x)[0])
    assert identical(norse.LIF(norse.LIFParameters(v_th=1))(x)[0], norse.LIF()(x)[0])


def test_changed_parameters_are_seen(device):
    x = draw(T, *SHAPE, device=device, scale=3)
    p = norse.LIFParameters(v_th=torch.tensor(1.0))
    layer = norse.LIF(p)
    with torch.inference_mode():
        quiet = layer(x)[0].sum()
    p.v_th.fill_(0.2)
    assert layer(x.requires_grad_())[0].sum() > quiet
    layer.p = p._replace(v_th=torch.tensor(100.0), method="triangle")
    assert layer(x)[0].sum() == 0 and "triangle" in repr(layer)
    layer.dt = 0.0
    assert (layer(x)[1].v == 0).all()


COMPILED = {
    "LIFCell": (lambda: norse.LIFCell(), SHAPE),
    "LICell": (lambda: norse.LICell(), SHAPE),
    "LILinearCell": (lambda: norse.LILinearCell(7, 4), SHAPE),
    "LIFRecurrentCell": (lambda: norse.LIFRecurrentCell(7, 4), SHAPE),
    "LIF": (lambda: norse.LIF(record_states=True), (4, *SHAPE)),
    "LI": (lambda: norse.LI(), (4, *SHAPE)),
    "LIFRecurrent": (lambda: norse.LIFRecurrent(7, 4), (4, *SHAPE)),
    "ConstantCurrentLIFEncoder": (lambda: norse.ConstantCurrentLIFEncoder(4), SHAPE),
    "SpikeLatencyEncoder": (lambda: norse.SpikeLatencyEncoder(), (4, *SHAPE)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_to_one_graph(name, device):
    make, shape = COMPILED[name]
    layer = make().to(device)
    x0 = draw(*shape, device=device, scale=3)
    results = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        x = leaf(x0)
        output = call(x)
        output, *states = output if isinstance(output, tuple) else (output,)
        output.sum().backward()
        results.append((output, *(states[0] if states else ()), x.grad))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", COMPILED)
def test_layers_pickle_and_copy(name):
    make, shape = COMPILED[name]
    layer, x = make(), draw(*shape, scale=3)
    layer(x)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        found, wanted = other(x), layer(x)
        found, wanted = (value[0] if isinstance(value, tuple) else value for value in (found, wanted))
        assert identical(found, wanted) and repr(other) == repr(layer)
        if "Recurrent" in name:
            found.sum().backward()
            assert other.recurrent_weights.grad.diagonal().eq(0).all()


def constant_current(x, steps, p):
    """Norse's loop."""
    v, spikes = torch.zeros(x.shape, device=x.device), []
    for _ in range(steps):
        v = v + 0.001 * p.tau_mem_inv * ((p.v_leak - v) + x)
        z = published.SuperSpike.apply(v - p.v_th, p.alpha)
        v = v - z * (v - p.v_reset)
        spikes.append(z)
    return torch.stack(spikes)


@pytest.mark.parametrize("v_reset", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64], ids=str)
def test_constant_current_encoder(dtype, v_reset, device):
    x = draw(5, 6, device=device, scale=3).to(dtype)
    p = norse.LIFParameters(v_reset=torch.tensor(v_reset), v_leak=torch.tensor(0.1))
    expected = constant_current(x, T, p).float()
    assert 0 < expected.mean() < 1
    assert identical(norse.ConstantCurrentLIFEncoder(T, p)(x), expected)
    first = torch.zeros_like(expected)
    if dtype == torch.float32:
        for t in range(T):
            first[t] = expected[t] * (expected[:t].sum(0) == 0)
        assert identical(norse.SpikeLatencyLIFEncoder(T, p)(x), first)
        ours, theirs = leaf(x), leaf(x)
        weights = draw(T, 5, 6, device=device)
        (norse.ConstantCurrentLIFEncoder(T, p)(ours) * weights).sum().backward()
        (constant_current(theirs, T, p) * weights).sum().backward()
        assert identical(ours.grad, theirs.grad)


def test_other_encoders(device):
    x = torch.rand(5, 6, device=device)
    torch.manual_seed(1)
    spikes = norse.PoissonEncoder(T, f_max=400)(x)
    torch.manual_seed(1)
    assert identical(spikes, (torch.rand(T, 5, 6, device=device) < 0.001 * 400 * x).float())
    data = torch.tensor([[0, 1, 1], [1, 1, 1]], device=device)
    assert norse.SpikeLatencyEncoder()(data).tolist() == [[0, 1, 1], [1, 0, 0]]
    assert norse.SpikeLatencyEncoder()(spikes).sum(0).max() == 1
    assert norse.ConstantCurrentLIFEncoder(0)(x).shape == (0, 5, 6)


def test_no_steps_and_no_neurons():
    for layer in (norse.LIF(), norse.LI()):
        output, state = layer(torch.zeros(0, 3, 4))
        assert output.shape == (0, 3, 4) and state.v.shape == (3, 4)
        assert layer(torch.zeros(5, 0, 4))[0].shape == (5, 0, 4)
    assert norse.LIFRecurrent(4, 5)(torch.zeros(0, 3, 4))[0].shape == (0, 3, 5)


def test_a_surrogate_of_the_users_own_runs_on_the_model(device):
    """The functions take any surrogate; the threshold's name is the model's own."""
    from snnfast import surrogate

    x = draw(T, *SHAPE, device=device, scale=3).requires_grad_()
    own = surrogate.resolve(lambda u: surrogate.logistic(5.0, inclusive=True)(u))
    options = ops.Options(own, "none", True, True)
    spk, _, _ = functional.run(LIF_MODEL, x, (None, None), (0.1, 0.2, 0.0, 1.0, 0.0), options)
    spk.sum().backward()
    assert own.inclusive and x.grad.abs().max() > 0


BAD = [
    (lambda: norse.LIFCell(norse.LIFParameters(method="adjoint")), ValueError, "p.method must be one of super, .*'adj"),
    (lambda: norse.LIF(norse.LIFParameters(method="sup")), ValueError, "p.method must be one of super, .*; got 'sup'"),
    (lambda: norse.LIF(norse.LIFParameters(alpha=torch.ones(3))), ValueError, "p.alpha must be one number"),
    (lambda: norse.LIF(norse.LIParameters()), TypeError, "p must have the fields of LIFParameters .*got LIParameters"),
    (lambda: norse.LIF(norse.LIFParameters(v_th="1")), TypeError, "p.v_th must be a number or a tensor, got str"),
    (lambda: norse.LI(norse.LIParameters(torch.tensor(True))), TypeError, "p.tau_syn_inv must have a real dtype"),
    (lambda: norse.LIF()([1.0]), TypeError, "x must be a tensor, got list"),
    (lambda: norse.LIF()(torch.tensor(1.0)), ValueError, "x must have a time dimension"),
    (lambda: norse.LIFCell()(torch.zeros(3), torch.zeros(3)), TypeError, "state must be None or have the fields v, i"),
    (
        lambda: norse.LIFCell()(torch.zeros(3), norse.LIFFeedForwardState(torch.zeros(4), torch.zeros(3))),
        ValueError,
        r"v must have shape \(3,\), got \(4,\)",
    ),
    (
        lambda: norse.LIF(norse.LIFParameters(v_th=torch.ones(4)))(torch.zeros(5, 2, 3)),
        ValueError,
        r"v_th must broadcast over one step's shape \(2, 3\), got shape \(4,\)",
    ),
    (lambda: norse.LIFRecurrentCell(3, 4)(torch.zeros(2, 5)), ValueError, "input_tensor must have 3 features last"),
    (lambda: norse.LIFRecurrent(3, 4)(torch.zeros(3)), ValueError, r"input_tensor must be \[T, \.\.\., 3\]"),
    (
        lambda: norse.LIFRecurrent(3, 4, input_weights=[1]),
        TypeError,
        "input_weights must be a tensor or None",
    ),
    (
        lambda: norse.LIFRecurrent(3, 4, recurrent_weights=torch.ones(3, 4)),
        ValueError,
        r"recurrent_weights must have shape \(4, 4\), got \(3, 4\)",
    ),
    (
        lambda: norse.LIFRecurrentCell(3, 4)(torch.zeros(2, 3), norse.LIFState(*[torch.zeros(2, 3)] * 3)),
        ValueError,
        r"z must have shape \(2, 4\), got \(2, 3\)",
    ),
    (lambda: norse.ConstantCurrentLIFEncoder(-1), ValueError, "seq_length must be 0 or more, got -1"),
    (lambda: norse.PoissonEncoder(1.5), TypeError, "seq_length must be an int, got float"),
    (lambda: norse.PoissonEncoder(1)(0.5), TypeError, "x must be a tensor, got float"),
    (lambda: norse.SpikeLatencyLIFEncoder(3)(torch.arange(3)), TypeError, "input_current must have a floating dtype"),
    (lambda: norse.SpikeLatencyEncoder()(torch.tensor(1)), ValueError, "input_spikes must have a time dimension"),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_given_weights_are_kept():
    weights = nn.Parameter(torch.ones(4, 4))
    layer = norse.LIFRecurrent(3, 4, recurrent_weights=weights)
    assert layer.recurrent_weights is weights and weights.diagonal().eq(0).all()
