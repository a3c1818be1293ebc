"""The phases of a graft: parts learn, are scored, and networks of them are trusted, chosen, healed.

The teacher's blocks are all that is searched: this finds networks that do what the teacher does at
less cost, and says nothing about which architecture would be best for the images.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from search.cluster import JudgeCrew, WorkerLostError, call_all, call_each, hold_judges
from search.grafting import (
    ESTIMATES,
    KL,
    choosable,
    choose,
    graft_networks,
    graft_scores,
    is_assembled,
    limits_between,
    num_pairs,
    pair_networks,
    single_networks,
)
from search.phases.horizon import train_on
from search.phases.judging import judge_by_training, judge_warm
from search.phases.measure import measure
from search.phases.promote import promote
from search.phases.saves import Saves
from search.phases.session import Session
from search.phases.trust import proxies_of, train_networks
from search.plan import HORIZON, Plan
from search.record import Measured, Trial
from search.results import SUPERNET, ZERO_COST
from search.scheduling import MAX_LOST, BudgetSpent
from search.trust import report_of, trains
from search.workers import GraftJob, share_name
from searchspace.architecture import Architecture
from searchspace.cost import count
from supernet.grafting import load_library
from supernet.training import latest_checkpoint

CALL_SECONDS = 2.0
# The end of a schedule moves where the pace has changed by so much.
RESCHEDULE_SHARE = 0.1
PACE_SHARE = 0.2
# Parts have learned enough after so many passes over the images.
MAX_LIBRARY_EPOCHS = 60
NUM_LIMITS = 16
CAVEAT = (
    "This answers: the same network, cheaper or faster. It is not a search for the best "
    "architecture for these images: parts are scored by how well they imitate the teacher."
)


def graft(session: Session) -> None:
    """Take the phases of a graft, one after the other."""
    session.view.say(CAVEAT)
    plan = measure(session)
    plan = train_library(session, plan)
    networks = trust_networks(session, plan)
    plan = score_parts(session, plan, networks)
    plan, networks = train_networks(session, plan, lambda plan: trust_networks(session, plan))
    plan = session.revise(plan, after="trust")
    train_on(session, plan, networks)
    plan = session.revise(plan, after=HORIZON)
    search_grafts(session, plan, networks)
    plan = session.revise(plan, after="search")
    # Where nothing ranks, the sums are all that is known beforehand.
    promote(session, plan, first=lambda: best_by_sum(session))


def teacher_of(session: Session) -> Architecture:
    """Return the architecture of the network that the graft begins with."""
    teacher = session.run.teacher
    assert teacher is not None
    return teacher.architecture


def trust_networks(session: Session, plan: Plan) -> list[Architecture]:
    """Draw the networks that are healed to compare rankings with; the teacher is the first.

    Trained on just as long, it is what the others are to be held against.
    """
    teacher, number = teacher_of(session), max(plan.num_trust, 2)
    rng = random.Random(f"trust/{session.settings.seed}")
    drawn = graft_networks(session.space, teacher, number=number - 1, rng=rng)
    return [teacher, *drawn]


def train_library(session: Session, plan: Plan) -> Plan:
    """Let all parts learn, on all devices; a worker that was lost is followed by another.

    Raises:
        ValueError: If they have learned, and cannot be read any more.
    """
    _check_library(session)
    lost = 0
    while True:
        try:
            _train_shares(session, plan)
            break
        except WorkerLostError as error:
            lost += 1
            if lost >= MAX_LOST:
                raise RuntimeError(
                    f"The workers that train the parts were lost {lost} times; last: {error}. "
                    "Look into Ray's logs, then go on with --resume."
                ) from error
            session.view.say(f"A worker was lost, going on from the checkpoint: {error}")
    shares, _ = _split(session, plan)
    session.job = replace(_job(session), shares=shares)
    return session.revise(plan, after="library")


def _check_library(session: Session) -> None:
    """Look whether parts that have learned can be read, before any device is held for them."""
    known = session.state.library
    if known is None or session.state.library_done < known[0] or not session.may_judge:
        return
    load_library([session.run.files.fetch(share_name(number)) for number in range(known[0])])


def _job(session: Session) -> GraftJob:
    job: GraftJob = session.job
    return job


def _split(session: Session, plan: Plan) -> tuple[int, int]:
    """Return over how many trainers the parts are split, and their steps; the first call decides.

    A step takes as long as its parts, so trainers of a share each take more steps together.
    """
    known = session.state.library
    if known is None:
        devices = session.wait_for_devices()
        times = session.state.times
        assert times is not None
        seconds = plan.spent_by_end["library"] - session.spent() - devices * session.start_seconds
        steps = int(seconds / max(times.supernet_step, 1e-9))
        known = session.state.library = (devices, max(min(steps, _most_steps(session, plan)), 1))
    return known


def _most_steps(session: Session, plan: Plan) -> int:
    """Return how many steps parts take at most, however much time there is."""
    times = session.state.times
    assert times is not None
    return MAX_LIBRARY_EPOCHS * max(plan.train_images, 1) // max(times.supernet_batch, 1)


def _train_shares(session: Session, plan: Plan) -> None:
    shares, total = _split(session, plan)
    while (done := session.state.library_done) < shares:
        devices = min(session.wait_for_devices(), shares - done)
        try:
            session.check_start(devices)
        except BudgetSpent as spent:
            if not (session.may_judge and _have_all_learned(session, shares)):
                raise
            session.view.say(f"{spent} The parts are taken as they are.")
            session.state.library_done = shares
            return
        numbers = list(range(done, done + devices))
        with (
            session.charged("library", devices),
            session.cluster.actors(session.work.supernet_worker, session.job, devices) as workers,
        ):
            _train_together(session, plan, workers, numbers, shares=shares, total=total)
        session.state.library_done = done + devices


def _have_all_learned(session: Session, shares: int) -> bool:
    """Tell whether there is a checkpoint of each trainer's parts."""
    folders = (session.run.files.fetch(share_name(number)) for number in range(shares))
    return all(latest_checkpoint(folder) is not None for folder in folders)


