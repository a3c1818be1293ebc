"""What is worth retraining: the knee, the best, then spread, within a budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from search.front.select import (
    _leading,
    choice_json,
    retrain_cost,
    select_members,
    select_table,
)
from search.plan import PlanInputs, make_plan
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
    with pytest.raises(ValueError, match="expected to take 2"):  # enough: 1 would not be
        select_members(
            judged(800, 1_700),
            objectives=OBJECTIVES,
            top=1,
            budget_seconds=1.0,
            cost_of=lambda candidate: candidate.id + 0.2,
        )


def member(number: int, *, top1: float, macs: int, chance: float = 1.0) -> Candidate:
    """Return a network on the front, with costs of a test's choice."""
    (found,) = candidates([trial(number, correct=100)], fidelity="train-3e", objectives=OBJECTIVES)
    return replace(found, top1=top1, macs=macs, on_front=True, front_probability=chance)


def ids(found: list[Candidate], top: int, objectives: tuple[str, ...] = OBJECTIVES) -> list[int]:
    chosen = select_members(found, objectives=objectives, top=top)
    return [choice.candidate.id for choice in chosen]


def test_a_network_that_is_surely_dominated_is_never_recommended() -> None:
    # 3 and 5 are dearer than 2 and 4, and far less accurate.
    found = judged(800, 1_700, 1_000, 1_850, 900)
    assert [c.id for c in found if not c.on_front and not c.near_front] == [3, 5]

    assert sorted(ids(list(found), top=9)) == [1, 2, 4]


def test_a_rival_is_worth_a_look_from_a_chance_of_a_tenth() -> None:
    front = [member(1, top1=50, macs=10), member(2, top1=90, macs=100)]
    rivals = [
        replace(member(n, top1=60, macs=50), on_front=False, near_front=True, front_probability=p)
        for n, p in ((3, 0.1), (4, 0.099), (5, None))
    ]
    far = replace(member(6, top1=60, macs=50), on_front=False, front_probability=0.9)

    assert sorted(ids([*front, *rivals, far], top=9)) == [1, 2, 3]


def test_the_spread_counts_every_objective_as_a_share_of_its_range() -> None:
    # The knee and the best are 1 and 2. In units, 3 is farther from both by its MACs: 3e6 and more
    # against some points of accuracy; in shares of the ranges 4 is, by its accuracy.
    found = [
        member(1, top1=80, macs=20_000_000),
        member(2, top1=90, macs=100_000_000),
        member(3, top1=82, macs=30_000_000),
        member(4, top1=50, macs=10_000_000),
    ]
    assert ids(found, top=4) == [1, 2, 4, 3]
    # And with the accuracies closer than the costs: here it is the other way round.
    found = [
        member(1, top1=80.0, macs=20_000_000),
        member(2, top1=80.4, macs=100_000_000),
        member(3, top1=80.2, macs=60_000_000),
        member(4, top1=79.9, macs=10_000_000),
    ]
    assert ids(found, top=4)[:2] == [1, 2]
    assert ids(found, top=3)[2] == 3


def test_the_chance_to_be_on_the_front_weighs_the_distance() -> None:
    # In shares of the ranges 3 is 0.81 from the knee, and 4 is 0.34 from the most accurate.
    found = [
        member(1, top1=86, macs=20),
        member(2, top1=90, macs=100),
        member(3, top1=70, macs=10),
        member(4, top1=89, macs=70),
    ]
    assert ids(found, top=3)[2] == 3
    found[2] = replace(found[2], front_probability=0.1)
    assert ids(found, top=3)[2] == 4


def test_a_cost_that_was_not_measured_is_the_worst() -> None:
    found = [
        replace(member(n, top1=top1, macs=100), latency_ms=latency)
        for n, top1, latency in ((1, 60, 1.0), (2, 80, 2.0), (3, 90, 9.0), (4, 70, None))
    ]
    # 4 stands at 9 ms, far from 1, 2 and 3 by its accuracy or its latency; 1 at the cheap end.
    chosen = ids(found, top=4, objectives=("top1", "latency_ms"))
    assert chosen[:2] == [2, 3]
    assert set(chosen) == {1, 2, 3, 4}


