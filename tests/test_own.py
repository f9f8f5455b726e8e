"""The user's own equations: what a subclass, an instance or a patched class overrides runs as it does in snnTorch."""

import copy
import functools
import pickle
import subprocess
import sys
import types
import warnings

import pytest
import snntorch
import torch
from snntorch import surrogate
from torch import nn

import snnfast as snn
from cases import identical
from snnfast.neurons import own

pytestmark = pytest.mark.filterwarnings("ignore:.* is not snnfast's and is called at every step")

X = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(2)) * 2

ARGUMENTS = {
    "Leaky": (0.9,),
    "Lapicque": (0.7,),
    "Synaptic": (0.8, 0.9),
    "Alpha": (0.9, 0.8),
    "RLeaky": (0.9,),
    "RSynaptic": (0.8, 0.9),
}
EQUATIONS = ("mem_reset", "fire", "_base_state_function", "_base_sub", "_base_zero", "_base_int")
MECHANISMS = {"_base_zero": "zero", "_base_int": "none"}


@pytest.fixture(autouse=True)
def _forget_warnings():
    own._said.clear()


def options_of(kind, method):
    options = {"reset_mechanism": MECHANISMS.get(method, "subtract"), "threshold": 0.6}
    if method == "fire_inhibition":
        options["inhibition"] = True
    return options | ({"linear_features": 4} if kind in ("RLeaky", "RSynaptic") else {})


def make(cls, kind, **options):
    torch.manual_seed(5)
    return cls(*ARGUMENTS[kind], **options)


