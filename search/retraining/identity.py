"""What decides a retraining, as one hash: another of anything is another training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from searchspace.architecture import Architecture
from supernet.data import ImageData, StreamedImages
from supernet.recipes import Recipe
from supernet.training import LabelMaps, digest_of

# What a recipe says about itself decides nothing; the seed is told apart by itself.
NOT_DECISIVE = {"name", "about", "source", "sizes", "seed"}


def identity_of(
    architecture: Architecture,
    data: ImageData,
    recipe: Recipe,
    *,
    start: Mapping[str, Tensor] | None,
    labels: str | None,
    teacher: str | None = None,
    unlabelled: str | None = None,
) -> str:
    """Hash all that decides a training, but for its seed.

    Args:
        architecture: At the size that is trained.
        data: Its images, those of the test split as well.
        recipe: At its length and with its shards.
        start: The weights that it starts from.
        labels: Fingerprint of its label maps.
        teacher: Fingerprint of whom it learns from.
        unlabelled: Fingerprint of the images without classes that it learns on, too.
    """
    # How to learn from a teacher decides nothing without one.
    unread = NOT_DECISIVE | ({"distillation"} if teacher is None else set())
    decides = {
        "architecture": architecture.to_dict(),
        "recipe": recipe.model_dump(mode="json", exclude=unread),
        "images": [data.fingerprint, data.listing, list(data.mean), list(data.std)],
        "classes": list(data.class_names),
        "start": None if start is None else digest_of(start),
        "labels": labels,
    }
    decides |= {} if teacher is None else {"teacher": teacher}
    decides |= {} if unlabelled is None else {"unlabelled": unlabelled}
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def label_maps(data: ImageData, folder: Path | None) -> LabelMaps | None:
    """Find the label maps of the images to train on, which are streamed where there are any."""
    if folder is None:
        return None
    images = data.streamed().full_train().images
    assert isinstance(images, StreamedImages)
    return LabelMaps(folder, images.names(), data.num_classes)