@pytest.mark.parametrize("retrain_steps", [1_000, 30_000])
def test_a_retraining_costs_its_steps_at_the_measured_seconds(retrain_steps: int) -> None:
    # A step takes 0.1 s and 0.01 s more for every million MACs, exactly.
    points = tuple((macs, 0.1 + macs / 1e8) for macs in (1_000_000, 5_000_000, 30_000_000))
    plan = make_plan(
        PlanInputs(
            budget_seconds=1e5,
            devices=2,
            measured_seconds=1.0,
            supernet_step=0.1,
            trial_step_seconds=points,
            judge_seconds=0.5,
            steps_per_epoch=10,
            max_epochs=3,
            retrain_steps=retrain_steps,
        )
    )
    cost = retrain_cost(plan)

    assert cost is not None
    for macs in (1_000_000, 8_000_000, 30_000_000):
        expected = retrain_steps * (0.1 + macs / 1e8)
        assert cost(member(1, top1=50, macs=macs)) == pytest.approx(expected)
    assert retrain_cost(None) is None


def test_what_does_not_fit_is_passed_over_and_cheaper_ones_are_taken() -> None:
    found = judged(800, 1_700, 1_750, 1_800, 1_850)
    seconds = {1: 3.0, 2: 4.0, 3: 9.0, 4: 9.0, 5: 100.0}

    chosen = select_members(
        found,
        objectives=OBJECTIVES,
        top=5,
        budget_seconds=7.0,
        cost_of=lambda candidate: seconds[candidate.id],
    )

    # The knee is 2, the best does not fit, and 1 takes exactly what is left.
    assert [(c.candidate.id, c.retrain_seconds) for c in chosen] == [(2, 4.0), (1, 3.0)]
    assert choice_json(chosen[1])["retrain_seconds"] == 3.0


def test_each_reason_says_where_the_network_stands() -> None:
    found = [
        member(1, top1=10, macs=10),
        member(2, top1=60, macs=20),
        member(3, top1=75, macs=60),
        member(4, top1=80, macs=90),
        member(5, top1=85, macs=140),
    ]
    chosen = select_members(found, objectives=OBJECTIVES, top=5)
    reasons = {choice.candidate.id: choice.reason for choice in chosen}

    assert reasons[2] == "balanced: the knee of the front"
    assert reasons[5] == "the most accurate"
    assert reasons[1] == "spread: the cheapest end"
    # 4 is farther from 2 and 5 than 3 is, and is chosen before it.
    assert reasons[4] == "spread: between 2 and 5"
    assert reasons[3] == "spread: between 2 and 4"
    rows = list(select_table(chosen, "cpu").columns[0].cells)
    assert rows == [str(choice.candidate.id) for choice in chosen]


def test_an_end_is_said_of_the_end_alone() -> None:
    """A network that is surely on the front goes before a cheaper one that may not be."""
    found = [
        replace(member(1, top1=10, macs=10), front_probability=0.1),
        member(2, top1=30, macs=15),
        member(3, top1=75, macs=30),
        member(4, top1=95, macs=100),
    ]
    chosen = select_members(found, objectives=OBJECTIVES, top=4)
    reasons = {choice.candidate.id: choice.reason for choice in chosen}
    assert list(reasons) == [3, 4, 2, 1]
    assert reasons[2] == "spread: cheaper than 3"
    assert reasons[1] == "spread: the cheapest end"


def test_what_is_cheap_is_what_the_front_weighs() -> None:
    """The fastest has most MACs."""
    found = [
        replace(member(n, top1=top1, macs=100 - n), latency_ms=latency)
        for n, top1, latency in ((1, 95, 9.0), (2, 75, 3.0), (3, 30, 2.0), (4, 85, 6.0))
    ]
    chosen = select_members(found, objectives=("top1", "latency_ms"), top=4)
    reasons = {choice.candidate.id: choice.reason for choice in chosen}
    assert reasons[3] == "spread: the cheapest end"
    assert reasons[4] == "spread: between 2 and 1"


def test_one_network_that_is_both_is_said_to_be_both() -> None:
    (chosen,) = select_members([member(1, top1=10, macs=10)], objectives=OBJECTIVES, top=3)
    assert chosen.reason == "the most accurate, and the knee of the front"


def test_no_network_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one network, got --top 0"):
        select_members([member(1, top1=10, macs=10)], objectives=OBJECTIVES, top=0)


