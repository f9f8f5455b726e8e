"""Every way a drop-in for snntorch.Leaky is used: step loops, hidden state, saving, DDP, compiling, exporting."""

import copy
import gc
import io
import operator
import re
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest
import snntorch
import snntorch.surrogate
import torch
import torch.multiprocessing as multiprocessing
from snntorch import utils
from torch import nn

import snnfast as snn
from cases import identical, step_loop
from snnfast import functional


def hidden_net(library, **options):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(10, 20),
        library.Leaky(0.9, init_hidden=True, **options),
        nn.Linear(20, 5),
        library.Leaky(0.8, init_hidden=True, output=True, **options),
    )


X = torch.randn(7, 4, 10, generator=torch.Generator().manual_seed(1)) * 2


def test_is_a_snntorch_leaky():
    layer = snn.Leaky(0.9)
    assert isinstance(layer, snntorch.Leaky) and isinstance(layer, snn.SpikingNeuron)


@pytest.mark.parametrize("start", ["init_leaky", "reset_mem", "zeros", "omitted"])
def test_step_loop(start, device):
    x = X.to(device)
    outcomes = []
    for library in (snn, snntorch):
        layer = library.Leaky(0.9, threshold=0.5).to(device)
        if start == "omitted":
            outputs = [layer(step) for step in x.unbind(0)]
            outcomes.append(tuple(torch.stack(column) for column in zip(*outputs, strict=True)))
        else:
            mem = torch.zeros(4, 10, device=device) if start == "zeros" else getattr(layer, start)()
            outcomes.append(step_loop(layer, x, mem))
        assert layer.mem.shape == (4, 10)
    assert all(identical(a, b) for a, b in zip(*outcomes, strict=True))


def test_returned_membrane_is_the_layers_own():
    layer = snn.Leaky(0.9)
    _, mem = layer(X[0])
    assert layer.mem is mem and not mem._is_view()


def test_hidden_state_in_a_sequential(device):
    outcomes = []
    for library in (snn, snntorch):
        net = hidden_net(library).to(device)
        x = X.to(device)
        first = [net(step) for step in x.unbind(0)]
        utils.reset(net)
        again = [net(step) for step in x.unbind(0)]
        for (spk, mem), (spk2, mem2) in zip(first, again, strict=True):
            assert identical(spk, spk2) and identical(mem, mem2)
        loss = sum(spk.sum() + mem.sum() for spk, mem in again)
        loss.backward()
        outcomes.append([*again[-1], *(p.grad for p in net.parameters())])
    assert all(identical(a, b) for a, b in zip(*outcomes, strict=True))


def test_unroll_is_the_step_loop(device):
    for init_hidden in (False, True):
        for output in (False, True):
            layers = [
                snn.Leaky(0.9, threshold=0.5, init_hidden=init_hidden, output=output).to(device) for _ in range(2)
            ]
            x = X.to(device)
            unrolled = layers[0].unroll(x)
            steps = [layers[1](step) for step in x.unbind(0)]
            if init_hidden and not output:
                assert identical(unrolled, torch.stack(steps))
            else:
                for ours, column in zip(unrolled, zip(*steps, strict=True), strict=True):
                    assert identical(ours, torch.stack(column))


def test_hidden_unroll_goes_on_where_the_last_one_ended(device):
    x = X.to(device)
    whole, parts = (snn.Leaky(0.9, init_hidden=True).to(device) for _ in range(2))
    spk = whole.unroll(x)
    assert identical(torch.cat([parts.unroll(x[:3]), parts.unroll(x[3:])]), spk)
    assert identical(parts.mem, whole.mem) and not parts.mem._is_view()
    snn.reset(parts)
    assert identical(parts.unroll(x), spk)


def test_plain_unroll_starts_from_zeros_each_time():
    layer = snn.Leaky(0.9)
    assert identical(layer.unroll(X)[0], layer.unroll(X)[0])


def test_user_edits_the_state_between_steps():
    layer, theirs = snn.Leaky(0.9, init_hidden=True, output=True), snntorch.Leaky(0.9, init_hidden=True, output=True)
    for one in (layer, theirs):
        one(X[0])
        one.mem = one.mem * 0.5
        one.mem.fill_(0.7)
    assert all(identical(a, b) for a, b in zip(layer(X[1]), theirs(X[1]), strict=True))


