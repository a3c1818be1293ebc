"""Training the shared weights: the resumable, distributed trainer.

A step names its architectures (`strategies`), adds up their gradients on one batch, and changes
what they use and nothing else (`usage`, `shared_adamw`). With a teacher all architectures of a step
learn from what it says about that batch, which it is asked once.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.data import ImageData
from supernet.mixers import WeightSharing
from supernet.network import Supernet
from supernet.recipes import Recipe
from supernet.shared_weights.checkpoint import load_training, save_supernet
from supernet.shared_weights.ema import SharedEma
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.strategies import DISTILLING, strategy_named
from supernet.shared_weights.usage import Usage, UsedWeights
from supernet.training import (
    AMP_DTYPES,
    Lesson,
    Shard,
    Teacher,
    TrainLoader,
    add_up,
    build_optimizer,
    check_teacher,
    derived_seed,
    process_place,
    steps_per_epoch,
)

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 20
# Shards go through the network together up to so many images: fewer, larger operators, in memory
# that every device has.
PASS_IMAGES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a training stands.

    Attributes:
        step: Steps done.
        loss: Mean of the last call's steps, over this process's images.
        lr: Learning rate.
        feed_seconds: That making this process's images of one step took, wherever they were made.
    """

    step: int
    loss: float
    lr: float
    feed_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What a checkpoint holds; see `supernet.shared_weights.checkpoint.save_supernet`."""

    step: int
    supernet: Supernet
    averaged: Supernet | None
    training: Mapping[str, Any]
    heads: nn.Module | None = None

    def copied(self) -> Snapshot:
        """Copy it into the CPU's memory."""
        # What belongs together is copied together: the supernet may be a part of another network.
        supernet, averaged, heads = copy.deepcopy((self.supernet, self.averaged, self.heads))
        return replace(
            self,
            supernet=supernet.cpu(),
            averaged=None if averaged is None else averaged.cpu(),
            heads=None if heads is None else heads.cpu(),
            training=_copied(self.training),
        )

    def write(self, folder: Path) -> None:
        """Write the checkpoint."""
        save_supernet(
            folder,
            step=self.step,
            supernet=self.supernet,
            averaged=self.averaged,
            training=self.training,
            heads=self.heads,
        )


@dataclass(slots=True)
class _BadSteps:
    """How many steps in a row were not taken, counted on the device.

    Attributes:
        in_a_row: Until now.
        most_in_a_row: Ever.
        last: The number of the last one.
    """

    in_a_row: Tensor
    most_in_a_row: Tensor
    last: Tensor

    @classmethod
    def none(cls, device: torch.device, in_a_row: int = 0) -> _BadSteps:
        """Begin to count, after so many."""
        return cls(*torch.tensor([in_a_row, in_a_row, 0], device=device).unbind())

    def count(self, applies: Tensor, step: int) -> None:
        """Count a step."""
        self.in_a_row = torch.where(applies, 0, self.in_a_row + 1)
        self.most_in_a_row = torch.maximum(self.most_in_a_row, self.in_a_row)
        self.last = torch.where(applies, self.last, step)


