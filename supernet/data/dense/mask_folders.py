"""Folders of images and of PNG files with a class for every pixel.

ADE20K's layout, ``images/{training,validation}`` and ``annotations/{training,validation}``, where 0
means no class and 1 the first one; or ``images/{train,val,test}`` and ``masks/{train,val,test}``
with the classes' names, a line each, in ``classes.txt``. Without that file the classes are the
values that occur in the training masks, from 0. 255 is no class in both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from configs.reading import read_text
from supernet.data.decoding import looks_like_image, shown
from supernet.data.dense.annotated import AnnotatedImage, DenseSplit
from supernet.data.dense.pixels import (
    MAX_CLASSES,
    check_size,
    in_threads,
    read_classes,
    stored_size,
)
from supernet.data.files import read_head
from supernet.data.skipped import (
    NO_FILE,
    Skipped,
    clutter_reason,
    copy_reason,
    has_image_suffix,
    other_reason,
)

MAX_CLASSES_BYTES = 2**20
CLASSES_FILE = "classes.txt"
ADE20K_CLASSES = 150


def read_mask_folder(
    images: Path, masks: Path, class_names: tuple[str, ...], *, zero_is_ignored: bool
) -> tuple[DenseSplit, Skipped]:
    """Read a split: every image of a folder, and the mask of the same name in the other.

    Returns:
        The split, and what was left out.

    Raises:
        ValueError: If there are no images, or a mask is missing or has another size.
    """
    files, skipped = _listed(images), Skipped()
    paths = []
    for path in files:
        reason = _left_out(path)
        if reason is None:
            paths.append(path)
        else:
            skipped.add(reason, path.name)
    if not paths:
        raise ValueError(f"There are no images in {shown(str(images))}. Put some there.")
    stems = Counter(path.stem for path in paths)
    for path in paths:
        if stems[path.stem] > 1:
            raise ValueError(
                f"{shown(str(images))} has several images named {shown(path.stem)}, and a mask "
                "belongs to one. Rename or remove the others."
            )
    with in_threads() as threads:
        found = tuple(threads.map(partial(_annotated, masks), range(len(paths)), paths))
    for path in _listed(masks):
        if path.suffix.lower() == ".png" and path.stem not in stems:
            skipped.add("masks without an image", path.name)
    split = DenseSplit(images=found, class_names=class_names, zero_is_ignored=zero_is_ignored)
    return split, skipped


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ValueError(
            f"The folder {shown(str(folder))} cannot be read ({error.strerror}). Put images and "
            "masks into folders of these names."
        ) from error


def _left_out(path: Path) -> str | None:
    """Tell why something in a folder of images is no image; None: it is one."""
    if (reason := clutter_reason(path.name) or copy_reason(path.name)) is not None:
        return reason
    if not path.is_file():
        return "folders in it" if path.is_dir() else NO_FILE
    if has_image_suffix(path.name) or looks_like_image(read_head(os.fsencode(path))):
        return None
    return other_reason(path.name)


def _annotated(masks: Path, number: int, path: Path) -> AnnotatedImage:
    labels = masks / f"{path.stem}.png"
    if not labels.is_file():
        raise ValueError(
            f"The mask {shown(str(labels))} of {shown(str(path))} is missing. Add it, or remove "
            "the image."
        )
    size = stored_size(labels)
    check_size(path, size)
    return AnnotatedImage(path=path, name=path.name, size=size, number=number, labels=labels)


def read_class_names(folder: Path, masks: Path) -> tuple[str, ...]:
    """Read the names of the classes, or make them from the values in the training masks."""
    path = folder / CLASSES_FILE
    if path.is_file():
        lines = read_text(path, limit=MAX_CLASSES_BYTES).splitlines()
        names = tuple(line.strip() for line in lines)
        names = tuple(name for name in names if name)
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"{path} has a name of a class in every line, each once, got {len(names)} names, "
                f"{len(set(names))} different ones. Correct it."
            )
        return _checked(names, path)
    largest = max((int(values.max()) for values in _values(masks)), default=0)
    names = tuple(f"class {number}" for number in range(largest + 1))
    return _checked(names, masks)


def _checked(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if len(names) > MAX_CLASSES:
        raise ValueError(
            f"There are at most {MAX_CLASSES} classes of pixels (255 is none), {shown(str(path))} "
            f"has {len(names):,}. Write masks with fewer."
        )
    return names


def _values(masks: Path) -> Iterator[np.ndarray]:
    """Yield the classes that occur in each mask."""
    paths = [path for path in _listed(masks) if path.suffix.lower() == ".png"]

    def values(path: Path) -> np.ndarray:
        found = np.unique(read_classes(path, stored_size(path)))
        return found[found != 255]

    with in_threads() as threads:
        yield from (found for found in threads.map(values, paths) if len(found))
