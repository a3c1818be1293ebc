"""A record on PostgreSQL: a server that goes away and comes back, and where a run finds it."""

from __future__ import annotations

import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pytest

import search as package
from configs.installation import install_command
from search.record import postgres as postgres_module
from search.record.heartbeat import Heartbeat
from search.record.postgres import drop_schema
from search.record.record import Record
from search.record.schema import Address, DatabaseLostError, RefusedError, open_database
from search.run_folder import create_run, creation, resume_run
from search.run_folder.settings import RunSettings
from searchspace import durable
from tests.postgres import Server, new_place

ROOT = Path(__file__).parents[3]
SETTINGS = RunSettings(data="digits", budget="10cpu-minutes")


@pytest.fixture
def place(postgres: Server) -> Address:
    return new_place(postgres.url)


@pytest.fixture(autouse=True)
def server_goes_on(postgres: Server) -> Iterator[None]:
    yield
    postgres.start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_begins_while_the_server_is_away_waits_for_it(
    postgres: Server, place: Address, number: signal.Signals
) -> None:
    with Record.create(place) as record:
        attempts = []
        for _ in range(3):
            attempts.append(record.start_attempt("search", devices=1))
            postgres.stop(number)
            back = threading.Timer(0.3, postgres.start)
            back.start()
            record.finish_attempt(attempts[-1], outcome="done")
            back.join()
        spent, ledger = record.spent(), record.ledger()
        assert record.waited_seconds > 0

    assert [(row[0], row[8]) for row in ledger] == [(n, "done") for n in attempts]
    with Record.open(place) as reader:
        assert reader.ledger() == ledger
        assert reader.spent() == pytest.approx(spent)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_whatever_breaks_under_a_working_process_what_it_was_told_is_there(
    postgres: Server, place: Address, number: signal.Signals
) -> None:
    told: list[int] = []
    with Record.create(place) as record, Heartbeat(record, every_seconds=0.01):

        def work() -> None:
            with suppress(DatabaseLostError):
                for _ in range(300):
                    with record.together():
                        attempt = record.start_attempt("search", devices=1)
                        record.set_meta("last", attempt)
                    record.finish_attempt(attempt, outcome="done")
                    told.append(attempt)

        worker = threading.Thread(target=work)
        worker.start()
        for _ in range(3):
            time.sleep(0.3)
            postgres.stop(number)
            postgres.start()
        worker.join()

    with Record.open(place) as resumed:
        resumed.close_orphans()
        outcomes = {row[0]: row[8] for row in resumed.ledger()}
        # What was begun last may be done and not told, or begun, or not there; nothing is twice.
        assert {number: outcomes[number] for number in told} == dict.fromkeys(told, "done")
        assert sorted(outcomes) == list(range(1, len(outcomes) + 1))
        assert len(outcomes) <= len(told) + 1
        assert resumed.get_meta("last") == len(outcomes)


