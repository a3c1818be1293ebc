"""What the charts of the report are drawn from: JSON values computed from trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search.budget import UNIT_SECONDS, Budget
from search.record import QUALITIES, Trial
from search.results import (
    MEASURED,
    OBJECTIVES,
    Candidate,
    add_forecasts,
    add_probabilities,
    best_singles,
    best_within_limits,
    curves_of,
    hypervolume,
    is_within,
    judged_at,
    losses_of,
    non_dominated,
    retrained,
    retraining_label,
    searched_fidelities,
    shown_fidelity,
)
from search.results.importance import study_importance
from search.trust import TrustReport
from searchspace.architecture import Architecture

# Started and ended on the clock of the trials, and the devices held in between.
Charge: TypeAlias = tuple[float, float, float]

CURVE_POINTS = 100
# Learning curves in one picture.
MOST_CURVES = 40


def judged_candidates(
    trials: Sequence[Trial],
    objectives: Sequence[str],
    *,
    recipe_epochs: int = 0,
    limits: Mapping[str, float] | None = None,
) -> dict[str, tuple[Candidate, ...]]:
    """Gather the candidates of each fidelity below retraining.

    Members of the first one's front have a forecast of so many epochs, where there can be one.

    The first is that of the front that a run shows, whatever is higher; the others come from the
    highest down. With limits, those at which nothing is within them are left out.

    Raises:
        ValueError: If nothing has been judged yet, or nothing of the first is within the limits.
    """
    shown = shown_fidelity(trials)
    within = {t.fidelity for t in trials if t.state == "done" and is_within(t, limits or {})}
    # A dict keeps the place of a name that comes again.
    ordered = dict.fromkeys((shown, *searched_fidelities(trials)))
    found = {
        fidelity: judged_at(trials, fidelity=fidelity, objectives=objectives, limits=limits)
        for fidelity in ordered
        if fidelity == shown or fidelity in within
    }
    sure = {fidelity: add_probabilities(them, objectives) for fidelity, them in found.items()}
    return sure | {shown: add_forecasts(sure[shown], trials, epochs=recipe_epochs)}


def view_payload(
    fidelity: str, found: Sequence[Candidate], rows: Mapping[int, int]
) -> dict[str, Any]:
    """Describe the candidates of one fidelity in columns; group 2 is the front, 1 near it.

    Args:
        fidelity: Of all candidates.
        found: The candidates.
        rows: The row of each id in `networks_payload`.
    """
    measured = {name: [getattr(c, name) for c in found] for name in MEASURED}
    places = {c.id: index for index, c in enumerate(found)}
    return {
        "fidelity": fidelity,
        "rows": [rows[c.id] for c in found],
        "top1": [as_written(c.top1) for c in found],
        "low": [as_written(c.low) for c in found],
        "high": [as_written(c.high) for c in found],
        **{
            name: None if all(cost is None for cost in costs) else costs
            for name, costs in measured.items()
        },
        "group": [2 if c.on_front else int(c.near_front) for c in found],
        # Of one mixer, the best for their cost.
        "single": [places[c.id] for c in best_singles(found)],
        # Zero is short: most networks have no chance.
        "sure": [_chance(c.front_probability or 0.0) or 0 for c in found],
    }


def best_payload(found: Sequence[Candidate]) -> dict[str, dict[str, list[Any]]]:
    """For each cost, answer "which network up to it?" for every limit, in columns.

    ``best`` and the first of each of ``rivals`` are indices of the candidates.
    """
    top1 = np.array([c.top1 for c in found])
    images = np.array([c.images for c in found])
    answers = {
        name: best_within_limits(
            top1, images=images, cost=np.array([getattr(c, name) for c in found], dtype=float)
        )
        for name in OBJECTIVES
        if name != "top1"
    }
    return {
        name: {
            "limit": [one.limit for one in found_best],
            "best": [one.best for one in found_best],
            "chance": [_chance(one.chance) for one in found_best],
            "regret": [round(one.regret, 2) for one in found_best],
            "rivals": [
                [[rival, _chance(chance)] for rival, chance in one.rivals] for one in found_best
            ],
        }
        for name, found_best in answers.items()
        if found_best
    }


def _chance(chance: float) -> float:
    """Round a chance so that the page writes what `format_chance` does."""
    if 0 < chance < 0.01:
        return min(max(round(chance, 3), 0.001), 0.009)
    if 0.99 < chance < 1 - 1e-9:
        return min(max(round(chance, 3), 0.991), 0.999)
    return _nearest(chance, shown=float(f"{100 * chance:.0f}") / 100, digits=3)


def as_written(percent: float) -> float:
    """Round a percentage so that the page, which rounds it again, writes what tables do."""
    return _nearest(percent, shown=float(f"{percent:.1f}"), digits=2)


def _nearest(value: float, *, shown: float, digits: int) -> float:
    """Round to so many digits, but not half-way to what is not shown."""
    most = 4 * 10.0**-digits
    return round(shown + min(max(value - shown, -most), most), digits)


def retrained_payload(
    trials: Sequence[Trial], searched: Sequence[Candidate]
) -> list[dict[str, Any]]:
    """List retrained networks beside what they had in the search (None: not at that fidelity)."""
    before = {candidate.id: candidate for candidate in searched}
    return [
        {
            "id": final.id,
            "recipe": retraining_label(final.fidelity),
            "searched": _accuracy(before.get(final.id)),
            "final": _accuracy(final),
        }
        for final in retrained(trials)
    ]


def hypervolume_payload(
    trials: Sequence[Trial],
    charges: Sequence[Charge],
    *,
    fidelity: str,
    objectives: Sequence[str],
    unit_seconds: float,
) -> dict[str, Any]:
    """Follow the hypervolume of one fidelity's front as the budget was spent.

    Losses are shares of the reference: an error of 100 % and 1.1 times the largest costs judged.
    """
    done = [t for t in trials if t.fidelity == fidelity and t.state == "done"]
    ended = sorted((t.finished, t.id, t) for t in done if t.finished is not None)
    losses = np.array([losses_of(trial, objectives) for _, _, trial in ended], dtype=float)
    largest = np.nanmax(losses, axis=0)
    scale = [100.0 if n in QUALITIES else 1.1 * m for n, m in zip(objectives, largest, strict=True)]
    losses /= np.array(scale)
    stops = np.unique(np.linspace(1, len(ended), min(len(ended), CURVE_POINTS)).astype(int))
    front, volumes = losses[:0], []
    for start, stop in pairwise((0, *stops)):
        front = np.concatenate([front, losses[start:stop]])
        front = front[non_dominated(front)]
        volumes.append(round(hypervolume(front, np.ones(len(objectives))), 6))
    times = np.array([ended[stop - 1][0] for stop in stops])
    spent = spent_at(charges, times) / unit_seconds
    return {"fidelity": fidelity, "spent": spent.round(6).tolist(), "volume": volumes}


def spent_at(charges: Sequence[Charge], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum the device-seconds that had been charged at each time."""
    spent = np.zeros(len(times))
    for started, ended, devices in charges:
        spent += devices * np.clip(times - started, 0.0, max(ended - started, 0.0))
    return spent


