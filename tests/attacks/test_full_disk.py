"""A disk that fills up while images are decoded or a report is written; arrays that are damaged."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import supernet.data.arrays as arrays
from search.report.page import front_png
from supernet.data import ImageData, mend_data, open_data, prepare_data
from supernet.data.image_data import DATA_FILE, DIGESTS_FILE
from supernet.data.streaming import listed
from tests.supernet.data.test_sources import SIZE, write_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", train=6, val=2)


@pytest.fixture
def data(source: Path, tmp_path: Path) -> ImageData:
    return prepare(source, tmp_path)


def prepare(source: Path, tmp_path: Path, limit: int = 2**30) -> ImageData:
    return prepare_data(
        str(source), img_size=SIZE, folder=tmp_path / "data", memory_limit_bytes=limit
    )


@pytest.fixture(autouse=True)
def forget() -> None:
    """Let every test be a process of its own as far as caches go."""
    listed.cache_clear()
    arrays._read_checksum.cache_clear()


# A full disk.


def test_a_file_that_does_not_fit_is_the_usual_message_and_no_signal(
    source: Path, tmp_path: Path
) -> None:
    # The limit of a process's files stands for the disk: the kernel refuses what goes beyond.
    script = f"""
        import resource, sys
        from pathlib import Path
        from supernet.data import prepare_data
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            prepare_data(sys.argv[1], img_size={SIZE}, folder=Path(sys.argv[2]))
        except ValueError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), source, tmp_path / "run" / "data"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "18 decoded images of 9 x 9 take" in done.stdout
    assert "Make room" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["posix_fallocate", "fsync"])
def test_a_disk_that_is_full_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ValueError, match=r"decoded images .* Make room"):
        prepare(source, tmp_path)
    assert not (tmp_path / "data").exists()


