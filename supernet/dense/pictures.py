"""Images with what was found in them, or with the truth, drawn by torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from supernet.data.dense import DenseSplit
from supernet.data.dense.masks import decode_masks
from supernet.dense.cascade import Detections

# Okabe & Ito 2008, told apart by all eyes; classes beyond repeat them.
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
_SHOWN_SCORE = 0.3


def draw_objects(pixels: Tensor, found: Detections, class_names: Sequence[str]) -> Tensor:
    """Draw boxes with class and score, and masks, into bytes (3, H, W)."""
    shown = found.scores >= _SHOWN_SCORE
    labels = found.labels[shown].tolist()
    colours = [_COLOURS[label % len(_COLOURS)] for label in labels]
    if not labels:
        return pixels
    if found.masks is not None:
        several = [_COLOURS[number % len(_COLOURS)] for number in range(len(labels))]
        pixels = draw_segmentation_masks(pixels, found.masks[shown], alpha=0.5, colors=several)
    words = [
        f"{class_names[label]} {score:.2f}" if score < 1 else class_names[label]
        for label, score in zip(labels, found.scores[shown].tolist(), strict=True)
    ]
    return draw_bounding_boxes(
        pixels,
        found.boxes[shown],
        # Words over hundreds of masks would hide them.
        labels=words if found.masks is None else None,
        colors=colours,
        width=2,
    )


def draw_classes(pixels: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Tint the pixels of every class but the first (often the background) and of no class."""
    masks = torch.stack([classes == number for number in range(num_classes)])
    colours: list[tuple[int, int, int]] = [
        _COLOURS[(number - 1) % len(_COLOURS)] for number in range(num_classes)
    ]
    first = 1 if num_classes > 1 else 0
    return draw_segmentation_masks(pixels, masks[first:], alpha=0.5, colors=list(colours[first:]))


def draw_truth(split: DenseSplit, index: int, *, task: str) -> Tensor:
    """Draw the truth of an image."""
    image = split.images[index]
    pixels = image.pixels()
    if task == "semantic":
        return draw_classes(pixels, split.labels(index), len(split.class_names))
    objects = [one for one in image.objects if one.is_learned]
    masks = None
    if task == "instance":
        masks = decode_masks([one.mask or {} for one in objects], image.size).bool()
    truth = Detections(
        boxes=torch.tensor([one.box for one in objects]).view(-1, 4),
        labels=torch.tensor([one.label for one in objects], dtype=torch.long),
        scores=torch.ones(len(objects)),
        masks=masks,
    )
    return draw_objects(pixels, truth, split.class_names)


def side_by_side(left: Tensor, right: Tensor) -> Image.Image:
    """Put two pictures (3, H, W) beside each other."""
    gap = torch.full((3, left.shape[1], 6), 255, dtype=torch.uint8)
    picture: Image.Image = to_pil_image(torch.cat([left, gap, right], 2))
    return picture
