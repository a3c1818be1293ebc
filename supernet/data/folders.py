"""An ImageFolder or a tar of one.

Both hold ``train/<class>/.../<image>`` and likewise ``val/`` or ``test/`` or both. A tar is read in
passes from front to back and never unpacked.
"""

from __future__ import annotations

import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from supernet.data.source import Source, decode_image
from supernet.data.splits import IntArray

POOL_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TAR_ERRORS = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError)


def open_folder(root: Path) -> Source:
    """List the images of a folder; links are followed, hidden and other files are left out.

    Raises:
        ValueError: If splits or classes are missing, empty or different.
    """
    files: list[str] = []
    folders: list[str] = []
    entries = sorted(entry.name for entry in root.iterdir())
    for pool_folder in (name for name in entries if name in POOL_OF_FOLDER):
        # Subsets of large sets are often folders of links.
        for parent, subfolders, names in os.walk(root / pool_folder, followlinks=True):
            relative = Path(parent).relative_to(root).as_posix()
            folders.extend(f"{relative}/{name}" for name in subfolders)
            files.extend(f"{relative}/{name}" for name in names)

    def read(names: Sequence[str], positions: IntArray) -> Iterator[tuple[int, Image.Image]]:
        for position in positions.tolist():
            path = root / names[position]
            yield position, decode_image(path, name=str(path))

    return _arrange(files, folders=folders, entries=entries, path=root, read=read)


def open_tar(path: Path) -> Source:
    """List the images of a tar, whose contents may lie in one top folder.

    Raises:
        ValueError: If it is no tar or truncated; if splits or classes are missing, empty or
            different.
    """
    offsets: dict[str, int] = {}  # where a file's header is; the last one of a name counts
    folders: list[str] = []
    can_seek = _is_plain(path)
    for member in _members(path):
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if member.isdir():
            folders.append(name)
        elif member.isreg() or member.islnk() or member.issym():
            offsets[name] = member.offset
            can_seek = can_seek and member.isreg()  # a link is found by reading them all
    top = _top_folder((*offsets, *folders))
    offsets = {name.removeprefix(top): offset for name, offset in offsets.items()}
    folders = [name.removeprefix(top) for name in folders]

    def read(names: Sequence[str], positions: IntArray) -> Iterator[tuple[int, Image.Image]]:
        wanted = {offsets[names[position]]: position for position in positions.tolist()}
        with _open_members(path) as tar:
            for member in _members_at(tar, sorted(wanted)) if can_seek else tar:
                if member.offset in wanted:
                    yield wanted[member.offset], _decode_member(tar, member)

    entries = sorted({name.split("/")[0] for name in (*offsets, *folders) if name})
    source = _arrange(list(offsets), folders=folders, entries=entries, path=path, read=read)
    return replace(source, is_random_access=can_seek)


def _arrange(
    files: Sequence[str],
    *,
    folders: Sequence[str],
    entries: Sequence[str],
    path: Path,
    read: Callable[[Sequence[str], IntArray], Iterator[tuple[int, Image.Image]]],
) -> Source:
    """Sort paths of the form ``train/<class>/.../<image>`` into pools and classes."""
    pools = [POOL_OF_FOLDER[name] for name in entries if name in POOL_OF_FOLDER]
    if "train" not in pools or not {"val", "test"} & set(pools) or len(pools) > len(set(pools)):
        raise ValueError(
            "Data must have one train/ and one val/ or test/ or both, each with one folder of "
            f"images per class; {path} has: {', '.join(entries[:10]) or 'nothing'}. Give the "
            "folder that holds train/."
        )
    found = {pool: _by_class(pool, files, folders) for pool in pools}
    _check_classes(found, path)
    class_names = tuple(sorted(found["train"]))
    listing = sorted(
        (pool, file, label)
        for pool, classes in found.items()
        for label, class_name in enumerate(class_names)
        for file in classes[class_name]
    )
    names = [file for _, file, _ in listing]
    pool_of = np.array([pool for pool, _, _ in listing])
    return Source(
        name=path.name.split(".")[0] or str(path),
        class_names=class_names,
        allows_flip=True,
        names=names,
        labels=np.array([label for _, _, label in listing], dtype=np.int64),
        pools={pool: np.flatnonzero(pool_of == pool) for pool in sorted(found)},
        read=lambda positions: read(names, positions),
    )


def _by_class(pool: str, files: Sequence[str], folders: Sequence[str]) -> dict[str, list[str]]:
    """Map the class folders of a pool to their images; those without any are there too."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        parts = folder.split("/")
        if POOL_OF_FOLDER.get(parts[0]) == pool and len(parts) == 2 and not _is_hidden(folder):
            found[parts[1]] = []
    for file in files:
        parts = file.split("/")
        is_image = file.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(file)
        if POOL_OF_FOLDER.get(parts[0]) == pool and len(parts) > 2 and is_image:
            found.setdefault(parts[1], []).append(file)
    return found


def _check_classes(found: Mapping[str, Mapping[str, Sequence[str]]], path: Path) -> None:
    for pool, classes in found.items():
        empty = sorted(name for name, files in classes.items() if not files)
        if empty or not classes:
            where = ", ".join(f"{pool}/{name}" for name in empty[:5]) or f"{pool}/"
            raise ValueError(
                f"Every class folder must hold images ({' '.join(IMAGE_SUFFIXES)}); there are none "
                f"in {where} of {path}. Add images or remove the folder."
            )
        if different := sorted(set(classes) ^ set(found["train"])):
            raise ValueError(
                f"All splits must have the same class folders; {pool}/ and train/ of {path} "
                f"differ in: {', '.join(different[:5])}. Make them equal."
            )


def _open_members(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:*")
    except TAR_ERRORS as error:
        raise ValueError(
            f"Data that is a file must be a tar, plain or compressed; {path} is none. Give a tar "
            "of an ImageFolder or the folder itself."
        ) from error


def _is_plain(path: Path) -> bool:
    """Tell whether a tar is not compressed, so that its members can be sought."""
    try:
        with tarfile.open(path, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _members_at(tar: tarfile.TarFile, offsets: Iterable[int]) -> Iterator[tarfile.TarInfo]:
    """Read the members whose headers are at these offsets, and nothing between them."""
    assert tar.fileobj is not None
    for offset in offsets:
        tar.fileobj.seek(offset)
        yield tarfile.TarInfo.fromtarfile(tar)


def _members(path: Path) -> list[tarfile.TarInfo]:
    damaged = f"The tar {path} is truncated or damaged. Copy or download it again."
    with _open_members(path) as tar:
        try:
            members = tar.getmembers()
            check_end(tar, path)
        except TAR_ERRORS as error:
            raise ValueError(damaged) from error
    return members


def check_end(tar: tarfile.TarFile, path: Path) -> None:
    """Check that a tar was read to its end: tarfile takes a damaged header for it.

    Raises:
        tarfile.TarError: If the blocks of zeros that end a whole archive are not there.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"The tar {path} is truncated or damaged")


def _top_folder(names: Iterable[str]) -> str:
    """Return the folder, with its slash, that everything in a tar may lie in; else nothing."""
    tops = {name.split("/")[0] for name in names if "/" in name and not _is_hidden(name)}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & set(POOL_OF_FOLDER) else ""


def _decode_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Image.Image:
    name = f"{member.name} in {tar.name!s}"
    try:
        file = tar.extractfile(member)
    except KeyError as error:
        raise ValueError(f"The link {name} leads nowhere. Remove it.") from error
    if file is None:
        raise ValueError(f"The link {name} does not lead to a file. Remove it.")
    return decode_image(io.BytesIO(file.read()), name=name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
