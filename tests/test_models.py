"""Every neuron model: its kernels against its reference loop, and what it declares about itself."""

import itertools
from dataclasses import replace

import pytest
import snntorch
import torch

import snnfast
from cases import RESETS, identical
from snnfast import functional, ops, reference, surrogate
from snnfast.neurons import fused_class
from snnfast.neurons.base import snntorch_class
from snnfast.reference import ALIF, ALPHA, LEAKY, LIF, MODELS, SYNAPTIC, contract

STEPS, SHAPE = 8, (3, 5)

# Without a name that the kernels know, whose derivative is asked for at the membranes that fired.
CUSTOM = surrogate.evaluated(surrogate.fast_sigmoid(3.0))


def variants():
    """Each model, with and without the reset delay where it has both, and the mechanism of its resets in turn."""
    for index, model in enumerate(MODELS):
        for delay in (True, False) if model.delay_optional else (True,):
            for reset in RESETS if model.reset is reference.LEAKY.reset or model is ALIF else RESETS[index % 3 :][:1]:
                yield pytest.param(model, reset, delay, id=f"{model.name}-{reset}-{'delay' if delay else 'now'}")


VARIANTS = list(variants())


def leaves(model, initial=True, learnt=True, dtype=torch.float32, device="cpu", steps=STEPS):
    """x, rec or None, states, parameters: random ones, per neuron every second of them."""
    draw = torch.Generator().manual_seed(len(model.name) + steps)

    def leaf(tensor, wanted=True):
        return tensor.to(dtype).to(device).requires_grad_(wanted)

    x, rec = (leaf(torch.randn(steps, *SHAPE, generator=draw) * 2 + 0.4) for _ in range(2))
    states = [leaf(torch.randn(SHAPE, generator=draw)) for _ in model.states] if initial else []
    sizes = itertools.cycle([SHAPE[-1:], ()])
    drawn = (torch.rand(size, generator=draw) * 0.5 + 0.4 for _, size in zip(model.params, sizes, strict=False))
    return x, rec if model.recurrent else None, states, [leaf(param, learnt) for param in drawn]


def fused(model, x, rec, states, params, options):
    """Spikes and all states [T, ...], the last states."""
    result = ops.run(model, x, rec, tuple(states), tuple(params), options, True)
    return (result.spk, *result.seqs[: model.stored]), result.last


def looped(model, x, rec, states, params, options, **call):
    """The same of the reference's steps."""
    states = tuple(states) or tuple(torch.zeros_like(x[0]) for _ in model.states)
    columns = []
    for t in range(len(x)):
        options_of_step = reference.Call(*options[:3], **call)
        current = None if rec is None else rec[t]
        spk, states = reference.step(model, x[t], states, tuple(params), options_of_step, current)
        columns.append((spk, *states[: model.stored]))
    return tuple(map(torch.stack, zip(*columns, strict=True))), states


def gradients(outputs, last, wanted, used=None, create_graph=False):
    """Of a loss on the outputs and the last states, or on those outputs `used` alone."""
    outputs = [*outputs, *last] if used is None else [outputs[k] for k in used]
    outputs = [output for output in outputs if output.requires_grad]
    weights = [torch.linspace(-1, 1.3, output.numel()).to(output).view_as(output) for output in outputs]
    loss = sum((output * weight).sum() for output, weight in zip(outputs, weights, strict=True))
    return torch.autograd.grad(loss, wanted, allow_unused=True, create_graph=create_graph, materialize_grads=True)


def given(x, rec, states):
    return [tensor for tensor in (x, rec, *states) if tensor is not None]


