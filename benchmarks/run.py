"""Checks, then times the contenders: `python benchmarks/run.py --help`.

Prints a table and writes rows of JSON. What cannot be imported, is refused or gives a wrong result
is a row with `error` and without figures; sizes too large for the machine are named and left out.
Exits with 1 if a contender of snnfast's is such a row.
"""

import argparse
import datetime
import functools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import measure
import table
from benches import BENCHES, MATMULS, CallsBench, LoopsBench, Size, check, dtype_name, outcome
from calls import described, measure_apart
from contenders import CONTENDERS, Contender, Refused
from deep import DEEP
from published import LOOPS

DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
LIMIT = "limit"
# Of a longer loop on a CPU, the profiler that counts its memory takes minutes to tell.
PROFILED_STEPS = 1000
NOT_MEASURED = dict.fromkeys(
    (
        "check",
        "first_call_s",
        "forward_ms",
        "forward_min_ms",
        "backward_ms",
        "forward_backward_ms",
        "forward_backward_min_ms",
        "forward_backward_iqr_ms",
        "rounds",
        "peak_bytes",
        "copy_bytes_per_s",
        "retained_bytes",
        "limit_ms",
        "limit_share",
        *table.CALLS,
    )
)


@dataclass
class Entry:
    """A contender at one size: its row so far and, unless refused, the workload to time."""

    row: dict
    workload: measure.Workload | None = None


def commit() -> str | None:
    """The checkout's commit, with `-dirty` when tracked files differ from it; None where there is no telling."""
    command = ["git", "describe", "--always", "--dirty", "--match="]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return described.stdout.strip() or None


def refuse_long(contender: Contender, bench, compile_max_t: int) -> None:
    """Raises `Refused` where compiling, or a run, would take minutes."""
    if contender.steps_at_most < bench.size.T:
        raise Refused(f"not run beyond T={contender.steps_at_most}")
    if contender.unrolls and compile_max_t < bench.size.T:
        raise Refused(
            f"not compiled: the graph unrolls T={bench.size.T} steps, more than --compile-max-t {compile_max_t}"
        )


def check_contender(contender: Contender, bench, compile_max_t: int) -> tuple[dict, object]:
    """The row's first entries and the workload, once the result is the specified one."""
    refuse_long(contender, bench, compile_max_t)
    if contender.compiles:
        start_compiler(bench.device)
    workload = bench.workload(contender)
    clock = measure.Clock(bench.device)
    start = clock.stamp()
    result = outcome(workload)
    first_call_s = 1e-3 * clock.milliseconds(start, clock.stamp())
    return {"check": checked(contender, bench, result), "first_call_s": first_call_s}, workload


def checked(contender: Contender, bench, result: dict[str, torch.Tensor]) -> str | None:
    """How the result was checked; None if nothing says what it must be. Raises `WrongResult` if it is another."""
    try:
        expected = bench.expected(contender, result)
    except ImportError as error:
        raise Refused(f"no specification to check against: {error}") from error
    if expected is None:
        return None
    exact = bench.exact(contender)
    check(result, expected, exact)
    return "exact" if exact else "close"


def memory(contender: Contender, workload, bench) -> dict:
    """Peak and retained bytes of one pass, where they are known."""
    device = bench.device
    if not contender.counted or (device.type == "cpu" and bench.size.T > PROFILED_STEPS):
        return {}
    workload.reset()
    if contender.waits:
        # The first passes of a loop that is recorded learn it.
        for _ in range(2):
            workload.backward(workload.forward())
            workload.reset()
        retained = measure.held_bytes(workload.forward, device)
    else:
        retained = measure.retained_bytes(workload.forward, workload.held)
    workload.reset()
    peak = measure.peak_bytes(lambda: workload.backward(workload.forward()), device)
    return {"peak_bytes": peak, "retained_bytes": retained}


def empty_row(contender_class: type[Contender], bench, common: dict) -> dict:
    """A contender's row before anything is measured."""
    return {
        "bench": bench.name,
        "contender": contender_class.name,
        "version": None,
        "same_neuron": bench.same_neuron(contender_class),
        "compiles": contender_class.compiles,
        **common,
        "load": round(os.getloadavg()[0], 2),
        **NOT_MEASURED,
        "error": None,
    }


def enter(contender_class: type[Contender], bench, compile_max_t: int, common: dict) -> Entry:
    """Constructs and checks a contender; whatever goes wrong becomes its row's `error`."""
    row = empty_row(contender_class, bench, common)
    try:
        contender = contender_class.on(bench.device)
        row["version"] = contender.version
        checked, workload = check_contender(contender, bench, compile_max_t)
        checked |= memory(contender, workload, bench)
    except Exception as error:
        row["error"] = described(error)
        return Entry(row)
    return Entry(row | checked, workload)


def late(contender_class: type[Contender], bench, common: dict) -> Entry:
    """The row of a contender for which no time was left."""
    return Entry(empty_row(contender_class, bench, common) | {"error": "Refused: the time of --begin-within was over"})


@functools.cache
def start_compiler(device: torch.device) -> None:
    """Loads and starts torch's compiler, which whoever compiles first would pay for."""
    # The first call is reported, and what an earlier run left on disk would hide its cost.
    torch.compiler.config.force_disable_caches = True
    torch.compile(torch.sin)(torch.ones(2, device=device))


