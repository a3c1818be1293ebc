"""How good a detector or segmenter is: AP of boxes and masks, mIoU, each with an interval.

AP is pycocotools'. An interval says what other images of the same kind would have given: the
images are drawn anew, with replacement, and the measure is computed again (Efron 1979; 95 %,
percentiles).
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.data.dense import DenseSplit
from supernet.data.dense.masks import encode_masks
from supernet.dense.batches import judged_batch
from supernet.dense.cascade import Detections, paste_masks
from supernet.dense.network import DenseNetwork, Segmenter
from supernet.recipes import DenseRecipe

NUM_RESAMPLES = 200
_IGNORED = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A number in percent, its 95 % interval over images, and its value for each class.

    Attributes:
        name: ``ap_box``, ``ap_mask`` or ``miou``.
        by_class: None for a class that the images do not have.
        more: Further numbers in percent, e.g. ``ap_box50``.
    """

    name: str
    value: float
    low: float
    high: float
    by_class: tuple[float | None, ...]
    more: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What a network was found to be worth.

    Attributes:
        measures: The one that counts comes first: mask AP, box AP or mIoU.
        images: That it was judged on.
        predictions: Of detectors, in COCO's format for results.
    """

    measures: tuple[Measure, ...]
    images: int
    predictions: tuple[dict[str, Any], ...] = ()

    def values(self) -> dict[str, float]:
        """Return all numbers by name, with ``<name>_low`` and ``<name>_high``."""
        found: dict[str, float] = {}
        for measure in self.measures:
            found[measure.name] = measure.value
            found |= {f"{measure.name}_low": measure.low, f"{measure.name}_high": measure.high}
            found |= measure.more
        return found


@torch.inference_mode()
def judge(
    network: DenseNetwork,
    split: DenseSplit,
    recipe: DenseRecipe,
    *,
    device: str = "cpu",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Judgement:
    """Judge a network in eval mode on all images of a split.

    Args:
        scales: Of segmenters: sizes of the image, over the recipe's, whose probabilities are
            averaged.
        flip: Of segmenters: each scale also mirrored.
        should_stop: Asked before every image; then ``InterruptedError`` is raised.
    """
    network = network.to(device).eval()
    if isinstance(network, Segmenter):
        areas = []
        for index in _indices(split, should_stop):
            pixels = predict_pixels(network, split, index, recipe, device, scales, flip=flip)
            areas.append(class_areas(pixels, split.labels(index), len(split.class_names)))
        return Judgement(measures=(miou(np.stack(areas)),), images=len(split))
    results: list[dict[str, Any]] = []
    for index in _indices(split, should_stop):
        found = predict_objects(network, split, index, recipe, device)
        results += coco_results(found, split.images[index].number)
    kinds = ("segm", "bbox") if network.options.head.has_masks else ("bbox",)
    measures = tuple(average_precision(split, results, kind) for kind in kinds)
    return Judgement(measures=measures, images=len(split), predictions=tuple(results))


def _indices(split: DenseSplit, should_stop: Callable[[], bool]) -> Iterator[int]:
    for index in range(len(split)):
        if should_stop():
            raise InterruptedError("Judging was stopped.")
        yield index


@torch.inference_mode()
def predict_pixels(
    network: Segmenter,
    split: DenseSplit,
    index: int,
    recipe: DenseRecipe,
    device: str,
    scales: Sequence[float] = (1.0,),
    *,
    flip: bool = False,
) -> Tensor:
    """Predict the class (H, W) of every pixel: the mean over scales and mirror images."""
    height, width = split.images[index].size
    total = torch.zeros(())
    for ratio in scales:
        batch = judged_batch(split, index, recipe, ratio).to(torch.device(device))
        rows, columns = batch.sizes[0].content
        for mirrored in (False, True) if flip else (False,):
            images = batch.images[..., :rows, :columns]
            images = images.flip(-1) if mirrored else images
            padded = F.pad(
                images, (0, batch.images.shape[-1] - columns, 0, batch.images.shape[-2] - rows)
            )
            logits: Any = network(type(batch)(images=padded, sizes=batch.sizes))
            logits = logits[..., :rows, :columns]
            if (rows, columns) != (height, width):
                logits = F.interpolate(
                    logits, (height, width), mode="bilinear", align_corners=False
                )
            probabilities = logits.softmax(1)[0]
            total = total + (probabilities.flip(-1) if mirrored else probabilities)
    return total.argmax(0).cpu()


@torch.inference_mode()
def predict_objects(
    network: DenseNetwork, split: DenseSplit, index: int, recipe: DenseRecipe, device: str
) -> Detections:
    """Find objects in an image: boxes in its own pixels, masks (N, H, W) as booleans."""
    batch = judged_batch(split, index, recipe).to(torch.device(device))
    (found,) = network(batch)
    height, width = split.images[index].size
    rows, columns = batch.sizes[0].content
    factors = found.boxes.new_tensor([width / columns, height / rows] * 2)
    boxes = (found.boxes * factors).cpu()
    masks = None
    if found.masks is not None:
        masks = paste_masks(found.masks.float().cpu(), boxes, (height, width))
    return Detections(
        boxes=boxes, labels=found.labels.cpu(), scores=found.scores.cpu(), masks=masks
    )


def coco_results(found: Detections, number: int) -> list[dict[str, Any]]:
    """Write what was found in image ``number`` in COCO's format; classes count from 1."""
    masks = None if found.masks is None else encode_masks(found.masks)
    results = []
    for index, (box, label, score) in enumerate(
        zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    ):
        x1, y1, x2, y2 = box
        result: dict[str, Any] = {
            "image_id": number,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        if masks is not None:
            counts = masks[index]["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            result["segmentation"] = {"size": masks[index]["size"], "counts": text}
        results.append(result)
    return results


def coco_truth(split: DenseSplit) -> dict[str, Any]:
    """Write the truth of a split in COCO's format; numbers of images as in the split."""
    annotations: list[dict[str, Any]] = []
    for image in split.images:
        for one in image.objects:
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": image.number,
                "category_id": one.label + 1,
                "bbox": list(one.annotated),
                "area": one.area,
                "iscrowd": int(one.is_crowd),
            }
            if one.mask is not None:
                annotation["segmentation"] = one.mask
            annotations.append(annotation)
    return {
        "images": [
            {"id": image.number, "height": image.size[0], "width": image.size[1]}
            for image in split.images
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name} for number, name in enumerate(split.class_names, 1)
        ],
    }


