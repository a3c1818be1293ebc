"""``search plan``: what a budget would buy, by times measured here, on a cluster or elsewhere."""

from __future__ import annotations

import math
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search.budget import count_cores
from search.phases.step_times import (
    DeviceProfile,
    profile_times,
    read_profile,
    read_times,
    times_for,
)
from search.plan import MAX_EPOCHS, Plan, PlanInputs, StepTimes, make_plan
from search.run_folder import (
    DATA,
    GRAFT,
    MENTOR,
    BuildsTeacher,
    RunSettings,
    check_settings,
    keep_mentor,
)
from search.terminal import format_count
from search.workers import compile_kernels, work_of
from searchspace.cost import count
from searchspace.space import SearchSpace
from supernet.data import ImageData, prepare_data
from supernet.data.dense import SearchedData, prepare_searched
from supernet.recipes import load_dense_recipe, load_recipe
from supernet.shared_weights import most_devices, recipe_of_group

# In a small search a network is trained for at most this share of the full recipe's epochs.
MAX_TRIAL_SHARE = 0.125
# Healing is short, and what is promoted in a graft is healed for up to so much of it.
MAX_HEALING_SHARE = 0.5
# Of the devices that train one network together: a usual node has so many. Each takes shards of the
# recipe's batches, so that a network is trained the same on any number of them.
MOST_TRIAL_DEVICES = 8
# Networks with up to so many times the MACs of others are taken for those of the same space: heads
# of other numbers of classes.
ALIKE_MACS = 1.5
# What ``twice the budget`` and ``ten more gpu-days`` are asked with.
MORE_DAYS, DAY = 10, 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TimesFrom:
    """Where times come from; at most one is given, and without any this machine is measured.

    Attributes:
        ray_address: A cluster, one device of which is held for as long as it is measured.
        times: A run's folder, or a file of times.
        profile: Name or file of a device's profile: estimates.
        storage: From which the cluster's nodes read images; None takes the current folder.
    """

    ray_address: str | None = None
    times: Path | None = None
    profile: str | None = None
    storage: str | None = None

    def __post_init__(self) -> None:
        given = {"--ray-address": self.ray_address, "--times": self.times, "--device": self.profile}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ValueError(
                f"{' and '.join(names)} each say where the times come from. Give one of them."
            )
        if self.storage is not None and self.ray_address is None:
            raise ValueError(
                f"--storage {self.storage!r} is where the nodes of a cluster read images. Add "
                "--ray-address, or leave it out."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What ``search plan`` shows.

    Attributes:
        plan: Of the budget.
        twice: Of twice the budget.
        times: By which it was planned.
    """

    plan: Plan
    twice: Plan
    times: StepTimes


def plan_here(
    settings: RunSettings,
    *,
    devices: int | None,
    times_from: TimesFrom | None = None,
    say: Callable[[str], None] | None = None,
    teacher: BuildsTeacher | None = None,
) -> Planned:
    """Find out what steps take, and plan the budget and twice as much. Nothing is left behind.

    Args:
        settings: What was asked for.
        devices: How many; None takes this machine's, or the cluster's.
        times_from: Where times come from; None measures in this process.
        say: Told what images there are, line by line, before anything is measured.
        teacher: Builds what the settings name as ``taught_by``, for their images.

    Raises:
        ValueError: If there is nothing to measure, and no times are given.
    """
    source = times_from or TimesFrom()
    # All of it before images are read, which may take long.
    space = check_settings(settings)
    given = _look_for_times(settings, source)
    found = devices_here(settings, source)
    # Data in the current folder can be seen by the nodes of a cluster, as a run's folder can.
    where = "." if source.ray_address and not settings.storage else None
    with tempfile.TemporaryDirectory(prefix="search-plan-", dir=where) as text:
        folder = Path(text)
        data = _prepared(settings, folder / DATA)
        if say is not None:
            for line in data.lines():
                say(line)
        settings = keep_mentor(settings, folder, teacher)
        started = time.monotonic()
        if source.ray_address is not None:
            times, found = measure_on_cluster(settings, folder, data, source.ray_address)
        elif given is not None:
            times = _given_times(settings, given, source, data)
            if say is not None and (other := _of_other_networks(times, space)):
                say(other)
        else:
            compile_kernels()
            started = time.monotonic()
            times = _measured_here(settings, folder, data, devices or found)
        took = time.monotonic() - started
        # In a run with a supernet, all devices are held meanwhile.
        held = (devices or found) if settings.strategy == "supernet" else 1
        plan, twice = (
            plan_from_times(
                settings,
                times,
                data,
                devices=devices or found,
                measured_seconds=took * held,
                times_budget=factor,
            )
            for factor in (1.0, 2.0)
        )
    return Planned(plan=plan, twice=twice, times=times)


def _look_for_times(settings: RunSettings, source: TimesFrom) -> StepTimes | DeviceProfile | None:
    """Read the times of a run or a file, or a profile to estimate them by; None to measure."""
    if source.times is not None:
        return read_times(source.times)
    if source.profile is None:
        return None
    if not settings.classifies:
        raise ValueError(
            f"The profiles of devices are of classifiers, got --task {settings.task}. "
            "Measure here, or take the times of a run or a file with --times."
        )
    if settings.taught_by:
        raise ValueError(
            f"The profiles of devices know no teachers, got --teacher {settings.taught_by}."
            " Measure here, or take the times of a run with this teacher with --times."
        )
    return read_profile(source.profile, settings)


def _given_times(
    settings: RunSettings,
    given: StepTimes | DeviceProfile,
    source: TimesFrom,
    data: ImageData | SearchedData,
) -> StepTimes:
    """Take times that were read, or estimate them by a profile."""
    if isinstance(given, StepTimes):
        assert source.times is not None
        _check_times_teacher(given, settings, source.times)
        return given
    assert isinstance(data, ImageData)
    return profile_times(given, settings, settings.load_space(), data)


def _of_other_networks(times: StepTimes, space: SearchSpace) -> str | None:
    """Say that times are of networks of other sizes than those of a space."""
    if not times.trial_steps:
        return None
    macs = [macs for macs, _ in times.trial_steps]
    measured = (min(macs), max(macs))
    asked = tuple(count(space.extreme("macs", largest=largest)).macs for largest in (False, True))
    pairs = zip(measured, asked, strict=True)
    if all(max(pair) <= ALIKE_MACS * min(pair) for pair in pairs):
        return None
    theirs, ours = (" to ".join(map(format_count, pair)) for pair in (measured, asked))
    return (
        f"These times were measured with networks of {theirs} MACs, and {space.name} has networks "
        f"of {ours}: the plan is a guess. Measure this space to know."
    )


def _measured_here(
    settings: RunSettings, folder: Path, data: ImageData | SearchedData, devices: int
) -> StepTimes:
    job, worker_class = _measuring(settings, folder, data, devices)
    worker = worker_class(job, threads=1 if settings.parsed_budget.device == "cpu" else 4)
    times: StepTimes = worker.measure()
    if settings.strategy == "supernet":
        return replace(times, supernet_step=worker.measure_supernet())
    return times


def _check_times_teacher(times: StepTimes, settings: RunSettings, where: Path) -> None:
    """Refuse times of steps with another teacher: its part of a step may be most of it."""
    if times.teacher != settings.mentor:
        theirs = "a teacher" if times.teacher else "no teacher"
        mine = f"--teacher {settings.taught_by}" if settings.taught_by else "no --teacher"
        raise ValueError(
            f"{where} has the times of steps with {theirs}, and the plan is asked with {mine}, "
            "which is not the same. Name the teacher of these times, or measure here."
        )


def _prepared(settings: RunSettings, folder: Path) -> ImageData | SearchedData:
    """Read the images of the task; those of classifiers only as far as a plan needs them."""
    if not settings.classifies:
        return prepare_searched(settings.data, settings.task, seed=settings.seed, folder=folder)
    img_size = settings.load_space().img_size
    return prepare_data(settings.data, img_size=img_size, folder=folder, reads_content=False)


def _measuring(
    settings: RunSettings, folder: Path, data: ImageData | SearchedData, devices: int
) -> tuple[Any, type]:
    """Return the job of so many devices, and the class of its workers."""
    work = work_of(settings)
    assert work.for_group is not None
    job, _ = work.for_group(work.make_job(settings, folder, data), data, devices)
    return job, work.supernet_worker


def devices_here(settings: RunSettings, source: TimesFrom) -> int:
    """Count this machine's devices of the kind that the budget counts.

    Raises:
        ValueError: If it has none to measure, and no times are given.
    """
    import torch

    is_gpu = settings.parsed_budget.device == "gpu"
    found = torch.cuda.device_count() if is_gpu else count_cores()
    if not found and source == TimesFrom():
        raise ValueError(
            f"The budget {settings.budget!r} counts gpu time, and this machine has no GPU to "
            "measure. Measure one of a cluster with --ray-address ADDRESS, take the times of a run "
            "or a file with --times RUN, or estimates with --device h100, a100 or rtx4090."
        )
    return max(found, 1)


def measure_on_cluster(
    settings: RunSettings, folder: Path, data: ImageData | SearchedData, address: str
) -> tuple[StepTimes, int]:
    """Measure on one device of a cluster, and let it go.

    Returns:
        The times, and the cluster's devices.

    Raises:
        ValueError: If there is no such cluster, or it has no such device.
    """
    from search.cluster import Cluster, call

    if settings.storage:
        # A folder of its own: the storage may be that of a run.
        settings = replace(settings, storage=f"{settings.storage}/plan-{uuid.uuid4().hex[:8]}")
    with Cluster(device=settings.parsed_budget.device, address=address) as cluster:
        devices = cluster.devices
        job, worker_class = _measuring(settings, folder, data, devices)
        try:
            if not job.files.has(DATA):
                job.files.publish(DATA, folder / DATA)
            if settings.mentor and not job.files.has(MENTOR):
                job.files.publish(MENTOR, folder / MENTOR)
            with cluster.actors(worker_class, job, 1) as (worker,):
                times: StepTimes = call(worker, "measure", while_waiting=lambda: None)
                if settings.strategy == "supernet":
                    step = call(worker, "measure_supernet", while_waiting=lambda: None)
                    times = replace(times, supernet_step=step)
        finally:
            if settings.storage:
                job.files.remove(DATA)
                job.files.remove(MENTOR)
    return times, devices


def plan_from_times(
    settings: RunSettings,
    times: StepTimes,
    data: ImageData | SearchedData,
    *,
    devices: int,
    measured_seconds: float,
    times_budget: float = 1.0,
    most_scored: int = 0,
    supernet_devices: int | None = None,
) -> Plan:
    """Split the budget of the settings (or a multiple of it) by what steps take.

    Args:
        most_scored: Of a graft, see `PlanInputs`.
        supernet_devices: That the supernet is begun on, which its batch is of; None for all.
    """
    lengths = _lengths(settings, data, supernet_devices or devices)
    train_images = data.sizes["train"] + settings.num_unlabelled
    batch = lengths.supernet_batch
    times = times_for(times, data, batch, train_images=train_images)
    retrain_steps = lengths.retrain_steps
    if times.batch_size:  # a step takes as long as its images do
        retrain_steps = retrain_steps * lengths.retrain_batch // times.batch_size
    given = PlanInputs(
        budget_seconds=settings.parsed_budget.amount_seconds * times_budget,
        devices=devices,
        measured_seconds=measured_seconds,
        supernet_step=times.supernet_step,
        trial_step_seconds=times.trial_steps,
        judge_seconds=times.judge,
        steps_per_epoch=times.steps_per_epoch,
        max_epochs=lengths.max_epochs,
        retrain_steps=retrain_steps,
        fixed_shares=settings.shares,
        strategy=settings.strategy,
        train_images=train_images,
        supernet_batch=batch,
        longest_epochs=lengths.longest_epochs,
        most_trial_devices=_most_trial_devices(settings, num_images=train_images),
        # Networks of a graft begin with weights: how their order changes is another question.
        recipe_epochs=0 if settings.strategy == GRAFT else lengths.recipe_epochs,
        most_scored=most_scored,
    )
    return replace(make_plan(given), num_unlabelled=settings.num_unlabelled)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lengths:
    """What the recipes of a run say about a plan.

    Attributes:
        max_epochs: That a trial is trained for in a small search.
        longest_epochs: Likewise in a large one.
        recipe_epochs: Of the full recipe of classifiers; 0 for others.
    """

    supernet_batch: int
    retrain_batch: int
    retrain_steps: int
    max_epochs: int
    longest_epochs: int
    recipe_epochs: int = 0


def _lengths(settings: RunSettings, data: ImageData | SearchedData, devices: int) -> _Lengths:
    num_images = data.sizes["train"] + data.sizes["search"]
    if not settings.classifies:
        dense = load_dense_recipe(settings.trial_recipe)
        steps = dense.total_steps(max(num_images // dense.batch_size, 1))
        # Of recipes that are short already a trial may take all.
        epochs = max(math.ceil(steps * dense.batch_size / num_images), 1)
        return _Lengths(
            supernet_batch=dense.batch_size,
            retrain_batch=dense.batch_size,
            retrain_steps=steps,
            max_epochs=epochs,
            longest_epochs=min(epochs, MAX_EPOCHS),
        )
    retrain = load_recipe(settings.retrain_recipe)
    # Parts learn in batches of the recipe, on however many devices.
    grows = settings.parsed_budget.device == "gpu" and settings.strategy != GRAFT
    recipe = load_recipe(settings.supernet_recipe)
    batch = recipe_of_group(recipe, data.sizes["train"], devices, grows=grows).batch_size
    share = MAX_HEALING_SHARE if settings.strategy == GRAFT else MAX_TRIAL_SHARE
    return _Lengths(
        supernet_batch=batch,
        retrain_batch=retrain.batch_size,
        retrain_steps=retrain.total_epochs * num_images // retrain.batch_size,
        max_epochs=max(int(retrain.epochs * share), 1),
        longest_epochs=min(retrain.total_epochs, MAX_EPOCHS),
        recipe_epochs=retrain.total_epochs,
    )


def _most_trial_devices(settings: RunSettings, *, num_images: int) -> int:
    """Return how many devices may train one network: there is a shard of its batches for each."""
    if not settings.classifies:
        return 1
    recipe = load_recipe(settings.trial_recipe)
    if recipe.bad_loss == "rollback" and settings.storage:
        return 1  # all of them would go back to a checkpoint, which one node has
    return min(MOST_TRIAL_DEVICES, most_devices(recipe, num_images))
