"""Training the shared weights of classifiers: the resumable, distributed trainer.

With a teacher all architectures of a step learn from what it says about its batch, which it is
asked once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.data import ImageData
from supernet.mixers import WeightSharing
from supernet.network import Supernet
from supernet.recipes import Recipe
from supernet.shared_weights.ema import SharedEma
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.shared_training import SharedTraining, shared_optimizer
from supernet.shared_weights.strategies import DISTILLING
from supernet.shared_weights.usage import UsedWeights
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
    steps_per_epoch,
)

# Shards go through the network together up to so many images: fewer, larger operators, in memory
# that every device has.
PASS_IMAGES = 64


class SupernetTrainer(SharedTraining):
    """Trains a supernet; see `SharedTraining`.

    Each process alone makes its shards of the batch. Their gradients are weighted by their images
    and summed: how many processes share the shards changes the rounding of sums, and nothing else
    but the draws of dropped paths.

    Args:
        space: The space; its number of classes is the data's.
        data: Where the train split comes from.
        recipe: Batch size, learning rate, augmentation, dropped paths, averaging, precision; its
            epochs are not used, `total_steps` is. See `check_shared_recipe`.
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

    recipe: Recipe
    supernet: Supernet

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
        check_shared_recipe(recipe)
        check_shared_lesson(recipe, given=teacher is not None)
        super().__init__(
            space,
            recipe,
            strategy=strategy,
            total_steps=total_steps,
            seed=seed,
            device=torch.device(device),
        )
        torch.manual_seed(seed)
        self.supernet = Supernet(space, recipe.drop_path, sharing=sharing).to(self.device)
        self.supernet.grad_checkpointing = recipe.gradient_checkpointing
        self.optimizer = build_shared_optimizer(self.supernet, recipe)
        self.used_weights = UsedWeights(self.supernet)
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

    @property
    def shared(self) -> Supernet:
        """All of it."""
        return self.supernet

    def _gradients(self, architectures: Sequence[Architecture]) -> Tensor:
        """Leave the gradients of the next batch; return the mean loss of this process."""
        shards = self._next_shards()
        # Dropped paths are a function of the step, so that a checkpoint holds no random state.
        torch.manual_seed(derived_seed(self.seed, "step", self.step, self.rank))
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
        if self.world_size > 1:
            # The ranks ran the same architectures: the same parameters have gradients everywhere.
            add_up([p.grad for p in self.supernet.parameters() if p.grad is not None])
        return torch.stack(losses).sum()

    def _next_shards(self) -> list[Shard]:
        shards = next(self._batches, None)
        if shards is None:
            epoch, position = divmod(self.step, self._epoch_steps)
            self._batches = self._loader.epoch(epoch, self.seed, start=position)
            shards = next(self._batches)
        self._feed_seconds += sum(shard.read_seconds + shard.augment_seconds for shard in shards)
        return shards

    def _blame(self) -> str:
        return "" if self._lesson is None else self._lesson.blame()

    def _learning_rate(self) -> float:
        peak = self.recipe.peak_lr(self.recipe.batch_size)
        warmup = max(1, min(self.total_steps // 10, 5 * self._epoch_steps))
        if self.step < warmup:
            return peak * (self.step + 1) / warmup
        done = min((self.step - warmup) / max(self.total_steps - warmup, 1), 1.0)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item())
        least = self.recipe.min_lr * self.recipe.lr_factor(self.recipe.batch_size)
        return least + (peak - least) * cosine


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


def build_shared_optimizer(supernet: Supernet, recipe: Recipe) -> SharedAdamW:
    """Build the recipe's AdamW for shared weights: its groups, learning rate, decay and betas."""
    return shared_optimizer(build_optimizer(supernet, recipe))


def check_shared_lesson(recipe: Recipe, *, given: bool) -> None:
    """Refuse a teacher where a recipe of shared weights does not say how to learn its logits."""
    check_teacher(recipe, given=given)
    settings = recipe.distillation
    if given and settings is not None and (settings.tokens or settings.features):
        raise ValueError(
            "Shared weights learn a teacher's logits: their maps and features are those of many "
            f"networks. In {recipe.name} write tokens: 0 and features: 0 under distillation."
        )


def check_shared_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that shared weights cannot follow.

    Raises:
        ValueError: If its optimiser is not adamw, or it compiles or has label maps.
    """
    if recipe.optimizer != "adamw":
        raise ValueError(
            "Shared weights are trained with adamw, which leaves unused ones alone, got the "
            f"optimizer {recipe.optimizer!r} in the recipe {recipe.name!r}. Write adamw there."
        )
    if recipe.compile:
        raise ValueError(
            "Every step of shared weights runs other networks, each of which torch.compile would "
            f"compile anew. In {recipe.name} write compile: false."
        )
    if recipe.token_labels is not None:
        raise ValueError(
            "Shared weights do not learn from label maps. In "
            f"{recipe.name} write token_labels: null."
        )