class SupernetTrainer:
    """Train a supernet step by step; every step is a function of the seed and its number.

    Several processes (ranks of the default `torch.distributed` group) train one supernet: all of
    them the same architectures, each on its own shards of the batch, which it alone makes. Their
    gradients are weighted by their images and summed: how many processes share the shards changes
    the rounding of sums, and nothing else but the draws of dropped paths.

    Args:
        space: The space; its number of classes is the data's.
        data: Where the train split comes from.
        recipe: Batch size, learning rate, augmentation, dropped paths, averaging, precision; its
            epochs are not used, `total_steps` is. Its optimiser must be adamw.
        strategy: One of `STRATEGIES`.
        total_steps: Length of the schedule: warm-up of at most 10 %, then cosine to ``min_lr``.
        seed: Of the weights, the architectures and the order of the data.
        sharing: What the choices of a block share; by default little.
        device: Torch device.
        loader_workers: Processes that make the batches of this one; 0 for itself.
        teacher: Whom all architectures learn from, as the recipe's distillation says.

    Raises:
        ValueError: If the recipe does not do, or has fewer shards than there are processes.
    """

    def __init__(
        self,
        space: SearchSpace,
        data: ImageData,
        recipe: Recipe,
        *,
        strategy: str,
        total_steps: int,
        seed: int,
        sharing: WeightSharing | None = None,
        device: str = "cpu",
        loader_workers: int = 0,
        teacher: Teacher | None = None,
    ) -> None:
        _check(recipe, strategy)
        check_shared_lesson(recipe, given=teacher is not None)
        self.space, self.data, self.recipe = space, data, recipe
        self.strategy, self.total_steps, self.seed = strategy, total_steps, seed
        self.device = torch.device(device)
        torch.manual_seed(seed)
        self.supernet = Supernet(space, recipe.drop_path, sharing=sharing).to(self.device)
        self.optimizer = build_shared_optimizer(self.supernet, recipe)
        self.used_weights = UsedWeights(self.supernet)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.amp == "fp16")
        self.ema = (
            None
            if recipe.ema_decay is None
            else SharedEma(self.supernet, decay=recipe.ema_decay, warmup=recipe.ema_warmup)
        )
        self._lesson = (
            None
            if teacher is None or recipe.distillation is None
            else Lesson(teacher, recipe.distillation, data.mean, data.std, self.device)
        )
        self.step, self._bad = 0, _BadSteps.none(self.device)
        self._extremes = (
            space.extreme("macs", largest=True),
            space.extreme("macs", largest=False),
        )
        self.rank, self.world_size = process_place()
        split = data.split("train")
        self._epoch_steps = steps_per_epoch(len(split), recipe)
        self._loader = TrainLoader(
            split,
            data,
            recipe,
            rank=self.rank,
            world_size=self.world_size,
            workers=loader_workers,
        )
        self._batches: Iterator[list[Shard]] = iter(())
        self._feed_seconds = 0.0

    def run(self, steps: int) -> Progress:
        """Take so many steps, or fewer where the schedule ends."""
        last, self._feed_seconds = min(self.step + steps, self.total_steps), 0.0
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            losses = []
            while self.step < last:
                losses.append(self._take_step())
                if len(losses) % MAX_BAD_STEPS == 0:
                    self._check_bad_steps()
        # Read once a call: what waits for a number of the device at every step leaves it idle.
        loss = torch.stack(losses).mean().item() if losses else float("nan")
        self._check_bad_steps()
        return Progress(
            step=self.step,
            loss=loss,
            lr=self._learning_rate(),
            feed_seconds=self._feed_seconds / max(len(losses), 1),
        )

    def rewind(self) -> None:
        """Go back to the first step with the weights that there are, to take the same steps."""
        self.step, self._batches = 0, iter(())

    def save(self, folder: Path) -> None:
        """Write the checkpoint; see `supernet.shared_weights.checkpoint`."""
        self._state().write(folder)

    def snapshot(self) -> Snapshot:
        """Copy what a checkpoint holds into the CPU's memory; steps go on while it is written."""
        return self._state().copied()

    def _state(self) -> Snapshot:
        """Return what a checkpoint holds, as it is now."""
        training = {
            "step": self.step,
            "total_steps": self.total_steps,
            "bad_steps": int(self._bad.in_a_row),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        averaged = None if self.ema is None else self.ema.supernet
        return Snapshot(
            step=self.step, supernet=self.supernet, averaged=averaged, training=training
        )

    def load(self, folder: Path) -> bool:
        """Go on from what `save` wrote; False when there is nothing."""
        averaged = None if self.ema is None else self.ema.supernet
        state = load_training(folder, self.supernet, averaged, device=self.device)
        if state is None:
            return False
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.total_steps = state["step"], state["total_steps"]
        self._bad = _BadSteps.none(self.device, state["bad_steps"])
        self._batches = iter(())
        return True

    def _take_step(self) -> Tensor:
        shards = self._next_shards()
        architectures = self._architectures(self.step)
        # Dropped paths are a function of the step, so that a checkpoint holds no random state.
        torch.manual_seed(derived_seed(self.seed, "step", self.step, self.rank))
        self.supernet.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(architectures, shards)
        if self.world_size > 1:
            # The ranks ran the same architectures: the same parameters have gradients everywhere.
            add_up([p.grad for p in self.supernet.parameters() if p.grad is not None])
        self._update(architectures)
        self.step += 1
        return loss

    def _gradients(self, architectures: Sequence[Architecture], shards: Sequence[Shard]) -> Tensor:
        """Add up the gradients of this process's shards; return the mean loss over its images."""
        total = sum(shard.share for shard in shards)
        losses = []
        for images, targets, share in passes_of(shards, self.device):
            loss = accumulate_gradients(
                self.supernet,
                architectures,
                images,
                targets,
                self.recipe,
                distil=self.strategy in DISTILLING,
                scaler=self.scaler,
                weight=share,
                lesson=self._lesson,
                progress=self.step / self.total_steps,
            )
            losses.append(loss * (share / total))
        return torch.stack(losses).sum()

    def _architectures(self, step: int) -> list[Architecture]:
        """Name the architectures of a step."""
        rng = random.Random(f"{self.seed}/{step}")
        return strategy_named(self.strategy)(self.space, rng, self._extremes)

    def _update(self, architectures: Sequence[Architecture]) -> None:
        """Change the weights that the architectures use, unless their gradients are not finite."""
        self.scaler.unscale_(self.optimizer)
        used = self.used_weights(architectures)
        # One diverging architecture must not spoil the weights of all.
        applies = apply_gradients(self.optimizer, used, clip_grad=self.recipe.clip_grad)
        if self.ema is not None:
            self.ema.update(self.supernet, self.optimizer, used, applies)
        self._bad.count(applies, self.step)
        if self.scaler.is_enabled():
            self.scaler.update()

    def _check_bad_steps(self) -> None:
        """See that not all of many steps in a row had gradients that are not finite.

        Raises:
            FloatingPointError: After `MAX_BAD_STEPS` of them.
        """
        if int(self._bad.most_in_a_row) < MAX_BAD_STEPS:
            return
        last = int(self._bad.last)
        raise FloatingPointError(
            f"The supernet's gradients were not finite in {MAX_BAD_STEPS} steps, at last at step "
            f"{last} for architecture {self._architectures(last)[0].key}. Lower the recipe's lr, "
            "or forbid the choices that diverge in the space file."
            f"{'' if self._lesson is None else self._lesson.blame()}"
        )

    def _next_shards(self) -> list[Shard]:
        shards = next(self._batches, None)
        if shards is None:
            epoch, position = divmod(self.step, self._epoch_steps)
            self._batches = self._loader.epoch(epoch, self.seed, start=position)
            shards = next(self._batches)
        self._feed_seconds += sum(shard.read_seconds + shard.augment_seconds for shard in shards)
        return shards

    def _learning_rate(self) -> float:
        peak = self.recipe.peak_lr(self.recipe.batch_size)
        warmup = max(1, min(self.total_steps // 10, 5 * self._epoch_steps))
        if self.step < warmup:
            return peak * (self.step + 1) / warmup
        done = min((self.step - warmup) / max(self.total_steps - warmup, 1), 1.0)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item())
        return self.recipe.min_lr + (peak - self.recipe.min_lr) * cosine


def passes_of(
    shards: Sequence[Shard], device: torch.device
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Finish shards on a device, and put them together up to `PASS_IMAGES`.

    Yields:
        Images (B, 3, S, S), targets (B,) or (B, num_classes), and their share of the step's batch.
    """
    largest = max(len(shard) for shard in shards)
    together = max(PASS_IMAGES // max(largest, 1), 1)
    for first in range(0, len(shards), together):
        part = shards[first : first + together]
        made = [shard.finished(device) for shard in part]
        images, targets = made[0] if len(made) == 1 else map(torch.cat, zip(*made, strict=True))
        yield images, targets, sum(shard.share for shard in part)


def accumulate_gradients(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    distil: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    weight: float = 1.0,
    lesson: Lesson | None = None,
    progress: float = 1.0,
) -> Tensor:
    """Add up the gradients of the architectures' mean loss, in the recipe's precision.

    Args:
        images: Shape (B, in_chans, S, S).
        labels: Class indices (B,) or, after mixup, class probabilities (B, num_classes).
        distil: The first architecture learns the labels, the others its soft targets; without,
            all learn the labels.
        scaler: For fp16; the gradients are then scaled.
        weight: Of the loss: the images' share of a step's batch.
        lesson: Of a teacher, which hears the batch once; all architectures learn its logits.
        progress: Share of the steps that are over, for the teacher.

    Returns:
        The first architecture's loss on the labels, without the weight, on the images' device.
    """
    soft_targets: Tensor | None = None
    first: Tensor | None = None
    precision = torch.autocast(images.device.type, AMP_DTYPES[recipe.amp], recipe.amp != "none")
    with precision:
        said = None if lesson is None else lesson.logits(images).float()
    for architecture in architectures:
        with precision:
            logits = supernet(images, architecture)
        logits = logits.float()
        if soft_targets is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            soft_targets = logits.detach().softmax(-1) if distil else None
        else:
            loss = F.cross_entropy(logits, soft_targets)
        first = loss.detach() if first is None else first
        if lesson is not None and said is not None:
            loss = lesson.loss(logits, said, loss, progress=progress)
        share = loss / len(architectures) * weight
        (share if scaler is None else scaler.scale(share)).backward()
    return torch.tensor(float("nan")) if first is None else first


def apply_gradients(optimizer: SharedAdamW, used: Usage, *, clip_grad: float | None) -> Tensor:
    """Clip the gradients and change the used weights, unless a gradient is not finite.

    Args:
        clip_grad: Largest norm of all gradients; None for any.

    Returns:
        Whether the weights were changed; on the device, where nobody has waited for it.
    """
    trained = [parameter for parameter in used if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, clip_grad, norm)
    applies = norm.isfinite()
    optimizer.update(used, applies)
    return applies


def build_shared_optimizer(supernet: Supernet, recipe: Recipe) -> SharedAdamW:
    """Build the recipe's AdamW for shared weights: its groups, learning rate, decay and betas."""
    return shared_optimizer(build_optimizer(supernet, recipe))


def shared_optimizer(wanted: torch.optim.Optimizer) -> SharedAdamW:
    """Turn an AdamW into one for shared weights."""
    names = ("params", "lr", "betas", "eps", "weight_decay")
    groups = [{name: group[name] for name in names} for group in wanted.param_groups]
    return SharedAdamW(groups, fused=True)


def _copied(value: Any) -> Any:
    """Copy the tensors of nested dictionaries and lists into the CPU's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def check_shared_lesson(recipe: Recipe, *, given: bool) -> None:
    """Refuse a teacher where a recipe of shared weights does not say how to learn its logits."""
    check_teacher(recipe, given=given)
    settings = recipe.distillation
    if given and settings is not None and (settings.tokens or settings.features):
        raise ValueError(
            "Shared weights learn a teacher's logits: their maps and features are those of many "
            f"networks. In {recipe.name} write tokens: 0 and features: 0 under distillation."
        )


def _check(recipe: Recipe, strategy: str) -> None:
    if recipe.optimizer != "adamw":
        raise ValueError(
            "Shared weights are trained with adamw, which leaves unused ones alone, got the "
            f"optimizer {recipe.optimizer!r} in the recipe {recipe.name!r}. Write adamw there."
        )
    strategy_named(strategy)
