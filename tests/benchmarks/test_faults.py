"""A run in which things go wrong: the quick part of the suite of benchmarks/bench_faults.py."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from search.plan import PHASES
from search.record.record import Record

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BUDGET = 90.0
START = ("--budget", f"{BUDGET}cpu-seconds", "--share", "supernet=.3", "--work", '{"epoch": 0.1}')


def drive(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start a run of small work on this machine."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.faults.driver", str(folder), *words]
    with Path(f"{folder}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def query(folder: Path, text: str) -> list[tuple[Any, ...]]:
    """Read the record as SQL."""
    connection = sqlite3.connect(f"file:{folder / 'record.db'}?mode=ro", uri=True, timeout=30)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def wait_for_attempts(folder: Path, number: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many attempts have begun in all."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, Path(f"{folder}.log").read_text()
        if (folder / "work.json").is_file() and attempts(folder) >= number:
            return
        time.sleep(0.1)
    raise AssertionError(f"the run never began {number} attempts")


def attempts(folder: Path) -> int:
    return int(query(folder, "SELECT COUNT(*) FROM attempts")[0][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a trial that raises, one out of memory, a full disk, SIGTERM, and its end."""
    folder = tmp_path_factory.mktemp("faults") / "run"
    process = drive(folder, *START)
    try:
        wait_for_attempts(folder, 1, process)
        for fault in ("raise", "memory", "full"):
            (folder / fault).touch()
        assert process.wait(200) == 130, Path(f"{folder}.log").read_text()
        before = attempts(folder)
        process = drive(folder, "--resume")
        wait_for_attempts(folder, before + 2, process)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
        (folder / "notice.json").write_text(json.dumps(time.monotonic() - asked))
        process = drive(folder, "--resume")
        assert process.wait(250) == 0
    finally:
        process.kill()
        process.wait()
    return folder


def test_the_run_ends_by_itself_within_its_budget(folder: Path) -> None:
    with Record.open(folder / "record.db") as record:
        assert 0.9 * BUDGET < record.spent(PHASES) <= 1.01 * BUDGET + 1.0
        assert not record.trials(state="running")


def test_no_result_is_lost_or_counted_twice(folder: Path) -> None:
    done = query(folder, "SELECT id FROM trials WHERE state = 'done' ORDER BY id")
    ends = "SELECT trial_id FROM attempts WHERE outcome = 'done' AND trial_id IS NOT NULL"
    assert query(folder, f"{ends} ORDER BY trial_id") == done
    assert len(done) > 10


def test_the_trial_that_raised_was_tried_once(folder: Path) -> None:
    ((trial, cause),) = query(
        folder, "SELECT trial_id, cause FROM attempts WHERE outcome = 'failed'"
    )
    assert "KeyError" in cause
    attempts = query(folder, f"SELECT outcome FROM attempts WHERE trial_id = {trial}")
    assert attempts[-1] == ("failed",)


def test_the_trial_that_ran_out_of_memory_was_trained_with_less(folder: Path) -> None:
    found = query(
        folder,
        "SELECT result FROM trials WHERE id IN "
        "(SELECT trial_id FROM attempts WHERE cause LIKE 'out of memory%')",
    )
    assert found
    assert all(json.loads(result)["micro_batches"] == 2 for (result,) in found)


def test_a_full_disk_is_said_and_survived(folder: Path) -> None:
    log = Path(f"{folder}.log").read_text()
    assert "stopped by a full disk" in log
    assert 'Traceback (most recent call last):\n  File "<frozen runpy>"' not in log


def test_thirty_seconds_of_notice_are_enough(folder: Path) -> None:
    assert json.loads((folder / "notice.json").read_text()) < 30


def test_finished_trials_leave_no_checkpoints(folder: Path) -> None:
    waiting = {str(i) for (i,) in query(folder, "SELECT id FROM trials WHERE state = 'waiting'")}
    assert {path.name for path in (folder / "trials").glob("*")} <= waiting
