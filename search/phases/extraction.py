"""Is extraction exact? Judges compare what front members' networks give with the supernet."""

from __future__ import annotations

from search.cluster import JudgeCrew
from search.phases.session import Session
from search.results import Candidate, front, searched_fidelities


def unchecked(session: Session) -> list[Candidate]:
    """Return the members of the front of now whose extraction was not checked yet."""
    trials = session.record.trials()
    if not searched_fidelities(trials):
        return []
    checked = session.state.extraction_errors
    members = front(trials, objectives=session.settings.objectives)
    return [member for member in members if member.id not in checked]


def check_extraction(session: Session, crew: JudgeCrew, phase: str) -> None:
    """Check those members, once each: the supernet's weights stay as they are.

    The record then has the largest difference of logits for every network that was checked.
    """
    members = unchecked(session)
    if not members:
        return
    networks = [member.architecture for member in members]
    tick = session.tick(phase, may_stop=True)
    errors = crew.call("extraction_errors", networks, while_waiting=tick)
    found = {m.id: error for m, error in zip(members, errors, strict=True)}
    session.state.add_extraction_errors(found)
