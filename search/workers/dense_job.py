"""`DenseJob`: what a worker needs to know of a run for detection or segmentation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from search.run_folder import DATA, MENTOR, START, RunSettings
from search.workers.job import RunJob, fields_of
from searchspace.architecture import Architecture
from supernet.data.dense import SearchedData, open_searched
from supernet.dense.distillation import DenseTeacher
from supernet.dense.start import read_start, start_of
from supernet.dense.teacher_files import read_dense_teacher
from supernet.network import Supernet
from supernet.recipes import DenseRecipe, load_dense_recipe

# Batch norms of fewer images see nothing.
LEAST_SHARD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseJob(RunJob):
    """What a worker needs to know of a run.

    Attributes:
        recipe: Heads, images, optimiser: of the shared weights and of networks trained alone.
        has_start: Whether backbones begin with the weights that the run was given.
    """

    recipe: DenseRecipe
    has_start: bool

    def open_data(self) -> SearchedData:
        """Open the run's data."""
        return open_searched(self.files.fetch(DATA))

    def mentor(self) -> DenseTeacher | None:
        """Read whom the networks learn from, where there is somebody.

        Raises:
            ValueError: If it is not the one that the run began with.
        """
        key = self.mentor_key
        return read_dense_teacher(self.files.fetch(MENTOR), key) if key else None

    def start(self) -> Supernet | None:
        """Read the weights that backbones begin with; None for fresh ones."""
        if not self.has_start:
            return None
        return read_start(self.files.fetch(START), self.space, self.sharing, self.recipe.rules)

    def start_of(self, architecture: Architecture) -> dict[str, Tensor] | None:
        """Return the weights that one network begins with; None for fresh ones."""
        started = self.start()
        return None if started is None else start_of(started, architecture)


def make_dense_job(settings: RunSettings, folder: Path, data: SearchedData) -> DenseJob:
    """Describe a run to its workers."""
    shared = fields_of(settings, folder, data.num_classes)
    recipe = load_dense_recipe(settings.trial_recipe)
    if shared["device"] == "cpu":  # published recipes are fp16
        recipe = recipe.model_copy(update={"amp": "none"})
    return DenseJob(**shared, recipe=recipe, has_start=bool(settings.start))


def dense_for_group(job: DenseJob, data: SearchedData, devices: int) -> tuple[DenseJob, int]:
    """Fit a job to the devices that its supernet is begun on.

    The batch stays the recipe's. Where it has fewer shards than there are devices, it is split into
    smaller ones, of `LEAST_SHARD` images at least.

    Returns:
        The job, and how many devices can train together.
    """
    recipe = job.recipe
    if recipe.num_shards < devices:
        batch = recipe.batch_size
        fitting = range(recipe.num_shards, min(devices, batch // LEAST_SHARD) + 1)
        shards = max((n for n in fitting if batch % n == 0), default=recipe.num_shards)
        recipe = recipe.model_copy(update={"shard_size": batch // shards})
    return replace(job, recipe=recipe), recipe.num_shards