def _train_together(
    session: Session,
    plan: Plan,
    workers: list[Any],
    numbers: list[int],
    *,
    shares: int,
    total: int,
) -> None:
    """Let each worker train its share to the end, with checkpoints on the way.

    The schedule follows the pace: it ends earlier, or later, than was planned. The first steps are
    slow, for they compile kernels and start the processes that make batches.
    """
    tick = session.tick("library")
    # All at once: each reads images, and sends them through the teacher.
    begun = [(number, shares, total) for number in numbers]
    step = min(call_each(workers, "start", begun, while_waiting=tick))
    saves, at_a_time = Saves(), 1
    pace: float | None = None  # seconds of a step, behind the first
    is_first = True
    while step < total:
        taken, started = min(at_a_time, total - step), session.record.working_time()
        found = call_all(workers, "train", taken, while_waiting=tick)
        seconds = (session.record.working_time() - started) / taken
        step, error = min(one[0] for one in found), sum(one[1] for one in found) / len(found)
        if not is_first:
            pace = seconds if pace is None else pace + (seconds - pace) * PACE_SHARE
            at_a_time = max(round(CALL_SECONDS / max(pace, 1e-6)), 1)
        is_first, fitting = False, total
        if pace is not None:
            fitting = _fitting(
                session, plan, pace, step=step, learning=len(workers), shares=shares - numbers[0]
            )
        if abs(fitting - total) > total * RESCHEDULE_SHARE:
            total = fitting
            session.state.library = (shares, total)
            call_all(workers, "reschedule", total, while_waiting=tick)
        session.show("library", f"step {step:,} of {total:,}, mean error {error:.3f}")
        if session.stop.requested or saves.is_due:
            with saves.timed():
                call_all(workers, "save", while_waiting=tick)
        session.check_stop()
    call_all(workers, "save", while_waiting=tick)


def _fitting(
    session: Session, plan: Plan, seconds: float, *, step: int, learning: int, shares: int
) -> int:
    """Return how many steps of each share fit in what is left of the phase.

    Args:
        seconds: Device-seconds of a step of a share.
        step: That the shares which are learning are at.
        learning: How many these are; where there are too few devices, the others come later.
        shares: How many are to learn, with these.
    """
    left = max(plan.spent_by_end["library"] - session.spent(), 0.0)
    fitting = int((left / max(seconds, 1e-9) + learning * step) / shares)
    return max(min(fitting, _most_steps(session, plan)), 1)


def score_parts(session: Session, plan: Plan, networks: Sequence[Architecture]) -> Plan:
    """Judge the teacher, each part alone in it, a sample of pairs, and the trust networks."""
    phase = "score"
    if session.owes_answer or not session.has_ended(plan, phase):
        space, teacher = session.space, teacher_of(session)
        singles = single_networks(space, teacher)
        rng = random.Random(f"pairs/{session.settings.seed}")
        pairs = pair_networks(space, teacher, number=num_pairs(len(singles)), rng=rng)
        first = [*singles, *networks, *pairs]
        if not _left_to_score(session, first):
            return session.revise(plan, after=phase)
        with hold_judges(session.crew(plan, phase)) as crew:
            _check_teacher(session, crew, phase)
            judge_warm(session, crew, plan, phase, by=SUPERNET, first=first, proposes=False)
            session.state.judge_start_seconds = crew.start_seconds
        session.check_stop()
    return session.revise(plan, after=phase)


def _left_to_score(session: Session, networks: Sequence[Architecture]) -> bool:
    """Tell whether there is anything to hold judges for: they take long to start."""
    trials = session.record.trials(fidelity=SUPERNET)
    known = {trial.key for trial in trials if trial.state in ("done", "failed")}
    return any(network.key not in known for network in networks)


