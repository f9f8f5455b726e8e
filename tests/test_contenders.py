"""Who is timed: wrong results are refused, and libraries and published cells are what their authors made."""

import contextlib
import sys
from types import SimpleNamespace

import pytest
import snntorch
import torch
from torch import nn

import snnfast

pytestmark = pytest.mark.long

T, B, N = 8, 4, 64


@pytest.mark.parametrize("encoder", ["rate", "latency", "delta"])
def test_a_wrong_encoder_is_refused(module, encoder):
    contenders, benches, run = module("contenders"), module("benches"), module("run")

    class Injected(contenders.SnnFast):
        def encoders(self):
            def late(*arguments, **options):
                return getattr(snnfast.encoding, encoder)(*arguments, **options).roll(1, 0)

            def restless(*arguments, **options):
                return 1 - snnfast.encoding.rate(*arguments, **options)

            return SimpleNamespace(**{encoder: restless if encoder == "rate" else late})

    bench = benches.EncodingBench(encoder, benches.Size(T, B, N), torch.float32, torch.device("cpu"))
    assert "spikes: off" in run.enter(Injected, bench, compile_max_t=0, common={}).row["error"]


@pytest.mark.parametrize("name", ["SnnFast", "Reference", "SnnTorch"])
def test_steps_are_the_layers(module, name):
    contenders = module("contenders")
    contender, x_seq = getattr(contenders, name)(), 0.3 + torch.randn(T, B, N)
    spikes = contenders.CellLoop(contender.step())(x_seq)
    assert spikes.any() and torch.equal(spikes, contender.lif()(x_seq))


def _onm_entry(module, wrong, matmul):
    class Injected(module("contenders").SnnFast):
        def network(self, *linears):
            return wrong(super().network(*linears))

    bench = module("benches").OnmBench(module("benches").Size(40, B, N), matmul, torch.device("cpu"))
    return module("run").enter(Injected, bench, compile_max_t=0, common={})


@pytest.mark.parametrize("matmul", ["float32", "bf16"])
def test_a_wrong_network_is_refused(module, matmul):
    assert _onm_entry(module, lambda network: network, matmul).row["error"] is None
    assert "spikes: off" in _onm_entry(module, _EveryStepAlone, matmul).row["error"]
    assert "gradient of weight: off" in _onm_entry(module, _DoubledGradient, matmul).row["error"]


