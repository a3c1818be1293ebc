"""Two drivers at once: one has the run, the other says so and changes nothing.

The steps of the first are held open by events, so nothing here depends on how fast anything is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import supernet.data
from search.record import claim as claims
from search.record.claim import is_claimed, take_claim
from search.record.record import Record
from search.run_folder import create_run, creation, open_run, own_run, resume_run
from search.run_folder.settings import RunSettings
from search.run_folder.storage import OWNER, storage_url
from tests.postgres import Server

ROOT = Path(__file__).parents[2]
SETTINGS = RunSettings(data="digits", budget="10cpu-minutes")
CLAIMED = "Another process is working on"


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, but for SQLite's index of who reads."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


class Held:
    """A driver in a thread that waits while it decodes images, until it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.arrived, self.go = threading.Event(), threading.Event()
        self.outcome: BaseException | str = "not ended"
        self._prepare, self._thread = supernet.data.prepare_data, threading.Thread()
        self._patch = patch

    def start(self, folder: Path, settings: RunSettings, *, fails: bool = False) -> None:
        def prepare(*arguments: Any, **options: Any) -> Any:
            self._patch.setattr(supernet.data, "prepare_data", self._prepare)
            self.arrived.set()
            assert self.go.wait(60)
            if fails:
                raise ValueError("an image is damaged")
            return self._prepare(*arguments, **options)

        def drive() -> None:
            try:
                with create_run(folder, settings) as run:
                    run.record.set_meta("plan", {"of": "the first"})
                self.outcome = "done"
            except BaseException as error:
                self.outcome = error

        self._patch.setattr(supernet.data, "prepare_data", prepare)
        self._thread = threading.Thread(target=drive)
        self._thread.start()
        assert self.arrived.wait(60)

    def end(self) -> BaseException | str:
        self.go.set()
        self._thread.join(60)
        return self.outcome


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    driver = Held(monkeypatch)
    yield driver
    driver.end()


@pytest.mark.parametrize(
    "second",
    [
        lambda out: create_run(out, SETTINGS),
        lambda out: resume_run(out, None),
        lambda out: resume_run(out, "20cpu-minutes"),
        own_run,
    ],
)
def test_who_comes_while_images_are_decoded_changes_nothing(
    tmp_path: Path, held: Held, second: Callable[[Path], Any]
) -> None:
    out = tmp_path / "run"
    held.start(out, SETTINGS)
    before = snapshot(tmp_path)

    with pytest.raises(ValueError, match=CLAIMED), second(out):
        pass

    assert snapshot(tmp_path) == before
    assert held.end() == "done"
    with resume_run(out, None) as run:
        assert run.record.get_meta("plan") == {"of": "the first"}


def test_who_fails_after_another_was_refused_leaves_nothing(tmp_path: Path, held: Held) -> None:
    held.start(tmp_path / "run", SETTINGS, fails=True)
    with pytest.raises(ValueError, match=CLAIMED), create_run(tmp_path / "run", SETTINGS):
        pass

    assert str(held.end()) == "an image is damaged"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("round_", range(6))
