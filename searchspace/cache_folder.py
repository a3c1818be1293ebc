"""The user's cache folder: where it is, and that nobody else may write to it."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

NAME = "mixer-search"


def own_cache_folder() -> Path:
    """Make ``mixer-search`` in ``$XDG_CACHE_HOME``, by default in ``~/.cache``.

    Raises:
        OSError: If there is none that only this user can write.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # such a value is to be ignored, says the standard
        try:
            root = Path.home() / ".cache"
        except RuntimeError as error:  # no HOME, and a user that the system does not know
            raise OSError(f"there is no cache folder ({error})") from error
    if not root.is_absolute():
        raise OSError(f"the cache folder {root} is no absolute path")
    root.mkdir(parents=True, exist_ok=True)
    return _own(root / NAME)


def own_temporary_folder() -> Path:
    """Make a folder among the temporary ones, the same for all processes of this user.

    Raises:
        OSError: If it is somebody else's.
    """
    return _own(Path(tempfile.gettempdir()).absolute() / f"{NAME}-{os.geteuid()}")


def _own(folder: Path) -> Path:
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    entry = folder.lstat()
    is_own = stat.S_ISDIR(entry.st_mode) and entry.st_uid == os.geteuid()
    if not is_own or entry.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{folder} is a link, or others can write it")
    if stat.S_IMODE(entry.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder
