"""The CPU's loops over neurons are vectorised: one that is not takes five to twenty times as long."""

import math
import time

import pytest
import torch

from snnfast.reference import LEAKY, MODELS

STEPS, NEURONS = 64, 1024
ATAN = ("atan", [math.pi, 1.0])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loops(model, reset, delay, dtype=torch.float32):
    """{name: (call, rows that a step reads or writes)} of forward, backward, and backward for the parameters too."""
    forward, backward = (getattr(torch.ops.snnfast, f"{model.name}_{way}").default for way in ("fwd", "bwd"))
    x = torch.rand(STEPS, NEURONS, dtype=dtype)
    rec = torch.rand_like(x) if model.recurrent else None
    params = [torch.tensor(0.6, dtype=dtype) for _ in model.params]
    how = (True, reset, delay, False)
    kept, count = len(model.kept(delay)), len(model.states)
    spk, *rest = forward(x, rec, [], params, *how, model.stored, 1, True)
    seqs, extras = rest[count : count + model.stored], rest[count + model.stored :]
    seqs = seqs if model.output is None else [*seqs, spk]

    def back(want_params):
        arguments = (None, spk, [], [], seqs, extras, [], params, None, *how, *ATAN, dtype, False, want_params)
        return lambda: backward(spk, *arguments)

    rows = 2 + count + kept
    return {
        "forward": (lambda: forward(x, rec, [], params, *how, model.stored, 1, True), rows + model.recurrent),
        "backward": (back(False), rows),
        "backward with parameters": (back(True), rows + 2 * len(params)),
    }


def bounded(calls, excess, seconds=30):
    """What `excess(took)`, the first bound that is not kept, comes to in the end: None if all are.

    `took` has the nanoseconds that each call takes for a value of a row: the least of many, taken in turn. A busy
    machine only adds to it, so that a bound not kept yet is tried on, until `seconds` have passed.
    """
    least, end = dict.fromkeys(calls, math.inf), time.monotonic() + seconds
    while True:
        for _ in range(20):
            for name, (call, _) in calls.items():
                start = time.perf_counter_ns()
                call()
                least[name] = min(least[name], time.perf_counter_ns() - start)
        beyond = excess({name: took / (STEPS * NEURONS * calls[name][1]) for name, took in least.items()})
        if beyond is None or time.monotonic() > end:
            return beyond


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_model_takes_as_long_as_its_rows(dtype):
    """By the row, no loop takes long beside Leaky's, and Leaky's no longer than vectors of an elementary function."""
    calls, x = {}, torch.rand(STEPS, NEURONS, dtype=dtype)
    for model in MODELS:
        for reset, delay in [("subtract", True), ("zero", True), ("subtract", False), ("zero", False)]:
            if delay or model.delay_optional:
                named = loops(model, reset, delay, dtype).items()
                calls |= {(name, model.name, reset, delay): call for name, call in named}
    out = torch.empty_like(x)
    calls["atan"] = (lambda: torch.atan(x, out=out), 1)

    def excess(took):
        for name in ("forward", "backward", "backward with parameters"):
            leaky = (name, LEAKY.name, "subtract", True)
            if took[leaky] * calls[leaky][1] >= took["atan"] * (2 if "parameters" in name else 1):
                return "atan", leaky, took[leaky], took["atan"]
            for key in calls:
                if key[0] == name and took[key] >= 2.5 * took[leaky]:
                    return key, took[key], took[leaky]

    assert bounded(calls, excess) is None


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_reset_without_delay_takes_at_most_half_as_long_again(reset):
    """In one thread: with more, what both read and write takes its time."""
    calls = {}
    for delay in (True, False):
        calls |= {(name, delay): (call, 1) for name, (call, _) in loops(LEAKY, reset, delay).items()}

    def excess(took):
        return next(((name, took) for name, _ in calls if took[name, False] >= 1.5 * took[name, True]), None)

    assert bounded(calls, excess) is None
