"""The search phase: the sampler's proposals are judged by what the trust phase found."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.cluster import JudgeCrew, hold_judges
from search.phases.alone import train_alone
from search.phases.climb import climb
from search.phases.extraction import check_extraction
from search.phases.session import Session
from search.phases.trust import score_without_training
from search.plan import Plan
from search.record import Trial
from search.results import SUPERNET, trained_alone
from search.scheduling import Choice
from search.scheduling.judging import Judging, make_proposer
from search.trust import Estimator, next_predicted, report_of, trains
from searchspace.architecture import Architecture
from searchspace.single_mixer import single_mixer_baselines

# Of the networks that are judged, at most one in so many is a baseline.
JUDGED_SHARE = 4
# Networks that a run with warm judges is to have, though they took the phase's share to start.
LEAST_JUDGED = 5


def judge_proposals(session: Session, plan: Plan, trust: list[Architecture]) -> None:
    """Judge the trust set on warm workers, decide by what to judge, and judge proposals by it."""
    phase = "search"
    if session.has_ended(plan, phase) and not session.owes_answer:
        return
    with hold_judges(session.crew(plan, phase)) as crew:
        if session.settings.strategy == SUPERNET:
            judge_warm(session, crew, plan, phase, by=SUPERNET, first=trust, proposes=False)
            session.check_stop()
        score_without_training(session, crew, phase, trust)
        estimator = session.estimator()
        report = report_of(
            session.record, seed=session.settings.seed, strategy=session.settings.strategy
        )
        if report is not None and estimator != SUPERNET:
            session.view.say(report.verdict)
        if not trains(estimator):
            singles = single_mixer_baselines(session.space)[: plan.num_judged // JUDGED_SHARE]
            judge_warm(session, crew, plan, phase, by=estimator, first=trust, beside=singles)
        if session.settings.strategy == SUPERNET:
            check_extraction(session, crew, phase)
        session.state.judge_start_seconds = crew.start_seconds
    session.check_stop()
    if trains(estimator):
        judge_by_training(session, plan, phase, estimator)


def judge_warm(
    session: Session,
    crew: JudgeCrew,
    plan: Plan,
    phase: str,
    *,
    by: Estimator,
    first: Sequence[Architecture] = (),
    beside: Sequence[Architecture] = (),
    proposes: bool = True,
) -> None:
    """Keep the judges busy with the first architectures, then with the sampler's proposals.

    Args:
        beside: Judged among the proposals, see `search.scheduling.judging.Judging`.
    """
    judging = Judging(
        record=session.record,
        space=session.space,
        settings=session.settings,
        phase=phase,
        first=first,
        beside=beside,
        limit_seconds=plan.spent_by_end[phase],
        judge_seconds=plan.judge_seconds,
        count_judges=lambda: len(crew),
        interrupted=lambda: session.stop.requested is not None,
        by=by,
        proposes=proposes,
        least=LEAST_JUDGED if session.owes_answer else 0,
    )
    # The crew ends its judges by itself, and brings back what they held.
    crew.stream(judging, session.tick(phase, limit_seconds=math.inf))
    if judging.ran_dry:
        session.say_nothing_left()


def judge_by_training(
    session: Session,
    plan: Plan,
    phase: str,
    estimator: Estimator,
    *,
    first: Sequence[Architecture] = (),
) -> None:
    """Train networks alone where no ranking without training is believed.

    Args:
        first: Without a supernet, networks that are trained before those that are proposed.
    """
    if session.settings.strategy != SUPERNET:
        climb(session, plan, phase, first=first)
        return
    train_alone(session, plan, phase, lambda: _choose_alone(session, plan, estimator))


def _choose_alone(session: Session, plan: Plan, estimator: Estimator) -> Choice | None:
    """Choose what to train alone next, as long as the trust set."""
    fidelity, trials = trained_alone(plan.trust_rung), session.record.trials()
    tried = {trial.key for trial in trials if trial.fidelity == fidelity}
    singles = single_mixer_baselines(session.space)[: plan.num_promoted // JUDGED_SHARE]
    chosen = next((one for one in singles if one.key not in tried), None)
    if chosen is None:
        chosen = _propose_alone(session, trials, fidelity, estimator)
    if chosen is None:
        session.say_nothing_left()
        return None
    return Choice(architecture=chosen, epochs=plan.trust_rung)


def _propose_alone(
    session: Session, trials: Sequence[Trial], fidelity: str, estimator: Estimator
) -> Architecture | None:
    if estimator == "predictor":
        return next_predicted(
            session.space,
            trials,
            high=fidelity,
            objectives=session.settings.objectives,
            seed=session.settings.seed,
        )
    known = [trial for trial in trials if trial.fidelity == fidelity]
    return make_proposer(session.space, session.settings, known).ask()
