"""The CUDA kernels, compiled for the CPU and run there thread by thread (emulation/cuda_runtime.h).

It shows that they index, synchronise and compute as they should, on machines without a GPU too; not how a GPU rounds
or orders its memory. The tests of the operators are what is run, in a process of its own: it has no other kernels.
"""

import os
import subprocess
import sys

import pytest

from building import EMULATED_SOURCES, TESTS, build

pytestmark = pytest.mark.long

ONE_BLOCK = {}
FEW_THREADS = {"THREADS": 32, "MULTIPROCESSORS": 1}  # that four neurons each fill
WAITING_BLOCKS = {"SHARED": 8000, "MULTIPROCESSORS": 3}
NO_WAITING_BLOCKS = WAITING_BLOCKS | {"COOPERATIVE": 0}
LITTLE_SHARED = FEW_THREADS | {"SHARED": 48 << 10}
BLOCKS_OF_MANY_SAMPLES = {"SHARED": 30000, "MULTIPROCESSORS": 1}


@pytest.fixture(scope="module")
def kernels(once):
    """The path of an extension in `_C`'s place whose CPU kernels are CUDA's."""
    misaligned = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]  # which a GPU does not forgive either
    folder = once("emulated", lambda folder: build(folder, EMULATED_SOURCES, ["-O1", *misaligned]))
    return folder / "_C.abi3.so"


@pytest.mark.parametrize(
    "file, selected, device",
    [
        ("test_leaky.py", "special or strides or last or steps or memory", ONE_BLOCK),
        ("test_leaky.py", "special or steps", FEW_THREADS),
        ("test_ops.py", "(row or steps or nan) and (leaky or lapicque or lif)", ONE_BLOCK),
        ("test_ops.py", "between or negated and (leaky or lapicque or lif or others)", ONE_BLOCK),
        ("test_ops.py", "(row or address) and (leaky or lapicque)", FEW_THREADS),
        ("test_ops.py", "(row or address or steps) and (li or alpha or synaptic)", ONE_BLOCK),
        ("test_ops.py", "(row or address) and li", FEW_THREADS),
        ("test_models.py", "alif and (reference_does or custom or gradients)", ONE_BLOCK),
        ("test_half.py", "", ONE_BLOCK),
        ("test_half.py", "", FEW_THREADS),
        ("test_half.py", "address", LITTLE_SHARED),
        ("test_encoding.py", "philox or layouts or empty or whole or delta_is or (latency_is and 20)", ONE_BLOCK),
        ("test_recompute.py", "bits_hold or bits_of or is_a_spike or three", ONE_BLOCK),
        (
            "test_recurrence.py",
            "(RLeaky or not RSynaptic) and (100 or reference or hidden or empty or turn)",
            ONE_BLOCK,
        ),
        ("test_recurrence.py", "RLeaky and (33 or 7 or reference)", WAITING_BLOCKS),
        ("test_recurrence.py", "RSynaptic and (33 or 7)", WAITING_BLOCKS),
        ("test_recurrence.py", "RLeaky and 33", NO_WAITING_BLOCKS),
        ("test_recurrence.py", "RLeaky and 33", BLOCKS_OF_MANY_SAMPLES),
        ("test_norse.py", "recurrent", WAITING_BLOCKS),
    ],
)
def test_kernels_pass_the_tests_of_their_operators(kernels, file, selected, device):
    settings = {f"SNNFAST_EMULATED_{name}": str(value) for name, value in device.items()}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", TESTS / file, "-k", selected]
    environment = os.environ | settings | {"SNNFAST_EMULATED": str(kernels), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=TESTS.parent)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout
