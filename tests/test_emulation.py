"""The CUDA kernels, compiled for the CPU and run there thread by thread (emulation/cuda_runtime.h).

It shows that they index, synchronise and compute as they should, on machines without a GPU too; not how a GPU rounds
or orders its memory. The tests of the operators are what is run, in a process of its own: it has no other kernels.
"""

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

pytestmark = pytest.mark.long

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"
CUDA_SOURCES = ("alif", "bits", "lapicque", "leaky", "lif", "rleaky")
SOURCES = ("ops.cpp", "cpu/product.cpp", *(f"cuda/{name}.cu" for name in CUDA_SOURCES))

ONE_BLOCK = {}
FEW_THREADS = {"THREADS": 32, "MULTIPROCESSORS": 1}  # that four neurons each fill
WAITING_BLOCKS = {"SHARED": 8000, "MULTIPROCESSORS": 3}
BLOCKS_OF_MANY_SAMPLES = {"SHARED": 30000, "MULTIPROCESSORS": 1}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The path of an extension in `_C`'s place whose CPU kernels are CUDA's."""
    folder = tmp_path_factory.mktemp("emulated")
    include = [TESTS / "emulation", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    misaligned = ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]  # which a GPU does not forgive either
    flags = ["-O1", *misaligned, "-std=c++20", "-ffp-contract=off", "-w", "-fPIC", "-fvisibility=hidden"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", *(f"-I{path}" for path in include)]

    def compiled(source):
        target = folder / f"{Path(source).stem}.o"
        subprocess.run(["g++", *flags, "-x", "c++", "-c", CSRC / source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, SOURCES))
    libraries = [flag for path in cpp_extension.library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    extension = folder / "_C.abi3.so"
    subprocess.run(["g++", "-shared", "-o", extension, *objects, *libraries, "-ltorch_cpu", "-lc10"], check=True)
    return extension


@pytest.mark.parametrize(
    "file, selected, device",
    [
        ("test_leaky.py", "special or strides or last or steps or memory", ONE_BLOCK),
        ("test_leaky.py", "special or steps", FEW_THREADS),
        ("test_ops.py", "row and (leaky or lapicque or lif)", ONE_BLOCK),
        ("test_ops.py", "(row or address) and (leaky or lapicque)", FEW_THREADS),
        ("test_models.py", "alif and (reference_does or custom or gradients)", ONE_BLOCK),
        ("test_half.py", "", ONE_BLOCK),
        ("test_half.py", "", FEW_THREADS),
        ("test_recompute.py", "bits_hold or bits_of or is_a_spike or three", ONE_BLOCK),
        ("test_recurrence.py", "(RLeaky or not RSynaptic) and (100 or reference or hidden or empty)", ONE_BLOCK),
        ("test_recurrence.py", "RLeaky and (33 or 7 or reference)", WAITING_BLOCKS),
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
