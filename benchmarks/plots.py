"""Pictures of the benches, made from JSON files of run.py alone: `python benchmarks/plots.py --help`.

One PNG per bench, hardware and dtype; of several runs the newest counts.
"""

import argparse
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

import table  # noqa: E402

MARKERS = "osD^vP*Xhd"
PANEL_INCHES = (4.2, 3.4)
DPI = 110


def _count(number, position=None):
    """A number of steps or neurons, as short as powers of two allow: 256k is 262144."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if number % size == 0:
            return f"{number // size:g}{unit}"
    return f"{number:g}"


def _style(contender, contenders):
    """One colour and marker per contender in all panels."""
    index = contenders.index(contender)
    # Those that share a colour, ten apart, differ in the marker.
    marker = MARKERS[(index + index // 10) % len(MARKERS)]
    return {"color": f"C{index % 10}", "marker": marker, "markersize": 4, "linewidth": 1.2}


def _neuron_steps(row):
    return row["T"] * row["B"] * row["N"]


def _neurons(row):
    return row["B"] * row["N"]


def _panel(axes, rows, contenders, along, scale, floor):
    """A line per contender, and the limit's, over `along(row)`; milliseconds are multiplied by `scale(row)`."""

    def line(of, key, **style):
        points = sorted((along(row), scale(row) * row[key]) for row in of)
        axes.plot(*zip(*points, strict=True), **style)

    for contender in contenders:
        if of := [row for row in rows if row["contender"] == contender]:
            line(of, "forward_backward_ms", label=contender, **_style(contender, contenders))
    # The limit is timed in every size's run: any of its rows has it.
    of = list({along(row): row for row in rows}.values())
    line(of, "limit_ms", label=floor, color="black", linestyle="--", marker="_", linewidth=1)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sorted({along(row) for row in rows}))
    axes.xaxis.set_major_formatter(_count)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _panels(rows, groups, titles, labels, title, **drawn):
    """A figure of a row of panels, one per group of rows, and one legend."""
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    width, height = PANEL_INCHES
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(max(8, width * columns), height * lines + 0.7), sharey=True, squeeze=False
    )
    for axes, group, heading in zip(grid.flat, groups, titles, strict=False):
        _panel(axes, group, contenders, **drawn)
        axes.set(title=heading, xlabel=labels[0])
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel(labels[1])
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.6 / figure.get_figheight(), 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=min(6, len(handles)), fontsize=8)
    return figure


def _by(rows, key):
    """Groups of rows with the same `key(row)`, in its order."""
    return {value: [row for row in rows if key(row) == value] for value in sorted({key(row) for row in rows})}


def _nanoseconds(row):
    return 1e6 / _neuron_steps(row)


def _lif(rows, title):
    """Time per neuron-step against T, a panel per B*N, and against B*N, a panel per T."""
    drawn = {"scale": _nanoseconds, "floor": "copy bandwidth"}
    nanoseconds = "ns per neuron-step, forward + backward"
    for_size, for_steps = _by(rows, _neurons), _by(rows, lambda row: row["T"])
    yield (
        "over-t",
        _panels(
            *(rows, list(for_size.values()), [f"B·N = {_count(size)}" for size in for_size]),
            *(("T", nanoseconds), title),
            along=lambda row: row["T"],
            **drawn,
        ),
    )
    yield (
        "over-bn",
        _panels(
            *(rows, list(for_steps.values()), [f"T = {steps}" for steps in for_steps]),
            *(("B·N", nanoseconds), title),
            along=_neurons,
            **drawn,
        ),
    )


def _onm(rows, title):
    """Time against n, a panel per kind of product, T and B."""
    rows = [row for row in rows if row.get("density") is None]
    panels = _by(rows, lambda row: (row["matmul"], row["T"], row["B"]))
    titles = [f"{matmul}, T={steps}, B={batch}" for matmul, steps, batch in panels]
    labels = ("n", "ms, forward + backward")
    figure = _panels(
        *(rows, list(panels.values()), titles, labels, title),
        along=lambda row: row["N"],
        scale=lambda row: 1,
        floor="the products alone",
    )
    yield "over-n", figure


