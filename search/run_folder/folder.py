"""The folder of a run: everything that is needed to resume, inspect and retrain.

``run.lock`` (held by the process that works on it), ``record.db`` (the truth; or
``record.conninfo``, where to find it on PostgreSQL, and ``record.session``), ``space.yaml``,
``retrain_recipe.yaml`` (a recipe of the user's own), ``latency_table.json`` (where it was given
one), ``mentor/`` (whom its networks learn from, where there is somebody), ``data/`` (decoded
images), ``supernet/`` (checkpoint), ``trials/`` (checkpoints of unfinished trainings), ``study.db``
(Optuna's copy of the results), ``report.html``, ``front.png``, ``retrain/``. With a storage
(`search.run_folder.storage`) the checkpoints lie there, and a copy of the data.

The lock is the first thing that a process takes and the last that it gives back; ``space.yaml`` is
the last that a new run writes. Who does not have the lock changes nothing.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.budget import parse_budget
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
from search.run_folder.files import (
    DATA,
    MENTOR,
    START,
    SUPERNET,
    TEACHER,
    Files,
    Owner,
    StorageError,
)
from search.run_folder.settings import RECIPES, RunSettings
from search.run_folder.state import RunState
from search.run_folder.storage import OWNER, open_files
from search.run_folder.teacher import TeacherFiles, read_teacher
from searchspace import durable
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

# To look at a run needs no torch: what reads images and recipes is imported where it is used.
if TYPE_CHECKING:
    from supernet.data import ImageData
    from supernet.data.dense import SearchedData
    from supernet.dense.distillation import DenseTeacher
    from supernet.training import Teacher

LOCK = "run.lock"
SPACE = "space.yaml"
# The options that a run was begun with.
OPTIONS = "search.yaml"
RECORD = "record.db"
# Where the record lies instead, as libpq reads it; without a password.
ADDRESS = "record.conninfo"
# Which session of a record on PostgreSQL this folder is of: its last one, or one being begun.
SESSION = "record.session"
# The table of latencies that a run was given.
TABLE = "latency_table.json"


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

    def retraining(self, number: int, label: str, seed: int) -> Path:
        """Name the folder of a network's retraining; ``label`` says how it is trained."""
        return self.folder.resolve() / "retrain" / f"{number}-{label}-s{seed}"

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

    def mentor(self) -> Teacher | None:
        """Read whom all trainings of a run of classifiers learn from, where there is somebody.

        Raises:
            ValueError: If it is gone, damaged, or not the one that the run began with.
        """
        if self.teacher is not None:
            return self.teacher.mentor()
        if not self.settings.mentor:
            return None
        from supernet.training import read_teacher_files

        return read_teacher_files(self.folder / MENTOR, self.settings.mentor)

    def dense_mentor(self) -> DenseTeacher | None:
        """See `mentor`, for a run of detectors or segmenters."""
        if not self.settings.mentor:
            return None
        from supernet.dense.teacher_files import read_dense_teacher

        return read_dense_teacher(self.folder / MENTOR, self.settings.mentor)

    def check_start(self) -> None:
        """See that the weights that backbones begin with are whole.

        Raises:
            ValueError: If they are gone or damaged.
        """
        if self.settings.start:
            from supernet.dense.start import read_start
            from supernet.recipes import load_dense_recipe

            rules = load_dense_recipe(self.settings.trial_recipe).rules
            read_start(self.folder / START, self.space(), self.settings.sharing, rules)

    def check_unlabelled(self) -> None:
        """See that the images without classes that the run keeps are whole.

        Raises:
            ValueError: If they are gone or damaged.
        """
        if self.settings.unlabelled_kept:
            from supernet.data import check_unlabelled_files

            check_unlabelled_files(self.folder / self.settings.unlabelled_kept)

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

    @property
    def limits(self) -> dict[str, float]:
        """Upper limits that a front keeps to: of measured costs, and of a graft all of them.

        A graft judges networks beyond those of its space as well, to learn what parts are worth.
        """
        own = self.space().limits if self.settings.teacher else {}
        return {**own, **self.settings.measured_limits}

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
    if not has_database_record(folder):
        return folder / RECORD
    address = folder / ADDRESS
    from search.record.postgres import guarded

    return guarded(address.read_text(encoding="utf-8").strip())


