"""The benchmark of the field's libraries on one machine: `python benchmarks/public.py`, or `make bench-public`.

Runs run.py once for each of the stages below, in a process of its own that is stopped in time, so that one that is cut
off or dies costs the others nothing. A stage's rows are written when they exist, to a file of their own in --out;
what is not installed, is refused, or would have begun after the stage's time is a row without figures and with the
reason. Then: `python benchmarks/table.py --page docs/benchmarks.md`. Exits with 1 if a stage failed or was cut off.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

import measure
from deep import DEEP
from published import LOOPS

HERE = Path(__file__).parent
# By name: the seconds within which contenders begin, what is asked of run.py, and sizes, which --quick leaves out.
STAGES = {
    "layer": (150, ["--bench", "lif"], ["--sizes", "25,128,1000", "500,16,512"]),
    "long": (120, ["--bench", "lif"], ["--sizes", "1000,16,512", "10000,4,128"]),
    "onm": (60, ["--bench", "onm", "--matmul", "float32"], []),
    "training": (120, ["--bench", "rate-fc"], []),
    "recurrent": (150, ["--bench", "rlif"], ["--sizes", "100,32,256", "1000,32,100"]),
    "shd": (90, ["--bench", "shd"], []),
    **{f"deep-{name}": (150, ["--bench", "deep", "--deep", name], []) for name in DEEP},
    **{f"loops-{name}": (60, ["--bench", "loops", "--loops", name], []) for name in LOOPS},
}
# Rounds of a size, and steps that are compiled: unrolled, 50 of them take about a minute.
SIZE = ["--seconds", "12", "--rounds", "15", "--compile-max-t", "50"]


def command(stage: str, options, seconds: float) -> list[str]:
    """run.py for a stage, with so many seconds."""
    _, arguments, sizes = STAGES[stage]
    device = re.sub(r"[^a-z0-9]+", "-", measure.device_name(torch.device("cpu")).lower()).strip("-")
    path = options.out / f"public-{stage}-{device}-{time.strftime('%Y-%m-%d', time.gmtime())}.json"
    arguments = arguments + SIZE + (["--quick"] if options.quick else sizes) + options.run
    common = ["--device", "cpu", "--threads", str(torch.get_num_threads()), "--begin-within", str(seconds)]
    return [sys.executable, str(HERE / "run.py"), *common, *arguments, "--json", str(path)]


def run_stage(stage: str, options, left: float) -> str | None:
    """Runs a stage; what went wrong, or None."""
    seconds = min(STAGES[stage][0], left / 2)
    if seconds <= 0:
        return "not run, no time left"
    # A compiler at work is not interrupted at once; what has begun is timed to its end.
    process = subprocess.Popen(command(stage, options, seconds), start_new_session=True)
    try:
        code = process.wait(timeout=min(3 * seconds + 60, left))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return "cut off"
    return f"exit status {code}" if code else None


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen stages; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="those to run (all)")
    add("--quick", action="store_true", help="tiny sizes and few rounds, to see that all of it runs")
    add("--minutes", type=float, default=30, help="minutes of all stages together at most (default 30)")
    add("--threads", type=int, help="CPU threads of torch, and of XLA")
    add("--out", type=Path, help="folder for the JSON (benchmarks/results; with --quick build/public)")
    add("--run", nargs=argparse.REMAINDER, default=[], help="what follows goes to run.py, as in --run --contenders ...")
    options = parser.parse_args(arguments)
    options.out = options.out or (HERE.parent / "build" / "public" if options.quick else HERE / "results")
    if options.threads:
        torch.set_num_threads(options.threads)
    began, failed = time.monotonic(), []
    for stage in options.stages:
        print(f"--- {stage}, load {os.getloadavg()[0]:.1f}", flush=True)
        before = time.monotonic()
        if wrong := run_stage(stage, options, 60 * options.minutes - (before - began)):
            failed.append(f"{stage}: {wrong}")
        print(f"--- {stage}: {wrong or 'done'}, {time.monotonic() - before:.0f} s", flush=True)
    print(*failed, sep="\n")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
