"""A step's lanes as a kernel on NVIDIA GPUs: compiled by NVRTC, which comes with torch, launched through the driver.

No CUDA toolkit is needed. The cubin of a GPU's own architecture is kept on disk, as the CPU's libraries are.
"""

import ctypes
import functools
import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .building import BuildFailed, contents, headers, kept
from .emission import TYPES, LaneEmitter
from .kernel import Kernel, Periodic, Rows, array, periodic
from .operators import CUDA_OPERATORS

_HALVES = {torch.float16: "aten::Float16", torch.bfloat16: "aten::BFloat16"}
# As in setup.py: every operation rounded by itself. Division and square root are IEEE's by default.
_OPTIONS = ("--std=c++20", "--fmad=false", "--device-as-default-execution-space", "-DNDEBUG")
# What the headers include, all of which csrc/cuda/nvrtc.h stands for.
_STANDARD = ("bit", "cmath", "cstdint", "cuda_runtime.h", "torch/headeronly/macros/Macros.h", "type_traits", "utility")
_WARP, _THREADS, _LANES, _MOST_BLOCKS = 32, 128, 4, 1 << 20
_SEQUENCES = ("x", "grad_out", "outer")
_lock = threading.Lock()

_SOURCE = """\
#include "cuda/cell.cuh"

namespace snnfast {{
struct Cell {{
  using Scalar = {type};
  using T = Scalar;
  using In = {in_type};
  using Out = {out_type};
  static constexpr int kIns = {ins}, kOuts = {outs}, kStates = {states}, kParams = {params}, kTerms = {terms};
  static constexpr int kVariants = {variants};
  using Lane = CellLane<Cell>;
{functions}
}};
using Call = {scan}<Cell>;
}}
{kernels}"""

_FORWARD = """\
  __device__ static void step(Lane& rows) {{
{body}
  }}"""

_BACKWARD = """\
  __device__ static int first_term(int variant) {{
    return {first_terms};
  }}
  __device__ static void step_backward(int variant, Lane& rows) {{
    switch (variant) {{
{cases}
    }}
  }}
{functions}"""

_KERNEL = """
extern "C" __global__ void __launch_bounds__(snnfast::kThreads, 1) {name}(const snnfast::Call call) {{
  snnfast::run_cell{backward}<snnfast::{regime}, snnfast::Cell>(call);
}}
"""


