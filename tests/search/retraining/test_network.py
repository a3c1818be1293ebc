"""Laws of retraining: what the folder holds, what is measured once, what is never overwritten."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, load_model

from search.retraining.network import RetrainOptions, RetrainResult, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.mixers import DepthwiseConv, WindowAttention
from supernet.data import ImageData
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import dump_recipe, load_recipe
from supernet.training.batches import eval_batches
from supernet.training.epoch_report import EpochReport
from supernet.training.training import TrainingStopped, evaluate
from tests.tiny_data import changed, noise, tiny_data

RECIPE = changed("micro", epochs=3, warmup_epochs=1, batch_size=8, seed=3)
MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
ARCHITECTURE = Architecture(
    img_size=8, patch_size=2, num_classes=3, stages=(Stage(dim=8, mixers=MIXERS),)
)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    folder = tmp_path / "data"
    folder.mkdir()
    return tiny_data(folder, *noise(40, 8, num_classes=3), num_test=12)


def folder_state(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in out.iterdir()}


def test_the_folder_holds_all_that_others_need(data: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[EpochReport] = []

    result = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out, on_epoch=seen.append))

    assert sorted(folder_state(out)) == [
        *("README.md", "architecture.json", "metrics.csv", "model.safetensors"),
        *("model_ema.safetensors", "recipe.yaml", "result.json", "tensorboard"),
    ]
    stored = json.loads((out / "architecture.json").read_text(encoding="utf-8"))
    assert Architecture.from_dict(stored) == ARCHITECTURE
    # Folders of older versions are known by these very bytes.
    text = json.dumps(ARCHITECTURE.to_dict(), indent=1) + "\n"
    assert (out / "architecture.json").read_text(encoding="utf-8") == text
    assert load_recipe(str(out / "recipe.yaml")) == RECIPE
    assert len((out / "metrics.csv").read_text(encoding="utf-8").splitlines()) == 1 + 3
    assert [report.epoch for report in seen] == [1, 2, 3]
    assert (result.params, result.macs) == (count(ARCHITECTURE).params, count(ARCHITECTURE).macs)
    assert (result.seed, result.start, result.num_train_images) == (3, "fresh", 28)


def test_the_result_is_the_accuracy_of_the_stored_weights_on_the_test_split(
    data: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out))
    network = build_subnet(ARCHITECTURE)

    for name, accuracy in (("model", result.raw), ("model_ema", result.ema)):
        load_model(network, str(out / f"{name}.safetensors"))
        batches = eval_batches(data.test_split(), data, batch_size=5)
        assert evaluate(network, batches, "cpu") == accuracy

    assert result.accuracy == result.ema
    assert result.raw.total == 12


def test_the_lines_of_the_card_load_the_weights_that_count(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    result = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out))
    card = (out / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert lines is not None
    monkeypatch.chdir(out)
    names: dict[str, torch.nn.Module] = {}

    exec(lines[1], names)

    network = names["network"]
    assert not network.training
    weights = load_file(out / "model_ema.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    for word in (f"{result.accuracy.top1:.2f} %", ARCHITECTURE.key, f"{result.params:,}", "micro"):
        assert word in card


def test_without_averaging_the_last_weights_count(data: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = retrain(ARCHITECTURE, data, changed(RECIPE, ema_decay=None), RetrainOptions(out=out))

    assert result.accuracy == result.raw
    assert not (out / "model_ema.safetensors").exists()
    assert '"model.safetensors"' in (out / "README.md").read_text(encoding="utf-8")


def test_a_stopped_retraining_goes_on_to_the_same_weights(data: ImageData, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=whole))
    seen: list[EpochReport] = []
    stopping = RetrainOptions(
        out=parts, on_epoch=seen.append, should_stop=lambda: len(seen) in (1, 2)
    )

    with pytest.raises(TrainingStopped):
        retrain(ARCHITECTURE, data, RECIPE, stopping)
    assert not (parts / "result.json").exists()
    result = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=parts))

    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert replace(result, seconds=0) == replace(expected, seconds=0)


def test_a_finished_retraining_is_returned_and_not_repeated(
    data: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    expected = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out))
    before = folder_state(out)
    seen: list[EpochReport] = []

    result = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out, on_epoch=seen.append))

    assert result == expected
    assert seen == []
    assert folder_state(out) == before


@pytest.mark.parametrize("seed", [None, 5])
def test_the_seed_is_the_recipes_unless_another_is_given(
    data: ImageData, tmp_path: Path, seed: int | None
) -> None:
    out = tmp_path / "out"

    result = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out, seed=seed))

    assert result.seed == (seed or 3)
    stored = yaml.safe_load((out / "recipe.yaml").read_text(encoding="utf-8"))
    assert stored["seed"] == result.seed


def test_inherited_weights_are_where_training_starts(data: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(9)
    inherited = {
        name: value.clone() for name, value in build_subnet(ARCHITECTURE).state_dict().items()
    }
    still = changed(
        RECIPE, epochs=1, warmup_epochs=0, lr=1e-12, warmup_lr=0, min_lr=0, weight_decay=0
    )
    out = tmp_path / "out"

    result = retrain(ARCHITECTURE, data, still, RetrainOptions(out=out, start=inherited))

    assert result.start == "inherited"
    for name, value in load_file(out / "model.safetensors").items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(value, inherited[name])


def test_a_folder_with_another_retraining_is_refused_and_kept(
    data: ImageData, tmp_path: Path
) -> None:
    options = RetrainOptions(out=tmp_path / "out")
    retrain(ARCHITECTURE, data, RECIPE, options)
    before = folder_state(options.out)
    wider = replace(ARCHITECTURE, stages=(Stage(dim=16, mixers=MIXERS),))

    with pytest.raises(ValueError, match=r"another architecture\.json.*Choose another folder"):
        retrain(wider, data, RECIPE, options)
    for other in (changed(RECIPE, lr=0.1), changed(RECIPE, seed=4)):
        with pytest.raises(ValueError, match=r"another recipe\.yaml.*Choose another folder"):
            retrain(ARCHITECTURE, data, other, options)

    assert folder_state(options.out) == before


def test_a_folder_with_something_else_is_refused_and_kept(data: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")

    with pytest.raises(ValueError, match="in use by something else"):
        retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out))

    assert folder_state(out) == {"thesis.tex": b"years of work"}


def test_a_folder_that_was_left_before_it_began_is_taken_over(
    data: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "architecture.json").write_text("{")
    (out / "recipe.yaml.partial").write_text(dump_recipe(RECIPE)[:20])

    retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=out))

    assert (out / "result.json").exists()


@pytest.mark.parametrize("changes", [{"img_size": 16}, {"num_classes": 4}])
def test_an_architecture_for_other_images_is_refused_before_anything_is_written(
    data: ImageData, tmp_path: Path, changes: dict[str, int]
) -> None:
    out = tmp_path / "out"

    with pytest.raises(ValueError, match="the data 8 pixels and 3 classes"):
        retrain(ARCHITECTURE.replace(**changes), data, RECIPE, RetrainOptions(out=out))

    assert not out.exists()


def test_a_result_survives_a_round_trip_through_json(data: ImageData, tmp_path: Path) -> None:
    result = retrain(ARCHITECTURE, data, RECIPE, RetrainOptions(out=tmp_path / "out"))

    assert RetrainResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_trainings_checkpoints_are_of_what_decides_it(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def listening(network: object, images: object, recipe: object, options: object) -> None:
        seen.append(options.identity)  # type: ignore[attr-defined]
        raise TrainingStopped("enough")

    monkeypatch.setattr("search.retraining.network.train", listening)
    start = dict(build_subnet(ARCHITECTURE).state_dict())
    for number, given in enumerate(({}, {"start": start}, {"identity": "abc"})):
        options = RetrainOptions(out=tmp_path / str(number), **given)  # type: ignore[arg-type]
        with pytest.raises(TrainingStopped):
            retrain(ARCHITECTURE, data, RECIPE, options)
    assert seen[2] == "abc"
    assert len(set(seen)) == 3
    assert all(seen)
