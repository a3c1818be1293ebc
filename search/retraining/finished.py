"""A finished retraining as others use it: its folder found, its network built and loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_model

from configs.files import read_object, reading
from search.retraining.model_card import RetrainResult
from search.terminal.console import shell_command
from searchspace.architecture import Architecture
from supernet.network.supernet import Supernet, build_subnet
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.training.training import EMA_FILE, WEIGHTS_FILE

RESULT_FILE = "result.json"
ARCHITECTURE_FILE = "architecture.json"
RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrained:
    """What a finished retraining left."""

    folder: Path
    architecture: Architecture
    recipe: Recipe
    result: RetrainResult

    @property
    def weights(self) -> Path:
        """The weights that count: the averaged ones where there are any."""
        return self.folder / (WEIGHTS_FILE if self.result.ema is None else EMA_FILE)

    def network(self) -> Supernet:
        """Build the network with the weights that count, in eval mode."""
        network = build_subnet(self.architecture).eval()
        load_model(network, str(self.weights))
        return network


def find_retrained(target: str) -> Retrained:
    """Find a finished retraining.

    Args:
        target: Its folder, or ``RUN:ID`` where the network was retrained once.

    Raises:
        ValueError: If there is none, or more than one.
    """
    path = Path(target)
    if (path / ARCHITECTURE_FILE).is_file():
        return _open(path)
    run, colon, number = target.rpartition(":")
    if not colon or not number.isdecimal() or not Path(run).is_dir():
        raise ValueError(
            f"{target!r} is neither RUN:ID nor the folder of a retraining. Write e.g. runs/x:17."
        )
    found = sorted(
        folder.parent for folder in (Path(run) / "retrain").glob(f"{number}-*/{RESULT_FILE}")
    )
    if not found:
        raise ValueError(
            f"Network {number} of {run} has no finished retraining. "
            f"Run: {shell_command('search', 'retrain', run, '--arch', number)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"Network {number} of {run} was retrained {len(found)} times. Name one of the folders "
            f"instead: {', '.join(map(str, found))}"
        )
    return _open(found[0])


def _open(folder: Path) -> Retrained:
    if not (folder / RESULT_FILE).is_file():
        raise ValueError(f"The retraining in {folder} is not finished. Run its command again.")
    remedy = f"Remove {folder} and retrain the network again."
    files = {name: folder / name for name in (ARCHITECTURE_FILE, RESULT_FILE)}
    stored = {
        name: read_object(path, "part of a retraining", remedy=remedy)
        for name, path in files.items()
    }
    errors = (AttributeError, KeyError, TypeError)
    with reading(folder, "a retraining", remedy=remedy, errors=errors):
        return Retrained(
            folder=folder,
            architecture=Architecture.from_dict(stored[ARCHITECTURE_FILE]),
            recipe=load_recipe(str(folder / RECIPE_FILE)),
            result=RetrainResult.from_dict(stored[RESULT_FILE]),
        )