def test_truncated_bptt():
    """detach_hidden cuts the graph: the gradient of a later chunk stops at its first step."""
    layer = snn.Leaky(0.9, init_hidden=True, output=True, learn_beta=True)
    x = X.clone().requires_grad_()
    layer(x[0])
    snn.Leaky.detach_hidden()
    _, mem = layer(x[1])
    mem.sum().backward()
    assert x.grad[0].abs().sum() == 0 and x.grad[1].abs().sum() > 0
    snntorch.Leaky.detach_hidden()
    layer(x[2])[1].sum().backward()


def test_detaching_reaches_the_membrane_that_the_loop_holds():
    layer = snn.Leaky(0.9)
    x = X.clone().requires_grad_()
    _, mem = layer(x[0])
    snn.Leaky.detach_hidden()
    assert not mem.requires_grad and layer.mem is mem
    layer.mem = x[:1, 0].detach().requires_grad_()[0]
    snn.Leaky.detach_hidden()
    assert not layer.mem.requires_grad


def test_works_without_snntorch():
    program = """
import sys
sys.modules["snntorch"] = None
import torch, snnfast as snn
net = torch.nn.Sequential(torch.nn.Linear(3, 4), snn.Leaky(0.9, init_hidden=True, learn_beta=True))
net(torch.ones(2, 3)).sum().backward()
snn.reset(snn.convert(net))
snn.Leaky.reset_hidden()
assert (net[1].mem == 0).all() and len(snn.SpikingNeuron.instances) == 1
assert list(net[1].state_dict()) == ["beta", "threshold", "graded_spikes_factor", "reset_mechanism_val"]
snn.Leaky(0.9, spike_grad=lambda u: torch.sigmoid(u))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_snntorchs_backprop_trains():
    from snntorch import backprop
    from snntorch import functional as losses

    torch.manual_seed(0)
    net = hidden_net(snn)
    loader = [(X[0], torch.tensor([0, 1, 2, 3]))] * 3
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    before = [p.clone() for p in net.parameters()]
    for method, options in ((backprop.BPTT, {}), (backprop.TBPTT, {"K": 2})):
        criterion = losses.mse_count_loss()
        loss = method(net, loader, optimiser, criterion, num_steps=5, time_var=False, **options)
        assert torch.as_tensor(loss).isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 5), (2, 3, 4, 5)])
def test_any_shape(shape, device):
    x = torch.randn(shape, device=device) * 3
    outcomes = [library.Leaky(0.9).to(device)(x) for library in (snn, snntorch)]
    assert all(identical(a, b) for a, b in zip(*outcomes, strict=True))


def test_batch_size_changes_restart_from_zeros():
    layer = snn.Leaky(0.9, init_hidden=True)
    layer(X[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert identical(layer(X[1, :2]), snn.Leaky(0.9, init_hidden=True)(X[1, :2]))


@pytest.mark.parametrize("name", ["Leaky", "Synaptic", "Alpha", "RSynaptic"])
def test_zeros_of_a_reset_fit_any_batch(name):
    arguments = {"Leaky": (0.9,), "Synaptic": (0.8, 0.9), "Alpha": (0.9, 0.8), "RSynaptic": (0.8, 0.9)}[name]
    options = {"all_to_all": False} if name == "RSynaptic" else {}
    layer, other = (getattr(snn, name)(*arguments, **options) for _ in range(2))
    layer(X[0])

    def states_of(layer, made):
        return made if isinstance(made, tuple) else (made,)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for used in (layer, other):
            used(X[0][:2], *states_of(layer, layer.reset_mem()))
            layer(X[0])
            first = used.unroll(X[:, :3], *states_of(layer, layer.reset_mem()))
            assert all(map(identical, first, used.unroll(X[:, :3])))
            layer(X[0])
        utils.reset(nn.Sequential(layer))
        layer(X[0][:2], *(getattr(layer, state) for state in layer.state_names))
        layer(X[0], *(torch.zeros(7) for _ in layer.state_names))
    zeros = states_of(layer, layer.reset_mem())
    zeros[-1][0] = 0.5
    with pytest.warns(UserWarning, match=r"mem of shape \(4, 10\) does not fit"):
        layer(X[0][:2], *zeros)
    with pytest.raises(ValueError, match="mem must have shape"):
        layer.unroll(X[:, :2], *zeros)


def test_integer_currents(device):
    x = torch.tensor([[0, 1, 2], [3, 0, 1]], device=device)
    outcomes = [step_loop(library.Leaky(0.5).to(device), x) for library in (snn, snntorch)]
    assert all(identical(a, b) for a, b in zip(*outcomes, strict=True))


def test_parameters_of_higher_precision(device):
    """A float64 array for beta makes float64 membranes and float32 spikes, as in snnTorch."""
    beta = torch.linspace(0.5, 0.99, 10, dtype=torch.float64).numpy()
    outcomes = [step_loop(library.Leaky(beta).to(device), X.to(device)) for library in (snn, snntorch)]
    assert outcomes[0][1].dtype == torch.float64
    assert all(identical(a, b) for a, b in zip(*outcomes, strict=True))


def test_state_dict_both_ways():
    ours = snn.Leaky(torch.rand(10), threshold=torch.rand(10), learn_beta=True, reset_mechanism="zero")
    theirs = snntorch.Leaky(torch.rand(10), threshold=torch.rand(10), learn_beta=True, reset_mechanism="zero")
    ours(X[0]), theirs(X[0])
    for source, target in ((ours, theirs), (theirs, ours)):
        state = source.state_dict()
        assert list(state) == list(target.state_dict())
        for name, tensor in target.state_dict().items():
            assert (tensor.dtype, tensor.shape) == (state[name].dtype, state[name].shape)
        target.load_state_dict(copy.deepcopy(state))
    assert all(identical(a, b) for a, b in zip(step_loop(ours, X), step_loop(theirs, X), strict=True))


def test_buffers_keep_the_dtype_they_were_given():
    for threshold in (1, 1.0, torch.tensor(1, dtype=torch.int32)):
        ours, theirs = snn.Leaky(0.9, threshold=threshold), snntorch.Leaky(0.9, threshold=threshold)
        assert ours.threshold.dtype == theirs.threshold.dtype
        assert identical(step_loop(ours, X)[1], step_loop(theirs, X)[1])


def test_shared_and_generated_parameters():
    """One parameter in two layers; a beta that another network makes."""
    beta = nn.Parameter(torch.tensor(0.7))
    first, second = snn.Leaky(beta, learn_beta=True), snn.Leaky(beta, learn_beta=True)
    assert first.beta.data_ptr() == second.beta.data_ptr()
    outcomes = []
    for library in (snn, snntorch):
        source = torch.tensor(0.3, requires_grad=True)
        layer = library.Leaky(0.5)
        layer.beta = torch.sigmoid(source)
        step_loop(layer, X)[1].sum().backward()
        outcomes.append(source.grad)
    torch.testing.assert_close(*outcomes)


def test_moves_with_its_state():
    layer = snn.Leaky(0.9, init_hidden=True)
    layer(X[0])
    layer.double()
    assert layer.mem.dtype == layer.beta.dtype == torch.float64
    assert layer.to("meta").mem.device.type == "meta"


def test_state_follows_the_input(device):
    layer = snn.Leaky(0.9)
    _, mem = layer(X[0].to(device))
    assert mem.device.type == device
    meta = snn.Leaky(0.9).to("meta").unroll(X.to("meta"))
    assert meta[0].device.type == "meta" and meta[0].shape == X.shape


def test_autocast_stays_fused(device):
    with warnings.catch_warnings(), torch.autocast(device, torch.bfloat16):
        warnings.simplefilter("error")
        net = snn.Unroll(nn.Linear(10, 20), snn.Leaky(0.9), nn.Linear(20, 5), snn.Leaky(0.9, output=True)).to(device)
        spk, mem = net(X.to(device))
    assert spk.dtype == torch.bfloat16 and mem.dtype == torch.float32
    mem.sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_half_precision_network(device):
    net = snn.Unroll(nn.Linear(10, 20), snn.Leaky(0.9), nn.Linear(20, 5)).to(device).bfloat16()
    net(X.to(device).bfloat16()).sum().backward()
    assert net[0].weight.grad.dtype == torch.bfloat16 and net[0].weight.grad.abs().sum() > 0


def test_data_parallel_replicas_run():
    layer = snn.Leaky(0.9, init_hidden=True, learn_beta=True)
    layer(X[0])
    replica = layer._replicate_for_data_parallel()
    replica.beta = torch.tensor(0.1)
    _, kept = layer._parameters["beta"], layer.mem
    spk = replica(X[1])
    assert spk.shape == (4, 10) and layer.mem is kept


def _ddp_rank(rank, path, library_name, result):
    """Two ranks step a net whose time loop is outside DDP; rank 1's membranes must stay rank 1's."""
    library = snn if library_name == "snnfast" else snntorch
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), library.Leaky(0.9, init_hidden=True, output=True))
    alone = copy.deepcopy(net)
    parallel = nn.parallel.DistributedDataParallel(net)
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(rank))
    same = True
    for step in x.unbind(0):
        mem, expected = parallel(step)[1], alone(step)[1]
        same = same and torch.equal(mem, expected)
    mem.sum().backward()
    result[rank] = same
    torch.distributed.destroy_process_group()


def run_ddp(tmp_path, library_name):
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        result = manager.dict()
        multiprocessing.spawn(_ddp_rank, (str(tmp_path / library_name), library_name, result), nprocs=2)
        return result[0] and result[1]


def test_distributed_data_parallel_leaves_membranes_alone(tmp_path):
    assert run_ddp(tmp_path, "snnfast")
    assert not run_ddp(tmp_path, "snntorch")


def test_forward_hooks_see_each_step():
    layer, seen = snn.Leaky(0.9, init_hidden=True), []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    for step in X.unbind(0):
        layer(step)
    assert seen == [(4, 10)] * 7


def test_prints_itself():
    assert repr(snn.Leaky(0.9)) == "Leaky(beta=0.9, reset_mechanism='subtract', reset_delay=True)"
    assert "beta=(10,)" in repr(snn.Leaky(torch.rand(10)))


@pytest.mark.parametrize(
    ("layer", "learnt"),
    [
        (lambda: snn.Leaky(0.9, learn_beta=True, learn_threshold=True), ["beta", "threshold"]),
        (lambda: snn.Leaky(0.9, learn_graded_spikes_factor=True), ["graded_spikes_factor"]),
        (lambda: snn.Leaky(0.9, learn_beta=True).requires_grad_(False), []),
        (lambda: snn.RLeaky(0.9, linear_features=3, learn_beta=True), ["beta", "recurrent"]),
        (lambda: snn.RLeaky(0.9, linear_features=3, learn_recurrent=False), []),
        (lambda: snn.RSynaptic(0.9, 0.8, all_to_all=False), ["recurrent"]),
        (lambda: snn.ALIF(0.9, 0.9, 0.1, learn_rho=True), ["rho"]),
    ],
)
def test_what_is_learnt_is_printed(layer, learnt):
    assert re.findall(r"learn_(\w+)=True", repr(layer())) == learnt


def test_fallbacks_keep_snntorchs_numbers_and_say_so():
    functional._said.clear()
    options = {"state_quant": lambda mem: (mem * 8).round() / 8, "inhibition": True}
    for name, value in options.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ours = snn.Leaky(0.9, threshold=0.3, **{name: value})
            theirs = snntorch.Leaky(0.9, threshold=0.3, **{name: value})
            stepped = step_loop(ours, X)
            step_loop(ours, X)
            expected = step_loop(theirs, X)
            unrolled = ours.unroll(X)
        assert sum(f"Leaky: {name} is not fused" in str(w.message) for w in caught) == 1
        for outcome in (stepped, unrolled):
            assert all(identical(a, b) for a, b in zip(outcome, expected, strict=True))
        assert expected[0].sum() > 0


def test_use_reference_gives_the_same_numbers(device):
    x = X.to(device).clone().requires_grad_()
    layer = snn.Leaky(0.9, threshold=0.5).to(device)
    fused = layer.unroll(x)
    with snn.use_reference():
        looped = layer.unroll(x)
        assert type(looped[0].grad_fn) is not type(fused[0].grad_fn)
    for outcome in (fused, looped):
        outcome += (torch.autograd.grad(outcome[0].sum() + outcome[1].sum(), x)[0],)
    assert all(identical(a, b) for a, b in zip(fused, looped, strict=True))


class Unconverted(nn.Module):
    """A network as its author wrote it for snnTorch, with a list that refers to a layer once more."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(10, 6)
        self.body = nn.ModuleDict({"lif": snntorch.Leaky(0.9, learn_beta=True, reset_mechanism="zero")})
        self.custom = snntorch.Leaky(0.8, surrogate_disable=True, reset_delay=False)
        self.other = snntorch.SLSTM(4, 4)
        self.order = [self.body["lif"], self.custom]

    def forward(self, x):
        for layer in self.order:
            layer.reset_mem()
        outputs = []
        for step in x.unbind(0):
            spk, _ = self.order[0](self.fc(step))
            outputs.append(self.order[1](spk)[1])
        return torch.stack(outputs)


