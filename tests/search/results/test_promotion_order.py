"""Who goes up: the front, what noise alone keeps off it, all along the costs, then the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from search.record import Measured, Trial
from search.results import losses_of, promotion_order
from tests.tiny_trials import trial

OBJECTIVES = ("top1", "macs")


def judged(number: int, top1: float, macs: float, *, total: float = 1000.0) -> Trial:
    correct = round(top1 * total / 100)
    made = trial(number, correct=correct, total=round(total), fidelity="supernet")
    return replace(made, macs=round(macs))


def order(trials: list[Trial], objectives: tuple[str, ...] = OBJECTIVES) -> list[int]:
    losses = np.array([losses_of(one, objectives) for one in trials], dtype=float)
    found = promotion_order(trials, losses, objectives)
    assert sorted(found) == list(range(len(trials)))
    return found


def test_what_is_dear_and_not_worse_beyond_noise_comes_before_what_is_worse() -> None:
    """At 98 % of 1,000 images a difference of 1.3 points is noise, one of 2 is not."""
    trials = [
        judged(0, 98.0, 1e6),  # the front
        judged(1, 97.9, 16e6),  # as good, for all that is known
        judged(2, 96.0, 2e6),  # worse
        judged(3, 96.0, 1.1e6),  # worse, and better by rank than the next
        judged(4, 95.0, 1.2e6),
    ]
    # The slot of 2M has nothing that is near the front.
    assert order(trials) == [0, 1, 3, 4, 2]


def test_slots_of_costs_get_the_same_work() -> None:
    """Sixteen at 1M and four at 16M that cannot be told apart; eight slots over a factor of 16."""
    cheap = [judged(n, 98.0 - n * 0.01, 1e6, total=10_000) for n in range(17)]
    dear = [judged(20 + n, 97.8, 16e6, total=10_000) for n in range(3)]
    found = order([*cheap, *dear])
    # The front and the first of the dear ones, then 15 cheap ones until both slots had 16M.
    assert found[:2] == [0, 17]
    assert set(found[2:17]) == set(range(1, 16))
    assert found[17] in (16, 18)


def test_a_slot_that_has_no_more_of_the_near_ones_goes_on_with_its_others() -> None:
    cheap = [judged(0, 98.0, 1e6), *(judged(n, 90.0 - n, 1.01e6) for n in range(1, 5))]
    dear = [judged(9 + n, 97.9 - n * 0.1, 2e6) for n in range(3)]
    # MACs in millions: 1 and 0, 1 and 2, 2.01 and 2, 2.01 and 4, 3.02 and 4, 4.03 and 4, and so on.
    assert order([*cheap, *dear]) == [0, 5, 1, 6, 2, 3, 7, 4]


def test_inside_a_slot_the_most_accurate_come_first_and_the_cheaper_of_equals() -> None:
    trials = [
        judged(0, 98.0, 1.0e6),
        judged(1, 97.5, 1.01e6),
        judged(2, 97.8, 1.03e6),
        judged(3, 97.8, 1.02e6),
    ]
    assert order(trials) == [0, 3, 2, 1]


def test_with_few_images_more_is_noise() -> None:
    few = [judged(0, 90.0, 1e6, total=50), judged(1, 80.0, 9e6, total=50)]
    many = [judged(0, 90.0, 1e6), judged(1, 80.0, 9e6)]
    third = [judged(2, 70.0, 1.1e6, total=50), judged(2, 70.0, 1.1e6)]
    assert order([*few, third[0]]) == [0, 1, 2]
    # Here the dear one is worse beyond noise, and its slot comes last.
    assert order([*many, third[1]]) == [0, 2, 1]


def test_scores_and_a_single_objective_are_ordered_by_rank_alone() -> None:
    scored = [
        replace(judged(n, 50.0, macs * 1e6), fidelity="zero-cost", measured=Measured(score=score))
        for n, (score, macs) in enumerate([(5.0, 1), (4.9, 100), (1.0, 2), (6.0, 50)])
    ]
    assert set(order(scored)[:2]) == {0, 3}
    trials = [judged(0, 97.0, 1e6), judged(1, 98.0, 9e6), judged(2, 97.9, 2e6)]
    assert order(trials, ("top1",)) == [1, 2, 0]


@pytest.mark.parametrize("seed", range(3))
def test_the_front_is_first_whatever_the_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trials = [
        judged(n, 50 + 40 * rng.random(), 1e6 * 2 ** (4 * rng.random()), total=100)
        for n in range(40)
    ]
    losses = np.array([losses_of(one, OBJECTIVES) for one in trials])
    front = {
        i
        for i, one in enumerate(losses)
        if not any((other <= one).all() and (other < one).any() for other in losses)
    }
    assert set(order(trials)[: len(front)]) == front
