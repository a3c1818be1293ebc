"""A real PostgreSQL server for the tests: found on this machine, started, killed, started again."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from search.record.schema import Address

START_SECONDS = 60.0
CONFIGURATION = ("-c", "shared_buffers=16MB", "-c", "max_connections=40")


class Server:
    """A server of its own, behind a Unix socket in its folder.

    Args:
        folder: Which the server's user owns.
        programs: Where ``initdb`` and ``postgres`` are.
        user: As whom they run; they refuse to run as root.
    """

    def __init__(self, folder: Path, programs: Path, user: dict[str, Any]) -> None:
        self._folder, self._programs, self._user = folder, programs, user
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = folder / ".s.PGSQL.5432"
        self.url = f"postgresql://postgres@/postgres?host={quote(str(folder), safe='')}"
        initdb: list[str | Path] = [programs / "initdb", "-D", folder / "data", "-U", "postgres"]
        initdb += ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(initdb, cwd=folder, check=True, capture_output=True, **user)

    def start(self) -> None:
        """Start the server if it does not run, and wait until it answers."""
        import psycopg

        deadline = time.monotonic() + START_SECONDS
        command: list[str | Path] = [self._programs / "postgres", "-D", self._folder / "data"]
        command += [*CONFIGURATION, "-h", "", "-k", self._folder]
        while True:
            # After a kill, it ends again while processes of its former life are there.
            if self._process is None or self._process.poll() is not None:
                with (self._folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(
                        command, cwd=self._folder, stdout=log, stderr=log, **self._user
                    )
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._folder / "log").read_text()
                time.sleep(0.05)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server: in order, at once (SIGQUIT), or as a crash (SIGKILL)."""
        assert self._process is not None
        # Those that serve connections outlive a server that was killed until they notice.
        serving = psutil.Process(self._process.pid).children()
        self._process.send_signal(number)
        self._process.wait(START_SECONDS)
        psutil.wait_procs(serving, START_SECONDS)


@contextmanager
def running_server() -> Iterator[Server]:
    """Start a server, and remove it in the end.

    Raises:
        LookupError: If this machine lacks what it needs; the message says what.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise LookupError("psycopg is not installed (pip install 'mixer-search[postgres]')")
    user = _user()
    programs = _find_programs(user)
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if user:
            os.chown(folder, pwd.getpwnam(user["user"]).pw_uid, user["group"])
        server = Server(folder, programs, user)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder)


def new_place(url: str) -> Address:
    """Choose a schema for a record on a server."""
    from search.record.postgres import new_schema

    return new_schema(url, "test")


def read_place(text: str) -> Address:
    """Read back the place of a record from its text."""
    return Path(text) if text.startswith("/") else text


def _user() -> dict[str, Any]:
    """Choose as whom `subprocess` runs a server: as we are, unless we are root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": ()}
        except KeyError:
            continue
    raise LookupError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _find_programs(user: dict[str, Any]) -> Path:
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    package = importlib.util.find_spec("pgserver")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "pginstall" / "bin")
    for folder in folders:
        # It must be readable for the user that runs it, too.
        with_version: list[str | Path] = [folder / "initdb", "--version"]
        try:
            subprocess.run(with_version, cwd="/", check=True, capture_output=True, **user)
        except (OSError, subprocess.CalledProcessError):
            continue
        return folder.joinpath("initdb").resolve().parent
    who = f"the user {user['user']}" if user else "this user"
    raise LookupError(
        f"no PostgreSQL server that {who} can run (pip install pgserver, or apt install postgresql)"
    )
