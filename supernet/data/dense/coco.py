"""COCO's annotation files (https://cocodataset.org/#format-data): boxes, polygons, both RLEs.

What is wrong in a file has one message or a defined meaning. Refused, with the file and the id:
ids that occur twice, an unknown class or image, an image file that is missing, a box that is no
four finite numbers, a mask of another size than its image, an object without a mask where masks are
needed. Defined, as in mmdetection's ``CocoDataset``: a box is cut to its image; an object whose box
is then thinner than a pixel, or whose area is 0, is judged and not learned from, and counted; so is
an image without objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, TypeGuard

from configs.reading import read_json
from supernet.data.decoding import MAX_PIXELS, shown
from supernet.data.dense.annotated import AnnotatedImage, DenseSplit, ObjectTruth

Entry = Mapping[str, Any]
# COCO's largest file has half of it.
MAX_BYTES = 2**30
# pycocotools keeps ids as floats of 64 bits.
MAX_ID = 2**53
# Of a coordinate or an area, in pixels.
MAX_SIZE = 1e12
# Polygons reach a little beyond their images, by at most so many sides.
OUTSIDE = 4


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
        owner, class_id = entry.get("image_id"), entry.get("category_id")
        image = entries.get(owner) if _is_integer(owner) else None
        if image is None:
            raise ValueError(
                f"{place} belongs to image {owner!r:.60}, which the file does not "
                "have. Remove it, or add the image."
            )
        if not _is_integer(class_id) or class_id not in labels:
            raise ValueError(
                f"{place} has the class {class_id!r:.60}; the file names "
                f"{', '.join(map(str, ordered))}. Add it to the categories, or correct it."
            )
        label = labels[entry["category_id"]]
        truth = _object(entry, image, label, place=place, with_masks=with_masks)
        left_out += not truth.is_learned
        found[entry["image_id"]].append(truth)
    split = DenseSplit(
        images=tuple(_image(entries[n], images, tuple(found[n]), path) for n in entries),
        class_names=tuple(_class_name(classes[number], path) for number in ordered),
    )
    _check_distinct(split, path)
    return split, left_out


def _class_name(entry: Entry, path: Path) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{path}: category {entry['id']} needs a name, got {name!r:.60}. Add it.")
    return name


def _check_distinct(split: DenseSplit, path: Path) -> None:
    """Check that no class has the name of another, and no image the file of another."""
    images = Counter(image.path for image in split.images)
    for what, counts in (("categories", Counter(split.class_names)), ("images", images)):
        name, most = counts.most_common(1)[0]
        if most > 1:
            raise ValueError(
                f"{path}: {most} {what} are {shown(str(name))}. Give each its own, or remove all "
                "but one."
            )


def _read(path: Path) -> Entry:
    data: Any = read_json(path, limit=MAX_BYTES)
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
        if not _is_integer(number) or abs(number) > MAX_ID:
            raise ValueError(
                f"{path}: {key} have an integer id each (53 bits), got {entry!r:.80}. Correct it."
            )
        if number in found:
            raise ValueError(f"{path}: two {key} have the id {number}. Give each its own.")
        found[number] = entry
    return found


def _image(
    entry: Entry, folder: Path, objects: tuple[ObjectTruth, ...], path: Path
) -> AnnotatedImage:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(
            f"{path}: image {entry['id']} needs a file_name, got {name!r:.60}. Add it."
        )
    # Of a stranger's annotations: an image lies in the folder of the images.
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise ValueError(
            f"{path}: the file_name of image {entry['id']} leads out of its folder, got "
            f"{name!r:.80}. Write it as it is below {folder}."
        )
    file = folder / name
    if not file.is_file():
        raise ValueError(
            f"{path}: the file of image {entry['id']}, {shown(str(file))}, is missing. Add it, or "
            "remove the image and its annotations."
        )
    return AnnotatedImage(
        path=file, name=name, size=_size(entry, path), number=entry["id"], objects=objects
    )


def _size(entry: Entry, path: Path) -> tuple[int, int]:
    height, width = entry.get("height"), entry.get("width")
    if not _is_integer(height) or not _is_integer(width) or min(height, width) < 1:
        raise ValueError(
            f"{path}: image {entry['id']} needs height and width in pixels, got {height!r:.40} and "
            f"{width!r:.40}. Write them."
        )
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"{path}: images may have at most {MAX_PIXELS:,} pixels, image {entry['id']} has "
            f"{width!r:.40} x {height!r:.40}. Correct it."
        )
    return height, width


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    """Tell whether something is a number that coordinates and areas can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_SIZE


