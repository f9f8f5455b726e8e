"""A compiled network in use: modes, batch sizes, autocast, processes, memory."""

import copy
import pickle
from dataclasses import replace

import pytest
import snntorch
import torch
import torch.multiprocessing as multiprocessing
from torch import nn

import snnfast as snn
from compiled import LIF, PRODUCTS, Graphs, Net, T, iteration, normal, norse_tutorial, published, voltages_and_gradients
from fused_loops import given_state
from measure import peak_bytes
from published import LOOPS
from unfused_loops import FUSED

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_accelerate_keeps_the_module():
    _, net, x, _ = published("rate-fc", snntorch)
    net.register_forward_hook(lambda module, args, output: seen.append(module))
    seen, names, state = [], list(dict(net.named_modules())), copy.deepcopy(net.state_dict())
    parameters = {name: parameter for name, parameter in net.named_parameters()}
    assert snn.accelerate(net, compile=True) is net
    net(x)
    assert isinstance(net.lif1, snn.Leaky) and list(dict(net.named_modules())) == names and seen == [net]
    assert all(parameter is parameters[name] for name, parameter in net.named_parameters())
    # snnTorch saves the membranes, which are no part of a model.
    assert list(net.state_dict()) == [name for name in state if not name.endswith("mem")]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_accelerating_twice_takes_the_last_options():
    loop, net, x, targets = published("rate-fc", snn)
    expected = iteration(net, loop, x, targets)[0]
    first, second = Graphs(), Graphs()
    snn.accelerate(net, inner=first, compile=True)
    iteration(net, loop, x, targets)
    snn.accelerate(net, window=5, products="per-step", inner=second, compile=True)
    found = iteration(net, loop, x, targets)[0]
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (len(first), second.calls()) == (1, {"lif1": 2, "lif2": 2})


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_an_accelerated_network_is_copied(duplicate):
    _, net, x, _ = published("rate-fc", snn)
    expected = snn.accelerate(net, products="per-step", compile=True)(x)
    other = duplicate(net)
    with torch.no_grad():
        other.fc1.weight.mul_(0.0)
        other.fc1.bias.fill_(2.0)
    assert torch.equal(net(x)[1], expected[1])
    graphs = Graphs()
    silent = snn.accelerate(other, inner=graphs, compile=True)(torch.zeros_like(x))
    assert torch.equal(silent[1], other(x)[1]) and not torch.equal(silent[1], expected[1])
    assert graphs.calls() == {"lif1": 1, "lif2": 1}


def test_train_and_eval_switch_dropout():
    row = FUSED["dropout"]
    loop, net, (x,) = row.build(), snn.accelerate(row.build(), products="per-step", compile=True), row.inputs()
    for mode in (True, False, True):
        outcomes = []
        for one in (loop, net):
            torch.manual_seed(7)
            outcomes.append(one.train(mode)(x)[1])
        assert torch.equal(*outcomes)
    torch.manual_seed(8)
    assert not torch.equal(net(x)[1], outcomes[1])


def test_inference_and_training_in_turn():
    loop, net, x, targets = published("rate-fc", snn)
    expected = iteration(net, loop, x, targets)
    snn.accelerate(net, products="per-step", compile=True)
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.enable_grad):
        with context():
            spk, mem = net(x)
        assert torch.equal(mem, expected[0]["membranes"]) and mem.requires_grad == (context is torch.enable_grad)
        found = iteration(net, loop, x, targets)
        assert all(torch.equal(found[1][name], gradient) for name, gradient in expected[1].items())


@pytest.mark.parametrize("products", PRODUCTS)
def test_a_changed_batch_size_costs_one_more_compilation(products):
    loop, net, x, targets = published("rate-fc", snn)
    x, targets = torch.cat([x, x.flip(0)], 1), targets.repeat(2)
    expected = {size: iteration(net, loop, x[:, :size], targets[:size]) for size in (4, 3, 7, 5, 4, 1)}
    graphs = Graphs()
    snn.accelerate(net, products=products, inner=graphs, compile=True)
    for size, (outputs, gradients) in expected.items():
        found = iteration(net, loop, x[:, :size], targets[:size])
        for ours, wanted in ((found[0], outputs), (found[1], gradients)):
            for name, value in wanted.items():
                tolerance = 0 if products == "per-step" else 1e-5
                torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance)
        assert len(graphs) <= (2 if size > 1 else 3)
    assert graphs.calls() == {"lif1": len(graphs), "lif2": len(graphs)}


