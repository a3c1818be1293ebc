"""New designs from known ones: mutation, crossover, and what is farthest from everything known."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from search.sampling.design_space import (
    DesignSpace,
    Draw,
    draw,
    draw_random,
    every_draw,
    from_unit,
    is_same,
    random_value,
    to_unit,
)

T = TypeVar("T")
Matrix = NDArray[np.float64]

# Walks before giving up on finding a new design: at random, then systematically.
RANDOM_TRIES = 256
WALKS_A_SEARCH = 20_000

MUTATION_SHARE, CROSSOVER_SHARE = 0.6, 0.25
NUMBER_STEP = 0.15


class Unseen(Generic[T]):
    """Finds allowed designs that are not known, until there are none."""

    def __init__(self, space: DesignSpace[T]) -> None:
        self._space = space
        self._rest: Iterator[Draw[T]] | None = None

    def find(self, seen: Container[Hashable], rng: np.random.Generator) -> Draw[T] | None:
        """Return a new design: random ones first, then all in turn; None if none is left.

        Where next to nothing is allowed, it gives up after `WALKS_A_SEARCH` walks and goes on
        from there the next time.
        """
        for _ in range(RANDOM_TRIES):
            found = draw_random(self._space, rng)
            if found.key not in seen and self._space.is_allowed(found.design):
                return found
        self._rest = self._rest or every_draw(self._space)
        for _, found in zip(range(WALKS_A_SEARCH), self._rest, strict=False):
            if found.key not in seen and self._space.is_allowed(found.design):
                return found
        return None


def breed(
    space: DesignSpace[T],
    parents: Sequence[Draw[T]],
    *,
    count: int,
    seen: Container[Hashable],
    rng: np.random.Generator,
) -> dict[Hashable, Draw[T]]:
    """Make up to ``count`` new allowed designs from parents, some of them at random.

    Returns:
        The designs by key.
    """
    found: dict[Hashable, Draw[T]] = {}
    for _ in range(count):
        kind = rng.random()
        parent = parents[int(rng.integers(len(parents)))]
        if kind < MUTATION_SHARE:
            child = _mutate(space, parent, rng)
        elif kind < MUTATION_SHARE + CROSSOVER_SHARE:
            child = _cross(space, parent, parents[int(rng.integers(len(parents)))], rng)
        else:
            child = draw_random(space, rng)
        if child.key not in seen and child.key not in found and space.is_allowed(child.design):
            found[child.key] = child
    return found


def farthest(candidates: Matrix, known: Matrix) -> int:
    """Return the candidate with the largest distance to its nearest known row."""
    if len(known) == 0:
        return 0
    squared = (candidates**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)
    return int(np.argmax((squared - 2.0 * candidates @ known.T).min(axis=1)))


def _mutate(space: DesignSpace[T], parent: Draw[T], rng: np.random.Generator) -> Draw[T]:
    names = list(parent.choices)
    # Mostly one change, sometimes several: the nearest neighbours matter most near the end.
    num_changes = min(int(rng.geometric(0.5)), len(names))
    changed = {names[index] for index in rng.choice(len(names), num_changes, replace=False)}

    def choose(name: str, distribution: BaseDistribution) -> Any:
        if not is_same(parent.distributions.get(name), distribution):
            return random_value(distribution, rng)
        value = parent.choices[name]
        return _neighbour(distribution, value, rng) if name in changed else value

    return draw(space, choose)


def _neighbour(distribution: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice != value]
        return others[rng.integers(len(others))] if others else value
    unit = to_unit(distribution, value) + NUMBER_STEP * rng.standard_normal()
    moved = from_unit(distribution, float(np.clip(unit, 0.0, 1.0)))
    return random_value(distribution, rng) if moved == value else moved


def _cross(
    space: DesignSpace[T], first: Draw[T], second: Draw[T], rng: np.random.Generator
) -> Draw[T]:
    parents = (first, second)

    def choose(name: str, distribution: BaseDistribution) -> Any:
        having = [
            parent for parent in parents if is_same(parent.distributions.get(name), distribution)
        ]
        if not having:
            return random_value(distribution, rng)
        return having[rng.integers(len(having))].choices[name]

    return draw(space, choose)
