"""A run whose networks learn from a teacher: its part of a step is measured, and trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search.run_folder import DATA, MENTOR, RunSettings, keep_mentor
from search.scheduling import TrialTask
from search.workers import make_job, supernet_worker
from search.workers.job import Job
from search.workers.supernet_worker import SupernetWorker, train_alone
from searchspace.cost import count
from supernet.data import ImageData, prepare_data
from supernet.network.supernet import Supernet, build_subnet
from supernet.recipes.recipe import load_recipe, with_epochs
from supernet.shared_weights import most_devices
from supernet.shared_weights.checkpoint import load_supernet
from supernet.training import Teacher, write_teacher_files
from supernet.training.training import TrainingOptions, train
from tests.tiny_data import noise, write_images
from tests.tiny_job import SPACE
from tests.tiny_teachers import small, tiny_teacher

TEACHER_SECONDS = 500.0


@pytest.fixture
def make(tmp_path: Path) -> Callable[[Teacher | None], Job]:
    """Describe a tiny run, taught by somebody or nobody."""
    (tmp_path / "space.yaml").write_text(SPACE)
    source = write_images(tmp_path / "images", *noise(150, 8), num_test=6)
    data = prepare_data(source, img_size=8, folder=tmp_path / DATA)

    def make(teacher: Teacher | None) -> Job:
        taught_by = "" if teacher is None else teacher.name
        settings = RunSettings(data=source, budget="1cpu-minute", taught_by=taught_by)
        build = None if teacher is None else lambda data: teacher
        return make_job(keep_mentor(settings, tmp_path, build), tmp_path, data)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A clock that passes move on: those of the teacher by much, in the step that it is part of."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(supernet_worker, "time", SimpleNamespace(monotonic=lambda: clock.now))
    teacher = count(small(8, 2)).params

    def passed(network: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(network, Supernet):
            size = sum(p.numel() for p in network.parameters())
            clock.now += TEACHER_SECONDS if size == teacher else size / 1000

    hook = nn.modules.module.register_module_forward_pre_hook(passed)
    yield clock
    hook.remove()


def test_steps_are_measured_with_the_teachers_part(
    make: Callable[[Teacher | None], Job], clock: SimpleNamespace
) -> None:
    plain, taught = (SupernetWorker(make(teacher), threads=1) for teacher in (None, tiny_teacher()))
    before, after = plain.measure(), taught.measure()
    for (macs, alone), (same, with_teacher) in zip(
        before.trial_steps, after.trial_steps, strict=True
    ):
        assert macs == same
        assert with_teacher == pytest.approx(alone + TEACHER_SECONDS)
    # It is not asked when networks are judged.
    assert after.judge == pytest.approx(before.judge)
    # And once for all architectures of a step of the shared weights.
    shards = most_devices(plain.job.supernet_recipe, plain.data.sizes["train"])
    expected = plain.measure_supernet() + TEACHER_SECONDS * shards
    assert taught.measure_supernet() == pytest.approx(expected)
    assert (before.teacher, after.teacher) == ("", taught.job.mentor_key)
    assert after.teacher


def trained(job: Job, teacher: Teacher | None) -> dict[str, Tensor]:
    """Train by hand what `train_alone` trains."""
    architecture = job.space.extreme("macs", largest=False)
    recipe = with_epochs(load_recipe("quick"), 2)
    torch.manual_seed(3)
    network = build_subnet(architecture, recipe.drop_path)
    data = job.open_data()
    options = TrainingOptions(
        train_split=data.split("train"),
        eval_split=data.split("search"),
        seed=3,
        teacher=teacher,
        recalibrates=True,
    )
    train(network, data, recipe, options)
    return dict(network.state_dict())


@pytest.mark.parametrize("teacher", [None, tiny_teacher()])
def test_networks_alone_learn_from_the_teacher(
    make: Callable[[Teacher | None], Job],
    monkeypatch: pytest.MonkeyPatch,
    teacher: Teacher | None,
) -> None:
    job, seen = make(teacher), dict[str, Tensor]()

    def training(network: nn.Module, data: ImageData, recipe: Any, options: Any) -> Any:
        result = train(network, data, recipe, options)
        seen.update(network.state_dict())
        return result

    monkeypatch.setattr(supernet_worker, "train", training)
    architecture = job.space.extreme("macs", largest=False)
    task = TrialTask(trial_id=1, architecture=architecture, epochs=2, seed=3)
    train_alone(job, task, 1, lambda epoch: None)
    expected = trained(job, teacher)
    assert all(torch.equal(value, seen[name]) for name, value in expected.items())
    other = trained(job, tiny_teacher() if teacher is None else None)
    assert any(not torch.equal(value, seen[name]) for name, value in other.items())


def test_the_shared_weights_learn_from_the_teacher(
    make: Callable[[Teacher | None], Job],
) -> None:
    heads = []
    for teacher in (None, tiny_teacher()):
        job = make(teacher)
        worker = SupernetWorker(job, threads=1)
        worker.start(3)
        worker.train(3)
        worker.save()
        folder = job.files.fetch("supernet")
        heads.append(load_supernet(folder, job.space).head.weight)
        for file in folder.iterdir():
            file.unlink()
    assert not torch.equal(*heads)


def test_a_worker_learns_from_nobody_else(
    make: Callable[[Teacher | None], Job], tmp_path: Path
) -> None:
    job = make(tiny_teacher())
    write_teacher_files(tmp_path / MENTOR, tiny_teacher(img_size=16))
    task = TrialTask(trial_id=1, architecture=job.space.first(), epochs=1, seed=0)
    with pytest.raises(ValueError, match="keeps the teacher that it began with"):
        train_alone(job, task, 1, lambda epoch: None)
    with pytest.raises(ValueError, match="keeps the teacher"):
        SupernetWorker(job, threads=1).measure()
    assert replace(job, mentor_key="").mentor() is None
