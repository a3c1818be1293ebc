"""Anchors, offsets, matching and sampling as mmdetection's formulas say, on examples by hand."""

from __future__ import annotations

import math

import pytest
import torch

from supernet.dense.boxes import (
    IGNORED,
    NEGATIVE,
    Matching,
    anchors_of_level,
    decode,
    encode,
    match,
    sample,
)

STDS = (0.1, 0.1, 0.2, 0.2)


def test_anchors_stand_around_positions_row_by_row_one_for_each_ratio() -> None:
    like = torch.zeros((), dtype=torch.float64)
    found = anchors_of_level((2, 3), 4, scale=8, ratios=(0.5, 1.0, 2.0), like=like)
    root = math.sqrt(2)
    sides = [(32 * root, 32 / root), (32.0, 32.0), (32 / root, 32 * root)]  # width, height
    expected = [
        [4 * x - width / 2, 4 * y - height / 2, 4 * x + width / 2, 4 * y + height / 2]
        for y in range(2)
        for x in range(3)
        for width, height in sides
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_anchors_of_half_precision_maps_are_whole_pixels() -> None:
    like = torch.zeros((), dtype=torch.float16)
    found = anchors_of_level((1, 1000), 4, scale=1, ratios=(1.0,), like=like)
    assert found.dtype == torch.float32
    assert found[-1, 0] == 999 * 4 - 2


def test_offsets_are_moves_over_sides_and_logs_of_ratios() -> None:
    box = torch.tensor([[10.0, 20.0, 30.0, 60.0]])  # 20 x 40 around (20, 40)
    target = torch.tensor([[15.0, 40.0, 25.0, 120.0]])  # 10 x 80 around (20, 80)
    expected = torch.tensor([[0.0, 1.0 / 0.1, math.log(0.5) / 0.2, math.log(2) / 0.2]])
    torch.testing.assert_close(encode(box, target, STDS), expected)
    torch.testing.assert_close(decode(box, expected, STDS), target)


def test_sides_change_by_62_5_at_most_and_boxes_are_cut_to_the_image() -> None:
    box = torch.tensor([[100.0, 100.0, 110.0, 110.0]])
    deltas = torch.tensor([[0.0, 0.0, 100.0, -100.0]])
    (found,) = decode(box, deltas, STDS)
    assert found[2] - found[0] == pytest.approx(625, rel=1e-5)
    assert found[3] - found[1] == pytest.approx(10 / 62.5, rel=1e-4)
    (cut,) = decode(box, deltas, STDS, (50, 120))
    assert cut.tolist() == [0.0, 50.0, 120.0, 50.0]


def test_matching_by_overlap_and_the_best_boxes_of_an_object() -> None:
    truth = torch.tensor([[0.0, 0, 10, 10], [100.0, 100, 120, 120]])
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # IoU 1 with the first
            [0.0, 0, 10, 20],  # .5
            [0.0, 0, 10, 40],  # .25
            [100.0, 100, 110, 120],  # .5 with the second, its best
            [110.0, 100, 120, 120],  # .5 as well
            [50.0, 50, 60, 60],  # 0
        ]
    )
    rule = Matching(positive=0.7, negative=0.3, lowest=0.3)
    expected = [1, IGNORED, NEGATIVE, 2, 2, NEGATIVE]
    assert match(boxes, truth, rule).tolist() == expected
    strict = Matching(positive=0.7, negative=0.3)
    assert match(boxes, truth, strict).tolist() == [1, IGNORED, 0, IGNORED, IGNORED, 0]
    none = match(boxes, truth[:0], rule)
    assert none.tolist() == [NEGATIVE] * 6


def test_samples_are_filled_up_with_background() -> None:
    matched = torch.tensor([1, 2, 0, 0, IGNORED, 0, 1, 2, 0, 0])
    torch.manual_seed(0)
    positive, negative = sample(matched, 6, 0.5)
    assert len(positive) == 3
    assert len(negative) == 3
    assert set(positive.tolist()) <= {0, 1, 6, 7}
    assert set(negative.tolist()) <= {2, 3, 5, 8, 9}
    positive, negative = sample(matched, 8, 0.25)
    assert (len(positive), len(negative)) == (2, 5)
