"""Reading files of strangers: regular ones only, and none that is larger than it may be."""

from __future__ import annotations

import os
import stat

from supernet.data.decoding import HEAD_BYTES, MAX_FILE_BYTES, shown


def read_regular(path: bytes, *, limit: int = MAX_FILE_BYTES) -> bytes:
    """Read a regular file; pipes, sockets and devices are not even opened.

    Raises:
        ValueError: If it is gone, cannot be read, is something else, or is larger than the limit.
    """
    name = shown(path.decode("utf-8", "surrogateescape"))
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"Only regular files are read, {name} is none. Remove it.")
        if found.st_size > limit:
            raise ValueError(
                f"A file may have at most {limit:,} bytes, {name} has {found.st_size:,}. Remove it."
            )
        # If a pipe has taken its place by now, opening does not wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(found.st_size)
    except OSError as error:
        raise ValueError(f"Cannot read {name} ({error.strerror}). Put it back.") from error


def size_of_regular(path: bytes) -> int:
    """Return the bytes of a file without reading it.

    Raises:
        ValueError: If it is gone.
    """
    try:
        return os.stat(path).st_size
    except OSError as error:
        name = shown(path.decode("utf-8", "surrogateescape"))
        raise ValueError(f"Cannot read {name} ({error.strerror}). Put it back.") from error


def check_regular(root: bytes) -> None:
    """Look through a folder that other projects' code is going to read.

    Raises:
        ValueError: If there is a pipe, socket or device: who opens one may wait for ever.
    """
    waiting, entered = [root], set[tuple[int, int]]()
    while waiting:
        folder = waiting.pop()
        try:
            found = os.stat(folder)
            if (found.st_dev, found.st_ino) in entered or not stat.S_ISDIR(found.st_mode):
                continue
            entered.add((found.st_dev, found.st_ino))
            with os.scandir(folder) as entries:
                irregular = [entry.path for entry in entries if not _is_regular(entry, waiting)]
        except OSError:
            continue  # what cannot be looked at, its reader cannot open
        if irregular:
            name = shown(min(irregular).decode("utf-8", "surrogateescape"))
            raise ValueError(f"Only regular files are read, {name} is none. Remove it.")


def _is_regular(entry: os.DirEntry[bytes], folders: list[bytes]) -> bool:
    """Tell whether something may be opened; a folder is put down to be looked at."""
    if entry.is_file():
        return True
    if entry.is_dir():
        folders.append(entry.path)
        return True
    return entry.is_symlink() and not os.path.exists(entry.path)  # it leads nowhere


def read_head(path: bytes) -> bytes:
    """Read the first bytes of a regular file; nothing where that is not possible."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
