"""How a run's folder is made: everything is checked, the data read, then the record written."""

from __future__ import annotations

import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from configs import config_names, config_path
from search.plan import SHARES
from search.record import (
    Address,
    Claim,
    DatabaseLostError,
    Record,
    RefusedError,
    claimed_error,
)
from search.run_folder.disk import is_disk_full
from search.run_folder.files import DATA, MENTOR, START, TEACHER, Owner, StorageError
from search.run_folder.folder import (
    ADDRESS,
    RECORD,
    SESSION,
    SPACE,
    TABLE,
    RunFolder,
    claimed,
    file_of,
    open_run,
    record_address,
    refuse_links,
    take_record,
    was_begun,
    with_kept_files,
)
from search.run_folder.settings import GRAFT, RECIPES, RunSettings
from search.run_folder.state import RunState
from search.run_folder.storage import open_files
from search.run_folder.teacher import read_teacher
from searchspace import durable
from searchspace.space import SearchSpace

logger = logging.getLogger(__name__)

# What reads images and recipes is imported where it is used: see `folder`.
if TYPE_CHECKING:
    from torch import Tensor


# From the run's images to the teacher: of classifiers, or of detectors and segmenters.
BuildsTeacher: TypeAlias = "Callable[[Any], Any]"

# Networks that are drawn from a space before a run begins, as the run will draw its first ones.
MEASURED_DRAWS, TRUST_DRAWS = 2, 8
# What the making of a run writes, and so what it may find half-made, or remove again.
_MADE = re.compile(
    r"run\.lock|record\.db(-wal|-shm|\.lock)?|record\.db\.partial-journal|"
    r"(space\.yaml|search\.yaml|latency_table\.json|record\.(db|conninfo|session)|(supernet|trial|retrain)_recipe\.yaml)(\.partial)?"
)
_UNLABELLED = re.compile(r"unlabelled-[0-9a-f]{16}")
_MADE_DATA = re.compile(
    r"data\.lock|"
    r"((data|summary|skipped|task)\.json|(positions|labels|digests)\.npy|"
    r"(train_search|test)_(images\.npy|labels\.npy|checksum\.txt))(\.partial)?"
)


@contextmanager
def create_run(
    folder: Path,
    settings: RunSettings,
    *,
    database: str | None = None,
    teacher: BuildsTeacher | None = None,
) -> Iterator[RunFolder]:
    """Make the folder of a new run: check everything, read the data, then write the record.

    What a process that was killed had begun to make is taken up.

    Args:
        folder: To make.
        settings: What was asked for.
        database: Address of a PostgreSQL database for the record; None keeps it in the folder.
        teacher: Builds what the settings name as ``taught_by``, for the run's images.

    Raises:
        ValueError: If the folder is in use or any input is wrong; nothing is left behind.
    """
    _check_free(folder)
    if bool(settings.taught_by) != (teacher is not None):
        raise ValueError(
            f"What builds a teacher goes with its name, got the name {settings.taught_by!r}. Give "
            "both or none; see search.retraining.teachers."
        )
    space = check_settings(settings)
    address = folder / RECORD if database is None else _new_schema(database, folder.name)
    with durable.made_folder(folder), claimed(folder) as claim:
        _check_free(folder)  # by now nobody else changes it
        refuse_links(folder)
        new = _NewRun(folder, settings, address, claim, teacher)
        with _undone_on_errors(new, folder):
            record = new.make(space)
        began = True
        try:
            with record:
                try:
                    yield RunFolder(folder, record, with_kept_files(folder, new.settings))
                finally:
                    with suppress(DatabaseLostError):  # said where it was lost
                        began = RunState(record).has_plan
        except ValueError:
            # E.g. a budget that is too small, or a device that this machine does not have.
            if not began:
                new.undo()
            raise


