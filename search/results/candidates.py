"""Results: trials gathered into one candidate an architecture, and the front among candidates.

A front is computed at one fidelity, never over several. Accuracies carry a 95 % interval, and a
candidate that only noise keeps off the front is marked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.plan import HORIZON
from search.record import QUALITIES, Trial
from search.results.certainty import LaterOrder, front_probabilities, order_after
from search.results.dominance import non_dominated
from search.results.fidelity import (
    SUPERNET,
    ZERO_COST,
    describe_fidelity,
    fidelity_height,
    is_retraining,
    is_transfer,
    order_fidelities,
)
from search.results.intervals import NORMAL_975, wilson_interval
from search.results.learning_curves import Forecast, curves_of, forecasts
from search.results.limits import keeps_to, none_within
from search.results.objectives import MEASURED, OBJECTIVES, loss_row, quality_of
from searchspace.architecture import Architecture, describe

# Networks of these phases are trained alone to compare rankings; nothing promoted them.
_NOT_PROMOTED = ("trust", HORIZON)
# So many promoted networks and no fewer make a front worth showing.
MIN_ARRIVED = 3
# Of a measure with an interval: half of that is at least so many percent, a share neither 0 nor 1.
_LEAST_HALF, _LEAST_SHARE = 0.01, 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An architecture with what its trials at one fidelity say together.

    Attributes:
        id: Of the architecture in its run.
        top1: What the network is better by, in percent, the mean over seeds: the accuracy, or what
            ``measure`` names.
        low: Lower end of its 95 % interval: from the number of images (of mIoU and AP, from images
            drawn anew) and, where networks were trained with several seeds, from the spread
            between those.
        high: Upper end.
        latency_ms: The mean of what was measured, or None; with the mean ends of the 95 % intervals
            of its medians where it was measured during the search.
        memory_mib: Peak memory of one image, where it was measured.
        images: How many images the accuracy is worth: those that judged it, less where the spread
            between seeds adds to their noise.
        on_front: Whether no other candidate dominates it.
        near_front: Whether it is off the front by no more than the noise of the accuracies.
        measure: One of `search.record.QUALITIES`.
        front_probability: That it is truly on the front (`search.results.certainty`); None where
            `add_probabilities` was not asked.
        forecast: The accuracy that it would reach with the full recipe's epochs; None where
            `add_forecasts` was not asked, or the run does not know.
    """

    id: int
    key: str
    architecture: Architecture
    fidelity: str
    top1: float
    low: float
    high: float
    num_seeds: int
    params: int
    macs: int
    latency_ms: float | None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    memory_mib: float | None = None
    images: float
    on_front: bool = False
    near_front: bool = False
    measure: str = "top1"
    front_probability: float | None = None
    forecast: Forecast | None = None


def candidates(
    trials: Sequence[Trial],
    *,
    fidelity: str,
    objectives: Sequence[str] = ("top1", "macs", "params"),
) -> tuple[Candidate, ...]:
    """Gather the finished trials at one fidelity into candidates, in order of first appearance.

    Args:
        trials: Of any state and fidelity.
        fidelity: The one to look at.
        objectives: What the front weighs, of `OBJECTIVES`; ``top1`` up, the others down.

    Raises:
        ValueError: If an objective is unknown, or named but measured for no candidate.
    """
    _check_objectives(objectives)
    by_architecture: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.fidelity == fidelity and has_accuracy(trial):
            by_architecture.setdefault(trial.architecture_id, []).append(trial)
    groups = tuple(by_architecture.values())
    seed_half = _seed_half_width(groups)
    return _mark_front([_pool(group, seed_half) for group in groups], objectives)


def shown_fidelity(trials: Sequence[Trial]) -> str:
    """Return the fidelity, below retraining, whose front is the best answer that a run has.

    That is the highest at which what was promoted has arrived: `MIN_ARRIVED` networks and no fewer
    than are still on their way, or all that any lower fidelity has judged. A long training of one
    or two networks says nothing about hundreds that were judged below.

    Raises:
        ValueError: If nothing has been judged yet.
    """
    ordered = _front_fidelities(trials)
    if not ordered:
        raise ValueError(
            "No network has been judged yet. Let the run go on (search run --resume --out RUN); "
            "search status RUN says whether any failed."
        )
    arrived = (fidelity for fidelity in ordered[:-1] if _has_arrived(trials, fidelity))
    return next(arrived, ordered[-1])