def run_size(bench, contenders: list[type[Contender]], options, common: dict) -> list[dict]:
    """The rows of every contender at one size, timed against each other in the same rounds."""
    # Graphs of earlier sizes would turn the next ones dynamic or exhaust the recompile limit.
    torch.compiler.reset()
    entries = [
        late(each, bench, common) if options.over() else enter(each, bench, options.compile_max_t, common)
        for each in contenders
    ]
    workloads = {e.row["contender"]: e.workload for e in entries if e.workload is not None}
    if not workloads:
        return [entry.row for entry in entries]
    limit = bench.limit()
    clock = measure.Clock(bench.device)
    timed = workloads | ({LIMIT: limit} if limit else {})
    try:
        timings = measure.interleave(timed, clock, options.rounds, options.seconds)
    except Exception as error:
        # Memory that runs out, or a compiler that only now gives up: the other sizes go on.
        return [entry.row | {"error": entry.row["error"] or described(error)} for entry in entries]
    limit_row = bench.limit_row(limit, timings.pop(LIMIT)) if limit else {}
    for entry in entries:
        if timing := timings.get(entry.row["contender"]):
            entry.row |= limit_row | timing.summary()
            if limit:
                entry.row["limit_share"] = limit_row["limit_ms"] / entry.row["forward_backward_ms"]
    return [entry.row for entry in entries]


def run_calls(bench: CallsBench, contenders: list[type[Contender]], options, common: dict) -> list[dict]:
    """The rows of every contender, each in a process of its own."""
    rows = []
    for contender_class in contenders:
        row = empty_row(contender_class, bench, common)
        try:
            contender = contender_class.on(bench.device)
            row["version"] = contender.version
            refuse_long(contender, bench, options.compile_max_t)
            row |= measure_apart(contender.name, bench.size, bench.device)
        except Exception as error:
            row["error"] = described(error)
        rows.append(row)
    return rows


def run_bench(name: str, options, common: dict) -> Iterator[list[dict]]:
    """The rows of one bench at each of its sizes, or of each chosen loop."""
    run = run_calls if name == CallsBench.name else run_size
    for line in BENCHES[name].left_out(options):
        print(f"{name}: {line}", flush=True)
    for bench in BENCHES[name].chosen(options):
        contenders = [each for each in bench.contenders() if each.name in options.contenders]
        with bench.settings():
            yield run(bench, contenders, options, common | {"dtype": dtype_name(bench.dtype), **bench.described()})


def environment(options) -> dict:
    """What the rows of one run share: hardware, versions, commit and date."""
    return {
        "device": measure.device_name(options.device),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(rows: list[dict], path: Path) -> None:
    """Writes the rows whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(rows, indent=1) + "\n")
    unfinished.replace(path)


def default_path(bench: str, loops: list[str], common: dict) -> Path:
    """benchmarks/results/<bench>-<device>-<date>.json; a run of some of the loops also has their names in it."""
    name = "-".join([bench, *loops]) if bench == LoopsBench.name and loops != list(LOOPS) else bench
    device = re.sub(r"[^a-z0-9]+", "-", common["device"].lower()).strip("-")
    return Path(__file__).parent / "results" / f"{name}-{device}-{common['date'][:10]}.json"


def parse_size(text: str) -> Size:
    """`T,B,N` as a size."""
    try:
        size = Size(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected T,B,N as in 25,128,1000, got {text!r}") from None
    if min(size.T, size.B, size.N) < 1:
        raise argparse.ArgumentTypeError(f"T, B and N must be positive: {text!r}")
    return size


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bench", nargs="+", choices=BENCHES, default=list(BENCHES))
    add(
        "--sizes",
        nargs="+",
        type=parse_size,
        metavar="T,B,N",
        help="instead of the benches' own, but of loops and deep",
    )
    add("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), help="those of the bench loops (all)")
    add("--deep", nargs="+", choices=DEEP, default=list(DEEP), help="those of the bench deep (all)")
    add("--dtype", nargs="+", choices=DTYPES, help="instead of every bench's; onm's is float32 with --matmul")
    add("--matmul", nargs="+", choices=MATMULS, default=list(MATMULS), help="how onm's products are computed (all)")
    add("--density", nargs="+", type=float, help="onm on spikes of these densities (its own input: normal numbers)")
    add("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads of torch")
    add("--rounds", type=int, default=30, help="rounds at most per size (default 30)")
    add("--seconds", type=float, default=60, help="seconds of rounds at most per size (default 60)")
    add("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    add("--begin-within", type=float, default=math.inf, metavar="S", help="no contender begins after so many seconds")
    add("--compile-max-t", type=int, default=100, help="no compiled loop beyond this T")
    add("--json", type=Path, help="one file for all rows, not benchmarks/results/<bench>-...json")
    add("--quick", action="store_true", help="tiny sizes, few rounds; no JSON without --json")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    options.over = lambda: time.monotonic() - began > options.begin_within
    options.dtype = options.dtype and [DTYPES[name] for name in options.dtype]
    if options.quick:
        options.rounds, options.seconds = min(options.rounds, 5), min(options.seconds, 2)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen benches; 1 if a contender of snnfast's could not be timed."""
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    common = environment(options)
    all_rows = []
    for bench in options.bench:
        rows = []
        for of_size in run_bench(bench, options, common):
            rows += of_size
            # After every size: a run that is cut off keeps what it measured.
            if options.json:
                write_json([*all_rows, *rows], options.json)
            elif not options.quick:
                write_json(rows, default_path(bench, options.loops, common))
        print(table.bench_tables(rows), flush=True)
        all_rows += rows
    if options.json:
        write_json(all_rows, options.json)
    return int(any(row["error"] for row in all_rows if CONTENDERS[row["contender"]].package == "snnfast"))


if __name__ == "__main__":
    sys.exit(main())