class Wire:
    """Carries a connection to a server, and cuts it at a commit when told to.

    Attributes:
        at: What the statement holds at which it cuts.
        cut: ``before`` the server gets the commit; ``after`` it, so that the answer is lost;
            ``held``: before it, and the server believes that the connection lives on.
        cuts: How often it has done so.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.cut: str | None = None
        self.at = b"COMMIT"
        self.cuts = 0
        self.url = f"postgresql://postgres@/postgres?host={quote(str(folder), safe='')}"
        self._target = str(server.socket)
        self._held: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / server.socket.name))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the thread, which waits for a connection.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for end in (self._listener, *self._held):
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, socket.socket(socket.AF_UNIX) as server:
                    server.connect(self._target)
                    self._carry(client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            for end in select.select([client, server], [], [])[0]:
                data = end.recv(65536)
                if not data:
                    return
                if end is client and self.cut and self.at in data:
                    cut, self.cut = self.cut, None
                    self.cuts += 1
                    if cut == "after":
                        server.sendall(data)
                        assert server.recv(65536)
                    if cut == "held":
                        self._held.append(server.dup())
                    return
                (server if end is client else client).sendall(data)


@pytest.mark.parametrize("cut", ["before", "after", "held"])
def test_a_transaction_that_breaks_before_anything_was_read_begins_anew(
    postgres: Server, cut: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        wire = stack.enter_context(Wire(postgres, Path(folder)))
        place = new_place(wire.url)
        with Record.create(place) as record:
            first = record.start_attempt("search", devices=1)
            wire.at, wire.cut = b"SELECT outcome FROM attempts", cut
            record.finish_attempt(first, outcome="done")
            second = record.start_attempt("search", devices=1)
            wire.at, wire.cut = b"UPDATE attempts", "before"
            with pytest.raises(DatabaseLostError, match=r"broke off .* \(--resume\)"):
                record.finish_attempt(second, outcome="done")
            assert wire.cuts == 2

        with Record.open(place) as reader:
            ended = [(row[0], row[8]) for row in reader.ledger()]
            assert ended == [(first, "done"), (second, None)]


@pytest.mark.parametrize("cut", ["before", "after", "held"])
def test_a_commit_whose_answer_was_lost_ends_the_process_and_counts_once(
    postgres: Server, cut: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        wire = stack.enter_context(Wire(postgres, Path(folder)))
        place = new_place(wire.url)
        with Record.create(place) as record:
            first = record.start_attempt("search", devices=1)
            wire.cut = cut
            with pytest.raises(DatabaseLostError, match=r"broke off .* \(--resume\)"):
                record.finish_attempt(first, outcome="done")
            assert wire.cuts == 1
            for call in (record.heartbeat, record.ledger, record.spent, record.close_orphans):
                with pytest.raises(DatabaseLostError, match="broke off"):
                    call()

        with Record.open(place) as resumed:
            resumed.close_orphans()
            ends = {"before": "interrupted", "held": "interrupted", "after": "done"}
            assert [(row[0], row[8]) for row in resumed.ledger()] == [(first, ends[cut])]
            second = resumed.start_attempt("search", devices=1)
            resumed.finish_attempt(second, outcome="done")
            assert [row[0] for row in resumed.ledger()] == [1, 2]


def test_a_transaction_that_broke_before_its_commit_is_void(
    postgres: Server, place: Address
) -> None:
    def half() -> None:
        with Record.create(place) as record, record.together():
            record.set_meta("one", 1)
            postgres.stop(signal.SIGKILL)
            postgres.start()
            record.set_meta("two", 2)

    with pytest.raises(DatabaseLostError, match="broke off"):
        half()

    with Record.open(place) as resumed:
        assert (resumed.get_meta("one"), resumed.get_meta("two")) == (None, None)


def test_a_process_that_waited_in_vain_for_another_ones_transaction_goes_on_after_it(
    place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = postgres_module.SETTINGS.replace("'30s'", "'100ms'")
    assert impatient != postgres_module.SETTINGS
    monkeypatch.setattr(postgres_module, "SETTINGS", impatient)
    with Record.create(place) as worker, Record.open(place) as other:
        attempt = worker.start_attempt("search", devices=1)
        with other.together():
            other.set_meta("latency_ms", {})
            for _ in range(2):
                with pytest.raises(RefusedError, match="lock timeout"):
                    worker.heartbeat()
        worker.heartbeat()
        worker.finish_attempt(attempt, outcome="done")
        assert [row[8] for row in worker.ledger()] == ["done"]


def test_a_server_that_stays_away_ends_the_run_with_one_message(
    postgres: Server, place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.record.postgres.PATIENCE_SECONDS", 0.3)
    with Record.create(place) as record:
        attempt = record.start_attempt("supernet", devices=1)
        postgres.stop()
        with pytest.raises(ValueError, match=r"has not answered for 0 seconds .* \(--resume\)"):
            record.heartbeat()
        postgres.start()
        # Another process may have taken over in the meantime.
        with pytest.raises(ValueError, match="has not answered"):
            record.finish_attempt(attempt, outcome="done")

    with Record.open(place) as resumed:
        resumed.close_orphans()
        assert [row[8] for row in resumed.ledger()] == ["interrupted"]


def test_a_process_that_was_overtaken_while_the_server_was_away_ends(
    postgres: Server, place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.record.postgres.CLAIM_SECONDS", 0.3)
    with Record.create(place) as first, Record.open(place) as second:
        attempt = first.start_attempt("search", devices=1)
        postgres.stop()
        postgres.start()
        second.close_orphans()

        for _ in range(2):
            with pytest.raises(ValueError, match="Another process is working on PostgreSQL schema"):
                first.finish_attempt(attempt, outcome="done")

        assert [row[8] for row in second.ledger()] == ["interrupted"]


def test_a_record_is_silent_unless_a_process_holds_it(place: Address) -> None:
    with Record.create(place, clock=lambda: 100.0) as record:
        record.finish_attempt(record.start_attempt("search", devices=1), outcome="done")
        with Record.open(place) as reader:
            assert reader.silent_seconds(175.0) == 0.0
    with Record.open(place) as reader:
        deadline = time.monotonic() + 30
        # The server takes a moment to notice the end of a connection.
        while (silent := reader.silent_seconds(175.0)) == 0.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert silent == 75.0


def test_a_new_run_that_has_said_that_its_database_is_lost_says_nothing_more(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`search run` ends with status 130 then, as after a resume: it was 2, and a second message."""
    monkeypatch.setattr("search.record.postgres.PATIENCE_SECONDS", 0.3)
    with create_run(tmp_path / "run", SETTINGS, database=postgres.url) as run:
        run.record.set_meta("plan", {})
        postgres.stop()
        with pytest.raises(DatabaseLostError, match="has not answered"):
            run.record.heartbeat()
    postgres.start()
    with resume_run(tmp_path / "run", None):
        pass


