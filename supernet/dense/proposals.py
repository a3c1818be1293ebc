"""Region proposals (Ren et al. 2015, https://arxiv.org/abs/1506.01497), mmdetection 2.11's RPNHead.

Shape suffixes: B images, A anchors of an image over all levels, N proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from supernet.dense.boxes import (
    IGNORED,
    Matching,
    anchors_of_level,
    decode,
    encode,
    match,
    precise,
    sample,
)

STDS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalOptions:
    """How proposals are made and learned; `supernet.dense.recipe` says what each value means."""

    scale: float
    ratios: tuple[float, ...]
    matching: Matching
    samples: int
    positive_share: float
    border: int | None
    smooth_beta: float
    nms: float
    per_level_training: int
    per_level: int
    kept_training: int
    kept: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSize:
    """Sides (H, W) of an image in a padded batch.

    Attributes:
        content: Of the image itself.
        padded: Of the image with its own padding, without that to the largest of the batch.
    """

    content: tuple[int, int]
    padded: tuple[int, int]


class ProposalHead(nn.Module):
    """Scores and moves the anchors of every level with one small network.

    Args:
        channels: Of the pyramid.
        options: Of anchors, losses and proposals.
    """

    def __init__(self, channels: int, options: ProposalOptions) -> None:
        super().__init__()
        self.options = options
        number = len(options.ratios)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scores = nn.Conv2d(channels, number, 1)
        self.moves = nn.Conv2d(channels, 4 * number, 1)
        for layer in (self.conv, self.scores, self.moves):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Compute, level by level, logits (B, A_l) and offsets (B, A_l, 4)."""
        hidden = [F.relu(self.conv(x)) for x in maps]
        return [
            (
                precise(self.scores(x).permute(0, 2, 3, 1).flatten(1)),
                precise(self.moves(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4)),
            )
            for x in hidden
        ]

    def anchors(self, maps: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
        """Make the anchors of every level."""
        options = self.options
        return [
            anchors_of_level(
                (x.shape[-2], x.shape[-1]),
                stride,
                scale=options.scale,
                ratios=options.ratios,
                like=x,
            )
            for x, stride in zip(maps, strides, strict=True)
        ]

    @torch.no_grad()
    def propose(
        self,
        outputs: Sequence[tuple[Tensor, Tensor]],
        anchors: Sequence[Tensor],
        sizes: Sequence[ImageSize],
    ) -> list[Tensor]:
        """Return the proposals (N, 4) of each image, best first."""
        options = self.options
        per_level = options.per_level_training if self.training else options.per_level
        kept = options.kept_training if self.training else options.kept
        found = []
        for number, size in enumerate(sizes):
            scores, boxes, levels = [], [], []
            for level, ((logits, moves), own) in enumerate(zip(outputs, anchors, strict=True)):
                best, which = logits[number].sigmoid().topk(min(per_level, len(own)))
                scores.append(best)
                boxes.append(decode(own[which], moves[number, which], STDS, size.content))
                levels.append(torch.full_like(which, level))
            all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
            is_real = (all_boxes[:, 2:] > all_boxes[:, :2]).all(1)
            all_boxes, all_scores = all_boxes[is_real], all_scores[is_real]
            keep = batched_nms(all_boxes, all_scores, torch.cat(levels)[is_real], options.nms)
            found.append(all_boxes[keep[:kept]])
        return found

    def loss(
        self,
        outputs: Sequence[tuple[Tensor, Tensor]],
        anchors: Sequence[Tensor],
        sizes: Sequence[ImageSize],
        strides: Sequence[int],
        truth: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Compute the losses of scores and boxes, over the sampled anchors of all images.

        Args:
            truth: The objects' boxes of each image.
        """
        logits = torch.cat([scores for scores, _ in outputs], 1)
        moves = torch.cat([level_moves for _, level_moves in outputs], 1)
        all_anchors = torch.cat(list(anchors))
        scores, boxes, samples = [], [], 0
        for number, (size, objects) in enumerate(zip(sizes, truth, strict=True)):
            usable = self._usable(all_anchors, outputs, strides, size)
            matched = torch.full_like(usable, IGNORED, dtype=torch.long)
            matched[usable] = match(all_anchors[usable], objects, self.options.matching)
            positive, negative = sample(matched, self.options.samples, self.options.positive_share)
            # As there, an image counts one box of a kind of which it has none.
            samples += max(len(positive), 1) + max(len(negative), 1)
            chosen = logits[number, torch.cat([positive, negative])]
            labels = torch.zeros_like(chosen)
            labels[: len(positive)] = 1
            scores.append(F.binary_cross_entropy_with_logits(chosen, labels, reduction="sum"))
            wanted = encode(all_anchors[positive], objects[matched[positive] - 1], STDS)
            boxes.append(self._box_loss(moves[number, positive], wanted))
        return {
            "proposal_scores": torch.stack(scores).sum() / samples,
            "proposal_boxes": torch.stack(boxes).sum() / samples,
        }

    def _box_loss(self, found: Tensor, wanted: Tensor) -> Tensor:
        beta = self.options.smooth_beta
        return F.smooth_l1_loss(found, wanted, beta=beta, reduction="sum")

    def _usable(
        self,
        anchors: Tensor,
        outputs: Sequence[tuple[Tensor, Tensor]],
        strides: Sequence[int],
        size: ImageSize,
    ) -> Tensor:
        """Mark the anchors at positions of the image; with a border, those inside it too."""
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        height, width = size.padded
        counts = [scores.shape[1] for scores, _ in outputs]
        steps = torch.cat(
            [
                centres.new_full((count,), stride)
                for count, stride in zip(counts, strides, strict=True)
            ]
        )
        # Position i of a level is the image's where i < ceil(side / stride).
        found = (centres[:, 0].round() < (width / steps).ceil() * steps) & (
            centres[:, 1].round() < (height / steps).ceil() * steps
        )
        border = self.options.border
        if border is None:
            return found
        height, width = size.content
        inside = (anchors[:, 0] >= -border) & (anchors[:, 1] >= -border)
        inside &= (anchors[:, 2] < width + border) & (anchors[:, 3] < height + border)
        return found & inside
