"""Laws of data sources: a tar is its folder, timm's names are read, and bad input is refused."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from supernet.data import prepare_data
from supernet.data.decoding import decode_image

CLASSES = ("ant", "bee", "cow")
SIZE = 9


def write_folder(root: Path, **pools: int) -> Path:
    """Write an ImageFolder of noise, with the given number of images per class in each pool."""
    rng = np.random.default_rng(0)
    for pool, per_class in pools.items():
        for class_name in CLASSES:
            (root / pool / class_name).mkdir(parents=True)
            for index in range(per_class):
                pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / pool / class_name / f"{index}.png")
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", train=5, val=2)


@pytest.mark.parametrize(
    ("mode", "suffix", "top"),
    [("w", "tar", "."), ("w:xz", "tar.xz", "."), ("w:gz", "tar.gz", "pets"), ("w", "tar", "")],
)
def test_a_tar_gives_what_its_folder_gives(
    source: Path, tmp_path: Path, mode: str, suffix: str, top: str
) -> None:
    (source / "index.csv").write_text("not an image")
    path = tmp_path / f"pets.{suffix}"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for entry in sorted(source.iterdir(), reverse=True):
            tar.add(entry, arcname=f"{top}/{entry.name}".removeprefix("/"))
    from_tar = prepare_data(str(path), img_size=SIZE, folder=tmp_path / "a")
    from_folder = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "b")
    assert from_tar.fingerprint == from_folder.fingerprint
    assert from_tar.sizes == from_folder.sizes
    np.testing.assert_array_equal(from_tar.test_split().images, from_folder.test_split().images)


def test_links_in_a_tar_are_followed_inside_it_only(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "pets.tar"
    (source / "more").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(source / "more" / "9.png")
    with tarfile.open(path, "w") as tar:
        tar.add(source, arcname=".")
        link = tarfile.TarInfo("train/ant/link.png")
        link.type = tarfile.LNKTYPE
        link.linkname = "./more/9.png"
        tar.addfile(link)
    data = prepare_data(str(path), img_size=SIZE, folder=tmp_path / "data")
    assert sum(data.sizes.values()) == 3 * (5 + 2) + 1
    with tarfile.open(path, "a") as tar:
        link.type, link.linkname = tarfile.SYMTYPE, str(source / "train" / "ant" / "0.png")
        tar.addfile(link)
    with pytest.raises(ValueError, match="leads nowhere"):
        prepare_data(str(path), img_size=SIZE, folder=tmp_path / "other")


def test_hidden_and_other_files_are_left_out(source: Path, tmp_path: Path) -> None:
    for name in ("._0.png", "notes.txt", ".thumbnails/1.png"):
        path = source / "train" / "ant" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not an image")
    data = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    assert data.sizes["train"] + data.sizes["search"] == 15


def test_images_in_nested_folders_belong_to_the_class_above(source: Path, tmp_path: Path) -> None:
    nested = source / "train" / "cow" / "summer" / "2024"
    nested.mkdir(parents=True)
    (source / "train" / "cow" / "4.png").rename(nested / "4.png")
    data = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    assert Counter(data.full_train().labels.tolist()) == {0: 5, 1: 5, 2: 5}


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_images_of_every_8_bit_mode_become_rgb(source: Path, tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("L", (SIZE, SIZE), 255).convert(mode).save(source / "train" / "ant" / f"x.{suffix}")
    data = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    is_white = (data.full_train().images == 255).all(axis=(1, 2, 3))
    assert is_white.sum() == 1


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write the file format of MNIST."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root: Path) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.broadcast_to(labels[:, None, None] * 20, (count, 28, 28)).copy()
        write_idx(raw / f"{name}-images-idx3-ubyte", images)
        write_idx(raw / f"{name}-labels-idx1-ubyte", labels)


def test_torchvisions_mnist_is_read_through_timm(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = prepare_data(f"torch/mnist:{tmp_path}", img_size=28, folder=tmp_path / "data")
    assert data.sizes == {"train": 30, "search": 10, "test": 10}
    assert (data.name, data.stored_size, data.allows_flip) == ("mnist", 28, False)
    for split in (data.full_train(), data.test_split()):
        expected = (split.labels * 20).astype(np.uint8)[:, None, None, None]
        np.testing.assert_array_equal(split.images, np.broadcast_to(expected, split.images.shape))


def test_torchvisions_image_folder_is_our_own(source: Path, tmp_path: Path) -> None:
    ours = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "a")
    timms = prepare_data(f"torch/image_folder:{source}", img_size=SIZE, folder=tmp_path / "b")
    assert timms.fingerprint == ours.fingerprint


def refuse(source: Path | str, tmp_path: Path, pattern: str) -> None:
    """Check the error, and that it leaves no folder behind."""
    with pytest.raises(ValueError, match=pattern):
        prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["", "digit", "/no/such/path", "imagenet"])
def test_an_unknown_source_is_refused(name: str, tmp_path: Path) -> None:
    refuse(name, tmp_path, rf"no data {re.escape(repr(name))}.*'digits'")


def test_a_folder_needs_train(tmp_path: Path) -> None:
    refuse(write_folder(tmp_path / "pets", test=1), tmp_path, "one train/.* has: test")


def test_a_folder_needs_images_held_out(tmp_path: Path) -> None:
    refuse(write_folder(tmp_path / "pets", train=1), tmp_path, "val/ or test/.* has: train")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "pets", train=1, val=1, valid=1)
    refuse(source, tmp_path, "has: train, val, valid")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    refuse(tmp_path / "pets", tmp_path, "has: nothing")


def test_an_empty_class_folder_is_refused(source: Path, tmp_path: Path) -> None:
    for path in (source / "train" / "bee").iterdir():
        path.unlink()
    refuse(source, tmp_path, "there are none in train/bee")


def test_splits_without_class_folders_are_refused(tmp_path: Path) -> None:
    for pool in ("train", "test"):
        (tmp_path / "pets" / pool).mkdir(parents=True)
    refuse(tmp_path / "pets", tmp_path, "there are none in test/")


def test_classes_that_differ_between_splits_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "val" / "cow").rename(source / "val" / "dog")
    refuse(source, tmp_path, "differ in: cow, dog")


def test_one_class_is_refused(tmp_path: Path) -> None:
    for pool in ("train", "test"):
        path = tmp_path / "pets" / pool / "ant" / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(path)
    refuse(tmp_path / "pets", tmp_path, r"at least 2 classes, 'pets' has 1 \(ant\)")


def test_a_class_with_one_image_cannot_be_carved(source: Path, tmp_path: Path) -> None:
    for index in range(1, 5):
        (source / "train" / "bee" / f"{index}.png").unlink()
    refuse(source, tmp_path, r"at least 2 training images.*too few in: bee \(1\)")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:150])


def overwrite(path: Path) -> None:
    path.write_text("GIF89a, but not really")


def widen(path: Path) -> None:
    Image.fromarray(np.full((SIZE, SIZE), 40_000, dtype=np.uint16)).save(path)


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (truncate, r"Cannot decode the image .*ant/3\.png"),
        (overwrite, r"Cannot decode the image .*ant/3\.png"),
        (widen, r"Grey images must have 8 bits, .*ant/3\.png has mode"),
    ],
)
def test_a_damaged_image_is_named(
    source: Path, tmp_path: Path, damage: Callable[[Path], None], pattern: str
) -> None:
    damage(source / "train" / "ant" / "3.png")
    refuse(source, tmp_path, pattern)


def test_colours_of_16_bits_are_brought_to_8() -> None:
    rows = b"\0" + bytes([0x12, 0xFF, 0x80, 0x00, 0xFE, 0x01])  # one pixel, high bytes first
    parts = (b"IHDR" + struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows))
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (*parts, b"IEND")
    ]

    image = decode_image(b"\x89PNG\r\n\x1a\n" + b"".join(chunks), name="deep.png")

    assert image.getpixel((0, 0)) == (0x12, 0x80, 0xFE)


def test_a_damaged_image_in_a_tar_is_named(source: Path, tmp_path: Path) -> None:
    truncate(source / "train" / "ant" / "3.png")
    with tarfile.open(tmp_path / "pets.tar", "w") as tar:
        tar.add(source, arcname="pets")
    refuse(tmp_path / "pets.tar", tmp_path, r"pets/train/ant/3\.png in .*pets\.tar")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", bytes(5000)])
def test_a_file_that_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pets.zip").write_bytes(content)
    refuse(tmp_path / "pets.zip", tmp_path, r"pets\.zip (is none|has: nothing)")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("keep", [0.4, 0.75])
def test_a_truncated_tar_is_refused(source: Path, tmp_path: Path, mode: str, keep: float) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        tar.add(source, arcname=".")
    content = buffer.getvalue()
    (tmp_path / "pets.tar").write_bytes(content[: int(len(content) * keep)])
    refuse(tmp_path / "pets.tar", tmp_path, "truncated or damaged")


def test_a_tar_cut_between_two_members_is_refused(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "pets.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(source, arcname=".")
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    refuse(path, tmp_path, "truncated or damaged")


def test_a_timm_name_without_its_data_is_refused(tmp_path: Path) -> None:
    refuse(f"torch/cifar10:{tmp_path}", tmp_path, r"timm cannot open 'torch/cifar10'.*download")


def test_an_unknown_torchvision_name_is_refused(tmp_path: Path) -> None:
    refuse(f"torch/cifar11:{tmp_path}", tmp_path, r"Unknown torchvision dataset cifar11")


def test_a_torchvision_name_needs_a_folder(tmp_path: Path) -> None:
    refuse("torch/cifar10", tmp_path, "write 'torch/cifar10:FOLDER'")
