"""A record in a schema of a PostgreSQL database, over connections that may break.

A transaction is kept as its statements, with what each returned. When the connection breaks they
are repeated over a new one. When it breaks at the commit, the mark that every transaction of the
process that claimed the record leaves tells whether that one went through.
"""

from __future__ import annotations

import functools
import logging
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from search.record.schema import BUSY_SECONDS, RefusedError, Rows, Values, claimed_error

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError as error:
    raise ValueError(
        "A record on PostgreSQL needs psycopg. Install it: pip install 'mixer-search[postgres]'"
    ) from error

logger = logging.getLogger(__name__)

# For how long a run waits for a server that is away, and between two tries.
PATIENCE_SECONDS = 600.0
RETRY_SECONDS = 0.5
# For how long a server may take to notice that a process was killed.
CLAIM_SECONDS = 5.0
# Both ends notice within half a minute that the other machine is gone, and say so.
CONNECT: dict[str, str | int | None] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# A committed transaction survives a power cut, unless the whole server has fsync off.
SETTINGS = f"""
SET synchronous_commit = on; SET lock_timeout = '{BUSY_SECONDS}s'; SET client_min_messages = error;
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4
"""

# Advisory locks of this schema: number 0 is held by the process that writes attempts, number 1 by
# any transaction.
_SCHEMA_ID = "CAST(CAST('meta' AS regclass) AS oid)"
CLAIM = f"SELECT pg_try_advisory_lock(CAST({_SCHEMA_ID} AS integer), 0)"
BEGIN = f"BEGIN; SELECT pg_advisory_xact_lock(CAST({_SCHEMA_ID} AS integer), 1)"
IS_CLAIMED = f"""
SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = {_SCHEMA_ID} AND objid = 0
AND objsubid = 2 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
MARK = (
    "INSERT INTO meta VALUES ('last_write', ?) ON CONFLICT (key) DO UPDATE SET value = "
    "excluded.value; COMMIT"
)
LAST_MARK = "SELECT value FROM meta WHERE key = 'last_write'"
END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
)


class _BrokenError(Exception):
    """The connection broke, or none could be made."""


class PostgresDatabase:
    """A record's schema; its statements wait while the server is away.

    Args:
        place: How libpq connects, with the schema as the search path; see `new_schema`.

    Raises:
        ValueError: If that cannot be read, or the server cannot be reached.
    """

    def __init__(self, place: str) -> None:
        self._parts = _parse(place) | {"application_name": f"mixer-search {uuid.uuid4().hex}"}
        self.schema = str(self._parts.get("options")).rpartition("=")[2]
        self._statements: list[tuple[str, Values, Rows]] | None = None
        self._mark = ""
        self._ended: ValueError | None = None
        self.claimed = False
        self.waited_seconds = 0.0
        try:
            self._connect()
        except _BrokenError as error:
            raise ValueError(
                f"Cannot connect to {self}: {error}. Start the server, or correct the address; "
                "libpq looks for passwords in PGPASSWORD and ~/.pgpass."
            ) from error

    def __str__(self) -> str:
        return f"PostgreSQL schema {self.schema}"

    @property
    def in_transaction(self) -> bool:
        return self._statements is not None

    def execute(self, statement: str, values: Values = ()) -> Rows:
        while True:
            try:
                rows = self._run(statement, values)
                break
            except _BrokenError as error:
                self._restore(error)
        if self._statements is not None:
            self._statements.append((statement, values, rows))
        return rows

    def begin(self) -> None:
        self._statements = []
        self.execute(BEGIN)

    def commit(self) -> None:
        # Others repeat what they write at no harm, and must not hide the mark of the claimed one.
        self._mark = uuid.uuid4().hex
        statement, values = (MARK, (self._mark,)) if self.claimed else ("COMMIT", ())
        done = False
        while not done:
            try:
                self._run(statement, values)
                done = True
            except _BrokenError as error:
                done = self._restore(error, in_commit=True)
        self._statements = None

    def rollback(self) -> None:
        if self._statements is not None:
            self._statements = None
            with suppress(psycopg.Error):
                self._connection.execute("ROLLBACK")

    def claim(self) -> None:
        if not self.claimed:
            self._take_claim(self.execute)
            self.claimed = True

    def silent_seconds(self, now: float) -> float:
        if self.execute(IS_CLAIMED):
            return 0.0
        last = "SELECT coalesce(max(coalesce(ended, last_seen)), 0) FROM attempts"
        return now - float(self.execute(last)[0][0])

    def close(self) -> None:
        self._connection.close()
        self.claimed = False

    def _run(self, statement: str, values: Values = ()) -> Rows:
        if self._ended is not None:
            raise self._ended
        try:
            cursor = self._connection.execute(_translate(statement), values or None)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            # The server may have said that it shuts down before the connection ends.
            if self._connection.closed or (error.sqlstate or "").startswith("57P"):
                raise _BrokenError(_line(error)) from error
            raise RefusedError(_line(error)) from error

    def _connect(self) -> None:
        try:
            self._connection = psycopg.connect(
                make_conninfo("", **(CONNECT | self._parts)),
                autocommit=True,
                # It needs no types for values, and one message for several statements.
                cursor_factory=psycopg.ClientCursor,
            )
        except psycopg.OperationalError as error:
            raise _BrokenError(_line(error)) from error
        self._run(SETTINGS)

    def _restore(self, problem: Exception, *, in_commit: bool = False) -> bool:
        """Connect anew, and repeat the transaction so far.

        Returns:
            Whether the transaction was committed already, so that nothing was repeated.

        Raises:
            ValueError: If the server stays away, or another process has claimed the record.
        """
        logger.warning("%s does not answer (%s). Waiting for it ...", self, problem)
        began = time.monotonic()
        while True:
            try:
                done = self._reconnect(in_commit=in_commit)
                break
            except _BrokenError as error:
                if time.monotonic() - began > PATIENCE_SECONDS:
                    self._ended = ValueError(
                        f"{self} has not answered for {PATIENCE_SECONDS:.0f} seconds ({error}). "
                        "Start the server, and go on with the run (--resume)."
                    )
                    raise self._ended from error
                time.sleep(RETRY_SECONDS)
            except ValueError as error:
                # Another process has it: this one never writes again.
                self._ended = error
                raise
        away = time.monotonic() - began
        self.waited_seconds += away
        logger.warning("%s is back after %.0f seconds.", self, away)
        return done

    def _reconnect(self, *, in_commit: bool) -> bool:
        self._connection.close()
        self._connect()
        # The server may believe that the connection that broke still lives.
        self._run(END_OTHERS)
        if self.claimed:
            self._take_claim(self._run)
        if in_commit and self._run(LAST_MARK) == [(self._mark,)]:
            return True
        for statement, values, rows in self._statements or ():
            if self._run(statement, values) != rows:
                raise claimed_error(self)
        return False

    def _take_claim(self, run: Callable[[str], Rows]) -> None:
        deadline = time.monotonic() + CLAIM_SECONDS
        while run(CLAIM) != [(True,)]:
            if time.monotonic() > deadline:
                raise claimed_error(self)
            time.sleep(0.1)


def new_schema(address: str, name: str) -> str:
    """Choose a schema for a new record, and check that it can be made.

    Args:
        address: Of the database, e.g. ``postgresql://user@host/db``.
        name: For people who look into the database.

    Returns:
        How libpq connects to it.

    Raises:
        ValueError: If the address is none, has a password, or the server refuses.
    """
    if not re.match(r"postgres(ql)?://", address):
        raise ValueError(f"An address is like postgresql://user@host/db, got {address!r}.")
    parts = _parse(address)
    if "password" in parts:
        raise ValueError(
            "The address of a database must not have a password: others would see it in the list "
            "of processes. Put it into ~/.pgpass or PGPASSWORD, where libpq looks for it."
        )
    readable = re.sub(r"[^a-z0-9]+", "_", name.lower())[:40]
    schema = f"run_{readable}_{uuid.uuid4().hex[:8]}"
    parts["options"] = f"{parts.get('options') or ''} -c search_path={schema}".strip()
    place = make_conninfo("", **parts)
    database = PostgresDatabase(place)
    allowed = database.execute("SELECT has_database_privilege(current_database(), 'CREATE')")
    database.close()
    if allowed != [(True,)]:
        raise ValueError(
            "This user must not make schemas there. Let the owner of the database say: "
            "GRANT CREATE ON DATABASE db TO user."
        )
    return place


def create_schema(place: str) -> PostgresDatabase:
    """Make the schema of an empty record.

    Raises:
        ValueError: If it exists.
    """
    database = PostgresDatabase(place)
    try:
        database.execute(f"CREATE SCHEMA {database.schema}")
    except RefusedError as error:
        raise ValueError(f"Cannot make a record: {error}.") from error
    return database


def drop_schema(place: str) -> None:
    """Remove a record, if it is there."""
    database = PostgresDatabase(place)
    database.execute(f"DROP SCHEMA IF EXISTS {database.schema} CASCADE")
    database.close()


def _parse(address: str) -> dict[str, str | int | None]:
    try:
        return dict(conninfo_to_dict(address))
    except psycopg.ProgrammingError as error:
        raise ValueError(f"Cannot read the address of the database: {_line(error)}.") from error


@functools.cache
def _translate(statement: str) -> str:
    return re.sub(r":(\w+)", r"%(\1)s", statement.replace("?", "%s"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