def has_database_record(folder: Path) -> bool:
    """Tell whether the record of a run lies on PostgreSQL."""
    return (folder / ADDRESS).is_file()


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
    with _opened(address, folder, write=write) as record:
        if write:
            _check_writable(record, folder)
        stored = record.get_meta("settings")
        if stored is None:
            raise _no_run(folder, is_ours=write)
        settings = with_kept_files(folder, RunSettings.from_dict(stored))
        yield RunFolder(folder, record, settings)


def _opened(address: Address, folder: Path, *, write: bool) -> Record:
    try:
        return Record.open(address, read_only=not write)
    except ValueError as error:
        if isinstance(address, Path) or (folder / SPACE).is_file() or not was_begun(folder):
            raise
        raise _no_run(folder, is_ours=write) from error  # its schema was not made any more


def _check_writable(record: Record, folder: Path) -> None:
    """Refuse a record that rights or a full disk keep from being written: before any work.

    Raises:
        ValueError: If it cannot be written.
    """
    try:
        record.check_writable()
    except RefusedError as error:
        raise ValueError(
            f"The record of {folder} cannot be written ({error}). Mend that (rights, free "
            "space, another program that has it open), or copy the folder and use the copy."
        ) from error


@contextmanager
def own_run(folder: Path) -> Iterator[RunFolder]:
    """Open a run to work on it; of several processes that want to, one may.

    Raises:
        ValueError: If it is no run, another process works on it, a part of it is a link, or it is a
            copy that was overtaken.
    """
    _address_of_run(folder)
    with claimed(folder), open_run(folder, write=True) as run:
        run.record.claim()
        if has_database_record(folder) and not run.settings.storage:
            take_record(folder, run.record)
        yield run


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
        _check_space(run)
        before = run.record.get_meta("settings")
        old = run.settings.parsed_budget
        new = old if budget is None else parse_budget(budget)
        if new.device != old.device or new.amount_seconds < old.amount_seconds:
            raise ValueError(
                f"A resumed run keeps its budget or gets a larger one of the same unit: it has "
                f"{old}, got {new}. Leave --budget out to keep it."
            )
        changes: dict[str, Any] = {} if budget is None else {"budget": budget}
        changes |= {} if sampler is None else {"sampler": sampler}
        run = replace(run, settings=replace(run.settings, **changes))
        run.files.check(is_new=False)
        run.mentor() if run.settings.classifies else run.dense_mentor()
        run.check_unlabelled()
        run.check_start()
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


def _check_space(run: RunFolder) -> None:
    """See that the space is there, which a new run writes last.

    Raises:
        ValueError: If it is not: the run never began, or has lost it.
    """
    if (run.folder / SPACE).is_file():
        return
    if not run.state.has_plan and not run.record.ledger():
        raise _no_run(run.folder, is_ours=True)
    raise ValueError(
        f"{run.folder} has lost its {SPACE}, which says what is searched. Restore it from a copy, "
        "or begin another run."
    )


def _take_storage(run: RunFolder) -> None:
    """Let this folder, and no copy of it, go on with the run's storage.

    A copied folder names the same storage, and both would write the trial of one number there. So
    each entry draws a session, and leaves it in the record and in the storage: a record that does
    not know the storage's session is that of a copy that was overtaken.

    Raises:
        ValueError: If a copy has gone on, or the folder that this is a copy of can do so.
    """
    if not run.settings.storage or has_database_record(run.folder):
        return  # with both, copies have nothing of their own, and one process at a time works
    try:
        owner, known = run.files.owner(), run.state.storage_sessions
        if owner is not None:
            _refuse_copy(
                *(run.folder, owner, known),
                what=f"The storage {run.settings.storage}",
                remedy=f"remove {OWNER} from the storage: what is found there is then taken for "
                "this folder's",
            )
        new = _new_owner(run.folder)
        # Wherever a kill falls, the record knows the session that the storage has.
        run.state.storage_sessions = (owner.session if owner else known[-1], new.session)
        run.files.enter(new)
        run.state.storage_sessions = (new.session,)
    except StorageError as error:
        raise ValueError(str(error)) from error


