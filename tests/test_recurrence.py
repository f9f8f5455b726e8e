"""All-to-all recurrence: a layer's whole sequence in one call, against snnTorch's loop.

A matrix product's order of summation is free, so the recurrent current may differ in its last bits, and with it a spike
whose membrane stands at the threshold: from there on two correct runs go apart.
"""

import pytest
import snntorch
import torch
from torch import nn

import snnfast
from cases import RESETS, identical
from snnfast import functional, ops, reference

LAYERS = ("RLeaky", "RSynaptic")
SIZES = [(1, 1, 1), (3, 2, 7), (20, 5, 33), (8, 40, 33), (30, 40, 100), (6, 3, 2500)]


def layer(library, name, features, device="cpu", dtype=torch.float32, seed=0, **options):
    decays = {"beta": 0.8} if name == "RLeaky" else {"alpha": 0.7, "beta": 0.8}
    torch.manual_seed(seed)
    return getattr(library, name)(**decays, linear_features=features, **options).to(device=device, dtype=dtype)


def loop(layer, x, initial=None):
    states = [torch.zeros_like(x[0]) for _ in layer.reset_mem()] if initial is None else initial
    steps = []
    for current in x.unbind(0):
        outputs = layer(current, *states)
        steps.append(outputs)
        states = [outputs[0], *outputs[1:]]
    return [torch.stack(column) for column in zip(*steps, strict=True)]


def currents(steps, *shape, device="cpu", dtype=torch.float32):
    draw = torch.Generator().manual_seed(steps + sum(shape))
    return (torch.randn(steps, *shape, generator=draw) * 0.6 + 0.2).to(device=device, dtype=dtype)


def agree_until_the_threshold(ours, theirs, mem, threshold=1.0):
    """Equal spikes; where they part, a sample's first difference is a membrane within rounding of the threshold."""
    different = (ours != theirs).flatten(2).any(-1) if ours.dim() > 3 else (ours != theirs).any(-1)
    for sample in different.any(0).nonzero().flatten().tolist():
        step = different[:, sample].nonzero()[0].item()
        apart = ours[step, sample] != theirs[step, sample]
        assert ((mem[step, sample][apart] - threshold).abs() < 1e-5).all(), (step, sample)
    return ~different.any(0)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("steps, batch, features", SIZES)
