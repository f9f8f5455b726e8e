"""Handwritten digits held in memory: MNIST, or scikit-learn's where MNIST cannot be had."""

import socket
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets import MNIST

from files import InputError, replacing

DOWNLOAD_TIMEOUT_SECONDS = 10
RAW_FILES = [name.removesuffix(".gz") for name, _ in MNIST.resources]


class Digits(NamedTuple):
    """Greyscale images of the ten digits.

    Images are uint8 [N, H, W] from 0 (paper) to 255 (ink), labels int64 [N] from 0 to 9.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> "Digits":
        """Copy all four tensors to `device`."""
        return Digits(self.name, *(tensor.to(device) for tensor in self[1:]))

    def first(self, samples: int) -> "Digits":
        """Keep only the first `samples` training images; the test set stays whole."""
        return self._take(torch.arange(samples))

    def drawn(self, samples: int, seed: int) -> "Digits":
        """Keep `samples` training images drawn at random; the test set stays whole."""
        generator = torch.Generator().manual_seed(seed)
        return self._take(torch.randperm(len(self.train_images), generator=generator)[:samples])

    def at_least(self, side: int) -> "Digits":
        """Repeat the pixels of smaller images as often as it takes for `side` rows and columns."""
        times = -(-side // min(self.train_images.shape[1:]))

        def enlarged(images: Tensor) -> Tensor:
            return images.repeat_interleave(times, 1).repeat_interleave(times, 2)

        return self._replace(train_images=enlarged(self.train_images), test_images=enlarged(self.test_images))

    def _take(self, index: Tensor) -> "Digits":
        return self._replace(train_images=self.train_images[index], train_labels=self.train_labels[index])


def load(root: Path) -> Digits:
    """Load MNIST from `root` in torchvision's layout, downloading it if it is not there.

    Where the download fails too, one line says so and scikit-learn's 8x8 digits are returned.
    Raises InputError if `root` is not a directory or holds MNIST files that cannot be read.
    """
    if root.exists() and not root.is_dir():
        raise InputError(
            f"argument --data: {root} is not a directory; give the one that has (or shall have) MNIST/raw in it"
        )
    if not _on_disk(root):
        print(f"downloading MNIST, 12 MB, into {root}", flush=True)
        try:
            _download(root)
        except (OSError, HTTPException, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            print(
                f"MNIST is not in {root} and cannot be downloaded ({reason}); "
                f"training on scikit-learn's 8x8 digits instead",
                flush=True,
            )
            return bundled_digits()
    return mnist(root)


def mnist(root: Path) -> Digits:
    """Read MNIST [N, 28, 28] from `root`/MNIST/raw; InputError names what cannot be read."""
    # torchvision reads the files without checking them: what a damaged one raises depends on
    # the byte that is wrong.
    try:
        train, test = (MNIST(str(root), train=train) for train in (True, False))
    except Exception as error:
        raise InputError(
            f"argument --data: the MNIST files in {root / 'MNIST' / 'raw'} cannot be read "
            f"({type(error).__name__}: {error}); delete them to download them again"
        ) from error
    for split in (train, test):
        if len(split.data) != len(split.targets) or not len(split.data):
            raise InputError(
                f"argument --data: {root / 'MNIST' / 'raw'} has {len(split.data)} images for "
                f"{len(split.targets)} labels; delete the files to download them again"
            )
    return Digits("MNIST", train.data, train.targets, test.data, test.targets)


def bundled_digits() -> Digits:
    """Scikit-learn's 1,797 digits [N, 8, 8], always split into the same 1,437 and 360."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    # The pixels count ink from 0 to 16.
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)
    train, test = train_test_split(
        torch.arange(len(images)).numpy(), test_size=0.2, stratify=bunch.target, random_state=0
    )
    labels = torch.from_numpy(bunch.target).long()
    return Digits("digits", images[train], labels[train], images[test], labels[test])


def _on_disk(root: Path) -> bool:
    return all((root / "MNIST" / "raw" / name).is_file() for name in RAW_FILES)


def _download(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            MNIST(scratch, download=True)
            raw.mkdir(parents=True, exist_ok=True)
            for name in RAW_FILES:
                _move(Path(scratch) / "MNIST" / "raw" / name, raw / name)
    finally:
        socket.setdefaulttimeout(previous)


def _move(source: Path, target: Path) -> None:
    # The scratch directory may be on another file system, where a rename is not possible.
    with replacing(target) as temporary:
        temporary.write_bytes(source.read_bytes())