def average_precision(split: DenseSplit, results: Sequence[dict[str, Any]], kind: str) -> Measure:
    """Compute COCO's AP of boxes (``bbox``) or masks (``segm``).

    Args:
        results: In COCO's format.

    Raises:
        ValueError: If no image has an object.
    """
    name = {"bbox": "ap_box", "segm": "ap_mask"}[kind]
    classes = len(split.class_names)
    there = {one.label for image in split.images for one in image.objects if not one.is_crowd}
    if not there:
        raise ValueError(f"None of the {len(split)} images has an object to judge by. Give others.")
    if not results:
        return Measure(
            name=name,
            value=0.0,
            low=0.0,
            high=0.0,
            by_class=tuple(0.0 if k in there else None for k in range(classes)),
            more={f"{name}50": 0.0, f"{name}75": 0.0},
        )
    evaluated = _evaluate(split, results, kind)
    precision = evaluated.eval["precision"]  # (IoUs, recalls, classes, areas, most detections)
    of_all = precision[:, :, :, 0, -1]
    value, low, high = interval(
        _Matches(evaluated, classes).resampled, len(split), float(evaluated.stats[0])
    )
    return Measure(
        name=name,
        value=100 * value,
        low=100 * low,
        high=100 * high,
        by_class=tuple(
            100 * float(of_all[:, :, k].mean()) if of_all[0, 0, k] > -1 else None
            for k in range(classes)
        ),
        more={
            f"{name}50": 100 * float(evaluated.stats[1]),
            f"{name}75": 100 * float(evaluated.stats[2]),
        },
    )


def _evaluate(split: DenseSplit, results: Sequence[dict[str, Any]], kind: str) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints, and has no switch for that
        truth = COCO()
        truth.dataset = coco_truth(split)
        truth.createIndex()
        # It changes what it is given.
        found = truth.loadRes(copy.deepcopy(list(results)))
        evaluated = COCOeval(truth, found, kind)
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated


# Scores, whether each detection has an object at each threshold, is ignored there; objects.
_ImageMatches = tuple[np.ndarray, np.ndarray, np.ndarray, int]


