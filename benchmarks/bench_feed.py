"""Images per second and core that feed a training: stored arrays and JPEGs, and what is wasted.

One thread makes batches as a rank of a group does: its own shards of each batch. The processor time
of that thread is counted, so other work on the machine disturbs little.

    python benchmarks/bench_feed.py --images 2000 --seconds 20
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.make_images import make
from supernet.data import ImageData, Split
from supernet.data.image_data import CROP_FRACTION
from supernet.data.streaming import StreamedImages, listed
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.training.batches import TrainLoader

IMG_SIZE = 224
STORED = round(IMG_SIZE / CROP_FRACTION)


def image_data(split: Split, *, stored_size: int) -> ImageData:
    """Describe images that lie nowhere else."""
    return ImageData(
        name="feed",
        source="feed",
        folder=Path(),
        class_names=tuple(f"class{index}" for index in range(100)),
        img_size=IMG_SIZE,
        stored_size=stored_size,
        allows_flip=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        sizes={"train": len(split), "search": 0, "test": 0},
        fingerprint="feed",
        listing="feed",
    )


def arrays(images: int) -> Split:
    """Return stored squares of noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, STORED, STORED, 3), dtype=np.uint8)
    return Split(pixels, rng.integers(0, 100, images))


def jpegs(folder: Path, images: int) -> Split:
    """Return files that are decoded when they are read."""
    make(folder, images=images, names=images, classes=100)
    source = listed(str(folder), IMG_SIZE)
    positions = np.arange(len(source.names))
    stored = StreamedImages(str(folder), IMG_SIZE, positions, np.zeros_like(positions))
    return Split(stored, positions % 100)


def measure(
    split: Split, recipe: Recipe, *, ranks: int, seconds: float, finishes: bool = False
) -> float:
    """Make rank 0's shards for a while; return images per second of a core.

    Args:
        finishes: Do here what the device that trains does to them, too.
    """
    loader = TrainLoader(split, image_data(split, stored_size=STORED), recipe, world_size=ranks)
    made, epoch, started = 0, 0, time.thread_time()
    while time.thread_time() - started < seconds:
        for shards in loader.epoch(epoch, 0):
            made += sum(map(len, shards))
            if finishes:
                for shard in shards:
                    shard.finished()
            if time.thread_time() - started > seconds:
                break
        epoch += 1
    return made / (time.thread_time() - started)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000, help="of each set")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of processor time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shipped = load_recipe("supernet")
    recipe = shipped.model_copy(update={"batch_size": 64 * given.ranks, "shard_size": 64})
    if given.images < recipe.batch_size:
        raise SystemExit(f"A batch has {recipe.batch_size} images. Give --images so many or more.")
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            f"arrays of {STORED} pixels": arrays(given.images),
            "JPEGs": jpegs(Path(folder), given.images),
        }
        for name, split in sets.items():
            made = measure(split, recipe, ranks=given.ranks, seconds=given.seconds)
            whole = measure(split, recipe, ranks=given.ranks, seconds=given.seconds, finishes=True)
            print(
                f"{name}: {made:,.0f} images/s a core, all used; {whole:,.0f} where the core does "
                f"what is left to a GPU as well; where each of {given.ranks} ranks makes the whole "
                f"batch, {made / given.ranks:,.0f} are used",
                flush=True,
            )


if __name__ == "__main__":
    main()
