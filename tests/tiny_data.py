"""Small prepared data with a shape and classes of a test's choice, and recipes that do little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from supernet.data import ImageData
from supernet.data.arrays import checksum
from supernet.recipes.recipe import Recipe, load_recipe

PLAIN = {"hflip": 0.0, "random_crop_padding": 0, "label_smoothing": 0.0}


def tiny_data(
    folder: Path,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    *,
    num_search: int = 4,
    num_test: int = 4,
    img_size: int | None = None,
    allows_flip: bool = True,
) -> ImageData:
    """Store images (N, S, S, 3) as prepared data: the last ones are the test and search splits."""
    num_both = len(labels) - num_test
    for stem, rows in (
        ("train_search", slice(num_both)),
        ("test", slice(num_both, None)),
    ):
        np.save(folder / f"{stem}_images.npy", images[rows])
        np.save(folder / f"{stem}_labels.npy", labels[rows])
        (folder / f"{stem}_checksum.txt").write_text(checksum(images[rows], labels[rows]))
    num_classes = int(labels.max()) + 1
    return ImageData(
        name="tiny",
        source="tiny",
        folder=folder,
        class_names=tuple(f"class{index}" for index in range(num_classes)),
        img_size=img_size or images.shape[1],
        stored_size=images.shape[1],
        allows_flip=allows_flip,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.5),
        sizes={"train": num_both - num_search, "search": num_search, "test": num_test},
        fingerprint="tiny",
        listing="tiny",
    )


def noise(
    num_images: int, size: int, num_classes: int = 2
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return images of noise, brighter with the number of their class, which alternates."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_images, dtype=np.int64) % num_classes
    brightness = labels[:, None, None, None] * (128 // num_classes)
    images = rng.integers(0, 128, (num_images, size, size, 3)) + brightness
    return images.astype(np.uint8), labels


def changed(recipe: Recipe | str, **changes: object) -> Recipe:
    """Return a recipe, or a shipped one, with some fields changed, checked as a whole."""
    known = load_recipe(recipe) if isinstance(recipe, str) else recipe
    return Recipe.model_validate({**known.model_dump(), **changes})


def write_images(
    root: Path, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], *, num_test: int
) -> str:
    """Write images (N, S, S, 3) as an ImageFolder, the last ones as its test split; name it."""
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        pool = "test" if number >= len(labels) - num_test else "train"
        folder = root / pool / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:05}.png")
    return str(root)
