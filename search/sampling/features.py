"""Designs as numbers: one-hot columns for categories, scaled columns for numbers.

A name that a design does not have (a choice that does not apply) is a category of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from search.sampling.design_space import is_same, to_unit

Matrix = NDArray[np.float64]

# Where a number does not apply: the middle, so that it is nearest to all values on average.
_NEUTRAL = 0.5


class FeatureSpace:
    """Turns choices into rows; new names and categories widen the rows.

    Every name is one group of columns: a column for every category (also "absent"), scaled so that
    two different categories are at squared distance 1; a number has a column for its value too.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, Any], int] = {}
        self._groups: list[int] = []
        self._group_of: dict[str, int] = {}
        self._distributions: dict[str, BaseDistribution] = {}

    @property
    def groups(self) -> NDArray[np.intp]:
        """The group of every column, of shape (columns,)."""
        return np.array(self._groups, dtype=np.intp)

    def learn(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Make room for the choices of a walk."""
        for name, distribution in distributions.items():
            if is_same(self._distributions.get(name), distribution):
                continue
            self._distributions[name] = distribution
            self._group_of.setdefault(name, len(self._group_of))
            self._add(name, _ABSENT)
            if isinstance(distribution, CategoricalDistribution):
                for choice in distribution.choices:
                    self._add(name, choice)
            else:
                self._add(name, _NUMBER)

    def covers(self, distributions: Mapping[str, BaseDistribution]) -> bool:
        """Tell whether these choices are learned."""
        return all(
            is_same(self._distributions.get(name), distribution)
            for name, distribution in distributions.items()
        )

    def rows(self, designs: Sequence[Mapping[str, Any]]) -> Matrix:
        """Encode choices whose names and options are learned; shape (designs, columns)."""
        rows = np.zeros((len(designs), len(self._groups)))
        columns, half = self._columns, np.sqrt(0.5)
        absent = [columns[name, _ABSENT] for name in self._distributions]
        numbers = [column for (_, choice), column in columns.items() if choice is _NUMBER]
        rows[:, absent] = half
        rows[:, numbers] = _NEUTRAL
        for row, choices in zip(rows, designs, strict=True):
            for name, choice in choices.items():
                row[columns[name, _ABSENT]] = 0.0
                if (name, _NUMBER) in columns:
                    row[columns[name, _NUMBER]] = to_unit(self._distributions[name], choice)
                else:
                    row[columns[name, choice]] = half
        return rows

    def _add(self, name: str, choice: Any) -> None:
        if (name, choice) not in self._columns:
            self._columns[name, choice] = len(self._groups)
            self._groups.append(self._group_of[name])


class _Mark:
    """A category that no user can name."""


_ABSENT, _NUMBER = _Mark(), _Mark()
