"""The accuracy ladder of one network: what each step from the supernet to a retraining adds.

All steps are judged on the search split with the same images, so their differences are the step's.
The test split is for `search retrain` alone. A network of a graft climbs from its parts instead,
and is trained beside its teacher, as in the run. So is a network of a run that was taught.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from search.retraining.out_folder import claimed_training
from search.retraining.wanted import assembled
from search.run_folder import GRAFT, RunFolder
from searchspace.architecture import Architecture
from searchspace.quantity import counted
from supernet.data import ImageData
from supernet.network import Supernet, build_subnet, extract
from supernet.recipes import Recipe, load_recipe, with_epochs
from supernet.shared_weights import load_supernet
from supernet.training import (
    Accuracy,
    Teacher,
    TrainingOptions,
    calibration_images,
    digest_of,
    eval_batches,
    evaluate,
    recalibrate,
    train,
)

STEPS = ("inside", "extracted", "recalibrated", "fine-tuned", "retrained")
GRAFT_STEPS = ("assembled", "recalibrated", "healed", "retrained")
EVAL_BATCH = 256
FINE_TUNING_LR = 0.1

_Judge = Callable[[], tuple[Accuracy, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the ladder.

    Attributes:
        step: One of `STEPS`, of a graft one of `GRAFT_STEPS`.
        accuracy: On the search split.
        about: What was done.
    """

    step: str
    accuracy: Accuracy
    about: str


class _Climb:
    """What the steps of all runs share: images, the training recipe, its teacher and its folder."""

    def __init__(
        self,
        run: RunFolder,
        architecture: Architecture,
        *,
        teacher: Teacher | None,
        epochs: int,
        seed: int,
        device: str,
    ) -> None:
        self.data: ImageData = run.data()
        self.architecture, self.seed, self.device = architecture, seed, device
        self.teacher = teacher
        self.recipe: Recipe = with_epochs(load_recipe(run.settings.trial_recipe), epochs)
        self.folder: Path = run.folder / "ladder" / architecture.key
        batches = eval_batches(
            self.data.split("search"),
            self.data,
            EVAL_BATCH,
            self.recipe.crop_pct,
            crop_mode=self.recipe.crop_mode,
            interpolation=self.recipe.eval_interpolation,
        )
        self.images = [(images.to(device), labels) for images, labels in batches]

    def calibration(self) -> list[Tensor]:
        return calibration_images(self.data, EVAL_BATCH, self.device)

    def retrained(self) -> tuple[Accuracy, str]:
        torch.manual_seed(self.seed)
        network = build_subnet(self.architecture, self.recipe.drop_path)
        return self.train(network, self.recipe, "retrained", "from scratch")

    def train(
        self, network: Supernet, recipe: Recipe, step: str, weights: str
    ) -> tuple[Accuracy, str]:
        options = TrainingOptions(
            train_split=self.data.split("train"),
            eval_split=self.data.split("search"),
            seed=self.seed,
            device=self.device,
            # A training of another length or seed is another training.
            out=self.folder / f"{step}-{recipe.total_epochs}e-{self.seed}",
            teacher=self.teacher,
            # The run may have trained its supernet, or its parts, further meanwhile.
            identity=digest_of(network.state_dict()),
            replaces=True,
        )
        with claimed_training(self.folder):
            accuracy = train(network, self.data, recipe, options).accuracy
        taught = "" if self.teacher is None else f", taught by {self.teacher.name}"
        return (
            accuracy,
            f"{counted(recipe.total_epochs, 'epoch')} of {recipe.name} {weights}, "
            f"lr {recipe.lr:g}{taught}",
        )

    def judge(self, network: nn.Module) -> Accuracy:
        amp = self.recipe.amp if self.device == "cuda" else "none"
        return evaluate(network, self.images, self.device, amp=amp)


