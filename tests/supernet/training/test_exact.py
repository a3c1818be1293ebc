"""Laws of exactness: kills, processes, shards, memory savings and bad losses change no bit.

Children are forked, so that they start in no time; each ends by itself or is killed here.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv, Elsa, NeighborhoodAttention, WindowAttention
from supernet.data import ImageData, prepare_data
from supernet.network.blocks import Block
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import Recipe
from supernet.training import batches
from supernet.training.batches import train_shards
from supernet.training.checkpoint import latest_checkpoint
from supernet.training.training import TrainingOptions, TrainingResult, train
from tests.tiny_data import changed, noise, tiny_data

FORK = multiprocessing.get_context("fork")
CIFAR = Path(__file__).parents[4] / "shared" / "data" / "cifar10_25k.tar.xz"
MIXERS = (DepthwiseConv(kernel_size=3), WindowAttention(window_size=2, num_heads=2))
WITH_BATCH_NORMS = Architecture(
    img_size=8, patch_size=2, num_classes=2, stages=(Stage(dim=8, mixers=MIXERS),)
)
WITHOUT = replace(WITH_BATCH_NORMS, stages=(Stage(dim=8, mixers=(MIXERS[1], MIXERS[1])),))
FULL = changed(
    "micro",
    batch_size=8,
    shard_size=4,
    epochs=4,
    warmup_epochs=1,
    random_erasing=0.5,
    drop_path=0.3,
    ema_decay=0.9,
)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    return tiny_data(tmp_path, *noise(44, 8))


def trained(
    data: ImageData,
    recipe: Recipe,
    architecture: Architecture = WITH_BATCH_NORMS,
    *,
    out: Path | None = None,
    workers: int = 0,
) -> tuple[dict[str, Tensor], TrainingResult]:
    """Train a network from a fixed start and return all of its and its average's state."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = build_subnet(architecture, recipe.drop_path)
    options = TrainingOptions(
        train_split=data.split("train"),
        eval_split=data.split("search"),
        seed=3,
        out=out,
        loader_workers=workers,
    )
    result = train(network, data, recipe, options)
    state = dict(network.state_dict())
    if result.ema_network is not None:
        state |= {f"ema.{name}": v for name, v in result.ema_network.state_dict().items()}
    return state, result


def assert_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def in_child(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    def run() -> None:
        torch.set_num_threads(1)
        work()
        os._exit(0)

    child = FORK.Process(target=run)
    child.start()
    return child


def save_trained(data: ImageData, recipe: Recipe, out: Path) -> None:
    state, _ = trained(data, recipe, out=out)
    save_file({name: v.clone().contiguous() for name, v in state.items()}, out / "end.safetensors")


def kill_and_go_on(
    data: ImageData, recipe: Recipe, out: Path, *, kills: int, seconds: float
) -> tuple[dict[str, Tensor], int]:
    """Kill a training at random moments, let it end, and return its state and the kills."""
    rng, done = random.Random(0), 0
    out.mkdir()
    while done < kills:
        child = in_child(lambda: save_trained(data, recipe, out))
        time.sleep(rng.uniform(0.1, 0.6) * seconds)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        done += 1
    child = in_child(lambda: save_trained(data, recipe, out))
    child.join()
    assert child.exitcode == 0
    return load_file(out / "end.safetensors"), done


def test_a_training_killed_at_random_moments_equals_the_undisturbed_one(
    data: ImageData, tmp_path: Path
) -> None:
    recipe = changed(FULL, epochs=12)
    started = time.perf_counter()
    expected, _ = trained(data, recipe, out=tmp_path / "undisturbed")
    seconds = time.perf_counter() - started

    state, kills = kill_and_go_on(data, recipe, tmp_path / "killed", kills=5, seconds=seconds / 2)

    assert kills == 5
    assert_equal(state, expected)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("amp", "count"), [("none", 2000), ("bf16", 400)])
def test_on_cifar_a_killed_micro_training_equals_the_undisturbed_one(
    tmp_path: Path, amp: str, count: int
) -> None:
    if not CIFAR.exists():
        pytest.skip("The CIFAR-10 subset is not at ../shared/data.")
    whole = prepare_data(str(CIFAR), img_size=32, folder=tmp_path / "data").full_train()
    (tmp_path / "few").mkdir()
    # Most processors compute bf16 many times slower than float32.
    images, labels = whole.images[:count], whole.labels[:count]
    data = tiny_data(tmp_path / "few", images, labels, num_search=100)
    recipe = changed("micro", epochs=4, warmup_epochs=1, amp=amp)
    started = time.perf_counter()
    expected, result = trained_micro(data, recipe, tmp_path / "undisturbed")
    seconds = time.perf_counter() - started
    out = tmp_path / "killed"
    rng = random.Random(1)
    for _ in range(5):
        child = in_child(lambda: trained_micro(data, recipe, out))
        time.sleep(rng.uniform(0.1, 0.6) * seconds)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()

    state, again = trained_micro(data, recipe, out)

    assert_equal(state, expected)
    assert (again.raw, again.ema) == (result.raw, result.ema)


