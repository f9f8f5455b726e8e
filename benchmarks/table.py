"""The tables of docs/benchmarks.md, made from benchmarks/results/*.json: `python benchmarks/table.py --help`."""

import argparse
import functools
import itertools
import json
import statistics
import sys
from pathlib import Path

START = "<!-- benchmarks:start -->"
END = "<!-- benchmarks:end -->"
BASELINE = "snntorch"
OURS = "snnfast"
AUTHORS = ("snntorch", "torch")
EAGER = "snnfast-loop"
COLUMNS = (
    "contender",
    "forward ms",
    "forward + backward ms",
    "speed-up over snnTorch's loop",
    "share of the limit",
    "retained bytes per neuron-step",
    "peak MB",
)
LOOP_COLUMNS = (
    "published loop",
    "contender",
    "forward ms",
    "forward + backward ms",
    "speed-up over the author's loop",
    "speed-up over snnfast's loop",
    "compiling call s",
    "peak MB",
    "retained MB",
)
DEEP_COLUMNS = (
    "network",
    "contender",
    "forward ms",
    "forward + backward ms",
    "speed-up over snnTorch's neurons",
    "how many times snnfast's best",
    "compiling call s",
    "peak MB",
)
ENCODING_COLUMNS = (
    "encoder",
    "contender",
    "ms",
    "speed-up over snnTorch",
    "share of the limit",
    "peak MB",
)
CELL_COLUMNS = (
    "neuron",
    "contender",
    "forward ms",
    "forward + backward ms",
    "speed-up over the loop",
    "share of the limit",
    "peak MB",
)
ONM_COLUMNS = (
    "size",
    "products",
    "contender",
    "forward ms",
    "backward ms",
    "forward + backward ms",
    "speed-up over snnTorch's loop",
    "share of the products alone",
    "peak MB",
)
# What calls.py measures, and its columns.
CALLS = {
    "first_call_ms": "first call ms",
    "repeated_call_ms": "later call ms",
    "new_t_ms": "first with T + 1 ms",
    "new_b_ms": "first with B + 1 ms",
    "new_n_ms": "first with N + 1 ms",
    "step_us": "one step's call µs",
}
# Beyond so many sizes a bench of layers is one table with a line a size.
SIZES_APART = 4
RECURRENT = ("rlif", "shd")
# Which contender of snnfast's computes what a peer of theirs does; in lif it is OURS for all.
COUNTERPARTS = {
    "norse": "snnfast",
    "norse-compile": "snnfast",
    "snntorch": "snnfast-rleaky",
    "snntorch-compile": "snnfast-rleaky",
    "jaxpike": "snnfast-rleaky",
    "spyx": "snnfast-rleaky",
}
RECIPE_COLUMNS = (
    "recipe",
    "library",
    "hardware",
    "epochs",
    "test accuracy",
    "seconds per epoch",
    "peak MB",
    "date",
)


def load(results: Path) -> list[dict]:
    """All rows in a JSON file, or in those of a folder; a file holds a list of rows or a single one."""
    rows = []
    for path in [results] if results.is_file() else sorted(results.glob("*.json")):
        content = json.loads(path.read_text())
        rows += content if isinstance(content, list) else [content]
    return rows


def _grouped(rows, *keys):
    def key(row):
        # Not every row of a bench has a density.
        return tuple(row.get(each, 0) for each in keys)

    return [list(group) for _, group in itertools.groupby(sorted(rows, key=key), key=key)]


def _newest(rows):
    return max(row["date"] for row in rows)


