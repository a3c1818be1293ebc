"""WebDataset shards: uncompressed tars in which files of one name are a sample.

The format is that of https://github.com/webdataset/webdataset and of timm's ``wds/`` sets (e.g.
``timm/imagenet-1k-wds``): ``KEY.jpg`` beside ``KEY.cls`` with the number of the class, or
``KEY.json`` with ``{"label": number}``. WebDataset ends a key at its first dot; here a key may have
dots (``photo.2021.jpg`` beside ``photo.2021.cls``), and where such an image has no label of its own
it belongs to the sample that ends at the first dot. Shards are listed once and their images are
then read at their places, in any order, by any number of processes.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs.reading import parse_json, read_json
from supernet.data.decoding import MAX_FILE_BYTES, shown
from supernet.data.folders import POOL_OF_FOLDER
from supernet.data.skipped import (
    FURTHER,
    NO_FILE,
    Skipped,
    clutter_reason,
    copy_reason,
    has_image_suffix,
    other_reason,
)
from supernet.data.source import Fetched, Source, can_be_mirrored, check_labels
from supernet.data.splits import IntArray
from supernet.data.tars import TAR_ERRORS, check_size, members_of, open_checked

INFO_FILES = ("_info.json", "info.json", "dataset_info.json")
MAX_INFO_BYTES = 2**26
MAX_LABEL_BYTES = 2**24
# More classes than any set has; it keeps a wrong number from becoming the size of a network.
MAX_CLASS = 10**7
UNLABELLED = -1


@dataclass(slots=True)
class _Archive:
    """The files of an archive by their keys, which end at the last dot."""

    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Listing:
    """Samples in the order of their shards."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    archives: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)


def open_webdataset(name: str, root: Path) -> Source:
    """List the samples of a folder of shards.

    The words of a shard's path say which pool it belongs to, as in ``imagenet1k-train-0000.tar`` or
    ``validation/0.tar``. A pool in which no sample has a class is left out. Where there is an
    ``_info.json``, its numbers of samples must be those that are found.

    Args:
        name: Of the data set.
        root: The folder.

    Raises:
        ValueError: If there are no shards of a pool, or one is compressed, damaged or incomplete;
            if classes are no numbers from 0 without gaps.
    """
    archives = _archives(root)
    listing, pools = _list_pools(archives, root)
    labels = np.array(listing.labels, dtype=np.int64)
    pools = {pool: members for pool, members in pools.items() if (labels[members] >= 0).any()}
    if "train" not in pools or not {"val", "test"} & set(pools):
        raise ValueError(
            "WebDataset shards must be labelled (.cls) and have train, and val or test, in their "
            f"names; {shown(str(root))} has such only of: {', '.join(pools) or 'nothing'}. Rename "
            "the shards or give another folder."
        )
    info = _info(root)
    _check_complete(root, info, pools, labels)
    places = np.array(listing.places, dtype=np.int64)
    return Source(
        name=shown(name),
        class_names=_class_names(info, check_labels(labels, pools, shown(str(root)))),
        allows_flip=can_be_mirrored(name),
        names=listing.names,
        labels=labels,
        pools=pools,
        fetch=_reader([path for path, _ in archives], listing, places),
        skipped=listing.skipped.found,
        size_of=lambda position: int(places[position, 1]),
    )


def _list_pools(
    archives: Sequence[tuple[Path, str]], root: Path
) -> tuple[_Listing, dict[str, IntArray]]:
    """List the samples of all shards, pool by pool; return which of them each pool has."""
    listing, pools = _Listing(), dict[str, IntArray]()
    by_pool = sorted((pool, number) for number, (_, pool) in enumerate(archives))
    for pool, number in by_pool:
        first = len(listing.names)
        _list_archive(archives[number][0], number, root, listing)
        members = np.arange(first, len(listing.names))
        pools[pool] = np.concatenate([pools.get(pool, members[:0]), members])
    return listing, pools


def _reader(
    paths: Sequence[Path], listing: _Listing, places: IntArray
) -> Callable[[IntArray], Iterator[Fetched]]:
    """Return what reads samples by their positions."""
    archive_of = np.array(listing.archives)

    def fetch(positions: IntArray) -> Iterator[Fetched]:
        # In the order in which they lie on disk; a file of its own for each reader, so that
        # processes that were forked from one another do not move each other's position.
        order = positions[np.lexsort((places[positions, 0], archive_of[positions]))]
        for archive in np.unique(archive_of[order]).tolist():
            with paths[archive].open("rb", buffering=0) as file:
                for position in order[archive_of[order] == archive].tolist():
                    offset, size = places[position].tolist()
                    content = os.pread(file.fileno(), size, offset)
                    yield Fetched(position, content, listing.names[position])

    return fetch


def _archives(root: Path) -> list[tuple[Path, str]]:
    """Return the shards that belong to a pool, each once, with their pools, in order."""
    found: dict[tuple[int, int], tuple[Path, str]] = {}
    for path in sorted(root.rglob("*.tar*")):
        inner = path.relative_to(root)
        pool = _pool_of(inner)
        hidden = any(clutter_reason(part) or copy_reason(part) for part in inner.parts)
        if pool is not None and not hidden and path.is_file():
            # Which file it really is, by whatever link.
            real = path.stat()
            first = found.setdefault((real.st_dev, real.st_ino), (path, pool))
            if first[1] != pool:
                raise ValueError(
                    f"Each shard belongs to one split, but {shown(str(first[0]))} and "
                    f"{shown(str(path))} are the same. Remove one."
                )
    return list(found.values())


