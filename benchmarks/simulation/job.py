"""The job that is simulated: ImageNet, and what its steps take on a device."""

from __future__ import annotations

import random
from functools import cache

from benchmarks.simulation.devices import DAY
from search.plan import Plan, PlanInputs, StepModel, make_plan, supernet_batch
from search.record import Measured
from search.scheduling.tasks import TrialTask
from searchspace.spec_file import load_space

# Devices that may train one network together, and what they lose then: no plan knows.
TRIAL_DEVICES, TOGETHER = 8, 1.05
# ImageNet after its search split is held out; a step of 64 images alone takes 19 to 56 ms.
TRAIN_IMAGES = 1_255_544
STEPS = ((1_000_000_000, 0.019), (4_500_000_000, 0.056))
STEPS_PER_EPOCH = TRAIN_IMAGES // 64
SUPERNET_RATE = 1500.0
# 25,623 images at 6,000 a second, and the network's own statistics.
JUDGE_SECONDS = 6.0


_MACS: dict[str, int] = {}


def macs_of(task: TrialTask) -> int:
    """Count MACs, scaled from the small space to the job's sizes."""
    from searchspace.cost import count

    key = task.architecture.key
    if key not in _MACS:
        _MACS[key] = count(task.architecture).macs
    return _MACS[key]


@cache
def step_points() -> tuple[tuple[int, float], ...]:
    """Return (MACs, seconds of a step alone) of the small space, with the job's seconds."""
    from searchspace.cost import count

    space = load_space("micro").replace(num_classes=10)
    ends = (space.extreme("macs", largest=largest) for largest in (False, True))
    return tuple((count(a).macs, s) for a, (_, s) in zip(ends, STEPS, strict=True))


@cache
def step_model() -> StepModel:
    """Return what steps really take on a device at the planned pace."""
    return StepModel(step_points())


def plan_for(
    devices: int, gpu_days: float, *, pace: float = 1.0, trial_devices: int = TRIAL_DEVICES
) -> Plan:
    """Plan the job, for trainings that are so many times slower than measured."""
    batch = supernet_batch(devices)
    return make_plan(
        PlanInputs(
            budget_seconds=gpu_days * DAY,
            devices=devices,
            measured_seconds=devices * 120.0,
            supernet_step=batch / SUPERNET_RATE,
            trial_step_seconds=tuple((macs, s * pace) for macs, s in step_points()),
            judge_seconds=JUDGE_SECONDS,
            steps_per_epoch=STEPS_PER_EPOCH,
            max_epochs=37,
            retrain_steps=STEPS_PER_EPOCH * 300,
            train_images=TRAIN_IMAGES,
            supernet_batch=batch,
            longest_epochs=300,
            most_trial_devices=trial_devices,
        )
    )


def values_of(rng: random.Random, architecture: object, noise: float) -> Measured:
    """Make up an accuracy."""
    top1 = min(max(rng.gauss(70, noise), 0.0), 100.0)
    return Measured(top1=top1, correct=round(top1 * 500), total=50_000)
