"""Boxes and masks from strangers: what lies, loops, runs programs or takes memory is one message.

Everything is tried where a command meets it first: opening the data and looking at their files.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import supernet.data.dense.annotated as annotated
from search.transferring.predicting import predict_images
from supernet.data.dense import DenseData, open_dense_data
from supernet.data.dense.coco import _runs
from supernet.data.dense.voc import convert_voc
from tests.tiny_dense import write_data

TURNED_LEFT = 6  # EXIF: the upright image is this one, turned by 270 degrees


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_data(tmp_path / "cells", train=2, val=1)


def opened(folder: Path, task: str) -> DenseData:
    found = open_dense_data(str(folder), task, unpack_to=folder.parent)
    found.check_files()
    return found


def annotations(folder: Path) -> Path:
    return folder / "annotations" / "instances_train.json"


def refused(folder: Path, task: str = "instance") -> str:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - callers look at the text
        opened(folder, task)
    text = str(raised.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 700
    return text


OBJECTS: dict[str, dict[str, Any]] = {
    "an area in words": {"area": "large"},
    "an area of nothing": {"area": None},
    "a negative area": {"area": -3},
    "an area that is no number": {"area": float("nan")},
    "a box of truths": {"bbox": [True, True, True, True]},
    "a box beyond all numbers": {"bbox": [10**400, 0, 1, 1]},
    "a box that is no number": {"bbox": [float("nan"), 0, 1, 1]},
    "a box of words": {"bbox": ["1", "2", "3", "4"]},
    "a crowd of crowds": {"iscrowd": [1]},
    "a list as image": {"image_id": [0]},
    "a list as class": {"category_id": [1]},
    "a truth as class": {"category_id": True},
    "points that are words": {"segmentation": [["a"] * 6]},
    "points that are no numbers": {"segmentation": [[float("nan")] * 6]},
    "points far away": {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
    "points beyond all numbers": {"segmentation": [[0, 0, 10**400, 0, 5, 5]]},
    "a mask of no size": {"segmentation": {"counts": [3072]}},
    "a size of nothing": {"segmentation": {"counts": [3072], "size": None}},
    "runs of words": {"segmentation": {"counts": ["a"], "size": [64, 48]}},
    "negative runs": {"segmentation": {"counts": [-5, 3077], "size": [64, 48]}},
    "runs of truths": {"segmentation": {"counts": [True, 3071], "size": [64, 48]}},
    "runs as a number": {"segmentation": {"counts": 3072, "size": [64, 48]}},
    "text beyond the image": {"segmentation": {"counts": "PPPPPPPP1", "size": [64, 48]}},
    "text that ends too early": {"segmentation": {"counts": "oooooo", "size": [64, 48]}},
    "text of other signs": {"segmentation": {"counts": "\u20ac!", "size": [64, 48]}},
    "text of a huge number": {"segmentation": {"counts": "o" * 60 + "0", "size": [64, 48]}},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_that_cannot_be_is_one_message_with_its_id(folder: Path, name: str) -> None:
    path = annotations(folder)
    data = json.loads(path.read_text())
    data["annotations"][0].update(OBJECTS[name])
    path.write_text(json.dumps(data))

    assert f"{path}: annotation 0" in refused(folder)


IMAGES: dict[str, dict[str, Any]] = {
    "a name that leads away": {"file_name": "../val/000.png"},
    "a name from the root": {"file_name": "/etc/passwd"},
    "a name with a zero": {"file_name": "a\0b.png"},
    "a name that is a number": {"file_name": 3},
    "no name": {"file_name": ""},
    "sides of truth": {"height": True, "width": True},
    "sides that take all memory": {"height": 10**6, "width": 10**6},
    "a height of words": {"height": "64"},
    "an id beyond numbers": {"id": 2**70},
    "an id of truth": {"id": True},
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_cannot_be_is_one_message(folder: Path, name: str) -> None:
    path = annotations(folder)
    data = json.loads(path.read_text())
    data["images"][0].update(IMAGES[name])
    path.write_text(json.dumps(data))

    assert str(path) in refused(folder, "detection")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["categories"][0].pop("name"), "needs a name"),
        (lambda data: data["categories"][1].update(name="red"), "2 categories are red"),
        (lambda data: data["images"][1].update(data["images"][0], id=1), "2 images are"),
        (lambda data: data["images"].append(5), "integer id"),
    ],
)
def test_a_class_or_image_that_is_another_one_is_refused(
    folder: Path, change: Callable[[Any], Any], words: str
) -> None:
    path = annotations(folder)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))

    assert words in refused(folder, "detection")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe", b"{", b"[]", b"7", b""])
def test_annotations_that_are_none_are_one_message(folder: Path, content: bytes) -> None:
    annotations(folder).write_bytes(content)
    assert "instances_train.json" in refused(folder, "detection")


def test_a_pipe_in_the_place_of_annotations_is_not_waited_for(folder: Path) -> None:
    annotations(folder).unlink()
    os.mkfifo(annotations(folder))
    assert "no regular file" in refused(folder, "detection")


def test_the_text_of_run_lengths_is_read_as_pycocotools_writes_it() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (64, 48), (200, 300)):
        for share in (0.0, 0.02, 0.5, 1.0):
            pixels = (rng.random(shape) < share).astype(np.uint8)
            text = coco_mask.encode(np.asfortranarray(pixels))["counts"].decode()
            flat = pixels.flatten(order="F")
            ends = np.flatnonzero(np.diff(flat)) + 1
            runs = np.diff([0, *ends, flat.size]).tolist()
            assert _runs(text) == ([0, *runs] if flat[0] else runs)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 64\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("place", "task"), [("images", "instance"), ("images", "semantic"), ("masks", "semantic")]
)
def test_pillow_is_kept_to_the_listed_formats(folder: Path, place: str, task: str) -> None:
    (folder / place / "train" / "000.png").write_bytes(POSTSCRIPT)
    assert "it has none of the formats PNG" in refused(folder, task)


def test_a_pipe_between_images_is_left_out_and_said(folder: Path) -> None:
    os.mkfifo(folder / "images" / "train" / "9.png")
    (folder / "images" / "train" / "notes.txt").write_text("none")
    (folder / "images" / "train" / "Thumbs.db").write_bytes(b"none")
    shutil.copy(folder / "masks" / "train" / "000.png", folder / "masks" / "train" / "7.png")

    found = opened(folder, "semantic")

    assert len(found.train) == 2
    said = " ".join(found.remarks)
    for words in ("pipes", "notes.txt", "Thumbs.db", "masks without an image (e.g. 7.png)"):
        assert words in said


def test_an_image_without_a_suffix_is_one_by_its_content(folder: Path) -> None:
    image = folder / "images" / "train" / "000.png"
    image.rename(image.with_suffix(""))
    assert [one.name for one in opened(folder, "semantic").train.images] == ["000", "001.png"]


def test_two_images_of_one_mask_are_refused(folder: Path) -> None:
    with Image.open(folder / "images" / "train" / "000.png") as image:
        image.save(folder / "images" / "train" / "000.jpg")
    assert "several images named 000" in refused(folder, "semantic")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.new("L", (48, 64), 7), "a pixel of class 7, and there are 3"),
        (Image.new("I;16", (48, 64), 60_000), "a pixel of class 60000"),
        (Image.new("RGB", (48, 64)), "must be an image of one channel"),
        (Image.new("L", (48, 63)), "has 64 x 48 pixels"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_wrong_mask_is_noticed_before_anything_is_spent(
    folder: Path, mask: Image.Image, words: str, split: str
) -> None:
    mask.save(folder / "masks" / split / "000.png")
    assert words in refused(folder, "semantic")


def test_so_many_classes_as_bytes_cannot_name_are_refused(folder: Path) -> None:
    path = folder / "classes.txt"
    path.write_text("\n".join(f"c{number}" for number in range(300)))
    assert "at most 255 classes" in refused(folder, "semantic")
    path.unlink()
    Image.new("I;16", (48, 64), 60_000).save(folder / "masks" / "train" / "000.png")
    assert "at most 255 classes" in refused(folder, "semantic")
    path.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in refused(folder, "semantic")


@pytest.mark.parametrize("task", ["detection", "semantic"])
def test_pixels_are_turned_where_annotations_are_of_the_upright_image(
    folder: Path, task: str
) -> None:
    path = folder / "images" / "train" / "001.png"
    with Image.open(path) as image:
        expected = np.array(image.convert("RGB"))
        exif = Image.Exif()
        exif[0x0112] = TURNED_LEFT
        # As a camera stores it that was held on its side.
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    found = opened(folder, task).train.images[1].pixels()
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_pixels_are_not_turned_where_annotations_are_of_the_stored_ones(folder: Path) -> None:
    path = folder / "images" / "train" / "001.png"
    with Image.open(path) as image:
        expected = np.array(image.convert("RGB"))
        exif = Image.Exif()
        exif[0x0112] = TURNED_LEFT
        image.save(path, exif=exif)
    found = opened(folder, "detection").train.images[1].pixels()
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_an_image_of_another_size_is_noticed_before_anything_is_spent(folder: Path) -> None:
    Image.new("RGB", (30, 30)).save(folder / "images" / "val" / "000.png")
    assert "has 30 x 30 pixels" in refused(folder, "detection")


@pytest.mark.parametrize("place", ["images", "masks"])
def test_other_content_of_the_same_length_is_other_data(folder: Path, place: str) -> None:
    before = opened(folder, "semantic").fingerprint
    path = folder / place / "val" / "000.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # in the checksum of the pixels
    path.write_bytes(content)
    found = open_dense_data(str(folder), "semantic", unpack_to=folder.parent)
    assert found.fingerprint != before


def test_of_many_training_images_some_are_known_by_content_all_by_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotated, "SAMPLED_IMAGES", 1)
    before = open_dense_data(str(folder), "detection", unpack_to=folder.parent).fingerprint
    with (folder / "images" / "train" / "001.png").open("ab") as file:
        file.write(b"more")
    after = open_dense_data(str(folder), "detection", unpack_to=folder.parent).fingerprint
    assert after != before


def test_another_tar_of_the_same_name_is_not_taken_for_the_first(
    folder: Path, tmp_path: Path
) -> None:
    found = []
    for number in range(2):
        place = tmp_path / f"{number}"
        place.mkdir()
        if number:
            shutil.copytree(folder / "images" / "val", folder / "images" / "test")
            shutil.copytree(folder / "masks" / "val", folder / "masks" / "test")
        with tarfile.open(place / "cells.tar", "w") as archive:
            archive.add(folder, "cells")
        tar = str(place / "cells.tar")
        found.append(open_dense_data(tar, "semantic", unpack_to=tmp_path / "unpacked"))
    assert [data.test_name for data in found] == ["val", "test"]


VOC = """<annotation><filename>{name}</filename><size><width>48</width><height>64</height></size>
<object><name>a</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>"""


@pytest.mark.parametrize("name", ["../../away.jpg", "/away.jpg", "..", "sub/a.jpg"])
def test_a_name_in_a_voc_file_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    root, out = tmp_path / "voc", tmp_path / "a" / "b" / "out"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages/sub"):
        (root / part).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("x\n")
    (root / "Annotations" / "x.xml").write_text(VOC.format(name=name))
    (tmp_path / "away.jpg").write_bytes(b"")
    (root / "JPEGImages" / "sub" / "a.jpg").write_bytes(b"")
    before = {path for path in tmp_path.rglob("*") if path.is_symlink()}

    with pytest.raises(ValueError, match="is more than a name"):
        convert_voc(root, out, {"train": "train"})

    assert {path for path in tmp_path.rglob("*") if path.is_symlink()} == before


def test_a_picture_takes_no_place_of_an_image_or_another(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / place / "1.png")
    images = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png"]
    with pytest.raises(ValueError, match="would be drawn to"):
        list(predict_images(tmp_path, images, tmp_path / "out", device="cpu"))
    with pytest.raises(ValueError, match="would take the place of an image"):
        list(predict_images(tmp_path, images[:1], tmp_path / "a", device="cpu"))
