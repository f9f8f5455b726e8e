"""Loads the compiled operators: `_C` (required), then `_C_cuda` (absent from CPU-only builds)."""

import importlib
import os

import_error = None
"""Why the CUDA kernels could not be loaded; None where they were."""

# Torch reads it at its first tensor: large ones then start on a page, which lets glibc find freed ones again
# (csrc/cpu/memory.h).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

importlib.import_module("snnfast._C")
try:
    importlib.import_module("snnfast._C_cuda")
except ImportError as error:
    import_error = str(error)
