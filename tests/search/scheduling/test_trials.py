"""Laws of trials and judgements: the limit is kept, nothing is lost, nothing runs twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.plan import Plan, PlanInputs, make_plan
from search.record import Measured
from search.record.record import Record
from search.results.fidelity import trained_alone
from search.run_folder.disk import FullDiskError
from search.run_folder.settings import RunSettings
from search.run_folder.storage import StorageError
from search.scheduling.judging import Judging
from search.scheduling.tasks import START_SECONDS, Judgement, Outcome, TrialTask
from search.scheduling.trials import MAX_LOST, MIN_KNOWN, Choice, TrialCosts, TrialRunner
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.spec_file import load_space

SPACE = load_space("digits").replace(num_classes=10)
VALUES = Measured(top1=50.0, correct=5.0, total=10.0, seconds=1.0)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def record(tmp_path: Path, clock: Clock) -> Iterator[Record]:
    with Record.create(tmp_path / "record.db", clock=clock) as record:
        yield record


def plan_of(budget: float = 1000.0) -> Plan:
    return make_plan(
        PlanInputs(
            budget_seconds=budget,
            devices=2,
            measured_seconds=1,
            supernet_step=0.1,
            trial_step_seconds=[(1_000_000, 0.1), (3_000_000, 0.1)],
            judge_seconds=1.0,
            steps_per_epoch=10,
            max_epochs=2,
            retrain_steps=100,
        )
    )


def endless(seed: int = 0) -> Callable[[], Choice]:
    rng = random.Random(seed)
    return lambda: Choice(architecture=SPACE.sample(rng), epochs=2)


def runner(
    record: Record,
    tmp_path: Path,
    *,
    limit: float,
    interrupted: Callable[[], bool] = lambda: False,
    clock: Clock | None = None,
    plan: Plan | None = None,
    start_seconds: float = 0.0,
    draws: int = 0,
) -> TrialRunner:
    return TrialRunner(
        record=record,
        plan=plan or plan_of(),
        folder=tmp_path,
        phase="promote",
        seed=0,
        choose=endless(draws),
        limit_seconds=limit,
        interrupted=interrupted,
        on_event=lambda text: None,
        clock=clock or Clock(),
        start_seconds=start_seconds,
    )


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


def test_a_lost_trial_comes_back_a_few_times_and_then_has_failed(
    record: Record, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    seen = []
    for _ in range(MAX_LOST):
        task = running.next()
        assert task is not None
        seen.append(task.trial_id)
        running.settle(task, outcome="lost", measured=None, cause="its worker died")
    assert len(set(seen)) == 1
    trial = record.trial(seen[0])
    assert trial.state == "failed"
    assert "its worker died" in str(trial.cause)
    following = running.next()
    assert following is not None
    assert following.trial_id != seen[0]


def test_an_interrupted_trial_waits_for_the_resumption(record: Record, tmp_path: Path) -> None:
    task = runner(record, tmp_path, limit=1000.0).next()
    assert task is not None
    record.close()
    with Record.open(tmp_path / "record.db") as reopened:
        reopened.close_orphans()
        again = runner(reopened, tmp_path, limit=1e9).next()
        assert again is not None
        assert again.trial_id == task.trial_id
        assert runner(reopened, tmp_path, limit=1e9, interrupted=lambda: True).next() is None


@pytest.mark.parametrize(("outcome", "stays"), [("done", False), ("failed", False), ("lost", True)])
def test_a_finished_trial_leaves_no_checkpoint(
    record: Record, tmp_path: Path, outcome: Outcome, stays: bool
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    task = running.next()
    assert task is not None
    checkpoint = tmp_path / "trials" / str(task.trial_id)
    checkpoint.mkdir(parents=True)
    measured = VALUES if outcome == "done" else None
    running.settle(task, outcome=outcome, measured=measured, cause=None if measured else "an error")
    assert checkpoint.exists() == stays


def judging(record: Record, *, limit: float, first: list[Architecture] | None = None) -> Judging:
    return Judging(
        record=record,
        space=SPACE,
        settings=RunSettings(data="digits", budget="1cpu-minute", sampler="random"),
        phase="search",
        first=first or [],
        limit_seconds=limit,
        judge_seconds=1.0,
        count_judges=lambda: 1,
        interrupted=lambda: False,
    )


def ask_one(asking: Judging) -> Architecture | None:
    return next(iter(asking.ask()), None)


def tell_one(
    asking: Judging, architecture: Architecture, outcome: Outcome, cause: str | None = None
) -> None:
    measured = VALUES if outcome == "done" else None
    asking.tell(
        [Judgement(architecture=architecture, outcome=outcome, measured=measured, cause=cause)]
    )


def test_the_first_architectures_are_judged_first_and_once(record: Record) -> None:
    first = [SPACE.sample(random.Random(seed)) for seed in (1, 2)]
    asking = judging(record, limit=1e9, first=first)
    asked = []
    for _ in range(6):
        architecture = ask_one(asking)
        assert architecture is not None
        asked.append(architecture)
        tell_one(asking, architecture, "done")
    assert asked[:2] == first
    assert len({architecture.key for architecture in asked}) == 6
    resumed = ask_one(judging(record, limit=1e9, first=first))
    assert resumed is not None
    assert resumed.key not in {architecture.key for architecture in asked}


def test_judging_ends_before_the_limit(record: Record, clock: Clock) -> None:
    attempt = record.start_attempt("search", devices=1)
    asking = judging(record, limit=10.0)
    while (architecture := ask_one(asking)) is not None:
        clock.now += 1.0
        tell_one(asking, architecture, "done")
    record.finish_attempt(attempt, outcome="done")
    assert 7.0 <= record.spent() <= 10.0


def test_a_judgement_lost_with_its_judge_is_handed_out_again(record: Record) -> None:
    asking = judging(record, limit=1e9)
    lost = ask_one(asking)
    assert lost is not None
    tell_one(asking, lost, "lost", "the judge died")
    again = ask_one(asking)
    assert again is not None
    assert again.key == lost.key
    tell_one(asking, again, "done")
    (trial,) = record.trials(fidelity="supernet")
    assert trial.state == "done"
    assert trial.num_attempts == 2


def test_a_judgement_that_a_killed_run_left_open_is_taken_up(
    record: Record, tmp_path: Path
) -> None:
    left = ask_one(judging(record, limit=1e9))
    assert left is not None
    record.close()
    with Record.open(tmp_path / "record.db") as reopened:
        reopened.close_orphans()
        again = ask_one(judging(reopened, limit=1e9))
        assert again is not None
        assert again.key == left.key


def test_the_fidelity_names_the_epochs() -> None:
    assert trained_alone(plan_of().trial_epochs) == "train-2e"
    assert count(SPACE.first()).macs > 0


def test_a_trial_that_raised_is_recorded_with_its_cause_and_never_tried_again(
    record: Record, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    task = running.next()
    assert task is not None
    running.settle(task, outcome="failed", measured=None, cause="KeyError: 'head'")
    following = running.next()
    assert following is not None
    assert following.trial_id != task.trial_id
    trial = record.trial(task.trial_id)
    assert (trial.state, trial.cause) == ("failed", "KeyError: 'head'")


def test_out_of_memory_is_tried_once_more_with_half_a_batch_and_says_so(
    record: Record, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    first = running.next()
    assert first is not None
    running.settle(first, outcome="out of memory", measured=None, cause="tried to allocate 9 GiB")
    # Also when the driver is a new one.
    again = runner(record, tmp_path, limit=1000.0).next()
    assert again is not None
    assert (again.trial_id, again.micro_batches) == (first.trial_id, 2)


def test_out_of_memory_is_remembered_whatever_ends_the_next_attempts(
    record: Record, tmp_path: Path
) -> None:
    stop = False
    running = runner(record, tmp_path, limit=1000.0, interrupted=lambda: stop)
    task = running.next()
    assert task is not None
    stop = True
    # The memory ran out while the user stopped the run.
    running.settle(task, outcome="out of memory", measured=None, cause="tried to allocate 9 GiB")
    stop = False
    for cause in ("its worker died", "its node left"):
        again = running.next()
        assert again is not None
        assert (again.trial_id, again.micro_batches) == (task.trial_id, 2)
        running.settle(again, outcome="lost", measured=None, cause=cause)
    resumed = runner(record, tmp_path, limit=1000.0).next()
    assert resumed is not None
    assert (resumed.trial_id, resumed.micro_batches) == (task.trial_id, 2)
    assert record.causes(task.trial_id)[1:] == ("its worker died", "its node left")


@pytest.mark.parametrize("fits", [True, False])
def test_the_second_attempt_after_out_of_memory_is_the_last(
    record: Record, tmp_path: Path, fits: bool
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    first = running.next()
    assert first is not None
    running.settle(first, outcome="out of memory", measured=None, cause="tried to allocate 9 GiB")
    again = running.next()
    assert again is not None
    outcome: Outcome = "done" if fits else "out of memory"
    running.settle(again, outcome=outcome, measured=VALUES if fits else None, cause="9 GiB")
    trial = record.trial(first.trial_id)
    assert trial.state == ("done" if fits else "failed")
    assert trial.measured.to_json().get("micro_batches") == (2 if fits else None)


def test_a_full_disk_stops_the_phase_and_keeps_the_trial(record: Record, tmp_path: Path) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    task = running.next()
    assert task is not None
    with pytest.raises(FullDiskError):
        running.settle(task, outcome="full disk", measured=None, cause="No space left on device")
    assert record.trial(task.trial_id).state == "waiting"
    again = runner(record, tmp_path, limit=1000.0).next()
    assert again is not None
    assert again.trial_id == task.trial_id


def test_a_storage_that_does_not_answer_stops_the_phase_and_fails_no_network(
    record: Record, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    for _ in range(MAX_LOST - 1):
        task = running.next()
        assert task is not None
        running.settle(task, outcome="no storage", measured=None, cause="s3://b: TimeoutError")
    again = running.next()
    assert again is not None
    assert again.trial_id == task.trial_id
    with pytest.raises(StorageError, match="s3://b: TimeoutError"):
        running.settle(again, outcome="no storage", measured=None, cause="s3://b: TimeoutError")
    assert record.trial(task.trial_id).state == "waiting"


def test_interruptions_are_not_held_against_a_trial(record: Record, tmp_path: Path) -> None:
    stop = False
    running = runner(record, tmp_path, limit=1000.0, interrupted=lambda: stop)
    for _ in range(MAX_LOST + 1):
        stop = False
        task = running.next()
        assert task is not None
        stop = True
        running.settle(task, outcome="lost", measured=None, cause="stopped before its end")
    assert record.trial(task.trial_id).state == "waiting"
    assert record.count_lost(task.trial_id) == 0


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


def test_trials_end_before_the_time_that_the_last_judge_needs(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0, clock=clock)
    assert running.next() is not None
    clock.now += 987.0
    assert not running.should_stop()
    clock.now += 2.0
    assert running.should_stop()


def test_a_batch_is_handed_out_only_as_far_as_the_budget_goes(record: Record) -> None:
    assert len(judging(record, limit=1e9).ask(8)) == 8
    asking = judging(record, limit=5.0)
    assert 1 <= len(asking.ask(8)) < 5


def test_judgements_that_fail_alone_do_not_cost_the_others_of_their_batch(
    record: Record,
) -> None:
    asking = judging(record, limit=1e9)
    good, bad = asking.ask(2)
    asking.tell(
        [
            Judgement(architecture=bad, outcome="failed", measured=None, cause="ValueError: no"),
            Judgement(architecture=good, outcome="done", measured=VALUES),
        ]
    )
    states = {trial.key: trial.state for trial in record.trials()}
    assert states == {good.key: "done", bad.key: "failed"}


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


def test_a_training_of_any_rung_has_taught() -> None:
    plan = replace(plan_of(), rungs=(1, 2))
    costs = TrialCosts(plan, [])
    assert not costs.has_ended
    costs.add(1_000_000, 1, 3.0)
    assert costs.has_ended
    # A rung without results goes by the others': three times of what was planned.
    assert costs.predict(1_000_000, 1) == pytest.approx(3.0)
    assert costs.predict(1_000_000, 2) == pytest.approx(6.0)


def test_a_whole_batch_in_memory_leaves_no_word_in_the_result(
    record: Record, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    task = running.next()
    assert task is not None
    running.settle(task, outcome="done", measured=VALUES, cause=None)
    assert record.trial(task.trial_id).measured == VALUES


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


def test_memory_that_runs_out_says_whether_half_a_batch_was_tried(
    record: Record, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    causes = []
    for _ in range(2):
        task = running.next()
        assert task is not None
        running.settle(task, outcome="out of memory", measured=None, cause="9 GiB")
        causes = record.causes(task.trial_id)
    assert ["with half a batch in memory too" in cause for cause in causes] == [False, True]
    assert record.trial(task.trial_id).state == "failed"


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
