"""The fused neuron against snnTorch 1.0.0 itself: the same numbers, bit for bit."""

import pytest
import snntorch
import snntorch.surrogate
import torch

import snnfast
from cases import EXACT_SURROGATES, RESETS, ROUNDED_SURROGATES, Case, identical, random_cases
from snnfast import functional, reference

CASES = random_cases(360, seed=20)
IDS = [
    f"seed{c.seed}-T{c.steps}-{'x'.join(map(str, c.shape))}-{c.reset_mechanism}-"
    f"{'delay' if c.reset_delay else 'now'}-{c.surrogate}-{c.loss}"
    for c in CASES
]


def with_gradients(*tensors):
    return [None if t is None else t.clone().requires_grad_() for t in tensors]


def run_snntorch(case, device, dtype=torch.float32, surrogate=None):
    """snnTorch's step loop with stacked losses: outputs and the gradients of x, mem0 and the parameters."""
    x, mem0, params, on_spk, on_mem = case.tensors(dtype, device)
    layer = snntorch.Leaky(
        **params,
        spike_grad=surrogate or case.surrogates(snntorch.surrogate),
        learn_beta=True,
        learn_threshold=True,
        learn_graded_spikes_factor=True,
        reset_mechanism=case.reset_mechanism,
        reset_delay=case.reset_delay,
    ).to(device)
    x, mem0 = with_gradients(x, mem0)
    mem = torch.zeros_like(x[0]) if mem0 is None else mem0
    spk_seq, mem_seq = [], []
    for current in x.unbind(0):
        spk, mem = layer(current, mem)
        spk_seq.append(spk)
        mem_seq.append(mem)
    return finish(x, mem0, layer, torch.stack(spk_seq), torch.stack(mem_seq), on_spk, on_mem)


def our_layer(case, params, device, surrogate=None):
    return snnfast.Leaky(
        **params,
        spike_grad=surrogate or case.surrogates(),
        learn_beta=True,
        learn_threshold=True,
        learn_graded_spikes_factor=True,
        reset_mechanism=case.reset_mechanism,
        reset_delay=case.reset_delay,
    ).to(device)


def run_unrolled(case, device, dtype=torch.float32, surrogate=None):
    x, mem0, params, on_spk, on_mem = case.tensors(dtype, device)
    layer = our_layer(case, params, device, surrogate)
    x, mem0 = with_gradients(x, mem0)
    spk, mem = layer.unroll(x, mem0)
    return finish(x, mem0, layer, spk, mem, on_spk, on_mem)


def run_stepwise(case, device):
    x, mem0, params, on_spk, on_mem = case.tensors(torch.float32, device)
    layer = our_layer(case, params, device)
    x, mem0 = with_gradients(x, mem0)
    mem = torch.zeros_like(x[0]) if mem0 is None else mem0
    steps = []
    for current in x.unbind(0):
        spk, mem = layer(current, mem)
        steps.append((spk, mem))
    spk, mem = (torch.stack(tensors) for tensors in zip(*steps, strict=True))
    return finish(x, mem0, layer, spk, mem, on_spk, on_mem)


def finish(x, mem0, layer, spk, mem, on_spk, on_mem):
    loss = sum((tensor * weight).sum() for tensor, weight in ((spk, on_spk), (mem, on_mem)) if weight is not None)
    loss.backward()
    return {
        "spk": spk.detach(),
        "mem": mem.detach(),
        "grad_x": x.grad,
        "grad_mem0": None if mem0 is None else mem0.grad,
        "beta": layer.beta.grad,
        "threshold": layer.threshold.grad,
        "graded_spikes_factor": layer.graded_spikes_factor.grad,
    }


def assert_identical(ours, theirs, names):
    for name in names:
        if theirs[name] is not None:
            assert identical(ours[name], theirs[name].to(ours[name].dtype)), name


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_bit_identical_to_snntorch(case, device):
    theirs = run_snntorch(case, device)
    names = ("spk", "mem", "grad_x", "grad_mem0")
    for run in (run_unrolled, run_stepwise):
        assert_identical(run(case, device), theirs, names)


@pytest.mark.parametrize("case", random_cases(72, seed=21), ids=str)
def test_float64_bit_identical_to_snntorch(case, device):
    """snnTorch's layer with a surrogate that keeps float64: its own round spikes and their gradients to float32."""
    theirs = run_snntorch(case, device, torch.float64, surrogate=case.surrogates())
    assert_identical(run_unrolled(case, device, torch.float64), theirs, ("mem", "grad_x", "grad_mem0", "spk"))


