"""What a recipe does to the images of a batch in training: crop, mirror, colour, erase, mix.

Stored images are cropped as whole uint8 batches; images pass through PIL only where they are
streamed or a recipe asks for resized crops, auto_augment or color_jitter, which are timm's, as are
Mixup and erasing. All random numbers are drawn here; what does not need PIL or a crop is left to
`supernet.training.finishing`, on the device that trains.

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
from supernet.training.finishing import Finish, Mixing, Patches, normalized
from supernet.training.seeding import seeded_globals
from supernet.training.token_labels import CroppedMaps, MappedCrop

PixelArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Augmentable = PixelArray | Sequence[Image.Image]


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to a batch, up to its last steps, which a `Finish` describes."""

    data: ImageData
    recipe: Recipe
    flip: float
    resize_and_flip: Callable[[Image.Image], Image.Image] | None
    mapped_crop: MappedCrop | None
    recolor: Callable[[Image.Image], Image.Image] | None
    erase: RandomErasing | None
    mix: Mixup | None

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
        seed: int,
        maps: Sequence[Tensor] | None = None,
    ) -> tuple[PixelArray, Finish, CroppedMaps | None]:
        """Crop and colour images; draw what is to be done to the pixels (B, H, W, C) after that."""
        cropped_maps, mirrored = None, np.zeros(len(images), np.bool_)
        with seeded_globals(seed):
            if self.mapped_crop is not None and maps is not None:
                images, cropped_maps = self.mapped_crop(images, maps)
            elif self.resize_and_flip is not None:
                images = _through_pil(images, self.resize_and_flip)
            else:
                pixels = _squares(images, self.data)
                images, mirrored = _crop(pixels, self, np.random.default_rng(seed))
            if self.recolor is not None:
                # In PIL's part the mirrored pixels are wanted.
                if mirrored.any():
                    images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
                    mirrored[:] = False
                images = _through_pil(images, self.recolor)
            size = self.data.img_size
            shape = (len(images), len(self.data.mean), size, size)
            finish = Finish(
                mean=self.data.mean,
                std=self.data.std,
                mirrored=torch.from_numpy(mirrored) if mirrored.any() else None,
                patches=None if self.erase is None else Patches.drawn(self.erase, shape),
                mixing=None if self.mix is None else Mixing.drawn(self.mix, shape),
                erases_last=self.recipe.random_erasing_place == "after_mixup",
            )
        return np.asarray(images), finish, cropped_maps


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


def _crop(
    images_BHWC: PixelArray, augmentation: Augmentation, rng: np.random.Generator
) -> tuple[PixelArray, BoolArray]:
    """Cut a random window of ``img_size`` out of each image, and draw which are to be mirrored.

    Images that are not larger than that are padded first, as the recipe says.
    """
    size, recipe = augmentation.data.img_size, augmentation.recipe
    num_images, stored = images_BHWC.shape[:2]
    padding = recipe.random_crop_padding if stored == size else 0
    starts = rng.integers(0, stored + 2 * padding - size + 1, (2, num_images, 1)) - padding
    mirrored: BoolArray = np.less(rng.random(num_images), augmentation.flip)
    if not padding:
        return _cut(images_BHWC, starts[:, :, 0], size), mirrored
    rows, cols = starts + np.arange(size)
    cropped = _take_windows(images_BHWC, _reflect(rows, stored), _reflect(cols, stored))
    if recipe.random_crop_padding_mode == "zero":
        outside_rows, outside_cols = ((i < 0) | (i >= stored) for i in (rows, cols))
        cropped[outside_rows[:, :, None] | outside_cols[:, None, :]] = 0
    return cropped, mirrored


def _cut(images_BHWC: PixelArray, starts: IntArray, size: int) -> PixelArray:
    """Copy a window out of each image; ``starts`` are first rows and columns, (2, B)."""
    num_images, *_, channels = images_BHWC.shape
    windows = np.empty((num_images, size, size, channels), np.uint8)
    for window, image, row, column in zip(windows, images_BHWC, *starts.tolist(), strict=True):
        window[:] = image[row : row + size, column : column + size]
    return windows


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
    return normalized(torch.from_numpy(images_BHWC), data.mean, data.std)
