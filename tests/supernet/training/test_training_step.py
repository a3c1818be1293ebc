"""A step's shards: which random numbers each draws, how they weigh, what statistics become."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.recipes.recipe import Recipe
from supernet.training import training as training_module
from supernet.training import training_step
from supernet.training.augmentation import Augmentation
from supernet.training.batches import Shard, TrainLoader, with_shards_for
from supernet.training.checkpoint import latest_checkpoint
from supernet.training.finishing import Finish
from supernet.training.optimization import build_optimizer
from supernet.training.seeding import derived_seed
from supernet.training.training import (
    CheckpointsDifferError,
    TrainingOptions,
    TrainingStopped,
    train,
)
from supernet.training.training_step import BatchStatistics, Gradients
from tests.tiny_data import changed, noise, tiny_data

RECIPE = changed("quick", amp="none", label_smoothing=0.1)


# A network sees a hundredth of each byte.
HUNDREDTHS = Finish(mean=(0.0,) * 3, std=(100 / 255,) * 3)


def shards_of(pixels: Tensor, labels: Tensor, sizes: Sequence[int]) -> list[Shard]:
    """Split bytes (B, C, H, W)."""
    parts = zip(pixels.split(list(sizes)), labels.split(list(sizes)), strict=True)
    return [
        Shard(
            pixels=some.permute(0, 2, 3, 1),
            labels=targets,
            finish=HUNDREDTHS,
            maps=None,
            share=len(some) / len(pixels),
            read_seconds=0.0,
            augment_seconds=0.0,
        )
        for some, targets in parts
    ]


def pixels_of(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 4, 4), dtype=torch.uint8)


def network_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def gradients_of(network: nn.Module, recipe: Recipe = RECIPE) -> Gradients:
    cpu = torch.device("cpu")
    return Gradients(network, recipe, cpu, torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_a_shard_draws_the_numbers_of_its_place_in_the_batch(
    monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int
) -> None:
    asked: list[tuple[Any, ...]] = []
    derived = training_step.derived_seed

    def look(*parts: Any) -> int:
        asked.append(parts)
        return derived(*parts)

    monkeypatch.setattr(training_step, "derived_seed", look)
    monkeypatch.setattr(training_step, "process_place", lambda: (rank, world_size))
    monkeypatch.setattr(training_step, "add_up", lambda tensors: None)
    shards = shards_of(pixels_of(9), torch.arange(9) % 5, (3, 3, 3))

    gradients_of(network_of()).of_step(shards, seed=77)

    # Shards are dealt out like cards.
    places = [rank, rank + world_size, rank + 2 * world_size]
    numbers = [(parts[1], parts[2]) for parts in asked]
    assert numbers == [(what, place) for place in places for what in ("shard", "box")]
    assert all(isinstance(parts[2], int) and parts[0] == 77 for parts in asked)


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (5, 3), (1, 2, 5)])
def test_gradients_and_loss_are_those_of_the_shards_by_their_shares(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    pixels, labels = pixels_of(8), torch.arange(8) % 5
    images = pixels / 100
    network, twin = network_of(), network_of()
    network.train()

    loss = gradients_of(network).of_step(shards_of(pixels, labels, sizes), seed=3)

    conv, norm, _, head = twin
    total = torch.tensor(0.0)
    means, variances = torch.zeros(4), torch.zeros(4)
    for some, targets in zip(images.split(list(sizes)), labels.split(list(sizes)), strict=True):
        features, share = conv(some), len(some) / 8
        # One batch norm after the other, each from the statistics (0, 1) and with momentum 0.1.
        mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3), unbiased=False)
        unbiased = features.var((0, 2, 3)).detach()
        means += share * 0.1 * mean.detach()
        variances += share * (0.9 + 0.1 * unbiased)
        by_channel = (1, 4, 1, 1)
        normed = (features - mean.view(by_channel)) / (variance.view(by_channel) + 1e-5).sqrt()
        normed = normed * norm.weight.view(by_channel) + norm.bias.view(by_channel)
        logits = head(normed.flatten(1))
        # Cross entropy with smoothed labels, written out.
        smooth = torch.full_like(logits, 0.1 / 5)
        smooth[torch.arange(len(some)), targets] += 0.9
        total = total - share * (smooth * logits.log_softmax(1)).sum(1).mean()
    total.backward()
    assert loss == pytest.approx(float(total.detach()), rel=1e-6)
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    found = network[1]
    assert isinstance(found, nn.BatchNorm2d)
    torch.testing.assert_close(found.running_mean, means)
    torch.testing.assert_close(found.running_var, variances)
    # However many shards there are, it was one batch.
    assert found.num_batches_tracked == 1


def test_a_step_that_is_left_out_leaves_no_trace_in_the_statistics() -> None:
    network = network_of()
    network.train()
    network(torch.randn(4, 3, 4, 4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kept = BatchStatistics(network)
    network(10 * torch.randn(4, 3, 4, 4))
    assert not torch.equal(network.state_dict()["1.running_mean"], before["1.running_mean"])

    kept.restore()

    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("most", "sizes"), [(1, [6, 1, 4]), (28, [7, 4]), (29, [11])])
def test_sums_over_processes_are_put_back_where_they_came_from(
    most: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with the same tensors: everything doubles, whatever its shape and type.

    Nothing is read before its message has arrived, and the next is sent before that.
    """
    events: list[str] = []

    class Work:
        def __init__(self, message: Tensor) -> None:
            self.message = message

        def wait(self) -> None:
            events.append(f"wait {self.message.numel()}")
            self.message.mul_(2)

    def send(message: Tensor, async_op: bool) -> Work:
        events.append(f"send {message.numel()}")
        assert async_op
        return Work(message)

    monkeypatch.setattr(training_step.dist, "all_reduce", send)
    monkeypatch.setattr(training_step, "MESSAGE_BYTES", most)
    tensors = [torch.ones(2, 3), torch.tensor(5.0), torch.full((4,), 7.0, dtype=torch.bfloat16)]

    training_step.add_up(tensors)

    assert [t.flatten().tolist() for t in tensors] == [[2.0] * 6, [10.0], [14.0] * 4]
    assert [t.dtype for t in tensors] == [torch.float32, torch.float32, torch.bfloat16]
    assert events == [f"send {size}" for size in sizes] + [f"wait {size}" for size in sizes]


