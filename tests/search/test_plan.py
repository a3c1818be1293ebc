"""Laws of the plan: shares add up to the budget, work grows with it, too little is refused."""

from __future__ import annotations

import json

import pytest

from search.plan import PHASES, SHARES, Plan, StepModel, make_plan

POINTS = ((8_000_000, 0.1), (16_000_000, 0.3), (10_000_000, 0.15))


def plan_of(budget_seconds: float, devices: int = 2) -> Plan:
    return make_plan(
        budget_seconds=budget_seconds,
        devices=devices,
        measured_seconds=10,
        supernet_step=0.6,
        trial_step_seconds=POINTS,
        judge_seconds=0.3,
        steps_per_epoch=16,
        max_epochs=30,
        retrain_steps=1000,
    )


def test_the_phases_share_the_whole_budget() -> None:
    plan = plan_of(600)
    assert sum(SHARES.values()) == pytest.approx(1)
    assert list(plan.until) == list(SHARES)
    assert plan.until["finish"] == pytest.approx(600)
    assert set(SHARES) < set(PHASES)


@pytest.mark.parametrize("budget", [300, 600, 3600, 86_400])
def test_planned_work_fits_in_its_share(budget: float) -> None:
    plan = plan_of(budget)
    trial = StepModel(POINTS)(sum(macs for macs, _ in POINTS) / 3) * plan.trial_steps
    assert plan.supernet_steps * 0.6 + 10 <= SHARES["supernet"] * budget
    assert plan.num_trust * trial <= SHARES["trust"] * budget * 1.001
    assert plan.num_promoted * trial <= SHARES["promote"] * budget * 1.001
    assert plan.num_judged * 0.3 <= SHARES["search"] * budget * 1.001


def test_more_budget_buys_longer_trainings_and_then_more_of_them() -> None:
    small, medium, large = plan_of(300), plan_of(1200), plan_of(100_000)
    assert small.trial_epochs < medium.trial_epochs < large.trial_epochs == 30
    assert large.num_promoted > medium.num_promoted


def test_a_budget_below_one_training_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(ValueError, match=r"too small.*Give at least (\d+)"):
        plan_of(20)


def test_a_plan_survives_the_record() -> None:
    plan = plan_of(600)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_step_model_is_the_line_through_its_points() -> None:
    model = StepModel([(10, 1.0), (20, 2.0), (30, 3.0)])
    assert model(25) == pytest.approx(2.5)
    assert model(0) == pytest.approx(0.5)  # never below half of the quickest


def test_seconds_never_fall_with_macs() -> None:
    model = StepModel([(10, 3.0), (20, 1.0)])
    assert model(10) == model(20) == pytest.approx(2.0)
