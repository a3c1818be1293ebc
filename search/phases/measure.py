"""The first phase of a run without a supernet: one device measures, and the plan is printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from search.cluster import WorkerLostError, call
from search.phases.session import Session
from search.plan import Plan, StepTimes, split_shares
from search.scheduling import MAX_LOST, BudgetSpent

# Measuring takes at most so much of the budget, and of the first phase's share.
MEASURE_SHARE = 0.5


def measure(session: Session) -> Plan:
    """Measure what steps and judgements take, once; print the plan."""
    lost = 0
    while session.state.times is None:
        try:
            _measure(session)
        except WorkerLostError as error:
            lost += 1
            if lost >= MAX_LOST:
                raise RuntimeError(
                    f"The worker that measures was lost {lost} times; last: {error}. "
                    "Look into Ray's logs, then go on with --resume."
                ) from error
    plan = session.make_plan()
    session.show_plan(plan)
    return plan


def _measure(session: Session) -> None:
    session.wait_for_devices()
    session.check_start(1)
    with bounded(session) as tick:
        started = time.monotonic()
        # What the worker takes to start and to end is charged as well.
        with (
            session.charged("measure", 1),
            session.cluster.actors(session.work.supernet_worker, session.job, 1) as (worker,),
        ):
            times = call(worker, "measure", while_waiting=tick)
            keep_start(session, time.monotonic() - started, times)
    session.state.times = times


@contextmanager
def bounded(session: Session) -> Iterator[Callable[[], None]]:
    """Give what to do while waiting for what is measured, which may take a part of the budget.

    Raises:
        ValueError: If it takes more: the budget is too small.
    """
    settings, amount = session.settings, session.budget.amount_seconds
    (first, *_) = split_shares(amount, settings.shares, strategy=settings.strategy).values()
    limit = min(session.spent() + min(first, MEASURE_SHARE) * amount, session.end_seconds)
    try:
        yield session.tick("measure", may_stop=True, limit_seconds=limit)
    except BudgetSpent as error:
        raise ValueError(
            f"A budget of {amount:.0f} device-seconds is too small: when {limit:.0f} of them were "
            "spent, this machine was still measuring what a step takes. Give more, a smaller space "
            "or a smaller --img-size."
        ) from error


def keep_start(session: Session, seconds: float, times: StepTimes) -> None:
    """Write down how long a worker took until it was ready to measure."""
    session.state.worker_start_seconds = max(seconds - times.measured_seconds, 0.0)