@pytest.mark.parametrize(("shard_size", "rank"), [(None, 0), (4, 0), (4, 1)])
def test_a_batch_is_augmented_by_the_seed_of_its_epoch_step_and_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_size: int | None, rank: int
) -> None:
    """A batch in one piece has no shard number, so that its images are those of older versions."""
    data = tiny_data(tmp_path, *noise(44, 8))
    seeds: list[int] = []
    augment = Augmentation.__call__

    def look(self: Augmentation, images: Any, seed: int, cropped: Any) -> Any:
        seeds.append(seed)
        return augment(self, images, seed, cropped)

    monkeypatch.setattr(Augmentation, "__call__", look)
    recipe = changed(RECIPE, batch_size=8, shard_size=shard_size)
    world_size = 1 if shard_size is None else 2
    split = data.split("train")
    loader = TrainLoader(split, data, recipe, rank=rank, world_size=world_size)
    list(loader.epoch(3, 5))
    steps = len(split) // 8
    shards = [()] if shard_size is None else [(rank,)]
    expected = [(5, "batch", 3, step, *shard) for step in range(steps) for shard in shards]
    assert seeds == [derived_seed(*parts) for parts in expected]


def test_a_training_asks_for_its_epochs_by_number_and_its_own_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data(tmp_path, *noise(44, 8))
    asked: list[tuple[int, int]] = []
    epoch = TrainLoader.epoch

    def look(self: TrainLoader, number: int, seed: int, **more: Any) -> Any:
        asked.append((number, seed))
        return epoch(self, number, seed, **more)

    monkeypatch.setattr(TrainLoader, "epoch", look)
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=9
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    train(network, data, changed(RECIPE, epochs=2, warmup_epochs=0, batch_size=8), options)
    total = changed(RECIPE, epochs=2, warmup_epochs=0).total_epochs
    assert asked == [(number, 9) for number in range(total)]


