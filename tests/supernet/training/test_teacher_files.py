"""A teacher in a folder: what is read is what was written, and anything else is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from supernet.training import digest_of, make_teacher, read_teacher_files, write_teacher_files
from tests.tiny_teachers import tiny_teacher

WEIGHTS, ABOUT = "model.safetensors", "teacher.json"


def test_weights_have_one_digest_however_they_lie_in_memory() -> None:
    rows = torch.arange(12.0).view(3, 4)
    for lying, value in ((rows[:, 1:3], rows[:, 1:3].clone()), (rows[:1, ::4], torch.zeros(1, 1))):
        assert digest_of({"x": lying}) == digest_of({"x": value})


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    ours = tiny_teacher()
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=2)
    theirs = make_teacher(
        network,
        "timm:resnet10t:file",
        img_size=32,
        num_classes=2,
        mean=(0.1, 0.2, 0.3),
        std=(0.3, 0.2, 0.1),
        timm_name="resnet10t",
    )
    for number, teacher in enumerate((ours, theirs)):
        folder = tmp_path / str(number)
        key = write_teacher_files(folder, teacher)
        found = read_teacher_files(folder, key)
        for name in ("name", "img_size", "num_classes", "mean", "std", "fingerprint", "timm_name"):
            assert getattr(found, name) == getattr(teacher, name)
        assert not found.network.training
        images = torch.randn(2, 3, teacher.img_size, teacher.img_size)
        with torch.no_grad():
            assert torch.equal(found.network(images), teacher.network(images))
    assert ours.fingerprint != theirs.fingerprint


def flip(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def swap(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    save_file({name: value + 1 for name, value in state.items()}, folder / WEIGHTS)


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])


def lose(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def lose_about(folder: Path) -> None:
    (folder / ABOUT).unlink()


def list_about(folder: Path) -> None:
    (folder / ABOUT).write_text("[1, 2]")


def empty_about(folder: Path) -> None:
    (folder / ABOUT).write_text("{}")


def other_mean(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    about["mean"] = [0.0, 0.0, 0.0]
    (folder / ABOUT).write_text(json.dumps(about))


def other_size(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    about["img_size"] = 16
    (folder / ABOUT).write_text(json.dumps(about))


def forged(folder: Path) -> None:
    """With the fingerprint of what it holds, which is not what the run began with."""
    write_teacher_files(folder, tiny_teacher(img_size=16))


def other_network(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    about["architecture"]["stages"][0]["dim"] = 8
    (folder / ABOUT).write_text(json.dumps(about))


def unknown_network(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, "timm_name": "resnet9000"}))


def other_heads(folder: Path) -> None:
    """The same weights, put together in another way."""
    about = json.loads((folder / ABOUT).read_text())
    about["architecture"]["stages"][0]["mlp_ratio"] = 4
    (folder / ABOUT).write_text(json.dumps(about))


def many_classes(folder: Path) -> None:
    about = json.loads((folder / ABOUT).read_text())
    about |= {"timm_name": "resnet10t", "num_classes": 10**12}
    (folder / ABOUT).write_text(json.dumps(about))


def deep(folder: Path) -> None:
    (folder / ABOUT).write_text("[" * 100_000)


@pytest.mark.parametrize(
    "spoil",
    [
        *(flip, swap, cut, lose, lose_about, list_about, empty_about, other_mean, other_size),
        *(forged, other_network, unknown_network, other_heads, many_classes, deep),
    ],
)
def test_another_teacher_is_refused_in_one_message(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    key = write_teacher_files(tmp_path / "mentor", tiny_teacher())
    spoil(tmp_path / "mentor")
    with pytest.raises(ValueError, match=r"keeps the teacher that it began with.*mentor.*Restore"):
        read_teacher_files(tmp_path / "mentor", key)


def test_a_hub_is_not_asked_for_what_a_stranger_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote the key as well, with the settings."""
    key = write_teacher_files(
        tmp_path, replace(tiny_teacher(timm.create_model("test_vit")), timm_name="hf-hub:a/b")
    )
    monkeypatch.setattr("supernet.training.teacher_files.timm.create_model", None)
    with pytest.raises(ValueError, match="timm knows no model 'hf-hub:a/b'"):
        read_teacher_files(tmp_path, key)


def test_one_teacher_by_two_names_has_one_key(tmp_path: Path) -> None:
    one = tiny_teacher()
    keys = {write_teacher_files(tmp_path / name, replace(one, name=name)) for name in ("a", "./a")}
    assert len(keys) == 1
    assert write_teacher_files(tmp_path / "b", tiny_teacher(img_size=16)) not in keys
