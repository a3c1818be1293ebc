"""Checkpoints that are whole or absent: written to a side folder, synced, renamed in one step.

Beside its files lies the SHA-256 of each, so that one whose bits have changed is not gone on with.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from searchspace import durable

CHECKSUMS_FILE = "checksums.json"

_NAME = re.compile(r"checkpoint-\d{5,}")
_OURS = re.compile(r"checkpoint-\d{5,}(\.partial)?")


def write_checkpoint(folder: Path, epochs_done: int, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, make it the latest checkpoint, remove the earlier ones.

    Whatever kills the process or the machine on the way leaves the earlier checkpoint or the new
    one.
    """
    final = folder / checkpoint_name(epochs_done)
    partial = folder / f"{final.name}.partial"
    _remove(partial)
    partial.mkdir(parents=True)
    write(partial)
    sums = checksums(partial, sorted(path.name for path in partial.iterdir()))
    (partial / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    _remove(final)  # a damaged one: what is whole is never written again
    durable.replace(partial, final)
    for path in _checkpoints(folder):
        if path != final:
            _remove(path)


def checkpoint_name(epochs_done: int) -> str:
    """Name the checkpoint behind so many epochs, or steps."""
    return f"checkpoint-{epochs_done:05d}"


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a folder, or None."""
    complete = [path for path in _checkpoints(folder) if _NAME.fullmatch(path.name)]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a folder, complete or not."""
    for path in _checkpoints(folder):
        _remove(path)


def damage(folder: Path) -> str | None:
    """Say what is wrong with the files of a checkpoint; None if they are as they were written."""
    try:
        sums = json.loads((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_FILE}: {error}"
    if not isinstance(sums, dict) or not sums:
        return f"{CHECKSUMS_FILE} lists no files"
    return changed_file(folder, sums)


def checksums(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Compute the SHA-256 of files of a folder, by their names."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def changed_file(folder: Path, sums: Mapping[str, str]) -> str | None:
    """Name a file that is not what its checksum says, and why; None if all are.

    A name that leads out of the folder is not followed.
    """
    for name, expected in sums.items():
        path = folder / name
        if not is_plain(name):
            return f"{name!r} is not the name of a file in it"
        if path.is_symlink() or not path.is_file():
            return f"{name} is missing or not a regular file"
        try:
            (found,) = checksums(folder, [name]).values()
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != expected:
            return f"{name} is not what was written (its checksum differs)"
    return None


def is_plain(name: object) -> bool:
    """Tell whether a name is that of a file in a folder: a text without separators."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not {"/", "\\", "\0", os.sep} & set(name)
    )


def write_text(path: Path, text: str) -> None:
    """Write a file that is the old one or the new one, and nothing between."""
    durable.write_text(path, text)


def _checkpoints(folder: Path) -> list[Path]:
    """List the folders that `write_checkpoint` has made; what is a link was made by others."""
    return [
        path
        for path in folder.glob("checkpoint-*")
        if _OURS.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
