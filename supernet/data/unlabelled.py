"""Images without classes, to learn from a teacher on: a folder of them, decoded once.

What is an image, which links are followed and what is refused is as in `supernet.data.folders`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from searchspace import durable
from supernet.data.arrays import (
    GIB,
    JoinedImages,
    Split,
    array_bytes,
    check_disk,
    fingerprint,
    is_sound,
    load_arrays,
    locked,
    remove_arrays,
    write_split,
)
from supernet.data.decoding import shown
from supernet.data.folders import open_unlabelled
from supernet.data.image_data import MEMORY_LIMIT_BYTES, ImageData
from supernet.data.source import Source
from supernet.data.splits import IntArray

_STEM, _PRINT = "unlabelled", "fingerprint.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unlabelled:
    """Images without classes, prepared; small, and cheap to pickle.

    Attributes:
        name: Of the folder that they come from.
        folder: Where they lie decoded.
        count: How many.
        fingerprint: Hash of the decoded images.
        left_out: Images of the test split that were among them.
    """

    name: str
    folder: Path
    count: int
    fingerprint: str
    left_out: int

    def line(self) -> str:
        """Say how many there are."""
        test = f"; {self.left_out:,} are test images, and left out" if self.left_out else ""
        return f"unlabelled: {self.count:,} images of {self.name}{test}"

    def added_to(self, labelled: Split) -> Split:
        """Return the images of a split and these, whose class is -1."""
        return with_unlabelled(labelled, self.folder)


def with_unlabelled(labelled: Split, folder: Path, *, share: float = 1.0) -> Split:
    """Return the images of a split, and those without classes that lie in a folder.

    Args:
        folder: That `prepare_unlabelled` made.
        share: Of the images without classes, the first ones: a fair sample.
    """
    more = Split(*load_arrays(folder, _STEM)).first(share)
    assert isinstance(labelled.images, np.ndarray)  # `prepare_unlabelled` has seen to it.
    assert isinstance(more.images, np.ndarray)
    joined = JoinedImages(labelled.images, more.images)
    return Split(joined, np.concatenate([labelled.labels, more.labels]))


def check_unlabelled_files(folder: Path) -> None:
    """See that images which `prepare_unlabelled` left in a folder are whole.

    Raises:
        ValueError: If they are gone or damaged.
    """
    if not (is_sound(folder, _STEM) and (folder / _PRINT).is_file()):
        raise ValueError(
            f"A run keeps the images without classes that it began with, and those in {folder} are "
            "damaged or gone. Restore the folder from a copy, or begin another run."
        )


def prepare_unlabelled(root: Path, data: ImageData, parent: Path) -> Unlabelled:
    """Decode the images below a folder, unless these have been decoded before.

    Images that are test images, byte for byte, are left out: what is tested on must not be learned
    from, with labels or without.

    Args:
        root: Holds the images, at any depth.
        data: The labelled ones: theirs is the size.
        parent: Where a folder of them is made.

    Raises:
        ValueError: If there are none, one is damaged, they are too many, or ``data`` is streamed.
    """
    if data.is_streamed:
        raise ValueError(
            f"Unlabelled images are decoded and stored beside those of {data.name}, which are too "
            "many for that and streamed. Take a part of them, or a smaller --img-size."
        )
    source = open_unlabelled(root)
    everything = np.arange(len(source.names))
    digests = source.digests(everything)
    tested = data.test_digests()
    is_test = np.isin(digests, tested[tested > 0])
    positions = everything[~is_test]
    if not len(positions):
        raise ValueError(
            f"--unlabelled {root}: there is no image in it but those of the test split. Name a "
            "folder of others."
        )
    if array_bytes(len(positions), data.stored_size) > MEMORY_LIMIT_BYTES:
        raise ValueError(
            f"Unlabelled images are stored decoded, in at most {MEMORY_LIMIT_BYTES / GIB:.3g} GiB, "
            f"and {root} has {len(positions):,} of {data.stored_size} pixels. Take a part of them."
        )
    key = hashlib.sha256(digests[positions].tobytes() + str(data.stored_size).encode())
    folder = parent / f"unlabelled-{key.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if not (is_sound(folder, _STEM) and (folder / _PRINT).is_file()):
            _decode(source, positions, digests[positions], folder, data.stored_size)
    return Unlabelled(
        name=shown(root.name) or shown(str(root)),
        folder=folder,
        count=len(positions),
        fingerprint=(folder / _PRINT).read_text(encoding="utf-8"),
        left_out=int(is_test.sum()),
    )


def _decode(
    source: Source, positions: IntArray, digests: IntArray, folder: Path, stored_size: int
) -> None:
    remove_arrays(folder, _STEM)
    check_disk(len(positions), stored_size, folder)
    try:
        write_split(
            source,
            positions,
            folder=folder,
            stem=_STEM,
            stored_size=stored_size,
            digests=digests,
            on_progress=None,
        )
    except BaseException:
        remove_arrays(folder, _STEM)
        raise
    durable.write_text(folder / _PRINT, fingerprint(*load_arrays(folder, _STEM)))
