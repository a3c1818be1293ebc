"""The promotion phase: the best networks are trained alone, up the rungs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from search.phases.alone import train_alone
from search.phases.climb import climb
from search.phases.judging import judge_by_training
from search.phases.session import Session
from search.plan import Plan
from search.results import SUPERNET, ZERO_COST, rung_fidelities, singles_to_promote
from search.scheduling import Choice, Promotions
from search.trust import promotion_forecast, trains
from searchspace.architecture import Architecture

ALL_PROMOTED = (
    "All networks that were judged have been trained alone; what is left of the budget trains "
    "others without a judgement before."
)


def promote(
    session: Session, plan: Plan, *, first: Callable[[], Sequence[Architecture]] = tuple
) -> None:
    """Train the best networks alone, up the rungs, while the budget lasts.

    The best of one mixer at several costs come first, so that the front is seen beside them. Where
    so few networks were judged that all have gone up, because judges took that phase's time to
    start or the space is a small one, others are trained without a judgement.

    Args:
        first: Names what is trained first where the run judges by training; see
            `judge_by_training`.
    """
    if session.has_ended(plan, "promote"):
        return  # a larger budget may know better by what to judge
    estimator = session.estimator()
    if trains(estimator):
        judge_by_training(session, plan, "promote", estimator, first=first())
        return
    epochs, trials = rung_fidelities(plan), session.record.trials()
    forecast = promotion_forecast(trials, recipe_epochs=plan.recipe_epochs)
    if forecast is not None:
        session.view.say(
            "Networks go up by the accuracy that is forecast for the full recipe: it has told the "
            "order of trainings that were held out better than the last values did."
        )
    promotions = Promotions(
        trials,
        base=SUPERNET if estimator == SUPERNET else ZERO_COST,
        rungs=list(epochs),
        objectives=session.settings.objectives,
        limits=session.run.limits,
        forecast=forecast,
    )
    if estimator == SUPERNET:  # a zero-cost score is no accuracy
        singles = singles_to_promote(
            trials,
            fidelity=SUPERNET,
            num_promoted=plan.num_promoted,
            limits=session.run.limits,
        )
        within = [one for one in singles if session.space.violation(one) is None]
        promotions.put_first(within, list(epochs)[-1])

    ran_dry, due = False, list[Choice]()

    def choose() -> Choice | None:
        nonlocal ran_dry
        if due:
            return due.pop()
        chosen = promotions.next()
        ran_dry = chosen is None
        return chosen and Choice(architecture=chosen[0], epochs=epochs[chosen[1]])

    while True:
        train_alone(session, plan, "promote", choose, promotions.note)
        # On many devices all were under way when none was left: now they can go up.
        chosen = choose() if ran_dry else None
        if chosen is None:
            break
        due.append(chosen)
    if ran_dry:
        session.view.say(ALL_PROMOTED)
        climb(session, plan, "promote", first=first())
