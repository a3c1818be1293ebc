"""The shared weights of segmenters and detectors: what a step changes, resumption, extraction."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from searchspace.architecture import Architecture
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from supernet.data.dense import DenseSplit, open_dense_data
from supernet.dense.judging import judge
from supernet.dense.network import extract_dense
from supernet.dense.shared import (
    DenseSupernetTrainer,
    calibration_batches,
    dense_extraction_error,
    load_dense_supernet,
)
from supernet.network.supernet import Supernet
from supernet.recipes.dense_recipe import DenseRecipe
from supernet.training import recalibrate
from tests.tiny_dense import recipe, write_data

TASKS = {"semantic": "cells_semantic", "detection": "cells_detection", "instance": "mask_rcnn_1x"}


def space() -> SearchSpace:
    """Four stages of one or two blocks, convolutions or windows, two widths."""
    choices = MixerChoices(
        kinds={
            "depthwise_conv": {"kernel_size": (3, 5)},
            "window_attention": {"window_size": (7,), "num_heads": (2,)},
        }
    )
    stages = tuple(
        StageChoices(dims=(dim, dim // 2), depths=(2, 1), choices=(choices,) * 2, mlp_ratios=(1.0,))
        for dim in (8, 8, 16, 16)
    )
    return SearchSpace(name="tiny", img_size=64, patch_size=4, num_classes=2, stages=stages)


def split(tmp_path: Path, task: str) -> DenseSplit:
    folder = write_data(tmp_path / "images") if not (tmp_path / "images").exists() else None
    return open_dense_data(
        str(folder or tmp_path / "images"), task, unpack_to=tmp_path / "unpacked"
    ).train


def trainer(
    tmp_path: Path, task: str, chosen: DenseRecipe | None = None, steps: int = 6, seed: int = 3
) -> DenseSupernetTrainer:
    return DenseSupernetTrainer(
        space(),
        split(tmp_path, task),
        chosen or recipe(TASKS[task]),
        strategy="uniform",
        total_steps=steps,
        seed=seed,
    )


def state_of(one: DenseSupernetTrainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in one.supernet.state_dict().items()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_a_step_changes_what_its_network_uses_and_nothing_else(tmp_path: Path, task: str) -> None:
    one = trainer(tmp_path, task)
    chosen = space().sample(random.Random("3/0"))  # the network of step 0, by the trainer's law
    before = state_of(one)
    one.run(1)
    own = one.supernet.select(chosen)
    used = set()
    for value in own.values():
        if value.requires_grad:
            sources = torch.autograd.grad(
                value.sum() if value.grad_fn else value.sum() * 1.0,
                list(one.supernet.parameters()),
                allow_unused=True,
            )
            names = [name for name, _ in one.supernet.named_parameters()]
            used |= {name for name, found in zip(names, sources, strict=True) if found is not None}
    after = one.supernet.state_dict()
    changed = {
        name for name, _ in one.supernet.named_parameters() if not after[name].equal(before[name])
    }
    assert changed
    assert changed <= used
    backbone = {name for name in used if name.startswith("backbone.network.stages")}
    assert backbone & changed
    # Some block that the network does not have stayed as it was.
    assert {name for name, _ in one.supernet.named_parameters()} - used


@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", ["semantic", "detection"])
def test_training_goes_on_with_the_same_bits(tmp_path: Path, task: str) -> None:
    whole = trainer(tmp_path, task)
    whole.run(6)
    first = trainer(tmp_path, task)
    first.run(2)
    first.save(tmp_path / "supernet")
    second = trainer(tmp_path, task, seed=3)
    assert second.load(tmp_path / "supernet")
    assert second.step == 2
    second.run(9)
    assert second.step == 6
    for name, value in whole.supernet.state_dict().items():
        assert second.supernet.state_dict()[name].equal(value), name


@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_judging_extracts_recalibrates_and_leaves_the_supernet_alone(
    tmp_path: Path, task: str
) -> None:
    one, chosen = trainer(tmp_path, task), recipe(TASKS[task])
    one.run(3)
    one.save(tmp_path / "supernet")
    loaded = load_dense_supernet(
        tmp_path / "supernet", space(), chosen, 3 if task == "semantic" else 2
    )
    images = split(tmp_path, task)
    batches = calibration_batches(images, chosen)
    architecture = space().sample(random.Random(7))
    assert dense_extraction_error(loaded, architecture, batches[0]) == 0.0
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    first, again = extract_dense(loaded, architecture), extract_dense(loaded, architecture)
    for network in (first, again):
        recalibrate(network, batches)
    assert judge(first, images, chosen).values() == judge(again, images, chosen).values()
    assert all(loaded.state_dict()[name].equal(value) for name, value in before.items())


def test_a_classifiers_weights_start_it(tmp_path: Path) -> None:
    classifier = Supernet(space())
    one = DenseSupernetTrainer(
        space(),
        split(tmp_path, "semantic"),
        recipe("cells_semantic"),
        strategy="uniform",
        total_steps=2,
        seed=0,
        start=classifier.state_dict(),
    )
    own = one.supernet.backbone.network.state_dict()
    theirs = classifier.state_dict()
    shared = set(own) & set(theirs)
    assert any(name.startswith("stages.3") for name in shared)
    assert set(own) <= set(theirs)
    assert all(own[name].equal(theirs[name]) for name in shared)


def test_norms_behind_stages_are_trained_where_they_are_used(tmp_path: Path) -> None:
    """A stage of convolutions has a batch norm behind it, any other a layer norm."""
    one = trainer(tmp_path, "semantic")
    convs = _network("depthwise_conv")
    windows = _network("window_attention")
    used_by_convs, used_by_windows = one.used_weights([convs]), one.used_weights([windows])
    names = {p: name for name, p in one.supernet.named_parameters()}
    norms = [
        {names[p] for p in used if names[p].startswith("backbone.norms")}
        for used in (used_by_convs, used_by_windows)
    ]
    assert norms[0] == {
        f"backbone.norms.{i}.batch.{n}" for i in range(4) for n in ("weight", "bias")
    }
    assert norms[1] == {
        f"backbone.norms.{i}.layer.{n}" for i in range(4) for n in ("weight", "bias")
    }


def _network(kind: str) -> Architecture:
    rng = random.Random(0)
    while True:
        found = space().build(
            lambda name, options: (
                kind
                if name.endswith(".mixer")
                else (options[0] if name.endswith((".dim", ".depth")) else rng.choice(options))
            )
        )
        assert all(m.kind == kind for stage in found.stages for m in stage.mixers)
        return found
