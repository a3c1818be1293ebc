"""Batches of images: what a recipe does to them in training, and the plain ones of evaluation.

Order and augmentation are functions of seed, epoch and batch number alone. Crops, flips and
normalisation run on whole uint8 batches; images pass through PIL only where a recipe asks for
resized crops, auto_augment or color_jitter, which are timm's, as are Mixup and random erasing.

Shape suffixes: B images, H and W their sides in pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from supernet.data import ImageData, Split
from supernet.recipe import Recipe
from supernet.seeding import derived_seed, seeded_globals

PixelArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


def steps_per_epoch(num_images: int, recipe: Recipe) -> int:
    """Return the number of batches that `train_batches` makes of so many images."""
    return max(num_images // recipe.batch_size, 1)


def train_batches(
    split: Split, data: ImageData, recipe: Recipe, *, epoch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make one epoch's augmented batches in random order.

    An incomplete last batch is left out, unless it is the only one. Mixup needs pairs: of an only
    batch of odd length one image is left out.

    Args:
        split: The images, of side ``data.stored_size``.
        data: Says how to normalise, the side that networks see, and whether flips are allowed.
        epoch: Counts from 0.

    Yields:
        Images of shape (B, 3, img_size, img_size), normalised; targets: class indices of shape
        (B,), or class probabilities of shape (B, num_classes) where the recipe mixes images.
        Label smoothing is left to the loss.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if len(split) < 2:
        raise ValueError(f"Training needs at least 2 images, got {len(split)}. Add images.")
    order = np.random.default_rng(derived_seed(seed, "order", epoch)).permutation(len(split))
    augment = _Augmentation.of(data, recipe)
    for step in range(steps_per_epoch(len(split), recipe)):
        rows = order[step * recipe.batch_size :][: recipe.batch_size]
        if recipe.mixes:
            rows = rows[: len(rows) // 2 * 2]
        labels = torch.from_numpy(split.labels[rows])
        yield augment(split.images[rows], labels, derived_seed(seed, "batch", epoch, step))


def eval_batches(
    split: Split, data: ImageData, batch_size: int, crop_pct: float | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make batches of all images in their order, cropped at the centre and normalised.

    Args:
        crop_pct: Share of the stored side that is seen, scaled (bicubic) to ``img_size``; None
            takes the central ``img_size`` pixels as they are.

    Yields:
        Images of shape (B, 3, img_size, img_size) and class indices of shape (B,).
    """
    stored = split.images.shape[1]
    side = data.img_size if crop_pct is None else round(stored * crop_pct)
    start = (stored - side) // 2
    centre = slice(start, start + side)
    for first in range(0, len(split), batch_size):
        chunk = slice(first, first + batch_size)
        images = _normalize(np.array(split.images[chunk, centre, centre]), data)
        if side != data.img_size:
            images = F.interpolate(images, data.img_size, mode="bicubic", antialias=True)
        yield images, torch.from_numpy(np.array(split.labels[chunk]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Augmentation:
    """What is done to a batch, from uint8 images to normalised and mixed ones."""

    data: ImageData
    recipe: Recipe
    flip: float
    resize_and_flip: Callable[[Image.Image], Image.Image] | None
    recolor: Callable[[Image.Image], Image.Image] | None
    erase: Callable[[Tensor], Tensor] | None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None

    @classmethod
    def of(cls, data: ImageData, recipe: Recipe) -> _Augmentation:
        """Build the parts that the recipe and the data ask for."""
        flip = recipe.hflip if data.allows_flip else 0.0
        resize_and_flip, recolor, _ = transforms_imagenet_train(
            data.img_size,
            scale=recipe.random_resized_crop,
            hflip=flip,
            # None is timm's own word for "no jitter", though its annotation lacks it.
            color_jitter=recipe.color_jitter or None,  # type: ignore[arg-type]
            auto_augment=recipe.auto_augment,
            interpolation=recipe.train_interpolation,
            mean=data.mean,
            separate=True,
        )
        erase = RandomErasing(recipe.random_erasing, mode=recipe.random_erasing_mode, device="cpu")
        mix = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mixup_prob,
            switch_prob=recipe.mixup_switch_prob,
            label_smoothing=0.0,
            num_classes=data.num_classes,
        )
        return cls(
            data=data,
            recipe=recipe,
            flip=flip,
            resize_and_flip=resize_and_flip if recipe.random_resized_crop else None,
            recolor=recolor if recolor.transforms else None,
            erase=erase if recipe.random_erasing else None,
            mix=mix if recipe.mixes else None,
        )

    def __call__(self, images_BHWC: PixelArray, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        with seeded_globals(seed):
            if self.resize_and_flip is None:
                rng = np.random.default_rng(seed)
                images_BHWC = _crop_and_flip(images_BHWC, self, rng)
            for transform in (self.resize_and_flip, self.recolor):
                if transform is not None:
                    images_BHWC = _through_pil(images_BHWC, transform)
            images = _normalize(images_BHWC, self.data)
            erases_last = self.recipe.random_erasing_place == "after_mixup"
            if self.erase is not None and not erases_last:
                images = self.erase(images)
            targets = labels
            if self.mix is not None:
                images, targets = self.mix(images, labels)
            if self.erase is not None and erases_last:
                images = self.erase(images)
        return images, targets


def _crop_and_flip(
    images_BHWC: PixelArray, augmentation: _Augmentation, rng: np.random.Generator
) -> PixelArray:
    """Cut a random window of ``img_size`` out of each image and mirror some of them.

    Images that are not larger than that are padded first, as the recipe says.
    """
    size, recipe = augmentation.data.img_size, augmentation.recipe
    num_images, stored = images_BHWC.shape[:2]
    padding = recipe.random_crop_padding if stored == size else 0
    starts = rng.integers(0, stored + 2 * padding - size + 1, (2, num_images, 1)) - padding
    rows, cols = starts + np.arange(size)
    mirrored = rng.random(num_images) < augmentation.flip
    cols[mirrored] = cols[mirrored, ::-1]
    cropped = _take_windows(images_BHWC, _reflect(rows, stored), _reflect(cols, stored))
    if padding and recipe.random_crop_padding_mode == "zero":
        outside_rows, outside_cols = ((i < 0) | (i >= stored) for i in (rows, cols))
        cropped[outside_rows[:, :, None] | outside_cols[:, None, :]] = 0
    return cropped


def _take_windows(images_BHWC: PixelArray, rows: IntArray, cols: IntArray) -> PixelArray:
    """Take from each image the pixels at its own rows and columns, both of shape (B, size)."""
    num_images, stored, _, channels = images_BHWC.shape
    firsts = np.arange(num_images) * stored**2
    pixels = firsts[:, None, None] + rows[:, :, None] * stored + cols[:, None, :]
    # Four times as fast as indexing with three arrays.
    taken = np.take(images_BHWC.reshape(-1, channels), pixels.ravel(), axis=0)
    return taken.reshape(*pixels.shape, channels)


def _reflect(indices: IntArray, size: int) -> IntArray:
    """Map indices outside 0..size-1 back inside, mirrored at the first and last pixel."""
    period = max(2 * (size - 1), 1)
    folded = np.abs(indices) % period
    return np.minimum(folded, period - folded)


def _through_pil(
    images_BHWC: PixelArray, transform: Callable[[Image.Image], Image.Image]
) -> PixelArray:
    return np.stack([np.asarray(transform(Image.fromarray(image))) for image in images_BHWC])


def _normalize(images_BHWC: PixelArray, data: ImageData) -> Tensor:
    """Turn pixels into floats of zero mean and unit variance over the train split, (B, C, H, W)."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous().float()
    return images.mul_(1 / (255 * std)).sub_(mean / std)