def _line(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _markdown(columns, lines):
    rule = _line(["---", *["---:"] * (len(columns) - 1)])
    return "\n".join([_line(columns), rule, *(_line(line) for line in lines)])


def _number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _megabytes(nbytes):
    return "-" if nbytes is None else f"{nbytes / 1e6:.1f}"


def _name(row):
    name = " ".join(filter(None, (row["contender"], row["version"])))
    if row["same_neuron"]:
        return name
    return f"{name} (another neuron)" if row["check"] or row["error"] else f"{name} (another neuron, not checked)"


def _milliseconds_of(contenders, rows):
    """Those of the first row of one of the contenders; None where it has none."""
    return next((row["forward_backward_ms"] for row in rows if row["contender"] in contenders), None)


def _speed_up(row, baseline_ms):
    return f"{_number(baseline_ms / row['forward_backward_ms'])}x" if baseline_ms else "-"


def _bench_line(row, baseline_ms):
    return [
        _name(row),
        _number(row["forward_ms"]),
        _number(row["forward_backward_ms"]),
        _speed_up(row, baseline_ms),
        f"{row['limit_share']:.0%}",
        _number(row["retained_bytes"] and row["retained_bytes"] / (row["T"] * row["B"] * row["N"])),
        _megabytes(row["peak_bytes"]),
    ]


def _bench_title(rows):
    first = rows[0]
    title = (
        f"**{first['bench']}**, T={first['T']}, B={first['B']}, N={first['N']}, "
        f"{first['dtype']}, on {first['device']}, torch {first['torch']}, "
        f"{first['date'][:10]}, commit {first['commit']}"
    )
    bandwidth = next(filter(None, (row["copy_bytes_per_s"] for row in rows)), None)
    return f"{title}, copies at {bandwidth / 1e9:.1f} GB/s" if bandwidth else title


def _bench_table(rows):
    timed = [row for row in rows if not row["error"]]
    parts = [_bench_title(rows)]
    if timed:
        baseline_ms = _milliseconds_of((BASELINE,), timed)
        parts.append(_markdown(COLUMNS, [_bench_line(row, baseline_ms) for row in timed]))
    return "\n\n".join([*parts, *_missing(rows)]) + "\n"


def _missing(rows):
    """Why there are no figures: a line for each reason, with all contenders that it holds for."""
    names = {}
    for row in rows:
        if row["error"]:
            names.setdefault(row["error"], []).append(_name(row))
    return [f"No figures for {', '.join(of)}: {reason}" for reason, of in names.items()]


def _newest_run(rows):
    newest = _newest(rows)
    return [row for row in rows if row["date"] == newest]


# What tells a bench's runs apart, beside its hardware and dtype.
RUN_KEYS = {
    "onm": ("T", "B", "N", "matmul", "density"),
    "encoding": ("encoder", "T", "B", "N"),
    "cells": ("cell", "T", "B", "N"),
    "loops": ("loop", "T", "B"),
    "deep": ("network", "T", "B"),
}


def newest_runs(rows: list[dict]) -> list[list[list[dict]]]:
    """Rows of benches: for each bench, hardware and dtype the newest run of every size."""
    return [
        [_newest_run(run) for run in _grouped(group, *RUN_KEYS.get(group[0]["bench"], ("T", "B", "N")))]
        for group in _grouped(rows, "bench", "device", "dtype")
    ]


def _loop_title(row):
    return f"{row['loop']}, T={row['T']}, B={row['B']}"


def _loop_lines(rows):
    timed = [row for row in rows if not row["error"]]
    author_ms, eager_ms = _milliseconds_of(AUTHORS, timed), _milliseconds_of((EAGER,), timed)
    return [
        [
            _loop_title(row),
            _name(row),
            _number(row["forward_ms"]),
            _number(row["forward_backward_ms"]),
            _speed_up(row, author_ms),
            _speed_up(row, eager_ms),
            _number(row["first_call_s"]) if row["compiles"] else "-",
            _megabytes(row["peak_bytes"]),
            _megabytes(row["retained_bytes"]),
        ]
        for row in timed
    ]


def _deep_title(row):
    return f"{row['network']}, T={row['T']}, B={row['B']}, {'-'.join(map(str, row['layers']))}"


def _deep_lines(rows):
    timed = [row for row in rows if not row["error"]]
    baseline_ms = _milliseconds_of((BASELINE,), timed)
    ours_ms = min((row["forward_backward_ms"] for row in timed if row["contender"].startswith(OURS)), default=None)
    return [
        [
            _deep_title(row),
            _name(row),
            _number(row["forward_ms"]),
            _number(row["forward_backward_ms"]),
            _speed_up(row, baseline_ms),
            f"{_number(row['forward_backward_ms'] / ours_ms)}x" if ours_ms else "-",
            _number(row["first_call_s"]) if row["compiles"] else "-",
            _megabytes(row["peak_bytes"]),
        ]
        for row in timed
    ]


def _title_of_runs(name, rows):
    def all_of(key):
        return ", ".join(sorted({str(row[key]) for row in rows}))

    dates = ", ".join(sorted({row["date"][:10] for row in rows}))
    title = f"**{name}**, {rows[0]['dtype']}, on {rows[0]['device']}, torch {all_of('torch')}, {dates}"
    return f"{title}, commit {all_of('commit')}"


def _size(row):
    return f"T={row['T']}, B={row['B']}, N={row['N']}"


def _grid_cell(row, timed):
    if row is None:
        return "-"
    cell = _number(row["forward_backward_ms"])
    if row["bench"] == "lif" and row["contender"] == OURS:
        return f"{cell} ({row['limit_share']:.0%})"
    counterpart = timed.get(COUNTERPARTS.get(row["contender"]) if row["bench"] in RECURRENT else OURS)
    if counterpart is None:
        return cell
    return f"{cell} ({_number(row['forward_backward_ms'] / counterpart['forward_backward_ms'])}x)"


def _grid_line(rows, contenders):
    timed = {row["contender"]: row for row in rows if not row["error"]}
    limit_ms = next(row["limit_ms"] for row in timed.values())
    return [_size(rows[0]), _number(limit_ms), *(_grid_cell(timed.get(each), timed) for each in contenders)]


def _missing_lines(rows, size=_size):
    """Why there are no figures: a line for each contender and reason, with its sizes, if they are not all."""
    sizes, every = {}, {size(row) for row in rows}
    for row in rows:
        if row["error"]:
            sizes.setdefault(f"{_name(row)}: {row['error']}", []).append(size(row))
    return [
        f"No figures for {reason}" + ("" if set(of) == every else f" ({'; '.join(of)})") for reason, of in sizes.items()
    ]


def _grid_table(name, runs):
    """One table for several runs, each of one size and a line."""
    rows = [row for run in runs for row in run]
    # Names of the newest run: versions may differ between runs.
    names = {row["contender"]: _name(row) for row in sorted(rows, key=lambda row: row["date"]) if not row["error"]}
    contenders = [each for each in dict.fromkeys(row["contender"] for row in rows) if each in names]
    compared = "its counterpart's" if name in RECURRENT else f"{OURS}'s, and {OURS}'s share of the limit"
    parts = [f"{_title_of_runs(name, rows)}: ms of forward + backward (and how many times {compared})"]
    if contenders:
        columns = ["size", "limit", *(names[each] for each in contenders)]
        lines = [_grid_line(run, contenders) for run in runs if any(not row["error"] for row in run)]
        parts.append(_markdown(columns, lines))
    return "\n\n".join([*parts, *_missing_lines(rows)]) + "\n"


def _cell_title(row):
    return f"{row['cell']}, {_size(row)}"


def _cell_lines(rows):
    timed = [row for row in rows if not row["error"]]
    baseline_ms = _milliseconds_of(("torch",), timed)
    return [
        [
            _cell_title(row),
            _name(row),
            _number(row["forward_ms"]),
            _number(row["forward_backward_ms"]),
            _speed_up(row, baseline_ms),
            f"{row['limit_share']:.0%}",
            _megabytes(row["peak_bytes"]),
        ]
        for row in timed
    ]


def _encoding_title(row):
    return f"{row['encoder']}, {_size(row)}"


def _encoding_lines(rows):
    timed = [row for row in rows if not row["error"]]
    baseline_ms = _milliseconds_of((BASELINE,), timed)
    return [
        [
            _encoding_title(row),
            _name(row),
            _number(row["forward_backward_ms"]),
            _speed_up(row, baseline_ms),
            f"{row['limit_share']:.0%}",
            _megabytes(row["peak_bytes"]),
        ]
        for row in timed
    ]


def _missing_each(rows, title):
    """Why there are no figures: a line for each row."""
    return [f"No figures for {title(row)}, {_name(row)}: {row['error']}" for row in rows if row["error"]]


def _table_of_runs(name, runs, columns, lines_of, missing):
    """One table for several runs, with lines of each."""
    rows = [row for run in runs for row in run]
    parts = [_title_of_runs(name, rows)]
    if lines := [line for run in runs for line in lines_of(run)]:
        parts.append(_markdown(columns, lines))
    return "\n\n".join([*parts, *missing(rows)]) + "\n"


def _onm_lines(rows):
    timed = [row for row in rows if not row["error"]]
    baseline_ms = _milliseconds_of((BASELINE,), timed)
    return [
        [
            _size(row),
            _product(row),
            _name(row),
            _number(row["forward_ms"]),
            _number(row["backward_ms"]),
            _number(row["forward_backward_ms"]),
            _speed_up(row, baseline_ms),
            f"{row['limit_share']:.0%}",
            _megabytes(row["peak_bytes"]),
        ]
        for row in timed
    ]


def _product(row):
    density = row.get("density")
    return row["matmul"] if density is None else f"{row['matmul']}, {density:.0%} spikes"


def _onm_size(row):
    return f"{_size(row)}, {_product(row)}"


def _calls_table(rows):
    parts = [_bench_title(rows)]
    if lines := [[_name(row), *(_number(row[key]) for key in CALLS)] for row in rows if not row["error"]]:
        parts.append(_markdown(("contender", *CALLS.values()), lines))
    return "\n\n".join([*parts, *_missing(rows)]) + "\n"


def _tables(runs):
    """Those of a bench's runs on one hardware in one dtype."""
    name = runs[0][0]["bench"]
    if name in RECURRENT or (name == "lif" and len(runs) > SIZES_APART):
        return [_grid_table(name, runs)]
    if name in TABLES:
        return [_table_of_runs(name, runs, *TABLES[name])]
    return [_calls_table(run) if name == "calls" else _bench_table(run) for run in runs]


# Columns, lines and why there are no figures, of benches with one table for all their sizes.
TABLES = {
    "onm": (ONM_COLUMNS, _onm_lines, functools.partial(_missing_lines, size=_onm_size)),
    "encoding": (ENCODING_COLUMNS, _encoding_lines, functools.partial(_missing_each, title=_encoding_title)),
    "cells": (CELL_COLUMNS, _cell_lines, functools.partial(_missing_each, title=_cell_title)),
    "loops": (LOOP_COLUMNS, _loop_lines, functools.partial(_missing_each, title=_loop_title)),
    "deep": (DEEP_COLUMNS, _deep_lines, functools.partial(_missing_lines, size=_deep_title)),
}


def bench_tables(rows: list[dict]) -> str:
    """One Markdown table per bench, hardware, dtype and size; for many sizes, and some benches, the sizes are lines.

    Speed-ups hold only within a run, so a table, or a loop, an encoder or a size within one, shows its newest run
    alone.
    """
    order = ("lif", "onm", "rate-fc", "calls", "rlif", "shd", "encoding", "cells", "loops", "deep")
    runs = sorted(newest_runs(rows), key=lambda runs: order.index(runs[0][0]["bench"]))
    return "\n".join(table for group in runs for table in _tables(group))


def _mean(rows, key):
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.fmean(values) if values else None


def _accuracy(rows):
    accuracies = [row["test_accuracy"] for row in rows]
    text = f"{statistics.fmean(accuracies):.2%}"
    if len(accuracies) > 1:
        text += f" ± {statistics.stdev(accuracies):.2%} ({len(accuracies)} seeds)"
    return text


def _recipe_line(rows):
    first = rows[0]
    return [
        first["recipe"],
        " ".join(filter(None, (first["library"], first["version"]))),
        first["device"],
        first["epochs"],
        _accuracy(rows),
        _number(_mean(rows, "seconds_per_epoch")),
        _megabytes(_mean(rows, "peak_bytes")),
        _newest(rows)[:10],
    ]


def recipes_table(rows: list[dict]) -> str:
    """One Markdown line per recipe, library, hardware and epochs: the mean over the seeds.

    Of several runs with one seed the newest counts. `test_accuracy` is a share of 1.
    """
    newest = [
        max(group, key=lambda row: row["date"])
        for group in _grouped(rows, "recipe", "device", "epochs", "library", "seed")
    ]
    groups = _grouped(newest, "recipe", "device", "epochs", "library")
    return _markdown(RECIPE_COLUMNS, [_recipe_line(group) for group in groups]) + "\n"


def render(rows: list[dict]) -> str:
    """All tables."""
    parts = []
    if benches := [row for row in rows if "bench" in row]:
        parts.append(bench_tables(benches))
    if recipes := [row for row in rows if "recipe" in row]:
        parts.append(recipes_table(recipes))
    return "\n".join(parts)


def replace_section(text: str, tables: str, start: str = START, end: str = END) -> str:
    """`text` with `tables` between the two markers."""
    if text.count(start) != 1 or text.count(end) != 1 or text.index(end) < text.index(start):
        raise ValueError(f"the file must hold {start} and, after it, {end}, once each")
    before, rest = text.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n\n{tables}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables or brings a page up to date; 1 if --check finds it is not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--page", type=Path, help=f"rewrite the text after {START} in this file")
    parser.add_argument("--check", action="store_true", help="with --page: write nothing, fail")
    options = parser.parse_args(arguments)
    if options.check and not options.page:
        parser.error("--check needs --page")
    tables = render(load(options.results))
    if not options.page:
        print(tables)
        return 0
    text = options.page.read_text()
    updated = replace_section(text, tables)
    if not options.check:
        options.page.write_text(updated)
    elif updated != text:
        print(f"{options.page} is out of date: run python benchmarks/table.py --page", end=" ")
        print(options.page)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