def test_the_cases_are_worth_running():
    """Spikes fire, not always; some neurons are far above threshold; every option occurs."""
    rates, options = [], set()
    for case in CASES:
        x, mem0, params, _, _ = case.tensors()
        spk, _ = functional.leaky(x, mem0, **params, reset_mechanism=case.reset_mechanism)
        rates.append((spk > 0).float().mean().item())
        options.add((case.reset_mechanism, case.reset_delay, case.surrogate))
    assert 0.05 < sum(rates) / len(rates) < 0.6
    assert len(options) == len(RESETS) * 2 * len(EXACT_SURROGATES)


def test_parameter_gradients_are_as_good_as_eager(device):
    """Errors against float64, in roundings of the terms' sizes: at most twice eager's, in each case and overall."""
    errors = {name: ([], []) for name in ("beta", "threshold", "graded_spikes_factor")}
    for case in random_cases(144, seed=22):
        ours, theirs = run_unrolled(case, device), run_snntorch(case, device)
        for name, (exact, size) in parameter_gradients_in_float64(case, device).items():
            unit = torch.finfo(torch.float32).eps * size + 1e-30
            eager = ((theirs[name].double() - exact) / unit).flatten() if theirs[name] is not None else 0 * exact
            ours_name = ((ours[name].double() - exact) / unit).flatten()
            if eager.isfinite().all() and 1e-6 < size.max() < 1e30:
                assert ours_name.abs().max() <= 2 * eager.abs().max() + 1, (name, case)
                errors[name][0].append(ours_name)
                errors[name][1].append(eager.flatten())
    for name, (ours, eager) in errors.items():
        assert len(ours) > 70
        assert torch.cat(ours).square().mean() <= 4 * torch.cat(eager).square().mean(), name


def parameter_gradients_in_float64(case, device):
    """{name: (gradient, sum of its terms' sizes)} of the reference backward in float64 on the float32 membranes."""
    x, mem0, params, on_spk, on_mem = case.tensors(torch.float32, device)
    mem0 = torch.zeros_like(x[0]) if mem0 is None else mem0
    arguments = (*params.values(), case.surrogates(), case.reset_mechanism)
    _, mem = reference.leaky(x, mem0, *arguments, case.reset_delay)
    before = torch.cat([mem0[None], mem[:-1]])
    charge = torch.stack([reference.leaky_step(*step, *arguments)[1] for step in zip(x, before, strict=True)])
    mem, charge, mem0 = (tensor.double() for tensor in (mem, charge, mem0))
    # A parameter per neuron, so that what comes back are the terms of each neuron-step.
    everywhere = [param.double().broadcast_to(mem0.shape).clone().requires_grad_() for param in params.values()]
    with torch.enable_grad():
        *_, terms = reference.backward(
            reference.LEAKY,
            torch.zeros_like(mem) if on_spk is None else on_spk.double(),
            (None,),
            (None if on_mem is None else on_mem.double(),),
            () if case.reset_delay else (None,),
            (mem,),
            () if case.reset_delay else (charge,),
            (mem0,),
            tuple(everywhere),
            reference.Call(case.surrogates(), case.reset_mechanism, case.reset_delay),
        )
    return {
        name: (term.sum(0).sum_to_size(param.shape), term.abs().sum(0).sum_to_size(param.shape))
        for (name, param), term in zip(params.items(), (term.detach() for term in terms), strict=True)
    }


@pytest.mark.parametrize("case", random_cases(24, seed=23, surrogates=ROUNDED_SURROGATES), ids=str)
def test_exponential_surrogates_within_rounding(case, device):
    """Three libraries' exp differ in the last bits; the forward does not."""
    ours, theirs = run_unrolled(case, device), run_snntorch(case, device)
    assert_identical(ours, theirs, ("spk", "mem"))
    for name in ("grad_x", "grad_mem0"):
        if theirs[name] is not None:
            # snnTorch's sigmoid overflows to NaN; ours stays finite there.
            finite = theirs[name].isfinite()
            assert finite.float().mean() > 0.5 and ours[name].isfinite().all()
            torch.testing.assert_close(ours[name][finite], theirs[name][finite], rtol=2e-4, atol=1e-4)


def test_custom_surrogates_stay_fused_and_agree(device):
    """A surrogate of the user's own, through its evaluated derivative; no warning says that it is slow."""

    def quadratic(u, grad, spikes):
        return grad / (1 + u * u)

    for reset_delay in (True, False):
        case = Case(5, 30, (4, 9), "subtract", reset_delay, "atan", {})
        custom = snntorch.surrogate.custom_surrogate(quadratic)
        theirs = run_snntorch(case, device, surrogate=custom)
        ours = run_unrolled(case, device, surrogate=custom)
        assert_identical(ours, theirs, ("spk", "mem"))
        torch.testing.assert_close(ours["grad_x"], theirs["grad_x"], rtol=1e-5, atol=1e-6)


