"""``search predict``: what a finished transfer finds in image files, as pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

from search.transferring.result import open_transferred
from supernet.data import decode_image, read_regular
from supernet.data.dense import AnnotatedImage, DenseSplit
from supernet.dense.judging import predict_objects, predict_pixels
from supernet.dense.network import Segmenter
from supernet.dense.pictures import draw_classes, draw_objects


def predict_images(
    folder: Path, images: Sequence[Path], out: Path, *, device: str
) -> Iterator[Path]:
    """Write a picture for each image and yield its path.

    Raises:
        ValueError: If the folder is no finished transfer, a file no image, or a picture would take
            the place of another one or of an image; nothing is written then.
    """
    pictures = [out / f"{path.stem}.png" for path in images]
    _check_pictures(images, pictures)
    found = open_transferred(folder)
    names = found.result.class_names
    split = DenseSplit(images=tuple(map(_image, images)), class_names=names)
    network = found.network().to(device)
    out.mkdir(parents=True, exist_ok=True)
    for index, written in enumerate(pictures):
        pixels = split.images[index].pixels()
        if isinstance(network, Segmenter):
            classes = predict_pixels(network, split, index, found.recipe, device)
            drawn = draw_classes(pixels, classes, len(names))
        else:
            objects = predict_objects(network, split, index, found.recipe, device)
            drawn = draw_objects(pixels, objects, names)
        to_pil_image(drawn).save(written)
        yield written


def _check_pictures(images: Sequence[Path], pictures: Sequence[Path]) -> None:
    given = {path.resolve() for path in images}
    for picture, count in Counter(pictures).items():
        if count > 1:
            raise ValueError(
                f"{count} images would be drawn to {picture}: pictures have the names of their "
                "images. Give them in several commands, with an --out for each."
            )
        if picture.resolve() in given:
            raise ValueError(
                f"The picture {picture} would take the place of an image. Choose another --out."
            )


def _image(path: Path) -> AnnotatedImage:
    width, height = decode_image(read_regular(os.fsencode(path)), name=str(path)).size
    return AnnotatedImage(path=path, name=path.name, size=(height, width), number=0)
