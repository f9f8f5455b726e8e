"""`import snnfast` is light, and changes nothing of the process that it is a guest in."""

import json
import subprocess
import sys
from pathlib import Path

import snnfast

PROGRAM = """
import json, os, sys, warnings
import torch

def process():
    return dict(os.environ), list(warnings.filters), len(os.listdir("/proc/self/task")), torch.get_num_threads()

before, state = process(), torch.get_rng_state()
import snnfast
assert process() == before and torch.equal(torch.get_rng_state(), state)
print(json.dumps(list(sys.modules)))
"""


def test_importing_changes_nothing_and_leaves_the_compiler_out():
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    imported = {name.split(".")[0] if name[:6] != "torch." else name for name in json.loads(said)}
    assert not imported & {"sympy", "triton", "torch._dynamo", "torch._inductor"}
    assert "snnfast" in imported


def test_no_allocator_is_set_for_the_process():
    (library,) = Path(snnfast.__file__).parent.glob("_C.*so")
    assert b"mallopt" not in library.read_bytes()


def test_what_compiles_is_there_when_asked_for():
    assert "explain" in dir(snnfast) and snnfast.explain.__module__ == "snnfast.compiler.explain"
