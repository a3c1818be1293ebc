"""Times many things in turn, so that a busy moment of the machine does not count against one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from searchspace.clocks import seconds_of

PASSES = 3
ROUNDS = 7
# So many networks are open at a time.
AT_A_TIME = 64


@dataclass(frozen=True, slots=True)
class Job:
    """Something that is timed.

    Attributes:
        open: Makes what runs it once and waits for its end.
        is_slow_to_open: Whether it is opened once, and not once a pass.
    """

    open: Callable[[], Callable[[], object]]
    is_slow_to_open: bool = False


def time_in_turn(
    jobs: Sequence[Job],
    *,
    clock: Callable[[], float],
    rng: random.Random,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[float]]:
    """Return the seconds of some runs of each job.

    Jobs run in a new random order in every round, each once unmeasured before it counts.

    Args:
        jobs: What is timed.
        clock: Tells seconds.
        rng: For the order.
        progress: Called with the jobs that were timed and their number, over all passes.
    """
    found: list[list[float]] = [[] for _ in jobs]
    kept: dict[int, Callable[[], object]] = {}
    done = 0
    for _ in range(PASSES):
        numbers = list(range(len(jobs)))
        rng.shuffle(numbers)
        for group in _groups(numbers):
            runs = [(number, _opened(number, jobs[number], kept)) for number in group]
            for _ in range(ROUNDS):
                rng.shuffle(runs)
                for number, run in runs:
                    run()
                    found[number].append(seconds_of(run, clock))
            done += len(group)
            progress(done, PASSES * len(jobs))
    return found


def _opened(number: int, job: Job, kept: dict[int, Callable[[], object]]) -> Callable[[], object]:
    if number in kept:
        return kept[number]
    run = job.open()
    if job.is_slow_to_open:
        kept[number] = run
    return run


def _groups(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), AT_A_TIME):
        yield numbers[start : start + AT_A_TIME]
