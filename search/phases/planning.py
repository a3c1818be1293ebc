"""``search plan``: measure this machine for a few seconds and say what a budget would buy."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from search.budget import count_cores
from search.plan import Plan, StepTimes, make_plan
from search.run_folder.settings import RunSettings
from search.workers.job import make_job
from search.workers.supernet_worker import SupernetWorker, compile_kernels
from supernet.data import ImageData, prepare_data
from supernet.recipes.recipe import load_recipe

# A network is trained alone for at most this share of the full recipe's epochs.
MAX_TRIAL_SHARE = 0.125


def plan_here(
    settings: RunSettings, *, devices: int | None, say: Callable[[str], None] | None = None
) -> tuple[Plan, Plan]:
    """Measure in this process; return the plan and that of twice the budget.

    Nothing is left behind.

    Args:
        settings: What was asked for.
        devices: How many; None takes this machine's.
        say: Told what images there are, line by line, before anything is measured.
    """
    import torch

    budget = settings.parsed_budget
    found = torch.cuda.device_count() if budget.device == "gpu" else count_cores()
    if not (devices or found):
        raise ValueError(
            "The budget counts gpu time, and this machine has no GPU to measure. "
            "Run `search plan` on a machine that has one, or give a cpu budget."
        )
    space = settings.load_space()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(
            settings.data,
            img_size=space.img_size,
            folder=Path(folder) / "data",
            reads_content=False,
        )
        if say is not None:
            for line in data.lines():
                say(line)
        compile_kernels()
        started = time.monotonic()
        job = make_job(settings, Path(folder), data)
        times = SupernetWorker(job, threads=1 if budget.device == "cpu" else 4).measure()
        # In a run with a supernet, all devices are held meanwhile.
        held = (devices or found) if settings.strategy == "supernet" else 1
        measured = (time.monotonic() - started) * held
    plan, twice = (
        plan_from_times(
            settings,
            times,
            data,
            devices=devices or found,
            measured_seconds=measured,
            times_budget=factor,
        )
        for factor in (1.0, 2.0)
    )
    return plan, twice


def plan_from_times(
    settings: RunSettings,
    times: StepTimes,
    data: ImageData,
    *,
    devices: int,
    measured_seconds: float,
    times_budget: float = 1.0,
) -> Plan:
    """Split the budget of the settings (or a multiple of it) with measured times."""
    retrain = load_recipe(settings.retrain_recipe)
    num_images = data.sizes["train"] + data.sizes["search"]
    return make_plan(
        budget_seconds=settings.parsed_budget.amount_seconds * times_budget,
        devices=devices,
        measured_seconds=measured_seconds,
        supernet_step=times.supernet_step,
        trial_step_seconds=times.trial_steps,
        judge_seconds=times.judge,
        steps_per_epoch=times.steps_per_epoch,
        max_epochs=max(int(retrain.epochs * MAX_TRIAL_SHARE), 1),
        retrain_steps=retrain.total_epochs * num_images // retrain.batch_size,
        fixed_shares=settings.shares,
        strategy=settings.strategy,
    )