def passed_over(trials: Sequence[Trial], *, is_graft: bool = False) -> str | None:
    """Say why the front is not one of longer trainings; None where nothing longer is known of.

    Args:
        trials: Of a run.
        is_graft: Whether networks are assembled of parts, and inherit nothing from a supernet.
    """
    ordered, shown = _front_fidelities(trials), shown_fidelity(trials)
    if shown == ordered[0]:
        return _never_trained(is_graft=is_graft) if shown == SUPERNET else None
    promoted = [t for t in trials if t.fidelity == ordered[0] and t.origin not in _NOT_PROMOTED]
    done = sum(trial.state == "done" for trial in promoted)
    begun = (
        f"of {len(promoted)} promoted to it {done or 'none'} arrived"
        if promoted
        else "none was promoted to it"
    )
    return (
        f"The front is that of the networks judged at {shown}: too few were trained longer for a "
        f"front at {ordered[0]}, {begun}. A larger budget trains more."
    )


def _never_trained(*, is_graft: bool) -> str:
    how = describe_fidelity(SUPERNET, is_graft=is_graft)
    trained = "healed" if is_graft else "trained alone"
    return (
        f"The front is that of networks judged {how}: none was {trained}, so nothing says how well "
        "this ranks them. A larger budget trains some."
    )


def judged_at(
    trials: Sequence[Trial],
    *,
    fidelity: str | None = None,
    objectives: Sequence[str] = ("top1", "macs", "params"),
    limits: Mapping[str, float] | None = None,
) -> tuple[Candidate, ...]:
    """Return all candidates of one fidelity, the members of their front marked.

    Args:
        trials: Of any state and fidelity.
        fidelity: The one to look at; None takes `shown_fidelity`.
        objectives: See `candidates`.
        limits: Upper limits of costs by name; the front is that of the networks within them.

    Raises:
        ValueError: If nothing has been judged at the fidelity or nothing is within the limits, or
            an objective is unknown.
    """
    fidelity = fidelity or shown_fidelity(trials)
    found = candidates(trials, fidelity=fidelity, objectives=objectives)
    if not found:
        judged = {trial.fidelity for trial in trials if has_accuracy(trial)}
        raise ValueError(
            f"No network has been judged at the fidelity {fidelity!r}. "
            f"There are results for: {', '.join(order_fidelities(judged)) or 'none'}."
        )
    if not limits:
        return found
    within = [c for c in found if keeps_to(c, limits)]
    if not within:
        raise ValueError(f"{none_within(found, limits)}. Allow more.")
    return _mark_front(within, objectives)


def beyond_limits(trials: Sequence[Trial], limits: Mapping[str, float]) -> str | None:
    """Say that no network of the fidelity whose front is shown is within limits of costs.

    Returns:
        None where one is, there are no limits, or nothing has been judged yet.
    """
    if not limits or not _front_fidelities(trials):
        return None
    found = candidates(trials, fidelity=shown_fidelity(trials))
    return None if any(keeps_to(c, limits) for c in found) else none_within(found, limits)


def front(
    trials: Sequence[Trial],
    *,
    fidelity: str | None = None,
    objectives: Sequence[str] = ("top1", "macs", "params"),
    limits: Mapping[str, float] | None = None,
) -> tuple[Candidate, ...]:
    """Return the candidates on the front, by rising MACs; see `judged_at`."""
    found = judged_at(trials, fidelity=fidelity, objectives=objectives, limits=limits)
    return tuple(sorted((c for c in found if c.on_front), key=by_macs))


def by_macs(candidate: Candidate) -> tuple[float, float, int]:
    """Sort key: by rising MACs, the more accurate first."""
    return candidate.macs, -candidate.top1, candidate.id


