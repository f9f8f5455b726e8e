"""benchmarks/gpu.sh, on the CPU: every stage leaves its rows, and none stops those after it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import snntorch
import torch

import snnfast

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
TIMED = {"forward_ms", "forward_backward_ms", "limit_share", "contender", "T", "B", "N"}
FIELDS = {
    "a": {"what"},
    "b": {"file", "passed", "failed", "seconds"},
    "c": {"graphs", "library", "test_accuracy", "seconds_per_epoch"},
    "d": TIMED,
    "e": TIMED | {"matmul"},
    "f": TIMED,
    "g": {"n", "direction", "way", "milliseconds", "off", "largest_off"},
    "h": {"tool", "skipped", "said"},
    "i": {"first_call_ms", "repeated_call_ms", "step_us"},
}


def run(folder, *arguments, python=sys.executable):
    """The rows of stages.jsonl, by letter, and how it ended."""
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHON": str(python), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [SCRIPT, "--cpu", "--out", folder, "--data", folder, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (folder / "stages.jsonl").exists(), done.stdout + done.stderr
    stages = map(json.loads, (folder / "stages.jsonl").read_text().splitlines())
    return {stage["stage"]: stage for stage in stages}, done


@pytest.mark.long
def test_every_stage_leaves_its_rows(tmp_path):
    stages, done = run(tmp_path / "out")
    assert [*stages] == [*FIELDS] and done.returncode == 0, done.stdout
    for letter, fields in FIELDS.items():
        assert stages[letter]["status"] == "passed"
        rows = json.loads((tmp_path / "out" / f"{letter}.json").read_text())
        for row in rows:
            assert {*fields, "bench", "device", "torch", "commit", "date", "error"} <= {*row}
        assert any(not row["error"] for row in rows)
    assert sum(stage["limit_s"] for stage in stages.values()) <= 12 * 60


def test_a_stage_that_fails_or_takes_too_long_stops_no_other(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(
        '#!/bin/sh\ncase "$*" in *"--bench lif"*) echo "no such kernel"; exit 3;; *rlif*) sleep 60;; esac\n'
        "for last; do :; done\necho '[]' > $last\n"
    )
    fake.chmod(0o755)
    stages, done = run(tmp_path / "out", "--only", "d,f,g", "--at-most", "2", python=fake)
    assert {letter: stage["status"] for letter, stage in stages.items()} == {
        "d": "failed",
        "f": "cut off",
        "g": "passed",
    }
    assert stages["d"]["exit"] == 3 and stages["f"]["limit_s"] == 2 and 2 <= stages["f"]["seconds"] < 10
    assert done.returncode == 1 and "no such kernel" in done.stdout
    stages, _ = run(tmp_path / "late", "--only", "f,g", "--seconds", "2", python=fake)
    assert stages["g"]["status"] == "cut off" and stages["g"]["limit_s"] <= 0


def test_a_machine_without_git_has_no_commit(module, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert module("run").commit() is None


def test_wrong_bits_are_named(module):
    gpu, x = module("gpu"), torch.randn(6, 3, 5)
    assert gpu.compared(snnfast.Leaky(0.9), snntorch.Leaky(0.9), x) == []
    assert gpu.compared(snnfast.Leaky(0.5), snntorch.Leaky(0.9), x) == ["output 0", "output 1", "gradient"]


@pytest.mark.parametrize("spikes_first", [True, False])
def test_three_bfloat16_parts_hold_what_float32_holds(module, spikes_first):
    gpu = module("gpu")
    spikes, other = (torch.rand(40, 30) < 0.3).float(), torch.randn(30, 40)
    pair = (spikes, other) if spikes_first else (other, spikes)
    product = gpu.Product("three bfloat16 parts", *pair, spikes_first).forward()
    exact = pair[0].double() @ pair[1].double()
    assert product.dtype == torch.float32 and (product - exact).abs().max() < 1e-6 * exact.abs().max()