def test_convert_keeps_everything_but_the_speed():
    net = Unconverted()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    layer, hooked = net.body["lif"], []
    layer.register_forward_hook(lambda *_: hooked.append(1))
    before, state = net(X), copy.deepcopy(net.state_dict())
    assert snn.convert(net) is net
    assert net.body["lif"] is layer and type(layer) is snn.Leaky and type(net.custom) is snn.Leaky
    assert type(net.other) is snntorch.SLSTM
    assert layer.spike_grad == snn.surrogate.atan() and isinstance(net.custom.spike_grad, snn.surrogate.disabled)
    hooked.clear()
    after = net(X)
    assert identical(before, after) and len(hooked) == len(X)
    assert list(net.state_dict()) == list(state)
    after.sum().backward()
    optimiser.step()
    assert not torch.equal(net.fc.weight, state["fc.weight"])
    assert type(snn.convert(snntorch.Leaky(0.9))) is snn.Leaky
    assert "mem" not in dict(net.named_buffers()) or all(
        "other" in n for n in dict(net.named_buffers()) if n.endswith("mem")
    )


def test_convert_keeps_subclasses():
    class Mine(snntorch.Leaky):
        pass

    assert type(snn.convert(nn.Sequential(Mine(0.9)))[0]) is Mine


def test_unroll_container_runs_layer_by_layer(device):
    sequential = nn.Sequential(
        nn.Linear(10, 20), snn.Leaky(0.9), nn.Sequential(nn.Linear(20, 6), snn.Leaky(0.5)), nn.ReLU()
    )
    net = snn.Unroll(sequential).to(device)
    assert list(net.state_dict()) == list(sequential.state_dict())
    x = X.to(device)
    hidden, _ = net[1].unroll(net[0](x))
    expected, _ = net[2][1].unroll(net[2][0](hidden))
    torch.testing.assert_close(net(x), expected, rtol=0, atol=0)
    with pytest.raises(TypeError, match="layer 0 .* must be stateless .* snntorch.*Leaky; see snnfast.convert"):
        snn.Unroll(snntorch.Leaky(0.9))
    images = snn.Unroll(nn.Conv2d(1, 3, 3), snn.Leaky(torch.rand(3, 1, 1)), nn.Flatten(), nn.Linear(108, 2)).to(device)
    assert images(torch.randn(5, 2, 1, 8, 8, device=device)).shape == (5, 2, 2)


