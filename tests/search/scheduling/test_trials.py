"""Laws of trials: none starts that would pass the limit, and none runs twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.record.record import Record
from search.results.fidelity import trained_alone
from searchspace.cost import count
from tests.clock import Clock
from tests.tiny_engine import SPACE, VALUES, plan_of, runner


def test_no_trial_starts_that_would_pass_the_limit(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(
        record, tmp_path, limit=7.0, clock=clock
    )  # each is predicted to take 2 seconds
    finished = 0
    while (task := running.next()) is not None:
        clock.now += 2.0
        running.settle(task, outcome="done", measured=VALUES, cause=None)
        finished += 1
    assert finished == 3
    assert record.spent() == pytest.approx(6.0)


def test_trials_under_way_count_against_the_limit(record: Record, tmp_path: Path) -> None:
    running = runner(record, tmp_path, limit=5.0)
    started = [running.next() for _ in range(4)]
    assert [task is not None for task in started] == [True, True, False, False]


def test_no_trial_starts_whose_worker_would_start_until_the_limit(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    """A worker needs 10 seconds to start; a training itself is predicted to take 2."""
    late = runner(record, tmp_path, limit=11.9, clock=clock, start_seconds=10.0)
    assert late.next() is None

    running = runner(record, tmp_path, limit=16.1, clock=clock, start_seconds=10.0)
    cold = running.next()
    assert cold is not None
    running.started(cold)
    clock.now += 12.0
    running.settle(cold, outcome="done", measured=VALUES, cause=None)
    assert running.next() is None  # such trials took 12 seconds until now


def test_workers_of_a_later_phase_start_again_whatever_trials_took_before(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    """On warm workers trials took 2 seconds: the first ones of the next phase do not."""
    before = runner(record, tmp_path, limit=100.0, clock=clock, draws=1)
    for _ in range(3):
        task = before.next()
        assert task is not None
        clock.now += 2.0
        before.settle(task, outcome="done", measured=VALUES, cause=None)

    spent = record.spent()
    assert runner(record, tmp_path, limit=spent + 11.9, start_seconds=10.0).next() is None
    assert runner(record, tmp_path, limit=spent + 12.1, start_seconds=10.0).next() is not None


def test_a_warm_worker_does_not_start_again(record: Record, clock: Clock, tmp_path: Path) -> None:
    running = runner(record, tmp_path, limit=16.1, clock=clock, start_seconds=10.0)
    first = running.next()
    assert first is not None
    running.started(first)
    clock.now += 2.0  # it was quicker
    running.settle(first, outcome="done", measured=VALUES, cause=None)
    assert running.next() is not None


def test_the_fidelity_names_the_epochs() -> None:
    assert trained_alone(plan_of().trial_epochs) == "train-2e"
    assert count(SPACE.first()).macs > 0


def test_trials_end_before_the_time_that_the_last_judge_needs(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0, clock=clock)
    assert running.next() is not None
    clock.now += 987.0
    assert not running.should_stop()
    clock.now += 2.0
    assert running.should_stop()
