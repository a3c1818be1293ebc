"""Shared weights of detectors or segmenters: all backbones of a space under the same heads.

The sibling of `supernet.shared_weights.trainer`. DetNAS (Chen et al. 2019,
https://arxiv.org/abs/1903.10979) searches backbones so, after a phase of classification.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.data.dense import DenseSplit
from supernet.dense.backbone import norm_kind
from supernet.dense.batches import TrainOrder, make_shard, train_batches
from supernet.dense.distillation import DenseLesson, DenseTeacher
from supernet.dense.network import DenseBatch, DenseNetwork, build_dense, extract_dense
from supernet.dense.options import dense_options
from supernet.dense.proposals import ImageSize
from supernet.dense.start import load_start
from supernet.dense.training import build_optimizer, gradients_of_step
from supernet.mixers import WeightSharing
from supernet.network import Supernet
from supernet.recipes import DenseRecipe
from supernet.shared_weights import (
    SharedTraining,
    UsedWeights,
    load_shared,
    shared_optimizer,
)
from supernet.training import derived_seed, own_device

CALIBRATION_SHARDS = 8


class DenseSupernetTrainer(SharedTraining):
    """Trains the shared weights of backbones and their heads; see `SharedTraining`.

    Args:
        space: The backbones.
        split: To learn from.
        recipe: Heads, batches, optimiser and the shape of the schedule; its length is not used,
            `total_steps` is.
        strategy: Which architectures a step trains, see `supernet.shared_weights.strategies`; all
            of them learn the truth.
        total_steps: Length of the schedule.
        seed: Of the weights, the architectures and the order of the data.
        sharing: What the choices of a block share; by default little.
        start: Weights of a supernet of the same space to begin with; None: fresh ones.
        device: Torch device.
        loader_workers: Processes that make the batches of this one; 0 for itself.
        teacher: Whom all architectures learn from as well.

    Raises:
        ValueError: If there is nothing to learn from, or the start is of another space.
    """

    recipe: DenseRecipe
    supernet: DenseNetwork

    def __init__(
        self,
        space: SearchSpace,
        split: DenseSplit,
        recipe: DenseRecipe,
        *,
        strategy: str,
        total_steps: int,
        seed: int,
        sharing: WeightSharing | None = None,
        start: Mapping[str, Tensor] | None = None,
        device: str = "cpu",
        loader_workers: int = 0,
        teacher: DenseTeacher | None = None,
    ) -> None:
        super().__init__(
            space,
            recipe,
            strategy=strategy,
            total_steps=total_steps,
            seed=seed,
            device=own_device(device),
        )
        self.workers = loader_workers
        self._lesson = None if teacher is None else DenseLesson(teacher, recipe, self.device)
        self.order = TrainOrder(split, recipe, seed)
        torch.manual_seed(seed)
        options = dense_options(recipe, len(split.class_names))
        self.supernet = build_dense(space, options, recipe.drop_path, sharing)
        if start is not None:
            load_start(self.supernet, start)
        self.supernet.to(self.device)
        self.optimizer = shared_optimizer(build_optimizer(self.supernet, recipe))
        self.used_weights = UsedWeights(
            self.supernet, prefix="backbone.network.", rest_key=_norms_of
        )

    @property
    def shared(self) -> Supernet:
        """The backbones."""
        return self.supernet.backbone.network

    def _gradients(self, architectures: Sequence[Architecture]) -> Tensor:
        loss = gradients_of_step(
            self.supernet,
            self._next_shards(),
            derived_seed(self.seed, "step", self.step),
            device=self.device,
            amp=self.recipe.amp,
            scaler=self.scaler,
            architectures=architectures,
            num_shards=self.recipe.num_shards,
            lesson=self._lesson,
        )
        return torch.tensor(loss, dtype=torch.float64)

    def _next_shards(self) -> list[DenseBatch]:
        shards = next(self._batches, None)
        if shards is None:
            self._batches = train_batches(
                self.order,
                self.step,
                self.step + self.order.steps_per_epoch,
                rank=self.rank,
                world_size=self.world_size,
                workers=self.workers,
                is_uneven=True,
            )
            shards = next(self._batches)
        return shards

    def _blame(self) -> str:
        return "" if self._lesson is None else self._lesson.blame()

    def _learning_rate(self) -> float:
        return self.recipe.lr_at(min(self.step, self.total_steps), self.total_steps)


def calibration_batches(split: DenseSplit, recipe: DenseRecipe) -> list[DenseBatch]:
    """Return the shards that batch norms are recalibrated on: as in training, always the same."""
    order = TrainOrder(split, recipe, 0)
    plans = order.shards(0)[:CALIBRATION_SHARDS]
    return [make_shard(split, recipe, plan, 0) for plan in plans]


def load_dense_supernet(
    folder: Path, space: SearchSpace, recipe: DenseRecipe, num_classes: int
) -> DenseNetwork:
    """Load the weights that `DenseSupernetTrainer.save` wrote, on the CPU in eval mode.

    Raises:
        FileNotFoundError: If there is no checkpoint in the folder.
        ValueError: If it is damaged, or of another space or recipe.
    """
    options = dense_options(recipe, num_classes)
    return load_shared(folder, lambda sharing: build_dense(space, options, sharing=sharing))


def dense_extraction_error(
    supernet: DenseNetwork, architecture: Architecture, batch: DenseBatch
) -> float:
    """Measure the largest difference between what the supernet and the extracted network predict.

    Returns:
        Of logits, or of boxes, scores and masks; infinity where they find other objects.
    """
    was_training = supernet.training
    supernet.eval()
    with torch.inference_mode():
        inside = _numbers(supernet(batch, architecture))
        outside = _numbers(extract_dense(supernet, architecture)(batch))
    supernet.train(was_training)
    if [one.shape for one in inside] != [one.shape for one in outside]:
        return float("inf")
    pairs = zip(inside, outside, strict=True)
    return max((float((a - b).abs().max()) for a, b in pairs if a.numel()), default=0.0)


class OnImages(nn.Module):
    """Calls a detector or segmenter with images alone, to time it."""

    def __init__(self, network: DenseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> object:
        """Predict for images (B, 3, H, W)."""
        size = (images.shape[-2], images.shape[-1])
        sizes = (ImageSize(content=size, padded=size),) * len(images)
        return self.network(DenseBatch(images=images, sizes=sizes))


def steps_per_epoch(split: DenseSplit, recipe: DenseRecipe) -> int:
    """Return how many steps see every image once."""
    return TrainOrder(split, recipe, 0).steps_per_epoch


def _numbers(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    assert isinstance(found, list)
    tensors = [t for one in found for t in (one.boxes, one.labels, one.scores, one.masks)]
    return [one.float() for one in tensors if one is not None]


def _norms_of(architecture: Architecture) -> Hashable:
    """Tell which norms stand behind its stages: they depend on the mixers of all its blocks."""
    return tuple(norm_kind(stage) for stage in architecture.stages)
