"""What is measured: time, memory held and at its peak, and calls of a layer that compiles."""

import time

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.long


def _measured_with(module, contender_class):
    """What calls.py prints of a contender that is not one of the list's."""
    calls = module("calls")
    return calls.measured(contender_class(), module("benches").Size(8, 4, 64), torch.device("cpu"))


def test_a_layer_that_compiles_for_every_size_shows_it(module):
    class Compiling(module("contenders").SnnFast):
        def lif(self):
            seen, layer = set(), super().lif()

            class Module(nn.Module):
                def forward(self, x):
                    if x.shape not in seen:
                        seen.add(x.shape)
                        time.sleep(0.2)
                    return layer(x)

            return Module()

    row = _measured_with(module, Compiling)
    for name in ("first_call_ms", "new_t_ms", "new_b_ms", "new_n_ms"):
        assert row[name] > 200 > row["repeated_call_ms"]


def test_calls_say_what_went_wrong_and_do_without_a_step(module):
    contenders = module("contenders")

    class WithoutStep(contenders.SnnFast):
        def step(self):
            raise NotImplementedError

    class Broken(contenders.SnnFast):
        def lif(self):
            raise ValueError("no\nlayer")

    row = _measured_with(module, WithoutStep)
    assert row["step_us"] is None and row["first_call_ms"] > 0
    assert _measured_with(module, Broken) == {"error": "ValueError: no"}


def test_free_memory_is_some(module):
    assert (module("measure").free_bytes(torch.device("cpu")) or 1e9) > 1e6


def test_held_bytes_are_those_that_the_graph_allocated(module, device):
    held_bytes = module("measure").held_bytes
    x = torch.ones(1024, requires_grad=True, device=device)
    for forward, expected in ((x.exp, 0), (lambda: x.exp().sin(), 4096), (lambda: (x.exp().sin(), x.cos()), 4096)):
        forward()
        assert held_bytes(forward, x.device) == expected


def test_retained_bytes_are_those_of_the_living_graph(module):
    retained_bytes = module("measure").retained_bytes
    x = torch.rand(1000, requires_grad=True)
    assert retained_bytes(lambda: x.exp(), [x]) == 0
    assert retained_bytes(lambda: x.exp().sin(), [x]) == 4000
    assert retained_bytes(lambda: x.sin(), []) == 4000

    def abandons_a_graph():
        x.exp().sin()
        return x.exp()

    assert retained_bytes(abandons_a_graph, [x]) == 0


def test_peak_bytes_count_what_is_held_at_once(module):
    peak_bytes = module("measure").peak_bytes
    kilobyte = 256

    def one_then_two_at_once():
        torch.empty(5 * kilobyte)
        held = torch.empty(kilobyte), torch.empty(3 * kilobyte)
        return len(held)

    assert peak_bytes(one_then_two_at_once, torch.device("cpu")) == 5 * 1024
    assert peak_bytes(lambda: None, torch.device("cpu")) == 0


def test_peak_bytes_leave_out_the_end_of_what_was_there_before(module):
    peak_bytes = module("measure").peak_bytes
    blocks = []
    peak_bytes(lambda: blocks.extend(torch.empty(4096) for _ in range(100)), torch.device("cpu"))
    addresses = {block.data_ptr() for block in blocks}
    blocks.clear()
    blocks.extend(torch.empty(4096) for _ in range(100))
    assert addresses & {block.data_ptr() for block in blocks}

    def free_then_take():
        blocks.clear()
        torch.empty(256)

    assert peak_bytes(free_then_take, torch.device("cpu")) == 1024


def test_the_backward_is_what_the_forward_leaves_of_a_pass(module):
    summary = module("measure").Timing(forward=[1.0, 2.0, 6.0], whole=[4.0, 4.0, 9.0]).summary()
    assert (summary["forward_ms"], summary["backward_ms"], summary["forward_backward_ms"]) == (2.0, 3.0, 4.0)
