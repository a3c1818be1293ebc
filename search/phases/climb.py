"""Training alone from the bottom: the sampler fills the lowest rung, the best go up the rungs."""

from __future__ import annotations

from collections.abc import Sequence

from search.phases.alone import train_alone
from search.phases.session import Session
from search.plan import Plan
from search.results import rung_fidelities
from search.scheduling import Choice
from search.scheduling.halving import Halving
from searchspace.architecture import Architecture


def climb(session: Session, plan: Plan, phase: str, *, first: Sequence[Architecture] = ()) -> None:
    """Train what `Halving` chooses while the phase's share lasts.

    What no training fits in any more is not spent: the lower rungs would add nothing to the front.

    Args:
        first: Networks for the lowest rung before those that the sampler proposes.
    """
    pace = _climb(session, plan, phase, first)
    if pace is not None:
        slower = session.plan_slower(plan, pace, phase=phase)
        _climb(session, slower, phase, first, probes=False)


def _climb(
    session: Session,
    plan: Plan,
    phase: str,
    first: Sequence[Architecture],
    *,
    probes: bool = True,
) -> float | None:
    """Climb by a plan; return how many times slower than in that the trainings are, if at all."""
    if session.has_ended(plan, phase):
        return None
    halving = Halving(
        session.record,
        session.space,
        session.settings,
        rung_fidelities(plan),
        num_promoted=plan.num_promoted,
        first=first,
    )
    due: list[Choice] = []
    while not session.has_ended(plan, phase):
        pace = train_alone(
            session,
            plan,
            phase,
            lambda: due.pop() if due else halving.next(),
            halving.note,
            probes=probes,
        )
        if pace is not None:
            return pace
        # In a space that is used up, networks wait for others to end before they go up.
        choice = halving.next() if halving.ran_dry else None
        if choice is None:
            if halving.ran_dry:
                session.say_nothing_left()
            return None
        due.append(choice)
    return None