def trained_micro(
    data: ImageData, recipe: Recipe, out: Path
) -> tuple[dict[str, Tensor], TrainingResult]:
    stages = (
        Stage(dim=32, mixers=(Elsa(kernel_size=5, num_heads=2), DepthwiseConv(kernel_size=5))),
        Stage(dim=64, mixers=(WindowAttention(window_size=4, num_heads=4),) * 2),
        Stage(dim=96, mixers=(NeighborhoodAttention(kernel_size=3, num_heads=4),)),
    )
    micro = Architecture(img_size=32, patch_size=2, num_classes=10, stages=stages)
    return trained(data, recipe, micro, out=out)


def together(data: ImageData, recipe: Recipe, folder: Path, processes: int) -> list[Path]:
    """Train in several processes of a gloo group; each leaves its state in a file."""
    files = [folder / f"{rank}.safetensors" for rank in range(processes)]

    def work(rank: int) -> None:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes
        )
        state, result = trained(data, recipe, out=folder / "out")
        state["losses"] = torch.tensor([r.loss for r in result.history], dtype=torch.double)
        state["counts"] = torch.tensor([result.raw.correct, result.raw.total])
        save_file({name: v.clone().contiguous() for name, v in state.items()}, files[rank])

    folder.mkdir()
    children = [in_child(lambda rank=rank: work(rank)) for rank in range(processes)]  # type: ignore[misc]
    for child in children:
        child.join()
        assert child.exitcode == 0
    return files


@pytest.mark.parametrize("changes", [{}, {"amp": "bf16", "clip_grad": 0.5}])
def test_two_processes_equal_one_to_the_last_bit(
    data: ImageData, tmp_path: Path, changes: dict[str, object]
) -> None:
    recipe = changed(FULL, **changes)
    expected, result = trained(data, recipe)

    for file in together(data, recipe, tmp_path / "two", 2):
        state = load_file(file)
        assert state.pop("losses").tolist() == [r.loss for r in result.history]
        assert state.pop("counts").tolist() == [result.raw.correct, result.raw.total]
        assert_equal(state, expected)


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(data: ImageData) -> None:
    recipe = changed(FULL, shard_size=None)

    with pytest.raises(ValueError, match=r"got 1 shards and 2 processes. Set .* shard_size, .* 4"):
        next(train_shards(data.split("train"), data, recipe, epoch=0, seed=0, rank=1, world_size=2))


