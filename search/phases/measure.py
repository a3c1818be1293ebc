"""The first phase of a run without a supernet: one device measures, and the plan is printed."""

from __future__ import annotations

from dataclasses import asdict

from search.cluster.connection import WorkerLostError, call
from search.phases.session import Session
from search.plan import Plan
from search.scheduling.trials import MAX_LOST


def measure(session: Session) -> Plan:
    """Measure what steps and judgements take, once; print the plan."""
    lost = 0
    while session.record.get_meta("times") is None:
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
    tick = session.tick("measure", may_stop=True)
    # What the worker takes to start and to end is charged as well.
    with (
        session.charged("measure", 1),
        session.cluster.actors(session.work.supernet_worker, session.job, 1) as (worker,),
    ):
        times = call(worker, "measure", while_waiting=tick)
    session.record.set_meta("times", asdict(times))