@pytest.mark.parametrize("name", ["snnfast", "reference"])
def test_the_limit_halves_with_the_width_and_snnfast_stays_exact(module, name):
    benches, contenders = module("benches"), module("contenders")
    wide, narrow = (
        benches.LifBench(benches.Size(40, B, N), dtype, torch.device("cpu"))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (wide.least_bytes(), narrow.least_bytes()) == (24 * 40 * B * N, 12 * 40 * B * N)
    row = module("run").enter(contenders.CONTENDERS[name], narrow, compile_max_t=0, common={}).row
    assert (row["error"], row["check"], row["same_neuron"]) == (None, "exact", True)


def test_snntorch_with_membranes_of_16_bits_is_another_neuron(module):
    benches, contenders = module("benches"), module("contenders")
    bench = benches.LifBench(benches.Size(40, B, N), torch.bfloat16, torch.device("cpu"))
    entry = module("run").enter(contenders.SnnTorch, bench, compile_max_t=0, common={})
    assert (entry.row["error"], entry.row["check"], entry.row["same_neuron"]) == (None, None, False)
    assert entry.workload is not None


class _Selection:
    """SpikingJelly's choice of kernels, on a machine without GPU; `runs` is what it has in truth."""

    def __init__(self, runs):
        self._requested, self._selections, self._runs = "auto", {}, runs

    def _select(self, index):
        if self._requested not in self._runs:
            raise RuntimeError(f"No available sj_lif CUDA implementation. {self._requested}: not built")
        return self._runs[self._requested]

    def implementation(self, neuron, device):
        return {"implementation": self._selections[device.index]}


@pytest.fixture
def kernels(module, monkeypatch):
    """Makes the contenders of SpikingJelly's kernels, Triton's first, on a choice of kernels that is given."""

    def make(runs):
        selection = _Selection(runs)
        modules = {
            "spikingjelly._ops.lif": SimpleNamespace(_selection=selection),
            "spikingjelly.activation_based.functional": SimpleNamespace(
                neuron_implementation=selection.implementation, lif_multi_step=None
            ),
            "spikingjelly.activation_based.neuron": SimpleNamespace(LIFNode=lambda **options: nn.Identity()),
            "spikingjelly.activation_based.surrogate": SimpleNamespace(ATan=lambda alpha: None),
            "spikingjelly": SimpleNamespace(),
        }
        contenders = module("contenders")
        monkeypatch.setattr(contenders, "import_module", modules.__getitem__)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        return selection, contenders.SpikingJellyTriton(), contenders.SpikingJellyNative()

    return make


def test_each_pass_selects_spikingjellys_kernel_anew(kernels):
    selection, triton, native = kernels({"triton": "triton", "cuda": "cuda"})
    triton_layer, native_layer = triton.lif(), native.lif()
    triton.reset(triton_layer)
    assert (selection._requested, selection._selections) == ("triton", {0: "triton"})
    native.reset(native_layer)
    assert (selection._requested, selection._selections) == ("cuda", {0: "cuda"})


@pytest.mark.parametrize(("name", "storage"), [("SpikingJellyTriton", None), ("SpikingJellyPrecision", torch.bfloat16)])
def test_spikingjellys_kernels_get_a_float32_membrane(module, name, storage):
    given = {}

    def lif_multi_step(x_seq, v, *options, neuron_storage=None):
        given.update(x=x_seq.dtype, v=v.dtype, storage=neuron_storage, options=options)
        return (x_seq, None, None)

    node = SimpleNamespace(
        tau=20.0,
        decay_input=False,
        v_threshold=1.0,
        v_reset=None,
        surrogate_function="atan",
        detach_reset=True,
        store_v_seq=False,
    )
    contenders = module("contenders")
    layer = contenders.WideLif(lif_multi_step, node, getattr(contenders, name).narrow_storage)
    layer(torch.zeros(T, B, N, dtype=torch.bfloat16))
    assert (given["x"], given["v"], given["storage"]) == (torch.bfloat16, torch.float32, storage)
    assert given["options"] == (20.0, False, 1.0, None, "atan", True, False)


def test_spikingjelly_may_not_run_another_kernel_or_none(kernels):
    _, triton, native = kernels({"triton": "torch"})
    with pytest.raises(RuntimeError, match="runs 'torch' in place of 'triton'"):
        triton.lif()
    with pytest.raises(RuntimeError, match="cuda: not built"):
        native.lif()


class _DoubledGradient(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        spikes = self.layer(x_seq)
        return spikes + (spikes - spikes.detach())


class _EveryStepAlone(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        return self.layer(x_seq.flatten(0, 1)[None]).view_as(x_seq)


class _OneSpikeMore(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        spikes = self.layer(x_seq)
        silent = torch.zeros_like(spikes)
        silent.view(-1)[(spikes.detach().view(-1) == 0).nonzero()[0]] = 1
        return spikes + silent


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("wrong", "message"), [(_EveryStepAlone, "spikes"), (_DoubledGradient, "gradient")])
def test_a_wrong_layer_is_refused(module, exact, wrong, message):
    row, workload = _enter(module, wrong, exact)
    assert row["error"].startswith("WrongResult") and message in row["error"]
    assert workload is None and row["forward_backward_ms"] is None


def test_an_exact_contender_may_not_be_off_by_one_spike(module):
    assert "spikes" in _enter(module, _OneSpikeMore, exact=True)[0]["error"]
    assert _enter(module, _OneSpikeMore, exact=False)[0]["error"] is None


def test_a_right_layer_is_timed(module):
    row, workload = _enter(module, lambda layer: layer, exact=True)
    assert row["error"] is None and workload is not None


def _enter(module, wrong, exact):
    contenders, benches, run = module("contenders"), module("benches"), module("run")
    demanded = exact

    class Injected(contenders.SnnFast):
        name = "injected"
        exact = demanded

        def lif(self):
            return wrong(super().lif())

    bench = benches.LifBench(benches.Size(40, B, N), torch.float32, torch.device("cpu"))
    entry = run.enter(Injected, bench, compile_max_t=100, common={})
    return entry.row, entry.workload


RECURRENT = {"snnfast": "SnnFast", "snnfast-rleaky": "SnnFastRLeaky"}


def _recurrent(module, name, wrong, steps=40):
    """The row of a contender that does something wrong to the recurrent layer."""
    contenders, benches, run = module("contenders"), module("benches"), module("run")

    class Injected(getattr(contenders, RECURRENT[name])):
        def rlif(self, features):
            return wrong(super().rlif(features))

    bench = benches.RlifBench(benches.Size(steps, B, N), torch.float32, torch.device("cpu"))
    return run.enter(Injected, bench, compile_max_t=0, common={}).row


class _Deaf(nn.Module):
    """Forgets the state after every 20 steps."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_seq):
        return torch.cat([self.layer(part) for part in x_seq.split(20)])


def _enlarged_gradient(index):
    def wrong(layer):
        list(layer.parameters())[index].register_hook(lambda gradient: 1.05 * gradient)
        return layer

    return wrong


@pytest.mark.parametrize("name", RECURRENT)
def test_a_right_recurrent_layer_passes(module, name):
    row = _recurrent(module, name, lambda layer: layer)
    assert (row["error"], row["check"]) == (None, "close")


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        *((name, _Deaf, "spikes: off") for name in RECURRENT),
        *((name, _DoubledGradient, "gradient of") for name in RECURRENT),
        ("snnfast", _enlarged_gradient(0), "gradient of input_weights: off by 5.00%"),
        ("snnfast", _enlarged_gradient(1), "gradient of recurrent_weights: off by 5.00%"),
        ("snnfast-rleaky", _enlarged_gradient(0), "gradient of linear.weight: off by 5.00%"),
        ("snnfast-rleaky", _enlarged_gradient(2), "gradient of neuron.recurrent.weight: off by 5.00%"),
    ],
)
def test_a_wrong_recurrent_layer_is_refused(module, name, wrong, message):
    assert message in _recurrent(module, name, wrong)["error"]


class _Flipped(nn.Module):
    """Steps a recurrent cell, with one early spike flipped that the later steps hear."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x_seq):
        state, spikes = None, []
        for step, x in enumerate(x_seq.unbind(0)):
            spk, state = self.cell(x, state)
            if step == 20:
                flip = torch.zeros_like(spk)
                flip[0, 0] = 1 - 2 * spk[0, 0].detach()
                spk = spk + flip
                state = (spk, *state[1:])
            spikes.append(spk)
        return torch.stack(spikes)


def test_a_flipped_spike_is_one_difference_though_all_later_steps_hear_it(module):
    contenders, benches, cells = module("contenders"), module("benches"), []

    def wrong(layer):
        cells.append(contenders.SnnFast().rlif_step(N))
        return _Flipped(cells[0])

    assert _recurrent(module, "snnfast", wrong, steps=150)["error"] is None
    bench = benches.RlifBench(benches.Size(150, B, N), torch.float32, torch.device("cpu"))
    with torch.no_grad():
        free, flipped = contenders.CellLoop(cells[0])(bench.x), _Flipped(cells[0])(bench.x)
    assert (free != flipped).float().mean() > 10 * benches.SPIKES_OFF


@pytest.mark.parametrize("features", [100, 256, 512, 1024])
def test_recurrent_neurons_fire_neither_rarely_nor_always(module, features):
    contenders, benches = module("contenders"), module("benches")
    bench = benches.RlifBench(benches.Size(32, 4, features), torch.float32, torch.device("cpu"))
    for contender in (contenders.SnnFast(), contenders.SnnFastRLeaky()):
        with torch.no_grad():
            rate = bench.workload(contender).forward().mean()
        assert 0.01 < rate < 0.4


def test_norse_is_used_where_it_is_installed(module, monkeypatch):
    contenders, published = module("contenders"), module("published")
    monkeypatch.setitem(sys.modules, "norse", None)
    monkeypatch.delitem(sys.modules, "norse.torch", raising=False)
    absent = contenders.Norse()
    assert (absent.library, absent.version) == (published, "1.1.0 in plain PyTorch")
    library = SimpleNamespace(
        LIFRecurrentCell=lambda *sizes, p: published.LIFRecurrentCell(*sizes, p), LIFParameters=published.LIFParameters
    )
    monkeypatch.setitem(sys.modules, "norse", SimpleNamespace(torch=library))
    monkeypatch.setitem(sys.modules, "norse.torch", library)
    present = contenders.Norse()
    assert present.library is library and present.version != absent.version
    assert present.rlif(N)(torch.zeros(2, B, N)).shape == (2, B, N)


def test_no_contender_leaves_precision_flags_that_break_others(module):
    for contender in module("contenders").RLIF_CONTENDERS:
        with contextlib.suppress(ImportError):
            contender()
    torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),))
    assert not torch.backends.cudnn.allow_tf32


