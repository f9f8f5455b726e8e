"""Builds snnfast's two extensions: `_C` (operators, CPU kernels) and, with nvcc and a CUDA torch, `_C_cuda`.

SNNFAST_CUDA=0|1 overrides the detection; TORCH_CUDA_ARCH_LIST chooses the GPUs (no GPU is needed to build).
"""

import os
from glob import glob

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

HERE = os.path.dirname(os.path.abspath(__file__))

# torch 2.10 is the oldest runtime the wheel supports; with it defined, only the stable ABI compiles.
COMMON = ["-O3", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
# Spikes are comparisons, so one fused multiply-add can flip one: round every operation, as PyTorch does. The two
# -fno flags change no value: they only let the compiler vectorise code that could raise floating-point flags.
CXX = [
    *COMMON,
    *("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
    *("-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"),
    f"-fmacro-prefix-map={HERE}/=",
]
# USE_CUDA declares the stream function of the stable ABI.
NVCC = [*COMMON, "--fmad=false", "-lineinfo", "-DUSE_CUDA", "--expt-relaxed-constexpr"]


def wants_cuda() -> bool:
    """Whether to build `_C_cuda`: as SNNFAST_CUDA says, else where nvcc and a CUDA build of torch are found."""
    choice = os.environ.get("SNNFAST_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"SNNFAST_CUDA must be 0 or 1, got {choice!r}")
    return choice == "1" or (not choice and bool(CUDA_HOME) and torch.version.cuda is not None)


extensions = [
    CppExtension(
        "snnfast._C",
        ["csrc/ops.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
        extra_compile_args={"cxx": CXX},
        py_limited_api=True,
    )
]
if wants_cuda():
    # Without a GPU to ask, torch would not know what to build for.
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0;12.0+PTX")
    extensions.append(
        CUDAExtension(
            "snnfast._C_cuda",
            ["csrc/cuda/module.cpp", *sorted(glob("csrc/cuda/*.cu"))],
            extra_compile_args={"cxx": CXX, "nvcc": NVCC},
            py_limited_api=True,
        )
    )

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
