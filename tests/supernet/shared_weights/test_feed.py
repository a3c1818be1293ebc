"""Laws of how a supernet is fed: every rank makes its own images, and nothing is made in vain."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.data import ImageData, open_data, prepare_data
from supernet.recipes.recipe import Recipe, load_recipe
from supernet.shared_weights import shared_training
from supernet.shared_weights import trainer as trainer_module
from supernet.shared_weights.group import MOST_BATCH, most_devices, recipe_of_group
from supernet.shared_weights.trainer import PASS_IMAGES, SupernetTrainer, passes_of
from supernet.training.augmentation import Augmentation
from supernet.training.batches import Shard, TrainLoader
from supernet.training.finishing import Finish

# No batch norm: its statistics see only a process's share of the batch.
SPACE = SearchSpace(
    name="small",
    img_size=8,
    patch_size=2,
    num_classes=10,
    stages=(
        StageChoices(
            dims=(8,),
            depths=(1,),
            mlp_ratios=(1,),
            choices=(
                MixerChoices(
                    kinds={"neighborhood_attention": {"kernel_size": (3, 5), "num_heads": (2,)}}
                ),
            ),
        ),
    ),
)
BATCH, STEPS = 24, 3


def recipe(shard_size: int | None, **more: Any) -> Recipe:
    shipped = load_recipe("supernet")
    return shipped.model_copy(update={"batch_size": BATCH, "shard_size": shard_size, **more})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    return prepare_data("digits", img_size=8, folder=tmp_path_factory.mktemp("data"))


def trainer(data: ImageData, recipe: Recipe, **more: Any) -> SupernetTrainer:
    return SupernetTrainer(
        SPACE, data, recipe, strategy="uniform", total_steps=STEPS, seed=0, **more
    )


def weights(training: SupernetTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.supernet.state_dict().items()}


def in_group(world: int, data: ImageData, recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    """Train in so many processes; return what each of them counted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    arguments = (world, address, str(data.folder), recipe.model_dump_json(), str(out))
    mp.spawn(_train_as_rank, args=arguments, nprocs=world)
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(world)]


