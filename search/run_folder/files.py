"""Which files the devices of a run share, by their names, and where they find them.

What workers read and write are folders with names: ``data``, ``supernet``, ``trials/7``. In a
`SharedFolder` they lie in the run's folder, at the same path on all nodes. Where nodes share no
folder, a `search.run_folder.storage.Storage` keeps them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

DATA = "data"
SUPERNET = "supernet"
# Weights that backbones begin with, where the run was given some.
START = "start"
# The trained network that a graft began with.
TEACHER = "teacher"
# And the parts that learned from it, a folder for each trainer.
LIBRARY = "library"
# The trained network that the networks of another run learn from.
MENTOR = "mentor"


class StorageError(Exception):
    """The run's storage does not answer: the run stops, and goes on when it does."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who works on the files of a storage, or on a record that copies of a folder share.

    Attributes:
        run: The token of the run, which a copy of its folder has as well.
        folder: Of the run.
        session: Drawn whenever a process goes on with the run; empty for the one that made it.
    """

    run: str
    folder: str = ""
    session: str = ""


class Files(Protocol):
    """The folders of a run as the node that asks sees them; small and picklable."""

    def check(self, *, is_new: bool, token: str = "") -> None:
        """Write, read and remove a small file.

        Args:
            is_new: Whether a new run asks, which needs a storage that is empty or its own.
            token: Of that run.

        Raises:
            ValueError: If that fails, or if a new run would find the files of another one.
        """

    def claim(self, owner: Owner) -> None:
        """Make this the storage of one run for ever; of several that ask at once, one gets it.

        Raises:
            ValueError: If it is another run's.
        """

    def owner(self) -> Owner | None:
        """Tell who worked on these files last, where that is kept."""

    def enter(self, owner: Owner) -> None:
        """Write down who works on these files from now on."""

    def disown(self) -> None:
        """Give up what `claim` got, for a run that never began."""

    def has(self, name: str) -> bool:
        """Tell whether something was published under a name."""

    def fetch(self, name: str) -> Path:
        """Return a folder of this node with what was published last, whole and nothing else.

        If nothing was, the folder is not there; the caller may make it. It stays as it is until
        something newer was published and is fetched on this node.
        """

    def publish(self, name: str, folder: Path) -> None:
        """Let all nodes see the files of a folder under a name, instead of those before."""

    def forget(self, name: str) -> None:
        """Remove this node's copy, where it has its own."""

    def remove(self, name: str) -> None:
        """Remove what was published under a name."""


@dataclass(frozen=True, slots=True)
class SharedFolder:
    """The run's folder, which all nodes see at the same path: nothing is copied."""

    folder: Path

    def check(self, *, is_new: bool, token: str = "") -> None:
        """Nothing to do: a folder that cannot be written is found out when the run is made."""

    def claim(self, owner: Owner) -> None:
        """Nothing to do: who has the run's folder has this."""

    def owner(self) -> None:
        """Nobody but who has the run's folder."""

    def enter(self, owner: Owner) -> None:
        """Nothing to do."""

    def disown(self) -> None:
        """Nothing to do."""

    def has(self, name: str) -> bool:
        """See `Files`."""
        return (self.folder / name).is_dir()

    def fetch(self, name: str) -> Path:
        """See `Files`."""
        return self.folder / name

    def publish(self, name: str, folder: Path) -> None:
        """Nothing to do: all nodes see what is written."""

    def forget(self, name: str) -> None:
        """Nothing to do: there is no copy."""

    def remove(self, name: str) -> None:
        """See `Files`."""
        place = self.folder
        for part in PurePosixPath(name).parts:
            place /= part
            if place.is_symlink():  # what it points to is not the run's
                return
        shutil.rmtree(place, ignore_errors=True)
