"""Laws of WebDataset shards: they give what a folder gives, stored or streamed, or say why not."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from supernet.data import ImageData, prepare_data
from supernet.data.catalog import open_source
from supernet.data.source import can_be_mirrored
from supernet.training.batches import train_batches
from tests.supernet.data.test_sources import CLASSES, SIZE, write_folder
from tests.tiny_data import changed

COUNTS = {"train": 6, "val": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", **COUNTS)


def write_shards(source: Path, root: Path, label: Callable[[int], dict[str, bytes]]) -> Path:
    """Write two shards of each pool, images and labels in the order of the folder."""
    root.mkdir()
    for pool in COUNTS:
        images = sorted((source / pool).glob("*/*.png"))
        half = len(images) // 2
        for number, members in enumerate((images[:half], images[half:])):
            with tarfile.open(root / f"pets-{pool}-{number:04}.tar", "w") as tar:
                for image in members:
                    key = f"{image.parent.name}_{image.stem}"
                    files = {"png": image.read_bytes(), **label(CLASSES.index(image.parent.name))}
                    for suffix, content in sorted(files.items()):
                        add(tar, f"{key}.{suffix}", content)
    return root


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def as_cls(label: int) -> dict[str, bytes]:
    return {"cls": str(label).encode(), "json": b'{"width": 9}'}


def as_json(label: int) -> dict[str, bytes]:
    return {"json": json.dumps({"label": label}).encode()}


def prepared(shards: Path, folder: Path, **options: int) -> ImageData:
    return prepare_data(f"wds/pets:{shards}", img_size=SIZE, folder=folder, **options)


@pytest.mark.parametrize("label", [as_cls, as_json])
def test_shards_give_the_images_and_classes_of_the_folder(
    folder: Path, tmp_path: Path, label: Callable[[int], dict[str, bytes]]
) -> None:
    shards = write_shards(folder, tmp_path / "shards", label)
    found = open_source(f"wds/pets:{shards}", img_size=SIZE)
    wanted = open_source(str(folder), img_size=SIZE)
    assert set(found.pools) == set(wanted.pools) == set(COUNTS)
    for pool, positions in wanted.pools.items():
        members = found.pools[pool]
        np.testing.assert_array_equal(found.labels[members], wanted.labels[positions])
        images, others = dict(found.read(members)), dict(wanted.read(positions))
        for member, position in zip(members, positions, strict=True):
            assert images[member] == others[position]


def test_streamed_shards_are_read_at_their_places_by_any_number_of_workers(
    folder: Path, tmp_path: Path
) -> None:
    shards = write_shards(folder, tmp_path / "shards", as_cls)
    streamed = prepared(shards, tmp_path / "a", memory_limit_bytes=1)
    split = streamed.full_train()
    recipe = changed("quick", batch_size=4, random_crop_padding=0)
    batches = [
        list(train_batches(split, streamed, recipe, epoch=0, seed=0, workers=workers))
        for workers in (0, 2)
    ]
    assert len(batches[0]) == len(split) // 4
    for (images, labels), (other_images, other_labels) in zip(*batches, strict=True):
        assert images.equal(other_images)
        assert labels.equal(other_labels)


def compress(path: Path) -> None:
    path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10_000])


def relabel(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        add(tar, "new.cls", b"ant")


def unlabel(path: Path) -> None:
    with tarfile.open(path, "a") as tar:
        add(tar, "new.png", b"")


def rename(path: Path) -> None:
    for shard in path.parent.glob("*train*"):
        shard.rename(shard.with_name(shard.name.replace("train", "part")))


def describe(path: Path) -> None:
    splits = {"train": {"num_samples": 19}}
    (path.parent / "_info.json").write_text(json.dumps({"splits": splits}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (compress, "uncompressed tars.*train-0001"),
        (cut, "train-0001.tar is not"),
        (relabel, "new.cls in .*train-0001.tar holds b'ant'"),
        (unlabel, "1 images of train in .* have no class"),
        (rename, "such only of: val"),
        (describe, "should hold 19 images of train.*hold 18"),
    ],
)
def test_damaged_shards_are_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    shards = write_shards(folder, tmp_path / "shards", as_cls)
    damage(shards / "pets-train-0001.tar")
    with pytest.raises(ValueError, match=message):
        prepared(shards, tmp_path / "a")


def test_shards_without_their_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write 'wds/pets:FOLDER'"):
        prepare_data("wds/pets", img_size=SIZE, folder=tmp_path / "a")


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_a_shard_under_two_names_is_one_and_belongs_to_one_split(
    folder: Path, tmp_path: Path, link: str
) -> None:
    shards = write_shards(folder, tmp_path / "shards", as_cls)
    shard = shards / "pets-train-0000.tar"

    def add_name(name: str) -> None:
        path = shards / name
        path.hardlink_to(shard) if link == "hard" else path.symlink_to(shard)

    add_name("pets-train-again.tar")
    assert len(open_source(f"wds/pets:{shards}", img_size=SIZE).pools["train"]) == 18
    add_name("pets-val-again.tar")
    with pytest.raises(ValueError, match=r"belongs to one split, .*train-0000.*val-again"):
        open_source(f"wds/pets:{shards}", img_size=SIZE)


@pytest.mark.parametrize(
    ("name", "mirrored"),
    [("pets", True), ("mnist", False), ("KMNIST", False), ("fashion_mnist", True)],
)
def test_shards_of_digits_are_not_mirrored(
    folder: Path, tmp_path: Path, name: str, mirrored: bool
) -> None:
    shards = write_shards(folder, tmp_path / "shards", as_cls)
    assert open_source(f"wds/{name}:{shards}", img_size=SIZE).allows_flip == mirrored


@pytest.mark.parametrize(
    ("name", "mirrored"),
    [
        *(("torch/mnist", False), ("hfds/ylecun/mnist", False), ("tfds/emnist/letters", False)),
        *(("tfds/svhn_cropped", False), ("torch/cifar10", True), ("hfds/user/mnist-like", True)),
    ],
)
def test_characters_are_known_by_the_names_of_their_sets(name: str, mirrored: bool) -> None:
    assert can_be_mirrored(name) == mirrored
