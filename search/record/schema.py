"""The database of a record: its schema, the seam that both dialects fill, and SQLite's side of it.

A record lies in a SQLite file of its own, or in a schema of its own of a PostgreSQL database
(`search.record.postgres`). Statements are written once and run on both.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from search.record.claim import Claim, is_claimed, take_claim
from searchspace import durable

# A file for SQLite, or how libpq connects to a schema of PostgreSQL.
Address = Path | str
Values = Sequence[Any] | Mapping[str, Any]
Rows = list[tuple[Any, ...]]

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE architectures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    params BIGINT NOT NULL,
    macs BIGINT NOT NULL
);
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    architecture_id INTEGER NOT NULL REFERENCES architectures,
    fidelity TEXT NOT NULL,
    seed BIGINT NOT NULL,
    origin TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'done', 'failed')),
    result TEXT CHECK ((result IS NOT NULL) = (state = 'done')),
    UNIQUE (architecture_id, fidelity, seed)
);
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    phase TEXT NOT NULL,
    trial_id INTEGER REFERENCES trials,
    number INTEGER NOT NULL,
    devices DOUBLE PRECISION NOT NULL,
    started DOUBLE PRECISION NOT NULL,
    last_seen DOUBLE PRECISION NOT NULL,
    ended DOUBLE PRECISION,
    outcome TEXT,
    cause TEXT,
    CHECK ((ended IS NULL) = (outcome IS NULL)),
    UNIQUE (trial_id, number)
);
CREATE UNIQUE INDEX one_open_attempt_a_trial ON attempts (trial_id) WHERE ended IS NULL
"""

# An attempt's device-seconds until it ended or was last seen.
CHARGE = "(coalesce(ended, last_seen) - started) * devices"

# Complete it with a WHERE clause, if any, and BY_TRIAL.
TRIALS = f"""
SELECT trials.id, architecture_id, fidelity, seed, origin, state, result,
    coalesce(sum({CHARGE}), 0), count(attempts.id), max(ended),
    (SELECT cause FROM attempts WHERE trial_id = trials.id ORDER BY number DESC LIMIT 1)
FROM trials LEFT JOIN attempts ON trial_id = trials.id"""
BY_TRIAL = "GROUP BY trials.id ORDER BY trials.id"

# Every attempt, as the columns.
LEDGER_COLUMNS = (
    *("id", "phase", "trial_id", "number", "devices", "started", "last_seen", "ended", "outcome"),
    *("cause", "seconds"),
)
LEDGER = f"SELECT {', '.join(LEDGER_COLUMNS[:-1])}, {CHARGE} FROM attempts ORDER BY id"

# The id of a new attempt, and which attempt at its trial (1 without a trial) it is.
NEXT_ATTEMPT = """
SELECT (SELECT coalesce(max(id), 0) + 1 FROM attempts),
    (SELECT coalesce(max(number), 0) + 1 FROM attempts WHERE trial_id = ?)"""

# What SQLite says of the machine; of each code the part that it has in common with its kind.
_OF_MACHINE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}

# Seconds to wait for another process's transaction.
BUSY_SECONDS = 30


class RefusedError(Exception):
    """The database refused a statement.

    Attributes:
        by_machine: Whether no statement of ours can have caused it: the record is locked, may not
            be written, is damaged, or its disk is full or fails.
    """

    def __init__(self, cause: str, *, by_machine: bool = False) -> None:
        super().__init__(cause)
        self.by_machine = by_machine


class DatabaseLostError(ValueError):
    """The database broke off while it was written to: this process is done, the run can go on."""


class Database(Protocol):
    """A connection to a record's tables, for one thread at a time."""

    @property
    def claimed(self) -> bool:
        """Whether this process is the one that writes attempts."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun."""

    @property
    def waited_seconds(self) -> float:
        """For how long statements have waited in all for a server that was away."""

    def execute(self, statement: str, values: Values = ()) -> Rows:
        """Run a statement with values for its ``?`` or ``:name``; return its rows.

        Raises:
            RefusedError: If it cannot be carried out.
        """

    def begin(self, *, alone: bool = True) -> None:
        """Begin a transaction.

        Args:
            alone: Whether no other process writes until it ends; of tables that are not made yet,
                nobody knows.
        """

    def commit(self) -> None:
        """End the transaction; it survives a power cut from now on."""

    def rollback(self) -> None:
        """Undo the transaction, if there is one."""

    def claim(self) -> None:
        """Make this process the one that writes attempts, until it ends or closes.

        Raises:
            ValueError: If another process is that one.
        """

    def is_claimed(self) -> bool:
        """Tell whether some process writes attempts; nothing is written."""

    def close(self) -> None:
        """Close the connection."""


def create_database(address: Address) -> Database:
    """Make the tables of an empty record, all or nothing.

    Raises:
        ValueError: If the file or schema exists, or the server cannot be reached.
    """
    if isinstance(address, str):
        from search.record.postgres import PostgresDatabase

        database = PostgresDatabase(address)
        _fill(database, f"CREATE SCHEMA {database.schema};{SCHEMA}")
        return database
    if address.exists():
        raise ValueError(
            f"{address} exists, and a record is never overwritten. "
            "Go on with that run (--resume) or name another folder."
        )
    partial = address.with_name(f"{address.name}.partial")
    for left in (partial, partial.with_name(f"{partial.name}-journal")):
        left.unlink(missing_ok=True)  # of a process that was killed
    partial.touch()
    with closing(SqliteDatabase(partial)) as begun:
        _fill(begun, SCHEMA)
        begun.execute("PRAGMA journal_mode = WAL")
    durable.replace(partial, address)
    return SqliteDatabase(address)


