"""What all trainings of shared weights do, whatever network stands around the weights.

A step names its architectures (`strategies`), adds up their gradients on one batch, and changes
what they use and nothing else (`usage`, `shared_adamw`).
"""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.network import Supernet
from supernet.recipes import DenseRecipe, Recipe
from supernet.shared_weights.checkpoint import load_training, save_supernet
from supernet.shared_weights.ema import SharedEma
from supernet.shared_weights.shared_adamw import SharedAdamW
from supernet.shared_weights.strategies import strategy_named
from supernet.shared_weights.usage import Usage, UsedWeights
from supernet.training import process_place

MAX_BAD_STEPS = 20


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


class SharedTraining(ABC):
    """Trains shared weights step by step; every step is a function of the seed and its number.

    Processes of the default `torch.distributed` group train them together: all of them the same
    architectures, each on its own shards of the batch.

    Args:
        space: What is searched.
        recipe: Precision and largest norm of the gradients; the rest is its trainer's to follow.
        strategy: Which architectures a step trains, one of `strategies.STRATEGIES`.
        total_steps: Length of the schedule.
        seed: Of the architectures.
        device: Torch device.

    Attributes:
        supernet: What is trained.
        optimizer: Of it.
        used_weights: Which of its elements architectures use.
        ema: The average of its weights, where there is one.
    """

    recipe: Recipe | DenseRecipe
    supernet: nn.Module
    optimizer: SharedAdamW
    used_weights: UsedWeights
    ema: SharedEma | None = None

    def __init__(
        self,
        space: SearchSpace,
        recipe: Recipe | DenseRecipe,
        *,
        strategy: str,
        total_steps: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.space, self.recipe, self.device, self.seed = space, recipe, device, seed
        self.strategy, self.total_steps = strategy, total_steps
        self._choose = strategy_named(strategy)
        self.rank, self.world_size = process_place()
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self.step, self._bad = 0, _BadSteps.none(device)
        self._extremes = (
            space.extreme("macs", largest=True),
            space.extreme("macs", largest=False),
        )
        self._batches: Iterator[Any] = iter(())
        self._feed_seconds = 0.0

    @property
    @abstractmethod
    def shared(self) -> Supernet:
        """The shared weights, where they are a part of what is trained."""

    @abstractmethod
    def _gradients(self, architectures: Sequence[Architecture]) -> Tensor:
        """Leave the gradients of the next batch, of all processes; return the mean loss."""

    @abstractmethod
    def _learning_rate(self) -> float: ...

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
        return Snapshot(
            step=self.step,
            supernet=self.shared,
            averaged=None if self.ema is None else self.ema.supernet,
            training=training,
            heads=None if self.shared is self.supernet else self.supernet,
        )

    def load(self, folder: Path) -> bool:
        """Go on from what `save` wrote; False when there is nothing."""
        now = self._state()
        state = load_training(
            folder, now.supernet, now.averaged, device=self.device, heads=now.heads
        )
        if state is None:
            return False
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.total_steps = state["step"], state["total_steps"]
        self._bad = _BadSteps.none(self.device, state["bad_steps"])
        self._batches = iter(())
        return True

    def _take_step(self) -> Tensor:
        architectures = self._architectures(self.step)
        self.supernet.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(architectures)
        self._update(architectures)
        self.step += 1
        return loss

    def _architectures(self, step: int) -> list[Architecture]:
        """Name the architectures of a step."""
        rng = random.Random(f"{self.seed}/{step}")
        return self._choose(self.space, rng, self._extremes)

    def _update(self, architectures: Sequence[Architecture]) -> None:
        """Change the weights that the architectures use, unless their gradients are not finite."""
        self.scaler.unscale_(self.optimizer)
        used = self.used_weights(architectures)
        # One diverging architecture must not spoil the weights of all.
        applies = apply_gradients(self.optimizer, used, clip_grad=self.recipe.clip_grad)
        if self.ema is not None:
            self.ema.update(self.shared, self.optimizer, used, applies)
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
            f"{last} for architecture {self._architectures(last)[0].key}. Lower the lr of the "
            f"recipe {self.recipe.name}, or forbid the choices that diverge in the space file."
            f"{self._blame()}"
        )

    def _blame(self) -> str:
        """Say that a teacher has said what is no number, where it has; empty otherwise."""
        return ""


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