@pytest.mark.parametrize("model, reset, delay", VARIANTS)
def test_kernels_compute_what_the_reference_does(model, reset, delay, device):
    """Spikes, states, and the gradients of currents and initial states, bit for bit.

    But where snnTorch resets by a second evaluation of the step, the kernels add gradients in that order.
    """
    exact = model in (LEAKY, ALIF) or (reset != "zero" and model is not ALPHA)
    for learnt, (initial, used) in itertools.product((True, False), ((True, None), (False, (0,)), (True, (-1,)))):
        options = ops.Options(surrogate.atan(2.0), reset, delay, True)
        found = []
        for run in (fused, looped):
            x, rec, states, params = leaves(model, initial, learnt, device=device)
            outputs, last = run(model, x, rec, states, params, options)
            found.append(([*outputs, *last], gradients(outputs, last, given(x, rec, states), used)))
        (ours, grads), (theirs, expected) = found
        assert all(map(identical, ours, theirs))
        assert 0 < (ours[0] > 0).float().mean() < 1 or not (model.spikes and initial)
        for a, b in zip(grads, expected, strict=True):
            assert identical(a, b) if exact else torch.allclose(a, b, rtol=1e-4, atol=1e-5), (initial, learnt, used)


@pytest.mark.parametrize("model, reset, delay", VARIANTS)
def test_parameter_gradients_in_float64(model, reset, delay, device):
    options = ops.Options(surrogate.atan(2.0), reset, delay, True)
    found = []
    for run in (fused, looped):
        x, rec, states, params = leaves(model, dtype=torch.float64, device=device)
        found.append(gradients(*run(model, x, rec, states, params, options), params))
    for name, ours, theirs in zip(model.params, *found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("model, reset, delay", [v for v in VARIANTS if v.values[0].spikes])
def test_custom_surrogates(model, reset, delay, device):
    """Their derivative is asked for where the kernels fire, in a sequence and in a step."""
    for initial, learnt, unroll in itertools.product((True, False), (True, False), (True, False)):
        if not (unroll or model.fuses_steps):
            continue
        options = ops.Options(CUSTOM, reset, delay, unroll)
        found = []
        for run in (fused, looped):
            x, rec, states, params = leaves(model, initial, learnt, torch.float64, device, STEPS if unroll else 1)
            if unroll or run is looped:
                outputs, last = run(model, x, rec, states, params, options)
            else:
                current = None if rec is None else rec[0]
                spk, last, _ = ops.run(model, x[0], current, tuple(states), tuple(params), options, False)
                outputs = (spk,)
            grads = gradients(outputs[:1], last, [*given(x, rec, states), *(params if learnt else ())])
            found.append(grads)
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=f"{initial} {learnt} {unroll}")


@pytest.mark.parametrize("model, reset, delay", VARIANTS)
def test_gradients_of_gradients(model, reset, delay, device):
    for learnt, spike_grad in ((True, surrogate.atan(2.0)), (False, CUSTOM)):
        options = ops.Options(spike_grad, reset, delay, True)
        found = []
        for run in (fused, looped):
            x, rec, states, params = leaves(model, True, learnt, torch.float64, device)
            wanted = [*given(x, rec, states), *(params if learnt else ())]
            first = gradients(*run(model, x, rec, states, params, options), wanted, create_graph=True)
            norm = sum(grad.square().sum() for grad in first)
            if norm.requires_grad:
                second = torch.autograd.grad(norm, wanted, allow_unused=True, materialize_grads=True)
            else:  # as of a neuron that never fires, but through its parameters
                second = [torch.zeros_like(tensor) for tensor in wanted]
            found.append([*first, *second])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7, msg=f"{learnt} {spike_grad}")


@pytest.mark.parametrize("unfused", [{"inhibition": True}, {"state_quant": lambda state: (state * 8).round() / 8}])
@pytest.mark.parametrize("model", [model for model in MODELS if model.spikes], ids=lambda model: model.name)
def test_what_is_not_fused_runs_the_loop_and_says_so(model, unfused, device, monkeypatch):
    monkeypatch.setattr(functional, "_said", set())
    x, rec, states, params = leaves(model, device=device)
    unroll = not model.recurrent  # whose second current is no input of a sequence
    options = ops.Options(surrogate.atan(2.0), "subtract", model.delay_optional, unroll)
    current, second = (x, rec) if unroll else (x[0], rec[0])
    with pytest.warns(UserWarning, match=f"{model.layer}: {next(iter(unfused))} is not fused"):
        spk, last, _ = functional.run(model, current, tuple(states), tuple(params), options, rec=second, **unfused)
    expected, states = looped(model, x if unroll else x[:1], rec, states, params, options, **unfused)
    assert identical(spk, expected[0] if unroll else expected[0][0])
    assert all(map(identical, last, states))


