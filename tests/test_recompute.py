"""Unroll(recompute=True): the numbers of the plain mode, from one bit a spike; and the operators that pack them."""

import copy

import pytest
import torch
from torch import nn

import snnfast as snn
from snnfast import ops, recompute

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
T, B = 11, 3


def spikes(*shape, dtype=torch.float32, device="cpu", p=0.3):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < p).to(device, dtype)


# The bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1,), (7,), (4, 8), (5, 3, 37), (3, 5, 137)])
def test_bits_hold_every_spike(shape, dtype, device):
    spk = spikes(*shape, dtype=dtype, device=device)
    bits = ops.pack_spikes(spk)
    assert bits.dtype == torch.uint8 and bits.shape == ((spk.numel() + 7) // 8,)
    flags = bits.view(-1, 1).bitwise_right_shift(torch.arange(8, device=device)).bitwise_and(1).flatten()
    assert flags[: spk.numel()].equal(spk.flatten().to(flags.dtype)) and not flags[spk.numel() :].any()
    unpacked = ops.unpack_spikes(bits, torch.ones((), dtype=dtype, device=device), shape)
    assert unpacked.dtype == dtype and unpacked.equal(spk)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_graded_spikes(dtype, device):
    height = (torch.rand(7, 5, device=device) - 0.5).to(dtype)
    spk = spikes(9, 4, 7, 5, dtype=dtype, device=device) * height
    for given in (spk, spk.transpose(0, 1).contiguous().transpose(0, 1)):
        assert ops.unpack_spikes(ops.pack_spikes(given), height, spk.shape).equal(spk)


def test_what_is_not_zero_is_a_spike(device):
    spk = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -1.0, 1e-45, 2.0], device=device)
    assert ops.pack_spikes(spk).tolist() == [0b1111100]
    assert ops.pack_spikes(torch.full((9,), 5e-324, dtype=torch.float64, device=device)).tolist() == [255, 1]


def test_threads_share_the_packing():
    spk, before, height = spikes(100_003), torch.get_num_threads(), torch.ones(())
    try:
        torch.set_num_threads(3)
        assert ops.unpack_spikes(ops.pack_spikes(spk), height, spk.shape).equal(spk)
    finally:
        torch.set_num_threads(before)


def test_bad_bits_are_refused(device):
    bits, height = torch.zeros(2, dtype=torch.uint8, device=device), torch.ones(3, device=device)
    mistakes = {
        "bits must have 3 elements, got 2": (bits, height, (6, 3)),
        "bits must have dtype Byte, got Float": (bits.float(), height, (5, 3)),
        "height must have a number of elements that divides the 16 neurons, got 3": (bits, height, (8, 2)),
        "shape must have sizes of 0 or more, got -5": (bits, height, (-5, -3)),
        "dtype must be one of Float, Double, Half, BFloat16 .* got Int": (bits, height.int(), (5, 3)),
    }
    for message, arguments in mistakes.items():
        with pytest.raises(RuntimeError, match=message):
            ops.unpack_spikes(*arguments)


def test_bits_opcheck(device):
    pack, unpack = torch.ops.snnfast.pack_spikes.default, torch.ops.snnfast.unpack_spikes.default
    for dtype in DTYPES:
        spk, height = spikes(5, 3, 4, dtype=dtype, device=device), torch.ones(4, dtype=dtype, device=device)
        torch.library.opcheck(pack, (spk,), test_utils=CHECKS)
        torch.library.opcheck(unpack, (ops.pack_spikes(spk), height, (5, 3, 4)), test_utils=CHECKS)


# The same numbers


def three_layers(**options):
    return [
        *(nn.Linear(20, 37), snn.Leaky(0.9, learn_beta=True, **options)),
        *(nn.Linear(37, 21), snn.Leaky(0.8, learn_beta=True, learn_threshold=True, **options)),
        *(nn.Linear(21, 5), snn.Leaky(0.7, learn_beta=True)),
    ]


def with_dropout():
    first, lif, *rest = three_layers()
    return [first, lif, nn.Dropout(0.4), *rest]


def with_membranes():
    *hidden, _ = three_layers(output=True)
    return [nn.Sequential(*hidden), snn.Leaky(0.7, output=True)]


def images():
    height = torch.linspace(0.5, 1.5, 6).view(6, 1, 1)
    conv = [nn.Conv2d(6, 4, 3), snn.Leaky(0.8), nn.MaxPool2d(2), nn.Flatten()]
    return [nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 6, 1), snn.Leaky(0.9, graded_spikes_factor=height), *conv] + [
        nn.Linear(4, 3)
    ]


