"""Looking at a run writes nothing, so it works where nothing can be written."""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

import search as package
from search.cli.app import main
from search.record.record import Record
from search.record.schema import Address, RefusedError
from search.run_folder import open_run
from tests.attacks.test_ownership import snapshot
from tests.tiny_run import write_run

NOBODY = 65_534
COMMANDS = [
    ("status", "{run}"),
    ("pareto", "{run}"),
    ("pareto", "{run}", "--json"),
    ("select", "{run}", "--top", "2"),
    ("show", "{run}:1"),
    ("compare", "{run}:1", "{run}:2"),
]


def crash_while_writing(run: Path) -> None:
    """Leave the record as a process that was killed does: the newest only in the -wal file."""
    if os.fork() == 0:
        record = Record.open(run / "record.db")
        record.set_meta("newest", "in the log")
        os._exit(0)
    os.wait()
    assert (run / "record.db-wal").stat().st_size > 0


def drop_index(run: Path) -> None:
    """Lose SQLite's index of the log, as a copy of the two other files does."""
    crash_while_writing(run)
    (run / "record.db-shm").unlink()


def leave_as_is(run: Path) -> None:
    """Leave the record closed in order."""


STATES = pytest.mark.parametrize("state", [leave_as_is, crash_while_writing, drop_index])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def look(run: Path, patch: pytest.MonkeyPatch) -> None:
    """Give every command that looks."""
    for words in COMMANDS:
        patch.setattr("sys.argv", ["search", *(word.format(run=run) for word in words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, words
    assert package.load_run(run).ledger.size > 0


@STATES
def test_looking_changes_nothing_in_the_folder(
    run: Path, monkeypatch: pytest.MonkeyPatch, state: Callable[[Path], None]
) -> None:
    state(run)
    before, names = snapshot(run), sorted(run.iterdir())

    look(run, monkeypatch)

    assert snapshot(run) == before
    if state is not drop_index:  # SQLite makes it anew, where it can
        assert sorted(run.iterdir()) == names


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the place of another user, as root can")
@STATES
def test_a_colleagues_folder_can_be_looked_at(
    monkeypatch: pytest.MonkeyPatch, state: Callable[[Path], None]
) -> None:
    # Not below pytest's own folder: each start of pytest closes that for others.
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place) / "run")
        # What is to be imported is: Python itself may lie where another user may not look.
        look(run, monkeypatch)
        state(run)
        for path in (run, *run.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        for parent in run.parents:
            if parent.stat().st_uid == os.geteuid() and len(parent.parts) > 2:
                parent.chmod(0o755)
        newest = None if state is leave_as_is else "in the log"

        def as_another() -> None:
            look(run, monkeypatch)
            with Record.open(run / "record.db", read_only=True) as record:
                assert record.get_meta("newest") == newest

        as_nobody(as_another)


def as_nobody(work: Callable[[], None]) -> None:
    """Do something as a user who may write nowhere."""

    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the place of another user, as root can")
def test_what_a_colleague_may_not_write_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise AssertionError("networks were timed")

    monkeypatch.setattr("search.front.measure_latencies", measured)
    with tempfile.TemporaryDirectory() as place:
        run = write_run(Path(place) / "run")
        Path(place).chmod(0o755)
        run.chmod(0o777)  # SQLite may make its files beside a record that it may not write
        (run / "record.db").chmod(0o644)

        def as_another() -> None:
            with (
                pytest.raises(ValueError, match=r"run cannot be written .*copy the folder"),
                open_run(run, write=True),
            ):
                pass
            monkeypatch.setattr("sys.argv", ["search", "pareto", str(run), "--latency"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 2

        look(run, monkeypatch)
        as_nobody(as_another)


@STATES
def test_a_full_disk_can_be_looked_at(
    run: Path, monkeypatch: pytest.MonkeyPatch, state: Callable[[Path], None]
) -> None:
    state(run)
    connect = sqlite3.connect

    def on_a_full_disk(place: str, **options: object) -> sqlite3.Connection:
        # SQLite's own message for a file beside the record that cannot be made or grown.
        made = {"-wal", "-shm"} - {p.name.removeprefix("record.db") for p in run.iterdir()}
        if str(run) in place and "immutable" not in place and made:
            raise sqlite3.OperationalError("database or disk is full")
        return connect(place, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite3, "connect", on_a_full_disk)
    look(run, monkeypatch)


def test_a_reader_sees_what_a_working_process_wrote_last(run: Path) -> None:
    with Record.open(run / "record.db") as writer:
        writer.claim()
        for number in range(3):
            writer.set_meta("number", number)
            with Record.open(run / "record.db", read_only=True) as reader:
                assert reader.get_meta("number") == number


def test_who_looks_cannot_write(place: Address) -> None:
    Record.create(place).close()
    with Record.open(place, read_only=True) as reader, pytest.raises(RefusedError):
        reader.set_meta("phase", "done")
    with Record.open(place) as record:
        assert record.get_meta("phase") is None


def test_a_working_process_is_seen_without_its_lock_being_taken(run: Path) -> None:
    with Record.open(run / "record.db", read_only=True) as reader:
        assert reader.last_seen() is not None
        with Record.open(run / "record.db") as writer:
            writer.claim()
            assert reader.last_seen() is None


def test_a_damaged_record_is_one_message(run: Path) -> None:
    (run / "record.db").write_bytes(b"\0" * 4096)
    with pytest.raises(ValueError, match="cannot be read as the record of a run"):
        Record.open(run / "record.db", read_only=True)


def damage(run: Path) -> None:
    """Leave a file that SQLite opens, and refuses when it is read."""
    (run / "record.db").write_bytes(b"\0" * 4096)


@pytest.mark.parametrize("state", [leave_as_is, crash_while_writing, drop_index, damage])
@pytest.mark.parametrize("read_only", [True, False])
def test_no_connection_is_left_to_the_garbage_collector(
    run: Path, monkeypatch: pytest.MonkeyPatch, state: Callable[[Path], None], read_only: bool
) -> None:
    state(run)
    opened, connect = [], sqlite3.connect

    def kept(*words: object, **options: object) -> sqlite3.Connection:
        opened.append(connect(*words, **options))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", kept)
    with suppress(ValueError), Record.open(run / "record.db", read_only=read_only):
        pass

    assert opened
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            connection.execute("SELECT 1")


@pytest.fixture(autouse=True)
def no_writes_are_kept_open(run: Path) -> Iterator[None]:
    yield
    with closing(sqlite3.connect(run / "record.db")):
        pass