def test_runs_share_a_database_and_their_folders_find_them(
    postgres: Server, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        with create_run(tmp_path / name, SETTINGS, database=postgres.url) as run:
            run.record.set_meta("plan", {"of": name})
            run.record.start_attempt(f"phase of {name}", devices=1)

    for name in ("one", "two"):
        with resume_run(tmp_path / name, None) as run:
            assert run.record.get_meta("plan") == {"of": name}
            assert list(run.record.spent_by_phase()) == [f"phase of {name}"]
        assert package.load_run(tmp_path / name).ledger.phase.tolist() == [f"phase of {name}"]
        assert not list((tmp_path / name).glob("record.db*"))


def test_a_run_that_cannot_begin_leaves_no_schema(postgres: Server, tmp_path: Path) -> None:
    count = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'run_gone%'"
    database = open_database(_made(new_place(postgres.url)))

    def refused() -> None:
        with create_run(tmp_path / "gone", SETTINGS, database=postgres.url):
            assert database.execute(count) == [(1,)]
            raise ValueError("the budget is too small")

    with pytest.raises(ValueError, match="too small"):
        refused()

    assert database.execute(count) == [(0,)]
    assert not (tmp_path / "gone").exists()
    database.close()


def test_a_schema_that_cannot_be_dropped_does_not_hide_why_the_run_did_not_begin(
    postgres: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gone(_: str) -> None:
        raise ValueError("Cannot connect")

    monkeypatch.setattr("search.record.postgres.drop_schema", gone)
    with (
        pytest.raises(ValueError, match="the budget is too small"),
        create_run(tmp_path / "left", SETTINGS, database=postgres.url),
    ):
        raise ValueError("the budget is too small")

    assert "A schema that nothing uses is left" in caplog.text
    assert "run_left_" in caplog.text
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql://me:secret@host/db", "must not have a password"),
        ("postgresql://me@host/db?password=secret", "must not have a password"),
        ("mysql://host/db", "An address is like postgresql://user@host/db"),
        ("postgresql://host:many/db", "Cannot connect"),
        ("postgresql:///db?host=/nowhere", "Cannot connect to PostgreSQL schema run_refused_"),
        ("postgresql:///db?colour=red", "Cannot read the address"),
    ],
)
@pytest.mark.usefixtures("postgres")
def test_an_address_that_does_not_do_is_refused(tmp_path: Path, address: str, message: str) -> None:
    with (
        pytest.raises(ValueError, match=message) as raised,
        create_run(tmp_path / "refused", SETTINGS, database=address),
    ):
        pass

    assert "secret" not in str(raised.value)
    assert not (tmp_path / "refused").exists()


