"""What is worth retraining: the knee, the best, then spread, within a budget."""

from __future__ import annotations

import pytest

from search.front.select import select_members
from search.results.candidates import Candidate, add_probabilities, candidates
from tests.tiny_trials import trial

OBJECTIVES = ("top1", "macs")


def judged(*correct: int, total: int = 2_000) -> tuple[Candidate, ...]:
    """Return candidates 1, 2, ... of rising cost; many images, so that the order is sure."""
    trials = [trial(n, correct=right, total=total) for n, right in enumerate(correct, start=1)]
    found = candidates(trials, fidelity="train-3e", objectives=OBJECTIVES)
    return add_probabilities(found, OBJECTIVES)


def test_the_knee_and_the_most_accurate_come_first() -> None:
    # The second gains much for little; the fifth is the best.
    chosen = select_members(judged(800, 1_700, 1_750, 1_800, 1_850), objectives=OBJECTIVES, top=2)

    assert [choice.candidate.id for choice in chosen] == [2, 5]
    assert "knee" in chosen[0].reason
    assert chosen[1].reason == "the most accurate"


def test_the_rest_is_spread() -> None:
    found = judged(800, 1_700, 1_705, 1_710, 1_850)

    chosen = select_members(found, objectives=OBJECTIVES, top=3)

    assert chosen[2].candidate.id == 1
    assert chosen[2].reason == "spread: the cheapest end"


def test_a_rival_within_noise_is_named_as_uncertain() -> None:
    chosen = select_members(judged(100, 180, 178, total=200), objectives=OBJECTIVES, top=3)

    assert {choice.candidate.id for choice in chosen} == {1, 2, 3}
    (near,) = [choice for choice in chosen if choice.candidate.id == 3]
    assert near.reason.startswith("uncertain: only noise keeps it off the front (")


def test_no_network_is_chosen_twice_and_no_more_than_there_are() -> None:
    chosen = select_members(judged(800, 1_700, 1_850), objectives=OBJECTIVES, top=9)

    assert sorted(choice.candidate.id for choice in chosen) == [1, 2, 3]


def test_the_retrainings_fit_in_the_budget_together() -> None:
    found = judged(800, 1_700, 1_750, 1_800, 1_850)

    chosen = select_members(
        found,
        objectives=OBJECTIVES,
        top=5,
        budget_seconds=10.0,
        cost_of=lambda candidate: float(candidate.id),
    )

    assert [choice.candidate.id for choice in chosen[:2]] == [2, 5]
    assert sum(choice.retrain_seconds or 0.0 for choice in chosen) <= 10
    assert len(chosen) == 3


def test_a_budget_for_nothing_says_what_the_cheapest_takes() -> None:
    with pytest.raises(ValueError, match="expected to take 1"):
        select_members(
            judged(800, 1_700),
            objectives=OBJECTIVES,
            top=1,
            budget_seconds=0.5,
            cost_of=lambda candidate: float(candidate.id),
        )
