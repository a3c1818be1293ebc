"""The walk of a define-by-run objective, learned from the trials that it has made.

Optuna does not tell a sampler which parameters depend on which. Here each parameter that some
trials lack is put under the nearest earlier parameter whose presence or category explains it.
Where the guess is wrong, the trial asks for other parameters than planned; they are drawn at
random, and the next trial is planned with what was learned.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from search.sampling.design_space import Choose, DesignSpace

Choices = dict[str, Any]
_MISSING = object()


@dataclass(frozen=True, slots=True)
class _Condition:
    """A parameter applies where another one is present and, if values are given, has one."""

    name: str
    values: frozenset[Any] | None

    def holds(self, choices: Mapping[str, Any]) -> bool:
        if self.name not in choices:
            return False
        return self.values is None or choices[self.name] in self.values


def learn_space(trials: Sequence[FrozenTrial]) -> DesignSpace[Choices]:
    """Learn the walk; its designs are the choices themselves."""
    order = _order(trials)
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions.update(trial.distributions)
    conditions = {
        name: _condition(name, order[:place], distributions, trials)
        for place, name in enumerate(order)
    }

    def walk(choose: Choose) -> Choices:
        choices: Choices = {}
        for name in order:
            condition = conditions[name]
            if condition is None or condition.holds(choices):
                choices[name] = choose(name, distributions[name])
        return choices

    return DesignSpace(walk=walk, key=_key)


def explains(space: DesignSpace[Any], trial: FrozenTrial) -> bool:
    """Tell whether the learned walk asks for exactly what a trial asked for."""

    def look_up(name: str, distribution: BaseDistribution) -> Any:
        if trial.distributions.get(name) != distribution:
            raise LookupError(name)
        return trial.params[name]

    try:
        return len(space.walk(look_up)) == len(trial.params)
    except LookupError:
        return False


def _key(choices: Choices) -> Hashable:
    return frozenset(choices.items())


def _order(trials: Sequence[FrozenTrial]) -> list[str]:
    """Merge the orders of the trials: a new name comes after the one that it followed."""
    order: list[str] = []
    for trial in trials:
        previous = -1
        for name in trial.params:
            if name not in order:
                order.insert(previous + 1, name)
            previous = order.index(name)
    return order


def _condition(
    name: str,
    earlier: Sequence[str],
    distributions: Mapping[str, BaseDistribution],
    trials: Sequence[FrozenTrial],
) -> _Condition | None:
    having = [trial for trial in trials if name in trial.params]
    lacking = [trial for trial in trials if name not in trial.params]
    if not lacking:
        return None
    for other in reversed(earlier):
        if all(other in t.params for t in having) and not any(other in t.params for t in lacking):
            return _Condition(other, None)
        if not isinstance(distributions[other], CategoricalDistribution):
            continue
        with_it = {trial.params.get(other, _MISSING) for trial in having}
        without_it = {trial.params.get(other, _MISSING) for trial in lacking}
        if with_it.isdisjoint(without_it) and _MISSING not in with_it:
            return _Condition(other, frozenset(with_it))
    return None
