"""Whole plans against the rules that they follow, written down once more and slowly.

Random budgets, machines and spaces; the rules are those of the comments of `search.plan` and of
docs/planning.md, with least squares by numpy and counts found by trying.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from search.plan import Plan, PlanInputs, StepTimes, make_plan, revise_plan
from search.plan.rungs import _devices_for

PLANNED = {
    "supernet": {"supernet": 0.36, "trust": 0.16, "search": 0.12, "promote": 0.33, "finish": 0.03},
    "proxy": {"search": 1.0},
    "zero-cost": {"trust": 0.35, "search": 0.1, "promote": 0.55},
}
DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a plan is made of."""

    strategy: str
    budget_seconds: float
    devices: int
    measured_seconds: float
    supernet_step: float
    trial_step_seconds: tuple[tuple[int, float], ...]
    judge_seconds: float
    steps_per_epoch: int
    max_epochs: int
    retrain_steps: int
    train_images: int = 0
    supernet_batch: int = 64
    longest_epochs: int | None = None
    most_trial_devices: int = 1
    fixed_shares: dict[str, float] = field(default_factory=dict)


def shares_of(case: Case) -> dict[str, float]:
    """What the user fixed stays, the finish has twelve seconds, the others are in proportion."""
    planned, fixed = PLANNED[case.strategy], case.fixed_shares
    kept = dict(fixed)
    if "finish" in planned and "finish" not in fixed:
        least = max(0.03, 12 / case.budget_seconds)
        kept["finish"] = min(least, (1 - sum(fixed.values())) / 2)
    weights = {name: share for name, share in planned.items() if name not in kept}
    rest = 1 - sum(kept.values())
    if not weights:
        kept["finish"] += rest
    return {
        name: kept[name] if name in kept else rest * weights[name] / sum(weights.values())
        for name in planned
    }


def move_spare(case: Case, seconds: dict[str, float], needs: dict[str, float]) -> None:
    """What a phase cannot use is for promotion, unless the user fixed one of them."""
    if "promote" in case.fixed_shares:
        return
    for phase, need in needs.items():
        if phase in seconds and phase not in case.fixed_shares and seconds[phase] > need:
            seconds["promote"] += seconds[phase] - need
            seconds[phase] = need


def step_seconds(case: Case, macs: float) -> float:
    """The rising line of least squares, never below half of the quickest."""
    x, y = np.array(case.trial_step_seconds).T
    slope, start = np.polyfit(x, y, 1) if len(set(x)) > 1 else (0.0, y.mean())
    if slope < 0:
        slope, start = 0.0, y.mean()
    return max(float(slope * macs + start), min(y) / 2)