def _pool_of(path: Path) -> str | None:
    """Find the pool in the words of a path, the last one first."""
    words = re.split(r"[^a-z]+", path.as_posix().lower())
    return next((POOL_OF_FOLDER[word] for word in reversed(words) if word in POOL_OF_FOLDER), None)


def _list_archive(path: Path, number: int, root: Path, listing: _Listing) -> None:
    archive = _Archive()
    try:
        with open_checked(path, "r:") as tar:
            for member in members_of(tar, path):
                _take_file(tar, member, archive, listing.skipped)
    except _WrongLabelError:
        raise
    except TAR_ERRORS as error:
        raise ValueError(
            f"Shards must be whole, uncompressed tars, {shown(str(path))} is not ({error}). "
            "Decompress it, or copy or download it again."
        ) from error
    name = path.relative_to(root).as_posix()
    for key, (sample, place) in _samples(archive, listing.skipped).items():
        listing.names.append(f"{name}/{key}")
        listing.labels.append(archive.labels.get(sample, UNLABELLED))
        listing.archives.append(number)
        listing.places.append(place)


def _samples(archive: _Archive, skipped: Skipped) -> dict[str, tuple[str, tuple[int, int]]]:
    """Map the key of each image to that of its label, and to its place."""
    samples: dict[str, tuple[str, tuple[int, int]]] = {}
    taken = {key for key in archive.images if key in archive.labels}
    for key, place in archive.images.items():
        folder, slash, file = key.rpartition("/")
        first = f"{folder}{slash}{file.partition('.')[0]}"
        if key == first or key in archive.labels:
            samples[key] = (key, place)
        elif first in archive.images or first in taken:
            skipped.add(FURTHER, key)
        else:
            samples[key] = (first, place)
            taken.add(first)
    return samples


def _take_file(
    tar: tarfile.TarFile, member: tarfile.TarInfo, archive: _Archive, skipped: Skipped
) -> None:
    """Note the place of an image, or read a label."""
    if member.isdir():
        return
    name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.rpartition(".")
    key, suffix = f"{folder}{slash}{stem}", suffix.lower()
    hidden = (clutter_reason(part) for part in name.split("/"))
    if reason := next((reason for reason in hidden if reason), None):
        skipped.add(reason, name)
    elif not member.isreg():
        skipped.add(NO_FILE, name)
    elif has_image_suffix(file):
        check_size(member, MAX_FILE_BYTES)
        if key in archive.images:
            raise tarfile.ReadError(f"{shown(key)} has two images")
        archive.images[key] = (member.offset_data, member.size)
    elif suffix == "cls" or (suffix == "json" and key not in archive.labels):
        check_size(member, MAX_LABEL_BYTES)
        content = tar.extractfile(member)
        assert content is not None
        label = _label(content.read(), suffix, f"{shown(member.name)} in {shown(str(tar.name))}")
        if label is not None:
            archive.labels[key] = label
    elif suffix != "json":
        skipped.add(other_reason(name), name)


class _WrongLabelError(ValueError):
    """A label that is no class."""


def _label(content: bytes, suffix: str, name: str) -> int | None:
    """Read the number of a class; None where a description has none."""
    value: object = content.strip().decode("ascii", "replace")
    if suffix == "json":
        try:
            found = parse_json(content)
        except ValueError as error:
            raise _WrongLabelError(f"{name}: {error} Mend the shard.") from error
        if not isinstance(found, dict):
            raise _WrongLabelError(
                f'A description is a mapping like {{"label": 3}}, {name} holds {content[:20]!r}. '
                "Mend the shard."
            )
        value = found.get("label")
    if value is None or value in (UNLABELLED, str(UNLABELLED)):
        return None
    # A bool is an int to Python, and int() rounds and takes 1_0 for 10.
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        number = int(value)
    if not 0 <= number <= MAX_CLASS:
        raise _WrongLabelError(
            f"A class must be a whole number from 0 to {MAX_CLASS:,}, {name} holds "
            f"{content[:20]!r}. Mend the shard."
        )
    return number


def _info(root: Path) -> dict[str, Any]:
    """Read the description of a set; it is the set's own, and none is needed."""
    path = next((root / name for name in INFO_FILES if (root / name).is_file()), None)
    info = {} if path is None else read_json(path, limit=MAX_INFO_BYTES)
    if not isinstance(info, dict):
        raise ValueError(f"A description of shards is a mapping, {path} is none. Mend it.")
    return info


def _check_complete(
    root: Path, info: dict[str, Any], pools: dict[str, IntArray], labels: IntArray
) -> None:
    splits = info.get("splits")
    for split, about in splits.items() if isinstance(splits, dict) else ():
        pool = POOL_OF_FOLDER.get(split)
        wanted = about.get("num_samples") if isinstance(about, dict) else None
        if pool in pools and isinstance(wanted, int) and len(pools[pool]) != wanted:
            raise ValueError(
                f"The shards of {root} should hold {wanted:,} images of {split}, as their "
                f"description says, and hold {len(pools[pool]):,}. Download what is missing."
            )
    for pool, members in pools.items():
        if (missing := int((labels[members] < 0).sum())) > 0:
            raise ValueError(
                f"{missing:,} images of {pool} in {root} have no class. Add KEY.cls to the shards."
            )


def _class_names(info: dict[str, Any], num_classes: int) -> tuple[str, ...]:
    named = info.get("class_names")
    if isinstance(named, list) and len(named) == num_classes:
        return tuple(shown(str(name)) for name in named)
    return tuple(map(str, range(num_classes)))
