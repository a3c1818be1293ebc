"""Laws of supernet training: named architectures, exact resumption, many processes as one."""

from __future__ import annotations

import math
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from searchspace.cost import count
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.data import ImageData, Split, open_data, prepare_data
from supernet.network import Supernet
from supernet.recipe import load_recipe
from supernet.supernet_training import (
    STRATEGIES,
    SupernetTrainer,
    accumulate_gradients,
    average_gradients,
    sandwich,
)

RECIPE = load_recipe("supernet").model_copy(update={"batch_size": 8})

# No batch norm: its statistics see only a process's share of the batch.
SPACE = SearchSpace(
    name="small",
    img_size=8,
    patch_size=2,
    num_classes=10,
    stages=(
        StageChoices(
            dim=8,
            depth=2,
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


def trainer(data: ImageData, steps: int = 6) -> SupernetTrainer:
    return SupernetTrainer(SPACE, data, RECIPE, strategy="sandwich", total_steps=steps, seed=0)


def weights(training: SupernetTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.supernet.state_dict().items()}


def test_a_sandwich_has_the_extremes_around_random_architectures() -> None:
    extremes = (SPACE.extreme("macs", largest=True), SPACE.extreme("macs", largest=False))
    named = sandwich(SPACE, random.Random(0), extremes)
    macs = [count(architecture).macs for architecture in named]
    assert len(named) == 4
    assert macs[0] == max(macs)
    assert macs[1] == min(macs)


def test_training_stopped_and_resumed_equals_the_undisturbed_one(
    data: ImageData, tmp_path: Path
) -> None:
    undisturbed = trainer(data)
    undisturbed.run(6)
    first = trainer(data)
    first.run(2)
    first.save(tmp_path)
    second = trainer(data)
    assert second.load(tmp_path)
    second.run(1)
    second.save(tmp_path)
    third = trainer(data)
    assert third.load(tmp_path)
    third.run(100)
    assert third.step == 6
    expected = weights(undisturbed)
    for name, value in weights(third).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_a_killed_save_leaves_the_checkpoint_before_it(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trainer(data)
    training.run(1)
    training.save(tmp_path)
    training.run(1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("supernet.supernet_training.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        training.save(tmp_path)
    monkeypatch.undo()
    resumed = trainer(data)
    assert resumed.load(tmp_path)
    assert resumed.step == 1


def test_the_later_architectures_learn_from_the_first() -> None:
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    largest, smallest = (SPACE.extreme("macs", largest=flag) for flag in (True, False))
    recipe = RECIPE.model_copy(update={"label_smoothing": 0.0})
    accumulate_gradients(supernet, [largest, smallest], images, labels, recipe)
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

    def diverge(supernet: Supernet, *_: object) -> float:
        for parameter in supernet.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        return float("nan")

    with monkeypatch.context() as patch:
        patch.setattr("supernet.supernet_training.accumulate_gradients", diverge)
        training.run(1)
    progress = training.run(1)
    assert math.isfinite(progress.loss)
    assert all(value.isfinite().all() for value in weights(training).values())


def test_every_strategy_names_architectures_of_the_space() -> None:
    extremes = (SPACE.extreme("macs", largest=True), SPACE.extreme("macs", largest=False))
    for strategy in STRATEGIES.values():
        for architecture in strategy(SPACE, random.Random(1), extremes):
            assert SPACE.violation(architecture) is None


def test_two_processes_train_what_one_does(data: ImageData, tmp_path: Path) -> None:
    alone = trainer(data, steps=3)
    alone.run(3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    mp.spawn(_train_as_rank, args=(address, str(data.folder), str(tmp_path)), nprocs=2)
    together = trainer(data, steps=3)
    assert together.load(tmp_path)
    expected = weights(alone)
    for name, value in weights(together).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def _train_as_rank(rank: int, address: str, data_folder: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    training = trainer(open_data(Path(data_folder)), steps=3)
    training.run(3)
    if rank == 0:
        training.save(Path(out))
    dist.barrier()
    dist.destroy_process_group()


def test_averaged_gradients_are_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(2))]
    parameters[0].grad = torch.arange(6.0).view(2, 3)
    monkeypatch.setattr(dist, "all_reduce", lambda message: message.mul_(3))
    average_gradients(parameters, 2)
    torch.testing.assert_close(parameters[0].grad, torch.arange(6.0).view(2, 3) * 1.5)
    assert parameters[1].grad is None


def test_the_order_of_the_data_does_not_depend_on_the_architectures(data: ImageData) -> None:
    first, second = trainer(data), trainer(data)
    first.strategy, second.strategy = "uniform", "sandwich"
    images = [training._next_batch()[0] for training in (first, second)]
    np.testing.assert_array_equal(images[0].numpy(), images[1].numpy())
    assert isinstance(data.split("train"), Split)
