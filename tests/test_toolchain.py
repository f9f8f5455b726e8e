"""What a build finds on a machine, and the one line it says of what is missing."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import toolchain

ROOT = Path(toolchain.__file__).parent


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def toolkit(home, release="13.0", codes=("sm_75", "sm_90", "sm_120"), headers="include", libraries="lib64"):
    """What a build asks of a toolkit, without a compiler."""
    answers = (
        f'case "$1" in --version) echo "Cuda compilation tools, release {release}, V{release}.88";;'
        f'--list-gpu-code) echo "{" ".join(codes)}";; --dryrun) echo "#\\$ _HERE_={home}/bin" >&2;; esac'
    )
    executable(home / "bin" / "nvcc", answers)
    for folder, name in ((headers, "cuda_runtime.h"), (libraries, "libcudart.so")):
        if folder:
            (home / folder).mkdir(parents=True)
            (home / folder / name).touch()
    return home


def torch_with(cuda="13.0", capabilities=()):
    return SimpleNamespace(
        __version__="2.11.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            is_available=lambda: bool(capabilities),
            device_count=lambda: len(capabilities),
            get_device_capability=lambda device: capabilities[device],
        ),
    )


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "SNNFAST_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_gpu_the_cpu_half_is_built_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert toolchain.wanted_cuda(torch_with()) is None
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("SNNFAST_CUDA", "0")
    assert toolchain.wanted_cuda(torch_with(capabilities=[(9, 0)])) is None
    monkeypatch.setenv("SNNFAST_CUDA", "yes")
    with pytest.raises(toolchain.Missing, match="SNNFAST_CUDA must be 0 or 1, got 'yes'"):
        toolchain.wanted_cuda(torch_with())


def test_with_a_gpu_its_architecture_alone_is_compiled_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    assert toolchain.wanted_cuda(torch_with(capabilities=[(9, 0), (9, 0)])).architectures == ["9.0"]
    assert toolchain.wanted_cuda(torch_with(capabilities=[(9, 0), (7, 5)])).architectures == ["7.5", "9.0"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5 9.0a+PTX;Hopper")
    assert toolchain.wanted_cuda(torch_with(capabilities=[(9, 0)])).architectures == ["7.5", "9.0a+PTX", "Hopper"]


def test_a_forced_build_without_a_gpu_is_for_every_gpu_that_the_toolkit_knows(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    monkeypatch.setenv("SNNFAST_CUDA", "1")
    assert toolchain.wanted_cuda(torch_with()).architectures == ["7.5+PTX", "9.0", "12.0+PTX"]


@pytest.mark.parametrize("way", ["a link", "a script", "a link to a link"])
def test_the_toolkit_is_found_through_what_lies_on_the_path(monkeypatch, tmp_path, way):
    home = toolkit(tmp_path / "cuda-13.0", headers="targets/x86_64-linux/include", libraries="targets/x86_64-linux/lib")
    on_path = tmp_path / "usr" / "bin" / "nvcc"
    on_path.parent.mkdir(parents=True)
    if way == "a script":
        executable(on_path, f'exec {home}/bin/nvcc "$@"')
    else:
        (tmp_path / "cuda").symlink_to(home)
        on_path.symlink_to(tmp_path / "cuda" / "bin" / "nvcc" if "to" in way else home / "bin" / "nvcc")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    found = toolchain.find_cuda(torch_with())
    assert found.home.resolve() == home.resolve() and (found.libraries / "libcudart.so").exists()


@pytest.mark.parametrize(
    "options, torch, said",
    [
        ({"libraries": None}, {}, "no libcudart.so in"),
        ({"headers": None}, {}, "no include/cuda_runtime.h in"),
        ({"release": "12.8"}, {}, "is CUDA 12.8, torch 2.11.0 is built for CUDA 13.0"),
        ({}, {"cuda": None}, "torch 2.11.0 is built without CUDA"),
        ({}, {"capabilities": [(6, 1)]}, r"compiles for GPUs of 7.5 to 12.0, not for 6.1 \(the GPU\)"),
        ({"codes": ("sm_50", "sm_86")}, {"capabilities": [(9, 0)]}, "compiles for GPUs of 5.0 to 8.6, not for 9.0"),
    ],
)
def test_what_a_toolkit_lacks_is_one_line(monkeypatch, capsys, tmp_path, options, torch, said):
    """Where it is forced, a refusal; where a GPU asked for it, the CPU half is built and the line is a notice."""
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path, **options)))
    with_gpu = torch_with(**{"capabilities": [(9, 0)], **torch})
    assert toolchain.wanted_cuda(with_gpu) is None
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("SNNFAST_CUDA", "1")
    with pytest.raises(toolchain.Missing, match=said) as lack:
        toolchain.wanted_cuda(with_gpu)
    assert "\n" not in str(lack.value)


def test_a_home_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SNNFAST_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(toolchain.Missing, match="CUDA_HOME names .*nowhere, which is no folder"):
        toolchain.wanted_cuda(torch_with())
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(toolchain.Missing, match="no bin/nvcc in"):
        toolchain.wanted_cuda(torch_with())


def test_an_unlisted_architecture_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    monkeypatch.setenv("SNNFAST_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0;13.0")
    with pytest.raises(toolchain.Missing, match=r"not for 13.0 \(TORCH_CUDA_ARCH_LIST\)"):
        toolchain.wanted_cuda(torch_with())


def setup_said(tmp_path, **environment):
    """The one line that setup.py ends with."""
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, ROOT / "setup.py", "--version"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 1
    return ended.stderr.strip()


def test_setup_ends_in_one_line(tmp_path):
    assert setup_said(tmp_path, PATH=tmp_path).startswith("snnfast: no C++ compiler: install g++")
    assert setup_said(tmp_path, CXX="no-such-compiler") == (
        "snnfast: CXX names 'no-such-compiler', which is not to be found"
    )
    old = executable(tmp_path / "old", "exit 1")
    assert "compiles no C++20: g++ 11 or newer is needed" in setup_said(tmp_path, CXX=old)
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools" / "__init__.py").write_text("__version__ = '59.6.0'\ndef setup(**_): pass\n")
    assert setup_said(tmp_path, PYTHONPATH=tmp_path).startswith("snnfast: setuptools 64 or newer is needed")
    (tmp_path / "setuptools" / "__init__.py").write_text("def setup(**_): pass\n__version__ = '80.1'\n")
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is broken')\n")
    assert "does not import here (libtorch.so is broken)" in setup_said(tmp_path, PYTHONPATH=tmp_path)


def test_a_compiler_of_another_name_is_handed_on(monkeypatch, tmp_path):
    executable(tmp_path / "g++", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain.find_compiler() == ["g++"] and os.environ["CXX"] == "g++"
    monkeypatch.delenv("CXX")


def test_progress_shows_the_number_and_name_of_each_file_and_all_else(capfd):
    with toolchain.progress():
        os.system('echo "[3/14] c++ -MMD -c csrc/cpu/leaky.cpp -o x.o"; echo "leaky.cpp:1: error"')
    assert capfd.readouterr().out == "[3/14] csrc/cpu/leaky.cpp\nleaky.cpp:1: error\n"


def test_little_room_on_a_disk_is_said_before_anything_is_downloaded(monkeypatch, capsys):
    free = {"/roomy": 50 * 10**9, "/full": 5 * 10**9}
    monkeypatch.setattr(toolchain.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    toolchain.warn_of_little_room("/roomy", "/full")
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("snnfast: 5.0 GB are free on the disk of /full") and "9 GB" in said
