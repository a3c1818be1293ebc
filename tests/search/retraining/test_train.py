"""A training under torchrun is that of a single process; wrong input is refused before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from search.retraining.out_folder import claimed_training
from search.retraining.train import main
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, WindowAttention
from supernet.recipes.recipe import dump_recipe
from supernet.training.training import EMA_FILE, WEIGHTS_FILE
from tests.tiny_data import changed

MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
ROOT = Path(__file__).parents[3]


def train(folder: Path, out: str, *launcher: str, network: str = "a.json") -> str:
    command = [*launcher, "-m", "search.retraining.train", network, "--data", "digits"]
    command += ["--recipe", "halves.yaml", "--epochs", "1", "--device", "cpu", "--out", out]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stages = (Stage(dim=8, mixers=MIXERS),)
    network = Architecture(img_size=8, patch_size=2, num_classes=10, stages=stages)
    (tmp_path / "a.json").write_text(json.dumps(network.to_dict()))
    recipe = changed("digits", name="halves", batch_size=64, shard_size=32, drop_path=0.1)
    (tmp_path / "halves.yaml").write_text(dump_recipe(recipe))
    return tmp_path


def test_two_processes_of_torchrun_train_as_one(folder: Path) -> None:
    alone = train(folder, "one")
    assert "of 359 test images" in alone
    together = train(folder, "two", "-m", "torch.distributed.run", "--nproc-per-node=2")
    assert together.count("of 359 test images") == 1, together
    for name in (WEIGHTS_FILE, EMA_FILE):
        one, two = ((folder / out / "network" / name).read_bytes() for out in ("one", "two"))
        assert one == two
    # What is finished is kept.
    assert "epoch 1" not in train(folder, "one")


def test_an_unknown_network_leaves_nothing(folder: Path) -> None:
    said = train(folder, "one", network="swin_z")
    assert said.startswith("Error: Unknown preset 'swin_z'")
    assert not (folder / "one").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--teacher", "timm:no_such_net"), "timm knows no model 'no_such_net'"),
        (("--teacher", "elsewhere"), "neither RUN:ID nor the folder"),
        (("--start", "elsewhere"), "neither RUN:ID nor the folder"),
        (("--token-labels", "maps"), "only such a one"),
        (("--unlabelled", "images"), "Add --teacher"),
        (("--teacher", "timm:resnet10t", "--unlabelled", "images"), "there is no such folder"),
        (("--epochs", "0"), "greater than or equal to 1"),
        (("--seed", "-1"), "greater than or equal to 0"),
        (("--workers", "-1"), "greater than or equal to 0"),
    ],
)
def test_what_needs_no_images_is_refused_before_they_are_decoded(
    folder: Path, more: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    line = ["a.json", "--data", "digits", "--recipe", "halves.yaml", "--out", "one", *more]
    command = typer.Typer()
    command.command()(main)

    done = CliRunner().invoke(command, line)

    assert words in " ".join(f"{done.output} {done.exception}".replace("│", " ").split())
    assert done.exit_code != 0
    assert not (folder / "one").exists()


def test_a_teacher_without_the_maps_that_a_recipe_asks_for_is_refused_before_the_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the folder would be that of another recipe when it is mended."""
    recipe = changed("digits", name="maps", distillation={"weight": 1.0, "temperature": 1.0})
    network = timm.create_model("resnet10t", num_classes=10)
    save_file(network.state_dict(), folder / "teacher.safetensors")
    settings = recipe.distillation
    assert settings is not None
    wrong = recipe.model_copy(update={"distillation": settings.model_copy(update={"tokens": 1.0})})
    (folder / "maps.yaml").write_text(dump_recipe(wrong))
    monkeypatch.chdir(folder)

    with pytest.raises(ValueError, match="Tokens are learned from a teacher of this tool's own"):
        main(
            "a.json",
            "digits",
            folder / "one",
            recipe="maps.yaml",
            epochs=1,
            device="cpu",
            teacher=f"timm:resnet10t:{folder}/teacher.safetensors",
        )
    assert not (folder / "one" / "network").exists()


def test_one_command_at_a_time_trains_in_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with (
        claimed_training(folder / "one"),
        pytest.raises(ValueError, match="Another process trains in"),
    ):
        main("a.json", "digits", folder / "one", recipe="halves.yaml", epochs=1, device="cpu")
    assert [path.name for path in (folder / "one").iterdir()] == ["training.lock"]
