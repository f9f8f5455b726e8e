"""The loops of published networks, compiled: what they become, and the loop's numbers."""

import pytest
import snntorch
import torch
from torch.profiler import ProfilerActivity, profile

import snnfast as snn
from compiled import Graphs, assert_as_exact, iteration, norse_tutorial, published, said_of, voltages_and_gradients
from published import LOOPS

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


ON_LEAKY = ["rate-fc", "poisson-fc", "current-fc"]


@pytest.mark.parametrize("inner", [None, "aot_eager"])
def test_the_loop_of_norses_tutorial_is_two_sequence_calls(inner):
    net, *batch = norse_tutorial()
    expected, gradients = voltages_and_gradients(net, *batch)
    exact, *doubled = norse_tutorial(torch.float64)
    _, truth = voltages_and_gradients(exact, *doubled)
    snn.accelerate(net, inner=inner, compile=True)
    found, of_ours = voltages_and_gradients(net, *batch)
    torch.testing.assert_close(found["voltages"], expected["voltages"], rtol=1e-5, atol=1e-5)
    assert_as_exact(of_ours, gradients, truth)
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        voltages_and_gradients(net, *batch)
    counts = {event.key: event.count for event in calls.key_averages() if event.key.startswith("snnfast::")}
    for name in ("lif_recurrent_fwd", "lif_recurrent_bwd", "li_fwd", "li_bwd"):
        assert counts[f"snnfast::{name}"] == 1
    assert not any(name.endswith("step") for name in counts)


def test_recurrent_layers_at_other_batch_sizes_and_without_gradients():
    net, x, labels = norse_tutorial(torch.float64, batch=7)
    sizes = (4, 3, 7, 5)
    expected = [voltages_and_gradients(net, x[:, :size], labels[:size]) for size in sizes]
    graphs = Graphs()
    snn.accelerate(net, inner=graphs, compile=True)
    for size, (outputs, gradients) in zip(sizes, expected, strict=True):
        found, of_ours = voltages_and_gradients(net, x[:, :size], labels[:size])
        torch.testing.assert_close((found, of_ours), (outputs, gradients), rtol=1e-9, atol=1e-9)
    assert len(graphs) == 2 and graphs.calls() == graphs.sequences() == {"l1": 2, "out": 2}
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(net(x[:, :5]), expected[-1][0]["voltages"], rtol=1e-9, atol=1e-9)


def test_recurrent_products_in_half_precision_stay_the_loops():
    """In the sequence they would be computed in float32."""
    net, x, labels = norse_tutorial()
    with torch.autocast("cpu", torch.bfloat16):
        expected = voltages_and_gradients(net, x, labels)
        said = said_of(snn.explain(net, x, compile=True))
        found = voltages_and_gradients(snn.accelerate(net, products="per-step", compile=True), x, labels)
    assert "in another dtype than its states" in said["l1"] and "fused over time" in said["out"]
    assert torch.equal(found[0]["voltages"], expected[0]["voltages"])


@pytest.mark.parametrize("name", ON_LEAKY)
def test_published_loops_on_leaky_are_two_sequence_calls(name, device):
    loop, theirs, x, targets = published(name, snntorch, device=device)
    _, exact, *batch = published(name, snn, torch.float64, device)
    expected, gradients = iteration(theirs, loop, x, targets)
    _, truth = iteration(exact, loop, *batch)
    _, net, *_ = published(name, snntorch, device=device)
    graphs = Graphs()
    assert snn.accelerate(net, inner=graphs, compile=True) is net
    found, of_ours = iteration(net, loop, x, targets)
    assert graphs.calls() == graphs.sequences() == {"lif1": 1, "lif2": 1}
    assert torch.equal(found["spikes"], expected["spikes"]) and found["spikes"].sum() > 0
    torch.testing.assert_close(found["membranes"], expected["membranes"], rtol=1e-5, atol=1e-5)
    assert_as_exact(of_ours, gradients, truth)
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        iteration(net, loop, x, targets)
    counts = {event.key: event.count for event in calls.key_averages() if event.key.startswith("snnfast::leaky_")}
    assert counts["snnfast::leaky_fwd"] == counts["snnfast::leaky_bwd"] == 2
    assert "snnfast::leaky_step" not in counts


@pytest.mark.parametrize("name", LOOPS)
def test_published_loops_with_products_per_step_equal_the_loop(name, device):
    library = snntorch if LOOPS[name].library == "snntorch" else None
    loop, theirs, x, targets = published(name, library, device=device)
    _, net, *_ = published(name, library, device=device)
    expected = iteration(theirs, loop, x, targets)
    found = iteration(snn.accelerate(net, products="per-step", compile=True), loop, x, targets)
    for ours, wanted in zip(found, expected, strict=True):
        assert all(torch.equal(ours[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", ["zero-reset-fc", "norse-recurrent", "norse-conv"])
def test_published_loops_on_own_neurons_stay_right(name, device):
    loop, theirs, x, targets = published(name, None, device=device)
    _, exact, *batch = published(name, None, torch.float64, device)
    _, net, *_ = published(name, None, device=device)
    expected, gradients = iteration(theirs, loop, x, targets)
    found, of_ours = iteration(snn.accelerate(net, compile=True), loop, x, targets)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-5)
    assert_as_exact(of_ours, gradients, iteration(exact, loop, *batch)[1])


def test_zero_reset_on_leaky_is_fused_with_its_own_surrogate():
    loop, net, x, targets = published("zero-reset-fc", snn)
    layers = snn.explain(net, x, compile=True).layers
    assert [layer.layer for layer in layers] == ["lif1", "lif2", "lif3"] and all(layer.fused for layer in layers)
    _, theirs, *_ = published("zero-reset-fc", snntorch)
    expected, _ = iteration(theirs, loop, x, targets)
    found, _ = iteration(snn.accelerate(net, products="per-step", compile=True), loop, x, targets)
    assert torch.equal(found["spikes"], expected["spikes"])
