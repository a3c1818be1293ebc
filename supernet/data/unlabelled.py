"""Images without classes, to learn from a teacher on: a folder of them, decoded once or streamed.

What is an image, which links are followed and what is refused is as in `supernet.data.folders`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.reading import read_json
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
    read_array,
    remove_arrays,
    write_split,
)
from supernet.data.catalog import UNLABELLED_PREFIX
from supernet.data.decoding import shown
from supernet.data.folders import open_unlabelled
from supernet.data.image_data import MEMORY_LIMIT_BYTES, ImageData
from supernet.data.source import Source
from supernet.data.splits import IntArray
from supernet.data.streaming import JoinedStreams, StreamedImages, listed

_STEM, _PRINT = "unlabelled", "fingerprint.txt"
# Of images that are streamed: where they are, and which of them with what content.
_STREAM, _ROWS = "stream.json", "rows.npy"


@dataclass(frozen=True, kw_only=True, slots=True)
class Unlabelled:
    """Images without classes, prepared; small, and cheap to pickle.

    Attributes:
        name: Of the folder that they come from.
        folder: Where they lie decoded, or where it is written down which are streamed.
        count: How many.
        fingerprint: Hash of the decoded images; of the files of those that are streamed.
        left_out: Images that are judged by that were among them.
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
        share: Of the images without classes, spread evenly: they lie in the order of their names.

    Raises:
        ValueError: If they are streamed and not what they were.
    """
    every = slice(None, None, max(round(1 / share), 1))
    if isinstance(labelled.images, StreamedImages):
        more = _read_stream(folder)[every]
        labels = np.full(len(more), -1, dtype=labelled.labels.dtype)
        both: JoinedStreams | JoinedImages = JoinedStreams(labelled.images, more)
    else:
        images, labels = load_arrays(folder, _STEM)
        assert isinstance(labelled.images, np.ndarray)
        both, labels = JoinedImages(labelled.images, images[every]), labels[every]
    return Split(both, np.concatenate([labelled.labels, labels]))


def check_unlabelled_files(folder: Path) -> None:
    """See that images which `prepare_unlabelled` left in a folder are whole.

    Raises:
        ValueError: If they are gone or damaged.
    """
    if (folder / _STREAM).is_file():
        _read_stream(folder)
    elif not (is_sound(folder, _STEM) and (folder / _PRINT).is_file()):
        raise _not_whole(folder)


def prepare_unlabelled(
    root: Path, data: ImageData, parent: Path, *, searches: bool = False
) -> Unlabelled:
    """Decode the images below a folder, unless these have been decoded before.

    Images that are test images, byte for byte, are left out: what is tested on must not be learned
    from, with labels or without. So are those of the search split, for a search.

    Args:
        root: Holds the images, at any depth.
        data: The labelled ones: theirs is the size, and beside those that are streamed these are
            streamed as well, from where they are.
        parent: Where a folder of them is made.
        searches: Whether networks are judged by the search split.

    Raises:
        ValueError: If there are none, one is damaged, or they are too many to be stored.
    """
    source = open_unlabelled(root)
    everything = np.arange(len(source.names))
    digests = source.digests(everything)
    judged = data.test_digests()
    if searches:
        judged = np.concatenate([data.search_digests(), judged])
    is_judged = np.isin(digests, judged[judged > 0])
    positions = everything[~is_judged]
    if not len(positions):
        splits = "search and test splits" if searches else "test split"
        raise ValueError(
            f"--unlabelled {root}: there is no image in it but those of the {splits}. Name a "
            "folder of others."
        )
    if data.is_streamed:
        return _streamed(source, root, positions, digests, folder_of=parent, img_size=data.img_size)
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
        left_out=int(is_judged.sum()),
    )


def _streamed(
    source: Source,
    root: Path,
    positions: IntArray,
    digests: IntArray,
    *,
    folder_of: Path,
    img_size: int,
) -> Unlabelled:
    """Write down where images are, instead of decoding them.

    Args:
        digests: Of all images of the source.
    """
    rows = np.stack([positions, digests[positions]])
    about = {
        "source": f"{UNLABELLED_PREFIX}{root.resolve()}",
        "img_size": img_size,
        "listing": source.fingerprint(),
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
    }
    key = _checksum(about)
    folder = folder_of / f"unlabelled-{key[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        content = io.BytesIO()
        np.save(content, rows, allow_pickle=False)
        durable.write_bytes(folder / _ROWS, content.getvalue())
        durable.write_text(folder / _STREAM, json.dumps(about | {"checksum": key}) + "\n")
    return Unlabelled(
        name=shown(root.name) or shown(str(root)),
        folder=folder,
        count=len(positions),
        fingerprint=key,
        left_out=len(digests) - len(positions),
    )


def _read_stream(folder: Path) -> StreamedImages:
    """Read what `_streamed` wrote, after a look whether the images are still there.

    Raises:
        ValueError: If they are not, or it is damaged.
    """
    try:
        about: Any = read_json(folder / _STREAM)
        rows = read_array(folder / _ROWS, np.int64)
        is_whole = about.pop("checksum") == _checksum(about)
        is_whole &= hashlib.sha256(rows.tobytes()).hexdigest() == about["rows"]
        source, img_size = str(about["source"]), int(about["img_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_whole(folder) from error
    if not is_whole:
        raise _not_whole(folder)
    root = source.removeprefix(UNLABELLED_PREFIX)
    if not Path(root).is_dir():
        raise ValueError(
            f"Images without classes are streamed from {shown(root)}, which is not there any more. "
            "Put it back at this path."
        )
    if listed(source, img_size).fingerprint() != about["listing"]:
        raise ValueError(
            f"The images below {shown(root)} must not change during a run, and there are others "
            "now. Restore them."
        )
    return StreamedImages(source, img_size, *rows)


def _checksum(about: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _not_whole(folder: Path) -> ValueError:
    return ValueError(
        f"A run keeps the images without classes that it began with, and those in {folder} are "
        "damaged or gone. Restore the folder from a copy, or begin another run."
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