def _publish(module, loop, wrong):
    """The row of a contender that does something wrong to the published network."""
    contenders, benches, run, published = module("contenders"), module("benches"), module("run"), module("published")

    class Injected(contenders.SnnFastCompiled):
        name = "injected"
        compiles = False

        def prepared(self, network):
            return wrong(network)

    small = published.LOOPS[loop].small
    bench = benches.LoopsBench(loop, small, torch.float32, torch.device("cpu"))
    return run.enter(Injected, bench, compile_max_t=0, common={}).row


def _slipped(index):
    """Wraps a network so that one of its outputs is that of the next step."""

    def wrong(network):
        def forward(x):
            output = network(x)
            outputs = list(output) if isinstance(output, tuple) else [output]
            outputs[index] = outputs[index].roll(-1, 0)
            return tuple(outputs) if isinstance(output, tuple) else outputs[0]

        return forward

    return wrong


def _enlarged_bias_gradient(network):
    network.fc1.bias.register_hook(lambda gradient: 1.05 * gradient)
    return network


@pytest.mark.parametrize(
    ("loop", "wrong", "message"),
    [
        ("rate-fc", _slipped(0), "spikes: off"),
        ("current-fc", _slipped(1), "membranes: off"),
        ("norse-recurrent", _slipped(0), "voltages: off"),
        ("norse-conv", _enlarged_bias_gradient, "gradient of fc1.bias: off by 5.00%"),
    ],
)
def test_a_wrong_loop_is_refused(module, loop, wrong, message):
    assert message in _publish(module, loop, wrong)["error"]


