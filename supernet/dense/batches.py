"""Which images are in which step, and the shards of padded images that networks see.

Shards are made of images of one orientation where whole images are seen (mmdetection's
``GroupSampler``). Order and augmentation are functions of the seed, the epoch, and the place in it,
whatever process makes a shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors

from supernet.data.dense import DenseSplit
from supernet.dense.augment import (
    Sample,
    augment,
    normalise,
    objects_of,
    pad,
    read_sample,
    scale,
)
from supernet.dense.network import IGNORED_LABEL, DenseBatch
from supernet.dense.proposals import ImageSize
from supernet.recipes import DenseRecipe
from supernet.training import derived_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """The images of a shard, and where in the training it stands."""

    indices: tuple[int, ...]
    epoch: int
    number: int


class TrainOrder:
    """Says which images each step of a training sees.

    Args:
        split: The images.
        recipe: Batches, shards, task.
        seed: Of the order.

    Raises:
        ValueError: If there is nothing to learn from.
    """

    def __init__(self, split: DenseSplit, recipe: DenseRecipe, seed: int) -> None:
        self.split, self.recipe, self.seed = split, recipe, seed
        self.usable = [index for index in range(len(split)) if self._has_truth(index)]
        if not self.usable:
            raise ValueError("No training image has an object. Give annotations of some.")
        self._known: tuple[int, list[ShardPlan]] | None = None
        self.steps_per_epoch = len(self.shards(0)) // recipe.num_shards

    def of_step(self, step: int) -> list[ShardPlan]:
        """Return the shards of a step, counted over the whole training."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        first = inside * self.recipe.num_shards
        return self.shards(epoch)[first : first + self.recipe.num_shards]

    def shards(self, epoch: int) -> list[ShardPlan]:
        """Return the shards of an epoch, filled up with images of its beginning."""
        if self._known is None or self._known[0] != epoch:
            self._known = (epoch, self._draw(epoch))
        return self._known[1]

    def _draw(self, epoch: int) -> list[ShardPlan]:
        rng = np.random.default_rng(derived_seed(self.seed, "order", epoch))
        order = [self.usable[place] for place in rng.permutation(len(self.usable))]
        size, shards = self.recipe.shard_size, []
        for group in self._groups(order):
            full = -(-len(group) // size) * size
            filled = np.resize(group, full)
            shards += [tuple(int(x) for x in filled[at : at + size]) for at in range(0, full, size)]
        shards = [shards[place] for place in rng.permutation(len(shards))]
        number = -(-len(shards) // self.recipe.num_shards) * self.recipe.num_shards
        return [
            ShardPlan(indices=shards[place % len(shards)], epoch=epoch, number=place)
            for place in range(number)
        ]

    def _groups(self, order: Sequence[int]) -> list[list[int]]:
        if self.recipe.train_images.crop is not None:
            return [list(order)]
        upright: list[int] = []
        lying: list[int] = []
        for index in order:
            height, width = self.split.images[index].size
            (lying if width > height else upright).append(index)
        return [group for group in (upright, lying) if group]

    def _has_truth(self, index: int) -> bool:
        if self.recipe.task == "semantic":
            return True
        return self.split.images[index].has_objects


def make_shard(split: DenseSplit, recipe: DenseRecipe, plan: ShardPlan, seed: int) -> DenseBatch:
    """Read, augment and pad the images of a shard."""
    samples = []
    for slot, index in enumerate(plan.indices):
        own = derived_seed(seed, "image", plan.epoch, plan.number, slot)
        samples.append(augment(read_sample(split, index, task=recipe.task), recipe, own))
    return collate(samples, recipe, is_training=True)


def collate(samples: Sequence[Sample], recipe: DenseRecipe, *, is_training: bool) -> DenseBatch:
    """Normalise and pad samples to the largest."""
    step, crop = recipe.pad_to, recipe.train_images.crop if is_training else None
    sizes = []
    for sample in samples:
        least = (max(side, crop or 0) for side in sample.size)
        height, width = (-(-side // step) * step for side in least)
        sizes.append(ImageSize(content=sample.size, padded=(height, width)))
    largest = (max(s.padded[0] for s in sizes), max(s.padded[1] for s in sizes))
    images = torch.stack([pad(normalise(one.image, recipe), largest) for one in samples])
    objects = labels = None
    if not is_training:
        pass
    elif recipe.task == "semantic":
        maps = [one.masks for one in samples if one.masks is not None]
        plain = [one.as_subclass(torch.Tensor)[0] for one in maps]
        labels = torch.stack([pad(one, largest, IGNORED_LABEL) for one in plain])
    else:
        found = [objects_of(one) for one in samples]
        objects = tuple(
            one
            if one.masks is None
            else type(one)(boxes=one.boxes, labels=one.labels, masks=pad(one.masks, largest))
            for one in found
        )
    return DenseBatch(images=images, sizes=tuple(sizes), objects=objects, labels=labels)


def judged_batch(
    split: DenseSplit, index: int, recipe: DenseRecipe, ratio: float = 1.0
) -> DenseBatch:
    """Make a batch of one image that is judged, at a multiple of the recipe's size."""
    sample = Sample(image=tv_tensors.Image(split.images[index].pixels()))
    images = recipe.test_images
    short, longest = images.short_side, images.longest_side
    if short is not None or longest is not None or ratio != 1:
        own = min(sample.size) if short is None else short
        bound = max(sample.size) if longest is None else longest
        sample = scale(sample, own * ratio, bound * ratio)
    return collate([sample], recipe, is_training=False)


class _Shards(Dataset[DenseBatch]):
    """The shards of one process from a step on, in order."""

    def __init__(self, order: TrainOrder, numbers: Sequence[tuple[int, int]]) -> None:
        self.order, self.numbers = order, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> DenseBatch:
        step, shard = self.numbers[place]
        order = self.order
        return make_shard(order.split, order.recipe, order.of_step(step)[shard], order.seed)


def train_batches(
    order: TrainOrder,
    first: int,
    last: int,
    *,
    rank: int,
    world_size: int,
    workers: int,
    is_uneven: bool = False,
) -> Iterator[list[DenseBatch]]:
    """Yield a process's shards of each step in ``first <= step < last``.

    Args:
        is_uneven: Whether some processes may have more shards than others.

    Raises:
        ValueError: If the processes cannot share a step's shards evenly.
    """
    count = order.recipe.num_shards
    if count % world_size and not is_uneven:
        raise ValueError(
            f"A step has {count} shards, which {world_size} devices cannot share evenly. Choose a "
            "number of devices that divides it, or another shard_size."
        )
    own = range(rank, count, world_size)
    numbers = [(step, shard) for step in range(first, last) for shard in own]
    shards = iter(
        DataLoader(
            _Shards(order, numbers),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
    )
    for _ in range(first, last):
        yield [next(shards) for _ in own]
