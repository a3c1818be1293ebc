"""Chances to be on the front equal counting over many random draws."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from search.results.certainty import (
    _edges,
    _sum_over_no_dearer,
    best_within_limits,
    front_probabilities,
)
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


def jeffreys(top1: float, images: float) -> stats.rv_continuous:
    """The posterior of an accuracy under Jeffreys' prior."""
    right = images * top1 / 100
    return stats.beta(right + 0.5, images - right + 0.5)


def integral(function: object, *known: stats.rv_continuous) -> float:
    """Integrate over all accuracies, with care where the posteriors have their mass."""
    ends = sorted({p for one in known for p in one.ppf([1e-9, 0.2, 0.5, 0.8, 1 - 1e-9])} | {0, 1})
    return sum(integrate.quad(function, a, b)[0] for a, b in pairwise(ends))


@pytest.mark.parametrize("num_costs", [1, 2])
def test_the_chance_is_the_integral_over_what_costs_no_more(num_costs: int) -> None:
    top1 = np.array([80.0, 82.0, 81.0, 84.0, 82.0])
    images = np.array([200.0, 300.0, 250.0, 150.0, 400.0])
    costs = np.array([[1.0, 4.0], [2.0, 2.0], [2.0, 3.0], [3.0, 1.0], [3.0, 5.0]])[:, :num_costs]
    known = [jeffreys(a, n) for a, n in zip(top1, images, strict=True)]

    chances = front_probabilities(top1, images=images, costs=costs)

    for i, own in enumerate(known):
        rivals = [one for j, one in enumerate(known) if j != i and (costs[j] <= costs[i]).all()]
        expected = integral(
            lambda x, own=own, rivals=rivals: own.pdf(x) * math.prod(r.cdf(x) for r in rivals),
            own,
            *rivals,
        )
        assert chances[i] == pytest.approx(expected, abs=2e-4)


def test_what_is_expected_to_be_missing_is_the_mean_of_the_best_less_that_of_the_answer() -> None:
    top1, images = np.array([80.0, 82.0, 81.0]), np.array([200.0, 300.0, 250.0])
    known = [jeffreys(a, n) for a, n in zip(top1, images, strict=True)]

    first, second, third = best_within_limits(top1, images=images, cost=np.array([1.0, 2.0, 3.0]))

    assert (first.regret, first.chance) == (pytest.approx(0, abs=2e-3), pytest.approx(1, abs=1e-4))
    for answer, rivals in ((second, known[:2]), (third, known)):
        largest = integral(lambda x, rivals=rivals: 1 - math.prod(r.cdf(x) for r in rivals), *known)
        expected = 100 * (largest - known[1].mean())
        assert answer.regret == pytest.approx(expected, abs=2e-3)
        assert expected > 0.3
    chances = dict(third.rivals)
    assert (third.best, set(chances)) == (1, {0, 2})
    assert third.chance + sum(chances.values()) == pytest.approx(1.0, abs=1e-3)
    assert [rival for rival, _ in third.rivals] == sorted(chances, key=lambda r: -chances[r])


def test_the_last_limit_allows_everything() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 199, 200, 201, 500):
        cost, top1 = rng.permutation(np.arange(1.0, n + 1)), rng.uniform(70.0, 75.0, n)

        answers = best_within_limits(top1, images=np.full(n, 400.0), cost=cost)

        limits = [answer.limit for answer in answers]
        assert limits == sorted(limits)
        assert limits[-1] == n
        assert answers[-1].best == int(top1.argmax())
        assert answers[0].limit == 1
        # All of few limits, and of many at least two hundred.
        assert len(limits) == n if n <= 200 else len(limits) >= 200


def test_of_equals_the_cheapest_is_the_answer() -> None:
    answers = best_within_limits(
        np.array([80.0, 80.0, 80.0]), images=np.full(3, 100.0), cost=np.array([3.0, 1.0, 2.0])
    )
    assert [(answer.limit, answer.best) for answer in answers] == [(1.0, 1), (2.0, 1), (3.0, 1)]
    assert answers[-1].chance == pytest.approx(1 / 3, abs=1e-3)


