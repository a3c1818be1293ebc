"""What runs on a GPU, on a device that is none: the same as on the processor.

Collected by `test_second_device.py` in a process of its own, for a device stays registered.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search.retraining.network import RetrainOptions, retrain
from search.run_folder import open_run
from search.scheduling.tasks import TrialTask
from search.workers import graft_worker, supernet_worker
from search.workers.graft_worker import GraftJudge, GraftWorker, heal, make_graft_job
from search.workers.job import Job
from search.workers.judge_worker import JudgeWorker
from search.workers.measured_costs import time_latency
from search.workers.supernet_worker import SupernetWorker, train_alone
from searchspace.space import MixerChoices, SearchSpace, StageChoices
from searchspace.spec_file import load_space
from supernet.data import ImageData, open_data
from supernet.data.dense import open_dense_data
from supernet.dense.distillation import check_dense_teacher
from supernet.dense.judging import judge
from supernet.dense.network import DenseOptions, build_dense, extract_dense
from supernet.dense.options import dense_options
from supernet.dense.shared import (
    DenseSupernetTrainer,
    calibration_batches,
    load_dense_supernet,
)
from supernet.dense.training import DenseTeacher, DenseTrainingOptions, train_dense
from supernet.kernels.select import VARIABLE
from supernet.measuring.proxies import PROXIES
from supernet.network.supernet import build_subnet, extraction_error
from supernet.recipes import DenseRecipe
from supernet.recipes.recipe import Recipe
from supernet.shared_weights.trainer import SupernetTrainer
from supernet.training.calibration import recalibrate
from supernet.training.training import TrainingOptions, TrainingStopped, train
from tests import tiny_dense
from tests.second_device.backend import NAME, register
from tests.tiny_data import PLAIN, changed, noise, tiny_data
from tests.tiny_graft import TEACHER, write_learned_graft
from tests.tiny_teachers import tiny_teacher

register(Path(os.environ["SECOND_DEVICE"]))
# The processor computes as the second device does.
os.environ[VARIABLE] = "torch"
torch.set_num_threads(1)

DEVICES = ("cpu", NAME)
FULL = changed(
    "micro", batch_size=4, epochs=3, warmup_epochs=1, random_erasing=0.5, ema_decay=0.9, mixup=0.8
)
DISTILLATION = {"weight": 0.5, "temperature": 2.0}
DISTILLED = changed(
    "quick", **PLAIN, batch_size=4, epochs=2, distillation={**DISTILLATION, "features": 0.1}
)
KINDS = load_space("micro_all").stages[0].choices[0].kinds
DENSE = ("cells_semantic", "cells_detection", "mask_rcnn_1x", "cascade_mask_rcnn_1x")


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    (tmp_path / "data").mkdir()
    return tiny_data(tmp_path / "data", *noise(27, 8))


def space(*kinds: str) -> SearchSpace:
    """Two widths, two blocks, and the mixers of the largest shipped space."""
    choices = MixerChoices(kinds={kind: KINDS[kind] for kind in kinds or KINDS})
    stage = StageChoices(dims=(32, 16), depths=(2, 1), mlp_ratios=(1.0,), choices=(choices,) * 2)
    return SearchSpace(name="small", img_size=8, patch_size=2, num_classes=2, stages=(stage,))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """See that weights differ by rounding alone, which AdamW's first steps make larger.

    Attention in windows is another operator where it is not on the processor.
    """
    assert found.keys() == expected.keys()
    one, two = (
        torch.cat([value.detach().cpu().double().flatten() for value in state.values()])
        for state in (found, expected)
    )
    assert float((one - two).norm() / two.norm()) < 1e-2


def trained(
    network: nn.Module, data: ImageData, recipe: Recipe, device: str, **more: Any
) -> Mapping[str, Tensor]:
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=1, device=device
    )
    result = train(network.to(device), data, recipe, replace(options, **more))
    assert result.raw.total == 4
    return network.state_dict()


def trained_in_parts(trainer: Callable[[str], Any], folder: Path) -> Any:
    """Train shared weights with a checkpoint on the way, and see that they are the processor's."""
    expected, begun, found = trainer("cpu"), trainer(NAME), trainer(NAME)
    expected.run(4)
    begun.run(2)
    begun.snapshot().write(folder)
    assert found.load(folder)
    found.run(2)
    assert_same(found.supernet.state_dict(), expected.supernet.state_dict())
    return found


