"""Which image belongs to which split: train, search and test, disjoint and the same every time.

Images are ordered by a hash of their names, not by a random generator, because the test split is
prepared weeks after the others: a generator whose stream changed with a library's version would
mix them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

TRAIN, SEARCH, TEST = SPLITS = ("train", "search", "test")
SPLIT_SEED = "mixer-search-1"
SMALL_SET = 10_000
MAX_SEARCH_IMAGES = 10_000
# Of sets like ImageNet more are held out, because networks differ less: with 10,000 images the
# standard error at 75 % is 0.43 %. One of so many, and at most as many as its test images.
LARGE_SEARCH_PART, MOST_SEARCH_IMAGES = 50, 50_000


def split_pools(
    pools: Mapping[str, IntArray],
    *,
    names: Sequence[str],
    labels: IntArray,
    class_names: Sequence[str],
) -> dict[str, IntArray]:
    """Make the three splits of the pools that a source came with.

    With ``train``, ``val`` and ``test`` these are train, search and test. With only one of the
    last two that one is test, and search is carved out of train. A source that is one ``all`` pool
    is cut 60/20/20. Whatever is carved is stratified by class.

    Args:
        pools: Positions of the images of ``train``, ``val``, ``test``, or of ``all``.
        names: The name of every image, by position.
        labels: The class of every image, by position; shape (num_images,).

    Returns:
        Positions by split, each in an order that is random but fixed, so that the first rows of a
        split are a fair sample of it.

    Raises:
        ValueError: If a class has too few images to be in both parts.
    """
    ranked = {pool: _rank(positions, names) for pool, positions in pools.items()}
    if "all" in ranked:
        rest, test = _carve(ranked["all"], 0.2, labels=labels, class_names=class_names)
        train, search = _carve(rest, 0.25, labels=labels, class_names=class_names)
        return {TRAIN: train, SEARCH: search, TEST: test}
    if "val" in ranked and "test" in ranked:
        return {TRAIN: ranked["train"], SEARCH: ranked["val"], TEST: ranked["test"]}
    num_train = len(ranked["train"])
    most = min(max(MAX_SEARCH_IMAGES, num_train // LARGE_SEARCH_PART), MOST_SEARCH_IMAGES)
    fraction = 0.2 if num_train < SMALL_SET else min(0.1, most / num_train)
    train, search = _carve(ranked["train"], fraction, labels=labels, class_names=class_names)
    return {TRAIN: train, SEARCH: search, TEST: ranked["val" if "val" in ranked else "test"]}


def _rank(positions: IntArray, names: Sequence[str]) -> IntArray:
    """Order positions by the SHA-256 of their names, whatever bytes a name has."""
    # Joined and split at zero bytes, which no name has: a few calls instead of millions.
    texts = f"\0{SPLIT_SEED}/".join(["", *map(names.__getitem__, positions.tolist())])
    encoded = texts.encode("utf-8", "surrogateescape").split(b"\0")[1:]
    digests = b"".join([hashlib.sha256(text).digest() for text in encoded])
    # As four numbers each, which sort much faster than bytes do; the first nearly always decides.
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 4).astype(np.uint64)
    order = np.argsort(words[:, 0])
    first = words[order, 0]
    if (first[1:] == first[:-1]).any():
        order = np.lexsort(words.T[::-1])
    return positions[order]


def _carve(
    positions: IntArray, fraction: float, *, labels: IntArray, class_names: Sequence[str]
) -> tuple[IntArray, IntArray]:
    """Cut off a fraction, the same of every class to the nearest image and at least one."""
    counts = np.bincount(labels[positions], minlength=len(class_names))
    rare = [f"{class_names[i]} ({counts[i]})" for i in np.flatnonzero(counts < 2).tolist()]
    if rare:
        raise ValueError(
            "Every class needs at least 2 training images, so that one can be held out; too few "
            f"in: {_abbreviate(rare)}. Add images, remove these classes, or give the data both a "
            "val/ and a test/ folder."
        )
    shares = _apportion(counts, fraction)
    # The first ones of each class: sorted by class, an image's row less that of its class's first.
    by_class = np.argsort(labels[positions], kind="stable")
    sorted_labels = labels[positions][by_class]
    row_in_class = np.arange(len(positions)) - (np.cumsum(counts) - counts)[sorted_labels]
    carved = np.zeros(len(positions), dtype=bool)
    carved[by_class] = row_in_class < shares[sorted_labels]
    return positions[~carved], positions[carved]


def _apportion(counts: IntArray, fraction: float) -> IntArray:
    """Take the fraction of every count; what rounding leaves goes to the largest remainders."""
    shares = np.floor(counts * fraction).astype(np.int64)
    remainders = counts * fraction - shares
    missing = int(counts.sum() * fraction) - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return np.maximum(shares, 1)


def _abbreviate(items: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