def test_a_network_that_costs_the_same_is_no_cheaper_and_no_dearer() -> None:
    found = [
        replace(member(n, top1=top1, macs=macs), params=params)
        for n, top1, macs, params in ((1, 80, 10, 50), (2, 60, 10, 10), (3, 90, 40, 90))
    ]
    for macs, end in ((10, "cheapest"), (40, "dearest")):
        found[1] = replace(found[1], macs=macs)
        chosen = select_members(found, objectives=("top1", "macs", "params"), top=3)
        (reason,) = (choice.reason for choice in chosen if choice.candidate.id == 2)
        assert reason == f"spread: the {end} end"


def test_the_table_says_what_its_columns_are() -> None:
    chosen = select_members(judged(800, 1_700, 1_850), objectives=OBJECTIVES, top=2)

    table = select_table(chosen, "cpu")

    assert [column.header for column in table.columns] == [
        *("id", "top-1 %", "MACs", "sure", "retraining", "why")
    ]
    # Numbers are never broken over lines, reasons are.
    assert [column.no_wrap for column in table.columns] == [True] * 5 + [False]
    assert [column.justify for column in table.columns] == ["right"] * 5 + ["left"]
    assert (table.title, table.row_count) == ("Worth retraining", 2)
    assert table.caption == "sure: chance to be truly on the front; retraining: expected, one seed"


def test_without_chances_the_farthest_comes_next() -> None:
    """Of (cost, error) scaled to the range of the front."""
    found = tuple(
        replace(one, front_probability=None) for one in judged(800, 1_700, 1_705, 1_710, 1_850)
    )

    chosen = select_members(found, objectives=OBJECTIVES, top=4)

    assert [choice.candidate.id for choice in chosen[:3]] == [2, 5, 1]
    macs = np.array([one.macs for one in found], dtype=float)
    errors = 100.0 - np.array([one.top1 for one in found])
    places = np.column_stack([(v - v.min()) / (v.max() - v.min()) for v in (errors, macs)])
    taken = [1, 4, 0]
    gaps = {n: min(np.linalg.norm(places[n] - places[other]) for other in taken) for n in (2, 3)}
    assert chosen[3].candidate.id - 1 == max(gaps, key=lambda n: gaps[n])


def test_a_reason_names_the_nearest_neighbours_among_those_that_are_chosen() -> None:
    found = judged(800, 1_700, 1_750, 1_800, 1_850, 1_900)

    chosen = select_members(found, objectives=OBJECTIVES, top=6)

    done: list[Candidate] = []
    for choice in chosen:
        one = choice.candidate
        if choice.reason.startswith("spread"):
            below = max((c for c in done if c.macs < one.macs), key=lambda c: c.macs, default=None)
            above = min((c for c in done if c.macs > one.macs), key=lambda c: c.macs, default=None)
            if below is None:
                assert choice.reason == "spread: the cheapest end"
            elif above is None:
                assert choice.reason == "spread: the dearest end"
            else:
                assert choice.reason == f"spread: between {below.id} and {above.id}"
        done.append(one)
    reasons = [choice.reason for choice in chosen]
    assert sum(reason.startswith("spread: between") for reason in reasons) >= 2
    assert "spread: the cheapest end" in reasons


def test_a_chance_of_a_tenth_is_worth_a_look_and_less_is_not() -> None:
    front, *_, rival = judged(1_700, 800, 801)
    for chance, is_there in ((None, False), (0.0, False), (0.0999, False), (0.1, True)):
        near = replace(rival, on_front=False, near_front=True, front_probability=chance)
        chosen = select_members([front, near], objectives=OBJECTIVES, top=5)
        assert [choice.candidate.id for choice in chosen] == [front.id] + [near.id] * is_there
    off = replace(rival, on_front=False, near_front=False, front_probability=0.9)
    assert len(select_members([front, off], objectives=OBJECTIVES, top=5)) == 1


def test_of_two_that_are_equally_good_the_first_is_the_most_accurate() -> None:
    first, second = (
        trial(1, correct=150),
        replace(trial(1, correct=150), architecture_id=2, key="b"),
    )
    cheap = replace(trial(3, correct=100), macs=trial(1, correct=1).macs // 4)
    pool = candidates([first, second, cheap], fidelity="train-3e", objectives=("top1", "macs"))
    assert [one.on_front for one in pool] == [True] * 3
    leading = _leading(pool, ("top1", "macs"))
    (best,) = [index for index, why in leading.items() if "most accurate" in why]
    same = [index for index, one in enumerate(pool) if one.top1 == 75.0]
    assert best == same[0]
