"""Regions, stages and masks against their definitions, written naively."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from searchspace.dense import DetectionHead
from supernet.dense.boxes import Matching, decode
from supernet.dense.cascade import (
    Objects,
    RegionHeads,
    RegionOptions,
    StageOptions,
    cut_masks,
    paste_masks,
)
from supernet.dense.proposals import ImageSize
from supernet.dense.regions import pool_regions

STDS = (0.1, 0.1, 0.2, 0.2)


def bilinear(plane: Tensor, y: float, x: float) -> float:
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    rows = (plane[top, left] * (1 - (x - left)) + plane[top, right] * (x - left)) * (1 - (y - top))
    below = plane[bottom, left] * (1 - (x - left)) + plane[bottom, right] * (x - left)
    return float(rows + below * (y - top))


def naive_align(plane: Tensor, box: list[float], stride: int, size: int) -> Tensor:
    """Aligned RoIAlign with as many samples in a cell as it has pixels (He et al. 2017)."""
    x1, y1, x2, y2 = (value / stride - 0.5 for value in box)
    cell_height, cell_width = (y2 - y1) / size, (x2 - x1) / size
    rows, columns = math.ceil((y2 - y1) / size), math.ceil((x2 - x1) / size)
    found = torch.zeros(size, size, dtype=plane.dtype)
    for i in range(size):
        for j in range(size):
            values = [
                bilinear(
                    plane,
                    y1 + i * cell_height + (a + 0.5) * cell_height / rows,
                    x1 + j * cell_width + (b + 0.5) * cell_width / columns,
                )
                for a in range(rows)
                for b in range(columns)
            ]
            found[i, j] = sum(values) / len(values)
    return found


def test_regions_are_cut_from_the_level_that_fits_their_size() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 1, 32 // 2**k, 32 // 2**k, dtype=torch.float64) for k in range(3)]
    # Roots of areas over 14: below 1 and in [1, 2), [2, 4), beyond the last level.
    boxes = [
        torch.tensor([[3.0, 5.0, 12.0, 11.5], [8.0, 8.0, 38.0, 41.0]], dtype=torch.float64),
        torch.tensor([[1.0, 2.0, 24.0, 19.0], [0.0, 0.0, 120.0, 127.0]], dtype=torch.float64),
    ]
    levels, images = [0, 1, 0, 2], [0, 0, 1, 1]
    found = pool_regions(maps, boxes, strides=(4, 8, 16), size=3, finest_scale=14)
    for region, box, level, image in zip(found, torch.cat(boxes), levels, images, strict=True):
        expected = naive_align(maps[level][image, 0], box.tolist(), 4 * 2**level, 3)
        torch.testing.assert_close(region[0], expected)


def heads(stages: int, box_loss: str = "l1") -> RegionHeads:
    torch.manual_seed(0)
    stage = StageOptions(matching=Matching(positive=0.5, negative=0.5), stds=STDS, weight=1.0)
    options = RegionOptions(
        stages=(stage,) * stages,
        samples=8,
        positive_share=0.5,
        box_loss=box_loss,
        box_weight=2.0,
        finest_scale=14,
        score_threshold=0.0,
        nms=0.5,
        kept=10,
    )
    head = DetectionHead(stages=stages, channels=4, fc_dim=8, mask_convs=1, has_masks=False)
    return RegionHeads(head, options, 2)


OBJECTS = Objects(
    boxes=torch.tensor([[4.0, 4.0, 20.0, 20.0], [30.0, 30.0, 44.0, 50.0]]),
    labels=torch.tensor([1, 0]),
)
PROPOSALS = torch.tensor(
    [[5.0, 4.0, 21.0, 20.0], [29.0, 31.0, 44.0, 50.0], [0.0, 40.0, 9.0, 60.0], [50.0, 2, 60, 9]]
)
SIZE = ImageSize(content=(64, 64), padded=(64, 64))


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_the_box_loss_is_a_mean_over_all_sampled_boxes(box_loss: str) -> None:
    module = heads(1, box_loss)
    (stage,) = module.options.stages
    sampled = module._sample(PROPOSALS, OBJECTS, stage)
    # Both objects' own boxes, two proposals that hit them, two of the background.
    assert len(sampled.boxes) == 6
    assert sampled.is_truth.tolist() == [True, True, False, False, False, False]
    labels = module._labels([sampled], [OBJECTS])
    assert labels.tolist() == [1, 0, 1, 0, 2, 2]
    moves = torch.randn(6, 2, 4) / 10
    found = module._box_loss(moves, labels, [sampled], [OBJECTS], stage)
    total = 0.0
    for index in range(4):
        box, label = sampled.boxes[index], int(labels[index])
        wanted = OBJECTS.boxes[index % 2]
        if box_loss == "giou":
            (moved,) = decode(box[None], moves[index, label][None], STDS)
            total += 1 - giou(moved.tolist(), wanted.tolist())
        else:
            width, height = box[2] - box[0], box[3] - box[1]
            centre = (wanted[:2] + wanted[2:] - box[:2] - box[2:]) / 2
            logs = ((wanted[2:] - wanted[:2]) / torch.stack([width, height])).log()
            offsets = torch.cat([centre / torch.stack([width, height]), logs])
            total += float((moves[index, label] - offsets / torch.tensor(STDS)).abs().sum())
    assert float(found) == pytest.approx(2.0 * total / 6, rel=1e-4)


def giou(one: list[float], other: list[float]) -> float:
    """Rezatofighi et al. 2019."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - shared
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (
        max(one[3], other[3]) - min(one[1], other[1])
    )
    return shared / area - (hull - area) / hull