def halving(original):
    """A method that returns half of what the original does."""

    def method(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        return tuple(part * 0.5 for part in result) if isinstance(result, tuple) else result * 0.5

    return method


def as_subclass(cls, kind, method, **options):
    mine = type("Mine", (cls,), {method: halving(getattr(cls, method))})
    return make(mine, kind, **options)


def on_the_instance(cls, kind, method, **options):
    layer = make(cls, kind, **options)
    setattr(layer, method, types.MethodType(halving(getattr(cls, method)), layer))
    return layer


def as_partial(cls, kind, method, **options):
    layer = make(cls, kind, **options)
    setattr(layer, method, functools.partial(halving(getattr(cls, method)), layer))
    return layer


def loop(layer, x):
    """What a user writes: [T, B, ...] spikes and states."""
    states = layer.reset_mem()
    states = states if isinstance(states, tuple) else (states,)
    outputs = []
    for current in x.unbind(0):
        output = layer(current, *states)
        outputs.append(output)
        states = output if len(states) == len(output) else output[1:]
    return tuple(map(torch.stack, zip(*outputs, strict=True)))


def with_gradient(run, layer):
    x = X.clone().requires_grad_()
    outputs = run(layer, x)
    gradients = torch.autograd.grad(sum(output.pow(2).sum() for output in outputs), x)
    return *outputs, *gradients


def same(one, other):
    return len(one) == len(other) and all(map(identical, one, other))


@pytest.mark.filterwarnings("ignore:Inhibition")
@pytest.mark.parametrize("method", [*EQUATIONS, "fire_inhibition"])
@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("way", [as_subclass, on_the_instance])
def test_overridden_methods_run_as_in_snntorch(way, kind, method):
    options = options_of(kind, method)
    expected = with_gradient(loop, way(getattr(snntorch, kind), kind, method, **options))
    layer = way(getattr(snn, kind), kind, method, **options)
    plain = with_gradient(loop, make(getattr(snntorch, kind), kind, **options))
    # snnTorch's constructor has bound `_base_sub` and its like before an instance can be given another.
    ignored = way is on_the_instance and method in ("_base_sub", "_base_zero", "_base_int")
    assert same(expected, plain) == ignored
    if ignored:
        assert own.of_step(layer) == ()
    else:
        with pytest.warns(UserWarning, match=rf"^{type(layer).__name__}.{method} is not snnfast's"):
            layer(X[0])
    layer.output = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for run in (loop, lambda layer, x: layer.unroll(x), lambda layer, x: snn.Unroll(nn.Identity(), layer)(x)):
            outcome = with_gradient(run, layer)
            # What is not the user's is fused, whose gradient has a test of its own.
            assert same(expected[:-1], outcome[:-1]) if ignored else same(expected, outcome)
    recomputed = snn.Unroll(nn.Identity(), layer, nn.Identity(), recompute=True)
    assert identical(recomputed(X.clone().requires_grad_()), expected[0])


@pytest.mark.parametrize("method", ["fire", "_base_state_function", "state_function", "forward"])
def test_partials_and_modules_are_called_too(method):
    class Halved(nn.Module):
        def __init__(self, original):
            super().__init__()
            self.original = [original]

        def forward(self, *args):
            return self.original[0](*args) * 0.5

    outcomes = []
    for library in (snntorch, snn):
        layer = library.Leaky(0.9, threshold=0.4)
        if method == "state_function":
            layer.state_function = Halved(layer.state_function)
        else:
            layer = as_partial(library.Leaky, "Leaky", method, threshold=0.4)
        outcomes.append(loop(layer, X))
    assert same(*outcomes) and not same(outcomes[0], loop(snntorch.Leaky(0.9, threshold=0.4), X))
    assert same(outcomes[0], layer.unroll(X))


def test_a_method_that_becomes_a_module_stays_the_class_s():
    """Python finds the class's first, in snnTorch too."""
    outcomes = []
    for library in (snntorch, snn):
        layer = library.Leaky(0.9)
        layer.fire = nn.Identity()
        outcomes.append(loop(layer, X))
    assert same(*outcomes) and own.of_step(layer) == ()


def test_what_no_step_calls_stays_fused():
    class Mine(snn.Leaky):
        fire_inhibition = halving(snn.Leaky.fire_inhibition)
        _base_zero = halving(snn.Leaky._base_zero)

    layer = Mine(0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(layer.unroll(X), snn.Leaky(0.9).unroll(X))
        layer.reset_mechanism = "zero"
    with pytest.warns(UserWarning, match="Mine._base_zero"):
        layer(X[0])


def test_undone_overrides_are_fused_again():
    layer = snn.Leaky(0.9)
    layer.fire = lambda mem: mem
    assert own.of_step(layer) == ("fire",)
    del layer.fire
    assert own.of_step(layer) == () and own.of_sequence(layer) == ()


@pytest.mark.parametrize("patched", [("Leaky", "fire"), ("SpikingNeuron", "fire"), ("Leaky", "_base_state_function")])
def test_patched_classes_of_snntorch_reach_living_layers(patched, monkeypatch):
    name, method = patched
    layers = [snntorch.Leaky(0.9), snn.Leaky(0.9)]
    plain = loop(layers[1], X)
    monkeypatch.setattr(getattr(snntorch, name), method, halving(getattr(snntorch.Leaky, method)))
    with pytest.warns(UserWarning, match=f"Leaky.{method}"):
        outcomes = [loop(layer, X) for layer in layers]
    assert same(*outcomes) and not same(plain, outcomes[1])
    assert same(outcomes[0], layers[1].unroll(X))
    monkeypatch.undo()
    assert same(plain, layers[1].unroll(X)) and own.of_step(layers[1]) == ()


def test_a_patched_charge_meets_new_layers_alone(monkeypatch):
    """snnTorch's constructor binds it."""
    before = [snntorch.Leaky(0.9), snn.Leaky(0.9)]
    monkeypatch.setattr(snntorch.Leaky, "_base_sub", halving(snntorch.Leaky._base_sub))
    after = [snntorch.Leaky(0.9), snn.Leaky(0.9)]
    before, after = ([loop(layer, X) for layer in layers] for layers in (before, after))
    assert same(*before) and same(*after) and not same(before[0], after[0])


@pytest.mark.parametrize("library", [snn, snntorch])
def test_a_patched_forward_runs(library, monkeypatch):
    layer = snn.Leaky(0.9, init_hidden=True, output=True)
    expected = layer.unroll(X)
    snn.reset(layer)
    monkeypatch.setattr(library.Leaky, "forward", halving(library.Leaky.forward))
    stepped = [layer(current) for current in X.unbind(0)]
    assert identical(torch.stack([spk for spk, _ in stepped]), expected[0] * 0.5)
    snn.reset(layer)
    own._said.clear()
    with pytest.warns(UserWarning, match="Leaky.forward"):
        assert identical(layer.unroll(X)[1], expected[1] * 0.5)


class Noisy:
    """A forward of its own around the library's, as a mixin."""

    def forward(self, input_, *states):
        spk, *states = super().forward(input_ + 0.25, *states)
        return spk, *(state * 0.5 for state in states)


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_forward_of_its_own_runs_at_every_step(kind):
    options = options_of(kind, "forward")
    layers = [make(type("Mine", (Noisy, getattr(library, kind)), {}), kind, **options) for library in (snntorch, snn)]
    expected, ours = (with_gradient(loop, layer) for layer in layers)
    assert same(expected[:-1], ours[:-1])
    assert own.of_step(layers[1]) == ()  # fused inside
    with pytest.warns(UserWarning, match="Mine.forward is not snnfast's"):
        assert same(ours, with_gradient(lambda layer, x: layer.unroll(x), layers[1]))
    assert identical(snn.Unroll(nn.Identity(), layers[1])(X), expected[0])
    assert identical(snn.Unroll(layers[1], nn.Identity(), recompute=True)(X), expected[0])


def test_a_wrapped_forward_runs_at_every_step():
    def wrapped(library, **options):
        layer = library.Leaky(0.9, **options)
        original = layer.forward
        layer.forward = lambda *args: halving(lambda self, *args: original(*args))(None, *args)
        return layer

    expected = loop(wrapped(snntorch), X)
    assert same(expected, loop(wrapped(snn), X)) and same(expected, wrapped(snn).unroll(X))
    hidden = wrapped(snn, init_hidden=True)
    spikes = torch.stack([wrapped(snntorch, init_hidden=True)(current) for current in X[:1]])
    assert identical(hidden.unroll(X[:1]), spikes)
    assert identical(snn.Unroll(nn.Flatten(), wrapped(snn))(X), expected[0])


def test_a_forward_that_takes_the_current_alone():
    class Alone(snn.Leaky):
        def forward(self, input_):
            spk, self.mem = super().forward(input_, self.mem)
            return spk * 2

    layer = Alone(0.9)
    layer.mem = torch.ones(3, 4)
    expected = snn.Leaky(0.9).unroll(X)[0] * 2
    assert identical(layer.unroll(X), expected) and identical(snn.Unroll(layer)(X), expected)


def test_own_calls_run():
    class Counted(snn.Leaky):
        calls = 0

        def __call__(self, *args):
            self.calls += 1
            return super().__call__(*args)

    layer = Counted(0.9)
    assert same(layer.unroll(X), snn.Leaky(0.9).unroll(X)) and layer.calls == len(X)


def test_a_neuron_of_ones_own():
    """One that derives from the base class, as published scripts do."""

    def neuron(library):
        class Own(library.SpikingNeuron):
            def __init__(self):
                super().__init__(threshold=0.5)
                self.register_buffer("leak", torch.tensor(0.8))

            def forward(self, input_, mem=None):
                mem = torch.zeros_like(input_) if mem is None else mem
                reset = self.mem_reset(mem)
                mem = self.leak * mem + input_ - reset * self.threshold
                return self.fire(mem), mem

        return Own()

    expected, mem = [], None
    theirs, ours = neuron(snntorch), neuron(snn)
    for current in X.unbind(0):
        spk, mem = theirs(current, mem)
        expected.append((spk, mem))
    expected = tuple(map(torch.stack, zip(*expected, strict=True)))
    assert same(expected, ours.unroll(X)) and identical(snn.Unroll(nn.Identity(), ours)(X), expected[0])
    assert repr(ours).startswith("Own(")
    snn.reset(snn.convert(nn.Sequential(ours)))


def test_a_layer_without_a_namesake_in_snntorch():
    class Nameless(snn.SpikingNeuron):
        model = snn.reference.LEAKY
        state_names = ("mem",)

        def __init__(self):
            super().__init__()
            self._add_parameter("beta", 0.9, False)
            self._add_states()

        def forward(self, input_, mem=None):
            return self._step(input_, mem)

    layer = Nameless()
    assert same(layer(X[0]), snn.Leaky(0.9)(X[0])) and own.of_step(layer) == ()
    layer.fire = lambda mem: mem
    with pytest.raises(
        NotImplementedError, match="Nameless has no step of snnTorch's that calls fire: override forward"
    ):
        layer(X[0])


@pytest.mark.parametrize("kind", ["Leaky", "RLeaky"])
def test_own_states_and_resets(kind):
    """`_init_mem` makes states, `reset_mem` says where a loop begins."""

    def layer(library):
        class Tired(getattr(library, kind)):
            def _init_mem(self):
                super()._init_mem()
                self.register_buffer("trace", torch.zeros(()), False)

            def reset_mem(self):
                states = super().reset_mem()
                self.trace = torch.zeros(())
                self.mem = torch.full((3, 4), 0.75)
                return (states[0], self.mem) if isinstance(states, tuple) else self.mem

            def fire(self, mem):
                spk = super().fire(mem - self.trace)
                self.trace = self.trace + 0.01
                return spk

        return make(Tired, kind, **({"linear_features": 4} if kind == "RLeaky" else {}))

    expected = loop(layer(snntorch), X)
    assert same(expected, loop(layer(snn), X)) and same(expected, layer(snn).unroll(X))

    class Begins(getattr(snn, kind)):
        reset_mem = layer(snn).__class__.reset_mem

    begins = make(Begins, kind, **({"linear_features": 4} if kind == "RLeaky" else {}))
    begins.__class__.reset_mem = lambda self: (torch.zeros(3, 4), torch.full((3, 4), 0.75))[-len(self.state_names) :]
    assert own.of_sequence(begins) == () and same(begins.unroll(X), loop(begins, X))


def test_parameters_that_a_property_computes_are_read_at_every_step():
    def layer(library):
        class Adaptive(library.Leaky):
            def __init__(self):
                super().__init__(0.5)
                self.raw, self.level = nn.Parameter(torch.zeros(4)), 0.5

            @property
            def beta(self):
                return torch.sigmoid(self.raw)

            @property
            def threshold(self):
                return torch.tensor(self.level)

            def mem_reset(self, mem):
                self.level = self.level + 0.1
                return super().mem_reset(mem)

        return Adaptive()

    expected = with_gradient(loop, layer(snntorch))
    assert same(expected, with_gradient(loop, layer(snn)))
    with pytest.warns(UserWarning, match="Adaptive.beta and Adaptive.threshold"):
        ours = layer(snn)
        type(ours).mem_reset = snn.Leaky.mem_reset
        ours.unroll(X)
    plain = snn.Leaky(torch.full((4,), 0.5), threshold=0.5, learn_beta=True)
    for learns in (ours, plain):
        learns.unroll(X)[1].sum().backward()
    torch.testing.assert_close(ours.raw.grad, plain.beta.grad * 0.25)


def test_parametrised_parameters_stay_fused():
    class Squash(nn.Module):
        def forward(self, value):
            return torch.sigmoid(value)

    layer = snn.Leaky(torch.zeros(4), learn_beta=True)
    nn.utils.parametrize.register_parametrization(layer, "beta", Squash())
    assert own.of_sequence(layer) == ()
    assert same(layer.unroll(X), snn.Leaky(torch.full((4,), 0.5)).unroll(X))


@pytest.mark.parametrize("replacement", [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "method", "hook"])
def test_what_stands_in_the_place_of_one_to_one_recurrence_runs(replacement):
    outcomes = []
    for library in (snntorch, snn):
        base = library.RLeaky
        if replacement == "method":
            base = type("Mine", (base,), {"recurrent": lambda self, spk: spk.flip(-1)})
        layer = base(0.9, V=0.5, all_to_all=False, threshold=0.3)
        if replacement == "hook":
            layer.recurrent.register_forward_hook(lambda module, args, output: -output)
        elif replacement != "method":
            layer.recurrent = copy.deepcopy(replacement)
        outcomes.append(loop(layer, X))
    assert same(*outcomes)
    torch.testing.assert_close(layer.unroll(X)[0], outcomes[0][0])
    assert not identical(outcomes[0][0], snn.RLeaky(0.9, V=0.5, all_to_all=False, threshold=0.3).unroll(X)[0])


class Rebellious(nn.Module):
    """A network for snnTorch, of which one layer is patched."""

    def __init__(self, library, patch):
        super().__init__()
        torch.manual_seed(1)
        self.fc = nn.Linear(4, 4)
        self.first = library.Leaky(0.9, learn_beta=True)
        self.second = library.Leaky(0.8, threshold=0.5)
        patch(self.second)

    def forward(self, x):
        mem1, mem2 = self.first.reset_mem(), self.second.reset_mem()
        spikes = []
        for current in x.unbind(0):
            spk, mem1 = self.first(self.fc(current), mem1)
            spk, mem2 = self.second(spk, mem2)
            spikes.append(spk)
        return torch.stack(spikes), mem2


def patch_forward(layer):
    original = layer.forward
    layer.forward = lambda x, mem: tuple(part * 0.5 for part in original(x, mem))


def patch_fire(layer):
    layer.fire = types.MethodType(halving(type(layer).fire), layer)


def patch_state_function(layer):
    original = layer.state_function
    layer.state_function = lambda x: original(x) * 0.5


PATCHES = (patch_forward, patch_fire, patch_state_function)


@pytest.mark.parametrize("patch", PATCHES)
def test_converted_layers_keep_what_was_set_on_them(patch):
    net = Rebellious(snntorch, patch)
    expected = with_gradient(lambda net, x: net(x), net)
    assert not same(expected[:2], Rebellious(snntorch, lambda layer: None)(X))
    snn.convert(net)
    assert type(net.first) is type(net.second) is snn.Leaky
    assert same(expected, with_gradient(lambda net, x: net(x), net))
    own._said.clear()
    with pytest.warns(UserWarning, match=f"Leaky.{patch.__name__.removeprefix('patch_')}"):
        net.second.unroll(X)
    assert net.first._own == ()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("library", [snn, snntorch])
def test_accelerated_networks_run_what_was_set_on_a_layer(library, patch):
    torch._dynamo.reset()
    expected = with_gradient(lambda net, x: net(x), Rebellious(snntorch, patch))
    net = snn.accelerate(Rebellious(library, patch), products="per-step", compile=True)
    assert same(expected, with_gradient(lambda net, x: net(x), net))


@pytest.mark.parametrize("method", ["fire", "_base_state_function"])
def test_compiled_subclasses_run_their_own_methods(method):
    torch._dynamo.reset()
    layer = as_subclass(snn.Leaky, "Leaky", method)
    expected = as_subclass(snntorch.Leaky, "Leaky", method)(X[0], X[1])
    with pytest.warns(UserWarning, match=f"Mine.{method}"):
        compiled = torch.compile(layer, fullgraph=True, backend="eager")(X[0], X[1])
    assert same(compiled, expected)
    sequence = torch.compile(layer.unroll, fullgraph=True, backend="eager")(X)
    assert same(sequence, layer.unroll(X))


class Picklable(snn.Leaky):
    def fire(self, mem):
        return super().fire(mem) * 0.5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_keep_their_own_methods(copied):
    layer = Picklable(0.9)
    layer(X[0])
    assert same(copied(layer).unroll(X), layer.unroll(X))
    patched = snn.Leaky(0.9)
    patched.fire = functools.partial(scale, 0.5)
    assert same(copied(patched).unroll(X), patched.unroll(X))


def scale(factor, mem):
    return (mem > 1).to(mem.dtype) * factor


def test_own_surrogates_are_no_own_equations():
    layer = snn.Leaky(0.9, spike_grad=surrogate.fast_sigmoid(slope=5))
    assert own.of_sequence(layer) == () and layer.height_of(X) is not None
    assert as_subclass(snn.Leaky, "Leaky", "fire").height_of(X) is None


def test_without_snntorch():
    program = """
import sys
sys.modules["snntorch"] = None
import torch, snnfast as snn
x = torch.full((4, 1, 1), 0.4)
class Inverted(snn.Leaky):
    def _base_state_function(self, input_):
        return -self.beta * self.mem + input_
class Halved(snn.RLeaky):
    def fire(self, mem):
        return super().fire(mem) * 0.5
inverted = Inverted(0.5, reset_mechanism="none")
assert torch.allclose(inverted.unroll(x)[1].flatten(), torch.tensor([0.4, 0.2, 0.3, 0.25]))
for mechanism in ("subtract", "zero", "none"):
    torch.manual_seed(0)
    halved = Halved(0.5, linear_features=3, threshold=0.2, reset_mechanism=mechanism)
    plain = snn.RLeaky(0.5, linear_features=3, threshold=0.2, reset_mechanism=mechanism)
    plain.load_state_dict(halved.state_dict())
    y = torch.randn(1, 2, 3)
    assert torch.equal(halved.unroll(y)[1], plain.unroll(y)[1])
    assert torch.equal(halved.unroll(y)[0], plain.unroll(y)[0] * 0.5)
try:
    Inverted(0.5).unroll(x)
except NotImplementedError as error:
    assert "pip install snntorch" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
