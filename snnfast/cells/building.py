"""Shared libraries from generated C++, by the system's compiler; what is built is kept on disk from process to process.

The cache is `$SNNFAST_CACHE`, else `$XDG_CACHE_HOME/snnfast`, else `~/.cache/snnfast`; where nothing can be written
there, a folder that this process deletes at its end. `CXX` names another compiler than c++ or g++.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import struct
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch

_FLAGS = (
    *("-O3", "-std=c++20", "-march=native", "-shared", "-fPIC", "-w"),
    # As in setup.py: every operation rounded by itself, and vectors where floating-point flags do not matter.
    *("-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-DNDEBUG"),
)
_SECONDS = 120
_lock = threading.Lock()


_Built = TypeVar("_Built")


class BuildFailed(Exception):
    """Why there is no library, in one line."""


@functools.cache
def library(source: str) -> ctypes.CDLL:
    """The library of this C++ file: found in the cache, or built. Raises BuildFailed."""
    with _lock:
        return kept([source, *_circumstances()], ".so", _loaded, lambda path: _build(source, path))


def kept(key: Iterable[str], suffix: str, load: Callable[[Path], _Built], build: Callable[[Path], None]) -> _Built:
    """What is built once of the same strings: loaded from the cache, where it can be, else built into it.

    Args:
        load: of a file; raises OSError for a damaged one.
        build: writes the file; raises OSError where it cannot be written, BuildFailed for the rest.

    Raises:
        BuildFailed: it cannot be built, or nowhere be written to.
    """
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:32] + suffix
    for folder in (_kept_folder(), None):
        folder = folder or _own_folder()
        try:
            return _found(folder / name, load) or _put(folder / name, load, build)
        except OSError as error:
            # The folder's fault: another one may do.
            cause = error
    raise BuildFailed(f"nothing can be written to {_own_folder()}: {cause.strerror or cause}")


def _circumstances() -> list[str]:
    """What makes another library of the same file."""
    command = compiler()
    program = Path(shutil.which(command[0])).resolve()
    about = program.stat()
    return [
        *command,
        *_FLAGS,
        f"{program} {about.st_size} {about.st_mtime_ns}",
        torch.__version__,
        _processor(),
        *contents("cpu", "op", "neuron"),
    ]


def contents(*folders: str) -> list[str]:
    """Of all headers in these folders of csrc."""
    paths = sorted(path for folder in folders for path in (headers() / folder).glob("*.*h"))
    return [path.read_text() for path in paths]


@functools.cache
def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        return "\n".join(line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features"))
    except OSError:
        return platform.processor() or platform.machine()


def compiler() -> list[str]:
    """The C++ compiler's command. Raises BuildFailed where there is none."""
    if os.environ.get("CXX", "").strip():
        command = shlex.split(os.environ["CXX"])
        if shutil.which(command[0]):
            return command
        raise BuildFailed(f"CXX names {command[0]}, which is not to be found")
    for name in ("c++", "g++"):
        if shutil.which(name):
            return [name]
    raise BuildFailed("there is no C++ compiler: install g++ 11 or newer, or set CXX")


@functools.cache
def headers() -> Path:
    """csrc, as it is installed with the package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    return next(path for path in (package / "csrc", package.parent / "csrc") if path.is_dir())


def _kept_folder() -> Path | None:
    """The cache; None where it cannot be made, or others could write to it."""
    base = os.environ.get("SNNFAST_CACHE")
    if not base:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "snnfast")
    folder = Path(base, "cells")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
    except (OSError, RuntimeError) as error:
        _say_not_kept(f"{folder} cannot be made ({error})")
        return None
    if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _say_not_kept(f"others than you can write to {folder}")
        return None
    return folder


@functools.cache
def _own_folder() -> Path:
    """A folder for this process alone."""
    try:
        folder = tempfile.mkdtemp(prefix="snnfast-")
    except OSError as error:
        raise BuildFailed(f"no temporary folder can be made: {error.strerror or error}") from error
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def _say_not_kept(why: str) -> None:
    warnings.warn(
        f"snnfast compiles generated neurons anew in every process: {why}; SNNFAST_CACHE names another folder",
        stacklevel=2,
    )


def _found(path: Path, load: Callable[[Path], _Built]) -> _Built | None:
    if not path.exists():
        return None
    try:
        return load(path)
    except OSError:
        # Cut off, or somebody else's: built anew.
        return None


def _put(target: Path, load: Callable[[Path], _Built], build: Callable[[Path], None]) -> _Built:
    # Of this process and thread, and put in its place at once: others build the same.
    with tempfile.TemporaryDirectory(prefix="building-", dir=target.parent) as folder:
        made = Path(folder, target.name)
        build(made)
        try:
            found = load(made)
        except OSError as error:
            raise BuildFailed(f"what was built does not load: {error}") from error
        os.replace(made, target)
        return found


def _loaded(path: Path) -> ctypes.CDLL:
    _refuse_cut_off(path)
    loaded = ctypes.CDLL(str(path))
    loaded.run.argtypes = [ctypes.c_void_p]
    loaded.run.restype = ctypes.c_int
    return loaded


def _refuse_cut_off(path: Path) -> None:
    """Raises OSError for a library that ends before its table of sections does: the system's loader would crash."""
    with open(path, "rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            return
        if len(header) < 64:
            raise OSError(f"{path} is cut off")
        (sections,) = struct.unpack_from("=Q", header, 40)
        size, count = struct.unpack_from("=HH", header, 58)
        if file.seek(0, os.SEEK_END) < sections + size * count:
            raise OSError(f"{path} is cut off")


def _build(source: str, made: Path) -> None:
    folder = made.parent
    file = folder / "cell.cpp"
    file.write_text(source)
    command = [*compiler(), *_FLAGS, f"-I{headers()}", f"-I{_torchs_headers()}", str(file), "-o", str(made)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, cwd=folder)
    except OSError as error:
        raise BuildFailed(f"{command[0]} does not run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{command[0]} took longer than {_SECONDS} s") from error
    if done.returncode != 0 or not made.exists():
        _raise_if_full(folder)
        said = (done.stderr or done.stdout).strip().splitlines()
        lines = [line for line in said if "error" in line] or said or ["it said nothing"]
        raise BuildFailed(f"{command[0]} failed: {lines[0]}")


def _raise_if_full(folder: Path) -> None:
    """Raises OSError where a compiler cannot have had room for its output."""
    with open(Path(folder, "room"), "wb") as file:
        file.write(bytes(1 << 20))


@functools.cache
def _torchs_headers() -> Path:
    return Path(torch.__file__).parent / "include"


@functools.cache
def _torchs_library() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))


@functools.cache
def address(symbol: str) -> int | None:
    """Where a function of torch's lies in this process; None: this torch has none of that name."""
    try:
        return ctypes.cast(getattr(_torchs_library(), symbol), ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None
