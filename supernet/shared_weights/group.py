"""How the batch of a supernet is split over the devices that train it together."""

from __future__ import annotations

import math

from supernet.recipes import Recipe
from supernet.training import shards_of

# Larger batches need fewer and fewer steps to no avail; papers on supernets stay below.
MOST_BATCH = 4096
# Batch norms of fewer see nothing, and Mixup pairs them.
LEAST_SHARD = 2


def recipe_of_group(recipe: Recipe, num_images: int, devices: int, *, grows: bool) -> Recipe:
    """Return the recipe for so many devices: its batch has a shard for each, where it has enough.

    It belongs to a training from its first step on: on fewer devices later, each takes more shards.

    Args:
        recipe: Its batch is what one device takes where it grows, else what all of them share.
        num_images: Of the train split.
        devices: That train together at first.
        grows: Whether the batch grows with the devices, up to `MOST_BATCH` images, and a literal
            learning rate with its square root.
    """
    batch = recipe.batch_size
    if grows:
        batch *= min(devices, max(min(MOST_BATCH, num_images) // batch, 1))
    images = min(batch, num_images)
    shards = min(devices, max(images // LEAST_SHARD, 1))
    size = min(-(-images // shards), recipe.shard_size or images)
    if recipe.mixes:
        size += size % 2
    lr = recipe.lr
    if recipe.lr_scaling == "literal":
        lr *= math.sqrt(batch / recipe.batch_size)
    return recipe.model_copy(
        update={
            "batch_size": batch,
            "shard_size": None if size >= images else size,
            "lr": lr,
        }
    )


def most_devices(recipe: Recipe, num_images: int) -> int:
    """Return how many devices have a shard of every batch of a recipe."""
    return shards_of(num_images, recipe)