def add_probabilities(
    found: Sequence[Candidate], objectives: Sequence[str]
) -> tuple[Candidate, ...]:
    """Add to each of all candidates of a fidelity the probability that it is truly on the front.

    Where the accuracy is no objective the front is exact: 1 or 0.
    """
    quality = quality_of(objectives)
    if quality is None or not found:
        return tuple(replace(c, front_probability=float(c.on_front)) for c in found)
    costs = np.delete(candidate_losses(found, objectives), list(objectives).index(quality), axis=1)
    chances = front_probabilities(
        np.array([c.top1 for c in found]),
        images=np.array([c.images for c in found]),
        costs=costs,
    )
    return tuple(
        replace(c, front_probability=chance)
        for c, chance in zip(found, chances.tolist(), strict=True)
    )


def add_forecasts(
    found: Sequence[Candidate], trials: Sequence[Trial], *, epochs: int
) -> tuple[Candidate, ...]:
    """Add to each member of the front what it would reach after so many epochs, if that is known.

    Args:
        found: All candidates of a fidelity.
        trials: Of the run; their trainings alone are the curves.
        epochs: Of the full recipe; 0 where they are not known.
    """
    if not epochs or not found or found[0].measure != "top1" or is_retraining(found[0].fidelity):
        return tuple(found)
    members = [c.id for c in found if c.on_front]
    known = forecasts(curves_of(trials), epochs=epochs, of=members)
    return tuple(replace(c, forecast=known.get(c.id)) for c in found)


def later_order(found: Iterable[Candidate]) -> LaterOrder | None:
    """Say how the order of the front's members is likely to change; None where nothing is known."""
    members = [c for c in found if c.on_front]
    known = [(c.top1, c.forecast) for c in members if c.forecast is not None]
    if len(known) < 2:
        return None
    order = order_after(
        np.array([top1 for top1, _ in known]),
        later=np.array([forecast.top1 for _, forecast in known]),
        deviations=np.array([forecast.deviation for _, forecast in known]),
    )
    return replace(order, num_unknown=len(members) - len(known))


def retrained(trials: Sequence[Trial]) -> tuple[Candidate, ...]:
    """Gather the finished retrainings, one candidate for each architecture and recipe.

    The recipe that was used last comes last.
    """
    done = [t.fidelity for t in trials if t.state == "done" and is_retraining(t.fidelity)]
    return tuple(
        candidate
        for fidelity in dict.fromkeys(done)
        for candidate in candidates(trials, fidelity=fidelity)
    )


def has_accuracy(trial: Trial) -> bool:
    """Tell whether a trial is done and measured an accuracy, at whatever fidelity."""
    is_other = trial.fidelity == ZERO_COST or is_transfer(trial.fidelity)
    return trial.state == "done" and not is_other


def searched_fidelities(trials: Iterable[Trial]) -> tuple[str, ...]:
    """List the fidelities below retraining that have accuracies, the highest first."""
    judged = {trial.fidelity for trial in trials if has_accuracy(trial)}
    return order_fidelities(fidelity for fidelity in judged if not is_retraining(fidelity))


def _front_fidelities(trials: Sequence[Trial]) -> tuple[str, ...]:
    """List those at which there can be a front: what only the horizon trained to is none.

    Where the horizon is all that there is, as of one of its networks alone, that is the answer.
    """
    judged = [trial for trial in trials if trial.origin != HORIZON]
    return searched_fidelities(judged) or searched_fidelities(trials)


