"""How a user's files are read and written: what is wrong with one becomes one message.

A reader raises what its format raises: text that is not UTF-8, JSON that ends early, a checkpoint
that torch cannot unpickle. `reading` stands around such a reader, and nowhere else: an error of
that kind in our own code is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What any reader may raise on a file that is not what it should be.
_READER_ERRORS = (OSError, ValueError, EOFError, MemoryError, OverflowError, RecursionError)


@contextmanager
def reading(
    path: Path, what: str, *, remedy: str, errors: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn what a reader raises into one message.

    Args:
        path: The file that is read in the block.
        what: What it should be, with its article: ``a checkpoint``.
        remedy: A sentence that says what to do.
        errors: What this reader raises besides, e.g. ``UnpicklingError``.

    Raises:
        ValueError: Instead of these; it says the file, the rule, the reason and the remedy.
    """
    expected: tuple[type[Exception], ...] = (*_READER_ERRORS, *errors)
    try:
        yield
    except expected as error:
        raise ValueError(f"{path} cannot be read as {what}: {_reason(error)}. {remedy}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the refusal of a file system into one message.

    Raises:
        ValueError: Instead of an `OSError` in the block.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {_reason(error)}. Name a file in a folder that is there "
            "and that this user may write to."
        ) from error


def read_object(path: Path, what: str, *, remedy: str) -> dict[str, object]:
    """Read a JSON file whose content is an object.

    Raises:
        ValueError: If it is not one; see `reading`.
    """
    with reading(path, what, remedy=remedy):
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError(f"it must be a JSON object, got {data!r:.60}")
    return data


def check_output(path: Path | None) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        ValueError: If there is no such folder, the name is one of a folder or too long, or this
            user may not write there.
    """
    if path is None:
        return
    with writing(path):
        exists = _exists(path)
        if exists and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}")
        if not os.access(path if exists else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_output_folder(path: Path | None) -> None:
    """Refuse a folder that could not be made or written to; see `check_output`."""
    if path is None:
        return
    with writing(path):
        there = path
        while not _exists(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is not a folder")
        if not os.access(there, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _exists(path: Path) -> bool:
    """Tell whether there is such a file; what a file system cannot even look for is an error."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _reason(error: Exception) -> str:
    """Say in a few words what a reader found, without the name of the file."""
    match error:
        case OSError(strerror=str(text)):
            return text
        case UnicodeDecodeError():
            return f"it is not UTF-8 text (byte {error.start})"
        case json.JSONDecodeError():
            return f"it is not JSON, line {error.lineno}: {error.msg}"
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "it asks for more memory than there is"
    words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} ..."
