"""What accuracy a network would reach if it were trained for longer, by a run's own curves.

A curve is what one network reached in trainings of several lengths, each with a schedule of its own
and so a training to the end. The error after ``e`` epochs is taken as a power law with a floor,

    err(e) = r * (f + (1 - f) * (e / e0) ** -b),

with the error ``r`` at the length ``e0`` that most networks had, the slope ``b`` and the share
``f`` of ``r`` that no training removes. Every network has its own three numbers. How they are
spread over networks, and which go together, is learned from all of the run's curves (a Gaussian on
the scales where that is natural: empirical Bayes). So a network with a single training has a
forecast as well, as wide as the curves of the others differ.

The integrals are sums over one set of draws, evenly from a Gaussian somewhat wider than that of
the networks, weighted anew: no chains, no gradients, and the same answer every time. A curve of
several trainings leaves weight on one draw of a thousand, so there are many.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from search.record import Trial
from search.results.fidelity import epochs_of

# Curves with several lengths that a forecast needs, and the most that are learned from.
MIN_CURVES, MOST_CURVES = 5, 40
# Each that is held out needs a model that has not seen it.
MOST_HELD_OUT = 12
# A forecast to more than so many times the longest training of the run is none.
MAX_STRETCH = 4.5
NUM_DRAWS, NUM_ROUNDS = 30_000, 25
# Rounds end where the log evidence of all curves changes by no more.
SETTLED = 1e-3
# So many draws from the prior find about where the networks are; the others are so much wider.
NUM_FIRST_DRAWS, WIDER = 8_000, 1.5
# Logits of errors scatter this much between trainings that differ by their seed alone; how likely
# each of these is, the curves say.
SEED_DEVIATIONS = (0.04, 0.08, 0.16, 0.32)
LEAST_LIKELY = 0.01
# The prior of (logit of r about its mean, log b, logit of f), and how many curves it counts for.
PRIOR_MEAN, PRIOR_DEVIATION, PRIOR_CURVES = (0.0, math.log(0.5), 0.0), (1.5, 0.8, 1.5), 2.0

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Point:
    """The end of a training: its epochs, the accuracy in percent, the images that judged it."""

    epochs: int
    top1: float
    images: float


# By rising epochs.
Curve: TypeAlias = tuple[Point, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """An accuracy that was not measured, in percent.

    Attributes:
        epochs: Of the training that it is of.
        top1: Its mean.
        low: Lower end of the 95 % interval.
        high: Upper end.
        deviation: The standard deviation.
    """

    epochs: int
    top1: float
    low: float
    high: float
    deviation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """How good forecasts were of trainings that they had not seen.

    Attributes:
        num_curves: That were held out, one after the other.
        epochs: Of the trainings that were forecast.
        error: Mean distance of the forecast in points of accuracy.
        last_error: Likewise of the longest training that it was made from.
        covered: Share of the truths inside of their 95 % intervals.
        tau: Kendall's tau of the forecasts' order with that of the truths; NaN where it has none.
        last_tau: Likewise of the order of the trainings that they were made from.
    """

    num_curves: int
    epochs: int
    error: float
    last_error: float
    covered: float
    tau: float = math.nan
    last_tau: float = math.nan

    @property
    def ranks_better(self) -> bool:
        """Whether forecasts rank networks better than their last values do."""
        return self.tau > self.last_tau


def curves_of(trials: Iterable[Trial]) -> dict[int, Curve]:
    """Gather the curve of each architecture, by its id: trainings alone on all of the images."""
    found: dict[int, dict[int, list[Trial]]] = {}
    for trial in trials:
        epochs = epochs_of(trial.fidelity)
        if epochs is not None and trial.state == "done" and trial.measured.measure == "top1":
            by_epochs = found.setdefault(trial.architecture_id, {})
            by_epochs.setdefault(epochs, []).append(trial)
    return {
        number: tuple(
            Point(
                epochs,
                # Seeds are judged on the same images, which count once.
                sum(trial.measured.top1 for trial in same) / len(same),
                same[0].measured.total,
            )
            for epochs, same in sorted(by_epochs.items())
        )
        for number, by_epochs in found.items()
    }


def learnable(curves: Iterable[Curve], *, epochs: int) -> list[Curve]:
    """Return the curves from which trainings of so many epochs can be forecast.

    Returns:
        Those of several lengths; none where they are too few, or all of them far shorter.
    """
    several = [curve for curve in curves if len(curve) > 1]
    longest = max((curve[-1].epochs for curve in several), default=0)
    return several if len(several) >= MIN_CURVES and longest * MAX_STRETCH >= epochs else []


def forecasts(
    curves: Mapping[int, Curve], *, epochs: int, of: Iterable[int] | None = None
) -> dict[int, Forecast]:
    """Forecast the accuracy of architectures after so many epochs.

    Args:
        curves: Of all architectures, to learn from.
        epochs: Of the training to forecast.
        of: Ids of those that are asked for; None for all that have a curve.

    Returns:
        By id; empty where too few networks were trained for several lengths, or none for long.
    """
    several = learnable(curves.values(), epochs=epochs)
    if not several:
        return {}
    model = CurveModel(several)
    wanted = curves if of is None else [number for number in of if number in curves]
    return {number: model.forecast(curves[number], epochs) for number in wanted}


def forecast_held_out(curves: Iterable[Curve]) -> HeldOut | None:
    """Forecast the longest trainings of a run, each without having seen it.

    One curve after the other lends only its shorter trainings, and the model learns from the rest.

    Returns:
        None with fewer than `MIN_CURVES` curves to learn from beside each.
    """
    several = [curve for curve in curves if len(curve) > 1]
    longest = max((curve[-1].epochs for curve in several), default=0)
    hidden = [index for index, curve in enumerate(several) if curve[-1].epochs == longest]
    hidden = hidden[:: max(len(hidden) // MOST_HELD_OUT, 1)][:MOST_HELD_OUT]
    if len(several) <= MIN_CURVES:
        return None
    truths, found, last = [], [], []
    for index in hidden:
        *known, truth = several[index]
        model = CurveModel([*several[:index], *several[index + 1 :]])
        found.append(model.forecast(tuple(known), longest, images=truth.images))
        truths.append(truth.top1)
        last.append(known[-1].top1)
    guessed = [one.top1 for one in found]
    inside = [one.low <= top1 <= one.high for one, top1 in zip(found, truths, strict=True)]
    return HeldOut(
        num_curves=len(hidden),
        epochs=longest,
        error=float(np.abs(np.subtract(guessed, truths)).mean()),
        last_error=float(np.abs(np.subtract(last, truths)).mean()),
        covered=float(np.mean(inside)),
        tau=_kendall_tau(guessed, truths),
        last_tau=_kendall_tau(last, truths),
    )


def _kendall_tau(x: Sequence[float], y: Sequence[float]) -> float:
    """Return tau-b; NaN where one side has no two different values."""
    first, second = (np.sign(np.subtract.outer(side, side)) for side in (x, y))
    pairs = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return float((first * second).sum()) / pairs if pairs else math.nan


class CurveModel:
    """The spread of learning curves over the networks of a run.

    Args:
        curves: To learn from; at least one, each with at least one point.
    """

    def __init__(self, curves: Sequence[Curve]) -> None:
        # The longest curves say most; their order is that of the run.
        learned = sorted(curves, key=lambda curve: (-len(curve), -curve[-1].epochs))[:MOST_CURVES]
        counts = Counter(point.epochs for curve in learned for point in curve)
        self._middle = max(counts, key=lambda epochs: (counts[epochs], epochs))
        nearest = [min(curve, key=self._distance) for curve in learned]
        centre = float(np.mean([_logit(_error(point)) for point in nearest]))
        self._prior = _Gaussian(
            np.array(PRIOR_MEAN) + np.array((centre, 0.0, 0.0)), np.diag(PRIOR_DEVIATION) ** 2
        )
        # By the widest scatter, of which the most draws are left.
        first = _Draws(self._prior, NUM_FIRST_DRAWS, middle=self._middle)
        _, start = self._fit(learned, first, max(SEED_DEVIATIONS), self._prior)
        wider = _Gaussian(start.mean, WIDER**2 * start.covariance)
        self._draws = _Draws(wider, NUM_DRAWS, middle=self._middle)
        fits = [self._fit(learned, self._draws, one, start) for one in SEED_DEVIATIONS]
        evidence = np.array([found for found, _ in fits])
        likely = np.exp(evidence - evidence.max())
        # How likely each scatter is, and the log weights of the draws under it.
        self._fits = [
            (float(share), deviation, self._draws.log_weights(spread))
            for share, deviation, (_, spread) in zip(
                likely / likely.sum(), SEED_DEVIATIONS, fits, strict=True
            )
            if share > LEAST_LIKELY
        ]

    def forecast(self, curve: Curve, epochs: int, *, images: float = math.inf) -> Forecast:
        """Forecast the accuracy of a network that was trained as its curve says.

        Args:
            curve: Its points; at least one.
            epochs: Of the training to forecast.
            images: That would judge it; without their noise by default.
        """
        parts = [
            self._accuracies(curve, epochs, images, deviation, share, log_weights)
            for share, deviation, log_weights in self._fits
        ]
        top1, shares = (np.concatenate(column) for column in zip(*parts, strict=True))
        shares /= shares.sum()
        mean = float(top1 @ shares)
        # In hundredths of a point, and a tenth of the time that sorting a million of them takes.
        counted, edges = np.histogram(top1, bins=10_000, range=(0, 100), weights=shares)
        ends = np.interp((0.025, 0.975), np.concatenate(([0.0], np.cumsum(counted))), edges)
        return Forecast(
            epochs=epochs,
            top1=mean,
            low=float(ends[0]),
            high=float(ends[1]),
            deviation=math.sqrt(float((top1 - mean) ** 2 @ shares)),
        )

    def _accuracies(
        self,
        curve: Curve,
        epochs: int,
        images: float,
        deviation: float,
        share: float,
        log_weights: Array,
    ) -> tuple[Array, Array]:
        """Return accuracies in percent under one scatter, and weights that sum to its share."""
        weights = log_weights + self._draws.log_likelihood(curve, deviation)
        weights = np.exp(weights - weights.max())
        kept = weights > _LEAST_WEIGHT
        weights = weights[kept] / weights[kept].sum()
        logits = self._draws.logits(epochs)[kept]
        # What one training scatters, and what the images do, widen every draw alike.
        middle = float(_sigmoid(float(logits @ weights)))
        noise = math.hypot(deviation, _deviation(middle, images))
        top1 = 100 * (1 - _sigmoid(logits + noise * _QUANTILES[:, None])).ravel()
        return top1, share * np.tile(weights / len(_QUANTILES), len(_QUANTILES))

    def _distance(self, point: Point) -> float:
        return abs(math.log(point.epochs / self._middle))

    def _fit(
        self, curves: Sequence[Curve], draws: _Draws, deviation: float, start: _Gaussian
    ) -> tuple[float, _Gaussian]:
        """Learn the spread of networks; return the log evidence of the curves, and the spread."""
        likelihoods = np.array([draws.log_likelihood(curve, deviation) for curve in curves])
        likelihoods -= (peaks := likelihoods.max(axis=1, keepdims=True))
        # Most draws are far from all curves.
        near = np.flatnonzero((likelihoods > math.log(_LEAST_LIKELIHOOD)).any(axis=0))
        shares, values = np.exp(likelihoods[:, near]), draws.values[near]
        spread, evidence = start, -math.inf
        for _ in range(NUM_ROUNDS):
            own = draws.log_weights(spread)
            own = np.exp(own - own.max())
            of_each = shares * own[near]
            before, evidence = evidence, float(np.log(of_each.sum(axis=1) / own.sum()).sum())
            of_each /= of_each.sum(axis=1, keepdims=True)
            spread = self._spread(values, of_each.sum(axis=0), len(curves))
            if abs(evidence - before) < SETTLED:
                break
        return evidence + float(peaks.sum()), spread

    def _spread(self, values: Array, counts: Array, num_curves: int) -> _Gaussian:
        """Return the Gaussian of counted draws and of the prior."""
        total = num_curves + PRIOR_CURVES
        mean = (counts @ values + PRIOR_CURVES * self._prior.mean) / total
        about, shift = values - mean, mean - self._prior.mean
        scatter = (about * counts[:, None]).T @ about
        prior = self._prior.covariance + np.outer(shift, shift)
        return _Gaussian(mean, (scatter + PRIOR_CURVES * prior) / total)


@dataclass(frozen=True, slots=True)
class _Gaussian:
    """Of (logit of r, log b, logit of f): the mean of shape (3,), the covariance of (3, 3)."""

    mean: Array
    covariance: Array


class _Draws:
    """Networks spread evenly over a Gaussian: the same ones every time.

    Args:
        spread: What they are drawn from.
        number: How many.
        middle: The epochs e0.
    """

    def __init__(self, spread: _Gaussian, number: int, *, middle: int) -> None:
        normal = _evenly_normal(number)
        self.values: Array = spread.mean + normal @ np.linalg.cholesky(spread.covariance).T
        self._log_density: Array = -0.5 * (normal**2).sum(axis=1)
        self._middle = middle
        self._logits: dict[int, Array] = {}

    def logits(self, epochs: int) -> Array:
        """Return the logits of all draws' errors after so many epochs."""
        if epochs not in self._logits:
            level, slope, floor = self.values.T
            stays = _sigmoid(floor)
            falls = (epochs / self._middle) ** -np.exp(np.minimum(slope, _STEEPEST))
            error = _sigmoid(level) * (stays + (1 - stays) * falls)
            self._logits[epochs] = _logit(np.clip(error, 1e-5, 1 - 1e-5))
        return self._logits[epochs]

    def log_likelihood(self, curve: Curve, deviation: float) -> Array:
        """Return how likely each draw makes a curve, up to a constant of the curve's length."""
        total = np.zeros(len(self.values))
        for point in curve:
            error = _error(point)
            noise = math.hypot(deviation, _deviation(error, point.images))
            total -= 0.5 * ((self.logits(point.epochs) - _logit(error)) / noise) ** 2
            total -= math.log(noise)
        return total

    def log_weights(self, spread: _Gaussian) -> Array:
        """Return log weights, up to a constant, that give the draws another Gaussian."""
        about = np.linalg.solve(
            np.linalg.cholesky(spread.covariance), (self.values - spread.mean).T
        )
        weights: Array = -0.5 * (about**2).sum(axis=0) - self._log_density
        return weights


