"""Training one network as a recipe says, resumable after every epoch to the last bit.

Everything random is a function of the seed, the epoch, the step and the shard, so a checkpoint
holds no random state. Where a `torch.distributed` group exists, its processes train together, and
the first one writes.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from supernet.data import ImageData, Split
from supernet.recipes import Recipe
from supernet.training.batches import Shard, TrainLoader, eval_batches, steps_per_epoch
from supernet.training.calibration import ENOUGH_STEPS, calibration_images, recalibrate
from supernet.training.checkpoint import damage, latest_checkpoint, write_checkpoint, write_text
from supernet.training.distillation import Lesson, Teacher
from supernet.training.epoch_report import EpochReport, to_csv
from supernet.training.evaluation import Accuracy, evaluate
from supernet.training.optimization import build_optimizer, build_scheduler
from supernet.training.recipe_checks import check_teacher, check_token_labels, check_unlabelled
from supernet.training.seeding import derived_seed
from supernet.training.token_labels import LabelMaps
from supernet.training.training_step import (
    BatchStatistics,
    Gradients,
    add_up,
    process_place,
    stops_all,
)

logger = logging.getLogger(__name__)

__all__ = ["Accuracy", "EpochReport", "TrainingOptions", "TrainingResult", "TrainingStopped"]
__all__ += ["evaluate", "train", "train_steps"]

WEIGHTS_FILE = "model.safetensors"
EMA_FILE = "model_ema.safetensors"
METRICS_FILE = "metrics.csv"
STATE_FILE = "state.pt"
MAX_SKIPPED = 20
MAX_ROLLBACKS = 3

_STATE_KEYS = {"identity", "optimizer", "scaler", "history", "rollbacks", "skipped_in_a_row"}


class TrainingStopped(Exception):
    """The caller asked to stop; the checkpoint, if there is one, holds all finished epochs."""


class CheckpointsDifferError(ValueError):
    """Processes that train together found different checkpoints: a node sees others' files late."""


