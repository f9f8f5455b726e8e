"""What torch puts around a net: torch.func's transforms, forward mode, checkpoints, hooks and modes."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, graph
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import snnfast as snn
from cells import Spike
from snnfast import functional, norse, surrogate
from snnfast.compiler.backend import backend

T, V, B, N = 5, 4, 3, 6


def own(u):
    """A surrogate as people write them: nothing in it knows of transforms."""
    return Spike.apply(u)


NEURONS = {
    "leaky": lambda: snn.Leaky(torch.rand(N), learn_beta=True, learn_threshold=True),
    "without delay": lambda: snn.Leaky(0.8, learn_beta=True, learn_threshold=True, reset_delay=False),
    "graded": lambda: snn.Leaky(0.8, learn_graded_spikes_factor=True, reset_mechanism="zero"),
    "own surrogate": lambda: snn.Leaky(0.9, spike_grad=own, learn_beta=True),
    "synaptic": lambda: snn.Synaptic(0.8, torch.rand(N), learn_alpha=True),
    "alpha": lambda: snn.Alpha(0.8, 0.7, learn_beta=True),
    "lapicque": lambda: snn.Lapicque(0.9),
    "rleaky": lambda: snn.RLeaky(0.9, linear_features=N),
    "rleaky one to one": lambda: snn.RLeaky(0.9, V=0.5, all_to_all=False),
    "rsynaptic": lambda: snn.RSynaptic(0.9, 0.8, linear_features=N),
    "rsynaptic one to one": lambda: snn.RSynaptic(0.9, 0.8, V=0.5, all_to_all=False),
}


class Steps(nn.Module):
    """Linear and a neuron, step by step; the loss looks at spikes and states."""

    def __init__(self, neuron):
        super().__init__()
        self.fc, self.neuron = nn.Linear(N, N), neuron

    def forward(self, x):
        states, total = self.neuron.reset_mem(), 0
        for step in x.unbind(0):
            states = states if isinstance(states, tuple) else (states,)
            spk, *states = self.neuron(self.fc(step), *states)
            states, total = tuple(states), total + spk.sin().mean() + states[-1].sin().mean()
            if len(states) < len(self.neuron.state_names):
                states = (spk, *states)
        return total


class Sequence(Steps):
    def forward(self, x):
        spk, *states = self.neuron.unroll(self.fc(x))
        return spk.sin().mean(1).sum() / N + states[-1].sin().mean(1).sum() / N


class NorseSequence(nn.Module):
    def __init__(self, neuron):
        super().__init__()
        self.fc, self.neuron = nn.Linear(N, N), neuron

    def forward(self, x):
        out, state = self.neuron(self.fc(x))
        return out.sin().mean() + state.v.sin().mean()


CASES = {f"{name} {kind.__name__}": (kind, make) for name, make in NEURONS.items() for kind in (Steps, Sequence)}
CASES |= {
    "norse lif": (NorseSequence, lambda: norse.LIF(norse.LIFParameters(v_th=torch.tensor(0.1)))),
    "norse li": (NorseSequence, norse.LI),
    "norse recurrent": (NorseSequence, lambda: norse.LIFRecurrent(N, N)),
}


@pytest.fixture(params=CASES, name="case")
def _case(request, device):
    """net, parameters, loss(parameters, x), x [T, V, B, N], in double: what is compared is the maths, not rounding."""
    torch.manual_seed(1)
    kind, make = CASES[request.param]
    net = kind(make()).to(device).double()
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    x = 2 * torch.randn(T, V, B, N, device=device, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is not fused; this layer runs the reference loop")
        yield net, parameters, lambda p, x: functional_call(net, p, (x,)), x


def gradients(loss, parameters, x):
    """By ordinary backward: of x and of the parameters."""
    x = x.clone().requires_grad_()
    leaves = {name: parameter.clone().requires_grad_() for name, parameter in parameters.items()}
    loss(leaves, x).backward()
    return x.grad, {name: leaf.grad for name, leaf in leaves.items()}


def stacked(found):
    return torch.stack([x for x, _ in found]), {k: torch.stack([p[k] for _, p in found]) for k in found[0][1]}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_gradients(case):
    _, parameters, loss, x = case
    expected = gradients(loss, parameters, x[:, 0])
    of_p, of_x = grad(loss, argnums=(0, 1))(parameters, x[:, 0])
    close((of_x, of_p), expected)
    value, back = vjp(loss, parameters, x[:, 0])
    of_p, of_x = back(torch.ones_like(value))
    close((of_x, of_p), expected)
    assert expected[0].abs().sum() > 0 and all(p.abs().sum() > 0 for p in expected[1].values())


def test_per_sample_gradients(case):
    _, parameters, loss, x = case
    expected = stacked([gradients(loss, parameters, x[:, v]) for v in range(V)])
    of_p, of_x = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 1))(parameters, x)
    close((of_x, of_p), expected)
    of_p, of_x = grad(lambda p, x: vmap(loss, in_dims=(None, 1))(p, x).sum(), argnums=(0, 1))(parameters, x)
    close((of_x.movedim(1, 0), of_p), (expected[0], {name: p.sum(0) for name, p in expected[1].items()}))


def test_ensembles(case):
    _, parameters, loss, x = case
    many = {name: torch.stack([p * (1 - 0.01 * v) for v in range(V)]) for name, p in parameters.items()}
    each = [{name: p[v] for name, p in many.items()} for v in range(V)]
    for in_dims, inputs in (((0, 1), x), ((0, None), x[:, 0])):
        of_each = [inputs[:, v] if in_dims[1] else inputs for v in range(V)]
        close(vmap(loss, in_dims=in_dims)(many, inputs), torch.stack(list(map(loss, each, of_each))))
        of_p, of_x = vmap(grad(loss, argnums=(0, 1)), in_dims=in_dims)(many, inputs)
        close((of_x, of_p), stacked(list(map(gradients, [loss] * V, each, of_each))))


def test_tangents_are_those_that_backward_has(case):
    """A spike's tangent is the surrogate's derivative times that of the membrane: jvp is vjp transposed."""
    _, parameters, loss, x = case
    of_x, of_p = gradients(loss, parameters, x[:, 0])
    tangents = torch.randn_like(of_x), {name: torch.randn_like(p) for name, p in of_p.items()}
    expected = (of_x * tangents[0]).sum() + sum((of_p[name] * tangents[1][name]).sum() for name in of_p)
    primals = parameters, x[:, 0]
    value, tangent = jvp(loss, primals, tangents[::-1])
    close((value, tangent), (loss(*primals), expected))
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p, tangents[1][name]) for name, p in parameters.items()}
        dual = loss(duals, forward_ad.make_dual(x[:, 0], tangents[0]))
        close(forward_ad.unpack_dual(dual).tangent, expected)


@pytest.mark.parametrize("kind", [Steps, Sequence])
@pytest.mark.parametrize("name", ["leaky", "without delay", "own surrogate", "synaptic", "rsynaptic one to one"])
def test_second_derivatives(kind, name):
    torch.manual_seed(2)
    net = kind(NEURONS[name]()).double()
    parameters = dict(net.named_parameters())
    x = 2 * torch.randn(T, 2, N, dtype=torch.float64)

    def loss(x):
        return functional_call(net, parameters, (torch.cat([x, x * 0.3], -1).expand(-1, -1, N),))

    x = x[..., : N // 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with snn.use_reference():
            expected = torch.autograd.functional.hessian(loss, x)
        assert expected.abs().sum() > 0
        for second in (hessian, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(f))):
            close(second(loss)(x), expected)
        v = torch.randn_like(x)
        product = torch.einsum("abcdef,def->abc", expected, v)
        close(jvp(grad(loss), (x,), (v,))[1], product)
        _, back = vjp(loss, x)
        leaf = x.clone().requires_grad_()
        (of_first,) = torch.autograd.grad((grad(loss)(leaf) * v).sum(), leaf)
        close(of_first, product)
        close(back(torch.tensor(1.0, dtype=x.dtype))[0], grad(loss)(x))


def test_ordinary_gradients_to_the_bit(device):
    """One call for all samples computes what a call for each does."""
    torch.manual_seed(3)
    layer = snn.Leaky(torch.rand(N), threshold=torch.rand(N)).to(device)
    x = torch.randn(T, V, B, N, device=device)
    of_x = vmap(grad(lambda x: layer.unroll(x)[1].square().sum()), in_dims=1, out_dims=1)(x)
    leaf = x.clone().requires_grad_()
    layer.unroll(leaf)[1].square().sum().backward()
    assert torch.equal(of_x, leaf.grad)
    spk, mem = vmap(layer.unroll, in_dims=2, out_dims=(2, 2))(x)
    assert all(map(torch.equal, (spk, mem), layer.unroll(x)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_mapping_over_a_backward_alone(case):
    """Of a forward that saw no transform."""
    net, parameters, loss, x = case
    x = x[:, 0].clone().requires_grad_()
    y = torch.stack([loss(parameters, x), loss(parameters, x * 0.5)])
    expected = torch.stack([torch.autograd.grad(one, x, retain_graph=True)[0] for one in y])
    each = torch.eye(2, dtype=y.dtype, device=y.device)

    def batched():
        return torch.autograd.grad(y, x, each, is_grads_batched=True, retain_graph=True)[0]

    def mapped():
        return vmap(lambda of_y: torch.autograd.grad(y, x, of_y, retain_graph=True)[0])(each)

    whole = isinstance(net, (Sequence, NorseSequence))
    dense = whole and getattr(net.neuron, "all_to_all", isinstance(net.neuron, norse.LIFRecurrent))
    for way in (batched, mapped):
        with pytest.raises(RuntimeError, match="over a batch of gradients") if dense else contextlib.nullcontext():
            close(way(), expected)


def test_one_kernel_for_all_samples():
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function.name())
            return function(*args, **(kwargs or {}))

    layer = snn.Leaky(0.9, learn_beta=True)
    many = {"beta": torch.rand(V)}
    with Count(), warnings.catch_warnings():
        warnings.simplefilter("error")
        vmap(grad(lambda p, x: functional_call(layer, p, (x, torch.zeros(B, N)))[0].sum()))(many, torch.rand(V, B, N))
    assert [call for call in calls if call.startswith("snnfast::")] == ["snnfast::leaky_fwd", "snnfast::leaky_bwd"]


def test_mapping_in_mapping():
    x, beta = torch.randn(T, 2, V, B, N), torch.rand(2, V, N)

    def run(beta, x):
        return functional.leaky(x, beta=beta)

    twice = vmap(vmap(run, in_dims=(0, 1), out_dims=1), in_dims=(0, 1), out_dims=1)
    for found, expected in zip(twice(beta, x), run(beta.unsqueeze(2), x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_nets_by_unroll(recompute):
    torch.manual_seed(4)

    def make():
        layers = nn.Linear(N, 8), snn.Leaky(0.9, learn_beta=True), nn.Linear(8, N), snn.Synaptic(0.8, 0.7)
        return snn.Unroll(*layers, recompute=recompute)

    nets, x = [make() for _ in range(V)], 2 * torch.randn(T, V, B, N)
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def loss(parameters, buffers, x):
        return functional_call(base, (parameters, buffers), (x,)).sin().sum()

    found = vmap(grad(loss), in_dims=(0, 0, 1))(parameters, buffers, x)
    for v, net in enumerate(nets):
        net(x[:, v]).sin().sum().backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(found[name][v], parameter.grad)


def test_a_layer_is_itself_again_after_a_transform():
    layer, x = snn.Leaky(0.9), torch.rand(V, B, N)
    for size in (V, 2, 3):
        spk, _ = vmap(lambda x: layer(x, layer.reset_mem()))(x[:size])
        assert torch.equal(spk, snn.Leaky(0.9)(x[:size])[0])
    assert copy.deepcopy(layer).mem.shape == (B, N)
    grad(lambda x: layer(x, layer.reset_mem())[1].sum())(x[0])
    copy.deepcopy(layer)
    layer.reset_mem()
    assert torch.equal(layer(x[0])[1], snn.Leaky(0.9)(x[0])[1])


def test_what_is_not_fused_says_so(monkeypatch):
    monkeypatch.setattr(functional, "_said", set())
    x = torch.rand(T, B, N)
    with pytest.warns(UserWarning, match="^Leaky: forward-mode differentiation is not fused"):
        jvp(snn.Leaky(0.9).unroll, (x,), (x,))
    with pytest.warns(
        UserWarning, match="^RLeaky: all-to-all recurrence within a transform of torch.func is not fused"
    ):
        vmap(snn.RLeaky(0.9, linear_features=N).unroll, in_dims=1)(x.unsqueeze(1))


class Net(nn.Module):
    """A user's loop, which begins with `reset_mem`."""

    def __init__(self, **options):
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(N, 7), snn.Leaky(0.9, **options), snn.Synaptic(0.9, 0.8, **options)

    def forward(self, x):
        mem, (syn, mem2), out = self.a.reset_mem(), self.b.reset_mem(), []
        for step in x.unbind(0):
            spk, mem = self.a(self.fc(step), mem)
            spk, syn, mem2 = self.b(spk, syn, mem2)
            out.append(spk + mem2)
        return torch.stack(out)


