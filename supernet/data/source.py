"""`Source`: images listed without being decoded, and a way to decode those that are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from supernet.data.decoding import decode_image, digest_of, shown
from supernet.data.splits import IntArray, split_pools

# Data sets of digits and letters, by the names that libraries have for them.
CHARACTERS = {
    *("mnist", "kmnist", "k49", "qmnist", "emnist", "mnist_corrupted", "binarized_mnist", "usps"),
    *("svhn", "svhn_cropped", "omniglot", "cmaterdb"),
}


class Fetched(NamedTuple):
    """One image as the source has it.

    Attributes:
        position: In the source.
        content: A file's bytes, or an image that came decoded.
        name: For messages.
    """

    position: int
    content: bytes | Image.Image
    name: str


# Positions to read -> what stands there, in any order.
Fetch: TypeAlias = Callable[[IntArray], Iterator[Fetched]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Images that can be read, listed in an order that never changes.

    Attributes:
        names: What each image is called, unique.
        labels: The class of each image, shape (num_images,).
        pools: The parts that the source came in: positions of ``train``, ``val``, ``test``, or
            of ``all``.
        fetch: Reads the images at the given positions.
        is_random_access: Whether reading a few images takes the time of a few.
        skipped: What was left out: reason -> how many files, and the first of them.
        size_of: Tells how many bytes the file at a position has, without reading it; None where
            that is not known.
        is_labelled: Whether the images have classes.
    """

    name: str
    class_names: tuple[str, ...]
    allows_flip: bool
    names: Sequence[str]
    labels: IntArray
    pools: Mapping[str, IntArray]
    fetch: Fetch
    is_random_access: bool = True
    skipped: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    size_of: Callable[[int], int] | None = None
    is_labelled: bool = True

    def __post_init__(self) -> None:
        if self.is_labelled and len(self.class_names) < 2:
            raise ValueError(
                f"Classification needs at least 2 classes, {self.name!r} has "
                f"{len(self.class_names)} ({', '.join(self.class_names)}). Put the images of each "
                "class into a folder of its own below train/."
            )

    def read(
        self, positions: IntArray, digests: IntArray | None = None
    ) -> Iterator[tuple[int, Image.Image]]:
        """Decode the images at the given positions, in any order.

        Args:
            digests: What `digests` or `sizes` gave for these positions, 0 where neither was asked;
                an image that has another one now is refused.

        Yields:
            Position and RGB image.

        Raises:
            ValueError: If an image is damaged, missing or has changed.
        """
        known = np.zeros_like(positions) if digests is None else digests
        wanted = dict(zip(positions.tolist(), known.tolist(), strict=True))
        for position, content, name in self.fetch(positions):
            if _has_changed(content, wanted[position]):
                raise ValueError(
                    f"The data must not change during a run, but the image {shown(name)} is not "
                    "what it was. Restore it."
                )
            if not isinstance(content, Image.Image):
                content = decode_image(content, name=name)
            yield position, content

    def digests(self, positions: IntArray) -> IntArray:
        """Return a hash of the content of each image, in the order of the positions."""
        found = {position: digest_of(content) for position, content, _ in self.fetch(positions)}
        return np.array([found[position] for position in positions.tolist()], dtype=np.int64)

    def sizes(self, positions: IntArray) -> IntArray:
        """Return the bytes of each file as a negative number, to stand among digests; 0 if unknown.

        Raises:
            ValueError: If a file is gone.
        """
        if self.size_of is None:
            return np.zeros(len(positions), dtype=np.int64)
        return -np.fromiter(map(self.size_of, positions.tolist()), np.int64, len(positions))

    def splits(self) -> dict[str, IntArray]:
        """Return the positions of the images of train, search and test."""
        return split_pools(
            self.pools, names=self.names, labels=self.labels, class_names=self.class_names
        )

    def fingerprint(self) -> str:
        """Return a hash of the listing: names and classes of the images, not their pixels."""
        names = "\0".join((*self.class_names, "", *self.names))
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes())
        for pool, positions in self.pools.items():
            digest.update(pool.encode() + positions.tobytes())
        return digest.hexdigest()


def _has_changed(content: bytes | Image.Image, known: int) -> bool:
    """Compare what was read with what is known of it: its digest, its size, or nothing."""
    if known < 0:
        return isinstance(content, bytes) and len(content) != -known
    return known > 0 and known != digest_of(content)


def can_be_mirrored(name: str) -> bool:
    """Tell from the name of a data set, e.g. ``tfds/emnist/letters``, that it holds no characters.

    A mirrored digit or letter is another one, or none.
    """
    return not set(name.lower().split("/")) & CHARACTERS


def check_labels(labels: IntArray, pools: Mapping[str, IntArray], source: str) -> int:
    """Check classes that are given as numbers, and return how many there are.

    Raises:
        ValueError: If a class has no training image: then a number is wrong, or a network would
            be tested on what it cannot have learned.
    """
    known = np.unique(labels[pools["train"]])
    gap = np.flatnonzero(known != np.arange(len(known)))
    if len(gap):
        raise ValueError(
            "Classes are numbered from 0 without gaps, and each has training images; in "
            f"{source} the class {gap[0]} has none, and there is a class {known[-1]}. "
            "Correct the numbers."
        )
    for pool, positions in pools.items():
        foreign = np.setdiff1d(labels[positions], known)
        if len(foreign):
            raise ValueError(
                f"Every class needs training images; in {source} the class {foreign[0]} is only in "
                f"{pool}. Correct the numbers or add images."
            )
    return len(known)
