"""What is waited for on a cluster that is made up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from search.cluster import connection
from search.cluster.connection import WorkerLostError, call_all

LIMIT = 60.0


class Cluster:
    """Actors whose calls take so many seconds of a clock that `wait` moves on."""

    def __init__(self, seconds: float, stopped_seconds: float) -> None:
        self.now, self._ready, self._stopped = 0.0, seconds, stopped_seconds
        self.train = SimpleNamespace(remote=lambda: object())

    def monotonic(self) -> float:
        return self.now

    def wait(
        self, references: list[object], *, num_returns: int, timeout: float
    ) -> tuple[list[object], list[object]]:
        self.now, self._stopped = self.now + self._stopped, 0.0
        if self.now + timeout < self._ready:
            self.now += timeout
            return [], references
        self.now = max(self.now, self._ready)
        return references, []

    def get(self, references: list[object]) -> list[object]:
        return references


def called(
    patch: pytest.MonkeyPatch,
    *,
    seconds: float,
    away_seconds: float,
    stopped_seconds: float = 0.0,
) -> None:
    """Call a worker, while the database is once away for so long, or all processes are stopped."""
    cluster = Cluster(seconds, stopped_seconds)
    patch.setattr(connection, "ray", cluster)
    patch.setattr(connection, "time", cluster)
    away = [away_seconds]

    def wait_for_database() -> None:
        cluster.now += away.pop() if away else 0.0

    call_all([cluster], "train", while_waiting=wait_for_database, limit_seconds=LIMIT)


def test_a_worker_is_not_lost_because_the_database_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called(monkeypatch, seconds=2.0, away_seconds=10 * LIMIT)


def test_a_worker_is_not_lost_because_the_program_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And goes on an hour later, as all processes do."""
    called(monkeypatch, seconds=3600.0 + 2.0, away_seconds=0.0, stopped_seconds=3600.0)


def test_a_worker_that_gives_no_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerLostError, match="1 of 1 workers gave no answer in 60 s"):
        called(monkeypatch, seconds=1e9, away_seconds=0.0)
