"""Laws of image data: what is decoded, how it is split, what is refused, and what a kill leaves.

Test images are of one colour that says which image it is, so that rows can be told apart. Sources
with their errors are in `test_data_sources.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import supernet.data.image_data as image_data_module
from supernet.data import ImageData, Split, StreamedImages, open_data, prepare_data
from supernet.data.streaming import listed

CLASSES = ("ant", "bee", "cow")
NUM_TRAIN = 10
NUM_TEST = 3
SIZE = 9
ROOT = Path(__file__).parents[3]
CIFAR = ROOT.parent / "shared" / "data" / "cifar10_25k.tar.xz"


def write_image(path: Path, value: int, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 255 - value, 7)).save(path)


def write_folder(root: Path, pools: dict[str, int]) -> Path:
    """Write an ImageFolder of lossless images, each of a colour of its own."""
    value = 0
    for pool, per_class in pools.items():
        for class_name in CLASSES:
            for index in range(per_class):
                write_image(root / pool / class_name / f"{index}.png", value)
                value += 1
    return root


def colours(split: Split) -> list[int]:
    """Return the number of each image, after checking that the whole image has its colour."""
    values: npt.NDArray[np.uint8] = split.images[:, 0, 0, 0]
    expected = np.stack([values, 255 - values, np.full_like(values, 7)], axis=-1)
    np.testing.assert_array_equal(
        split.images, np.broadcast_to(expected[:, None, None], split.images.shape)
    )
    return [int(value) for value in values]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", {"train": NUM_TRAIN, "test": NUM_TEST})


@pytest.fixture
def data(source: Path, tmp_path: Path) -> ImageData:
    return prepare_data(str(source), img_size=SIZE, folder=tmp_path / "run" / "data")


def test_every_image_is_in_one_split_with_its_own_label(data: ImageData) -> None:
    found: dict[int, int] = {}
    for split in (data.split("train"), data.split("search"), data.test_split()):
        found.update(zip(colours(split), split.labels.tolist(), strict=True))
        assert split.labels.dtype == np.int64
    expected = {
        **{value: value // NUM_TRAIN for value in range(3 * NUM_TRAIN)},
        **{3 * NUM_TRAIN + value: value // NUM_TEST for value in range(3 * NUM_TEST)},
    }
    assert found == expected
    assert sum(data.sizes.values()) == len(expected)


def test_a_fifth_of_each_class_of_a_small_train_set_is_for_search(data: ImageData) -> None:
    assert Counter(data.split("search").labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert data.sizes == {"train": 24, "search": 6, "test": 9}


def test_val_is_the_search_split_where_there_is_a_test_split(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "pets", {"train": 2, "validation": 1, "test": 3})
    data = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    assert sorted(colours(data.split("train"))) == [0, 1, 2, 3, 4, 5]
    assert sorted(colours(data.split("search"))) == [6, 7, 8]
    assert sorted(colours(data.test_split())) == list(range(9, 18))


def test_val_alone_is_the_test_split(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "pets", {"train": 5, "val": 1})
    data = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    assert sorted(colours(data.test_split())) == [15, 16, 17]
    assert len(data.split("search")) == 3


def test_full_train_is_train_and_then_search(data: ImageData) -> None:
    full = data.full_train()
    both = (data.split("train"), data.split("search"))
    np.testing.assert_array_equal(full.images, np.concatenate([split.images for split in both]))
    np.testing.assert_array_equal(full.labels, np.concatenate([split.labels for split in both]))


def test_images_are_mapped_and_cannot_be_written(data: ImageData) -> None:
    images = data.split("train").images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_opened_and_unpickled_data_are_what_was_prepared(data: ImageData) -> None:
    assert open_data(data.folder) == data
    assert pickle.loads(pickle.dumps(data)) == data
    assert len(pickle.dumps(data)) < 2_000
    assert data.class_names == CLASSES
    assert data.num_classes == 3


def test_statistics_are_those_of_the_train_split(data: ImageData) -> None:
    pixels = data.split("train").images.reshape(-1, 3) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(data.std[:2], pixels.std(axis=0)[:2], rtol=1e-12)
    # The third channel never changes.
    assert data.std[2] == 1 / 255


def test_preparing_again_decodes_nothing(
    data: ImageData, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_data_module, "open_source", None)
    assert prepare_data(str(source), img_size=SIZE, folder=data.folder) == data


def test_preparing_elsewhere_gives_the_same_arrays(
    data: ImageData, source: Path, tmp_path: Path
) -> None:
    other = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "other")
    assert other.fingerprint == data.fingerprint
    np.testing.assert_array_equal(other.test_split().images, data.test_split().images)


def test_the_test_split_is_decoded_when_it_is_first_asked_for(data: ImageData) -> None:
    assert not list(data.folder.glob("test*"))
    assert len(data.test_split()) == data.sizes["test"] == 3 * NUM_TEST
    assert len(list(data.folder.glob("test*"))) == 3


def test_a_damaged_test_image_stops_only_who_asks_for_the_test_split(
    source: Path, tmp_path: Path
) -> None:
    damaged = source / "test" / "bee" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    data = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    with pytest.raises(ValueError, match=r"test/bee/1\.png"):
        data.test_split()
    assert not list(data.folder.glob("test*"))


def test_a_search_cannot_open_the_test_split(data: ImageData) -> None:
    with pytest.raises(ValueError, match="for retraining"):
        data.split("test")


def test_data_that_changed_since_gives_no_test_split(data: ImageData, source: Path) -> None:
    write_image(source / "test" / "cow" / "new.png", 1)
    with pytest.raises(ValueError, match="must not change during a run"):
        data.test_split()


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("what", ["train/cow/new.png", "test/cow/0.png"])
def test_at_another_size_they_are_the_same_images_or_refused(
    source: Path, tmp_path: Path, what: str, *, streams: bool
) -> None:
    """Other images have other splits, and a network would be tested on what others learned."""
    limit = 1 if streams else 2**30
    data = prepare_data(
        str(source), img_size=SIZE, folder=tmp_path / "data", memory_limit_bytes=limit
    )
    path = source / what
    before = path.read_bytes() if path.exists() else None
    write_image(path, 200)
    with pytest.raises(ValueError, match=r"must not change during a run.*Restore them"):
        data.at_size(2 * SIZE, tmp_path / "larger")
    assert not (tmp_path / "larger").exists()
    path.unlink()
    if before is not None:
        path.write_bytes(before)
    larger = data.at_size(2 * SIZE, tmp_path / "larger")
    assert (larger.img_size, larger.listing) == (2 * SIZE, data.listing)
    assert data.at_size(2 * SIZE, tmp_path / "larger") == larger


def test_digits_at_another_size_are_the_digits(tmp_path: Path) -> None:
    data = prepare_data("digits", img_size=8, folder=tmp_path / "data")
    larger = data.at_size(16, tmp_path / "larger")
    np.testing.assert_array_equal(larger.test_split().labels, data.test_split().labels)
    other = prepare_data("digits", img_size=8, folder=tmp_path / "other")
    with pytest.raises(ValueError, match="holds other images than"):
        replace(other, listing="x").at_size(16, tmp_path / "larger")


def test_digits_are_split_60_20_20_and_stratified(tmp_path: Path) -> None:
    data = prepare_data("digits", img_size=8, folder=tmp_path)
    assert data.sizes == {"train": 1079, "search": 359, "test": 359}
    assert not data.allows_flip
    totals = np.bincount(load_digits().target)
    for split, share in ((data.split("search"), 0.2), (data.test_split(), 0.2)):
        assert np.abs(np.bincount(split.labels) - share * totals).max() <= 1


def test_digits_of_8_pixels_are_scikit_learns_with_their_labels(tmp_path: Path) -> None:
    data = prepare_data("digits", img_size=8, folder=tmp_path)
    splits = (data.full_train(), data.test_split())
    images = np.concatenate([split.images for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    ours = Counter(
        (image.tobytes(), label)
        for image, label in zip(images[..., 0] // 15, labels.tolist(), strict=True)
    )
    digits = load_digits()
    # 255 / 16 is 15 and a bit: n sixteenths round to 15 n up to 15 n + n / 16.
    theirs = Counter(
        (np.uint8(np.minimum(image * 255 / 16 // 15, 17)).tobytes(), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    )
    assert ours == theirs


def test_images_of_other_sizes_are_cropped_to_a_square_and_scaled(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "pets", {"train": 3, "test": 2})
    wide = Image.new("RGB", (60, 20), "red")
    # The central square, and the few pixels beside it that bicubic scaling also looks at.
    wide.paste(Image.new("RGB", (28, 20), "lime"), (16, 0))
    wide.save(source / "train" / "ant" / "wide.png")
    data = prepare_data(str(source), img_size=14, folder=tmp_path / "data")
    assert data.stored_size == 16  # 14 / 0.875
    full = data.full_train()
    assert full.images.shape == (10, 16, 16, 3)
    is_lime = (full.images == (0, 255, 0)).all(axis=(1, 2, 3))
    assert is_lime.sum() == 1
    assert full.labels[is_lime].tolist() == [0]
    assert data.test_split().images.shape == (6, 16, 16, 3)


def test_one_image_of_another_size_scales_all(source: Path, tmp_path: Path) -> None:
    write_image(source / "train" / "cow" / "9.png", 29, size=(SIZE + 1, SIZE))
    data = prepare_data(str(source), img_size=SIZE, folder=tmp_path / "data")
    assert data.stored_size == 10  # round(9 / 0.875)
    assert sorted(colours(data.full_train())) == list(range(30))


def test_progress_ends_at_the_number_of_images(source: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare_data(
        str(source),
        img_size=SIZE,
        folder=tmp_path / "data",
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (30, 30)


KILLED_HALFWAY = """
import os, signal, sys
from pathlib import Path
from supernet.data import prepare_data
import supernet.data.arrays as arrays
square, count = arrays.square, 0
def killed(image, size):
    global count
    count += 1
    if count == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(image, size)