class _Ladder:
    """The steps of a network of a supernet."""

    def __init__(self, climb: _Climb, run: RunFolder) -> None:
        self.climb = climb
        self.supernet = load_supernet(run.supernet_folder(), run.space()).to(climb.device)

    def steps(self) -> Mapping[str, _Judge]:
        judges = (self.inside, self.extracted, self.recalibrated, self.fine_tuned)
        return dict(zip(STEPS, (*judges, self.climb.retrained), strict=True))

    def inside(self) -> tuple[Accuracy, str]:
        network = _Inside(self.supernet, self.climb.architecture)
        return self.climb.judge(network), "inside the supernet, shared statistics"

    def extracted(self) -> tuple[Accuracy, str]:
        network = extract(self.supernet, self.climb.architecture)
        return self.climb.judge(network), "its own copy of the weights"

    def recalibrated(self) -> tuple[Accuracy, str]:
        return self.climb.judge(self._recalibrated()), "statistics of its own batch norms"

    def fine_tuned(self) -> tuple[Accuracy, str]:
        recipe = self.climb.recipe
        lr = recipe.lr * FINE_TUNING_LR
        floors = {n: min(getattr(recipe, n), lr) for n in ("warmup_lr", "min_lr")}
        recipe = recipe.model_copy(update={"lr": lr, **floors})
        weights = "from the supernet's weights"
        return self.climb.train(self._recalibrated(), recipe, "fine-tuned", weights)

    def _recalibrated(self) -> Supernet:
        network = extract(self.supernet, self.climb.architecture)
        recalibrate(network, self.climb.calibration())
        return network


class _GraftLadder:
    """The steps of a network of a graft."""

    def __init__(self, climb: _Climb, run: RunFolder, number: int) -> None:
        self.climb, self.run, self.number = climb, run, number

    def steps(self) -> Mapping[str, _Judge]:
        judges = (self.assembled, self.recalibrated, self.healed, self.climb.retrained)
        return dict(zip(GRAFT_STEPS, judges, strict=True))

    def assembled(self) -> tuple[Accuracy, str]:
        return self.climb.judge(self._network()), "of the teacher's blocks and the parts"

    def recalibrated(self) -> tuple[Accuracy, str]:
        network, teacher = self._network(), self.run.teacher
        assert teacher is not None
        if self.climb.architecture == teacher.architecture:
            return self.climb.judge(network), "the teacher itself, whose statistics are left"
        recalibrate(network, self.climb.calibration())
        return self.climb.judge(network), "statistics of its own batch norms"

    def healed(self) -> tuple[Accuracy, str]:
        return self.climb.train(self._network(), self.climb.recipe, "healed", "from its parts")

    def _network(self) -> Supernet:
        return assembled(self.run, self.number).to(self.climb.device)


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
    steps: tuple[str, ...] | None = None,
    epochs: int,
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[Step]:
    """Judge one network of a run after each step, in the order of `STEPS` or `GRAFT_STEPS`.

    Args:
        steps: Those to take, None for all; each can be taken alone and gives the same result.
        epochs: Of the trainings.
        seed: Of the trainings.

    Raises:
        ValueError: For an unknown step or id, or a run that has nothing to climb from.
    """
    is_graft = run.settings.strategy == GRAFT
    known = GRAFT_STEPS if is_graft else STEPS
    steps = known if steps is None else steps
    if unknown := [step for step in steps if step not in known]:
        of_what = " of a graft" if is_graft else ""
        raise ValueError(f"Unknown step {unknown[0]!r}. The steps{of_what} are {', '.join(known)}.")
    _check_has_supernet(run)
    architecture = run.architecture(architecture_id)
    climb = _Climb(run, architecture, teacher=run.mentor(), epochs=epochs, seed=seed, device=device)
    try:
        ladder = _GraftLadder(climb, run, architecture_id) if is_graft else _Ladder(climb, run)
    except FileNotFoundError as error:
        raise ValueError(f"{error} Let the run train its supernet first.") from error
    for step, judge in ladder.steps().items():
        if step in steps:
            accuracy, about = judge()
            yield Step(step=step, accuracy=accuracy, about=about)


def _check_has_supernet(run: RunFolder) -> None:
    strategy = run.settings.strategy
    if strategy not in ("supernet", GRAFT):
        raise ValueError(
            "A ladder begins with the weights of a supernet, or with the parts of a graft, and "
            f"{run.folder} has neither: its strategy is {strategy}. Train the network with `search "
            "retrain`, or name a run of another strategy."
        )
