"""One box head (Faster and Mask R-CNN), or three that refine boxes in turn (Cascade R-CNN).

Cai & Vasconcelos 2019 (https://arxiv.org/abs/1906.09756) as mmdetection 2.11's ``StandardRoIHead``
and ``CascadeRoIHead`` do it: all sampled boxes count in the mean of the box loss, boxes of objects
themselves are dropped between stages, and a box without an object moves by its best class's offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, generalized_box_iou_loss, roi_align

from searchspace.dense import DetectionHead
from supernet.dense.boxes import Matching, decode, encode, match, sample
from supernet.dense.proposals import ImageSize
from supernet.dense.regions import BoxHead, MaskHead, pool_regions, with_image_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOptions:
    """How one stage learns.

    Attributes:
        matching: Which boxes are an object's.
        stds: What offsets are divided by.
        weight: Of the stage's losses.
    """

    matching: Matching
    stds: tuple[float, float, float, float]
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionOptions:
    """How regions are learned and judged; `supernet.dense.recipe` says what each value means."""

    stages: tuple[StageOptions, ...]
    samples: int
    positive_share: float
    box_loss: str
    box_weight: float
    finest_scale: float
    score_threshold: float
    nms: float
    kept: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Objects:
    """The truth of one image.

    Attributes:
        boxes: (N, 4) in pixels.
        labels: Classes (N,).
        masks: Booleans (N, H, W), or None without masks.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device) -> Objects:
        """Move it."""
        masks = None if self.masks is None else self.masks.to(device)
        return Objects(boxes=self.boxes.to(device), labels=self.labels.to(device), masks=masks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (N, 4) in pixels of the image that the network saw.
        labels: Classes (N,).
        scores: Probabilities (N,).
        masks: Probabilities (N, S, S) inside the boxes, or None without masks.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sampled:
    """Boxes of an image that a stage learns from: those of objects first.

    Attributes:
        wanted: Number of the object of each positive box.
        is_truth: Whether a box is an object's own.
    """

    boxes: Tensor
    wanted: Tensor
    is_truth: Tensor


class RegionHeads(nn.Module):
    """Box heads, and mask heads where the task has them, one for each stage."""

    def __init__(self, head: DetectionHead, options: RegionOptions, num_classes: int) -> None:
        super().__init__()
        self.head, self.options, self.num_classes = head, options, num_classes
        if len(options.stages) != head.stages:
            raise ValueError(
                f"A head of {head.stages} stages needs options for each, got "
                f"{len(options.stages)}. Write as many."
            )
        self.boxes = nn.ModuleList(BoxHead(head, num_classes) for _ in options.stages)
        self.masks = nn.ModuleList(
            MaskHead(head, num_classes) for _ in options.stages if head.has_masks
        )

    def loss(
        self,
        maps: Sequence[Tensor],
        strides: Sequence[int],
        proposals: Sequence[Tensor],
        sizes: Sequence[ImageSize],
        truth: Sequence[Objects],
    ) -> dict[str, Tensor]:
        """Compute the losses of every stage, weighted."""
        losses: dict[str, Tensor] = {}
        for number, stage in enumerate(self.options.stages):
            sampled = [self._sample(*pair, stage) for pair in zip(proposals, truth, strict=True)]
            cut = self._cut(maps, strides, [own.boxes for own in sampled], self.head.box_size)
            logits, moves = self.boxes[number](cut)
            labels = self._labels(sampled, truth)
            weighted = {
                "classes": F.cross_entropy(logits, labels),
                "boxes": self._box_loss(moves, labels, sampled, truth, stage),
            }
            if self.head.has_masks:
                weighted["masks"] = self._mask_loss(number, maps, strides, sampled, truth)
            losses |= {f"{name}{number}": stage.weight * x for name, x in weighted.items()}
            if number + 1 < len(self.options.stages):
                proposals = self._refined(logits, moves, labels, sampled, sizes, stage)
        return losses

    @torch.no_grad()
    def detect(
        self,
        maps: Sequence[Tensor],
        strides: Sequence[int],
        proposals: Sequence[Tensor],
        sizes: Sequence[ImageSize],
    ) -> list[Detections]:
        """Find objects: the stages' logits averaged, the boxes of the last."""
        boxes, counts = list(proposals), [len(own) for own in proposals]
        all_logits = []
        for number, stage in enumerate(self.options.stages):
            cut = self._cut(maps, strides, boxes, self.head.box_size)
            logits, moves = self.boxes[number](cut)
            all_logits.append(logits)
            if number + 1 < len(self.options.stages):
                best = logits[:, :-1].argmax(1)
                chosen = moves[torch.arange(len(best), device=best.device), best]
                boxes = [
                    decode(own, own_moves, stage.stds, size.content)
                    for own, own_moves, size in zip(boxes, chosen.split(counts), sizes, strict=True)
                ]
        scores = torch.stack(all_logits).mean(0).softmax(1)
        stds = self.options.stages[-1].stds
        found = [
            self._best(*one, stds)
            for one in zip(boxes, scores.split(counts), moves.split(counts), sizes, strict=True)
        ]
        return self._with_masks(maps, strides, found) if self.head.has_masks else found

    def _cut(
        self, maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int
    ) -> Tensor:
        return pool_regions(
            maps, boxes, strides=strides, size=size, finest_scale=self.options.finest_scale
        )

    def _sample(self, proposals: Tensor, objects: Objects, stage: StageOptions) -> _Sampled:
        """Draw the boxes of an image that a stage learns from; its objects' own may be drawn."""
        count = len(objects.boxes)
        matched = match(proposals, objects.boxes, stage.matching)
        own = torch.arange(1, count + 1, device=matched.device)
        positive, negative = sample(
            torch.cat([own, matched]), self.options.samples, self.options.positive_share
        )
        boxes = torch.cat([objects.boxes, proposals])
        chosen = torch.cat([positive, negative])
        return _Sampled(
            boxes=boxes[chosen],
            wanted=torch.cat([own, matched])[positive] - 1,
            is_truth=chosen < count,
        )

    def _labels(self, sampled: Sequence[_Sampled], truth: Sequence[Objects]) -> Tensor:
        found = []
        for own, objects in zip(sampled, truth, strict=True):
            labels = own.wanted.new_full((len(own.boxes),), self.num_classes)
            labels[: len(own.wanted)] = objects.labels[own.wanted]
            found.append(labels)
        return torch.cat(found)

    def _box_loss(
        self,
        moves: Tensor,
        labels: Tensor,
        sampled: Sequence[_Sampled],
        truth: Sequence[Objects],
        stage: StageOptions,
    ) -> Tensor:
        """Compare the positive boxes' offsets (L1), or where they lead (GIoU)."""
        is_positive = labels < self.num_classes
        found = moves[is_positive, labels[is_positive]]
        boxes = torch.cat([own.boxes for own in sampled])[is_positive]
        wanted = torch.cat(
            [objects.boxes[own.wanted] for own, objects in zip(sampled, truth, strict=True)]
        )
        if self.options.box_loss == "giou":
            decoded = decode(boxes, found, stage.stds)
            loss = generalized_box_iou_loss(decoded, wanted, reduction="sum")
        else:
            loss = (found - encode(boxes, wanted, stage.stds)).abs().sum()
        return self.options.box_weight * loss / max(len(labels), 1)

    def _mask_loss(
        self,
        number: int,
        maps: Sequence[Tensor],
        strides: Sequence[int],
        sampled: Sequence[_Sampled],
        truth: Sequence[Objects],
    ) -> Tensor:
        boxes = [own.boxes[: len(own.wanted)] for own in sampled]
        logits = self.masks[number](self._cut(maps, strides, boxes, 2 * self.head.box_size))
        wanted = [
            cut_masks(objects, own, boxes_of, logits.shape[-1])
            for own, boxes_of, objects in zip(
                (own.wanted for own in sampled), boxes, truth, strict=True
            )
        ]
        labels = torch.cat(
            [objects.labels[own.wanted] for own, objects in zip(sampled, truth, strict=True)]
        )
        chosen = logits[torch.arange(len(labels), device=labels.device), labels]
        if len(labels) == 0:
            return logits.sum() * 0
        return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted).to(chosen.dtype))

    @torch.no_grad()
    def _refined(
        self,
        logits: Tensor,
        moves: Tensor,
        labels: Tensor,
        sampled: Sequence[_Sampled],
        sizes: Sequence[ImageSize],
        stage: StageOptions,
    ) -> list[Tensor]:
        """Move the sampled boxes by the offset of their label, without the objects' own."""
        best = logits[:, :-1].argmax(1)
        chosen_class = torch.where(labels < self.num_classes, labels, best)
        chosen = moves[torch.arange(len(best), device=best.device), chosen_class]
        counts = [len(own.boxes) for own in sampled]
        return [
            decode(own.boxes, own_moves, stage.stds, size.content)[~own.is_truth]
            for own, own_moves, size in zip(sampled, chosen.split(counts), sizes, strict=True)
        ]

    def _best(
        self,
        boxes: Tensor,
        scores: Tensor,
        moves: Tensor,
        size: ImageSize,
        stds: tuple[float, float, float, float],
    ) -> Detections:
        """Keep, of every box and class, what scores enough and is not suppressed in its class."""
        options = self.options
        which, labels = torch.nonzero(scores[:, :-1] > options.score_threshold, as_tuple=True)
        found = decode(boxes[which], moves[which, labels], stds, size.content)
        chosen_scores = scores[which, labels]
        keep = batched_nms(found, chosen_scores, labels, options.nms)[: options.kept]
        return Detections(boxes=found[keep], labels=labels[keep], scores=chosen_scores[keep])

    def _with_masks(
        self, maps: Sequence[Tensor], strides: Sequence[int], found: Sequence[Detections]
    ) -> list[Detections]:
        """Add the masks: the stages' probabilities averaged."""
        cut = self._cut(maps, strides, [one.boxes for one in found], 2 * self.head.box_size)
        labels = torch.cat([one.labels for one in found])
        rows = torch.arange(len(labels), device=labels.device)
        masks = torch.stack([head(cut)[rows, labels].sigmoid() for head in self.masks]).mean(0)
        return [
            Detections(boxes=one.boxes, labels=one.labels, scores=one.scores, masks=own)
            for one, own in zip(found, masks.split([len(one.boxes) for one in found]), strict=True)
        ]