def test_at_most_four_rivals_of_two_percent_are_named() -> None:
    alike = best_within_limits(
        np.linspace(80.0, 80.4, 9), images=np.full(9, 100.0), cost=np.arange(9.0)
    )
    assert len(alike[-1].rivals) == 4
    assert [len(answer.rivals) for answer in alike[:4]] == [0, 1, 2, 3]
    top1 = np.array([80.0, 88.0])
    known = [jeffreys(80.0, 200.0), jeffreys(88.0, 200.0)]
    below = integral(lambda x: known[0].pdf(x) * known[1].cdf(x), *known)
    assert 0.005 < below < 0.02
    (_, answer) = best_within_limits(top1, images=np.full(2, 200.0), cost=np.array([1.0, 2.0]))
    assert answer.rivals == ()
    assert answer.chance == pytest.approx(1 - below, abs=1e-3)


@pytest.mark.parametrize(("deviations", "has_chance"), [(4.5, True), (5.5, False)])
def test_what_is_beaten_by_five_deviations_has_no_chance_at_all(
    deviations: float, has_chance: bool
) -> None:
    """The deviation of a difference of two posteriors, which are nearly equal here."""
    images, best = 10_000.0, 60.0
    own = jeffreys(best, images)
    other = best - 100 * deviations * math.sqrt(2) * own.std()

    first, second = front_probabilities(
        np.array([best, other]), images=np.full(2, images), costs=np.array([[1.0], [1.0]])
    )

    assert first == pytest.approx(1.0, abs=1e-4)
    assert (second > 0) == has_chance


def test_accuracies_are_looked_at_in_512_cells_from_nothing_to_all() -> None:
    edges = _edges(np.array([80.5, 40.5]), np.array([20.5, 60.5]))
    assert (edges[0], edges[-1], len(edges)) == (0.0, 1.0, 513)
    assert (np.diff(edges) > 0).all()
    # Five deviations around both means, and no wide cell in between.
    means = np.array([80.5 / 101, 40.5 / 101])
    deviations = np.sqrt(means * (1 - means) / 102)
    inner = edges[1:-1]
    assert inner.min() == pytest.approx((means - 5 * deviations).min())
    assert inner.max() == pytest.approx(min((means + 5 * deviations).max(), 1.0))
    assert np.diff(inner).max() < deviations.max() / 2


def test_more_networks_than_are_handled_together_are_as_sure() -> None:
    """With two costs networks are handled a thousand at a time."""
    rng = np.random.default_rng(3)
    n = 1_100
    costs = np.column_stack([np.arange(n), rng.permutation(n)]).astype(float)
    top1, images = np.full(n, 80.0), np.full(n, 300.0)
    costs[-1] = (n, n)

    chances = front_probabilities(top1, images=images, costs=costs)

    # All are equally accurate: the chance to be the best of those that cost no more.
    no_dearer = (costs[None] <= costs[:, None]).all(axis=2).sum(axis=1)
    assert no_dearer[-1] == n
    assert chances == pytest.approx(1 / no_dearer, abs=2e-3)


@pytest.mark.parametrize(("deviations", "has_chance"), [(4.97, True), (5.03, False)])
def test_the_deviation_of_a_few_images_is_that_of_their_posterior(
    deviations: float, has_chance: bool
) -> None:
    """Var of Beta(a, b) = m (1 - m) / (a + b + 1), with a + b = images + 1."""
    images = 30.0

    def spread(top1: float) -> float:
        return float(jeffreys(top1, images).std())

    def mean(top1: float) -> float:
        return float(jeffreys(top1, images).mean())

    def gap(top1: float) -> float:
        return mean(95.0) - mean(top1) - deviations * math.hypot(spread(95.0), spread(top1))

    other = optimize.brentq(gap, 5.0, 95.0)
    chances = front_probabilities(
        np.array([95.0, other]), images=np.full(2, images), costs=np.array([[1.0], [1.0]])
    )
    assert (chances[1] > 0) == has_chance


def test_sums_over_many_networks_keep_their_digits() -> None:
    """In four bytes the last of a million equal terms would change nothing any more."""
    values = np.full((40_000, 1), 0.1, np.float32)
    values[0] = 1e6
    costs = np.arange(40_000.0)[:, None]
    expected = np.cumsum(values.astype(np.float64), axis=0)
    np.testing.assert_allclose(_sum_over_no_dearer(values, costs), expected, rtol=1e-7)
