"""Generated neurons on a GPU: without one, NVRTC compiles them for all, and they run as test_emulation.py's do."""

import ctypes
import subprocess

import pytest
import torch

import cells
import sass
import snnfast
from building import CSRC, TESTS
from snnfast.cells import cuda, program, scanning, trees, why_not_fused
from snnfast.cells.building import BuildFailed
from test_cells import _kept, _nothing_unsaid, assert_equal  # noqa: F401

LONG = pytest.mark.long
_LAUNCH = """
extern "C" int launch(int wide, unsigned blocks, unsigned threads, const snnfast::Call* call) {{
  cudaLaunchConfig_t config{{}};
  config.gridDim = dim3(blocks), config.blockDim = dim3(threads);
  return cudaLaunchKernelEx(&config, wide ? ::{wide} : ::narrow, *call);
}}
extern "C" size_t size() {{ return sizeof(snnfast::Call); }}
"""


class Emulated(cuda.CudaKernel):
    """A GPU's kernel, compiled for the CPU, on a device of one multiprocessor."""

    launched = []

    def _load(self, source):
        source += _LAUNCH.format(wide="wide" if " wide(" in source else "narrow")
        folder = self.folder / str(abs(hash(source)))
        folder.mkdir(exist_ok=True)
        file, made = folder / "cell.cpp", folder / "cell.so"
        file.write_text('#include "cuda_runtime.h"\n' + source)
        if not made.exists():
            include = [TESTS / "emulation", CSRC, *map(str, torch.utils.cpp_extension.include_paths())]
            command = ["g++", "-std=c++20", "-O1", "-mfma", "-ffp-contract=off", "-w", "-fPIC", "-shared"]
            command += ["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
            command += [f"-I{path}" for path in include]
            subprocess.run([*command, file, "-o", made], check=True)
        self._library = ctypes.CDLL(str(made))
        assert self._library.size() == ctypes.sizeof(self._call)

    def _launch(self, name, blocks, threads, call):
        self.launched.append(name)
        assert self._library.launch(name == "wide", blocks, threads, ctypes.byref(call)) == 0

    def _multiprocessors(self):
        return 1

    def _threads(self):
        return 32


@pytest.fixture
def emulated(monkeypatch, tmp_path_factory):
    """Cells on the CPU run as they would on a GPU; the kernels that were launched, by name."""
    monkeypatch.setattr(Emulated, "folder", tmp_path_factory.getbasetemp(), raising=False)
    monkeypatch.setattr(Emulated, "launched", [])
    monkeypatch.setitem(program.KERNELS, "cpu", Emulated)
    monkeypatch.setattr(scanning, "_programs", type(scanning._programs)())
    return Emulated.launched


def test_every_regime_computes_what_the_loop_does(emulated):
    for shape, steps in (((3, 7), 6), ((4, 8), 1), ((4, 8), 37)):
        state = torch.randn(shape)
        for with_last in (True, False):
            assert_equal(cells.leaky, torch.randn(steps, *shape) * 1.5, state, with_last)
    assert {*emulated} == {"narrow", "wide"}
    # No steps: nothing is launched.
    launches = len(emulated)
    out, last = snnfast.scan(cells.leaky, torch.randn(0, 4, 8), state)
    assert out.shape == (0, 4, 8) and torch.equal(last, state) and len(emulated) == launches


@pytest.mark.parametrize("kernels", ["cpu", "emulated"])
def test_memory_of_any_kind_is_read_as_it_is_meant(kernels, request):
    if kernels == "emulated":
        request.getfixturevalue("emulated")
    place = torch.randn(6 * 32 + 1)
    misaligned = place[1:].view(6, 4, 8)
    wide_rows = torch.randn(6, 4, 9)[:, :, :8]
    every_second = torch.randn(12, 4, 8)[::2]
    steps_apart = torch.randn(6, 33)[:, :32].view(6, 4, 8)
    negated = torch._neg_view(torch.randn(6, 4, 8))
    same = torch.randn(4, 8).expand(6, 4, 8)
    bytes_apart = torch.zeros(6 * 32 * 4 + 1, dtype=torch.uint8)[1:].numpy().view("float32")
    odd = torch.from_numpy(bytes_apart).view(6, 4, 8)
    for x in (misaligned, wide_rows, every_second, steps_apart, negated, same, odd):
        with torch.no_grad():
            assert torch.equal(snnfast.scan(cells.leaky, x, torch.zeros(4, 8))[0], torch.stack(run(x)))


def run(x):
    spikes, mem = [], torch.zeros_like(x[0])
    for step in x.unbind(0):
        spk, mem = cells.leaky(step, mem)
        spikes.append(spk)
    return spikes


@pytest.mark.parametrize(
    "dtype, shape",
    [(torch.bfloat16, (4, 8)), *(pytest.param(torch.float16, shape, marks=LONG) for shape in ((3, 7), (4, 8)))],
    ids=str,
)
def test_half_precision_is_stored_as_it_is(emulated, dtype, shape):
    def cell(x, mem):
        mem = 0.9 * mem + x
        spk = cells.Atan.apply(mem - 1.0)
        return spk.to(x.dtype), mem - torch.where(spk > 0, 1.0, 0.0)

    x, mem = torch.randn(5, *shape, dtype=dtype) * 2, torch.randn(shape)
    assert_equal(cell, x, mem)
    call = scanning._Call(cell, x, mem)
    own, _ = call.program()
    assert (own.in_dtype, own.out_dtype, own.dtype) == (dtype, dtype, torch.float32)


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("adaptive", torch.float32),
        *(
            pytest.param(name, dtype, marks=LONG)
            for name in ("in-place", "current-based-none", "integrator-none")
            for dtype in (torch.float32, torch.float64)
        ),
    ],
    ids=str,
)
def test_cells_of_every_kind_run_as_their_loops(emulated, name, dtype):
    cell, _, state = cells.cases(7, dtype)[name]
    for with_last in (True, False):
        assert_equal(cell, torch.randn(6, 3, 7, dtype=dtype) * 1.5, state, with_last)
    assert {*emulated} <= {"narrow", "wide"} and emulated


