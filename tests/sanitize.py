"""The operators' tests under the address and undefined-behaviour sanitizers: `make sanitize`.

Two builds of `_C`, both in build/sanitized: the CPU's kernels, and CUDA's as test_emulation.py runs them, where what
lies beyond a block's shared memory counts as foreign too. The first error ends the run. Its report comes from a file: a
test that captures what is written to the terminal would take it along.

    python tests/sanitize.py [cpu | emulated] [pytest's arguments]
"""

import os
import subprocess
import sys

from building import CPU_SOURCES, EMULATED_SOURCES, TESTS, build

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
FLAGS = ["-O0", "-g1", *SANITIZERS]  # unoptimised compiles fast, which is most of the time

# Python frees less than it takes, and torch takes some of the memory it frees from other allocators.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

# Files, and which of their tests. Compilers in other processes would run under the sanitizers too, and these end a
# process that asks for more memory than there can be.
NEITHER_COMPILED_NOR_ENDLESS = (
    "not compile and not fullgraph and not inductor and not without_memory and not fails_within_an_operator"
)
CPU_TESTS = (
    (
        "test_ops.py test_errors.py test_encoding.py test_products.py test_tiles.py test_recurrence.py",
        NEITHER_COMPILED_NOR_ENDLESS,
    ),
    ("test_leaky.py test_family.py test_surrogate.py test_recompute.py", NEITHER_COMPILED_NOR_ENDLESS),
)
EMULATED_TESTS = (
    ("test_ops.py", "(row or address or steps) and (leaky or lapicque or lif)"),
    ("test_half.py", ""),
    ("test_recurrence.py", "RLeaky and 33"),
)


def libraries() -> str:
    """What must be loaded before Python: the sanitizers, and the C++ library whose exceptions they look into."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    found = (subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True) for name in names)
    return " ".join(path.stdout.strip() for path in found)


def run(kind: str, arguments: list[str]) -> None:
    """Builds and tests, or ends the program."""
    folder = TESTS.parent / "build" / "sanitized" / kind
    folder.mkdir(parents=True, exist_ok=True)
    emulated = kind == "emulated"
    extension = build(folder, EMULATED_SOURCES if emulated else CPU_SOURCES, FLAGS)
    name = "SNNFAST_EMULATED" if emulated else "SNNFAST_SANITIZED"
    reports = {option: f"{value}:log_path={folder / 'report'}" for option, value in OPTIONS.items()}
    environment = os.environ | reports | {"LD_PRELOAD": libraries(), name: str(extension), "CUDA_VISIBLE_DEVICES": ""}
    for files, selected in EMULATED_TESTS if emulated else CPU_TESTS:
        for old in folder.glob("report.*"):
            old.unlink()
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command += ["-k", selected, *arguments, *(str(TESTS / file) for file in files.split())]
        code = subprocess.run(command, env=environment, cwd=TESTS.parent).returncode
        for report in folder.glob("report.*"):
            print(report.read_text(), file=sys.stderr)
        if code != 0:
            sys.exit(f"sanitize: {kind}, {files}: exit status {code}")


if __name__ == "__main__":
    kinds = [kind for kind in ("cpu", "emulated") if kind in sys.argv[1:2]] or ["cpu", "emulated"]
    for kind in kinds:
        run(kind, sys.argv[1 + (len(kinds) == 1) :])