class Hidden(nn.Module):
    """The same with layers that keep their states."""

    def __init__(self, **options):
        super().__init__()
        recurrent = snn.RLeaky(0.9, linear_features=7, init_hidden=True, **options)
        self.layers = nn.Sequential(nn.Linear(N, 7), snn.Leaky(0.9, init_hidden=True, **options), recurrent)

    def forward(self, x):
        for layer in self.layers[1:]:
            layer.reset_mem()
        return torch.stack([self.layers(step) for step in x.unbind(0)])


class InUnroll(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layers = nn.Linear(N, 7), snn.Leaky(0.9, **options), snn.RLeaky(0.9, linear_features=7, **options)
        self.net = snn.Unroll(*layers, recompute=True)

    def forward(self, x):
        return self.net(x)


def reentrant(net, x):
    return checkpoint(net, x, use_reentrant=True)


def other(net, x):
    return checkpoint(net, x, use_reentrant=False)


def nested(net, x):
    return checkpoint(lambda x: checkpoint(net, x, use_reentrant=False).sin(), x, use_reentrant=False)


CHECKPOINTED = [
    *((kind, around, own, False) for kind in (Net, Hidden, InUnroll) for around in (reentrant, other, nested)),
    *((Net, other, None, False), (Net, other, None, True), (Hidden, reentrant, None, True)),
]


@pytest.mark.parametrize(("kind", "around", "spike_grad", "accelerated"), CHECKPOINTED)
@pytest.mark.filterwarnings("ignore:.* custom spike_grad", "ignore:.* does not fit the input")
def test_checkpoints(kind, around, spike_grad, accelerated):
    """From the first call on, and after one with another batch."""
    torch.manual_seed(5)
    net = kind(spike_grad=spike_grad)
    twin = copy.deepcopy(net)
    if accelerated:
        torch._dynamo.reset()
        snn.accelerate(net, compile=True)
    for batch in (B, B + 1):
        x = torch.rand(T, batch, N)
        found = []
        for one, call in ((net, around), (twin, lambda net, x: net(x).sin() if around is nested else net(x))):
            leaf = x.clone().requires_grad_()
            one.zero_grad()
            call(one, leaf).square().sum().backward()
            found.append([leaf.grad, *(parameter.grad for parameter in one.parameters())])
        # A product of all steps sums in another order than those of one.
        torch.testing.assert_close(*found, **({} if accelerated else {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("said", [False, True])
def test_hooks_are_told_of_nothing_that_compiling_tries(said, monkeypatch):
    """Nor where torch says that it compiles while a backend does its work, as it does from 2.14 on."""

    def while_compiling(*args):
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "_is_compiling_flag", said)
            return backend(*args)

    torch._dynamo.reset()
    net, saved = torch.compile(Net(), backend=while_compiling), []
    for _ in range(2):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, kept=kept: kept.append(tensor), lambda none: none):
            net(torch.rand(T, B, N, requires_grad=True))
        saved.append([tensor.shape for tensor in kept])
    assert saved[0] == saved[1] != []


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


MODES = {
    "save_on_cpu": graph.save_on_cpu,
    "hooks": lambda: graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor),
    "hooks of numpy": lambda: graph.saved_tensors_hooks(lambda t: t.detach().numpy(), torch.from_numpy),
    "no hooks": lambda: graph.disable_saved_tensors_hooks("hooks are not for this"),
    "anomaly": torch.autograd.detect_anomaly,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "flops": lambda: FlopCounterMode(display=False),
    "functions": Functions,
    "dispatches": Dispatches,
    "deterministic": deterministic,
    "double": double,
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_a_surrogate_is_tried_out_of_reach_of_the_callers_modes(mode):
    """Making a layer, and a call that resolves a surrogate, neither see the mode nor are seen by it."""
    x = torch.rand(T, B, N)
    expected = functional.leaky(x, beta=0.9, surrogate=own)
    with MODES[mode]():
        layer = snn.Leaky(0.9, spike_grad=own)
        found = functional.leaky(x, beta=0.9, surrogate=own)
    assert layer._surrogate == surrogate.evaluated(own)
    assert all(map(torch.equal, found, expected))


def test_a_surrogate_is_tried_out_of_reach_of_transforms():
    found = []

    def make(x):
        found.append(snn.Leaky(0.9, spike_grad=own)._surrogate)
        return x.sum()

    x = torch.rand(3)
    vmap(make)(x), grad(make)(x), jvp(make, (x,), (x,))
    assert found == [surrogate.evaluated(own)] * 3


def test_a_trial_is_no_saved_tensor_and_draws_nothing(monkeypatch):
    saved = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: saved.append(seed))
    before = torch.get_rng_state()
    with graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        layer = snn.Leaky(0.9, spike_grad=lambda u: own(u + 0 * torch.rand_like(u)))
    assert isinstance(layer._surrogate, surrogate.evaluated)
    assert not saved and torch.equal(torch.get_rng_state(), before)


TRAINING = [mode for mode in MODES if mode not in ("no_grad", "inference", "device", "autocast")]
ACCELERATED = "save_on_cpu", "no hooks", "dispatches"


@pytest.mark.parametrize(
    ("mode", "accelerated"), [(mode, False) for mode in TRAINING] + [(mode, True) for mode in ACCELERATED]
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_training_under_modes(mode, accelerated):
    torch.manual_seed(6)
    net = Net()
    twin, x = copy.deepcopy(net), torch.rand(T, B, N)
    if accelerated:
        torch._dynamo.reset()
        snn.accelerate(net, products="per-step", compile=True)
    twin(x).sum().backward()
    with MODES[mode]():
        net(x).sum().backward()
    expected = [parameter.grad for parameter in twin.parameters()]
    assert all(map(torch.equal, [parameter.grad for parameter in net.parameters()], expected))


class Kept(nn.Module):
    """States go on from call to call."""

    def __init__(self, *neurons):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(N, 7), *neurons)

    def forward(self, x):
        return torch.stack([self.layers(step) for step in x.unbind(0)])


@pytest.mark.parametrize(
    "neuron",
    [
        lambda: snn.Leaky(0.9, init_hidden=True),
        lambda: snn.Synaptic(0.9, 0.8, init_hidden=True),
        lambda: snn.RLeaky(0.9, linear_features=7, init_hidden=True),
        lambda: snn.RSynaptic(0.9, 0.8, all_to_all=False, init_hidden=True),
    ],
    ids=["leaky", "synaptic", "rleaky", "rsynaptic one to one"],
)
def test_states_of_inference_mode_go_on_into_training(neuron):
    torch.manual_seed(7)
    net = Kept(neuron())
    twin, x = copy.deepcopy(net), torch.rand(T, B, N)
    torch._dynamo.reset()
    snn.accelerate(net, products="per-step", compile=True)
    found = []
    for one in (net, twin):
        with torch.inference_mode():
            one(x)
        spk = one(x)
        spk.sum().backward()
        found.append([spk, *(parameter.grad for parameter in one.parameters())])
    torch.testing.assert_close(*found)