def test_surrogate_disabled(device):
    for graded in (False, True):
        layers = [
            library.Leaky(
                0.9,
                threshold=0.5,
                surrogate_disable=True,
                learn_graded_spikes_factor=graded,
                graded_spikes_factor=torch.tensor(2.0),
            ).to(device)
            for library in (snnfast, snntorch)
        ]
        x = torch.randn(6, 4, 8, device=device)
        results = []
        for layer in layers:
            current = x.clone().requires_grad_()
            mem = torch.zeros(4, 8, device=device)
            spk = None
            for step in current.unbind(0):
                spk, mem = layer(step, mem)
            results.append((spk.requires_grad, torch.autograd.grad(mem.sum(), current)[0]))
        assert results[0][0] == results[1][0] == graded
        assert identical(results[0][1], results[1][1])


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 1e-42, -0.0])
def test_special_values_flow_as_in_snntorch(special, device):
    for reset in RESETS:
        for reset_delay in (True, False):
            case = Case(11, 12, (3, 70), reset, reset_delay, "atan", {})
            original = case.tensors

            def tensors(*args, original=original):
                x, *rest = original(*args)
                x[3, 1, ::3] = special
                return x, *rest

            case.tensors = tensors
            theirs = run_snntorch(case, device)
            for run in (run_unrolled, run_stepwise):
                assert_identical(run(case, device), theirs, ("spk", "mem", "grad_x", "grad_mem0"))


def test_large_sizes_use_every_neuron(device):
    """More neurons than a tile, a task and a block, in numbers that divide by none of them."""
    x = torch.randn(3, 70_003, device=device)
    spk, mem = functional.leaky(x, beta=0.9, threshold=0.5)
    expected = reference.leaky(
        x,
        torch.zeros_like(x[0]),
        *(torch.tensor(v, device=device) for v in (0.9, 0.5, 1.0)),
        snnfast.surrogate.atan(),
    )
    assert identical(spk, expected[0]) and identical(mem, expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_a_float32_membrane(dtype, device):
    """The same spikes and membranes as float32 currents of the same values, in the current's dtype and in float32."""
    for seed, reset in enumerate(RESETS):
        for reset_delay in (True, False):
            case = Case(seed, 40, (6, 50), reset, reset_delay, "atan", {})
            x, mem0, params, _, _ = case.tensors(device=device)
            params["graded_spikes_factor"] = torch.ones((), device=device)
            options = {"reset_mechanism": reset, "reset_delay": reset_delay}
            half = x.to(dtype).requires_grad_()
            full = x.to(dtype).float().requires_grad_()
            spk, mem = functional.leaky(half, mem0, **params, **options)
            spk32, mem32 = functional.leaky(full, mem0, **params, **options)
            assert spk.dtype == dtype and mem.dtype == torch.float32
            assert identical(spk.float(), spk32) and identical(mem, mem32)
            if reset_delay:
                assert torch.equal(spk.bool(), mem > params["threshold"])
            weight = torch.randn_like(spk)
            (spk * weight).sum().backward()
            (spk32 * weight.float()).sum().backward()
            assert identical(half.grad, full.grad.to(dtype))


def test_return_mem_last_is_the_last_of_all(device):
    x = torch.randn(9, 4, 5, device=device)
    _, every = functional.leaky(x, beta=0.9)
    _, last = functional.leaky(x, beta=0.9, return_mem="last")
    assert identical(last, every[-1])


def test_gradient_through_the_last_membrane(device):
    """return_mem="last" has the same gradient as the last of all membranes."""
    grads = []
    for return_mem in ("all", "last"):
        x = torch.randn(9, 4, 5, device=device, generator=torch.Generator(device).manual_seed(1))
        x.requires_grad_()
        spk, mem = functional.leaky(x, beta=0.9, return_mem=return_mem)
        mem = mem[-1] if return_mem == "all" else mem
        (mem.square().sum() + spk.sum()).backward()
        grads.append(x.grad)
    assert identical(*grads)


def test_no_steps_and_no_batch(device):
    mem0 = torch.randn(3, 4, device=device, requires_grad=True)
    spk, last = functional.leaky(torch.empty(0, 3, 4, device=device), mem0, beta=0.9, return_mem="last")
    assert spk.shape == (0, 3, 4) and identical(last, mem0)
    last.sum().backward()
    assert identical(mem0.grad, torch.ones_like(mem0))
    x = torch.empty(5, 0, 4, device=device, requires_grad=True)
    spk, mem = functional.leaky(x, beta=0.9)
    assert spk.shape == mem.shape == (5, 0, 4)
    mem.sum().backward()
    assert x.grad.shape == x.shape


def test_empty_edges(device):
    """No batch with a parameter per sample; no steps under double backward."""
    spk, _ = functional.leaky(torch.empty(3, 0, 4, device=device), beta=torch.empty(0, 4, device=device))
    assert spk.shape == (3, 0, 4)
    mem0 = torch.randn(3, 4, device=device, requires_grad=True)
    _, last = functional.leaky(torch.empty(0, 3, 4, device=device), mem0, beta=0.9, return_mem="last")
    (grad,) = torch.autograd.grad(last.sum(), mem0, create_graph=True)
    assert identical(grad.detach(), torch.ones_like(grad))


def test_strides_do_not_matter(device):
    x = torch.randn(5, 4, 3, 6, 7, device=device)
    expected = functional.leaky(x, beta=0.9)[0]
    for strided in (
        x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 4)),
        x.transpose(0, 1).contiguous().transpose(0, 1),
        x.expand(2, *x.shape)[1],
        torch.stack([x, x], -1)[..., 1],
    ):
        assert identical(functional.leaky(strided, beta=0.9)[0], expected)


