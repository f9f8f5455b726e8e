"""What is around a cell: threads, what its attributes become meanwhile, objects that change unseen, layouts, resets."""

import collections
import contextlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import snnfast
from cells import Atan
from snnfast.cells import building, why_not_fused


def looped(cell, x, *states):
    outs = []
    for x_t in x:
        out, *states = cell(x_t, *states)
        outs.append(out)
    return torch.stack(outs), *states


THREADS = """
import threading, torch, snnfast

def work(k, found):
    def cell(x, mem):
        mem = (0.5 + 0.01 * k) * mem + torch.tanh(x)
        return torch.exp(mem), mem

    for size in (2, 3, 4, 5):
        x = torch.randn(9, size, 7, requires_grad=True)
        out, last = snnfast.scan(cell, x, torch.zeros(size, 7))
        (out.sum() + last.sum()).backward()
        found.append(x.grad.isfinite().all().item())

found = []
threads = [threading.Thread(target=work, args=(k, found)) for k in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert found == [True] * 24, found
"""


def test_threads_trace_cells_of_their_own_at_once():
    """In a process of its own: torch's tracer, used by two threads, ends it."""
    command = [sys.executable, "-W", "error::UserWarning:snnfast", "-c", THREADS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Annealed(snnfast.Cell):
    states = ("mem",)

    def __init__(self):
        super().__init__()
        self.gain = 1.0
        self.beta = nn.Parameter(torch.full((7,), 0.9))

    def step(self, x, mem):
        mem = self.beta * mem + self.gain * torch.tanh(x)
        return mem * mem, mem


def test_an_attribute_that_changes_before_backward_keeps_its_new_value():
    for wanted in (1, 0):
        cell, x = Annealed(), torch.randn(6, 3, 7)
        grads = []
        for run in (
            lambda x, cell=cell: snnfast.scan(cell.step, x, torch.zeros(3, 7)),
            lambda x, cell=cell: looped(cell, x),
        ):
            cell.gain = 1.0
            given = x.clone().requires_grad_()
            out = run(given)[wanted]
            cell.gain = 2.0
            out.sum().backward()
            assert cell.gain == 2.0
            grads.append(given.grad)
        assert torch.equal(*grads)


def test_a_second_derivative_is_of_what_ran():
    cell, x = Annealed(), torch.randn(6, 3, 7)
    grads = []
    for run in (cell.unroll, lambda x: looped(cell, x)):
        cell.gain = 1.0
        given = x.clone().requires_grad_()
        out = run(given)[0]
        cell.gain = 3.0
        (grad,) = torch.autograd.grad(out.sum(), given, create_graph=True)
        grads.append(grad.detach())
    torch.testing.assert_close(*grads)


class Slots:
    __slots__ = ("count",)


def array_of_gains(module):
    module.gain *= 1.5
    return float(module.gain[0])


def delay(module):
    module.line.append(module.line[0] + 1)
    return module.line[0]


def counter(module):
    module.slots.count += 1
    return module.slots.count


@pytest.mark.parametrize("reads", [array_of_gains, delay, counter])
def test_objects_that_change_unseen_leave_the_loop(reads):
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            if reads is array_of_gains:
                self.gain = np.array([0.5])
            elif reads is delay:
                self.line = collections.deque([0.1, 0.2], maxlen=2)
            else:
                self.slots = Slots()
                self.slots.count = 0

        def forward(self, x, mem):
            mem = 0.9 * mem + reads(self) * x
            return torch.tanh(mem), mem

    fused, plain, x = Reading(), Reading(), torch.rand(9, 3, 7)
    for first in (True, False):
        with pytest.warns(UserWarning, match="may change while nobody sees it") if first else contextlib.nullcontext():
            found = snnfast.scan(fused, x, torch.zeros(3, 7))
        assert all(map(torch.equal, found, looped(plain, x, torch.zeros(3, 7))))


LAYOUTS = {
    "every other": lambda: torch.randn(20, 8, 64)[:, :, ::2],
    "time last": lambda: torch.randn(8, 32, 20).permute(2, 0, 1),
    "expanded": lambda: torch.randn(20, 8, 1).expand(20, 8, 31),
    "transposed": lambda: torch.randn(20, 31, 8).transpose(1, 2),
}


@pytest.mark.parametrize("function", [torch.sigmoid, torch.tanh, torch.exp])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_are_the_loops_however_an_input_lies(layout, function):
    def cell(x, mem):
        mem = function(x) + 0.5 * mem
        return mem * 2, mem

    plain = torch.randn(20, 8, 31)
    x = LAYOUTS[layout]()
    for given in (plain, x):
        mem = torch.zeros(given.shape[1:])
        assert all(map(torch.equal, snnfast.scan(cell, given, mem), looped(cell, given, mem)))
    says = why_not_fused(cell, x, mem)
    assert says is None if function is not torch.sigmoid else "row by row" in says


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [torch.tanh, torch.exp, lambda x: x + 0.1, lambda x: 1.0 * (x > 0.1)])
def test_what_is_computed_in_half_precision_is_left_to_torch(dtype, function):
    def cell(x, mem):
        mem = 0.5 * mem + function(x)
        return mem * 2, mem

    mem = torch.zeros(4, 32)
    for x in (torch.zeros(10, 4, 32, dtype=dtype), torch.randn(10, 4, 32).to(dtype)):
        assert all(map(torch.equal, snnfast.scan(cell, x, mem), looped(cell, x, mem)))


