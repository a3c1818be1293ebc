"""The horizon's part of a plan: only where there is time for it, and from the climb alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from search.plan import Plan, PlanInputs, make_plan

RECIPE = 80


def plan_of(budget_seconds: float, **more: Any) -> Plan:
    values: dict[str, Any] = {
        "devices": 2,
        "measured_seconds": 10,
        "supernet_step": 0.1,
        # An epoch takes 0.5 device-seconds.
        "trial_step_seconds": ((100_000, 0.02), (1_000_000, 0.03)),
        "judge_seconds": 0.3,
        "steps_per_epoch": 20,
        "max_epochs": 10,
        "retrain_steps": 1_000,
        "recipe_epochs": RECIPE,
    }
    return make_plan(PlanInputs(budget_seconds=budget_seconds, **(values | more)))


def seconds_of(plan: Plan) -> dict[str, float]:
    ends = [0.0, *plan.spent_by_end.values()]
    return {p: b - a for p, (a, b) in zip(plan.spent_by_end, pairwise(ends), strict=True)}


@pytest.mark.parametrize("strategy", ["supernet", "proxy", "zero-cost"])
def test_a_small_budget_is_split_as_without_a_horizon(strategy: str) -> None:
    assert plan_of(120, strategy=strategy) == replace(
        plan_of(120, strategy=strategy, recipe_epochs=0), recipe_epochs=RECIPE
    )


@pytest.mark.parametrize("budget", [900, 2_000, 10_000])
@pytest.mark.parametrize("strategy", ["supernet", "proxy", "zero-cost"])
def test_the_horizon_is_paid_for_by_the_climb(strategy: str, budget: float) -> None:
    plan = plan_of(budget, strategy=strategy)
    without = seconds_of(plan_of(budget, strategy=strategy, recipe_epochs=0))
    now = seconds_of(plan)
    climb = "search" if strategy == "proxy" else "promote"

    # At least the five networks of an interval, to a quarter or half of the recipe.
    assert plan.num_horizon >= 5
    assert plan.horizon_epochs in (RECIPE // 4, RECIPE // 2)
    assert now["horizon"] >= plan.num_horizon * plan.horizon_epochs * 0.5
    assert now["horizon"] <= 0.12 * budget
    assert now[climb] + now["horizon"] == pytest.approx(without[climb])
    others = {phase: now[phase] for phase in without if phase != climb}
    assert others == pytest.approx({p: s for p, s in without.items() if p != climb})
    assert list(plan.spent_by_end.values())[-1] == pytest.approx(budget)


def test_the_longer_half_is_taken_where_there_is_time_for_it() -> None:
    assert plan_of(900).horizon_epochs == RECIPE // 4
    assert plan_of(10_000).horizon_epochs == RECIPE // 2


def test_a_share_that_the_user_fixed_is_kept_or_given_up() -> None:
    assert "horizon" not in plan_of(2_000, fixed_shares={"horizon": 0}).spent_by_end
    fixed = plan_of(2_000, fixed_shares={"horizon": 0.2})
    assert seconds_of(fixed)["horizon"] == pytest.approx(400)
    # Too little for five networks: the climb has it.
    assert "horizon" not in plan_of(900, fixed_shares={"horizon": 0.01}).spent_by_end
    # What it has no use for goes to phases whose share is not fixed.
    both = seconds_of(plan_of(900, fixed_shares={"horizon": 0.01, "promote": 0.3}))
    assert "horizon" not in both
    assert both["promote"] == pytest.approx(270)
    assert sum(both.values()) == pytest.approx(900)


def test_rungs_that_reach_a_quarter_of_the_recipe_need_no_horizon() -> None:
    assert plan_of(10_000, recipe_epochs=40).horizon_epochs == 0
    assert plan_of(10_000, recipe_epochs=41).horizon_epochs > 10
