"""A recipe on snnfast and on its authors' library, one process each, and their figures side by side."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch.distributed import is_torchelastic_launched

from files import InputError
from recipes import RECIPES
from training import import_library

COMMAND = Path(__file__).with_name("mnist.py")


def compare(args: argparse.Namespace) -> int:
    """Train with the arguments of mnist.py on both libraries, print a table, and return the exit code.

    Each library has a directory of its own in --plots, with its metrics.json, checkpoint and pictures. With --resume
    each goes on from its checkpoint; one that has none begins.
    """
    for name in ("library", "checkpoint", "out"):
        if getattr(args, name) is not None:
            raise InputError(f"argument --{name}: not allowed with --compare, which runs two libraries")
    if is_torchelastic_launched():
        raise InputError("argument --compare: not allowed under torchrun")
    libraries = RECIPES[args.recipe].libraries[:2]
    for library in libraries:
        import_library(library, args.recipe)
    directories = {library: (args.plots or Path("runs") / args.recipe) / library for library in libraries}
    if args.resume and not any(_checkpoint(directory).exists() for directory in directories.values()):
        raise InputError(f"argument --resume: there is no {' and no '.join(map(str, directories.values()))} to resume")
    for library, directory in directories.items():
        print(f"{args.recipe} on {library}", flush=True)
        code = _run(_command(args, library, directory))
        if code:
            return code
    print(table([json.loads((directory / "metrics.json").read_text()) for directory in directories.values()]))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Time per epoch, accuracy and peak memory of metrics rows, one line each, and how the times compare."""
    lines = [f"{'library':<20}{'s per epoch':>14}{'test accuracy':>16}{'peak memory':>16}"]
    for row in rows:
        lines.append(
            f"{row['library'] + ' ' + row['version']:<20}{row['seconds_per_epoch']:>14.2f}"
            f"{row['test_accuracy']:>16.2%}{row['peak_bytes'] / 1e6:>13.0f} MB"
        )
    ours, theirs = rows
    speedup = theirs["seconds_per_epoch"] / ours["seconds_per_epoch"]
    lines.append(f"an epoch on {ours['library']} is {speedup:.2f} times as fast as on {theirs['library']}")
    return "\n".join(lines)


def _command(args: argparse.Namespace, library: str, directory: Path) -> list[str]:
    resume = args.resume and _checkpoint(directory).exists()
    chosen = vars(args) | {"compare": False, "resume": False, "library": library, "plots": directory}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items() if value not in (None, False)]
    return [sys.executable, str(COMMAND), *options, *(["--resume"] if resume else [])]


def _checkpoint(directory: Path) -> Path:
    return directory / "checkpoint.pt"


def _run(command: list[str]) -> int:
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reaches the process as well, which says where it stopped.
            try:
                return process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.terminate()
                raise
