"""Passwords go only where the user sends them, and no message repeats one."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from search import load_run
from search.cli.app import main
from search.record.addresses import has_secret, redacted
from search.run_folder.folder import open_run, own_run, record_address
from search.run_folder.settings import RunSettings
from search.run_folder.storage import storage_url

pytest.importorskip("psycopg")

PASSWORD = "hunter2-of-the-environment"
CLEAR_TEXT = b"R" + struct.pack(">ii", 8, 3)


class Listener:
    """A server that asks every client for its password, in clear text, and keeps what it gets."""

    def __init__(self) -> None:
        self.heard = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client:
                client.settimeout(10)
                try:
                    while data := client.recv(65536):
                        self.heard += data
                        # Refuse encryption, then ask.
                        is_asking = len(data) == 8
                        client.sendall(b"N" if is_asking else CLEAR_TEXT)
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PGHOST", "PGPORT", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "no-pgpass"))


def foreign(folder: Path, address: str) -> Path:
    """Make a run folder whose record is said to lie at an address."""
    folder.mkdir()
    (folder / "space.yaml").write_text("name: tiny\n")
    (folder / "record.conninfo").write_text(address + "\n")
    return folder


SCHEMA = "options='-c search_path=run_a_12345678'"


@pytest.mark.parametrize(
    "address",
    [
        "host=127.0.0.1 port={port} dbname=x user=me {schema}",
        "postgresql://me@127.0.0.1:{port}/x?options=-c%20search_path%3Drun_a_12345678",
        "host=localhost hostaddr=127.0.0.1 port={port} dbname=x user=me {schema}",
        "host=/nowhere,127.0.0.1 port=1,{port} dbname=x user=me {schema}",
    ],
)
@pytest.mark.parametrize("command", ["look", "resume", "load"])
def test_a_foreign_run_folder_gets_no_password(
    tmp_path: Path, listener: Listener, address: str, command: str
) -> None:
    run = foreign(tmp_path / "run", address.format(port=listener.port, schema=SCHEMA))

    look = {"load": load_run, "resume": lambda run: own_run(run).__enter__()}
    with pytest.raises(ValueError, match="Cannot connect") as raised:
        look.get(command, lambda run: open_run(run).__enter__())(run)

    assert b"run_a_12345678" in listener.heard  # it was asked
    assert PASSWORD.encode() not in listener.heard
    assert PASSWORD not in str(raised.value)
    assert "PGHOST" in str(raised.value)


def test_the_server_that_the_user_names_gets_it(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"host=127.0.0.1 port={listener.port} dbname=x user=me {SCHEMA}"
    run = foreign(tmp_path / "run", address)
    monkeypatch.setenv("PGHOST", "127.0.0.1")
    with pytest.raises(ValueError, match="Cannot connect"), open_run(run):
        pass
    assert PASSWORD.encode() not in listener.heard  # another port is another server

    monkeypatch.setenv("PGPORT", str(listener.port))
    assert record_address(run) == address
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.2")
    assert "password=''" in str(record_address(foreign(tmp_path / "b", f"{address} hostaddr=::1")))


@pytest.mark.parametrize(
    "secret", ["password=hunter2", "sslpassword=hunter2", "scram_client_key=hunter2"]
)
def test_a_secret_in_a_runs_folder_is_refused_unread(tmp_path: Path, secret: str) -> None:
    run = foreign(tmp_path / "run", f"host=/nowhere {secret} {SCHEMA}")

    with pytest.raises(ValueError, match=r"must not have a|Cannot read") as raised, open_run(run):
        pass

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "schema",
    ["-c search_path=x;DROP", "-c search_path=a\\ CASCADE", "-c search_path=", "-c work_mem=4MB"],
)
def test_a_schema_that_is_no_name_is_refused(tmp_path: Path, schema: str) -> None:
    run = foreign(tmp_path / "run", f"host=/nowhere options='{schema}'")

    with pytest.raises(ValueError, match="search_path=SCHEMA"), open_run(run):
        pass


RECORDS = [
    "postgresql://me:hunter2@host/db",
    "postgresql://:hunter2@host/db",
    "postgresql://me@host/db?password=hunter2",
    "postgresql://me@host/db?sslpassword=hunter2",
    "postgresql://me:hunter2@host/db?colour=red",
    "postgresql://me:hunt/hunter2@host:many/db",
    "postgresql://me@host/db?colour=red&password=hunter2",
    "mysql://me:hunter2@host/db",
    "host=h password=hunter2",
    "me:hunter2@host",
]
STORAGES = [
    "s3://key:hunter2@bucket/run",
    "sftp://me:hunter2@host/run",
    "sftp://me:hunt/hunter2@host/run",
    "simplecache::s3://key:hunter2@bucket",
    "az://container/run?sig=hunter2",
    "https://host/run?token=hunter2",
    "s3://bucket/run?aws_secret_access_key=hunter2",
    "nothing://me:hunter2@host",
]


@pytest.mark.parametrize(
    ("option", "address"),
    [("--record", one) for one in RECORDS] + [("--storage", one) for one in STORAGES],
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    address: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["search", "run", "--budget", "1cpu-minute", "--out", "run", option, address]
    monkeypatch.setattr("sys.argv", words)

    with pytest.raises(SystemExit) as ended:
        main()

    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "hunter2" not in printed.out + printed.err
    assert "Traceback" not in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_secret_in_stored_settings_is_refused_and_not_repeated() -> None:
    stored = RunSettings(data="digits", budget="1cpu-minute").to_dict()

    with pytest.raises(ValueError, match="must not have a password") as raised:
        RunSettings.from_dict(stored | {"storage": "s3://key:hunter2@bucket"})

    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/key=5/run",
        "/data/token=7/run",
        "sftp://me@host/run",
        "file:///data/a:b@c",
        "http://[::1]:80/run",
        "postgresql://me@host:5432/db?sslmode=verify-full&sslkey_log=off",
        "s3://bucket/a:b@c",
    ],
)
def test_what_is_no_secret_is_left_alone(address: str) -> None:
    assert not has_secret(address)
    assert redacted(address) == address
    assert storage_url(address).endswith(address)
