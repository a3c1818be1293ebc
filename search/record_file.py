"""The file of a record: schema, queries, version, and which process may write attempts to it."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from pathlib import Path
from typing import TextIO

SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE architectures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    params INTEGER NOT NULL,
    macs INTEGER NOT NULL
);
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    architecture_id INTEGER NOT NULL REFERENCES architectures,
    fidelity TEXT NOT NULL,
    seed INTEGER NOT NULL,
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
    devices REAL NOT NULL,
    started REAL NOT NULL,
    last_seen REAL NOT NULL,
    ended REAL,
    outcome TEXT,
    cause TEXT,
    CHECK ((ended IS NULL) = (outcome IS NULL)),
    UNIQUE (trial_id, number)
);
CREATE UNIQUE INDEX one_open_attempt_a_trial ON attempts (trial_id) WHERE ended IS NULL;
"""

# An attempt's device-seconds. The attempts that this process holds are charged until now.
CHARGE = """(
    CASE
        WHEN ended IS NOT NULL THEN ended
        WHEN attempts.id IN (SELECT value FROM json_each(:live)) THEN max(last_seen, :now)
        ELSE last_seen
    END - started
) * devices"""

# The same for attempts that this process does not hold.
CHARGE_OF_OTHERS = "(coalesce(ended, last_seen) - started) * devices"

# Complete it with a WHERE clause, if any, and BY_TRIAL.
TRIALS = f"""
SELECT trials.id, architecture_id, fidelity, seed, origin, state, result,
    coalesce(sum({CHARGE}), 0), count(attempts.id), max(ended),
    (SELECT cause FROM attempts WHERE trial_id = trials.id ORDER BY number DESC LIMIT 1)
FROM trials LEFT JOIN attempts ON trial_id = trials.id"""
BY_TRIAL = "GROUP BY trials.id ORDER BY trials.id"

# Seconds to wait for another process's transaction.
BUSY_SECONDS = 30


def create_file(path: Path) -> sqlite3.Connection:
    """Make the file of an empty record.

    Raises:
        ValueError: If the file exists.
    """
    try:
        path.touch(exist_ok=False)
    except FileExistsError as error:
        raise ValueError(
            f"{path} exists, and a record is never overwritten. "
            "Go on with that run (--resume) or name another folder."
        ) from error
    connection = _connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO meta VALUES ('schema_version', ?)", (json.dumps(SCHEMA_VERSION),)
    )
    connection.execute("COMMIT")
    return _configure(connection)


def open_file(path: Path) -> sqlite3.Connection:
    """Connect to the file of a record.

    Raises:
        ValueError: If the file is missing, no record, or one of another schema version.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist. Name the folder of a run.")
    connection = _connect(path)
    query = "SELECT value FROM meta WHERE key = 'schema_version'"
    try:
        row = connection.execute(query).fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        raise ValueError(
            f"{path} cannot be read as the record of a run ({error}). Name the folder of a run."
        ) from error
    version = json.loads(row[0]) if row else None
    if version != SCHEMA_VERSION:
        connection.close()
        raise ValueError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}. "
            "Use the version of mixer-search that wrote it."
        )
    return _configure(connection)


def claim_file(path: Path) -> TextIO:
    """Make this process the one that writes attempts, until it closes the returned file or ends.

    Raises:
        ValueError: If another process is that one.
    """
    # A POSIX lock ends with its process, and children do not inherit it.
    file = path.with_name(f"{path.name}.lock").open("w")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ValueError(
            f"Another process is working on {path}. Wait until it has ended, or stop it."
        ) from error
    return file


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _configure(connection: sqlite3.Connection) -> sqlite3.Connection:
    # A committed transaction survives a power cut.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
