"""Laws of supernet training: named architectures, exact resumption, many processes as one."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.data import ImageData, Split, open_data, prepare_data
from supernet.network.blocks import Block
from supernet.network.supernet import Supernet
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.shared_weights.checkpoint import load_supernet
from supernet.shared_weights.trainer import (
    SupernetTrainer,
    accumulate_gradients,
    passes_of,
)
from supernet.training.batches import Shard
from supernet.training.finishing import Finish

RECIPE = load_recipe("supernet").model_copy(update={"batch_size": 8})
# Everything that draws random numbers or keeps a state.
FULL = RECIPE.model_copy(
    update={
        "drop_path": 0.2,
        "ema_decay": 0.9,
        "ema_warmup": True,
        "mixup": 0.8,
        "mixup_prob": 0.5,
        "random_erasing": 0.2,
    }
)

# No batch norm: its statistics see only a process's share of the batch.
SPACE = SearchSpace(
    name="small",
    img_size=8,
    patch_size=2,
    num_classes=10,
    stages=(
        StageChoices(
            dims=(8, 6),
            depths=(2,),
            mlp_ratios=(1,),
            choices=(
                MixerChoices(
                    kinds={
                        "neighborhood_attention": {"kernel_size": (3, 5), "num_heads": (1, 2)},
                        "elsa": {"kernel_size": (3,), "num_heads": (1, 2), "lam": (0.0, 1.0)},
                    }
                ),
            ),
        ),
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return prepare_data("digits", img_size=8, folder=tmp_path_factory.mktemp("data"))


def trainer(
    data: ImageData, steps: int = 6, *, recipe: Recipe = RECIPE, strategy: str = "sandwich"
) -> SupernetTrainer:
    return SupernetTrainer(SPACE, data, recipe, strategy=strategy, total_steps=steps, seed=0)


def weights(training: SupernetTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.supernet.state_dict().items()}


def test_training_stopped_and_resumed_equals_the_undisturbed_one(
    data: ImageData, tmp_path: Path
) -> None:
    undisturbed = trainer(data, recipe=FULL)
    undisturbed.run(6)
    first = trainer(data, recipe=FULL)
    first.run(2)
    first.save(tmp_path)
    second = trainer(data, recipe=FULL)
    assert second.load(tmp_path)
    second.run(1)
    second.save(tmp_path)
    third = trainer(data, recipe=FULL)
    assert third.load(tmp_path)
    third.run(100)
    assert third.step == 6
    expected = weights(undisturbed)
    for name, value in weights(third).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert undisturbed.ema is not None
    assert third.ema is not None
    averaged = undisturbed.ema.supernet.state_dict()
    for name, value in third.ema.supernet.state_dict().items():
        torch.testing.assert_close(value, averaged[name], rtol=0, atol=0)


@pytest.mark.parametrize("killed_in", ["save_model", "torch.save", "write_text"])
def test_a_killed_save_leaves_the_checkpoint_before_it(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    training = trainer(data)
    training.run(1)
    training.save(tmp_path)
    training.run(1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"supernet.shared_weights.checkpoint.{killed_in}", killed)
    with pytest.raises(KeyboardInterrupt):
        training.save(tmp_path)
    monkeypatch.undo()
    resumed = trainer(data)
    assert resumed.load(tmp_path)
    assert resumed.step == 1


def test_one_checkpoint_is_kept_and_anybody_can_read_its_weights(
    data: ImageData, tmp_path: Path
) -> None:
    training = trainer(data)
    for _ in range(3):
        training.run(1)
        training.save(tmp_path)
    index = json.loads((tmp_path / "supernet.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {
        "supernet.json",
        *index["files"].values(),
    }
    found = load_file(tmp_path / index["files"]["weights"])
    expected = weights(training)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_judging_takes_the_averaged_weights_where_there_are_some(
    data: ImageData, tmp_path: Path
) -> None:
    for decay in (None, 0.9):
        training = trainer(data, recipe=RECIPE.model_copy(update={"ema_decay": decay}))
        training.run(2)
        training.save(tmp_path)
        source = training.supernet if training.ema is None else training.ema.supernet
        loaded = load_supernet(tmp_path, SPACE).state_dict()
        assert all(torch.equal(v, loaded[n]) for n, v in source.state_dict().items())


def test_ten_kills_at_random_moments_change_nothing(data: ImageData, tmp_path: Path) -> None:
    steps, rng = 60, random.Random(0)
    undisturbed = trainer(data, steps, recipe=FULL, strategy="fair")
    undisturbed.run(steps)
    undisturbed.save(tmp_path / "undisturbed")
    folder = tmp_path / "killed"
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["supernet.shared_weights.trainer"])
    for kill_at in [*sorted(rng.sample(range(1, 40), 10)), None]:
        process = context.Process(
            target=_train_and_save_each_step, args=(str(data.folder), str(folder), steps)
        )
        process.start()
        while kill_at is not None and _saved_step(folder) < kill_at:
            assert process.is_alive()
            time.sleep(0.002)
        if kill_at is not None:
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
        process.join()
        assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)
    for name in ("weights", "averaged"):
        found, expected = (
            load_file(tmp_path / run / f"{name}-{steps}.safetensors")
            for run in ("killed", "undisturbed")
        )
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def _train_and_save_each_step(data_folder: str, folder: str, steps: int) -> None:
    torch.set_num_threads(1)
    training = trainer(open_data(Path(data_folder)), steps, recipe=FULL, strategy="fair")
    training.load(Path(folder))
    while training.step < steps:
        training.run(1)
        training.save(Path(folder))


def _saved_step(folder: Path) -> int:
    index = folder / "supernet.json"
    return json.loads(index.read_text())["step"] if index.exists() else 0


def test_the_later_architectures_learn_from_the_first() -> None:
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    largest, smallest = (SPACE.extreme("macs", largest=flag) for flag in (True, False))
    recipe = RECIPE.model_copy(update={"label_smoothing": 0.0})
    accumulate_gradients(supernet, [largest, smallest], images, labels, recipe, distil=True)
    found = supernet.head.weight.grad
    assert found is not None
    teacher = supernet(images, largest)
    hard = torch.nn.functional.cross_entropy(teacher, labels)
    soft = -(teacher.detach().softmax(1) * supernet(images, smallest).log_softmax(1)).sum(1).mean()
    (expected,) = torch.autograd.grad((hard + soft) / 2, supernet.head.weight)
    torch.testing.assert_close(found, expected)


def test_a_loss_that_stays_infinite_stops_with_its_architecture(data: ImageData) -> None:
    training = trainer(data, steps=100)
    torch.nn.init.constant_(training.supernet.head.weight, float("nan"))
    largest = SPACE.extreme("macs", largest=True)
    with pytest.raises(FloatingPointError, match=f"20 steps.*{largest.key}"):
        training.run(100)


def test_one_diverging_architecture_does_not_spoil_the_weights(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trainer(data)

    def diverge(supernet: Supernet, *_: object, **__: object) -> Tensor:
        for parameter in supernet.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        return torch.tensor(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr("supernet.shared_weights.trainer.accumulate_gradients", diverge)
        training.run(1)
    progress = training.run(1)
    assert progress.step == 2
    assert math.isfinite(progress.loss)
    assert all(value.isfinite().all() for value in weights(training).values())


def test_the_order_of_the_data_does_not_depend_on_the_architectures(data: ImageData) -> None:
    first, second = trainer(data), trainer(data)
    first.strategy, second.strategy = "uniform", "sandwich"
    images = [training._next_shards()[0].pixels for training in (first, second)]
    np.testing.assert_array_equal(images[0].numpy(), images[1].numpy())
    assert isinstance(data.split("train"), Split)


@pytest.mark.parametrize("strategy", ["uniform", "fair"])
def test_without_distillation_all_learn_the_labels(strategy: str) -> None:
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    named = [SPACE.sample(random.Random(seed)) for seed in range(3)]
    recipe = RECIPE.model_copy(update={"label_smoothing": 0.0})
    accumulate_gradients(supernet, named, images, labels, recipe)
    found = supernet.head.weight.grad
    losses = [torch.nn.functional.cross_entropy(supernet(images, a), labels) for a in named]
    (expected,) = torch.autograd.grad(torch.stack(losses).mean(), supernet.head.weight)
    torch.testing.assert_close(found, expected)


def test_mixed_precision_learns_in_bfloat16(data: ImageData) -> None:
    losses, seen = {}, {}
    for amp in ("none", "bf16"):
        training = trainer(data, recipe=RECIPE.model_copy(update={"amp": amp}))
        dtypes = seen[amp] = set[torch.dtype]()
        layers = [m for m in training.supernet.modules() if isinstance(m, torch.nn.Linear)]
        for layer in layers:
            layer.register_forward_hook(lambda *found, dtypes=dtypes: dtypes.add(found[2].dtype))
        training.supernet.head.register_forward_hook(
            lambda *found, dtypes=dtypes: dtypes.add(found[2].dtype)
        )
        losses[amp] = training.run(2).loss
        assert all(value.dtype == torch.float32 for value in weights(training).values())
    assert seen == {"none": {torch.float32}, "bf16": {torch.bfloat16}}
    # Its numbers have eight bits: other losses, and nearly the same.
    assert losses["bf16"] != losses["none"]
    assert losses["bf16"] == pytest.approx(losses["none"], rel=0.02)


def test_gradients_are_clipped_to_the_recipes_norm(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trainer(data, recipe=RECIPE.model_copy(update={"clip_grad": 0.01}))
    norms = []

    def seen(*_: object) -> None:
        gradients = [p.grad for p in training.supernet.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    monkeypatch.setattr(training.optimizer, "update", seen)
    training.run(2)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-4)


def test_shared_weights_may_be_trained_in_less_memory(data: ImageData) -> None:
    """The recipe says so, and every block is computed once more for each architecture."""
    calls = {False: 0, True: 0}
    found = {}
    for saves, seen in calls.items():
        recipe = FULL.model_copy(update={"gradient_checkpointing": saves})
        training = trainer(data, recipe=recipe)

        def count_calls(module: object, given: object, saves: bool = saves) -> None:
            calls[saves] += isinstance(module, Block)

        hook = torch.nn.modules.module.register_module_forward_pre_hook(count_calls)
        training.run(2)
        hook.remove()
        assert calls[saves] > seen
        found[saves] = weights(training)
    assert calls[True] == 2 * calls[False]
    for name, value in found[True].items():
        torch.testing.assert_close(value, found[False][name])


def test_another_optimizer_or_strategy_is_refused(data: ImageData) -> None:
    with pytest.raises(ValueError, match=r"trained with adamw.*'lion'"):
        trainer(data, recipe=RECIPE.model_copy(update={"optimizer": "lion"}))
    with pytest.raises(ValueError, match="write compile: false"):
        trainer(data, recipe=RECIPE.model_copy(update={"compile": True}))
    maps = load_recipe("volo_310e").token_labels
    with pytest.raises(ValueError, match="write token_labels: null"):
        trainer(data, recipe=RECIPE.model_copy(update={"token_labels": maps}))
    with pytest.raises(ValueError, match=r"Unknown strategy 'best'.*uniform, fair, sandwich"):
        trainer(data, strategy="best")


def test_the_sandwich_is_the_largest_and_the_smallest_by_macs(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where fewer multiplications need more parameters."""
    kinds = {
        "depthwise_conv": {"kernel_size": (7,)},
        "dynamic_depthwise_conv": {"kernel_size": (3,)},
    }
    stage = StageChoices(
        dims=(24,), depths=(1,), mlp_ratios=(1,), choices=(MixerChoices(kinds=kinds),)
    )
    space = dataclasses.replace(SPACE, stages=(stage,))
    both = [space.sample(random.Random(seed)) for seed in range(20)]
    by_macs = sorted({a.key: a for a in both}.values(), key=lambda a: count(a).macs)
    assert [count(a).params for a in by_macs] == sorted(
        (count(a).params for a in by_macs), reverse=True
    )
    seen: list[str] = []

    def look(
        _: Supernet, architectures: Sequence[Architecture], *__: object, **___: object
    ) -> Tensor:
        seen.extend(a.key for a in architectures)
        return torch.tensor(0.0)

    monkeypatch.setattr("supernet.shared_weights.trainer.accumulate_gradients", look)
    training = SupernetTrainer(space, data, RECIPE, strategy="sandwich", total_steps=5, seed=0)
    training._next_shards = lambda: [  # type: ignore[method-assign]
        Shard(
            pixels=torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
            labels=torch.zeros(2, dtype=torch.long),
            finish=Finish(mean=(0.0,) * 3, std=(1.0,) * 3),
            maps=None,
            share=1.0,
            read_seconds=0.0,
            augment_seconds=0.0,
        )
    ]
    training._take_step()
    assert seen[:2] == [by_macs[-1].key, by_macs[0].key]
    assert len(seen) == 4


