"""The arrays on disk: decoding into them, opening them, and what is computed from them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from searchspace import durable
from supernet.data.source import Source
from supernet.data.splits import IntArray
from supernet.data.streaming import JoinedStreams, StreamedImages

OnProgress: TypeAlias = Callable[[int, int], None]

LOCK_FILE = "data.lock"
GIB = 2**30
CHUNK_IMAGES = 256
CHUNK_BYTES = 2**24
_PARTS = IMAGES, LABELS, CHECKSUM = ("images.npy", "labels.npy", "checksum.txt")


@dataclass(frozen=True, slots=True)
class JoinedImages:
    """Two arrays (N, S, S, 3), one after the other, without a copy of either."""

    first: npt.NDArray[np.uint8]
    second: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.uint8]:
        return self.read(np.arange(*rows.indices(len(self))))

    def read(self, rows: IntArray) -> npt.NDArray[np.uint8]:
        """Return the images of some rows."""
        found = np.empty((len(rows), *self.first.shape[1:]), dtype=np.uint8)
        is_first = rows < len(self.first)
        found[is_first] = self.first[rows[is_first]]
        found[~is_first] = self.second[rows[~is_first] - len(self.first)]
        return found


@dataclass(frozen=True, slots=True)
class Split:
    """Images and their classes, in an order that is random but fixed.

    Attributes:
        images: Shape (num_images, stored_size, stored_size, 3), uint8, RGB, mapped from disk; or
            streamed; or joined with images that have no class.
        labels: Shape (num_images,), the index of each image's class; -1 where it has none.
    """

    images: npt.NDArray[np.uint8] | StreamedImages | JoinedImages | JoinedStreams
    labels: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, share: float) -> Split:
        """Return the first images: a fair sample, because the order is random; at least one."""
        count = max(round(len(self) * share), 1)
        return self if share == 1 else Split(self.images[:count], self.labels[:count])


def write_split(
    source: Source,
    positions: IntArray,
    *,
    folder: Path,
    stem: str,
    stored_size: int,
    digests: IntArray | None = None,
    exact: bool = False,
    on_progress: OnProgress | None,
) -> bool:
    """Decode the images at the positions into arrays of that order.

    Args:
        stem: What the names of the array files begin with; they appear when they are complete.
        stored_size: The side that every image is scaled to.
        digests: Of the images, see `Source.read`.
        exact: Stop at the first image that is not of that size already.

    Returns:
        False if it stopped.

    Raises:
        ValueError: If an image is damaged, missing or has changed, or the disk is full.
    """
    rows = {position: row for row, position in enumerate(positions.tolist())}
    parts = [folder / f"{stem}_{part}.partial" for part in _PARTS]
    with _disk_errors(len(positions), stored_size, folder):
        images = _reserved(parts[0], (len(positions), stored_size, stored_size, 3))
        # In the order of the listing, which is kind to disks and readers.
        order = np.argsort(positions)
        done = 0
        for position, image in source.read(
            positions[order], None if digests is None else digests[order]
        ):
            if exact and image.size != (stored_size, stored_size):
                return False
            images[rows[position]] = np.asarray(square(image, stored_size))
            done += 1
            if on_progress is not None and (done % CHUNK_IMAGES == 0 or done == len(positions)):
                on_progress(done, len(positions))
        if done != len(positions):
            raise ValueError(
                f"The data {source.name!r} listed {len(positions)} images, but {done} could be "
                "read. It must not change while it is read: try again."
            )
        images.flush()
        labels = source.labels[positions]
        with parts[1].open("wb") as file:
            np.save(file, labels)
        parts[2].write_text(checksum(images, labels) + "\n", encoding="utf-8")
        # The checksum comes last: where it is, the others are.
        for part in (parts[1], parts[0], parts[2]):
            durable.replace(part, part.with_suffix(""))
    return True


def _reserved(path: Path, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    """Make an array file whose every byte has its place on the disk, and map it.

    A mapped file with holes kills the process without a word where the disk fills up.
    """
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + int(np.prod(shape))
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
            # A file system that cannot reserve is written to instead.
            for start in range(file.tell(), size, CHUNK_BYTES):
                file.write(bytes(min(CHUNK_BYTES, size - start)))
    return np.lib.format.open_memmap(path, mode="r+")


def load_arrays(folder: Path, stem: str) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """Map the images and labels that `write_split` left into memory.

    The first call of a process reads them once and compares their checksum with the stored one:
    bytes that a disk or a copy has changed would be learned from without a word. It is a CRC, since
    every process pays for it: it finds accidents, at four times the speed of SHA-256.

    Raises:
        ValueError: If they are not what was written.
    """
    try:
        images = read_array(folder / f"{stem}_{IMAGES}", np.uint8)
        labels = np.array(read_array(folder / f"{stem}_{LABELS}", np.int64))
        stored = (folder / f"{stem}_{CHECKSUM}").read_bytes()
        stamps = [(folder / f"{stem}_{part}").stat() for part in _PARTS]
        stamp = tuple((found.st_mtime_ns, found.st_ino, found.st_size) for found in stamps)
        is_sound = _read_checksum(folder, stem, stamp).encode() == stored.strip()
    except (OSError, ValueError) as error:
        raise ValueError(_damaged(folder, stem, str(error))) from error
    if not is_sound:
        raise ValueError(_damaged(folder, stem, "their checksum is another one"))
    return images, labels


def is_sound(folder: Path, stem: str) -> bool:
    """Tell whether `write_split` has finished, and its arrays are still what it wrote."""
    if not is_stored(folder, stem):
        return False
    try:
        load_arrays(folder, stem)
    except ValueError:
        return False
    return True


# One of these for a process and a file; what is there after a change is read again.
@lru_cache(maxsize=16)
def _read_checksum(folder: Path, stem: str, stamp: tuple[tuple[int, int, int], ...]) -> str:
    images = read_array(folder / f"{stem}_{IMAGES}", np.uint8)
    return checksum(images, read_array(folder / f"{stem}_{LABELS}", np.int64))


def read_array(path: Path, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Map an array file that this program wrote into memory.

    Raises:
        ValueError: If it is gone, or its head is damaged.
    """
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    # numpy parses the head as Python, so that a damaged one raises nearly everything.
    except Exception as error:
        raise ValueError(f"{path.name}: {error or type(error).__name__}") from error
    # Bytes in another order, or of another kind, have the same checksum.
    if found.dtype != dtype or not found.flags.c_contiguous:
        raise ValueError(f"{path.name} holds {found.dtype}, not {np.dtype(dtype)}")
    return found


