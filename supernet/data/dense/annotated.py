"""Images and what is known about them, as values; pixels stay on disk, masks stay encoded."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from supernet.data.dense.pixels import check_size, in_threads, read_classes, read_pixels
from supernet.data.files import read_regular, size_of_regular

HELD_OUT_SHARE = 0.2  # of the training images, where a search needs images of its own
# The content of so many training images is part of what the data are known by; of the others their
# sizes in bytes are. All that networks are judged by counts with its content.
SAMPLED_IMAGES = 1_000
NO_CLASS = 255  # of a pixel


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectTruth:
    """One object of an image.

    Attributes:
        box: (x1, y1, x2, y2) in pixels, cut to the image.
        annotated: (x, y, width, height) as annotated, which judging compares with.
        label: Its class, from 0.
        mask: Run lengths of its mask as pycocotools writes them, or None.
        is_crowd: Whether it is a crowd: not learned, and ignored where a detection lies in it.
        area: In pixels, as annotated.
        is_learned: Whether enough of it is in the image; it counts in judging either way.
    """

    box: tuple[float, float, float, float]
    annotated: tuple[float, float, float, float]
    label: int
    mask: dict[str, Any] | None
    is_crowd: bool
    area: float
    is_learned: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedImage:
    """One image: the file and what is in it.

    Attributes:
        name: In the data, for messages and predictions.
        size: (H, W) as annotated.
        number: Its id in the annotations; of images out of several files, where two have one, its
            place among them.
        objects: For detection.
        labels: File with a class for every pixel, for segmentation.
    """

    path: Path
    name: str
    size: tuple[int, int]
    number: int
    objects: tuple[ObjectTruth, ...] = ()
    labels: Path | None = None

    @property
    def has_objects(self) -> bool:
        """Whether it has an object that is learned from."""
        return any(one.is_learned and not one.is_crowd for one in self.objects)

    def pixels(self) -> Tensor:
        """Read the image: bytes (3, H, W).

        Raises:
            ValueError: If it cannot be read, or has another size than its annotations.
        """
        found = read_pixels(self.path, self.size)
        return torch.from_numpy(found).permute(2, 0, 1).contiguous()


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseSplit:
    """Images with their classes.

    Attributes:
        zero_is_ignored: Of label files: 0 means no label, and classes begin at 1 (ADE20K).
    """

    images: tuple[AnnotatedImage, ...]
    class_names: tuple[str, ...]
    zero_is_ignored: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def part(self, share: float) -> DenseSplit:
        """Return a share of the images, at least one: spread evenly, as they lie in some order."""
        whole = len(self.images)
        count = max(round(share * whole), 1)
        images = tuple(self.images[place * whole // count] for place in range(count))
        return replace(self, images=images)

    def check_file(self, index: int) -> bool:
        """Look at the size of an image, and at its classes of pixels.

        Returns:
            Whether there is anything in it: an object, or a pixel of a class.

        Raises:
            ValueError: If they are not what the annotations say.
        """
        image = self.images[index]
        check_size(image.path, image.size)
        if image.labels is not None:
            return bool((self.labels(index) != NO_CLASS).any())
        return image.has_objects

    def labels(self, index: int) -> Tensor:
        """Read the classes (H, W) of an image's pixels as bytes, 255 where there is none.

        Raises:
            ValueError: If the file cannot be read, is no map of classes, or has another size.
        """
        image = self.images[index]
        path = image.labels
        if path is None:
            raise ValueError(f"{image.path} has no classes of pixels. Choose another --task.")
        values = found = read_classes(path, image.size)
        if self.zero_is_ignored:
            values = np.where(values == 0, 255, values - 1)
            values = np.where(found == 255, 255, values)
        is_class = (values >= 0) & (values < len(self.class_names))
        wrong = values[~is_class & (values != 255)]
        if len(wrong):
            raise ValueError(
                f"{path} has a pixel of class {wrong[0]}, and there are {len(self.class_names)} "
                "classes, from 0 (255: no class). Correct the file, or name the class."
            )
        return torch.from_numpy(values.astype(np.uint8))


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseData:
    """The data of a task.

    Attributes:
        task: ``instance``, ``detection`` or ``semantic``.
        train: To learn from; a search also trains on a part of it and judges on the rest.
        test: Where networks are judged, once: the test split, else the validation split.
        remarks: What was left out, in sentences.
    """

    name: str
    task: str
    train: DenseSplit
    test: DenseSplit
    test_name: str
    remarks: tuple[str, ...] = ()
    _cache: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in order."""
        return self.train.class_names

    @property
    def fingerprint(self) -> str:
        """A name for the annotations and files that this data consists of.

        Raises:
            ValueError: If a file is gone.
        """
        if "fingerprint" not in self._cache:
            digest = hashlib.sha256()
            every = max(-(-len(self.train) // SAMPLED_IMAGES), 1)
            images = [(image, not place % every) for place, image in enumerate(self.train.images)]
            images += [(image, True) for image in self.test.images]
            with in_threads() as threads:
                for words in threads.map(lambda pair: _identity(*pair), images):
                    digest.update(json.dumps(words, default=str).encode())
            self._cache["fingerprint"] = digest.hexdigest()[:16]
        return self._cache["fingerprint"]

    def check_files(self) -> None:
        """Look at every file, before anything is spent: all headers, and all classes of pixels.

        Raises:
            ValueError: If an image has another size than its annotations, or something cannot be
                read, or a class is unknown, or there is nothing in all images of a split.
        """
        for split, use in ((self.train, "to learn from"), (self.test, "to judge by")):
            with in_threads() as threads:
                found = list(threads.map(split.check_file, range(len(split))))
            if not any(found):
                raise nothing_in(split, self.name, use)

    def held_out(self, seed: int) -> tuple[DenseSplit, DenseSplit]:
        """Split the training images: those to learn from, and those to judge a search by."""
        order = sorted(
            range(len(self.train)),
            key=lambda index: _rank(seed, self.train.images[index].name),
        )
        count = max(round(len(order) * HELD_OUT_SHARE), 1)
        parts = (sorted(order[count:]), sorted(order[:count]))
        learned, judged = (
            DenseSplit(
                images=tuple(self.train.images[index] for index in part),
                class_names=self.train.class_names,
                zero_is_ignored=self.train.zero_is_ignored,
            )
            for part in parts
        )
        return learned, judged


def nothing_in(split: DenseSplit, name: str, use: str) -> ValueError:
    """Say that there is nothing in any image of a split."""
    return ValueError(
        f"There is neither an object nor a pixel of a class in any of the {len(split):,} images of "
        f"{name} {use}. Annotate some."
    )


def _rank(seed: int, name: str) -> str:
    """Order names by chance, the same for one seed wherever the images come from."""
    return hashlib.sha256(f"{seed}/held out/{name}".encode()).hexdigest()


def _identity(image: AnnotatedImage, by_content: bool) -> list[Any]:
    """Describe an image, its annotations, and the files of both."""
    files = [image.path] if image.labels is None else [image.path, image.labels]
    contents: list[Any] = [
        hashlib.sha256(read_regular(os.fsencode(file))).hexdigest()
        if by_content
        else size_of_regular(os.fsencode(file))
        for file in files
    ]
    return [image.name, image.size, [asdict(one) for one in image.objects], contents]
