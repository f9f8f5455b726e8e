"""What gpu.sh asks beside the benches of run.py: `python benchmarks/gpu.py bits --json FILE`.

    bits        loads, passes the smoke test, and gives the bits of eager snnTorch
    suite       the suite's tests on the device, file by file
    epochs      rate-fc on real digits: with and without graphs, and as snnTorch publishes it
    products    spikes x weights: float32, TF32, and three bfloat16 parts
    sanitizers  tests of the kernels under compute-sanitizer

Each writes rows of JSON as they come, on tiny sizes where the device is the CPU; one that is bad makes it exit with 1.
"""

import argparse
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import measure
import snnfast
from benches import dtype_name
from run import environment, write_json
from snnfast import parts

ROOT = Path(__file__).parent.parent
NEURONS = {
    "Leaky": {"beta": 0.9},
    "Synaptic": {"alpha": 0.8, "beta": 0.9},
    "Alpha": {"alpha": 0.9, "beta": 0.8},
    "Lapicque": {"beta": 0.9},
    "RLeaky": {"beta": 0.9, "V": 0.3, "all_to_all": False},
    "RSynaptic": {"alpha": 0.8, "beta": 0.9, "V": 0.3, "all_to_all": False},
}
RESETS = ("subtract", "zero", "none")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# The suite's tests on a device, the shortest first, as they are on a CPU.
FILES = (
    *("surrogate", "half", "alif", "cells", "encoding", "recompute", "torch", "models", "leaky", "ops", "family"),
    *("step", "norse", "window", "recurrence", "modules", "transforms", "memory", "compiler"),
)
SANITIZED = "cuda and (row or philox or bits_of or 33 or address)"


def bits(options) -> Iterator[dict]:
    """A row for the load, and one for every neuron, reset, dtype and size."""
    import snntorch

    device = options.device
    reason = snnfast._ext.why_no_kernel_runs(device.index or 0) if device.type == "cuda" else None
    yield {"what": "load", "from": snnfast.__path__[0], "error": reason}
    try:
        runpy.run_path(str(ROOT / "tests" / "smoke.py"))["main"](device)
        error = None
    except Exception as failed:
        error = f"{type(failed).__name__}: {failed}"
    yield {"what": "smoke", "error": error}
    # Rows that are no multiple of four neurons, and on a GPU enough neurons for four a thread.
    shapes = ((20, 7, 33), (10, 64, 8192)) if device.type == "cuda" else ((6, 3, 5),)
    for (name, arguments), reset, dtype, shape in itertools.product(NEURONS.items(), RESETS, DTYPES, shapes):
        options = arguments | {"reset_mechanism": reset}
        # snnTorch's own surrogates round spikes and gradients to float32.
        surrogate = {"spike_grad": snnfast.surrogate.atan()} if dtype == torch.float64 else {}
        ours, theirs = getattr(snnfast, name)(**options), getattr(snntorch, name)(**options, **surrogate)
        x = torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)
        different = compared(ours.to(device), theirs.to(device), x)
        error = f"differ: {', '.join(different)}" if different else None
        yield {
            "what": "bits",
            "neuron": name,
            "reset": reset,
            "dtype": dtype_name(dtype),
            "shape": shape,
            "error": error,
        }


def compared(ours, theirs, x: torch.Tensor) -> list[str]:
    """What differs between a sequence fused and in snnTorch's loop: outputs (spikes first), the input's gradient.

    snnTorch's membranes are as narrow as its input: it is given what ours computes in, float32 or wider.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    fused = ours.unroll(x)
    reset = theirs.reset_mem()
    states = reset if isinstance(reset, tuple) else (reset,)
    states, columns = [state.to(x.device, wide) for state in states], []
    for step in other.to(wide).unbind(0):
        columns.append(theirs(step, *states))
        states = columns[-1][-len(states) :]
    looped = [torch.stack(column) for column in zip(*columns, strict=True)]
    weights = torch.randn(x.shape, device=x.device, generator=torch.Generator(x.device).manual_seed(1))
    for outs in (fused, looped):
        torch.autograd.backward(outs, [weights.to(x.dtype).to(out.dtype) for out in outs])
    pairs = {f"output {k}": pair for k, pair in enumerate(zip(fused, looped, strict=True))}
    pairs["gradient"] = x.grad, other.grad
    return [name for name, (a, b) in pairs.items() if not torch.equal(a.to(b.dtype), b)]


class Outcomes:
    """A plugin of pytest: a row of each file, kept as soon as its last test has run."""

    def __init__(self, kept):
        self.rows, self._kept = {}, kept

    def pytest_runtest_logreport(self, report):
        file = report.nodeid.split("::")[0].rpartition("/")[2]
        if file not in self.rows:
            self._kept(self.rows.values())
        row = self.rows.setdefault(file, {"file": file, "passed": 0, "failed": [], "seconds": 0.0, "error": None})
        row["seconds"] += report.duration
        row["passed"] += report.when == "call" and report.passed
        if report.failed:
            row["failed"].append(report.nodeid.split("::", 1)[1])
            row["error"] = f"{len(row['failed'])} failed"


def suite(options) -> Iterator[dict]:
    """A row for every file of the suite's."""
    import pytest

    files = [str(ROOT / "tests" / name) for name in options.files or [f"test_{name}.py" for name in FILES]]
    outcomes = Outcomes(lambda rows: options.write(list(rows)))
    # The checkout's own snnfast is not to stand before an installed one.
    arguments = ["-q", "--tb=line", "-p", "no:cacheprovider", "-o", "pythonpath=benchmarks", "-k", options.select]
    code = pytest.main([*arguments, *files], plugins=[outcomes])
    yield from outcomes.rows.values()
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        yield {"file": None, "error": f"pytest ended with {code!r}"}


