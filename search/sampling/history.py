"""What a study knows, as arrays: designs, losses (lower is better), and what is under way."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.sampling.design_space import DesignSpace, Draw, draw
from search.sampling.features import FeatureSpace
from search.sampling.learned_space import explains

T = TypeVar("T")
Matrix = NDArray[np.float64]

FINISHED = (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)


class History(Generic[T]):
    """The designs of a study's trials in one space, brought up to date by `update`.

    A trial that failed, was pruned or broke a constraint is known, with losses of NaN. Trials of
    another space are ignored.
    """

    def __init__(self, space: DesignSpace[T], directions: Sequence[StudyDirection]) -> None:
        self.space = space
        self.features = FeatureSpace()
        self.signs = np.array([-1.0 if d == StudyDirection.MAXIMIZE else 1.0 for d in directions])
        self.draws: list[Draw[T]] = []
        self.seen: set[Hashable] = set()
        self.pending: list[Draw[T]] = []
        self._losses: list[list[float]] = []
        self._known_losses: list[list[float]] = []
        self._rows: Matrix = np.zeros((0, 0))
        self._read: set[int] = set()
        self._keys: set[Hashable] = set()
        self._failed: dict[Hashable, int] = {}

    @property
    def losses(self) -> Matrix:
        """Losses of shape (designs, objectives), all minimised; NaN where there is no value."""
        return np.array(self._losses, dtype=float).reshape(len(self.draws), len(self.signs))

    @property
    def known(self) -> Matrix:
        """What was known before evaluation, NaN elsewhere; shape (designs, objectives)."""
        return np.array(self._known_losses, dtype=float).reshape(len(self.draws), len(self.signs))

    @property
    def rows(self) -> Matrix:
        """Features of shape (designs, columns)."""
        if self._rows.shape[1] != len(self.features.groups):
            self._rows = self.features.rows([known.choices for known in self.draws])
        new = self.draws[len(self._rows) :]
        self._rows = np.concatenate([self._rows, self.encode(new)])
        return self._rows

    def encode(self, draws: Sequence[Draw[T]]) -> Matrix:
        """Return the features of designs whose choices are learned."""
        return self.features.rows([known.choices for known in draws])

    def known_losses(self, draws: Sequence[Draw[T]]) -> Matrix:
        """Return what is known before evaluation, NaN elsewhere; shape (designs, objectives)."""
        known = np.full((len(draws), len(self.signs)), np.nan)
        for row, one in zip(known, draws, strict=True):
            values = self.space.known_losses(one.design)
            if values:
                row[:] = [np.nan if value is None else value for value in values]
        known *= self.signs
        return known

    def explains(self, trials: Sequence[FrozenTrial]) -> bool:
        """Tell whether the space asks for what the trials not read yet asked for."""
        return all(t.number in self._read or explains(self.space, t) for t in trials)

    def update(self, trials: Sequence[FrozenTrial], planned: Mapping[int, Draw[T]]) -> None:
        """Read trials that finished since, and those that are under way.

        Args:
            trials: All of the study.
            planned: By trial number, the designs of trials under way that have not asked for all
                of their parameters.
        """
        self.pending = []
        for trial in trials:
            if trial.number in self._read:
                continue
            if trial.state == TrialState.RUNNING:
                known = planned.get(trial.number) or self._draw_of(trial)
                if known is not None:
                    self.pending.append(known)
                    self.features.learn(known.distributions)
            elif trial.state in FINISHED:
                self._read.add(trial.number)
                self._add(trial)
        self.seen |= {known.key for known in self.pending}

    def _add(self, trial: FrozenTrial) -> None:
        known = self._draw_of(trial)
        if known is None:
            return
        is_good = trial.state == TrialState.COMPLETE and _is_feasible(trial)
        values = self.signs * (trial.values if is_good else np.nan)
        losses = np.where(np.isfinite(values), values, np.nan).tolist()
        if known.key in self._keys and not is_good:
            # A repeat that was refused says nothing about the design.
            return
        self.features.learn(known.distributions)
        self.seen.add(known.key)
        failed = self._failed.pop(known.key, None)
        if failed is not None:
            self._losses[failed] = losses
            return
        if not is_good:
            self._failed[known.key] = len(self.draws)
        self._keys.add(known.key)
        self.draws.append(known)
        self._losses.append(losses)
        self._known_losses.append(self.known_losses([known])[0].tolist())

    def _draw_of(self, trial: FrozenTrial) -> Draw[T] | None:
        """Walk as the trial did; None if it did not come to the end, or is of another space."""

        def look_up(name: str, distribution: BaseDistribution) -> Any:
            if name not in trial.params:
                raise LookupError(name)
            return trial.params[name]

        try:
            return draw(self.space, look_up)
        except LookupError:
            return None


def _is_feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())
