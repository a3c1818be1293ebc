"""Pixels and classes of pixels from files of strangers, with the size that annotations say.

Images are turned as their EXIF orientation says, as OpenCV does, with which the papers' code reads
them. Where annotations are of the pixels as they are stored, which their size shows, those count.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from supernet.data.decoding import FORMATS, MAX_PIXELS, decode_image, shown
from supernet.data.files import read_regular

Size = tuple[int, int]
# One channel: bits, bytes, bytes with a palette, 16 bits.
_MAP_MODES = ("1", "L", "P", "I;16", "I;16B", "I;16L", "I")
# Bytes of classes: 255 says that there is none.
MAX_CLASSES = 255


def read_pixels(path: Path, size: Size) -> npt.NDArray[np.uint8]:
    """Read an image: bytes (H, W, 3).

    Args:
        path: The file.
        size: (H, W) as annotated.

    Raises:
        ValueError: If it cannot be read, or has another size than its annotations.
    """
    content = _content(path)
    found = np.array(decode_image(content, name=str(path)))
    if found.shape[:2] != size:
        found = np.array(decode_image(content, name=str(path), turned=False))
    if found.shape[:2] != size:
        raise ValueError(_other_size(path, found.shape[:2], size))
    return found


def read_classes(path: Path, size: Size) -> npt.NDArray[np.int64]:
    """Read a map of classes (H, W).

    Raises:
        ValueError: If it cannot be read, has several channels, or another size than its image.
    """
    content = _content(path)
    stored, mode = _header(content, path)
    if mode not in _MAP_MODES:
        raise ValueError(
            f"{shown(str(path))} must be an image of one channel, with a class for every pixel, "
            f"got mode {mode!r}. Write it anew."
        )
    if stored != size:
        raise ValueError(
            f"{shown(str(path))} has {stored[0]} x {stored[1]} pixels (height x width), its image "
            f"{size[0]} x {size[1]}. A mask has the size of its image: write it anew."
        )
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return np.array(image).astype(np.int64)
    # Pillow's decoders raise nearly everything on damaged files.
    except Exception as error:
        raise ValueError(f"{shown(str(path))} cannot be read ({error}). Replace it.") from error


def stored_size(path: Path) -> Size:
    """Return the (H, W) that a file announces, without a turn.

    Raises:
        ValueError: If it is no image, or larger than any may be.
    """
    try:
        # Only the beginning is read. A pipe that has taken its place does not wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return _header(file, path)[0]
    except OSError as error:
        raise ValueError(
            f"{shown(str(path))} cannot be read ({error.strerror}). Replace or remove it."
        ) from error


def check_size(path: Path, size: Size) -> None:
    """Check that a file announces the size that its annotations say, turned or not.

    Raises:
        ValueError: If it does not.
    """
    stored = stored_size(path)
    if size not in (stored, stored[::-1]):
        raise ValueError(_other_size(path, stored, size))


def in_threads() -> ThreadPoolExecutor:
    """Make threads for reading many files: storages of clusters answer late, but many at once."""
    return ThreadPoolExecutor(max_workers=32)


def _content(path: Path) -> bytes:
    return read_regular(os.fsencode(path))


def _header(file: bytes | io.BufferedReader, path: Path) -> tuple[Size, str]:
    try:
        with Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS
        ) as image:
            size, mode = (image.height, image.width), image.mode
    except Exception as error:
        raise ValueError(
            f"{shown(str(path))} cannot be read as an image (it has none of the formats "
            f"{', '.join(FORMATS)}). Replace or remove it."
        ) from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"Images may have at most {MAX_PIXELS:,} pixels, {shown(str(path))} has {size[1]:,} x "
            f"{size[0]:,}. Make it smaller or remove it."
        )
    return size, mode


def _other_size(path: Path, found: tuple[int, ...], size: Size) -> str:
    return (
        f"{shown(str(path))} has {found[0]} x {found[1]} pixels (height x width), its annotations "
        f"say {size[0]} x {size[1]}. Give it the right annotations."
    )
