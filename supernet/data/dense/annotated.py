"""Images and what is known about them, as values; pixels stay on disk, masks stay encoded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HELD_OUT_SHARE = 0.2  # of the training images, where a search needs images of its own


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
        number: Its id in the annotations.
        objects: For detection.
        labels: File with a class for every pixel, for segmentation.
    """

    path: Path
    name: str
    size: tuple[int, int]
    number: int
    objects: tuple[ObjectTruth, ...] = ()
    labels: Path | None = None

    def pixels(self) -> Tensor:
        """Read the image: bytes (3, H, W).

        Raises:
            ValueError: If it cannot be read, or has another size than its annotations.
        """
        try:
            with Image.open(self.path) as image:
                found = np.array(image.convert("RGB"))
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be read as an image ({error}). Replace or remove it."
            ) from error
        if found.shape[:2] != self.size:
            raise ValueError(
                f"{self.path} has {found.shape[0]} x {found.shape[1]} pixels (height x width), its "
                f"annotations say {self.size[0]} x {self.size[1]}. Give it the right annotations."
            )
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

    def first(self, share: float) -> DenseSplit:
        """Return the first images, so large a share of them and at least one."""
        return replace(self, images=self.images[: max(round(share * len(self.images)), 1)])

    def labels(self, index: int) -> Tensor:
        """Read the classes (H, W) of an image's pixels as bytes, 255 where there is none.

        Raises:
            ValueError: If the file cannot be read, is no map of classes, or has another size.
        """
        image = self.images[index]
        path = image.labels
        if path is None:
            raise ValueError(f"{image.path} has no classes of pixels. Choose another --task.")
        try:
            with Image.open(path) as stored:
                found = np.array(stored)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}). Replace it.") from error
        if found.ndim != 2 or found.shape != image.size:
            raise ValueError(
                f"{path} must be an image of one channel with the {image.size[0]} x "
                f"{image.size[1]} pixels of {image.path.name}, got {found.shape}. Write it anew."
            )
        values = found.astype(np.int64)
        if self.zero_is_ignored:
            values = np.where(values == 0, 255, values - 1)
            values = np.where(found == 255, 255, values)
        wrong = values[(values >= len(self.class_names)) & (values != 255)]
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
        """A name for the annotations and sizes that this data consists of."""
        if "fingerprint" not in self._cache:
            digest = hashlib.sha256()
            for split in (self.train, self.test):
                for image in split.images:
                    words: list[Any] = [
                        image.name,
                        image.size,
                        [asdict(one) for one in image.objects],
                    ]
                    words.append(image.path.stat().st_size)
                    if image.labels is not None:
                        words.append(image.labels.stat().st_size)
                    digest.update(json.dumps(words, default=str).encode())
            self._cache["fingerprint"] = digest.hexdigest()[:16]
        return self._cache["fingerprint"]

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


def _rank(seed: int, name: str) -> str:
    """Order names by chance, the same for one seed wherever the images come from."""
    return hashlib.sha256(f"{seed}/held out/{name}".encode()).hexdigest()
