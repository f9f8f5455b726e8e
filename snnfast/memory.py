"""Memory of snnfast's own, in which large results lie on the CPU: what one iteration frees, the next finds again.

Results of operators from 1 MiB on, such as a sequence's spikes, membranes and gradients, are blocks that snnfast maps
from the system, with huge pages where Linux gives them: at once, or once they have been used often where it is slow to.
A freed block is kept for the next result of about its size: never so that all blocks together are more than were in use
at once and 32 MiB, nor more idle bytes than `limit()`.
Smaller results, those of others, and all of torch before 2.11 come from torch's allocator, which stays as it is.

`SNNFAST_MEMORY_MB=512` in the environment allows 512 MiB of idle blocks, 2048 unless set; 0 turns all of this off.
"""

import os

import torch

from . import _ext

_VARIABLE = "SNNFAST_MEMORY_MB"


def limit() -> int:
    """Bytes that may lie idle; 0: snnfast keeps no memory of its own."""
    return _ext.native.limit()


def set_limit(size: int) -> None:
    """Allows so many bytes to lie idle, and gives back what lies beyond; 0: results come from torch's allocator.

    Raises:
        TypeError, ValueError: `size` is no whole number, or negative.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"size must be an integer, got {type(size).__name__}")
    if size < 0:
        raise ValueError(f"size must be at least 0, got {size}")
    _ext.native.set_limit(size)


def empty_cache() -> int:
    """Gives all idle memory back to the system, as `torch.cuda.empty_cache` does; returns how many bytes.

    Examples:
        >>> spk = snn.Leaky(0.9).unroll_spikes(torch.rand(100, 64, 100))
        >>> del spk
        >>> freed = snn.empty_cache()
    """
    return _ext.native.trim()


def is_own(storage: torch.UntypedStorage) -> bool:
    """Whether a result of snnfast's lies there in memory of its own: nobody but its tensors knows it.

    Such a storage is not `resizable()`, like that of an array of NumPy's.
    """
    return _ext.native.has(storage.data_ptr())


def _limit_of_environment() -> None:
    given = os.environ.get(_VARIABLE)
    if given is None:
        return
    if not given.isdecimal():
        raise ValueError(f"{_VARIABLE} must be a whole number of MiB, 0 or more; got {given!r}")
    set_limit(int(given) << 20)


_limit_of_environment()
