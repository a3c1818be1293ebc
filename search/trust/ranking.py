"""Trust: does a cheap estimate rank networks as training them alone does?

The trust report of a run compares every estimator on the networks of the trust phase: the
supernet, zero-cost proxies, parameters, MACs and a predictor. The run then judges by what won.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from search.grafting import ESTIMATES, KL
from search.record import Trial
from search.results import SUPERNET, Candidate, candidates, is_trained_alone
from search.trust.predictor import MIN_NETWORKS, cross_validated
from searchspace.architecture import Architecture

# With fewer points a bootstrap says next to nothing: it often draws the same two or three.
MIN_POINTS = 5
NUM_RESAMPLES = 2_000
PREDICTOR = "predictor"
COSTS = ("params", "macs")

# "supernet", "predictor", "training", or the name of a zero-cost score or of a cost.
Estimator: TypeAlias = str
TRAINING = "training"
Scores: TypeAlias = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class KendallTau:
    """Agreement of two rankings, from -1 (opposite) over 0 (none) to 1 (the same).

    Attributes:
        tau: Kendall's tau-b; None where one side has no two different values.
        low: Lower end of the 95 % interval; None with too few points to say.
        high: Upper end.
    """

    tau: float | None
    low: float | None
    high: float | None
    num_points: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustPoint:
    """A network of the trust phase: its estimates, and its accuracy when trained alone.

    Attributes:
        id: Of the architecture.
        top1: In percent, trained alone.
        supernet: Top-1 in percent with inherited weights; None in a run without a supernet.
        proxies: Zero-cost scores by name, where they were computed.
    """

    id: int
    top1: float
    supernet: float | None
    params: int
    macs: int
    architecture: Architecture
    proxies: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatorTrust:
    """How well one estimator ranks: over all networks, and among the best third.

    Attributes:
        name: ``supernet``, a proxy, ``params``, ``macs`` or ``predictor``.
        tau: Over all networks.
        top_tau: Over the third of the networks that are best when trained alone.
        estimates: One value for each point, in their order; more is predicted to be better.
    """

    name: str
    tau: KendallTau
    top_tau: KendallTau
    estimates: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustReport:
    """What the trust phase found.

    Attributes:
        points: The networks that were trained alone, for the scatter plots.
        estimators: Every estimator, in the order in which they are shown.
        chosen: What the run judges networks by from here on.
        verdict: That choice and its reason in words.
    """

    points: tuple[TrustPoint, ...]
    estimators: tuple[EstimatorTrust, ...]
    chosen: Estimator
    verdict: str


def kendall_tau_interval(
    x: Sequence[float], y: Sequence[float], *, rng: np.random.Generator
) -> KendallTau:
    """Compute Kendall's tau-b and its 95 % percentile bootstrap interval.

    Resamples of a perfect order are perfect, so there the interval is that of `_least_tau`.

    Args:
        x: Finite values.
        y: As many; pairs are resampled together.
        rng: Draws the resamples.

    Raises:
        ValueError: If the lengths differ or a value is not finite.
    """
    values = np.array([x, y], dtype=float) if len(x) == len(y) else np.empty((0, 0))
    if len(x) != len(y) or not np.isfinite(values).all():
        raise ValueError(
            "Kendall's tau needs pairs of finite values, "
            f"got {len(x)} and {len(y)} values. Leave out networks that lack one of them."
        )
    num_points = len(x)
    signs_x, signs_y = (np.sign(side[:, None] - side[None, :]) for side in values)
    once = np.ones((1, num_points))
    tau = _tau_b(signs_x, signs_y, once)[0]
    if np.isnan(tau):
        return KendallTau(tau=None, low=None, high=None, num_points=num_points)
    if num_points < MIN_POINTS:
        return KendallTau(tau=float(tau), low=None, high=None, num_points=num_points)
    if abs(tau) > 1 - 1e-9:
        ends = sorted((float(tau), float(tau) * _least_tau(len(np.unique(values[0])))))
        return KendallTau(tau=float(tau), low=ends[0], high=ends[1], num_points=num_points)
    # A resample is how often each point was drawn: equal points tie, which tau-b allows for.
    shares = np.full(num_points, 1 / num_points)
    resamples = rng.multinomial(num_points, shares, size=NUM_RESAMPLES).astype(float)
    low, high = np.nanquantile(_tau_b(signs_x, signs_y, resamples), (0.025, 0.975))
    return KendallTau(tau=float(tau), low=float(low), high=float(high), num_points=num_points)


def _least_tau(num_points: int) -> float:
    """Return the lower end of the 95 % interval of tau where so many points are in the same order.

    By Mallows' model (1957), in which each discordant pair makes an order less likely by a factor
    q, all pairs agree with the chance 1 / prod_i (1 + q + ... + q^(i-1)). The end is the mean of
    tau at the q for which that chance is 2.5 %.
    """
    places = np.arange(num_points)

    def sums(q: float, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.cumsum(weights * q**places)
        return found

    ones = np.ones(num_points)
    # With fewer than five points even an order at random, q = 1, is likelier than that.
    low, high = 0.0, 1.0 if num_points >= 5 else 64.0
    for _ in range(60):
        q = (low + high) / 2
        low, high = (q, high) if np.log(sums(q, ones)).sum() < math.log(40) else (low, q)
    discordant = float((sums(low, places.astype(float)) / sums(low, ones)).sum())
    return 1 - 4 * discordant / (num_points * (num_points - 1))


def _too_few(number: int, what: str) -> str:
    return f"{number} {what.format('' if number == 1 else 's')} {'is' if number == 1 else 'are'}"


def trust_points(trials: Sequence[Trial], proxies: Scores | None = None) -> tuple[TrustPoint, ...]:
    """List the networks of the trust phase that have both an estimate and a training of their own.

    The estimate is the supernet's, or in a run without one the zero-cost scores.

    Networks that were promoted are left out: they were chosen by the very estimate.

    Args:
        proxies: Zero-cost scores by the key of the architecture and the name of the proxy.
    """
    chosen = [t for t in trials if t.origin == "trust" and is_trained_alone(t.fidelity)]
    if not chosen:
        return ()
    fidelity = chosen[-1].fidelity
    estimates = {c.id: c.top1 for c in candidates(trials, fidelity=SUPERNET)}
    scores = proxies or {}

    def has_estimate(trained: Candidate) -> bool:
        return trained.id in estimates if estimates else trained.key in scores

    return tuple(
        TrustPoint(
            id=trained.id,
            top1=trained.top1,
            supernet=estimates.get(trained.id),
            params=trained.params,
            macs=trained.macs,
            architecture=trained.architecture,
            proxies=scores.get(trained.key, {}),
        )
        for trained in candidates(chosen, fidelity=fidelity)
        if has_estimate(trained)
    )


def trust_report(points: Sequence[TrustPoint], *, rng: np.random.Generator) -> TrustReport:
    """Compare all estimators on the networks of the trust phase and choose what to judge by."""
    estimators = estimator_trust(points, rng=rng)
    chosen, verdict = choose_estimator(estimators)
    return TrustReport(points=tuple(points), estimators=estimators, chosen=chosen, verdict=verdict)


def estimator_trust(
    points: Sequence[TrustPoint], *, rng: np.random.Generator
) -> tuple[EstimatorTrust, ...]:
    """Measure every estimator that all the points have."""
    trained = [point.top1 for point in points]
    inherited = [point.supernet for point in points if point.supernet is not None]
    estimates = {SUPERNET: inherited} if len(inherited) == len(points) else {}
    for name in points[0].proxies if points else ():
        scores = [point.proxies.get(name, math.nan) for point in points]
        if all(map(math.isfinite, scores)):
            estimates[name] = scores
    for name in COSTS:
        estimates[name] = [float(getattr(point, name)) for point in points]
    if len(points) >= MIN_NETWORKS:
        networks = [point.architecture for point in points]
        estimates[PREDICTOR] = cross_validated(networks, trained, seed=0).tolist()
    return tuple(
        compare(name, values, trained, rng=rng) for name, values in estimates.items() if points
    )


def compare(
    name: str,
    estimates: Sequence[float],
    trained: Sequence[float],
    *,
    rng: np.random.Generator,
) -> EstimatorTrust:
    """Measure one estimator against accuracies of training alone.

    The interval of the best third holds for these networks as the best third: which networks are
    among them is not resampled.
    """
    number = -(-len(trained) // 3)
    best = sorted(range(len(trained)), key=lambda index: -trained[index])[:number]
    return EstimatorTrust(
        name=name,
        tau=kendall_tau_interval(estimates, trained, rng=rng),
        top_tau=kendall_tau_interval(
            [estimates[index] for index in best], [trained[index] for index in best], rng=rng
        ),
        estimates=tuple(estimates),
    )


def choose_estimator(estimators: Sequence[EstimatorTrust]) -> tuple[Estimator, str]:
    """Choose what a run judges networks by, and say why.

    The supernet or the predictor, whichever has the larger tau, if it is positive and nothing else
    is a `_doubt`; otherwise networks are trained alone for a short time. With fewer than
    `MIN_POINTS` networks nothing is known, and the supernet stays. Without a supernet see
    `choose_score`, and of a graft `choose_of_graft`.
    """
    if not any(estimator.name == SUPERNET for estimator in estimators):
        return choose_score(estimators)
    if any(estimator.name in (*ESTIMATES, KL) for estimator in estimators):
        return choose_of_graft(estimators)
    taus = {e.name: e.tau.tau if e.tau.tau is not None else 0.0 for e in estimators}
    num_points = estimators[0].tau.num_points if estimators else 0
    if num_points < MIN_POINTS:
        return "supernet", (
            f"{_too_few(num_points, 'network{} trained alone')} too few to say whether the "
            f"supernet's ranking can be trusted ({MIN_POINTS} are needed); it is used unchecked."
        )
    # Of few networks no predictor was measured.
    ours = [name for name in (SUPERNET, PREDICTOR) if name in taus]
    best = max(ours, key=lambda name: taus[name])
    rivals = {name: tau for name, tau in taus.items() if name not in (SUPERNET, PREDICTOR)}
    found = f"tau {taus[best]:.2f} over {num_points} networks"
    doubt = _doubt(_named(best, estimators), rivals)
    if doubt is None and taus[best] > 0:
        return best, f"Networks are judged by the {best}, {found}; {_beside(taus[best], rivals)}."
    reason = f"no better than {doubt} ({rivals[doubt]:.2f})" if doubt else "which is no agreement"
    who = f"Neither the supernet nor the predictor can be trusted here: the better one, the {best},"
    if len(ours) == 1:
        who = "The supernet cannot be trusted here: it"
    return "training", (
        f"{who} has {found}, {reason}. Networks are judged by short training alone."
    )


def choose_of_graft(estimators: Sequence[EstimatorTrust]) -> tuple[Estimator, str]:
    """Choose what a graft judges its networks by, and say why.

    The sum of the scores of parts, that sum with pairs, KL or accuracy of networks as assembled,
    whichever has the largest tau against healed networks, if it is positive and nothing else is a
    `_doubt`; otherwise networks are healed for a short time. With fewer than `MIN_POINTS` networks
    nothing is known, and they are judged as assembled.
    """
    taus = {e.name: e.tau.tau if e.tau.tau is not None else 0.0 for e in estimators}
    num_points = estimators[0].tau.num_points
    if num_points < MIN_POINTS:
        return SUPERNET, (
            f"{_too_few(num_points, 'healed network{}')} too few to say what ranks them "
            f"({MIN_POINTS} are needed); networks are judged as they are assembled, unchecked."
        )
    own = [name for name in (*ESTIMATES, KL, SUPERNET) if name in taus]
    best = max(own, key=lambda name: taus[name])
    rivals = {name: tau for name, tau in taus.items() if name not in (*own, PREDICTOR)}
    words = {SUPERNET: "accuracy as they are assembled", KL: "KL as they are assembled"}.get(
        best, best
    )
    found = f"tau {taus[best]:.2f} over {num_points} healed networks"
    doubt = _doubt(_named(best, estimators), rivals)
    if doubt is None and taus[best] > 0:
        return best, f"Networks are judged by the {words}, {found}; {_beside(taus[best], rivals)}."
    rival = doubt or max(rivals, key=lambda name: rivals[name])
    return TRAINING, (
        f"What parts score cannot be trusted here: the best of it, the {words}, has {found}, and "
        f"{rival} has {rivals[rival]:.2f}. Networks are judged by short healing alone, "
        "those with the least sums for their MACs first."
    )


def _named(name: str, estimators: Sequence[EstimatorTrust]) -> EstimatorTrust:
    return next(estimator for estimator in estimators if estimator.name == name)


def _doubt(best: EstimatorTrust, rivals: Mapping[str, float]) -> str | None:
    """Name what is a reason not to judge by the best of a run's own estimators; None for nothing.

    Parameters or MACs that rank as well are: then it says nothing that a search did not know. Of
    several proxies one is often a little ahead by chance, which is none; it is one where the
    best's 95 % interval leaves its tau out.
    """
    tau = 0.0 if best.tau.tau is None else best.tau.tau
    most = tau if best.tau.high is None else best.tau.high
    doubts = [n for n, other in rivals.items() if other >= tau and (n in COSTS or other > most)]
    return max(doubts, key=lambda name: rivals[name], default=None)


def _beside(tau: float, rivals: Mapping[str, float]) -> str:
    """Say what the best of the others has."""
    rival = max(rivals, key=lambda name: rivals[name])
    noise = ", which noise alone explains" if rivals[rival] >= tau else ""
    return f"the best of the others, {rival}, has {rivals[rival]:.2f}{noise}"


def choose_score(estimators: Sequence[EstimatorTrust]) -> tuple[Estimator, str]:
    """Choose what a run without a supernet judges networks by, and say why.

    The zero-cost score with the largest tau, if it is positive; parameters and MACs compete. With
    fewer than `MIN_POINTS` networks nothing is known, and networks are trained alone.
    """
    scores = {e.name: e.tau for e in estimators if e.name != PREDICTOR}
    num_points = max((tau.num_points for tau in scores.values()), default=0)
    if num_points < MIN_POINTS:
        return TRAINING, (
            f"{_too_few(num_points, 'network{} trained alone')} too few to say which zero-cost "
            f"score ranks networks ({MIN_POINTS} are needed); they are judged by short training "
            "alone."
        )
    taus = {name: -1.0 if tau.tau is None else tau.tau for name, tau in scores.items()}
    best = max(taus, key=lambda name: taus[name])
    found = f"{best} has the largest tau, {taus[best]:.2f} over {num_points} networks"
    if taus[best] <= 0:
        return TRAINING, (
            f"No zero-cost score can be trusted here: {found}. "
            "Networks are judged by short training alone."
        )
    if best in COSTS:
        proxies = [name for name in taus if name not in COSTS]
        second = max(proxies, key=lambda name: taus[name], default=None)
        beaten = f"; the best proxy, {second}, has {taus[second]:.2f}" if second else ""
        return best, (
            f"No zero-cost proxy ranks better than size does: {found}{beaten}. Networks are "
            f"chosen by {best} alone: spread over the cost, not by promise."
        )
    rival = max(COSTS, key=lambda name: taus.get(name, -1.0))
    return best, (
        f"Networks are judged by the zero-cost score {found}; "
        f"of the costs {rival} has {taus.get(rival, -1.0):.2f}."
    )


def _tau_b(
    signs_x: NDArray[np.float64], signs_y: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute tau-b for each row of ``counts``, the multiplicity of each point; NaN: undefined."""

    def pairs(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = ((counts @ weights) * counts).sum(axis=1)
        return sums

    untied = np.sqrt(pairs(signs_x**2) * pairs(signs_y**2))
    taus = np.full(len(counts), np.nan)
    np.divide(pairs(signs_x * signs_y), untied, out=taus, where=untied > 0)
    return taus