class CudaKernel(Kernel):
    """In CUDA, for the time loops of csrc/cuda/cell.cuh: one neuron a thread, or four where they fill the GPU."""

    operators = CUDA_OPERATORS

    @staticmethod
    def storage(dtypes, dtype):
        """Half precision stays as it is, where all sequences have it."""
        return dtypes[0] if len({*dtypes}) == 1 and dtypes[0] in _HALVES else dtype

    def _build(self):
        source = self.source()
        self._call = _call_type(self._counts, sum(self._terms) if self._terms else 0, self._terms is not None)
        self._load(source)

    def source(self) -> str:
        """The CUDA file: of one step and the kernels over it."""
        backward = self._terms is not None
        bodies, terms = self._bodies(LaneEmitter), self._terms or [0]
        if backward:
            firsts = [sum(terms[:k]) for k in range(len(terms) + 1)]
            *before, most = firsts
            functions = _BACKWARD.format(
                first_terms="".join(f"variant == {k} ? {first} : " for k, first in enumerate(before)) + str(most),
                cases="\n".join(f"case {k}: return back_{k}(rows);" for k in range(len(bodies))),
                functions="\n".join(
                    f"__device__ static void back_{k}(Lane& rows) {{\n{body}\n}}" for k, body in enumerate(bodies)
                ),
            )
        else:
            functions = _FORWARD.format(body=bodies[0])
        narrow = f"NarrowBackward<{TYPES[self._dtype]}>" if backward else "NarrowForward"
        regimes = {"narrow": narrow, **({"wide": "Wide"} if self._has_wide else {})}
        of_storage = [TYPES.get(dtype) or _HALVES[dtype] for dtype in self._storage]
        return _SOURCE.format(
            **self._counts,
            **{"type": TYPES[self._dtype], "in_type": of_storage[0], "out_type": of_storage[1]},
            **{"terms": sum(terms), "variants": len(bodies), "functions": functions},
            scan="CellScanBackward" if backward else "CellScan",
            kernels="".join(
                _KERNEL.format(name=name, regime=regime, backward="_backward" * backward)
                for name, regime in regimes.items()
            ),
        )

    @property
    def _has_wide(self) -> bool:
        """As for the neurons of csrc/cuda: several states are too many for four neurons a thread."""
        return self._counts["states"] == 1 and self._dtype != torch.float64

    def run(self, steps, shape, tensors, headed=False, recurrence=None, every=1, **places):
        params, neurons = self._params(tensors, shape), shape.numel()
        call = self._call(steps=steps, neurons=neurons, params=periodic(params))
        if self._terms is not None:
            call.headed = headed
        for name, values in places.items():
            if values:
                setattr(call, name, array(values))
        wide = self._has_wide and self._is_wide(neurons, params, places)
        threads = -(-neurons // (_LANES if wide else 1))
        block = _THREADS if threads >= _THREADS * self._multiprocessors() else _WARP
        self._launch("wide" if wide else "narrow", min(-(-threads // block), _MOST_BLOCKS), block, call)

    def _is_wide(self, neurons: int, params: Sequence, places: dict[str, Sequence]) -> bool:
        """Whether threads that take four neurons each fill the device, and all that they touch lies so."""
        if neurons % _LANES or neurons < self._multiprocessors() * self._threads():
            return False
        for name, values in places.items():
            size = self._sizes(name) * _LANES
            for value in values:
                if name in _SEQUENCES:
                    aligned = not value.rows.data or not (value.rows.data % size or value.rows.stride % _LANES)
                else:
                    aligned = value is None or value.data_ptr() % size == 0
                if not aligned:
                    return False
        return True

    def _sizes(self, name: str) -> int:
        """Bytes of a value in a place."""
        dtype = {"x": 0, "grad_x": 0, "out": 1, "grad_out": 1}.get(name)
        return (self._dtype if dtype is None else self._storage[dtype]).itemsize

    def _multiprocessors(self) -> int:
        return torch.cuda.get_device_properties(self._device).multi_processor_count

    def _threads(self) -> int:
        return torch.cuda.get_device_properties(self._device).max_threads_per_multi_processor

    def _load(self, source: str) -> None:
        with torch.cuda.device(self._device):
            self._module = _module(source, self._device.index)

    def _launch(self, name: str, blocks: int, threads: int, call: ctypes.Structure) -> None:
        self._module.launch(name, blocks, threads, torch.cuda.current_stream(self._device).cuda_stream, call)


def _call_type(counts: dict[str, int], terms: int, backward: bool) -> type[ctypes.Structure]:
    """CellScan, or CellScanBackward, of csrc/cuda/cell.cuh."""
    ins, outs, states, params = (max(1, counts[name]) for name in ("ins", "outs", "states", "params"))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    fields = [("steps", size), ("neurons", size), ("x", Rows * ins), ("initial", pointer * states)]
    fields += [("params", Periodic * params)]
    if backward:
        fields += [("states", pointer * states), ("grad_out", Rows * outs), ("outer", Rows * states), ("headed", size)]
        fields += [("grad_last", pointer * states), ("grad_x", pointer * ins), ("grad_initial", pointer * states)]
        fields += [("terms", pointer * max(1, terms))]
    else:
        fields += [("out", pointer * outs), ("states", pointer * states), ("last", pointer * states)]
    return type("Call", (ctypes.Structure,), {"_fields_": fields})


def compiled(source: str, architecture: str) -> bytes:
    """A source as a cubin for "sm_90", say, or as PTX for "compute_90". Raises BuildFailed."""
    library = _nvrtc()
    program = ctypes.c_void_p()
    files = {name: b'#include "cuda/nvrtc.h"' for name in _STANDARD}
    texts, names = ((ctypes.c_char_p * len(files))(*each) for each in (files.values(), map(str.encode, files)))
    _check_nvrtc(
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"cell.cu", len(files), texts, names)
    )
    options = [*_OPTIONS, f"--gpu-architecture={architecture}", f"--include-path={headers()}"]
    try:
        code = library.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
        )
        if code:
            lines = _output(library, program, "ProgramLog").decode(errors="replace").strip("\0\n").splitlines()
            said = [line for line in lines if "error" in line] or lines or ["it said nothing"]
            raise BuildFailed(f"NVRTC failed for {architecture}: {said[0]}")
        return _output(library, program, "CUBIN" if architecture.startswith("sm_") else "PTX")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _output(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check_nvrtc(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check_nvrtc(getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check_nvrtc(code: int) -> None:
    if code:
        raise BuildFailed(f"NVRTC failed: {_nvrtc().nvrtcGetErrorString(code).decode()}")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """NVRTC of torch's CUDA. Raises BuildFailed."""
    if torch.version.cuda is None:
        raise BuildFailed(f"torch {torch.__version__} is built without CUDA")
    major = torch.version.cuda.split(".")[0]
    name, packages = f"libnvrtc.so.{major}", Path(torch.__file__).parent.parent
    places = [*packages.glob(f"nvidia/*/lib/{name}"), *Path(torch.__file__).parent.glob("lib/libnvrtc*.so*")]
    for place in [*map(str, places), name, f"/usr/local/cuda/lib64/{name}"]:
        try:
            library = ctypes.CDLL(place)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise BuildFailed(f"there is no {name}, which comes with torch for CUDA: pip install nvidia-cuda-nvrtc")


def architectures() -> list[int]:
    """What NVRTC compiles for, as 90 for sm_90. Raises BuildFailed."""
    count = ctypes.c_int()
    _check_nvrtc(_nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check_nvrtc(_nvrtc().nvrtcGetSupportedArchs(found))
    return [*found]


def _architecture(capability: tuple[int, int]) -> str:
    """What to compile for: the GPU's own, else PTX of the newest that it can take."""
    own = 10 * capability[0] + capability[1]
    known = architectures()
    older = [each for each in known if each < own]
    if own not in known and not older:
        raise BuildFailed(f"NVRTC compiles for GPUs from sm_{min(known)}, not for sm_{own}")
    return f"sm_{own}" if own in known else f"compute_{max(older)}"


@functools.cache
def _module(source: str, index: int) -> "_Module":
    """A source's kernels on a GPU: found in the cache, or compiled. Raises BuildFailed."""
    with _lock:
        architecture = _architecture(torch.cuda.get_device_capability(index))
        version = (ctypes.c_int(), ctypes.c_int())
        _check_nvrtc(_nvrtc().nvrtcVersion(*map(ctypes.byref, version)))
        key = [source, architecture, *_OPTIONS, *(str(part.value) for part in version)]
        key += contents("cuda", "op", "neuron")
        image = kept(key, ".cubin", _read, lambda path: _write(path, compiled(source, architecture)))
        return _Module(image, index)


def _write(path: Path, image: bytes) -> None:
    path.write_bytes(hashlib.sha256(image).digest() + image)


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    digest, image = content[:32], content[32:]
    if hashlib.sha256(image).digest() != digest:
        raise OSError(f"{path} is damaged")
    return image


class _Module:
    """Kernels in a GPU's primary context, which is torch's. Raises BuildFailed where they do not load."""

    def __init__(self, image: bytes, index: int):
        self._driver, self._functions = _driver(), {}
        device, self._context, self._module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self._check(self._driver.cuDeviceGet(ctypes.byref(device), index))
            self._check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device))
            self._within(lambda: self._driver.cuModuleLoadData(ctypes.byref(self._module), image))
        except RuntimeError as error:
            raise BuildFailed(str(error)) from error

    def launch(self, name: str, blocks: int, threads: int, stream: int, call: ctypes.Structure) -> None:
        """Launches a kernel whose one argument is `call`. Raises RuntimeError."""
        function = self._functions.get(name)
        if function is None:
            function, get = ctypes.c_void_p(), self._driver.cuModuleGetFunction
            self._within(lambda: get(ctypes.byref(function), self._module, name.encode()))
            self._functions[name] = function
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(call))
        size = [*map(ctypes.c_uint, (blocks, 1, 1, threads, 1, 1, 0))]
        self._within(lambda: self._driver.cuLaunchKernel(function, *size, ctypes.c_void_p(stream), arguments, None))

    def _within(self, call: Callable[[], int]) -> None:
        """In the context, whatever this thread had: autograd's threads may have none."""
        self._check(self._driver.cuCtxPushCurrent_v2(self._context))
        try:
            self._check(call())
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def _check(self, code: int) -> None:
        if code:
            said = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(said))
            raise RuntimeError(f"CUDA's driver says of a generated neuron: {(said.value or b'?').decode()} ({code})")


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BuildFailed(f"CUDA's driver does not load: {error}") from error