def test_right_loops_pass(module):
    errors = {loop: _publish(module, loop, lambda network: network)["error"] for loop in module("published").LOOPS}
    assert errors == dict.fromkeys(errors) and len(errors) == 6


def test_compiled_loops_do_not_share_what_dynamo_decided(module):
    contenders, loop = module("contenders"), module("published").LOOPS["rate-fc"]
    x, _ = loop.inputs(torch.Generator().manual_seed(0), loop.small)

    def graphs(snn):
        found = []
        network = contenders._on_own_code(loop.build(loop.small, snn))
        torch.compile(network, backend=lambda graph, inputs: found.append(graph) or graph)(x)
        return len(found)

    # snntorch.Leaky breaks the graph in the loop, and Dynamo gives that code up.
    assert graphs(snntorch) > 1
    assert graphs(snnfast) == 1


def test_norses_cells_take_norses_euler_steps(module):
    published = module("published")
    current, threshold = torch.tensor([[1.0]]), published.LIFParameters(v_th=torch.as_tensor(0.25))

    voltage, state = published.LICell()(current)
    assert (voltage.item(), state[1].item()) == pytest.approx((0.1, 0.8))
    voltage, state = published.LICell()(current, state)
    assert (voltage.item(), state[1].item()) == pytest.approx((0.27, 1.44))

    cell = published.LIFCell(threshold)
    spike, state = cell(current)
    assert (spike.item(), state[0].item()) == pytest.approx((0, 0.1))
    spike, state = cell(current, state)
    assert (spike.item(), state[0].item(), state[1].item()) == pytest.approx((1, 0, 1.44))


def test_norses_recurrence_feeds_spikes_back_but_to_no_neuron_itself(module):
    published = module("published")
    cell = published.LIFRecurrentCell(2, 2, published.LIFParameters(v_th=torch.as_tensor(0.05)))
    with torch.no_grad():
        cell.input_weights.copy_(torch.eye(2))
        cell.recurrent_weights.copy_(torch.tensor([[0.0, 3.0], [5.0, 0.0]]))
    first = torch.tensor([[1.0, 0.0]])
    spikes, state = cell(first)
    assert spikes.tolist() == [[1, 0]]
    spikes, (_, _, current) = cell(torch.zeros(1, 2), state)
    assert current.tolist() == [pytest.approx([0.64, 4.0])]
    (spikes * torch.tensor([3.0, 7.0])).sum().backward()
    assert cell.recurrent_weights.grad.diagonal().tolist() == [0, 0]
    assert cell.recurrent_weights.grad[1, 0] > 0


def test_a_check_of_silence_is_void(module):
    benches = module("benches")
    silence, anything = torch.zeros(T, B, N), torch.ones(N)
    with pytest.raises(benches.WrongResult, match="no neuron fires"):
        benches.check({"spikes": silence}, {"spikes": silence}, exact=True)
    with pytest.raises(benches.WrongResult, match="the gradient is zero"):
        results = {"spikes": anything, "gradient": silence}
        benches.check(results, results, exact=False)


def test_a_check_takes_few_flipped_spikes_and_no_nan(module):
    benches = module("benches")
    spikes, gradient = torch.ones(10_000), torch.ones(3)

    def checked(flipped, entry):
        results = {"spikes": spikes.clone(), "gradient": gradient.clone()}
        results["spikes"][:flipped] = 0
        results["gradient"][0] = entry
        benches.check(results, {"spikes": spikes, "gradient": gradient}, exact=False)

    checked(10, 1.02)
    for flipped, entry, message in ((11, 1.0, "spikes: off by 0.11%"), (0, 1.04, "gradient"), (0, torch.nan, "nan")):
        with pytest.raises(benches.WrongResult, match=message):
            checked(flipped, entry)
