"""Bytes travel to the device, which does the rest: bit for bit what timm does to floats on a CPU.

The expected batches are made here as the definition says: crop and mirror with NumPy, divide and
subtract, then timm's own `RandomErasing` and `Mixup` on float tensors, after the same seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from supernet.data import ImageData, Split
from supernet.recipes import Recipe, load_recipe
from supernet.training.batches import Shard, TrainLoader
from supernet.training.seeding import derived_seed, seeded_globals

STORED, SIZE, BATCH, CLASSES, SEED = 20, 16, 12, 5, 3

RECIPES: dict[str, dict[str, Any]] = {
    "crops and mirrors": {},
    "erases with noise": {"random_erasing": 0.6, "random_erasing_count": 3},
    "erases with colours": {"random_erasing": 0.6, "random_erasing_mode": "rand"},
    "erases with black": {"random_erasing": 1.0, "random_erasing_mode": "const"},
    "mixes": {"mixup": 0.8},
    "cuts": {"cutmix": 1.0},
    "does not always mix": {"mixup": 0.8, "mixup_prob": 0.3},
    "all": {"random_erasing": 0.6, "mixup": 0.8, "cutmix": 1.0},
    "erases last": {
        "random_erasing": 0.6,
        "random_erasing_place": "after_mixup",
        "mixup": 0.8,
        "cutmix": 1.0,
    },
}


@pytest.fixture
def split() -> Split:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3 * BATCH, STORED, STORED, 3), dtype=np.uint8)
    return Split(pixels, rng.integers(0, CLASSES, 3 * BATCH))


@pytest.fixture
def data(split: Split, tmp_path: Any) -> ImageData:
    return ImageData(
        name="noise",
        source="noise",
        folder=tmp_path,
        class_names=tuple(map(str, range(CLASSES))),
        img_size=SIZE,
        stored_size=STORED,
        allows_flip=True,
        mean=(0.4, 0.5, 0.6),
        std=(0.21, 0.22, 0.23),
        sizes={"train": len(split), "search": 0, "test": 0},
        fingerprint="",
        listing="",
    )


def recipe(**changes: Any) -> Recipe:
    plain = {"mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0, "auto_augment": None}
    base = load_recipe("supernet").model_dump() | plain
    base |= {"batch_size": BATCH, "hflip": 0.5, "random_crop_padding": 0, "color_jitter": 0.0}
    return Recipe.model_validate(base | changes)


def shards_of(split: Split, data: ImageData, recipe: Recipe, **how: Any) -> list[Shard]:
    steps = TrainLoader(split, data, recipe, workers=how.pop("workers", 0)).epoch(0, SEED, **how)
    return [shard for (shard,) in steps]


def expected(split: Split, data: ImageData, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    order = np.random.default_rng(derived_seed(SEED, "order", 0)).permutation(len(split))
    rows = order[step * BATCH :][:BATCH]
    seed = derived_seed(SEED, "batch", 0, step)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, STORED - SIZE + 1, (2, BATCH, 1))
    mirrored = rng.random(BATCH) < recipe.hflip
    images = []
    for row, top, left, is_mirrored in zip(rows, *starts[:, :, 0], mirrored, strict=True):
        window = split.images[row][top : top + SIZE, left : left + SIZE]
        images.append(window[:, ::-1] if is_mirrored else window)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    floats = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float()
    floats = floats * (1 / (255 * std)) - mean / std
    targets = torch.from_numpy(split.labels[rows])
    with seeded_globals(seed):
        return timm_finish(recipe, floats, targets)


def timm_finish(recipe: Recipe, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    erase: Callable[[Tensor], Tensor] = RandomErasing(
        recipe.random_erasing,
        mode=recipe.random_erasing_mode,
        max_count=recipe.random_erasing_count,
        device="cpu",
    )
    is_last = recipe.random_erasing_place == "after_mixup"
    if recipe.random_erasing and not is_last:
        images = erase(images)
    if recipe.mixes:
        mix = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            label_smoothing=0.0,
            num_classes=CLASSES,
        )
        images, targets = mix(images, targets)
    if recipe.random_erasing and is_last:
        images = erase(images)
    return images, targets


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES.keys())
def test_finishing_is_what_timm_does_to_floats(
    changes: dict[str, Any], split: Split, data: ImageData
) -> None:
    chosen = recipe(**changes)
    for step, shard in enumerate(shards_of(split, data, chosen)):
        images, targets = shard.finished("cpu")
        wanted, wanted_targets = expected(split, data, chosen, step)
        assert torch.equal(images, wanted)
        assert torch.equal(targets, wanted_targets)


@pytest.mark.parametrize("changes", RECIPES.values(), ids=RECIPES.keys())
def test_what_travels_is_bytes(changes: dict[str, Any], split: Split, data: ImageData) -> None:
    (first, *_) = shards_of(split, data, recipe(**changes))
    assert first.pixels.dtype == torch.uint8
    assert first.pixels.shape == (BATCH, SIZE, SIZE, 3)
    again, once_more = first.finished("cpu"), first.finished("cpu")
    assert torch.equal(again[0], once_more[0])  # and finishing changes nothing of it
    assert first.finished("meta")[0].device.type == "meta"


def test_a_resumed_epoch_finishes_its_batches_alike(split: Split, data: ImageData) -> None:
    chosen = recipe(**RECIPES["all"])
    whole = [shard.finished() for shard in shards_of(split, data, chosen)]
    for workers in (0, 1):
        rest = shards_of(split, data, chosen, start=1, workers=workers)
        assert len(rest) == len(whole) - 1
        for (images, targets), shard in zip(whole[1:], rest, strict=True):
            found, found_targets = shard.finished()
            assert torch.equal(found, images)
            assert torch.equal(found_targets, targets)


def test_no_random_number_is_drawn_while_finishing(split: Split, data: ImageData) -> None:
    (first, *_) = shards_of(split, data, recipe(**RECIPES["all"]))
    with seeded_globals(1):
        one = first.finished()[0]
    with seeded_globals(2):
        other = first.finished()[0]
    assert torch.equal(one, other)


def test_colours_are_changed_after_mirroring(split: Split, data: ImageData) -> None:
    """As timm's order has it: PIL's part needs the mirrored pixels, so that none is left to do."""
    coloured = shards_of(split, data, recipe(color_jitter=0.4))
    plain = shards_of(split, data, recipe())
    assert all(shard.finish.mirrored is None for shard in coloured)
    assert any(shard.finish.mirrored is not None for shard in plain)
