"""Training the shared weights: the resumable, distributed trainer.

A step names its architectures (`strategies`), adds up their gradients on one batch, and changes
what they use and nothing else (`usage`, `shared_adamw`).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.data import ImageData
from supernet.mixers.weight_sharing import WeightSharing
from supernet.network.supernet import Supernet
from supernet.recipes.recipe import Recipe
from supernet.shared_weights.checkpoint import load_training, save_supernet
from supernet.shared_weights.ema import SharedEma
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.strategies import DISTILLING, strategy_named
from supernet.shared_weights.usage import Usage, UsedWeights
from supernet.training.batches import steps_per_epoch, train_batches
from supernet.training.optimization import build_optimizer
from supernet.training.seeding import derived_seed
from supernet.training.training_step import AMP_DTYPES

logger = logging.getLogger(__name__)

MAX_BAD_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a training stands: steps done, mean loss of the last call, learning rate."""

    step: int
    loss: float
    lr: float


class SupernetTrainer:
    """Train a supernet step by step; every step is a function of the seed and its number.

    Several processes (ranks of the default `torch.distributed` group) train one supernet: all of
    them the same architectures, each on its share of the batch, with averaged gradients.

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
    ) -> None:
        _check(recipe, strategy)
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
        self.step = self._bad_steps = 0
        self._extremes = (
            space.extreme("macs", largest=True),
            space.extreme("macs", largest=False),
        )
        self.rank, self.world_size = 0, 1
        if dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._split = data.split("train")
        self._epoch_steps = steps_per_epoch(len(self._split), recipe)
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())

    def run(self, steps: int) -> Progress:
        """Take so many steps, or fewer where the schedule ends."""
        last = min(self.step + steps, self.total_steps)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            losses = [self._take_step() for _ in range(self.step, last)]
        loss = sum(losses) / len(losses) if losses else float("nan")
        return Progress(step=self.step, loss=loss, lr=self._learning_rate())

    def save(self, folder: Path) -> None:
        """Write the checkpoint; see `supernet.shared_weights.checkpoint`."""
        state = {
            "step": self.step,
            "total_steps": self.total_steps,
            "bad_steps": self._bad_steps,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        averaged = None if self.ema is None else self.ema.supernet
        save_supernet(
            folder, step=self.step, supernet=self.supernet, averaged=averaged, training=state
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
        self._bad_steps = state["bad_steps"]
        self._batches = iter(())
        return True

    def _take_step(self) -> float:
        share = slice(self.rank, None, self.world_size)
        images, labels = (tensor[share].to(self.device) for tensor in self._next_batch())
        architectures = strategy_named(self.strategy)(
            self.space, random.Random(f"{self.seed}/{self.step}"), self._extremes
        )
        # Dropped paths are a function of the step, so that a checkpoint holds no random state.
        torch.manual_seed(derived_seed(self.seed, "step", self.step, self.rank))
        self.supernet.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradients(
            self.supernet,
            architectures,
            images,
            labels,
            self.recipe,
            distil=self.strategy in DISTILLING,
            scaler=self.scaler,
        )
        if self.world_size > 1:
            average_gradients(self.supernet.parameters(), self.world_size)
        self._update(architectures)
        self.step += 1
        return loss

    def _update(self, architectures: Sequence[Architecture]) -> None:
        """Change the weights that the architectures use, unless their gradients are not finite.

        Raises:
            FloatingPointError: After `MAX_BAD_STEPS` steps in a row without a finite gradient.
        """
        self.scaler.unscale_(self.optimizer)
        used = self.used_weights(architectures)
        if apply_gradients(self.optimizer, used, clip_grad=self.recipe.clip_grad):
            self._bad_steps = 0
            if self.ema is not None:
                self.ema.update(self.supernet, self.optimizer, used)
        else:
            # One diverging architecture must not spoil the weights of all.
            self._bad_steps += 1
        if self.scaler.is_enabled():
            self.scaler.update()
        if self._bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"The supernet's gradients were not finite in {MAX_BAD_STEPS} steps, at last at "
                f"step {self.step} for architecture {architectures[0].key}. Lower the recipe's "
                "lr, or forbid the choices that diverge in the space file."
            )

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        batch = next(self._batches, None)
        if batch is None:
            epoch, position = divmod(self.step, self._epoch_steps)
            batches = train_batches(
                self._split, self.data, self.recipe, epoch=epoch, seed=self.seed
            )
            for _ in range(position):
                next(batches)
            self._batches = batches
            batch = next(batches)
        return batch

    def _learning_rate(self) -> float:
        peak = self.recipe.peak_lr(self.recipe.batch_size)
        warmup = max(1, min(self.total_steps // 10, 5 * self._epoch_steps))
        if self.step < warmup:
            return peak * (self.step + 1) / warmup
        done = min((self.step - warmup) / max(self.total_steps - warmup, 1), 1.0)
        cosine = 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)).item())
        return self.recipe.min_lr + (peak - self.recipe.min_lr) * cosine


def average_gradients(parameters: Iterable[Tensor], world_size: int) -> None:
    """Replace gradients by their mean over all ranks, in one message.

    The ranks ran the same architectures, so the same parameters have gradients everywhere.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    message /= world_size
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, message.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))


def accumulate_gradients(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    distil: bool = False,
    scaler: torch.amp.GradScaler | None = None,
) -> float:
    """Add up the gradients of the architectures' mean loss, in the recipe's precision.

    Args:
        images: Shape (B, in_chans, S, S).
        labels: Class indices (B,) or, after mixup, class probabilities (B, num_classes).
        distil: The first architecture learns the labels, the others its soft targets; without,
            all learn the labels.
        scaler: For fp16; the gradients are then scaled.

    Returns:
        The first architecture's loss on the labels.
    """
    soft_targets: Tensor | None = None
    first: Tensor | None = None
    for architecture in architectures:
        with torch.autocast(images.device.type, AMP_DTYPES[recipe.amp], recipe.amp != "none"):
            logits = supernet(images, architecture)
        logits = logits.float()
        if soft_targets is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            soft_targets = logits.detach().softmax(-1) if distil else None
        else:
            loss = F.cross_entropy(logits, soft_targets)
        first = loss.detach() if first is None else first
        share = loss / len(architectures)
        (share if scaler is None else scaler.scale(share)).backward()
    return float("nan") if first is None else first.item()


def apply_gradients(optimizer: SharedAdamW, used: Usage, *, clip_grad: float | None) -> bool:
    """Clip the gradients and change the used weights, unless a gradient is not finite.

    Args:
        clip_grad: Largest norm of all gradients; None for any.

    Returns:
        Whether the weights were changed.
    """
    trained = [parameter for parameter in used if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if not math.isfinite(norm.item()):
        return False
    if clip_grad is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, clip_grad, norm)
    optimizer.update(used)
    return True


def build_shared_optimizer(supernet: Supernet, recipe: Recipe) -> SharedAdamW:
    """Build the recipe's AdamW for shared weights: its groups, learning rate, decay and betas."""
    wanted = build_optimizer(supernet, recipe)
    names = ("params", "lr", "betas", "eps", "weight_decay")
    groups = [{name: group[name] for name in names} for group in wanted.param_groups]
    return SharedAdamW(groups, fused=True)


def _check(recipe: Recipe, strategy: str) -> None:
    if recipe.optimizer != "adamw":
        raise ValueError(
            "Shared weights are trained with adamw, which leaves unused ones alone, got the "
            f"optimizer {recipe.optimizer!r} in the recipe {recipe.name!r}. Write adamw there."
        )
    strategy_named(strategy)