def test_spikes_states_and_input_gradients(name, reset, steps, batch, features, device):
    """Against snnTorch's own loop; sizes below and above a tile of the CPU's kernel."""
    x = currents(steps, batch, features, device=device)
    results = []
    for library in (snntorch, snnfast):
        module = layer(library, name, features, device, reset_mechanism=reset)
        current = x.clone().requires_grad_()
        outputs = module.unroll(current) if library is snnfast else loop(module, current)
        weights = [currents(steps, batch, features + 1, device=device)[..., :-1] for _ in outputs]
        sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
        grads = [current.grad, module.recurrent.weight.grad, module.recurrent.bias.grad]
        results.append(([output.detach() for output in outputs], grads))
    (theirs, their_grads), (ours, our_grads) = results
    same = agree_until_the_threshold(ours[0], theirs[0], theirs[-1])
    assert same.float().mean() > 0.9 or batch < 10
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(a[:, same], b[:, same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(our_grads[0][:, same], their_grads[0][:, same], rtol=2e-3, atol=2e-3)
    if same.all():
        for a, b in zip(our_grads[1:], their_grads[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3 * b.abs().max().clamp(min=1).item())
    assert steps < 20 or 0.02 < ours[0].mean() < 0.9


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_against_the_reference(name, reset, reset_delay, dtype, tolerance, device):
    """Every output and gradient, initial states and learnt parameters included; in float64 rounding decides nothing."""
    learn = {"learn_beta": True, "learn_threshold": True, **({"learn_alpha": True} if name == "RSynaptic" else {})}
    results = []
    for fused in (True, False):
        module = layer(
            *(snnfast, name, 19, device, dtype),
            **{"reset_mechanism": reset, "reset_delay": reset_delay, "threshold": 0.6, **learn},
        )
        x = currents(15, 4, 19, device=device, dtype=dtype).requires_grad_()
        initial = [t.clone().requires_grad_() for t in currents(3, 4, 19, device=device, dtype=dtype)]
        initial = initial[: len(module.state_names)]
        with torch.enable_grad() if fused else snnfast.use_reference():
            outputs = module.unroll(x, *initial)
        sum((output * (output + 0.5)).sum() for output in outputs).backward()
        grads = [x.grad, *(t.grad for t in initial), *(p.grad for p in module.parameters())]
        results.append((outputs, grads))
    (ours, our_grads), (theirs, their_grads) = results
    assert identical(ours[0], theirs[0]) and 0.05 < ours[0].mean() < 0.9
    for a, b in zip((*ours, *our_grads), (*theirs, *their_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def gradient_errors(module, x, weight):
    x = x.clone().requires_grad_()
    spk, *_ = module(x)
    (spk * weight).sum().backward()
    return spk.detach(), x.grad


def test_gradients_are_as_good_as_eager_float32(device):
    """Errors against float64 on the same spikes: at most twice those of snnTorch's loop."""
    x, weight = currents(25, 16, 64, device=device), currents(25, 16, 65, device=device)[..., :-1]
    results = {}
    for key, library, dtype in (("ours", snnfast, torch.float32), ("eager", snntorch, torch.float32)):
        module = layer(library, "RLeaky", 64, device, dtype)
        run = module.unroll if library is snnfast else lambda current, module=module: loop(module, current)
        results[key] = gradient_errors(run, x, weight)
    exact = layer(snnfast, "RLeaky", 64, device, torch.float64)
    spk, grad = gradient_errors(exact.unroll, x.double(), weight.double())
    same = [(results[key][0] == spk).all(-1).all(0) for key in results]
    same = same[0] & same[1]
    assert same.sum() >= 12
    ours, eager = ((results[key][1].double() - grad)[:, same].square().mean().sqrt() for key in ("ours", "eager"))
    assert ours <= 2 * eager


def test_one_step_is_snntorchs_to_the_bit(device):
    """The step call: torch's own product, and the fused neuron after it."""
    for name in LAYERS:
        x = currents(12, 6, 20, device=device)
        theirs, ours = (loop(layer(library, name, 20, device), x) for library in (snntorch, snnfast))
        assert all(identical(a, b) for a, b in zip(ours, theirs, strict=True))


def test_convolutional_recurrence(device):
    x = currents(8, 2, 3, 6, 7, device=device)
    results = []
    for library in (snntorch, snnfast):
        torch.manual_seed(0)
        module = library.RLeaky(0.9, conv2d_channels=3, kernel_size=(3, 3)).to(device)
        current = x.clone().requires_grad_()
        spk, mem = module.unroll(current) if library is snnfast else loop(module, current)
        (spk.sum() + mem.square().sum()).backward()
        results.append((spk, mem, current.grad))
    assert all(identical(a, b) for a, b in zip(*results, strict=True))


def test_hooked_weights_run_by_step(device):
    """A hook on `recurrent` sees every step; results stay."""
    module, seen = layer(snnfast, "RLeaky", 10, device), []
    x = currents(7, 3, 10, device=device)
    expected = module.unroll(x)
    module.recurrent.register_forward_hook(lambda *_: seen.append(1))
    spk, mem = module.unroll(x)
    assert len(seen) == 7
    torch.testing.assert_close((spk, mem), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_hidden_state_goes_on(name, device):
    x = currents(10, 4, 12, device=device)
    whole = layer(snnfast, name, 12, device).unroll_spikes(x)
    hidden = layer(snnfast, name, 12, device, init_hidden=True)
    parts = torch.cat([hidden.unroll(x[:4]), hidden.unroll(x[4:])])
    torch.testing.assert_close(parts, whole)
    snnfast.reset(hidden)
    torch.testing.assert_close(hidden.unroll(x), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, device):
    module = layer(snnfast, "RLeaky", 24, device)
    x = currents(9, 4, 24, device=device).to(dtype)
    spk, mem = module.unroll(x)
    spk32, mem32 = module.unroll(x.float())
    assert spk.dtype == dtype and mem.dtype == torch.float32
    assert identical(spk.float(), spk32) and identical(mem, mem32)


def test_empty_edges_and_unbatched(device):
    module = layer(snnfast, "RLeaky", 5, device)
    for shape in ((0, 3, 5), (4, 0, 5)):
        x = torch.zeros(shape, device=device, requires_grad=True)
        spk, mem = module.unroll(x)
        assert spk.shape == mem.shape == shape
        mem.sum().backward()
        assert x.grad.shape == shape
        with snnfast.use_reference():
            assert module.unroll(x)[0].shape == shape
    initial = [t.clone().requires_grad_() for t in currents(2, 3, 5, device=device)]
    hidden = layer(snnfast, "RLeaky", 5, device, init_hidden=True)
    hidden.spk, hidden.mem = initial
    hidden.unroll(torch.zeros(0, 3, 5, device=device))
    assert hidden.spk is initial[0] and identical(hidden.mem, initial[1])
    x = currents(6, 5, device=device)
    torch.testing.assert_close(module.unroll(x)[0], module.unroll(x[:, None])[0][:, 0])


def test_compiles_whole():
    module = layer(snnfast, "RLeaky", 16)
    x = currents(6, 3, 16)
    results = []
    for function in (module.unroll_spikes, torch.compile(module.unroll_spikes, fullgraph=True, backend="aot_eager")):
        module.zero_grad()
        current = x.clone().requires_grad_()
        spk = function(current)
        spk.sum().backward()
        results.append((spk.detach(), current.grad, module.recurrent.weight.grad.clone()))
    assert all(identical(a, b) for a, b in zip(*results, strict=True))


def test_results_do_not_depend_on_threads(device):
    module, x = layer(snnfast, "RLeaky", 50, device), currents(20, 33, 50, device=device)
    threads, outcomes = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        outcomes.append(module.unroll_spikes(x))
    torch.set_num_threads(threads)
    assert identical(*outcomes)


def test_mistakes():
    module = layer(snnfast, "RLeaky", 5)
    for call, error, message in (
        (lambda: module.unroll(torch.zeros(3, 2, 6)), ValueError, "weights (5, 5) do not fit 6 neurons"),
        (lambda: module.unroll(torch.zeros(3)), ValueError, "x must have a time and a neuron dimension"),
        (lambda: module.unroll(torch.zeros(3, 2, 5), torch.zeros(5)), ValueError, "spk must have shape (2, 5)"),
        (lambda: module.unroll(torch.zeros(3, 2, 5), state=1), TypeError, "unroll takes the states spk, mem"),
        (lambda: snnfast.RLeaky(0.9), TypeError, "must be given either linear_features or both"),
        (lambda: snnfast.RLeaky(0.9, linear_features=3, kernel_size=2, conv2d_channels=1), TypeError, "either"),
        (lambda: snnfast.RLeaky(0.9, all_to_all=False, linear_features=3), TypeError, "all_to_all=False takes no"),
    ):
        with pytest.raises(error) as raised:
            call()
        assert message in str(raised.value)
    x = torch.zeros(3, 2, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(module.unroll(x)[1].sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match="no double backward"):
        torch.autograd.grad(module.unroll(x)[1].sum(), x, create_graph=True)


def test_convert_takes_recurrent_layers_over():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = layer(snntorch, "RLeaky", 6)
            self.own = snntorch.RLeaky(0.8, V=0.3, all_to_all=False)

    net = Net()
    x = currents(5, 2, 6)
    expected = [loop(module, x) for module in (net.dense, net.own)]
    snnfast.convert(net)
    assert type(net.dense) is type(net.own) is snnfast.RLeaky
    for module, wanted in zip((net.dense, net.own), expected, strict=True):
        for a, b in zip(module.unroll(x, *[torch.zeros(2, 6)] * 2), wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_no_steps_hand_gradients_through(device):
    """A sequence of no steps is the identity of its states."""
    mem = currents(1, 3, 5, device=device)[0].requires_grad_()
    weight = torch.zeros(5, 5, device=device, requires_grad=True)
    params = tuple(torch.tensor(value, device=device) for value in (0.9, 1.0, 1.0))
    options = functional.checked_options(None, "subtract", True, unroll=True)
    x = torch.zeros(0, 3, 5, device=device, requires_grad=True)
    result = functional.run(reference.RLEAKY, x, (mem,), params, options, rec=ops.Recurrence(weight))
    (3 * result.last[0]).sum().backward()
    assert identical(mem.grad, torch.full_like(mem, 3.0))


def test_layers_of_two_sizes_run_in_turn(device):
    """One kernel of a GPU holds the weights of either in its shared memory."""

    def outcome(features):
        module = layer(snnfast, "RLeaky", features, device)
        x = currents(3, 2, features, device=device).requires_grad_()
        outputs = module.unroll(x)
        return [*outputs, *torch.autograd.grad(sum(output.sum() for output in outputs), x)]

    first = outcome(110)
    outcome(100)
    assert all(map(torch.equal, outcome(110), first))


def test_weights_changed_before_backward_are_noticed(device):
    """An optimiser's step between forward and backward is an error, as in PyTorch's layers, not a wrong gradient."""
    module = layer(snnfast, "RLeaky", 8, device)
    spk, _ = module.unroll(currents(4, 2, 8, device=device).requires_grad_())
    with torch.no_grad():
        module.recurrent.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        spk.sum().backward()
