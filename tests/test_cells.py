"""Neurons in plain PyTorch, fused: the loop's numbers, what is refused, and how they are built."""

import errno
import gc
import os
import re
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cells
import fuzz_cells
import snnfast
import test_models
from snnfast import ops, reference, surrogate
from snnfast.cells import building, kernel, scanning, trees, why_not_fused
from snnfast.cells.operators import OPERATORS
from snnfast.cells.program import Program, run_loop
from snnfast.cells.surroundings import surroundings_of

ROOT = Path(__file__).parent.parent
NAMES = [*cells.cases(1, torch.float32)]


@pytest.fixture(scope="module", autouse=True)
def _kept(tmp_path_factory):
    """One cache for this file: nothing of a user's is read, nothing is left behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNNFAST_CACHE", os.environ.get("SNNFAST_CACHE") or str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _nothing_unsaid():
    """A cell that is not fused warns, which fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def loop(cell, x, state):
    """What `scan` has to equal: the loop that a user writes."""
    xs, form = trees.flatten(x)
    spread = type(state) is tuple
    outs = []
    for step in zip(*(x.unbind(0) for x in xs), strict=True):
        inputs = trees.unflatten(form, step)
        out, *state = cell(inputs, *state) if spread else cell(inputs, state)
        state = tuple(state) if spread else state[0]
        outs.append(out)
    return torch.stack(outs), state


def leaves_of(*values) -> list[Tensor]:
    return [leaf for value in values for leaf in trees.flatten(value)[0] if isinstance(leaf, Tensor)]


def copied(value):
    leaves, form = trees.flatten(value)
    learning = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in leaves]
    return trees.unflatten(form, learning), trees.unflatten(
        form, [t.clone() if isinstance(t, Tensor) else t for t in learning]
    )


def results(run, cell, x, state, with_last):
    """Outputs, states, and gradients of inputs, initial states and parameters."""
    (x, x_given), (state, state_given) = copied(x), copied(state)
    out, last = run(cell, x_given, state_given)
    generator = torch.Generator().manual_seed(1)
    roots = [t for t in leaves_of(out, last if with_last else ()) if t.requires_grad]
    grads = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in roots]
    params = list(cell.parameters()) if isinstance(cell, nn.Module) else []
    wanted = leaves_of(x, state)
    found = torch.autograd.grad(roots, [*wanted, *params], grads, allow_unused=True)
    return leaves_of(out, last), found[: len(wanted)], found[len(wanted) :]


