"""The gate between two builds: verdicts on given ratios, and on a build that was made slow."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAIRS = 9


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([1.10] * PAIRS, "slower"),
        ([0.90] * PAIRS, "faster"),
        ([1.02] * PAIRS, "not shown"),
        ([1.2, 1.2, 1.2, 1.2, 1.2, 0.9, 0.9, 1.2, 1.2], "not shown"),
        ([1.2, 1.2, 1.2, 1.2, 1.2, 0.9, 1.2, 1.2, 1.2], "not shown"),
        ([5.0, 1.04, 1.05, 1.04, 1.06, 1.04, 1.01, 1.04, 1.06], "slower"),
        ([1.2] * 6, "not shown"),
    ],
)
def test_a_difference_has_to_be_large_and_sure(module, ratios, word):
    assert module("gate").judged(ratios, limit=0.03).word == word


def test_the_interval_is_that_of_the_sign_test(module):
    judged = module("gate").judged
    assert judged(list(range(1, 7)), 0.03).interval is None
    # All of 7 on one side: 2 / 2^7 = 1.6 %. One of 11 on the other: 2 * 12 / 2^11 = 1.2 %; two, 6.5 %.
    assert judged(list(range(1, 8)), 0.03).interval == (1, 7)
    assert judged(list(range(11, 0, -1)), 0.03).interval == (2, 10)


def tree(folder, slow=""):
    """A folder with this package in it, and a line more."""
    shutil.copytree(ROOT / "snnfast", folder / "snnfast", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "snnfast" / "unroll.py", "a") as source:
        source.write(slow)
    return folder


SLOW = """
import time
_fast = Unroll.forward
def _slow(self, x):
    time.sleep(0.002)
    return _fast(self, x)
Unroll.forward = _slow
"""


def run(module, base, change, *arguments):
    tiny = ["--cases", "layer-tiny", "--pairs", "7", "--rounds", "3", "--threads", "1"]
    return module("gate").main([str(base), "--change", str(change), *tiny, *arguments])


@pytest.mark.long
def test_a_slow_build_is_told_and_so_is_a_fast_one(module, tmp_path, capsys):
    base, change = tree(tmp_path / "base"), tree(tmp_path / "change", SLOW)
    assert run(module, base, change) == 1
    assert "slower: " in capsys.readouterr().out
    assert run(module, change, base) == 0
    assert "faster: " in capsys.readouterr().out


@pytest.mark.long
def test_of_equal_builds_nothing_is_shown(module, tmp_path, capsys):
    # What a busy machine does to the tiny case is no difference of the builds: the limit is wide.
    assert run(module, tree(tmp_path / "base"), ROOT, "--limit", "0.5") == 0
    assert "not shown: " in capsys.readouterr().out


def test_a_case_that_fails_says_on_which_side_and_fails_the_gate_only_there(module, tmp_path, capsys):
    broken = tree(tmp_path / "broken", "raise ImportError('broken by the test')\n")
    assert run(module, ROOT, broken, "--pairs", "1") == 1
    assert "change: ImportError: broken by the test" in capsys.readouterr().out
    assert run(module, broken, ROOT, "--pairs", "1") == 0
    assert "base: ImportError: broken by the test" in capsys.readouterr().out


def test_a_checkout_is_the_commit_and_takes_the_build_where_no_source_of_it_differs(module, tmp_path, monkeypatch):
    gate = module("gate")
    built = []
    monkeypatch.setattr(gate, "build", built.append)
    monkeypatch.setattr(gate, "checkouts", lambda: tmp_path)
    folder = gate.checkout("HEAD")
    assert (folder / "snnfast" / "__init__.py").exists() and folder.is_relative_to(tmp_path)
    assert bool(built) != bool(list(folder.glob("snnfast/_C.*")))
    with pytest.raises(SystemExit, match="no-such-commit"):
        gate.checkout("no-such-commit")
