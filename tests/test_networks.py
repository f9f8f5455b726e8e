"""Ordinary networks train as their loop under stock snnTorch does: dropped in, compiled, recorded, and untouched."""

import warnings

import pytest
import snntorch
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import snnfast as snn
from networks import CLASSES, NETWORKS, B, T

QUICK = ("hidden_states", "batch_norm_in_training", "recurrent", "equations_of_ones_own", "residual_block")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in NETWORKS]


def data(network, dtype):
    draw = torch.Generator().manual_seed(5)
    x = torch.rand((3, T, B, *network.shape), generator=draw, dtype=torch.float64).round().to(dtype) * 2
    return x, torch.randint(CLASSES, (3, B), generator=draw)


def trained(net, network):
    """Losses of three steps of SGD, and the state after them."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    xs, labels = data(network, next(net.parameters()).dtype)
    torch.manual_seed(11)
    losses = []
    for x, label in zip(xs, labels, strict=True):
        outputs = net(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        optimizer.zero_grad()
        loss = sum(
            F.cross_entropy(out.flatten(0, -3).sum(0).flatten(1)[:, :CLASSES], label) + out.square().mean()
            for out in (out if out.dim() > 2 else out[None] for out in outputs)
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses)} | {name: value.clone() for name, value in net.state_dict().items()}


def built(network, library):
    torch.manual_seed(3)
    return network.build(library)


def assert_same(found, wanted, exact):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        close = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(found[name], value, **close, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_trains_as_the_loop(name):
    network = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = trained(built(network, snntorch), network)
        assert not torch.equal(wanted["losses"][0], wanted["losses"][2]), "it learns nothing"
        assert_same(trained(built(network, snn), network), wanted, exact=not network.rounds)
        for products in ("per-step", "batched"):
            torch._dynamo.reset()
            net = snn.accelerate(built(network, snntorch), products=products, compile=True)
            assert_same(trained(net, network), wanted, exact=products == "per-step" and not network.rounds)


@pytest.mark.parametrize("name", NAMES)
def test_trains_recorded_as_the_loop(name):
    network = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = trained(built(network, snntorch), network)
        for numbers in ("exact", "forward"):
            exact = numbers == "exact" and not network.rounds
            net = snn.accelerate(built(network, snntorch), numbers=numbers)
            assert_same(trained(net, network), wanted, exact)
            snn.install(numbers=numbers)
            try:
                assert_same(trained(built(network, snntorch), network), wanted, exact)
            finally:
                snn.uninstall()


@pytest.mark.parametrize("name", NAMES)
def test_explain_counts_what_the_profiler_sees(name):
    network = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        net = snn.accelerate(built(network, snntorch), compile=True)
        x = data(network, torch.float32)[0][0]
        for _ in range(2):
            net(x)
        with profile(activities=[ProfilerActivity.CPU]) as ran:
            net(x)
        explained = snn.explain(net, x)
    seen = {event.key: event.count for event in ran.key_averages() if event.key.startswith("snnfast::")}
    assert explained.operators == seen, str(explained)
    # A neuron of the user's own runs in a function that was generated for it, which is no operator of torch's.
    generated = sum(layer.calls for layer in explained.layers if layer.layer == "own")
    kernels = generated + sum(count for key, count in seen.items() if key.endswith("_fwd"))
    assert explained.kernels == kernels, str(explained)
