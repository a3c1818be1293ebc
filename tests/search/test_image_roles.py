"""Which image does what in a whole run: every image has a colour of its own, and is recognised.

The networks, trainers and judges are the real ones; the clock goes by what passes through them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from search.plan import StepTimes
from search.retraining.network import RetrainOptions, retrain
from search.run_folder.settings import RunSettings
from search.workers import judge_worker
from search.workers.supernet_worker import WORK, SupernetWorker
from searchspace.architecture import Architecture
from searchspace.spec_file import load_space
from supernet.data import ImageData, open_data, prepare_data
from supernet.network.supernet import Supernet
from tests.local_run import Clock, LocalRun
from tests.tiny_data import changed

SPACE = """
name: tiny
img_size: 8
patch_size: 4
stages: [{dim: 8, depth: 1}]
mixers:
  decoupled_dynamic_filter: {kernel_size: [3, 5]}
  depthwise_conv: {kernel_size: [3, 5]}
"""
# Of each of the two classes.
NUM_TRAIN, NUM_SEARCH, NUM_TEST = 12, 3, 4
SECONDS_A_PASS = 0.25


class FixedTimes(SupernetWorker):
    """Takes the time that the clock of the test takes, not the machine's."""

    def measure(self) -> StepTimes:
        """Return times of the test's clock."""
        return StepTimes(
            supernet_step=1.0,
            trial_steps=((10_000, 0.5), (20_000, 0.5)),
            judge=1.0,
            steps_per_epoch=1,
        )

    def measure_supernet(self) -> float:
        """Return the time of the test's clock."""
        return 1.0


class Seen:
    """Counts the images that passed through networks, by what was done with them.

    ``training``; ``calibrating``: batch norms learn, and all else is as when it is judged;
    ``judging``: nothing learns; ``scoring``: zero-cost proxies get them, beside noise.
    """

    def __init__(self) -> None:
        self.images: dict[str, Counter[int]] = {
            role: Counter() for role in ("training", "calibrating", "judging", "scoring")
        }
        self.mean = self.std = torch.zeros(3)
        self.is_scoring = False
        self.clock = Clock()

    def normalised_by(self, data: ImageData) -> None:
        """Take note of how the images are normalised."""
        self.mean, self.std = torch.tensor(data.mean), torch.tensor(data.std)

    def __call__(self, network: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not isinstance(network, Supernet):
            return
        self.clock.work_for(SECONDS_A_PASS)
        if self.is_scoring:
            return
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        role = "calibrating" if any(norm.training for norm in norms) else "judging"
        role = "training" if network.training else role
        self.count(role, arguments[0])

    def count(self, role: str, images: Tensor) -> None:
        """Recognise images (B, 3, 8, 8) by their red."""
        colours = images[:, :, 4, 4].detach() * self.std + self.mean
        self.images[role].update((colours[:, 0] * 255).round().int().tolist())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    seen, proxy_scores = Seen(), judge_worker.proxy_scores

    def scoring(network: Architecture, images: Tensor, *rest: Any, **more: Any) -> dict[str, float]:
        seen.count("scoring", images)
        seen.is_scoring = True
        try:
            return proxy_scores(network, images, *rest, **more)
        finally:
            seen.is_scoring = False

    monkeypatch.setattr(judge_worker, "proxy_scores", scoring)
    hook = nn.modules.module.register_module_forward_pre_hook(seen)
    yield seen
    hook.remove()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of images of one colour each: train of class 0 from 10, of class 1 from 40, test."""
    for pool, count, first in (("train", NUM_TRAIN + NUM_SEARCH, 10), ("test", NUM_TEST, 200)):
        for label in range(2):
            folder = tmp_path / "images" / pool / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                red = first + 30 * label + index
                Image.fromarray(np.full((8, 8, 3), (red, 99, 255 - red), np.uint8)).save(
                    folder / f"{index}.png"
                )
    return tmp_path / "images"


@pytest.fixture
def settings(source: Path, tmp_path: Path) -> RunSettings:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    return RunSettings(
        data=str(source),
        budget="200cpu-seconds",
        space=str(tmp_path / "tiny.yaml"),
        sampler="random",
    )


def test_a_search_learns_from_train_is_judged_on_search_and_never_sees_test(
    settings: RunSettings, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = LocalRun(tmp_path / "run", settings, monkeypatch)
    run.work, run.clock = replace(WORK, supernet_worker=FixedTimes), seen.clock
    seen.normalised_by(open_data(run.folder / "data"))

    assert run.enter() == "done"

    pool = {first + index for first in (10, 40) for index in range(NUM_TRAIN + NUM_SEARCH)}
    train, search = set(seen.images["training"]), set(seen.images["judging"])
    # Together the pool, and nothing in both: by class as many as a fifth is held out for judging.
    assert (len(train), len(search)) == (2 * NUM_TRAIN, 2 * NUM_SEARCH)
    assert train | search == pool
    assert set(seen.images["calibrating"]) == train
    assert set() != set(seen.images["scoring"]) <= train
    # Every pass over a split is over all of it, once.
    for role in ("training", "calibrating", "judging"):
        assert len(set(seen.images[role].values())) == 1, role
    with run.record() as record:
        done = record.trials(state="done")
    assert {trial.fidelity == "supernet" for trial in done} == {True, False}
    assert {trial.measured.total for trial in done} == {2 * NUM_SEARCH}


def test_a_retraining_learns_from_train_and_search_and_reads_test_once(
    settings: RunSettings, seen: Seen, tmp_path: Path
) -> None:
    data = prepare_data(settings.data, img_size=8, folder=tmp_path / "data")
    seen.normalised_by(data)
    network = load_space(settings.space).replace(num_classes=2).sample(random.Random(0))
    recipe = changed("quick", epochs=3)

    result = retrain(network, data, recipe, RetrainOptions(out=tmp_path / "out"))

    pool = {first + index for first in (10, 40) for index in range(NUM_TRAIN + NUM_SEARCH)}
    test = {first + index for first in (200, 230) for index in range(NUM_TEST)}
    assert seen.images["training"] == dict.fromkeys(pool, 3)
    assert seen.images["judging"] == dict.fromkeys(test, 1)
    assert not seen.images["calibrating"]
    assert (result.num_train_images, result.raw.total) == (len(pool), len(test))
