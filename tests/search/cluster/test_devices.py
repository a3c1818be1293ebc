"""What holds no device is not charged: workers are started where devices are free."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.cluster import crew as crew_module
from search.cluster import tune_trials
from search.cluster.crew import JudgeCrew
from search.cluster.tune_trials import _Round
from search.phases import session as session_module
from search.phases.session import Session
from search.record.record import Record


class StubCluster:
    """Devices that can be taken away."""

    def __init__(self, devices: int, free: int, reserved: int = 0) -> None:
        self.devices, self.free, self.reserved = devices, free, reserved
        self.alive = {"a", "b"}

    def nodes(self) -> set[str]:
        """Name the nodes."""
        return self.alive

    def start_actor(self, worker: type, job: Any) -> Any:
        """Return something that can be asked where it lives."""
        return SimpleNamespace(__ray_call__=SimpleNamespace(remote=lambda function: object()))


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges of these tests are no actors."""
    monkeypatch.setattr(crew_module.ray, "kill", lambda actor: None)
    monkeypatch.setattr(crew_module, "kill_aside", lambda actors: None)


def recruit(crew: JudgeCrew) -> None:
    """Recruit now, however short ago that was tried."""
    crew._recruited = float("-inf")
    crew._recruit()


def test_a_judge_is_started_and_charged_when_its_device_is_free(tmp_path: Path) -> None:
    cluster = StubCluster(devices=2, free=1)
    now = [100.0]
    with Record.create(tmp_path / "record.db", clock=lambda: now[0]) as record:
        crew = JudgeCrew(
            cluster, object, job=None, record=record, phase="search", most=None, pace_seconds=1.0
        )
        recruit(crew)
        assert len(crew) == 1
        now[0] += 10
        assert record.spent(["search"]) == 10

        # Its own device may still be called free, a second one is not.
        recruit(crew)
        assert len(crew) == 1

        crew._judges[0].ready = True
        recruit(crew)
        assert len(crew) == 2

        cluster.free = 5
        recruit(crew)
        assert len(crew) == 2
        now[0] += 1
        assert record.spent(["search"]) == 12


def test_a_judge_whose_node_dies_before_it_answers_is_charged_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(actor: Any) -> None:
        raise AssertionError("Ray takes seconds to kill an actor of a dead node")

    monkeypatch.setattr(crew_module.ray, "kill", kill)
    cluster = StubCluster(devices=2, free=2)
    told: list[Any] = []
    source = SimpleNamespace(tell=told.extend)
    with Record.create(tmp_path / "record.db") as record:
        crew = JudgeCrew(
            cluster, object, job=None, record=record, phase="search", most=None, pace_seconds=1.0
        )
        recruit(crew)
        crew._judges[0].node, crew._judges[0].ready = "a", True
        crew._dismiss_dead(source)
        assert len(crew) == 2

        cluster.devices, cluster.alive, crew._looked = 1, {"a"}, float("-inf")
        crew._dismiss_dead(source)

        assert [judge.node for judge in crew._judges] == ["a"]
        assert told == []


def test_a_judge_that_never_had_a_device_is_not_charged(tmp_path: Path) -> None:
    cluster = StubCluster(devices=2, free=2)
    source = SimpleNamespace(tell=lambda judgements: None)
    now = [100.0]
    with Record.create(tmp_path / "record.db", clock=lambda: now[0]) as record:
        crew = JudgeCrew(
            cluster, object, job=None, record=record, phase="search", most=None, pace_seconds=1.0
        )
        recruit(crew)
        cluster.free = 1  # Ray has placed one; the other's device belongs to a node that has died
        crew._judges[0].ready, crew._judges[0].node = True, "a"
        crew._dismiss_dead(source)
        now[0] += 10
        assert record.spent(["search"]) == 20

        crew._dismiss(crew._judges[1], "lost", "The actor never ran")

        assert record.spent(["search"]) == 10
        crew._dismiss(crew._judges[0], "lost", "killed")
        assert record.spent(["search"]) == 10
        assert record.spent_by_phase() == {"search": 10}


def waiting(cluster: StubCluster, monkeypatch: pytest.MonkeyPatch, ticks: list[Any]) -> int:
    """Wait for devices while each second changes the cluster as ``ticks`` say."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += 1.0
        change = ticks.pop(0) if ticks else None
        if change is not None:
            cluster.devices, cluster.free = change

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: now)
    monkeypatch.setattr(session_module, "time", clock)
    said: list[str] = []
    stub = SimpleNamespace(
        cluster=cluster, check_stop=lambda: None, view=SimpleNamespace(say=said.append)
    )
    return Session.wait_for_devices(stub)


def test_a_group_waits_until_a_dead_nodes_device_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = StubCluster(devices=2, free=1)
    assert waiting(cluster, monkeypatch, [None] * 9 + [(1, 1)]) == 1

    cluster = StubCluster(devices=0, free=0)
    assert waiting(cluster, monkeypatch, [None, (2, 1), (2, 2)]) == 2


def test_a_group_goes_on_without_devices_that_others_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = StubCluster(devices=4, free=3)
    assert waiting(cluster, monkeypatch, []) == 3


def test_trials_are_handed_out_for_free_devices_and_those_that_tune_keeps() -> None:
    cluster = StubCluster(devices=3, free=1, reserved=1)
    held: list[int] = []
    session = _Round(source=SimpleNamespace(hold=held.append), cluster=cluster)
    session.look()
    assert (session.slots, held) == (2, [1])

    cluster.free, cluster.reserved, session.look_at = 2, 2, 0.0
    session.look()
    assert (session.slots, held) == (3, [1, 2])


@pytest.mark.parametrize(
    ("devices", "has_started", "is_torn"), [(2, False, False), (1, False, True), (1, True, False)]
)
def test_a_round_ends_when_a_trial_waits_for_more_devices_than_there_are(
    devices: int, has_started: bool, is_torn: bool
) -> None:
    cluster = StubCluster(devices=2, free=2)
    source = SimpleNamespace(hold=lambda count: None, should_stop=lambda *_: False)
    round_ = _Round(source=source, cluster=cluster)  # type: ignore[arg-type]
    task = SimpleNamespace(devices=2)
    round_.tasks["a"] = task  # type: ignore[assignment]
    if has_started:
        round_.trials["a"] = object()
    round_.look()
    assert not round_.is_torn

    cluster.devices, round_.look_at = devices, 0.0
    round_.look()
    assert round_.is_torn == is_torn
    tune_trials._ROUNDS["here"] = round_
    try:
        assert tune_trials._Stop("here").stop_all() == is_torn
        if is_torn:
            assert tune_trials._Feed("here").suggest("b") == tune_trials.Searcher.FINISHED
            report = tune_trials._read(round_, "a", task, None, error=False)  # type: ignore[arg-type]
            assert report.outcome == "not begun"
    finally:
        tune_trials._ROUNDS.pop("here")
