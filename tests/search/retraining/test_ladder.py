"""The ladder's steps: the same weights give the same accuracy, and every step stands alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from search.record.record import Record
from search.retraining import ladder
from search.retraining.ladder import STEPS, take_steps
from search.retraining.out_folder import claimed_training
from search.run_folder import RunFolder, create_run
from search.run_folder.settings import RunSettings
from searchspace.cost import count
from supernet.data import ImageData
from supernet.network.supernet import Supernet, build_subnet, extract
from supernet.recipes.recipe import Recipe, load_recipe, with_epochs
from supernet.shared_weights.checkpoint import load_supernet, save_supernet
from supernet.shared_weights.trainer import SupernetTrainer
from supernet.training.batches import eval_batches
from supernet.training.calibration import recalibrate
from supernet.training.evaluation import Accuracy, evaluate
from supernet.training.training import TrainingOptions, train

SPACE = """
name: tiny
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}, {dim: 16, depth: 1}]
mixers:
  window_attention: {window_size: 2, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    folder = tmp_path_factory.mktemp("ladder")
    (folder / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(
        data="digits",
        budget="1cpu-minutes",
        space=str(folder / "tiny.yaml"),
        trial_recipe="quick",
        projections="shared",
    )
    with create_run(folder / "run", settings) as opened:
        recipe = load_recipe("supernet")
        trainer = SupernetTrainer(
            opened.space(),
            opened.data(),
            recipe,
            strategy="uniform",
            total_steps=30,
            seed=0,
            sharing=settings.sharing,
        )
        trainer.run(30)
        trainer.save(opened.folder / "supernet")
        add_network(opened.record, opened)
        opened.record.set_meta("plan", {})
        yield opened


def add_network(record: Record, run: RunFolder) -> None:
    architecture = run.space().extreme("macs", largest=False)
    cost = count(architecture)
    record.add_architecture(architecture, params=cost.params, macs=cost.macs)


def test_every_step_is_judged_on_the_same_images(run: RunFolder) -> None:
    rungs = {rung.step: rung.accuracy for rung in take_steps(run, 1, epochs=1)}
    assert tuple(rungs) == STEPS
    assert {accuracy.total for accuracy in rungs.values()} == {run.data().sizes["search"]}
    # Extraction is exact, so nothing is won or lost by it.
    assert rungs["extracted"] == rungs["inside"]


def test_a_step_taken_alone_gives_the_same(run: RunFolder) -> None:
    for step in STEPS:
        (alone,) = take_steps(run, 1, steps=(step,), epochs=1)
        assert alone in list(take_steps(run, 1, epochs=1))


def test_an_unknown_step_or_a_run_without_a_supernet_is_refused(
    run: RunFolder, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"'polished'. The steps are inside, extracted"):
        list(take_steps(run, 1, steps=("polished",), epochs=1))
    with create_run(tmp_path / "new", run.settings) as fresh:
        add_network(fresh.record, fresh)
        fresh.record.set_meta("plan", {})
        with pytest.raises(ValueError, match="No supernet in"):
            list(take_steps(fresh, 1, epochs=1))


def test_each_step_is_what_it_says(run: RunFolder) -> None:
    """By hand: the same weights, images, statistics and recipe, step by step."""
    data, architecture = run.data(), run.architecture(1)
    supernet = load_supernet(run.supernet_folder(), run.space())
    search = list(eval_batches(data.split("search"), data, 100))
    calibration = [x for x, _ in eval_batches(data.split("train"), data, 256)][:8]
    recipe = with_epochs(load_recipe("quick"), 2)
    rungs = {rung.step: rung for rung in take_steps(run, 1, epochs=2, seed=3)}

    network = extract(supernet, architecture)
    assert rungs["extracted"].accuracy == evaluate(network, search, "cpu")
    recalibrate(network, calibration)
    assert rungs["recalibrated"].accuracy == evaluate(network, search, "cpu")

    def trained(network: Supernet, recipe: Recipe) -> Accuracy:
        options = TrainingOptions(
            train_split=data.split("train"), eval_split=data.split("search"), seed=3
        )
        return train(network, data, recipe, options).accuracy

    gentle = recipe.model_copy(update={"lr": 0.1 * recipe.lr})
    assert gentle.warmup_lr < gentle.lr
    assert gentle.min_lr < gentle.lr
    assert rungs["fine-tuned"].accuracy == trained(network, gentle)
    torch.manual_seed(3)
    assert rungs["retrained"].accuracy == trained(build_subnet(architecture), recipe)
    assert rungs["retrained"].about == "2 epochs of quick from scratch, lr 0.002"
    assert rungs["fine-tuned"].about == "2 epochs of quick from the supernet's weights, lr 0.0002"


def test_a_gentle_rate_is_never_below_the_floors_of_the_schedule(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Recipe] = []
    real = ladder.train

    def listening(network: nn.Module, data: ImageData, recipe: Recipe, options: Any) -> Any:
        seen.append(recipe)
        return real(network, data, recipe, options)

    monkeypatch.setattr(ladder, "train", listening)
    high = load_recipe("quick").model_copy(update={"warmup_lr": 1e-3, "min_lr": 1e-6})
    monkeypatch.setattr(ladder, "load_recipe", lambda name: high)
    list(take_steps(run, 1, steps=("fine-tuned",), epochs=3, seed=9))
    (recipe,) = seen
    assert (recipe.lr, recipe.warmup_lr, recipe.min_lr) == pytest.approx((2e-4, 2e-4, 1e-6))


def test_every_network_has_a_folder_of_its_own(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    class Trained:
        accuracy = Accuracy(1, 1, 2)

    def listening(network: nn.Module, data: ImageData, recipe: Recipe, options: Any) -> Trained:
        seen.append(options.out)
        return Trained()

    monkeypatch.setattr(ladder, "train", listening)
    largest = run.space().extreme("macs", largest=True)
    number = run.record.add_architecture(largest, params=1, macs=1)
    for one in (1, number):
        list(take_steps(run, one, steps=("fine-tuned", "retrained"), epochs=2, seed=4))

    assert seen == [
        run.folder / "ladder" / run.architecture(one).key / f"{step}-2e-4"
        for one in (1, number)
        for step in ("fine-tuned", "retrained")
    ]


def test_weights_that_changed_meanwhile_are_tuned_anew(run: RunFolder, tmp_path: Path) -> None:
    """What lies in the folder of the ladder began with the weights that the supernet had then."""
    folder = run.folder / "supernet"
    shutil.copytree(folder, tmp_path / "supernet")
    first, same = (
        next(iter(take_steps(run, 1, steps=("fine-tuned",), epochs=1, seed=5))) for _ in range(2)
    )
    assert first == same
    torch.manual_seed(7)
    other = Supernet(run.space(), sharing=run.settings.sharing)
    save_supernet(folder, step=1, supernet=other, averaged=None, training={})
    try:
        found = next(iter(take_steps(run, 1, steps=("fine-tuned",), epochs=1, seed=5)))
        shutil.rmtree(run.folder / "ladder")
        expected = next(iter(take_steps(run, 1, steps=("fine-tuned",), epochs=1, seed=5)))
    finally:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "supernet", folder)
    assert found == expected
    assert found.accuracy != first.accuracy


def test_every_step_sees_the_part_of_an_image_that_the_trainings_recipe_sees(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    look: dict[str, Any] = {"crop_pct": 0.75, "eval_interpolation": "bilinear"}
    recipe = load_recipe("quick").model_copy(update=look)
    monkeypatch.setattr(ladder, "load_recipe", lambda name: recipe)
    seen: list[torch.Tensor] = []

    def looking(network: nn.Module, batches: Any, *_: Any, **__: Any) -> Accuracy:
        seen.extend(images for images, _ in batches)
        return Accuracy(1, 1, 2)

    monkeypatch.setattr(ladder, "evaluate", looking)
    list(take_steps(run, 1, steps=("inside",), epochs=1))
    data = run.data()
    expected = eval_batches(data.split("search"), data, 256, 0.75, interpolation="bilinear")
    torch.testing.assert_close(torch.cat(seen), torch.cat([images for images, _ in expected]))


def test_one_process_trains_in_a_folder_of_the_ladder(run: RunFolder) -> None:
    steps = iter(take_steps(run, 1, steps=("retrained",), epochs=1, seed=8))
    with (
        claimed_training(run.folder / "ladder" / run.architecture(1).key),
        pytest.raises(ValueError, match="Another process trains in"),
    ):
        next(steps)
