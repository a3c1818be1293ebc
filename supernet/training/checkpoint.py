"""Checkpoints that are whole or absent: written to a side folder, then renamed in one step."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_NAME = re.compile(r"checkpoint-\d{5,}")


def write_checkpoint(folder: Path, epochs_done: int, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, make it the latest checkpoint, remove the earlier ones.

    Whatever kills the process on the way leaves the earlier checkpoint or the new one.
    """
    final = folder / f"checkpoint-{epochs_done:05d}"
    partial = folder / f"{final.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    os.replace(partial, final)
    for path in folder.glob("checkpoint-*"):
        if path != final:
            shutil.rmtree(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a folder, or None."""
    complete = [path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a folder, complete or not."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def write_text(path: Path, text: str) -> None:
    """Write a file that is the old one or the new one, and nothing between."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
