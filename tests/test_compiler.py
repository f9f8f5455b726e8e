"""The torch.compile backend: the loops that people write come out fused over time, and nothing comes out wrong.

Most tests compare a loop with itself: run by Python, and compiled.
"""

import copy
import re

import pytest
import snntorch
import torch
from torch import nn

import snnfast as snn
from compiled import (
    PRODUCTS,
    B,
    Graphs,
    Net,
    Row,
    T,
    assert_same,
    compare,
    everything_of,
    firing_rates,
    frames,
    normal,
    one_layer,
    said_of,
    two_layers,
)
from fused_loops import (
    each_to_itself,
    everything_recorded,
    hidden_sequential,
    recurrent_leaky,
    spikes_back_through_weights,
    spikes_back_to_themselves,
)
from snnfast import images
from unfused_loops import APART, FUSED

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize(("name", "training"), [(name, mode) for name, row in FUSED.items() for mode in row.training])
def test_loops_that_people_write_are_fused(name, training, products):
    row = FUSED[name]
    net = row.build(training)
    rates = firing_rates(net, row.inputs())
    assert all(0.03 < rate < 0.97 for rate in rates.values()), rates
    graphs = compare(name, training, products, net)
    loops = row.recurrent if products == "per-step" else ()
    assert graphs.calls() == {name: T if name in loops else row.pieces for name in rates}
    assert graphs.sequences() == {name: row.pieces for name in rates if name not in loops}


@pytest.mark.parametrize(
    ("name", "products_in_all"),
    [("linear", 2), ("convolutions", 3), ("residual", 3), ("two_readouts", 3), ("batch_norm", 2)],
)
def test_products_of_all_steps_are_one(name, products_in_all):
    row = FUSED[name]
    for products, times, linear in (("batched", 1, snn.products.linear), ("per-step", T, torch._C._nn.linear)):
        torch._dynamo.reset()
        graphs = Graphs()
        snn.accelerate(row.build(), products=products, inner=graphs, compile=True)(*row.inputs())
        targets = [node.target for node in graphs[0].graph.nodes]
        convolution = torch.conv2d if products == "per-step" else images.conv2d
        assert sum(target in (linear, convolution) for target in targets) == times * products_in_all


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("name", [name for name in APART if name != "unconverted"])
def test_loops_that_cannot_be_fused_stay_right(name, products, capsys):
    row = APART[name]
    graphs = compare(name, True, products, row.build())
    assert not graphs.sequences().keys() & row.why.keys()


@pytest.mark.parametrize("name", APART)
def test_what_cannot_be_fused_is_named(name, capsys):
    row = APART[name]
    said = said_of(snn.explain(row.build(), *row.inputs(), compile=True))
    for layer, reason in row.why.items():
        assert re.search(reason, said[layer]), said
    # A layer without a name is one that torch.compile took for itself after a graph break.
    assert all("fused over time" in text for layer, text in said.items() if layer and layer not in row.why)


@pytest.mark.parametrize("name", ["printed_each_step", "stopped_when_silent"])
def test_graph_breaks_are_named(name, capsys):
    row = APART[name]
    assert "torch.compile broke the forward into" in str(snn.explain(row.build(), *row.inputs(), compile=True))


def test_explain_changes_nothing():
    row = FUSED["dropout"]
    net, inputs = row.build(), row.inputs()
    net.lif1(normal(B, 8))
    before, mem, generator = copy.deepcopy(net.state_dict()), net.lif1.mem.clone(), torch.get_rng_state()
    explanation = snn.explain(net, *inputs, compile=True)
    layers = [f"{name}: fused over time: {T} steps in 1 sequence call" for name in ("lif1", "lif2")]
    assert [str(layer).split(" (")[0] for layer in explanation.layers] == layers
    assert str(explanation).startswith("\n".join(map(str, explanation.layers)))
    assert torch.equal(generator, torch.get_rng_state()) and torch.equal(net.lif1.mem, mem)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net._compiled_call_impl is None


