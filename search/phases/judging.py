"""The search phase: the sampler's proposals are judged by what the trust phase found."""

from __future__ import annotations

from search.crew import JudgeCrew, hold_judges
from search.judge_choice import judge_of, next_predicted, report_of
from search.judging import Judging, make_proposer
from search.phases.alone import train_alone
from search.phases.session import Session
from search.phases.trust import score_without_training
from search.plan import Plan
from search.trials import Choice, fidelity_of
from search.trust import Judge
from searchspace.architecture import Architecture


def judge_proposals(session: Session, plan: Plan, trust: list[Architecture]) -> None:
    """Judge the trust set on warm workers, decide by what to judge, and judge proposals by it."""
    phase = "search"
    if session.has_ended(plan, phase):
        return
    with hold_judges(session.crew(plan, phase)) as crew:
        judge_warm(session, crew, plan, phase, trust, proposes=False)
        session.check_stop()
        score_without_training(session, crew, phase, trust)
        judge = judge_of(session.record, seed=session.settings.seed)
        if judge == "supernet":
            judge_warm(session, crew, plan, phase, [])
        session.record.set_meta("judge_start", crew.start_seconds)
    session.check_stop()
    if judge != "supernet":
        report = report_of(session.record, seed=session.settings.seed)
        session.view.say(report.verdict if report else "")
        train_alone(session, plan, phase, lambda: choose_alone(session, plan, judge))


def judge_warm(
    session: Session,
    crew: JudgeCrew,
    plan: Plan,
    phase: str,
    first: list[Architecture],
    *,
    proposes: bool = True,
) -> None:
    """Keep the judges busy with the first architectures, then with the sampler's proposals."""
    judging = Judging(
        record=session.record,
        space=session.space,
        settings=session.settings,
        phase=phase,
        first=first,
        limit_seconds=plan.until[phase],
        judge_seconds=plan.judge_seconds,
        count_judges=lambda: len(crew),
        interrupted=lambda: session.stop.requested is not None,
        proposes=proposes,
    )
    crew.stream(judging, session.tick(phase))


def choose_alone(session: Session, plan: Plan, judge: Judge) -> Choice | None:
    """Choose what to train alone next where no ranking without training is believed."""
    fidelity, trials = fidelity_of(plan.trial_epochs), session.record.trials()
    if judge == "predictor":
        chosen = next_predicted(
            session.space,
            trials,
            high=fidelity,
            objectives=session.settings.objectives,
            seed=session.settings.seed,
        )
    else:
        known = [trial for trial in trials if trial.fidelity == fidelity]
        chosen = make_proposer(session.space, session.settings, known).ask()
    return None if chosen is None else Choice(architecture=chosen, epochs=plan.trial_epochs)
