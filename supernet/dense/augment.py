"""What is done to an image and its truth in training and in judging: torchvision's transforms.v2.

The order is that of mmdetection 2.11 (mirror, size, crop) and mmsegmentation 0.11 (size, crop,
mirror, colours). Everything random is a function of a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transform

from supernet.data.dense import DenseSplit
from supernet.data.dense.masks import decode_masks
from supernet.dense.cascade import Objects
from supernet.dense.network import IGNORED_LABEL
from supernet.recipes import DenseRecipe, Photometric, TrainImages

_CROPS_AGAIN = 10
_FEWEST_PIXELS = 1.0  # a side of an object that is left of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """An image with its truth, on the way through transforms.

    Attributes:
        image: Bytes (3, H, W).
        boxes: (N, 4) of objects, or None.
        labels: Classes (N,) of objects.
        masks: Bytes (N, H, W) of objects, or classes (1, H, W) of pixels, or None.
    """

    image: tv_tensors.Image
    boxes: tv_tensors.BoundingBoxes | None = None
    labels: Tensor | None = None
    masks: tv_tensors.Mask | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Its (H, W)."""
        return self.image.shape[-2], self.image.shape[-1]

    def transformed(self, change: Callable[[Any], Any]) -> Sample:
        """Apply a transform to the image, the boxes and the masks."""
        return replace(
            self,
            image=change(self.image),
            boxes=None if self.boxes is None else change(self.boxes),
            masks=None if self.masks is None else change(self.masks),
        )


def read_sample(split: DenseSplit, index: int, *, task: str) -> Sample:
    """Read an image and what is learned from it."""
    image = split.images[index]
    pixels = tv_tensors.Image(image.pixels())
    if task == "semantic":
        return Sample(image=pixels, masks=tv_tensors.Mask(split.labels(index)[None]))
    objects = [one for one in image.objects if one.is_learned and not one.is_crowd]
    boxes = torch.tensor([one.box for one in objects], dtype=torch.float32).view(-1, 4)
    masks = None
    if task == "instance":
        decoded = decode_masks([one.mask or {} for one in objects], image.size)
        masks = tv_tensors.Mask(decoded)
    return Sample(
        image=pixels,
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=image.size),
        labels=torch.tensor([one.label for one in objects], dtype=torch.long),
        masks=masks,
    )


def augment(sample: Sample, recipe: DenseRecipe, seed: int) -> Sample:
    """Do to a training image what the recipe says."""
    rng, images = np.random.default_rng(seed), recipe.train_images
    is_semantic = recipe.task == "semantic"
    if not is_semantic:
        sample = _mirror(sample, images, rng)
    branch = images.crop_branch
    if branch is not None and rng.random() < 0.5:
        sample = scale(sample, int(rng.choice(branch.short_sides)), images.longest_side)
        low, high = branch.size
        height, width = sample.size
        rows = int(rng.integers(min(height, low), min(height, high) + 1))
        columns = int(rng.integers(min(width, low), min(width, high) + 1))
        sample = _crop(sample, (rows, columns), rng)
    ratio = 1.0 if images.ratio is None else float(rng.uniform(*images.ratio))
    short = int(rng.choice(images.short_sides))
    sample = scale(sample, short * ratio, images.longest_side * ratio)
    if images.crop is not None:
        sample = _crop_with_several_classes(sample, images, rng)
    if is_semantic:
        sample = _mirror(sample, images, rng)
    if images.photometric is not None:
        sample = replace(sample, image=_distort(sample.image, images.photometric, rng))
    return sample


def scale(sample: Sample, short_side: float, longest_side: float) -> Sample:
    """Scale to a shorter side, or to the longest side where it would be longer."""
    height, width = sample.size
    factor = min(longest_side / max(height, width), short_side / min(height, width))
    size = [max(int(side * factor + 0.5), 1) for side in (height, width)]
    # Bilinear without antialiasing, as OpenCV's.
    return sample.transformed(lambda x: transform.resize(x, size, antialias=False))


