"""`Job`: what a worker needs to know of a run; small and picklable."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from search.budget import count_cores
from search.record import Measured
from search.run_folder import DATA, MENTOR, Files, RunSettings, open_files
from search.workers.measured_costs import EAGER, measure_costs
from searchspace.architecture import Architecture
from searchspace.deployment import Deployment
from searchspace.latency_table import LatencyTable
from searchspace.space import SearchSpace
from supernet.data import ImageData, Split, open_data
from supernet.mixers import WeightSharing
from supernet.recipes import Recipe, load_recipe
from supernet.shared_weights import most_devices, recipe_of_group
from supernet.training import Teacher, read_teacher_files


@dataclass(frozen=True, kw_only=True, slots=True)
class RunJob:
    """What a worker needs to know of a run, of whatever task.

    Attributes:
        files: Where it finds the prepared data and the checkpoints.
        space: The space, with the classes of the data.
        strategy: What networks are judged by, see `search.plan.SHARES`.
        supernet_strategy: How the supernet is trained.
        sharing: What the choices of its blocks share.
        measured: Costs to measure of every network that is judged, of `search.results.objectives`.
        seed: Of the run.
        device: Torch device of one worker, ``cpu`` or ``cuda``.
        mentor_key: Of the folder of whom the networks learn from; empty for nobody.
    """

    files: Files
    space: SearchSpace
    strategy: str
    supernet_strategy: str
    sharing: WeightSharing
    measured: tuple[str, ...]
    seed: int
    device: str
    mentor_key: str = ""

    @property
    def loader_workers(self) -> int:
        """Processes that make batches for a worker, asked for where it runs.

        A GPU is fed by its part of its machine's cores. A worker on a core makes its own batches:
        every other core has a worker too.
        """
        return max(count_cores() // count_gpus(), 1) if self.device == "cuda" else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Job(RunJob):
    """What a worker needs to know of a run of classifiers.

    Attributes:
        supernet_recipe: For the shared weights.
        trial_recipe: For networks that are trained alone during the search.
        deployment: How networks will be run, for their latency.
        table: Latencies of the parts of networks on another device, instead of measuring here.
    """

    supernet_recipe: Recipe
    trial_recipe: Recipe
    deployment: Deployment = EAGER
    table: LatencyTable | None = None

    def open_data(self) -> ImageData:
        """Open the prepared images of the run."""
        return open_data(self.files.fetch(DATA))

    def mentor(self) -> Teacher | None:
        """Read whom the networks learn from, where there is somebody.

        Raises:
            ValueError: If it is not the one that the run began with.
        """
        key = self.mentor_key
        return read_teacher_files(self.files.fetch(MENTOR), key) if key else None

    def train_split(self, data: ImageData, share: float = 1.0) -> Split:
        """Return what networks that are trained alone learn on: a share of the training images."""
        return data.split("train").first(share)

    def measure_costs(self, network: nn.Module, architecture: Architecture) -> Measured:
        """Measure the costs of a network that the run weighs."""
        return measure_costs(
            network, architecture, self.measured, deployment=self.deployment, table=self.table
        )

    @property
    def eval_amp(self) -> str:
        """Precision in which networks are judged: on a GPU that of its matrix units."""
        return "bf16" if self.device == "cuda" else "none"


def set_up_process(job: RunJob, threads: int) -> None:
    """Give this process its CPU threads, and on a GPU the matrix units for float32 as well."""
    torch.set_num_threads(threads)
    if job.device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: 10 bits of 23 in products, not in sums


def for_group(job: Job, data: ImageData, devices: int) -> tuple[Job, int]:
    """Fit a job to the devices that its supernet is begun on.

    Returns:
        The job with the recipe of `recipe_of_group`, and how many devices can train together.
    """
    num_images = data.sizes["train"]
    recipe = recipe_of_group(job.supernet_recipe, num_images, devices, grows=job.device == "cuda")
    return replace(job, supernet_recipe=recipe), most_devices(recipe, num_images)


def count_gpus(
    listed: Path = Path("/proc/driver/nvidia/gpus"), devices: Path = Path("/dev")
) -> int:
    """Count the GPUs that share this machine's cores with this process, its own too; at least 1.

    Ray shows each worker its own GPU alone. A container or a job of Slurm has a part of the
    machine's GPUs, and of its cores: the others, which may be listed as well, cannot be opened.
    """
    found = len(list(listed.iterdir())) if listed.is_dir() else torch.cuda.device_count()
    opened = sum(_can_open(path) for path in devices.glob("nvidia[0-9]*"))
    return max(min(found, opened) if opened else found, 1)


def _can_open(device: Path) -> bool:
    """Tell whether the control groups of this process let it have a device."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def make_job(settings: RunSettings, folder: Path, data: ImageData) -> Job:
    """Describe a run to its workers; ``folder`` holds the prepared data."""
    shared = fields_of(settings, folder, data.num_classes)
    return Job(
        **shared,
        supernet_recipe=_recipe_on(shared["device"], settings.supernet_recipe),
        trial_recipe=_recipe_on(shared["device"], settings.trial_recipe),
        deployment=settings.deployment,
        table=settings.load_table(),
    )


def fields_of(settings: RunSettings, folder: Path, num_classes: int) -> dict[str, Any]:
    """Return the fields of `RunJob`, by their names."""
    stored = folder / "space.yaml"
    space = settings.load_space(stored if stored.is_file() else None)
    return {
        "files": open_files(settings.storage, folder),
        "space": space.replace(num_classes=num_classes),
        "strategy": settings.strategy,
        "supernet_strategy": settings.supernet_strategy,
        "sharing": settings.sharing,
        "measured": settings.measured_objectives,
        "seed": settings.seed,
        "device": "cuda" if settings.parsed_budget.device == "gpu" else "cpu",
        "mentor_key": settings.mentor,
    }


def _recipe_on(device: str, name: str) -> Recipe:
    """Load a recipe; a shipped one without mixed precision takes bfloat16 on a GPU.

    A file of the user's own is taken at its word.
    """
    recipe = load_recipe(name)
    is_shipped = not name.endswith((".yaml", ".yml"))
    if device == "cuda" and is_shipped and recipe.amp == "none":
        return recipe.model_copy(update={"amp": "bf16"})
    return recipe
