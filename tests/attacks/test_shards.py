"""Shards with wrong classes, keys with dots, and files that are none."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from supernet.data import prepare_data
from supernet.data.catalog import open_source
from supernet.data.source import Source, check_labels
from tests.supernet.data.test_sources import SIZE

Files = dict[str, bytes]


def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (value, 0, 0)).save(buffer, format=kind)
    return buffer.getvalue()


def write(path: Path, files: Files) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def samples(labels: list[object], *, key: str = "{}", suffix: str = "cls") -> Files:
    files: Files = {}
    for number, label in enumerate(labels):
        stem = key.format(number)
        files[f"{stem}.png"] = picture(number)
        text = label if isinstance(label, str) else json.dumps(label)
        if suffix == "json":
            text = f'{{"label": {json.dumps(label)}}}'
        files[f"{stem}.{suffix}"] = text.encode()
    return files


def shards(root: Path, train: Files, val: Files | None = None) -> Source:
    write(root / "pets-train-0.tar", train)
    write(root / "pets-val-0.tar", val or samples([0, 1]))
    return open_source(f"wds/pets:{root}", img_size=SIZE)


# Classes.


@pytest.mark.parametrize("suffix", ["cls", "json"])
@pytest.mark.parametrize("label", [10**9, 10**7, 3, 10**400])
def test_a_class_that_is_a_wild_number_is_refused_before_memory_is_taken(
    tmp_path: Path, label: int, suffix: str
) -> None:
    with pytest.raises(ValueError, match=r"Classes are numbered|class must be a whole number"):
        shards(tmp_path, samples([0, 1, label, 0, 1], suffix=suffix))


@pytest.mark.parametrize(
    "label", ["1.7", "true", "1.0", "1_0", "\u0661", "0x1", "", "ant", "-5", "nan"]
)
def test_a_class_that_is_no_whole_number_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValueError, match=r"class must be a whole number.*2\.cls in"):
        shards(tmp_path, samples([0, 1, label]))


@pytest.mark.parametrize("label", [1.7, True, False, 1.0, [1], {"a": 1}, -5, "1_0", "ant", ""])
def test_a_class_in_a_description_that_is_no_whole_number_is_refused(
    tmp_path: Path, label: object
) -> None:
    with pytest.raises(ValueError, match=r"class must be a whole number.*2\.json in"):
        shards(tmp_path, samples([0, 1, label], suffix="json"))


@pytest.mark.parametrize("text", ["[1]", "7", '"label"', "{", "\xff", "[" * 100_000])
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    files = samples([0, 1], suffix="json") | {"x.png": picture(1)}
    with pytest.raises(ValueError, match=r"x\.json in .*train-0\.tar"):
        shards(tmp_path, {**files, "x.json": text.encode("latin-1")})


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_only_a_held_out_split_has_is_refused(tmp_path: Path, split: str) -> None:
    write(tmp_path / "test" / "0.tar", samples([0, 1] + [2] * (split == "test")))
    with pytest.raises(ValueError, match=rf"the class 2 is only in {split}"):
        shards(tmp_path, samples([0, 1]), samples([0, 1] + [2] * (split == "val")))


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the class 1 has none, and there is a class 2"):
        shards(tmp_path, samples([0, 0, 2, 2]), samples([0, 2]))


def test_minus_one_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 images of train in .* have no class"):
        shards(tmp_path, samples([0, 1, -1]))
    write(tmp_path / "test" / "0.tar", samples([-1, -1]))
    write(tmp_path / "pets-train-0.tar", samples([0, 1]))
    assert set(open_source(f"wds/pets:{tmp_path}", img_size=SIZE).pools) == {"train", "val"}


@pytest.mark.parametrize(("train", "test"), [([0, 1, 3], [0]), ([0, 1], [2]), ([1, 2], [1])])
def test_the_same_holds_for_every_reader_of_numbers(train: list[int], test: list[int]) -> None:
    labels = np.array(train + test)
    pools = {"train": np.arange(len(train)), "test": len(train) + np.arange(len(test))}
    with pytest.raises(ValueError, match="training images"):
        check_labels(labels, pools, "pets")


# Keys.


@pytest.mark.parametrize("key", ["a.{}", "2021.05.{}", "x/y.z/{}", "dir.d/b.{}", "{}.5", "v1.{}"])
@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_keys_may_have_dots(tmp_path: Path, key: str, suffix: str) -> None:
    source = shards(tmp_path, samples([0, 1, 0, 1], key=key, suffix=suffix))
    train = source.pools["train"]
    assert source.labels[train].tolist() == [0, 1, 0, 1]
    assert [source.names[p] for p in train] == [
        f"pets-train-0.tar/{key.format(number)}" for number in range(4)
    ]
    reds = {position: image.getpixel((0, 0))[0] for position, image in source.read(train)}  # type: ignore[index]
    assert [reds[position] for position in train.tolist()] == [0, 1, 2, 3]


def test_an_image_of_several_words_belongs_to_the_sample_at_the_first_dot(tmp_path: Path) -> None:
    files = {"0.left.png": picture(5), "0.cls": b"0", "1.left.png": picture(6), "1.cls": b"1"}
    source = shards(tmp_path, files)
    assert source.labels[source.pools["train"]].tolist() == [0, 1]


def test_a_map_beside_an_image_is_left_out_and_said(tmp_path: Path) -> None:
    extra = {"0.seg.png": picture(9), "1.seg.png": picture(9)}
    source = shards(tmp_path, samples([0, 1]) | extra)
    assert len(source.pools["train"]) == 2
    assert source.skipped["further files of a sample that has its image"] == (2, "0.seg")


def test_a_key_with_two_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 has two images"):
        shards(tmp_path, samples([0, 1]) | {"0.jpg": picture(1, "JPEG")})


@pytest.mark.parametrize(
    ("suffix", "kind"), [("avif", "AVIF"), ("jfif", "JPEG"), ("JPG", "JPEG"), ("WebP", "WEBP")]
)
def test_every_listed_suffix_is_an_image(tmp_path: Path, suffix: str, kind: str) -> None:
    extra = {f"9.{suffix}": picture(1, kind), "9.cls": b"1"}
    assert len(shards(tmp_path, samples([0, 1]) | extra).pools["train"]) == 3


def test_what_is_no_image_is_left_out_and_said(tmp_path: Path) -> None:
    extra = {"0.txt": b"a pet", "0.heic": b"", "__MACOSX/._0.png": b"", ".hidden.png": b""}
    source = shards(tmp_path, samples([0, 1]) | extra)
    assert len(source.pools["train"]) == 2
    assert {reason: count for reason, (count, _) in source.skipped.items()} == {
        "no images": 1,
        "formats that are not read": 1,
        "thumbnails and other folders of file servers": 1,
        "hidden": 1,
    }


def test_a_shard_under_two_names_is_taken_once(tmp_path: Path) -> None:
    write(tmp_path / "pets-train-0.tar", samples([0, 1]))
    (tmp_path / "pets-train-1.tar").symlink_to("pets-train-0.tar")
    source = shards(tmp_path, samples([0, 1]))
    assert len(source.pools["train"]) == 2


def test_a_shard_in_two_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "pets-train-0.tar", samples([0, 1]))
    (tmp_path / "pets-test-0.tar").symlink_to("pets-train-0.tar")
    with pytest.raises(ValueError, match="Each shard belongs to one split"):
        shards(tmp_path, samples([0, 1]))


@pytest.mark.parametrize("text", ["[]", "{", '{"splits": 3}', '{"splits": {"train": [1]}}', "7"])
def test_a_strange_description_of_a_set_is_a_message_or_nothing(tmp_path: Path, text: str) -> None:
    tmp_path.joinpath("_info.json").write_text(text)
    try:
        shards(tmp_path, samples([0, 1]))
    except ValueError as error:
        assert "_info.json" in str(error)  # noqa: PT017


def test_shards_that_changed_under_the_same_names_are_noticed(tmp_path: Path) -> None:
    shards(tmp_path / "shards", samples([0, 1, 0, 1]))
    data = prepare_data(
        f"wds/pets:{tmp_path / 'shards'}",
        img_size=SIZE,
        folder=tmp_path / "data",
        memory_limit_bytes=1,
    )
    other = samples([0, 1])
    # Of the same length, as nothing else would notice it.
    other["0.png"] = other["0.png"][:-20] + bytes(20)
    write(tmp_path / "shards" / "pets-val-0.tar", other)
    with pytest.raises(ValueError, match=r"must not change during a run.*val-0\.tar/0 is not"):
        data.test_split().images.read(np.array([0, 1]))  # type: ignore[union-attr]
