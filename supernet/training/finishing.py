"""The last steps of a training batch, on the device that trains: uint8 in, normalised images out.

Whoever reads images crops them as it copies them out of memory, and draws every random number; what
travels to the device is bytes, a quarter of float32, and a short list of what is to be done there:
mirror, normalise, erase, mix. Every formula is one of single elements, so any device computes the
same bits.

Shape suffixes: B images, H and W their sides in pixels, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from timm.data.mixup import Mixup, cutmix_bbox_and_lam, one_hot
from timm.data.random_erasing import RandomErasing
from torch import Tensor


class Box(NamedTuple):
    """A rectangle of an image of a batch."""

    image: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Patches:
    """What replaces parts of normalised images.

    Attributes:
        boxes: Where; a later one lies on top.
        values: Of all boxes one after another, (C, height, width) of each, or (C, 1, 1).
        is_plain: Whether a box has one colour.
    """

    boxes: tuple[Box, ...]
    values: Tensor
    is_plain: bool

    @classmethod
    def drawn(cls, erase: RandomErasing, shape: tuple[int, int, int, int]) -> Patches:
        """Let timm erase parts of a batch (B, C, H, W), and note which, and what it puts there."""
        record = _Batch(shape)
        erase(record)
        values = [value.flatten() for _, value in record.found]
        return cls(
            boxes=tuple(box for box, _ in record.found),
            values=torch.cat(values) if values else torch.empty(0),
            is_plain=not erase.per_pixel,
        )

    def put_on(self, images: Tensor) -> None:
        """Replace the parts of images (B, C, H, W)."""
        channels = images.shape[1]
        sizes = [channels * (1 if self.is_plain else box.height * box.width) for box in self.boxes]
        for box, values in zip(self.boxes, self.values.split(sizes), strict=True):
            rows = slice(box.top, box.top + box.height)
            columns = slice(box.left, box.left + box.width)
            images[box.image, :, rows, columns] = (
                values.view(-1, 1, 1) if self.is_plain else values.view(-1, box.height, box.width)
            )


@dataclass(frozen=True, slots=True)
class Mixing:
    """How a batch is mixed with itself in reverse order (Mixup and CutMix, as in timm).

    Attributes:
        share: Of an image's own class in its targets; their sum is less than 1 where one of the
            two has no class.
        box: Of rows and columns that come from the other image; None mixes every pixel.
        num_classes: Of the targets.
    """

    share: float
    box: tuple[slice, slice] | None
    num_classes: int

    @classmethod
    def drawn(cls, mix: Mixup, shape: tuple[int, int, int, int]) -> Mixing:
        """Draw what timm's `Mixup` would draw for a batch (B, C, H, W)."""
        share, uses_box = mix._params_per_batch()
        if share == 1.0 or not uses_box:
            return cls(share, None, mix.num_classes)
        (top, bottom, left, right), share = cutmix_bbox_and_lam(shape, share)
        box = slice(int(top), int(bottom)), slice(int(left), int(right))
        return cls(float(share), box, mix.num_classes)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.box is not None:
            images[:, :, *self.box] = images.flip(0)[:, :, *self.box]
        elif self.share != 1.0:
            others = images.flip(0).mul_(1.0 - self.share)
            images.mul_(self.share).add_(others)
        own = one_hot(labels.clamp_min(0), self.num_classes)
        own *= (labels >= 0).unsqueeze(1)  # an image without a class adds none
        return images, own * self.share + own.flip(0) * (1.0 - self.share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finish:
    """What is still to be done to a batch of pixels; all that is random about it is drawn.

    Attributes:
        mean, std: Of each channel, in 0..1.
        mirrored: Which images are mirrored, (B,); None for none.
        patches: What is erased, if anything.
        mixing: How the batch is mixed, if it is.
        erases_last: After mixing, not before.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrored: Tensor | None = None
    patches: Patches | None = None
    mixing: Mixing | None = None
    erases_last: bool = False

    def __call__(self, pixels_BHWC: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Finish a batch where it lies: the finish is on the same device.

        Returns:
            Images (B, C, H, W), and class indices (B,) or probabilities (B, num_classes).
        """
        if self.mirrored is not None:
            is_mirrored = self.mirrored[:, None, None, None]
            pixels_BHWC = torch.where(is_mirrored, pixels_BHWC.flip(2), pixels_BHWC)
        images, targets = normalized(pixels_BHWC, self.mean, self.std), labels
        if self.patches is not None and not self.erases_last:
            self.patches.put_on(images)
        if self.mixing is not None:
            images, targets = self.mixing(images, labels)
        if self.patches is not None and self.erases_last:
            self.patches.put_on(images)
        return images, targets

    def to(self, device: torch.device) -> Finish:
        """Return the same on a device; nobody waits for the copies."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Finish:
        """Put the tensors where a GPU fetches them while it computes."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, move: Any) -> Finish:
        patches = self.patches
        return replace(
            self,
            mirrored=None if self.mirrored is None else move(self.mirrored),
            patches=None if patches is None else replace(patches, values=move(patches.values)),
        )


def normalized(pixels_BHWC: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn pixels into floats of zero mean and unit variance over the train split, (B, C, H, W)."""
    means, stds = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    factor, offset = (
        # Computed on the CPU, whose divisions are those of every device.
        one.to(pixels_BHWC.device, non_blocking=True)
        for one in (1 / (255 * stds), means / stds)
    )
    images = pixels_BHWC.permute(0, 3, 1, 2).contiguous().float()
    return images.mul_(factor).sub_(offset)


class _Batch:
    """Stands for a batch that timm's `RandomErasing` erases parts of, and notes them."""

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        self.shape, self.dtype = shape, torch.float32
        self.found: list[tuple[Box, Tensor]] = []

    def size(self) -> tuple[int, int, int, int]:
        return self.shape

    def __getitem__(self, image: int) -> _Image:
        return _Image(self, image)


class _Image:
    """One image of `_Batch`."""

    def __init__(self, batch: _Batch, number: int) -> None:
        self._batch, self._number = batch, number

    def __setitem__(self, place: tuple[slice, slice, slice], value: Tensor) -> None:
        _, rows, columns = place
        box = Box(
            self._number,
            rows.start,
            columns.start,
            rows.stop - rows.start,
            columns.stop - columns.start,
        )
        self._batch.found.append((box, value))