@pytest.mark.parametrize("options", [{}, {"reset_delay": False}, {"reset_mechanism": "zero"}])
def test_compiles_without_a_graph_break(options, device):
    torch._dynamo.reset()
    layer = snn.Leaky(0.9, learn_beta=True, **options).to(device)
    x = X.to(device)

    def run(x):
        spk, mem = layer.unroll(x)
        step, _ = layer(x[0], mem[-1])
        return spk.sum() + mem.square().sum() + step.sum(), spk

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    outcomes = []
    for function in (run, compiled):
        leaf = x.clone().requires_grad_()
        loss, spk = function(leaf)
        loss.backward()
        outcomes.append((spk, leaf.grad, layer.beta.grad.clone()))
        layer.zero_grad()
    (spk, grad, beta), (spk2, grad2, beta2) = outcomes
    assert identical(spk, spk2) and identical(grad, grad2)
    torch.testing.assert_close(beta, beta2)


@pytest.mark.parametrize("init_hidden", [False, True])
def test_compiled_layer_is_one_operator(init_hidden):
    torch._dynamo.reset()
    layer = snn.Leaky(0.9, init_hidden=init_hidden)
    targets = []

    def collect(graph_module, _):
        targets.extend(node.target for node in graph_module.graph.nodes if node.op.startswith("call"))
        return graph_module

    def run(x):
        return layer(x[0]), layer.unroll(x)

    torch.compile(run, fullgraph=True, backend=collect)(X)
    operators = [target for target in targets if "snnfast" in str(target)]
    assert operators == [torch.ops.snnfast.leaky_step, torch.ops.snnfast.leaky_seq]
    elsewhere = [target for target in targets if target not in operators and target is not operator.getitem]
    # `to`: the stored membrane follows the input to its device.
    assert set(elsewhere) <= {"to"}


