"""What becomes of a trial that did not end well: tried again, or failed with its cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.record.record import Record
from search.run_folder.disk import FullDiskError
from search.run_folder.files import StorageError
from search.scheduling.tasks import Outcome
from search.scheduling.trials import MAX_LOST
from tests.tiny_engine import VALUES, runner


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


def test_a_whole_batch_in_memory_leaves_no_word_in_the_result(
    record: Record, tmp_path: Path
) -> None:
    running = runner(record, tmp_path, limit=1000.0)
    task = running.next()
    assert task is not None
    running.settle(task, outcome="done", measured=VALUES, cause=None)
    assert record.trial(task.trial_id).measured == VALUES


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
