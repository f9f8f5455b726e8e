"""Training takes no memory it does not need, and on the CPU takes it from the system once, not once an iteration."""

import platform
import subprocess
import sys

import pytest
import torch

from snnfast import functional

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


def test_steps_that_share_a_row_are_not_copied(module, device):
    """A steady current is read where it lies, and so are the gradients of sums over time."""
    steps, row = 64, torch.randn(8, 512, device=device, requires_grad=True)
    sequence = steps * row.numel() * row.element_size()
    peak_bytes = module("measure").peak_bytes
    kept = {}

    def forward():
        kept["spk"], kept["mem"] = functional.leaky(row.expand(steps, -1, -1), beta=0.9)

    def backward():
        (kept["spk"].sum() + kept["mem"].sum()).backward()

    spikes_and_membranes, gradient_and_its_sum = 2, 1
    assert peak_bytes(forward, row.device) < (spikes_and_membranes + 0.5) * sequence
    assert peak_bytes(backward, row.device) < (gradient_and_its_sum + 0.5) * sequence