def trust_payload(report: TrustReport | None) -> dict[str, Sequence[float]] | None:
    """List the networks of the trust phase in columns, one for each estimate; or return None."""
    if report is None:
        return None
    return {
        "ids": [point.id for point in report.points],
        "top1": [point.top1 for point in report.points],
        **{estimator.name: estimator.estimates for estimator in report.estimators},
    }


def horizon_payload(trials: Sequence[Trial], top: Sequence[Candidate]) -> list[dict[str, Any]]:
    """List the networks that were trained for several lengths, the most accurate in the end last.

    Members of the front have their forecast as well, where there is one.
    """
    forecasts = {c.id: c.forecast for c in top if c.forecast is not None}
    several = {n: c for n, c in curves_of(trials).items() if len(c) > 1 or n in forecasts}
    longest = sorted(several, key=lambda n: (several[n][-1].epochs, several[n][-1].top1))
    return [
        {
            "id": number,
            "epochs": [point.epochs for point in several[number]],
            "top1": [as_written(point.top1) for point in several[number]],
            "forecast": None
            if (found := forecasts.get(number)) is None
            else [found.epochs, *map(as_written, (found.top1, found.low, found.high))],
        }
        for number in longest[-MOST_CURVES:]
    ]


def importance_payload(
    judged: Mapping[str, Sequence[Candidate]], *, seed: int
) -> list[dict[str, Any]]:
    """List what each choice is worth at each fidelity that has enough networks."""
    studies = {
        fidelity: study_importance(
            [c.architecture for c in found], [c.top1 for c in found], seed=seed
        )
        for fidelity, found in judged.items()
    }
    return [
        {
            "fidelity": fidelity,
            "networks": study.num_networks,
            "r2": round(study.r2, 3),
            "names": [f"{one.place}: {one.setting}" for one in study.choices],
            "mean": [round(one.mean, 4) for one in study.choices],
            "low": [round(one.low, 4) for one in study.choices],
            "high": [round(one.high, 4) for one in study.choices],
        }
        for fidelity, study in studies.items()
        if study is not None
    ]


def mixers_payload(front: Sequence[Architecture], judged: Sequence[Architecture]) -> dict[str, Any]:
    """Count the mixer kinds of each stage's blocks, on the front and among all that were judged."""
    kinds = sorted({m.kind for a in judged for stage in a.stages for m in stage.mixers})
    num_stages = max(len(architecture.stages) for architecture in judged)
    return {
        "kinds": [kind.replace("_", " ") for kind in kinds],
        "stages": [f"stage {stage}" for stage in range(num_stages)],
        "front": _mixer_shares(front, kinds, num_stages),
        "all": _mixer_shares(judged, kinds, num_stages),
    }


def chart_unit(budget: Budget) -> tuple[str, int]:
    """Choose the unit of charts over device-time, and return its name and seconds."""
    fitting = [u for u, seconds in UNIT_SECONDS.items() if seconds <= budget.amount_seconds]
    unit = fitting[-1] if fitting else "second"
    return f"{budget.device}-{unit}s", UNIT_SECONDS[unit]


def phases_payload(
    spent_by_phase: Mapping[str, float], unit_seconds: float
) -> list[dict[str, Any]]:
    """List the device-time of each phase."""
    return [
        {"name": phase, "amount": seconds / unit_seconds}
        for phase, seconds in spent_by_phase.items()
    ]


def _accuracy(candidate: Candidate | None) -> dict[str, float] | None:
    if candidate is None:
        return None
    ends = {"top1": candidate.top1, "low": candidate.low, "high": candidate.high}
    return {name: as_written(value) for name, value in ends.items()}


def _mixer_shares(
    architectures: Sequence[Architecture], kinds: Sequence[str], num_stages: int
) -> list[list[dict[str, float]]]:
    """Return a row for each kind with, for each stage, the count of blocks and its share."""
    counts = [
        Counter(
            m.kind for a in architectures for s in a.stages[stage : stage + 1] for m in s.mixers
        )
        for stage in range(num_stages)
    ]
    return [
        [
            {"count": count[kind], "share": round(count[kind] / max(count.total(), 1), 4)}
            for count in counts
        ]
        for kind in kinds
    ]