def test_between_stages_objects_are_dropped_and_boxes_move_by_their_label() -> None:
    module = heads(3)
    stage = module.options.stages[0]
    sampled = module._sample(PROPOSALS, OBJECTS, stage)
    labels = module._labels([sampled], [OBJECTS])
    logits = torch.tensor([[0.0, 9, 0], [0, 9, 0], [9, 0, 9], [9, 0, 9], [3, 1, 9], [1, 3, 9.0]])
    moves = torch.randn(6, 2, 4) / 10
    (found,) = module._refined(logits, moves, labels, [sampled], [SIZE], stage)
    # Positive boxes: their object's class; background: the best class that is none of background.
    chosen = torch.stack([moves[2, 1], moves[3, 0], moves[4, 0], moves[5, 1]])
    expected = decode(sampled.boxes[2:], chosen, STDS, (64, 64))
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_detections_average_logits_and_take_the_last_boxes() -> None:
    module = heads(3).eval()
    maps = [torch.randn(1, 4, 16 // 2**k, 16 // 2**k) for k in range(4)]
    (found,) = module.detect(maps, (4, 8, 16, 32), [PROPOSALS], [SIZE])
    boxes, logits = PROPOSALS, []
    for head in module.boxes:
        cut = pool_regions(maps, [boxes], strides=(4, 8, 16, 32), size=7, finest_scale=14)
        own, moves = head(cut)
        logits.append(own)
        before = boxes
        best = own[:, :2].argmax(1)
        boxes = decode(boxes, moves[torch.arange(4), best], STDS, (64, 64))
    scores = F.softmax(torch.stack(logits).mean(0), 1)[:, :2]
    best_score, where = scores.flatten().max(0)
    assert float(found.scores[0]) == pytest.approx(float(best_score), rel=1e-5)
    row, label = divmod(int(where), 2)
    expected = decode(before[row][None], moves[row, label][None], STDS, (64, 64))
    torch.testing.assert_close(found.boxes[:1], expected)
    assert int(found.labels[0]) == label


def test_a_mask_that_is_cut_out_and_drawn_again_is_the_mask() -> None:
    masks = torch.zeros(2, 40, 50, dtype=torch.bool)
    masks[0, 8:22, 10:38] = True
    masks[1, 4:32, 20:34] = True
    boxes = torch.tensor([[10.0, 8, 38, 22], [20.0, 4, 34, 32]])
    objects = Objects(boxes=boxes, labels=torch.zeros(2, dtype=torch.long), masks=masks)
    cut = cut_masks(objects, torch.tensor([0, 1]), boxes, 28)
    assert bool(cut.all())
    assert torch.equal(paste_masks(cut.float(), boxes, (40, 50)), masks)