def test_explain_takes_a_function_and_an_accelerated_network():
    row = FUSED["linear"]
    net, inputs = snn.accelerate(row.build(), compile=True), row.inputs()
    assert all(layer.fused for layer in snn.explain(net, *inputs, compile=True).layers)
    assert all(layer.fused for layer in snn.explain(lambda x: net.loop(net, x), *inputs, compile=True).layers)
    assert all(layer.fused for layer in snn.explain(net, *inputs, window=2, products="per-step").layers)


def test_a_snntorch_layer_that_nobody_converted_runs_as_it_is():
    row = APART["unconverted"]
    loop, net, inputs = row.build(), row.build(), row.inputs()
    compiled = torch.compile(net, backend="snnfast")
    assert_same(everything_of(net, compiled, inputs), everything_of(loop, loop, inputs), exact=True)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_loop_outside_the_network_stays_right_and_is_named(hidden):
    layers = hidden_sequential() if hidden else one_layer()()

    def one_step(net, x, *state):
        return net.seq(x) if hidden else net.lif(net.fc(x), *state)

    net, x = Net(one_step, layers).double(), normal(T, B, 6)

    def outside(x):
        snn.reset(net)
        spk_rec, state = [], () if hidden else (torch.zeros(B, 8, dtype=x.dtype),)
        for step in x:
            spk, mem = net(step, *state)
            state = () if hidden else (mem,)
            spk_rec.append(spk)
        return torch.stack(spk_rec), mem

    said = said_of(snn.explain(net, x[0], *(() if hidden else (normal(B, 8),)), compile=True))
    assert said and all("a loop over time must be inside what is compiled" in text for text in said.values())
    expected = everything_of(net, outside, (x,))
    snn.accelerate(net, compile=True)
    assert_same(everything_of(net, outside, (x,)), expected, exact=True)