class _Matches:
    """What pycocotools matched, by class and image, so that images can be drawn anew."""

    def __init__(self, evaluated: Any, classes: int) -> None:
        params = evaluated.params
        images, areas = len(params.imgIds), len(params.areaRng)
        most = params.maxDets[-1]
        self.recalls = params.recThrs
        self.thresholds = len(params.iouThrs)
        self.found: list[list[_ImageMatches | None]] = []
        for k in range(classes):
            own: list[_ImageMatches | None] = []
            for i in range(images):
                one = evaluated.evalImgs[(k * areas) * images + i]
                if one is None:
                    own.append(None)
                    continue
                own.append(
                    (
                        np.asarray(one["dtScores"][:most]),
                        np.asarray(one["dtMatches"])[:, :most] > 0,
                        np.asarray(one["dtIgnore"])[:, :most].astype(bool),
                        int((np.asarray(one["gtIgnore"]) == 0).sum()),
                    )
                )
            self.found.append(own)

    def resampled(self, drawn: np.ndarray) -> float:
        """Compute AP on images drawn by their numbers, some several times; NaN without objects."""
        values = [value for own in self.found if (value := self._of_class(own, drawn)) is not None]
        return float(np.mean(values)) if values else np.nan

    def _of_class(self, own: Sequence[Any], drawn: np.ndarray) -> float | None:
        chosen = [own[i] for i in drawn if own[i] is not None]
        objects = sum(one[3] for one in chosen)
        if objects == 0:
            return None
        scores = np.concatenate([one[0] for one in chosen])
        order = np.argsort(-scores, kind="mergesort")
        matched = np.concatenate([one[1] for one in chosen], 1)[:, order]
        counted = ~np.concatenate([one[2] for one in chosen], 1)[:, order]
        right = (matched & counted).cumsum(1).astype(float)
        wrong = (~matched & counted).cumsum(1).astype(float)
        return float(
            np.mean([self._of_curve(right[t], wrong[t], objects) for t in range(self.thresholds)])
        )

    def _of_curve(self, right: np.ndarray, wrong: np.ndarray, objects: int) -> float:
        """Average the precision over recalls, each the best at this recall or a higher one."""
        recall, precision = right / objects, right / (right + wrong + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(recall, self.recalls, side="left")
        padded = np.append(precision, 0.0)
        return float(padded[np.minimum(at, len(precision))].mean())


def class_areas(found: Tensor, truth: Tensor, classes: int) -> np.ndarray:
    """Count pixels of one image by class: right, found, true; (3, classes)."""
    is_known = truth != _IGNORED
    found, truth = found[is_known].long(), truth[is_known].long()
    right = found[found == truth]
    return np.stack([torch.bincount(x, minlength=classes).numpy() for x in (right, found, truth)])


def class_iou(areas: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every class, NaN for one that is not there."""
    right, found, true = areas.sum(0).astype(float)
    union = found + true - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)


def miou(areas: np.ndarray) -> Measure:
    """Compute the mean over classes of the IoU over all images.

    Args:
        areas: (images, 3, classes), see `class_areas`.

    Raises:
        ValueError: If no pixel has a class.
    """
    if not areas[:, 2].any():
        raise ValueError(
            f"None of the {len(areas)} images has a pixel of a class to judge by. Give others."
        )

    def mean_iou(drawn: np.ndarray) -> float:
        found = class_iou(areas[drawn])
        return np.nan if np.isnan(found).all() else float(np.nanmean(found))

    everything = np.arange(len(areas))
    value, low, high = interval(mean_iou, len(areas), mean_iou(everything))
    right, _, true = areas.sum(0)
    return Measure(
        name="miou",
        value=100 * value,
        low=100 * low,
        high=100 * high,
        by_class=tuple(None if np.isnan(x) else 100 * float(x) for x in class_iou(areas)),
        more={"pixel_accuracy": 100 * float(right.sum() / max(true.sum(), 1))},
    )


def interval(
    measure: Callable[[np.ndarray], float], images: int, value: float
) -> tuple[float, float, float]:
    """Return a measure and its 95 % interval from images drawn anew.

    Images in which there is nothing have no measure, and do not count.
    """
    rng = np.random.default_rng(0)
    found = [measure(rng.integers(images, size=images)) for _ in range(NUM_RESAMPLES)]
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return value, float(low), float(high)
