"""First calls and step calls of one contender in a process that has run nothing else: a line of JSON.

What run.py starts for its bench `calls`. Imports, construction and the device's context are not timed.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benches import Size
from contenders import CONTENDERS, Contender

REPEATED = 10
# A layer so small that a step's time is its call's.
STEP_SHAPE = (1, 100)
STEPS = 100
SECONDS_AT_MOST = 900


class LayerCalls:
    """Calls of a contender's layer, forward and backward, at any size."""

    def __init__(self, contender: Contender, device: torch.device):
        self.contender, self.device = contender, device
        self.layer = contender.lif().to(device)

    def milliseconds(self, size: Size) -> float:
        """One call, from an idle device to an idle device."""
        x = torch.randn(size.T, size.B, size.N, device=self.device, requires_grad=True)
        gradient = torch.ones_like(x)
        self.contender.reset(self.layer)
        return milliseconds(lambda: self.layer(x).backward(gradient), self.device)


def milliseconds(call, device: torch.device) -> float:
    """Of one call, from an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def layer_calls(contender: Contender, size: Size, device: torch.device) -> dict[str, float]:
    """Milliseconds of the first call, the median later one, and the first with one more step, sample or neuron."""
    calls = LayerCalls(contender, device)
    first = calls.milliseconds(size)
    repeated = statistics.median(calls.milliseconds(size) for _ in range(REPEATED))
    new = {
        f"new_{name.lower()}_ms": calls.milliseconds(dataclasses.replace(size, **{name: getattr(size, name) + 1}))
        for name in ("T", "B", "N")
    }
    return {"first_call_ms": first, "repeated_call_ms": repeated, **new}


def step_microseconds(contender: Contender, device: torch.device) -> float | None:
    """A step's call, its graph recorded, within a loop over steps; None where the contender has none."""
    try:
        step = contender.step()
    except NotImplementedError:
        return None
    if isinstance(step, torch.nn.Module):
        step = step.to(device)
    x = torch.randn(STEP_SHAPE, device=device, requires_grad=True)

    def loop():
        state = None
        for _ in range(STEPS):
            _, state = step(x, state)

    loop()
    return 1e3 * statistics.median(milliseconds(loop, device) for _ in range(REPEATED)) / STEPS


def measured(contender: Contender, size: Size, device: torch.device) -> dict:
    """All of a contender's calls; what goes wrong is its `error`."""
    if contender.compiles:
        # What an earlier run left on disk would hide what a first call costs.
        torch.compiler.config.force_disable_caches = True
    torch.ones(1, device=device)
    try:
        return layer_calls(contender, size, device) | {"step_us": step_microseconds(contender, device)}
    except Exception as error:
        return {"error": described(error)}


def measure_apart(name: str, size: Size, device: torch.device) -> dict:
    """What `measured` says of the contender of that name in a process of its own; raises where the process dies."""
    command = [sys.executable, Path(__file__), name, *map(str, dataclasses.astuple(size))]
    command += ["--device", str(device), "--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_AT_MOST)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def described(error: Exception) -> str:
    """The first line of an error's message, behind its type."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def main() -> None:
    """Prints the contender's calls."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    for name in ("T", "B", "N"):
        parser.add_argument(name, type=int)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contender = CONTENDERS[options.contender].on(options.device)
    print(json.dumps(measured(contender, Size(options.T, options.B, options.N), options.device)))


if __name__ == "__main__":
    main()