def test_double_backward_matches_the_reference(device):
    """create_graph=True: second derivatives through surrogate and membrane, against autograd over the loop."""
    for reset in RESETS:
        for reset_delay in (True, False):
            for unroll in (True, False):
                second = []
                for loop in (False, True):
                    generator = torch.Generator(device).manual_seed(3)
                    x = torch.randn(6, 3, 4, device=device, generator=generator, dtype=torch.float64)
                    beta = torch.tensor(0.8, device=device, dtype=torch.float64, requires_grad=True)
                    x.requires_grad_()
                    options = {"reset_mechanism": reset, "reset_delay": reset_delay}
                    with snnfast.use_reference() if loop else torch.enable_grad():
                        if unroll:
                            spk, mem = functional.leaky(x, beta=beta, **options)
                        else:
                            mem, spk = None, []
                            for step in x.unbind(0):
                                fired, mem = functional.leaky_step(step, mem, beta=beta, **options)
                                spk.append(fired)
                            spk = torch.stack(spk)
                    (first,) = torch.autograd.grad((spk * x.detach()).sum() + mem.square().sum(), x, create_graph=True)
                    second.append(torch.autograd.grad(first.square().sum(), (x, beta)))
                for ours, theirs in zip(*second, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradcheck_where_a_true_derivative_exists(device):
    """Without spikes in the loss and with reset "none", the membrane is a linear filter."""
    x = torch.randn(5, 2, 3, device=device, dtype=torch.float64, requires_grad=True)
    mem0 = torch.randn(2, 3, device=device, dtype=torch.float64, requires_grad=True)
    beta = torch.rand(3, device=device, dtype=torch.float64, requires_grad=True)

    def membranes(x, mem0, beta):
        return functional.leaky(x, mem0, beta=beta, reset_mechanism="none")[1]

    assert torch.autograd.gradcheck(membranes, (x, mem0, beta))


def test_beta_is_clamped_with_its_gradient(device):
    beta = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5], device=device)
    results = []
    for library in (snnfast, snntorch):
        layer = library.Leaky(beta.clone(), learn_beta=True).to(device)
        mem = torch.full((2, 5), 0.7, device=device)
        for step in torch.full((4, 2, 5), 0.2, device=device).unbind(0):
            _, mem = layer(step, mem)
        mem.sum().backward()
        results.append((mem.detach(), layer.beta.grad))
    assert identical(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert results[0][1][0] == 0 and results[0][1][4] == 0 and results[0][1][2] != 0


def test_results_do_not_depend_on_threads_or_runs(device):
    x = torch.randn(50, 64, 300, device=device)
    threads = torch.get_num_threads()
    outcomes = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        current = x.clone().requires_grad_()
        beta = torch.full((300,), 0.9, device=device, requires_grad=True)
        spk, mem = functional.leaky(current, beta=beta)
        (spk.sum() + mem.square().sum()).backward()
        outcomes.append((spk.detach(), mem.detach(), current.grad, beta.grad))
    torch.set_num_threads(threads)
    for other in outcomes[1:]:
        assert all(identical(a, b) for a, b in zip(outcomes[0], other, strict=True))


def test_memory_kept_for_backward(device):
    """One float32 a neuron-step beside the outputs, none when the membranes are an output; inference keeps nothing."""
    x = torch.randn(20, 8, 100, device=device, requires_grad=True)
    for return_mem, expected in (("last", 4), ("all", 0)):
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            spk, mem = functional.leaky(x, beta=0.9, return_mem=return_mem)
        for output in (x, spk, mem):
            storages.pop(output.untyped_storage().data_ptr(), None)
        per_step = sum(storages.values()) / x.numel()
        assert expected <= per_step <= expected + 0.01
    with torch.no_grad():
        assert functional.leaky(x, beta=0.9, return_mem="last")[0].grad_fn is None
