"""A training is the same bits whatever interrupts it, and whichever processes share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from searchspace.space import SearchSpace
from supernet.data.dense import DenseData, open_dense_data
from supernet.dense import training
from supernet.dense.network import build_dense
from supernet.dense.options import dense_options
from supernet.dense.training import DenseTrainingOptions, train_dense
from supernet.recipes.dense_recipe import DenseRecipe
from tests.tiny_dense import architecture, recipe, write_data

RECIPES = ["cells_semantic", "cells_detection", "mask_rcnn_1x", "cascade_mask_rcnn_1x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "cells")


def open_for(folder: Path, chosen: DenseRecipe) -> DenseData:
    return open_dense_data(str(folder), chosen.task, unpack_to=folder)


def trained(
    data: DenseData, chosen: DenseRecipe, out: Path | None, **more: Any
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    options = dense_options(chosen, len(data.class_names))
    network = build_dense(SearchSpace.of(architecture()), options, chosen.drop_path)
    train_dense(network, data.train, chosen, DenseTrainingOptions(seed=3, out=out, **more))
    return network.state_dict()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_killed_training_goes_on_with_the_same_bits(
    folder: Path, tmp_path: Path, name: str, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(name)
    data = open_for(folder, chosen)
    expected = trained(data, chosen, None)
    step = training._Training._step

    def dies(self: training._Training, shards: object) -> float:
        if self.done == killed_at:
            raise KeyboardInterrupt
        return step(self, shards)  # type: ignore[arg-type]

    monkeypatch.setattr(training._Training, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(data, chosen, tmp_path)
    monkeypatch.setattr(training._Training, "_step", step)
    found = trained(data, chosen, tmp_path)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_a_checkpoint_of_other_data_is_refused_or_replaced(folder: Path, tmp_path: Path) -> None:
    chosen = recipe("cells_semantic", steps=2)
    data = open_for(folder, chosen)
    expected = trained(data, chosen, tmp_path)
    with pytest.raises(ValueError, match="had others"):
        trained(data, chosen, tmp_path, identity="others")

    found = trained(data, chosen, tmp_path, identity="others", replaces=True)

    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def _share(rank: int, folder: Path, chosen: DenseRecipe, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/group", world_size=2, rank=rank)
    state = trained(open_for(folder, chosen), chosen, None)
    torch.save(state, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["cells_semantic", "mask_rcnn_1x"])
def test_two_processes_train_what_one_trains(folder: Path, tmp_path: Path, name: str) -> None:
    chosen = recipe(name, steps=3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = trained(open_for(folder, chosen), chosen, None)
    torch.set_num_threads(threads)
    spawn(_share, (folder, chosen, tmp_path), nprocs=2)  # type: ignore[no-untyped-call]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_processes_that_cannot_share_a_batch_evenly_are_refused(folder: Path) -> None:
    from supernet.dense.batches import TrainOrder, train_batches

    chosen = recipe("cells_semantic")
    order = TrainOrder(open_for(folder, chosen).train, chosen, 0)
    with pytest.raises(ValueError, match="2 shards, which 3 devices cannot share"):
        next(train_batches(order, 0, 1, rank=0, world_size=3, workers=0))


def test_an_epoch_shows_every_image_once_and_never_mixes_orientations(folder: Path) -> None:
    from supernet.dense.batches import TrainOrder

    chosen = recipe("mask_rcnn_1x", batch_size=1, shard_size=1)
    order = TrainOrder(open_for(folder, chosen).train, chosen, 0)
    seen = sorted(index for plan in order.shards(0) for index in plan.indices)
    assert seen == list(range(6))
    pairs = TrainOrder(order.split, recipe("mask_rcnn_1x"), 0)
    for plan in pairs.shards(1):
        sizes = {order.split.images[index].size for index in plan.indices}
        assert len(sizes) == 1
    assert order.shards(0) != order.shards(1)