def sources(cell, x, state):
    """Of forward and backward, as they go to NVRTC."""
    found = []

    class Written(cuda.CudaKernel):
        def _load(self, source):
            found.append(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(program.KERNELS, "cpu", Written)
        patch.setattr(scanning, "_programs", type(scanning._programs)())
        call = scanning._Call(cell, x, state)
        own, surroundings = call.program()
        own.backward((call.cell, surroundings), (True,) * len(own.places), (True,) * len(trees.flatten(state)[0]))
    return found


def compilers():
    try:
        return cuda.architectures()
    except BuildFailed:
        return []


needs_nvrtc = pytest.mark.skipif(not compilers(), reason="this torch has no NVRTC")
ARCHITECTURES = [f"sm_{k}" for k in (75, 80, 86, 89, 90, 100, 120) if k in compilers()]


@needs_nvrtc
@LONG
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_for_every_gpu(architecture):
    # The types differ in what is loaded and stored, which the oldest shows.
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    for dtype in dtypes if architecture == ARCHITECTURES[0] else dtypes[:1]:
        mem = torch.zeros(4, 8, dtype=torch.promote_types(dtype, torch.float32))
        for source in sources(narrowed, torch.randn(2, 4, 8).to(dtype), mem):
            assert cuda.compiled(source, architecture)[:4] == b"\x7fELF"


def narrowed(x, mem):
    spk, mem = cells.leaky(x, mem)
    return spk.to(x.dtype), mem


@needs_nvrtc
@LONG
@pytest.mark.parametrize("name", [name for name in cells.cases(1, torch.float32) if "none" not in name])
def test_nvrtc_compiles_every_cell(name):
    cell, ins, state = cells.cases(7, torch.float32)[name]
    x = torch.randn(2, 3, 7)
    for source in sources(cell, x if ins == 1 else (x,) * ins, state):
        assert b".entry narrow" in cuda.compiled(source, "compute_90")


@needs_nvrtc
def test_the_machine_code_is_what_it_should_be(tmp_path, monkeypatch):
    """Four neurons' values move at once, nothing is spilled, no multiply-add is fused."""

    def linear(x, mem):
        mem = 0.9 * mem + x
        return mem * 0.3 + 0.5 * x, mem - 0.1 * x

    def facts(source):
        (tmp_path / "cell.cubin").write_bytes(cuda.compiled(source, "sm_90"))
        return sass.facts(tmp_path / "cell.cubin")

    assert sass.cuobjdump(), "Triton, which comes with torch for CUDA, brings cuobjdump"
    for source in sources(linear, torch.randn(2, 4, 8), torch.zeros(4, 8)):
        found = facts(source)
        assert {*found} == {"narrow", "wide"}
        for each in found.values():
            assert each.spilled == 0 and each.registers <= 128 and each.count(r"FMUL.*") and not each.count(r"FFMA.*")
        assert found["wide"].count(r"LDG.*\.128.*") >= 4 and found["wide"].count(r"STG.*\.128.*") >= 4
        assert not found["wide"].count(r"LDG\.E(\.CONSTANT)?")
    monkeypatch.setattr(cuda, "_OPTIONS", tuple(o.replace("false", "true") for o in cuda._OPTIONS))
    assert facts(source)["wide"].count(r"FFMA.*")


def test_operators_that_fuse_on_a_gpu_are_written_so():
    def cell(x, mem):
        mem = torch.add(mem, x, alpha=0.3)
        return torch.lerp(mem, x, 0.2) / 3.0, torch.addcmul(mem, x, x, value=0.5)

    (source, *_) = sources(cell, torch.randn(2, 3), torch.zeros(3))
    step = source.partition("step(Lane& rows)")[2].partition("using Call")[0]
    assert step.count("aten::fused<T>(") == 3 and "* (T(1) / T(3.0))" in step


def test_without_nvrtc_the_loop_runs_and_says_so(monkeypatch):
    def none():
        raise BuildFailed("there is no libnvrtc.so.13, which comes with torch for CUDA: pip install nvidia-cuda-nvrtc")

    class Built(cuda.CudaKernel):
        def _load(self, source):
            cuda.compiled(source, "sm_90")

    monkeypatch.setitem(program.KERNELS, "cpu", Built)
    monkeypatch.setattr(scanning, "_programs", type(scanning._programs)())
    monkeypatch.setattr(scanning, "_said", set())
    monkeypatch.setattr(cuda, "_nvrtc", none)
    x, mem = torch.rand(3, 5), torch.zeros(5)
    assert "there is no libnvrtc" in why_not_fused(cells.leaky, x, mem)
    with pytest.warns(UserWarning, match="leaky is not fused, its steps run one by one: there is no libnvrtc"):
        assert torch.equal(snnfast.scan(cells.leaky, x, mem)[0], torch.stack(run(x)))


def test_a_gpu_that_nvrtc_does_not_know_gets_what_an_older_one_would(monkeypatch):
    monkeypatch.setattr(cuda, "architectures", lambda: [75, 90, 120])
    assert cuda._architecture((9, 0)) == "sm_90"
    assert cuda._architecture((10, 3)) == "compute_90" and cuda._architecture((13, 0)) == "compute_120"
    with pytest.raises(BuildFailed, match="from sm_75, not for sm_70"):
        cuda._architecture((7, 0))
