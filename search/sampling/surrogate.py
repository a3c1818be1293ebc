"""Predicts all losses of designs: Gaussian processes where a loss must be evaluated.

Losses are scaled to unit spread. Where a loss has cliffs (networks that hardly learned), what is
worse than usual is compressed, so that it does not drown the differences that matter: a process
that must explain cliffs believes that everything is rough. A design that failed counts as bad as
the worst.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from search.results import non_dominated, non_dominated_rank
from search.sampling.gaussian_process import Posterior, Prediction, Scales, fit

Matrix = NDArray[np.float64]

# More rows make an ask slower than half a second, and hardly a better one.
MAX_ROWS = 1000
MAX_FIT_ROWS = 250
REFIT_GROWTH = 1.1
# In distances from the median down to the best: what is above the median is compressed, its
# logarithm counted with this scale, and cut where it is farther above.
BEND, TAIL = 0.5, 2.0
# The front is measured to a corner that is so far beyond the worst, where it must be found out; and
# beyond the largest that there is, where that is known.
MARGIN, KNOWN_MARGIN = 0.1, 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Scaled observations.

    Attributes:
        rows: Features of shape (n, columns).
        losses: Of shape (n, m), scaled, complete; the front is to be improved below `reference`.
        unknown: The objectives that must be predicted.
        succeeded: Which designs have losses of their own, of shape (n,).
        least_corner: What all designs are better than, where that is known before evaluation; else
            all but the worst tenth of usual designs. Of shape (m,).
    """

    rows: Matrix
    losses: Matrix
    succeeded: NDArray[np.bool_]
    unknown: tuple[int, ...]
    least_corner: Matrix
    centre: Matrix
    spread: Matrix

    @classmethod
    def of(
        cls, rows: Matrix, losses: Matrix, known: Matrix, *, largest: Matrix, start: int
    ) -> Data:
        """Scale losses.

        Args:
            rows: Features of shape (n, columns).
            losses: Of shape (n, m), with NaN where a design failed; one at least did not.
            known: What needed no evaluation, of the same shape, with NaN for the rest.
            largest: Of every known loss in the space, of shape (m,), with NaN for the rest.
            start: The first so many designs were not chosen by their losses. What is usual is
                taken from them: later ones may be crowded at a hopeless end of the front.
        """
        succeeded = np.asarray(np.isfinite(losses).all(axis=1))
        unknown = tuple(np.flatnonzero(np.isnan(known).any(axis=0)).tolist())
        good = losses[succeeded]
        usual, best = good[:start], good.min(axis=0)
        middle = np.median(usual, axis=0)
        fence = middle + TAIL * (middle - best)
        worst = np.minimum(good.max(axis=0), fence)
        values = np.where(np.isnan(losses), np.where(np.isnan(known), worst, known), losses)
        for objective in unknown:
            values[:, objective] = np.minimum(values[:, objective], worst[objective])
            # Without cliffs the ends of the front are up there: they count in full.
            if good[:, objective].max() > fence[objective]:
                values[:, objective] = _compressed(
                    values[:, objective], middle[objective], best[objective]
                )
        centre, spread = values.mean(axis=0), values.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        least = np.quantile(np.minimum(usual, values.max(axis=0)), 0.9, axis=0)
        least = np.where(np.isnan(largest), least, largest)
        return cls(
            rows=rows,
            losses=(values - centre) / spread,
            succeeded=succeeded,
            unknown=unknown,
            least_corner=(least - centre) / spread,
            centre=centre,
            spread=spread,
        )

    def take(self, chosen: NDArray[np.intp]) -> Data:
        """Return some of the designs, scaled as all."""
        return replace(
            self,
            rows=self.rows[chosen],
            losses=self.losses[chosen],
            succeeded=self.succeeded[chosen],
        )

    def scaled(self, losses: Matrix) -> Matrix:
        """Scale losses as the observed ones were."""
        return (losses - self.centre) / self.spread


class Surrogate:
    """The fitted scales of every objective; fitting again when a tenth more is known."""

    def __init__(self) -> None:
        self.num_fits = 0
        self._fitted_at = 0
        self._scales: dict[int, Scales] = {}

    def fit(self, data: Data, groups: NDArray[np.intp], rng: np.random.Generator) -> None:
        """Fit the scales if there is enough that is new."""
        count, num_groups = len(data.rows), int(groups.max(initial=-1)) + 1
        for objective in data.unknown:
            old = self._scales.get(objective, Scales.prior(num_groups))
            self._scales[objective] = old.padded(num_groups)
        if count < REFIT_GROWTH * self._fitted_at:
            return
        chosen = choose_rows(data, MAX_FIT_ROWS, rng)
        for objective in data.unknown:
            self._scales[objective] = fit(
                data.rows[chosen],
                data.losses[chosen, objective],
                groups=groups,
                start=self._scales[objective],
            )
            self.num_fits += 1
        self._fitted_at = count

    def condition(
        self, data: Data, groups: NDArray[np.intp], pending: Matrix
    ) -> dict[int, Posterior]:
        """Return the predictor of each unknown objective, given data and awaited rows."""
        rows = np.concatenate([data.rows, pending])
        return {
            objective: Posterior(
                rows, data.losses[:, objective], groups=groups, scales=self._scales[objective]
            )
            for objective in data.unknown
        }


def choose_rows(data: Data, most: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose what to learn from: half by non-dominated rank, half at random."""
    count = len(data.rows)
    if count <= most:
        return np.arange(count)
    ranks = np.argsort(non_dominated_rank(data.losses), kind="stable")
    best, rest = ranks[: most // 2], ranks[most // 2 :]
    return np.sort(np.concatenate([best, rng.choice(rest, most - len(best), replace=False)]))


def front_and_reference(data: Data, losses: Matrix) -> tuple[Matrix, Matrix]:
    """Return the front of smoothed losses, and the corner that its volume is measured to.

    The corner is a tenth beyond the worst of the front or, if that is farther, beyond all but the
    worst tenth of usual designs. A known loss counts up to the largest that there is: where most
    designs are cheap, the corner would else be among them, and all that costs more worth nothing.
    """
    good = losses[data.succeeded]
    front = good[non_dominated(good)]
    corner = np.maximum(front.max(axis=0), data.least_corner)
    margin = np.full(len(corner), KNOWN_MARGIN)
    margin[list(data.unknown)] = MARGIN
    corner = corner + margin * np.maximum(corner - front.min(axis=0), 1e-6)
    return front, corner


def _compressed(values: Matrix, middle: float, best: float) -> Matrix:
    """Count what is above the middle logarithmically; the order stays."""
    scale = max(BEND * (middle - best), 1e-12)
    above = np.maximum(values - middle, 0.0)
    compressed: Matrix = np.minimum(values, middle) + scale * np.log1p(above / scale)
    return compressed


def predict(
    posteriors: dict[int, Posterior], rows: Matrix, known: Matrix
) -> tuple[Matrix, dict[int, Prediction]]:
    """Return means of shape (c, m), known losses in their places, and the predictions."""
    predictions = {objective: one.predict(rows) for objective, one in posteriors.items()}
    means = known.copy()
    for objective, prediction in predictions.items():
        means[:, objective] = prediction.mean
    return means, predictions
