"""Images without classes: all of a folder, once, none of the test split, and nothing hostile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from supernet.data import (
    ImageData,
    check_unlabelled_files,
    prepare_data,
    prepare_unlabelled,
    with_unlabelled,
)
from supernet.data.arrays import JoinedImages
from supernet.data.streaming import JoinedStreams, listed
from supernet.training import train_batches
from tests.tiny_data import PLAIN, changed, noise, write_images


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


def test_they_are_not_stored_without_end(
    data: ImageData, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supernet.data.unlabelled.MEMORY_LIMIT_BYTES", 5 * 8 * 8 * 3 - 1)
    with pytest.raises(ValueError, match="Take a part of them"):
        prepare_unlabelled(folder, data, tmp_path / "run")


def test_beside_streamed_images_they_are_streamed(
    data: ImageData, folder: Path, tmp_path: Path
) -> None:
    shutil.copy(next((tmp_path / "images" / "test").rglob("*.png")), folder / "copy.png")
    found = prepare_unlabelled(folder, data.streamed(), tmp_path / "run")
    assert (found.count, found.left_out) == (5, 1)
    assert not list((tmp_path / "run").rglob("*_images.npy"))

    labelled = data.streamed().full_train()
    joined = found.added_to(labelled)
    number = len(labelled)
    np.testing.assert_array_equal(joined.labels, [*labelled.labels, *[-1] * 5])
    assert isinstance(joined.images, JoinedStreams)
    files = sorted(path for path in folder.rglob("*.*") if path.suffix != ".txt")
    expected = {pixels_of(path).tobytes() for path in files if path.name != "copy.png"}
    read = joined.images.read(np.arange(number, number + 5))
    assert {np.asarray(image).tobytes() for image in read} == expected
    rows = np.array([number + 4, 0, number, number - 1, 0])
    alone = [*labelled.images.read(np.array([0, number - 1])), *(read[4], read[0])]
    for image, place in zip(joined.images.read(rows), (2, 0, 3, 1, 0), strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(alone[place]))
    few = joined.first((number + 2) / (number + 5))
    assert len(few.images) == len(few) == number + 2


@pytest.mark.parametrize("streams", [False, True])
def test_a_share_of_them_is_spread_over_all(
    data: ImageData, folder: Path, tmp_path: Path, streams: bool
) -> None:
    images = data.streamed() if streams else data
    found = prepare_unlabelled(folder, images, tmp_path / "run")
    labelled = images.full_train()
    whole = found.added_to(labelled)
    part = with_unlabelled(labelled, found.folder, share=0.5)
    number = len(labelled)
    assert (part.labels < 0).sum() == len(part.images) - number == 3  # of five every second
    for mine, theirs in zip(range(number, number + 3), (0, 2, 4), strict=True):
        one = part.images.read(np.array([mine]))
        two = whole.images.read(np.array([number + theirs]))
        np.testing.assert_array_equal(np.asarray(one[0]), np.asarray(two[0]))


def test_streamed_ones_that_change_are_refused(
    data: ImageData, folder: Path, tmp_path: Path
) -> None:
    found = prepare_unlabelled(folder, data.streamed(), tmp_path / "run")
    labelled = data.streamed().full_train()
    number = len(labelled)
    first = folder / "a" / "c.png"
    before = first.read_bytes()
    shutil.copy(folder / "b.png", first)
    with pytest.raises(ValueError, match=r"the image .*c\.png is not what it was"):
        found.added_to(labelled).images.read(np.arange(number, number + 5))
    first.write_bytes(before)

    shutil.copy(folder / "b.png", folder / "z.png")
    listed.cache_clear()
    with pytest.raises(ValueError, match="must not change during a run, and there are others now"):
        check_unlabelled_files(found.folder)
    (folder / "z.png").unlink()
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"not there any more\. Put it back"):
        check_unlabelled_files(found.folder)


@pytest.mark.parametrize("name", ["stream.json", "rows.npy"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped"])
def test_damaged_notes_of_streamed_ones_are_one_message(
    data: ImageData, folder: Path, tmp_path: Path, name: str, damage: str
) -> None:
    found = prepare_unlabelled(folder, data.streamed(), tmp_path / "run")
    file = found.folder / name
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    wrong = {"cut": content[:-20], "empty": b"", "flipped": bytes(content)}
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(wrong[damage])
    with pytest.raises(ValueError, match="damaged or gone"):
        check_unlabelled_files(found.folder)


def test_streamed_or_stored_they_come_in_the_same_batches(
    data: ImageData, folder: Path, tmp_path: Path
) -> None:
    recipe = changed("quick", **PLAIN, batch_size=8)
    both = []
    for images in (data, data.streamed()):
        split = prepare_unlabelled(folder, images, tmp_path / "run").added_to(images.full_train())
        both.append(list(train_batches(split, images, recipe, epoch=1, seed=3)))
    stored, streamed = both
    assert len(stored) == len(streamed) > 1
    for (_, mine), (_, theirs) in zip(stored, streamed, strict=True):
        assert mine.tolist() == theirs.tolist()
    assert any(-1 in labels.tolist() for _, labels in stored)
