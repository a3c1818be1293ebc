"""An ImageFolder: ``train/<class>/.../<image>``, and likewise ``val/`` or ``test/`` or both.

Every real file is taken once, under one class of one split. Links are followed, since subsets of
large sets are often folders of links; one that leads back to where it came from is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from supernet.data.decoding import IMAGE_SUFFIXES, looks_like_image, shown
from supernet.data.files import read_head, read_regular, size_of_regular
from supernet.data.skipped import (
    AGAIN,
    NO_FILE,
    OUTSIDE,
    Skipped,
    clutter_reason,
    copy_reason,
    has_image_suffix,
    other_reason,
)
from supernet.data.source import Fetched, Source
from supernet.data.splits import IntArray

POOL_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# Which folder it really is, whatever it is called: its device and its number there.
_Identity: TypeAlias = tuple[int, int]


class Member(NamedTuple):
    """Where an image or a folder of images lies."""

    pool: str
    label: str
    name: str


@dataclass(slots=True)
class Found:
    """Images by pool and class, as they are found.

    Attributes:
        is_same: Looks closer at two names that seem to be one file.
        classes: Pool -> class -> names of images; classes without images are there too.
        skipped: What was left out.
    """

    is_same: Callable[[str, str], bool] = lambda one, other: True
    classes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    skipped: Skipped = field(default_factory=Skipped)
    _taken: dict[object, Member] = field(default_factory=dict)

    def take(self, place: Member, real: object) -> None:
        """Take an image, unless the same file was taken before.

        Args:
            real: Equal for the same file under two names; None where that is not known.

        Raises:
            ValueError: If the same file is in another class or pool.
        """
        first = place if real is None else self._taken.setdefault(real, place)
        if first is not place and self.is_same(first.name, place.name):
            check_same(first, place)
            self.skipped.add(AGAIN, place.name)
            return
        self.classes[place.pool][place.label].append(place.name)


def check_same(first: Member, second: Member) -> None:
    """Refuse a file that has two classes, or is to be learned from and tested on."""
    if first[:2] != second[:2]:
        raise ValueError(
            "Each image belongs to one class of one split, but "
            f"{shown(first.name)} and {shown(second.name)} are the same. Remove one."
        )


def open_folder(root: Path) -> Source:
    """List the images of a folder.

    Raises:
        ValueError: If splits or classes are missing, empty or different; if a link leads nowhere
            or in a circle; if one file is in two classes or splits.
    """
    base = os.fsencode(root)
    found = Found(lambda *names: os.path.samefile(*(_path(base, name) for name in names)))
    entries = sorted(_text(entry.name) for entry in _scan(base))
    walk = _Walk(base, found)
    for pool, folder in pools_of(entries, _printable(base)).items():
        walk.list_pool(pool, folder)

    def fetch(names: Sequence[str], positions: IntArray) -> Iterator[Fetched]:
        for position in positions.tolist():
            path = _path(base, names[position])
            yield Fetched(position, read_regular(path), _text(path))

    def size_of(name: str) -> int:
        return size_of_regular(_path(base, name))

    return arrange(found, root, fetch, size_of)


def open_unlabelled(root: Path) -> Source:
    """List all images below a folder, at any depth; their class is -1.

    Raises:
        ValueError: If there are none; if a link leads nowhere or in a circle.
    """
    if not root.is_dir():
        raise ValueError(
            f"--unlabelled {shown(str(root))}: there is no such folder. Name one that holds images."
        )
    base = os.fsencode(root)
    found = Found(lambda *names: os.path.samefile(*(_path(base, name) for name in names)))
    _Walk(base, found).list_all("train")
    names = sorted(found.classes["train"][""])
    if not names:
        raise ValueError(
            f"--unlabelled {shown(str(root))}: there is no image in it. Name a folder that holds "
            "some."
        )

    def fetch(positions: IntArray) -> Iterator[Fetched]:
        for position in positions.tolist():
            path = _path(base, names[position])
            yield Fetched(position, read_regular(path), _text(path))

    return Source(
        name=shown(root.name) or shown(str(root)),
        class_names=(),
        allows_flip=True,
        names=names,
        labels=np.full(len(names), -1, dtype=np.int64),
        pools={"train": np.arange(len(names))},
        fetch=fetch,
        skipped=found.skipped.found,
        is_labelled=False,
    )


def pools_of(entries: Sequence[str], where: str) -> dict[str, str]:
    """Map the pools to their folders among the names in a top folder.

    Raises:
        ValueError: If one is missing or there twice.
    """
    known = [name for name in entries if name in POOL_OF_FOLDER]
    pools = {POOL_OF_FOLDER[name]: name for name in known}
    if "train" not in pools or not {"val", "test"} & set(pools) or len(known) > len(pools):
        names = ", ".join(map(shown, entries[:10])) or "nothing"
        raise ValueError(
            "Data must have one train/ and one val/ or test/ or both, each with one folder of "
            f"images per class; {where} has: {names}. Give the folder that holds train/. Where "
            "images are not divided, move e.g. a fifth of each class to val/."
        )
    return pools


def arrange(
    found: Found,
    path: Path,
    fetch: Callable[[Sequence[str], IntArray], Iterator[Fetched]],
    size_of: Callable[[str], int],
) -> Source:
    """Make a source of what was found; classes are numbered in the order of their names.

    Raises:
        ValueError: If classes are empty, different between the pools, or not UTF-8.
    """
    for folder in (f"{pool}/{name}" for pool, names in found.classes.items() for name in names):
        if shown(folder) != folder:
            raise ValueError(
                "The names of class folders must be UTF-8 without control characters, "
                f"{shown(folder)} in {shown(str(path))} is not. Rename it."
            )
    _check_classes(found.classes, shown(str(path)))
    class_names = tuple(sorted(found.classes["train"]))
    names: list[str] = []
    labels: list[int] = []
    pools: dict[str, IntArray] = {}
    for pool, classes in sorted(found.classes.items()):
        listing = sorted(
            (name, label) for label, key in enumerate(class_names) for name in classes[key]
        )
        pools[pool] = np.arange(len(names), len(names) + len(listing))
        names += [name for name, _ in listing]
        labels += [label for _, label in listing]
    return Source(
        name=shown(path.name.split(".")[0]) or shown(str(path)),
        class_names=class_names,
        allows_flip=True,
        names=names,
        labels=np.array(labels, dtype=np.int64),
        pools=pools,
        fetch=lambda positions: fetch(names, positions),
        skipped=found.skipped.found,
        size_of=lambda position: size_of(names[position]),
    )


def class_of(name: str, skipped: Skipped) -> str | None:
    """Return the class folder of a path below a pool's folder, if it can hold an image of one."""
    parts = name.split("/")
    reasons = (clutter_reason(part) for part in parts[1:])
    if reason := next((reason for reason in reasons if reason is not None), None):
        skipped.add(reason, name)
        return None
    if len(parts) < 3:
        skipped.add(OUTSIDE, name)
        return None
    return parts[1]