def assert_equal(cell, x, state, with_last=True):
    fused = results(snnfast.scan, cell, x, state, with_last)
    looped = results(loop, cell, x, state, with_last)
    for what, a, b in zip(("values", "gradients"), fused, looped, strict=False):
        for k, (one, other) in enumerate(zip(a, b, strict=True)):
            assert (one is None) == (other is None), (what, k)
            assert one is None or one.dtype == other.dtype and torch.equal(one, other), (what, k)
    for one, other in zip(fused[2], looped[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_the_loops(name, dtype, device):
    cell, ins, state = cells.cases(7, dtype)[name]
    cell = cell.to(device) if isinstance(cell, nn.Module) else cell
    leaves, form = trees.flatten(state)
    state = trees.unflatten(form, [leaf if leaf is None else leaf.to(device) for leaf in leaves])
    xs = [(torch.randn(6, 3, 7, dtype=dtype) * 1.5).to(device) for _ in range(ins)]
    x = xs[0] if ins == 1 else tuple(xs)
    for with_last in (True, False):
        assert_equal(cell, x, state, with_last)


class Own(snnfast.Cell):
    states = ("mem", "trace")

    def __init__(self, **options):
        super().__init__(**options)
        self.beta = nn.Parameter(torch.tensor([0.9, 0.8, 0.7]))
        self.fire = snnfast.surrogate.fast_sigmoid(5.0)

    def step(self, x, mem, trace):
        mem = self.beta * mem + x
        spk = self.fire(mem - 1.0 - trace)
        return spk, mem - spk.detach(), 0.5 * trace + spk


def stepped(layer, x):
    columns, states = [], ()
    for step in x.unbind(0):
        out = layer(step, *states)
        columns.append(out)
        states = out[1:]
    return tuple(map(torch.stack, zip(*columns, strict=True)))


def test_a_layer_of_ones_own_has_a_neurons_ways():
    layer, x = Own(), torch.randn(5, 2, 3, requires_grad=True)
    looped, fused = stepped(Own(), x), layer.unroll(x)
    assert len(fused) == 3 and all(map(torch.equal, fused, looped))
    grads = [torch.autograd.grad(out[0].sum() + out[1].sum(), x)[0] for out in (fused, looped)]
    assert torch.equal(*grads)
    assert layer.why_not_fused(x) is None
    assert [*layer.state_dict()] == ["beta"]
    net = snnfast.Unroll(nn.Linear(3, 3), layer, nn.Linear(3, 2), snnfast.Leaky(0.9))
    assert net(x).shape == (5, 2, 2)
    hidden = Own(init_hidden=True)
    first = hidden.unroll(x[:2])
    assert torch.equal(torch.cat([first, hidden.unroll(x[2:])]), looped[0])
    assert torch.equal(hidden.mem, looped[1][-1])
    snnfast.reset(hidden)
    assert not hidden.mem.any() and hidden(x[0]).shape == (2, 3)
    with pytest.raises(TypeError, match="init_hidden"):
        hidden(x[0], hidden.mem)
    with pytest.raises(ValueError, match="trace must have the input's shape"):
        layer.unroll(x, trace=torch.zeros(3, 3))


def test_double_backward_and_batches_of_gradients_go_through_the_loop():
    x, mem = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True), torch.zeros(2, 3, dtype=torch.float64)

    def cell(x, mem):
        mem = torch.tanh(0.9 * mem + x)
        return mem * x, mem

    def second(run):
        (grad,) = torch.autograd.grad(run(cell, x, mem)[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    torch.testing.assert_close(second(snnfast.scan), second(loop))
    grads = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    found = [
        torch.autograd.grad(run(cell, x, mem)[0], x, grads, is_grads_batched=True)[0] for run in (snnfast.scan, loop)
    ]
    torch.testing.assert_close(*found)


REFUSED = {
    "aten.mean.default is not elementwise": lambda x, mem: (0.9 * mem + x - x.mean(), mem),
    "aten.randn_like.default draws random numbers": lambda x, mem: (x, mem + torch.randn_like(mem)),
    "aten._local_scalar_dense.default": lambda x, mem: (x, mem * 0 if (mem > 1).any() else mem),
    "aten.mm.default is not elementwise": lambda x, mem: (x, mem @ torch.ones(3, 2) @ torch.ones(2, 3)),
    "aten.softplus.default is not elementwise": lambda x, mem: (x, nn.functional.softplus(mem)),
    "exponent 0.3": lambda x, mem: (x, mem.abs() ** 0.3),
    "its output is": lambda x, mem: (x.sum(), mem),
    "its state has dtype": lambda x, mem: (x, mem.double()),
    "another kind of state": lambda x, mem: (x, (mem, mem)),
    "writes to its input": lambda x, mem: (x.add_(0.0), 0.9 * mem),
    "torch.int64": lambda x, mem: (x, mem * (mem > 0).long()),
}


@pytest.mark.parametrize("why", [*REFUSED])
def test_what_is_not_elementwise_is_refused_by_name_and_runs(why):
    cell, x, mem = REFUSED[why], torch.rand(3, 2, 3), torch.rand(2, 3)
    assert why in why_not_fused(cell, x, mem)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="run one by one"):
        fused = snnfast.scan(cell, x.clone(), mem)
    torch.manual_seed(0)
    assert torch.equal(fused[0], loop(cell, x, mem)[0])
    # It is said once.
    snnfast.scan(cell, x.clone(), mem)


def test_what_a_step_leaves_behind_keeps_it_a_loop():
    heard = []

    class Counting(nn.Module):
        count = 0

        def forward(self, x, mem):
            self.count += 1
            heard.append(mem)
            return mem, mem + x

    cell = Counting()
    with pytest.warns(UserWarning, match="changes something that it shares with other code: "):
        snnfast.scan(cell, torch.rand(3, 2), torch.rand(2))
    assert cell.count == 3 and len(heard) == 3
    hooked = cells.ZeroReset()
    hooked.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="hooks"):
        snnfast.scan(hooked, torch.rand(3, 2), torch.rand(2))


SCALE = 1.0


def scaled(x, mem):
    return mem, SCALE * mem + x


def test_what_a_cell_reads_is_read_anew(monkeypatch):
    x, mem = torch.rand(3, 2), torch.rand(2)
    for value in (1.0, 3.0):
        monkeypatch.setitem(globals(), "SCALE", value)
        assert torch.equal(snnfast.scan(scaled, x, mem)[1], loop(scaled, x, mem)[1])
    cell = cells.CurrentBased()
    state = cells.State(mem, mem)
    for p in (
        cells.Parameters(),
        cells.Parameters(v_th=torch.tensor(0.2)),
        cells.Parameters(v_leak=torch.tensor(-0.1)),
    ):
        cell.p = p
        assert torch.equal(snnfast.scan(cell, 9 * x, state)[0], loop(cell, 9 * x, state)[0])
    out = [snnfast.scan(cells.leaky, x.requires_grad_(), mem)[0]]
    monkeypatch.setattr(cells.Atan, "alpha", 5.0)
    out.append(snnfast.scan(cells.leaky, x, mem)[0])
    one, other = (torch.autograd.grad(o.sum(), x)[0] for o in out)
    assert not torch.equal(one, other)
    assert torch.equal(other, torch.autograd.grad(loop(cells.leaky, x, mem)[0].sum(), x)[0])


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """Nothing is built or said yet, and the cache is an empty folder."""
    monkeypatch.setattr(scanning, "_programs", type(scanning._programs)())
    monkeypatch.setattr(scanning, "_said", set())
    for known in (building.library, building._say_not_kept, building._own_folder):
        known.cache_clear()
    monkeypatch.setenv("SNNFAST_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    building.library.cache_clear()


def decaying(x, mem):
    mem = 0.75 * mem + x
    return mem, mem


def run_decaying():
    x, mem = torch.rand(5, 3), torch.rand(3)
    assert torch.equal(snnfast.scan(decaying, x, mem)[0], loop(decaying, x, mem)[0])


@pytest.mark.parametrize(
    "compiler, why",
    [
        ("/nowhere/g++", "CXX names /nowhere/g++, which is not to be found"),
        ("false", "false failed: it said nothing"),
        ("true", "true failed: it said nothing"),
    ],
)
def test_without_a_compiler_the_loop_runs(anew, monkeypatch, compiler, why):
    monkeypatch.setenv("CXX", compiler)
    with pytest.warns(UserWarning, match=f"decaying is not fused, its steps run one by one: {re.escape(why)}"):
        run_decaying()
    run_decaying()


def test_where_nothing_can_be_kept_it_is_built_for_this_process(anew, monkeypatch):
    monkeypatch.setenv("SNNFAST_CACHE", "/proc/nowhere")
    with pytest.warns(UserWarning, match="anew in every process: /proc/nowhere/cells cannot be made"):
        run_decaying()
    assert why_not_fused(decaying, torch.rand(5, 3), torch.rand(3)) is None


def test_a_full_disk_leaves_the_loop(anew, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.warns(UserWarning, match="nothing can be written to .*: No space left on device"):
        run_decaying()
    assert not [*(anew / "cache").rglob("*.so")]


@pytest.mark.long
def test_the_cache_is_shared_between_processes_and_survives_damage(anew):
    script = "import torch, tests.test_cells as t; t.warnings.simplefilter('error'); t.run_decaying()"
    start = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    both = [subprocess.Popen(start, env=environment, cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    (kept,) = (anew / "cache").rglob("*.so")
    assert [*kept.parent.iterdir()] == [kept] and kept.parent.stat().st_mode & 0o777 == 0o700
    made = kept.stat().st_mtime_ns
    run_decaying()
    assert kept.stat().st_mtime_ns == made
    cut_off = anew / "cut-off"
    cut_off.write_bytes(kept.read_bytes()[:100])
    cut_off.replace(kept)
    subprocess.run(start, env=environment, cwd=ROOT, check=True)
    assert kept.stat().st_size > 100


def test_no_cell_is_kept_alive():
    cell = cells.ZeroReset()
    snnfast.scan(cell, torch.rand(3, 2, requires_grad=True), torch.rand(2))
    gone = weakref.ref(cell)
    del cell
    gc.collect()
    assert gone() is None


def twins():
    """A model of every kind; the smallest two in every run of the tests."""
    for name, model in {model.name: model for model in reference.MODELS}.items():
        for delay in (True, False) if model.delay_optional else (True,):
            marks = () if (name, delay) in (("leaky", True), ("alif", True)) else pytest.mark.long
            yield pytest.param(model, delay, id=f"{name}-{'delay' if delay else 'now'}", marks=marks)


@pytest.mark.parametrize("model, delay", [*twins()])
def test_a_hand_written_neuron_is_equal_to_its_generated_twin(model, delay):
    x, rec, states, params = test_models.leaves(model)
    call = reference.Call(surrogate.atan(), "subtract", delay)

    def twin(inputs, *states):
        current, rec = inputs if model.recurrent else (inputs, None)
        spk, states = reference.step(model, current, states, params, call, rec)
        return (spk, *states[: model.stored]), *states

    options = ops.Options(call.spike_grad, call.reset_mechanism, delay, True)
    outs, last = test_models.fused(model, x, rec, states, params, options)
    own, own_last = snnfast.scan(twin, (x, rec) if model.recurrent else x, tuple(states))
    for a, b in zip((*outs, *last), (*own, *own_last), strict=True):
        assert torch.equal(a, b)
    grads = [torch.randn(out.shape) for out in outs]
    leaves = [leaf for leaf in (x, rec, *states) if leaf is not None]
    found = [torch.autograd.grad(o, leaves + params, grads, allow_unused=True) for o in (outs, own)]
    for a, b in zip(*(grads[: len(leaves)] for grads in found), strict=True):
        b = torch.zeros_like(a) if b is None else b
        # As in test_models: Alpha's kernel adds gradients in snnTorch's order, not in that of the reference's loop.
        assert torch.equal(a, b) or (model is reference.ALPHA and torch.allclose(a, b, rtol=1e-4, atol=1e-5))
    for a, b in zip(*(grads[len(leaves) :] for grads in found), strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_random_cells_have_the_numbers_of_their_loops():
    assert fuzz_cells.wrong(range(30)) == []


def test_parameters_of_an_autograd_function_learn_wherever_they_are():
    learnt = torch.tensor(0.3, requires_grad=True)

    def cell(x, mem):
        return mem, 0.5 * mem + x * cells.Logistic.apply(learnt)

    x, mem = torch.randn(3, 5), torch.randn(5)
    found = [torch.autograd.grad(run(cell, x, mem)[0].sum(), learnt)[0] for run in (snnfast.scan, loop)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_with_float32_states(dtype):
    def cell(x, mem):
        mem = 0.9 * mem + x
        spk = cells.Atan.apply(mem - 1.0)
        return spk.to(x.dtype), mem - torch.where(spk > 0, 1.0, 0.0)

    assert_equal(cell, torch.randn(5, 3, 7, dtype=dtype) * 2, torch.randn(3, 7))


def test_a_cut_out_step_runs_as_a_sequence():
    def step(xs, states):
        mem = 0.9 * states[0] + xs[0] * xs[1]
        return (mem, mem > 0.5), (mem,)

    xs, mem = [torch.randn(5, 2, 3, requires_grad=True) for _ in range(2)], torch.randn(2, 3, requires_grad=True)
    run = snnfast.cells.fused(step, [x[0] for x in xs], [mem])
    (out, fired), (last,) = run(xs, [mem])
    assert fired.dtype == torch.bool and torch.equal(fired, out > 0.5) and torch.equal(out[-1], last)
    expected = loop(lambda x, mem: (step(x, (mem,))[0][0], step(x, (mem,))[1][0]), tuple(xs), mem)[0]
    assert torch.equal(out, expected)
    with pytest.raises(snnfast.cells.Refused, match="aten.cumsum"):
        snnfast.cells.fused(lambda xs, states: ((xs[0].cumsum(0),), states), [xs[0][0]], [mem])


LIKE_ANOTHER = (
    "detach",
    "alias",
    "clone",
    "contiguous",
    "lift_fresh_copy",
    "expand",
    "view",
    "reshape",
    "_unsafe_view",
)
CONSTANT = ("zeros", "ones", "full", "scalar_tensor", "fill", "_like", "new_")


def called(operator, numbers):
    """An operator of the table, on tensors of numbers, or of truths where it takes those."""
    name, truths = operator._schema.name.split("::")[1], (numbers[0] > numbers[1], numbers[1] > numbers[2])
    if name == "index_put":
        return operator(numbers[0], [truths[0]], torch.tensor(0.3, dtype=numbers[0].dtype))
    if name == "masked_fill":
        return operator(numbers[0], truths[0], 0.3 if operator._overloadname == "Scalar" else torch.tensor(0.3))
    tensors, args = iter(truths if name.startswith("bitwise") else numbers), []
    for argument in operator._schema.arguments:
        if str(argument.type) in ("Tensor", "Optional[Tensor]"):
            args.append(truths[0] if name == "where" and not args else next(tensors))
        elif argument.has_default_value() and name not in ("clamp", "hardtanh"):
            break
        else:
            args.append(2 if name == "pow" else 0.3 + len(args))
    return operator(*args)


def numbers_of_all_kinds(shape, dtype):
    special = torch.tensor([0.0, -0.0, 1, -1, torch.inf, -torch.inf, torch.nan, 1e-40, 0.5, -0.3, 88, -104, 1e30])
    drawn = torch.randn(shape, dtype=dtype) * torch.randint(0, 6, shape).exp() / 3
    return torch.where(torch.rand(shape) < 0.3, special.to(dtype)[torch.randint(len(special), shape)], drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_operator_rounds_as_atens(dtype):
    # Of two numbers, where gives the default dtype.
    skipped = {*LIKE_ANOTHER, "_unsafe_view", "_to_copy", *(() if dtype == torch.float32 else ("where.Scalar",))}
    names = {operator: str(operator).removeprefix("aten.") for operator in OPERATORS}
    tested = [
        operator
        for operator, name in names.items()
        if not any(part in name for part in CONSTANT) and not {name, name.split(".")[0]} & skipped
    ]
    assert len(tested) > 70

    def step(xs, states):
        return tuple(called(operator, xs) for operator in tested), states

    for size in (1, 7, 8, 21, 33, 1031):
        xs = [numbers_of_all_kinds((2, size), dtype) for _ in range(3)]
        own = Program(step, [x[0] for x in xs], [], surroundings_of(step))
        with torch.no_grad():
            fused, looped = own.forward(xs, [], [], [])[0], run_loop(step, xs, [])[0]
        for operator, a, b in zip(tested, fused, looped, strict=True):
            assert a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all()), (operator, size)


@pytest.mark.parametrize("name", ["zero-reset", "current-based", "izhikevich"])
def test_backward_runs_steps_again_for_the_states_between_those_kept(name, monkeypatch):
    """Whatever the number of steps, in tiles of which the last is not full."""
    kept, dtype = [], torch.float64
    forward = Program.forward
    monkeypatch.setattr(Program, "forward", lambda *args: kept.append((args[0], forward(*args))) or kept[-1][1])
    cell, _, state = cells.cases(700, dtype)[name]
    every = 256 // (8 * len(leaves_of(state)))
    for steps in (1, every - 1, every, every + 1, 2 * every, 2 * every + 3):
        x = torch.randn(steps, 3, 700, dtype=dtype) * 1.5
        assert_equal(cell, x, state)
        program, (_, _, states) = kept[-1]
        assert program.every == every and {len(one) for one in states} == {steps // every}


def test_states_that_are_given_out_are_not_run_again():
    cell, x = (lambda x, mem: (mem, 0.9 * mem + x)), torch.randn(40, 2, 3)
    assert_equal(cell, x, torch.zeros(2, 3))
    assert_equal(lambda x, mem: (cells.leaky(x, mem)[1],) * 2, x, torch.zeros(2, 3))


def test_sigmoid_rounds_as_atens_wherever_a_number_lies():
    bits = torch.arange(-(2**31), 2**31, 1021)
    xs = [bits[: len(bits) // 64 * 64].to(torch.int32).view(torch.float32).view(2, -1)]
    (found,), _ = snnfast.cells.fused(lambda xs, states: ((torch.sigmoid(xs[0]),), states), [xs[0][0]], [])(xs, [])
    assert found.nan_to_num(2).equal(torch.sigmoid(xs[0]).nan_to_num(2))


def test_backward_reads_what_a_librarys_function_gave(monkeypatch):
    sources = []
    monkeypatch.setattr(scanning, "_programs", type(scanning._programs)())
    monkeypatch.setattr(kernel, "library", lambda source: sources.append(source) or building.library(source))
    cell, x, mem = cells.Gate(1024), torch.randn(64, 8, 1024), torch.zeros(8, 1024)
    out = snnfast.scan(cell, x.requires_grad_(), mem)[0]
    out.sum().backward()
    forward, backward = sources
    assert "aten::mkl" in forward and "aten::mkl" not in backward
    assert snnfast.memory.is_own(out.untyped_storage()) and snnfast.memory.is_own(x.grad.untyped_storage())


def test_memory_for_results_is_as_torch_would_give_it():
    given = torch.empty((), dtype=torch.float64), [3, 4]
    torch.library.opcheck(torch.ops.snnfast.fresh.default, given, test_utils=("test_schema", "test_faketensor"))
    for shape in ((2, 3), (0, 5), (512, 1024)):
        found = ops.fresh(torch.Size(shape), torch.float32)
        assert (found.shape, found.dtype, found.is_contiguous()) == (shape, torch.float32, True)
        assert snnfast.memory.is_own(found.untyped_storage()) == (found.nbytes >= 1 << 20)
