"""Boxes: anchors, offsets, which box belongs to which object, which of them are learned from.

mmdetection 2.11's ``AnchorGenerator``, ``DeltaXYWHBBoxCoder``, ``MaxIoUAssigner`` and
``RandomSampler``. A box is (x1, y1, x2, y2) in pixels; nothing is rounded, no side gets a
pixel more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

IGNORED, NEGATIVE = -1, 0
_LARGEST_LOG_RATIO = abs(math.log(16 / 1000))


def anchors_of_level(
    size: tuple[int, int], stride: int, *, scale: float, ratios: Sequence[float], like: Tensor
) -> Tensor:
    """Make the anchors of a map: at every position, row by row, one for each ratio.

    Args:
        size: (H, W) of the map.
        stride: Pixels between positions; anchors have about ``scale * stride`` a side.
        ratios: Height over width.
        like: Has their device, and their type where that is no half precision.

    Returns:
        Shape (H * W * len(ratios), 4).
    """
    # Half precision has no odd pixels beyond 2048, and half as many from 1024 on.
    dtype = torch.promote_types(like.dtype, torch.float32)
    roots = torch.tensor([math.sqrt(ratio) for ratio in ratios], dtype=dtype)
    width, height = stride / roots * scale, stride * roots * scale
    base = torch.stack([-width, -height, width, height], 1).to(like.device) / 2
    rows = torch.arange(size[0], device=like.device, dtype=dtype) * stride
    columns = torch.arange(size[1], device=like.device, dtype=dtype) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
    return (shifts + base).view(-1, 4)


def encode(boxes: Tensor, targets: Tensor, stds: Sequence[float]) -> Tensor:
    """Describe target boxes (N, 4) as offsets from boxes: moves over sides, logs of ratios."""
    sides, target_sides = _sides(boxes), _sides(targets)
    moves = (_centres(targets) - _centres(boxes)) / sides
    deltas = torch.cat([moves, (target_sides / sides).log()], 1)
    return deltas / deltas.new_tensor(stds)


def decode(
    boxes: Tensor,
    deltas: Tensor,
    stds: Sequence[float],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Invert `encode`; with the (H, W) of an image, cut to it.

    Sides change by a factor of 62.5 at most.
    """
    deltas = deltas * deltas.new_tensor(stds)
    logs = deltas[:, 2:].clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    sides = _sides(boxes)
    centres, half = _centres(boxes) + sides * deltas[:, :2], sides * logs.exp() / 2
    found = torch.cat([centres - half, centres + half], 1)
    return found if size is None else clip(found, size)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes to an image of ``size`` = (H, W)."""
    height, width = size
    x, y = boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)
    return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Matching:
    """Which boxes are an object's: by intersection over union.

    Attributes:
        positive: At least so much with an object makes a box that object's.
        negative: Less than so much with every object makes it background.
        lowest: An object's best boxes are its too, from here on; None for no such rule.
    """

    positive: float
    negative: float
    lowest: float | None = None


def match(boxes: Tensor, truth: Tensor, rule: Matching) -> Tensor:
    """Assign an object to every box.

    Returns:
        Integers of shape (N,): 1 + the object's number, `NEGATIVE` or `IGNORED`.
    """
    found = torch.full((len(boxes),), IGNORED, device=boxes.device)
    if len(truth) == 0:
        return found.fill_(NEGATIVE)
    if len(boxes) == 0:
        return found
    overlaps = box_iou(truth, boxes)  # (objects, boxes)
    best, which = overlaps.max(0)
    found[best < rule.negative] = NEGATIVE
    is_positive = best >= rule.positive
    found[is_positive] = which[is_positive] + 1
    if rule.lowest is not None:
        best_of_object = overlaps.max(1).values
        # In order: a box that is the best of two objects belongs to the later one.
        for number, overlap in enumerate(best_of_object.tolist()):
            if overlap >= rule.lowest:
                found[overlaps[number] == best_of_object[number]] = number + 1
    return found


def sample(matched: Tensor, number: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Draw the boxes that are learned from, by torch's random numbers.

    Returns:
        Indices of positive boxes, at most that share of ``number``, and of negative ones, which
        fill it up.
    """
    positive = _draw(torch.nonzero(matched > 0).flatten(), int(number * positive_share))
    negative = _draw(torch.nonzero(matched == NEGATIVE).flatten(), number - len(positive))
    return positive, negative


def precise(x: Tensor) -> Tensor:
    """Return half precision in single precision, anything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _draw(indices: Tensor, number: int) -> Tensor:
    if len(indices) <= number:
        return indices
    # On the CPU, so that every device draws the same.
    chosen = torch.randperm(len(indices))[:number].to(indices.device)
    return indices[chosen].sort().values


def _sides(boxes: Tensor) -> Tensor:
    return boxes[:, 2:] - boxes[:, :2]


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] + boxes[:, :2]) / 2