def takes_file(name: str, head: Callable[[], bytes], skipped: Skipped) -> bool:
    """Tell whether a file is an image: by its suffix, or where that says nothing by its content.

    Args:
        head: Reads the first bytes; called only where the suffix says nothing.
    """
    if has_image_suffix(name):
        return True
    reason = copy_reason(name)
    if reason is None and looks_like_image(head()):
        return True
    skipped.add(reason or other_reason(name), name)
    return False


@dataclass(slots=True)
class _Walk:
    """Goes through the folders of the pools; each real folder is entered once."""

    base: bytes
    found: Found
    entered: dict[_Identity, Member] = field(default_factory=dict)

    def list_pool(self, pool: str, folder: str) -> None:
        """Take the images of a pool."""
        classes = self.found.classes[pool] = {}
        above = frozenset(map(_identity, _with_parents(self.base)))
        identity = self._enter(Member(pool, "", folder), above)
        for entry in self._entries(folder):
            name = f"{folder}/{_text(entry.name)}"
            if reason := clutter_reason(_text(entry.name)):
                self.found.skipped.add(reason, name)
            elif _is_folder(entry):
                label = _text(entry.name)
                classes[label] = []
                self._list_class(Member(pool, label, name), above | {identity})
            else:
                self.found.skipped.add(OUTSIDE, name)

    def list_all(self, pool: str) -> None:
        """Take all images of the top folder, as one class without a name."""
        self.found.classes[pool] = {"": []}
        above = frozenset(map(_identity, _with_parents(self.base)[1:]))
        self._list_class(Member(pool, "", "."), above)

    def _list_class(self, top: Member, above: frozenset[_Identity | None]) -> None:
        waiting = [(top, above)]
        while waiting:
            place, above = waiting.pop()
            if (identity := self._enter(place, above)) is None:
                continue
            below = []
            for entry in self._entries(place.name):
                name = _text(entry.name)
                inner = Member(place.pool, place.label, f"{place.name}/{name}")
                if reason := clutter_reason(name):
                    self.found.skipped.add(reason, inner.name)
                elif _is_folder(entry):
                    below.append((inner, above | {identity}))
                elif not _is_file(entry):
                    self.found.skipped.add(NO_FILE, inner.name)
                elif takes_file(inner.name, partial(read_head, entry.path), self.found.skipped):
                    self.found.take(inner, _real_file(entry, identity))
            waiting += reversed(below)

    def _enter(self, place: Member, above: frozenset[_Identity | None]) -> _Identity | None:
        """Return which folder it is; None if its images were taken under another name."""
        identity = _identity(_path(self.base, place.name))
        if identity in above:
            raise ValueError(
                f"The link {shown(place.name)} in {_printable(self.base)} leads back to a folder "
                "that it lies in, so the same images would be taken again. Remove the link."
            )
        first = self.entered.setdefault(identity, place)
        if first is place:
            return identity
        check_same(first, place)
        self.found.skipped.add(AGAIN, place.name)
        return None

    def _entries(self, folder: str) -> list[os.DirEntry[bytes]]:
        # Real files before links, so that a file is taken under its own name.
        entries = _scan(_path(self.base, folder))
        return sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))


