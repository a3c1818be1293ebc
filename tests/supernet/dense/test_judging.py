"""AP is COCO's by two evaluators, mIoU that of its formula, intervals come from images."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from searchspace.space import SearchSpace
from supernet.data.dense import DenseSplit, open_dense_data
from supernet.data.dense.masks import decode_masks, encode_masks
from supernet.dense.batches import judged_batch
from supernet.dense.judging import (
    _evaluate,
    _Matches,
    average_precision,
    class_areas,
    coco_truth,
    judge,
    miou,
    predict_pixels,
)
from supernet.dense.network import Segmenter, build_dense
from supernet.dense.options import dense_options
from tests.tiny_dense import architecture, recipe, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "cells", train=2, val=12)


@pytest.fixture(scope="module")
def split(folder: Path) -> DenseSplit:
    return open_dense_data(str(folder), "instance", unpack_to=folder).test


def jittered(split: DenseSplit) -> list[dict[str, Any]]:
    """Move and reshape the truth, miss some of it, and find what is not there."""
    rng = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    for image in split.images:
        for one in image.objects:
            if rng.random() < 0.15:
                continue
            x, y, width, height = one.annotated
            (mask,) = decode_masks([one.mask or {}], image.size)
            shift = tuple(int(v) for v in rng.integers(-3, 4, 2))
            (encoded,) = encode_masks(mask.roll(shift, (0, 1))[None].bool())
            encoded["counts"] = encoded["counts"].decode()
            results.append(
                {
                    "image_id": image.number,
                    "category_id": one.label + 1 if rng.random() < 0.9 else 2 - one.label,
                    "bbox": [x + shift[1], y + shift[0], width * rng.uniform(0.8, 1.2), height],
                    "score": float(rng.random()),
                    "segmentation": encoded,
                }
            )
    return results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_ap_is_that_of_another_evaluator(split: DenseSplit, kind: str) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    results = jittered(split)
    found = average_precision(split, results, kind)
    truth = coco_truth(split)
    for one in truth["annotations"]:
        one["segmentation"] = {
            **one["segmentation"],
            "counts": one["segmentation"]["counts"].decode(),
        }
    with contextlib.redirect_stdout(io.StringIO()):
        other = COCO(truth)
        evaluated = COCOeval_faster(other, other.loadRes([dict(one) for one in results]), kind)
        evaluated.run()
    name = {"bbox": "ap_box", "segm": "ap_mask"}[kind]
    expected = [100 * float(value) for value in evaluated.stats[:3]]
    assert 10 < expected[0] < 90
    assert found.value == pytest.approx(expected[0], abs=1e-9)
    assert found.more[f"{name}50"] == pytest.approx(expected[1], abs=1e-9)
    assert found.more[f"{name}75"] == pytest.approx(expected[2], abs=1e-9)
    assert found.value == pytest.approx(float(np.mean([x for x in found.by_class if x])), abs=1e-9)


def test_every_image_once_gives_the_ap_itself_and_the_interval_holds_it(split: DenseSplit) -> None:
    results = jittered(split)
    evaluated = _evaluate(split, results, "bbox")
    again = _Matches(evaluated, 2).resampled(np.arange(len(split)))
    assert again == pytest.approx(float(evaluated.stats[0]), abs=1e-12)
    found = average_precision(split, results, "bbox")
    assert found.low < found.value < found.high


def test_without_detections_ap_is_zero(split: DenseSplit) -> None:
    assert average_precision(split, [], "bbox").value == 0.0


def test_the_truth_itself_has_an_ap_of_100(split: DenseSplit) -> None:
    results = [
        {
            "image_id": image.number,
            "category_id": one.label + 1,
            "bbox": list(one.annotated),
            "score": 0.5,
        }
        for image in split.images
        for one in image.objects
    ]
    found = average_precision(split, results, "bbox")
    assert (found.value, found.low, found.high) == pytest.approx((100, 100, 100))


def test_miou_is_the_mean_over_classes_of_shared_over_joined_pixels() -> None:
    truth = [torch.tensor([[0, 0, 1], [1, 1, 255]]), torch.tensor([[2, 0]])]
    found = [torch.tensor([[0, 1, 1], [1, 0, 2]]), torch.tensor([[2, 2]])]
    areas = np.stack([class_areas(f, t, 4) for f, t in zip(found, truth, strict=True)])
    measure = miou(areas)
    # Class 0: 1 of 4; 1: 2 of 4; 2: 1 of 2; 3 is nowhere; the pixel without a class counts nowhere.
    assert measure.by_class == pytest.approx((25.0, 50.0, 50.0, None))
    assert measure.value == pytest.approx(100 * (0.25 + 0.5 + 0.5) / 3)
    assert measure.more["pixel_accuracy"] == pytest.approx(100 * 4 / 7)


def test_images_with_nothing_in_them_do_not_lower_an_interval(split: DenseSplit) -> None:
    """Images drawn anew among which there is no object have no AP: it is not 0."""
    (first, *others) = split.images
    bare = tuple(replace(image, objects=()) for image in others[:2])
    some = replace(split, images=(first, *bare))
    results = [
        {"image_id": first.number, "category_id": one.label + 1, "bbox": list(one.annotated)}
        | {"score": 0.5}
        for one in first.objects
    ]
    found = average_precision(some, results, "bbox")
    assert (found.value, found.low, found.high) == pytest.approx((100, 100, 100))
    empty = class_areas(torch.zeros(2, 2), torch.full((2, 2), 255), 2)
    right = class_areas(torch.zeros(2, 2), torch.zeros(2, 2), 2)
    measure = miou(np.stack([right, empty, empty]))
    assert (measure.value, measure.low, measure.high) == pytest.approx((100, 100, 100))


def test_where_there_is_nothing_there_is_no_measure(split: DenseSplit) -> None:
    bare = replace(split, images=tuple(replace(image, objects=()) for image in split.images))
    found = [{"image_id": 0, "category_id": 1, "bbox": [1.0, 1.0, 9.0, 9.0], "score": 0.5}]
    for results in (found, []):
        with pytest.raises(ValueError, match="None of the 12 images has an object to judge by"):
            average_precision(bare, results, "bbox")
    with pytest.raises(ValueError, match="None of the 1 images has a pixel of a class"):
        miou(class_areas(torch.zeros(2, 2), torch.full((2, 2), 255), 2)[None])
    reds = (replace(i, objects=tuple(o for o in i.objects if o.label == 0)) for i in split.images)
    assert average_precision(replace(split, images=tuple(reds)), [], "bbox").by_class == (0.0, None)


def test_several_scales_and_mirror_images_average_probabilities(folder: Path) -> None:
    chosen = recipe("cells_semantic")
    data = open_dense_data(str(folder), "semantic", unpack_to=folder)
    torch.manual_seed(0)
    options = dense_options(chosen, 3)
    network = build_dense(SearchSpace.of(architecture()), options).eval()
    assert isinstance(network, Segmenter)
    split = data.test
    network.head.classes.weight.data.normal_()
    with torch.no_grad():
        first: Any = network(judged_batch(split, 0, chosen))
    # So that every class is the likeliest somewhere.
    network.head.classes.bias.data -= first.mean((0, 2, 3))
    height, width = split.images[0].size
    total = torch.zeros(3, height, width)
    for ratio in (0.75, 1.25):
        batch = judged_batch(split, 0, chosen, ratio)
        for mirrored in (False, True):
            images = batch.images.flip(-1) if mirrored else batch.images
            with torch.no_grad():
                logits: Any = network(type(batch)(images=images, sizes=batch.sizes))
            large = torch.nn.functional.interpolate(
                logits, (height, width), mode="bilinear", align_corners=False
            )
            one = large.softmax(1)[0]
            total += one.flip(-1) if mirrored else one
    found = predict_pixels(network, split, 0, chosen, "cpu", (0.75, 1.25), flip=True)
    assert torch.equal(found, total.argmax(0))
    assert len(found.unique()) > 1
    assert judge(network, split, chosen).images == 12
