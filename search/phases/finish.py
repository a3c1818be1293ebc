"""The last phase of a run with a supernet: is extraction exact? What is left goes on judging."""

from __future__ import annotations

from search.crew import JudgeCrew, hold_judges
from search.phases.judging import judge_warm
from search.phases.session import Session
from search.plan import Plan
from search.results import SUPERNET, front, searched_fidelities

WORTH_A_JUDGE_SECONDS = 20.0


def finish(session: Session, plan: Plan) -> None:
    """Check that extraction is exact, then spend what is left on judging."""
    left = plan.budget_seconds - session.spent()
    if left <= 0:
        return  # a finished run, resumed; or one that had nothing left to check with
    devices = session.wait_for_devices()
    # A judge takes seconds to start: one alone, unless there is work for all.
    number = None if left > devices * WORTH_A_JUDGE_SECONDS else 1
    with hold_judges(session.crew(plan, "finish", most=number)) as crew:
        _check_extraction(session, crew)
        judge_warm(session, crew, plan, "finish", by=SUPERNET)
    session.check_stop()


def _check_extraction(session: Session, crew: JudgeCrew) -> None:
    trials = session.record.trials()
    if not searched_fidelities(trials):
        return
    members = front(trials, objectives=session.settings.objectives)
    networks = [member.architecture for member in members]
    tick = session.tick("finish", may_stop=True)
    errors = crew.call("extraction_errors", networks, while_waiting=tick)
    found = {str(m.id): error for m, error in zip(members, errors, strict=True)}
    session.record.set_meta("extraction", found)
