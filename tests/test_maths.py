"""The neuron headers themselves, against NumPy: a mistake in the maths shows without a tensor in sight."""

import importlib.util
import math
import pathlib
import subprocess
import sysconfig

import numpy as np
import pybind11
import pytest
import torch

ROOT = pathlib.Path(__file__).parent.parent
F = np.float32
BETA, THRESHOLD, GRADED = (F(v) for v in (0.9, 0.7, 1.3))
PARAMS = np.array([BETA, THRESHOLD, GRADED])
STRETCH, PEAK = F(math.pi), F(1.0)


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    """csrc/neuron compiled with the rounding flag of setup.py, nothing else of the extension."""
    library = tmp_path_factory.mktemp("probe") / f"probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [
        pybind11.get_include(),
        sysconfig.get_path("include"),
        str(ROOT / "csrc"),
        str(pathlib.Path(torch.__file__).parent / "include"),
    ]
    subprocess.run(
        ["g++", "-O2", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
        + [f"-I{path}" for path in includes]
        + [str(ROOT / "tests" / "probe.cpp"), "-o", str(library)],
        check=True,
    )
    spec = importlib.util.spec_from_file_location("probe", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fires(u, inclusive):
    return (u >= 0 if inclusive else u > 0).astype(F)


def numpy_step(x, mem, reset_mechanism, delay, inclusive):
    reset = fires(mem - THRESHOLD, inclusive)
    kept = (F(1) - reset) * mem if reset_mechanism == "zero" else mem
    charge = BETA * kept + x
    if reset_mechanism == "subtract":
        charge = charge - reset * THRESHOLD
    spk = fires(charge - THRESHOLD, inclusive) * GRADED
    again = spk / GRADED - reset
    after = charge
    if not delay and reset_mechanism == "subtract":
        after = charge - again * THRESHOLD
    elif not delay and reset_mechanism == "zero":
        after = charge - again * charge
    return spk, after, charge


def numpy_step_backward(grad_spk, charge, before, grad, reset_mechanism, delay, inclusive):
    reset = fires(before - THRESHOLD, inclusive)
    kept = (F(1) - reset) * before if reset_mechanism == "zero" else before
    fired = fires(charge - THRESHOLD, inclusive)
    grad_threshold = grad_graded = np.zeros_like(grad)
    if not delay and reset_mechanism != "none":
        again = fired - reset
        grad_again = -grad * (THRESHOLD if reset_mechanism == "subtract" else charge)
        if reset_mechanism == "subtract":
            grad_threshold = -grad * again
        else:
            grad = grad - grad * again
        grad_spk = grad_spk + grad_again / GRADED
        grad_graded = -grad_again * (fired / GRADED)
    z = STRETCH * (charge - THRESHOLD)
    grad_u = (F(1) / (F(1) + z * z)) * PEAK * (grad_spk * GRADED)
    grad_graded = grad_graded + grad_spk * fired
    grad = grad + grad_u
    grad_threshold = grad_threshold - grad_u
    if reset_mechanism == "subtract":
        grad_threshold = grad_threshold - grad * reset
    carry = grad * BETA
    if reset_mechanism == "zero":
        carry = carry * (F(1) - reset)
    return grad, carry, np.stack([grad * kept, grad_threshold, grad_graded], -1)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("delay", [True, False])
@pytest.mark.parametrize("reset", range(3))
def test_step_and_its_backward(probe, reset, delay, inclusive):
    how = ("subtract", "zero", "none")[reset], delay, inclusive
    suffix = "delayed" if delay else "at_once"
    rng = np.random.default_rng(reset)
    x, mem, grad_spk, grad_mem = (rng.normal(size=4000).astype(F) * 2 for _ in range(4))
    mem[:1000], x[500:1500] = THRESHOLD, THRESHOLD
    mem[1000:1500] = 0
    spk, after, charge = getattr(probe, f"step_{suffix}")(x, mem, PARAMS, reset, inclusive)
    for ours, expected in zip((spk, after, charge), numpy_step(x, mem, *how), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert 0.1 < (spk > 0).mean() < 0.9 and (charge == THRESHOLD).mean() > 0.1
    ours = getattr(probe, f"step_backward_{suffix}")(
        grad_spk, after, charge, mem, grad_mem, PARAMS, reset, inclusive, np.array([STRETCH, PEAK])
    )
    expected = numpy_step_backward(grad_spk, charge, mem, grad_mem, *how)
    for got, wanted in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("inclusive", [False, True])
def test_firing_is_strict_unless_inclusive_and_nan_is_silent(probe, inclusive):
    x = np.array([THRESHOLD, np.nextafter(THRESHOLD, F(1)), np.nextafter(THRESHOLD, F(0)), np.nan, np.inf, -np.inf], F)
    spk, _, _ = probe.step_delayed(x, np.zeros(6, F), PARAMS, 2, inclusive)
    np.testing.assert_array_equal(spk > 0, [inclusive, True, False, False, True, False])