def _object(entry: Entry, image: Entry, label: int, *, place: str, with_masks: bool) -> ObjectTruth:
    """Read one object."""
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(
            f"{place}: bbox is [x, y, width, height] in pixels, got {box!r:.60}. Correct it."
        )
    height, width = _size(image, Path(place.partition(":")[0]))
    x1, y1 = max(box[0], 0), max(box[1], 0)
    x2, y2 = min(box[0] + box[2], width), min(box[1] + box[3], height)
    mask = None
    if with_masks:
        mask = encode_mask(entry.get("segmentation"), (height, width), place)
    area, crowd = entry.get("area", max(box[2], 0) * max(box[3], 0)), entry.get("iscrowd", 0)
    if not _is_number(area) or area < 0:
        raise ValueError(f"{place}: area is a number of pixels, got {area!r:.60}. Correct it.")
    if crowd not in (0, 1):
        raise ValueError(f"{place}: iscrowd is 0 or 1, got {crowd!r:.60}. Correct it.")
    return ObjectTruth(
        box=(float(x1), float(y1), float(x2), float(y2)),
        label=label,
        mask=mask,
        is_crowd=bool(crowd),
        area=float(area),
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
        if segmentation.get("size") != [height, width]:
            raise ValueError(
                f"{place}: the mask is one of an image of {segmentation.get('size')!r:.40} "
                f"(height, width), the image has {[height, width]}. Correct one of them."
            )
        counts = segmentation["counts"]
        runs = _runs(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(_is_integer(n) and n >= 0 for n in runs):
            raise ValueError(
                f"{place}: the run lengths of the mask are numbers of pixels, got {counts!r:.60}. "
                "Write the mask anew."
            )
        if sum(runs) != height * width:
            raise ValueError(
                f"{place}: the run lengths of the mask add up to {sum(runs)}, the image has "
                f"{height * width} pixels. Write the mask anew."
            )
        if isinstance(counts, str):
            return {"size": [height, width], "counts": counts.encode()}
        found: dict[str, Any] = coco_mask.frPyObjects(segmentation, height, width)
        return found
    if isinstance(segmentation, list) and segmentation:
        # Drawing takes time and memory by the length of a polygon, in or out of the image.
        farthest = OUTSIDE * max(size)
        if not all(_is_polygon(one, farthest) for one in segmentation):
            raise ValueError(
                f"{place}: a polygon is [x1, y1, x2, y2, ...] of at least three points, none "
                f"farther away than {farthest} pixels, got {segmentation!r:.60}. Correct it."
            )
        merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        return merged
    raise ValueError(
        f"{place} has no mask (segmentation: {segmentation!r:.40}), and the task instance needs "
        "one. Add it, or choose --task detection."
    )


def _is_polygon(points: Any, farthest: float) -> bool:
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(_is_number(x) and abs(x) <= farthest for x in points)
    )


def _runs(text: str) -> list[int] | None:
    """Read the run lengths of COCO's compressed text; None where it is none.

    Five bits a character from the 48th of ASCII on, the sixth says that a number goes on; from the
    third number on they are differences to the one two before (``rleFrString`` of pycocotools,
    which believes what it reads).
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