def test_compiled_step_loop_with_hidden_state(device):
    torch._dynamo.reset()
    net = hidden_net(snn).to(device)
    x = X.to(device)
    expected = [net(step)[0] for step in x.unbind(0)]
    snn.reset(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for step, spk in zip(x.unbind(0), expected, strict=True):
        assert identical(compiled(step)[0], spk)


def test_exports():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(10, 5), snn.Leaky(0.9)

        def forward(self, x, mem):
            return self.lif(self.fc(x), mem)

    net, mem = Net().eval(), torch.zeros(4, 5)
    program = torch.export.export(net, (X[0], mem))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("snnfast" in target for target in targets)
    assert all(identical(a, b) for a, b in zip(program.module()(X[0], mem), net(X[0], mem), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(net, (X[0], mem))
    assert all(identical(a, b) for a, b in zip(traced(X[1], mem), net(X[1], mem), strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["atan", "fast_sigmoid", "sigmoid", "triangular"])
def test_traced_networks_can_be_saved_and_trained(name):
    net = snn.Unroll(nn.Linear(10, 5), snn.Leaky(0.9, spike_grad=getattr(snn.surrogate, name)()))
    saved = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, (X,), check_trace=False), saved)
    saved.seek(0)
    outcomes = []
    for again in (net, torch.jit.load(saved)):
        x = X.clone().requires_grad_()
        outputs = again(x)
        outcomes.append((outputs, torch.autograd.grad(outputs.pow(2).sum(), x)[0]))
    assert identical(outcomes[0][0], outcomes[1][0]) and outcomes[0][0].any()
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1])


