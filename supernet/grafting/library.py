"""The library: every part learns alone to do what the teacher's own mixer or MLP does.

A part is given what the teacher gives to its mixer or MLP, and learns to add what those add there.
Its loss is the squared error over the square of what there is to learn,
``|y - t|^2 / |t|^2`` (block-wise local distillation, as in Puzzle, Bercovich et al. 2024): 1 is
what adding nothing has.
Labels play no part. All parts learn from one pass of the teacher; no part knows of another, so
they may be split over devices. A checkpoint goes on to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from searchspace.graft_space import Replacement
from supernet.data import ImageData, Split
from supernet.grafting.parts import Part, block_name, new_part, part_name
from supernet.grafting.records import BlockRecord, Record, record_blocks
from supernet.network import Supernet
from supernet.recipes import Recipe
from supernet.training import (
    Shard,
    TrainLoader,
    build_optimizer,
    checkpoint_name,
    damage,
    derived_seed,
    latest_checkpoint,
    steps_per_epoch,
    write_checkpoint,
)

PARTS_FILE = "parts.safetensors"
STATE_FILE = "state.pt"
WARMUP_SHARE = 0.05
# A step counts as much as this in the running mean of a part's error.
ERROR_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class LibraryProgress:
    """How far the parts are: steps, and the mean over parts of their running errors."""

    step: int
    error: float


class LibraryTrainer:
    """Trains parts together, each with a loss of its own.

    Args:
        teacher: The trained network, in eval mode.
        keys: Which parts.
        data: Images; the train split is learned from.
        split: Learned from instead, e.g. with images that have no class.
        recipe: Batches, augmentation, optimiser, and the largest gradient of a part.
        total_steps: Length of the schedule, a cosine with a short warm-up.
        seed: Of weights, order and augmentation.
        device: Torch device.
        order: `hidden_order` of the teacher, for narrower MLPs to start from.
        loader_workers: Processes that make batches.
    """

    def __init__(
        self,
        teacher: Supernet,
        keys: Sequence[Replacement],
        data: ImageData,
        recipe: Recipe,
        *,
        total_steps: int,
        seed: int,
        order: Mapping[str, Tensor],
        split: Split | None = None,
        device: str = "cpu",
        loader_workers: int = 0,
    ) -> None:
        self.teacher = teacher.to(device).eval().requires_grad_(False)
        self.keys, self.recipe, self.seed = tuple(keys), recipe, seed
        self.total_steps, self.step, self.device = total_steps, 0, torch.device(device)
        self.parts = nn.ModuleList(
            new_part(teacher, key, seed=derived_seed(seed, "part", part_name(key)), order=order)
            for key in self.keys
        ).to(device)
        self.errors = [1.0] * len(self.keys)
        split = data.split("train") if split is None else split
        self._steps_per_epoch = steps_per_epoch(len(split), recipe)
        self._loader = TrainLoader(split, data, recipe, workers=loader_workers)
        self._optimizer = build_optimizer(self.parts, recipe) if self.keys else None
        self._batches: Iterator[list[Shard]] = iter(())
        self._next_step = -1

    def run(self, steps: int) -> LibraryProgress:
        """Take so many steps, or fewer where the schedule ends."""
        self.parts.train()
        with record_blocks(self.teacher) as records:
            for _ in range(min(steps, self.total_steps - self.step)):
                self._learn(self._shards(), records)
                self.step += 1
        mean = sum(self.errors) / len(self.errors) if self.errors else 0.0
        return LibraryProgress(self.step, mean)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, which is also what networks are assembled from.

        A whole one of this step stays: while it is written again there would be none.
        """
        found = latest_checkpoint(folder)
        is_written = found is not None and found.name == checkpoint_name(self.step)
        if found is not None and is_written and damage(found) is None:
            return
        write_checkpoint(folder, self.step, self._write)

    def load(self, folder: Path) -> bool:
        """Go on from what `save` wrote; False where there is nothing, or it is damaged.

        Raises:
            ValueError: If it has other parts.
        """
        found = latest_checkpoint(folder)
        if found is None or damage(found):
            return False
        tensors = load_file(found / PARTS_FILE)
        state: dict[str, Any] = torch.load(
            found / STATE_FILE, map_location="cpu", weights_only=True
        )
        if tensors.keys() != self._tensors().keys():
            raise ValueError(
                f"The library in {folder} has other parts than this version gives to the network: "
                "before narrower MLPs learned it had none of them. Go on with the version of "
                "mixer-search that began the run, or begin another run."
            )
        for key, part in zip(self.keys, self.parts, strict=True):
            start = f"{part_name(key)}/"
            own = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
            part.load_state_dict(own)
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
        self.step, self.total_steps = int(state["step"]), int(state["total_steps"])
        self.errors = [float(error) for error in state["errors"]]
        return True

    def _tensors(self) -> dict[str, Tensor]:
        """Return what is stored of all parts, by its name in the library."""
        return {
            f"{part_name(key)}/{name}": value
            for key, part in zip(self.keys, self.parts, strict=True)
            for name, value in part.state_dict().items()
        }

    def _write(self, folder: Path) -> None:
        tensors = {n: value.detach().cpu().contiguous() for n, value in self._tensors().items()}
        save_file(tensors, folder / PARTS_FILE)
        state = {
            "step": self.step,
            "total_steps": self.total_steps,
            "errors": self.errors,
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
        }
        torch.save(state, folder / STATE_FILE)

    def _shards(self) -> list[Shard]:
        """Make the shards of the next step: a function of the seed and the step alone."""
        if self._next_step != self.step:
            epoch, start = divmod(self.step, self._steps_per_epoch)
            self._batches = self._loader.epoch(epoch, self.seed, start=start)
        found = next(self._batches, None)
        if found is None:
            epoch = self.step // self._steps_per_epoch
            self._batches = self._loader.epoch(epoch, self.seed)
            found = next(self._batches)
        self._next_step = self.step + 1
        return found

    def _learn(self, shards: Sequence[Shard], records: Mapping[str, BlockRecord]) -> None:
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self._optimizer.zero_grad(set_to_none=True)
        errors = torch.zeros(len(self.keys), device=self.device)
        learned = [_learned_from(records, key) for key in self.keys]
        for shard in shards:
            images, _ = shard.finished(self.device)
            with torch.no_grad():
                self.teacher(images)
            losses = [
                normalised_error(part(record.given), record.added)
                for part, record in zip(self.parts, learned, strict=True)
            ]
            (torch.stack(losses).sum() * shard.share).backward()
            errors += torch.stack(losses).detach() * shard.share
        if self.recipe.clip_grad is not None:
            for part in self.parts:
                nn.utils.clip_grad_norm_(part.parameters(), self.recipe.clip_grad)
        self._optimizer.step()
        for index, error in enumerate(errors.tolist()):
            self.errors[index] += (error - self.errors[index]) * ERROR_SHARE

    def _learning_rate(self) -> float:
        batch = self.recipe.batch_size
        peak = self.recipe.peak_lr(batch)
        least = self.recipe.min_lr * self.recipe.lr_factor(batch)
        warmup = max(int(self.total_steps * WARMUP_SHARE), 1)
        if self.step < warmup:
            return peak * (self.step + 1) / warmup
        share = (self.step - warmup) / max(self.total_steps - warmup, 1)
        return least + (peak - least) * 0.5 * (1 + math.cos(math.pi * share))


def _learned_from(records: Mapping[str, BlockRecord], key: Replacement) -> Record:
    """Return what a part is given and has to add."""
    record = records[block_name(key)]
    return record.mlp if key.mixer is None else record.mixer


def normalised_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error over the square of what was wanted, a scalar.

    Where nothing was wanted, it is the squared error.
    """
    whole = wanted.square().mean()
    return (found - wanted).square().mean() / torch.where(whole > 0, whole, 1.0)


def load_library(folders: Sequence[Path]) -> dict[str, Tensor]:
    """Read the tensors of all parts.

    Args:
        folders: Of each of the trainers that shared the parts.

    Raises:
        ValueError: If one of them is damaged or gone.
    """
    library: dict[str, Tensor] = {}
    for folder in folders:
        found = latest_checkpoint(folder)
        cause = "there is none" if found is None else damage(found)
        if found is None or cause:
            raise ValueError(
                f"The library of parts in {folder} cannot be read ({cause}). Restore it from a "
                "copy, or begin another run."
            )
        library |= load_file(found / PARTS_FILE)
    return library


__all__ = ["LibraryProgress", "LibraryTrainer", "Part", "load_library", "normalised_error"]
