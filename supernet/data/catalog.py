"""Where images come from: digits, an ImageFolder, a tar of one, WebDataset shards, timm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from supernet.data.decoding import shown
from supernet.data.folders import open_folder, open_unlabelled
from supernet.data.source import Fetched, Source
from supernet.data.splits import IntArray
from supernet.data.tars import open_tar
from supernet.data.webdataset import open_webdataset

DIGITS = "digits"
# Of a folder of images without classes, as it is recorded; nobody can name it as data.
UNLABELLED_PREFIX = "unlabelled:"
TIMM_PREFIXES = ("torch/", "hfds/", "tfds/", "wds/")
ACCEPTED = (
    "Accepted are 'digits', a folder with train/ and val/ or test/ that hold one folder of images "
    "per class, a tar of one, WebDataset shards as 'wds/NAME:FOLDER', and timm names such as "
    "'torch/cifar10:FOLDER' or 'hfds/NAME'"
)


def resolve_source(text: str) -> str:
    """Return the source as it is recorded: paths absolute, names as they are.

    Raises:
        ValueError: If it is neither a known name nor an existing path.
    """
    if text == DIGITS:
        return text
    path = Path(text).expanduser()
    if text and _exists(path):
        return str(path.resolve())
    if text.startswith(TIMM_PREFIXES):
        name, colon, root = text.partition(":")
        return f"{name}:{Path(root).expanduser().resolve()}" if colon else text
    raise ValueError(f"There is no data {text!r}: no such path and no known name. {ACCEPTED}.")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    # A name that no file can have: too long, or with a zero byte.
    except (OSError, ValueError):
        return False


def open_source(source: str, *, img_size: int) -> Source:
    """List the images of a resolved source.

    Args:
        img_size: The side that digits are scaled to; other images keep their size.

    Raises:
        ValueError: If there is nothing to read or it is not laid out as it must be.
    """
    if source == DIGITS:
        return _open_digits(img_size)
    if source.startswith(TIMM_PREFIXES):
        name, _, root = source.partition(":")
        if name in ("torch/image_folder", "torch/folder"):
            return open_source(resolve_source(root), img_size=img_size)
        if name.startswith("wds/"):
            if not Path(root).is_dir() or not root:
                raise ValueError(f"{name!r} needs the folder of its shards, write '{name}:FOLDER'.")
            return open_webdataset(name.partition("/")[2], Path(root))
        # timm takes seconds to import.
        from supernet.data.timm_readers import open_timm

        return open_timm(name, root=root or None)
    if source.startswith(UNLABELLED_PREFIX):
        return open_unlabelled(Path(source.removeprefix(UNLABELLED_PREFIX)))
    path = Path(source)
    if path.is_dir():
        return open_folder(path)
    if path.is_file():
        return open_tar(path)
    if not _exists(path):
        raise ValueError(
            f"The data {shown(source)} is not there any more. Put it back at this path."
        )
    raise ValueError(f"{shown(source)} is neither a folder nor a regular file. {ACCEPTED}.")


def _open_digits(img_size: int) -> Source:
    # scikit-learn takes a second to import.
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)

    def fetch(positions: IntArray) -> Iterator[Fetched]:
        for position in positions.tolist():
            image = Image.fromarray(pixels[position])
            image = image.resize((img_size, img_size), Image.Resampling.BICUBIC)
            yield Fetched(position, image.convert("RGB"), f"{DIGITS}/{position}")

    return Source(
        name=DIGITS,
        class_names=tuple(str(name) for name in data.target_names),
        allows_flip=False,
        names=[f"{DIGITS}/{index}" for index in range(len(pixels))],
        labels=data.target.astype(np.int64),
        pools={"all": np.arange(len(pixels))},
        fetch=fetch,
    )
