"""Laws of the scaled observations: how far a known cost counts, and what cliffs weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.distributions import IntDistribution
from optuna.study import StudyDirection

from search.sampling.asking import Asking
from search.sampling.design_space import Choose, DesignSpace
from search.sampling.history import History
from search.sampling.known_range import largest_known
from search.sampling.surrogate import Data, front_and_reference

LEVEL = IntDistribution(0, 9)


def walk(choose: Choose) -> tuple[int, ...]:
    return tuple(choose(f"level{place}", LEVEL) for place in range(5))


def cost(levels: tuple[int, ...]) -> float:
    return float(2.0 ** sum(levels))


def space(is_allowed: Any = lambda levels: True) -> DesignSpace[tuple[int, ...]]:
    return DesignSpace(
        walk=walk,
        key=lambda levels: levels,
        is_allowed=is_allowed,
        known_losses=lambda levels: (None, cost(levels)),
    )


def data(losses: list[list[float]], *, largest: float) -> Data:
    values = np.array(losses)
    known = np.column_stack([np.full(len(values), np.nan), values[:, 1]])
    return Data.of(
        np.zeros((len(values), 1)),
        values,
        known,
        largest=np.array([np.nan, largest]),
        start=len(values),
    )


def test_the_largest_known_loss_is_found_though_random_designs_are_far_from_it() -> None:
    both = [StudyDirection.MINIMIZE] * 2
    found = largest_known(History(space(), both), np.random.default_rng(0))
    assert np.isnan(found[0])
    assert found[1] == cost((9,) * 5)


def test_the_largest_known_loss_is_that_of_an_allowed_design() -> None:
    both = [StudyDirection.MINIMIZE] * 2
    some = space(lambda levels: sum(levels) <= 25)
    found = largest_known(History(some, both), np.random.default_rng(0))
    assert found[1] == cost((5,) * 5)


def test_a_known_loss_counts_to_the_end_of_its_range() -> None:
    observed = data([[5.0, 1.0], [4.0, 2.0], [3.0, 4.0], [6.0, 3.0]], largest=100.0)
    _, reference = front_and_reference(observed, observed.losses)
    # A hundredth of the range beyond its end.
    expected = observed.scaled(np.array([[0.0, 100.0 + 0.01 * 99.0]]))[0, 1]
    np.testing.assert_allclose(reference[1], expected)


def test_designs_that_hardly_learn_do_not_drown_the_others_and_keep_their_order() -> None:
    errors = [10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 80.0, 21.0, 23.0]
    observed = data([[error, 1.0] for error in errors], largest=1.0)
    scaled = observed.losses[:, 0]
    assert np.argsort(scaled, kind="stable").tolist() == np.argsort(errors, kind="stable").tolist()
    # What is better than usual keeps its distances: 2 points are 2 points.
    steps = np.diff(scaled[:5])
    np.testing.assert_allclose(steps, steps[0])
    # 80 is worse than 23, but by less than the usual differ.
    assert scaled[6] - scaled[8] < scaled[4] - scaled[0]


def test_it_looks_where_most_designs_are_not_though_gains_are_surest_among_the_cheap() -> None:
    """Cheap designs differ a little; the best is at a cost that nine of ten designs are below."""
    seen = []
    asks = Asking(space(), sampler="guided", seed=0, num_losses=2)
    for _ in range(60):
        one = asks.ask()
        assert one is not None
        error = 40.0 - sum(one.design) + 0.5 * (one.design[0] - one.design[1]) ** 2
        asks.tell(one, [error, cost(one.design)])
        seen.append(sum(one.design))
    random = np.random.default_rng(1).integers(0, 10, (20_000, 5)).sum(axis=1)
    assert max(seen[16:]) > np.quantile(random, 0.99)
