"""Random elementwise neurons, some of them recurrent, fused and as loops, side by side.

python tests/fuzz_cells.py --cells 1000 --seed 0 [--processes 2] [--recorded]; a failing seed is printed with its
program, and `--cells 1 --seed SEED` runs it again. Recorded: a loop over the cell finds it by itself.
"""

import argparse
import ctypes
import hashlib
import random
import sys
import warnings
from collections import OrderedDict
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

import snnfast
from cells import Atan, Logistic, Super
from snnfast.cells import building, kernel, program, scanning
from snnfast.loops import functions

UNARY = {
    "-{}": None,
    "torch.abs({})": None,
    "torch.tanh({})": None,
    "torch.sigmoid({})": None,
    "torch.exp(-torch.abs({}))": None,
    "torch.relu({})": None,
    "{}.clamp(-0.7, 0.9)": None,
    "{}.detach()": None,
    "{} ** 2": None,
    "1.0 - {}": None,
    "{} / 1.7": None,
    "0.3 * {}": None,
    "Atan.apply({} - 0.5)": None,
    "Logistic.apply({})": None,
    "Super.apply({}, 10.0)": None,
    "({} > 0.2).to({}.dtype)": None,
}
BINARY = (
    "{} + {}",
    "{} - {}",
    "{} * {}",
    "torch.maximum({}, {})",
    "torch.where({} > 0.1, {}, a)",
    "{} / (2 + {} ** 2)",
)

PRODUCTS = (
    "F.linear({}, w)",
    "F.linear({}, w, p)",
    "{} @ w",
    "F.linear({}, w.abs() * 0.5)",
    "F.linear({}.detach(), w)",
)


class Random:
    """A program of `lines` that computes outputs and states from inputs, states and parameters."""

    def __init__(self, seed: int):
        pick = random.Random(seed)
        self.ins, self.states = pick.choice((1, 1, 1, 2)), pick.choice((1, 1, 2, 3))
        self.shape = pick.choice(((3, 7), (2, 16), (5, 1), (4, 3, 5), (33,)))
        self.steps = pick.choice((2, 4, 7))
        self.dtype = pick.choice((torch.float32, torch.float64))
        self.with_last = pick.random() < 0.7
        names = [f"x{k}" for k in range(self.ins)] + [f"s{k}" for k in range(self.states)]
        self.lines = []
        self.products = self._products(random.Random(f"products {seed}"))
        values = [*names, "p", "q", *(f"r{k}" for k in range(len(self.products)))]
        for k in range(pick.randint(4, 14)):
            template = pick.choice([*UNARY] if pick.random() < 0.5 else BINARY)
            count = template.count("{}")
            chosen = [pick.choice(values[-6:] if pick.random() < 0.7 else values) for _ in range(count)]
            if "to({}.dtype)" in template:
                chosen = [chosen[0]] * 2
            self.lines.append(f"a = {template.format(*chosen)}" if k == 0 else f"v{k} = {template.format(*chosen)}")
            if k == 0:
                self.lines[0] = (
                    self.lines[0].replace("a)", f"{values[0]})") if ", a)" in self.lines[0] else self.lines[0]
                )
            values.append("a" if k == 0 else f"v{k}")
        computed = [value for value in values if value[0] in "av"]
        full = [value for value in computed]
        outs = [pick.choice(full) for _ in range(pick.choice((1, 1, 2)))]
        new = [f"0.8 * s{k} + 0.1 * {pick.choice(full)}" for k in range(self.states)]
        if pick.random() < 0.3:
            outs[0] = "n0"
        self.lines += [f"n{k} = {text} + 0 * x0" for k, text in enumerate(new)]
        self.lines += [f"o{k} = {text}" + ("" if text == "n0" else " + 0 * x0") for k, text in enumerate(outs)]
        outs = ", ".join(f"o{k}" for k in range(len(outs)))
        self.lines.append(f"return ({outs},), ({', '.join(f'n{k}' for k in range(self.states))},)")
        xs, states = (
            ", ".join(f"{letter}{k}" for k in range(n)) for letter, n in (("x", self.ins), ("s", self.states))
        )
        self.lines[:0] = [f"r{k} = {text}" for k, text in enumerate(self.products)]
        head = f"def make(p, q, w):\n def cell(inputs, states):\n  ({xs},) = inputs\n  ({states},) = states\n  "
        self.source = head + "\n  ".join(self.lines) + "\n return cell"

    def _products(self, pick: random.Random) -> list[str]:
        """Of states with weights: all-to-all recurrence, in one of three cells."""
        if len(self.shape) < 2 or pick.random() > 0.33:
            return []
        return [
            pick.choice(PRODUCTS).format(f"s{pick.randrange(self.states)}") for _ in range(pick.choice((1, 1, 2, 3)))
        ]

    def cell(self, p: Tensor, q: Tensor, w: Tensor):
        names = {"torch": torch, "F": F, "Atan": Atan, "Logistic": Logistic, "Super": Super}
        exec(self.source, names)
        return names["make"](p, q, w)


