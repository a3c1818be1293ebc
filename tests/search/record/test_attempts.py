"""Laws of attempts: each ends once, and decides what becomes of its trial; on both databases."""

from __future__ import annotations

import pytest

from search.record import Measured
from search.record.record import AttemptOutcome, Record
from search.record.schema import Address
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv
from tests.clock import Clock
from tests.tiny_record import add_trial


def test_a_done_trial_has_its_values_its_charge_and_its_time(record: Record, clock: Clock) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=2, trial_id=trial_id)
    assert record.trial(trial_id).state == "running"
    clock.now += 3
    record.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.75))

    trial = record.trial(trial_id)

    assert (trial.state, trial.measured, trial.cause) == ("done", Measured(top1=0.75), None)
    assert (trial.seconds, trial.num_attempts, trial.finished) == (6.0, 1, 1_003.0)
    assert record.trials(state="done") == (trial,)
    assert record.trials(state="waiting") == ()


def test_a_failed_trial_keeps_its_cause(record: Record) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    record.finish_attempt(attempt, outcome="failed", cause="the loss is\0 not finite: 100 %s?")

    trial = record.trial(trial_id)

    assert (trial.state, trial.cause, trial.measured) == (
        "failed",
        "the loss is not finite: 100 %s?",
        Measured(),
    )
    assert trial.finished is not None


@pytest.mark.parametrize("outcome", ["interrupted", "lost"])
def test_work_without_a_verdict_waits_again_and_stays_charged(
    record: Record, clock: Clock, outcome: AttemptOutcome
) -> None:
    trial_id = add_trial(record)
    for _ in range(2):
        attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
        clock.now += 2
        record.finish_attempt(attempt, outcome=outcome, cause="a worker was lost")

    trial = record.trial(trial_id)

    assert (trial.state, trial.finished, trial.cause) == ("waiting", None, "a worker was lost")
    assert (trial.seconds, trial.num_attempts) == (4.0, 2)


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_a_settled_trial_is_never_started_again(record: Record, outcome: AttemptOutcome) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    values = Measured(top1=0.5) if outcome == "done" else None
    record.finish_attempt(attempt, outcome=outcome, measured=values, cause="said")

    with pytest.raises(ValueError, match=f"trial {trial_id} is {outcome}"):
        record.start_attempt("search", devices=1, trial_id=trial_id)


def test_a_running_trial_is_not_started_twice(record: Record) -> None:
    trial_id = add_trial(record)
    record.start_attempt("search", devices=1, trial_id=trial_id)

    with pytest.raises(ValueError, match=f"trial {trial_id} is running"):
        record.start_attempt("search", devices=1, trial_id=trial_id)

    assert record.trial(trial_id).num_attempts == 1


def test_an_attempt_ends_once(record: Record, clock: Clock) -> None:
    attempt = record.start_attempt("supernet", devices=1)
    clock.now += 1
    record.finish_attempt(attempt, outcome="done")
    clock.now += 1

    with pytest.raises(ValueError, match="has ended already"):
        record.finish_attempt(attempt, outcome="done")

    assert record.spent() == 1.0


@pytest.mark.parametrize(
    ("outcome", "values", "cause", "message"),
    [
        ("done", None, None, "done has values"),
        ("done", Measured(), None, "done has values"),
        ("interrupted", Measured(top1=0.5), None, "nothing else has"),
        ("failed", None, None, "needs its cause"),
        # What is NaN was not measured.
        ("done", Measured(top1=float("nan")), None, "done has values"),
        ("done", Measured(top1=0.5, score=float("inf")), None, "must be finite"),
        ("done", Measured(top1=0.5, losses={1: float("nan")}), None, "must be finite"),
        ("finished", Measured(top1=0.5), None, "Outcomes are done, failed"),
    ],
)
def test_a_refused_end_changes_nothing(
    record: Record,
    outcome: AttemptOutcome,
    values: Measured | None,
    cause: str,
    message: str,
) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    before = record.trial(trial_id)

    with pytest.raises(ValueError, match=message):
        record.finish_attempt(attempt, outcome=outcome, measured=values, cause=cause)

    assert record.trial(trial_id) == before
    record.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.5))


def test_values_without_a_trial_are_refused(record: Record) -> None:
    attempt = record.start_attempt("supernet", devices=1)

    with pytest.raises(ValueError, match="nothing else has"):
        record.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.5))


@pytest.mark.parametrize("devices", [-1.0, float("nan"), float("inf")])
def test_an_attempt_holds_a_finite_number_of_devices(record: Record, devices: float) -> None:
    with pytest.raises(ValueError, match="finite number >= 0"):
        record.start_attempt("search", devices=devices)


def test_an_attempt_of_an_ended_process_can_only_be_closed_as_lost(
    record: Record, place: Address, clock: Clock
) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    record.close()

    with Record.open(place, clock=clock) as resumed:
        with pytest.raises(ValueError, match="belongs to a process that ended"):
            resumed.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.5))
        assert [trial.id for trial in resumed.close_orphans()] == [trial_id]
        assert resumed.trial(trial_id).state == "waiting"
        assert resumed.close_orphans() == ()


def test_live_attempts_are_no_orphans(record: Record) -> None:
    trial_id = add_trial(record)
    record.start_attempt("search", devices=1, trial_id=trial_id)

    assert record.close_orphans() == ()
    assert record.trial(trial_id).state == "running"


def test_only_what_the_cluster_lost_counts_as_lost(place: Address) -> None:
    stage = Stage(dim=8, mixers=(DepthwiseConv(kernel_size=3),))
    architecture = Architecture(img_size=8, patch_size=2, num_classes=2, stages=(stage,))
    with Record.create(place) as record:
        number = record.add_architecture(architecture, params=1, macs=1)
        trial = record.add_trial(number, fidelity="train-1e", seed=0, origin="trust")
        for outcome in ("lost", "interrupted", "lost"):
            attempt = record.start_attempt("trust", devices=1, trial_id=trial)
            record.finish_attempt(attempt, outcome=outcome, cause="a node failed")
        record.start_attempt("trust", devices=1, trial_id=trial)
    with Record.open(place) as record:
        record.close_orphans()
        assert record.count_lost(trial) == 2
        assert record.trial(trial).num_attempts == 4


def test_a_result_is_never_taken_back(record: Record) -> None:
    trial = add_trial(record)
    attempt = record.start_attempt("trust", devices=1, trial_id=trial)
    record.finish_attempt(
        attempt, outcome="done", measured=Measured(top1=50.0, correct=5.0, total=10.0)
    )
    with pytest.raises(ValueError, match="is done"):
        record.withdraw(trial)
    assert record.trial(trial).state == "done"
