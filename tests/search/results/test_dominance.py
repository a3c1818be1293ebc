"""Fronts equal their definition on hard data; hypervolumes equal an independent algorithm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymoo.indicators.hv import HV

from search.results.dominance import (
    crowding_distance,
    hypervolume,
    knee,
    non_dominated,
    non_dominated_rank,
)

Matrix = NDArray[np.float64]
# Few different values, so that ties and equal points are common.
FINITE = st.sampled_from((-2.0, -0.0, 0.0, 0.5, 1.0, 3.0))
ANY = st.one_of(FINITE, st.just(math.inf), st.just(-math.inf), st.just(math.nan))


def matrices(values: st.SearchStrategy[float], *, most: int = 14) -> st.SearchStrategy[Matrix]:
    """Draw losses with 1 to 4 objectives."""
    return st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(values, min_size=width, max_size=width), max_size=most).map(
            lambda rows: np.array(rows, dtype=float).reshape(-1, width)
        )
    )


def dominates(a: Matrix, b: Matrix) -> bool:
    return bool((a <= b).all() and (a < b).any())


def front_by_definition(losses: Matrix) -> list[bool]:
    return [
        not np.isnan(row).any() and not any(dominates(other, row) for other in losses)
        for row in losses
    ]


def volume_by_inclusion_exclusion(losses: Matrix, reference: Matrix) -> float:
    """Sum the boxes' volumes, less those of pairs, plus those of triples, ..."""
    total = 0.0
    for size in range(1, len(losses) + 1):
        for group in itertools.combinations(losses, size):
            corner = np.max(group, axis=0)
            total -= (-1) ** size * float(np.prod(np.clip(reference - corner, 0.0, None)))
    return total


@given(matrices(ANY))
def test_the_front_is_what_nothing_dominates(losses: Matrix) -> None:
    assert non_dominated(losses).tolist() == front_by_definition(losses)


@given(matrices(ANY))
def test_each_rank_is_the_front_of_what_lower_ranks_leave(losses: Matrix) -> None:
    ranks = non_dominated_rank(losses)

    valid = ~np.isnan(losses).any(axis=1)
    for rank in range(ranks.max(initial=-1) + 1):
        left = losses[valid & (ranks >= rank)]
        of_rank = ranks[valid & (ranks >= rank)] == rank
        assert of_rank.tolist() == front_by_definition(left)
    if not valid.all():
        assert set(ranks[~valid]) == {ranks[valid].max(initial=-1) + 1}


def ranks_by_definition(losses: Matrix) -> list[int]:
    """The rank is the length of the longest chain of points that each dominate the next."""
    order = sorted(range(len(losses)), key=lambda index: tuple(losses[index]))
    ranks = [0] * len(losses)
    for place, index in enumerate(order):
        better = [other for other in order[:place] if dominates(losses[other], losses[index])]
        ranks[index] = max((ranks[other] + 1 for other in better), default=0)
    return ranks


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("digits", [1, 9])
def test_ranks_of_many_points_are_the_longest_chains_above_them(
    num_objectives: int, digits: int
) -> None:
    # Falling along one line and scattered around it: many fronts, of many points each.
    rng = np.random.default_rng(num_objectives)
    losses = rng.random((150, 1)) + 0.3 * rng.random((150, num_objectives))
    losses = losses.round(digits)
    losses[::29, -1] = math.inf

    ranks = non_dominated_rank(losses)

    expected = ranks_by_definition(losses)
    assert ranks.tolist() == expected
    assert max(expected) >= 4
    lost = np.vstack([losses, np.full((2, num_objectives), math.nan)])
    assert non_dominated_rank(lost).tolist() == [*expected, *[max(expected) + 1] * 2]


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_equal_points_share_the_front(num_objectives: int) -> None:
    losses = np.zeros((5, num_objectives))

    assert non_dominated(losses).all()
    assert (non_dominated_rank(losses) == 0).all()


def test_losses_without_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one objective"):
        non_dominated(np.zeros((3, 0)))


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
@pytest.mark.parametrize("shape", ["random", "all on the front", "a chain", "ties"])
def test_the_front_of_many_points_is_the_definition(num_objectives: int, shape: str) -> None:
    losses = np.random.default_rng(0).random((1_500, num_objectives))
    if shape == "all on the front":
        losses[:, -1] = -losses[:, :-1].sum(axis=1)
    if shape == "a chain":
        losses[:] = losses[:, :1]
    if shape == "ties":
        losses = losses.round(1)
        losses[::7, 0], losses[::11, -1], losses[::13, 0] = math.nan, math.inf, -math.inf

    on_front = non_dominated(losses)

    # Vectorised, one point against all others: not the sweep that is tested.
    no_worse = [(losses <= row).all(axis=1) & (losses < row).any(axis=1) for row in losses]
    expected = ~np.any(no_worse, axis=1) & ~np.isnan(losses).any(axis=1)
    assert (on_front == expected).all()


@given(matrices(FINITE, most=7))
def test_hypervolume_equals_inclusion_and_exclusion(losses: Matrix) -> None:
    reference = np.full(losses.shape[1], 2.0)

    expected = volume_by_inclusion_exclusion(losses, reference)

    assert hypervolume(losses, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("num_objectives", [2, 3, 4])
@pytest.mark.parametrize("digits", [1, 9])
def test_hypervolume_equals_pymoos(num_objectives: int, digits: int) -> None:
    rng = np.random.default_rng(num_objectives)
    for num_points in (1, 7, 60):
        # Few digits make ties and equal points.
        losses = rng.random((num_points, num_objectives)).round(digits)
        reference = np.full(num_objectives, 0.9)

        expected = float(HV(ref_point=reference)(losses))

        assert hypervolume(losses, reference) == pytest.approx(expected, abs=1e-9)


def test_points_beyond_the_reference_add_no_hypervolume() -> None:
    losses = np.array([[0.5, 0.5], [0.1, 1.0], [math.nan, 0.0], [math.inf, -9.0]])

    assert hypervolume(losses, np.ones(2)) == 0.25


def test_a_reference_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reference of shape \(m,\)"):
        hypervolume(np.zeros((3, 2)), np.ones(3))


def test_crowding_is_the_gap_between_neighbours_as_shares_of_the_range() -> None:
    losses = np.array([[0.0, 8.0], [1.0, 4.0], [3.0, 2.0], [4.0, 0.0]])

    expected = [math.inf, 3 / 4 + 6 / 8, 3 / 4 + 4 / 8, math.inf]

    assert crowding_distance(losses).tolist() == pytest.approx(expected)


def test_an_objective_that_is_the_same_everywhere_crowds_nothing() -> None:
    assert crowding_distance(np.ones((3, 2))).tolist() == [0.0, 0.0, 0.0]


def test_the_knee_is_farthest_below_the_line_between_the_ends() -> None:
    losses = np.array([[0.0, 10.0], [9.0, 9.0], [2.0, 3.0], [6.0, 2.0], [10.0, 0.0]])
    start, end = losses[0], losses[-1]

    # Twice the signed area of the triangle with the ends: in proportion to the distance.
    (width, height), offsets = end - start, losses - start
    below = height * offsets[:, 0] - width * offsets[:, 1]

    assert knee(losses) == int(np.argmax(below)) == 2


def test_no_finite_point_has_no_knee() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        knee(np.array([[math.nan, 1.0]]))
