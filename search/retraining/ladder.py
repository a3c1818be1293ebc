"""The accuracy ladder of one network: what each step from the supernet to a retraining adds.

All steps are judged on the search split with the same images, so their differences are the step's.
The test split is for `search retrain` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from search.run_folder import RunFolder
from searchspace.architecture import Architecture
from supernet.data import ImageData
from supernet.network import Supernet, build_subnet, extract
from supernet.recipes import Recipe, load_recipe, with_epochs
from supernet.shared_weights import calibration_images, load_supernet, recalibrated
from supernet.training import Accuracy, TrainingOptions, eval_batches, evaluate, train

STEPS = ("inside", "extracted", "recalibrated", "fine-tuned", "retrained")
EVAL_BATCH = 256
FINE_TUNING_LR = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the ladder.

    Attributes:
        step: One of `STEPS`.
        accuracy: On the search split.
        about: What was done.
    """

    step: str
    accuracy: Accuracy
    about: str


class _Ladder:
    """What the steps share: images, weights, the training recipe and its folder."""

    def __init__(
        self, run: RunFolder, architecture: Architecture, *, epochs: int, seed: int, device: str
    ) -> None:
        self.data: ImageData = run.data()
        self.architecture, self.seed, self.device = architecture, seed, device
        self.supernet: Supernet = load_supernet(run.supernet_folder(), run.space()).to(device)
        self.recipe: Recipe = with_epochs(load_recipe(run.settings.trial_recipe), epochs)
        self.folder: Path = run.folder / "ladder" / architecture.key
        self.images = [
            (images.to(device), labels)
            for images, labels in eval_batches(self.data.split("search"), self.data, EVAL_BATCH)
        ]

    def inside(self) -> tuple[Accuracy, str]:
        network = _Inside(self.supernet, self.architecture)
        return self._judge(network), "inside the supernet, shared statistics"

    def extracted(self) -> tuple[Accuracy, str]:
        return self._judge(extract(self.supernet, self.architecture)), "its own copy of the weights"

    def recalibrated(self) -> tuple[Accuracy, str]:
        return self._judge(self._recalibrated()), "statistics of its own batch norms"

    def fine_tuned(self) -> tuple[Accuracy, str]:
        lr = self.recipe.lr * FINE_TUNING_LR
        floors = {n: min(getattr(self.recipe, n), lr) for n in ("warmup_lr", "min_lr")}
        recipe = self.recipe.model_copy(update={"lr": lr, **floors})
        return self._train(self._recalibrated(), recipe, "fine-tuned")

    def retrained(self) -> tuple[Accuracy, str]:
        torch.manual_seed(self.seed)
        network = build_subnet(self.architecture, self.recipe.drop_path)
        return self._train(network, self.recipe, "retrained")

    def _recalibrated(self) -> Supernet:
        images = calibration_images(self.data, EVAL_BATCH, self.device)
        return recalibrated(self.supernet, self.architecture, images)

    def _train(self, network: Supernet, recipe: Recipe, step: str) -> tuple[Accuracy, str]:
        options = TrainingOptions(
            train_split=self.data.split("train"),
            eval_split=self.data.split("search"),
            seed=self.seed,
            device=self.device,
            # A training of another length or seed is another training.
            out=self.folder / f"{step}-{recipe.total_epochs}e-{self.seed}",
        )
        accuracy = train(network, self.data, recipe, options).accuracy
        weights = "from the supernet's weights" if step == "fine-tuned" else "from scratch"
        return (
            accuracy,
            f"{recipe.total_epochs} epochs of {recipe.name} {weights}, lr {recipe.lr:g}",
        )

    def _judge(self, network: nn.Module) -> Accuracy:
        return evaluate(network, self.images, self.device)


class _Inside(nn.Module):
    """A supernet that runs one architecture, to be called with images alone."""

    def __init__(self, supernet: Supernet, architecture: Architecture) -> None:
        super().__init__()
        self.supernet, self.architecture = supernet, architecture

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.supernet(images, self.architecture)
        return logits


def take_steps(
    run: RunFolder,
    architecture_id: int,
    *,
    steps: tuple[str, ...] = STEPS,
    epochs: int,
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[Step]:
    """Judge one network of a run after each step, in the order of `STEPS`.

    Args:
        steps: Those to take; each can be taken alone and gives the same result.
        epochs: Of fine-tuning and of retraining.
        seed: Of both trainings.

    Raises:
        ValueError: For an unknown step or id, or a run without a trained supernet.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ValueError(f"Unknown step {unknown[0]!r}. The steps are {', '.join(STEPS)}.")
    architecture = run.architecture(architecture_id)
    try:
        ladder = _Ladder(run, architecture, epochs=epochs, seed=seed, device=device)
    except FileNotFoundError as error:
        raise ValueError(f"{error} Let the run train its supernet first.") from error
    judges: dict[str, Callable[[], tuple[Accuracy, str]]] = {
        "inside": ladder.inside,
        "extracted": ladder.extracted,
        "recalibrated": ladder.recalibrated,
        "fine-tuned": ladder.fine_tuned,
        "retrained": ladder.retrained,
    }
    for step in STEPS:
        if step in steps:
            accuracy, about = judges[step]()
            yield Step(step=step, accuracy=accuracy, about=about)