def test_the_second_device_refuses_what_a_gpu_refuses() -> None:
    there = torch.zeros(3, device=NAME)
    with pytest.raises(RuntimeError, match="same device"):
        there += torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([there, torch.ones(3)])
    total = torch.zeros(())
    with pytest.raises(RuntimeError, match="same device"):
        total += there.sum()
    assert (there + torch.tensor(1.0)).tolist() == [1.0] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_every_mixer_trains_and_is_judged(kind: str, data: ImageData) -> None:
    architecture, found = space(kind).sample(random.Random(0)), []
    for device in DEVICES:
        torch.manual_seed(0)
        found.append(trained(build_subnet(architecture, 0.1), data, FULL, device))
    assert_same(found[1], found[0])


def test_a_stopped_training_goes_on(data: ImageData, tmp_path: Path) -> None:
    architecture = space().sample(random.Random(0))
    torch.manual_seed(0)
    whole = trained(build_subnet(architecture), data, FULL, NAME)
    epochs: list[object] = []
    options = {"out": tmp_path / "out", "on_epoch": epochs.append}
    torch.manual_seed(0)
    stop = {"should_stop": lambda: len(epochs) == 1}
    with pytest.raises(TrainingStopped):
        trained(build_subnet(architecture), data, FULL, NAME, **options, **stop)
    gone_on = trained(build_subnet(architecture), data, FULL, NAME, **options)
    assert [n for n in whole if not torch.equal(whole[n].cpu(), gone_on[n].cpu())] == []


def test_a_network_learns_from_a_teacher(data: ImageData) -> None:
    architecture, found = space("depthwise_conv").sample(random.Random(0)), []
    for device in DEVICES:
        teacher = tiny_teacher()
        torch.manual_seed(0)
        network = build_subnet(architecture)
        found.append(trained(network, data, DISTILLED, device, teacher=teacher))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("strategy", ["uniform", "sandwich", "fair"])
@pytest.mark.parametrize("is_taught", [False, True])
def test_shared_weights_train_and_are_read_again(
    strategy: str, is_taught: bool, data: ImageData, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"distillation": DISTILLATION} if is_taught else {}
    more |= {"drop_path": 0.2, "ema_decay": 0.9, "mixup": 0.8, "random_erasing": 0.2}
    recipe = changed("supernet", batch_size=8, **more)

    def trainer(device: str) -> SupernetTrainer:
        return SupernetTrainer(
            space(),
            data,
            recipe,
            strategy=strategy,
            total_steps=6,
            seed=0,
            device=device,
            teacher=tiny_teacher() if is_taught else None,
        )

    found = trained_in_parts(trainer, tmp_path / "checkpoint")
    images = torch.randn(2, 3, 8, 8).to(NAME)
    for seed in range(3):
        assert extraction_error(found.supernet, space().sample(random.Random(seed)), images) < 1e-5


