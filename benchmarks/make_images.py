"""Make a synthetic set of images to feed: some thousand JPEGs, or as many names as ImageNet has.

The pictures are smooth noise, about as large as ImageNet's when compressed. Names beyond the
pictures are hard links, so that a million of them takes little space; a source lists and splits
them like files of their own.

    python benchmarks/make_images.py /tmp/jpegs --images 20000
    python benchmarks/make_images.py /tmp/names --images 2000 --names 1281167 --classes 1000
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
QUALITY = 90
# Every file system allows at least so many links to a file.
MOST_LINKS = 30_000


def picture(rng: np.random.Generator) -> Image.Image:
    """Draw smooth noise of some scales: it compresses about as a photograph does."""
    total = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)
    for side, strength in ((4, 80.0), (16, 40.0), (64, 20.0), (HEIGHT, 6.0)):
        noise = rng.normal(0.0, strength, (side, side * 4 // 3, 3)).astype(np.float32)
        for channel in range(3):
            scaled = Image.fromarray(noise[..., channel]).resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC
            )
            total[..., channel] += np.asarray(scaled)
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


def path_of(folder: Path, number: int, classes: int) -> Path:
    """Name an image: of each class one in twenty, from its second on, is in the pool ``val``."""
    pool = "val" if number // classes % 20 == 1 else "train"
    return folder / pool / f"class{number % classes:04}" / f"{number:08}.jpg"


def make(folder: Path, *, images: int, names: int, classes: int) -> None:
    """Write pictures, and links to them for the names beyond."""
    needed = -(-names // MOST_LINKS)
    if images < needed:
        raise SystemExit(f"{names} names need at least {needed} images. Give --images {needed}.")
    if images < 2 * classes:
        raise SystemExit(f"Each of {classes} classes has two images at least, got {images} images.")
    for index in range(2 * classes):
        path_of(folder, index, classes).parent.mkdir(parents=True, exist_ok=True)
    rng, size = np.random.default_rng(0), 0
    for number in range(images):
        path = path_of(folder, number, classes)
        picture(rng).save(path, quality=QUALITY)
        size += path.stat().st_size
    for number in range(images, names):
        os.link(path_of(folder, number % images, classes), path_of(folder, number, classes))
    print(f"{names:,} names, {images:,} images of {size / images / 1000:.0f} kB in the folder")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--names", type=int, help="default: one for each image")
    parser.add_argument("--classes", type=int, default=100)
    given = parser.parse_args()
    names = given.names or given.images
    make(given.folder, images=given.images, names=names, classes=given.classes)


if __name__ == "__main__":
    main()