def batch_norm():
    first, *rest = three_layers()
    return [first, nn.BatchNorm1d(37), *rest]


NETWORKS = {
    "three layers": three_layers,
    "dropout": with_dropout,
    "membranes": with_membranes,
    "images": images,
    "batch norm": batch_norm,
    "same-step reset": lambda: three_layers(reset_delay=False),
    "learnt heights": lambda: three_layers(graded_spikes_factor=0.7, learn_graded_spikes_factor=True),
    "negative heights": lambda: three_layers(graded_spikes_factor=torch.tensor(-1.3, dtype=torch.float64)),
    "no gradient through hidden spikes": lambda: three_layers(surrogate_disable=True),
    "a kept membrane": lambda: three_layers(init_hidden=True),
    "no step function": lambda: three_layers(spike_grad=torch.sigmoid),
    "inhibition": lambda: three_layers(inhibition=True),
    "recurrent": lambda: [nn.Linear(20, 13), snn.RLeaky(0.9, linear_features=13), nn.Linear(13, 5)],
    "one to one": lambda: [nn.Linear(20, 13), snn.RSynaptic(0.8, 0.9, V=0.5, all_to_all=False), nn.Linear(13, 5)],
    "alpha": lambda: [nn.Linear(20, 13), snn.Alpha(0.9, 0.8, learn_alpha=True), nn.Linear(13, 5), snn.Lapicque(0.9)],
}
QUIET = pytest.mark.filterwarnings("ignore:.*is not fused", "ignore:Inhibition")


