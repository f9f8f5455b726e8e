"""Builds of `_C` for tests alone: other kernels, or other compiler flags, than setup.py's."""

import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

TESTS = Path(__file__).parent
CSRC = TESTS.parent / "csrc"

CPU_SOURCES = ("ops.cpp", *sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("cpu/*.cpp")))
# All CUDA kernels, for which their operators' tests run on the CPU; products are the CPU's own.
EMULATED_SOURCES = (
    "ops.cpp",
    *(
        f"cpu/{name}.cpp"
        for name in (
            "fresh",
            "linear",
            "lists_forward",
            "lists_gradient",
            "memory",
            "module",
            "pages",
            "product",
            "recording",
            "tiles",
        )
    ),
    *sorted(str(path.relative_to(CSRC)) for path in CSRC.glob("cuda/*.cu") if path.stem != "device"),
)


def build(folder: Path, sources: tuple[str, ...], flags: list[str]) -> Path:
    """The extension of these sources in csrc/, in a folder there is; CUDA's are compiled for the CPU (emulation/)."""
    include = [TESTS / "emulation", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    common = ["-std=c++20", "-ffp-contract=off", "-w", "-fPIC", "-fvisibility=hidden"]
    common += ["-DTORCH_TARGET_VERSION=0x020a000000000000", *(f"-I{path}" for path in include)]

    def compiled(source):
        target = folder / f"{Path(source).stem}.o"
        subprocess.run(["g++", *common, *flags, "-x", "c++", "-c", CSRC / source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    libraries = [flag for path in cpp_extension.library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    extension = folder / "_C.abi3.so"
    subprocess.run(
        ["g++", "-shared", *flags, "-o", extension, *objects, *libraries, "-ltorch_cpu", "-lc10"], check=True
    )
    return extension
