"""A tar of an ImageFolder, plain or compressed; it is read from front to back and never unpacked.

A tar is listed by its headers. What they announce is checked before anything is read: a few
kilobytes can announce terabytes.
"""

from __future__ import annotations

import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from supernet.data.decoding import HEAD_BYTES, MAX_FILE_BYTES, shown
from supernet.data.folders import (
    POOL_OF_FOLDER,
    Found,
    Member,
    arrange,
    class_of,
    pools_of,
    takes_file,
)
from supernet.data.skipped import NO_FILE, REPLACED, clutter_reason, has_image_suffix
from supernet.data.source import Fetched, Source
from supernet.data.splits import IntArray

# tarfile raises these and more on what is no tar; ValueError and the like where numbers are wrong.
TAR_ERRORS = (
    *(tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError, LookupError),
    *(OverflowError, RecursionError),
)
# Images are compressed already; what shrinks more than that is made to fill disks and memory.
MAX_RATIO = 100
FREE_BYTES = 2**26
# Names and the like, which tarfile reads into memory.
MAX_EXTENSION_BYTES = 2**20
_EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class _Member:
    """What a header says of a file: where its content is, or where it leads as a link.

    Attributes:
        head: The first bytes, where the name does not say whether it is an image.
    """

    offset: int
    size: int
    target: str | None = None
    head: bytes = b""


class _CheckedInfo(tarfile.TarInfo):
    """A header that cannot announce more than is read of it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _CheckedInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _EXTENSIONS and info.size > MAX_EXTENSION_BYTES):
            raise tarfile.ReadError(f"a header announces {info.size:,} bytes")
        return info


def open_tar(path: Path) -> Source:
    """List the images of a tar, whose contents may lie in one top folder.

    Raises:
        ValueError: If it is no tar, truncated, or announces too much; if splits or classes are
            missing, empty or different; if a link leads nowhere.
    """
    found = Found()
    files, folders = _list(path, found)
    top = _top_folder((*files, *folders))
    entries = sorted(
        {name.removeprefix(top).split("/")[0] for name in (*files, *folders) if name != top[:-1]}
    )
    pools = {folder: pool for pool, folder in pools_of(entries, shown(str(path))).items()}
    found.classes = {pool: {} for pool in pools.values()}
    _take_classes([name.removeprefix(top) for name in folders], pools, found)
    places: dict[str, _Member] = {}
    for name, member in files.items():
        short = name.removeprefix(top)
        pool = pools.get(short.split("/")[0])
        label = None if pool is None else class_of(short, found.skipped)
        if pool is None or label is None:
            continue
        if member is None:
            found.skipped.add(NO_FILE, short)
            continue
        place = _followed(name, files, path)
        if takes_file(short, partial(bytes, place.head), found.skipped):
            found.classes[pool].setdefault(label, [])
            found.take(Member(pool, label, short), place.offset)
            places[short] = place
    fetch = partial(_fetch, path, top, places)
    source = arrange(found, path, fetch, lambda name: places[name].size)
    return replace(source, is_random_access=_is_plain(path))


def _fetch(
    path: Path,
    top: str,
    places: Mapping[str, _Member],
    names: Sequence[str],
    positions: IntArray,
) -> Iterator[Fetched]:
    # In the order of the stream, so that a compressed tar is read once.
    members = sorted(
        (places[names[p]].offset, places[names[p]].size, p) for p in positions.tolist()
    )
    with open_checked(path, "r:*") as tar:
        assert tar.fileobj is not None
        try:
            for offset, size, position in members:
                tar.fileobj.seek(offset)
                content = tar.fileobj.read(size)
                yield Fetched(position, content, f"{top}{names[position]} in {path}")
        except TAR_ERRORS as error:
            raise _damaged(path, error) from error


def open_checked(path: Path, mode: str) -> tarfile.TarFile:
    """Open a tar so that its headers cannot announce more than memory holds.

    Raises:
        ValueError: If it is none.
    """
    try:
        return tarfile.open(  # type: ignore[call-overload]
            path, mode, tarinfo=_CheckedInfo, encoding="utf-8", errors="surrogateescape"
        )
    except TAR_ERRORS as error:
        raise ValueError(
            f"Data that is a file must be a tar, plain or compressed; {shown(str(path))} is none. "
            "Give a tar of an ImageFolder or the folder itself."
        ) from error


def members_of(tar: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Go through the headers of a tar to its end, with none kept.

    Raises:
        tarfile.TarError: If it ends early, or its members unpack to far more than they take.
    """
    allowed = FREE_BYTES + MAX_RATIO * path.stat().st_size
    announced = 0
    while (member := tar.next()) is not None:
        announced += 0 if member.issparse() else member.size
        if announced > allowed:
            raise tarfile.ReadError(f"it announces {announced:,} bytes or more")
        yield member
        tar.members.clear()  # type: ignore[attr-defined]
    check_end(tar, path)