def take_record(folder: Path, record: Record) -> None:
    """Let this folder, and no copy of it, go on with its record on PostgreSQL.

    A copied folder names the same record, and has the checkpoints of another moment: a supernet
    that the record has for trained may be half trained there. As with a storage, each entry draws a
    session; here the record is what the copies share, and each folder has its own file.

    Raises:
        ValueError: If a copy has gone on, or the folder that this is a copy of can do so.
    """
    file, state = folder / SESSION, RunState(record)
    owner = state.owner
    if owner is not None and file.is_file():
        _refuse_copy(
            *(folder, owner, tuple(file.read_text("utf-8").split())),
            what="The run's record on PostgreSQL",
            remedy=f"remove {file}: the checkpoints of this folder are then taken for the run's",
        )
    new = _new_owner(folder)
    # Wherever a kill falls, the folder knows the session that the record has.
    durable.write_text(file, f"{owner.session if owner else ''}\n{new.session}\n")
    state.owner = new
    durable.write_text(file, f"{new.session}\n")


def _new_owner(folder: Path) -> Owner:
    token = (folder / LOCK).read_text("ascii").strip()
    return Owner(token, str(folder.resolve()), uuid.uuid4().hex)


def _refuse_copy(
    folder: Path, owner: Owner, known: tuple[str, ...], *, what: str, remedy: str
) -> None:
    rule = f"{what} belongs to one run folder, and {folder} is a"
    if owner.folder and _is_other_copy(folder, Path(owner.folder)):
        raise ValueError(
            f"{rule} copy of {owner.folder}, which has it. Go on with that one, or remove it first."
        )
    if owner.session not in known:
        raise ValueError(
            f"{rule} copy of one that has gone on since, at {owner.folder or 'another place'}. Go "
            f"on with that one. If it is lost, {remedy}."
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


@contextmanager
def claimed(folder: Path) -> Iterator[Claim]:
    """Hold the folder's lock.

    Raises:
        ValueError: If another process does.
    """
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


def was_begun(folder: Path) -> bool:
    """Tell whether a process has begun to make a run in a folder, whatever it has come to.

    Its lock comes first, and is empty for as long as it takes to write a token.
    """
    lock = folder / LOCK
    if has_token(lock):
        return True
    return lock.is_file() and lock.stat().st_size == 0 and list(folder.iterdir()) == [lock]


def _address_of_run(folder: Path) -> Address:
    address = record_address(folder)
    if isinstance(address, Path) and not address.is_file():
        raise _no_run(folder)
    return address


def _no_run(folder: Path, *, is_ours: bool = False) -> ValueError:
    if not is_ours and is_claimed(folder / LOCK):
        return claimed_error(folder)
    if was_begun(folder) and (folder / SPACE).is_file():
        return ValueError(
            f"{folder} has lost its record ({RECORD}). Restore it from a copy, or begin another "
            "run."
        )
    if was_begun(folder):
        return ValueError(
            f"{folder} was left before its run began. Give the command that was to begin it again, "
            "without --resume: it takes up what is there."
        )
    return ValueError(
        f"{folder} is not the folder of a run (it has no {RECORD}). "
        "Name the folder that `search run` printed."
    )


def with_kept_files(folder: Path, settings: RunSettings) -> RunSettings:
    """Let the settings name the recipes, and the table of latencies, that the run has kept."""
    kept: dict[str, Any] = {}
    for field in RECIPES:
        if (file := folder / f"{field}.yaml").is_file():
            name = getattr(settings, field)
            kept[field] = f"{file.absolute()}{name.removeprefix(file_of(name))}"
    if (file := folder / TABLE).is_file():
        kept["latency_table"] = str(file.absolute())
    if settings.teacher:  # its own copy, also where that is gone: nothing else is the run's
        kept["teacher"] = str((folder / TEACHER).absolute())
    return replace(settings, **kept)


def file_of(recipe: str) -> str:
    """Return a recipe's name or path without its size."""
    return recipe.rpartition(":")[0] or recipe