def outcomes(net, x, passes):
    """Outputs of some passes, the gradients of x and the parameters, and the buffers and membranes afterwards."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    found = []
    for _ in range(passes):
        outputs = net(x)
        found += outputs if isinstance(outputs, tuple) else (outputs,)
        sum((output * torch.linspace(0.1, 1, output.shape[-1]).to(output)).sum() for output in outputs).backward()
        found += [layer.detach_state() or layer.mem.clone() for layer in net if getattr(layer, "init_hidden", False)]
    return [*found, x.grad, *(param.grad for param in net.parameters()), *net.buffers()]


def assert_same(net, x, passes=1):
    """Compares a network with itself, recomputed."""
    again = copy.deepcopy(net)
    again.recompute = True
    for expected, found in zip(outcomes(net, x, passes), outcomes(again, x, passes), strict=True):
        assert found is None if expected is None else found.equal(expected)
    assert any(param.grad is not None and param.grad.any() for param in again.parameters())


def currents(*shape, dtype=torch.float32, device="cpu"):
    return 6 * torch.rand(*shape, 20, dtype=dtype, device=device)


@QUIET
@pytest.mark.parametrize("layers", NETWORKS.values(), ids=NETWORKS)
def test_recomputed_numbers_are_the_same(layers, device):
    assert_same(snn.Unroll(*layers()).to(device), currents(T, B, device=device), passes=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_recomputed_in_other_dtypes(dtype, device):
    assert_same(snn.Unroll(*with_dropout()).to(device, dtype), currents(T, B, dtype=dtype, device=device))


class Autocast(snn.Unroll):
    """A network in bfloat16, whose backward begins outside."""

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            spk = super().forward(x)
        assert spk.dtype == torch.bfloat16
        return spk


def test_recomputed_under_autocast(device):
    assert_same(Autocast(*with_dropout()).to(device), currents(T, B, device=device), passes=2)


def test_recomputed_twice_and_differentiated_twice(device):
    x = currents(T, B, device=device).requires_grad_()
    net = snn.Unroll(*three_layers()).to(device)
    found = []
    for again in (False, True):
        net.recompute = again
        spk = net(x)
        first = torch.autograd.grad(spk.sum(), x, create_graph=True, retain_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), (x, net[0].weight), retain_graph=True)
        found.append((first, *second, *torch.autograd.grad(spk.sum(), net.parameters(), allow_unused=True)))
    for expected, recomputed in zip(*found, strict=True):
        assert expected.any() and recomputed.equal(expected)


# The memory


def held_per_neuron_step(net, x, hidden, module):
    """Bytes of memory that a forward leaves behind beside input and output, for each spike between its layers."""
    net(x)
    return module("measure").held_bytes(lambda: net(x), x.device) / (x.shape[0] * x.shape[1] * hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bit_is_kept_of_a_spike(dtype, device, module):
    sizes = (20, 1003, 517, 200)
    layers = [nn.Linear(sizes[0], sizes[1]), snn.Leaky(0.9), nn.Linear(*sizes[1:3]), snn.Leaky(0.9)]
    x = currents(50, 32, dtype=dtype, device=device)
    net = snn.Unroll(*layers, nn.Linear(*sizes[2:]), snn.Leaky(0.9)).to(device, dtype)
    hidden, neurons = sum(sizes[1:3]), sum(sizes[1:])
    plain = held_per_neuron_step(net, x, hidden, module)
    net.recompute = True
    packed = held_per_neuron_step(net, x, hidden, module)
    constant = 0.02
    assert packed <= 1 / 8 + constant
    # A float32 membrane of every neuron, and the spikes that the next layer multiplies.
    assert packed < plain <= 4 * neurons / hidden + dtype.itemsize + constant


def test_without_a_backward_nothing_is_packed(device, monkeypatch):
    net = snn.Unroll(*three_layers(), recompute=True).to(device)
    x = currents(T, B, device=device)
    expected = net(x)
    monkeypatch.setattr(ops, "pack_spikes", None)
    with torch.no_grad():
        assert net(x).equal(expected)
    with snn.use_reference():
        assert net(x).equal(expected)


# What does not go again


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("name", ["RLeaky", "RSynaptic"])
def test_recomputed_through_parametrised_recurrent_weights(name, norm, training):
    """Spectral norm turns its vectors at every step of training, which is run once therefore."""
    gradients = []
    for option in (False, True):
        torch.manual_seed(0)
        arguments = (0.9,) if name == "RLeaky" else (0.8, 0.9)
        layer = getattr(snn, name)(*arguments, linear_features=5, threshold=0.3)
        getattr(nn.utils.parametrizations, norm)(layer.recurrent)
        net = snn.Unroll(nn.Linear(4, 5), layer, nn.Linear(5, 3), snn.Leaky(0.9), recompute=option).train(training)
        net(torch.randn(T, B, 4)).pow(2).sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(a.equal(b) for a, b in zip(*gradients, strict=True))


def test_weights_of_one_to_one_recurrence_are_recomputed(device):
    layer = snn.RLeaky(0.9, V=torch.rand(5), all_to_all=False, learn_recurrent=False).to(device)
    group = [nn.Linear(4, 5).to(device), layer]
    assert recompute._may_recompute(group, torch.zeros(T, B, 4, device=device))


def test_batch_norm_sees_every_step_once(device):
    net = snn.Unroll(nn.Linear(20, 13), nn.BatchNorm1d(13), snn.Leaky(0.9), recompute=True).to(device)
    net(currents(T, B, device=device)).sum().backward()
    assert net[1].num_batches_tracked == T


def test_what_may_draw_runs_once_in_a_graph_being_captured(device, monkeypatch):
    monkeypatch.setattr(recompute, "_is_capturing", lambda x: True)
    net = snn.Unroll(*with_dropout(), recompute=True).to(device)
    runs = []
    for name, layer in net.named_children():
        if not isinstance(layer, snn.SpikingNeuron):
            layer.register_forward_hook(lambda *_, name=name: runs.append(name))
    net(currents(T, B, device=device)).sum().backward()
    assert runs == ["0", "2", "3", "5", "5", "0"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("x", "modified by an inplace operation"),
        ("weight", "must stay as they were in forward .* one of Linear, Leaky"),
        ("threshold", "must stay as they were in forward .* one of Linear, Leaky"),
    ],
)
def test_what_was_written_to_is_not_run_again(name, message, device):
    net = snn.Unroll(*three_layers(), recompute=True).to(device)
    x = currents(T, B, device=device)
    spk = net(x)
    with torch.no_grad():
        {"x": x, "weight": net[2].weight, "threshold": net[1].threshold}[name].mul_(2)
    with pytest.raises(RuntimeError, match=message):
        spk.sum().backward()


def test_a_compiled_network_keeps_what_its_compiler_chose(device):
    torch._dynamo.reset()
    net = snn.Unroll(*three_layers(), recompute=True).to(device)
    x = currents(T, B, device=device)
    expected = torch.autograd.grad(net(x).sum(), net.parameters(), allow_unused=True)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(x).sum(), net.parameters(), allow_unused=True)
    assert all(a.equal(b) for a, b in zip(expected, found, strict=True))