@pytest.mark.parametrize("nested", [False, True])
def test_tensors_can_be_followed_from_layer_to_layer(nested, monkeypatch):
    """As nirtorch follows them for snnTorch's NIR export."""
    layers = nn.Linear(10, 5), snn.Leaky(0.9, init_hidden=True), nn.Linear(5, 3), snn.Leaky(0.8)
    net = snn.Unroll(nn.Sequential(*layers[:2]), *layers[2:]) if nested else snn.Unroll(*layers)
    expected = net(X)
    snn.reset(net)
    makers, edges, shapes, held = {}, set(), [], []
    call = nn.Module.__call__

    def follow(module, *args):
        output = call(module, *args)
        first = output[0] if isinstance(output, tuple) else output
        if module in layers:
            edges.update((layers.index(makers[id(arg)]), layers.index(module)) for arg in args if id(arg) in makers)
            makers[id(first)] = module
            shapes.append(first.shape)
            held.append(output)  # so that no address is used twice
        return output

    monkeypatch.setattr(nn.Module, "__call__", follow)
    assert identical(net(X), expected)
    assert edges == {(0, 1), (1, 2), (2, 3)}
    assert shapes[-1] == (1, 4, 3) and "forward" not in vars(layers[-1])


def test_freed_when_dropped():
    gc.collect()
    layer = snn.Leaky(0.9)
    alive = weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None


def test_a_layer_whose_constructor_failed_is_reset_with_the_others():
    with pytest.raises(TypeError) as kept_alive:
        snn.Leaky("0.9")
    utils.reset(nn.Sequential(snn.Leaky(0.9)))
    del kept_alive


def test_the_list_of_instances_counts_what_was_made_and_does_not_grow_for_good():
    saved = snntorch.SpikingNeuron.instances
    try:
        snntorch.SpikingNeuron.instances = []
        for made in (1, 2):
            snn.Leaky(0.9)
            assert len(snntorch.SpikingNeuron.instances) == made
        kept = [snn.Leaky(0.9) for _ in range(10)]
        for _ in range(300):
            snn.Leaky(0.9)
        gc.collect()
        entries = snntorch.SpikingNeuron.instances
        assert len(entries) < 200 and [entry for entry in entries if isinstance(entry, nn.Module)] == kept
    finally:
        snntorch.SpikingNeuron.instances = saved


def test_parameters_are_read_at_every_call():
    """However they were written to: in place, through .data, or through memory shared with NumPy."""
    shared = np.array(0.9, dtype=np.float32)
    for layer in (snn.Leaky(0.9), snn.Leaky(torch.from_numpy(shared))):
        layer(X[0], torch.ones(4, 10))
        layer.beta.data.fill_(0.1)
        assert identical(layer(X[0], torch.ones(4, 10))[1], snn.Leaky(0.1)(X[0], torch.ones(4, 10))[1])