def _damaged(folder: Path, stem: str, reason: str) -> str:
    return (
        f"The decoded images {folder}/{stem}_{IMAGES} are damaged ({reason}). Run the same command "
        "again, with --resume where it is a search: they are decoded anew from the data."
    )


def is_stored(folder: Path, stem: str) -> bool:
    """Tell whether `write_split` has finished."""
    return all((folder / f"{stem}_{part}").is_file() for part in _PARTS)


def array_bytes(num_images: int, stored_size: int) -> int:
    """Return the size of so many decoded images."""
    return num_images * stored_size**2 * 3


def check_disk(num_images: int, stored_size: int, folder: Path) -> None:
    """Raise ValueError if arrays of that many images do not fit on the disk."""
    if array_bytes(num_images, stored_size) > shutil.disk_usage(folder).free:
        raise _full(num_images, stored_size, folder)


@contextlib.contextmanager
def _disk_errors(num_images: int, stored_size: int, folder: Path) -> Iterator[None]:
    """Say it when the disk is full, or the user's share of it, or cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _full(num_images, stored_size, folder) from error
        raise ValueError(
            f"The decoded images cannot be written to {folder} ({error.strerror}). "
            "Choose a folder that can be written."
        ) from error


def _full(num_images: int, stored_size: int, folder: Path) -> ValueError:
    needed, free = array_bytes(num_images, stored_size), shutil.disk_usage(folder).free
    return ValueError(
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


def checksum(images: npt.NDArray[np.uint8], labels: IntArray) -> str:
    """Return a CRC of images and labels."""
    found = zlib.crc32(str(images.shape).encode() + labels.tobytes())
    for start in range(0, len(labels), CHUNK_IMAGES):
        found = zlib.crc32(images[start : start + CHUNK_IMAGES].data, found)
    return f"{found:08x}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time write into the folder; a killed one gives its turn up."""
    with (folder / LOCK_FILE).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def remove_arrays(folder: Path, stem: str) -> None:
    """Remove the arrays of a split, finished or not."""
    for path in folder.glob(f"{stem}_*"):
        path.unlink()


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale the central square of an image to ``size`` x ``size``."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