def test_of_two_that_begin_at_the_same_instant_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_: int
) -> None:
    # Both have seen that the folder is free before either goes on, and the winner works until the
    # other has ended.
    both, ended = threading.Barrier(2), threading.Event()
    check, seen = creation.check_settings, threading.local()

    def check_and_wait(settings: RunSettings) -> Any:
        space = check(settings)
        both.wait(60)
        return space

    monkeypatch.setattr(creation, "check_settings", check_and_wait)
    outcomes: list[str] = []

    def drive(name: str) -> None:
        seen.name = name
        try:
            with create_run(tmp_path / "run", SETTINGS) as run:
                assert ended.wait(60)
                run.record.set_meta("plan", {"of": name})
            outcomes.append(name)
        except ValueError as error:
            outcomes.append(str(error))
            ended.set()

    threads = [threading.Thread(target=drive, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    refused, winner = outcomes
    assert refused.startswith(CLAIMED)
    with open_run(tmp_path / "run") as run:
        assert run.record.get_meta("plan") == {"of": winner}


@contextmanager
def working(out: Path, *, database: str | None = None, storage: str = "") -> Iterator[None]:
    """Be the process that works on a run, before its first attempt."""
    settings = RunSettings(data="digits", budget="10cpu-minutes", storage=storage)
    with create_run(out, settings, database=database) as run:
        run.record.set_meta("plan", {"of": "the first"})
        yield


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_between_the_making_of_a_run_and_its_first_attempt_nobody_else_gets_it(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    server = request.getfixturevalue("postgres") if where == "postgresql" else None
    with working(tmp_path / "run", database=server and server.url):
        before = snapshot(tmp_path)
        for budget in (None, "20cpu-minutes"):
            with pytest.raises(ValueError, match=CLAIMED), resume_run(tmp_path / "run", budget):
                pass
        with pytest.raises(ValueError, match="is in use"), create_run(tmp_path / "run", SETTINGS):
            pass
        assert snapshot(tmp_path) == before
        with open_run(tmp_path / "run") as seen:
            assert seen.settings.budget == "10cpu-minutes"


def test_a_copy_of_the_folder_does_not_get_the_schema(postgres: Server, tmp_path: Path) -> None:
    with working(tmp_path / "run", database=postgres.url):
        (tmp_path / "copy").mkdir()
        for name in ("record.conninfo", "space.yaml"):
            (tmp_path / "copy" / name).write_bytes((tmp_path / "run" / name).read_bytes())

        with pytest.raises(ValueError, match=CLAIMED), resume_run(tmp_path / "copy", "1cpu-hour"):
            pass

        with open_run(tmp_path / "run") as seen:
            assert seen.settings.budget == "10cpu-minutes"


def test_a_budget_is_taken_only_by_who_can_work(tmp_path: Path) -> None:
    with working(tmp_path / "run"):
        pass

    def refused() -> None:
        with resume_run(tmp_path / "run", "20cpu-minutes") as run:
            assert run.settings.budget == "20cpu-minutes"
            raise ValueError("no cluster answers")

    with pytest.raises(ValueError, match="no cluster"):
        refused()
    with open_run(tmp_path / "run") as run:
        assert run.settings.budget == "10cpu-minutes"
    with resume_run(tmp_path / "run", "20cpu-minutes") as run:
        pass
    with open_run(tmp_path / "run") as run:
        assert run.settings.budget == "20cpu-minutes"


def test_of_two_runs_that_ask_for_one_storage_one_gets_it(tmp_path: Path, held: Held) -> None:
    storage = storage_url(str(tmp_path / "storage"))
    settings = RunSettings(data="digits", budget="10cpu-minutes", storage=storage)
    held.start(tmp_path / "first", settings)  # it has found the storage empty, and decodes
    with create_run(tmp_path / "second", settings) as run:
        run.record.set_meta("plan", {"of": "the second"})
        run.share_data()
        owned = snapshot(tmp_path / "storage")

        outcome = held.end()

        assert "is in use (it has owner.json)" in str(outcome)
        assert not (tmp_path / "first").exists()
        assert snapshot(tmp_path / "storage") == owned
    assert (tmp_path / "storage" / OWNER).is_file()


def test_a_schema_is_dropped_only_by_who_made_it(
    postgres: Server, tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[str] = []
    monkeypatch.setattr("search.record.postgres.drop_schema", dropped.append)
    held.start(tmp_path / "run", SETTINGS)

    with (
        pytest.raises(ValueError, match=CLAIMED),
        create_run(tmp_path / "run", SETTINGS, database=postgres.url),
    ):
        pass

    assert dropped == []


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from search.record.claim import take_claim\n"
        "claim = take_claim(Path(sys.argv[1])); print('has it', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / "run.lock"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "has it\n"
        assert is_claimed(lock)
        assert take_claim(lock) is None
        other.kill()
    assert not is_claimed(lock)
    claim = take_claim(lock)
    assert claim is not None
    claim.release()


def test_a_lock_whose_file_was_removed_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "run.lock"
    first = take_claim(lock)
    assert first is not None
    flock = claims.fcntl.flock

    def removed_meanwhile(descriptor: int, how: int) -> None:
        # The first gives up between the second's opening of the file and its locking.
        monkeypatch.undo()
        assert first is not None
        first.remove()
        first.release()
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", removed_meanwhile)
    second = take_claim(lock)

    assert second is not None
    assert os.path.samestat(os.fstat(second._descriptor), lock.stat())
    assert second.token != first.token
    second.release()


def test_a_record_is_claimed_before_anything_is_closed_in_it(tmp_path: Path) -> None:
    with Record.create(tmp_path / "record.db") as first, ExitStack() as stack:
        first.claim()
        attempt = first.start_attempt("search", devices=1)
        second = stack.enter_context(Record.open(tmp_path / "record.db"))
        with pytest.raises(ValueError, match=CLAIMED):
            second.close_orphans()
        with pytest.raises(ValueError, match=CLAIMED):
            second.start_attempt("search", devices=1)
        first.finish_attempt(attempt, outcome="done")
