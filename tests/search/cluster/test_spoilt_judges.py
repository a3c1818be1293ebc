"""A judge whose device has failed under it is replaced; a network that does that thrice has failed.

On a real Ray, with the real worker's way of ending itself.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from search.cluster import connection
from search.cluster.connection import Cluster
from search.cluster.crew import JudgeCrew, hold_judges
from search.record import Measured, Record
from search.workers.judge_worker import judge_safely
from searchspace.architecture import Architecture
from tests.tiny_engine import SPACE, judging_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

CUDA_ERROR = "CUDA error: an illegal memory access was encountered"


class SpoiltJudge:
    """Cannot judge one network; after that its process judges no other either."""

    def __init__(self, job: tuple[str, str], *, threads: int) -> None:
        self.poison, self.folder = job
        self.is_spoilt = False

    def judge(
        self, architectures: Iterable[Architecture], by: str
    ) -> list[tuple[Measured | None, str | None]]:
        return [judge_safely(self._judge, architecture) for architecture in architectures]

    def _judge(self, architecture: Architecture) -> Measured:
        Path(self.folder, str(os.getpid())).touch()
        self.is_spoilt = self.is_spoilt or architecture.key == self.poison
        if self.is_spoilt:
            raise RuntimeError(CUDA_ERROR)
        return Measured(top1=50.0, correct=5.0, total=10.0, seconds=0.01)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(connection, "count_cores", lambda: 1)
    with Cluster(device="cpu") as cluster:
        yield cluster


def test_a_spoilt_judge_is_replaced_and_its_network_fails_after_three(
    cluster: Cluster, tmp_path: Path
) -> None:
    rng = random.Random(0)
    networks = list({a.key: a for a in (SPACE.sample(rng) for _ in range(6))}.values())
    poison = networks[2]
    (tmp_path / "pids").mkdir()
    with Record.create(tmp_path / "record.db") as record:
        judging = judging_of(record, first=networks, pace=0.01, proposes=False)
        crew = JudgeCrew(
            cluster,
            SpoiltJudge,
            job=(poison.key, str(tmp_path / "pids")),
            record=record,
            phase="search",
            most=None,
            pace_seconds=0.01,
        )
        with hold_judges(crew):
            # What was lost when all had been handed out comes up in another round.
            for _ in range(5):
                crew.stream(judging, lambda: None)
        states = {t.architecture.key: t.state for t in record.trials()}
        lost = {t.architecture.key: record.count_lost(t.id) for t in record.trials()}
        causes = [c for t in record.trials(state="failed") for c in record.causes(t.id)]
    assert states == {a.key: "failed" if a == poison else "done" for a in networks}
    # Its neighbours pay once at most: when they were in one batch with it.
    assert all(lost[a.key] <= 1 for a in networks if a != poison)
    assert any("lost 3 times" in cause for cause in causes)
    # Each of the three took its process with it.
    assert len(list((tmp_path / "pids").iterdir())) >= 3
