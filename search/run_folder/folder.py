"""The folder of a run: everything that is needed to resume, inspect and retrain.

``run.lock`` (held by the process that works on it), ``record.db`` (the truth; or
``record.conninfo``, where to find it on PostgreSQL), ``space.yaml``, ``retrain_recipe.yaml`` (a
recipe of the user's own), ``latency_table.json`` (where it was given one), ``mentor/``
(whom its networks learn from, where there is somebody), ``unlabelled-.../`` (images without
classes, likewise), ``data/`` (decoded images), ``supernet/`` (checkpoint), ``trials/``
(checkpoints of unfinished trainings), ``study.db`` (Optuna's copy of the results),
``report.html``, ``front.png``, ``retrain/``. With a storage
(`search.run_folder.storage`) the checkpoints lie there, and a copy of the data.

The lock is the first thing that a process takes and the last that it gives back; ``space.yaml`` is
the last that a new run writes. Who does not have the lock changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs import config_names, config_path
from search.budget import parse_budget
from search.plan import SHARES
from search.record import (
    Address,
    Claim,
    Record,
    RefusedError,
    claimed_error,
    has_token,
    is_claimed,
    take_claim,
)
from search.run_folder.disk import is_disk_full
from search.run_folder.settings import RECIPES, RunSettings
from search.run_folder.state import RunState
from search.run_folder.storage import (
    DATA,
    MENTOR,
    OWNER,
    START,
    SUPERNET,
    TEACHER,
    Files,
    Owner,
    StorageError,
    open_files,
)
from search.run_folder.teacher import TeacherFiles, read_teacher
from searchspace import durable
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

# To look at a run needs no torch: what reads images and recipes is imported where it is used.
if TYPE_CHECKING:
    from torch import Tensor

    from supernet.data import ImageData
    from supernet.data.dense import SearchedData
    from supernet.training import Teacher

LOCK = "run.lock"
SPACE = "space.yaml"
RECORD = "record.db"
# Where the record lies instead, as libpq reads it; without a password.
ADDRESS = "record.conninfo"
# The table of latencies that a run was given.
TABLE = "latency_table.json"

# What the making of a run writes, and so what it may find half-made, or remove again.
_MADE = re.compile(
    r"run\.lock|record\.db(-wal|-shm|\.lock)?|"
    r"(space\.yaml|search\.yaml|latency_table\.json|record\.db|record\.conninfo|(supernet|trial|retrain)_recipe\.yaml)(\.partial)?"
)
_UNLABELLED = re.compile(r"unlabelled-[0-9a-f]{16}")
_MADE_DATA = re.compile(
    r"data\.lock|"
    r"((data|summary|skipped|task)\.json|(positions|labels|digests)\.npy|"
    r"(train_search|test)_(images\.npy|labels\.npy|checksum\.txt))(\.partial)?"
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An open run: its folder, record and settings."""

    folder: Path
    record: Record
    settings: RunSettings

    @property
    def state(self) -> RunState:
        """How far it has come, and what it has found out."""
        return RunState(self.record)

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    @property
    def files(self) -> Files:
        """Where the devices find data and checkpoints."""
        return open_files(self.settings.storage, self.folder)

    def data(self) -> ImageData:
        """Open the prepared images of a run that classifies.

        Raises:
            ValueError: If it is a run for another task.
        """
        from supernet.data import open_data

        self.check_classifies()
        return self.as_taught(open_data(self.folder / DATA))

    @property
    def teacher(self) -> TeacherFiles | None:
        """The trained network that a graft began with; None in any other run."""
        return read_teacher(Path(self.settings.teacher)) if self.settings.teacher else None

    def as_taught(self, data: ImageData) -> ImageData:
        """Return images as the run's networks see them: those of a graft as its teacher does."""
        teacher = self.teacher
        return data if teacher is None else teacher.seen_by(data)

    def task_data(self) -> ImageData | SearchedData:
        """Open the images of the run's task."""
        if self.settings.classifies:
            return self.data()
        from supernet.data.dense import open_searched

        return open_searched(self.folder / DATA)

    def mend_data(self) -> ImageData | SearchedData:
        """Open them after a look whether they are whole; decode anew what is not.

        Raises:
            ValueError: If they cannot be mended.
        """
        from supernet.data import mend_data
        from supernet.data.dense import check_searched

        folder = self.folder / DATA
        return mend_data(folder) if self.settings.classifies else check_searched(folder)

    def check_classifies(self) -> None:
        """See that the run's networks are classifiers.

        Raises:
            ValueError: If they are backbones of something else.
        """
        if not self.settings.classifies:
            raise ValueError(
                f"The networks of {self.folder} were searched for --task {self.settings.task}, and "
                "this is for classifiers. Train them with `search transfer`."
            )

    def check_mentor(self) -> None:
        """See that the teacher whom the networks learn from is the one that the run began with.

        And so are the images without classes that they learn on.

        Raises:
            ValueError: If it is gone, damaged, or another.
        """
        if self.teacher is not None:
            self.teacher.state()
        if self.settings.unlabelled_kept:
            from supernet.data import check_unlabelled_files

            check_unlabelled_files(self.folder / self.settings.unlabelled_kept)
        if self.settings.mentor:
            from supernet.training import read_teacher_files

            read_teacher_files(self.folder / MENTOR, self.settings.mentor)

    def share_data(self) -> None:
        """Let the devices find what the run was given, unless they do already."""
        kept = self.settings.unlabelled_kept
        for name in (DATA, START, TEACHER, MENTOR, *([kept] if kept else [])):
            if (self.folder / name).is_dir() and not self.files.has(name):
                self.files.publish(name, self.folder / name)

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
        space = self.settings.load_space(self.folder / SPACE)
        if self.settings.teacher:  # whose classes are those of the data
            return space
        return space.replace(num_classes=self._num_classes())

    def _num_classes(self) -> int:
        if self.settings.classifies:
            return self.data().num_classes
        from supernet.data.dense import searched_classes

        return searched_classes(self.folder / DATA)

    def architecture(self, architecture_id: int) -> Architecture:
        """Return one of the run's architectures.

        Raises:
            ValueError: If the run has no such id.
        """
        return self.record.architecture(architecture_id)