class _BadLossError(FloatingPointError):
    """A loss was not finite; the recipe says what follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """What a training works on and whom it reports to.

    Attributes:
        train_split: The images to learn from.
        eval_split: The images that the trained network is judged on, once, after the last epoch.
        seed: Of order, augmentation and dropped paths; the network comes with its weights.
        device: Torch device.
        out: Folder for the checkpoint and ``metrics.csv``; a training found there goes on.
        on_epoch: Called after every epoch, when its checkpoint is written.
        should_stop: Asked before every epoch.
        loader_workers: Processes that make the batches; 0 for this one.
        maps: Label maps of the training images, for a recipe with token labels.
        teacher: Whom it learns from, for a recipe with distillation.
        identity: Of whatever else decides the training, such as what its weights start from.
        replaces: Whether a checkpoint of another training in ``out`` is left aside, and this
            training begun; else it is refused.
        recalibrates: Whether batch norms are recalibrated before they are judged, where a training
            of fewer than `ENOUGH_STEPS` steps leaves them in part what they began with.
    """

    train_split: Split
    eval_split: Split
    seed: int
    device: str = "cpu"
    out: Path | None = None
    on_epoch: Callable[[EpochReport], None] | None = None
    should_stop: Callable[[], bool] | None = None
    loader_workers: int = 0
    maps: LabelMaps | None = None
    teacher: Teacher | None = None
    identity: str = ""
    replaces: bool = False
    recalibrates: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingResult:
    """A finished training.

    Attributes:
        raw: Accuracy of the weights of the last step.
        ema: Accuracy of the averaged weights, where the recipe has them.
        ema_network: The network with the averaged weights.
        history: One report for each epoch, also of those before a resumption.
    """

    raw: Accuracy
    ema: Accuracy | None
    ema_network: nn.Module | None
    history: tuple[EpochReport, ...]

    @property
    def accuracy(self) -> Accuracy:
        """The one that counts, fixed by the recipe: of the averaged weights if it has them."""
        return self.raw if self.ema is None else self.ema

    @property
    def seconds(self) -> float:
        """Seconds of all epochs."""
        return sum(report.seconds for report in self.history)


def train(
    network: nn.Module, data: ImageData, recipe: Recipe, options: TrainingOptions
) -> TrainingResult:
    """Train a network in place and judge it.

    Args:
        network: Called as ``network(images)``; its dropped paths are the caller's choice.

    A checkpoint that is damaged is not gone on with: the training starts over.

    Raises:
        TrainingStopped: If ``options.should_stop`` said so.
        FloatingPointError: If the loss is not finite and the recipe has no other way left.
        ValueError: If ``options.out`` holds another training that it does not replace, or there
            are no images.
    """
    training = _Training(network, data, recipe, options)
    device = training.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while len(training.history) < recipe.total_epochs:
            if stops_all(options.should_stop, training.device):
                done = len(training.history)
                raise TrainingStopped(f"Stopped after {done} of {recipe.total_epochs} epochs.")
            report = training.run_epoch()
            if report is not None and options.on_epoch is not None:
                options.on_epoch(report)
    return training.judge()


def train_steps(
    network: nn.Module, data: ImageData, recipe: Recipe, options: TrainingOptions
) -> Iterator[list[Shard]]:
    """Take one step of a training after the other, without an end: to time what its epochs do.

    Nothing is written, and no checkpoint read.

    Args:
        network, data, recipe, options: As for `train`.

    Yields:
        After each step its shards.
    """
    training = _Training(network, data, recipe, replace(options, out=None))
    training.network.train()
    for epoch in itertools.count():
        for step, shards in enumerate(training.loader.epoch(epoch, options.seed)):
            training.take_step(min(epoch, recipe.total_epochs - 1), step, shards)
            yield shards


class _Training:
    """The state of a training: weights, optimiser, averaged weights, finished epochs."""

    def __init__(
        self, network: nn.Module, data: ImageData, recipe: Recipe, options: TrainingOptions
    ) -> None:
        _check_options(recipe, options)
        self.data, self.recipe, self.options = data, recipe, options
        self.device = own_device(options.device)
        self.rank, self.world_size = process_place()
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.network = network.to(self.device).to(memory_format=layout)
        self.steps = steps_per_epoch(len(options.train_split), recipe)
        self.loader = TrainLoader(
            options.train_split,
            data,
            recipe,
            rank=self.rank,
            world_size=self.world_size,
            workers=options.loader_workers,
            maps=options.maps,
        )
        self.optimizer = build_optimizer(self.network, recipe)
        self.scheduler = build_scheduler(self.optimizer, recipe, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        self.gradients = Gradients(
            self.network,
            recipe,
            self.device,
            self.scaler,
            self._lesson(options.teacher),
            has_unlabelled=has_unlabelled(options.train_split),
        )
        # Buffers are averaged like the weights: batch norms then have the statistics, over the
        # same steps, of the features that the averaged weights make.
        self.ema = (
            None
            if recipe.ema_decay is None
            else ModelEmaV3(self.network, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)
        )
        self.history: list[EpochReport] = []
        self.rollbacks = self.skipped_in_a_row = 0
        if options.out is not None:
            is_new = not self._load(options.out)
            self._check_together()
            if recipe.bad_loss == "rollback" and is_new:
                self._write()
            elif not is_new:
                # Who was killed behind a checkpoint has not written its row.
                self._write_metrics(options.out)

    def _lesson(self, teacher: Teacher | None) -> Lesson | None:
        settings, data = self.recipe.distillation, self.data
        if teacher is None:
            return None
        assert settings is not None  # `_check_options` has seen to it.
        return Lesson(teacher, settings, data.mean, data.std, self.device)

    def run_epoch(self) -> EpochReport | None:
        """Train for one epoch and write the checkpoint; None if it went back to the last one."""
        try:
            report = self._train_epoch()
        except _BadLossError as error:
            if self.recipe.bad_loss != "rollback" or self.rollbacks == MAX_ROLLBACKS:
                raise FloatingPointError(str(error)) from None
            assert self.options.out is not None
            rollbacks = self.rollbacks + 1
            if not self._load(self.options.out):
                raise FloatingPointError(f"{error} The checkpoint is damaged.") from None
            self.rollbacks = rollbacks
            return None
        self.history.append(report)
        self._write()
        return report

    def judge(self) -> TrainingResult:
        """Evaluate the weights, and the averaged ones, on the eval split."""
        networks = [self.network] if self.ema is None else [self.network, self.ema.module]
        accuracies = [self._evaluate(network) for network in networks]
        return TrainingResult(
            raw=accuracies[0],
            ema=None if self.ema is None else accuracies[1],
            ema_network=None if self.ema is None else self.ema.module,
            history=tuple(self.history),
        )

    def _evaluate(self, network: nn.Module) -> Accuracy:
        """Let the first process judge and tell the others."""
        counts = torch.zeros(3, dtype=torch.long, device=self.device)
        if self.rank == 0:
            batches = eval_batches(
                self.options.eval_split,
                self.data,
                self.recipe.shard_size or self.recipe.batch_size,
                self.recipe.crop_pct,
                crop_mode=self.recipe.crop_mode,
                interpolation=self.recipe.eval_interpolation,
                workers=self.options.loader_workers,
            )
            amp = self.recipe.amp if self.device.type == "cuda" else "none"
            if self.options.recalibrates and self._total_steps < ENOUGH_STEPS:
                recalibrate(network, self._calibration(), amp=amp)
            found = evaluate(network, batches, self.device, amp=amp)
            counts += counts.new_tensor([found.correct, found.correct_top5, found.total])
        if self.world_size > 1:
            dist.broadcast(counts, 0)
        return Accuracy(*counts.tolist())

    @property
    def _total_steps(self) -> int:
        return self.steps * self.recipe.total_epochs

    def _calibration(self) -> list[Tensor]:
        return calibration_images(
            self.data,
            self.recipe.shard_size or self.recipe.batch_size,
            str(self.device),
            workers=self.options.loader_workers,
        )

    @property
    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def _seed(self) -> int:
        """The seed of order and augmentation: another one after every return to a checkpoint."""
        seed = self.options.seed
        return derived_seed(seed, "rollback", self.rollbacks) if self.rollbacks else seed

    def _train_epoch(self) -> EpochReport:
        started = time.perf_counter()
        epoch, losses = len(self.history), []
        waited = read = augmented = 0.0
        images = 0
        self.network.train()
        for step, (shards, seconds) in enumerate(_timed(self.loader.epoch(epoch, self._seed))):
            losses.append(self.take_step(epoch, step, shards))
            waited += seconds
            read += sum(shard.read_seconds for shard in shards)
            augmented += sum(shard.augment_seconds for shard in shards)
            images += sum(len(shard) for shard in shards)
        finite = [loss for loss in losses if math.isfinite(loss)]
        return EpochReport(
            epoch=epoch + 1,
            epochs=self.recipe.total_epochs,
            seconds=time.perf_counter() - started,
            loss=math.fsum(finite) / max(len(finite), 1),
            lr=self._lr,
            images=self._over_all(images),
            wait_seconds=waited,
            read_seconds=read,
            augment_seconds=augmented,
            skipped_steps=len(losses) - len(finite),
        )

    def _over_all(self, images: int) -> int:
        """Add up what the processes have learnt from; shares of a batch may differ by a shard."""
        counts = torch.tensor(float(images), dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(counts)
        return int(counts)

    def take_step(self, epoch: int, step: int, shards: list[Shard]) -> float:
        """Update the weights with a batch and return its loss."""
        recipe, updates = self.recipe, epoch * self.steps + step
        # Only one of the two does anything, as the recipe says.
        self.scheduler.step_update(updates)
        self.scheduler.step(epoch)
        before = BatchStatistics(self.network) if recipe.bad_loss == "skip" else None
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients.of_step(
            shards,
            derived_seed(self._seed, "step", epoch, step),
            progress=epoch / recipe.total_epochs,
        )
        if not math.isfinite(loss):
            self._leave_out(loss, epoch, step, before)
            return loss
        self.skipped_in_a_row = 0
        if recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.network, step=updates + 1)
        return loss

    def _leave_out(
        self, loss: float, epoch: int, step: int, before: BatchStatistics | None
    ) -> None:
        """Forget a step whose loss is not finite, or raise if the recipe or their number says so.

        Raises:
            _BadLossError: With the place and what may help.
        """
        self.skipped_in_a_row += 1
        if before is not None and self.skipped_in_a_row < MAX_SKIPPED:
            before.restore()
            return
        lesson = self.gradients.lesson
        blame = "" if lesson is None else lesson.blame()
        again = {"skip": f"the {MAX_SKIPPED}th in a row, ", "rollback": "", "stop": ""}
        raise _BadLossError(
            f"The loss is {loss} in epoch {epoch + 1} of {self.recipe.total_epochs}, step "
            f"{step + 1} of {self.steps}, {again[self.recipe.bad_loss]}at learning rate "
            f"{self._lr:.3g}. Lower the recipe's lr, lengthen its warm-up or set clip_grad.{blame}"
        )

    def _identity(self) -> str:
        """Describe the training, so that a checkpoint of another one is not continued."""
        recipe = self.recipe.model_dump(mode="json", exclude={"name", "about", "source"})
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        data = {"images": len(self.options.train_split), "data": self.data.fingerprint}
        data |= {"mean": list(self.data.mean), "std": list(self.data.std)}
        other: dict[str, Any] = {"seed": self.options.seed, "other": self.options.identity}
        if self.options.teacher is None:
            # It is read with a teacher alone.
            recipe.pop("distillation")
        else:
            other["teacher"] = self.options.teacher.fingerprint
        return json.dumps({"recipe": recipe, "network": shapes, **data, **other}, sort_keys=True)

    def _write(self) -> None:
        """Let the first process write the checkpoint, and the others wait for it."""
        out = self.options.out
        if out is not None and self.rank == 0:
            write_checkpoint(out, len(self.history), self._save)
            self._write_metrics(out)
        if self.world_size > 1:
            dist.barrier()

    def _write_metrics(self, out: Path) -> None:
        if self.rank == 0:
            write_text(out / METRICS_FILE, to_csv(self.history))

    def _save(self, folder: Path) -> None:
        save_model(self.network, str(folder / WEIGHTS_FILE))
        if self.ema is not None:
            save_model(self.ema.module, str(folder / EMA_FILE))
        state = {
            "identity": self._identity(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": [asdict(report) for report in self.history],
            "rollbacks": self.rollbacks,
            "skipped_in_a_row": self.skipped_in_a_row,
        }
        torch.save(state, folder / STATE_FILE)

    def _load(self, out: Path) -> bool:
        """Go on from the checkpoint; False where there is none, or none that can be read."""
        folder = latest_checkpoint(out)
        if folder is None:
            return False
        cause = damage(folder)
        state = None if cause else _read_state(folder / STATE_FILE)
        if state is None:
            cause = cause or f"{STATE_FILE} cannot be read"
            logger.warning("The checkpoint %s is damaged, training starts over: %s", folder, cause)
            return False
        if state["identity"] != self._identity():
            if self.options.replaces:
                logger.warning("%s is of another training, which this one replaces.", folder)
                return False
            raise ValueError(
                "A training goes on with the recipe, seed, network and images that it began with; "
                f"the one in {out} had others. Choose another folder, or remove this one."
            )
        load_model(self.network, str(folder / WEIGHTS_FILE))
        if self.ema is not None:
            load_model(self.ema.module, str(folder / EMA_FILE))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = [EpochReport(**report) for report in state["history"]]
        self.rollbacks, self.skipped_in_a_row = state["rollbacks"], state["skipped_in_a_row"]
        return True

    def _check_together(self) -> None:
        """See that all processes found the same checkpoint."""
        if self.world_size == 1:
            return
        done = torch.zeros(self.world_size, device=self.device)
        done[self.rank] = len(self.history)
        add_up([done])
        if len(set(done.tolist())) > 1:
            raise CheckpointsDifferError(
                "Processes that train together see one folder, and found different checkpoints in "
                f"{self.options.out}: {done.int().tolist()} epochs. Let it lie on storage that all "
                "nodes share."
            )


def own_device(device: str) -> torch.device:
    """Return a device with the number that it has in this process.

    safetensors takes ``cuda`` for the first GPU, whichever one the process has chosen.
    """
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def _read_state(path: Path) -> dict[str, Any] | None:
    """Read what `_Training._save` wrote beside the weights; None if that cannot be done."""
    try:
        # On the CPU: the optimiser takes each part to where its parameter is.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return state if isinstance(state, dict) and state.keys() >= _STATE_KEYS else None


def _check_options(recipe: Recipe, options: TrainingOptions) -> None:
    if recipe.bad_loss == "rollback" and options.out is None:
        raise ValueError(
            "bad_loss rollback goes back to a checkpoint, and this training has no folder for one. "
            "Give it one, or write bad_loss stop."
        )
    check_token_labels(recipe, given=options.maps is not None)
    check_teacher(recipe, given=options.teacher is not None)
    check_unlabelled(
        recipe, given=has_unlabelled(options.train_split), is_taught=options.teacher is not None
    )


def has_unlabelled(split: Split) -> bool:
    """Tell whether some images of a split have no class."""
    return bool((split.labels < 0).any())


def _timed(batches: Iterator[list[Shard]]) -> Iterator[tuple[list[Shard], float]]:
    """Add the seconds that each batch was waited for."""
    while True:
        started = time.perf_counter()
        shards = next(batches, None)
        if shards is None:
            return
        yield shards, time.perf_counter() - started