def epochs(options) -> Iterator[dict]:
    """A row for each way to train rate-fc: snnfast's with and without CUDA graphs, snnTorch's loop."""
    sys.path.insert(0, str(ROOT / "examples"))
    import datasets
    from distributed import World
    from training import Run, Settings, metrics

    try:
        digits = datasets.mnist(options.data)
    except datasets.InputError:
        digits = datasets.bundled_digits()
    tiny = options.device.type == "cpu"
    digits = digits.first(256) if tiny else digits
    world = World(rank=0, size=1, device=options.device)
    settings = Settings(
        **{"recipe": "rate-fc", "dataset": digits.name, "samples": len(digits.train_images), "batch_size": 128},
        **{"steps": 3 if tiny else 25, "test_steps": 3 if tiny else 25, "encoder": "rate", "readout": "count"},
        **{"seed": 0, "device": options.device.type, "processes": 1},
    )
    for library, graphs, count in (("snnfast", True, 2), ("snnfast", False, 2), ("snntorch", False, 1)):
        run = Run(settings, library, digits.to(options.device), world, graphs)
        for _ in range(1 if tiny else count):
            run.epoch(count)
        yield {"graphs": graphs, **metrics(run, library), "error": None}


class Product:
    """A matrix product in one of the ways that float32 factors can be multiplied in, as something to time.

    In parts, it is what snnfast computes with `products.choose("parts")`, passes over its factors included.
    """

    WAYS = ("float32", "tf32", "three bfloat16 parts")

    def __init__(self, way: str, left: torch.Tensor, right: torch.Tensor, spikes_first: bool):
        self.way, self.left, self.right, self.spikes_first = way, left, right, spikes_first

    def reset(self):
        pass

    def forward(self):
        if self.way != self.WAYS[2]:
            torch.set_float32_matmul_precision("high" if self.way == "tf32" else "highest")
            return self.left @ self.right
        if self.spikes_first:
            return parts.forward(self.left, self.right.T)
        return parts.grad_weight(self.left.T, self.right)

    def backward(self, product):
        pass


def products(options) -> Iterator[dict]:
    """A row for each size, direction and way: time, and the error against float64."""
    cuda = options.device.type == "cuda"
    generator = torch.Generator(options.device).manual_seed(0)
    clock = measure.Clock(options.device)
    rows, widths = (8000, (1024, 4096, 8192, 16384)) if cuda else (64, (96,))
    for n in widths:
        spikes = (torch.rand(rows, n, generator=generator, device=options.device) < 0.1).float()
        weight = torch.randn(n, n, generator=generator, device=options.device) / n**0.5
        gradient = torch.randn(rows, n, generator=generator, device=options.device)
        for direction, left, right in (("forward", spikes, weight.T), ("weights", gradient.T, spikes)):
            ways = {
                way: Product(way, left, right, direction == "forward") for way in Product.WAYS if cuda or way != "tf32"
            }
            exact = left.double() @ right.double()
            errors = {}
            for way, product in ways.items():
                off = product.forward().double() - exact
                errors[way] = (off.norm() / exact.norm()).item(), off.abs().max().item() / exact.abs().max().item()
                del off
            timings = measure.interleave(ways, clock, rounds=20, seconds=2 if cuda else 0.2)
            for way, (error, largest) in errors.items():
                row = {"n": n, "rows": rows, "direction": direction, "way": way, "milliseconds": None}
                row |= {"milliseconds": timings[way].summary()["forward_ms"], "off": error, "largest_off": largest}
                # Three parts hold 24 bits: they may be as far off as float32, not more by orders.
                yield row | {"error": None if way == "tf32" or error < 1e-6 else "further off than float32"}


def sanitizers(options) -> Iterator[dict]:
    """A row for each tool of compute-sanitizer's on a few tests of every kernel."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    skipped = None
    if options.device.type != "cuda":
        skipped = "no GPU"
    elif not os.access(program, os.X_OK):
        skipped = "there is no compute-sanitizer"
    files = [ROOT / "tests" / f"test_{name}.py" for name in ("ops", "half", "encoding", "recompute", "recurrence")]
    pytest = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-o", "pythonpath=benchmarks", "-k", SANITIZED]
    for tool in ("memcheck", "racecheck"):
        row = {"tool": tool, "skipped": skipped, "said": None, "error": None}
        if not skipped:
            command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, *pytest, *files]
            # Each tensor an allocation of its own: else what lies beyond one is another.
            environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            print(done.stdout, done.stderr, flush=True)
            row["said"] = re.findall(r"ERROR SUMMARY.*|RACECHECK SUMMARY.*|\d+ passed.*", done.stdout)
            row["error"] = f"exit status {done.returncode}" if done.returncode else None
        yield row


STAGES = {stage.__name__: stage for stage in (bits, suite, epochs, products, sanitizers)}


def main() -> int:
    """Runs one; 1 if a row of it is bad."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--json", type=Path, required=True)
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--data", type=Path, default=ROOT / "data", help="holds MNIST/raw; else scikit-learn's digits")
    add("--files", nargs="+", help="of the suite")
    add("--select", default="cuda", help="which tests of the suite, as pytest's -k")
    options = parser.parse_args()
    common = {"bench": options.stage, **environment(options)}
    options.write = lambda rows: write_json([common | row for row in rows], options.json)
    rows = []
    for row in STAGES[options.stage](options):
        print(row, flush=True)
        rows.append(row)
        options.write(rows)
    return int(any(row["error"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