def _check_teacher(session: Session, crew: JudgeCrew, phase: str) -> None:
    """Compare the graft with nothing replaced with the teacher, once: their logits are the same."""
    teacher = teacher_of(session)
    cost = count(teacher)
    number = session.record.add_architecture(teacher, params=cost.params, macs=cost.macs)
    if number not in session.state.extraction_errors:
        tick = session.tick(phase, may_stop=True)
        error = crew.call("difference", while_waiting=tick)
        session.state.add_extraction_errors({number: error})


def search_grafts(session: Session, plan: Plan, networks: list[Architecture]) -> None:
    """Decide by what to judge, choose networks by it, and judge them."""
    phase = "search"
    if session.has_ended(plan, phase):
        return
    with hold_judges(session.crew(plan, phase)) as crew:
        # Those that a plan made anew has healed instead, or beside, are not judged yet.
        judge_warm(session, crew, plan, phase, by=SUPERNET, first=networks, proposes=False)
        session.check_stop()
        _estimate(session, crew, phase, networks)
        estimator = session.estimator()
        report = report_of(
            session.record, seed=session.settings.seed, strategy=session.settings.strategy
        )
        if report is not None:
            session.view.say(report.verdict)
        chosen = best_by_sum(session)
        judge_warm(
            session,
            crew,
            plan,
            phase,
            by=SUPERNET,
            first=chosen,
            proposes=estimator in (KL, SUPERNET),
        )
        if estimator in (*ESTIMATES, KL):
            _write_scores(session, estimator)
        session.state.judge_start_seconds = crew.start_seconds
    session.check_stop()
    if trains(estimator):
        judge_by_training(session, plan, phase, estimator, first=chosen)


def _estimate(session: Session, crew: JudgeCrew, phase: str, networks: list[Architecture]) -> None:
    """Estimate the trust networks by all that is not trained, each once."""
    known = session.state.proxy_scores or {}
    new = [network for network in networks if network.key not in known]
    tick: Callable[[], None] = session.tick(phase, may_stop=True)
    scores = proxies_of(crew, new, tick)
    trials = session.record.trials()
    sums = graft_scores(trials, teacher_of(session))
    judged = {one.key: {KL: -one.measured.kl} for one in trials if is_assembled(one)}
    found = {one.key: sums.estimates(one) | judged.get(one.key, {}) for one in networks}
    # Sums may be of more parts than when the network was estimated first.
    session.state.proxy_scores = known | {
        key: own | scores[key] if key in scores else {**known[key], **own}
        for key, own in found.items()
    }


def best_by_sum(session: Session) -> list[Architecture]:
    """Choose the networks with the least sum of scores for limits of the MACs, each once.

    All of them are within the limits of the run.

    What was judged in the search phase counts as chosen before, so that a resumed run goes on.
    """
    trials = session.record.trials()
    scores = graft_scores(trials, teacher_of(session))
    if not scores.singles:
        return []
    limits = session.space.limits
    found = choosable(session.space, scores, lambda architecture: count(architecture).macs)
    params = choosable(session.space, scores, lambda architecture: count(architecture).params)
    also = [(params, limits["params"])] if "params" in limits else []
    known = [t.architecture for t in trials if t.fidelity == SUPERNET and t.origin != "search"]
    chosen: list[Architecture] = []
    for limit in limits_between(found, NUM_LIMITS, most=limits.get("macs", math.inf)):
        network = choose(found, limit, without=[*known, *chosen], also=also)
        if network is not None and session.space.violation(network) is None:
            chosen.append(network)
    return chosen


def _write_scores(session: Session, estimator: str) -> None:
    """Give every network that was judged its estimate as a score, which it is promoted by."""
    record, scores = session.record, graft_scores(session.record.trials(), teacher_of(session))
    known = {trial.key for trial in record.trials(fidelity=ZERO_COST)}
    for trial in record.trials(fidelity=SUPERNET, state="done"):
        known_estimates = {KL: -trial.measured.kl, **scores.estimates(trial.architecture)}
        estimate = known_estimates.get(estimator)
        if estimate is None or trial.key in known:
            continue
        with record.together():
            number = record.add_trial(
                trial.architecture_id, fidelity=ZERO_COST, seed=trial.seed, origin="search"
            )
            attempt = record.start_attempt("search", devices=0, trial_id=number)
            record.finish_attempt(attempt, outcome="done", measured=_as_score(trial, estimate))


def _as_score(judged: Trial, estimate: float) -> Measured:
    """Return an estimate beside the costs that were measured when its network was judged."""
    none = math.nan
    return replace(
        judged.measured, score=estimate, seconds=0.0, top1=none, correct=none, total=none, kl=none
    )
