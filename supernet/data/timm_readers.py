"""Data sets that timm's readers take: ``torch/...``, ``hfds/...`` and ``tfds/...``.

timm's map-style dataset replaces an image that it cannot decode by the next one; here its reader is
asked instead, so that a damaged image is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data.dataset import ImageDataset, IterableImageDataset
from timm.data.dataset_factory import create_dataset

from supernet.data.decoding import only_listed_formats, shown, upright
from supernet.data.files import check_regular, read_regular
from supernet.data.source import Fetched, Source, can_be_mirrored, check_labels
from supernet.data.splits import IntArray

VAL_NAMES = ("validation", "valid", "val")
MISSING_ERRORS = (
    *(ImportError, OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError),
)


def open_timm(name: str, *, root: str | None) -> Source:
    """List a data set by its timm name.

    Labels are read ahead of images; a ``tfds`` stream, which has no other way to tell them, is
    run through once for that. A pool without labels (-1) is left out.

    Args:
        root: The folder of the data; ``torch`` cannot do without it.

    Raises:
        ValueError: If timm cannot open it, or it has no held-out images.
    """
    if root is None and name.startswith("torch/"):
        raise ValueError(f"{name!r} needs the folder of its data: write '{name}:FOLDER'.")
    # A name of Hugging Face may be a folder as well.
    for folder in (root, name.partition("/")[2]):
        if folder and os.path.isdir(folder):
            check_regular(os.fsencode(folder))
    datasets = {"train": _create(name, root, "train")}
    for pool, split in _held_out(name, datasets["train"]).items():
        datasets[pool] = _create(name, root, split)
    labels = {pool: _labels(dataset, f"{name} {pool}") for pool, dataset in datasets.items()}
    labels = {pool: values for pool, values in labels.items() if values.min(initial=0) >= 0}
    if "train" not in labels or not {"val", "test"} & set(labels):
        raise ValueError(
            f"Data must have labelled images to train on and others to test on; {name!r} has them "
            f"only in: {', '.join(labels) or 'nothing'}. Choose another data set."
        )
    return _source(name, {pool: datasets[pool] for pool in labels}, labels)


def _create(name: str, root: str | None, split: str) -> Any:
    try:
        return create_dataset(name, root=root, split=split, download=False)
    except MISSING_ERRORS as error:
        raise ValueError(
            f"timm cannot open {name!r}, split {split!r}, root {root!r}: "
            f"{type(error).__name__}: {error}. Check the name, download the data into that folder "
            "(written after a colon), and install what its reader needs."
        ) from error


def _held_out(name: str, train: Any) -> dict[str, str]:
    """Map ``val`` and ``test`` to the names that the data set has for them."""
    if name.startswith("torch/"):
        # torchvision's sets have one held-out part, and it is labelled.
        return {"test": "validation"}
    owner = train.reader.dataset if name.startswith("hfds/") else train.reader.builder
    known = set(owner.info.splits or ())
    pools = {"val": next((split for split in VAL_NAMES if split in known), None)}
    pools["test"] = "test" if "test" in known else None
    return {pool: split for pool, split in pools.items() if split is not None}


def _labels(dataset: Any, name: str) -> IntArray:
    if isinstance(dataset, ImageDataset):
        values: Any = list(dataset.reader.iter_targets())
    elif hasattr(dataset, "targets"):
        values = dataset.targets
    else:
        values = [target for _, target in dataset]
    if isinstance(dataset, IterableImageDataset) and len(values) != len(dataset):
        raise ValueError(
            f"{name} should hold {len(dataset)} images, but {len(values)} could be read. "
            "Some are damaged, or its description is wrong: download it again."
        )
    values = values.numpy() if hasattr(values, "numpy") else values
    labels = np.asarray([-1 if value is None else value for value in values])
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"The classes of {name} must be whole numbers, they are {labels.dtype}, e.g. "
            f"{labels[0]!r}. Choose another data set."
        )
    # QMNIST has eight columns, the first is the class.
    return (labels[:, 0] if labels.ndim > 1 else labels).astype(np.int64)


def _class_names(dataset: Any, num_classes: int) -> tuple[str, ...]:
    names: Sequence[Any] = getattr(dataset, "classes", ())
    indices = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if not names and indices:
        names = sorted(indices, key=indices.__getitem__)
    if len(names) < num_classes:
        return tuple(str(label) for label in range(num_classes))
    return tuple(name if isinstance(name, str) else str(name[0]) for name in names)


def _source(name: str, datasets: dict[str, Any], labels: dict[str, IntArray]) -> Source:
    sizes = [len(labels[pool]) for pool in datasets]
    starts = dict(zip(datasets, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    all_labels = np.concatenate([labels[pool] for pool in datasets])
    readers = {pool: _reader(dataset, f"{name} {pool}") for pool, dataset in datasets.items()}
    pools = {pool: starts[pool] + np.arange(len(labels[pool])) for pool in datasets}

    def fetch(positions: IntArray) -> Iterator[Fetched]:
        for pool, members in pools.items():
            wanted = np.intersect1d(positions, members) - starts[pool]
            if len(wanted):
                for index, content, place in readers[pool](wanted):
                    yield Fetched(starts[pool] + index, content, place)

    return Source(
        name=Path(name).name,
        class_names=_class_names(datasets["train"], check_labels(all_labels, pools, name)),
        allows_flip=can_be_mirrored(name),
        names=[f"{pool}/{index}" for pool in datasets for index in range(len(labels[pool]))],
        labels=all_labels,
        pools=pools,
        fetch=fetch,
        is_random_access=not any(isinstance(d, IterableImageDataset) for d in datasets.values()),
    )


def _reader(dataset: Any, name: str) -> Callable[[IntArray], Iterator[Fetched]]:
    if isinstance(dataset, ImageDataset):

        def read(indices: IntArray) -> Iterator[Fetched]:
            for index in indices.tolist():
                yield Fetched(index, _content(dataset.reader, index), f"{name}[{index}]")

    elif isinstance(dataset, IterableImageDataset):

        def read(indices: IntArray) -> Iterator[Fetched]:
            wanted = set(indices.tolist())
            for index, (image, _) in enumerate(dataset):
                if index in wanted:
                    yield Fetched(index, _rgb(image), f"{name}[{index}]")

    else:

        def read(indices: IntArray) -> Iterator[Fetched]:
            for index in indices.tolist():
                try:
                    with only_listed_formats():
                        image = _rgb(dataset[index][0])
                # The data set's own code and Pillow's raise nearly everything on damaged files.
                except Exception as error:
                    raise ValueError(
                        f"Cannot decode the image {shown(name)}[{index}] ({error}). "
                        "Replace or remove it."
                    ) from error
                yield Fetched(index, image, f"{name}[{index}]")

    return read


def _content(reader: Any, index: int) -> bytes:
    """Return a file of Hugging Face's, which is stored in the table or named there.

    timm's own reader would open whatever is named, a pipe as well.
    """
    image = reader.dataset[index][reader.image_key]
    content: bytes | None = image.get("bytes")
    return content or read_regular(os.fsencode(str(image.get("path"))))


def _rgb(image: Image.Image) -> Image.Image:
    return upright(image, image.convert("RGB"))
