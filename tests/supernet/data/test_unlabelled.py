"""Images without classes: all of a folder, once, none of the test split, and nothing hostile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from supernet.data import ImageData, prepare_data, prepare_unlabelled
from supernet.data.arrays import JoinedImages
from tests.tiny_data import noise, write_images


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    source = write_images(tmp_path / "images", *noise(40, 8), num_test=6)
    return prepare_data(source, img_size=8, folder=tmp_path / "data")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images at several depths, and what is none."""
    root = tmp_path / "plenty"
    rng = np.random.default_rng(5)
    for name in ("b.png", "a/c.png", "a/deep/er/d.png", "a/e.jpg", "x.bmp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_all_images_below_a_folder_are_taken_whole(
    data: ImageData, folder: Path, tmp_path: Path
) -> None:
    found = prepare_unlabelled(folder, data, tmp_path / "run")
    assert (found.count, found.left_out, found.name) == (5, 0, "plenty")
    joined = found.added_to(data.full_train())
    number = len(data.full_train())
    assert len(joined) == number + 5
    np.testing.assert_array_equal(joined.labels[:number], data.full_train().labels)
    np.testing.assert_array_equal(joined.labels[number:], [-1] * 5)
    expected = {pixels_of(path).tobytes() for path in folder.rglob("*.*") if path.suffix != ".txt"}
    assert isinstance(joined.images, JoinedImages)
    assert {image.tobytes() for image in joined.images[number:]} == expected


def test_rows_of_joined_images_are_those_of_both() -> None:
    images = np.arange(7 * 2 * 2 * 3, dtype=np.uint8).reshape(7, 2, 2, 3)
    joined = JoinedImages(images[:4], images[4:])
    rows = np.array([6, 0, 3, 4, 4, 1])
    assert len(joined) == 7
    np.testing.assert_array_equal(joined.read(rows), images[rows])
    np.testing.assert_array_equal(joined[2:6], images[2:6])


def test_a_test_image_is_left_out(data: ImageData, folder: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((tmp_path / "images" / "test").rglob("*.png"))[:2]):
        shutil.copy(path, folder / f"copy{number}.png")
    train = next((tmp_path / "images" / "train").rglob("*.png"))
    shutil.copy(train, folder / "known.png")
    found = prepare_unlabelled(folder, data, tmp_path / "run")
    assert (found.count, found.left_out) == (6, 2)
    assert "2 are test images, and left out" in found.line()
    only = tmp_path / "only"
    shutil.copytree(tmp_path / "images" / "test", only)
    with pytest.raises(ValueError, match="no image in it but those of the test split"):
        prepare_unlabelled(only, data, tmp_path / "run")


def test_what_is_decoded_already_is_not_decoded_again_unless_it_changed(
    data: ImageData, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_unlabelled(folder, data, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("supernet.data.unlabelled.write_split", None)
        assert prepare_unlabelled(folder, data, tmp_path / "run") == first
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "b.png")
    other = prepare_unlabelled(folder, data, tmp_path / "run")
    assert other.fingerprint != first.fingerprint
    assert other.folder != first.folder


@pytest.mark.parametrize("spoilt", ["images.npy", "labels.npy", "checksum.txt", "fingerprint.txt"])
def test_what_is_damaged_or_half_written_is_decoded_anew(
    data: ImageData, folder: Path, tmp_path: Path, spoilt: str
) -> None:
    first = prepare_unlabelled(folder, data, tmp_path / "run")
    (path,) = [one for one in first.folder.iterdir() if one.name.endswith(spoilt)]
    path.unlink()
    assert prepare_unlabelled(folder, data, tmp_path / "run") == first
    assert len(first.added_to(data.full_train())) == len(data.full_train()) + 5


def loop(folder: Path) -> str:
    (folder / "a" / "up").symlink_to("..")
    return "leads back to a folder"


def nowhere(folder: Path) -> str:
    (folder / "gone.png").symlink_to("nothing.png")
    return "leads nowhere"


def postscript(folder: Path) -> str:
    (folder / "9.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    return "9.png"


def cut(folder: Path) -> str:
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[: len(content) // 2])
    return "b.png"


def empty(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "there is no image in it"


def a_file(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.write_text("x")
    return "there is no such folder"


@pytest.mark.parametrize("spoil", [loop, nowhere, postscript, cut, empty, a_file])
def test_what_strangers_put_there_is_one_message(
    data: ImageData, folder: Path, tmp_path: Path, spoil: Callable[[Path], str]
) -> None:
    why = spoil(folder)
    with pytest.raises(ValueError, match=why):
        prepare_unlabelled(folder, data, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.npy"))


def test_a_pipe_is_no_image(data: ImageData, folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "9.png")
    assert prepare_unlabelled(folder, data, tmp_path / "run").count == 5


def test_they_are_not_added_to_streamed_images_nor_without_end(
    data: ImageData, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="too many for that and streamed"):
        prepare_unlabelled(folder, data.streamed(), tmp_path / "run")
    monkeypatch.setattr("supernet.data.unlabelled.MEMORY_LIMIT_BYTES", 5 * 8 * 8 * 3 - 1)
    with pytest.raises(ValueError, match="Take a part of them"):
        prepare_unlabelled(folder, data, tmp_path / "run")
