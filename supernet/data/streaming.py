"""Images that are too many to be stored decoded: read and decoded when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from supernet.data.catalog import open_source
from supernet.data.source import Source
from supernet.data.splits import IntArray


@dataclass(frozen=True, slots=True)
class StreamedImages:
    """Images of a split, in its order.

    Attributes:
        source: Where they come from, as it is recorded.
        img_size: The side that networks see; digits are scaled to it.
        positions: Of the images in the source.
        digests: Of their content, or their size, see `Source.sizes`; an image with another one is
            refused.
    """

    source: str
    img_size: int
    positions: IntArray
    digests: IntArray

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice) -> StreamedImages:
        return StreamedImages(self.source, self.img_size, self.positions[rows], self.digests[rows])

    def read(self, rows: IntArray) -> list[Image.Image]:
        """Decode the images of some rows, RGB, each of its own size.

        Raises:
            ValueError: If an image is damaged, missing or has changed.
        """
        wanted = self.positions[rows]
        positions, first = np.unique(wanted, return_index=True)
        source = listed(self.source, self.img_size)
        found = dict(source.read(positions, self.digests[rows][first]))
        return [found[position] for position in wanted.tolist()]

    def names(self) -> list[str]:
        """Return what the source calls the images."""
        names = listed(self.source, self.img_size).names
        return [names[position] for position in self.positions.tolist()]


@dataclass(frozen=True, slots=True)
class JoinedStreams:
    """Two streams of images, one after the other."""

    first: StreamedImages
    second: StreamedImages

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, rows: slice) -> JoinedStreams:
        """Return a run of images."""
        start, stop, step = rows.indices(len(self))
        assert step == 1
        number = len(self.first)
        second = slice(max(start - number, 0), max(stop - number, 0))
        return JoinedStreams(self.first[start:stop], self.second[second])

    def read(self, rows: IntArray) -> list[Image.Image]:
        """Decode the images of some rows; see `StreamedImages`."""
        is_first = rows < len(self.first)
        first = iter(self.first.read(rows[is_first]))
        second = iter(self.second.read(rows[~is_first] - len(self.first)))
        return [next(first if own else second) for own in is_first.tolist()]


@lru_cache(maxsize=4)
def listed(source: str, img_size: int) -> Source:
    """List a source once in a process; the workers that it forks share the list.

    Raises:
        ValueError: If the source cannot be read at any place.
    """
    opened = open_source(source, img_size=img_size)
    if not opened.is_random_access:
        raise ValueError(
            f"The data {source} can only be read from front to back, and is too large to be stored "
            "decoded. Unpack it, or give an uncompressed tar, WebDataset shards or a folder."
        )
    return opened