def test_every_byte_is_reserved_before_the_first_image_is_decoded(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks: list[int] = []

    def look(image: object, size: int) -> object:
        (partial,) = (tmp_path / "data").glob("*_images.npy.partial")
        blocks.append(partial.stat().st_blocks * 512)
        return square(image, size)  # type: ignore[arg-type]

    square = arrays.square
    monkeypatch.setattr(arrays, "square", look)
    prepare(source, tmp_path)
    assert blocks[0] >= 18 * SIZE * SIZE * 3


def test_a_file_system_that_cannot_reserve_is_written_to(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare(source, tmp_path / "other").fingerprint

    def unknown(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    assert prepare(source, tmp_path).fingerprint == expected


def test_a_picture_that_does_not_fit_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "front.png"
    path.write_bytes(b"the older one")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        front_png(path, [])
    assert path.read_bytes() == b"the older one"


# A power cut and a kill.


def test_what_is_renamed_is_on_the_disk_and_the_description_comes_last(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def noted_replace(old: Path, new: Path) -> None:
        events.append(("rename", Path(old).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    prepare(source, tmp_path)
    renamed = [name for what, name in events if what == "rename"]
    assert renamed[-1] == f"{DATA_FILE}.partial"
    for name in renamed:
        place = events.index(("rename", name))
        assert ("sync", name) in events[:place]
        assert events[place + 1] == ("sync", "data")


KILLED = """
import os, signal, sys
from pathlib import Path
from supernet.data import prepare_data
import searchspace.durable as durable
replace, left = durable.replace, int(sys.argv[3])
def killed(partial, final):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(partial, final)
durable.replace = killed
prepare_data(sys.argv[1], img_size=9, folder=Path(sys.argv[2]))
"""


@pytest.mark.parametrize("renames", range(6))
def test_a_preparation_that_is_killed_between_two_files_is_taken_up(
    source: Path, tmp_path: Path, renames: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, tmp_path / "data", str(renames)],
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    data = prepare(source, tmp_path)
    assert len(data.full_train()) == 18
    assert not list(data.folder.glob("*.partial"))
    assert open_data(data.folder) == data


# Flipped bytes.


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["train_search_images.npy", "train_search_labels.npy"])
def test_flipped_bytes_are_not_used_and_the_same_command_mends_them(
    data: ImageData, source: Path, tmp_path: Path, name: str, seed: int
) -> None:
    path = data.folder / name
    before = path.read_bytes()
    flip(path, int(np.random.default_rng(seed).integers(len(before))))
    with pytest.raises(ValueError, match=r"train_search_images\.npy are damaged.*same command"):
        data.full_train()
    assert prepare(source, tmp_path) == data
    assert path.read_bytes() == before
    assert len(data.full_train()) == 18


def test_a_flipped_byte_is_seen_in_arrays_that_were_used_before(data: ImageData) -> None:
    data.full_train()
    flip(data.folder / "train_search_images.npy", 300)
    with pytest.raises(ValueError, match="are damaged"):
        data.full_train()


def test_flipped_bytes_of_test_images_are_decoded_anew(data: ImageData) -> None:
    before = np.array(data.test_split().images)
    flip(data.folder / "test_images.npy", 300)
    np.testing.assert_array_equal(data.test_split().images, before)


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize("bit", range(8))
def test_no_flipped_bit_of_an_arrays_head_is_more_than_a_message(
    data: ImageData, part: str, bit: int
) -> None:
    # numpy reads the head as Python: of damaged brackets, numbers and names everything may come.
    path = data.folder / f"train_search_{part}.npy"
    images, labels = pixels_and_classes(data)
    before = path.read_bytes()
    for place in range(before.index(b"\n") + 1):
        content = bytearray(before)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        try:
            found = data.full_train()
        except ValueError as error:
            assert "are damaged" in str(error)  # noqa: PT017
        else:
            # What says the same in other signs, as "<u1" for "|u1".
            np.testing.assert_array_equal(found.images, images)
            np.testing.assert_array_equal(found.labels, labels)


def pixels_and_classes(data: ImageData) -> tuple[np.ndarray, np.ndarray]:
    """Read all that there is of training images."""
    found = data.full_train()
    return np.array(found.images), np.array(found.labels)


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_arrays_that_are_cut_or_gone_are_decoded_anew(data: ImageData, damage: str) -> None:
    path = data.folder / "train_search_images.npy"
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, 400 if damage == "cut" else 0)
    assert mend_data(data.folder) == data
    assert len(data.full_train()) == 18


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_of_the_description_is_a_message(data: ImageData, seed: int) -> None:
    path = data.folder / DATA_FILE
    content = path.read_bytes()
    flip(path, int(np.random.default_rng(seed).integers(len(content))))
    try:
        found = open_data(data.folder)
    except ValueError as error:
        assert "does not hold prepared data" in str(error)  # noqa: PT017
    else:
        # White space was changed.
        assert found == data


def test_flipped_digests_are_a_message(data: ImageData) -> None:
    flip(data.folder / DIGESTS_FILE, -3)
    with pytest.raises(ValueError, match=r"digests\.npy is damaged"):
        data.test_split()


# A source that changed under the same names.


@pytest.mark.parametrize("limit", [1, 2**30])
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_test_image_that_is_another_one_is_noticed(
    source: Path, tmp_path: Path, limit: int, kind: str
) -> None:
    import tarfile

    def packed() -> Path:
        if kind == "folder":
            return source
        with tarfile.open(tmp_path / "pets.tar", "w") as tar:
            tar.add(source, arcname=".")
        return tmp_path / "pets.tar"

    data = prepare(packed(), tmp_path, limit)
    (source / "val" / "ant" / "1.png").write_bytes((source / "val" / "bee" / "0.png").read_bytes())
    packed()
    listed.cache_clear()
    with pytest.raises(ValueError, match=r"must not change during a run.*val/ant/1\.png"):
        data.test_split().images.read(np.arange(6))  # type: ignore[union-attr]


def test_a_streamed_training_image_that_is_another_one_is_noticed(
    source: Path, tmp_path: Path
) -> None:
    data = prepare(source, tmp_path, 1)
    (source / "train" / "ant" / "1.png").write_bytes(
        (source / "train" / "bee" / "0.png").read_bytes()
    )
    with pytest.raises(ValueError, match=r"train/ant/1\.png is not what it was"):
        data.full_train().images.read(np.arange(18))  # type: ignore[union-attr]


def test_arrays_are_not_decoded_anew_from_other_images(
    data: ImageData, source: Path, tmp_path: Path
) -> None:
    (source / "train" / "ant" / "1.png").write_bytes(
        (source / "train" / "bee" / "0.png").read_bytes()
    )
    (data.folder / "train_search_images.npy").unlink()
    with pytest.raises(ValueError, match="must not change during a run"):
        prepare(source, tmp_path)
