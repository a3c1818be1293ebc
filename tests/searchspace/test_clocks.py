"""Clocks: by the processor where one thread works, and without the runs that were interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain, repeat

import pytest

from searchspace import clocks
from searchspace.clocks import TRIES, clock_for, seconds_of, undisturbed


def test_one_thread_is_timed_by_the_processor_and_all_else_by_the_wall() -> None:
    found = [clock_for(1), clock_for(4), clock_for(1, on_gpu=True)]

    assert [clock.__name__ for clock in found] == ["thread_time", "perf_counter", "perf_counter"]


@pytest.mark.parametrize(
    ("switches", "clock", "runs"),
    [
        ([0, 0], time.thread_time, 1),
        ([0, 1, 1, 3, 3, 3], time.thread_time, 3),  # sent away in the first two
        (range(10_000), time.thread_time, TRIES),
        (range(10_000), time.perf_counter, 1),
    ],
)
def test_a_run_that_was_sent_away_is_run_again(
    switches: list[int],
    clock: Callable[[], float],
    runs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = chain(switches, repeat(0))
    monkeypatch.setattr(clocks, "_times_sent_away", lambda: next(seen))
    done: list[int] = []

    undisturbed(lambda: done.append(1), clock)

    assert len(done) == runs


def test_a_clock_of_a_test_sees_one_run() -> None:
    ticks = iter(range(10))

    assert seconds_of(lambda: None, lambda: float(next(ticks))) == 1.0
