"""README's picture and its few rows, made from benchmarks/results/*.json: `python benchmarks/headline.py --help`."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import table

START = "<!-- headline:start -->"
END = "<!-- headline:end -->"
ROOT = Path(__file__).parents[1]

MOST_STEPS = 500
"""Of a sequence in one of the rows."""

RECIPES = ("current-fc", "poisson-fc", "norse-recurrent", "norse-conv", "rate-fc", "zero-reset-fc")


class Pair(NamedTuple):
    """The same work on snnfast and on what it is compared with, as rows of one run."""

    what: str
    ours: dict
    theirs: dict

    @property
    def times(self) -> float:
        """How many times as fast snnfast is."""
        key = "seconds_per_epoch" if "recipe" in self.ours else "forward_backward_ms"
        return self.theirs[key] / self.ours[key]


def systems(rows: list[dict]) -> dict[str, Pair | None]:
    """Each published system's newest two trainings on the same hardware; None where there are none."""
    found = dict.fromkeys(RECIPES)
    for row in sorted((row for row in rows if row.get("library") == table.OURS), key=lambda row: row["date"]):
        same = [
            other
            for other in rows
            if other.get("recipe") == row["recipe"]
            and other["library"] != table.OURS
            and other["device"] == row["device"]
        ]
        if same:
            found[row["recipe"]] = Pair(row["recipe"], row, max(same, key=lambda other: other["date"]))
    return found


def _contender(run: list[dict], name: str) -> dict | None:
    return next((row for row in run if row["contender"] in name.split("/") and not row["error"]), None)


def _pairs(rows: list[dict], bench: str, ours: str, theirs: str) -> list[Pair]:
    """The two contenders in every newest run of a bench."""
    runs = [run for of in table.newest_runs([row for row in rows if row.get("bench") == bench]) for run in of]
    pairs = [(_contender(run, ours), _contender(run, theirs)) for run in runs]
    return [Pair(bench, mine, other) for mine, other in pairs if mine and other]


def rows_of(rows: list[dict]) -> list[Pair]:
    """Where snnfast wins most and where least: by layer, by network, by published loop."""
    # Many times as many steps are a study of their own, on the benchmarks' page.
    rows = [row for row in rows if row.get("T", 0) <= MOST_STEPS]
    layer = max(_pairs(rows, "lif", "snnfast", "snntorch"), key=lambda pair: pair.ours["T"])
    own_input = [row for row in rows if row.get("density") is None]
    product = max(_pairs(own_input, "onm", "snnfast", "snntorch"), key=lambda pair: pair.ours["T"])
    recurrent = max(_pairs(rows, "rlif", "snnfast", "norse"), key=lambda pair: pair.ours["T"])
    network = max(_pairs(rows, "rate-fc", "snnfast", "snntorch"), key=lambda pair: pair.ours["date"])
    loop = min(_pairs(rows, "loops", "snnfast-compile", "snntorch/torch"), key=lambda pair: pair.times)
    return [
        layer._replace(what="a layer alone, `Leaky`"),
        product._replace(what="`Linear` and `Leaky`, the Open Neuromorphic benchmark"),
        recurrent._replace(what="a recurrent layer of Norse's"),
        network._replace(what="a training iteration of a small network, mostly products"),
        loop._replace(what=f"the published loop that gains least when compiled, {loop.ours['loop']}"),
    ]


def render(rows: list[dict]) -> str:
    """The table."""
    columns = ("forward + backward", "size", "snnfast ms", "compared with", "its ms", "times as fast", "on")
    lines = []
    for pair in rows_of(rows):
        size = ", ".join(f"{name}={pair.ours[name]}" for name in "TBN" if name in pair.ours)
        ours, theirs = (table._number(row["forward_backward_ms"]) for row in (pair.ours, pair.theirs))
        name = f"{pair.theirs['contender']} {pair.theirs['version']}"
        where = f"{pair.ours['device']}, {pair.ours['date'][:10]}"
        lines.append((pair.what, size, ours, name, theirs, f"{table._number(pair.times)}x", where))
    return table._markdown(columns, lines)


BAR, LEFT, BARS, LABEL = 30, 150, 360, 230


def picture(rows: list[dict]) -> str:
    """Bars, one for each published system: how many times as fast an epoch is."""
    found = systems(rows)
    order = sorted(RECIPES, key=lambda name: -(found[name].times if found[name] else 0))
    unit = BARS / max([pair.times for pair in found.values() if pair], default=1)
    one, bottom = round(LEFT + unit, 1), BAR * len(order) + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + BARS + LABEL} {bottom + 26}" '
        'font-family="sans-serif" font-size="13" fill="#777">',
        f'<line x1="{one}" y1="4" x2="{one}" y2="{bottom}" stroke="#777"/>',
        f'<text x="{one}" y="{bottom + 16}" text-anchor="middle">1x: an epoch takes as long as its original</text>',
    ]
    for k, name in enumerate(order):
        y = BAR * k + 8
        parts.append(f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end" font-family="monospace">{name}</text>')
        pair = found[name]
        if pair is None:
            parts.append(f'<text x="{one + 8}" y="{y + 15}">not trained side by side yet</text>')
            continue
        width = round(pair.times * unit, 1)
        label = (
            f"{table._number(pair.times)}x: {_seconds(pair.ours)} s, {pair.theirs['library']} {_seconds(pair.theirs)} s"
        )
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{width}" height="{BAR - 8}" fill="#e8590c"/>')
        parts.append(f'<text x="{LEFT + width + 8}" y="{y + 15}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _seconds(row: dict) -> str:
    return table._number(row["seconds_per_epoch"])


def main(arguments: list[str] | None = None) -> int:
    """Brings README's rows and the picture up to date; 1 if --check finds that they are not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "pictures" / "systems.svg")
    parser.add_argument("--check", action="store_true", help="write nothing, fail")
    options = parser.parse_args(arguments)
    rows = table.load(options.results)
    wanted = {
        options.readme: table.replace_section(options.readme.read_text(), render(rows), START, END),
        options.picture: picture(rows),
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if options.check:
        for path in stale:
            print(f"{path} is out of date: run python benchmarks/headline.py")
        return int(bool(stale))
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
