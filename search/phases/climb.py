"""Training alone from the bottom: the sampler fills the lowest rung, the best go up the rungs."""

from __future__ import annotations

from search.phases.alone import train_alone
from search.phases.session import Session
from search.plan import Plan
from search.results import rung_fidelities
from search.scheduling import Choice
from search.scheduling.halving import Halving


def climb(session: Session, plan: Plan, phase: str) -> None:
    """Train what `Halving` chooses while the phase's share lasts.

    What no training fits in any more is not spent: the lower rungs would add nothing to the front.
    """
    if session.has_ended(plan, phase):
        return
    halving = Halving(session.record, session.space, session.settings, rung_fidelities(plan))
    due: list[Choice] = []
    while not session.has_ended(plan, phase):
        train_alone(
            session, plan, phase, lambda: due.pop() if due else halving.next(), halving.note
        )
        # In a space that is used up, networks wait for others to end before they go up.
        choice = halving.next() if halving.ran_dry else None
        if choice is None:
            return
        due.append(choice)
