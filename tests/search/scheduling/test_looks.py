"""Looks at the budget come late on a machine that is held up, and are reckoned with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.cluster import crew as crew_module
from search.cluster.crew import JudgeCrew, _Judge
from search.phases import session as session_module
from search.phases.session import Session
from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.run_folder.state import RunState
from search.scheduling import trials as trials_module
from search.scheduling.looks import LATEST, MOST_GAP_SECONDS, AwakeClock, Looks, late_seconds
from search.scheduling.tasks import BudgetSpent
from search.scheduling.trials import Choice, TrialRunner
from tests.clock import Clock
from tests.tiny_engine import SPACE, plan_of, runner


def test_the_next_look_comes_as_late_as_the_latest_of_the_last_ones() -> None:
    clock = Clock()
    looks = Looks(clock)
    clock.now += 99.0  # before the first look nothing waits for one
    found = [looks.seconds()]
    for gap in (0.5, 3.0, 0.25):
        clock.now += gap
        found.append(looks.seconds())
    assert found == [0.0, 0.5, 3.0, 3.0]
    for _ in range(LATEST):
        clock.now += 0.25
        last = looks.seconds()
    assert last == 0.25


def test_while_a_process_is_stopped_next_to_no_time_passes_for_what_it_waits_for() -> None:
    clock = Clock()
    awake = AwakeClock(clock)
    began = awake()
    for gap in (0.5, MOST_GAP_SECONDS, 7200.0, 1.0):
        clock.now += gap
        awake()
    assert awake() - began == 0.5 + MOST_GAP_SECONDS + MOST_GAP_SECONDS + 1.0


def test_no_trial_is_taken_to_hang_because_the_process_was_stopped(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Slurm's suspension, e.g. for two hours; then its report is still on its way."""
    clock = Clock()
    monkeypatch.setattr(trials_module, "time", SimpleNamespace(monotonic=clock))
    architecture = SPACE.first()
    running = TrialRunner(
        record=record,
        plan=plan_of(),
        folder=tmp_path,
        phase="promote",
        seed=0,
        choose=lambda: Choice(architecture=architecture, epochs=2),
        limit_seconds=1000.0,
        interrupted=lambda: False,
        on_event=lambda text: None,
    )
    task = running.next()
    assert task is not None
    running.started(task)
    running.heard(task)
    clock.now += 7200.0
    assert running.overdue(task) is None

    for _ in range(1000):
        clock.now += 1.0
        cause = running.overdue(task)
        if cause is not None:
            break
    assert cause == "no end within its limit of 120 s"
    assert 120.0 - MOST_GAP_SECONDS <= clock.now - 1000.0 - 7200.0 <= 121.0


def test_no_more_than_a_twentieth_of_the_budget_is_left_over() -> None:
    assert late_seconds(2.0, devices=3, budget_seconds=1000.0) == 6.0
    assert late_seconds(2.0, devices=300, budget_seconds=1000.0) == 50.0


@pytest.mark.parametrize(("late", "ends"), [(0.0, 998.0), (9.0, 989.0), (500.0, 948.0)])
def test_trials_end_at_the_look_before_the_end_of_the_budget(
    late: float, ends: float, record: Record, clock: Clock, tmp_path: Path
) -> None:
    # Of 1,000 device-seconds the finish has 30, of which 12 are kept for it; here nothing is.
    running = runner(record, tmp_path, limit=1000.0, clock=clock)
    running._stop = 998.0
    assert running.next() is not None
    clock.now += ends - 0.25
    assert not running.should_stop(late)
    clock.now += 0.25
    assert running.should_stop(late)
    assert running.should_stop()  # and nothing begins again


def test_waiting_ends_at_the_look_before_the_end_of_the_budget(
    record: Record, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "time", SimpleNamespace(monotonic=clock))
    session = Session.__new__(Session)
    session.record, session.state = record, RunState(record)
    session.settings = RunSettings(space="digits", data="digits", budget="400cpu-seconds")
    session.budget = session.settings.parsed_budget
    session.cluster = SimpleNamespace(devices=1)  # type: ignore[assignment]
    session.view = SimpleNamespace(update=lambda *_: None)  # type: ignore[assignment]
    tick = session.tick("search")
    record.start_attempt("search", devices=1)
    for _ in range(39):
        tick()
        clock.now += 10.0
    # After the next ten seconds it would be beyond 398, where what is under way ends.
    with pytest.raises(BudgetSpent, match="in the phase search"):
        tick()


@pytest.mark.parametrize(
    ("late", "budget", "still"), [(0.25, 1000.0, 1), (6.0, 1000.0, 0), (6.0, 80.0, 1)]
)
def test_judges_end_at_the_look_before_the_end_of_the_budget(
    late: float, budget: float, still: int, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked = Clock(), [0]
    monkeypatch.setattr(crew_module.ray, "kill", lambda actor: None)
    devices: Any = SimpleNamespace(devices=1, free=0, nodes=lambda: {"a"})
    crew = JudgeCrew(
        devices,
        object,
        job=None,
        record=record,
        phase="search",
        most=None,
        pace_seconds=1.0,
        left=lambda: 5.0,
        budget_seconds=budget,
    )
    crew._now = clock  # type: ignore[method-assign]
    attempt = record.start_attempt("search", devices=1)
    judge = _Judge(
        actor=None, attempt=attempt, started=0.0, greeting=object(), ready=True, node="a"
    )
    crew._judges.append(judge)

    def ask(count: int) -> list[Any]:
        asked[0] += 1
        return []

    def wait(*_: object, **__: object) -> tuple[list[Any], list[Any]]:
        return [], []

    monkeypatch.setattr(crew_module.ray, "wait", wait)
    looks = iter([True, True, True])

    def collect(source: Any) -> None:
        clock.now += late
        judge.queue.clear()
        if next(looks, None):
            judge.queue.append(SimpleNamespace(architectures=[], reference=None, alone=False))  # type: ignore[arg-type]
            judge.busy_since = clock.now

    monkeypatch.setattr(crew, "_collect", collect)
    source: Any = SimpleNamespace(
        tell=lambda told: None, ask=ask, should_stop=lambda: False, by="supernet"
    )

    crew.stream(source, lambda: None)

    assert len(crew) == still