class _NewRun:
    """A run that is being made by the process that has the folder's lock."""

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        address: Address,
        claim: Claim,
        teacher: BuildsTeacher | None,
    ) -> None:
        self.settings, self._teacher = settings, teacher
        self._folder, self._address, self._claim = folder, address, claim
        self._files = open_files(settings.storage, folder)
        self._has_storage = self._has_schema = False

    def make(self, space: SearchSpace) -> Record:
        """Write everything; return the record, claimed."""
        folder = self._folder
        self._files.check(is_new=True, token=self._claim.token)
        prepare_run_data(self.settings, space, folder)
        self.settings = settings = keep_mentor(self.settings, folder, self._teacher)
        self.settings = settings = keep_unlabelled(settings, folder)
        if settings.teacher:
            _keep_teacher(Path(settings.teacher), folder / TEACHER)
        self._files.claim(Owner(self._claim.token, str(folder.resolve())))
        self._has_storage = True
        kind = "recipes" if settings.classifies else "recipes/dense"
        for field in RECIPES:
            _keep_recipe(folder, field, getattr(settings, field), kind)
        # `_check_free` has seen that nothing was ever recorded there.
        _drop_earlier(folder)
        for name in (ADDRESS, SESSION, RECORD, f"{RECORD}-wal", f"{RECORD}-shm"):
            (folder / name).unlink(missing_ok=True)
        if isinstance(self._address, str):
            # First: a schema that nobody knows of would stay in the database for ever.
            self._has_schema = True
            durable.write_text(folder / ADDRESS, f"{self._address}\n")
        record = Record.create(self._address)
        try:
            record.claim()
            record.set_meta("settings", settings.to_dict())
            if self._has_schema and not settings.storage:
                take_record(folder, record)
            # From here on it is a run.
            durable.write_text(folder / SPACE, space.source)
        except BaseException:
            record.close()
            raise
        return record

    def undo(self) -> None:
        """Remove what `make` wrote, and nothing else."""
        if self._has_storage:
            with suppress(StorageError):
                self._files.remove(DATA)
                self._files.disown()
        if self._has_schema and isinstance(self._address, str):
            _drop(self._address)
        data = self._folder / DATA
        for name in (f"{DATA}/unpacked", START, TEACHER, MENTOR):
            shutil.rmtree(self._folder / name, ignore_errors=True)
        if self.settings.unlabelled:
            for path in self._folder.iterdir():
                if _UNLABELLED.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
        for folder, pattern in ((data, _MADE_DATA), (self._folder, _MADE)):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if pattern.fullmatch(path.name) and path != self._claim.path:
                    path.unlink()
        with suppress(OSError):
            data.rmdir()
        self._claim.remove()


@contextmanager
def _undone_on_errors(new: _NewRun, folder: Path) -> Iterator[None]:
    """Leave nothing of a run that cannot be made, and say why in words."""
    try:
        yield
    except BaseException as error:
        is_full = isinstance(error, RefusedError) and is_disk_full(error, folder)
        new.undo()
        if isinstance(error, StorageError):
            raise ValueError(str(error)) from error
        if is_full:
            raise ValueError(
                f"The record of {folder} cannot be written ({error}). "
                "Free some space there, and run the same command again."
            ) from error
        raise


def check_settings(settings: RunSettings) -> SearchSpace:
    """Look up everything that the settings name, before images are read; return the space.

    Raises:
        ValueError: If something is not there, or does not go with the rest.
    """
    from supernet.data import open_unlabelled
    from supernet.network import check_shareable
    from supernet.recipes import load_recipe
    from supernet.shared_weights import check_shared_lesson, check_shared_recipe, check_strategy
    from supernet.training import check_teacher, check_unlabelled

    space = settings.load_space()
    if "supernet" in SHARES[settings.strategy]:
        check_strategy(settings.supernet_strategy, space)
        check_shareable(space)
    _check_draws(settings, space)
    if not settings.classifies:
        _check_backbones(settings, space)
        return space
    recipes = {field: load_recipe(getattr(settings, field)) for field in RECIPES}
    if "supernet" in SHARES[settings.strategy]:
        check_shared_recipe(recipes["supernet_recipe"])
    if settings.unlabelled:
        open_unlabelled(Path(settings.unlabelled))  # listed now, and kept after the others
        check_unlabelled(recipes["trial_recipe"], given=True, is_taught=True)
    if settings.taught_by:
        check_teacher(recipes["trial_recipe"], given=True)
        check_shared_lesson(recipes["supernet_recipe"], given=settings.strategy == "supernet")
    if "latency_ms" in settings.objectives:
        _check_latency(settings, space)
    return space