def record_address(folder: Path) -> Address:
    """Tell where the record of a run lies.

    Raises:
        ValueError: If what says so has a password, or cannot be read.
    """
    address = folder / ADDRESS
    if not address.is_file():
        return folder / RECORD
    from search.record.postgres import guarded

    return guarded(address.read_text(encoding="utf-8").strip())


@contextmanager
def open_run(folder: Path, *, write: bool = False) -> Iterator[RunFolder]:
    """Open a run that exists, to look at it: nothing is written.

    Args:
        write: Let the record be written to, beside the process that works on the run.

    Raises:
        ValueError: If the folder is not one of a run.
    """
    address = _address_of_run(folder)
    if write:
        refuse_links(folder)
    with Record.open(address, read_only=not write) as record:
        stored = record.get_meta("settings")
        if stored is None:
            raise _no_run(folder, is_ours=write)
        settings = _with_kept_files(folder, RunSettings.from_dict(stored))
        yield RunFolder(folder, record, settings)


@contextmanager
def own_run(folder: Path) -> Iterator[RunFolder]:
    """Open a run to work on it; of several processes that want to, one may.

    Raises:
        ValueError: If it is no run, another process works on it, or a part of it is a link.
    """
    _address_of_run(folder)
    with _claimed(folder), open_run(folder, write=True) as run:
        run.record.claim()
        yield run