@pytest.mark.parametrize("window", [1, 2, 3, T - 1, T, T + 5])
@pytest.mark.parametrize("name", ["spikes_back_through_weights", "norse_recurrent_cell", "spikes_back_to_themselves"])
def test_windows_of_recurrent_layers(name, window):
    """The last spikes of a window come back in the next."""
    graphs = compare(name, True, "batched", FUSED[name].build(), window=window)
    assert set(graphs.calls().values()) == {-(-T // window)}


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("window", [1, 2, 3, T - 1, T, T + 5])
def test_windows(window, products):
    row = FUSED["everything_recorded"]
    graphs = compare("everything_recorded", True, products, row.build(), window=window)
    assert graphs.calls() == dict.fromkeys(["lif1", "lif2"], -(-T // window))


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("products", PRODUCTS)
def test_every_reset(reset_mechanism, reset_delay, products, monkeypatch):
    layers = two_layers(reset_mechanism=reset_mechanism, reset_delay=reset_delay, learn_beta=True)
    monkeypatch.setitem(FUSED, "reset", Row(everything_recorded, layers, frames, (True,), 1, {}))
    graphs = compare("reset", True, products, FUSED["reset"].build())
    assert graphs.calls() == graphs.sequences() == {"lif1": 1, "lif2": 1}


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset_mechanism", ["subtract", "zero", "none"])
def test_every_reset_of_recurrent_layers(reset_mechanism, reset_delay, monkeypatch):
    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay}
    for name, layers in (("all", recurrent_leaky(**options)), ("each", each_to_itself(**options))):
        loop = spikes_back_through_weights if name == "all" else spikes_back_to_themselves
        monkeypatch.setitem(FUSED, name, Row(loop, layers, frames, (True,), 1, {}))
        graphs = compare(name, True, "batched", FUSED[name].build())
        assert set(graphs.calls().values()) == set(graphs.sequences().values()) == {1}


def test_products_per_step_keep_recurrent_products_and_say_so():
    row = FUSED["norse_recurrent_cell"]
    explanation = snn.explain(row.build(), *row.inputs(), products="per-step")
    assert str(explanation).startswith(f"cell: not fused: {T} steps, one call each (")
    assert 'its recurrent products would round otherwise in one call: products="per-step"' in str(explanation)
    fused = str(snn.explain(row.build(), *row.inputs(), compile=True))
    assert fused.startswith(f"cell: fused over time: {T} steps in 1 sequence call (")


def test_outputs_have_memory_of_their_own():
    """Pieces of one stack would change together when one is written in place, and keep the whole alive."""

    def steps_and_stacks(net, x):
        mem, spk_rec, mem_rec = net.lif.init_leaky(), [], []
        for step in x:
            spk, mem = net.lif(net.fc(step), mem)
            spk_rec.append(spk)
            mem_rec.append(mem)
        return *spk_rec, *mem_rec, torch.stack(spk_rec), torch.stack(spk_rec), torch.stack(mem_rec)

    net, inputs, graphs = Net(steps_and_stacks, one_layer()()).double(), frames(), Graphs()
    outputs = snn.accelerate(net, inner=graphs, compile=True)(*inputs)
    assert graphs.sequences() == {"lif": 1}
    assert len({output.untyped_storage().data_ptr() for output in outputs}) == len(outputs)
    assert all(output.untyped_storage().nbytes() == output.nbytes for output in outputs)


@pytest.mark.parametrize("products", PRODUCTS)
def test_the_state_is_carried_over_calls(products):
    """The membrane that the first call returns, and the hidden one that it leaves, are where the second starts."""
    for name in ("hidden_states_without_a_reset", "given_state"):
        torch._dynamo.reset()
        row, graphs = FUSED[name], Graphs()
        loop, net, inputs = row.build(), row.build(), row.inputs()

        def twice(one, name=name):
            def run(x, *state):
                first, state = one(x[: T // 2], *state) if state else (one(x[: T // 2])[0], None)
                return first, *one(x[T // 2 :], *([] if state is None else [state]))

            return run

        expected = everything_of(loop, twice(loop), inputs)
        snn.accelerate(net, products=products, inner=graphs, compile=True)
        assert_same(everything_of(net, twice(net), inputs), expected, exact=products == "per-step")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": -3}, ValueError, "window must be at least 1, got -3"),
        ({"window": "a"}, TypeError, "window must be an integer or None, got str"),
        ({"window": True}, TypeError, "window must be an integer or None, got bool"),
        ({"window": 2.0}, TypeError, "window must be an integer or None, got float"),
        ({"products": "x"}, ValueError, "products must be one of batched, per-step; got 'x'"),
        ({"inner": 3}, TypeError, "inner must name a torch.compile backend or be one, got int"),
    ],
)
def test_refuses_wrong_options(options, error, message):
    net = nn.Sequential(snntorch.Leaky(0.9, init_hidden=True))
    with pytest.raises(error, match=message):
        snn.accelerate(net, **options, compile=True)
    assert type(net[0]) is snntorch.Leaky and net._compiled_call_impl is None
    with pytest.raises(error, match=message):
        snn.explain(net, normal(B, 6), **options)
    with pytest.raises(Exception, match=message):
        torch.compile(snn.convert(net), backend="snnfast", options=options)(normal(B, 6))


def test_refuses_unknown_options_and_modes():
    net, x = snn.Leaky(0.9), normal(B, 6)
    with pytest.raises(TypeError, match="windows"):
        snn.accelerate(net, windows=2, compile=True)
    with pytest.raises(ValueError, match="options of backend snnfast are window, products, inner; got 'windows'"):
        snn.explain(net, x, windows=2)
    with pytest.raises(Exception, match="options of backend snnfast are window, products, inner; got 'windows'"):
        torch.compile(net, backend="snnfast", options={"windows": 2})(x)
    with pytest.raises(Exception, match="backend snnfast has no modes, got mode='max-autotune'"):
        torch.compile(net, backend="snnfast", mode="max-autotune")(x)
    with pytest.raises(Exception, match="no-such-backend"):
        torch.compile(net, backend="snnfast", options={"inner": "no-such-backend"})(x)


@pytest.mark.parametrize("net", [None, print, [nn.Linear(2, 2)]])
def test_accelerate_refuses_what_is_no_module(net):
    with pytest.raises(TypeError, match="net must be a torch.nn.Module"):
        snn.accelerate(net, compile=True)
