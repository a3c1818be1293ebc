"""The promotion phase: the best networks are trained alone, up the rungs."""

from __future__ import annotations

from search.judge_choice import judge_of
from search.phases.alone import train_alone
from search.phases.judging import choose_alone
from search.phases.session import Session
from search.plan import Plan
from search.promotion import Promotions
from search.results import SUPERNET
from search.trials import Choice, fidelity_of


def promote(session: Session, plan: Plan) -> None:
    """Train the best networks alone, up the rungs, while the budget lasts."""
    judge = judge_of(session.record, seed=session.settings.seed)
    if judge != "supernet":
        train_alone(session, plan, "promote", lambda: choose_alone(session, plan, judge))
        return
    epochs = {fidelity_of(rung): rung for rung in plan.rungs}
    promotions = Promotions(
        session.record.trials(),
        base=SUPERNET,
        rungs=list(epochs),
        objectives=session.settings.objectives,
    )

    def choose() -> Choice | None:
        chosen = promotions.next()
        return chosen and Choice(architecture=chosen[0], epochs=epochs[chosen[1]])

    train_alone(session, plan, "promote", choose, promotions.note)
