"""`GuidedSampler`: an Optuna sampler that predicts, and proposes what should widen the front most.

After a space-filling start, Gaussian processes over the (mostly categorical, conditional) choices
predict the losses. Candidates are bred from the front; the one with the largest expected
improvement of the hypervolume is proposed, counting what is under way as if it had come out as
predicted. No design is proposed twice before all are used up.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.sampling.acquisition import next_designs
from search.sampling.candidates import Unseen, farthest
from search.sampling.design_space import DesignSpace, Draw, draw_random, random_value
from search.sampling.history import History
from search.sampling.learned_space import explains, learn_space
from search.sampling.surrogate import Surrogate

# Trials before the predictor is asked, for a walk of that many choices; the space is filled.
START, START_A_CHOICE, MOST_START = 8, 0.5, 32
FILL_CANDIDATES = 64
TRIALS_A_BATCH = 250


class GuidedSampler(BaseSampler):
    """Predictor-guided search for one to about four objectives.

    Works with any objective that asks for categorical, integer and float parameters, also where
    some depend on others. An ask costs tens of milliseconds, below half a second at 5,000 trials;
    with many trials, several are planned at a time.

    Args:
        seed: With the number of the trial it decides everything random, so that a study that is
            continued in another process does not repeat itself.
        space: What is known about the space. With it, constraints in closed form cost no trial,
            losses in closed form need no predictor, and equal designs are recognised. Without it,
            the space is learned from the trials.
    """

    def __init__(self, *, seed: int = 0, space: DesignSpace[Any] | None = None) -> None:
        self._seed, self._given = seed, space
        self._history: History[Any] | None = None
        self._unseen: Unseen[Any] | None = None
        self._surrogate = Surrogate()
        self._planned: dict[int, Draw[Any]] = {}
        self._queue: list[Draw[Any]] = []
        self._pool: list[Draw[Any]] = []

    @property
    def num_fits(self) -> int:
        """How often a predictor was fitted: it grows with the logarithm of the trials."""
        return self._surrogate.num_fits

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return nothing: parameters are planned together and given one at a time."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing, see `infer_relative_search_space`."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Give the planned value; plan the trial when its first parameter is asked for."""
        if trial.number not in self._planned:
            planned = self._plan(study, trial)
            if planned is not None:
                self._planned[trial.number] = planned
        planned = self._planned.get(trial.number)
        if planned is not None and planned.distributions.get(param_name) == param_distribution:
            return planned.choices[param_name]
        return random_value(param_distribution, self._rng(trial, len(trial.params)))

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Forget the plan of a trial that is done."""
        self._planned.pop(trial.number, None)

    def _plan(self, study: Study, trial: FrozenTrial) -> Draw[Any] | None:
        history = self._read(study, trial)
        if history is None:
            return None
        rng = self._rng(trial, 0)
        while self._queue:
            planned = self._queue.pop(0)
            if planned.key not in history.seen:
                return planned
        start = self._start_size(history)
        succeeded = int((~np.isnan(history.losses).any(axis=1)).sum())
        if succeeded + len(history.pending) < start or succeeded < start / 2:
            return self._fill(history, rng)
        self._queue, self._pool = next_designs(
            history,
            self._surrogate,
            pool=self._pool,
            start=start,
            count=1 + len(history.draws) // TRIALS_A_BATCH,
            rng=rng,
        )
        return self._queue.pop(0) if self._queue else self._find_unseen(history, rng)

    def _read(self, study: Study, trial: FrozenTrial) -> History[Any] | None:
        """Bring the history up to date; None while nothing is known about the space."""
        trials = study.get_trials(deepcopy=False)
        others = [other for other in trials if other.number != trial.number]
        if self._given is None:
            done = [t for t in others if t.state.is_finished() and t.params]
            if not done:
                return None
            new = done if self._history is None else done[len(self._history.draws) :]
            if self._history is None or not all(explains(self._history.space, t) for t in new):
                self._start_over(learn_space(done), study)
        elif self._history is None:
            self._start_over(self._given, study)
        assert self._history is not None
        self._history.update(others, self._planned)
        return self._history

    def _start_over(self, space: DesignSpace[Any], study: Study) -> None:
        self._history = History(space, study.directions)
        self._unseen = Unseen(space)
        self._queue, self._pool = [], []

    def _start_size(self, history: History[Any]) -> int:
        lengths = [len(known.choices) for known in history.draws[:MOST_START]]
        return min(START + round(START_A_CHOICE * max(lengths, default=0)), MOST_START)

    def _find_unseen(self, history: History[Any], rng: np.random.Generator) -> Draw[Any] | None:
        assert self._unseen is not None
        return self._unseen.find(history.seen, rng)

    def _fill(self, history: History[Any], rng: np.random.Generator) -> Draw[Any] | None:
        """Choose, of random designs, the one that is farthest from all others."""
        found: dict[Hashable, Draw[Any]] = {}
        for _ in range(FILL_CANDIDATES):
            one = draw_random(history.space, rng)
            if one.key not in history.seen and history.space.is_allowed(one.design):
                found[one.key] = one
        if not found:
            return self._find_unseen(history, rng)
        draws = list(found.values())
        for one in draws:
            history.features.learn(one.distributions)
        known = np.concatenate([history.rows, history.encode(history.pending)])
        return draws[farthest(history.encode(draws), known)]

    def _rng(self, trial: FrozenTrial, place: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, trial.number, place))
