"""Which designs should widen the front most: candidates, scores, and batches of the best."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.results import non_dominated, non_dominated_rank
from search.sampling.candidates import breed
from search.sampling.design_space import DesignSpace, Draw
from search.sampling.gaussian_process import Prediction
from search.sampling.history import History
from search.sampling.improvement import expected_improvement, free_boxes
from search.sampling.surrogate import (
    MAX_ROWS,
    Data,
    Surrogate,
    choose_rows,
    front_and_reference,
    predict,
)

Matrix = NDArray[np.float64]

# Candidates of a round, and those that are kept: for the next round, for the next ask.
CANDIDATES, KEPT = 120, 60
MAX_PARENTS = 60
# Boxes grow with the square (three objectives) or cube (four) of the points of the front.
MAX_FRONT = {1: 1, 2: 1000, 3: 80}
MAX_FRONT_BEYOND = 25


def next_designs(
    history: History[Any],
    surrogate: Surrogate,
    *,
    space: DesignSpace[Any],
    pool: Sequence[Draw[Any]],
    largest: Matrix,
    start: int,
    count: int,
    rng: np.random.Generator,
) -> tuple[list[Draw[Any]], list[Draw[Any]]]:
    """Choose what to evaluate next.

    Args:
        history: Of the study, with at least one success.
        surrogate: Its scales are fitted again when it is time.
        space: What may be chosen: the history's space or a part of it.
        pool: Good candidates of the last time.
        largest: Of every known loss, NaN for others; see `largest_known`.
        start: The first so many designs filled the space.
        count: Designs to choose at most, each given those before it.
        rng: Decides everything random.

    Returns:
        The choice, best first (empty if no new design was found), and the pool for the next time.
    """
    found = {one.key: one for one in pool if one.key not in history.seen}
    parents = _parents(history)
    found |= breed(space, parents, count=CANDIDATES, seen=history.seen, rng=rng)
    for one in (*found.values(), *history.pending):
        history.features.learn(one.distributions)
    scoring = _Scoring(history, surrogate, largest, start, rng)
    best = scoring.best(list(found.values()), KEPT)
    if best:
        more = breed(space, best, count=CANDIDATES, seen=history.seen | set(found), rng=rng)
        covered = [one for one in more.values() if history.features.covers(one.distributions)]
        best = scoring.best([*best, *covered], KEPT)
    return scoring.batch(best, count), best


class _Scoring:
    """The predictor and the front of one moment."""

    def __init__(
        self,
        history: History[Any],
        surrogate: Surrogate,
        largest: Matrix,
        start: int,
        rng: np.random.Generator,
    ) -> None:
        self._history = history
        # Features and known losses of candidates: they are asked for several times.
        self._read: dict[Hashable, list[Matrix]] = {}
        groups = history.features.groups
        everything = Data.of(
            history.rows, history.losses, history.known, largest=largest, start=start
        )
        surrogate.fit(everything, groups, rng)
        self._data = everything.take(choose_rows(everything, MAX_ROWS, rng))
        pending = history.encode(history.pending)
        self._posteriors = surrogate.condition(self._data, groups, pending)
        smoothed = self._data.losses.copy()
        for objective, posterior in self._posteriors.items():
            smoothed[:, objective] = posterior.fitted
        self._front, self._reference = front_and_reference(self._data, smoothed)
        if history.pending:
            self._front = np.concatenate([self._front, self._predict(history.pending)[0]])
        self._cut()

    def best(self, draws: list[Draw[Any]], count: int) -> list[Draw[Any]]:
        """Return the best candidates in order."""
        if not draws:
            return []
        order = np.argsort(-self._score(*self._predict(draws)), kind="stable")
        return [draws[index] for index in order[:count]]

    def batch(self, draws: list[Draw[Any]], count: int) -> list[Draw[Any]]:
        """Choose several, counting each as under way before the next is chosen."""
        if not draws:
            return []
        means, predictions = self._predict(draws)
        chosen: list[int] = []
        for _ in range(min(count, len(draws))):
            scores = self._score(means, predictions)
            scores[chosen] = -np.inf
            index = int(np.argmax(scores))
            chosen.append(index)
            for prediction in predictions.values():
                prediction.await_value(index)
            self._front = np.concatenate([self._front, means[index : index + 1]])
            self._cut()
        return [draws[index] for index in chosen]

    def _predict(self, draws: Sequence[Draw[Any]]) -> tuple[Matrix, dict[int, Prediction]]:
        new = [one for one in draws if one.key not in self._read]
        rows, known = self._history.encode(new), self._data.scaled(self._history.known_losses(new))
        self._read |= {one.key: pair for one, *pair in zip(new, rows, known, strict=True)}
        pairs = [self._read[one.key] for one in draws]
        return predict(
            self._posteriors,
            np.array([row for row, _ in pairs]),
            np.array([losses for _, losses in pairs]),
        )

    def _score(self, means: Matrix, predictions: dict[int, Prediction]) -> Matrix:
        deviations = np.zeros_like(means)
        for objective, prediction in predictions.items():
            deviations[:, objective] = prediction.deviation
        gains = expected_improvement(means, deviations, lower=self._lower, upper=self._upper)
        # Where nothing is expected to improve the front, what is known least.
        return gains if gains.max() > 0 else deviations.sum(axis=1)

    def _cut(self) -> None:
        inside = self._front[(self._front < self._reference).all(axis=1)]
        front = np.unique(inside[non_dominated(inside)], axis=0)
        most = MAX_FRONT.get(front.shape[1], MAX_FRONT_BEYOND)
        if len(front) > most:
            front = front[np.linspace(0, len(front) - 1, most).round().astype(int)]
        self._lower, self._upper = free_boxes(front, self._reference)


def _parents(history: History[Any]) -> list[Draw[Any]]:
    losses = history.losses
    succeeded = np.flatnonzero(~np.isnan(losses).any(axis=1))
    ranks = non_dominated_rank(losses[succeeded])
    best = succeeded[np.argsort(ranks, kind="stable")][:MAX_PARENTS]
    return [history.draws[index] for index in best]
