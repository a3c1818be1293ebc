"""Laws of trials on several devices: what they wait for, hold and are charged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.record.record import Record
from search.scheduling.trials import TrialRunner
from tests.clock import Clock
from tests.tiny_engine import VALUES, plan_of, runner


def test_devices_that_are_kept_between_trials_are_charged(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1e6, clock=clock)
    first, second = running.next(), running.next()
    assert first is not None
    assert second is not None
    clock.now += 3.0  # 2 devices, with their trials
    running.hold(2)
    clock.now += 5.0
    running.settle(first, outcome="done", measured=VALUES, cause=None)
    clock.now += 7.0  # one has a trial, one has none
    third = running.next()
    assert third is not None
    clock.now += 11.0
    running.settle(second, outcome="done", measured=VALUES, cause=None)
    running.settle(third, outcome="done", measured=VALUES, cause=None)
    clock.now += 13.0  # none has a trial
    running.hold(1)
    clock.now += 17.0
    running.hold(0)
    clock.now += 19.0
    assert record.spent() == pytest.approx(2 * (3 + 5 + 7 + 11 + 13) + 17)
    assert [trial.seconds for trial in record.trials()] == pytest.approx([8.0, 26.0, 11.0])


def test_a_trial_on_several_devices_is_charged_for_all_of_them(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    """Two epochs of ten steps of 0.1 s are two device-seconds, on four devices half a second."""
    plan = replace(plan_of(), rung_devices=(4,) * len(plan_of().rungs))
    running = runner(record, tmp_path, limit=8.0 + 2.0, clock=clock, plan=plan)
    assert running.wanted(9) == 4
    task = running.next(9)
    assert task is not None
    assert task.devices == 4
    running.started(task)
    clock.now += 1.0
    running.heard(task)
    clock.now += 0.5
    running.heard(task)
    assert record.spent() == pytest.approx(4 * 1.5)
    # Four for the start, and twice as long as planned for the epochs: 4 + 4, of which 6 are spent.
    assert running._outstanding() == pytest.approx(2.0)
    clock.now += 0.5
    running.settle(task, outcome="done", measured=VALUES, cause=None)
    assert record.spent() == pytest.approx(4 * 2.0)
    # The next will take 8 again, and there are 2 left.
    assert running.next(9) is None


@pytest.mark.parametrize(("most", "expected"), [(9, 4), (4, 4), (3, 2), (1, 1), (None, 4)])
def test_after_a_loss_a_trial_takes_the_devices_that_there_are(
    record: Record, clock: Clock, tmp_path: Path, most: int | None, expected: int
) -> None:
    plan = replace(plan_of(), rung_devices=(4,) * len(plan_of().rungs))
    running = runner(record, tmp_path, limit=1_000.0, clock=clock, plan=plan)
    if most is not None:
        assert running.wanted(most) == expected
    task = running.next(most)
    assert task is not None
    assert task.devices == expected


def test_nothing_is_wanted_where_there_is_nothing_more(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    stopped = runner(record, tmp_path, limit=1_000.0, interrupted=lambda: True)
    assert stopped.wanted(8) == 0


def test_what_is_wanted_is_what_the_next_trial_takes(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    plan = replace(plan_of(), rung_devices=(2,) * len(plan_of().rungs))
    first = runner(record, tmp_path, limit=1_000.0, clock=clock, plan=plan)
    task = first.next(9)
    assert task is not None
    first.settle(task, outcome="interrupted", measured=None, cause="the user")
    # It waits for the next driver, and is the next trial of that.
    again = runner(record, tmp_path, limit=1_000.0, clock=clock, plan=plan)
    assert (again.wanted(9), again.wanted(1)) == (2, 1)
    found = again.next(9)
    assert found is not None
    assert found.trial_id == task.trial_id

    empty = TrialRunner(
        record=record,
        plan=plan,
        folder=tmp_path,
        phase="trust",
        seed=0,
        choose=lambda: None,
        limit_seconds=1_000.0,
        interrupted=lambda: False,
        on_event=lambda text: None,
        clock=clock,
    )
    empty._waiting.clear()
    assert empty.wanted(9) == 0
    assert empty.next(9) is None


def on_two(record: Record, tmp_path: Path, clock: Clock) -> TrialRunner:
    plan = replace(plan_of(), rung_devices=(2,) * len(plan_of().rungs))
    return runner(record, tmp_path, limit=1_000.0, clock=clock, plan=plan)


def test_a_trial_that_waits_for_devices_is_charged_from_when_it_has_them(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    """One of the two devices that it was handed out for belongs to a node that has died."""
    running = on_two(record, tmp_path, clock)
    task = running.next(2)
    assert task is not None
    for _ in range(10):
        running.hold(1)
        clock.now += 5.0
    running.hold(2)  # another node has come
    # One device was held all the time, and nothing trained on it: that is charged.
    assert record.spent() == pytest.approx(50.0)
    running.started(task)
    clock.now += 4.0
    running.settle(task, outcome="done", measured=VALUES, cause=None)
    assert record.spent() == pytest.approx(50.0 + 2 * 4.0)


def test_a_trial_that_never_had_its_devices_is_charged_for_none(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = on_two(record, tmp_path, clock)
    task = running.next(2)
    assert task is not None
    running.hold(0)
    clock.now += 60.0
    running.settle(task, outcome="not begun", measured=None, cause="stopped before its end")
    assert record.spent() == 0.0
    # That is nothing against the network.
    assert record.trial(task.trial_id).state == "waiting"
    assert record.count_lost(task.trial_id) == 0
    again = running.next(1)
    assert again is not None
    assert (again.trial_id, again.devices) == (task.trial_id, 1)


def test_trials_get_the_devices_that_are_held_in_the_order_of_their_hand_out(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = on_two(record, tmp_path, clock)
    first, second = running.next(4), running.next(4)
    assert first is not None
    assert second is not None
    running.hold(3)
    clock.now += 1.0
    # The first has its two; one is held for the second, which needs two.
    running.hold(4)
    assert record.spent() == pytest.approx(2.0 + 1.0)
    clock.now += 1.0
    assert record.spent() == pytest.approx(3.0 + 4.0)