def _scan(folder: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise ValueError(
            f"The folder {_printable(folder)} cannot be listed ({error.strerror}). Make it "
            "readable or remove it."
        ) from error


def _identity(folder: bytes) -> _Identity:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise ValueError(
            f"The folder {_printable(folder)} cannot be read ({error.strerror}). Remove it."
        ) from error
    return found.st_dev, found.st_ino


def _with_parents(folder: bytes) -> list[bytes]:
    """Return a folder and all above it, by their real names."""
    path = Path(os.fsdecode(os.path.realpath(folder)))
    return [os.fsencode(one) for one in (path, *path.parents)]


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    # A link that leads to itself.
    except OSError:
        return False


def _is_file(entry: os.DirEntry[bytes]) -> bool:
    """Tell whether it is a regular file, or a link to one.

    Raises:
        ValueError: If it is a link that leads nowhere: perhaps a disk is missing, and with it half
            of the images.
    """
    try:
        if entry.is_file():
            return True
        entry.stat()
    except OSError as error:
        raise ValueError(
            f"The link {_printable(entry.path)} leads nowhere. Put back what it leads to, or "
            "remove it."
        ) from error
    return False


def _real_file(entry: os.DirEntry[bytes], folder: _Identity) -> _Identity | None:
    """Tell which file it is, for a real one without asking the file system once more."""
    if not entry.is_symlink():
        return (folder[0], entry.inode()) if entry.inode() else None
    found = entry.stat()
    return found.st_dev, found.st_ino


def _path(base: bytes, name: str) -> bytes:
    return os.path.join(base, name.encode("utf-8", "surrogateescape"))


def _text(raw: bytes) -> str:
    """Return a name as text that is the same whatever the locale, and leads back to its bytes."""
    return raw.decode("utf-8", "surrogateescape")


def _printable(path: bytes) -> str:
    return shown(_text(path))


def _check_classes(found: Mapping[str, Mapping[str, Sequence[str]]], where: str) -> None:
    for pool, classes in found.items():
        empty = sorted(name for name, files in classes.items() if not files)
        if empty or not classes:
            places = ", ".join(f"{pool}/{name}" for name in empty[:5]) or f"{pool}/"
            raise ValueError(
                f"Every class folder must hold images ({' '.join(IMAGE_SUFFIXES)}); there are none "
                f"in {places} of {where}. Add images or remove the folder."
            )
        if different := sorted(set(classes) ^ set(found["train"])):
            raise ValueError(
                f"All splits must have the same class folders; {pool}/ and train/ of {where} "
                f"differ in: {', '.join(different[:5])}. Make them equal."
            )
