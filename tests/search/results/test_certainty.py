"""Chances to be on the front equal counting over many random draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.results.certainty import front_probabilities
from search.results.dominance import non_dominated


@pytest.mark.parametrize("num_costs", [1, 2, 3])
def test_the_chance_is_the_share_of_random_draws_with_it_on_the_front(num_costs: int) -> None:
    rng = np.random.default_rng(num_costs)
    correct, images = rng.integers(70, 95, 25), rng.integers(100, 400, 25).astype(float)
    top1 = correct.astype(float)
    costs = rng.integers(1, 9, (25, num_costs)).astype(float)

    chances = front_probabilities(top1, images=images, costs=costs)

    shares = top1 / 100
    draws = rng.beta(images * shares + 0.5, images * (1 - shares) + 0.5, size=(4_000, 25))
    counted = np.mean([non_dominated(np.column_stack([-d, costs])) for d in draws], axis=0)
    # Four standard errors of 4,000 draws are at most 0.032.
    assert chances == pytest.approx(counted, abs=0.035)


def test_a_network_alone_is_on_the_front() -> None:
    assert front_probabilities(
        np.array([80.0]), images=np.array([50.0]), costs=np.array([[3.0]])
    ) == pytest.approx([1.0], abs=1e-3)


def test_equals_share_their_place() -> None:
    chances = front_probabilities(
        np.full(4, 90.0), images=np.full(4, 500.0), costs=np.full((4, 2), 7.0)
    )

    assert chances == pytest.approx(np.full(4, 0.25), abs=2e-3)


def test_the_cheapest_is_surely_on_the_front_and_what_is_beaten_is_not() -> None:
    chances = front_probabilities(
        np.array([50.0, 95.0, 60.0]), images=np.full(3, 2_000.0), costs=np.array([[1.0], [2], [3]])
    )

    assert chances == pytest.approx([1.0, 1.0, 0.0], abs=1e-3)


def test_a_missing_cost_has_no_chance_and_takes_none_away() -> None:
    chances = front_probabilities(
        np.array([90.0, 99.0]), images=np.full(2, 300.0), costs=np.array([[1.0], [math.nan]])
    )

    assert chances == pytest.approx([1.0, 0.0], abs=1e-3)


def test_more_images_make_it_surer() -> None:
    costs = np.array([[1.0], [2.0]])

    few, many = (
        front_probabilities(np.array([90.0, 91.0]), images=np.full(2, images), costs=costs)[1]
        for images in (100.0, 10_000.0)
    )

    assert 0.5 < few < 0.7
    assert many > 0.98