def test_the_learning_rate_rises_for_a_tenth_and_falls_by_a_cosine(data: ImageData) -> None:
    training = trainer(data, 200)
    peak, low = RECIPE.peak_lr(RECIPE.batch_size), RECIPE.min_lr
    found = []
    for step in range(201):
        training.step = step
        found.append(training._learning_rate())
    epoch = len(data.split("train")) // RECIPE.batch_size
    warmup = min(20, 5 * epoch)
    rising = [peak * (step + 1) / warmup for step in range(warmup)]
    falling = [
        low + (peak - low) * (1 + math.cos(math.pi * (step - warmup) / (200 - warmup))) / 2
        for step in range(warmup, 201)
    ]
    assert found == pytest.approx([*rising, *falling], rel=1e-5)
    short = trainer(data, 3)
    assert short._learning_rate() == pytest.approx(peak)


@pytest.mark.parametrize(
    "sizes", [(10,), (40, 40), (16, 16, 16, 16, 16), (16, 15), (100, 100), (1,)]
)
def test_shards_go_through_together_up_to_64_images(sizes: tuple[int, ...]) -> None:
    shards = [
        Shard(
            pixels=torch.full((n, 2, 2, 3), i, dtype=torch.uint8),
            labels=torch.full((n,), i),
            finish=Finish(mean=(0.0,) * 3, std=(1 / 255,) * 3),
            maps=None,
            share=n / sum(sizes),
            read_seconds=0.0,
            augment_seconds=0.0,
        )
        for i, n in enumerate(sizes)
    ]
    found = list(passes_of(shards, torch.device("cpu")))
    # As many of the largest as have 64 images together, and never less than one.
    together = max(64 // max(sizes), 1)
    expected = [
        range(first, min(first + together, len(sizes))) for first in range(0, len(sizes), together)
    ]
    for (images, targets, share), numbers in zip(found, expected, strict=True):
        labels = [i for i in numbers for _ in range(sizes[i])]
        assert targets.tolist() == labels
        assert images[:, 0, 0, 0].tolist() == pytest.approx(labels)
        assert share == pytest.approx(sum(sizes[i] for i in numbers) / sum(sizes))
