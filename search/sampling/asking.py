"""Ask any of the samplers for designs that are new and allowed, and tell it what came of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from search.sampling.candidates import Unseen
from search.sampling.design_space import DesignSpace, Draw, draw, suggest
from search.sampling.guided_sampler import GuidedSampler

T = TypeVar("T")

# Asks before a random design is taken instead, and how often a sampler may insist on a design.
MAX_ASKS, MAX_INSISTED = 16, 3

_SAMPLERS: dict[str, Callable[[int, DesignSpace[Any]], BaseSampler]] = {
    "guided": lambda seed, space: GuidedSampler(seed=seed, space=space),
    "nsga2": lambda seed, _: optuna.samplers.NSGAIISampler(seed=seed, population_size=24),
    "nsga3": lambda seed, _: optuna.samplers.NSGAIIISampler(seed=seed, population_size=24),
    "tpe": lambda seed, _: optuna.samplers.TPESampler(seed=seed, n_startup_trials=16),
    "gp": lambda seed, _: optuna.samplers.GPSampler(seed=seed, n_startup_trials=16),
    "random": lambda seed, _: optuna.samplers.RandomSampler(seed=seed),
}
SAMPLERS = tuple(_SAMPLERS)  # `search.run_folder.settings` has their names, without optuna


class Asking(Generic[T]):
    """A study of designs without repeats.

    Args:
        space: What may be proposed.
        sampler: One of `SAMPLERS`, or any sampler of Optuna.
        seed: Of the sampler; the number of known designs is added, because a seeded study that is
            rebuilt would repeat its suggestions.
        num_losses: Number of objectives, all minimised.
        known: Designs with their losses (None where evaluation failed) from earlier.

    Raises:
        ValueError: For an unknown sampler.
    """

    def __init__(
        self,
        space: DesignSpace[T],
        *,
        sampler: str | BaseSampler,
        seed: int,
        num_losses: int,
        known: Iterable[tuple[Draw[T], Sequence[float] | None]] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # NSGA-III and the GP warn that they are experimental; the user chose them by name.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        known = list(known)
        self._space, self._unseen = space, Unseen(space)
        self._rng = np.random.default_rng(seed + len(known))
        if isinstance(sampler, str):
            sampler = make_sampler(sampler, space, seed=seed + len(known))
        self._study = optuna.create_study(directions=["minimize"] * num_losses, sampler=sampler)
        self._seen: set[Hashable] = set()
        self._asked: dict[Hashable, optuna.Trial] = {}
        for one, losses in known:
            self.tell(one, losses)

    def ask(self) -> Draw[T] | None:
        """Propose a new design, or None when the space is used up."""
        refused: Counter[Hashable] = Counter()
        for _ in range(MAX_ASKS):
            trial, one = self._ask_once()
            if one.key not in self._seen and self._space.is_allowed(one.design):
                return self._remember(one, trial)
            self._study.tell(trial, state=TrialState.FAIL)
            refused[one.key] += 1
            if refused[one.key] == MAX_INSISTED:
                break
        found = self._unseen.find(self._seen, self._rng)
        if found is None:
            return None
        self._study.enqueue_trial(dict(found.choices))
        trial, one = self._ask_once()
        return self._remember(one, trial)

    def ask_with_repeats(self) -> Draw[T]:
        """Propose what the sampler says, new or not, as Optuna does."""
        trial, one = self._ask_once()
        return self._remember(one, trial)

    def exclude(self, keys: Iterable[Hashable]) -> None:
        """Do not propose the designs with these keys."""
        self._seen |= set(keys)

    def tell(self, one: Draw[T], losses: Sequence[float] | None) -> None:
        """Report the losses of any design; None when it could not be evaluated."""
        self._seen.add(one.key)
        if not self.answer(one.key, losses):
            self._study.add_trial(study_trial(one, losses))

    def answer(self, key: Hashable, losses: Sequence[float] | None) -> bool:
        """Report the losses of a design that was asked for; return whether it was, by its key."""
        trial = self._asked.pop(key, None)
        if trial is None:
            return False
        if losses is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, list(losses))
        return True

    def _ask_once(self) -> tuple[optuna.Trial, Draw[T]]:
        trial = self._study.ask()
        return trial, draw(self._space, lambda *choice: suggest(trial, *choice))

    def _remember(self, one: Draw[T], trial: optuna.Trial) -> Draw[T]:
        self._seen.add(one.key)
        self._asked[one.key] = trial
        return one


def default_sampler(name: str, *, seed: int) -> BaseSampler:
    """Build one of Optuna's multi-objective samplers with Optuna's own settings."""
    kinds: dict[str, Callable[..., BaseSampler]] = {
        "nsga2": optuna.samplers.NSGAIISampler,
        "nsga3": optuna.samplers.NSGAIIISampler,
        "tpe": optuna.samplers.TPESampler,
    }
    return kinds[name](seed=seed)


def make_sampler(name: str, space: DesignSpace[Any], *, seed: int) -> BaseSampler:
    """Build a sampler by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in _SAMPLERS:
        raise ValueError(f"Unknown sampler {name!r}. Known: {', '.join(SAMPLERS)}.")
    return _SAMPLERS[name](seed, space)


def study_trial(
    one: Draw[Any], losses: Sequence[float] | None, *, user_attrs: dict[str, Any] | None = None
) -> FrozenTrial:
    """Write a design as a finished Optuna trial; failed if it has no losses."""
    return optuna.trial.create_trial(
        state=TrialState.FAIL if losses is None else TrialState.COMPLETE,
        params=dict(one.choices),
        distributions=dict(one.distributions),
        values=None if losses is None else list(losses),
        user_attrs=user_attrs,
    )
