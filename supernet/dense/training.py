"""Training a detector or segmenter as a recipe says, resumable at any checkpoint to the last bit.

Everything random is a function of the seed, the step and the shard, so a checkpoint holds no random
state. A step's gradient, and what batch norms learn in it, is the mean over its shards, whichever
process computes which (`supernet.training.training_step`).
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from searchspace.architecture import Architecture
from supernet.data.dense import DenseSplit
from supernet.dense.batches import TrainOrder, train_batches
from supernet.dense.distillation import DenseLesson, DenseTeacher
from supernet.dense.network import DenseBatch, DenseNetwork
from supernet.dense.sync_norms import sync_batch_norms
from supernet.recipes import DenseRecipe
from supernet.training import (
    AMP_DTYPES,
    STATE_FILE,
    WEIGHTS_FILE,
    BatchStatistics,
    TrainingStopped,
    add_up,
    damage,
    derived_seed,
    latest_checkpoint,
    own_device,
    process_place,
    stops_all,
    write_checkpoint,
    write_text,
)

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """The steps between two checkpoints.

    Attributes:
        step: How many steps are done.
        steps: How many there are.
        seconds: Of these steps.
        loss: Mean over them.
        lr: Of the last.
        images: Seen in them.
    """

    step: int
    steps: int
    seconds: float
    loss: float
    lr: float
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseTrainingOptions:
    """How a training runs.

    Attributes:
        seed: Of order, augmentation and samples; the network comes with its weights.
        device: Torch device.
        out: Folder for checkpoints and ``metrics.csv``; a training found there goes on.
        on_report: Called after every checkpoint.
        should_stop: Asked before every step; what was done since the last checkpoint is kept.
        loader_workers: Processes that make the batches; 0 for this one.
        identity: Of whatever else decides the training, such as the data and what its weights
            start from.
        replaces: Whether a checkpoint of another training in ``out`` is left aside, and this
            training begun; else it is refused.
        teacher: Whom the network learns from as well.
    """

    seed: int
    identity: str = ""
    replaces: bool = False
    device: str = "cpu"
    out: Path | None = None
    on_report: Callable[[StepReport], None] | None = None
    should_stop: Callable[[], bool] | None = None
    loader_workers: int = 0
    teacher: DenseTeacher | None = None


def train_dense(
    network: DenseNetwork, split: DenseSplit, recipe: DenseRecipe, options: DenseTrainingOptions
) -> tuple[StepReport, ...]:
    """Train a network of one architecture in place.

    Returns:
        One report for each checkpoint, also of those before a resumption.

    Raises:
        TrainingStopped: If ``options.should_stop`` said so.
        FloatingPointError: If a loss is not finite.
        ValueError: If ``options.out`` holds another training that it does not replace, or there
            is nothing to learn from.
    """
    training = _Training(network, split, recipe, options)
    device = training.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        training.run()
    return tuple(training.history)


class _Training:
    """The state of a training: weights, optimiser, finished steps."""

    def __init__(
        self,
        network: DenseNetwork,
        split: DenseSplit,
        recipe: DenseRecipe,
        options: DenseTrainingOptions,
    ) -> None:
        self.recipe, self.options = recipe, options
        self.device = own_device(options.device)
        self.rank, self.world_size = process_place()
        if recipe.sync_batch_norm and self.device.type == "cuda" and self.world_size > 1:
            sync_batch_norms(network)
        self.network = network.to(self.device)
        self.order = TrainOrder(split, recipe, options.seed)
        self.steps = recipe.total_steps(self.order.steps_per_epoch)
        self.optimizer = build_optimizer(network, recipe)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        teacher = options.teacher
        self.lesson = None if teacher is None else DenseLesson(teacher, recipe, self.device)
        self.history: list[StepReport] = []
        self.done = 0
        if options.out is not None:
            self._load(options.out)

    def run(self) -> None:
        """Do the steps that are left."""
        self.network.train()
        batches = train_batches(
            self.order,
            self.done,
            self.steps,
            rank=self.rank,
            world_size=self.world_size,
            workers=self.options.loader_workers,
        )
        losses: list[float] = []
        started = time.perf_counter()
        for shards in batches:
            if stops_all(self.options.should_stop, self.device):
                if losses:
                    self._report(losses, started)
                raise TrainingStopped(f"Stopped after {self.done} of {self.steps} steps.")
            losses.append(self._step(shards))
            self.done += 1
            if self.done % self.recipe.checkpoint_steps == 0 or self.done == self.steps:
                self._report(losses, started)
                losses, started = [], time.perf_counter()

    def _step(self, shards: Sequence[DenseBatch]) -> float:
        lr = self.recipe.lr_at(self.done, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        seed = derived_seed(self.options.seed, "step", self.done)
        loss = gradients_of_step(
            self.network,
            shards,
            seed,
            device=self.device,
            amp=self.recipe.amp,
            scaler=self.scaler,
            lesson=self.lesson,
        )
        if not math.isfinite(loss):
            blame = "" if self.lesson is None else self.lesson.blame()
            raise FloatingPointError(
                f"The loss is {loss} in step {self.done + 1} of {self.steps}, at learning rate "
                f"{lr:.3g}. Lower the recipe's lr, lengthen its warm-up or set clip_grad.{blame}"
            )
        if self.recipe.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _report(self, losses: Sequence[float], started: float) -> None:
        self.history.append(
            StepReport(
                step=self.done,
                steps=self.steps,
                seconds=time.perf_counter() - started,
                loss=math.fsum(losses) / len(losses),
                lr=float(self.optimizer.param_groups[0]["lr"]),
                images=len(losses) * self.recipe.batch_size,
            )
        )
        out = self.options.out
        if out is not None and self.rank == 0:
            write_checkpoint(out, self.done, self._save)
            write_text(out / METRICS_FILE, to_csv(self.history))
        if self.world_size > 1:
            dist.barrier()
        if self.options.on_report is not None:
            self.options.on_report(self.history[-1])

    def _identity(self) -> str:
        """Describe the training, so that a checkpoint of another one is not continued."""
        recipe = self.recipe.model_dump(mode="json", exclude={"name", "about", "source"})
        shapes = {name: list(value.shape) for name, value in self.network.state_dict().items()}
        other = {"seed": self.options.seed, "other": self.options.identity}
        other |= {"images": len(self.order.usable)}
        if self.options.teacher is not None:
            other["teacher"] = self.options.teacher.fingerprint
        return json.dumps({"recipe": recipe, "network": shapes, **other}, sort_keys=True)

    def _save(self, folder: Path) -> None:
        save_model(self.network, str(folder / WEIGHTS_FILE))
        state = {
            "identity": self._identity(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": [asdict(report) for report in self.history],
        }
        torch.save(state, folder / STATE_FILE)

    def _load(self, out: Path) -> None:
        folder = latest_checkpoint(out)
        if folder is None:
            return
        if cause := damage(folder):
            logger.warning("The checkpoint %s is damaged, training starts over: %s", folder, cause)
            return
        state = torch.load(folder / STATE_FILE, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity():
            if self.options.replaces:
                logger.warning("%s is of another training, which this one replaces.", folder)
                return
            raise ValueError(
                "A training goes on with the recipe, seed, network and images that it began with; "
                f"the one in {out} had others. Choose another folder, or remove this one."
            )
        load_model(self.network, str(folder / WEIGHTS_FILE), device=str(self.device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = [StepReport(**report) for report in state["history"]]
        self.done = self.history[-1].step


def gradients_of_step(
    network: DenseNetwork,
    shards: Sequence[DenseBatch],
    seed: int,
    *,
    device: torch.device,
    amp: str,
    scaler: torch.amp.GradScaler,
    architectures: Sequence[Architecture | None] = (None,),
    num_shards: int | None = None,
    lesson: DenseLesson | None = None,
) -> float:
    """Leave a step's gradients in the parameters and return its mean loss, over all processes.

    A teacher is asked once for each shard, whatever learns from it.

    Args:
        shards: This process's part of the batch.
        seed: Of the step.
        architectures: Whose mean loss it is; None for a network of one.
        num_shards: Of the whole batch; None where every process has as many as this one.
        lesson: Of a teacher, whom all architectures learn from.
    """
    rank, world_size = process_place()
    count = num_shards or len(shards) * world_size
    statistics = BatchStatistics(network) if count > 1 else None
    losses = []
    for index, shard in enumerate(shards):
        torch.manual_seed(derived_seed(seed, "shard", rank + index * world_size))
        batch = shard.to(device)
        precision = torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "none")
        with precision:
            said = None if lesson is None else lesson.maps(batch)
        for architecture in architectures:
            with precision:
                parts = _losses(network, batch, architecture, lesson, said)
            loss = torch.stack([value.float() for value in parts.values()]).sum()
            loss = loss / (count * len(architectures))
            scaler.scale(loss).backward()
            losses.append(loss.detach())
        if statistics is not None:
            statistics.take(1 / count)
    total = torch.stack(losses).sum()
    if world_size > 1:
        sums = [] if statistics is None else statistics.sums
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        add_up([*gradients, *sums, total])
    if statistics is not None:
        statistics.put()
    return float(total)


def _losses(
    network: DenseNetwork,
    batch: DenseBatch,
    architecture: Architecture | None,
    lesson: DenseLesson | None,
    said: Sequence[Tensor] | None,
) -> dict[str, Tensor]:
    if lesson is None or said is None:
        plain: dict[str, Tensor] = network(batch, architecture)
        return plain
    with lesson.watching(network, architecture) as seen:
        parts: dict[str, Tensor] = network(batch, architecture)
    return parts | lesson.loss(seen.maps, said)


def build_optimizer(network: nn.Module, recipe: DenseRecipe) -> torch.optim.Optimizer:
    """Build AdamW, without weight decay on what the recipe names."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (decayed if recipe.is_decayed(name) else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)


def to_csv(history: Sequence[StepReport]) -> str:
    """Write reports as a table."""
    text = io.StringIO()
    names = [field.name for field in fields(StepReport)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(report) for report in history)
    return text.getvalue()


def read_csv(text: str) -> tuple[StepReport, ...]:
    """Read what `to_csv` wrote."""
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        counts = {name: int(row[name]) for name in ("step", "steps", "images")}
        rest = {name: float(row[name]) for name in ("seconds", "loss", "lr")}
        found.append(StepReport(**counts, **rest))  # type: ignore[arg-type]
    return tuple(found)
