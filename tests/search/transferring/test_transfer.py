"""A network as a backbone, from the command line to the pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from search.record import Measured
from search.transferring.result import open_transferred, result_text
from supernet.network.supernet import build_subnet
from supernet.recipes.dense_recipe import dump_dense_recipe
from tests.search.cli.test_app import search
from tests.tiny_dense import CONV, WINDOWS, architecture, recipe, write_data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make data, a network and recipes."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder / "cells", train=4, val=2)
    (folder / "net.json").write_text(json.dumps(architecture().to_dict()))
    for name in ("cells_semantic", "cells_detection", "mask_rcnn_1x"):
        text = dump_dense_recipe(recipe(name, steps=3, pad_to=1 if name[0] == "c" else 32))
        (folder / f"{name}.yaml").write_text(text)
    return folder


def transfer(made: Path, task: str, name: str, out: Path, *more: str) -> int:
    return search(
        "transfer",
        str(made / "net.json"),
        "--task",
        task,
        "--data",
        str(made / "cells"),
        "--recipe",
        str(made / f"{name}.yaml"),
        "--out",
        str(out),
        *more,
    )


CASES = [
    ("semantic", "cells_semantic", {"miou", "pixel_accuracy"}),
    ("detection", "cells_detection", {"ap_box", "ap_box50", "ap_box75"}),
    ("instance", "mask_rcnn_1x", {"ap_box", "ap_mask", "ap_mask50", "ap_mask75"}),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("task", "name", "values"), CASES)
def test_a_transfer_leaves_weights_numbers_and_pictures(
    made: Path,
    tmp_path: Path,
    task: str,
    name: str,
    values: set[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert transfer(made, task, name, out) == 0
    assert "of 2 val images" in capsys.readouterr().out
    found = open_transferred(out)
    assert values <= set(found.result.measured.to_json())
    assert len(list((out / "pictures").glob("*.png"))) == 2
    assert (out / "predictions.json").exists() == (task != "semantic")
    assert not list(out.glob("checkpoint-*"))
    network = found.network()
    assert sum(p.numel() for p in network.parameters()) == found.result.params

    # The same command changes nothing; eval gives the same numbers; predict draws.
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert transfer(made, task, name, out) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert search("eval", str(out), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again.pop("images") == 2
    assert again == pytest.approx(found.result.measured.to_json())
    image = next((made / "cells" / "images" / "val").iterdir())
    assert search("predict", str(out), str(image), "--out", str(tmp_path / "drawn")) == 0
    with Image.open(tmp_path / "drawn" / f"{image.stem}.png") as drawn, Image.open(image) as own:
        assert drawn.size == own.size


@pytest.mark.timeout(300)
def test_a_transfer_starts_from_the_weights_of_a_classifier(made: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    classifier = build_subnet(architecture())
    save_file(classifier.state_dict(), tmp_path / "weights.safetensors")
    start = ("--start", str(tmp_path / "weights.safetensors"))
    frozen = recipe("cells_semantic", steps=1, lr=1e-12, weight_decay=0.0)
    (made / "frozen.yaml").write_text(dump_dense_recipe(frozen))
    assert transfer(made, "semantic", "frozen", tmp_path / "out", *start) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert open_transferred(tmp_path / "out").result.start == "from-weights"
    for key, value in classifier.named_parameters():
        if not key.startswith(("norm.", "head.")):
            torch.testing.assert_close(found[f"backbone.network.{key}"], value.detach())

    # A detector's backbone starts from a segmenter's.
    again = ("--start", str(tmp_path / "out"), "--steps", "1")
    assert transfer(made, "detection", "cells_detection", tmp_path / "second", *again) == 0


@pytest.mark.timeout(300)
def test_a_folder_of_another_transfer_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transfer(made, "semantic", "cells_semantic", tmp_path / "out", "--steps", "1") == 0
    capsys.readouterr()
    assert transfer(made, "semantic", "cells_semantic", tmp_path / "out", "--steps", "2") == 2
    assert "holds a transfer with another recipe.yaml" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    assert transfer(made, "semantic", "cells_semantic", tmp_path / "other") == 2
    assert "in use by something else" in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_weights_of_another_network_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_subnet(architecture(CONV, CONV, CONV, WINDOWS))
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    start = ("--start", str(tmp_path / "weights.safetensors"))
    assert transfer(made, "semantic", "cells_semantic", tmp_path / "out", *start) == 2
    assert "the same network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_show_counts_the_whole_and_names_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("show", "elsa_swin_t", "--task", "instance", "--head", "cascade_mask_rcnn", "--json")
    assert search(*words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == 86_482_428
    assert round(found["macs"] / 1e9, 2) == 747.43
    assert {row["ap_mask"] for row in found["published"]} == {43.0, 44.2}


@pytest.mark.timeout(600)
def test_two_devices_that_train_together_leave_what_one_leaves(made: Path, tmp_path: Path) -> None:
    assert transfer(made, "semantic", "cells_semantic", tmp_path / "one") == 0
    assert transfer(made, "semantic", "cells_semantic", tmp_path / "two", "--devices", "2") == 0
    one, two = (open_transferred(tmp_path / name) for name in ("one", "two"))
    assert one.result.identity == two.result.identity
    states = [found.network().state_dict() for found in (one, two)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4)
    # Where they met is gone, and nothing lies beside the folders.
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


@pytest.mark.timeout(300)
def test_a_transfer_learns_from_another_and_says_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, name = "semantic", "cells_semantic"
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    taught = ("--seed", "1", "--teacher", str(teacher))
    assert transfer(made, task, name, teacher) == 0
    assert transfer(made, task, name, out, *taught) == 0
    assert open_transferred(out).result.teacher == str(teacher)
    assert open_transferred(teacher).result.teacher == ""
    # Another teacher, or none, is another training: what is there is not overwritten.
    capsys.readouterr()
    assert transfer(made, task, name, out, "--seed", "1") == 2
    assert "results are never" in capsys.readouterr().err
    assert transfer(made, task, name, out, *taught) == 0
    assert transfer(made, task, name, tmp_path / "plain", "--seed", "1") == 0
    weights, plain = (load_file(f / "model.safetensors") for f in (out, tmp_path / "plain"))
    assert any(not torch.equal(value, plain[key]) for key, value in weights.items())

    capsys.readouterr()
    x = tmp_path / "x"
    assert transfer(made, "detection", "cells_detection", x, "--teacher", str(out)) == 2
    assert "learnt --task semantic" in capsys.readouterr().err
    content = bytearray((teacher / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (teacher / "model.safetensors").write_bytes(content)
    assert transfer(made, task, name, x, "--teacher", str(teacher)) == 2
    assert "is damaged" in capsys.readouterr().err
    assert not x.exists()


def test_a_line_says_what_each_task_measures() -> None:
    segmented = Measured(miou=27.94, miou_low=26.49, miou_high=29.52, pixel_accuracy=74.4)
    assert result_text(segmented) == "mIoU 27.9 % (95 % interval 26.5 to 29.5)"
    box = {"ap_box": 41.0, "ap_box_low": 40.0, "ap_box_high": 42.0}
    detected = Measured(**box, ap_box50=60.5, ap_box75=44.1)
    said = "box AP 41.0 % (95 % interval 40.0 to 42.0)"
    assert result_text(detected) == f"{said}, AP50 60.5, AP75 44.1"
    masks = Measured(**box, ap_mask=38.0, ap_mask_low=37.0, ap_mask_high=39.0)
    assert result_text(masks) == f"mask AP 38.0 % (95 % interval 37.0 to 39.0); {said}"
