"""COCO's annotation files (https://cocodataset.org/#format-data): boxes, polygons, both RLEs.

What is wrong in a file has one message or a defined meaning. Refused, with the file and the id:
ids that occur twice, an unknown class or image, an image file that is missing, a box that is no
four finite numbers, a mask of another size than its image, an object without a mask where masks are
needed. Defined, as in mmdetection's ``CocoDataset``: a box is cut to its image; an object whose box
is then thinner than a pixel, or whose area is 0, is judged and not learned from, and counted; so is
an image without objects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from supernet.data.dense.annotated import AnnotatedImage, DenseSplit, ObjectTruth

Entry = Mapping[str, Any]


def read_coco(path: Path, images: Path, *, with_masks: bool) -> tuple[DenseSplit, int]:
    """Read an annotation file.

    Args:
        path: The JSON file.
        images: The folder of its images.
        with_masks: Whether every object needs a mask.

    Returns:
        The images in the order of the file, and how many objects are not learned from.

    Raises:
        ValueError: If something in the file is wrong; it says where.
    """
    data = _read(path)
    classes = _by_id(data["categories"], path, "categories")
    ordered = sorted(classes)
    labels = {number: index for index, number in enumerate(ordered)}
    entries = _by_id(data["images"], path, "images")
    found: dict[int, list[ObjectTruth]] = {number: [] for number in entries}
    left_out = 0
    for number, entry in _by_id(data["annotations"], path, "annotations").items():
        place = f"{path}: annotation {number}"
        image = entries.get(entry.get("image_id", -1))
        if image is None:
            raise ValueError(
                f"{place} belongs to image {entry.get('image_id')!r}, which the file does not "
                "have. Remove it, or add the image."
            )
        if entry.get("category_id") not in labels:
            raise ValueError(
                f"{place} has the class {entry.get('category_id')!r}; the file names "
                f"{', '.join(map(str, ordered))}. Add it to the categories, or correct it."
            )
        label = labels[entry["category_id"]]
        truth = _object(entry, image, label, place=place, with_masks=with_masks)
        left_out += not truth.is_learned
        found[entry["image_id"]].append(truth)
    split = DenseSplit(
        images=tuple(_image(entries[n], images, tuple(found[n]), path) for n in entries),
        class_names=tuple(str(classes[number]["name"]) for number in ordered),
    )
    return split, left_out


def _read(path: Path) -> Entry:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Download or write it again.") from error
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(data, dict) or not isinstance(data.get(key), list)
    ]
    if missing:
        raise ValueError(
            f"{path} needs lists under images, annotations and categories, and has none under "
            f"{', '.join(missing)}. Give an annotation file in COCO's format."
        )
    if not data["categories"] or not data["images"]:
        raise ValueError(f"{path} has no images or no categories. Give some.")
    found: Entry = data
    return found


def _by_id(entries: Iterable[Entry], path: Path, key: str) -> dict[int, Entry]:
    found: dict[int, Entry] = {}
    for entry in entries:
        number = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{path}: {key} have an integer id each, got {entry!r:.80}. Add it.")
        if number in found:
            raise ValueError(f"{path}: two {key} have the id {number}. Give each its own.")
        found[number] = entry
    return found


def _image(
    entry: Entry, folder: Path, objects: tuple[ObjectTruth, ...], path: Path
) -> AnnotatedImage:
    name = str(entry.get("file_name", ""))
    file = folder / name
    if not name or not file.is_file():
        raise ValueError(
            f"{path}: the file of image {entry['id']}, {file}, is missing. Add it, or remove the "
            "image and its annotations."
        )
    return AnnotatedImage(
        path=file, name=name, size=_size(entry, path), number=entry["id"], objects=objects
    )


def _size(entry: Entry, path: Path) -> tuple[int, int]:
    height, width = entry.get("height"), entry.get("width")
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise ValueError(
            f"{path}: image {entry['id']} needs height and width in pixels, got {height!r} and "
            f"{width!r}. Write them."
        )
    return height, width


def _object(entry: Entry, image: Entry, label: int, *, place: str, with_masks: bool) -> ObjectTruth:
    """Read one object."""
    box = entry.get("bbox")
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(x, int | float) and math.isfinite(x) for x in box)
    ):
        raise ValueError(
            f"{place}: bbox is [x, y, width, height] in pixels, got {box!r:.60}. Correct it."
        )
    height, width = _size(image, Path(place.partition(":")[0]))
    x1, y1 = max(box[0], 0), max(box[1], 0)
    x2, y2 = min(box[0] + box[2], width), min(box[1] + box[3], height)
    mask = None
    if with_masks:
        mask = encode_mask(entry.get("segmentation"), (height, width), place)
    area = float(entry.get("area", max(box[2], 0) * max(box[3], 0)))
    return ObjectTruth(
        box=(float(x1), float(y1), float(x2), float(y2)),
        label=label,
        mask=mask,
        is_crowd=bool(entry.get("iscrowd", 0)),
        area=area,
        annotated=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
        is_learned=x2 - x1 >= 1 and y2 - y1 >= 1 and area > 0,
    )


def encode_mask(segmentation: Any, size: tuple[int, int], place: str) -> dict[str, Any]:
    """Write polygons, or run lengths of either kind, as compressed run lengths.

    Raises:
        ValueError: If there is no mask, or it belongs to an image of another size.
    """
    # pycocotools is an extra, and only masks and AP need it.
    from pycocotools import mask as coco_mask

    height, width = size
    if isinstance(segmentation, dict) and "counts" in segmentation:
        if list(segmentation.get("size", [])) != [height, width]:
            raise ValueError(
                f"{place}: the mask is one of an image of {segmentation.get('size')} (height, "
                f"width), the image has {[height, width]}. Correct one of them."
            )
        counts = segmentation["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width:
                raise ValueError(
                    f"{place}: the run lengths of the mask add up to {sum(counts)}, the image has "
                    f"{height * width} pixels. Write the mask anew."
                )
            found: dict[str, Any] = coco_mask.frPyObjects(segmentation, height, width)
            return found
        counts = counts.encode() if isinstance(counts, str) else counts
        return {"size": [height, width], "counts": counts}
    if isinstance(segmentation, list) and segmentation:
        if not all(_is_polygon(one) for one in segmentation):
            raise ValueError(
                f"{place}: a polygon is [x1, y1, x2, y2, ...] of at least three points, got "
                f"{segmentation!r:.60}. Correct it."
            )
        merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        return merged
    raise ValueError(
        f"{place} has no mask (segmentation: {segmentation!r:.40}), and the task instance needs "
        "one. Add it, or choose --task detection."
    )


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0