arrays.square = killed
prepare_data(sys.argv[1], img_size=9, folder=Path(sys.argv[2]))
"""


def test_a_killed_preparation_is_done_again(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_HALFWAY, str(source), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert list(folder.glob("*.partial"))
    with pytest.raises(ValueError, match="does not hold prepared data"):
        open_data(folder)
    data = prepare_data(str(source), img_size=SIZE, folder=folder)
    assert sorted(colours(data.full_train())) == list(range(30))
    assert not list(folder.glob("*.partial"))


def test_a_failed_preparation_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    (source / "train" / "ant" / "4.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="Cannot decode"):
        prepare_data(str(source), img_size=SIZE, folder=tmp_path / "run" / "data")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays_when_preparation_fails(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="at least 8 pixels"):
        prepare_data("digits", img_size=7, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_images_above_the_memory_limit_are_streamed_and_are_the_same(
    source: Path, data: ImageData, tmp_path: Path
) -> None:
    folder = tmp_path / "streamed"
    streamed = prepare_data(str(source), img_size=SIZE, folder=folder, memory_limit_bytes=1)
    assert streamed == open_data(folder)
    assert streamed.is_streamed
    assert not list(folder.glob("*_images.npy*"))
    assert streamed.sizes == data.sizes
    for one, other in (
        (streamed.full_train(), data.full_train()),
        (streamed.split("search"), data.split("search")),
        (streamed.test_split(), data.test_split()),
    ):
        assert isinstance(one.images, StreamedImages)
        np.testing.assert_array_equal(one.labels, other.labels)
        rows = np.arange(len(other))[::-1]
        pixels = np.stack([np.asarray(image) for image in one.images.read(rows)])
        np.testing.assert_array_equal(pixels, other.images[rows])


def test_a_source_that_changed_is_not_streamed(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "streamed"
    data = prepare_data(str(source), img_size=SIZE, folder=folder, memory_limit_bytes=1)
    (source / "train" / "ant" / "0.png").unlink()
    listed.cache_clear()
    with pytest.raises(ValueError, match="must not change during a run"):
        data.full_train()


def test_too_small_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 8 pixels, got 7"):
        prepare_data("digits", img_size=7, folder=tmp_path / "data")


def test_a_folder_of_other_data_is_not_overwritten(data: ImageData) -> None:
    with pytest.raises(ValueError, match=r"at 9 pixels, not digits at 8 pixels.*another folder"):
        prepare_data("digits", img_size=8, folder=data.folder)


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"name": "x"})])
def test_a_folder_without_prepared_data_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match="does not hold prepared data"):
        open_data(tmp_path)


@pytest.mark.slow
def test_the_cifar_subset_is_read_from_its_tar(tmp_path: Path) -> None:
    if not CIFAR.exists():
        pytest.skip("The CIFAR-10 subset (shared/data/cifar10_25k.tar.xz) is not on this machine.")
    data = prepare_data(str(CIFAR), img_size=32, folder=tmp_path)
    assert data.sizes == {"train": 18_000, "search": 2_000, "test": 5_000}
    assert data.stored_size == 32
    assert Counter(data.split("search").labels.tolist()) == dict.fromkeys(range(10), 200)
    # The statistics of CIFAR-10's whole train set that everybody uses.
    np.testing.assert_allclose(data.mean, (0.4914, 0.4822, 0.4465), atol=0.003)
    np.testing.assert_allclose(data.std, (0.2470, 0.2435, 0.2616), atol=0.003)
