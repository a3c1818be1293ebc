"""`Job`: what a worker needs to know of a run; small and picklable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search.run_folder.settings import RunSettings
from search.run_folder.storage import DATA, Files, open_files
from searchspace.space import SearchSpace
from supernet.data import ImageData, open_data
from supernet.mixers.weight_sharing import WeightSharing
from supernet.recipes.recipe import Recipe, load_recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker needs to know of a run.

    Attributes:
        files: Where it finds the prepared data and the checkpoints.
        space: The space, with the classes of the data.
        supernet_recipe: For the shared weights.
        trial_recipe: For networks that are trained alone during the search.
        strategy: What networks are judged by, see `search.plan.SHARES`.
        supernet_strategy: How the supernet is trained.
        sharing: What the choices of its blocks share.
        measured: Costs to measure of every network that is judged, of `search.results.objectives`.
        seed: Of the run.
        device: Torch device of one worker, ``cpu`` or ``cuda``.
    """

    files: Files
    space: SearchSpace
    supernet_recipe: Recipe
    trial_recipe: Recipe
    strategy: str
    supernet_strategy: str
    sharing: WeightSharing
    measured: tuple[str, ...]
    seed: int
    device: str

    def open_data(self) -> ImageData:
        """Open the prepared images of the run."""
        return open_data(self.files.fetch(DATA))


def make_job(settings: RunSettings, folder: Path, data: ImageData) -> Job:
    """Describe a run to its workers; ``folder`` holds the prepared data."""
    stored = folder / "space.yaml"
    space = settings.load_space(stored if stored.is_file() else None)
    return Job(
        files=open_files(settings.storage, folder),
        space=space.replace(num_classes=data.num_classes),
        supernet_recipe=load_recipe(settings.supernet_recipe),
        trial_recipe=load_recipe(settings.trial_recipe),
        strategy=settings.strategy,
        supernet_strategy=settings.supernet_strategy,
        sharing=settings.sharing,
        measured=settings.measured_objectives,
        seed=settings.seed,
        device="cuda" if settings.parsed_budget.device == "gpu" else "cpu",
    )
