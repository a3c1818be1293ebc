"""Jobs in turn: each as often as the others, never the first run, opened in small groups."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count

import pytest

from search.deployed import timing
from search.deployed.timing import Job, time_in_turn


def test_every_job_is_timed_as_often_and_never_by_its_first_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "AT_A_TIME", 2)
    now, runs, opened = [0.0], [count(), count(), count()], [0, 0, 0]

    def job(number: int) -> Job:
        def open_() -> Callable[[], object]:
            opened[number] += 1

            def run() -> None:
                # Every other run, those before one that counts, is slow.
                now[0] += 1.0 + number + (100.0 if next(runs[number]) % 2 == 0 else 0.0)

            return run

        return Job(open_, is_slow_to_open=number == 2)

    told: list[tuple[int, int]] = []
    found = time_in_turn(
        [job(0), job(1), job(2)],
        clock=lambda: now[0],
        rng=random.Random(0),
        progress=lambda done, total: told.append((done, total)),
    )

    times = timing.PASSES * timing.ROUNDS
    assert found == [[1.0] * times, [2.0] * times, [3.0] * times]
    assert opened == [timing.PASSES, timing.PASSES, 1]
    assert told[-1] == (3 * timing.PASSES, 3 * timing.PASSES)
