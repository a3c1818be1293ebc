"""A large plan looks at the pace of its first trials before it starts the others."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from search.record.record import Record
from search.scheduling.tasks import TrialTask
from search.scheduling.trials import Choice, TrialRunner
from tests.clock import Clock
from tests.tiny_engine import SPACE, VALUES, plan_of, runner


@pytest.mark.parametrize(
    ("is_large", "factor", "expected"), [(True, 3.5, 3.5), (True, 1.2, None), (False, 3.5, None)]
)
def test_a_large_plan_is_given_up_when_first_epochs_are_too_slow(
    record: Record,
    clock: Clock,
    tmp_path: Path,
    is_large: bool,
    factor: float,
    expected: float | None,
) -> None:
    """An epoch is planned to take 10 steps of 0.1 s."""
    plan = replace(plan_of(), is_large=is_large)
    running = runner(record, tmp_path, limit=1_000.0, clock=clock, plan=plan)
    tasks = [running.next() for _ in range(2)]
    for task in tasks:
        assert task is not None
        running.started(task)
        running.heard(task)
    assert running.off_pace is None

    clock.now += factor
    for task in tasks:
        assert task is not None
        running.heard(task)

    assert running.off_pace == (None if expected is None else pytest.approx(expected))
    assert running.should_stop() == (expected is not None)
    assert (running.next() is None) == (expected is not None)


def probed(record: Record, tmp_path: Path, clock: Clock, *, epochs: int = 5) -> TrialRunner:
    """Make a runner of a large plan whose trainings have so many epochs, each of a second."""
    plan = replace(plan_of(), is_large=True, rungs=(epochs,), trial_epochs=epochs)
    plan = replace(plan, trial_steps=10 * epochs)
    rng = random.Random(0)
    return TrialRunner(
        record=record,
        plan=plan,
        folder=tmp_path,
        phase="trust",
        seed=0,
        choose=lambda: Choice(architecture=SPACE.sample(rng), epochs=epochs),
        limit_seconds=1e9,
        interrupted=lambda: False,
        on_event=lambda text: None,
        clock=clock,
    )


def begin_probing(running: TrialRunner, number: int) -> list[TrialTask]:
    """Start trials, of which all are ready at once."""
    tasks = []
    for _ in range(number):
        assert running.wanted(99) == 1
        task = running.next()
        assert task is not None
        running.started(task)
        running.heard(task)
        tasks.append(task)
    return tasks


def test_a_few_trials_tell_a_large_plans_pace_before_the_others_start(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = probed(record, tmp_path, clock)
    tasks = begin_probing(running, 8)
    assert running.wanted(99) is None  # not yet
    clock.now += 1.2
    for task in tasks:
        running.heard(task)
    assert running.wanted(99) is None  # the first epoch has the compilation in it
    clock.now += 1.2
    for task in tasks[:6]:
        running.heard(task)
    # Two are late, and may hang.
    assert running.wanted(99) == 1
    assert running.off_pace is None


def test_devices_of_all_kinds_count_in_the_pace_and_the_first_epoch_does_not(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = probed(record, tmp_path, clock)
    tasks = begin_probing(running, 8)
    clock.now += 30.0  # kernels are compiled
    for task in tasks[:6]:
        running.heard(task)
    clock.now += 2.0
    for task in tasks[:3]:
        running.heard(task)
    clock.now += 2.0
    for task in tasks[3:6]:
        running.heard(task)
    # Three devices are twice as slow as planned, three four times; a median of the first was 2.
    assert running.off_pace == pytest.approx(3.0)
    assert running.wanted(99) == 0


def test_a_training_that_ends_early_tells_its_pace_as_well(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = probed(record, tmp_path, clock)
    tasks = begin_probing(running, 8)
    for _ in range(4):
        clock.now += 1.0
        running.heard(tasks[0])
    clock.now += 1.0
    running.settle(tasks[0], outcome="done", measured=VALUES, cause=None)
    # One of eight has ended at the pace of the plan; that does not let all others start.
    assert running.wanted(99) is None
    for _ in range(2):
        clock.now += 2.5
        for task in tasks[1:6]:
            running.heard(task)
    # Of five the second epoch took 2.5 s, and of that one all took one.
    assert running.off_pace == pytest.approx((5 * 2.5 + 1) / 6)


def test_what_does_not_probe_starts_all_at_once(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = probed(record, tmp_path, clock)
    running._is_watched = False
    begin_probing(running, 9)
    assert running.wanted(99) == 1
    assert running.off_pace is None
