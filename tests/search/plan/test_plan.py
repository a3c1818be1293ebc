"""Laws of the plan: shares add up to the budget, work grows with it, too little is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from search.phases.planning import plan_from_times
from search.plan import (
    PHASES,
    SHARES,
    Plan,
    PlanInputs,
    StepModel,
    StepTimes,
    climbing_phase,
    make_plan,
    revise_plan,
    split_shares,
)
from search.plan.revising import _hand_out
from search.run_folder.settings import RunSettings
from search.workers.graft_worker import GRAFT_WORK
from supernet.recipes.recipe import load_recipe
from tests.tiny_data import noise, tiny_data

SUPERNET = SHARES["supernet"]
# As documented: more judgements hardly move a front, and the last judge takes seconds to start.
MAX_JUDGED, MIN_FINISH_SECONDS = 20_000, 12.0
POINTS = ((8_000_000, 0.1), (16_000_000, 0.3), (10_000_000, 0.15))


def plan_of(
    budget_seconds: float,
    devices: int = 2,
    strategy: str = "supernet",
    *,
    shares: Mapping[str, float] | None = None,
    max_epochs: int = 30,
    scored: int = 0,
) -> Plan:
    return make_plan(
        PlanInputs(
            budget_seconds=budget_seconds,
            devices=devices,
            measured_seconds=10,
            supernet_step=0.6,
            trial_step_seconds=POINTS,
            judge_seconds=0.3,
            steps_per_epoch=16,
            max_epochs=max_epochs,
            retrain_steps=1000,
            strategy=strategy,
            fixed_shares=shares,
            most_scored=scored,
        )
    )


def seconds_of(plan: Plan) -> dict[str, float]:
    """Return the device-seconds of each phase."""
    ends = list(plan.spent_by_end.values())
    return dict(zip(plan.spent_by_end, [b - a for a, b in pairwise([0.0, *ends])], strict=True))


@pytest.mark.parametrize("strategy", SHARES)
def test_the_phases_of_a_strategy_share_the_whole_budget(strategy: str) -> None:
    plan = plan_of(600, strategy=strategy)
    assert sum(SHARES[strategy].values()) == pytest.approx(1)
    assert list(plan.spent_by_end) == list(SHARES[strategy])
    assert list(plan.spent_by_end.values())[-1] == pytest.approx(600)
    assert set(SHARES[strategy]) < set(PHASES)


@pytest.mark.parametrize("strategy", ["proxy", "zero-cost"])
def test_a_strategy_plans_no_work_for_phases_that_it_has_not(strategy: str) -> None:
    plan = plan_of(3600, strategy=strategy)
    trial = StepModel(POINTS)(sum(macs for macs, _ in POINTS) / 3) * plan.trial_steps
    climb = climbing_phase(strategy)
    before = {"search": 0.0, "promote": plan.spent_by_end["search"]}[climb]
    assert plan.supernet_steps == 0
    assert (plan.num_judged == 0, plan.num_trust == 0) == (strategy == "proxy",) * 2
    assert 0 < plan.num_promoted * trial * len(plan.rungs) <= plan.spent_by_end[climb] - before
    # Trials that still run are told to end within a hundredth of the budget, or two seconds each.
    assert plan.last_call_seconds == 3600 - 4.0
    assert plan_of(300, strategy=strategy).last_call_seconds == pytest.approx(297)


def test_networks_that_train_alone_get_what_the_supernet_would_have_had() -> None:
    supernet, proxy = plan_of(20_000), plan_of(20_000, strategy="proxy")
    assert proxy.trial_epochs == supernet.trial_epochs == 30
    assert proxy.num_promoted > 2 * supernet.num_promoted


def test_a_graft_compares_its_estimates_on_more_and_shorter_trainings() -> None:
    # Six networks, as a run on CIFAR-10 had, leave tau an interval as wide as what it can be.
    plan = plan_of(500, strategy="graft")
    alone = SHARES["graft"]["trust"] + SHARES["graft"]["promote"]
    epoch = StepModel(POINTS)(sum(macs for macs, _ in POINTS) / 3) * 16
    for_others = int(alone * 500 / epoch / 15)
    assert plan.num_trust >= 10
    assert 1 <= plan.trial_epochs <= for_others
    assert plan_of(500, strategy="zero-cost").num_trust < 10


def test_scores_of_parts_get_the_time_of_as_many_judgements_as_there_are() -> None:
    # 96 judgements took 1.2 minutes of a graft's 45, of which scores had 5.4 by the share.
    by_share, known = plan_of(4000, strategy="graft"), plan_of(4000, strategy="graft", scored=96)
    before, given = seconds_of(by_share), seconds_of(known)
    assert given["score"] == pytest.approx(2 * 96 * 0.3 + 2 * MIN_FINISH_SECONDS)
    moved = before["score"] - given["score"]
    assert given["promote"] == pytest.approx(before["promote"] + moved)
    assert known.num_scored >= 2 * 96
    # Where there are more parts than the share pays for, it stays what it was.
    assert plan_of(4000, strategy="graft", scored=9_000).planned == by_share.planned


def test_a_share_of_a_phase_that_the_strategy_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--strategy zero-cost, shares are given to trust, hor"):
        split_shares(1000, {"supernet": 0.5}, strategy="zero-cost")
    with pytest.raises(ValueError, match="leave something for the other phases"):
        split_shares(1000, {"search": 0.5}, strategy="proxy")


def test_a_phase_that_has_spent_what_was_planned_gets_nothing_more() -> None:
    plan = plan_of(1000)
    names = list(plan.spent_by_end)
    spent = dict(plan.planned)
    for name in names[names.index("search") + 1 :]:
        spent[name] = 0.0
    spent["search"] += 40.0  # judged before the plan was revised, and more than planned
    revised = revise_plan(plan, after="supernet", spent=spent)
    assert revised.spent_by_end["search"] == revised.spent_by_end["supernet"] == sum(spent.values())


def test_a_plan_without_a_finish_is_revised() -> None:
    plan = plan_of(1000, strategy="zero-cost")
    revised = revise_plan(plan, after="trust", spent={"measure": 5.0, "trust": 145.0})
    assert revised.spent_by_end["promote"] == pytest.approx(1000)
    planned = plan.spent_by_end["search"] - plan.spent_by_end["trust"]
    assert revised.spent_by_end["search"] - revised.spent_by_end["trust"] == pytest.approx(
        planned * 850 / 650
    )


@pytest.mark.parametrize("budget", [300, 600, 3600, 86_400])
def test_planned_work_fits_in_its_share(budget: float) -> None:
    plan = plan_of(budget)
    trial = StepModel(POINTS)(sum(macs for macs, _ in POINTS) / 3) * plan.trial_steps
    assert plan.supernet_steps * 0.6 + 10 <= SUPERNET["supernet"] * budget
    assert plan.num_trust * trial <= SUPERNET["trust"] * budget * 1.001
    assert plan.num_promoted * trial <= SUPERNET["promote"] * budget * 1.001
    assert plan.num_judged * 0.3 <= SUPERNET["search"] * budget * 1.001


def test_more_budget_buys_longer_trainings_and_then_more_of_them() -> None:
    small, medium, large = plan_of(300), plan_of(1200), plan_of(100_000)
    assert small.trial_epochs < medium.trial_epochs < large.trial_epochs == 30
    assert large.num_promoted > medium.num_promoted


def test_a_plan_survives_the_record() -> None:
    plan = plan_of(600)
    assert TypeAdapter(Plan).validate_json(TypeAdapter(Plan).dump_json(plan)) == plan


def test_the_step_model_is_the_line_through_its_points() -> None:
    model = StepModel([(10, 1.0), (20, 2.0), (30, 3.0)])
    assert model(25) == pytest.approx(2.5)
    assert model(0) == pytest.approx(0.5)  # never below half of the quickest


def test_seconds_never_fall_with_macs() -> None:
    model = StepModel([(10, 3.0), (20, 1.0)])
    assert model(10) == model(20) == pytest.approx(2.0)


def test_shares_that_the_user_fixed_are_kept_and_the_others_fill_the_rest() -> None:
    shares = split_shares(100_000, {"supernet": 0.5, "trust": 0})
    assert shares["supernet"] == 0.5
    assert shares["trust"] == 0
    assert sum(shares.values()) == pytest.approx(1)
    ratio = SUPERNET["promote"] / SUPERNET["search"]
    assert shares["promote"] / shares["search"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    "fixed", [{"supernet": 1.0}, {"trust": -0.1}, {"nap": 0.1}, {"search": 0.6, "promote": 0.4}]
)
def test_shares_that_leave_nothing_are_refused(fixed: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="leave something for the other phases"):
        split_shares(1000, fixed)


@pytest.mark.parametrize("strategy", SHARES)
def test_a_share_of_nothing_is_refused_where_no_budget_would_be_enough(strategy: str) -> None:
    for phase in SHARES[strategy]:
        if len(SHARES[strategy]) == 1:
            continue  # it has all
        if phase in ("trust", "finish"):
            assert plan_of(1e5, strategy=strategy, shares={phase: 0.0}).num_promoted
            continue
        with pytest.raises(ValueError, match=f"without its phase {phase}, got the share {phase}=0"):
            split_shares(1e5, {phase: 0.0}, strategy=strategy)


def test_every_rung_is_three_times_longer_than_the_one_below_and_takes_the_same_time() -> None:
    assert plan_of(300).rungs == (plan_of(300).trial_epochs,)
    plan = plan_of(1_000_000)
    assert plan.rungs == (3, 10, 30)
    trial = StepModel(POINTS)(sum(macs for macs, _ in POINTS) / 3) * plan.trial_steps
    share = plan.spent_by_end["promote"] - plan.spent_by_end["search"]
    assert plan.num_promoted * trial * 3 == pytest.approx(share, rel=0.01)


def test_on_many_devices_trials_are_short_enough_to_keep_them_all_busy() -> None:
    plan = plan_of(100_000, devices=500)
    trial = StepModel(POINTS)(sum(macs for macs, _ in POINTS) / 3) * plan.trial_steps
    trials = (plan.spent_by_end["promote"] - plan.spent_by_end["search"]) / trial
    assert plan.trial_epochs < plan_of(100_000).trial_epochs
    assert trials + (plan.spent_by_end["trust"] - plan.spent_by_end["supernet"]) / trial >= 2 * 500


def test_what_a_phase_left_over_is_shared_by_the_phases_to_come() -> None:
    plan = plan_of(1000)
    spent = {"measure": 10.0, "supernet": 150.0}
    revised = revise_plan(plan, after="supernet", spent=spent)
    finish = plan.spent_by_end["finish"] - plan.spent_by_end["promote"]
    left, before = 1000 - 160 - finish, 1000 - plan.spent_by_end["supernet"] - finish
    for phase, earlier in (("trust", "supernet"), ("search", "trust"), ("promote", "search")):
        planned = plan.spent_by_end[phase] - plan.spent_by_end[earlier]
        now = revised.spent_by_end[phase] - revised.spent_by_end[earlier]
        assert now == pytest.approx(planned * left / before)
    assert revised.spent_by_end["finish"] == pytest.approx(1000)


def test_a_share_that_the_user_fixed_is_not_revised() -> None:
    plan = plan_of(1000)
    revised = revise_plan(plan, after="supernet", spent={"supernet": 100.0}, fixed=["search"])
    planned = plan.spent_by_end["search"] - plan.spent_by_end["trust"]
    assert revised.spent_by_end["search"] - revised.spent_by_end["trust"] == pytest.approx(planned)
    assert revised.spent_by_end["finish"] == pytest.approx(1000)


def test_what_a_phase_to_come_has_used_before_counts_against_its_share() -> None:
    plan = plan_of(2000)  # a run of 1000, finished, was given 1000 more
    spent = {"supernet": 360.0, "trust": 160.0, "search": 120.0, "promote": 330.0, "finish": 30.0}
    revised = revise_plan(plan, after="trust", spent=spent)
    assert revised.spent_by_end["trust"] == pytest.approx(1000)
    assert revised.spent_by_end["finish"] == pytest.approx(2000)
    assert all(
        revised.spent_by_end[b] >= revised.spent_by_end[a]
        for a, b in pairwise(revised.spent_by_end)
    )


@given(
    strategy=st.sampled_from(sorted(SHARES)),
    more=st.sampled_from([1.0, 1.2, 1.5, 2.0, 3.0]),
    spent=st.lists(st.floats(0.0, 500.0), min_size=len(PHASES), max_size=len(PHASES)),
    fixed=st.sets(st.sampled_from(["trust", "search", "promote"])),
    start=st.sampled_from([0.0, 5.0, 200.0]),
)
def test_all_that_is_left_is_given_to_the_phases_to_come_whatever_was_spent(
    strategy: str, more: float, spent: list[float], fixed: set[str], start: float
) -> None:
    plan = plan_of(1000 * more, strategy=strategy)
    used = dict(zip(PHASES, spent, strict=True))
    used = {name: used[name] for name in ("measure", *SHARES[strategy])}
    *phases, _ = SHARES[strategy]

    for phase in phases:  # as a run does: one revision after the other
        plan = revise_plan(plan, after=phase, spent=used, fixed=fixed, start_seconds=start)

        total = sum(used.values())
        ends = list(plan.spent_by_end.values())
        assert ends[-1] == pytest.approx(max(1000 * more, total))
        assert all(b >= a - 1e-6 for a, b in pairwise(ends))
        assert TypeAdapter(Plan).validate_json(TypeAdapter(Plan).dump_json(plan)) == plan


def test_a_run_that_had_overspent_gives_what_it_gets_to_training() -> None:
    # 200 s became 220 s by kills; with 300 s, 80 are left, of which searching has used its share.
    plan = plan_of(300, strategy="zero-cost")
    spent = {"measure": 20.0, "trust": 66.0, "search": 26.0, "promote": 108.0}
    plan = revise_plan(plan, after="trust", spent=spent)
    spent["search"] += plan.spent_by_end["search"] - 220.0

    plan = revise_plan(plan, after="search", spent=spent)

    assert plan.spent_by_end["promote"] == pytest.approx(300)
    assert plan.spent_by_end["search"] == pytest.approx(sum(spent.values()))
    assert 80 > plan.spent_by_end["promote"] - plan.spent_by_end["search"] > 60


def test_dearer_trials_than_measured_mean_fewer() -> None:
    plan = plan_of(100_000)
    fewer = revise_plan(plan, after="search", spent={"supernet": 60_000.0}, trial_seconds=1e4)
    assert fewer.num_promoted == int(
        (fewer.spent_by_end["promote"] - fewer.spent_by_end["search"]) / 1e4 / len(plan.rungs)
    )


def test_the_finish_keeps_what_its_judge_takes_to_start() -> None:
    plan = plan_of(1000)

    revised = revise_plan(plan, after="search", spent={"search": 500.0}, start_seconds=40.0)

    assert revised.spent_by_end["finish"] - revised.spent_by_end["promote"] == pytest.approx(
        1.5 * 40.0
    )
    assert revised.spent_by_end["finish"] == pytest.approx(1000)


TRIAL_STEP = StepModel(POINTS)(sum(macs for macs, _ in POINTS) / 3)


def test_a_share_that_the_user_fixed_decides_the_phase_and_the_work_in_it() -> None:
    budget, shares = 10_000.0, {"promote": 0.6, "trust": 0.05}
    plan = plan_of(budget, shares=shares)
    seconds = seconds_of(plan)
    assert seconds["promote"] == pytest.approx(6_000)
    assert seconds["trust"] == pytest.approx(500)
    # The finish keeps its share; supernet and search have the rest in proportion.
    assert seconds["finish"] == pytest.approx(300)
    assert seconds["supernet"] == pytest.approx(3_200 * 0.36 / 0.48)
    assert seconds["search"] == pytest.approx(3_200 * 0.12 / 0.48)
    trial = TRIAL_STEP * plan.trial_steps
    assert plan.num_promoted == int(6_000 / trial / len(plan.rungs))
    assert plan.num_trust == min(int(500 / trial), 24)
    assert plan.supernet_steps == int((seconds["supernet"] - 10) / 0.6)
    assert plan.num_judged == int(seconds["search"] / 0.3)


def test_a_run_is_planned_with_the_shares_that_were_asked_for(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, *noise(24, 8))
    times = StepTimes(supernet_step=0.1, trial_steps=POINTS, judge=0.3, steps_per_epoch=4)
    for strategy, phase in (("supernet", "supernet"), ("zero-cost", "trust")):
        settings = RunSettings(
            data="digits", budget="2cpu-hours", strategy=strategy, shares={phase: 0.5}
        )
        plan = plan_from_times(settings, times, data, devices=2, measured_seconds=1.0)
        assert plan.spent_by_end[phase] == pytest.approx(3_600)
        twice = plan_from_times(
            settings, times, data, devices=2, measured_seconds=1.0, times_budget=2.0
        )
        assert twice.spent_by_end[phase] == pytest.approx(7_200)


def test_the_batch_of_a_plan_is_that_of_the_devices_that_the_supernet_is_begun_on(
    tmp_path: Path,
) -> None:
    """Others may hold a part of a cluster; what is measured and trained then is a smaller batch."""
    data = tiny_data(tmp_path, *noise(520, 8))
    settings = RunSettings(data="digits", budget="1gpu-hours")
    times = StepTimes(
        supernet_step=0.1,
        trial_steps=POINTS,
        judge=0.3,
        steps_per_epoch=4,
        supernet_batch=128,  # of two devices
    )
    whole, part = (
        plan_from_times(
            settings, times, data, devices=8, measured_seconds=1.0, supernet_devices=devices
        )
        for devices in (None, 2)
    )
    assert (whole.supernet_batch, part.supernet_batch) == (512, 128)
    # A batch of four times as many images takes four times as long, and fewer are enough.
    assert part.supernet_steps == pytest.approx(4 * whole.supernet_steps, rel=0.01)


def test_parts_of_a_graft_learn_in_batches_that_do_not_grow(tmp_path: Path) -> None:
    """On however many devices: each takes some of the parts, and all of the batch."""
    data = tiny_data(tmp_path, *noise(4_200, 8))
    settings = RunSettings(
        data="digits", budget="20gpu-minutes", strategy="graft", graft_from="a", teacher="a"
    )
    batch = load_recipe(settings.supernet_recipe).batch_size
    times = StepTimes(
        supernet_step=10.0, trial_steps=POINTS, judge=0.3, steps_per_epoch=4, supernet_batch=batch
    )
    # Of twenty minutes parts have six, and steps of 64 devices' batches would take ten.
    plan = plan_from_times(settings, times, data, devices=64, measured_seconds=1.0)
    assert plan.supernet_batch == batch
    job: Any = object()
    assert GRAFT_WORK.for_group is not None
    assert GRAFT_WORK.for_group(job, data, 64) == (job, 64)


@pytest.mark.parametrize("strategy", ["supernet", "zero-cost"])
def test_what_judging_cannot_use_is_for_promotion(strategy: str) -> None:
    budget = 1e6
    plan, planned = plan_of(budget, strategy=strategy), SHARES[strategy]
    seconds = seconds_of(plan)
    # Each judgement takes 0.3 s, and there are no more than so many.
    most = MAX_JUDGED * 0.3
    assert most < planned["search"] * budget
    capped = [phase for phase in ("search", "finish") if phase in planned]
    for phase in planned:
        expected = planned[phase] * budget
        if phase in capped:
            assert seconds[phase] == pytest.approx(most)
        elif phase == "promote":
            spare = sum(planned[name] * budget - most for name in capped)
            assert seconds[phase] == pytest.approx(expected + spare)
        else:
            assert seconds[phase] == pytest.approx(expected)
    assert plan.num_judged == pytest.approx(MAX_JUDGED, abs=1)


def test_what_the_user_fixed_is_not_taken_as_spare() -> None:
    budget = 1e6
    seconds = seconds_of(plan_of(budget, shares={"search": 0.3}))
    assert seconds["search"] == pytest.approx(0.3 * budget)
    assert seconds["finish"] == pytest.approx(MAX_JUDGED * 0.3)
    fixed = seconds_of(plan_of(budget, shares={"promote": 0.1}))
    assert fixed["promote"] == pytest.approx(0.1 * budget)
    assert sum(fixed.values()) == pytest.approx(budget)


def test_a_small_budget_leaves_the_finish_time_to_start_its_judge() -> None:
    assert seconds_of(plan_of(300))["finish"] == pytest.approx(MIN_FINISH_SECONDS)
    shares = seconds_of(plan_of(300, shares={"finish": 0.01}))
    assert shares["finish"] == pytest.approx(3.0)


@pytest.mark.parametrize("max_epochs", [1, 2, 3, 8, 9, 30])
@pytest.mark.parametrize("budget", [400, 3_000, 30_000, 1e6, 1e8])
@pytest.mark.parametrize("strategy", SHARES)
def test_every_rung_trains_and_is_a_third_of_the_one_above(
    budget: float, max_epochs: int, strategy: str
) -> None:
    plan = plan_of(budget, strategy=strategy, max_epochs=max_epochs)
    assert plan.rungs[-1] == plan.trial_epochs <= max_epochs
    assert plan.rungs[0] >= 1
    for lower, higher in pairwise(plan.rungs):
        assert lower == higher // 3
    # As many as epochs allow, up to three, while ten networks or so reach the highest.
    allowed = sum(plan.trial_epochs >= 3**below for below in range(3))
    assert len(plan.rungs) <= allowed
    if budget == 1e8:
        assert len(plan.rungs) == allowed
    if len(plan.rungs) > 1:
        assert plan.num_promoted >= 20


@pytest.mark.parametrize("strategy", SHARES)
def test_the_least_budget_that_is_named_is_enough_and_hardly_more(strategy: str) -> None:
    with pytest.raises(ValueError, match=r"too small.*Give at least (\d+)") as refused:
        plan_of(4, strategy=strategy)
    found = re.search(r"Give at least (\d+)", str(refused.value))
    assert found is not None
    least = int(found[1])
    assert plan_of(least, strategy=strategy).trial_epochs == 1
    # An epoch alone, and what measuring took, each over the share of its phase.
    epoch = TRIAL_STEP * 16
    if strategy == "proxy":
        assert least == math.floor(epoch + 10) + 1
        with pytest.raises(ValueError, match="too small"):
            plan_of(least - 1, strategy=strategy)
    if strategy == "zero-cost":
        assert least == math.floor(max(epoch / 0.55, 10 / 0.35)) + 1


def test_trainings_are_as_long_as_leaves_time_for_two_dozen_of_them() -> None:
    """A third to compare rankings with, the others are promoted; more where devices are more."""
    epoch = TRIAL_STEP * 16
    for budget, devices, fewest in ((500, 2, 24), (2_000, 2, 24), (2_000, 15, 30), (300, 2, 24)):
        plan = plan_of(budget, devices=devices)
        finish = max(0.03 * budget, MIN_FINISH_SECONDS)
        share = (0.16 + 0.33) / (0.36 + 0.16 + 0.12 + 0.33) * (budget - finish)
        assert plan.trial_epochs == int(share / (fewest * epoch))
        assert plan.num_trust >= 8
    assert plan_of(100, strategy="zero-cost").trial_epochs == 1


def test_a_ranking_gets_two_dozen_networks_or_one_a_device() -> None:
    assert plan_of(1e6).num_trust == 24
    assert plan_of(1e6, devices=100).num_trust == 100
    assert plan_of(1e7, devices=30).num_trust == 30


def test_a_full_retraining_costs_its_steps() -> None:
    smallest, largest = plan_of(1_000).retrain_seconds
    # The least squares line through the points, at their ends.
    line = StepModel(POINTS)
    assert smallest == pytest.approx(1_000 * line(8_000_000))
    assert largest == pytest.approx(1_000 * line(16_000_000))
    slope = (-10 / 3 * -0.25 / 3 + 14 / 3 * 0.35 / 3 + -4 / 3 * -0.1 / 3) / ((100 + 196 + 16) / 9)
    assert line(16_000_000) - line(8_000_000) == pytest.approx(8 * slope)


def test_trials_that_still_run_leave_the_last_judge_its_time() -> None:
    plan = plan_of(1_000)
    assert plan.last_call_seconds == pytest.approx(1_000 - 12)
    # A finish that got less than that is all that is left to it.
    short = plan_of(1_000, shares={"finish": 0.005})
    assert short.last_call_seconds == pytest.approx(1_000 - 5)


def test_an_epoch_of_the_supernet_is_every_image_once() -> None:
    plan = replace(plan_of(1000), supernet_steps=6, supernet_batch=2)
    assert [replace(plan, train_images=n).supernet_epochs for n in (1, 4, 12)] == [12, 3, 1]


def test_a_phase_that_has_just_enough_for_its_work_has_enough() -> None:
    """A quarter of 1,000 seconds is one judgement of 250."""

    def plan(judge_seconds: float) -> Plan:
        return make_plan(
            PlanInputs(
                budget_seconds=1000,
                devices=2,
                measured_seconds=0,
                supernet_step=0.5,
                trial_step_seconds=POINTS,
                judge_seconds=judge_seconds,
                steps_per_epoch=16,
                max_epochs=30,
                retrain_steps=1000,
                fixed_shares={"search": 0.25},
            )
        )

    assert plan(250.0).num_judged == 1
    with pytest.raises(ValueError, match="too small"):
        plan(250.1)


def test_what_is_left_is_for_all_where_the_finish_would_take_it() -> None:
    """The finish keeps its seconds where something remains for the others; of 10, 10 leave none."""
    wanted = {"promote": 5.0, "finish": 10.0}
    assert _hand_out(10.0, wanted, kept={"finish"}) == pytest.approx(
        {"promote": 10 / 3, "finish": 20 / 3}
    )
    assert _hand_out(11.0, wanted, kept={"finish"}) == {"promote": 1.0, "finish": 10.0}
