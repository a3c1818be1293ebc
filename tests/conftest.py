"""What all tests share: one thread, no display, repeatable property tests, places of records."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from search.record import Record
from search.record.schema import Address
from tests.clock import Clock
from tests.postgres import Server, new_place, running_server

# Before torch is imported: the tests' tensors are tiny, and threads only make them wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

settings.register_profile("repeatable", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Undo what a test, or a training in it, does to the number of torch's threads."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """Run a PostgreSQL server for all tests; one that stops it starts it again."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(running_server())
        except LookupError as error:
            pytest.skip(str(error))
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    """Choose where a new record lies: a file, or a schema of the server."""
    if request.param == "sqlite":
        return tmp_path / "record.db"
    server: Server = request.getfixturevalue("postgres")
    return new_place(server.url)


@pytest.fixture
def clock() -> Clock:
    """Make the clock of the test's record."""
    return Clock()


@pytest.fixture
def record(tmp_path: Path, clock: Clock) -> Iterator[Record]:
    """Make a record in a file, by the test's clock."""
    with Record.create(tmp_path / "record.db", clock=clock) as record:
        yield record
