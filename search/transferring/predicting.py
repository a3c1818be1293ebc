"""``search predict``: what a finished transfer finds in image files, as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from search.transferring.result import open_transferred
from supernet.data.dense import AnnotatedImage, DenseSplit
from supernet.dense.judging import predict_objects, predict_pixels
from supernet.dense.network import Segmenter
from supernet.dense.pictures import draw_classes, draw_objects


def predict_images(
    folder: Path, images: Sequence[Path], out: Path, *, device: str
) -> Iterator[Path]:
    """Write a picture for each image and yield its path.

    Raises:
        ValueError: If the folder is no finished transfer, or a file no image; nothing is written
            then.
    """
    found = open_transferred(folder)
    names = found.result.class_names
    split = DenseSplit(images=tuple(map(_image, images)), class_names=names)
    network = found.network().to(device)
    out.mkdir(parents=True, exist_ok=True)
    for index, path in enumerate(images):
        pixels = split.images[index].pixels()
        if isinstance(network, Segmenter):
            classes = predict_pixels(network, split, index, found.recipe, device)
            drawn = draw_classes(pixels, classes, len(names))
        else:
            objects = predict_objects(network, split, index, found.recipe, device)
            drawn = draw_objects(pixels, objects, names)
        written = out / f"{path.stem}.png"
        to_pil_image(drawn).save(written)
        yield written


def _image(path: Path) -> AnnotatedImage:
    try:
        with Image.open(path) as image:
            size = (image.height, image.width)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as an image ({error}). Name another.") from error
    return AnnotatedImage(path=path, name=path.name, size=size, number=0)
