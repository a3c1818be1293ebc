"""Training one network as a recipe says, resumable after every epoch to the last bit.

Everything random is a function of the seed and the epoch, so a checkpoint holds no random state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from supernet.batches import eval_batches, steps_per_epoch, train_batches
from supernet.checkpoint import latest_checkpoint, write_checkpoint, write_text
from supernet.data import ImageData, Split
from supernet.evaluation import Accuracy, evaluate
from supernet.optimization import build_optimizer, build_scheduler
from supernet.recipe import Recipe
from supernet.seeding import derived_seed

__all__ = ["Accuracy", "EpochReport", "TrainingOptions", "TrainingResult", "TrainingStopped"]
__all__ += ["evaluate", "train"]

WEIGHTS_FILE = "model.safetensors"
EMA_FILE = "model_ema.safetensors"
METRICS_FILE = "metrics.csv"
AMP_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingStopped(Exception):
    """The caller asked to stop; the checkpoint, if there is one, holds all finished epochs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What one epoch did.

    Attributes:
        epoch: Counts from 1.
        epochs: How many there will be.
        seconds: Of training, without the checkpoint.
        loss: Mean over the epoch's steps, on augmented images.
        lr: Learning rate of the last step.
    """

    epoch: int
    epochs: int
    seconds: float
    loss: float
    lr: float


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
        micro_batches: Parts into which every batch is split to need less memory; the gradient is
            the whole batch's, only batch norms see the parts.
    """

    train_split: Split
    eval_split: Split
    seed: int
    device: str = "cpu"
    out: Path | None = None
    on_epoch: Callable[[EpochReport], None] | None = None
    should_stop: Callable[[], bool] | None = None
    micro_batches: int = 1


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

    Raises:
        TrainingStopped: If ``options.should_stop`` said so.
        FloatingPointError: If the loss is not finite.
        ValueError: If ``options.out`` holds another training, or there are no images.
    """
    training = _Training(network, data, recipe, options)
    device = training.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        while len(training.history) < recipe.total_epochs:
            if options.should_stop is not None and options.should_stop():
                done = len(training.history)
                raise TrainingStopped(f"Stopped after {done} of {recipe.total_epochs} epochs.")
            report = training.run_epoch()
            if options.on_epoch is not None:
                options.on_epoch(report)
    return training.judge()


class _Training:
    """The state of a training: weights, optimiser, averaged weights, finished epochs."""

    def __init__(
        self, network: nn.Module, data: ImageData, recipe: Recipe, options: TrainingOptions
    ) -> None:
        self.data, self.recipe, self.options = data, recipe, options
        self.device = torch.device(options.device)
        self.layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.network = network.to(self.device).to(memory_format=self.layout)
        self.steps = steps_per_epoch(len(options.train_split), recipe)
        self.optimizer = build_optimizer(self.network, recipe)
        self.scheduler = build_scheduler(self.optimizer, recipe, self.steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        # Buffers are averaged like the weights: batch norms then have the statistics, over the
        # same steps, of the features that the averaged weights make.
        self.ema = (
            None
            if recipe.ema_decay is None
            else ModelEmaV3(self.network, decay=recipe.ema_decay, use_warmup=recipe.ema_warmup)
        )
        self.history: list[EpochReport] = []
        if options.out is not None:
            self._load(options.out)

    def run_epoch(self) -> EpochReport:
        """Train for one epoch and write the checkpoint."""
        started = time.perf_counter()
        epoch, options = len(self.history), self.options
        torch.manual_seed(derived_seed(options.seed, "epoch", epoch))
        self.network.train()
        batches = train_batches(
            options.train_split, self.data, self.recipe, epoch=epoch, seed=options.seed
        )
        losses = [self._step(step, *batch) for step, batch in enumerate(batches)]
        report = EpochReport(
            epoch=epoch + 1,
            epochs=self.recipe.total_epochs,
            seconds=time.perf_counter() - started,
            loss=math.fsum(losses) / len(losses),
            lr=self._lr,
        )
        self.history.append(report)
        if options.out is not None:
            write_checkpoint(options.out, report.epoch, self._save)
            write_text(options.out / METRICS_FILE, _to_csv(self.history))
        return report

    def judge(self) -> TrainingResult:
        """Evaluate the weights, and the averaged ones, on the eval split."""
        networks = [self.network] if self.ema is None else [self.network, self.ema.module]
        accuracies = [
            evaluate(
                network,
                eval_batches(
                    self.options.eval_split,
                    self.data,
                    self.recipe.batch_size,
                    self.recipe.crop_pct,
                ),
                self.device,
            )
            for network in networks
        ]
        return TrainingResult(
            raw=accuracies[0],
            ema=None if self.ema is None else accuracies[1],
            ema_network=None if self.ema is None else self.ema.module,
            history=tuple(self.history),
        )

    @property
    def _lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _set_lr(self, epoch: int, updates: int) -> None:
        # Only one of the two does anything, as the recipe says.
        self.scheduler.step_update(updates)
        self.scheduler.step(epoch)

    def _step(self, step: int, images: Tensor, targets: Tensor) -> float:
        """Update the weights with a batch and return its loss."""
        epoch, recipe = len(self.history), self.recipe
        updates = epoch * self.steps + step
        self._set_lr(epoch, updates)
        self.optimizer.zero_grad(set_to_none=True)
        value = math.fsum(
            self._accumulate(*part, share=len(part[0]) / len(images))
            for part in zip(
                images.tensor_split(self.options.micro_batches),
                targets.tensor_split(self.options.micro_batches),
                strict=True,
            )
            if len(part[0])
        )
        if not math.isfinite(value):
            raise FloatingPointError(
                f"The loss is {value} in epoch {epoch + 1} of {recipe.total_epochs}, step "
                f"{step + 1} of {self.steps}, at learning rate {self._lr:.3g}. Lower the recipe's "
                "lr, lengthen its warm-up or set clip_grad."
            )
        if recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.network, step=updates + 1)
        return value

    def _accumulate(self, images: Tensor, targets: Tensor, *, share: float) -> float:
        """Add the gradients of a part of a batch; return its share of the loss."""
        images = images.to(self.device, memory_format=self.layout)
        targets = targets.to(self.device)
        is_mixed_precision = self.recipe.amp != "none"
        with torch.autocast(self.device.type, AMP_DTYPES[self.recipe.amp], is_mixed_precision):
            logits = self.network(images)
        # One formula for class indices and probabilities; equal to timm's two losses.
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
        if share != 1:
            loss = loss * share
        self.scaler.scale(loss).backward()
        return loss.item()

    def _identity(self) -> str:
        """Describe the training, so that a checkpoint of another one is not continued."""
        recipe = self.recipe.model_dump(mode="json", exclude={"name", "about", "source"})
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        sizes = {"images": len(self.options.train_split), "seed": self.options.seed}
        return json.dumps({"recipe": recipe, "network": shapes, **sizes}, sort_keys=True)

    def _save(self, folder: Path) -> None:
        save_model(self.network, str(folder / WEIGHTS_FILE))
        if self.ema is not None:
            save_model(self.ema.module, str(folder / EMA_FILE))
        state = {
            "identity": self._identity(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": [asdict(report) for report in self.history],
        }
        torch.save(state, folder / "state.pt")

    def _load(self, out: Path) -> None:
        folder = latest_checkpoint(out)
        if folder is None:
            return
        state = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        if state["identity"] != self._identity():
            raise ValueError(
                "A training goes on with the recipe, seed, network and images that it began with; "
                f"the one in {out} had others. Choose another folder, or remove this one."
            )
        load_model(self.network, str(folder / WEIGHTS_FILE), device=str(self.device))
        if self.ema is not None:
            load_model(self.ema.module, str(folder / EMA_FILE), device=str(self.device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = [EpochReport(**report) for report in state["history"]]


def _to_csv(history: list[EpochReport]) -> str:
    names = [field.name for field in fields(EpochReport)]
    rows = [[str(getattr(report, name)) for name in names] for report in history]
    return "\n".join(",".join(row) for row in [names, *rows]) + "\n"
