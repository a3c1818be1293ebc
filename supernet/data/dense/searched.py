"""The data of a task as a search uses them: a part to learn from, a part to judge by.

What `supernet.data.image_data` is to classification. Images stay where they are and are read when
they are needed; a tar is unpacked into the run's folder. The test split is for transfers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.reading import read_json
from searchspace import durable
from supernet.data.arrays import locked
from supernet.data.dense.annotated import DenseData, DenseSplit, nothing_in
from supernet.data.dense.find import open_dense_data, unpacked_folder

TASK_FILE = "task.json"
UNPACKED = "unpacked"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchedData:
    """Data of a task, split for a search.

    Attributes:
        dense: All of it.
        learned: The training images to learn from.
        judged: Those that networks are judged by during the search.
    """

    dense: DenseData
    learned: DenseSplit = field(repr=False)
    judged: DenseSplit = field(repr=False)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.dense.class_names)

    @property
    def sizes(self) -> Mapping[str, int]:
        """The number of images of train, search and test."""
        return {
            "train": len(self.learned),
            "search": len(self.judged),
            "test": len(self.dense.test),
        }

    def lines(self) -> list[str]:
        """Say how many images there are, and what was left out."""
        counts = [f"{split}: {count:,} images" for split, count in self.sizes.items()]
        classes = ", ".join(self.dense.class_names[:12])
        return [*counts, f"{self.num_classes} classes: {classes}", *self.dense.remarks]


def prepare_searched(source: str, task: str, *, seed: int, folder: Path) -> SearchedData:
    """Check the data of a task, and write down where they are.

    Args:
        source: A folder, or a tar of one, which is unpacked.
        task: ``instance``, ``detection`` or ``semantic``.
        seed: Of the split.
        folder: Of the run's data.

    Raises:
        ValueError: If the data cannot be used as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        where = unpacked_folder(source, folder / UNPACKED).resolve()
    found = open_dense_data(str(where), task, unpack_to=folder)
    found.check_files()
    is_own = where.is_relative_to(folder.resolve())
    stored = {
        "source": str(Path(source).resolve()),
        "task": task,
        "seed": seed,
        "images": str(where.relative_to(folder.resolve()) if is_own else where),
        "fingerprint": found.fingerprint,
        "classes": len(found.class_names),
    }
    durable.write_text(folder / TASK_FILE, json.dumps(stored, indent=1) + "\n")
    return _split(found, seed)


def open_searched(folder: Path) -> SearchedData:
    """Open what `prepare_searched` left.

    Raises:
        ValueError: If the folder does not hold data of a task, or they are gone.
    """
    stored = _read(folder)
    found = open_dense_data(str(folder / stored["images"]), stored["task"], unpack_to=folder)
    return _split(found, stored["seed"])


def searched_classes(folder: Path) -> int:
    """Return the number of classes; nothing else is read.

    Raises:
        ValueError: If the folder does not hold data of a task.
    """
    found: int = _read(folder)["classes"]
    return found


def check_searched(folder: Path) -> SearchedData:
    """Open it, after a look whether images and annotations are what they were.

    Raises:
        ValueError: If they are not.
    """
    found, stored = open_searched(folder), _read(folder)
    known = found.dense.fingerprint, found.num_classes
    if known != (stored["fingerprint"], stored["classes"]):
        raise ValueError(
            f"The images or annotations in {stored['source']} are not those that the run was begun "
            "with. Put them back, or start a new run."
        )
    return found


def _read(folder: Path) -> dict[str, Any]:
    stored = read_json(folder / TASK_FILE) if (folder / TASK_FILE).is_file() else None
    kinds = {"source": str, "task": str, "seed": int, "images": str, "fingerprint": str}
    kinds |= {"classes": int}
    if not isinstance(stored, dict) or not all(
        isinstance(stored.get(name), kind) for name, kind in kinds.items()
    ):
        raise ValueError(
            f"{folder} does not hold the data of a task ({TASK_FILE} is missing or damaged). "
            "Restore it from a copy, or start a new run."
        )
    return stored


def _split(found: DenseData, seed: int) -> SearchedData:
    learned, judged = found.held_out(seed)
    if not len(learned) or not len(judged):
        raise ValueError(
            f"A search learns from a part of the training images and judges by the others: it "
            f"needs at least 2, got {len(found.train)} in {found.name}. Give more."
        )
    if found.task != "semantic":
        for part, use in ((learned, "to learn from"), (judged, "to judge a search by")):
            if not any(image.has_objects for image in part.images):
                raise nothing_in(part, found.name, use)
    return SearchedData(dense=found, learned=learned, judged=judged)
