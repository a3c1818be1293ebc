"""Is the disk full? Libraries word it each in its own way."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

# With less, writing a checkpoint or the record is bound to fail.
LEAST_FREE_BYTES = 4 * 2**20


class FullDiskError(Exception):
    """The run's disk is full: the run stops, and goes on when there is space."""


def is_disk_full(error: BaseException, folder: Path) -> bool:
    """Tell whether an error comes from a full disk (or a used-up quota) under ``folder``."""
    if isinstance(error, FullDiskError):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error).lower()
    if "no space left on device" in text or "disk is full" in text or "quota exceeded" in text:
        return True
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free < LEAST_FREE_BYTES
