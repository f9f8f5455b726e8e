"""Whether the working tree is slower than a commit: `python benchmarks/gate.py BASE`, or `make bench-gate BASE=...`.

Both builds run the same few cases, those of the working tree's benchmarks, in pairs of fresh processes. Within a pair
they take turns, so that a slow spell of the machine hits both. A pair gives one ratio, the median of its rounds: what a
process keeps for its life, such as where its memory lies, is thereby counted as chance. Printed is the median of the
pairs' ratios, how many times the commit's milliseconds the working tree's are, with the interval that a sign test
leaves for it:

  slower     the median is above 1 + limit, and the whole interval is above 1
  faster     the same the other way round
  not shown  all else: there may be no difference, a small one, or too few pairs to tell

Exits with 1 if a case is slower, or gives no figures in the working tree.
"""

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

ROOT = Path(__file__).parents[1]
# The probability that the interval misses the median of equal builds.
ALPHA = 0.02
# What a commit's build is made of: where none of it differs, the working tree's build is the commit's as well.
BUILT_FROM = ("csrc", "setup.py", "toolchain.py", "pyproject.toml")


def _of_bench(bench: str, *size: int, contender: str = "snnfast", **options) -> Callable[[], object]:
    def workload():
        import benches
        import contenders

        cpu, dtype = torch.device("cpu"), torch.float32
        if bench == "loops":
            loop, sizes = options["loop"], benches.published.Sizes(*options["sizes"])
            made = benches.LoopsBench(loop, sizes, dtype, cpu)
        elif bench == "onm":
            made = benches.OnmBench(benches.Size(*size), "float32", cpu)
        else:
            made = benches.BENCHES[bench](benches.Size(*size), dtype, cpu)
        return made.workload(contenders.CONTENDERS[contender].on(cpu))

    return workload


# By name: what makes the workload, of about 5 to 100 ms. `-tiny` are for tests.
CASES = {
    "layer": _of_bench("lif", 25, 128, 1000),
    "layer, many steps": _of_bench("lif", 1000, 8, 512),
    "layer, small": _of_bench("lif", 25, 8, 100),
    "linear and layer": _of_bench("onm", 100, 16, 256),
    "training": _of_bench("rate-fc", 25, 64, 500),
    "recurrent": _of_bench("rlif", 100, 32, 128),
    "loop, steps": _of_bench("loops", contender="snnfast-loop", loop="poisson-fc", sizes=(50, 64, (784, 128, 10))),
    "loop, recorded": _of_bench("loops", contender="snnfast-record", loop="poisson-fc", sizes=(50, 64, (784, 128, 10))),
    "layer-tiny": _of_bench("lif", 5, 4, 64),
}
DEFAULT_CASES = [name for name in CASES if not name.endswith("-tiny")]


@dataclass(frozen=True)
class Verdict:
    """How many times the base's time the change's is: the median of the pairs, and its interval (None: too few)."""

    ratio: float
    interval: tuple[float, float] | None
    limit: float

    @property
    def word(self) -> str:
        """faster, slower, or not shown."""
        low, high = self.interval or (0.0, math.inf)
        if self.ratio > 1 + self.limit and low > 1:
            return "slower"
        return "faster" if self.ratio < 1 / (1 + self.limit) and high < 1 else "not shown"

    def __str__(self):
        interval = "{:.3f} to {:.3f}".format(*self.interval) if self.interval else "too few pairs for an interval"
        return f"{self.word}: {self.ratio:.3f} ({interval})"


def judged(ratios: list[float], limit: float) -> Verdict:
    """The verdict on the ratios of independent pairs.

    The interval is of the pairs' own values, from the k-th least to the k-th greatest: the median lies outside it only
    where fewer than k of the pairs fall on one side, as of fair coins.
    """
    ordered, n = sorted(ratios), len(ratios)
    outside, k = 0.0, 0
    while k < n // 2 and 2 * (outside + math.comb(n, k) / 2**n) <= ALPHA:
        outside += math.comb(n, k) / 2**n
        k += 1
    return Verdict(statistics.median(ordered), (ordered[k - 1], ordered[n - k]) if k else None, limit)


@contextlib.contextmanager
def worker(folder: Path, threads: int) -> Iterator["Worker"]:
    """A process that runs cases on the package in a folder when it is told to, and ends with the block."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, __file__, "--worker", str(folder), "--threads", str(threads)]
    environment, pipe = os.environ | {"PYTHONPATH": path}, subprocess.PIPE
    # What it says goes to a file: nobody empties a second pipe while it answers on the first.
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=said, text=True)
        try:
            yield Worker(process, said)
        finally:
            process.kill()
            process.communicate()


@dataclass
class Worker:
    """The process, and what it says on its standard error."""

    process: subprocess.Popen
    said: TextIO

    def milliseconds(self, case: str) -> float:
        """A slice of a case, mean of its passes; raises RuntimeError with what the process said."""
        try:
            self.process.stdin.write(case + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.said.seek(0)
            raise RuntimeError((self.said.read().strip() or "the process died").splitlines()[-1])
        answer = json.loads(answer)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer


def serve(folder: Path, threads: int) -> None:
    """A worker's life: a case's name a line, its milliseconds or an error a line."""
    import measure
    import snnfast

    if not Path(snnfast.__file__).is_relative_to(folder):
        sys.exit(f"snnfast is imported from {snnfast.__file__}, not from {folder}")
    torch.set_num_threads(threads)
    clock = measure.Clock(torch.device("cpu"))
    warm = {}
    for name in map(str.strip, sys.stdin):
        try:
            if name not in warm:
                workload = CASES[name]()
                warm[name] = workload, measure.passes_per_slice(workload, clock)
            workload, passes = warm[name]
            measure.time_passes(workload, clock, 1)
            _, answer = measure.time_passes(workload, clock, passes)
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        print(json.dumps(answer), flush=True)


def pair_ratios(base: Path, change: Path, cases: list[str], rounds: int, threads: int) -> dict[str, float | str]:
    """Of one pair of processes: each case's ratio, or what went wrong, with the side that it went wrong on."""
    ratios = {}
    with worker(base, threads) as one, worker(change, threads) as other:
        sides = {"base": one, "change": other}
        for case in cases:
            found = []
            try:
                for turn in range(rounds):
                    # Whoever comes second finds the other's data in the caches.
                    order = list(sides) if turn % 2 else list(sides)[::-1]
                    times = {}
                    for side in order:
                        times[side] = sides[side].milliseconds(case)
                    found.append(times["change"] / times["base"])
                ratios[case] = statistics.median(found)
            except RuntimeError as error:
                ratios[case] = f"{side}: {error}"
    return ratios


def compare(base: Path, change: Path, options) -> dict[str, Verdict | str]:
    """Each case's verdict, or the first error."""
    pairs = []
    for number in range(options.pairs):
        pairs.append(pair_ratios(base, change, options.cases, options.rounds, options.threads))
        print(f"pair {number + 1} of {options.pairs}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    verdicts = {}
    for case in options.cases:
        errors = [pair[case] for pair in pairs if isinstance(pair[case], str)]
        verdicts[case] = errors[0] if errors else judged([pair[case] for pair in pairs], options.limit)
    return verdicts


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return done.stdout


def checkouts() -> Path:
    """Where checkouts are kept."""
    return ROOT / "build" / "gate"


def checkout(base: str) -> Path:
    """A folder with the commit, its CPU half built; one that was built before is taken again."""
    commit = _git("rev-parse", "--verify", f"{base}^{{commit}}").decode().strip()
    folder = checkouts() / commit
    if list(folder.glob("snnfast/_C.*")):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(_git("archive", commit))) as archive:
        archive.extractall(folder, filter="data")
    if _git("diff", "--name-only", commit, "--", *BUILT_FROM):
        build(folder)
    else:
        for extension in (ROOT / "snnfast").glob("_C.*"):
            shutil.copy(extension, folder / "snnfast")
    return folder


def build(folder: Path) -> None:
    """Compiles the CPU half of a checkout where it stands."""
    print(f"building {folder}: a few minutes", file=sys.stderr, flush=True)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=os.environ | {"SNNFAST_CUDA": "0"}, check=True, stdout=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Prints the verdicts; 1 if a case is slower or fails in the working tree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("base", nargs="?", help="the commit; or a folder that holds a built snnfast")
    add("--change", type=Path, default=ROOT, help="a folder that holds a built snnfast (the working tree)")
    add("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES, help="by default, all that are not tiny")
    add("--limit", type=float, default=0.03, help="what counts as a difference (default 0.03)")
    add("--pairs", type=int, default=11, help="pairs of processes (default 11; below 7 nothing can be shown)")
    add("--rounds", type=int, default=7, help="rounds of a pair (default 7)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of torch")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        serve(options.worker.resolve(), options.threads)
        return 0
    if not options.base:
        parser.error("which commit to compare with?")
    base = Path(options.base).resolve() if Path(options.base, "snnfast").is_dir() else checkout(options.base)
    verdicts = compare(base, options.change.resolve(), options)
    print(f"times of {options.change.resolve()} over those of {options.base}, limit {options.limit:.0%}")
    for case, verdict in verdicts.items():
        print(f"  {case:20} {verdict}")
    failed = [
        case
        for case, verdict in verdicts.items()
        if (verdict.startswith("change") if isinstance(verdict, str) else verdict.word == "slower")
    ]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