def test_every_model_does_what_it_says():
    for model in MODELS:
        contract.check(model)


def test_a_model_that_does_not_do_what_it_says_is_refused():
    def changed_trace(states, reset, params, call):
        spk, (mem, syn) = SYNAPTIC.fire(states, reset, params, call)
        return spk, (mem, syn + spk)

    def squared(x, states, params, reset, call):
        return (states[0] ** 2 + x,)

    def asks_twice(states, reset, params, call):
        call.spike_grad(states[0])
        return LEAKY.fire(states, reset, params, call)

    for model, change, message in (
        (ALIF, {"needed": ("mem",)}, "fire's gradients depend on states that are not needed; needed are .'mem',"),
        (ALIF, {"needed": ("adaptation",)}, "needed must be the first of states, .*'adaptation'"),
        (ALIF, {"changed": ("mem",)}, "fire changes adaptation; changed are .'mem',"),
        (ALIF, {"threshold": LEAKY.threshold}, r"fire must call spike_grad once, on mem less threshold\(...\)"),
        (ALIF, {"held": ("mem", "adaptation")}, "charge changes mem, which is said to be held"),
        (ALIF, {"held": ("trace",)}, "held must be among states, .*'trace'"),
        (SYNAPTIC, {"fire": changed_trace}, "fire changes syn; changed are"),
        (SYNAPTIC, {"states": ("mem", "mem")}, "states must be a tuple of distinct names, got .'mem', 'mem'"),
        (LEAKY, {"charge": squared}, "charge must be linear in x and states"),
        (LEAKY, {"fire": asks_twice}, "fire must call spike_grad once"),
        (LEAKY, {"spikes": False}, "fire must call spike_grad not at all"),
        (LEAKY, {"needed": ()}, "reset reads states that are not needed|fire's gradients depend"),
        (LEAKY, {"reset": lambda states, params, call: states[0] * 1}, "reset must have no gradient"),
        (LIF, {"changed": ()}, "fire changes v; changed are"),
        (LIF, {"output": "v"}, "output must be 'i', the last of states, or None; got 'v'"),
    ):
        with pytest.raises(ValueError, match=f"model {model.name}: {message}"):
            contract.check(replace(model, **change))


def test_an_operator_refuses_fewer_states_than_its_backward_reads():
    x, _, _, params = leaves(ALIF, learnt=False)
    spk, *_, mem, adaptation, charge = torch.ops.snnfast.alif_fwd(
        x.detach(), None, [], params, True, "subtract", True, False, 2, 1, True
    )
    how = ([charge], [], params, None, True, "subtract", True, False, "atan", [3.14, 1.0], torch.float32, False)
    for seqs, wants_params, read in (([mem], False, 2), ([mem], True, 2), ([], False, 2)):
        with pytest.raises(RuntimeError, match=f"seqs must have the first {read} states, got {len(seqs)}"):
            torch.ops.snnfast.alif_bwd(spk, None, spk, [], [], seqs, *how, wants_params)
    torch.ops.snnfast.alif_bwd(spk, None, spk, [], [], [mem, adaptation], *how, True)


def test_layers_without_a_namesake_in_snntorch_have_no_class_of_its_as_base():
    assert snntorch_class("Leaky") == (snntorch.Leaky,) and snntorch_class("ALIF") == ()
    assert fused_class(snntorch.Alpha(0.9, 0.8)) is snnfast.Alpha
    assert all(fused_class(module) is None for module in (snnfast.ALIF(0.9, 0.9, 0.1), torch.nn.Identity()))
