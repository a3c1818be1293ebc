"""Laws of what trials are expected to take, and of when one is taken to hang."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.plan import Plan
from search.record.record import Record
from search.scheduling.tasks import START_SECONDS
from search.scheduling.trial_costs import MIN_KNOWN, TrialCosts
from search.scheduling.trials import Choice, TrialRunner
from tests.clock import Clock
from tests.tiny_engine import SPACE, VALUES, plan_of, runner


def test_predictions_follow_what_trials_really_took(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=100.0, clock=clock)
    assert TrialCosts(plan_of(), record.trials()).predict(2_000_000, 2) == pytest.approx(2.0)
    task = running.next()
    assert task is not None
    clock.now += 6.0
    running.settle(task, outcome="done", measured=VALUES, cause=None)
    assert TrialCosts(plan_of(), record.trials()).predict(2_000_000, 2) == pytest.approx(6.0)


def slow_plan() -> Plan:
    """Return a plan whose trials are predicted to take 200 seconds."""
    return replace(plan_of(), step_seconds=((1_000_000, 10.0), (3_000_000, 10.0)))


def train_some(running: TrialRunner, clock: Clock, *epochs: float) -> None:
    """Have just enough trials, all at the same time, whose epochs take so many seconds."""
    tasks = [task for task in (running.next() for _ in range(MIN_KNOWN)) if task is not None]
    for task in tasks:
        running.started(task)
        running.heard(task)
    for seconds in epochs:
        clock.now += seconds
        for task in tasks:
            running.heard(task)
    for task in tasks:
        running.settle(task, outcome="done", measured=VALUES, cause=None)


def test_a_trial_is_predicted_by_its_steps(tmp_path: Path) -> None:
    assert TrialCosts(slow_plan(), []).predict(1_000_000, 2) == pytest.approx(200.0)


def test_the_limit_of_a_trial_under_way_follows_what_has_finished_meanwhile(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock, plan=slow_plan())
    hung = running.next()
    assert hung is not None
    clock.now += 10_000.0  # waits for a device
    assert running.overdue(hung) is None
    running.started(hung)
    clock.now += START_SECONDS
    assert running.overdue(hung) is None
    running.heard(hung)
    clock.now += 200.0
    train_some(running, clock, 100.0, 100.0)
    # Ten times what was predicted at first, now three times the longest silence of the others.
    assert running.overdue(hung) == "no epoch within its limit of 300 s"


def test_a_trial_that_gives_signs_of_life_may_take_three_times_what_was_predicted(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock, plan=slow_plan())
    train_some(running, clock, 100.0, 100.0)
    slow = running.next()
    assert slow is not None
    running.started(slow)
    running.heard(slow)
    for _ in range(4):
        clock.now += 150.0
        running.heard(slow)
    assert running.overdue(slow) is None
    clock.now += 1.0
    assert running.overdue(slow) == "no end within its limit of 600 s"


def test_no_trial_is_taken_to_hang_because_the_record_waited_for_its_database(
    record: Record, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock, plan=slow_plan())
    train_some(running, clock, 100.0, 100.0)
    task = running.next()
    assert task is not None
    running.started(task)
    running.heard(task)
    monkeypatch.setattr(Record, "waited_seconds", 10_000.0)
    clock.now += 10_000.0 + 300.0
    assert running.overdue(task) is None
    clock.now += 1.0
    assert running.overdue(task) == "no epoch within its limit of 300 s"


def test_no_short_trial_is_taken_to_hang_within_two_minutes(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock)  # each is predicted to take 2 s
    train_some(running, clock, 1.0, 1.0)
    task = running.next()
    assert task is not None
    running.started(task)
    clock.now += 800.0  # a slow start
    running.heard(task)
    clock.now += 120.0
    assert running.overdue(task) is None
    clock.now += 1.0
    assert running.overdue(task) is not None


def test_what_workers_take_to_start_makes_no_limit_longer(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock, plan=slow_plan())
    first, hung = running.next(), running.next()
    assert first is not None
    assert hung is not None
    for task in (first, hung):
        running.started(task)
    clock.now += 800.0
    for task in (first, hung):
        running.heard(task)
    clock.now += 100.0
    running.heard(first)
    clock.now += 100.0
    running.settle(first, outcome="done", measured=VALUES, cause=None)
    clock.now += 1800.0
    assert running.overdue(hung) is None
    clock.now += 1.0
    assert running.overdue(hung) == "no end within its limit of 2000 s"


def begin(running: TrialRunner, number: int) -> list[Any]:
    """Have so many trials that train from now on."""
    tasks = [task for task in (running.next() for _ in range(number)) if task is not None]
    assert len(tasks) == number
    for task in tasks:
        running.started(task)
        running.heard(task)
    return tasks


def test_a_plan_that_is_too_optimistic_is_noticed_after_one_epoch(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    """A trial of two epochs was planned with 200 seconds, and takes 700."""
    running = runner(record, tmp_path, limit=2500.0, clock=clock, plan=slow_plan())
    (first,) = begin(running, 1)
    clock.now += 350.0
    assert running._fits(1_000_000, 2)  # 350 spent, and 200 planned
    running.heard(first)
    # 350 are spent, 350 to come, 700 for each of two more: 2100 of 2500; a third does not fit.
    begin(running, 2)
    assert running.next() is None


def test_trials_whose_own_epochs_last_longer_hold_what_they_will_take(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=2099.0, clock=clock, plan=slow_plan())
    tasks = begin(running, 2)
    clock.now += 350.0
    for task in tasks:
        running.heard(task)
    # Twice 700 for the two, and a third takes as much: 2100.
    assert running.next() is None
    clock.now += 350.0
    for task in tasks:
        running.settle(task, outcome="done", measured=VALUES, cause=None)
    assert running.next() is None


def test_what_a_trial_under_way_foretells_is_forgotten_when_it_is_lost(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock, plan=slow_plan())
    (task,) = begin(running, 1)
    clock.now += 350.0
    running.heard(task)
    assert running._costs.predict(1_000_000, 2) == pytest.approx(700.0)
    running.settle(task, outcome="lost", measured=None, cause="killed")
    assert running._costs.predict(1_000_000, 2) == pytest.approx(200.0)


def test_the_limit_of_trials_follows_the_epochs_of_those_that_run(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    """Fifteen times slower than planned, from the first trial on: slow, and none hangs."""
    running = runner(record, tmp_path, limit=1e6, clock=clock, plan=slow_plan())
    first, second = begin(running, 2)
    clock.now += 1500.0
    running.heard(first)
    clock.now += 1500.0
    # Ten times what was planned would have been 2000.
    assert running.overdue(first) is None
    assert running.overdue(second) is None
    clock.now += 10 * 3000.0
    assert running.overdue(second) == "no end within its limit of 30000 s"


def test_a_worker_that_never_gets_ready_is_taken_to_hang(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock)
    task = running.next()
    assert task is not None
    running.started(task)
    clock.now += START_SECONDS
    assert running.overdue(task) is None
    clock.now += 1.0
    assert running.overdue(task) == "not ready within 900 s"


def test_a_training_of_any_rung_has_taught() -> None:
    plan = replace(plan_of(), rungs=(1, 2))
    costs = TrialCosts(plan, [])
    assert not costs.has_ended
    costs.add(1_000_000, 1, 3.0)
    assert costs.has_ended
    # A rung without results goes by the others': three times of what was planned.
    assert costs.predict(1_000_000, 1) == pytest.approx(3.0)
    assert costs.predict(1_000_000, 2) == pytest.approx(6.0)


def test_a_trial_under_way_will_take_what_is_left_of_it(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    """Two epochs of ten steps of 0.1 s, on one device: two seconds were expected."""
    running = runner(record, tmp_path, limit=100.0, clock=clock)
    task = running.next()
    assert task is not None
    running.started(task)
    clock.now += 0.75
    assert running._outstanding() == pytest.approx(2.0 - 0.75)
    clock.now += 10.0  # late, which says nothing of the rest
    assert running._outstanding() == 0.0


def test_after_its_first_epoch_a_trial_is_foretold_by_its_own(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    plan = replace(plan_of(), rungs=(5,), trial_epochs=5, trial_steps=50)
    rng = random.Random(0)
    running = TrialRunner(
        record=record,
        plan=plan,
        folder=tmp_path,
        phase="promote",
        seed=0,
        choose=lambda: Choice(architecture=SPACE.sample(rng), epochs=5),
        limit_seconds=1_000.0,
        interrupted=lambda: False,
        on_event=lambda text: None,
        clock=clock,
    )
    task = running.next()
    assert task is not None
    running.started(task)
    running.heard(task)  # it begins
    for _ in range(2):
        clock.now += 3.0
        running.heard(task)
    # Three of five epochs are left, at three seconds each.
    assert running._outstanding() == pytest.approx(9.0)
    clock.now += 1.0
    assert running._outstanding() == pytest.approx(8.0)
