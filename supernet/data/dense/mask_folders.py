"""Folders of images and of PNG files with a class for every pixel.

ADE20K's layout, ``images/{training,validation}`` and ``annotations/{training,validation}``, where 0
means no class and 1 the first one; or ``images/{train,val,test}`` and ``masks/{train,val,test}``
with the classes' names, a line each, in ``classes.txt``. Without that file the classes are the
values that occur in the training masks, from 0. 255 is no class in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from supernet.data.dense.annotated import AnnotatedImage, DenseSplit

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
CLASSES_FILE = "classes.txt"
ADE20K_CLASSES = 150


def read_mask_folder(
    images: Path, masks: Path, class_names: tuple[str, ...], *, zero_is_ignored: bool
) -> DenseSplit:
    """Read a split: every image of a folder, and the mask of the same name in the other.

    Raises:
        ValueError: If there are no images, or a mask is missing or has another size.
    """
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"There are no images in {images}. Put some there.")
    found = []
    for number, path in enumerate(paths):
        labels = masks / f"{path.stem}.png"
        if not labels.is_file():
            raise ValueError(
                f"The mask {labels} of {path} is missing. Add it, or remove the image."
            )
        size, mask_size = _size(path), _size(labels)
        if size != mask_size:
            raise ValueError(
                f"{labels} has {mask_size[0]} x {mask_size[1]} pixels (height x width), its image "
                f"{size[0]} x {size[1]}. A mask has the size of its image: write it anew."
            )
        found.append(
            AnnotatedImage(path=path, name=path.name, size=size, number=number, labels=labels)
        )
    return DenseSplit(images=tuple(found), class_names=class_names, zero_is_ignored=zero_is_ignored)


def read_class_names(folder: Path, masks: Path) -> tuple[str, ...]:
    """Read the names of the classes, or make them from the values in the training masks."""
    path = folder / CLASSES_FILE
    if path.is_file():
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        names = tuple(name for name in names if name)
        if not names or len(set(names)) != len(names):
            raise ValueError(
                f"{path} has a name of a class in every line, each once, got {len(names)} lines "
                f"and {len(set(names))} names. Correct it."
            )
        return names
    largest = max((int(values.max()) for values in _values(masks)), default=0)
    return tuple(f"class {number}" for number in range(largest + 1))


def _values(masks: Path) -> Iterator[np.ndarray]:
    for path in sorted(masks.glob("*.png")):
        with Image.open(path) as image:
            values = np.unique(np.array(image))
        if len(values := values[values != 255]):
            yield values


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}). Replace or remove it."
        ) from error