def test_workers_measure_train_and_judge(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(supernet_worker.TIMED_STEPS, NAME, 1)
    judged = []
    for device in DEVICES:
        job = replace(make(), device=device, measured=("latency_ms", "memory_mib"))
        worker = SupernetWorker(job, threads=1)
        assert min(seconds for _, seconds in worker.measure().trial_steps) > 0
        worker.start(3)
        worker.train(3)
        worker.save()
        judges = JudgeWorker(job, threads=1)
        networks = [job.space.first(), job.space.extreme("macs", largest=True)]
        assert max(judges.extraction_errors(networks)) < 1e-5
        answers = [one for by in ("supernet", *PROXIES) for one in judges.judge(networks, by)]
        assert [cause for _, cause in answers if cause] == []
        task = TrialTask(trial_id=7, architecture=networks[0], epochs=2, seed=5)
        alone = train_alone(job, task, 1, lambda _: None)
        assert alone is not None
        found = [one for one, _ in answers if one is not None]
        judged.append([value for m in [*found, alone] for value in (m.top1 or 0, m.score or 0)])
        for folder in ("supernet", "trials/7"):
            shutil.rmtree(job.files.fetch(folder), ignore_errors=True)
    assert judged[1] == pytest.approx(judged[0], rel=1e-3, nan_ok=True)


def test_parts_of_a_graft_learn_are_judged_and_heal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(supernet_worker.TIMED_STEPS, NAME, 1)
    monkeypatch.setattr(graft_worker, "TIMED_LIBRARY_STEPS", 1)
    folder = write_learned_graft(tmp_path / "graft")
    with open_run(folder) as run:
        made = make_graft_job(run.settings, folder, open_data(folder / "data"))
    job = replace(made, device=NAME, shares=1)
    worker = GraftWorker(job, threads=1)
    assert worker.start(0, 1, 2) == 1
    worker.train(1)
    worker.save()
    judges = GraftJudge(job, threads=1)
    assert judges.difference() == 0.0
    ((found, cause),) = judges.judge([TEACHER], "supernet")
    assert (cause, found and found.kl) == (None, 0.0)
    task = TrialTask(trial_id=7, architecture=TEACHER, epochs=1, seed=5, images=0.05)
    healed = heal(job, task, 1, lambda _: None)
    assert healed is not None
    assert healed.top1 is not None


def test_a_retraining_is_judged(data: ImageData, tmp_path: Path) -> None:
    architecture, found = space("depthwise_conv").sample(random.Random(0)), []
    for device in DEVICES:
        options = RetrainOptions(out=tmp_path / device, device=device)
        result = retrain(architecture, data, FULL, options)
        found.append((result.raw, result.ema))
    assert found[0] == found[1]


def test_a_latency_is_measured() -> None:
    architecture = space("depthwise_conv").sample(random.Random(0))
    network = build_subnet(architecture).to(NAME).eval()
    assert (time_latency(network, architecture).latency_ms or 0) > 0


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("is_taught", [False, True])
def test_detectors_and_segmenters_train_and_are_judged(
    name: str, is_taught: bool, tmp_path: Path
) -> None:
    chosen = tiny_dense.recipe(name)
    folder = tiny_dense.write_data(tmp_path / "cells")
    data = open_dense_data(str(folder), chosen.task, unpack_to=folder)
    wanted = dense_options(chosen, len(data.class_names))
    teacher = dense_teacher(wanted, chosen) if is_taught else None
    found = []
    for device in DEVICES:
        torch.manual_seed(0)
        network = build_dense(SearchSpace.of(tiny_dense.architecture()), wanted, chosen.drop_path)
        options = DenseTrainingOptions(seed=3, device=device, teacher=teacher)
        train_dense(network.to(device), data.train, chosen, options)
        assert judge(network, data.train, chosen, device=device).measures
        found.append(network.state_dict())
    assert_same(found[1], found[0])
    if teacher is not None:  # which is on the device now, and teaches the next seed's network
        check_dense_teacher(network.cpu(), teacher)


def dense_teacher(wanted: DenseOptions, chosen: DenseRecipe) -> DenseTeacher:
    torch.manual_seed(7)
    network = build_dense(SearchSpace.of(tiny_dense.architecture()), wanted)
    return tiny_dense.dense_teacher(network, chosen)


@pytest.mark.parametrize("name", DENSE[:3])
def test_shared_weights_under_heads_train_and_are_read_again(name: str, tmp_path: Path) -> None:
    chosen = tiny_dense.recipe(name)
    folder = tiny_dense.write_data(tmp_path / "cells")
    split = open_dense_data(str(folder), chosen.task, unpack_to=folder).train
    choices = MixerChoices(kinds={"depthwise_conv": {"kernel_size": (3, 5)}})
    stages = tuple(
        StageChoices(dims=(dim, dim // 2), depths=(2, 1), choices=(choices,) * 2, mlp_ratios=(1.0,))
        for dim in (8, 8, 16, 16)
    )
    small = SearchSpace(name="tiny", img_size=64, patch_size=4, num_classes=2, stages=stages)

    def trainer(device: str) -> DenseSupernetTrainer:
        return DenseSupernetTrainer(
            small,
            split,
            chosen,
            strategy="uniform",
            total_steps=4,
            seed=3,
            device=device,
            teacher=dense_teacher(dense_options(chosen, len(split.class_names)), chosen),
        )

    found = trained_in_parts(trainer, tmp_path / "checkpoint")
    found.snapshot().write(tmp_path / "checkpoint")
    supernet = load_dense_supernet(
        tmp_path / "checkpoint", small, chosen, len(split.class_names)
    ).to(NAME)
    calibration = [one.to(torch.device(NAME)) for one in calibration_batches(split, chosen)]
    network = extract_dense(supernet, small.first())
    recalibrate(network, calibration)
    assert judge(network, split, chosen, device=NAME).images == len(split)