def _bars(rows, parts, title, label, limit=False, scale="linear"):
    """Bars side by side for the parts, given as name and key of a row, of every contender; they start at zero."""
    figure, axes = plt.subplots(figsize=(8, 1.5 + 0.45 * len(rows)), layout="constrained")
    height = 0.8 / len(parts)
    for index, (name, key) in enumerate(parts.items()):
        filled = [(place + index * height, row[key]) for place, row in enumerate(rows) if row[key] is not None]
        bars = axes.barh(*zip(*filled, strict=True), height=height, label=name)
        axes.bar_label(bars, fmt=table._number, fontsize=7, padding=2)
    if limit:
        axes.axvline(rows[0]["limit_ms"], color="black", linestyle="--", linewidth=1, label="dense products alone")
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], [row["contender"] for row in rows])
    axes.invert_yaxis()
    axes.set(xscale=scale, xlabel=label)
    axes.margins(x=0.1)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def _sized(row):
    return f"t{row['T']}-b{row['B']}-n{row['N']}"


def _each_size(rows, parts, title, label, **options):
    for of in _by(rows, lambda row: (row["T"], row["B"], row["N"])).values():
        of_size = f"{title}\nT={of[0]['T']}, B={of[0]['B']}, N={of[0]['N']}"
        yield _sized(of[0]), _bars(of, parts, of_size, label, **options)


def _rate_fc(rows, title):
    """A training iteration of each contender, a picture per size."""
    parts = {"forward": "forward_ms", "forward + backward": "forward_backward_ms"}
    return _each_size(rows, parts, title, "ms", limit=True)


def _calls(rows, title):
    """First and later calls of each contender, a picture per size."""
    parts = {
        "first call": "first_call_ms",
        "first with T + 1": "new_t_ms",
        "first with B + 1": "new_b_ms",
        "first with N + 1": "new_n_ms",
        "later call": "repeated_call_ms",
    }
    return _each_size(rows, parts, title, "ms, forward + backward", scale="log")


def _named(key):
    """An iteration of each contender, a picture per network of that name."""

    def draw_each(rows, title):
        parts = {"forward": "forward_ms", "forward + backward": "forward_backward_ms"}
        for name, of in _by(rows, lambda row: row[key]).items():
            yield name, _bars(of, parts, f"{title}\n{name}, T={of[0]['T']}, B={of[0]['B']}", "ms")

    return draw_each


BENCHES = {
    **{"lif": _lif, "onm": _onm, "rate-fc": _rate_fc, "calls": _calls, "rlif": _rate_fc, "shd": _rate_fc},
    **{"loops": _named("loop"), "deep": _named("network")},
}


def draw(rows: list[dict], out: Path) -> list[Path]:
    """Writes the pictures of rows as run.py writes them into the folder `out`, and says which.

    Rows with an error, and benches without a picture, are passed over.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    drawable = [row for row in rows if row.get("bench") in BENCHES and not row["error"]]
    for runs in table.newest_runs(drawable):
        group = [row for run in runs for row in run]
        first = group[0]
        title = f"{first['bench']}, {first['dtype']}, {first['device']}, torch {first['torch']}, {first['date'][:10]}"
        for name, figure in BENCHES[first["bench"]](group, title):
            device = re.sub(r"[^a-z0-9]+", "-", first["device"].lower()).strip("-")
            written.append(out / f"{first['bench']}-{name}-{first['dtype']}-{device}.png")
            figure.savefig(written[-1], dpi=DPI)
            plt.close(figure)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Draws what a folder's or files' rows hold; 1 where they hold nothing to draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", default=[Path(__file__).parent / "results"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder (default runs/benchmarks)")
    options = parser.parse_args(arguments)
    written = draw([row for path in options.results for row in table.load(path)], options.out)
    for path in written:
        print(path)
    if not written:
        print(f"nothing to draw: no timed rows of {', '.join(BENCHES)}", file=sys.stderr)
    return int(not written)


if __name__ == "__main__":
    sys.exit(main())
