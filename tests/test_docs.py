"""What is written for users runs: every example of a docstring, every block of a page."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import snnfast as snn
from snnfast import encoding, functional, norse, surrogate

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text() for page in FILES}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULES = [snn.__name__, *(found.name for found in pkgutil.walk_packages(snn.__path__, "snnfast."))]
EXAMPLES = [
    name
    for name in MODULES
    if not name.endswith(("_C", "_C_cuda", "__main__")) and ">>>" in inspect.getsource(importlib.import_module(name))
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_run(name):
    names = {"torch": torch, "nn": nn, "snn": snn, "norse": norse}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, ran = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=flags)
    assert ran and not failed


@pytest.mark.parametrize("module", [snn, encoding, functional, norse, surrogate])
def test_every_public_name_has_an_example(module):
    said = {name: getattr(module, name) for name in module.__all__ if callable(getattr(module, name))}
    without = [name for name, thing in said.items() if ">>>" not in (thing.__doc__ or "")]
    assert set(without) <= {"load_ipython_extension", "unload_ipython_extension"}


def described(thing, module, depth=3) -> str:
    """Its docstring, and those of what this refers to by name."""
    doc = inspect.getdoc(thing) or ""
    named = set(re.findall(r"`(?:snnfast\.)?(\w+)`", doc)) if depth else ()
    others = [getattr(module, name) for name in named if name in module.__all__]
    return "\n".join([doc, *(described(other, module, depth - 1) for other in others if other is not thing)])


@pytest.mark.parametrize("module", [snn, encoding, functional, norse, surrogate])
def test_every_argument_and_error_is_described(module):
    """Where it is, or by the name of what takes the same."""
    for name in module.__all__:
        thing = getattr(module, name)
        if not callable(thing) or name.endswith("ipython_extension"):
            continue
        doc, arguments = described(thing, module), set(inspect.signature(thing).parameters) - {"args", "kwargs"}
        assert [argument for argument in arguments if not re.search(rf"\b{argument}\b", doc)] == [], name
        numbers = isinstance(thing, type) and issubclass(thing, tuple | surrogate.Surrogate)
        assert "Raises:" in doc or numbers or not arguments, name


# test_own_data.py asks what that page's blocks print, too.
@pytest.mark.parametrize(
    "page", [name for name, text in PAGES.items() if BLOCK.search(text) and name != "docs/howto/own_data.md"]
)
def test_code_blocks_of_pages_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, block in enumerate(BLOCK.findall(PAGES[page]), start=1):
        exec(compile(block, f"{page}, block {number}", "exec"), names)


def test_links_between_pages_lead_somewhere():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", BLOCK.sub("", text)):
            assert ((ROOT / name).parent / target).exists(), (name, target)


def test_the_readme_is_short_and_its_figures_are_of_the_results(module):
    assert len(PAGES["README.md"].splitlines()) <= 150
    assert module("headline").main(["--check"]) == 0
    assert module("table").main(["--page", str(ROOT / "docs" / "benchmarks.md"), "--check"]) == 0


def test_headline_rows_are_chosen_by_the_results(module):
    headline = module("headline")
    rows = module("table").load(ROOT / "benchmarks" / "results")
    pairs = headline.rows_of(rows)
    assert len(pairs) == 5 and all(not pair.ours["error"] for pair in pairs)
    loops = [row for row in rows if row.get("loop") == pairs[-1].ours["loop"]]
    assert pairs[-1].ours in loops and pairs[-1].times == min(
        pair.times for pair in headline._pairs(rows, "loops", "snnfast-compile", "snntorch/torch")
    )
    found = headline.systems(rows)
    assert all(pair is None or pair.ours["device"] == pair.theirs["device"] for pair in found.values())
    slower = [
        dict(row, seconds_per_epoch=2 * row["seconds_per_epoch"]) if row.get("library") == "snnfast" else row
        for row in rows
    ]
    assert headline.picture(slower) != headline.picture(rows)
