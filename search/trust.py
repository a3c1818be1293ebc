"""Trust: does a cheap estimate rank networks as training them alone does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.record import Trial
from search.results import SUPERNET, candidates, is_trained_alone

# With fewer points a bootstrap says next to nothing: it often draws the same two or three.
MIN_POINTS = 5
NUM_RESAMPLES = 2_000
ESTIMATORS = (SUPERNET, "params", "macs")


@dataclass(frozen=True, kw_only=True, slots=True)
class KendallTau:
    """Agreement of two rankings, from -1 (opposite) over 0 (none) to 1 (the same).

    Attributes:
        tau: Kendall's tau-b; None where one side has no two different values.
        low: Lower end of the 95 % bootstrap interval; None with too few points to say.
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
        supernet: Top-1 in percent with inherited weights.
    """

    id: int
    top1: float
    supernet: float
    params: int
    macs: int


def kendall_tau_interval(
    x: Sequence[float], y: Sequence[float], *, rng: np.random.Generator
) -> KendallTau:
    """Compute Kendall's tau-b and its 95 % percentile bootstrap interval.

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
    # A resample is how often each point was drawn: equal points tie, which tau-b allows for.
    shares = np.full(num_points, 1 / num_points)
    resamples = rng.multinomial(num_points, shares, size=NUM_RESAMPLES).astype(float)
    low, high = np.nanquantile(_tau_b(signs_x, signs_y, resamples), (0.025, 0.975))
    return KendallTau(tau=float(tau), low=float(low), high=float(high), num_points=num_points)


def trust_points(trials: Sequence[Trial]) -> tuple[TrustPoint, ...]:
    """List the networks of the trust phase that have both an estimate and a training of their own.

    Networks that were promoted are left out: they were chosen by the very estimate.
    """
    chosen = [t for t in trials if t.origin == "trust" and is_trained_alone(t.fidelity)]
    if not chosen or not any(t.fidelity == SUPERNET and t.state == "done" for t in trials):
        return ()
    fidelity = chosen[-1].fidelity
    estimates = {c.id: c.top1 for c in candidates(trials, fidelity=SUPERNET)}
    return tuple(
        TrustPoint(
            id=trained.id,
            top1=trained.top1,
            supernet=estimates[trained.id],
            params=trained.params,
            macs=trained.macs,
        )
        for trained in candidates(chosen, fidelity=fidelity)
        if trained.id in estimates
    )


def trust_taus(points: Sequence[TrustPoint], *, rng: np.random.Generator) -> dict[str, KendallTau]:
    """Compare the ranking of each of `ESTIMATORS` with that of training alone."""
    trained = [point.top1 for point in points]
    return {
        name: kendall_tau_interval([getattr(p, name) for p in points], trained, rng=rng)
        for name in ESTIMATORS
    }


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
