"""Chances to be on the front equal counting over many random draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from search.results.certainty import best_within_limits, front_probabilities
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


def test_the_best_within_a_limit_equals_counting_over_random_draws() -> None:
    rng = np.random.default_rng(5)
    correct, images = rng.integers(70, 95, 25), rng.integers(100, 400, 25).astype(float)
    top1, cost = correct.astype(float), rng.integers(1, 9, 25).astype(float)
    shares = top1 / 100
    draws = rng.beta(images * shares + 0.5, images * (1 - shares) + 0.5, size=(20_000, 25))

    answers = best_within_limits(top1, images=images, cost=cost)

    # Where only what is beaten beyond doubt comes in, nothing changes.
    assert {answer.limit for answer in answers} <= set(cost)
    assert len(answers) >= 5
    for answer in answers:
        within = np.flatnonzero(cost <= answer.limit)
        assert top1[answer.best] == top1[within].max()
        winners = within[draws[:, within].argmax(axis=1)]
        # Four standard errors of 20,000 draws are at most 0.015.
        assert answer.chance == pytest.approx(np.mean(winners == answer.best), abs=0.015)
        lost = draws[:, within].max(axis=1) - draws[:, answer.best]
        assert answer.regret == pytest.approx(100 * lost.mean(), abs=0.1)
        for rival, chance in answer.rivals:
            assert chance == pytest.approx(np.mean(winners == rival), abs=0.015)
        chances = [chance for _, chance in answer.rivals]
        assert chances == sorted(chances, reverse=True)


def test_at_its_own_cost_a_network_is_best_with_its_chance_to_be_on_the_front() -> None:
    """The chance beside a member of the front and the answer to its limit are the same number."""
    top1, images = np.array([80.0, 85.0, 84.0, 90.0]), np.full(4, 300.0)
    cost = np.array([1.0, 2.0, 3.0, 4.0])

    chances = front_probabilities(top1, images=images, costs=cost[:, None])
    answers = {a.best: a for a in reversed(best_within_limits(top1, images=images, cost=cost))}

    for member in (0, 1, 3):
        assert answers[member].limit == cost[member]
        assert answers[member].chance == pytest.approx(chances[member], abs=2e-3)


def test_many_networks_have_few_limits_and_all_changes_of_the_best() -> None:
    rng = np.random.default_rng(0)
    cost, top1 = np.arange(3_000.0), 60 + 30 * rng.random(3_000)

    answers = best_within_limits(top1, images=np.full(3_000, 500.0), cost=cost)

    assert len(answers) <= 250
    best = np.maximum.accumulate(top1)
    for limit in range(0, 3_000, 7):
        answer = [answer for answer in answers if answer.limit <= limit][-1]
        assert top1[answer.best] == best[limit]


def test_what_was_not_measured_is_within_no_limit() -> None:
    top1, images = np.array([99.0, 80.0]), np.full(2, 300.0)

    (answer,) = best_within_limits(top1, images=images, cost=np.array([math.nan, 2.0]))
    assert (answer.best, answer.rivals) == (1, ())
    assert answer.chance == pytest.approx(1.0, abs=1e-3)
    assert best_within_limits(top1, images=images, cost=np.full(2, math.nan)) == ()
