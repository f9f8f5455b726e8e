"""What the machine code of kernels says of them, by cuobjdump: python tests/sass.py snnfast/_C_cuda.abi3.so

No kernel spills registers, no forward fuses a multiply-add, what takes four neurons a thread moves 16 bytes at once.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Facts:
    """Of one kernel: registers a thread, bytes of local memory that it loads or stores, instructions by name."""

    registers: int
    spilled: int
    instructions: list[str]

    def count(self, pattern: str) -> int:
        """How many instructions have a name like this."""
        return sum(bool(re.fullmatch(pattern, name)) for name in self.instructions)


def cuobjdump() -> str | None:
    """Where it is: Triton brings one, and so does a CUDA toolkit."""
    try:
        import triton

        own = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    except ImportError:
        own = None
    places = (own, shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump")
    return next((str(place) for place in places if place and Path(place).exists()), None)


def facts(path: Path) -> dict[str, Facts]:
    """Of every kernel in a cubin, or a library that holds some, by its mangled name."""

    def said(option):
        return subprocess.run([cuobjdump(), option, path], capture_output=True, text=True, check=True).stdout

    used = re.findall(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said("-res-usage"))
    found = {name: Facts(int(registers), int(local), []) for name, registers, _, local in used}
    for part in said("-sass").split("Function : ")[1:]:
        name, _, code = part.partition("\n")
        # An instruction's line: /*0070*/ @P0 LDG.E.128 R4, ...
        names = re.findall(r"^\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*(?:\.\w+)*)", code, re.MULTILINE)
        found[name].instructions = names
        found[name].spilled += sum(each.startswith(("LDL", "STL")) for each in names)
    return found


def wrong(found: dict[str, Facts]) -> list[str]:
    """What is not as it should be, of snnfast's own kernels."""
    lines = [f"{name} spills" for name, each in found.items() if each.spilled]
    forward = {name: each for name, each in found.items() if "11scan_kernel" in name}
    # HFMA2 is none of theirs: it moves constants.
    lines += [f"{name} fuses multiply-adds" for name, each in forward.items() if each.count(r"[FD]FMA(\.\w+)*")]
    wide = {name: each for name, each in found.items() if "RegimeILi4ELi4EE" in name}
    lines += [f"{name} moves less than 16 bytes" for name, each in wide.items() if not each.count(r"(LD|ST)G.*\.128.*")]
    return lines if forward and wide else [*lines, "there are no kernels of scan.cuh"]


if __name__ == "__main__":
    if cuobjdump() is None:
        sys.exit("there is no cuobjdump: nothing is known of the kernels")
    # Of Leaky's alone, whose loops all neurons have: those of all take minutes.
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([cuobjdump(), "-xelf", "leaky.sm_", Path(sys.argv[1]).resolve()], cwd=folder, check=True)
        all_facts = facts(next(Path(folder).glob("leaky.sm_*")))
    print(f"{len(all_facts)} kernels, at most {max(each.registers for each in all_facts.values())} registers")
    sys.exit("\n".join(wrong(all_facts)) or 0)
