"""Laws of large plans: phases get what they need, and words say what is not sensible."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from search.cli.options import RECIPE_HELP
from search.phases import planning
from search.phases.planning import TimesFrom, plan_here
from search.phases.step_times import read_times, write_times
from search.plan import (
    SHARES,
    Plan,
    PlanInputs,
    StepTimes,
    device_rate,
    idle_devices,
    make_plan,
    more_text,
    plan_warnings,
    supernet_batch,
)
from search.results.fidelity import (
    describe_fidelity,
    fidelity_height,
    is_trained_alone,
    rung_fidelities,
    trained_alone,
)
from search.run_folder.settings import LARGE_PIXELS, RunSettings
from supernet.data.splits import split_pools

DAY = 86_400.0
IMAGES, BATCH = 1_280_000, 64
# Of one device, as GPU.md has them for an H100: 1,500 images/s.
STEP = BATCH / 1_500


def plan_of(
    days: float, *, devices: int = 64, trial_devices: int = 1, strategy: str = "supernet"
) -> Plan:
    batch = supernet_batch(devices)
    return make_plan(
        PlanInputs(
            budget_seconds=days * DAY,
            devices=devices,
            measured_seconds=120.0 * devices,
            supernet_step=batch / 1_500,
            trial_step_seconds=((1_000_000_000, STEP / 2), (4_300_000_000, STEP * 1.5)),
            judge_seconds=5.0,
            steps_per_epoch=IMAGES // BATCH,
            max_epochs=37,
            longest_epochs=300,
            retrain_steps=300 * IMAGES // BATCH,
            strategy=strategy,
            train_images=IMAGES,
            supernet_batch=batch,
            most_trial_devices=trial_devices,
        )
    )


def seconds_of(plan: Plan) -> dict[str, float]:
    ends = list(plan.spent_by_end.values())
    return dict(zip(plan.spent_by_end, [b - a for a, b in pairwise([0.0, *ends])], strict=True))


def test_fifty_gpu_days_train_a_supernet_for_hundreds_of_epochs_and_no_more() -> None:
    plan = plan_of(50)
    assert 100 <= plan.supernet_steps * 4_096 / IMAGES <= 300
    assert plan.supernet_epochs == pytest.approx(300, rel=0.01)
    # 300 epochs at 1,500 images/s, and what measuring took.
    assert seconds_of(plan)["supernet"] / DAY == pytest.approx(
        (300 * IMAGES / 1_500 + 120 * 64) / DAY, rel=0.01
    )


@pytest.mark.parametrize("strategy", SHARES)
@pytest.mark.parametrize("days", [0.5, 1, 5, 50, 500, 5_000])
@pytest.mark.parametrize("trial_devices", [1, 8])
def test_the_shares_are_the_budget(days: float, strategy: str, trial_devices: int) -> None:
    plan = plan_of(days, strategy=strategy, trial_devices=trial_devices)
    assert sum(seconds_of(plan).values()) == pytest.approx(days * DAY)
    assert all(seconds >= 0 for seconds in seconds_of(plan).values())
    assert len(set(plan.rungs)) == len(plan.rungs)
    assert list(plan.rungs) == sorted(plan.rungs)
    assert plan.rungs[-1] == plan.trial_epochs <= 300
    assert plan.trust_rung in plan.rungs
    assert plan.images_of(plan.trust_rung) == 1
    assert all(1 <= plan.devices_of(rung) <= trial_devices for rung in plan.rungs)
    kept = TypeAdapter(Plan).dump_json(plan)
    assert TypeAdapter(Plan).validate_json(kept) == plan


@pytest.mark.parametrize("trial_devices", [1, 8])
def test_more_budget_never_means_shorter_trainings(trial_devices: int) -> None:
    plans = [
        plan_of(days, trial_devices=trial_devices)
        for days in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
    ]
    for less, more in pairwise(plans):
        assert more.supernet_steps >= less.supernet_steps
        assert more.trial_epochs >= less.trial_epochs
        assert seconds_of(more)["promote"] > seconds_of(less)["promote"]
        assert more.num_judged >= less.num_judged - 1


def test_several_devices_allow_long_trainings_of_which_none_takes_all_the_time() -> None:
    plan = plan_of(50, trial_devices=8)
    lowest, middle, top = plan.rungs
    assert top >= 100
    assert middle == top // 3
    assert plan.rung_images == (0.25, 1.0, 1.0)
    assert plan.devices_of(top) == 8
    wall = seconds_of(plan)["promote"] / 64
    for epochs in plan.rungs:
        images = IMAGES * epochs * plan.images_of(epochs)
        assert images / 1_500 / plan.devices_of(epochs) <= wall / 4 * 1.01
    # The quarter of the images makes the lowest rung cheaper than a ninth of the top.
    assert lowest * 0.25 <= top / 9
    assert plan.num_promoted >= 10


def test_every_device_has_a_network_in_the_trust_phase() -> None:
    plan = plan_of(50)
    assert plan.num_trust == 64
    assert idle_devices(plan)["trust"] == 0
    trial = plan.trust_rung * IMAGES / 1_500
    assert plan.num_trust * trial <= 0.16 * 50 * DAY


@pytest.mark.parametrize("devices", [8, 64, 512])
@pytest.mark.parametrize("days", [50, 5_000])
def test_trust_trainings_come_in_waves_and_no_rung_waits_long_for_its_devices(
    days: float, devices: int
) -> None:
    plan = plan_of(days, devices=devices, trial_devices=8)
    together = plan.devices_of(plan.trust_rung)
    assert plan.num_trust * together >= 2 * devices
    held = [plan.devices_of(rung) for rung in plan.rungs]
    assert all(above <= 2 * below for below, above in pairwise(held))
    assert plan.num_trust * plan.trial_seconds(plan.trust_rung) <= 0.17 * days * DAY


@pytest.mark.parametrize(("recipe", "expected"), [("quick_224", 8), ("quick", 1)])
def test_a_trial_has_a_shard_for_each_of_its_devices(recipe: str, expected: int) -> None:
    settings = RunSettings(data="digits", budget="50gpu-days", trial_recipe=recipe)
    found = planning._most_trial_devices(settings, num_images=IMAGES)
    assert found == expected


def test_small_budgets_keep_their_shares() -> None:
    given = {
        "budget_seconds": 600.0,
        "devices": 2,
        "measured_seconds": 10.0,
        "supernet_step": 0.15,
        "trial_step_seconds": ((60_000, 0.02), (7_000_000, 0.2)),
        "judge_seconds": 0.2,
        "steps_per_epoch": 16,
        "max_epochs": 10,
        "retrain_steps": 1_000,
    }
    by_shares = make_plan(PlanInputs(**given))  # type: ignore[arg-type]
    with_images = make_plan(PlanInputs(**given, train_images=1_079, longest_epochs=80))  # type: ignore[arg-type]
    assert with_images.spent_by_end == by_shares.spent_by_end
    for name in ("supernet_steps", "rungs", "num_trust", "num_promoted", "num_judged"):
        assert getattr(with_images, name) == getattr(by_shares, name)
    assert not with_images.is_large


def test_the_supernets_batch_grows_with_its_devices_up_to_4096() -> None:
    assert [supernet_batch(n) for n in (1, 2, 64, 512)] == [64, 128, 4_096, 4_096]


def test_a_rung_says_of_which_images_it_is() -> None:
    plan = plan_of(50, trial_devices=8)
    names = list(rung_fidelities(plan))
    assert names[0] == f"train-{plan.rungs[0]}e-of-25%"
    assert names[1:] == [f"train-{epochs}e" for epochs in plan.rungs[1:]]
    assert all(is_trained_alone(name) for name in names)
    assert sorted(names, key=fidelity_height) == names
    assert describe_fidelity(trained_alone(32, 0.25)) == (
        "trained alone for 32 epochs of 25 % of the images"
    )


def test_what_is_not_sensible_is_said() -> None:
    assert plan_warnings(plan_of(50, trial_devices=8)) == []
    (late,) = plan_warnings(plan_of(50))  # on one device a long training outlasts the others
    assert "devices will wait for the last ones" in late
    assert "fewer than 20" in plan_warnings(plan_of(0.5, devices=8))[0]
    words = " ".join(plan_warnings(plan_of(4, devices=512)))
    assert "of 512 devices have nothing to do" in words
    (starved,) = plan_warnings(plan_of(50, trial_devices=8), feed_rate=250.0)
    assert "its processes make 250" in starved
    assert device_rate(plan_of(50)) == pytest.approx(1_500, rel=0.01)


def test_more_budget_is_described_by_what_grows() -> None:
    less, more = plan_of(50), plan_of(60)
    text = more_text(less, more)
    assert f"{more.num_promoted:,} for {more.trial_epochs} epochs" in text
    assert "shared weights" not in text  # they have their 300 epochs already
    assert more_text(less, less) == "nothing: every phase has what it needs"


TIMES = StepTimes(
    supernet_step=0.1,
    trial_steps=((60_000, 0.02), (7_000_000, 0.2)),
    judge=0.2,
    steps_per_epoch=16,
    device_name="a device",
    batch_size=64,
    supernet_batch=64,
    judged_images=359,
    amp="bf16",
    versions="torch 2",
)


def test_times_travel_as_a_file(tmp_path: Path) -> None:
    write_times(tmp_path / "times.json", TIMES)
    assert read_times(tmp_path / "times.json") == TIMES
    plan = plan_here(
        RunSettings(data="digits", budget="50gpu-hours"),
        devices=8,
        times_from=TimesFrom(times=tmp_path / "times.json"),
    ).plan
    assert plan.devices == 8
    # A step of 8 shards takes 8 times as many device-seconds as one of a shard.
    assert plan.supernet_batch == 8 * 64


def test_times_of_other_networks_are_said_to_be_a_guess(tmp_path: Path) -> None:
    large = replace(TIMES, trial_steps=((600_000_000, 0.02), (7_000_000_000, 0.2)))
    said = {}
    for name, times in (("own", TIMES), ("large", large)):
        write_times(tmp_path / name, times)
        said[name] = list[str]()
        plan_here(
            RunSettings(data="digits", budget="50gpu-hours"),
            devices=8,
            times_from=TimesFrom(times=tmp_path / name),
            say=said[name].append,
        )
    assert not [line for line in said["own"] if "guess" in line]
    (line,) = [line for line in said["large"] if "guess" in line]
    assert "networks of 600M to 7.00G MACs, and digits has networks of" in line


@pytest.mark.parametrize(
    ("wrong", "source", "said"),
    [
        ({"retrain_recipe": "nope"}, {}, "Unknown recipe 'nope'"),
        ({}, {"profile": "H100"}, "Did you mean 'h100'"),
        ({"budget": "1cpu-hour"}, {"profile": "h100"}, "is of a gpu"),
        ({}, {"times": Path("gone.json")}, r"no run or file 'gone\.json'"),
    ],
)
def test_what_is_asked_is_looked_up_before_images_are_read(
    wrong: dict[str, Any], source: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr("search.phases.planning.prepare_data", read)
    settings = RunSettings(**({"data": "digits", "budget": "50gpu-hours"} | wrong))
    with pytest.raises(ValueError, match=said):
        plan_here(settings, devices=8, times_from=TimesFrom(**source))


@pytest.mark.parametrize("text", ["[]", "{}", '{"kind": "mixer-search step times"}', "{"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text(text)
    with pytest.raises(ValueError, match=r"times\.json"):
        read_times(tmp_path / "times.json")


def test_a_login_node_is_told_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    settings = RunSettings(data="digits", budget="50gpu-days")
    with pytest.raises(ValueError, match=r"--ray-address.*--times.*--device h100"):
        plan_here(settings, devices=64)
    made = plan_here(settings, devices=64, times_from=TimesFrom(profile="h100"))
    assert made.plan.devices == 64
    assert "estimate" in made.times.source
    with pytest.raises(ValueError, match="Give one of them"):
        TimesFrom(profile="h100", times=Path("run"))
    with pytest.raises(ValueError, match="is of a gpu"):
        plan_here(
            RunSettings(data="digits", budget="1cpu-hour"),
            devices=2,
            times_from=TimesFrom(profile="h100"),
        )


def test_recipes_follow_the_size_of_the_images() -> None:
    def names(**given: object) -> tuple[str, ...]:
        made = RunSettings(data="images", budget="1gpu-day", **given)  # type: ignore[arg-type]
        return made.supernet_recipe, made.trial_recipe, made.retrain_recipe

    large = ("supernet_224", "quick_224", "swin_300e:tiny")
    assert names(space="swin_t") == names(img_size=224) == large
    assert names() == names(space="swin_t", img_size=32) == ("supernet", "quick", "micro")
    assert names(space="swin_t", trial_recipe="quick")[1] == "quick"
    # And the help of --recipe says so.
    digits = RunSettings(data="digits", budget="1gpu-day").retrain_recipe
    assert RECIPE_HELP.endswith(
        f"default: {names()[2]}, or {digits} for --data digits; "
        f"from {LARGE_PIXELS} pixels on {large[2]}."
    )
    assert names(img_size=LARGE_PIXELS) == large != names(img_size=LARGE_PIXELS - 1)


@pytest.mark.parametrize(
    ("count", "searched"), [(100_000, 10_000), (1_280_000, 25_600), (4_000_000, 50_000)]
)
def test_large_sets_hold_out_more(count: int, searched: int) -> None:
    import numpy as np

    names, labels = [str(i) for i in range(count + 10)], np.arange(count + 10) % 10
    pools = {"train": np.arange(count), "val": np.arange(count, count + 10)}
    found = split_pools(pools, names=names, labels=labels, class_names=[str(i) for i in range(10)])
    assert len(found["search"]) == searched