def test_products_without_bias_serve_every_batch_size():
    graphs, layers = Graphs(), {"fc": nn.Linear(6, 8, bias=False), "lif": snn.Leaky(**LIF)}
    net = snn.accelerate(Net(given_state, layers).double(), inner=graphs, compile=True)
    for size in (4, 3, 7, 5):
        net(normal(T, size, 6), normal(size, 8))
    assert len(graphs) == 2 and graphs.sequences() == {"lif": 2}


@pytest.mark.parametrize("products", PRODUCTS)
def test_autocast(products):
    loop, net, x, targets = published("rate-fc", snn)
    outcomes = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            outcomes.append(iteration(net, loop, x, targets))
        snn.accelerate(net, products=products, compile=True)
    (expected, gradients), (found, of_ours) = outcomes
    assert found["spikes"].dtype == expected["spikes"].dtype == torch.bfloat16
    assert found["membranes"].dtype == expected["membranes"].dtype == torch.float32
    if products == "per-step":
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.testing.assert_close(found["membranes"], expected["membranes"], rtol=0, atol=0.02)
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_ours[name], gradient, rtol=0, atol=0.02 * gradient.abs().max().item())


def _ddp_rank(rank, path, result):
    """Each of two ranks takes half of a batch; gradients are averaged, and must be those of the whole batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    loop, net, x, targets = published("rate-fc", snn)
    expected, gradients = iteration(net, loop, x, targets)
    half = slice(2 * rank, 2 * rank + 2)
    graphs = Graphs()
    snn.accelerate(net, inner=graphs, compile=True)
    accelerated = nn.parallel.DistributedDataParallel(net)
    _, plain, *_ = published("rate-fc", snn)
    compiled = nn.parallel.DistributedDataParallel(plain)
    compiled.compile(backend="snnfast", options={"inner": graphs})
    for k, (parallel, module) in enumerate(((accelerated, net), (compiled, plain))):
        output = parallel(x[:, half])
        loop.loss(output, targets[half]).backward()
        same = torch.equal(output[0], expected["spikes"][:, half])
        close = [torch.allclose(p.grad, gradients[name], rtol=1e-5, atol=1e-6) for name, p in module.named_parameters()]
        result[rank, k] = [same, *close]
    result[rank, "calls"] = graphs.calls()
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        result = manager.dict()
        multiprocessing.spawn(_ddp_rank, (str(tmp_path / "store"), result), nprocs=2)
        result = dict(result)
    for rank in range(2):
        assert sum(result.pop((rank, "calls")).values()) == 4
    assert len(result) == 4 and all(all(outcome) for outcome in result.values()), result


@pytest.mark.parametrize("products", PRODUCTS)
def test_an_inner_backend_gives_the_same_numbers(products):
    loop, net, x, targets = published("rate-fc", snn)
    outcomes = []
    for inner in (None, "aot_eager"):
        torch._dynamo.reset()
        snn.accelerate(net, products=products, inner=inner, compile=True)
        outcomes.append(iteration(net, loop, x, targets))
    for ours, wanted in zip(*outcomes, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6)


def test_training_recurrent_layers_needs_no_more_memory_than_the_loop(device):
    net, x, labels = norse_tutorial(sizes=(100, 500, 10), steps=25, batch=32)
    net, x, labels = net.to(device), x.to(device), labels.to(device)
    peaks = []
    for one in (net, snn.accelerate(copy.deepcopy(net), compile=True)):
        voltages_and_gradients(one, x, labels)
        peaks.append(peak_bytes(lambda one=one: voltages_and_gradients(one, x, labels), torch.device(device)))
    assert peaks[1] <= peaks[0], peaks


def test_training_needs_no_more_memory_than_the_loop(device):
    loop, sizes = LOOPS["rate-fc"], replace(LOOPS["rate-fc"].small, T=25, B=32, layers=(100, 500, 10))
    x, targets = loop.inputs(torch.Generator().manual_seed(0), sizes)
    x, targets = x.to(device), targets.to(device)
    peaks = []
    for accelerate in (lambda net: net, lambda net: snn.accelerate(net, compile=True)):
        net = accelerate(loop.build(sizes, snntorch).to(device))

        def train(net=net):
            net.zero_grad()
            loop.loss(net(x), targets).backward()

        train()
        peaks.append(peak_bytes(train, torch.device(device)))
    assert peaks[1] <= peaks[0], peaks
