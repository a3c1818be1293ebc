"""Images that are easily left out, taken twice, or seen the wrong way round."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from supernet.data import ImageData, prepare_data
from supernet.data.catalog import open_source
from supernet.data.source import Source
from tests.supernet.data.test_sources import SIZE, write_folder

COUNTS = {"train": 6, "val": 2}
NUM_IMAGES = 3 * (6 + 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pets", **COUNTS)


def as_tar(folder: Path) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname=".")
    return path


def as_folder(folder: Path) -> Path:
    return folder


def listed(path: Path) -> Source:
    return open_source(str(path), img_size=SIZE)


def left_out(source: Source) -> int:
    return sum(count for count, _ in source.skipped.values())


def image(folder: Path, name: str = "0.png") -> Path:
    return folder / "train" / "ant" / name


# Every real file once.


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "/", "."])
def test_a_link_to_a_folder_above_is_a_message(folder: Path, target: str) -> None:
    image(folder, "up").symlink_to(target, target_is_directory=True)
    with pytest.raises(ValueError, match=r"link train/ant/up in .* leads back.*Remove"):
        listed(folder)


def test_folders_that_lead_to_each_other_are_a_message(folder: Path, tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "next").symlink_to(tmp_path / other)
    image(folder, "in").symlink_to(tmp_path / "one")
    with pytest.raises(ValueError, match=r"train/ant/in/next/next in .* leads back"):
        listed(folder)


def test_many_ways_to_one_folder_are_gone_once(folder: Path, tmp_path: Path) -> None:
    # 2^30 ways lead to the last one.
    for depth in range(30):
        (tmp_path / f"d{depth}").mkdir()
        for side in ("left", "right"):
            (tmp_path / f"d{depth}" / side).symlink_to(tmp_path / f"d{depth + 1}")
    (tmp_path / "d30").mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "d30" / "last.png")
    image(folder, "in").symlink_to(tmp_path / "d0")
    source = listed(folder)
    assert len(source.names) == NUM_IMAGES + 1
    assert source.skipped["the same file again"][0] == 30


@pytest.mark.parametrize("pack", [as_folder, as_tar])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_second_name_of_an_image_is_left_out_and_said(
    folder: Path, link: Callable[[Path, Path], None], pack: Callable[[Path], Path]
) -> None:
    link(image(folder), image(folder, "a copy.png"))
    if pack is as_tar and link is os.symlink:
        image(folder, "a copy.png").unlink()
        image(folder, "a copy.png").symlink_to("0.png")
    source = listed(pack(folder))
    assert len(source.names) == NUM_IMAGES
    assert source.skipped["the same file again"][0] == 1


@pytest.mark.parametrize("pack", [as_folder, as_tar])
@pytest.mark.parametrize("other", ["train/bee/x.png", "val/ant/x.png"])
def test_a_file_in_two_classes_or_splits_is_refused(
    folder: Path, other: str, pack: Callable[[Path], Path]
) -> None:
    os.link(image(folder), folder / other)
    with pytest.raises(ValueError, match=r"one class of one split.*train/ant/0\.png.*are the same"):
        listed(pack(folder))


def test_a_split_that_is_a_link_to_another_is_refused(folder: Path) -> None:
    (folder / "test").symlink_to("val")
    with pytest.raises(ValueError, match=r"test and val are the same|val and test are the same"):
        listed(folder)


def test_a_class_that_is_a_link_to_another_is_refused(folder: Path) -> None:
    for split in COUNTS:
        (folder / split / "dog").symlink_to("cow")
    with pytest.raises(ValueError, match=r"train/cow and train/dog are the same"):
        listed(folder)


def test_a_folder_of_links_to_images_elsewhere_is_read(folder: Path, tmp_path: Path) -> None:
    subset = tmp_path / "subset"
    for path in folder.glob("*/*/*.png"):
        (subset / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (subset / path.relative_to(folder)).symlink_to(path)
    assert listed(subset).names == listed(folder).names
    assert listed(subset).skipped == {}


@pytest.mark.parametrize("target", ["nowhere.png", "broken.png"])
def test_a_link_that_leads_nowhere_is_refused_by_name(folder: Path, target: str) -> None:
    image(folder, "broken.png").symlink_to(target)
    with pytest.raises(ValueError, match=r"ant/broken\.png leads nowhere"):
        listed(folder)


def test_a_link_in_a_tar_that_leads_in_a_circle_is_refused(folder: Path) -> None:
    image(folder, "broken.png").symlink_to("broken.png")
    with pytest.raises(ValueError, match=r"train/ant/broken\.png in .* leads nowhere"):
        listed(as_tar(folder))


# Regular files only.


@pytest.mark.parametrize("pack", [as_folder, as_tar])
def test_pipes_and_devices_are_left_out_without_being_opened(
    folder: Path, pack: Callable[[Path], Path]
) -> None:
    os.mkfifo(image(folder, "9.png"))
    os.mkfifo(image(folder, "no suffix"))
    source = listed(pack(folder))
    assert len(source.names) == NUM_IMAGES
    assert source.skipped["pipes, sockets, devices"] == (2, "train/ant/9.png")


def test_sockets_and_links_to_devices_are_left_out(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(image(folder).parent)  # names of sockets are short
        try:
            server.bind("8.png")
        finally:
            os.chdir(here)
        image(folder, "9.png").symlink_to("/dev/zero")
        assert listed(folder).skipped["pipes, sockets, devices"][0] == 2


def test_a_pipe_that_takes_the_place_of_an_image_is_not_waited_for(folder: Path) -> None:
    source = listed(folder)
    for path in folder.glob("*/*/*.png"):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(ValueError, match="Only regular files are read"):
        next(source.read(np.array([0])))


def test_data_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pets.tar")
    with pytest.raises(ValueError, match="neither a folder nor a regular file"):
        prepare_data(str(tmp_path / "pets.tar"), img_size=SIZE, folder=tmp_path / "data")


@pytest.mark.parametrize("text", ["a\0b", "x" * 5000])
def test_a_path_that_cannot_be_one_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no data"):
        prepare_data(text, img_size=SIZE, folder=tmp_path / "data")


# Images by what they hold.


@pytest.mark.parametrize("pack", [as_folder, as_tar])
@pytest.mark.parametrize(
    "name",
    [
        *("7.avif", "7.jfif", "7.jpe", "7.JPG", "7.Tiff", "7.webp", "7.apng", "7"),
        *("n0144_7", "7.2021", "7.image", "7.pbm", "7.bin"),
    ],
)
def test_an_image_counts_whatever_its_suffix(
    folder: Path, name: str, pack: Callable[[Path], Path]
) -> None:
    kind = {"avif": "AVIF", "jfif": "JPEG", "JPG": "JPEG", "jpe": "JPEG", "webp": "WEBP"}
    Image.new("RGB", (SIZE, SIZE), "red").save(
        image(folder, name), format=kind.get(name.partition(".")[2], "PNG")
    )
    source = listed(pack(folder))
    assert f"train/ant/{name}" in source.names
    assert left_out(source) == 0
    (position,) = np.flatnonzero(np.array(source.names) == f"train/ant/{name}")
    ((_, pixels),) = source.read(np.array([position]))
    assert pixels.size == (SIZE, SIZE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_listed_format_is_known_without_a_suffix(folder: Path, kind: str) -> None:
    Image.new("RGB", (SIZE, SIZE), "red").save(image(folder, "x"), format=kind)
    assert "train/ant/x" in listed(folder).names


@pytest.mark.parametrize("pack", [as_folder, as_tar])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("@eaDir/0.png/SYNOPHOTO_THUMB_XL.jpg", "thumbnails and other folders of file servers"),
        ("@__thumb/0.png", "thumbnails and other folders of file servers"),
        (".@__thumb/0.png", "hidden"),
        (".thumbnails/0.png", "hidden"),
        ("__MACOSX/0.png", "thumbnails and other folders of file servers"),
        ("#recycle/0.png", "thumbnails and other folders of file servers"),
        ("$RECYCLE.BIN/0.png", "thumbnails and other folders of file servers"),
        ("Thumbs.db", "thumbnails and other folders of file servers"),
        ("._0.png", "hidden"),
        (".DS_Store", "hidden"),
        ("0.png.part", "backups and unfinished downloads"),
        ("0.png~", "backups and unfinished downloads"),
        ("notes.txt", "no images"),
        ("README", "no images"),
        ("0.heic", "formats that are not read"),
    ],
)
def test_what_is_no_image_of_the_user_is_left_out_and_said(
    folder: Path, name: str, reason: str, pack: Callable[[Path], Path]
) -> None:
    path = image(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_text = path.suffix in (".txt", ".heic", ".db", "")
    path.write_bytes(b"words" if is_text else image(folder).read_bytes())
    source = listed(pack(folder))
    assert len(source.names) == NUM_IMAGES
    assert source.skipped[reason][0] == 1
    assert left_out(source) == 1


@pytest.mark.parametrize("pack", [as_folder, as_tar])
def test_thumbnail_folders_are_no_classes(folder: Path, pack: Callable[[Path], Path]) -> None:
    for split in COUNTS:
        (folder / split / "@eaDir").mkdir()
        (folder / split / "@eaDir" / "0.png").write_bytes(image(folder).read_bytes())
    (folder / "train" / "loose.png").write_bytes(image(folder).read_bytes())
    source = listed(pack(folder))
    assert source.class_names == ("ant", "bee", "cow")
    assert source.skipped["outside of the class folders"] == (1, "train/loose.png")


# The listing that is printed.


def test_the_summary_says_classes_images_and_what_was_left_out(
    folder: Path, tmp_path: Path
) -> None:
    image(folder, "notes.txt").write_text("words")
    data = prepare_data(str(folder), img_size=SIZE, folder=tmp_path / "data")
    summary = data.summary()
    assert summary is not None
    # A fifth of each class of train is held out for search: 6 -> 5 + 1; search takes 3 of 18.
    assert summary.lines() == [
        "train: 15 images of 3 classes (5 ant, 5 bee, 5 cow)",
        "search: 3 images of 3 classes (1 ant, 1 bee, 1 cow)",
        "test: 6 images of 3 classes (2 ant, 2 bee, 2 cow)",
        "left out: 1 no images (e.g. train/ant/notes.txt)",
    ]


# The right way round.


def marked(orientation: int, path: Path, kind: str) -> None:
    """Save an image that is upright when it is turned as its EXIF says: red above, blue below."""
    upright = Image.new("RGB", (16, 16), "red")
    upright.paste("blue", (0, 8, 16, 16))
    upright.paste("lime", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What a camera stores: the inverse of what the viewer does.
    stored = {
        1: lambda i: i,
        2: lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda i: i.transpose(Image.Transpose.ROTATE_180),
        4: lambda i: i.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda i: i.transpose(Image.Transpose.TRANSPOSE),
        6: lambda i: i.transpose(Image.Transpose.ROTATE_90),
        7: lambda i: i.transpose(Image.Transpose.TRANSVERSE),
        8: lambda i: i.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    stored.save(path, format=kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_says(folder: Path, orientation: int, kind: str) -> None:
    marked(orientation, image(folder, "turned"), kind)
    for path in (folder, as_tar(folder)):
        source = listed(path)
        (position,) = np.flatnonzero(np.array(source.names) == "train/ant/turned")
        ((_, found),) = source.read(np.array([position]))
        corners = [found.getpixel(place) for place in ((2, 2), (13, 2), (2, 13), (13, 13))]
        for corner, colour in zip(
            corners, [(0, 255, 0), (255, 0, 0), (0, 0, 255), (0, 0, 255)], strict=True
        ):
            assert np.abs(np.subtract(corner, colour)).max() < 40, (orientation, corners)


@pytest.mark.parametrize("limit", [1, 2**30])
def test_stored_and_streamed_images_are_turned(folder: Path, tmp_path: Path, limit: int) -> None:
    wide = Image.new("RGB", (2 * SIZE, SIZE), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(image(folder, "wide.png"), exif=exif)
    data = prepare_data(
        str(folder), img_size=SIZE, folder=tmp_path / "data", memory_limit_bytes=limit
    )
    if data.is_streamed:
        sizes = {found.size for found in data.full_train().images.read(np.arange(19))}  # type: ignore[union-attr]
        assert sizes == {(SIZE, SIZE), (SIZE, 2 * SIZE)}
    else:
        assert (data.full_train().images == (255, 0, 0)).all(axis=(1, 2, 3)).sum() == 1


def test_damaged_exif_does_not_cost_the_image(folder: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), "red").save(
        image(folder, "x.jpg"), exif=b"Exif\0\0II*\0\xff\xff\xff\xff\0\0\0\0"
    )
    source = listed(folder)
    assert len(list(source.read(np.arange(len(source.names))))) == NUM_IMAGES + 1


# Names that are not UTF-8.


@pytest.mark.parametrize("pack", [as_folder, as_tar])
def test_names_of_files_need_not_be_utf8(
    folder: Path, tmp_path: Path, pack: Callable[[Path], Path]
) -> None:
    raw = os.fsencode(image(folder, "")) + b"/caf\xe9\n.png"
    with open(raw, "wb") as file:
        file.write(image(folder).read_bytes())
    path = pack(folder)
    stored: ImageData = prepare_data(str(path), img_size=SIZE, folder=tmp_path / "a")
    streamed = prepare_data(str(path), img_size=SIZE, folder=tmp_path / "b", memory_limit_bytes=1)
    assert len(stored.full_train()) == len(streamed.full_train()) == 3 * 6 + 1
    assert stored.sizes == streamed.sizes


def test_a_damaged_image_with_such_a_name_is_named_printably(folder: Path, tmp_path: Path) -> None:
    with open(os.fsencode(image(folder, "")) + b"/caf\xe9\x1b.png", "wb") as file:
        file.write(b"words")
    with pytest.raises(ValueError, match=r"caf\\xe9\\x1b\.png") as caught:
        prepare_data(str(folder), img_size=SIZE, folder=tmp_path / "a")
    str(caught.value).encode("utf-8")
    assert str(caught.value).isprintable()


def test_a_class_whose_name_is_not_utf8_is_refused_by_name(folder: Path) -> None:
    for split in COUNTS:
        os.rename(folder / split / "ant", os.fsencode(folder / split) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"must be UTF-8.*caf\\xe9.*Rename"):
        listed(folder)
