"""The tensors that waiting operations will read, as they were when they were given."""

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .. import memory


class Reading:
    """What waiting operations will read.

    Attributes:
        tensors: by id, with their versions.
        snapshots: copies of those that somebody else, such as NumPy, may write to unseen.
        fixed: such parameters and buffers, which are read where they are, with copies.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Nothing will be read any more."""
        self.tensors, self.snapshots, self.fixed = {}, {}, {}

    def __bool__(self) -> bool:
        return bool(self.tensors)

    def __contains__(self, tensor) -> bool:
        return id(tensor) in self.tensors

    def drop(self, tensor) -> None:
        """It will not be read."""
        self.tensors.pop(id(tensor), None)

    def keep(self, tensors: list[Tensor]) -> None:
        """Only these may be read again."""
        needed = set(map(id, tensors))
        self.tensors = {key: read for key, read in self.tensors.items() if key in needed}

    def memories(self) -> set:
        """Which memory will be read."""
        return {memory_of(tensor) for tensor, _ in self.tensors.values()}

    def add(self, tensor: Tensor) -> Tensor:
        """A tensor that waiting operations will read, as it is now."""
        key = id(tensor)
        if key not in self.tensors:
            self.tensors[key] = tensor, version_of(tensor)
            if (not tensor.is_leaf or not tensor.requires_grad) and is_shared_with_others(tensor):
                self.snapshots[key] = tensor.clone()
        if key in self.snapshots:
            kept = self.snapshots[key]
            if not torch.equal(kept, tensor):
                kept = self.snapshots[key] = tensor.clone()
            return kept
        return tensor

    def add_in_place(self, tensor: Tensor) -> None:
        """A parameter or buffer that waiting operations will read where it is."""
        key = id(tensor)
        if key not in self.tensors:
            self.tensors[key] = tensor, version_of(tensor)
            if is_shared_with_others(tensor):
                self.fixed[key] = tensor, tensor.detach().clone()

    def is_written_unseen(self) -> bool:
        return not all(torch.equal(tensor, kept) for tensor, kept in self.fixed.values())

    @contextlib.contextmanager
    def as_read(self) -> Iterator[None]:
        """Within it, parameters that were written to unseen are what the waiting operations were to read."""
        written = [(tensor, kept) for tensor, kept in self.fixed.values() if not torch.equal(tensor, kept)]
        now = [tensor.detach().clone() for tensor, _ in written]
        for tensor, kept in written:
            tensor.data.copy_(kept)
        try:
            yield
        finally:
            for (tensor, _), value in zip(written, now, strict=True):
                tensor.data.copy_(value)

    def check(self) -> None:
        for tensor, version in self.tensors.values():
            if version_of(tensor) != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(tensor.shape)} that steps of a recorded loop read was written to before "
                    "they were computed, in a way that torch.overrides does not see; run with SNNFAST_AUTO=0, or this "
                    "loop outside snnfast.accelerate"
                )


def memory_of(tensor: Tensor) -> int | None:
    """Which memory a tensor is in; None where it has none of its own, as within transforms."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def version_of(tensor: Tensor) -> int:
    """How often it was written to."""
    return 0 if tensor.is_inference() else tensor._version


def versions_of(values) -> list[int]:
    """Those of the tensors among them."""
    return [version_of(value) for value in values if isinstance(value, Tensor)]


_of_workers: dict[int, weakref.ref] = {}
"""Tensors that a DataLoader's worker handed over, by where their memory is: shared, but the worker is done with it."""


def note_batch(batch) -> None:
    """Remembers a batch's tensors as a worker's."""
    for tensor in tree_flatten(batch)[0]:
        if isinstance(tensor, Tensor) and tensor.is_shared():
            key = memory_of(tensor)
            _of_workers[key] = weakref.ref(tensor, lambda _, key=key: _of_workers.pop(key, None))


def is_shared_with_others(tensor: Tensor) -> bool:
    """Whether somebody else, such as NumPy or another process, has this memory too, and may write to it unseen."""
    storage = tensor.untyped_storage()
    if storage.is_shared():
        return tensor.device.type == "cpu" and storage._cdata not in _of_workers
    return not (storage.resizable() or memory.is_own(storage))
