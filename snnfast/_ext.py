"""Loads the compiled operators: `_C` (required), then `_C_cuda` (absent from CPU-only builds)."""

import importlib

import_error = None
"""Why the CUDA kernels could not be loaded; None where they were."""

importlib.import_module("snnfast._C")
try:
    importlib.import_module("snnfast._C_cuda")
except ImportError as error:
    import_error = str(error)