def run_loop(cell, xs, states):
    columns = []
    for inputs in zip(*(x.unbind(0) for x in xs), strict=True):
        outs, states = cell(inputs, states)
        columns.append(outs)
    return tuple(map(torch.stack, zip(*columns, strict=True))), states


def run_recorded(cell, xs, states):
    """The loop, recorded and known from one before it; what is known of equal code is of another library."""
    functions._loops.clear()
    with snnfast.accelerated():
        run_loop(cell, xs, states)
        return run_loop(cell, xs, states)


def check(seed: int, recorded: bool = False) -> str | None:
    """What differs of a random cell."""
    program = Random(seed)
    if recorded:
        program.steps += 6
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(program.dtype)

    p, q = draw(program.shape[-1]).requires_grad_(), draw().requires_grad_()
    w = draw(program.shape[-1], program.shape[-1]).requires_grad_()
    cell = program.cell(p, q, w)
    xs = [draw(program.steps, *program.shape) for _ in range(program.ins)]
    states = [draw(*program.shape) for _ in range(program.states)]
    found, grads = [], None
    for run in (run_loop, run_recorded if recorded else snnfast.scan):
        given = [[t.clone().requires_grad_() for t in group] for group in (xs, states)]
        outs, last = run(cell, tuple(given[0]), tuple(given[1]))
        roots = [t for t in (*outs, *(last if program.with_last else ())) if t.requires_grad]
        if grads is None:
            grads = [draw(*root.shape) for root in roots]
        leaves = [*given[0], *given[1]]
        back = torch.autograd.grad(roots, [*leaves, p, q, w], grads, allow_unused=True) if roots else ()
        found.append(([*outs, *last], back[: len(leaves)], back[len(leaves) :]))
    for name, one, other in zip(("values", "gradients"), *found, strict=False):
        for k, (a, b) in enumerate(zip(one, other, strict=True)):
            if (a is None) != (b is None) and (b if a is None else a).any():
                return f"{name} {k}: one is absent"
            rounds = recorded and name == "gradients"
            if a is not None and b is not None and not (_near(a, b) if rounds else _equal(a, b)):
                return f"{name} {k}: {(a - b).abs().max()}"
    for a, b in zip(found[0][2], found[1][2], strict=True):
        if a is not None and b is not None and not _near(a, b):
            return f"a parameter's gradient: {a} {b}"
    return None


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


class Batch:
    """The libraries of many cells built as one, which takes a fraction of the time: most of a file is its headers."""

    def __init__(self):
        self._numbers, self._functions = {}, None

    def library(self, source: str):
        """In the place of `building.library`: at first a library that computes nothing."""
        if self._functions is None:
            self._numbers.setdefault(source, len(self._numbers))
            return SimpleNamespace(run=lambda call: 0)
        return SimpleNamespace(run=self._functions[self._numbers[source]])

    def build(self) -> None:
        head = '#include "cpu/cell_recurrence.h"\nusing namespace snnfast;'
        parts = [f'{head}\nextern "C" int run(const void*) {{ return 1; }}\n']
        for source, k in self._numbers.items():
            # Of two libraries with equal names, the dynamic linker would take constants from one for both.
            name = hashlib.sha256(source.encode()).hexdigest()
            cell = source[source.index("namespace {") :].replace("namespace {", f"namespace cell_{name} {{", 1)
            cell = cell.replace('}\n\nextern "C" int run(', f'\nextern "C" int run_{k}(', 1)
            parts.append(cell + "}\n")
        built = building.library("".join(parts))
        self._functions = [getattr(built, f"run_{k}") for k in range(len(self._numbers))]
        for function in self._functions:
            function.argtypes = [ctypes.c_void_p]


def wrong(seeds, recorded: bool = False) -> list[str]:
    """What is wrong with these cells. Their own trials are left out: this is one."""
    batch, found = Batch(), []
    with (
        warnings.catch_warnings(),
        patch.object(kernel, "library", batch.library),
        patch.object(building, "_SECONDS", 1800),
        patch.object(program.Program, "_try", lambda *_: None),
        patch.object(scanning, "_programs", OrderedDict()),
    ):
        warnings.simplefilter("error")
        for seed in seeds:
            with suppress(Exception):
                check(seed, recorded)
        scanning._programs.clear()
        batch.build()
        for seed in seeds:
            try:
                told = check(seed, recorded)
            except Exception as error:  # noqa: BLE001
                told = f"{type(error).__name__}: {error}"
            if told:
                found.append(f"seed {seed}: {told}\n{Random(seed).source}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--recorded", action="store_true")
    options = parser.parse_args()
    last, failed = options.seed + options.cells, 0
    chunks = [range(first, min(first + 25, last)) for first in range(options.seed, last, 25)]
    with ProcessPoolExecutor(options.processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for k, found in enumerate(pool.map(partial(wrong, recorded=options.recorded), chunks)):
            failed += len(found)
            print("".join(f"{text}\n" for text in found) + f"{chunks[k][-1] + 1 - options.seed} run", flush=True)
    print(f"{options.cells - failed} of {options.cells} equal")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