@pytest.mark.parametrize(
    ("bad_loss", "is_there"), [("stop", False), ("skip", False), ("rollback", True)]
)
def test_a_checkpoint_before_the_first_epoch_is_for_those_that_go_back_to_it(
    tmp_path: Path, bad_loss: str, is_there: bool
) -> None:
    (tmp_path / "data").mkdir()
    data = tiny_data(tmp_path / "data", *noise(44, 8))
    options = TrainingOptions(
        train_split=data.split("train"),
        eval_split=data.split("search"),
        seed=0,
        out=tmp_path / "out",
        should_stop=lambda: True,
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    with pytest.raises(TrainingStopped):
        train(network, data, changed(RECIPE, batch_size=8, bad_loss=bad_loss), options)
    found = latest_checkpoint(tmp_path / "out") if (tmp_path / "out").exists() else None
    assert (found is not None) == is_there


def test_processes_add_up_the_gradients_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a step does not use have none."""

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(48, 5), nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    monkeypatch.setattr(training_step, "process_place", lambda: (0, 2))
    messages: list[list[Tensor]] = []
    monkeypatch.setattr(training_step, "add_up", lambda tensors: messages.append(list(tensors)))
    network = Partly()

    gradients_of(network).of_step(shards_of(torch.randn(4, 3, 4, 4), torch.arange(4), (4,)), seed=1)

    ((weight, bias, loss),) = messages
    assert (weight.shape, bias.shape, loss.shape) == ((5, 48), (5,), ())


@pytest.mark.parametrize(("others", "fits"), [((2.0, 0.0), True), ((0.0, 0.0), False)])
def test_processes_that_found_other_checkpoints_do_not_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: tuple[float, float], fits: bool
) -> None:
    """The second process has two epochs; what the first says comes with the sum."""
    training = object.__new__(training_module._Training)
    training.world_size, training.rank, training.device = 2, 1, torch.device("cpu")
    training.history = [object(), object()]  # type: ignore[list-item]
    training.options = TrainingOptions(train_split=None, eval_split=None, seed=0, out=tmp_path)  # type: ignore[arg-type]

    def add(tensors: list[Tensor]) -> None:
        assert tensors[0].tolist() == [0.0, 2.0]
        tensors[0] += torch.tensor(others)

    monkeypatch.setattr(training_module, "add_up", add)
    if fits:
        training._check_together()
    else:
        with pytest.raises(
            CheckpointsDifferError, match=r"found different checkpoints in .*\[0, 2\] epochs"
        ):
            training._check_together()


def test_a_training_without_a_folder_cannot_go_back(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, *noise(44, 8))
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=0
    )
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    with pytest.raises(ValueError, match="this training has no folder for one"):
        train(network, data, changed(RECIPE, batch_size=8, bad_loss="rollback"), options)


def test_weights_decay_that_multiply_and_no_others() -> None:
    """Not those of one axis, biases of any shape, and what the recipe names; tables do."""

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shapes = {
                "matrix": (2, 2),
                "scale": (2,),
                "logit_bias": (2, 2),
                "table_bias": (2, 2),
                "position": (2, 2),
            }
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.ones(shape)))

    network = Weights()
    recipe = changed(RECIPE, weight_decay=0.25, no_weight_decay=["posi*"])
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = build_optimizer(network, recipe).param_groups
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {
        "matrix": 0.25,
        "table_bias": 0.25,
        "scale": 0.0,
        "logit_bias": 0.0,
        "position": 0.0,
    }


def test_a_training_is_judged_as_its_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    data = tiny_data(tmp_path / "data", *noise(44, 8))
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=0, loader_workers=0
    )
    asked: list[tuple[object, ...]] = []
    batches = training_module.eval_batches

    def remember(split: Any, images: Any, batch: int, crop: Any, **more: Any) -> Any:
        asked.append((split, images, batch, crop, more))
        return batches(split, images, batch, crop, **more)

    monkeypatch.setattr(training_module, "eval_batches", remember)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    look = {"crop_pct": 0.75, "crop_mode": "squash", "eval_interpolation": "bilinear"}
    recipe = changed(RECIPE, batch_size=8, shard_size=4, **look)
    train(network, data, recipe, options)
    ((split, images, batch, crop, more),) = asked
    assert (split is options.eval_split, images is data, batch, crop) == (True, True, 4, 0.75)
    expected = {"crop_mode": "squash", "interpolation": "bilinear", "workers": 0}
    assert more == expected


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_and_weights_lie_in_memory_as_the_recipe_says(
    tmp_path: Path, channels_last: bool
) -> None:
    (tmp_path / "data").mkdir()
    data = tiny_data(tmp_path / "data", *noise(44, 8))
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=0
    )
    seen: list[bool] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.head(self.conv(x).mean((2, 3)))

    network = Looks()
    train(network, data, changed(RECIPE, batch_size=8, channels_last=channels_last), options)
    assert set(seen) == {channels_last}
    stored = network.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert stored == channels_last


def test_a_rollback_to_a_damaged_checkpoint_is_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    data = tiny_data(tmp_path / "data", *noise(44, 8))
    options = TrainingOptions(
        train_split=data.split("train"),
        eval_split=data.split("search"),
        seed=0,
        out=tmp_path / "out",
    )

    class Bad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 64, 2)

        def forward(self, x: Tensor) -> Tensor:
            folder = latest_checkpoint(tmp_path / "out")
            assert folder is not None
            for file in folder.iterdir():
                file.write_bytes(b"")
            return self.head(x.flatten(1)) * float("nan")

    with pytest.raises(FloatingPointError, match=r"The checkpoint is damaged\."):
        train(Bad(), data, changed(RECIPE, batch_size=8, bad_loss="rollback"), options)


def test_every_shard_has_two_images_where_batches_are_smaller_than_the_recipes() -> None:
    """Five images on two devices: shards of two would be three, one of them a single image."""
    recipe = changed(RECIPE, batch_size=6, shard_size=6, mixup=0.0, cutmix=0.0)
    with pytest.raises(ValueError, match="Every device takes at least two images"):
        with_shards_for(recipe, 5, 2)
    assert with_shards_for(recipe, 6, 2).shard_size == 3


def test_a_teacher_is_who_teaches(tmp_path: Path) -> None:
    """The divergence of one from the other is not that of the other from the one."""

    class Lesson:
        watching = staticmethod(nullcontext)

        def teach(self, images: Tensor) -> tuple[Tensor, None]:
            return torch.full((len(images), 5), 7.0), None

        def loss(self, logits: Tensor, said: Tensor, task: Tensor, **_: object) -> Tensor:
            assert (said == 7.0).all()
            assert not (logits == 7.0).any()
            return task

    step = gradients_of(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))
    step.lesson = Lesson()  # type: ignore[assignment]
    step.of_step(shards_of(torch.randn(4, 3, 4, 4), torch.arange(4), (4,)), seed=1)
