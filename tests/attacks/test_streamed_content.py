"""Streamed images that change under the same names; pipes where other projects read the data."""

from __future__ import annotations

import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data.dataset import ImageDataset

import supernet.data.image_data as image_data
import supernet.data.timm_readers as timm_readers
from supernet.data import ImageData, prepare_data
from supernet.data.catalog import open_source
from supernet.data.image_data import DIGESTS_FILE
from supernet.data.streaming import StreamedImages, listed
from tests.supernet.data.test_sources import CLASSES, SIZE, write_folder
from tests.supernet.data.test_webdataset import as_cls, write_shards


def packed(source: Path, kind: str) -> str:
    """Give the images of a folder as another kind of source."""
    if kind == "folder":
        return str(source)
    if kind == "tar":
        with tarfile.open(source.with_suffix(".tar"), "w") as tar:
            tar.add(source, arcname=".")
        return str(source.with_suffix(".tar"))
    shards = source.with_name("shards")
    for old in shards.glob("*"):
        old.unlink()
    if shards.is_dir():
        shards.rmdir()
    return f"wds/pets:{write_shards(source, shards, as_cls)}"


def streamed(source: Path, kind: str, folder: Path) -> ImageData:
    listed.cache_clear()
    text = packed(source, kind)
    return prepare_data(text, img_size=SIZE, folder=folder, memory_limit_bytes=1)


def read_all(data: ImageData) -> None:
    images = data.full_train().images
    assert isinstance(images, StreamedImages)
    images.read(np.arange(len(images)))


@pytest.mark.parametrize("kind", ["folder", "tar", "wds"])
def test_beyond_the_sample_a_training_image_of_another_size_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(image_data, "SAMPLED_IMAGES", 1)
    source = write_folder(tmp_path / "pets", train=6, val=2)
    data = streamed(source, kind, tmp_path / "data")
    read_all(data)
    digests = np.load(data.folder / DIGESTS_FILE)
    assert sorted(np.unique(np.sign(digests))) == [-1, 1]  # sizes and hashes; of all something
    # One that the run only knows by its size: of the train split, and not its first.
    number = int(np.flatnonzero(digests < 0)[0])
    found = data.full_train().images[number : number + 1]
    assert isinstance(found, StreamedImages)
    (name,) = found.names()
    changed = next(path for path in (source / "train").glob("*/*") if _is_called(path, name))
    Image.new("RGB", (40, 40)).save(changed)

    packed(source, kind)
    listed.cache_clear()

    with pytest.raises(ValueError, match=r"must not change during a run.*is not what it was"):
        read_all(data)


def _is_called(path: Path, name: str) -> bool:
    return path.stem in name.split("/")[-1] and path.parent.name in name


def test_the_size_of_a_file_that_is_gone_is_a_message(tmp_path: Path) -> None:
    source = open_source(str(write_folder(tmp_path / "pets", train=2, val=2)), img_size=SIZE)
    (tmp_path / "pets" / "train" / "ant" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"Cannot read .*train/ant/1\.png .* Put it back"):
        source.sizes(source.pools["train"])


# Pipes, sockets and devices; a test that opens one does not end.


def block(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "socket", "link to a device"])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("torch/cifar10", "cifar-10-batches-py/data_batch_1"),
        ("torch/mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("hfds/pets", "cache/pets.arrow"),
        ("tfds/pets", "pets/1.0.0/train.tfrecord"),
    ],
)
def test_what_is_no_file_in_the_folder_of_a_data_set_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    block(tmp_path / "root" / file, kind)
    with pytest.raises(ValueError, match=r"Only regular files are read, .*root/.* Remove it"):
        open_source(f"{name}:{tmp_path / 'root'}", img_size=28)


def test_a_folder_under_a_name_of_hugging_face_is_looked_through_too(tmp_path: Path) -> None:
    block(tmp_path / "pets" / "train" / "ant" / "1.png", "pipe")
    with pytest.raises(ValueError, match="Only regular files are read"):
        open_source(f"hfds/{tmp_path / 'pets'}", img_size=SIZE)


def test_loops_and_dead_links_of_a_cache_are_left_to_its_reader(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dead").symlink_to(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"timm cannot open 'torch/cifar10'"):
        open_source(f"torch/cifar10:{tmp_path}", img_size=SIZE)


class Table:
    """What timm's reader of Hugging Face's tables has, with its images stored or named."""

    image_key, class_to_idx = "image", {name: label for label, name in enumerate(CLASSES)}

    def __init__(self, images: list[dict[str, Any]]) -> None:
        self.dataset = [{"image": image} for image in images]
        self.dataset_info = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("timm's reader opens whatever is named")

    def iter_targets(self) -> list[int]:
        return [row % len(CLASSES) for row in range(len(self.dataset))]


def test_images_that_a_table_names_are_read_only_where_they_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, pipe = tmp_path / "0.png", tmp_path / "1.png"
    Image.new("RGB", (5, 4), (1, 2, 3)).save(image)
    os.mkfifo(pipe)
    rows = [{"bytes": image.read_bytes(), "path": None}, {"bytes": None, "path": str(image)}]
    rows += [{"path": str(pipe)}, {"bytes": None, "path": str(tmp_path / "gone.png")}]
    monkeypatch.setattr(timm_readers, "_held_out", lambda *_: {"val": "validation"})
    monkeypatch.setattr(
        timm_readers, "_create", lambda *_: ImageDataset("", reader=Table([*rows, *rows]))
    )
    source = open_source("hfds/pets", img_size=SIZE)

    read = dict(source.read(np.array([0, 1])))

    assert {read[0].getpixel((0, 0)), read[1].getpixel((4, 3))} == {(1, 2, 3)}
    with pytest.raises(ValueError, match=r"Only regular files are read, .*1\.png is none"):
        dict(source.read(np.array([2])))
    with pytest.raises(ValueError, match=r"Cannot read .*gone\.png"):
        dict(source.read(np.array([3])))
