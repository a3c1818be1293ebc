"""Clocks for networks: what the machine gives to others is none of a network's time."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 8


def clock_for(threads: int, *, on_gpu: bool = False) -> Callable[[], float]:
    """Choose a clock: one CPU thread is timed by its processor time, all else by the wall."""
    return time.thread_time if threads == 1 and not on_gpu else time.perf_counter


def undisturbed(run: Callable[[], T], clock: Callable[[], float]) -> T:
    """Run until the thread was not sent away in the middle, some times at most.

    A thread that comes back finds the caches full of others' data, and pays for it with its own
    processor time. By the wall, and with a clock of a test, there is one run.

    Args:
        run: What is timed; it may run several times.
        clock: What it is timed by.

    Returns:
        What the last run returned.
    """
    for _ in range(TRIES - 1 if clock is time.thread_time else 0):
        before = _times_sent_away()
        found = run()
        if _times_sent_away() == before:
            return found
    return run()


def seconds_of(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time one run that was not disturbed, if there is one; see `undisturbed`."""

    def timed() -> float:
        started = clock()
        run()
        return clock() - started

    return undisturbed(timed, clock)


def _times_sent_away() -> int:
    # Only Linux counts for a thread; elsewhere it is the process.
    whom = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
    return resource.getrusage(whom).ru_nivcsw