@contextmanager
def create_run(
    folder: Path,
    settings: RunSettings,
    *,
    database: str | None = None,
    teacher: Callable[[ImageData], Teacher] | None = None,
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
    space = _check(settings)
    address = folder / RECORD if database is None else _new_schema(database, folder.name)
    with _made_folder(folder), _claimed(folder) as claim:
        _check_free(folder)  # by now nobody else changes it
        refuse_links(folder)
        new = _NewRun(folder, settings, address, claim, teacher)
        try:
            record = new.make(space)
        except StorageError as error:
            new.undo()
            raise ValueError(str(error)) from error
        except RefusedError as error:
            is_full = is_disk_full(error, folder)
            new.undo()
            if not is_full:
                raise
            raise ValueError(
                f"The record of {folder} cannot be written ({error}). "
                "Free some space there, and run the same command again."
            ) from error
        except BaseException:
            new.undo()
            raise
        began = True
        try:
            with record:
                try:
                    yield RunFolder(folder, record, _with_kept_files(folder, new.settings))
                finally:
                    began = RunState(record).has_plan
        except ValueError:
            # E.g. a budget that is too small, or a device that this machine does not have.
            if not began:
                new.undo()
            raise


@contextmanager
def resume_run(
    folder: Path, budget: str | None, *, sampler: str | None = None
) -> Iterator[RunFolder]:
    """Open a run to go on with it.

    Args:
        folder: Of the run.
        budget: A larger budget, or None.
        sampler: Another sampler, or None.

    Raises:
        ValueError: If it is no run, another process works on it, or the budget is smaller or of
            another unit. Then, and if nothing can be done with it, the settings stay as they are.
    """
    with own_run(folder) as run:
        before = run.record.get_meta("settings")
        old = run.settings.parsed_budget
        new = old if budget is None else parse_budget(budget)
        if new.device != old.device or new.amount_seconds < old.amount_seconds:
            raise ValueError(
                f"A resumed run keeps its budget or gets a larger one of the same unit: it has "
                f"{old}, got {new}. Leave --budget out to keep it."
            )
        changes = {} if budget is None else {"budget": budget}
        changes |= {} if sampler is None else {"sampler": sampler}
        run = replace(run, settings=_changed(run.settings, changes))
        run.files.check(is_new=False)
        run.check_mentor()
        _take_storage(run)
        run.record.close_orphans()
        spent = run.record.spent()
        run.record.set_meta("settings", {**before, **changes})
        try:
            yield run
        except ValueError:
            with suppress(ValueError):
                if run.record.spent() == spent:
                    run.record.set_meta("settings", before)
            raise


def _take_storage(run: RunFolder) -> None:
    """Let this folder, and no copy of it, go on with the run's storage.

    A copied folder names the same storage, and both would write the trial of one number there. So
    each entry draws a session, and leaves it in the record and in the storage: a record that does
    not know the storage's session is that of a copy that was overtaken.

    Raises:
        ValueError: If a copy has gone on, or the folder that this is a copy of can do so.
    """
    if not run.settings.storage or isinstance(record_address(run.folder), str):
        return  # a database has one record for all copies, and lets one process work on it
    try:
        owner, known = run.files.owner(), run.state.storage_sessions
        if owner is not None:
            _refuse_copy(run, owner, known)
        token, session = (run.folder / LOCK).read_text("ascii").strip(), uuid.uuid4().hex
        # Wherever a kill falls, the record knows the session that the storage has.
        run.state.storage_sessions = (owner.session if owner else known[-1], session)
        run.files.enter(Owner(token, str(run.folder.resolve()), session))
        run.state.storage_sessions = (session,)
    except StorageError as error:
        raise ValueError(str(error)) from error


def _refuse_copy(run: RunFolder, owner: Owner, known: tuple[str, ...]) -> None:
    rule = f"The storage {run.settings.storage} belongs to one run folder, and {run.folder} is a"
    if owner.folder and _is_other_copy(run.folder, Path(owner.folder)):
        raise ValueError(
            f"{rule} copy of {owner.folder}, which has it. Go on with that one, or remove it first."
        )
    if owner.session not in known:
        raise ValueError(
            f"{rule} copy of one that has gone on since, at {owner.folder or 'another place'}. Go "
            f"on with that one. If it is lost, remove {OWNER} from the storage: what is found "
            "there is then taken for this folder's."
        )


def _is_other_copy(folder: Path, other: Path) -> bool:
    """Tell whether another folder, as far as it can be seen from here, is the same run."""
    try:
        is_same = os.path.samefile(folder / LOCK, other / LOCK)
    except OSError:
        return False
    return not is_same and (folder / LOCK).read_bytes() == (other / LOCK).read_bytes()


def refuse_links(folder: Path) -> None:
    """Look through a run's folder before it is written to.

    Raises:
        ValueError: If a part of it is a link: what it points to would be written, or removed.
    """
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if (part := Path(path) / name).is_symlink():
                raise ValueError(
                    f"{part} is a link to {os.readlink(part)!r}, and a run writes only inside its "
                    "own folder. Put what it points to in its place, or remove the link."
                )


class _NewRun:
    """A run that is being made by the process that has the folder's lock."""

    def __init__(
        self,
        folder: Path,
        settings: RunSettings,
        address: Address,
        claim: Claim,
        teacher: Callable[[ImageData], Teacher] | None,
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
            shutil.copytree(settings.teacher, folder / TEACHER, dirs_exist_ok=True)
        self._files.claim(Owner(self._claim.token, str(folder.resolve())))
        self._has_storage = True
        kind = "recipes" if settings.classifies else "recipes/dense"
        for field in RECIPES:
            _keep_recipe(folder, field, getattr(settings, field), kind)
        # `_check_free` has seen that nothing was ever recorded there.
        for name in (ADDRESS, RECORD, f"{RECORD}-wal", f"{RECORD}-shm"):
            (folder / name).unlink(missing_ok=True)
        record = Record.create(self._address)
        try:
            record.claim()
            if isinstance(self._address, str):
                self._has_schema = True
                durable.write_text(folder / ADDRESS, f"{self._address}\n")
            record.set_meta("settings", settings.to_dict())
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
            from search.record.postgres import drop_schema

            drop_schema(self._address)
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


def _check(settings: RunSettings) -> SearchSpace:
    """Look up everything that the settings name; return the space."""
    from supernet.data import open_unlabelled
    from supernet.recipes import load_recipe
    from supernet.shared_weights import check_shared_lesson, check_strategy
    from supernet.training import check_teacher, check_unlabelled

    space = settings.load_space()
    if "supernet" in SHARES[settings.strategy]:
        check_strategy(settings.supernet_strategy, space)
    if not settings.classifies:
        _check_backbones(settings, space)
        return space
    recipes = {field: load_recipe(getattr(settings, field)) for field in RECIPES}
    if settings.unlabelled:
        open_unlabelled(Path(settings.unlabelled))  # listed now, and decoded after the others
        check_unlabelled(recipes["trial_recipe"], given=True, is_taught=True)
    if settings.taught_by:
        check_teacher(recipes["trial_recipe"], given=True)
        check_shared_lesson(recipes["supernet_recipe"], given=settings.strategy == "supernet")
    if "latency_ms" in settings.objectives:
        _check_latency(settings, space)
    return space


def _check_backbones(settings: RunSettings, space: SearchSpace) -> None:
    """Check what a search for detectors or segmenters needs."""
    from searchspace.dense import check_backbone
    from supernet.data.dense.masks import require_pycocotools
    from supernet.recipes import load_dense_recipe

    check_backbone(space)
    if settings.task != "semantic":
        require_pycocotools()
    recipe = load_dense_recipe(settings.trial_recipe)
    if recipe.task != settings.task:
        raise ValueError(
            f"The recipe {recipe.name} is one for --task {recipe.task}, got --task "
            f"{settings.task}. Choose another recipe; search recipes lists them."
        )


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
        write_start_of(settings, space.replace(num_classes=data.num_classes), folder / START)


def keep_mentor(
    settings: RunSettings, folder: Path, teacher: Callable[[ImageData], Teacher] | None
) -> RunSettings:
    """Lay a teacher where the devices find it; return the settings with its key."""
    if teacher is None:
        return settings
    from supernet.data import open_data
    from supernet.training import write_teacher_files

    key = write_teacher_files(folder / MENTOR, teacher(open_data(folder / DATA)))
    return _changed(settings, {"mentor": key})


def keep_unlabelled(settings: RunSettings, folder: Path) -> RunSettings:
    """Decode images without classes into a run's folder; return the settings with their place.

    Raises:
        ValueError: If there are none, one is damaged, or they are too many.
    """
    if not settings.unlabelled:
        return settings
    from supernet.data import open_data, prepare_unlabelled

    images = prepare_unlabelled(Path(settings.unlabelled), open_data(folder / DATA), folder)
    return replace(
        settings,
        unlabelled_kept=images.folder.name,
        num_unlabelled=images.count,
        num_left_out=images.left_out,
    )


def write_start_of(settings: RunSettings, space: SearchSpace, folder: Path) -> None:
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
        has_token(folder / LOCK)
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
    address = record_address(folder)
    if isinstance(address, Path) and not address.is_file():
        return True
    try:
        with Record.open(address, read_only=True) as record:
            return not RunState(record).has_plan and not record.ledger()
    except ValueError:
        return False  # whatever it is, it was not made a moment ago


def _address_of_run(folder: Path) -> Address:
    address = record_address(folder)
    if isinstance(address, Path) and not address.is_file():
        raise _no_run(folder)
    return address


def _no_run(folder: Path, *, is_ours: bool = False) -> ValueError:
    if not is_ours and is_claimed(folder / LOCK):
        return claimed_error(folder)
    if has_token(folder / LOCK):
        return ValueError(
            f"{folder} was left before its run began. Give the command that was to begin it again, "
            "without --resume: it takes up what is there."
        )
    return ValueError(
        f"{folder} is not the folder of a run (it has no {RECORD}). "
        "Name the folder that `search run` printed."
    )


@contextmanager
def _claimed(folder: Path) -> Iterator[Claim]:
    try:
        claim = take_claim(folder / LOCK)
    except FileNotFoundError:  # another process has made the folder, failed, and removed it
        claim = None
    if claim is None:
        raise claimed_error(folder)
    try:
        yield claim
    finally:
        claim.release()


@contextmanager
def _made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; on an error remove those that were made, where empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def _keep_recipe(folder: Path, field: str, name: str, kind: str) -> None:
    """Keep the text of a recipe of the user's own: the file may change, or be gone."""
    plain = _file_of(name)
    if plain not in config_names(kind):
        text = config_path(kind, plain).read_text(encoding="utf-8")
        durable.write_text(folder / f"{field}.yaml", text)


def _with_kept_files(folder: Path, settings: RunSettings) -> RunSettings:
    """Let the settings name the recipes, and the table of latencies, that the run has kept."""
    kept = {}
    for field in RECIPES:
        if (file := folder / f"{field}.yaml").is_file():
            name = getattr(settings, field)
            kept[field] = f"{file.absolute()}{name.removeprefix(_file_of(name))}"
    if (file := folder / TABLE).is_file():
        kept["latency_table"] = str(file.absolute())
    if settings.teacher and (folder / TEACHER).is_dir():
        kept["teacher"] = str((folder / TEACHER).absolute())
    return _changed(settings, kept)


def _changed(settings: RunSettings, changes: Mapping[str, str]) -> RunSettings:
    return RunSettings.from_dict(settings.to_dict() | dict(changes))


def _file_of(recipe: str) -> str:
    """Return a recipe's name or path without its size."""
    return recipe.rpartition(":")[0] or recipe


def _new_schema(address: str, name: str) -> str:
    from search.record.postgres import new_schema

    return new_schema(address, name)
