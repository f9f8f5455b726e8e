"""Time, memory and the machine's own limit."""

import contextlib
import gc
import itertools
import math
import operator
import os
import platform
import random
import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

import snnfast

# A slice of a round lasts about this long, so that short workloads are averaged over passes.
SLICE_MS = 20.0
MAX_PASSES = 20
MIN_ROUNDS = 3


class Workload(Protocol):
    """What is timed: `forward` gives the output, `backward` takes it; `reset` is never timed."""

    def reset(self) -> None: ...

    def forward(self) -> torch.Tensor | tuple[torch.Tensor, ...]: ...

    def backward(self, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None: ...


class Clock:
    """Stamps on the device's own time line: events on CUDA, `perf_counter` on the CPU."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def stamp(self):
        """A moment, opaque until `milliseconds` reads it; does not synchronise."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start, end) -> float:
        """Milliseconds from one stamp to another; waits for the second."""
        if not self.cuda:
            return 1e3 * (end - start)
        end.synchronize()
        return start.elapsed_time(end)


def _stamped_pass(workload: Workload, clock: Clock):
    workload.reset()
    start = clock.stamp()
    output = workload.forward()
    middle = clock.stamp()
    workload.backward(output)
    return start, middle, clock.stamp()


def time_passes(workload: Workload, clock: Clock, passes: int) -> tuple[float, float]:
    """Mean milliseconds of the forward and of the whole pass, over `passes` of them in a row."""
    stamps = [_stamped_pass(workload, clock) for _ in range(passes)]
    forward = statistics.fmean(clock.milliseconds(start, middle) for start, middle, _ in stamps)
    whole = statistics.fmean(clock.milliseconds(start, end) for start, _, end in stamps)
    return forward, whole


@dataclass
class Timing:
    """Milliseconds of each round: the forward, and the whole pass that it begins."""

    forward: list[float]
    whole: list[float]

    def summary(self) -> dict[str, float | int]:
        """Medians over the rounds, with the least and the interquartile range beside them."""
        low, _, high = statistics.quantiles(self.whole, n=4)
        return {
            "forward_ms": statistics.median(self.forward),
            "forward_min_ms": min(self.forward),
            "backward_ms": statistics.median(map(operator.sub, self.whole, self.forward)),
            "forward_backward_ms": statistics.median(self.whole),
            "forward_backward_min_ms": min(self.whole),
            "forward_backward_iqr_ms": high - low,
            "rounds": len(self.whole),
        }


def interleave(workloads: dict[str, Workload], clock: Clock, rounds: int, seconds: float) -> dict[str, Timing]:
    """Times the workloads in turn, round by round, so that a slow spell of the machine hits all.

    Stops after `rounds` rounds or `seconds` seconds, but not before `MIN_ROUNDS`. Every turn begins
    with a pass that is not timed: a training loop repeats one workload, so nobody should pay for
    the caches and the allocator as a neighbour left them.
    """
    passes = {name: passes_per_slice(workload, clock) for name, workload in workloads.items()}
    timings = {name: Timing([], []) for name in workloads}
    names, order = list(workloads), random.Random(0)
    started = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for done in range(max(rounds, MIN_ROUNDS)):
            if done >= MIN_ROUNDS and time.perf_counter() - started > seconds:
                break
            for name in order.sample(names, len(names)):
                time_passes(workloads[name], clock, 1)
                forward, whole = time_passes(workloads[name], clock, passes[name])
                timings[name].forward.append(forward)
                timings[name].whole.append(whole)
    finally:
        gc.enable()
    return timings


def passes_per_slice(workload: Workload, clock: Clock) -> int:
    """Warms the workload up and says how many passes fill a slice."""
    time_passes(workload, clock, 1)
    _, whole = time_passes(workload, clock, 1)
    return min(MAX_PASSES, max(1, math.ceil(SLICE_MS / whole)))


class CopyWorkload:
    """The machine's limit for memory-bound work: a copy too large for any cache."""

    def __init__(self, device: torch.device):
        elements = 2**28 if device.type == "cuda" else 2**26
        self.source = torch.ones(elements, device=device)
        self.target = torch.ones_like(self.source)
        self.nbytes = 2 * self.source.nbytes

    def reset(self):
        pass

    def forward(self):
        return self.target.copy_(self.source)

    def backward(self, copied):
        pass

    def bytes_per_second(self, timing: Timing) -> float:
        """Bytes read and written per second, the median of the rounds, as every time is."""
        return self.nbytes / (1e-3 * statistics.median(timing.whole))


class _Saved:
    """What a graph holds instead of a tensor, so that its death tells of the graph's."""

    def __init__(self, tensor):
        self.tensor = tensor


def retained_bytes(forward: Callable[[], torch.Tensor | tuple[torch.Tensor, ...]], held: Iterable[torch.Tensor]) -> int:
    """Bytes that the graph of `forward` keeps for its backward.

    Whole storages, each counted once; those of `held` (inputs, parameters) and of the output are
    not counted, since the caller keeps them anyway. Nor is what was saved for a part of the graph
    that did not outlive the forward.
    """
    alive = weakref.WeakSet()

    def pack(tensor):
        # Undetached, a saved output would keep its own node alive, and with it the graph.
        saved = _Saved(tensor.detach())
        alive.add(saved)
        return saved

    # Where a compiled loop falls back to Python, the hook would be compiled too.
    with torch.autograd.graph.saved_tensors_hooks(torch.compiler.disable(pack), lambda saved: saved.tensor):
        output = forward()
    storages = [saved.tensor.untyped_storage() for saved in alive]
    kept = {storage.data_ptr(): storage.nbytes() for storage in storages}
    outputs = output if isinstance(output, tuple) else (output,)
    for tensor in (*held, *outputs):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most that `run` holds at once, in bytes, beyond what was allocated before it.

    CUDA: the caching allocator's own count. CPU: the running sum of the profiler's memory events,
    which sees tensors but not what a kernel takes from malloc itself.
    """
    if device.type != "cuda":
        return _cpu_peak_bytes(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak_bytes(run):
    allocations, _ = _cpu_allocations(run)
    return max(itertools.accumulate(allocations, initial=0))


def _cpu_allocations(run):
    """Bytes that were taken (freed: negative) one after the other, and what `run` returned."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        _all_memory_from_torch(),
        torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile,
    ):
        returned = run()
    return list(_sizes(profile.profiler.kineto_results.experimental_event_tree())), returned