def to_json(candidate: Candidate) -> dict[str, Any]:
    """Describe a candidate with JSON values; the keys are stable."""
    return {
        "id": candidate.id,
        "key": candidate.key,
        "fidelity": candidate.fidelity,
        candidate.measure: candidate.top1,
        f"{candidate.measure}_low": candidate.low,
        f"{candidate.measure}_high": candidate.high,
        "num_seeds": candidate.num_seeds,
        "near_front": candidate.near_front,
        "front_probability": candidate.front_probability,
        "full_epochs": None if candidate.forecast is None else candidate.forecast.epochs,
        "full_forecast": None if candidate.forecast is None else candidate.forecast.top1,
        "full_low": None if candidate.forecast is None else candidate.forecast.low,
        "full_high": None if candidate.forecast is None else candidate.forecast.high,
        "params": candidate.params,
        "macs": candidate.macs,
        "latency_ms": candidate.latency_ms,
        "latency_low_ms": candidate.latency_low_ms,
        "latency_high_ms": candidate.latency_high_ms,
        "memory_mib": candidate.memory_mib,
        "mixers": describe(candidate.architecture),
        "dims": [stage.dim for stage in candidate.architecture.stages],
        "architecture": candidate.architecture.to_dict(),
    }


def candidate_losses(
    candidates: Sequence[Candidate], objectives: Sequence[str]
) -> NDArray[np.float64]:
    """Return the losses of candidates, of shape (candidates, objectives); see `loss_row`."""
    rows = [
        loss_row(
            100.0 - c.top1,
            c.macs,
            c.params,
            {name: getattr(c, name) for name in MEASURED},
            objectives,
        )
        for c in candidates
    ]
    return np.array(rows, dtype=float).reshape(len(candidates), len(objectives))


def _check_objectives(objectives: Sequence[str]) -> None:
    unknown = [name for name in objectives if name not in (*OBJECTIVES, *QUALITIES)]
    if unknown or not objectives:
        raise ValueError(
            f"Objectives are {', '.join(OBJECTIVES)}; got {', '.join(objectives) or 'none'}. "
            "Write e.g. 'top1,macs'."
        )


def _has_arrived(trials: Sequence[Trial], fidelity: str) -> bool:
    """Tell whether a front at a fidelity says more than one of a lower fidelity."""
    there = [trial for trial in trials if trial.fidelity == fidelity]
    done = {trial.key for trial in there if trial.state == "done"}
    height = fidelity_height(fidelity)
    below = {t.key for t in trials if has_accuracy(t) and fidelity_height(t.fidelity) < height}
    promoted = [trial.state for trial in there if trial.origin not in _NOT_PROMOTED]
    arrived = promoted.count("done")
    on_their_way = promoted.count("waiting") + promoted.count("running")
    return below <= done or arrived >= max(MIN_ARRIVED, on_their_way)


def _pool(trials: Sequence[Trial], seed_half: float) -> Candidate:
    """Join the seeds of one architecture."""
    first = trials[0]
    # All seeds are judged on the same images, which therefore count once.
    top1 = statistics.fmean(trial.measured.quality for trial in trials)
    measure = _measure_of(first)
    low, high, by_images, worth = _image_noise(trials, measure)
    between = seed_half / math.sqrt(len(trials))
    # Variances in percent squared: of the images, and of the mean over seeds.
    by_seeds = (between / NORMAL_975) ** 2
    latency, low_ms, high_ms = (
        _mean_value(trials, name) for name in ("latency_ms", "latency_low_ms", "latency_high_ms")
    )
    return Candidate(
        id=first.architecture_id,
        key=first.key,
        architecture=first.architecture,
        fidelity=first.fidelity,
        top1=top1,
        low=max(top1 - math.hypot(top1 - low, between), 0.0),
        high=min(top1 + math.hypot(high - top1, between), 100.0),
        num_seeds=len(trials),
        params=first.params,
        macs=first.macs,
        latency_ms=latency,
        latency_low_ms=low_ms,
        latency_high_ms=high_ms,
        memory_mib=_mean_value(trials, "memory_mib"),
        images=worth * by_images / (by_images + by_seeds),
        measure=measure,
    )


def _measure_of(trial: Trial) -> str:
    return trial.measured.measure or "top1"


