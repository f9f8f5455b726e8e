"""Which autograd functions of the user's wait, and what their code reads when they do."""

import logging
import types

import pytest
import torch
from torch import nn

import snnfast as snn
from snnfast.loops import purity

SLOPE, BOUND = 10.0, 1.0
settings = types.ModuleType("settings")
settings.bound = 1.0


class Fire(torch.autograd.Function):
    scale = 10.0

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > BOUND).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad / (Fire.scale * u.abs() + 1) ** 2


class FireOfModule(Fire):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u > settings.bound).to(u.dtype)


class Net(nn.Module):
    def __init__(self, fire, before=lambda step: None):
        super().__init__()
        self.fc, self.fire, self.before = nn.Linear(8, 12), fire, before

    def forward(self, x):
        mem, spikes = torch.zeros(x.shape[1], 12, dtype=x.dtype), []
        for step, x_t in enumerate(x):
            self.before(step)
            mem = 0.9 * mem + self.fc(x_t)
            spk = self.fire(mem)
            mem = mem * (1 - spk)
            spikes.append(spk)
        return torch.stack(spikes)


def trained(net, between=lambda epoch: None, epochs=4):
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, -0.2, 0.6)
    found = []
    for epoch in range(epochs):
        between(epoch)
        net.zero_grad()
        spikes = net(torch.rand(20, 3, 8, dtype=torch.float64))
        spikes.sum().backward()
        found += [spikes.detach(), net.fc.weight.grad.clone()]
    return found


def assert_as_the_loop(make, between=lambda epoch: None):
    plain = trained(make().double(), between)
    for numbers in ("forward", "exact"):
        found = trained(snn.accelerate(make().double(), numbers=numbers), between)
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(Fire, "scale", Fire.scale)
    monkeypatch.setitem(globals(), "BOUND", BOUND)
    monkeypatch.setattr(settings, "bound", settings.bound)
    purity.reads_of.cache_clear()


def test_a_slope_that_is_annealed_between_epochs():
    def anneal(epoch):
        Fire.scale = 10.0 * 4**epoch

    assert_as_the_loop(lambda: Net(Fire.apply), anneal)
    assert purity.may_wait(Fire, [torch.ones(1)])


def test_a_bound_of_the_module_that_falls_with_time():
    def fall(step):
        globals()["BOUND"] = 1.0 - 0.04 * step

    assert_as_the_loop(lambda: Net(Fire.apply, fall))


def test_a_bound_of_another_module_that_falls_with_time():
    def fall(step):
        settings.bound = 1.0 - 0.04 * step

    assert_as_the_loop(lambda: Net(FireOfModule.apply, fall))


def test_a_variable_of_an_outer_function_that_changes():
    def make():
        bound = 1.0

        class Own(Fire):
            @staticmethod
            def forward(ctx, u):
                ctx.save_for_backward(u)
                return (u > bound).to(u.dtype)

        def fall(step):
            nonlocal bound
            bound = 1.0 - 0.04 * step

        return Net(Own.apply, fall)

    assert_as_the_loop(make)


def test_an_argument_that_holds_what_changes():
    class Given(Fire):
        @staticmethod
        def forward(ctx, u, chosen):
            ctx.save_for_backward(u)
            return (u > chosen["bound"]).to(u.dtype)

        @staticmethod
        def backward(ctx, grad):
            return Fire.backward(ctx, grad), None

    def make():
        chosen = {"bound": 1.0}
        return Net(lambda u: Given.apply(u, chosen), lambda step: chosen.update(bound=1.0 - 0.04 * step))

    assert_as_the_loop(make)


class Logged(logging.Handler):
    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        self.seen.append(record)


class FireLogged(Fire):
    seen = []

    @staticmethod
    def forward(ctx, u):
        logging.getLogger("test_purity").warning("spikes")
        return Fire.forward(ctx, u)


class FireCounted(Fire):
    seen = []

    @staticmethod
    def forward(ctx, u):
        FireCounted.seen.append(u.shape)
        return Fire.forward(ctx, u)


def test_what_a_function_does_besides_is_done_at_every_step():
    handler = Logged()
    logging.getLogger("test_purity").addHandler(handler)
    for fire, seen in ((FireLogged, handler.seen), (FireCounted, FireCounted.seen)):
        trained(snn.accelerate(Net(fire.apply).double()))
        assert len(seen) == 4 * 20
    logging.getLogger("test_purity").removeHandler(handler)


@pytest.mark.parametrize("drawn", ["log_normal_", "geometric_", "cauchy_", "exponential_"])
def test_what_is_drawn_is_drawn_in_the_loops_order(drawn):
    names = {"log_normal_": "log_normal_(-2)", "geometric_": "geometric_(0.5)", "cauchy_": "cauchy_()"}
    space = {"Fire": Fire, "__name__": __name__}
    exec(
        "class Drawing(Fire):\n"
        "    @staticmethod\n"
        "    def forward(ctx, u):\n"
        "        ctx.save_for_backward(u)\n"
        f"        return (u > u.new_empty(u.shape).{names.get(drawn, drawn + '()')}).to(u.dtype)\n",
        space,
    )
    assert_as_the_loop(lambda: Net(space["Drawing"].apply))


def test_a_bound_apply_of_an_import_is_recorded():
    net = snn.accelerate(Net(Fire.apply))
    x = torch.rand(20, 3, 8)
    for _ in range(3):
        net(x)
    assert "20 steps" in str(snn.explain(net, x))


def test_steps_joined_into_a_given_tensor():
    torch.manual_seed(0)
    lif, x, given = snn.Leaky(beta=0.9), torch.rand(20, 4, 6), torch.empty(20, 4, 6)
    plain, mem = [], torch.zeros(4, 6)
    for x_t in x:
        spk, mem = lif(x_t, mem)
        plain.append(spk)
    with snn.accelerated(), torch.no_grad():
        for _ in range(3):
            spikes, mem = [], torch.zeros(4, 6)
            for x_t in x:
                spk, mem = lif(x_t, mem)
                spikes.append(spk)
            assert torch.stack(spikes, out=given) is given
            assert torch.equal(given, torch.stack(plain))
            assert torch.equal(torch.cat(spikes, out=torch.empty(80, 6)), torch.cat(plain))


@pytest.mark.parametrize("bound", [torch.linspace(0.2, 1.0, 12, dtype=torch.float64), [0.5]])
def test_a_number_that_becomes_something_else(bound):
    def become(epoch):
        globals()["BOUND"] = 1.0 if epoch < 2 else bound if isinstance(bound, torch.Tensor) else bound[0]
        if epoch == 3 and not isinstance(bound, torch.Tensor):
            globals()["BOUND"] = float("nan")

    assert_as_the_loop(lambda: Net(Fire.apply), become)