def rungs_of(epochs: int, trials: float) -> list[int]:
    """Each a third of the one above, as many as three, while twenty networks reach each."""
    if epochs >= 9 and trials / 3 >= 20:
        return [epochs // 9, epochs // 3, epochs]
    return [epochs // 3, epochs] if epochs >= 3 and trials / 2 >= 20 else [epochs]


def devices_for(seconds: float, limit: float, most: int) -> int:
    """The fewest of 1, 2, 4, ... that end within the limit; the most where none does."""
    powers = [2**n for n in range(20) if 2**n <= most]
    return next((n for n in powers if seconds / n <= limit), powers[-1])


def near(devices: list[int]) -> tuple[int, ...]:
    """No rung has fewer than half of the devices of the one above."""
    for n in reversed(range(len(devices) - 1)):
        devices[n] = max(devices[n], devices[n + 1] // 2, 1)
    return tuple(devices)


def expected_plan(case: Case) -> dict[str, Any]:
    """Follow the rules; what makes a budget too small is under ``needed``."""
    budget, devices = case.budget_seconds, case.devices
    seconds = {name: share * budget for name, share in shares_of(case).items()}
    first = next(iter(seconds))
    climb = "search" if case.strategy == "proxy" else "promote"
    most_steps = 0
    if case.train_images and case.strategy == "supernet":
        most_steps = max(int(300 * case.train_images / case.supernet_batch), 20_000)
    if climb == "promote":
        judging = max(20_000 * case.judge_seconds, 12.0)
        needs = {"search": judging, "finish": judging}
        if most_steps:
            steps = (most_steps + 1) * case.supernet_step
            needs["supernet"] = steps + case.measured_seconds
        move_spare(case, seconds, needs)
    macs = [m for m, _ in case.trial_step_seconds]
    epoch = case.steps_per_epoch * step_seconds(case, sum(macs) / len(macs))
    shares = dict(seconds)
    seconds[first] -= case.measured_seconds
    trust, climbing = seconds.get("trust", 0.0), seconds[climb]

    passes = (trust + climbing) / epoch
    # Trials that there is time for: a third of them to compare rankings with, where there is one.
    fewest = max({"proxy": 15, "graft": 30}.get(case.strategy, 24), 2 * devices)
    epochs = max(1, min(int(passes / fewest), case.max_epochs))
    is_large = passes * case.train_images >= 1e8
    longest = 0
    if is_large:
        longest = int(
            min(
                climbing / (3 * 12 * epoch),
                climbing / devices / 4 * case.most_trial_devices / epoch,
                case.longest_epochs or case.max_epochs,
                300,
            )
        )
    is_long = longest > epochs
    top = longest if is_long else epochs
    rungs, trust_epochs = rungs_of(top, climbing / (top * epoch)), top
    images: tuple[float, ...] = ()
    rung_devices: tuple[int, ...] = ()
    if is_long:
        images = (1.0,) * len(rungs)
        if top >= 27:
            middle = top // 3
            # A quarter of the images, for as long as the middle rung at most.
            rungs = [min(int(top // 9 / 0.25), middle - 1), middle, top]
            images, trust_epochs = (0.25, 1.0, 1.0), middle
        limit = climbing / devices / 4
        most = min(case.most_trial_devices, devices)
        rung_devices = near(
            [
                devices_for(e * share * epoch, limit, most)
                for e, share in zip(rungs, images, strict=True)
            ]
        )

    def used_by(epochs: int) -> int:
        return rung_devices[rungs.index(epochs)] if rung_devices and epochs in rungs else 1

    if is_large and trust:
        whole = [e for n, e in enumerate(rungs) if images and images[n] == 1] or rungs
        fitting = [
            e for e in whole if e <= trust_epochs and trust / (e * epoch) >= devices // used_by(e)
        ]
        trust_epochs = max(fitting) if fitting else min(whole)
        # On so many devices each that they come in two waves.
        together, number = used_by(trust_epochs), min(trust / epoch / trust_epochs, 24)
        most = min(case.most_trial_devices, devices)
        while 2 * together <= most and number * together < 2 * devices:
            together *= 2
        if together > 1:
            held = list(rung_devices or (1,) * len(rungs))
            held[rungs.index(trust_epochs)] = together
            rung_devices = near(held)
    wave = max(devices // used_by(trust_epochs), 1)
    most_trust = max(24, (2 if rung_devices else 1) * wave)
    num_trust = min(int(max(trust, 0) / epoch / trust_epochs), most_trust)
    if num_trust > max(24, wave):  # in whole waves
        num_trust = max(num_trust - num_trust % wave, 24)
    if is_large and trust:
        need = num_trust * trust_epochs * epoch + (first == "trust") * case.measured_seconds
        before = shares["promote"]
        move_spare(case, shares, {"trust": need})
        climbing += shares["promote"] - before
    least = {climb: top * epoch}
    if climb == "promote":
        least["search"] = case.judge_seconds
    if case.strategy == "supernet":
        least["supernet"] = 2 * case.supernet_step
    is_too_small = any(seconds[phase] < need for phase, need in least.items())
    least[first] = least.get(first, 0.0) + case.measured_seconds
    steps = 0
    if case.strategy == "supernet":
        steps = int(seconds["supernet"] / case.supernet_step)
        steps = min(steps, most_steps) if most_steps else steps
    return {
        "needed": max(least[p] / (shares[p] / budget) for p in least) if is_too_small else None,
        "seconds": shares,
        "trial_epochs": top,
        "trial_steps": top * case.steps_per_epoch,
        "rungs": tuple(rungs),
        "rung_images": images,
        "rung_devices": rung_devices,
        "trust_epochs": trust_epochs,
        "num_trust": num_trust,
        "num_promoted": int(climbing / (top * epoch) / len(rungs)),
        "num_judged": int(seconds["search"] / case.judge_seconds) if climb == "promote" else 0,
        "supernet_steps": steps,
        "most_supernet_steps": most_steps,
        "is_large": is_large,
        "supernet_batch": case.supernet_batch if case.train_images else 0,
        "retrain_seconds": tuple(
            case.retrain_steps * step_seconds(case, m) for m in (min(macs), max(macs))
        ),
    }


def random_case(seed: int) -> Case:
    """Draw a machine and a budget: every third one small, every third one with large images."""
    rng = random.Random(seed)
    strategy = ("supernet", "supernet", "proxy", "zero-cost")[rng.randrange(4)]
    is_large = seed % 3 > 0
    devices = rng.choice([1, 2, 8, 16, 64] if is_large else [1, 2, 3, 16])
    budget = 10 ** rng.uniform(0.0, 3.5) * DAY if is_large else 10 ** rng.uniform(0.5, 5.5)
    step = rng.uniform(0.01, 0.1)
    points = tuple((rng.randrange(10**7, 10**9), step * rng.uniform(0.5, 3)) for _ in range(3))
    planned = PLANNED[strategy]
    names = [name for name in planned if rng.random() < 0.25] if rng.random() < 0.5 else []
    names = names[: len(planned) - 1]
    return Case(
        strategy=strategy,
        budget_seconds=budget,
        devices=devices,
        measured_seconds=rng.uniform(1, 20) * devices,
        supernet_step=step * rng.uniform(1, 4) * devices,
        trial_step_seconds=points,
        judge_seconds=rng.uniform(0.05, 5.0),
        steps_per_epoch=rng.choice([4, 16, 500, 20_000]) if is_large else rng.randrange(1, 40),
        max_epochs=rng.randrange(1, 40),
        retrain_steps=rng.randrange(100, 10_000),
        train_images=rng.choice([50_000, 1_280_000]) if is_large else rng.choice([0, 1_000]),
        supernet_batch=64 * devices,
        longest_epochs=rng.choice([None, 20, 26, 27, 27, 90, 200, 400]),
        most_trial_devices=rng.choice([1, 2, 5, 8, 16]),
        fixed_shares={name: rng.uniform(0.02, 0.3) for name in names},
    )


def made(case: Case) -> Plan:
    return make_plan(
        PlanInputs(**{name: getattr(case, name) for name in case.__dataclass_fields__})
    )


@pytest.mark.parametrize("block", range(10))
def test_plans_follow_their_rules(block: int) -> None:
    for seed in range(60 * block, 60 * block + 60):
        case = random_case(seed)
        expected = expected_plan(case)
        needed = expected.pop("needed")
        if needed is not None:
            with pytest.raises(ValueError, match="too small") as refused:
                made(case)
            assert f"Give at least {math.floor(needed) + 1} device-seconds" in str(refused.value), (
                case
            )
            continue

        plan = made(case)

        seconds = expected.pop("seconds")
        ends = [0.0, *plan.spent_by_end.values()]
        assert list(plan.spent_by_end) == list(PLANNED[case.strategy])
        assert [b - a for a, b in pairwise(ends)] == pytest.approx(list(seconds.values())), case
        assert plan.planned == pytest.approx(seconds)
        assert ends[-1] == pytest.approx(case.budget_seconds)
        for name, value in expected.items():
            found = getattr(plan, name)
            if name == "retrain_seconds":
                value = pytest.approx(value)
            elif name == "num_judged" and value >= 19_999:
                value = pytest.approx(value, abs=1)  # just as long as they take, up to rounding
            assert found == value, (name, case)
        assert (plan.strategy, plan.devices) == (case.strategy, case.devices)
        assert (plan.judge_seconds, plan.budget_seconds) == (
            case.judge_seconds,
            case.budget_seconds,
        )
        assert plan.step_seconds == case.trial_step_seconds
        assert plan.train_images == case.train_images
        look_up(case, plan)


def test_the_cases_are_of_all_kinds() -> None:
    kinds: set[object] = set()
    for seed in range(600):
        expected = expected_plan(random_case(seed))
        if expected["needed"] is not None:
            kinds.add("refused")
            continue
        size = "large" if expected["is_large"] else "small"
        kinds |= {size, (size, len(expected["rungs"]))}
        kinds |= {
            ("images", expected["rung_images"]),
            ("devices", max(expected["rung_devices"], default=0)),
        }
    sizes = {(size, rungs) for size in ("small", "large") for rungs in (1, 2, 3)}
    assert {"refused", *sizes, ("images", (0.25, 1.0, 1.0)), ("images", (1.0,))} <= kinds
    assert {("devices", n) for n in (0, 1, 2, 4, 8)} <= kinds


def look_up(case: Case, plan: Plan) -> None:
    """What a plan says of a rung, and of one that it has not."""
    epoch = case.steps_per_epoch * step_seconds(
        case, sum(m for m, _ in plan.step_seconds) / len(plan.step_seconds)
    )
    images = plan.rung_images or (1.0,) * len(plan.rungs)
    devices = plan.rung_devices or (1,) * len(plan.rungs)
    for epochs, share, together in zip(plan.rungs, images, devices, strict=True):
        assert plan.images_of(epochs) == share
        assert plan.devices_of(epochs) == together
        assert plan.trial_seconds(epochs) == pytest.approx(epochs * epoch * share)
    assert (plan.images_of(1_000), plan.devices_of(1_000)) == (1.0, 1)
    macs = 3e8
    expected = plan.trial_steps * step_seconds(case, macs)
    assert plan.trial_seconds(plan.trial_epochs, macs) == pytest.approx(expected)
    assert plan.trust_rung == plan.trust_epochs
    seen = plan.supernet_steps * plan.supernet_batch
    assert plan.supernet_epochs == pytest.approx(
        seen / plan.train_images if plan.train_images else seen
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_is_left_is_shared_anew(seed: int) -> None:
    """What the phases to come were to have, less what they have used, in proportion."""
    rng = random.Random(f"revised {seed}")
    case = random_case(3 * seed)
    try:
        plan = made(case)
    except ValueError:
        return
    names = list(plan.spent_by_end)
    for after in names[:-1]:
        spent = {n: s * rng.uniform(0.5, 1.1) for n, s in plan.planned.items()}
        coming = names[names.index(after) + 1 :]
        spent = {n: s if n not in coming else s * rng.choice([0, 0, 0.1]) for n, s in spent.items()}
        spent["measure"] = rng.uniform(0, 5)
        start, trial, judge = rng.uniform(0, 20), rng.choice([None, 3.3]), rng.choice([None, 0.7])
        fixed = [name for name in coming if rng.random() < 0.2]

        revised = revise_plan(
            plan,
            after=after,
            spent=spent,
            fixed=fixed,
            trial_seconds=trial,
            judge_seconds=judge,
            start_seconds=start,
        )

        used = sum(spent.values())
        left = max(case.budget_seconds - used, 0.0)
        wanted = {n: max(plan.planned[n] - spent[n], 0.0) for n in coming}
        if "finish" in wanted:
            wanted["finish"] = max(wanted["finish"], 1.5 * start)
        kept = {n: s for n, s in wanted.items() if n in fixed or n == "finish"}
        if len(kept) == len(wanted) or sum(kept.values()) >= left:
            kept = {}
        shared = sum(wanted[n] for n in coming if n not in kept)
        amounts = {
            n: kept[n] if n in kept else (left - sum(kept.values())) * wanted[n] / shared
            for n in coming
        }
        ends = np.cumsum([used, *amounts.values()])
        done = names[: names.index(after) + 1]
        assert {n: revised.spent_by_end[n] for n in done} == pytest.approx(
            dict.fromkeys(done, used)
        )
        assert [revised.spent_by_end[n] for n in coming] == pytest.approx(list(ends[1:]))
        climb = "search" if case.strategy == "proxy" else "promote"
        promoted, judged = plan.num_promoted, plan.num_judged
        if trial is not None and climb in coming:
            promoted = int(amounts[climb] / trial / len(plan.rungs))
        if judge is not None and "search" in coming and climb == "promote":
            judged = int(amounts["search"] / judge)
            assert revised.judge_seconds == judge
        else:
            assert revised.judge_seconds == plan.judge_seconds
        assert (revised.num_promoted, revised.num_judged) == (promoted, judged)
        assert revised.planned == plan.planned
        assert not math.isnan(revised.last_call_seconds)


def test_what_is_not_known_of_a_plan_is_nothing() -> None:
    """Plans of older runs are without: all images, one device, the highest rung, no limits."""
    plan = Plan(
        budget_seconds=100.0,
        devices=1,
        spent_by_end={"search": 100.0},
        supernet_steps=0,
        judge_seconds=0.0,
        trial_epochs=9,
        trial_steps=90,
        rungs=(3, 9),
        num_trust=0,
        num_promoted=1,
        num_judged=0,
        step_seconds=((1_000, 0.5), (2_000, 0.5)),
        retrain_seconds=(1.0, 2.0),
    )
    assert (plan.strategy, plan.shares, plan.is_large) == ("supernet", {}, False)
    assert (plan.rung_images, plan.rung_devices, plan.trust_epochs) == ((), (), 0)
    assert (plan.train_images, plan.supernet_batch, plan.most_supernet_steps) == (0, 0, 0)
    assert [plan.images_of(epochs) for epochs in (3, 9)] == [1.0, 1.0]
    assert [plan.devices_of(epochs) for epochs in (3, 9)] == [1, 1]
    assert (plan.trust_rung, plan.supernet_epochs) == (9, 0.0)
    assert (plan.trial_seconds(9), plan.trial_seconds(3)) == (45.0, 15.0)
    times = StepTimes(supernet_step=1.0, trial_steps=(), judge=1.0, steps_per_epoch=1)
    numbers = (times.measured_seconds, times.batch_size, times.supernet_batch, times.judged_images)
    assert (*numbers, times.feed_rate) == (0, 0, 0, 0, 0)
    assert (times.device_name, times.amp, times.versions, times.source) == ("", "", "", "")


def test_what_is_not_said_of_a_budget_is_a_plan_by_shares_on_single_devices() -> None:
    known: dict[str, Any] = {
        "budget_seconds": 5_000.0,
        "devices": 2,
        "measured_seconds": 10.0,
        "supernet_step": 0.5,
        "trial_step_seconds": ((1_000, 0.1), (3_000, 0.4)),
        "judge_seconds": 0.3,
        "steps_per_epoch": 10,
        "max_epochs": 20,
        "retrain_steps": 100,
    }
    unsaid: dict[str, Any] = {
        "fixed_shares": {},
        "strategy": "supernet",
        "train_images": 0,
        "supernet_batch": 64,
        "longest_epochs": 20,
        "most_trial_devices": 1,
    }
    assert make_plan(PlanInputs(**known)) == make_plan(PlanInputs(**known, **unsaid))
    large = known | {"budget_seconds": 5e7, "devices": 16, "train_images": 10**6}
    assert make_plan(PlanInputs(**large)).is_large
    assert make_plan(PlanInputs(**large)) == make_plan(PlanInputs(**unsaid | large))
    revised = {"after": "trust", "spent": {"supernet": 500.0}}
    plan = make_plan(PlanInputs(**known))
    assert revise_plan(plan, **revised) == revise_plan(  # type: ignore[arg-type]
        plan,
        **revised,  # type: ignore[arg-type]
        fixed=(),
        trial_seconds=None,
        judge_seconds=None,
        start_seconds=0.0,
    )


def test_a_training_gets_as_many_devices_as_end_it_within_the_limit() -> None:
    assert [_devices_for(s, 100.0, 8) for s in (1, 100, 101, 200, 201, 400, 401, 9_999)] == [
        *(1, 1, 2, 2, 4, 4, 8, 8)
    ]
    assert [_devices_for(9_999, 100.0, most) for most in (1, 2, 3, 4, 7, 8, 9)] == [
        *(1, 2, 2, 4, 4, 8, 8)
    ]


def test_the_numbers_of_a_plan_are_the_documented_ones() -> None:
    """As `search plan` and docs/planning.md tell them: on round numbers, worked out by hand."""
    plan = make_plan(
        PlanInputs(
            budget_seconds=100_000.0,
            devices=4,
            measured_seconds=0.0,
            supernet_step=1.0,
            trial_step_seconds=((1_000, 0.1), (3_000, 0.1)),
            judge_seconds=1.0,
            steps_per_epoch=100,
            max_epochs=9,
            retrain_steps=5_000,
        )
    )
    assert plan.spent_by_end == pytest.approx(
        {
            "supernet": 36_000,
            "trust": 52_000,
            "search": 64_000,
            "promote": 97_000,
            "finish": 100_000,
        }
    )
    # An epoch takes 10 s; nine of them on the highest rung, for a third of 33,000 s.
    assert (plan.rungs, plan.trial_epochs, plan.trial_steps) == ((1, 3, 9), 9, 900)
    assert plan.num_promoted == 33_000 // 90 // 3 == 122
    assert plan.num_trust == 24
    assert plan.num_judged == 12_000
    assert plan.supernet_steps == 36_000
    assert plan.retrain_seconds == pytest.approx((500.0, 500.0))
    assert plan.last_call_seconds == 100_000 - 12
    zero_cost = make_plan(
        PlanInputs(
            budget_seconds=10_000.0,
            devices=4,
            measured_seconds=0.0,
            supernet_step=0.0,
            trial_step_seconds=((1_000, 0.1), (3_000, 0.1)),
            judge_seconds=0.1,
            steps_per_epoch=100,
            max_epochs=9,
            retrain_steps=5_000,
            strategy="zero-cost",
        )
    )
    assert zero_cost.spent_by_end == pytest.approx(
        {"trust": 3_500, "search": 4_500, "promote": 10_000}
    )
    assert zero_cost.last_call_seconds == 10_000 - 2 * 4
