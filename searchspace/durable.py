"""Writing that a power cut leaves as it was before or as it is meant to be, and nothing between.

A rename may reach the disk before what the renamed file holds, so everything is synced first, and
the folder after it. What replaces something old removes that only then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What file systems say that cannot sync a folder; they do it with its files.
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, in place of an older one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in place of an older one."""
    partial = path.with_name(f"{path.name}.partial")
    # A link that somebody put there would be written through.
    partial.unlink(missing_ok=True)
    try:
        partial.write_bytes(content)
        replace(partial, path)
    except OSError:
        # On a full disk half a file would take the room of what is to be written next.
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; on an error remove those that were made, where empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def replace(partial: Path, final: Path) -> None:
    """Rename a file (over an older one) or a folder with all that is in it."""
    sync(partial)
    os.replace(partial, final)
    sync_folder(final.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            if not entry.is_symlink():
                sync(entry)
        sync_folder(path)
        return
    # Not for reading: network file systems sync what the descriptor may write.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can say so."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDERS:
            raise
    finally:
        os.close(descriptor)
