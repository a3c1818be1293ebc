"""`Source`: images listed without being decoded, and a way to decode those that are asked for."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from PIL import Image

from supernet.data.splits import IntArray, split_pools

# Positions to decode -> (position, RGB image) in any order.
Read: TypeAlias = Callable[[IntArray], Iterator[tuple[int, Image.Image]]]

DECODE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error),
    Image.DecompressionBombError,
)
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Images that can be read, listed in an order that never changes.

    Attributes:
        names: What each image is called, unique.
        labels: The class of each image, shape (num_images,).
        pools: The parts that the source came in: positions of ``train``, ``val``, ``test``, or
            of ``all``.
        read: Decodes the images at the given positions.
        is_random_access: Whether reading a few images takes the time of a few.
    """

    name: str
    class_names: tuple[str, ...]
    allows_flip: bool
    names: Sequence[str]
    labels: IntArray
    pools: Mapping[str, IntArray]
    read: Read
    is_random_access: bool = True

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ValueError(
                f"Classification needs at least 2 classes, {self.name!r} has "
                f"{len(self.class_names)} ({', '.join(self.class_names)}). Put the images of each "
                "class into a folder of its own below train/."
            )

    def splits(self) -> dict[str, IntArray]:
        """Return the positions of the images of train, search and test."""
        return split_pools(
            self.pools, names=self.names, labels=self.labels, class_names=self.class_names
        )

    def fingerprint(self) -> str:
        """Return a hash of the listing: names and classes of the images, not their pixels."""
        digest = hashlib.sha256("\0".join((*self.class_names, "", *self.names)).encode())
        digest.update(self.labels.tobytes())
        for pool, positions in self.pools.items():
            digest.update(pool.encode() + positions.tobytes())
        return digest.hexdigest()


def decode_image(file: BinaryIO | Path, *, name: str) -> Image.Image:
    """Decode an image file to RGB; an alpha channel is dropped.

    Raises:
        ValueError: If the file is damaged, no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(file) as image:
            mode = image.mode
            rgb = image.convert("RGB")
    except DECODE_ERRORS as error:
        raise ValueError(
            f"Cannot decode the image {name} ({error}). Replace the file or remove it."
        ) from error
    if mode in WIDE_MODES:
        raise ValueError(
            f"Images must have 8 bits a channel, {name} has mode {mode!r}. Convert it first."
        )
    return rgb
