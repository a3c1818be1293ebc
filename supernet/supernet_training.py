"""Training the shared weights: which architectures a step trains, and the resumable trainer.

Each rule names the architectures of one step; the step accumulates their gradients. ``sandwich``
(Yu et al. 2019, slimmable networks; 2020, BigNAS) trains the largest on the labels and lets the
smallest and random ones learn its soft targets (in-place distillation).
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_model, save_model
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.batches import train_batches
from supernet.data import ImageData
from supernet.network import Supernet
from supernet.optimization import build_optimizer
from supernet.recipe import Recipe

logger = logging.getLogger(__name__)

NUM_RANDOM = 2
MAX_BAD_STEPS = 20


Extremes: TypeAlias = tuple[Architecture, Architecture]
Strategy: TypeAlias = Callable[[SearchSpace, random.Random, Extremes], list[Architecture]]


def uniform(space: SearchSpace, rng: random.Random, _: Extremes) -> list[Architecture]:
    """Name one random architecture (single path, uniform sampling; Guo et al. 2019)."""
    return [space.sample(rng)]


def sandwich(space: SearchSpace, rng: random.Random, extremes: Extremes) -> list[Architecture]:
    """Name the largest and the smallest architecture by MACs, and two random ones."""
    return [*extremes, *(space.sample(rng) for _ in range(NUM_RANDOM))]


STRATEGIES: dict[str, Strategy] = {"uniform": uniform, "sandwich": sandwich}


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
        recipe: Batch size, optimiser, augmentation; its epochs are not used, `total_steps` is.
        strategy: One of `STRATEGIES`.
        total_steps: Length of the schedule: warm-up of at most 10 %, then cosine to ``min_lr``.
        seed: Of the weights, the architectures and the order of the data.
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
        device: str = "cpu",
    ) -> None:
        self.space, self.data, self.recipe = space, data, recipe
        self.strategy, self.total_steps, self.seed = strategy, total_steps, seed
        self.device = torch.device(device)
        torch.manual_seed(seed)
        self.supernet = Supernet(space, recipe.drop_path).to(self.device)
        self.optimizer = build_optimizer(self.supernet, recipe)
        self.step = self._bad_steps = 0
        self._extremes = (
            space.extreme("macs", largest=True),
            space.extreme("macs", largest=False),
        )
        self.rank, self.world_size = 0, 1
        if dist.is_initialized():
            self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._split = data.split("train")
        self._epoch_steps = max(len(self._split) // recipe.batch_size, 1)
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())

    def run(self, steps: int) -> Progress:
        """Take so many steps, or fewer where the schedule ends."""
        last = min(self.step + steps, self.total_steps)
        losses = [self._take_step() for _ in range(self.step, last)]
        loss = sum(losses) / len(losses) if losses else float("nan")
        return Progress(step=self.step, loss=loss, lr=self._learning_rate())

    def save(self, folder: Path) -> None:
        """Write ``supernet.safetensors`` and ``training.pt``; the second names the step of both."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / f"supernet-{self.step}.safetensors"
        save_model(self.supernet, str(weights))
        state = {"step": self.step, "weights": weights.name}
        state |= {"total_steps": self.total_steps, "optimizer": self.optimizer.state_dict()}
        state["torch_rng"] = torch.get_rng_state()
        temporary = folder / "training.pt.partial"
        torch.save(state, temporary)
        os.replace(temporary, folder / "training.pt")
        for old in folder.glob("supernet-*.safetensors"):
            if old.name != weights.name:
                old.unlink()

    def load(self, folder: Path) -> bool:
        """Go on from what `save` wrote; False when there is nothing."""
        if not (folder / "training.pt").exists():
            return False
        state = torch.load(folder / "training.pt", map_location=self.device, weights_only=True)
        load_model(self.supernet, str(folder / state["weights"]), device=str(self.device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.total_steps = state["step"], state["total_steps"]
        torch.set_rng_state(state["torch_rng"].cpu())
        self._batches = iter(())
        return True

    def _take_step(self) -> float:
        share = slice(self.rank, None, self.world_size)
        images, labels = (tensor[share].to(self.device) for tensor in self._next_batch())
        architectures = STRATEGIES[self.strategy](
            self.space, random.Random(f"{self.seed}/{self.step}"), self._extremes
        )
        self.supernet.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradients(self.supernet, architectures, images, labels, self.recipe)
        if self.world_size > 1:
            average_gradients(self.supernet.parameters(), self.world_size)
        self._check_finite(loss, architectures[0])
        if self.recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.step += 1
        return loss

    def _check_finite(self, loss: float, architecture: Architecture) -> None:
        """Let one diverging architecture not spoil the weights of all; stop when it is the rule.

        Raises:
            FloatingPointError: After `MAX_BAD_STEPS` steps in a row without a finite loss.
        """
        self._bad_steps = 0 if math.isfinite(loss) else self._bad_steps + 1
        if self._bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"The supernet's loss was not finite in {MAX_BAD_STEPS} steps, at last at step "
                f"{self.step} for architecture {architecture.key}. Lower the recipe's lr, or "
                "forbid the choices that diverge in the space file."
            )
        for parameter in self.supernet.parameters():
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)

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
) -> float:
    """Add up the gradients of the architectures' mean loss; later ones learn from the first.

    Args:
        images: Shape (B, in_chans, S, S).
        labels: Class indices (B,) or, after mixup, class probabilities (B, num_classes).

    Returns:
        The first architecture's loss on the labels.
    """
    soft_targets: Tensor | None = None
    first = float("nan")
    for architecture in architectures:
        logits = supernet(images, architecture)
        if soft_targets is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            soft_targets = logits.detach().softmax(-1)
            first = loss.item()
        else:
            loss = F.cross_entropy(logits, soft_targets)
        (loss / len(architectures)).backward()
    return first
