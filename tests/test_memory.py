"""Training on the CPU takes its memory from the system once, not once an iteration."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from torch import nn
import snnfast as snn

steps, batch, neurons = map(int, sys.argv[1:])
net = snn.Unroll(nn.Sequential(nn.Linear(8, neurons), snn.Leaky(0.9)))
x = torch.rand(steps, batch, 8)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        net(x).sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc to keep freed memory")
@pytest.mark.parametrize("shape", [(25, 128, 1000), (100, 128, 1024)])
def test_iterations_reuse_freed_memory(shape):
    faults = [_page_faults_once_settled(shape) for _ in range(2)]
    pages_of_a_tensor = 4 * shape[0] * shape[1] * shape[2] // 4096
    assert max(faults) < pages_of_a_tensor, faults


def _page_faults_once_settled(shape) -> int:
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *map(str, shape)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