def test_without_psycopg_a_record_on_postgresql_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from search.record.record import Record; Record.open('dbname=runs')"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert "ValueError: A record on PostgreSQL needs psycopg. Install it: " in done.stderr
    assert install_command("postgres") in done.stderr


def _made(place: Address) -> Address:
    Record.create(place).close()
    return place


def made_schemas(server: Server, name: str) -> int:
    """Count the schemas of runs in folders of a name."""
    database = open_database(_made(new_place(server.url)))
    query = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE ?"
    ((number,),) = database.execute(query, (f"run_{name}_%",))
    database.close()
    return int(number)


@pytest.mark.parametrize("cut", ["before", "after", "held"])
def test_a_schema_that_breaks_off_while_it_is_made_leaves_nothing(
    postgres: Server, tmp_path: Path, cut: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, Wire(postgres, Path(folder)) as wire:
        wire.cut = cut
        with (
            pytest.raises(ValueError, match=r"broke off while it was made. Give the same command"),
            create_run(tmp_path / "broken", SETTINGS, database=wire.url),
        ):
            pass
        assert wire.cuts == 1
    assert not (tmp_path / "broken").exists()
    assert made_schemas(postgres, "broken") == 0


class KilledError(BaseException):
    """The end of a process that can do nothing any more."""


@pytest.mark.parametrize("at", ["before the schema", "after the schema", "before the space"])
def test_a_schema_of_a_process_that_was_killed_is_dropped_by_the_next(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    create, write_text = Record.create, durable.write_text

    def killed_create(address: Address) -> Record:
        if at == "before the schema":
            raise KilledError
        record = create(address)
        if at == "after the schema":
            record.close()
            raise KilledError
        return record

    def killed_write(path: Path, text: str) -> None:
        if path.name == "space.yaml":
            raise KilledError
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(creation._NewRun, "undo", lambda _: None)
        patch.setattr(Record, "create", killed_create)
        patch.setattr(durable, "write_text", killed_write)
        with (
            pytest.raises(KilledError),
            create_run(tmp_path / "killed", SETTINGS, database=postgres.url),
        ):
            pass
    before = made_schemas(postgres, "killed")
    assert before == (at != "before the schema")
    with pytest.raises(ValueError, match="without --resume"), resume_run(tmp_path / "killed", None):
        pass

    with create_run(tmp_path / "killed", SETTINGS, database=postgres.url) as run:
        run.record.set_meta("plan", {})

    assert made_schemas(postgres, "killed") == 1
    with resume_run(tmp_path / "killed", None) as run:
        assert run.space().num_classes == 10
    drop_schema((tmp_path / "killed" / "record.conninfo").read_text().strip())


def test_a_copy_of_a_folder_that_is_being_made_drops_no_schema(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write_text, refused = tmp_path / "making", durable.write_text, []

    def copied(path: Path, text: str) -> None:
        if path == out / "space.yaml":
            shutil.copytree(out, tmp_path / "copy")
            with (
                pytest.raises(ValueError, match="Another process is working"),
                create_run(tmp_path / "copy", SETTINGS),
            ):
                pass
            refused.append(path)
        write_text(path, text)

    monkeypatch.setattr(durable, "write_text", copied)
    with create_run(out, SETTINGS, database=postgres.url) as run:
        run.record.set_meta("plan", {})
    assert refused
    with resume_run(out, None) as run:
        assert run.record.get_meta("plan") == {}
