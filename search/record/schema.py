"""The database of a record: its schema, the seam that both dialects fill, and SQLite's side of it.

A record lies in a SQLite file of its own, or in a schema of its own of a PostgreSQL database
(`search.record.postgres`). Statements are written once and run on both.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

# A file for SQLite, or how libpq connects to a schema of PostgreSQL.
Place = Path | str
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

# Seconds to wait for another process's transaction.
BUSY_SECONDS = 30


class RefusedError(Exception):
    """The database refused a statement: it is busy, its disk is full."""


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

    def begin(self) -> None:
        """Begin a transaction; no other process writes until it ends."""

    def commit(self) -> None:
        """End the transaction; it survives a power cut from now on."""

    def rollback(self) -> None:
        """Undo the transaction, if there is one."""

    def claim(self) -> None:
        """Make this process the one that writes attempts, until it ends or closes.

        Raises:
            ValueError: If another process is that one.
        """

    def silent_seconds(self, now: float) -> float:
        """Tell for how long no process had worked on the record when it was opened."""

    def close(self) -> None:
        """Close the connection."""


def create_database(place: Place) -> Database:
    """Make the tables of an empty record.

    Raises:
        ValueError: If the file or schema exists, or the server cannot be reached.
    """
    database = _make(place)
    database.execute("BEGIN")
    for statement in SCHEMA.split(";"):
        database.execute(statement)
    version = json.dumps(SCHEMA_VERSION)
    database.execute("INSERT INTO meta VALUES ('schema_version', ?)", (version,))
    database.execute("COMMIT")
    return database


def open_database(place: Place) -> Database:
    """Connect to the tables of a record.

    Raises:
        ValueError: If there is no record, it is of another schema version, or cannot be reached.
    """
    try:
        database = _connect(place)
        rows = database.execute("SELECT value FROM meta WHERE key = 'schema_version'")
    except RefusedError as error:
        raise ValueError(
            f"{place} cannot be read as the record of a run ({error}). Name the folder of a run."
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

    def __init__(self, path: Path) -> None:
        self._path = path
        self._claim_file: TextIO | None = None
        # Opening it touches files.
        files = path.parent.glob(f"{path.name}*")
        self._last_write = max(file.stat().st_mtime for file in files)
        self._connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        # A committed transaction survives a power cut.
        self.execute("PRAGMA synchronous = FULL")
        self.execute("PRAGMA foreign_keys = ON")

    def __str__(self) -> str:
        return str(self._path)

    @property
    def claimed(self) -> bool:
        return self._claim_file is not None

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, statement: str, values: Values = ()) -> Rows:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise RefusedError(str(error)) from error

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.execute("COMMIT")

    def rollback(self) -> None:
        # A full disk may have rolled it back already.
        if self.in_transaction:
            self.execute("ROLLBACK")

    def claim(self) -> None:
        if self._claim_file is not None:
            return
        # A POSIX lock ends with its process, and children do not inherit it.
        file = self._path.with_name(f"{self._path.name}.lock").open("w")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise claimed_error(self) from error
        self._claim_file = file

    def silent_seconds(self, now: float) -> float:
        return now - self._last_write

    def close(self) -> None:
        self._connection.close()
        if self._claim_file:
            self._claim_file.close()
            self._claim_file = None


def claimed_error(database: object) -> ValueError:
    """Say that another process writes attempts."""
    return ValueError(
        f"Another process is working on {database}. Wait until it has ended, or stop it."
    )


def _make(place: Place) -> Database:
    if isinstance(place, str):
        from search.record.postgres import create_schema

        return create_schema(place)
    try:
        place.touch(exist_ok=False)
    except FileExistsError as error:
        raise ValueError(
            f"{place} exists, and a record is never overwritten. "
            "Go on with that run (--resume) or name another folder."
        ) from error
    database = SqliteDatabase(place)
    database.execute("PRAGMA journal_mode = WAL")
    return database


def _connect(place: Place) -> Database:
    if isinstance(place, str):
        from search.record.postgres import PostgresDatabase

        return PostgresDatabase(place)
    if not place.is_file():
        raise ValueError(f"{place} does not exist. Name the folder of a run.")
    return SqliteDatabase(place)