def _check_draws(settings: RunSettings, space: SearchSpace) -> None:
    """See that networks can be drawn from a space: limits may leave it next to none.

    A run draws them when it measures steps, and others when its supernet has been trained.
    """
    draws: dict[int | str, int] = {settings.seed: MEASURED_DRAWS}
    if settings.strategy != GRAFT:  # which draws those by itself
        draws[f"trust/{settings.seed}"] = TRUST_DRAWS
    for seed, number in draws.items():
        rng = random.Random(seed)
        for _ in range(number):
            space.sample(rng)


def _check_backbones(settings: RunSettings, space: SearchSpace) -> None:
    """Check what a search for detectors or segmenters needs."""
    from searchspace.dense import check_backbone
    from supernet.data.dense.masks import require_pycocotools
    from supernet.recipes import load_dense_recipe

    check_backbone(space)
    if settings.task != "semantic":
        require_pycocotools()
    load_dense_recipe(settings.trial_recipe).check_task(settings.task)


def prepare_run_data(settings: RunSettings, space: SearchSpace, folder: Path) -> None:
    """Read the images, and the weights that backbones begin with."""
    if settings.classifies:
        from supernet.data import prepare_data

        images = prepare_data(settings.data, img_size=space.img_size, folder=folder / DATA)
        if settings.teacher:
            read_teacher(Path(settings.teacher)).seen_by(images)
        if settings.latency_table:
            with_classes = space.replace(num_classes=images.num_classes)
            _check_latency(settings, with_classes, classes=True)
            text = Path(settings.latency_table).read_text(encoding="utf-8")
            durable.write_text(folder / TABLE, text)
        return
    from supernet.data.dense import prepare_searched

    data = prepare_searched(settings.data, settings.task, seed=settings.seed, folder=folder / DATA)
    if settings.start:
        _write_start(settings, space.replace(num_classes=data.num_classes), folder / START)


def keep_mentor(settings: RunSettings, folder: Path, teacher: BuildsTeacher | None) -> RunSettings:
    """Lay a teacher where the devices find it; return the settings with its key.

    Raises:
        ValueError: If it cannot teach the networks of the run.
    """
    if teacher is None:
        return settings
    if not settings.classifies:
        return replace(settings, mentor=_keep_dense_mentor(settings, folder, teacher))
    from supernet.data import open_data
    from supernet.training import write_teacher_files

    key = write_teacher_files(folder / MENTOR, teacher(open_data(folder / DATA)))
    return replace(settings, mentor=key)


def _keep_dense_mentor(settings: RunSettings, folder: Path, teacher: BuildsTeacher) -> str:
    from supernet.data.dense import open_searched
    from supernet.dense.distillation import check_dense_teacher
    from supernet.dense.network import build_dense
    from supernet.dense.options import dense_options
    from supernet.dense.teacher_files import write_dense_teacher
    from supernet.recipes import load_dense_recipe

    data = open_searched(folder / DATA)
    found = teacher(data.dense)
    # All networks of a space have maps of the same shapes: their patches have one size.
    smallest = settings.load_space().extreme("macs", largest=False)
    recipe = load_dense_recipe(settings.trial_recipe)
    student = build_dense(SearchSpace.of(smallest), dense_options(recipe, data.num_classes))
    check_dense_teacher(student, found)
    return write_dense_teacher(folder / MENTOR, found)


def keep_unlabelled(settings: RunSettings, folder: Path) -> RunSettings:
    """Keep images without classes in a run's folder; return the settings with their place.

    Raises:
        ValueError: If there are none, one is damaged, or they are too many.
    """
    if not settings.unlabelled:
        return settings
    from supernet.data import open_data, prepare_unlabelled

    data = open_data(folder / DATA)
    images = prepare_unlabelled(Path(settings.unlabelled), data, folder, searches=True)
    return replace(
        settings,
        unlabelled_kept=images.folder.name,
        num_unlabelled=images.count,
        num_left_out=images.left_out,
    )