# Of a normal distribution, in parts of the same weight.
_NUM_PARTS = 31
_QUANTILES = np.array([NormalDist().inv_cdf((i + 0.5) / _NUM_PARTS) for i in range(_NUM_PARTS)])
# Draws of so much less weight, or likelihood, than the heaviest are left out.
_LEAST_WEIGHT, _LEAST_LIKELIHOOD = 1e-4, 1e-8
# The logarithm of the largest slope b: what is steeper has no number.
_STEEPEST = 4.0


def _evenly_normal(number: int) -> Array:
    """Return points of the standard normal in three dimensions, spread more evenly than at random.

    They are an additive recurrence (Roberts 2018, R3) under the inverse of the normal distribution.
    """
    from scipy.special import ndtri  # a fifth of a second that only forecasts need

    # The root of x^4 = x + 1.
    steps = 1.2207440846057596 ** -np.arange(1.0, 4.0)
    normal: Array = ndtri((0.5 + np.arange(1, number + 1)[:, None] * steps) % 1)
    return normal


def _error(point: Point) -> float:
    """Return the share of wrong answers; never 0 or 1."""
    wrong = (1 - point.top1 / 100) * point.images
    return (wrong + 0.5) / (point.images + 1)


def _deviation(error: float, images: float) -> float:
    """Return the standard deviation of an error's logit for the images alone."""
    return 1 / math.sqrt(error * (1 - error) * images)


def _logit(share: float | Array) -> Array:
    found: Array = np.log(share) - np.log1p(-np.asarray(share))
    return found


def _sigmoid(values: float | Array) -> Array:
    found: Array = 1 / (1 + np.exp(-np.asarray(values)))
    return found
