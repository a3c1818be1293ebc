"""A record and the processes that write it: one at a time, and killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from search.record import Measured
from search.record.record import Record
from search.record.schema import Address, open_database
from tests.tiny_record import add_trial

ROOT = Path(__file__).parents[3]


def test_only_one_process_writes_attempts(record: Record, place: Address) -> None:
    attempt = record.start_attempt("supernet", devices=1)
    script = (
        "import sys; from search.record.record import Record\n"
        "from tests.postgres import read_place\n"
        "record = Record.open(read_place(sys.argv[1])); print(len(record.spent_by_phase()))\n"
        "record.close_orphans()"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "1\n"
    assert "ValueError: Another process is working on" in done.stderr
    record.finish_attempt(attempt, outcome="done")


WRITER = """
import sys
from search.record import Measured
from search.record.record import Record
from tests.postgres import read_place
record = Record.open(read_place(sys.argv[1]))
record.close_orphans()
for trial in record.trials(state="waiting"):
    attempt = record.start_attempt("search", devices=2, trial_id=trial.id)
    record.heartbeat()
    record.finish_attempt(attempt, outcome="done", measured=Measured(top1=trial.seed / 1000))
    print(trial.id, flush=True)
"""


def test_kill_9_loses_no_reported_result_and_counts_nothing_twice(place: Address) -> None:
    with Record.create(place) as record, record.together():
        for seed in range(1_000):
            add_trial(record, seed=seed)
    rng = random.Random(0)
    reported: list[int] = []

    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            reported += [int(writer.stdout.readline()) for _ in range(rng.randrange(5, 40))]
            writer.send_signal(signal.SIGKILL)
            reported += [int(line) for line in writer.stdout if line.endswith("\n")]
        assert writer.returncode == -signal.SIGKILL

    with Record.open(place) as record:
        record.close_orphans()
        done = record.trials(state="done")
        spent = record.spent()
        waiting = record.trials(state="waiting")
    assert len(reported) == len(set(reported))
    assert set(reported) <= {trial.id for trial in done}
    # The last transaction of each life may be durable and not yet reported.
    assert len(done) <= len(reported) + 3
    assert len(done) + len(waiting) == 1_000
    assert all(trial.measured == Measured(top1=trial.seed / 1000) for trial in done)
    database = open_database(place)
    attempts = database.execute("SELECT started, ended, outcome FROM attempts")
    if isinstance(place, Path):
        assert database.execute("PRAGMA integrity_check") == [("ok",)]
    database.close()
    assert [outcome for *_, outcome in attempts].count("done") == len(done)
    assert spent == pytest.approx(sum((ended - started) * 2 for started, ended, _ in attempts))


def test_calls_made_together_are_one_transaction(place: Address) -> None:
    with Record.create(place) as record, Record.open(place) as reader:
        with suppress(KeyError), record.together():
            record.set_meta("one", 1)
            raise KeyError("on the way")
        assert reader.get_meta("one") is None
        with record.together():
            record.set_meta("one", 1)
            assert reader.get_meta("one") is None
        assert reader.get_meta("one") == 1
