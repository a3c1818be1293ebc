"""Training networks alone, in whichever phase: trials on the cluster while the share lasts."""

from __future__ import annotations

from collections.abc import Callable

from search.cluster import run_trials
from search.phases.session import Session
from search.plan import Plan
from search.record import Trial
from search.scheduling import Choice, TrialRunner


def train_alone(
    session: Session,
    plan: Plan,
    phase: str,
    choose: Callable[[], Choice | None],
    on_end: Callable[[Trial], None] | None = None,
    *,
    probes: bool = False,
) -> float | None:
    """Train what is chosen until there is no more, or the phase's share is used up.

    Args:
        session: The run.
        plan: Of the shares and the rungs.
        phase: What the time is charged to.
        choose: The next network, or None when there is none.
        on_end: Called with every trial that has ended.
        probes: Whether the plan can be made anew where it is large and its first trials are slow.

    Returns:
        How many times slower the first epochs were than a large plan has it, which ended the
        trials; None where all went on.
    """
    if session.has_ended(plan, phase):
        return None
    stop = session.stop_seconds(plan)
    runner = TrialRunner(
        record=session.record,
        plan=plan,
        folder=session.run.folder,
        files=session.run.files,
        phase=phase,
        seed=session.settings.seed,
        choose=choose,
        limit_seconds=min(plan.spent_by_end[phase], stop),
        interrupted=lambda: session.stop.requested is not None,
        on_event=session.view.say,
        on_end=on_end,
        start_seconds=session.start_seconds,
        probes=probes,
        stop_seconds=stop,
        rescues=not session.judges_warm,
    )
    session.tick(phase)
    session.wait_for_devices()
    with session.view.ticking(lambda: session.show(phase)):
        run_trials(
            session.cluster,
            session.work,
            job=session.job,
            folder=session.run.folder,
            source=runner,
            name=phase,
        )
    session.check_stop()
    return runner.off_pace
