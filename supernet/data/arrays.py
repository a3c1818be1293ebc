"""The arrays on disk: decoding into them, opening them, and what is computed from them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from supernet.data.source import Source
from supernet.data.splits import IntArray
from supernet.data.streaming import StreamedImages

OnProgress: TypeAlias = Callable[[int, int], None]

LOCK_FILE = "data.lock"
GIB = 2**30
CHUNK_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Split:
    """Images and their classes, in an order that is random but fixed.

    Attributes:
        images: Shape (num_images, stored_size, stored_size, 3), uint8, RGB, mapped from disk; or
            streamed.
        labels: Shape (num_images,), the index of each image's class.
    """

    images: npt.NDArray[np.uint8] | StreamedImages
    labels: IntArray

    def __len__(self) -> int:
        return len(self.labels)


def write_split(
    source: Source,
    positions: IntArray,
    *,
    folder: Path,
    stem: str,
    stored_size: int,
    exact: bool = False,
    on_progress: OnProgress | None,
) -> bool:
    """Decode the images at the positions into arrays of that order.

    Args:
        stem: What the names of the array files begin with; they appear when they are complete.
        stored_size: The side that every image is scaled to.
        exact: Stop at the first image that is not of that size already.

    Returns:
        False if it stopped.

    Raises:
        ValueError: If an image is damaged or missing.
    """
    rows = {position: row for row, position in enumerate(positions.tolist())}
    partial = folder / f"{stem}_images.npy.partial"
    shape = (len(positions), stored_size, stored_size, 3)
    images = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
    # In the order of the listing, which is kind to disks and readers.
    done = 0
    for position, image in source.read(np.sort(positions)):
        if exact and image.size != (stored_size, stored_size):
            return False
        images[rows[position]] = square(image, stored_size)
        done += 1
        if on_progress is not None and (done % CHUNK_IMAGES == 0 or done == len(positions)):
            on_progress(done, len(positions))
    if done != len(positions):
        raise ValueError(
            f"The data {source.name!r} listed {len(positions)} images, but {done} could be read. "
            "It must not change while it is read: try again."
        )
    images.flush()
    labels = folder / f"{stem}_labels.npy.partial"
    with labels.open("wb") as file:
        np.save(file, source.labels[positions])
    for path in (labels, partial):
        os.replace(path, path.with_suffix(""))
    return True


def load_arrays(folder: Path, stem: str) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Map the images and labels that `write_split` left into memory."""
    images = np.load(folder / f"{stem}_images.npy", mmap_mode="r")
    return images, np.load(folder / f"{stem}_labels.npy")


def is_stored(folder: Path, stem: str) -> bool:
    """Tell whether `write_split` has finished."""
    return all((folder / f"{stem}_{part}.npy").exists() for part in ("images", "labels"))


def array_bytes(num_images: int, stored_size: int) -> int:
    """Return the size of so many decoded images."""
    return num_images * stored_size**2 * 3


def check_disk(num_images: int, stored_size: int, folder: Path) -> None:
    """Raise ValueError if arrays of that many images do not fit on the disk.

    A full disk under a mapped file kills the process without a word.
    """
    needed = array_bytes(num_images, stored_size)
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"{num_images:,} decoded images of {stored_size} x {stored_size} take "
            f"{needed / GIB:.3g} GiB, but the disk of {folder} has only {free / GIB:.3g} GiB free. "
            "Make room, or choose a smaller img_size."
        )


def channel_statistics(
    images: npt.NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in 0..1, from exact histograms."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for start in range(0, len(images), CHUNK_IMAGES):
        chunk = images[start : start + CHUNK_IMAGES]
        for channel in range(3):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(axis=1)
    # A channel that never changes must not be divided by zero.
    std = np.maximum(np.sqrt(variance), 1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def fingerprint(images: npt.NDArray[np.uint8], labels: IntArray) -> str:
    """Return a hash of images and labels."""
    digest = hashlib.sha256(str(images.shape).encode() + labels.tobytes())
    for start in range(0, len(labels), CHUNK_IMAGES):
        digest.update(images[start : start + CHUNK_IMAGES].data)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time write into the folder; a killed one gives its turn up."""
    with (folder / LOCK_FILE).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_arrays(folder: Path, stem: str) -> None:
    """Remove the arrays of a split, finished or not."""
    for path in folder.glob(f"{stem}_*.npy*"):
        path.unlink()


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the central square of an image to ``size`` x ``size``."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