def _train_as_rank(
    rank: int, world: int, address: str, data_folder: str, recipe_json: str, out: str
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    # Not validated: a group's shards need not divide the batch.
    fields = json.loads(recipe_json)
    shared = load_recipe("supernet").model_copy(
        update={name: fields[name] for name in ("batch_size", "shard_size")}
    )
    counts = {"made": 0, "used": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Augmentation, "__call__", _counting(Augmentation.__call__, counts, "made", 1))
        passed = _counting(trainer_module.accumulate_gradients, counts, "used", 2)
        patch.setattr(trainer_module, "accumulate_gradients", passed)
        training = trainer(open_data(Path(data_folder)), shared)
        training.run(STEPS)
    Path(out, f"rank{rank}.json").write_text(json.dumps(counts))
    if rank == 0:
        training.save(Path(out))
    dist.barrier()
    dist.destroy_process_group()


def _counting(
    function: Callable[..., Any], counts: dict[str, int], name: str, place: int
) -> Callable[..., Any]:
    def counting(*arguments: Any, **more: Any) -> Any:
        counts[name] += len(arguments[place])
        return function(*arguments, **more)

    return counting


def test_four_processes_make_the_images_that_they_use_and_no_others(
    data: ImageData, tmp_path: Path
) -> None:
    counted = in_group(4, data, recipe(BATCH // 4), tmp_path)
    expected = BATCH // 4 * STEPS
    assert counted == [{"made": expected, "used": expected}] * 4


@pytest.mark.parametrize("shard_size", [12, 8], ids=["even", "three shards on two"])
def test_two_processes_train_what_one_does(
    data: ImageData, tmp_path: Path, shard_size: int
) -> None:
    alone = trainer(data, recipe(shard_size))
    alone.run(STEPS)
    counted = in_group(2, data, recipe(shard_size), tmp_path)
    assert sum(counts["made"] for counts in counted) == BATCH * STEPS
    together = trainer(data, recipe(shard_size))
    assert together.load(tmp_path)
    expected = weights(alone)
    for name, value in weights(together).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_more_processes_than_shards_are_refused(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_training, "process_place", lambda: (2, 3))
    with pytest.raises(ValueError, match="2 shards and 3 processes"):
        trainer(data, recipe(BATCH // 2))


def test_a_training_resumed_at_a_step_makes_that_steps_batch_alone(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trainer(data, recipe(None))
    first.run(2)
    first.save(tmp_path)
    undisturbed = first.run(1).loss
    counts = {"made": 0}
    made = _counting(Augmentation.__call__, counts, "made", 1)
    monkeypatch.setattr(Augmentation, "__call__", made)
    second = trainer(data, recipe(None))
    assert second.load(tmp_path)
    assert second.run(1).loss == undisturbed
    assert counts == {"made": BATCH}


def test_loader_processes_make_the_same_steps(data: ImageData) -> None:
    losses = {}
    for workers in (0, 2):
        training = trainer(data, recipe(8), loader_workers=workers)
        progress = training.run(STEPS)
        losses[workers] = progress.loss
        assert progress.feed_seconds > 0
    assert losses[0] == losses[2]


def shard(images: int, share: float) -> Shard:
    return Shard(
        pixels=torch.full((images, 1, 1, 1), 255, dtype=torch.uint8),
        labels=torch.full((images,), images),
        finish=Finish(mean=(0.0,), std=(1.0,), mirrored=torch.ones(images, dtype=torch.bool)),
        maps=None,
        share=share,
        read_seconds=0.0,
        augment_seconds=0.0,
    )


def test_shards_go_through_the_network_together_up_to_a_bound() -> None:
    third = PASS_IMAGES // 3
    shards = [shard(third, 0.25), shard(third, 0.25), shard(third, 0.25), shard(third - 1, 0.25)]
    found = list(passes_of(shards, torch.device("cpu")))
    assert [len(images) for images, _, _ in found] == [3 * third, third - 1]
    assert [len(targets) for _, targets, _ in found] == [3 * third, third - 1]
    assert [share for _, _, share in found] == [0.75, 0.25]
    # One that is larger passes alone: it was made so for its device.
    large = list(
        passes_of([shard(4 * PASS_IMAGES, 0.5), shard(4 * PASS_IMAGES, 0.5)], torch.device("cpu"))
    )
    assert [len(images) for images, _, _ in large] == [4 * PASS_IMAGES] * 2


def test_loaders_put_shards_where_a_gpu_fetches_them_if_there_is_one(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def loader(maker: Any, *, pin_memory: bool, **more: Any) -> list[Any]:
        asked.append(pin_memory)
        return []

    monkeypatch.setattr("supernet.training.batches.DataLoader", loader)
    for has_gpu in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        TrainLoader(data.split("train"), data, recipe(8), workers=1)
    assert asked == [True, False]
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1)
    pinned = shard(3, 0.5).pin_memory()
    assert (pinned.pixels == 0).all()  # 255 + 1
    assert (pinned.labels == 4).all()
    assert pinned.finish.mirrored is not None
    assert (pinned.finish.mirrored == 2).all()
    assert pinned.share == 0.5


IMAGES = 1_281_167


@pytest.mark.parametrize(
    ("devices", "batch", "shard_size", "factor"),
    [
        (1, 64, None, 1.0),
        (4, 256, 64, 2.0),
        (64, 4096, 64, 8.0),
        (128, 4096, 32, 8.0),
        (4096, 4096, 2, 8.0),
    ],
)
def test_on_gpus_the_batch_grows_with_the_devices_and_the_rate_with_its_root(
    devices: int, batch: int, shard_size: int | None, factor: float
) -> None:
    shipped = load_recipe("supernet")
    found = recipe_of_group(shipped, IMAGES, devices, grows=True)
    assert (found.batch_size, found.shard_size) == (batch, shard_size)
    assert found.peak_lr(found.batch_size) == pytest.approx(shipped.lr * factor)
    assert most_devices(found, IMAGES) == min(devices, batch // 2)
    assert batch <= MOST_BATCH


def test_a_rate_that_scales_with_the_batch_by_itself_is_left_alone() -> None:
    linear = load_recipe("supernet").model_copy(
        update={"lr_scaling": "linear", "lr_base_batch": 64}
    )
    found = recipe_of_group(linear, IMAGES, 4, grows=True)
    assert found.peak_lr(found.batch_size) == pytest.approx(4 * linear.lr)


@pytest.mark.parametrize("devices", range(1, 65))
def test_on_cores_the_batch_stays_and_every_shard_has_two_images_or_more(devices: int) -> None:
    shipped = load_recipe("supernet")
    for num_images in (IMAGES, 30, 5):
        found = recipe_of_group(shipped, num_images, devices, grows=False)
        images = min(64, num_images)
        shards = most_devices(found, num_images)
        assert (found.batch_size, found.lr) == (64, shipped.lr)
        assert 1 <= shards <= devices
        assert images // shards >= 2 or shards == 1
        # More devices would not make the largest shard smaller.
        assert -(-images // shards) == max(-(-images // min(devices, images // 2)), 2)


def test_shards_that_are_mixed_hold_pairs() -> None:
    mixing = load_recipe("supernet").model_copy(update={"mixup": 0.8, "mixup_prob": 1.0})
    for devices in range(1, 33):
        found = recipe_of_group(mixing, IMAGES, devices, grows=False)
        assert (found.shard_size or 64) % 2 == 0


def test_a_recipe_that_has_small_shards_keeps_them() -> None:
    small = load_recipe("supernet").model_copy(update={"shard_size": 16})
    assert recipe_of_group(small, IMAGES, 2, grows=False).shard_size == 16
    assert recipe_of_group(small, IMAGES, 8, grows=False).shard_size == 8
