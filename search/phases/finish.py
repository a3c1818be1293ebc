"""The last phase of a run with a supernet: is extraction exact? What is left goes on judging."""

from __future__ import annotations

from search.cluster import hold_judges
from search.phases.extraction import check_extraction, unchecked
from search.phases.judging import judge_warm
from search.phases.session import Session
from search.plan import Plan
from search.results import SUPERNET

# A judge is to work for as long as it takes to start, and for so long with that.
WORTH_A_JUDGE_SECONDS, WORTH_A_JUDGE_STARTS = 20.0, 2.0


def finish(session: Session, plan: Plan) -> None:
    """Check the extraction of members that are new on the front; spend what is left on judging."""
    left = plan.budget_seconds - session.spent()
    if left <= 0:
        return  # a finished run, resumed; or one that had nothing left to check with
    if left < session.start_seconds:  # a judge would start, and no more
        if members := unchecked(session):
            session.view.say(f"Nothing is left to check the extraction of {len(members)} networks.")
        return
    devices = session.wait_for_devices()
    worth = max(WORTH_A_JUDGE_SECONDS, WORTH_A_JUDGE_STARTS * session.start_seconds)
    most = max(int(left / worth), 1)
    with hold_judges(session.crew(plan, "finish", most=most if most < devices else None)) as crew:
        check_extraction(session, crew, "finish")
        judge_warm(session, crew, plan, "finish", by=SUPERNET)
        check_extraction(session, crew, "finish")
    session.check_stop()