def _keep_teacher(source: Path, folder: Path) -> None:
    """Copy what a graft begins with; it is on the disk before the run is one."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    durable.sync(folder)


def _write_start(settings: RunSettings, space: SearchSpace, folder: Path) -> None:
    """Keep the shared weights of the run that the settings name.

    Raises:
        ValueError: If there is none, or it is of another space.
    """
    from supernet.dense.start import write_start
    from supernet.recipes import load_dense_recipe

    with open_run(Path(settings.start)) as run:
        if not run.state.supernet_is_trained:
            raise ValueError(
                f"{settings.start} has no trained supernet to start from. Let it go on first: "
                "search run --resume, or leave --start out."
            )
        state = _shared_weights(run)
    rules = load_dense_recipe(settings.trial_recipe).rules
    try:
        write_start(folder, state, space, settings.sharing, rules)
    except ValueError as error:
        raise ValueError(
            f"The supernet of {settings.start} cannot start this one: {error} Both need the same "
            "space, --projections and --kernels."
        ) from error


def _shared_weights(run: RunFolder) -> dict[str, Tensor]:
    """Read the shared weights of a run, of whatever task."""
    from supernet.dense.shared import load_dense_supernet
    from supernet.recipes import load_dense_recipe
    from supernet.shared_weights import load_supernet

    folder, space = run.supernet_folder(), run.space()
    if run.settings.classifies:
        return dict(load_supernet(folder, space).state_dict())
    recipe = load_dense_recipe(run.settings.trial_recipe)
    return dict(load_dense_supernet(folder, space, recipe, space.num_classes).state_dict())


def _check_latency(settings: RunSettings, space: SearchSpace, *, classes: bool = False) -> None:
    """Refuse a table of other networks, or what networks cannot be timed with here.

    Args:
        settings: Of the run.
        space: Its space.
        classes: Whether it has the classes of the data already.
    """
    table = settings.load_table()
    if table is None:
        device = "cuda" if settings.parsed_budget.device == "gpu" else "cpu"
        settings.deployment.check(device=device)
        return
    try:
        table.check_space(space, classes=classes)
    except ValueError as error:
        raise ValueError(f"{settings.latency_table}: {error}") from error


def _check_free(folder: Path) -> None:
    """Refuse a folder that is in use; it may be missing, empty, or that of a run half-made."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    is_half_made = (
        was_begun(folder)
        and SPACE not in names
        and all(map(_is_made, names))
        and _has_recorded_nothing(folder)
    )
    if (folder.exists() and not folder.is_dir()) or (names and not is_half_made):
        raise ValueError(
            f"{folder} is in use, and a run is never overwritten. "
            "Continue it with --resume, or name another folder with --out."
        )


def _is_made(name: str) -> bool:
    """Tell whether the making of a run writes something of this name."""
    is_folder = name in (DATA, START, TEACHER, MENTOR) or _UNLABELLED.fullmatch(name)
    return bool(is_folder or _MADE.fullmatch(name))


def _has_recorded_nothing(folder: Path) -> bool:
    """Tell whether the record that is named in a folder has nothing in it.

    Raises:
        ValueError: If another process works on it: in a copy of the folder.
    """
    address = record_address(folder)
    try:
        if not _exists(address):
            return True
        with Record.open(address, read_only=True) as record:
            is_claimed = isinstance(address, str) and record.last_seen() is None
            is_empty = not RunState(record).has_plan and not record.ledger()
    except ValueError:
        return False  # whatever it is, it was not made a moment ago
    if is_claimed:
        raise claimed_error(folder)
    return is_empty


def _exists(address: Address) -> bool:
    if isinstance(address, Path):
        return address.is_file()
    from search.record.postgres import has_schema

    return has_schema(address)


def _drop_earlier(folder: Path) -> None:
    """Drop the schema of a process that was killed while it made the run."""
    address = record_address(folder)
    if isinstance(address, str):
        _drop(address)  # nobody has it, `_check_free` has seen


def _drop(address: str) -> None:
    """Drop a schema; one that cannot be dropped is said, and keeps nothing else from being done."""
    from search.record.postgres import drop_schema

    try:
        drop_schema(address)
    except (ValueError, RefusedError) as error:
        logger.warning("A schema that nothing uses is left, that of %s: %s.", address, error)


def _keep_recipe(folder: Path, field: str, name: str, kind: str) -> None:
    """Keep the text of a recipe of the user's own: the file may change, or be gone."""
    plain = file_of(name)
    if plain not in config_names(kind):
        text = config_path(kind, plain).read_text(encoding="utf-8")
        durable.write_text(folder / f"{field}.yaml", text)


def _new_schema(address: str, name: str) -> str:
    from search.record.postgres import new_schema

    return new_schema(address, name)
