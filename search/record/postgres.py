"""A record in a schema of a PostgreSQL database, over connections that may break.

Where a connection is found to be broken before a transaction (or a single statement), a new one is
waited for. Inside a transaction nobody can tell what became of it: this process ends, the record
tells the next one.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress

from configs.installation import install_command
from search.record.addresses import has_secret, redacted
from search.record.schema import (
    BUSY_SECONDS,
    DatabaseLostError,
    RefusedError,
    Rows,
    Values,
    claimed_error,
)

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError as error:
    raise ValueError(
        f"A record on PostgreSQL needs psycopg. Install it: {install_command('postgres')}"
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
END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
)


# What libpq takes and nobody else should see.
SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
# What says to which server a password goes: libpq's names, its variables, its defaults.
SERVER = (
    ("host", "PGHOST", ""),
    ("hostaddr", "PGHOSTADDR", ""),
    ("port", "PGPORT", "5432"),
    ("service", "PGSERVICE", ""),
)
# SQLSTATEs of what is no fault of a statement: a server that only reads since a fail-over, missing
# rights, resources that are used up, locks and time limits, errors of the system and of its files.
_OF_MACHINE = ("25006", "42501", "53", "55", "57", "58", "XX")
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]*")


class _BrokenError(Exception):
    """The connection broke, or none could be made."""


class PostgresDatabase:
    """A record's schema; what begins while the server is away waits for it.

    Args:
        address: How libpq connects, with the schema as the search path; see `new_schema`.
        read_only: Let the server refuse to write.

    Raises:
        ValueError: If that cannot be read, or the server cannot be reached.
    """

    def __init__(self, address: str, *, read_only: bool = False) -> None:
        self._parts = _parse(address) | {"application_name": f"mixer-search {uuid.uuid4().hex}"}
        self.schema = str(self._parts.get("options")).rpartition("=")[2]
        if not _SCHEMA_NAME.fullmatch(self.schema):
            raise ValueError(
                f"The address of a record ends with options='-c search_path=SCHEMA', got "
                f"{self.schema!r} there. Copy it from the run's own record.conninfo."
            )
        self._read_only = read_only
        self.in_transaction = self._has_acted = False
        self._begin = BEGIN
        self._ended: ValueError | None = None
        self.claimed = False
        self.waited_seconds = 0.0
        try:
            self._connect()
        except _BrokenError as error:
            raise ValueError(
                f"Cannot connect to {self}: {error}. Start the server, or correct the address; "
                "libpq looks for passwords in ~/.pgpass and PGPASSWORD, which goes only to the "
                "server that was typed, or that PGHOST and PGPORT name."
            ) from error

    def __str__(self) -> str:
        return f"PostgreSQL schema {self.schema}"

    def execute(self, statement: str, values: Values = ()) -> Rows:
        begins_anew = False
        while True:
            try:
                if begins_anew:
                    self._run(self._begin)
                rows = self._run(statement, values)
            except _BrokenError as error:
                # Where nothing was read or written in a transaction, nobody relies on it.
                begins_anew = self.in_transaction and not self._has_acted
                if self.in_transaction and self._has_acted:
                    self._ended = DatabaseLostError(
                        f"{self} broke off while it was written to ({error}). What this process "
                        "wrote last is there or is not; the run can go on (--resume)."
                    )
                    raise self._ended from error
                self._wait(error)
            else:
                self._has_acted = self.in_transaction
                return rows

    def begin(self, *, alone: bool = True) -> None:
        self._begin = BEGIN if alone else "BEGIN"
        try:
            self.execute(self._begin)
        except RefusedError:
            # It has begun, and did not get its lock: else all that follows would be refused, too.
            with suppress(psycopg.Error):
                self._connection.execute("ROLLBACK")
            raise
        self.in_transaction = True

    def commit(self) -> None:
        self.execute("COMMIT")
        self.in_transaction = self._has_acted = False

    def rollback(self) -> None:
        if self.in_transaction:
            self.in_transaction = self._has_acted = False
            with suppress(psycopg.Error):
                self._connection.execute("ROLLBACK")

    def claim(self) -> None:
        while not self.claimed:
            try:
                self._take_claim()
                self.claimed = True
            except _BrokenError as error:
                self._wait(error)

    def is_claimed(self) -> bool:
        return bool(self.execute(IS_CLAIMED))

    def close(self) -> None:
        self._connection.close()
        if self.claimed and isinstance(self._ended, DatabaseLostError):
            # The server may believe for half a minute that the connection that broke still lives,
            # and has the claim.
            self._ended = None
            with suppress(_BrokenError, RefusedError):
                self._connect()
                self._run(END_OTHERS)
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
            raise RefusedError(_line(error), by_machine=_is_of_machine(error)) from error

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
        if self._read_only:
            self._run("SET default_transaction_read_only = on")

    def _wait(self, problem: Exception) -> None:
        """Wait for the server, and connect anew.

        Raises:
            ValueError: If the server stays away, or another process has claimed the record.
        """
        logger.warning("%s does not answer (%s). Waiting for it ...", self, problem)
        began = time.monotonic()
        while True:
            try:
                self._reconnect()
                break
            except _BrokenError as error:
                if time.monotonic() - began > PATIENCE_SECONDS:
                    self._ended = DatabaseLostError(
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

    def _reconnect(self) -> None:
        self._connection.close()
        self._connect()
        # The server may believe that the connection that broke still lives.
        self._run(END_OTHERS)
        if self.claimed:
            self._take_claim()

    def _take_claim(self) -> None:
        deadline = time.monotonic() + CLAIM_SECONDS
        while self._run(CLAIM) != [(True,)]:
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
        raise ValueError(
            f"An address is like postgresql://user@host/db, got {redacted(address)!r}."
        )
    parts = _parse(address)
    _refuse_secrets(parts)
    readable = re.sub(r"[^a-z0-9]+", "_", name.lower())[:40]
    schema = f"run_{readable}_{uuid.uuid4().hex[:8]}"
    parts["options"] = f"{parts.get('options') or ''} -c search_path={schema}".strip()
    address = make_conninfo("", **parts)
    database = PostgresDatabase(address)
    allowed = database.execute("SELECT has_database_privilege(current_database(), 'CREATE')")
    database.close()
    if allowed != [(True,)]:
        raise ValueError(
            "This user must not make schemas there. Let the owner of the database say: "
            "GRANT CREATE ON DATABASE db TO user."
        )
    return address


def guarded(address: str) -> str:
    """Return an address that was read from a file, so that it gets no password by itself.

    Anybody may have written the file. PGPASSWORD is for the server that the user's PGHOST and
    PGPORT name; another one is asked without it, and with what ~/.pgpass has for it.

    Raises:
        ValueError: If it cannot be read, or has a password.
    """
    parts = _parse(address)
    _refuse_secrets(parts)
    if _is_named(parts, os.environ):
        return address
    return make_conninfo("", **(parts | {"password": ""}))


def has_schema(address: str) -> bool:
    """Tell whether there is a record.

    Raises:
        ValueError: If the server cannot be reached.
    """
    with closing(PostgresDatabase(address, read_only=True)) as database:
        rows = database.execute("SELECT 1 FROM pg_namespace WHERE nspname = ?", (database.schema,))
        return bool(rows)


def drop_schema(address: str) -> None:
    """Remove a record, if it is there.

    Raises:
        RefusedError: If the server refuses.
        ValueError: If it cannot be reached.
    """
    with closing(PostgresDatabase(address)) as database:
        database.execute(f"DROP SCHEMA IF EXISTS {database.schema} CASCADE")


def _parse(address: str) -> dict[str, str | int | None]:
    try:
        return dict(conninfo_to_dict(address))
    except psycopg.ProgrammingError as error:
        # What libpq says repeats a part of the address, which may be a password.
        reason = "" if has_secret(address) else f": {_line(error)}"
        raise ValueError(f"Cannot read the address of the database{reason}.") from None


def _refuse_secrets(parts: Mapping[str, object]) -> None:
    if found := SECRETS & parts.keys():
        raise ValueError(
            f"The address of a database must not have a {min(found)}: others would see it in the "
            "list of processes. Put a password into ~/.pgpass or PGPASSWORD, where libpq looks "
            "for it."
        )


def _is_named(parts: Mapping[str, object], environment: Mapping[str, str]) -> bool:
    return all(
        name not in parts or str(parts[name]) == environment.get(variable, default)
        for name, variable, default in SERVER
    )


def _is_of_machine(error: psycopg.Error) -> bool:
    return (error.sqlstate or "").startswith(_OF_MACHINE)


@functools.cache
def _translate(statement: str) -> str:
    return re.sub(r":(\w+)", r"%(\1)s", statement.replace("?", "%s"))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
