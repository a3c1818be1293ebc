"""What a recipe does to the images of a batch in training: crop, mirror, colour, erase, mix.

Stored images are cropped, mirrored and normalised as whole uint8 batches; images pass through PIL
only where they are streamed or a recipe asks for resized crops, auto_augment or color_jitter, which
are timm's, as are Mixup and erasing.

Shape suffixes: B images, H and W their sides in pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data.auto_augment import posterize
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from supernet.data import CROP_FRACTION, ImageData, square
from supernet.recipes import Recipe
from supernet.training.seeding import seeded_globals
from supernet.training.token_labels import CroppedMaps, MappedCrop

PixelArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
Augmentable = PixelArray | Sequence[Image.Image]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to a batch, from uint8 images to normalised and mixed ones."""

    data: ImageData
    recipe: Recipe
    flip: float
    resize_and_flip: Callable[[Image.Image], Image.Image] | None
    mapped_crop: MappedCrop | None
    recolor: Callable[[Image.Image], Image.Image] | None
    erase: Callable[[Tensor], Tensor] | None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None

    @classmethod
    def of(cls, data: ImageData, recipe: Recipe) -> Augmentation:
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
        mend_posterize(recolor.transforms)
        erase = RandomErasing(
            recipe.random_erasing,
            mode=recipe.random_erasing_mode,
            max_count=recipe.random_erasing_count,
            device="cpu",
        )
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
            mapped_crop=MappedCrop.of(resize_and_flip, flip) if recipe.token_labels else None,
            recolor=recolor if recolor.transforms else None,
            erase=erase if recipe.random_erasing else None,
            mix=mix if recipe.mixes else None,
        )

    def __call__(
        self,
        images: Augmentable,
        labels: Tensor,
        seed: int,
        maps: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, CroppedMaps | None]:
        cropped_maps = None
        with seeded_globals(seed):
            if self.mapped_crop is not None and maps is not None:
                images, cropped_maps = self.mapped_crop(images, maps)
            elif self.resize_and_flip is not None:
                images = _through_pil(images, self.resize_and_flip)
            else:
                pixels = _squares(images, self.data)
                images = _crop_and_flip(pixels, self, np.random.default_rng(seed))
            if self.recolor is not None:
                images = _through_pil(images, self.recolor)
            normal = normalize(np.asarray(images), self.data)
            erases_last = self.recipe.random_erasing_place == "after_mixup"
            if self.erase is not None and not erases_last:
                normal = self.erase(normal)
            targets = labels
            if self.mix is not None:
                normal, targets = self.mix(normal, labels)
            if self.erase is not None and erases_last:
                normal = self.erase(normal)
        return normal, targets, cropped_maps


def mend_posterize(transforms: Iterable[Any]) -> None:
    """Let timm's posterize keep no bits: its strings reach that at magnitude 10, Pillow refuses it.

    The image is black then, as it was with the Pillow of the papers' time.
    """
    for transform in transforms:
        policy = getattr(transform, "policy", ())  # AutoAugment: lists of operations
        for operation in (*getattr(transform, "ops", ()), *(op for ops in policy for op in ops)):
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **settings: Any) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return posterize(image, bits_to_keep, **settings)


def _squares(images: Augmentable, data: ImageData) -> PixelArray:
    """Scale streamed images to the squares that they would be stored as."""
    if isinstance(images, np.ndarray):
        return images
    side = round(data.img_size / CROP_FRACTION)
    return np.stack([np.asarray(square(image, side)) for image in images])


def _crop_and_flip(
    images_BHWC: PixelArray, augmentation: Augmentation, rng: np.random.Generator
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
    images: Augmentable, transform: Callable[[Image.Image], Image.Image]
) -> PixelArray:
    pictures = map(Image.fromarray, images) if isinstance(images, np.ndarray) else images
    return np.stack([np.asarray(transform(image)) for image in pictures])


def normalize(images_BHWC: PixelArray, data: ImageData) -> Tensor:
    """Turn pixels into floats of zero mean and unit variance over the train split, (B, C, H, W)."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous().float()
    return images.mul_(1 / (255 * std)).sub_(mean / std)
