"""The public face is annotated: a typed program that uses every name of it, checked and run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import snnfast
from snnfast import encoding, functional, norse, reference, surrogate

PROGRAM = Path(__file__).with_name("typed.py")


def test_the_program_uses_every_public_name():
    text = PROGRAM.read_text()
    unused = [name for name in snnfast.__all__ if not re.search(rf"\bsnn\.{name}\b", text)]
    unused += [f"surrogate.{name}" for name in surrogate.__all__ if f"surrogate.{name}" not in text]
    unused += [f"encoding.{name}" for name in encoding.__all__ if f"encoding.{name}" not in text]
    unused += [f"norse.{name}" for name in norse.__all__ if f"norse.{name}" not in text]
    unused += [name for name in ("functional.leaky", "functional.leaky_step", "reference.leaky") if name not in text]
    assert unused == []


def test_the_program_runs():
    # In a process of its own: it installs what snnfast puts into snnTorch.
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_mypy_finds_nothing_to_say_of_it(tmp_path):
    options = ["--strict", "--follow-imports=silent", f"--cache-dir={tmp_path}"]
    root = PROGRAM.parents[1]
    command = [sys.executable, "-m", "mypy", *options, str(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env={"MYPYPATH": str(root), "PATH": ""})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", [snnfast, encoding, functional, norse, reference, surrogate])
def test_what_is_exported_exists_and_is_described(module):
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert isinstance(getattr(module, name), dict | tuple | type(pytest)) or getattr(module, name).__doc__, name
