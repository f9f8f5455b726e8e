"""A house one can live in: rooms that one can see through, and one place for torch's private names."""

import ast
import re
from pathlib import Path

import snnfast
from snnfast import _torch

PACKAGE = Path(snnfast.__file__).parent
CSRC = PACKAGE.parent / "csrc"
LOOKS_INTO_TORCH = {"_torch.py", "operators.py"}


def test_files_are_short():
    files = [
        path for root in (PACKAGE, CSRC) for path in root.rglob("*") if path.suffix in (".py", ".h", ".cpp", ".cuh")
    ]
    lengths = {str(path.relative_to(PACKAGE.parent)): len(path.read_text().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > 450}


def test_functions_are_short():
    """But for their docstrings."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                said = len((ast.get_docstring(node, clean=False) or "").splitlines())
                assert node.end_lineno - node.lineno + 1 - said <= 60, (path, node.name)


def test_private_names_of_torch_stand_in_one_file():
    """But for those of torch._dynamo, which are the compiler's; and each that is used is there."""
    texts = {path.name: path.read_text() for path in PACKAGE.rglob("*.py")}
    private = re.compile(r"torch\.(_C|_functorch|_ops)\b|torch\.compiler\._")
    assert {name for name, text in texts.items() if private.search(text)} <= LOOKS_INTO_TORCH
    used = {name for text in texts.values() for name in re.findall(r"\b_torch\.(?!py)(\w+)", text)}
    assert len(used) > 10 and all(hasattr(_torch, name) for name in used)
