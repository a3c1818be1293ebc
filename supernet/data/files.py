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


def read_head(path: bytes) -> bytes:
    """Read the first bytes of a regular file; nothing where that is not possible."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""