def test_a_parameter_changed_before_backward_is_an_error_not_a_wrong_gradient():
    layer = snn.Leaky(0.9)
    spk, _ = layer(X[0].clone().requires_grad_())
    layer.threshold.add_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spk.sum().backward()


def test_unroll_container_respects_a_layers_own_forward():
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    residual = Residual(nn.Linear(10, 10))
    for net in (snn.Unroll(residual), snn.Unroll(residual, nn.Identity())):
        torch.testing.assert_close(net(X), residual(X))
    with pytest.raises(TypeError, match="layer 0 .Residual. must be stateless"):
        snn.Unroll(Residual(snn.Leaky(0.9)))


@pytest.mark.parametrize("options", [{}, {"recompute": True}])
def test_unroll_container_takes_a_steady_input_once(options, monkeypatch, device):
    """All numbers are binary fractions of few digits: their sums have the same bits in every order."""
    rows = []

    def linear(self, x):
        rows.append(x.flatten(0, -2).shape[0])
        return nn.functional.linear(x, self.weight, self.bias)

    monkeypatch.setattr(nn.Linear, "forward", linear)
    exact = {"beta": 0.5, "spike_grad": snn.surrogate.straight_through_estimator()}
    layers = [nn.Flatten(), nn.Linear(12, 5), snn.Leaky(**exact), nn.Linear(5, 2), snn.Leaky(**exact, output=True)]
    net = snn.Unroll(*layers, **options).to(device)
    for param in net.parameters():
        param.data = torch.randint(-3, 4, param.shape, device=device) / 8
    steady = torch.randint(0, 4, (3, 4, 3), device=device).float().expand(6, -1, -1, -1)
    found = []
    for x in (steady, steady.clone(memory_format=torch.contiguous_format)):
        spk, mem = net(x)
        found.append((spk, mem, *torch.autograd.grad(mem.sum() + spk.sum(), list(net.parameters()))))
    assert all(map(torch.equal, *found))
    forward_rows = rows[:2], rows[len(rows) // 2 :][:2]
    assert forward_rows == ([3, 18], [18, 18])


def test_unroll_container_repeats_what_differs_from_step_to_step(device):
    """Dropout's masks, batch-norm's statistics, the gradient of every step; what hooks see is all steps."""
    image = torch.rand(3, 12, device=device)
    steady = image.expand(6, -1, -1)
    fired = snn.Unroll(nn.Dropout(0.5), snn.Leaky(0.0, threshold=0.0)).to(device)(steady)
    assert not any(fired[0].equal(step) for step in fired[1:])
    norms = [nn.BatchNorm1d(12).to(device) for _ in range(2)]
    for norm, x in zip(norms, (steady, steady.contiguous()), strict=True):
        snn.Unroll(norm, snn.Leaky(0.5))(x)
    assert norms[0].running_var.equal(norms[1].running_var)
    linear, seen = nn.Linear(12, 2).to(device), []
    net = snn.Unroll(linear, snn.Leaky(0.5))
    grads = []
    for x in (steady.detach(), steady.contiguous()):
        x = x.requires_grad_()
        loss = (net(x) * torch.arange(6, device=device).view(6, 1, 1)).sum()
        grads += torch.autograd.grad(loss, x)
    assert grads[0].equal(grads[1]) and grads[0][1:].any()
    linear.register_forward_hook(lambda layer, inputs, output: seen.append(len(output)))
    net(steady.detach())
    assert seen == [18]


def test_unroll_container_leaves_a_steady_input_as_it_is(device):
    image = torch.randn(1, 12, device=device)
    before = image.clone()
    snn.Unroll(nn.Flatten(), nn.ReLU(inplace=True), snn.Leaky(0.5))(image.expand(6, -1, -1))
    assert image.equal(before)
    linear = nn.Linear(12, 5).to(device)
    snn.Unroll(linear, nn.LeakyReLU(0.1, inplace=True), snn.Leaky(0.5))(image.expand(6, -1, -1))
    alone = snn.Unroll(linear, nn.ReLU())(image.expand(6, -1, -1))
    alone += 1
    norm = nn.BatchNorm1d(12, track_running_stats=False).to(device).eval()
    snn.Unroll(norm, snn.Leaky(0.5))(image.repeat(2, 1).expand(6, -1, -1))


def test_states_of_inference_mode_go_on_into_training():
    layer = snn.Leaky(0.9, init_hidden=True, output=True)
    with torch.inference_mode():
        layer(X[0])
    x = X[1].clone().requires_grad_()
    layer(x)[0].sum().backward()
    assert x.grad.abs().sum() > 0


def test_meta_layers_print_and_load():
    layer = snn.Leaky(0.9).to("meta")
    assert "Leaky(beta=()" in repr(layer)
    snn.Leaky(0.9, reset_mechanism="zero").load_state_dict(layer.state_dict(), assign=True)


def test_a_refused_checkpoint_leaves_the_reset_as_it_was():
    layer = snn.Leaky(0.9)
    with pytest.raises(RuntimeError):
        layer.load_state_dict({**layer.state_dict(), "reset_mechanism_val": torch.tensor(7)})
    assert layer.reset_mechanism == "subtract" and layer.reset_mechanism_val == 0


def test_convert_follows_a_reset_that_snntorch_loaded_and_ignores():
    theirs = snntorch.Leaky(0.9)
    theirs.load_state_dict(snntorch.Leaky(0.9, reset_mechanism="zero").state_dict())
    assert snn.convert(theirs).reset_mechanism == "zero" and theirs.reset_mechanism_val == 1


def test_resetting_all_layers_survives_dying_ones():
    for _ in range(30):
        ring = [snn.Leaky(0.9, init_hidden=True)]
        ring.append(ring)
    instances = snntorch.SpikingNeuron.instances
    original = instances.copy()
    gc.collect()
    instances[:] = original
    snn.Leaky.reset_hidden()
    snn.Leaky.detach_hidden()
    utils.reset(nn.Sequential(snn.Leaky(0.9)))
    instances[:] = [layer for layer in instances if hasattr(layer, "mem")]


def test_an_entry_in_the_list_of_instances_stands_for_its_layer():
    layer = snn.Leaky(0.9)
    entry = snntorch.SpikingNeuron.instances[-1]
    assert isinstance(entry, snn.Leaky) and isinstance(entry, nn.Module) and not isinstance(entry, torch.Tensor)
    assert layer in snntorch.SpikingNeuron.instances and entry == layer and hash(entry) == hash(layer)
    assert entry.beta is layer.beta and all(map(identical, entry(X[0]), snn.Leaky(0.9)(X[0])))
    entry.mem = torch.ones(2)
    assert identical(layer.mem, torch.ones(2)) and repr(layer) in repr(entry)
    gc.collect()
    held = gc.get_objects()
    del layer, held
    assert not isinstance(entry, (snn.Leaky, nn.Module)) and not torch.is_tensor(entry) and not hasattr(entry, "data")
    assert entry == entry and entry != snn.Leaky(0.9) and "None" in repr(entry)


def test_the_list_of_instances_can_be_started_anew():
    saved = snntorch.SpikingNeuron.instances
    try:
        snn.SpikingNeuron.init()
        layer = snn.Leaky(0.9, init_hidden=True)
        layer(X[0])
        utils.reset(nn.Sequential(layer))
        assert snntorch.SpikingNeuron.instances == [layer] and (layer.mem == 0).all()
        layer(X[0])
        snn.Leaky.reset_hidden()
        assert (layer.mem == 0).all()
    finally:
        snntorch.SpikingNeuron.instances = saved


def test_snntorchs_reset_reaches_the_spikes_of_a_recurrent_layer():
    layer = snn.RSynaptic(0.9, 0.8, all_to_all=False, init_hidden=True, threshold=0.1)
    layer(X[0].clone().requires_grad_())
    assert layer.spk.any()
    utils.reset(nn.Sequential(layer))
    assert not any(getattr(layer, name).any() or getattr(layer, name).requires_grad for name in layer.state_names)


def test_snntorchs_monitors_record_states():
    from snntorch.functional import probe

    net = hidden_net(snn)
    monitor = probe.AttributeMonitor("mem", False, net, snn.Leaky)
    outputs = probe.OutputMonitor(net, snn.Leaky)
    net(X[0])
    assert identical(monitor["1"][0], net[1].mem) and identical(outputs["1"][0], (net[1].mem > 1).float())
    with pytest.raises(AttributeError, match="nonsense"):
        _ = net[1].nonsense


def test_compiling_what_is_not_fused_says_so():
    torch._dynamo.reset()
    functional._said.clear()
    layer = snn.Leaky(0.9, state_quant=lambda mem: mem.round())
    with pytest.warns(UserWarning, match="state_quant is not fused"):
        torch.compile(layer, fullgraph=True, backend="eager")(X[0], torch.zeros(4, 10))