def _fill(database: Database, schema: str) -> None:
    try:
        database.begin(alone=False)
        for statement in schema.split(";"):
            database.execute(statement)
        version = json.dumps(SCHEMA_VERSION)
        database.execute("INSERT INTO meta VALUES ('schema_version', ?)", (version,))
        database.commit()
    except RefusedError as error:
        database.close()
        raise ValueError(f"Cannot make a record: {error}.") from error
    except DatabaseLostError as error:
        database.close()
        raise ValueError(
            f"{database} broke off while it was made. Give the same command again."
        ) from error


def open_database(address: Address, *, read_only: bool = False) -> Database:
    """Connect to the tables of a record.

    Args:
        read_only: Only look: nothing is written, not even beside the record.

    Raises:
        ValueError: If there is no record, it is of another schema version, or cannot be reached.
    """
    database: Database | None = None
    try:
        database = _connect(address, read_only)
        rows = database.execute("SELECT value FROM meta WHERE key = 'schema_version'")
    except RefusedError as error:
        if database is not None:
            database.close()
        raise ValueError(
            f"{address} cannot be read as the record of a run ({error}). Name the folder of a run"
            f"{'' if read_only else ' that you may write'}."
        ) from error
    version = json.loads(rows[0][0]) if rows else None
    if version != SCHEMA_VERSION:
        database.close()
        raise ValueError(
            f"{database} has schema version {version}, this program reads {SCHEMA_VERSION}. "
            "Use the version of mixer-search that wrote it."
        )
    return database


def next_id(table: str) -> str:
    """Write the expression for a new row's id; no sequence, so that a repeated insert agrees."""
    return f"(SELECT coalesce(max(id), 0) + 1 FROM {table})"


class SqliteDatabase:
    """A record in a file, which readers may open while a process writes."""

    waited_seconds = 0.0

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._claim: Claim | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        try:
            if read_only:
                self._open_to_read()
                return
            # A committed transaction survives a power cut.
            settings = ("PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON")
            self._connection = _sqlite(path, "mode=rw", *settings)
        except sqlite3.Error as error:
            raise _refused(error) from error

    def _open_to_read(self) -> None:
        """Connect without writing; SQLite writes beside its file to read what is not in it yet."""
        wal, index = (self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))
        if not wal.is_file() or (wal.stat().st_size == 0 and not index.is_file()):
            # No process has it open, and none that was killed has left anything.
            self._connection = _sqlite(self._path, "immutable=1")
            return
        try:
            looking = "SELECT count(*) FROM sqlite_master"
            self._connection = _sqlite(self._path, "mode=ro", looking)
        except sqlite3.OperationalError:
            # It would make the missing index here, where it must not or cannot.
            self._copy = tempfile.TemporaryDirectory()
            for file in (self._path, wal):
                shutil.copyfile(file, Path(self._copy.name) / file.name)
            self._connection = _sqlite(Path(self._copy.name) / self._path.name, "mode=rw")

    def __str__(self) -> str:
        return str(self._path)

    @property
    def claimed(self) -> bool:
        return self._claim is not None

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, statement: str, values: Values = ()) -> Rows:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _refused(error) from error

    def begin(self, *, alone: bool = True) -> None:
        self.execute("BEGIN IMMEDIATE" if alone else "BEGIN")

    def commit(self) -> None:
        self.execute("COMMIT")

    def rollback(self) -> None:
        # A full disk may have rolled it back already.
        if self.in_transaction:
            self.execute("ROLLBACK")

    def claim(self) -> None:
        if self._claim is None:
            self._claim = take_claim(_lock_file(self._path))
        if self._claim is None:
            raise claimed_error(self)

    def is_claimed(self) -> bool:
        return self._claim is not None or is_claimed(_lock_file(self._path))

    def close(self) -> None:
        self._connection.close()
        if self._copy:
            self._copy.cleanup()
        if self._claim:
            self._claim.release()
            self._claim = None


def claimed_error(database: object) -> ValueError:
    """Say that another process writes attempts."""
    return ValueError(
        f"Another process is working on {database}. Wait until it has ended, or stop it."
    )


def _refused(error: sqlite3.Error) -> RefusedError:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return RefusedError(str(error), by_machine=primary in _OF_MACHINE)


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _sqlite(path: Path, mode: str, *statements: str) -> sqlite3.Connection:
    """Connect and execute statements; where one fails the connection is closed."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for statement in statements:
            connection.execute(statement).fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _connect(address: Address, read_only: bool) -> Database:
    if isinstance(address, str):
        from search.record.postgres import PostgresDatabase

        return PostgresDatabase(address, read_only=read_only)
    if not address.is_file():
        raise ValueError(f"{address} does not exist. Name the folder of a run.")
    return SqliteDatabase(address, read_only=read_only)