def cut_masks(objects: Objects, wanted: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Cut the masks of chosen objects to boxes: booleans (N, side, side)."""
    if objects.masks is None:
        raise ValueError("A mask head learns from masks, and these objects have none.")
    masks = objects.masks[wanted, None].to(boxes.dtype)
    # One mask a box: box i is cut out of image i.
    numbered = with_image_numbers([box[None] for box in boxes]) if len(boxes) else None
    if numbered is None:
        return masks.new_zeros(0, side, side) >= 0.5
    cut: Tensor = roi_align(masks, numbered, side, 1.0, sampling_ratio=0, aligned=True)
    return cut[:, 0] >= 0.5


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw masks into an image: booleans (N, H, W), as mmdetection's ``_do_paste_mask``.

    Args:
        masks: Probabilities (N, S, S) inside the boxes.
        boxes: (N, 4) in pixels of that image.
        size: (H, W) of the image.
    """
    height, width = size
    found = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    for number, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        x1, y1, x2, y2 = box.tolist()
        left, right = max(int(x1) - 1, 0), min(int(x2) + 2, width)
        top, bottom = max(int(y1) - 1, 0), min(int(y2) + 2, height)
        if left >= right or top >= bottom or x1 >= x2 or y1 >= y2:
            continue
        x = torch.arange(left, right, device=masks.device, dtype=masks.dtype) + 0.5
        y = torch.arange(top, bottom, device=masks.device, dtype=masks.dtype) + 0.5
        grid_y, grid_x = torch.meshgrid(
            (y - y1) / (y2 - y1) * 2 - 1, (x - x1) / (x2 - x1) * 2 - 1, indexing="ij"
        )
        grid = torch.stack([grid_x, grid_y], -1)[None]
        drawn = F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
        found[number, top:bottom, left:right] = drawn >= 0.5
    return found
