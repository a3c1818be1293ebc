"""WebDataset shards: uncompressed tars whose files of one name, up to its first dot, are a sample.

The format is that of https://github.com/webdataset/webdataset and of timm's ``wds/`` sets (e.g.
``timm/imagenet-1k-wds``): ``KEY.jpg`` beside ``KEY.cls`` with the number of the class, or
``KEY.json`` with ``{"label": number}``. Shards are listed once and their images are then read at
their places, in any order, by any number of processes.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from supernet.data.folders import IMAGE_SUFFIXES, POOL_OF_FOLDER, TAR_ERRORS, check_end
from supernet.data.source import Source, decode_image
from supernet.data.splits import IntArray

INFO_FILES = ("_info.json", "info.json", "dataset_info.json")


@dataclass(slots=True)
class _Sample:
    """What was found of a sample: where its image lies in which shard, and its class."""

    shard: int
    place: tuple[int, int] | None = None
    label: int | None = None


@dataclass(slots=True)
class _Listing:
    """Samples in the order of their shards."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)


def open_shards(name: str, root: Path) -> Source:
    """List the samples of a folder of shards.

    The words of a shard's path say which pool it belongs to, as in ``imagenet1k-train-0000.tar`` or
    ``validation/0.tar``. A pool in which no sample has a class is left out. Where there is an
    ``_info.json``, its numbers of samples must be those that are found.

    Args:
        name: Of the data set.
        root: The folder.

    Raises:
        ValueError: If there are no shards of a pool, or one is compressed, damaged or incomplete.
    """
    shards = sorted(path for path in root.rglob("*.tar*") if path.is_file())
    pool_of = {path: _pool_of(path.relative_to(root)) for path in shards}
    listing = _Listing()
    pools: dict[str, IntArray] = {}
    for pool in sorted({found for found in pool_of.values() if found}):
        first = len(listing.names)
        for number, path in enumerate(shards):
            if pool_of[path] == pool:
                _list_shard(path, number, path.relative_to(root).as_posix(), listing)
        pools[pool] = np.arange(first, len(listing.names))
    labels = np.array(listing.labels, dtype=np.int64)
    pools = {pool: members for pool, members in pools.items() if (labels[members] >= 0).any()}
    if "train" not in pools or not {"val", "test"} & set(pools):
        raise ValueError(
            "WebDataset shards must be labelled (.cls) and have train, and val or test, in their "
            f"names; {root} has such only of: {', '.join(pools) or 'nothing'}. Rename the shards "
            "or give another folder."
        )
    _check_complete(root, pools, labels)
    places = np.array(listing.places, dtype=np.int64)
    shard_of = np.array(listing.shards)

    def read(positions: IntArray) -> Iterator[tuple[int, Image.Image]]:
        # In the order in which they lie on disk; a file of its own for each reader, so that
        # processes that were forked from one another do not move each other's position.
        order = positions[np.lexsort((places[positions, 0], shard_of[positions]))]
        for shard in np.unique(shard_of[order]).tolist():
            with shards[shard].open("rb", buffering=0) as file:
                for position in order[shard_of[order] == shard].tolist():
                    offset, size = places[position].tolist()
                    content = io.BytesIO(os.pread(file.fileno(), size, offset))
                    yield position, decode_image(content, name=listing.names[position])

    return Source(
        name=name,
        class_names=_class_names(root, int(labels.max()) + 1),
        allows_flip=True,
        names=listing.names,
        labels=labels,
        pools=pools,
        read=read,
    )


def _pool_of(path: Path) -> str | None:
    """Find the pool in the words of a path, the last one first."""
    words = re.split(r"[^a-z]+", path.as_posix().lower())
    return next((POOL_OF_FOLDER[word] for word in reversed(words) if word in POOL_OF_FOLDER), None)


def _list_shard(path: Path, number: int, name: str, listing: _Listing) -> None:
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isreg():
                    _take_file(tar, member, samples, number)
            check_end(tar, path)
    except TAR_ERRORS as error:
        raise ValueError(
            f"Shards must be whole, uncompressed tars, {path} is not ({error}). Decompress it, or "
            "copy or download it again."
        ) from error
    for key, sample in samples.items():
        if sample.place is not None:
            listing.names.append(f"{name}/{key}")
            listing.labels.append(-1 if sample.label is None else sample.label)
            listing.shards.append(sample.shard)
            listing.places.append(sample.place)


def _take_file(
    tar: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, _Sample], number: int
) -> None:
    """Note the place of an image, or read a label."""
    folder, _, file = member.name.rpartition("/")
    key, _, suffix = file.partition(".")
    sample = samples.setdefault(f"{folder}/{key}".removeprefix("/"), _Sample(number))
    if f".{suffix.lower()}" in IMAGE_SUFFIXES:
        sample.place = (member.offset_data, member.size)
    elif suffix == "cls" or (suffix == "json" and sample.label is None):
        content = tar.extractfile(member)
        assert content is not None
        sample.label = _label(content.read(), suffix, f"{member.name} in {tar.name!s}", sample)


def _label(content: bytes, suffix: str, name: str, sample: _Sample) -> int | None:
    try:
        if suffix == "cls":
            return int(content)
        value = json.loads(content).get("label", sample.label)
        return None if value is None else int(value)
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"A class must be a whole number, {name} holds {content[:20]!r}. Mend the shard."
        ) from error


def _info(root: Path) -> dict[str, Any]:
    path = next((root / name for name in INFO_FILES if (root / name).is_file()), None)
    return {} if path is None else dict(json.loads(path.read_text(encoding="utf-8")))


def _check_complete(root: Path, pools: dict[str, IntArray], labels: IntArray) -> None:
    for split, about in _info(root).get("splits", {}).items():
        pool = POOL_OF_FOLDER.get(split)
        wanted = about.get("num_samples") if isinstance(about, dict) else None
        if pool in pools and wanted is not None and len(pools[pool]) != wanted:
            raise ValueError(
                f"The shards of {root} should hold {wanted:,} images of {split}, as their "
                f"description says, and hold {len(pools[pool]):,}. Download what is missing."
            )
    for pool, members in pools.items():
        if (missing := int((labels[members] < 0).sum())) > 0:
            raise ValueError(
                f"{missing:,} images of {pool} in {root} have no class. Add KEY.cls to the shards."
            )


def _class_names(root: Path, num_classes: int) -> tuple[str, ...]:
    named = _info(root).get("class_names") or ()
    if len(named) == num_classes:
        return tuple(map(str, named))
    return tuple(map(str, range(num_classes)))
