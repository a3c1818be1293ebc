"""A finished retraining as others use it: its folder found, its network built and loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model

from search.retraining.model_card import RetrainResult
from search.retraining.out_folder import ARCHITECTURE_FILE, RECIPE_FILE, RESULT_FILE
from search.run_folder import run_and_id
from search.terminal import shell_command
from searchspace.architecture import Architecture
from supernet.network import Supernet, build_subnet
from supernet.recipes import Recipe, load_recipe
from supernet.training import EMA_FILE, WEIGHTS_FILE, changed_file


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

    @property
    def crop_mode(self) -> str:
        """What is done to an image's shape; results of before do not say."""
        return self.result.crop_mode or self.recipe.crop_mode

    def network(self) -> Supernet:
        """Build the network with the weights that count, in eval mode.

        Raises:
            ValueError: If the weights are not those that the training left.
        """
        self.check_weights()
        network = build_subnet(self.architecture).eval()
        try:
            load_model(network, str(self.weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise _damaged(self.folder, f"{self.weights.name}: {error}") from error
        return network

    def check_weights(self) -> None:
        """Compare the weights that count with the checksum that the training left.

        Raises:
            ValueError: If they are others.
        """
        name = self.weights.name
        if name not in self.result.sha256:
            raise _damaged(self.folder, f"{RESULT_FILE} has no checksum of {name}")
        if cause := changed_file(self.folder, {name: self.result.sha256[name]}):
            raise _damaged(self.folder, cause)


def find_retrained(target: str) -> Retrained:
    """Find a finished retraining.

    Args:
        target: Its folder, or ``RUN:ID`` where the network was retrained once.

    Raises:
        ValueError: If there is none, or more than one.
    """
    path = Path(target)
    try:
        is_folder = (path / ARCHITECTURE_FILE).is_file()
    except OSError:  # a name that no file can have
        is_folder = False
    if is_folder:
        return _open(path)
    named = run_and_id(target)
    if named is None or not named[0].is_dir():
        raise ValueError(
            f"{target!r} is neither RUN:ID nor the folder of a retraining. Write e.g. runs/x:17."
        )
    run, number = named
    found = sorted(folder.parent for folder in (run / "retrain").glob(f"{number}-*/{RESULT_FILE}"))
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


def read_result(folder: Path) -> RetrainResult:
    """Read what a finished retraining measured.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        stored = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        return RetrainResult.from_dict(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, f"{RESULT_FILE}: {type(error).__name__}: {error}") from error


def _open(folder: Path) -> Retrained:
    if not (folder / RESULT_FILE).is_file():
        raise ValueError(f"The retraining in {folder} is not finished. Run its command again.")
    try:
        stored = json.loads((folder / ARCHITECTURE_FILE).read_text(encoding="utf-8"))
        architecture = Architecture.from_dict(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = f"{ARCHITECTURE_FILE}: {type(error).__name__}: {error}"
        raise _damaged(folder, cause) from error
    return Retrained(
        folder=folder,
        architecture=architecture,
        recipe=load_recipe(str(folder / RECIPE_FILE)),
        result=read_result(folder),
    )


def _damaged(folder: Path, cause: str) -> ValueError:
    return ValueError(
        f"The retraining in {folder} is damaged: {cause}. Restore the folder from a copy, or "
        "remove it and train again."
    )
