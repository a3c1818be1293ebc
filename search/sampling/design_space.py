"""What a sampler may know about a space: its walk, which designs are equal, allowed, and cheap.

A walk is a define-by-run function: it asks ``choose(name, distribution)`` for every choice in turn
and returns a design. Drawing, changing and counting designs are all walks with another ``choose``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

Choose: TypeAlias = Callable[[str, BaseDistribution], Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class DesignSpace(Generic[T]):
    """A set of designs.

    Attributes:
        walk: Builds a design from choices; the same choices give the same walk.
        key: Equal for designs that are the same.
        is_allowed: Whether a design satisfies the constraints that cost no evaluation.
        known_losses: For each objective, in the study's order and direction, the value that
            needs no evaluation, or None; an empty tuple when all must be evaluated.
    """

    walk: Callable[[Choose], T]
    key: Callable[[T], Hashable]
    is_allowed: Callable[[T], bool] = lambda design: True
    known_losses: Callable[[T], Sequence[float | None]] = lambda design: ()


@dataclass(frozen=True, slots=True)
class Draw(Generic[T]):
    """A design with the choices that lead to it, in the order of the walk."""

    choices: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    design: T
    key: Hashable


def holding(space: DesignSpace[T], decided: Mapping[str, Any]) -> DesignSpace[T]:
    """Return the part of a space where some choices are decided, as far as the space has them."""

    def walk(choose: Choose) -> T:
        def choose_or_hold(name: str, distribution: BaseDistribution) -> Any:
            if name in decided and _holds(distribution, decided[name]):
                return decided[name]
            return choose(name, distribution)

        return space.walk(choose_or_hold)

    return replace(space, walk=walk)


def is_same(first: BaseDistribution | None, second: BaseDistribution) -> bool:
    """Tell whether two distributions are equal; quick where they are one object."""
    return first is second or first == second


def draw(space: DesignSpace[T], choose: Choose) -> Draw[T]:
    """Walk once and keep the choices."""
    choices: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}

    def remember(name: str, distribution: BaseDistribution) -> Any:
        distributions[name] = distribution
        choices[name] = choose(name, distribution)
        return choices[name]

    design = space.walk(remember)
    return Draw(choices, distributions, design, space.key(design))


def draw_random(space: DesignSpace[T], rng: np.random.Generator) -> Draw[T]:
    """Draw a design, every choice uniform; it may break a constraint."""
    return draw(space, lambda name, distribution: random_value(distribution, rng))


def every_draw(space: DesignSpace[T]) -> Iterator[Draw[T]]:
    """Walk over all choices, depth first; equal designs may come several times.

    A continuous distribution is represented by its ends only.
    """
    path: list[int] | None = []
    while path is not None:
        one, widths = _draw_path(space, path)
        yield one
        path = _next_path([*path, *[0] * (len(widths) - len(path))], widths)


def suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    """Ask an Optuna trial for a choice."""
    match distribution:
        case CategoricalDistribution():
            return trial.suggest_categorical(name, distribution.choices)
        case IntDistribution(low=low, high=high):
            return trial.suggest_int(name, low, high, step=distribution.step, log=distribution.log)
        case FloatDistribution(low=low, high=high):
            step, log = distribution.step, distribution.log
            return trial.suggest_float(name, low, high, step=step, log=log)
    raise ValueError(f"{name}: {type(distribution).__name__} is not a distribution of Optuna.")


def random_value(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """Draw one value, uniform over the choices or the (logarithmic) range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[rng.integers(len(distribution.choices))]
    return from_unit(distribution, float(rng.random()))


def to_unit(distribution: BaseDistribution, value: float) -> float:
    """Scale a number to [0, 1], logarithmically where the distribution is."""
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if low == high:
        return 0.5
    if distribution.log:
        return float(np.log(value / low) / np.log(high / low))
    return (value - low) / (high - low)


def from_unit(distribution: BaseDistribution, unit: float) -> Any:
    """Invert `to_unit`, rounded to what the distribution holds; 0 to 1 covers it uniformly."""
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    if low == high:
        return low
    if distribution.log:
        value = float(low * (high / low) ** unit)
        rounded = round(value) if isinstance(distribution, IntDistribution) else value
        return min(max(rounded, low), high)
    if step is None:
        return low + unit * (high - low)
    count = round((high - low) / step) + 1
    return min(low + step * min(int(unit * count), count - 1), high)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return False


def _draw_path(space: DesignSpace[T], path: Sequence[int]) -> tuple[Draw[T], list[int]]:
    """Take the options at these places, then the first ones; also return how many there were."""
    widths: list[int] = []

    def follow(name: str, distribution: BaseDistribution) -> Any:
        values = _values(distribution)
        place = path[len(widths)] if len(widths) < len(path) else 0
        widths.append(len(values))
        return values[place]

    return draw(space, follow), widths


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    match distribution:
        case CategoricalDistribution():
            return distribution.choices
        case IntDistribution():
            return range(distribution.low, distribution.high + 1, distribution.step)
        case FloatDistribution(low=low, high=high, step=step) if step is not None:
            return [from_unit(distribution, u) for u in _middles(round((high - low) / step) + 1)]
        case FloatDistribution(low=low, high=high):
            return (low,) if low == high else (low, high)
    raise ValueError(f"{type(distribution).__name__} is not a distribution of Optuna.")


def _middles(count: int) -> list[float]:
    return [(index + 0.5) / count for index in range(count)]


def _next_path(path: list[int], widths: list[int]) -> list[int] | None:
    while path:
        if path[-1] + 1 < widths[len(path) - 1]:
            return [*path[:-1], path[-1] + 1]
        path.pop()
    return None
