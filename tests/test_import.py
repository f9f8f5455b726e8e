"""`import snnfast` is light, and changes nothing of the process that it is a guest in."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


COMPILED_LATER = """
import sys, warnings
import torch
import snnfast as snn

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = torch.nn.Linear(8, 5), snn.Leaky(beta=0.9)

    def forward(self, x):
        mem, spikes = self.lif.init_leaky(), []
        for x_t in x:
            spk, mem = self.lif(self.fc(x_t), mem)
            spikes.append(spk)
        return torch.stack(spikes)

x = 3 * torch.rand(12, 4, 8)
net = Net()
expected = net(x)
recorded = snn.accelerate(Net())
for _ in range(4):
    recorded(x)
assert "torch._dynamo" not in sys.modules
warnings.filterwarnings("error", message="Dynamo does not know")
compiled = %s
for _ in range(2):
    assert torch.equal(compiled(x), expected)
    recorded(x)
"""


@pytest.mark.parametrize("way", ["snn.accelerate(net, compile=True)", "torch.compile(net, backend='snnfast')"])
def test_a_network_is_compiled_after_another_was_recorded(way):
    done = subprocess.run([sys.executable, "-c", COMPILED_LATER % way], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_allocator_is_set_for_the_process():
    (library,) = Path(snnfast.__file__).parent.glob("_C.*so")
    assert b"mallopt" not in library.read_bytes()


def test_what_compiles_is_there_when_asked_for():
    assert "explain" in dir(snnfast) and snnfast.explain.__module__ == "snnfast.compiler.explain"
