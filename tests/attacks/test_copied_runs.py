"""Copies of a run folder that name one storage: one of them goes on, the others change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from search.run_folder import create_run, open_run, resume_run
from search.run_folder.files import Owner
from search.run_folder.settings import RunSettings
from search.run_folder.storage import CACHE_VARIABLE, OWNER, Storage, storage_url
from searchspace import durable
from tests.attacks.test_ownership import snapshot
from tests.postgres import Server


class Killed(BaseException):
    """A process ends here."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with a storage, on which nobody works."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    storage = storage_url(str(tmp_path / "storage"))
    settings = RunSettings(data="digits", budget="10cpu-minutes", storage=storage)
    with create_run(tmp_path / "run", settings) as made:
        made.state._record.set_meta("plan", {})
        made.share_data()
    return tmp_path / "run"


def go_on(folder: Path) -> None:
    with resume_run(folder, None):
        pass


def is_refused(folder: Path, match: str) -> None:
    """See that it cannot go on, and that nothing of the run, its storage and copies has changed."""
    before = state_of(folder)
    with pytest.raises(ValueError, match=match), resume_run(folder, "20cpu-minutes"):
        raise AssertionError("it went on")
    assert state_of(folder) == before


def state_of(folder: Path) -> tuple[dict[str, bytes], str, tuple[str, ...]]:
    # The record keeps when somebody last looked after the run, so its content counts.
    files = {
        name: file for name, file in snapshot(folder.parent).items() if "record.db" not in name
    }
    with open_run(folder) as seen:
        return files, seen.settings.budget, seen.state.storage_sessions


@pytest.mark.parametrize("entries", [0, 1, 2])
def test_a_copy_beside_the_run_is_refused_and_the_run_goes_on(run: Path, entries: int) -> None:
    for _ in range(entries):
        go_on(run)
    copy = shutil.copytree(run, run.with_name("copy"))

    is_refused(copy, rf"{copy} is a copy of {run}, which has it\. Go on with that one")

    go_on(run)


def test_a_copy_is_refused_while_the_run_is_at_work(run: Path) -> None:
    with resume_run(run, None):
        copy = shutil.copytree(run, run.with_name("copy"))
        is_refused(copy, f"is a copy of {run}, which has it")
    go_on(run)


def test_a_copy_that_cannot_see_the_run_is_refused_once_the_run_has_gone_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(run, run.with_name("copy"))
    go_on(run)
    hidden = run.rename(run.with_name("hidden"))  # as it is from another machine

    is_refused(copy, rf"copy of one that has gone on since, at {run}.*remove {OWNER}")

    go_on(hidden)


def test_of_two_copies_without_the_first_one_goes_on(run: Path) -> None:
    one, two = (shutil.copytree(run, run.with_name(name)) for name in ("one", "two"))
    shutil.rmtree(run)

    go_on(one)

    is_refused(two, f"copy of {one}, which has it")
    shutil.rmtree(one)
    is_refused(two, f"has gone on since, at {one}")


def test_a_run_that_was_moved_goes_on(run: Path) -> None:
    go_on(run)
    go_on(run.rename(run.with_name("moved")))


def test_a_run_whose_other_copy_is_lost_goes_on_as_the_message_says(run: Path) -> None:
    copy = shutil.copytree(run, run.with_name("copy"))
    go_on(run)
    shutil.rmtree(run)
    is_refused(copy, "If it is lost, remove owner.json")

    (run.parent / "storage" / OWNER).unlink()

    go_on(copy)
    go_on(copy)


@pytest.mark.parametrize("step", ["before the storage", "after the storage"])
def test_who_is_killed_on_the_way_into_the_storage_is_not_locked_out(
    run: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    enter = Storage.enter

    def killed(self: Storage, owner: Owner) -> None:
        if step == "after the storage":
            enter(self, owner)
        raise Killed

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Storage, "enter", killed)
            with pytest.raises(Killed), resume_run(run, None):
                pass
    go_on(run)
    go_on(run)


# A record on PostgreSQL is one for all copies; their checkpoints are not.


@pytest.fixture
def recorded(postgres: Server, tmp_path: Path) -> Path:
    """The folder of a run whose record lies on PostgreSQL, on which nobody works."""
    settings = RunSettings(data="digits", budget="10cpu-minutes")
    with create_run(tmp_path / "run", settings, database=postgres.url) as made:
        made.state._record.set_meta("plan", {})
    return tmp_path / "run"


def is_kept_from_the_record(folder: Path, match: str) -> None:
    """See that it cannot go on, and that nothing of it has changed."""
    before = snapshot(folder)
    with pytest.raises(ValueError, match=match), resume_run(folder, "20cpu-minutes"):
        raise AssertionError("it went on")
    assert snapshot(folder) == before
    with open_run(folder) as seen:
        assert seen.settings.budget == "10cpu-minutes"


@pytest.mark.parametrize("entries", [0, 2])
def test_a_copy_does_not_go_on_with_the_runs_record(recorded: Path, entries: int) -> None:
    for _ in range(entries):
        go_on(recorded)
    copy = shutil.copytree(recorded, recorded.with_name("copy"))
    is_kept_from_the_record(copy, rf"{copy} is a copy of {recorded}, which has it\. Go on with")
    go_on(recorded)
    moved = recorded.rename(recorded.with_name("moved"))

    is_kept_from_the_record(copy, rf"copy of one that has gone on since, at {recorded}")

    go_on(moved)
    shutil.rmtree(moved)
    is_kept_from_the_record(copy, "remove .*record.session")
    (copy / "record.session").unlink()
    go_on(copy)
    go_on(copy)


def test_a_folder_of_an_older_version_goes_on_with_its_record(recorded: Path) -> None:
    (recorded / "record.session").unlink()
    with open_run(recorded, write=True) as older:
        older.record._execute("DELETE FROM meta WHERE key = 'owner'")
    go_on(recorded)
    is_kept_from_the_record(
        shutil.copytree(recorded, recorded.with_name("copy")), f"copy of {recorded}"
    )


@pytest.mark.parametrize("left", [0, 1, 2])
def test_who_is_killed_on_the_way_into_the_record_is_not_locked_out(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    write_text = durable.write_text
    writes = iter(range(9))

    def killed(path: Path, text: str) -> None:
        if next(writes) == left:
            raise Killed
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_text", killed)
        if left == 2:  # both are written
            go_on(recorded)
        else:
            with pytest.raises(Killed), resume_run(recorded, None):
                pass
    go_on(recorded)
    go_on(recorded)