def normalise(image: Tensor, recipe: DenseRecipe) -> Tensor:
    """Turn bytes (3, H, W) into floats of about unit size."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (recipe.mean, recipe.std))
    return (image.as_subclass(Tensor).float() - mean) / std


def objects_of(sample: Sample) -> Objects:
    """Return what is left of the objects, as detectors learn it."""
    assert sample.boxes is not None
    assert sample.labels is not None
    boxes = sample.boxes.as_subclass(Tensor)
    is_left = ((boxes[:, 2:] - boxes[:, :2]) >= _FEWEST_PIXELS).all(1)
    masks = None if sample.masks is None else sample.masks.as_subclass(Tensor)[is_left].bool()
    return Objects(boxes=boxes[is_left], labels=sample.labels[is_left], masks=masks)


def _mirror(sample: Sample, images: TrainImages, rng: np.random.Generator) -> Sample:
    if rng.random() < images.flip:
        sample = sample.transformed(transform.horizontal_flip)
    if rng.random() < images.vertical_flip:
        sample = sample.transformed(transform.vertical_flip)
    return sample


def _crop(sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> Sample:
    height, width = sample.size
    rows, columns = min(size[0], height), min(size[1], width)
    top = int(rng.integers(height - rows + 1))
    left = int(rng.integers(width - columns + 1))
    return sample.transformed(lambda x: transform.crop(x, top, left, rows, columns))


def _crop_with_several_classes(
    sample: Sample, images: TrainImages, rng: np.random.Generator
) -> Sample:
    """Crop a square; again, some times, where one class fills too much of it; pad small ones."""
    assert images.crop is not None
    size = (images.crop, images.crop)
    cropped = _crop(sample, size, rng)
    for _ in range(_CROPS_AGAIN):
        if images.crop_max_share >= 1 or cropped.masks is None:
            break
        counts = torch.bincount(cropped.masks.flatten().long(), minlength=256)[:IGNORED_LABEL]
        if (counts > 0).sum() > 1 and counts.max() / counts.sum() < images.crop_max_share:
            break
        cropped = _crop(sample, size, rng)
    return cropped


def _distort(
    image: tv_tensors.Image, settings: Photometric, rng: np.random.Generator
) -> tv_tensors.Image:
    """Change the colours of bytes (3, H, W) as mmsegmentation 0.11's PhotoMetricDistortion does.

    torchvision's of that name is SSD's: it also swaps channels, and its contrast is about the mean.
    """

    def contrast(x: Tensor) -> Tensor:
        if rng.random() < settings.probability:
            return _to_bytes(x * rng.uniform(*settings.contrast))
        return x

    x = image.as_subclass(Tensor).float()
    if rng.random() < settings.probability:
        x = _to_bytes(x + rng.uniform(-settings.brightness_delta, settings.brightness_delta))
    contrast_comes_first = rng.random() < 0.5
    if contrast_comes_first:
        x = contrast(x)
    if rng.random() < settings.probability:
        x = _saturate(x, rng.uniform(*settings.saturation))
    if rng.random() < settings.probability:
        turn = rng.uniform(-settings.hue_delta, settings.hue_delta) / 180
        x = transform.adjust_hue(x.to(torch.uint8), turn).float()
    if not contrast_comes_first:
        x = contrast(x)
    return tv_tensors.Image(x.to(torch.uint8))


def _saturate(x: Tensor, factor: float) -> Tensor:
    """Multiply HSV's saturation, which ends at 1; value and hue stay."""
    value, least = x.amax(0), x.amin(0)
    # The saturation is (value - least) / value.
    most = value / (value - least).clamp_min(1)
    return _to_bytes(value - (value - x) * most.clamp_max(factor) + 0.5)


def _to_bytes(x: Tensor) -> Tensor:
    return x.clamp(0, 255).floor()


def pad(x: Tensor, size: tuple[int, int], value: float = 0.0) -> Tensor:
    """Pad (..., H, W) at the bottom and right."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, size[1] - width, 0, size[0] - height), value=value)
