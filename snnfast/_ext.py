"""Loads the compiled operators: `_C` (required), then `_C_cuda` (absent from CPU-only builds)."""

import importlib
from functools import cache

import torch

native = importlib.import_module("snnfast._C")
try:
    _cuda = importlib.import_module("snnfast._C_cuda")
    _import_error = None
except ImportError as error:
    _cuda = None
    _import_error = str(error)


@cache
def why_no_kernel_runs(index: int) -> str | None:
    """Why no kernel of this build runs on the GPU of this index, in words that follow its name; None: they run."""
    if _cuda is None:
        return f"whose kernels did not load ({_import_error})"
    error = _cuda.why_no_kernel_runs(index)
    if error is None:
        return None
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    return (
        f"whose device {index}, {torch.cuda.get_device_name(index)} of compute capability {capability}, runs no kernel "
        f"of this build (compiled for {_cuda.architectures()}; CUDA says: {error}; TORCH_CUDA_ARCH_LIST={capability} "
        "compiles for it)"
    )
