"""Training takes no memory it does not need, and on the CPU takes it from the system once, not once an iteration."""

import copy
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading

import pytest
import torch

import snnfast
from snnfast import functional, memory

PROGRAM = """
import resource, sys
import torch
from snnfast import functional

x = torch.rand(*map(int, sys.argv[1:]), requires_grad=True)
weight = torch.rand_like(x)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        spk, mem = functional.leaky(x, beta=0.9)
        spk.backward(weight)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
# The system takes pages back now and then, for reasons of its own.
print(min(faults() for _ in range(4)))
"""

MIB = 1 << 20

own_memory = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11), reason="torch takes no memory of others' before 2.11"
)


def huge_pages_are_given() -> bool:
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text()


@pytest.fixture
def idle():
    """No idle memory before the test, and the usual limit after it."""
    limit = memory.limit()
    snnfast.empty_cache()
    yield
    memory.set_limit(limit)
    snnfast.empty_cache()


def spikes(mebibytes: int, seed: int = 0):
    """Spikes and membranes that take so much each."""
    x = torch.rand(16, 64, 256 * mebibytes, generator=torch.Generator().manual_seed(seed))
    return functional.leaky(x, beta=0.9)


@own_memory
@pytest.mark.parametrize("shape", [(25, 128, 1000), (100, 128, 1024)])
def test_iterations_reuse_freed_memory(shape):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *map(str, shape)]
    faults = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    pages_of_a_tensor = 4 * shape[0] * shape[1] * shape[2] // 4096
    assert faults < pages_of_a_tensor / 4


def huge_pages_of(tensor) -> int:
    """KiB of huge pages in the mapping that a tensor lies in."""
    address, inside = tensor.data_ptr(), False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        first, _, last = line.split(maxsplit=1)[0].partition("-")
        if last:
            inside = int(first, 16) <= address < int(last, 16)
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1])


@own_memory
@pytest.mark.skipif(not huge_pages_are_given(), reason="this system gives no huge pages")
def test_memory_that_is_used_again_has_huge_pages(idle):
    """Where they are slow to get, not at once."""
    for _ in range(150):
        spk, mem = spikes(2)
    assert huge_pages_of(mem) >= 2 << 10


@own_memory
def test_idle_memory_is_bounded_and_given_back(idle):
    spk, mem = spikes(4)
    assert memory.is_own(spk.untyped_storage()) and memory.is_own(mem.untyped_storage())
    assert snnfast.empty_cache() == 0
    del spk, mem
    assert snnfast.empty_cache() == 8 * MIB and snnfast.empty_cache() == 0
    memory.set_limit(6 * MIB)
    spikes(4)
    assert snnfast.empty_cache() == 4 * MIB
    spikes(4)
    memory.set_limit(MIB)
    assert snnfast.empty_cache() == 0


@own_memory
def test_idle_memory_of_other_sizes_makes_room(idle):
    """All blocks together are never more than were in use at once, and 32 MiB."""
    for size in (30, 50, 40, 20):
        spikes(size)
    assert snnfast.empty_cache() <= (100 + 32) * MIB


@own_memory
def test_memory_that_nothing_asks_for_is_given_back(idle):
    spikes(4)
    x = torch.rand(1, 64, 4096)
    for _ in range(1100):
        functional.leaky(x, beta=0.9)
    assert snnfast.empty_cache() <= 3 * MIB


@own_memory
@pytest.mark.parametrize("given", ["0", "3", "-1", "much"])
def test_the_environment_bounds_it_or_turns_it_off(given, idle, monkeypatch):
    monkeypatch.setenv("SNNFAST_MEMORY_MB", given)
    if not given.isdecimal():
        with pytest.raises(ValueError, match=f"SNNFAST_MEMORY_MB must be a whole number of MiB.*{given}"):
            memory._limit_of_environment()
        return
    memory._limit_of_environment()
    spk, _ = spikes(1)
    assert memory.limit() == int(given) * MIB and memory.is_own(spk.untyped_storage()) == (given != "0")


def test_a_limit_is_a_number_of_bytes():
    for size, error in ((1.5, TypeError), (True, TypeError), (-1, ValueError)):
        with pytest.raises(error, match="size must be"):
            memory.set_limit(size)


def test_tensors_of_own_memory_are_like_others(idle):
    spk, mem = spikes(2)
    expected = mem.tolist()
    assert mem.device == torch.device("cpu") and mem.is_contiguous() and mem.untyped_storage().nbytes() == 2 * MIB
    assert pickle.loads(pickle.dumps(mem)).tolist() == expected and copy.deepcopy(mem).tolist() == expected
    view = mem.numpy()
    mem += 1
    assert (view == mem.numpy()).all()
    kept = mem.tolist()
    del mem
    spikes(2, seed=1)
    assert view.tolist() == kept
    shared = spikes(2)[1].share_memory_()
    assert shared.is_shared() and shared.tolist() == expected
    assert spk.resize_(4, 8).shape == (4, 8) and spk.set_(shared).tolist() == expected
    with torch.inference_mode():
        assert spikes(2)[0].is_inference()


@own_memory
def test_own_memory_does_not_grow_in_place(idle):
    with pytest.raises(RuntimeError, match="not resizable"):
        spikes(1)[0].resize_(MIB)


def test_threads_and_forked_children_use_it_at_once(idle):
    expected = [spikes(1, seed) for seed in range(4)]
    wrong = []
    stop = threading.Event()

    def work(seed):
        while not stop.is_set():
            if not all(map(torch.equal, spikes(1, seed), expected[seed])):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                snnfast.empty_cache()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_steps_that_share_a_row_are_not_copied(module, device):
    """A steady current is read where it lies, and so are the gradients of sums over time."""
    steps, row = 64, torch.randn(8, 512, device=device, requires_grad=True)
    sequence = steps * row.numel() * row.element_size()
    peak_bytes = module("measure").peak_bytes
    kept = {}

    def forward():
        kept["spk"], kept["mem"] = functional.leaky(row.expand(steps, -1, -1), beta=0.9)

    def backward():
        (kept["spk"].sum() + kept["mem"].sum()).backward()

    spikes_and_membranes, gradient_and_its_sum = 2, 1
    assert peak_bytes(forward, row.device) < (spikes_and_membranes + 0.5) * sequence
    assert peak_bytes(backward, row.device) < (gradient_and_its_sum + 0.5) * sequence
