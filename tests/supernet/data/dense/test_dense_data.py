"""What is wrong in annotations has one message or a defined meaning."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from supernet.data.dense import DenseData, check_searched, open_dense_data, prepare_searched
from supernet.data.dense.masks import decode_masks
from supernet.data.dense.voc import convert_voc
from supernet.dense.judging import average_precision
from tests.tiny_dense import write_data

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_data(tmp_path / "cells", train=2, val=1)


def opened(folder: Path, task: str) -> DenseData:
    return open_dense_data(str(folder), task, unpack_to=folder.parent)


def changed(folder: Path, change: Change) -> Path:
    path = folder / "annotations" / "instances_train.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return folder


def first(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["annotations"][0]
    return found


WRONG: dict[str, tuple[Change, str]] = {
    "a class that is not there": (lambda d: first(d).update(category_id=9), "has the class 9"),
    "an image that is not there": (lambda d: first(d).update(image_id=77), "belongs to image 77"),
    "no image": (lambda d: first(d).pop("image_id"), "belongs to image None"),
    "a file that is missing": (
        lambda d: d["images"][0].update(file_name="gone.png"),
        "gone.png, is missing",
    ),
    "a box of three": (lambda d: first(d).update(bbox=[1, 2, 3]), r"got \[1, 2, 3\]"),
    "a box without end": (
        lambda d: first(d).update(bbox=[1, 2, 3, float("inf")]),
        "bbox is .x, y, width, height",
    ),
    "no box": (lambda d: first(d).pop("bbox"), "got None"),
    "two images of one id": (lambda d: d["images"][1].update(id=0), "two images have the id 0"),
    "two objects of one id": (
        lambda d: d["annotations"][1].update(id=0),
        "two annotations have the id 0",
    ),
    "two classes of one id": (
        lambda d: d["categories"][1].update(id=1),
        "two categories have the id 1",
    ),
    "no ids": (lambda d: d["images"][0].pop("id"), "have an integer id"),
    "no sizes": (lambda d: d["images"][0].pop("width"), "needs height and width"),
    "no classes": (lambda d: d.update(categories=[]), "no images or no categories"),
    "no list": (lambda d: d.pop("annotations"), "none under annotations"),
    "a mask of another size": (
        lambda d: first(d).update(segmentation={"size": [3, 3], "counts": [9]}),
        r"of \[3, 3\]",
    ),
    "run lengths that do not add up": (
        lambda d: first(d).update(segmentation={"size": [64, 48], "counts": [9]}),
        "add up to 9, the image has 3072",
    ),
    "no mask": (lambda d: first(d).pop("segmentation"), "has no mask"),
    "a polygon of two points": (
        lambda d: first(d).update(segmentation=[[1, 2, 3, 4]]),
        "at least three points",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_annotation_is_one_message_with_the_file(folder: Path, name: str) -> None:
    change, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as caught:
        opened(changed(folder, change), "instance")
    assert "instances_train.json" in str(caught.value)


def test_an_image_of_another_size_than_annotated_is_refused(folder: Path) -> None:
    changed(folder, lambda d: d["images"][0].update(width=49))
    data = opened(folder, "detection")
    with pytest.raises(ValueError, match=r"000.png has 64 x 48 pixels .* say 64 x 49"):
        data.train.images[0].pixels()


def test_a_box_is_cut_to_its_image_and_one_outside_is_judged_but_not_learned(
    folder: Path,
) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"][0]["bbox"] = [-5, 3, 20, 10]
        data["annotations"][1]["bbox"] = [100, 3, 20, 10]

    data = opened(changed(folder, change), "detection")
    cut, outside = data.train.images[0].objects
    assert cut.box == (0, 3, 15, 13)
    assert cut.is_learned
    assert not outside.is_learned
    assert outside.annotated == (100, 3, 20, 10)
    assert "1 objects have less than a pixel" in data.remarks[0]


def test_polygons_and_both_run_lengths_are_the_same_mask(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        mask = np.zeros((64, 48), bool)
        mask[10:20, 5:9] = True
        flat = mask.flatten(order="F").astype(int)
        ends = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff([0, *ends, flat.size]).tolist()
        polygon = [[5, 10, 9, 10, 9, 20, 5, 20]]
        data["annotations"][0].update(segmentation=polygon, image_id=0)
        data["annotations"][1].update(segmentation={"size": [64, 48], "counts": counts}, image_id=0)

    data = opened(changed(folder, change), "instance")
    one, other = data.train.images[0].objects
    masks = decode_masks([one.mask or {}, other.mask or {}], (64, 48)).bool()
    assert masks[0].equal(masks[1])
    assert int(masks[0].sum()) == 40
    text = (one.mask or {})["counts"].decode()

    def compress(data: dict[str, Any]) -> None:
        first(data).update(segmentation={"size": [64, 48], "counts": text})

    again = opened(changed(folder, compress), "instance").train.images[0].objects[0]
    assert decode_masks([again.mask or {}], (64, 48)).bool()[0].equal(masks[0])


def test_ade20k_counts_from_one_and_zero_is_no_class(folder: Path) -> None:
    for split, name in (("train", "training"), ("val", "validation")):
        (folder / "images" / split).rename(folder / "images" / name)
        (folder / "annotations" / name).mkdir()
        for path in (folder / "masks" / split).iterdir():
            path.rename(folder / "annotations" / name / path.name)
    data = opened(folder, "semantic")
    assert len(data.class_names) == 150
    labels = data.train.labels(0)
    assert set(labels.unique().tolist()) == {0, 1, 255}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda path: path.unlink(), "000.png of .* is missing"),
        (lambda path: Image.new("L", (9, 9)).save(path), "has 64 x 48 pixels .* say 9 x 9"),
        (lambda path: path.write_bytes(b"no image"), "cannot be read as an image"),
    ],
)
def test_a_wrong_mask_is_one_message(
    folder: Path, wrong: Callable[[Path], Any], message: str
) -> None:
    wrong(folder / "masks" / "train" / "000.png")
    with pytest.raises(ValueError, match=message):
        opened(folder, "semantic")


def test_a_pixel_of_an_unknown_class_is_refused_when_it_is_read(folder: Path) -> None:
    path = folder / "masks" / "train" / "000.png"
    Image.fromarray(np.full((64, 48), 7, np.uint8)).save(path)
    data = opened(folder, "semantic")
    with pytest.raises(ValueError, match="a pixel of class 7, and there are 3 classes"):
        data.train.labels(0)


def test_a_tar_is_unpacked_once(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cells.tar", "w") as archive:
        archive.add(folder, "cells")
    target = tmp_path / "unpacked"
    found = open_dense_data(str(tmp_path / "cells.tar"), "semantic", unpack_to=target)
    assert len(found.train) == 2
    made = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    open_dense_data(str(tmp_path / "cells.tar"), "semantic", unpack_to=target)
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == made


def test_a_part_of_the_training_images_is_held_out_the_same_for_a_seed(tmp_path: Path) -> None:
    data = opened(write_data(tmp_path / "more", train=10, val=1), "detection")
    learned, judged = data.held_out(0)
    names = [{image.name for image in split.images} for split in (learned, judged)]
    assert (len(names[0]), len(names[1]), len(names[0] | names[1])) == (8, 2, 10)
    assert data.held_out(0)[1] == judged
    assert any(data.held_out(seed)[1] != judged for seed in range(1, 5))


def test_images_of_several_files_are_told_apart_when_each_counts_anew(tmp_path: Path) -> None:
    """With a test split one learns from train and val, whose files may both begin at image 0."""
    folder = write_data(tmp_path / "more", train=3, val=3)
    val = folder / "annotations" / "instances_val.json"
    shutil.copy(val, folder / "annotations" / "instances_test.json")
    shutil.copytree(folder / "images" / "val", folder / "images" / "test")
    train = opened(folder, "detection").train
    assert len({image.number for image in train.images}) == len(train) == 6
    truth = [
        {"image_id": image.number, "category_id": one.label + 1, "bbox": list(one.annotated)}
        | {"score": 0.5}
        for image in train.images
        for one in image.objects
    ]
    assert average_precision(train, truth, "bbox").value == pytest.approx(100)
    # Where all numbers are different, they stay those of the annotations.
    data = json.loads(val.read_text())
    for entry, key in [(e, "id") for e in data["images"]] + [
        (e, "image_id") for e in data["annotations"]
    ]:
        entry[key] += 100
    val.write_text(json.dumps(data))
    assert [i.number for i in opened(folder, "detection").train.images] == [0, 1, 2, 100, 101, 102]


def test_a_part_of_the_images_is_spread_over_all_of_them(tmp_path: Path) -> None:
    train = opened(write_data(tmp_path / "more", train=9, val=1), "detection").train
    numbers = [[image.number for image in train.part(share).images] for share in (1.0, 0.34, 1e-9)]
    assert numbers == [list(range(9)), [0, 3, 6], [0]]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("task", ["detection", "semantic"])
def test_images_with_nothing_in_them_are_refused(folder: Path, task: str, split: str) -> None:
    path = folder / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    for mask in (folder / "masks" / split).iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)
    use = {"train": "to learn from", "val": "to judge by"}[split]
    with pytest.raises(ValueError, match=rf"neither an object nor a pixel .* cells {use}"):
        opened(folder, task).check_files()


def test_a_search_needs_objects_to_judge_by(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "more", train=10, val=1)
    path = folder / "annotations" / "instances_train.json"
    data = json.loads(path.read_text())
    judged = [image.number for image in opened(folder, "detection").held_out(0)[1].images]
    data["annotations"] = [one for one in data["annotations"] if one["image_id"] not in judged]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="in any of the 2 images of more to judge a search by"):
        prepare_searched(str(folder), "detection", seed=0, folder=tmp_path / "data")


def test_another_class_is_other_data(tmp_path: Path) -> None:
    folder = write_data(tmp_path / "more", train=10, val=1)
    prepare_searched(str(folder), "semantic", seed=0, folder=tmp_path / "data")
    assert check_searched(tmp_path / "data").num_classes == 3
    with (folder / "classes.txt").open("a") as names:
        names.write("green\n")
    with pytest.raises(ValueError, match="are not those that the run was begun with"):
        check_searched(tmp_path / "data")


VOC = """<annotation><filename>a.jpg</filename><size><width>30</width><height>20</height></size>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def test_voc_boxes_count_pixels_from_one_with_both_borders(tmp_path: Path) -> None:
    root = tmp_path / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    (root / "Annotations" / "a.xml").write_text(VOC)
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("a\n")
    Image.new("RGB", (30, 20)).save(root / "JPEGImages" / "a.jpg")
    convert_voc(root, tmp_path / "out", {"train": "trainval", "val": "trainval"})
    data = opened(tmp_path / "out", "detection")
    (one,) = data.train.images[0].objects
    assert one.box == (0, 1, 10, 20)
    assert one.is_crowd
    assert data.class_names == ("dog",)
