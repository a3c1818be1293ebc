"""The claim on a folder or record: a lock that ends with its process, however that ended."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

# Who only looks whether there is a claim holds the lock for a moment.
LOOK_SECONDS = 0.3
_TOKEN = re.compile(r"[0-9a-f]{32}\n")


@dataclass(frozen=True, slots=True)
class Claim:
    """A lock that this process holds, on a file that says whose it is.

    Attributes:
        path: Of the file.
        token: What the file has held since it was made; it names the run.
    """

    path: Path
    token: str
    _descriptor: int

    def release(self) -> None:
        """Let others take it."""
        os.close(self._descriptor)

    def remove(self) -> None:
        """Remove the file; whoever waits for its lock finds that out."""
        self.path.unlink(missing_ok=True)


def take_claim(path: Path) -> Claim | None:
    """Take the lock of a file, which is made if it is missing, or return None if another has it.

    Raises:
        ValueError: If the file is a link, cannot be written, or its disk has no locks.
    """
    deadline = time.monotonic() + LOOK_SECONDS
    while True:
        descriptor = _open(path)
        try:
            if _is_locked(descriptor, path) and _is_file_of(descriptor, path):
                return Claim(path, _token(descriptor, path), descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        # Whoever had it before has removed the file, or still has it.
        os.close(descriptor)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.01)


def is_claimed(path: Path) -> bool:
    """Tell whether some process holds the lock of a file; nothing is written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def has_token(path: Path) -> bool:
    """Tell whether a file is one that `take_claim` has made."""
    try:
        return bool(_TOKEN.fullmatch(path.read_text("ascii")))
    except (OSError, ValueError):
        return False


def _open(path: Path) -> int:
    try:
        # Through a link, somebody else's file would be locked and written.
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(
                f"{path} is a link, and a run writes only inside its own folder. Remove the link."
            ) from error
        raise ValueError(
            f"{path} cannot be written ({error.strerror}). Only who may write into the folder of "
            "a run can go on with it; copy it to go on with the copy."
        ) from error


def _is_locked(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ValueError(
            f"{path} cannot be locked ({error.strerror}). Put the run on a disk that has locks."
        ) from error
    return True


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _token(descriptor: int, path: Path) -> str:
    text = os.pread(descriptor, 64, 0).decode("ascii", "replace")
    if not text:
        text = f"{uuid.uuid4().hex}\n"
        try:
            os.pwrite(descriptor, text.encode(), 0)
            os.fsync(descriptor)
        except OSError:
            # On a full disk an empty file has room, and would be found in the way.
            path.unlink(missing_ok=True)
            raise
    elif not _TOKEN.fullmatch(text):
        raise ValueError(
            f"{path} was not written by this program, which would keep its lock there. Move it."
        )
    return text.strip()