def test_shards_give_the_curve_of_the_whole_batch(data: ImageData) -> None:
    # Nothing that looks at other images of the batch, and nothing random per shard.
    plain = {"mixup": 0.0, "cutmix": 0.0, "hflip": 0.0, "random_crop_padding": 0, "drop_path": 0.0}
    plain |= {"random_erasing": 0.0, "auto_augment": None}
    whole = changed(FULL, **plain, shard_size=None)

    states, losses = [], []
    for size in (None, 4, 2):
        state, result = trained(data, changed(whole, shard_size=size), WITHOUT)
        states.append(state)
        losses.append([report.loss for report in result.history])

    for state, loss in zip(states[1:], losses[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        for name, value in state.items():
            torch.testing.assert_close(value, states[0][name], rtol=1e-3, atol=1e-4)


def test_the_statistics_of_a_step_are_the_mean_over_its_shards(data: ImageData) -> None:
    recipe = changed(FULL, epochs=1, warmup_epochs=0, batch_size=36, shard_size=18, ema_decay=None)
    recipe = changed(recipe, drop_path=0.0)
    (shards,) = train_shards(data.split("train"), data, recipe, epoch=0, seed=3)
    torch.manual_seed(7)
    network = build_subnet(WITH_BATCH_NORMS)
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    means = []
    for shard in shards:
        norm.reset_running_stats()
        network.train()(shard.finished()[0])
        assert norm.running_mean is not None
        means.append(norm.running_mean.clone())

    state, _ = trained(data, recipe)

    found = [v for n, v in state.items() if n.endswith("norm_in.running_mean")]
    torch.testing.assert_close(found[0], (means[0] + means[1]) / 2)
    assert {int(v) for n, v in state.items() if n.endswith("num_batches_tracked")} == {1}


def test_loader_workers_make_all_batches_and_change_nothing(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = trained(data, FULL)
    places = {"train": batches._ShardMaker, "eval": batches._EvalMaker}
    for name, maker in places.items():
        (tmp_path / name).mkdir()
        monkeypatch.setattr(maker, "__getitem__", noting_process(maker, tmp_path / name))
    state, result = trained(data, FULL, workers=2)

    assert_equal(state, expected)
    assert result.history[0].read_seconds > 0
    for name in places:
        makers = {int(path.name) for path in (tmp_path / name).iterdir()}
        assert os.getpid() not in makers
        # An evaluation of few images is one batch.
        assert len(makers) == (2 if name == "train" else len(makers)) > 0


def noting_process(maker: type, folder: Path) -> Callable[[object, object], object]:
    """Let whoever makes a batch leave its number."""
    make = maker.__getitem__  # type: ignore[attr-defined]

    def noting(self: object, place: object) -> object:
        (folder / str(os.getpid())).touch()
        return make(self, place)

    return noting


def test_gradient_checkpointing_computes_blocks_twice_and_changes_nothing(
    data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0, 0]
    forward = Block.forward

    def counting(self: Block, *inputs: Any, **named: Any) -> Any:
        calls[0] += self.training
        return forward(self, *inputs, **named)

    monkeypatch.setattr(Block, "forward", counting)
    expected, _ = trained(data, FULL)
    calls[1], calls[0] = calls[0], 0

    state, _ = trained(data, changed(FULL, gradient_checkpointing=True))

    assert_equal(state, expected)
    assert calls[0] == 2 * calls[1] > 0


def test_every_image_is_seen_so_often_with_repeated_augmentation(data: ImageData) -> None:
    recipe = changed(FULL, mixup=0.0, cutmix=0.0, repeated_augmentation=3, batch_size=12)
    recipe = changed(recipe, shard_size=None, hflip=0.0, random_crop_padding=0)
    recipe = changed(recipe, random_erasing=0.0, auto_augment=None)

    steps = list(train_shards(data.split("train"), data, recipe, epoch=0, seed=0))

    images = torch.cat([shard.finished()[0] for (shard,) in steps])
    _, counts = images.flatten(1).unique(dim=0, return_counts=True)
    assert len(images) == 36
    assert counts.tolist() == [3] * 12


class Spoilt(nn.Module):
    """Gives NaN when told, in training."""

    def __init__(self, bad: Callable[[int], bool]) -> None:
        super().__init__()
        self.bad, self.calls = bad, 0
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            if self.bad(self.calls):
                images = images * math.nan
        return self.head(self.norm(images).mean((2, 3)))


def run_spoilt(
    data: ImageData, bad_loss: str, bad: Callable[[int], bool], out: Path | None
) -> tuple[Spoilt, TrainingResult]:
    torch.manual_seed(5)
    network = Spoilt(bad)
    recipe = changed(FULL, bad_loss=bad_loss, shard_size=None, epochs=3, ema_decay=None)
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=0, out=out
    )
    return network, train(network, data, recipe, options)


def test_a_bad_step_is_left_out_where_the_recipe_says_skip(data: ImageData) -> None:
    network, result = run_spoilt(data, "skip", lambda call: call == 6, None)

    assert [report.skipped_steps for report in result.history] == [0, 1, 0]
    assert all(value.isfinite().all() for value in network.state_dict().values())
    # 4 steps an epoch, of which one did not count.
    assert int(network.norm.num_batches_tracked) == 3 * 4 - 1


def test_bad_steps_in_a_row_stop_even_there(data: ImageData) -> None:
    recipe = changed(FULL, bad_loss="skip", shard_size=None, epochs=3, batch_size=4)
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=0
    )

    with pytest.raises(FloatingPointError, match=r"epoch 3 of 3, .*the 20th in a row, "):
        train(Spoilt(lambda call: True), data, recipe, options)


def test_a_rollback_goes_on_from_the_checkpoint_with_another_order(
    data: ImageData, tmp_path: Path
) -> None:
    network, result = run_spoilt(data, "rollback", lambda call: call == 6, tmp_path / "out")
    calm, other = run_spoilt(data, "rollback", lambda call: False, tmp_path / "calm")

    assert [report.epoch for report in result.history] == [1, 2, 3]
    assert network.calls == 12 + 2
    assert result.history[0].loss == other.history[0].loss
    assert result.history[1].loss != other.history[1].loss
    assert not torch.equal(network.head.weight, calm.head.weight)


def test_a_rollback_in_the_first_epoch_goes_back_to_the_start_and_three_are_enough(
    data: ImageData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    network = Spoilt(lambda call: True)
    before = network.head.weight.detach().clone()
    recipe = changed(FULL, bad_loss="rollback", shard_size=None)
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=0, out=out
    )

    with pytest.raises(FloatingPointError, match="epoch 1 of 4, step 1 of 4"):
        train(network, data, recipe, options)

    assert network.calls == 1 + 3
    assert torch.equal(network.head.weight, before)
    found = latest_checkpoint(out)
    assert found is not None
    assert found.name == "checkpoint-00000"
    with pytest.raises(ValueError, match="has no folder for one"):
        train(network, data, recipe, replace(options, out=None))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:Dynamo")
def test_a_compiled_training_runs(data: ImageData) -> None:
    expected, _ = trained(data, changed(FULL, epochs=1, warmup_epochs=0, drop_path=0.0))

    state, _ = trained(data, changed(FULL, epochs=1, warmup_epochs=0, drop_path=0.0, compile=True))

    for name, value in state.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3)
