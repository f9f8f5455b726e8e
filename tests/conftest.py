"""Every test with the `device` fixture runs on the CPU and, where there is one, on the GPU.

SNNFAST_EMULATED names a build of the CUDA kernels for the CPU (test_emulation.py), SNNFAST_SANITIZED one of the CPU's
(sanitize.py), to run a test on in `_C`'s place.
"""

import fcntl
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import pytest
import snntorch
import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Where the kernels take half precision as it is.
HALF_DEVICES = [device for device in DEVICES if device == "cuda" or "SNNFAST_EMULATED" in os.environ]
collect_ignore = [] if HALF_DEVICES else ["test_half.py"]  # test_emulation.py runs it


def _put_in_place(name, path):
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    sys.modules[name] = module


if extension := os.environ.get("SNNFAST_EMULATED") or os.environ.get("SNNFAST_SANITIZED"):
    _put_in_place("snnfast._C", extension)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=HALF_DEVICES)
def half_device(request):
    return request.param


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, fill): a folder that fill(folder) has filled, once for all processes that pytest runs."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def filled(name, fill):
        folder = shared / name
        folder.mkdir(exist_ok=True)
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "filled").exists():
                fill(folder)
                (folder / "filled").touch()
        return folder

    return filled


@pytest.fixture
def fresh_dynamo():
    """Nothing compiled before is known any more."""
    torch._dynamo.reset()


@pytest.fixture
def no_recorder_stays():
    """Loops are told of from the beginning, and none waits once the test has ended."""
    from snnfast.loops import recording, report  # once `_C` is what it shall be

    report.stories.clear()
    yield
    recording.stop()
    assert torch._C._len_torch_function_stack() == 0


@pytest.fixture
def module(monkeypatch):
    """Imports one of the benchmarks' files as the scripts do, by its bare name."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module


@pytest.fixture(autouse=True)
def _seed_and_poison():
    """Fixed random numbers; deterministic mode fills fresh memory with NaN, which shows any output left unwritten."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _a_list_of_instances_of_its_own(monkeypatch):
    """snnTorch's resets go through all layers that were ever made, those whose constructor failed among them."""
    monkeypatch.setattr(snntorch.SpikingNeuron, "instances", [])
