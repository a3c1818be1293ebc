"""A network sees images as it saw those of its training, whatever the images are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from search.retraining.evaluate import evaluate_retrained
from search.retraining.export import export_retrained, pretrained_cfg
from search.retraining.finished import find_retrained
from search.retraining.model_card import model_card
from search.retraining.network import RetrainOptions, retrain
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv
from supernet.data import ImageData, prepare_data
from supernet.training.batches import eval_batches, seen_share
from tests.tiny_data import changed, noise, tiny_data

SIZE = 8
ARCHITECTURE = Architecture(
    img_size=SIZE,
    patch_size=2,
    num_classes=2,
    stages=(Stage(dim=8, mixers=(DepthwiseConv(kernel_size=3),)),),
)
CLASSES = ("class0", "class1")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Return the folder of a retraining; what its weights are worth does not matter."""
    folder = tmp_path / "run" / "retrain" / "1-micro-1e-s0"
    (tmp_path / "images").mkdir()
    data = tiny_data(tmp_path / "images", *noise(24, SIZE), num_test=8)
    recipe = changed("micro", epochs=1, warmup_epochs=0, batch_size=8, ema_decay=None)
    retrain(ARCHITECTURE, data, recipe, RetrainOptions(out=folder))
    return folder


def other_images(root: Path, size: int, brightness: float) -> npt.NDArray[np.uint8]:
    """Write an ImageFolder; return its test images (N, size, size, 3) in the order of names."""
    rng = np.random.default_rng(3)
    found = []
    for split, count in (("train", 4), ("test", 12)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = (rng.integers(0, 256, (size, size, 3)) * brightness).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index:02}.png")
                if split == "test":
                    found.append(pixels)
    return np.stack(found)


@pytest.mark.parametrize("brightness", [1.0, 0.5])
def test_other_images_are_normalised_by_the_networks_own_statistics(
    trained: Path, tmp_path: Path, brightness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = other_images(tmp_path / "other", SIZE, brightness)
    seen: list[torch.Tensor] = []

    def noted(*args: object, **options: object) -> object:
        for images, labels in eval_batches(*args, **options):  # type: ignore[arg-type]
            seen.append(images)
            yield images, labels

    monkeypatch.setattr("search.retraining.evaluate.eval_batches", noted)
    evaluate_retrained(
        str(trained),
        data=str(tmp_path / "other"),
        real_labels=None,
        device="cpu",
        folder=tmp_path / "prepared",
    )
    result = json.loads((trained / "result.json").read_text())
    normal = (pixels / 255 - result["mean"]) / result["std"]
    expected = sorted(image.mean() for image in normal)
    found = sorted(image.mean().item() for image in torch.cat(seen))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_images_are_cropped_as_the_networks_own(trained: Path, tmp_path: Path) -> None:
    # The network saw whole images; these are stored with room for crops.
    other_images(tmp_path / "other", 3 * SIZE, 1.0)
    data = prepare_data(str(tmp_path / "other"), img_size=SIZE, folder=tmp_path / "prepared")
    assert data.stored_size > SIZE
    assert find_retrained(str(trained)).result.crop_pct == 1.0
    split = data.test_split()
    ((whole, _),) = eval_batches(split, data, 64, 1.0)
    ((cropped, _),) = eval_batches(split, data, 64)
    assert not whole.equal(cropped)
    corner = np.asarray(split.images)[:, 0, 0].astype(float)
    # The first pixel of the whole image is near the stored corner.
    normal = (corner / 255 - data.mean) / data.std
    assert np.corrcoef(whole[:, :, 0, 0].numpy().ravel(), normal.ravel())[0, 1] > 0.8


@pytest.mark.parametrize(
    ("stored", "crop_pct", "is_streamed", "expected"),
    [(8, None, False, 1.0), (9, None, False, 8 / 9), (9, 0.9, False, 0.9), (9, None, True, 0.875)],
)
def test_the_share_that_is_seen_is_known(
    tmp_path: Path, stored: int, crop_pct: float | None, is_streamed: bool, expected: float
) -> None:
    data = tiny_data(tmp_path, *noise(12, stored), img_size=SIZE)
    fields = {name: getattr(data, name) for name in ImageData.__dataclass_fields__}
    found = seen_share(ImageData(**{**fields, "is_streamed": is_streamed}), crop_pct)
    assert found == pytest.approx(expected)


def test_the_share_that_is_seen_shows_what_no_share_shows(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, *noise(12, 9), img_size=SIZE)
    ((plain, _),) = eval_batches(data.test_split(), data, 64)
    ((shared, _),) = eval_batches(data.test_split(), data, 64, seen_share(data, None))
    torch.testing.assert_close(plain, shared)


@pytest.mark.parametrize(("is_streamed", "mode"), [(False, "center"), (True, "squash")])
def test_only_streamed_images_can_be_squashed_and_all_that_is_left_says_so(
    tmp_path: Path, is_streamed: bool, mode: str
) -> None:
    """Prepared arrays hold central squares, whatever a recipe wants."""
    other_images(tmp_path / "images", 3 * SIZE, 1.0)
    data = prepare_data(str(tmp_path / "images"), img_size=SIZE, folder=tmp_path / "run" / "data")
    out = tmp_path / "run" / "retrain" / "1"
    recipe = changed("micro", epochs=1, warmup_epochs=0, batch_size=8, crop_mode="squash")
    data = data.streamed() if is_streamed else data
    retrain(ARCHITECTURE, data, recipe, RetrainOptions(out=out))
    found = find_retrained(str(out))

    assert found.result.crop_mode == found.crop_mode == pretrained_cfg(found)["crop_mode"] == mode
    card = (out / "README.md").read_text()
    assert ("of both sides is seen" in card) == is_streamed
    assert ("of the side of the central square is seen" in card) != is_streamed


def test_result_export_card_and_configuration_agree(trained: Path, tmp_path: Path) -> None:
    found = find_retrained(str(trained))
    result = json.loads((trained / "result.json").read_text())
    export_retrained(str(trained), ["safetensors", "torch"], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    extra = {"pretrained_cfg.json": ""}
    torch.export.load(tmp_path / "out" / "model.pt2", extra_files=extra)
    card = model_card(found.architecture, found.recipe, found.result)
    for cfg in (config, json.loads(extra["pretrained_cfg.json"])):
        for name in ("mean", "std", "crop_pct"):
            assert cfg[name] == result[name]
        assert cfg["interpolation"] == found.recipe.eval_interpolation
    for value in (*result["mean"], *result["std"]):
        assert f"{value:.4f}" in card
    assert "so that 1 of the side" in card


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_onnx_file_says_it_too(trained: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="The extra 'export' is not installed.")
    export_retrained(str(trained), ["onnx"], tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    said = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    expected = pretrained_cfg(find_retrained(str(trained)))
    assert {name: said[name] for name in expected} == expected