def _image_noise(trials: Sequence[Trial], measure: str) -> tuple[float, float, float, float]:
    """Return the 95 % interval over images, the variance in percent squared, and their number.

    An mIoU or AP counts as many images as an accuracy with that variance would need.
    """
    if measure == "top1":
        correct = statistics.fmean(trial.measured.correct for trial in trials)
        total = statistics.fmean(trial.measured.total for trial in trials)
        smoothed = (correct + 0.5) / (total + 1)
        return *wilson_interval(correct, total), 1e4 * smoothed * (1 - smoothed) / total, total
    ends = (f"{measure}_low", f"{measure}_high")
    low, high = (statistics.fmean(trial.measured.value(name) for trial in trials) for name in ends)
    # Where no image differs from the others, nothing is known of the noise.
    half = max((high - low) / 2, _LEAST_HALF)
    mean = statistics.fmean(trial.measured.quality for trial in trials) / 100
    share, variance = min(max(mean, _LEAST_SHARE), 1 - _LEAST_SHARE), (half / NORMAL_975) ** 2
    return low, high, variance, 1e4 * share * (1 - share) / variance


def _mean_value(trials: Sequence[Trial], name: str) -> float | None:
    """Average a cost over the trials that measured it."""
    found = [trial.measured.value(name) for trial in trials if trial.measured.has(name)]
    return statistics.fmean(found) if found else None


def _seed_half_width(groups: Iterable[Sequence[Trial]]) -> float:
    """Return half the 95 % interval of one training, from all architectures with several seeds.

    Zero where there is none, for nothing is known then.
    """
    squares, freedom = 0.0, 0
    for group in groups:
        top1s = [trial.measured.quality for trial in group]
        mean = statistics.fmean(top1s)
        squares += math.fsum((top1 - mean) ** 2 for top1 in top1s)
        freedom += len(top1s) - 1
    if not freedom:
        return 0.0
    from scipy.special import stdtrit

    # Student's t at 97.5 %.
    return float(stdtrit(freedom, 0.975)) * math.sqrt(squares / freedom)


def _mark_front(found: Sequence[Candidate], objectives: Sequence[str]) -> tuple[Candidate, ...]:
    if not found:
        return ()
    losses = candidate_losses(found, objectives)
    for name, column in zip(objectives, losses.T, strict=True):
        if np.isnan(column).all():
            instead = ", or add --latency" if name == "latency_ms" else ""
            raise ValueError(f"{name} was measured for no network here. Leave it out{instead}.")
    on_front = non_dominated(losses)
    near = _near_front(found, losses, on_front, objectives)
    return tuple(
        replace(candidate, on_front=bool(on), near_front=bool(by_noise))
        for candidate, on, by_noise in zip(found, on_front, near, strict=True)
    )


def _near_front(
    found: Sequence[Candidate],
    losses: NDArray[np.float64],
    on_front: NDArray[np.bool_],
    objectives: Sequence[str],
) -> NDArray[np.bool_]:
    quality = quality_of(objectives)
    if quality is None:
        return np.zeros(len(found), dtype=bool)
    top1, low, high = np.array([(c.top1, c.low, c.high) for c in found]).T
    costs = np.delete(losses, list(objectives).index(quality), axis=1)
    return near_front(top1, low, high, costs, on_front)


def near_front(
    top1: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    costs: NDArray[np.float64],
    on_front: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Mark what no member of the front beats beyond noise at no higher cost; no member is marked.

    Accuracies differ beyond noise where the 95 % interval of their difference excludes zero
    (Newcombe 1998, method 10, which joins two Wilson intervals).

    Args:
        top1: Accuracies, or another quality, in percent.
        low, high: Ends of their 95 % intervals.
        costs: Shape (networks, costs); with a NaN a network is not near.
        on_front: Which are members of the front.
    """
    near: NDArray[np.bool_] = ~on_front & ~np.isnan(costs).any(axis=1) & ~np.isnan(top1)
    for index in np.flatnonzero(on_front).tolist():
        noise = np.hypot(top1[index] - low[index], high - top1)
        is_beaten = (top1[index] - top1 > noise) & (costs[index] <= costs).all(axis=1)
        near &= ~is_beaten
    return near


def quality_interval(trial: Trial) -> tuple[float, float]:
    """Return the 95 % interval over images of a trial's accuracy, mIoU or AP, percent."""
    low, high, _, _ = _image_noise((trial,), _measure_of(trial))
    return low, high
