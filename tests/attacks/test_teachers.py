"""Teachers that are gone, swapped, mute or foreign; two processes at once; what is killed goes on.

Those that a run keeps: tests/search/run_folder/test_mentor.py, tests/supernet/training.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from search.retraining.teachers import find_teacher, look_for_teacher
from search.retraining.wanted import RetrainPlan, prepare
from search.run_folder import RunSettings, create_run, own_run
from supernet.data import ImageData, prepare_data, prepare_unlabelled, unlabelled
from tests.tiny_data import noise, tiny_data, write_images
from tests.tiny_job import SPACE
from tests.tiny_teachers import retrained_teacher


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(28, 8))


def weights_of(tmp_path: Path, *, size: float | None = None) -> str:
    """Write a teacher's weights, all of them finite, those of the head of a size; name it."""
    torch.manual_seed(0)
    state = timm.create_model("resnet10t", num_classes=2).state_dict()
    if size is not None:
        state["fc.weight"] = torch.full_like(state["fc.weight"], size)
    save_file(state, tmp_path / "weights.safetensors")
    return f"timm:resnet10t:{tmp_path}/weights.safetensors"


def test_a_teacher_that_says_no_numbers_is_refused_before_anything_begins(
    data: ImageData, tmp_path: Path
) -> None:
    assert find_teacher(weights_of(tmp_path), data).num_classes == 2
    with pytest.raises(ValueError, match="says what is no 2 finite numbers for each"):
        find_teacher(weights_of(tmp_path, size=3e38), data)


def test_a_teacher_of_grey_images_is_one_message(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = timm.create_model("resnet10t", num_classes=2, in_chans=1)
    monkeypatch.setattr("search.retraining.teachers.timm.create_model", lambda *_, **__: grey)
    with pytest.raises(ValueError, match=r"cannot look at images of tiny.*images of 3 channels"):
        find_teacher("timm:resnet10t", data)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("timm:resnet9000", "knows no model"),
        ("timm:hf-hub:somebody/something", "knows no model"),
        ("timm:", "knows no model"),
        ("timm:resnet10t.nobodys_weights:weights.pth", "knows no model"),
        ("timm:resnet10t:missing.pth", "there is no file"),
        ("timm:resnet10t:", "there is no file"),
        ("swin_t:missing.pth", "there is no file"),
        ("nobody", "neither RUN:ID nor the folder"),
        ("", "neither RUN:ID nor the folder"),
        (":", "neither RUN:ID nor the folder"),
        ("\0", "neither RUN:ID nor the folder"),
        ("x" * 5000, "neither RUN:ID nor the folder"),
    ],
)
def test_nobody_is_refused_before_images_are_read(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        look_for_teacher(text)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a network, whose images have a trained teacher and a folder without classes."""
    source = write_images(tmp_path / "images", *noise(60, 8), num_test=6)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    prepared = prepare_data(source, img_size=8, folder=tmp_path / "prepared")
    retrained_teacher(prepared, tmp_path / "teacher")
    write_images(tmp_path / "more", *noise(9, 8), num_test=1)
    settings = RunSettings(
        data=source,
        space=str(tmp_path / "tiny.yaml"),
        budget="1cpu-minute",
        retrain_recipe="digits",
    )
    with create_run(tmp_path / "run", settings) as opened:
        opened.record.set_meta("plan", {})
        opened.record.add_architecture(opened.space().first(), params=1, macs=1)
    return tmp_path / "run"


def identity(run: Path, **more: Any) -> str:
    plan = RetrainPlan(teacher=str(run.parent / "teacher"), epochs=1, **more)
    with own_run(run) as opened:
        (network,) = prepare(opened, [1], plan).networks
    return network.identity


def test_a_teacher_that_is_gone_or_swapped_is_refused_and_nothing_is_recorded(run: Path) -> None:
    teacher = run.parent / "teacher"
    first = identity(run)
    for name in ("model.safetensors", "model_ema.safetensors"):
        if (teacher / name).is_file():
            state = load_file(teacher / name)
            shutil.copy(teacher / name, run.parent / name)
            save_file({key: value + 1 for key, value in state.items()}, teacher / name)
    with pytest.raises(ValueError, match=r"The retraining in .*teacher is damaged"):
        identity(run)
    for name in ("model.safetensors", "model_ema.safetensors"):
        if (run.parent / name).is_file():
            shutil.copy(run.parent / name, teacher / name)
    assert identity(run) == first
    teacher.rename(run.parent / "elsewhere")
    with pytest.raises(ValueError, match="neither RUN:ID nor the folder"):
        identity(run)
    with own_run(run) as opened:
        assert opened.record.trials() == ()


def test_a_teacher_without_what_the_recipe_learns_is_refused_and_nothing_is_recorded(
    run: Path,
) -> None:
    """The recipe heal learns maps behind stages, which must have the network's shapes."""
    for teacher, why in (
        (str(run.parent / "teacher"), "maps have the student's shapes"),
        (weights_of(run.parent), "a teacher of this tool's own networks, got ResNet"),
    ):
        with own_run(run) as opened, pytest.raises(ValueError, match=why):
            prepare(opened, [1], RetrainPlan(teacher=teacher, recipe="heal"))
    with own_run(run) as opened:
        assert opened.record.trials() == ()


def test_other_images_without_classes_are_another_training(run: Path) -> None:
    more = run.parent / "more"
    names = {identity(run), identity(run, unlabelled=more)}
    assert len(names) == 2
    assert identity(run, unlabelled=more) in names
    shutil.copy(next((run.parent / "images" / "train").rglob("*.png")), more / "another.png")
    assert identity(run, unlabelled=more) not in names
    with own_run(run) as opened, pytest.raises(ValueError, match="Add --teacher"):
        prepare(opened, [1], RetrainPlan(unlabelled=more))


def test_two_processes_decode_images_without_classes_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare_data(str(tmp_path / "images"), img_size=8, folder=tmp_path / "prepared")
    entered, go_on, calls = threading.Event(), threading.Event(), list[int]()
    write = unlabelled.write_split

    def held(*given: Any, **more: Any) -> Any:
        calls.append(1)
        entered.set()
        assert go_on.wait(60)
        return write(*given, **more)

    monkeypatch.setattr(unlabelled, "write_split", held)
    found: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(prepare_unlabelled(tmp_path / "more", data, run))
        )
        for _ in range(2)
    ]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert calls == [1]
    assert found[0] == found[1]
