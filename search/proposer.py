"""Which architecture to judge next: an Optuna sampler, made free of repeats.

The study is rebuilt from the run's results at every start, so a resumed search is the same code as
a new one. Proposals are canonical architectures, inside the space's rules and limits, and distinct
from everything that is known; what a sampler proposes again or wrongly costs no evaluation.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

MAX_ASKS = 16

# Asking NSGA takes milliseconds; multi-objective TPE is better per judgement, and slower than the
# judges when a judgement is quick.
_SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=24),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=24),
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=16),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
SAMPLERS = tuple(_SAMPLERS)


class Proposer:
    """Ask for architectures and tell their losses; also those that somebody else chose.

    Args:
        space: What may be proposed.
        sampler: One of `SAMPLERS`.
        seed: Of the sampler; the number of known results is added, because a seeded study that is
            rebuilt would repeat its suggestions.
        num_losses: Number of objectives, all minimised.
        known: Architectures with their losses (None where judging failed) from earlier.

    Raises:
        ValueError: For an unknown sampler.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        sampler: str,
        seed: int,
        num_losses: int,
        known: Iterable[tuple[Architecture, Sequence[float] | None]] = (),
    ) -> None:
        if sampler not in _SAMPLERS:
            raise ValueError(f"Unknown sampler {sampler!r}. Known: {', '.join(SAMPLERS)}.")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # NSGA-III warns that it is experimental; the user chose it by name.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        known = list(known)
        self.space = space
        self._rng = random.Random(seed + len(known))
        self._study = optuna.create_study(
            directions=["minimize"] * num_losses, sampler=_SAMPLERS[sampler](seed + len(known))
        )
        self._seen = {architecture.key for architecture, _ in known}
        self._asked: dict[str, optuna.Trial] = {}
        for architecture, losses in known:
            if losses is not None:
                self._study.add_trial(study_trial(space, architecture, losses))

    def ask(self) -> Architecture | None:
        """Propose a new architecture, or None when (nearly) all of the space is known."""
        for _ in range(MAX_ASKS):
            trial = self._study.ask()
            architecture = self.space.build(trial.suggest_categorical)
            if self._is_new(architecture):
                return self._remember(architecture, trial)
            self._study.tell(trial, state=TrialState.FAIL)
        for _ in range(MAX_ASKS * 16):
            architecture = self.space.sample(self._rng)
            if architecture.key not in self._seen:
                self._study.enqueue_trial(self.space.choices_of(architecture))
                trial = self._study.ask()
                self.space.build(trial.suggest_categorical)
                return self._remember(architecture, trial)
        return None

    def exclude(self, architectures: Iterable[Architecture]) -> None:
        """Do not propose these; somebody else has them judged."""
        self._seen |= {architecture.key for architecture in architectures}

    def tell(self, architecture: Architecture, losses: Sequence[float] | None) -> None:
        """Report the losses of any architecture; None when it could not be judged."""
        trial = self._asked.pop(architecture.key, None)
        self._seen.add(architecture.key)
        if trial is None:
            if losses is not None:
                self._study.add_trial(study_trial(self.space, architecture, losses))
        elif losses is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, list(losses))

    def _is_new(self, architecture: Architecture) -> bool:
        return architecture.key not in self._seen and self.space.violation(architecture) is None

    def _remember(self, architecture: Architecture, trial: optuna.Trial) -> Architecture:
        self._seen.add(architecture.key)
        self._asked[architecture.key] = trial
        return architecture


def study_trial(
    space: SearchSpace, architecture: Architecture, losses: Sequence[float]
) -> optuna.trial.FrozenTrial:
    """Write a judged architecture as a finished Optuna trial."""
    params = space.choices_of(architecture)
    distributions: dict[str, Any] = {}

    def look_up(name: str, options: Sequence[Any]) -> Any:
        distributions[name] = CategoricalDistribution(tuple(options))
        return params[name]

    space.build(look_up)
    return optuna.trial.create_trial(
        params=params,
        distributions=distributions,
        values=list(losses),
        user_attrs={"architecture": architecture.key},
    )


class Mirror:
    """The same results as an Optuna study in an SQLite file, for optuna-dashboard.

    The run's record is the truth; this is a copy, brought up to date by `add`.
    """

    def __init__(self, path: Path, *, name: str, losses: Sequence[str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=f"sqlite:///{path}",
            study_name=name,
            directions=["minimize"] * len(losses),
            load_if_exists=True,
        )
        self._study.set_user_attr("losses", list(losses))
        trials = self._study.get_trials(deepcopy=False)
        self._present = {trial.user_attrs["architecture"] for trial in trials}

    def add(
        self,
        space: SearchSpace,
        results: Iterable[tuple[Architecture, Sequence[float]]],
    ) -> None:
        """Add the results that the file does not hold yet."""
        new = [result for result in results if result[0].key not in self._present]
        self._study.add_trials([study_trial(space, *result) for result in new])
        self._present |= {architecture.key for architecture, _ in new}
