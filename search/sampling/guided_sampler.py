"""`GuidedSampler`: an Optuna sampler that predicts, and proposes what should widen the front most.

After a space-filling start, Gaussian processes over the (mostly categorical, conditional) choices
predict the losses. Candidates are bred from the front; the one with the largest expected
improvement of the hypervolume is proposed, counting what is under way as if it had come out as
predicted. No design is proposed twice before all are used up.
"""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Mapping, Sequence
from threading import Lock
from typing import Any
from zlib import crc32

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from search.sampling.acquisition import next_designs
from search.sampling.candidates import Unseen, farthest
from search.sampling.design_space import DesignSpace, Draw, draw_random, holding, random_value
from search.sampling.history import History
from search.sampling.known_range import largest_known
from search.sampling.learned_space import learn_space
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

    It may be asked by several threads; several processes may share a storage, each with a sampler.

    Args:
        seed: With the number of the trial it decides everything random, so that a study that is
            continued in another process does not repeat itself. None takes a new one.
        space: What is known about the space. With it, constraints in closed form cost no trial,
            losses in closed form need no predictor, and equal designs are recognised. Without it,
            the space is learned from the trials.
    """

    def __init__(self, *, seed: int | None = None, space: DesignSpace[Any] | None = None) -> None:
        self._seed = secrets.randbits(32) if seed is None else seed
        self._given = space
        self._lock = Lock()
        self._history: History[Any] | None = None
        self._unseen: Unseen[Any] | None = None
        self._largest = np.zeros(0)
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
        """Give the planned values of parameters that a caller wants together."""
        return {
            name: self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Give the planned value; plan the trial when its first parameter is asked for.

        Where others decided a parameter (`enqueue_trial`, `PartialFixedSampler`), the rest is
        planned for what they decided.
        """
        with self._lock:
            planned = self._plan_of(study, trial)
        if planned is not None and planned.distributions.get(param_name) == param_distribution:
            return planned.choices[param_name]
        return random_value(param_distribution, self._rng(trial, param_name))

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Forget the plan of a trial that is done."""
        with self._lock:
            self._planned.pop(trial.number, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what was given; what was learned is learned again from the study."""
        return _make, (self._seed, self._given)

    def _plan_of(self, study: Study, trial: FrozenTrial) -> Draw[Any] | None:
        """Return the plan of a trial; a new one where others decided otherwise."""
        decided = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        planned = self._planned.get(trial.number)
        if planned is None or not _agrees(planned, decided):
            planned = self._plan(study, trial, decided)
            if planned is not None:
                self._planned[trial.number] = planned
        return planned

    def _plan(
        self, study: Study, trial: FrozenTrial, decided: Mapping[str, Any]
    ) -> Draw[Any] | None:
        history = self._read(study, trial)
        if history is None:
            return None
        rng = self._rng(trial)
        space = holding(history.space, decided) if decided else history.space
        while self._queue and not decided:
            planned = self._queue.pop(0)
            if planned.key not in history.seen:
                return planned
        start = self._start_size(history)
        succeeded = int((~np.isnan(history.losses).any(axis=1)).sum())
        if succeeded + len(history.pending) < start or succeeded < start / 2:
            return self._fill(history, space, rng)
        queue, pool = next_designs(
            history,
            self._surrogate,
            space=space,
            pool=[] if decided else self._pool,
            largest=self._largest,
            start=start,
            count=1 if decided else 1 + len(history.draws) // TRIALS_A_BATCH,
            rng=rng,
        )
        best = queue.pop(0) if queue else self._find_unseen(history, space, rng)
        if not decided:
            self._queue, self._pool = queue, pool
        return best

    def _read(self, study: Study, trial: FrozenTrial) -> History[Any] | None:
        """Bring the history up to date; None while nothing is known about the space."""
        trials = study.get_trials(deepcopy=False)
        others = [other for other in trials if other.number != trial.number]
        if self._given is None:
            done = [t for t in others if t.state.is_finished() and t.params]
            if not done:
                return None
            if self._history is None or not self._history.explains(done):
                self._start_over(learn_space(done), study)
        elif self._history is None:
            self._start_over(self._given, study)
        assert self._history is not None
        self._history.update(others, self._planned)
        return self._history

    def _start_over(self, space: DesignSpace[Any], study: Study) -> None:
        self._history = History(space, study.directions)
        self._unseen = Unseen(space)
        self._largest = largest_known(self._history, np.random.default_rng(self._seed))
        self._queue, self._pool = [], []

    def _start_size(self, history: History[Any]) -> int:
        lengths = [len(known.choices) for known in history.draws[:MOST_START]]
        return min(START + round(START_A_CHOICE * max(lengths, default=0)), MOST_START)

    def _find_unseen(
        self, history: History[Any], space: DesignSpace[Any], rng: np.random.Generator
    ) -> Draw[Any] | None:
        assert self._unseen is not None
        unseen = self._unseen if space is history.space else Unseen(space)
        return unseen.find(history.seen, rng)

    def _fill(
        self, history: History[Any], space: DesignSpace[Any], rng: np.random.Generator
    ) -> Draw[Any] | None:
        """Choose, of random designs, the one that is farthest from all others."""
        found: dict[Hashable, Draw[Any]] = {}
        for _ in range(FILL_CANDIDATES):
            one = draw_random(space, rng)
            if one.key not in history.seen and space.is_allowed(one.design):
                found[one.key] = one
        if not found:
            return self._find_unseen(history, space, rng)
        draws = list(found.values())
        for one in draws:
            history.features.learn(one.distributions)
        known = np.concatenate([history.rows, history.encode(history.pending)])
        return draws[farthest(history.encode(draws), known)]

    def _rng(self, trial: FrozenTrial, parameter: str = "") -> np.random.Generator:
        return np.random.default_rng((self._seed, trial.number, crc32(parameter.encode())))


def _make(seed: int, space: DesignSpace[Any] | None) -> GuidedSampler:
    return GuidedSampler(seed=seed, space=space)


def _agrees(planned: Draw[Any], decided: Mapping[str, Any]) -> bool:
    return all(
        name not in planned.choices or planned.choices[name] == value
        for name, value in decided.items()
    )