def check_end(tar: tarfile.TarFile, path: Path) -> None:
    """Check that a tar was read to its end: tarfile takes a damaged header for it.

    Raises:
        tarfile.TarError: If the blocks of zeros that end a whole archive are not there.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")


def check_size(member: tarfile.TarInfo, limit: int) -> None:
    """Refuse a member before it is read, if it is larger than the limit or stored with holes.

    Raises:
        tarfile.TarError: If it is.
    """
    if member.size > limit or member.issparse():
        holes = ", with holes" if member.issparse() else ""
        raise tarfile.ReadError(
            f"{shown(member.name)} announces {member.size:,} bytes{holes}; allowed are {limit:,}"
        )


def _list(path: Path, found: Found) -> tuple[dict[str, _Member | None], set[str]]:
    """Return the files by name, None for what is neither file nor link, and the folders."""
    files: dict[str, _Member | None] = {}
    folders: set[str] = set()
    with open_checked(path, "r:*") as tar:
        try:
            for info in members_of(tar, path):
                name = _clean(info.name)
                if info.isdir():
                    folders.add(name)
                    continue
                if name in files:
                    found.skipped.add(REPLACED, name)
                files[name] = _member(tar, info)
        except TAR_ERRORS as error:
            raise _damaged(path, error) from error
    return files, folders


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"The tar {shown(str(path))} is truncated or damaged ({error}). Copy or download it again."
    )


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member | None:
    if info.islnk():
        return _Member(0, 0, target=_clean(info.linkname))
    if info.issym():
        beside = posixpath.join(posixpath.dirname(_clean(info.name)), info.linkname)
        return _Member(0, 0, target=posixpath.normpath(beside))
    if not info.isreg():
        return None
    if has_image_suffix(info.name):
        check_size(info, MAX_FILE_BYTES)
    # A file with holes or of such a size is no image without a suffix.
    if info.issparse() or info.size > MAX_FILE_BYTES:
        return _Member(info.offset_data, 0)
    assert tar.fileobj is not None
    tar.fileobj.seek(info.offset_data)
    head = tar.fileobj.read(min(info.size, HEAD_BYTES))
    return _Member(info.offset_data, info.size, head=head)


def _followed(name: str, files: Mapping[str, _Member | None], path: Path) -> _Member:
    """Return the file that a name stands for, through links inside of the tar."""
    target: str | None = name
    for _ in range(_MAX_LINKS):
        member = files.get(target or "")
        if member is not None and member.target is None:
            return member
        target = None if member is None else member.target
    raise ValueError(
        f"The link {shown(name)} in {shown(str(path))} leads nowhere in it. Remove it."
    )


def _take_classes(folders: Iterable[str], pools: Mapping[str, str], found: Found) -> None:
    """Note the class folders, so that one without images is missed."""
    for folder in folders:
        parts = folder.split("/")
        if parts[0] in pools and len(parts) == 2 and clutter_reason(parts[1]) is None:
            found.classes[pools[parts[0]]][parts[1]] = []


def _clean(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_plain(path: Path) -> bool:
    """Tell whether a tar is not compressed, so that its members can be sought."""
    try:
        with open_checked(path, "r:"):
            return True
    except ValueError:
        return False


def _top_folder(names: Iterable[str]) -> str:
    """Return the folder, with its slash, that everything in a tar may lie in; else nothing."""
    tops = {name.split("/")[0] for name in names if "/" in name}
    tops = {name for name in tops if clutter_reason(name) is None}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & set(POOL_OF_FOLDER) else ""
