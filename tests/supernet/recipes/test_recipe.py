"""Laws of recipes: shipped ones are complete, wrong ones are refused with place and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from torch import nn

from configs import config_names
from supernet.recipes.recipe import Recipe, dump_recipe, in_shards, load_recipe, with_epochs
from supernet.training.optimization import build_optimizer, build_scheduler
from tests.tiny_data import changed

SHIPPED = config_names("recipes")


def write(folder: Path, changes: dict[str, object]) -> Path:
    """Write the shipped micro recipe with some values changed, or left out where ``...``."""
    values = {**load_recipe("micro").model_dump(mode="json"), **changes}
    path = folder / "mine.yaml"
    kept = {key: value for key, value in values.items() if value is not ...}
    path.write_text(yaml.safe_dump(kept), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_has_the_name_of_its_file_and_survives_a_round_trip(
    name: str, tmp_path: Path
) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "copy.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")

    assert recipe.name == name
    assert recipe.about
    assert recipe.source
    assert load_recipe(str(path)) == recipe


def test_every_field_is_explained_and_must_be_given() -> None:
    for name, field in Recipe.model_fields.items():
        # What a teacher's opinion counts for is read only where there is one.
        assert field.is_required() or name == "distillation", name
        assert name in ("about", "source") or field.description, name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epoch": 3}, ["epoch: unknown key", "Did you mean 'epochs'?"]),
        ({"lr": ...}, ["lr: the key 'lr' is missing", "Add it"]),
        ({"lr": "fast"}, ["lr:", "'fast'", "Correct the value"]),
        ({"epochs": 0}, ["epochs:", "greater than or equal to 1", "got 0"]),
        ({"label_smoothing": 1.0}, ["label_smoothing:", "less than 1", "got 1.0"]),
        ({"lr": float("nan")}, ["lr:", "nan"]),
        ({"betas": [0.9]}, ["betas", "Correct the value"]),
        ({"amp": "int8"}, ["amp:", "'bf16'", "'int8'"]),
        ({"optimizer": "sgdd"}, ["optimizer:", "'sgdd'", "adamw"]),
        ({"optimizer": "adahessian"}, ["optimizer:", "'adahessian' with two betas", "adamw"]),
        ({"optimizer": "sgd"}, ["optimizer:", "'sgd' with two betas", "adamw"]),
        ({"auto_augment": "rand-x9"}, ["auto_augment:", "'rand-x9'", "or null"]),
        ({"auto_augment": "strong"}, ["auto_augment:", "'strong'", "or null"]),
        ({"batch_size": 33}, ["even", "got 33"]),
        ({"shard_size": 48}, ["shard_size must divide batch_size", "got 48 and 128"]),
        (
            {"token_labels": {"dense_weight": 0.5}},
            ["token_labels.cls_weight", "is missing"],
        ),
        ({"warmup_epochs": 31}, ["warmup_epochs 31 and epochs 30", "Shorten"]),
        ({"lr_scaling": "linear"}, ["lr_base_batch None", "Write a number"]),
        ({"lr_base_batch": 512}, ["lr_scaling literal", "null for literal"]),
        ({"min_lr": 1.0}, ["min_lr 1", "Lower"]),
        ({"random_resized_crop": [0.1, 1.0]}, ["random_crop_padding", "got [0.1, 1.0] and 4"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_rule_value_and_remedy(
    changes: dict[str, object], words: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path, changes)

    with pytest.raises(ValueError, match=r"mine\.yaml: ") as caught:
        load_recipe(str(path))

    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 1\nlr: 2\n", "the key 'lr' occurs twice"),
        ("- lr\n", "a recipe is a mapping"),
        ("lr: [1\n", "the file is not YAML"),
        ("", "a recipe is a mapping of settings, got None"),
    ],
)
def test_text_that_is_no_recipe_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match=words):
        load_recipe(str(path))


@pytest.mark.parametrize("epochs", [1, 2, 31, 310, 620])
def test_another_length_keeps_the_shape_of_the_schedule(epochs: int) -> None:
    recipe = changed("swin_300e", cooldown_epochs=10)

    other = with_epochs(recipe, epochs)

    assert other.total_epochs == epochs
    assert other.warmup_epochs / other.epochs == pytest.approx(20 / 300)
    assert other.cooldown_epochs == round(epochs * 10 / 310)


@pytest.mark.parametrize(("epochs", "schedule"), [(1, "step"), (10, "step"), (31, "epoch")])
def test_a_short_training_is_no_warm_up_only(epochs: int, schedule: str) -> None:
    recipe = with_epochs(load_recipe("elsa_swin_310e"), epochs)
    optimizer = build_optimizer(nn.Linear(2, 2), recipe)
    scheduler = build_scheduler(optimizer, recipe, steps_in_epoch=30)
    rates = []
    for step in range(30 * epochs):
        scheduler.step_update(step)
        scheduler.step(step // 30)
        rates.append(optimizer.param_groups[0]["lr"])

    assert recipe.schedule == schedule
    # A fifteenth of the cosine's epochs rises, as of 300 epochs 20.
    assert sum(rate == recipe.warmup_lr for rate in rates) <= len(rates) / 15
    assert max(rates) > 0.9 * recipe.lr


def test_learning_rates_are_scaled_with_the_batch_only_where_the_recipe_says_so() -> None:
    # DemystifyLocalViT and Swin: 5e-4 * batch / 512.
    assert load_recipe("swin_300e").peak_lr(1024) == pytest.approx(1e-3)
    assert load_recipe("swin_300e").peak_lr(512) == pytest.approx(5e-4)
    assert load_recipe("micro").peak_lr(1024) == load_recipe("micro").lr


def test_batches_are_split_into_even_shards_or_stay_whole() -> None:
    recipe = changed(load_recipe("micro"), batch_size=64, shard_size=None)

    assert in_shards(recipe, 2).shard_size == 32
    assert in_shards(recipe, 1) == recipe
    # 64 / 3 is no number, and 6 / 2 = 3 has an image without a partner to mix with.
    assert in_shards(recipe, 3) == recipe
    odd = changed(recipe, batch_size=6)
    assert in_shards(odd, 2) == odd