def test_parameters_of_every_neuron_learn_in_a_batch_of_one():
    class Neuron(nn.Module):
        def __init__(self):
            super().__init__()
            self.beta = nn.Parameter(torch.rand(7))

        def forward(self, x, mem):
            mem = self.beta * mem + x
            spk = Atan.apply(mem - 0.5)
            return spk, mem * (1 - spk)

    cell, x, mem = Neuron(), torch.rand(9, 1, 7), torch.zeros(1, 7)
    assert why_not_fused(cell, x, mem) is None
    grads = []
    for run in (snnfast.scan, looped):
        cell.zero_grad()
        out, last = run(cell, x, mem)
        (out.sum() + last.sum()).backward()
        grads.append(cell.beta.grad)
    torch.testing.assert_close(*grads)


class Adaptive(snnfast.Cell):
    states = ("mem", "bound")

    def step(self, x, mem, bound):
        mem = 0.9 * mem + x
        spk = (mem > bound).float()
        return spk, mem - spk * bound, 0.9 * bound + 0.05 + 0.2 * spk

    def initial(self, x):
        return torch.zeros_like(x), torch.full_like(x, 0.5)


def test_a_reset_layer_starts_from_its_initial_states():
    cell, x = Adaptive(init_hidden=True), torch.rand(9, 3, 7)
    first = torch.stack([cell(x_t) for x_t in x])
    snnfast.reset(cell)
    assert torch.equal(torch.stack([cell(x_t) for x_t in x]), first)
    stepped = Adaptive()
    states = stepped.reset_mem()
    assert torch.equal(stepped(x[0], *states)[0], first[0])


@pytest.mark.parametrize("given", [torch.zeros(2, 7), (torch.zeros(2, 7),), torch.zeros(3, 7)])
def test_what_a_step_must_return_is_said(given):
    class Forgetful(snnfast.Cell):
        states = ("mem", "bound")

        def step(self, x, mem, bound):
            return given

    for run in (lambda cell: cell(torch.rand(2, 7)), lambda cell: cell.unroll(torch.rand(5, 2, 7))):
        with pytest.raises(TypeError, match=r"Forgetful\.step must return its spikes and mem, bound"):
            run(Forgetful())


def test_a_library_that_was_cut_off_is_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SNNFAST_CACHE", str(tmp_path))
    program = (
        "import torch, snnfast\n"
        "cell, given = lambda x, mem: (mem * 2, 0.5 * mem + x), (torch.ones(9, 3, 7), torch.zeros(3, 7))\n"
        "assert snnfast.cells.why_not_fused(cell, *given) is None"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, check=True)
    kept = list((tmp_path / "cells").glob("*.so"))
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:5000])
    assert subprocess.run(command, capture_output=True, text=True).returncode == 0
    assert all(file.stat().st_size > 5000 for file in kept)


def test_a_blank_name_of_a_compiler_is_none(monkeypatch):
    monkeypatch.setenv("CXX", " ")
    assert building.compiler() in (["c++"], ["g++"])
