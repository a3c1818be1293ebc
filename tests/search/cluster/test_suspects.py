"""Who is to blame when a judge dies, where all answers on their way die with it."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from search.cluster import crew as crew_module
from search.cluster.crew import JudgeCrew, hold_judges
from search.record import Measured, Record
from searchspace.architecture import Architecture
from tests.tiny_engine import SPACE, judging_of

GOOD = Measured(top1=50.0, correct=5.0, total=10.0, seconds=0.01)


class Process:
    """Answers all that it has when somebody waits; with one network it dies, and every answer."""

    def __init__(self, poison: str) -> None:
        self.poison, self.is_dead = poison, False
        self.calls: dict[object, list[Architecture]] = {}
        self.judge = SimpleNamespace(remote=self._take)
        self.__ray_call__ = SimpleNamespace(remote=lambda function: self._take([], ""))

    def _take(self, batch: list[Architecture], by: str) -> object:
        call = object()
        self.calls[call] = batch
        return call

    def work(self) -> None:
        """Judge what lies there."""
        self.is_dead |= any(a.key == self.poison for batch in self.calls.values() for a in batch)


class FallingProcesses:
    """A cluster of one device, and what the crew asks of Ray."""

    devices = free = 1

    def __init__(self, poison: str) -> None:
        self.poison = poison
        self.processes: list[Process] = []

    def start_actor(self, worker: type, job: Any) -> Process:
        """Begin another process."""
        self.processes.append(Process(self.poison))
        return self.processes[-1]

    def end_actors(self, actors: list[Process]) -> None:
        """Nothing to end."""

    def nodes(self) -> set[str]:
        """There is one."""
        return {"node"}

    def wait(
        self, calls: list[object], *, num_returns: int, timeout: float
    ) -> tuple[list[object], list[object]]:
        """Let the newest process do all that it was given; then all calls have ended."""
        self.processes[-1].work()
        return calls, []

    def get(self, call: object) -> Any:
        """Return an answer of a process that lives."""
        (process,) = (p for p in self.processes if call in p.calls)
        if process.is_dead:
            raise RayActorError
        batch = process.calls.pop(call)
        return [(GOOD, None) for _ in batch] or "node"

    def kill(self, process: Process) -> None:
        """End a process."""
        process.is_dead = True


@pytest.mark.parametrize("place", [0, 2, 5])
def test_only_the_network_that_kills_its_judge_is_lost_more_than_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    rng = random.Random(0)
    networks = list({a.key: a for a in (SPACE.sample(rng) for _ in range(6))}.values())
    poison = networks[place].key
    cluster: Any = FallingProcesses(poison)
    monkeypatch.setattr(crew_module, "ray", cluster)
    monkeypatch.setattr(crew_module, "RECRUIT_EVERY_SECONDS", 0.0)
    with Record.create(tmp_path / "record.db") as record:
        judging = judging_of(record, first=networks, pace=0.01, proposes=False)
        crew = JudgeCrew(
            cluster, object, job=None, record=record, phase="search", most=None, pace_seconds=0.01
        )
        with hold_judges(crew):
            for _ in range(5):
                crew.stream(judging, lambda: None)
        states = {t.architecture.key: t.state for t in record.trials()}
        lost = {t.architecture.key: record.count_lost(t.id) for t in record.trials()}

    assert states == {a.key: "failed" if a.key == poison else "done" for a in networks}
    assert lost == {a.key: 2 if a.key == poison else 1 for a in networks}
