"""The schedule of the shared weights, and what a training remembers of its bad steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from supernet.data import ImageData, prepare_data
from supernet.training.batches import Shard
from supernet.training.finishing import Finish
from tests.supernet.shared_weights.test_trainer import RECIPE, trainer

TWO_IMAGES = Shard(
    pixels=torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    labels=torch.tensor([0, 1]),
    finish=Finish(mean=(0.0,) * 3, std=(1.0,) * 3),
    maps=None,
    share=1.0,
    read_seconds=0.0,
    augment_seconds=0.0,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return prepare_data("digits", img_size=8, folder=tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(("steps", "batch", "warmup"), [(40, 8, 4), (5, 8, 1), (60, 512, 6)])
def test_rates_rise_for_a_tenth_and_fall_as_a_cosine(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, steps: int, batch: int, warmup: int
) -> None:
    recipe = RECIPE.model_copy(update={"batch_size": batch, "min_lr": 1e-4})
    training = trainer(data, steps, recipe=recipe)
    monkeypatch.setattr(training, "_next_shards", lambda: [TWO_IMAGES])
    rates: list[set[float]] = []

    def listen(used: object, applies: object) -> None:
        rates.append({group["lr"] for group in training.optimizer.param_groups})

    monkeypatch.setattr(training.optimizer, "update", listen)

    progress = training.run(10**6)

    expected = [recipe.lr * (step + 1) / warmup for step in range(warmup)]
    for step in range(warmup, steps):
        share = (step - warmup) / (steps - warmup)
        falls = 0.5 * (1 + math.cos(math.pi * share))
        expected.append(1e-4 + (recipe.lr - 1e-4) * falls)
    assert [rate for (rate,) in rates] == pytest.approx(expected)
    assert progress.lr == pytest.approx(1e-4)
    assert progress.step == steps


def test_a_rate_that_is_scaled_with_the_batch_ends_at_a_scaled_one(data: ImageData) -> None:
    scaled = {"lr_scaling": "linear", "lr_base_batch": 4, "batch_size": 8, "min_lr": 1e-4}
    training = trainer(data, 40, recipe=RECIPE.model_copy(update=scaled))
    training.step = 40

    assert training._learning_rate() == pytest.approx(2e-4)


def test_a_long_schedule_rises_for_five_epochs_at_most(data: ImageData) -> None:
    # 512 images a step are two steps an epoch: ten of a thousand steps.
    recipe = RECIPE.model_copy(update={"batch_size": 512})
    training = trainer(data, 1_000, recipe=recipe)
    rates = []
    for step in (0, 9, 10):
        training.step = step
        rates.append(training._learning_rate())
    assert rates == pytest.approx([recipe.lr / 10, recipe.lr, recipe.lr])


def test_bad_steps_count_only_in_a_row(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    training = trainer(data, 1_000)
    monkeypatch.setattr(training, "_next_shards", lambda: [TWO_IMAGES])
    good = [*[False] * 19, True, *[False] * 19, True, *[False] * 20]
    outcomes = iter(good)
    monkeypatch.setattr(
        "supernet.shared_weights.shared_training.apply_gradients",
        lambda *_, **__: torch.tensor(next(outcomes)),
    )
    with pytest.raises(FloatingPointError, match="not finite in 20 steps"):
        training.run(1_000)
    assert next(outcomes, None) is None


def test_a_checkpoint_remembers_bad_steps(data: ImageData, tmp_path: Path) -> None:
    first, second = trainer(data, 50), trainer(data, 9)
    torch.nn.init.constant_(first.supernet.head.weight, float("nan"))
    first.run(7)
    first.save(tmp_path)
    assert second.load(tmp_path)
    assert (second.step, second.total_steps) == (7, 50)
    with pytest.raises(FloatingPointError, match="20 steps, at last at step 19 "):
        second.run(13)


def test_the_loss_of_a_call_is_the_mean_of_its_steps(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trainer(data, 3)
    losses = iter([1.0, 2.0, 6.0])

    def step() -> torch.Tensor:
        training.step += 1
        return torch.tensor(next(losses))

    monkeypatch.setattr(training, "_take_step", step)
    assert training.run(10).loss == 3.0
    assert math.isnan(training.run(10).loss)
