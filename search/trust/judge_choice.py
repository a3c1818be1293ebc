"""What a run judges by after its trust phase, and which network that makes the next one to train.

The choice is made once and kept in the record, so that a resumed run does not change its mind. See
`search.trust.ranking.choose_estimator` for the rule.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search.record import QUALITIES, Record, Trial
from search.results import (
    MEASURED,
    SUPERNET,
    ZERO_COST,
    crowding_distance,
    known_losses,
    losses_of,
    non_dominated_rank,
    rung_fidelities,
    trained_alone,
)
from search.run_folder import GRAFT, RunState
from search.trust.predictor import Predictor
from search.trust.ranking import (
    PREDICTOR,
    TRAINING,
    Estimator,
    TrustReport,
    trust_points,
    trust_report,
)
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

NUM_CANDIDATES = 500


def report_of(record: Record, *, seed: int, strategy: str = SUPERNET) -> TrustReport | None:
    """Make the trust report of a run from its record; None before there is anything to compare.

    A run with a supernet compares what the supernet has judged, and has no report before that.
    Where a larger budget has trained more networks since the run decided what it judges by, the
    verdict says what it does judge by, and what all of them would choose.
    """
    state = RunState(record)
    points = trust_points(record.trials(), state.proxy_scores)
    if strategy == SUPERNET and any(point.supernet is None for point in points):
        return None
    if not points:
        return None
    report = trust_report(points, rng=np.random.default_rng(seed))
    kept = state.estimator
    if kept is None or kept == report.chosen:
        return report
    return replace(
        report,
        verdict=(
            f"Networks are judged by {_in_words(kept)}: the run decided so when it knew less, and "
            f"keeps to it. These {len(points)} networks would choose {_in_words(report.chosen)}."
        ),
    )


def _in_words(estimator: Estimator) -> str:
    return "short training alone" if estimator == TRAINING else estimator


def estimator_of(record: Record, *, seed: int, strategy: str = SUPERNET) -> Estimator:
    """Return what the run judges by; the first call after the trust phase decides and writes it.

    Where the trust phase has trained nothing, that is the supernet, or training without one; of a
    graft the networks as they are assembled.
    """
    state = RunState(record)
    if state.estimator is not None:
        return state.estimator
    report = report_of(record, seed=seed, strategy=strategy)
    unknown: Estimator = SUPERNET if strategy in (SUPERNET, GRAFT) else TRAINING
    estimator = unknown if report is None else report.chosen
    state.estimator = estimator
    return estimator


def sampled_fidelity(record: Record, *, strategy: str) -> str:
    """Name the fidelity whose results the sampler is fed with.

    Where the run decided to judge by training, that is a length of training: with a supernet that
    of the trust phase, else the lowest rung.
    """
    state = RunState(record)
    plan, estimator = state.plan, state.estimator
    if plan is not None and (strategy == "proxy" or (estimator and trains(estimator))):
        if strategy == SUPERNET:
            return trained_alone(plan.trust_rung)
        return next(iter(rung_fidelities(plan)))
    return ZERO_COST if strategy == ZERO_COST else SUPERNET


def trains(estimator: Estimator) -> bool:
    """Tell whether judging a network by this means to train it alone."""
    return estimator in (PREDICTOR, TRAINING)


def next_predicted(
    space: SearchSpace,
    trials: Sequence[Trial],
    *,
    high: str,
    objectives: Sequence[str],
    seed: int,
) -> Architecture | None:
    """Choose the network to train alone next by the predicted accuracy of many.

    The predictor learns from all networks trained at fidelity ``high``. Candidates are random
    networks and those that the supernet judged; among these without a trial at ``high``, one with
    the most room around it on the front of predicted losses is chosen.

    Args:
        seed: The number of trials at ``high`` is added, so that each call draws others.

    Returns:
        None when all candidates were tried, or fewer than two networks are trained.
    """
    tried = [trial for trial in trials if trial.fidelity == high]
    known = [trial for trial in tried if trial.state == "done"]
    if len(known) < 2:
        return None
    rng = random.Random(seed + len(tried))
    drawn = [trial.architecture for trial in trials if trial.fidelity == SUPERNET]
    drawn += [space.sample(rng) for _ in range(NUM_CANDIDATES)]
    keys = {trial.key for trial in tried}
    candidates = list({a.key: a for a in drawn if a.key not in keys}.values())
    if not candidates:
        return None
    predicted = _predicted_losses(candidates, known, objectives)
    done = [losses for trial in known if (losses := losses_of(trial, objectives)) is not None]
    points = np.array([*predicted, *done], dtype=float)
    ranks = non_dominated_rank(points)[: len(candidates)]
    best = np.flatnonzero(ranks == ranks.min())
    # Room is measured among all of the rank; infinite at its ends, where the first one is taken.
    return candidates[int(best[int(np.argmax(crowding_distance(points[best])))])]


def _predicted_losses(
    candidates: Sequence[Architecture], known: Sequence[Trial], objectives: Sequence[str]
) -> list[tuple[float, ...]]:
    """Predict the losses of candidates from networks that were trained; exact where they are."""
    learned = [trial.architecture for trial in known]
    predictor = Predictor(learned, [trial.measured.quality for trial in known])
    # What is measured of a network is not known of those that were never judged.
    measured = {
        name: Predictor(learned, [trial.measured.value(name) for trial in known])
        for name in objectives
        if name in MEASURED
    }
    columns = {name: predict(candidates) for name, predict in measured.items()}
    columns |= dict.fromkeys(QUALITIES, 100.0 - predictor(candidates))
    exact = [known_losses(architecture, objectives) for architecture in candidates]
    return [
        tuple(
            float(columns[name][index]) if loss is None else loss
            for name, loss in zip(objectives, losses, strict=True)
        )
        for index, losses in enumerate(exact)
    ]
