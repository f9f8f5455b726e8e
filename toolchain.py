"""What a build needs of the machine, looked for before anything is compiled: a lack is one line that says what to do.

`python toolchain.py` checks what can be checked without torch, before anything is downloaded. A Python too old for
snnfast reads this file too, to say so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

# The GPUs of a build that cannot ask one. PTX of the oldest runs on all of them, that of the newest on what comes.
ARCHITECTURES = ("7.5+PTX", "8.0", "9.0", "10.0", "12.0+PTX")

ROOM = 9 * 10**9
"""Bytes of the tests' environment, and of the archives that it is installed from."""


class Missing(Exception):
    """What a build lacks, in one line."""


def check() -> None:
    """Raises Missing for a Python, a C++ compiler or headers that cannot build an extension."""
    if sys.version_info < (3, 10):  # noqa: UP036
        raise Missing(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    compiler = find_compiler()
    tried = run(
        [*compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], input="#include <concepts>\n#include <bit>"
    )
    if tried.returncode != 0:
        raise Missing(
            f"{shlex.join(compiler)} compiles no C++20: g++ 11 or newer is needed; CXX chooses another compiler"
        )
    include = sysconfig.get_path("include", vars={"installed_base": sys.base_prefix})
    if not Path(include, "Python.h").exists():
        raise Missing(f"no Python.h in {include}: install Python's headers (Debian, Ubuntu: apt install python3-dev)")


def warn_of_little_room(*folders: str) -> None:
    """Says where there may be too little room for what is downloaded: on a full disk pip fails after minutes."""
    for folder in folders:
        free = shutil.disk_usage(folder).free
        if free < ROOM:
            print(
                f"snnfast: {free / 1e9:.1f} GB are free on the disk of {folder}, where torch with CUDA's libraries, as "
                f"it is downloaded and installed, takes up to {ROOM / 1e9:.0f} GB",
                file=sys.stderr,
            )


def find_compiler() -> list[str]:
    """The C++ compiler's command: CXX, else c++ or g++, which torch is told of."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        if not shutil.which(command[0]):
            raise Missing(f"CXX names {os.environ['CXX']!r}, which is not to be found")
        return command
    for name in ("c++", "g++"):
        if shutil.which(name):
            if name != "c++":
                os.environ["CXX"] = name
            return [name]
    raise Missing("no C++ compiler: install g++ 11 or newer (Debian, Ubuntu: apt install g++), or set CXX")


def check_setuptools() -> None:
    """Raises Missing for a setuptools that cannot build this project, or has no wheels to build it into."""
    import setuptools

    major, minor = (int(part) for part in setuptools.__version__.split(".")[:2])
    if major < 64:
        raise Missing(f"setuptools 64 or newer is needed, this is {setuptools.__version__}: pip install -U setuptools")
    if (major, minor) < (70, 1) and not importlib.util.find_spec("wheel"):
        raise Missing(f"setuptools {setuptools.__version__} needs the package wheel: pip install wheel")


def import_torch():
    """torch, or Missing."""
    try:
        import torch
    except ImportError as error:
        raise Missing(
            f"snnfast is built against the torch that it will run with, which does not import here ({error}): pip "
            "install torch, then pip install --no-build-isolation ."
        ) from error
    return torch


@dataclass
class Cuda:
    """A CUDA toolkit that fits torch: where it lies, and what it is to compile for."""

    home: Path
    libraries: Path
    architectures: list[str]


def wanted_cuda(torch) -> Cuda | None:
    """The toolkit to build the GPU half with, as SNNFAST_CUDA says: "1" must, "0" not, else for a GPU that torch can
    use.

    Raises:
        Missing: SNNFAST_CUDA=1, and there is none that can; or another value.
    """
    choice = os.environ.get("SNNFAST_CUDA", "")
    if choice not in ("", "0", "1"):
        raise Missing(f"SNNFAST_CUDA must be 0 or 1, got {choice!r}")
    if choice == "0":
        return None
    if not choice and not torch.cuda.is_available():
        say("the CPU half alone: no GPU that torch can use (SNNFAST_CUDA=1 builds the GPU half all the same)")
        return None
    try:
        cuda = find_cuda(torch)
    except Missing as lack:
        if choice:
            raise
        say(f"the CPU half alone, though there is a GPU: {lack}")
        return None
    say(f"both halves, the GPU's for {' '.join(cuda.architectures)} with {cuda.home}")
    return cuda


def find_cuda(torch) -> Cuda:
    """The toolkit of `find_home`, where it fits torch. Raises Missing."""
    if torch.version.cuda is None:
        raise Missing(f"torch {torch.__version__} is built without CUDA")
    home = find_home()
    _check_version(home, torch)
    return Cuda(home, _libraries(home), _architectures(home, torch))


def find_home() -> Path:
    """The toolkit that CUDA_HOME names, nvcc on PATH belongs to, or lies in its usual place. Raises Missing."""
    lacks = []
    for home in _homes():
        lack = _lack(home)
        if lack is None:
            return home
        lacks.append(lack)
    raise Missing(lacks[0] if lacks else "no nvcc: install the CUDA toolkit, or set CUDA_HOME to where it lies")


def _homes() -> list[Path]:
    named = next((name for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)), None)
    if named:
        home = Path(os.environ[named])
        if not home.is_dir():
            raise Missing(f"{named} names {home}, which is no folder")
        return [home]
    homes = []
    nvcc = shutil.which("nvcc")
    if nvcc:
        # It may be a link, or a script that calls another: nvcc itself says where it lies.
        said = re.search(r"_HERE_=(.+)", run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull]).stderr)
        homes += [Path(said[1]).parent] if said else []
        homes += [Path(nvcc).resolve().parent.parent, Path(nvcc).parent.parent]
    homes += [home for home in (Path("/usr/local/cuda"), Path("/opt/cuda")) if home.is_dir()]
    return homes


def _lack(home: Path) -> str | None:
    """What a toolkit lacks."""
    if not os.access(home / "bin" / "nvcc", os.X_OK):
        return f"no bin/nvcc in {home}"
    if not _found(home, ("include", "targets/*/include"), "cuda_runtime.h"):
        return f"no include/cuda_runtime.h in {home}: the toolkit is incomplete"
    if not _libraries(home):
        return f"no libcudart.so in {home}: the toolkit is incomplete (Debian, Ubuntu: apt install libcudart-dev)"
    return None


def _libraries(home: Path) -> Path | None:
    return _found(home, ("lib64", "lib", "targets/*/lib", "lib/*-linux-gnu"), "libcudart.so")


def _found(home: Path, folders: tuple, name: str) -> Path | None:
    """The first folder of a toolkit that has this file."""
    return next((path.parent for folder in folders for path in home.glob(f"{folder}/{name}")), None)


def _check_version(home: Path, torch) -> None:
    release = re.search(r"release ([\d.]+)", run([home / "bin" / "nvcc", "--version"]).stdout)
    if not release:
        raise Missing(f"{home}/bin/nvcc --version names no release")
    if release[1].split(".")[0] != torch.version.cuda.split(".")[0]:
        raise Missing(
            f"the toolkit in {home} is CUDA {release[1]}, torch {torch.__version__} is built for CUDA "
            f"{torch.version.cuda}: the first numbers must be the same (CUDA_HOME names another toolkit)"
        )


def _architectures(home: Path, torch) -> list[str]:
    """What to compile for: TORCH_CUDA_ARCH_LIST, else the GPUs that are there, else those of ARCHITECTURES."""
    listed = run([home / "bin" / "nvcc", "--list-gpu-code"]).stdout
    known = {f"{code[:-1]}.{code[-1]}" for code in re.findall(r"sm_(\d+)\b", listed)}
    names = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if names:
        wanted, source = names, "TORCH_CUDA_ARCH_LIST"
    elif torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        wanted = sorted({"{}.{}".format(*torch.cuda.get_device_capability(device)) for device in devices})
        source = "the GPU"
    else:
        return [name for name in ARCHITECTURES if name.removesuffix("+PTX") in known]
    for name in wanted:
        number = re.fullmatch(r"(\d+\.\d)[af]?(\+PTX)?", name)
        if number and number[1] not in known:
            span = sorted(known, key=float)
            raise Missing(
                f"the toolkit in {home} compiles for GPUs of {span[0]} to {span[-1]}, not for {name} ({source})"
                if span
                else f"{home}/bin/nvcc names no GPU that it compiles for"
            )
    return wanted


@contextlib.contextmanager
def progress():
    """Within it, what ninja prints of a compiled file is its number and name; everything else as it is."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    shown = os.dup(1)
    os.dup2(writing, 1)
    os.close(writing)

    def relay():
        with os.fdopen(reading, errors="replace") as lines, os.fdopen(shown, "w") as out:
            for line in lines:
                compiled = re.match(r"(\[\d+/\d+\]) .* -c (\S+)", line)
                out.write(f"{compiled[1]} {os.path.relpath(compiled[2])}\n" if compiled else line)
                out.flush()

    relaying = threading.Thread(target=relay)
    back = os.dup(shown)
    relaying.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(back, 1)
        os.close(back)
        relaying.join()


def say(what: str) -> None:
    """A line about the build."""
    print(f"snnfast: building {what}", file=sys.stderr, flush=True)


def run(command, **options) -> subprocess.CompletedProcess:
    """A command's outcome, as text."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


if __name__ == "__main__":
    try:
        check()
        if os.environ.get("SNNFAST_CUDA") == "1":
            find_home()
        warn_of_little_room(str(Path(__file__).parent), tempfile.gettempdir())
    except Missing as lack:
        sys.exit(f"snnfast: {lack}")
