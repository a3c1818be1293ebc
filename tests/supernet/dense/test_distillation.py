"""Detectors and segmenters that learn from another: the losses by their definitions, exactly."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.data.dense import DenseData
from supernet.dense import training
from supernet.dense.batches import ShardPlan, TrainOrder, make_shard, train_batches
from supernet.dense.distillation import (
    LOGITS_WEIGHT,
    PYRAMID_WEIGHT,
    DenseLesson,
    DenseTeacher,
    check_dense_teacher,
    pearson_distance,
    places_divergence,
)
from supernet.dense.network import DenseBatch, DenseNetwork, build_dense, extract_dense
from supernet.dense.options import dense_options
from supernet.dense.proposals import ImageSize
from supernet.dense.shared import DenseSupernetTrainer
from supernet.dense.teacher_files import read_dense_teacher, write_dense_teacher
from supernet.dense.training import DenseTrainingOptions, gradients_of_step, train_dense
from supernet.recipes.dense_recipe import DenseRecipe
from supernet.training import digest_of
from tests.supernet.dense.test_shared import space
from tests.supernet.dense.test_training import open_for
from tests.tiny_dense import CONV, architecture, dense_teacher, recipe, write_data

NAMES = ["cells_semantic", "cells_detection"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "cells")


def network_of(chosen: DenseRecipe, data: DenseData, seed: int, *mixers: Any) -> DenseNetwork:
    torch.manual_seed(seed)
    options = dense_options(chosen, len(data.class_names))
    return build_dense(SearchSpace.of(architecture(*mixers)), options, chosen.drop_path)


def teacher_of(chosen: DenseRecipe, data: DenseData, fingerprint: str = "one") -> DenseTeacher:
    network = network_of(chosen, data, 5, CONV, CONV, CONV, CONV)
    return dense_teacher(network, chosen, fingerprint=fingerprint)


def batch_of(images: Tensor) -> DenseBatch:
    size = (images.shape[-2], images.shape[-1])
    return DenseBatch(images=images, sizes=(ImageSize(content=size, padded=size),) * len(images))


def trained(
    data: DenseData, chosen: DenseRecipe, teacher: DenseTeacher | None, out: Path | None = None
) -> DenseNetwork:
    network = network_of(chosen, data, 0)
    options = DenseTrainingOptions(seed=3, out=out, teacher=teacher)
    train_dense(network, data.train, chosen, options)
    return network


def differing(one: DenseNetwork, two: DenseNetwork) -> list[str]:
    states = one.state_dict(), two.state_dict()
    return [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]


def test_maps_are_compared_by_pearsons_correlation() -> None:
    """Half of the mean squared difference of standardised values is (1 - r) (n - 1) / n."""
    torch.manual_seed(0)
    mine, theirs = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    expected = 0.0
    for channel in range(3):
        both = torch.stack([mine[:, channel].flatten(), theirs[:, channel].flatten()])
        number = both.shape[1]
        r = float(torch.corrcoef(both)[0, 1])
        expected += (1 - r) * (number - 1) / number / 3
    assert float(pearson_distance(mine, theirs)) == pytest.approx(expected, rel=1e-4)
    assert float(pearson_distance(7 * theirs + 3, theirs)) == pytest.approx(0.0, abs=1e-6)
    # A channel that never changes is no division by zero.
    flat = torch.ones(2, 1, 4, 4)
    assert math.isfinite(float(pearson_distance(flat, flat)))


def test_logits_are_compared_over_the_places_of_each_class() -> None:
    torch.manual_seed(0)
    mine, theirs = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    expected = 0.0
    for image in range(2):
        for label in range(3):
            p = theirs[image, label].flatten().softmax(0)
            q = mine[image, label].flatten().softmax(0)
            expected += float((p * (p / q).log()).sum()) / 6
    assert float(places_divergence(mine, theirs)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_is_of_what_the_heads_make_of_the_same_images(folder: Path, name: str) -> None:
    chosen = recipe(name)
    data = open_for(folder, chosen)
    teacher = teacher_of(chosen, data)
    lesson = DenseLesson(teacher, chosen, CPU)
    images = torch.randn(2, 3, 64, 64)
    found = lesson.maps(batch_of(images))
    network: Any = teacher.network
    with torch.no_grad():
        maps = network.backbone(images, None)
        expected = [network.head(maps)] if name == NAMES[0] else network.pyramid(maps)[:4]
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    mine: list[Tensor] = [torch.randn_like(one) for one in found]
    losses = lesson.loss(mine, found)
    if name == NAMES[0]:
        expected_losses = {"teacher": LOGITS_WEIGHT * places_divergence(mine[0], found[0])}
    else:
        expected_losses = {
            f"teacher_{level}": PYRAMID_WEIGHT * pearson_distance(mine[level], found[level])
            for level in range(4)
        }
    torch.testing.assert_close(losses, expected_losses)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_sees_the_images_as_it_was_trained_to_see_them(folder: Path, name: str) -> None:
    """Also the padding, which is 0 in whatever way images are normalised."""
    own = recipe(name, mean=(127.5, 100.0, 90.0), std=(127.5, 60.0, 50.0))
    mine = recipe(name)
    data = open_for(folder, mine)
    teacher = teacher_of(own, data)
    upright_and_lying = ShardPlan(indices=(0, 1), epoch=0, number=0)
    seen, as_taught = (
        make_shard(data.train, one, upright_and_lying, seed=0) for one in (mine, own)
    )
    assert not torch.allclose(seen.images, as_taught.images)
    found = DenseLesson(teacher, mine, CPU).maps(seen)
    expected = DenseLesson(teacher, own, CPU).maps(as_taught)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_network_comes_nearer_to_its_teacher_which_learns_nothing(
    folder: Path, name: str
) -> None:
    chosen = recipe(name, steps=20, drop_path=0.0, lr=3e-3)
    data = open_for(folder, chosen)
    teacher = teacher_of(chosen, data)
    before = copy.deepcopy(teacher.network.state_dict())
    plain, taught = trained(data, chosen, None), trained(data, chosen, teacher)
    assert all(torch.equal(v, before[n]) for n, v in teacher.network.state_dict().items())
    assert differing(plain, taught)
    lesson = DenseLesson(teacher, chosen, CPU)
    order = TrainOrder(data.train, chosen, seed=0)
    shards = next(iter(train_batches(order, 0, 1, rank=0, world_size=1, workers=0)))

    def distance(network: DenseNetwork) -> float:
        own = DenseLesson(dense_teacher(network, chosen), chosen, CPU)
        losses = lesson.loss(own.maps(shards[0]), lesson.maps(shards[0])).values()
        return float(torch.stack(list(losses)).sum())

    assert distance(taught) < distance(plain)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_taught_training_goes_on_with_the_same_bits(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(name)
    data = open_for(folder, chosen)
    whole = trained(data, chosen, teacher_of(chosen, data))
    step = training._Training._step

    def dies(self: training._Training, shards: object) -> float:
        if self.done == 3:
            raise KeyboardInterrupt
        return step(self, shards)  # type: ignore[arg-type]

    monkeypatch.setattr(training._Training, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        trained(data, chosen, teacher_of(chosen, data), tmp_path)
    monkeypatch.setattr(training._Training, "_step", step)
    for other in (None, teacher_of(chosen, data, "two")):
        with pytest.raises(ValueError, match="that it began with"):
            trained(data, chosen, other, tmp_path)
    assert differing(trained(data, chosen, teacher_of(chosen, data), tmp_path), whole) == []


def test_a_teacher_of_another_kind_is_refused(folder: Path) -> None:
    found = {name: recipe(name) for name in NAMES}
    networks = {n: network_of(c, open_for(folder, c), 0) for n, c in found.items()}
    for name, other in zip(NAMES, NAMES[::-1], strict=True):
        teacher = dense_teacher(networks[other], found[other])
        networks[other].train()
        with pytest.raises(ValueError, match="Name a teacher of the same task and head"):
            check_dense_teacher(networks[name], teacher)
    chosen = found["cells_detection"]
    mute = teacher_of(chosen, open_for(folder, chosen))
    pyramid: Any = mute.network.pyramid
    with torch.no_grad():
        pyramid.outputs[0].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="maps that are no finite numbers"):
        check_dense_teacher(networks["cells_detection"], mute)
    # Where only images bring it to light, the training names it.
    with pytest.raises(FloatingPointError, match=r"The teacher a teacher makes maps that are no"):
        trained(open_for(folder, chosen), chosen, mute)
    check_dense_teacher(networks["cells_detection"], teacher_of(chosen, open_for(folder, chosen)))
    assert all(network.training for network in networks.values())


@pytest.mark.parametrize("name", NAMES)
def test_shared_weights_learn_from_it_as_the_extracted_network_does(
    folder: Path, name: str
) -> None:
    """At every width; and the teacher is asked once for all architectures of a step."""
    chosen = recipe(name, drop_path=0.0)
    data = open_for(folder, chosen)
    lesson = DenseLesson(teacher_of(chosen, data), chosen, CPU)
    torch.manual_seed(0)
    supernet = build_dense(space(), dense_options(chosen, len(data.class_names)))
    order = TrainOrder(data.train, chosen, seed=0)
    shards = next(iter(train_batches(order, 0, 1, rank=0, world_size=1, workers=0)))[:1]
    asked: list[int] = []
    lesson._network.backbone.register_forward_hook(lambda *_: asked.append(1))

    def loss(network: DenseNetwork, *asked: Architecture | None, taught: bool = True) -> float:
        return gradients_of_step(
            network,
            shards,
            5,
            device=CPU,
            amp="none",
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            architectures=asked,
            lesson=lesson if taught else None,
        )

    networks = [space().extreme("macs", largest=largest) for largest in (True, False)]
    for network in networks:
        own = extract_dense(supernet, network)
        inside, outside = loss(supernet, network), loss(own, None)
        assert inside == pytest.approx(outside, rel=1e-5)
        assert inside > loss(supernet, network, taught=False) * 1.0001
    asked.clear()
    loss(supernet, *networks)
    assert len(asked) == 1


def test_a_taught_supernet_goes_on_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    chosen = recipe("cells_semantic")
    data = open_for(folder, chosen)

    def trainer(teacher: DenseTeacher | None) -> DenseSupernetTrainer:
        return DenseSupernetTrainer(
            space(), data.train, chosen, strategy="uniform", total_steps=3, seed=1, teacher=teacher
        )

    whole, plain = trainer(teacher_of(chosen, data)), trainer(None)
    whole.run(3)
    plain.run(3)
    assert differing(whole.supernet, plain.supernet)
    broken = trainer(teacher_of(chosen, data))
    broken.run(1)
    broken.save(tmp_path)
    again = trainer(teacher_of(chosen, data))
    assert again.load(tmp_path)
    again.run(2)
    assert differing(whole.supernet, again.supernet) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_kept_teacher_says_the_same(folder: Path, tmp_path: Path, name: str) -> None:
    chosen = recipe(name)
    data = open_for(folder, chosen)
    network = network_of(chosen, data, 5)
    own = dense_teacher(network, chosen, fingerprint=digest_of(network.state_dict()))
    key = write_dense_teacher(tmp_path, own)
    kept = read_dense_teacher(tmp_path, key)
    images = batch_of(torch.randn(1, 3, 64, 64))
    said = [DenseLesson(one, chosen, CPU).maps(images) for one in (own, kept)]
    assert all(torch.equal(a, b) for a, b in zip(*said, strict=True))
    with pytest.raises(ValueError, match="keeps the teacher that it began with"):
        read_dense_teacher(tmp_path, key[::-1])
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="has other weights"):
        read_dense_teacher(tmp_path, key)