def _sizes(tree):
    """Blocks are told by their address: the profiler counts the end of one that it did not see begin as well,
    with the size of whatever earlier profile's block lay there."""
    blocks, live = [], {}
    while tree:
        event = tree.pop()
        tree.extend(event.children)
        if event.tag == torch._C._profiler._EventType.Allocation:
            blocks.append(event)
    for event in sorted(blocks, key=lambda event: event.start_time_ns):
        block = event.extra_fields
        if block.alloc_size > 0:
            live[block.ptr] = block.alloc_size
            yield block.alloc_size
        else:
            yield -live.pop(block.ptr, 0)


@contextlib.contextmanager
def _all_memory_from_torch():
    """The profiler does not see memory of snnfast's own."""
    limit = snnfast.memory.limit()
    snnfast.memory.set_limit(0)
    try:
        yield
    finally:
        snnfast.memory.set_limit(limit)


def held_bytes(forward: Callable[[], torch.Tensor | tuple[torch.Tensor, ...]], device: torch.device) -> int:
    """Bytes that are allocated after `forward` for its backward, beside its output, as `peak_bytes` counts them.

    Unlike `retained_bytes` it sees what is kept outside of autograd's saved tensors, such as checkpoints, and sets no
    hooks, under which nothing waits.
    """

    def run():
        output = forward()
        outputs = output if isinstance(output, tuple) else (output,)
        return outputs, sum(tensor.untyped_storage().nbytes() for tensor in outputs)

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        _, given = run()
        return torch.cuda.memory_allocated(device) - before - given
    allocations, (_, given) = _cpu_allocations(run)
    return sum(allocations) - given


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free for tensors; None where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    available = _line_of("/proc/meminfo", "MemAvailable")
    return 1024 * int(available.split()[0]) if available else None


def device_name(device: torch.device) -> str:
    """The hardware: the GPU's name, or the CPU's model and torch's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_model():
    return _line_of("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _line_of(path, key):
    """What stands behind the key's colon in a file of Linux's; None where there is none."""
    if not os.path.exists(path):
        return None
    with open(path) as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
