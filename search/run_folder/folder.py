"""The folder of a run: everything that is needed to resume, inspect and retrain.

``record.db`` (the truth; or ``record.conninfo``, where to find it on PostgreSQL), ``space.yaml``,
``data/`` (decoded images), ``supernet/`` (checkpoint), ``trials/`` (checkpoints of unfinished
trainings), ``study.db`` (Optuna's copy of the results), ``report.html``, ``front.png``,
``retrain/``. With a storage (`search.run_folder.storage`) the checkpoints lie there, and a copy of
the data.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from search.budget import parse_budget
from search.plan import SHARES
from search.record.record import Record
from search.record.schema import Place
from search.run_folder.settings import RunSettings
from search.run_folder.storage import DATA, SUPERNET, Files, open_files
from search.scheduling.tasks import StorageError
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

# To look at a run needs no torch: what reads images and recipes is imported where it is used.
if TYPE_CHECKING:
    from supernet.data import ImageData

RECORD = "record.db"
# Where the record lies instead, as libpq reads it; without a password.
ADDRESS = "record.conninfo"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An open run: its folder, record and settings."""

    folder: Path
    record: Record
    settings: RunSettings

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def files(self) -> Files:
        """Where the devices find data and checkpoints."""
        return open_files(self.settings.storage, self.folder)

    def data(self) -> ImageData:
        """Open the prepared images."""
        from supernet.data import open_data

        return open_data(self.folder / DATA)

    def share_data(self) -> None:
        """Let the devices find the prepared images, unless they do already."""
        if not self.files.has(DATA):
            self.files.publish(DATA, self.folder / DATA)

    def supernet_folder(self) -> Path:
        """Return the folder of the supernet's checkpoint, copied from the storage if need be.

        Raises:
            ValueError: If the storage does not answer.
        """
        try:
            return self.files.fetch(SUPERNET)
        except StorageError as error:
            raise ValueError(str(error)) from error

    def space(self) -> SearchSpace:
        """Read the run's space, with the classes of its data."""
        space = self.settings.load_space(self.folder / "space.yaml")
        return space.replace(num_classes=self.data().num_classes)

    def architecture(self, architecture_id: int) -> Architecture:
        """Return one of the run's architectures.

        Raises:
            ValueError: If the run has no such id.
        """
        return self.record.architecture(architecture_id)


def record_place(folder: Path) -> Place:
    """Tell where the record of a run lies."""
    address = folder / ADDRESS
    return address.read_text().strip() if address.is_file() else folder / RECORD


@contextmanager
def open_run(folder: Path) -> Iterator[RunFolder]:
    """Open a run that exists.

    Raises:
        ValueError: If the folder is not one of a run.
    """
    place = record_place(folder)
    if isinstance(place, Path) and not place.is_file():
        raise ValueError(
            f"{folder} is not the folder of a run (it has no {RECORD}). "
            "Name the folder that `search run` printed."
        )
    with Record.open(place) as record:
        stored = record.get_meta("settings")
        if stored is None:
            raise ValueError(
                f"{folder} was left before its run began. Remove it and start the run again."
            )
        yield RunFolder(folder, record, RunSettings.from_dict(stored))


@contextmanager
def create_run(
    folder: Path, settings: RunSettings, *, database: str | None = None
) -> Iterator[RunFolder]:
    """Make the folder of a new run: check everything, read the data, then write the record.

    Args:
        folder: To make.
        settings: What was asked for.
        database: Address of a PostgreSQL database for the record; None keeps it in the folder.

    Raises:
        ValueError: If the folder is in use or any input is wrong; nothing is left behind.
    """
    from supernet.data import prepare_data
    from supernet.recipes.recipe import load_recipe
    from supernet.shared_weights.strategies import check_strategy

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} is in use, and a run is never overwritten. "
            "Continue it with --resume, or name another folder with --out."
        )
    space = settings.load_space()
    if "supernet" in SHARES[settings.strategy]:
        check_strategy(settings.supernet_strategy, space)
    for recipe in (settings.supernet_recipe, settings.trial_recipe, settings.retrain_recipe):
        load_recipe(recipe)
    place = folder / RECORD if database is None else _new_schema(database, folder.name)
    files = open_files(settings.storage, folder)
    files.check(is_new=True)
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        prepare_data(settings.data, img_size=space.img_size, folder=folder / DATA)
        (folder / "space.yaml").write_text(space.source)
        if isinstance(place, str):
            (folder / ADDRESS).write_text(f"{place}\n")
        with Record.create(place) as record:
            record.set_meta("settings", settings.to_dict())
    except BaseException:
        _remove(folder, place, keep=existed)
        raise
    began = True
    try:
        with open_run(folder) as run:
            try:
                yield run
            finally:
                began = run.record.get_meta("plan") is not None
    except ValueError:
        # E.g. a budget that is too small, or a device that this machine does not have.
        if not began:
            files.remove(DATA)
            _remove(folder, place, keep=existed)
        raise


@contextmanager
def resume_run(folder: Path, budget: str | None) -> Iterator[RunFolder]:
    """Open a run to go on with it, with a larger budget where one is given.

    Raises:
        ValueError: If it is no run, or the budget is smaller or of another unit.
    """
    with open_run(folder) as run:
        if budget is not None:
            old, new = run.settings.parsed_budget, parse_budget(budget)
            if new.device != old.device or new.amount_seconds < old.amount_seconds:
                raise ValueError(
                    f"A resumed run keeps its budget or gets a larger one of the same unit: it has "
                    f"{old}, got {new}. Leave --budget out to keep it."
                )
            run = replace(run, settings=replace(run.settings, budget=budget))
            run.record.set_meta("settings", run.settings.to_dict())
        run.files.check(is_new=False)
        run.record.close_orphans()
        yield run


def _new_schema(address: str, name: str) -> str:
    from search.record.postgres import new_schema

    return new_schema(address, name)


def _remove(folder: Path, place: Place, *, keep: bool) -> None:
    shutil.rmtree(folder)
    if keep:
        folder.mkdir()
    if isinstance(place, str):
        from search.record.postgres import drop_schema

        drop_schema(place)
