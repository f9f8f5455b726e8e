"""Builds snnfast's extensions: `_C` (operators, CPU kernels), and for a GPU `_C_cuda`. toolchain.py says when.

SNNFAST_CUDA=0|1 chooses instead; TORCH_CUDA_ARCH_LIST names the GPUs to compile for (none is needed to build).
"""

import logging
import os
import sys
from glob import glob

from setuptools import setup

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import toolchain  # noqa: E402

try:
    toolchain.check()
    toolchain.check_setuptools()
    torch = toolchain.import_torch()
    cuda = toolchain.wanted_cuda(torch)
except toolchain.Missing as lack:
    sys.exit(f"snnfast: {lack}")
if cuda:
    # torch asks the environment, once, when it is imported.
    os.environ["CUDA_HOME"] = str(cuda.home)
    os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(cuda.architectures)

# It warns of toolkits that nobody asked for.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

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


class Build(BuildExtension):
    """Keeps its objects, so that only what changed is compiled again, and says which file of how many it is at."""

    def finalize_options(self):
        super().finalize_options()
        self.build_temp = os.path.join(HERE, "build", "objects")

    def build_extensions(self):
        with toolchain.progress():
            super().build_extensions()


def extension(kind, name, sources, **flags):
    sources = [os.path.join("csrc", source) for source in sources]
    return kind(f"snnfast.{name}", sources, extra_compile_args=flags, py_limited_api=True)


extensions = [extension(CppExtension, "_C", ["ops.cpp", *sorted(glob("cpu/*.cpp", root_dir="csrc"))], cxx=CXX)]
if cuda:
    sources = ["cuda/module.cpp", "cpu/glibc.cpp", *sorted(glob("cuda/*.cu", root_dir="csrc"))]
    extensions.append(extension(CUDAExtension, "_C_cuda", sources, cxx=CXX, nvcc=NVCC))
    extensions[-1].library_dirs.append(str(cuda.libraries))

setup(
    # Here, since setuptools before 77 knows no SPDX name and later ones no other.
    license="MIT",
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
