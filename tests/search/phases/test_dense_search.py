"""Whole searches for backbones of segmenters and detectors, in this process, on a virtual clock.

What the devices do is real (tiny networks learn from tiny images); how long it takes is pretended,
so that a run can be killed at a given second and its budget is kept exactly.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from search.plan import PHASES, StepTimes
from search.record import Measured
from search.report.closing import print_closing, write_report
from search.results import front
from search.run_folder import MENTOR, START, create_run, keep_mentor, resume_run
from search.run_folder.folder import RunFolder
from search.run_folder.settings import RunSettings
from search.scheduling.tasks import TrialTask, Work
from search.transferring.network import TransferOptions, transfer
from search.transferring.queue import look_for_dense_teacher
from search.workers import dense_work
from search.workers.dense_job import make_dense_job
from search.workers.dense_work import (
    DENSE_WORK,
    DenseJudgeWorker,
    DenseSupernetWorker,
    train_dense_alone,
)
from searchspace.cost import count
from supernet.data.dense import open_dense_data
from supernet.dense.network import DenseNetwork
from supernet.dense.shared import calibration_batches
from supernet.dense.start import START_FILE
from supernet.recipes import load_dense_recipe
from supernet.recipes.dense_recipe import dump_dense_recipe
from supernet.training import recalibrate
from tests.local_run import Clock, LocalRun
from tests.tiny_dense import architecture, recipe, write_data

pytestmark = pytest.mark.timeout(1800)

SPACE = """
name: tiny
img_size: 64
patch_size: 4
mlp_ratio: [1, 0.5]
stages: [{dim: 8, depth: 1}, {dim: 8, depth: 1}, {dim: 16, depth: 1}, {dim: 16, depth: 1}]
mixers:
  window_attention: {window_size: 4, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""
RECIPES = {"semantic": "cells_semantic", "detection": "cells_detection"}
STEP, JUDGE, TRIAL_STEP = 0.5, 1.0, 0.8


def settings_of(tmp_path: Path, task: str, **changes: Any) -> RunSettings:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    chosen = recipe(RECIPES[task], steps=2, batch_size=4, shard_size=4)
    (tmp_path / f"{task}.yaml").write_text(dump_dense_recipe(chosen))
    if not (tmp_path / "images").exists():
        write_data(tmp_path / "images", train=8)
    return RunSettings(
        data=str(tmp_path / "images"),
        budget="60cpu-seconds",
        task=task,
        space=str(tmp_path / "tiny.yaml"),
        retrain_recipe=str(tmp_path / f"{task}.yaml"),
        **changes,
    )


def pretended(clock: Clock) -> Work:
    """Return the real work, which takes pretended seconds."""

    class Trains(DenseSupernetWorker):
        def measure(self) -> StepTimes:
            macs = [count(self.job.space.extreme("macs", largest=x)).macs for x in (False, True)]
            clock.work_for(0.5)
            return StepTimes(
                supernet_step=STEP,
                trial_steps=tuple((one, TRIAL_STEP) for one in macs),
                judge=JUDGE,
                steps_per_epoch=2,
                batch_size=4,
                supernet_batch=4,
                judged_images=len(self.data.judged),
            )

        def measure_supernet(self) -> float:
            return STEP

        def train(self, steps: int) -> Any:
            done = super().train(steps)
            clock.work_for(STEP * steps)
            return done

    class Judges(DenseJudgeWorker):
        def judge(self, architectures: Any, by: str) -> Any:
            found = super().judge(architectures, by)
            clock.work_for(JUDGE * len(found))
            return [(measured | Measured(seconds=JUDGE), cause) for measured, cause in found]

    def alone(job: Any, task: TrialTask, threads: int, on_epoch: Callable[[int], None]) -> Measured:
        measured = train_dense_alone(job, task, threads, on_epoch)
        clock.work_for(TRIAL_STEP * 2 * task.epochs)
        return measured

    return replace(
        DENSE_WORK, supernet_worker=Trains, judge_worker=Judges, train_alone=alone, prepare=None
    )


def local_run(folder: Path, settings: RunSettings, patch: pytest.MonkeyPatch) -> LocalRun:
    run = LocalRun(folder, settings, patch)
    run.work = pretended(run.clock)
    # Seconds by the wall are none of a pretended run.
    from search.phases import measure, supernet

    patch.setattr(supernet.time, "monotonic", run.clock)
    patch.setattr(measure.time, "monotonic", run.clock)
    return run


@pytest.mark.parametrize(("task", "measure"), [("semantic", "miou"), ("detection", "ap_box")])
def test_a_search_ends_with_a_front_by_what_the_task_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, measure: str
) -> None:
    settings = settings_of(tmp_path, task)
    run = local_run(tmp_path / "run", settings, monkeypatch)
    assert settings.objectives == (measure, "macs")
    assert run.enter() == "done"
    with run.record() as record:
        spent = record.spent(PHASES)
        assert spent <= 60.0 * 1.01
        assert spent >= 60.0 * 0.9
        trials = record.trials()
        fidelities = {trial.fidelity for trial in trials if trial.state == "done"}
        assert "supernet" in fidelities
        assert any(name.startswith("train-") for name in fidelities)
        for trial in trials:
            assert trial.state == "done", trial.cause
            assert {measure, f"{measure}_low", f"{measure}_high", "total"} <= set(
                trial.measured.to_json()
            )
            assert not trial.measured.has("top1")
        members = front(trials, objectives=settings.objectives)
        assert members
        assert {member.measure for member in members} == {measure}
        folder = RunFolder(run.folder, record, settings)
        errors = folder.state.extraction_errors
        assert errors
        assert set(errors.values()) == {0.0}
        console = Console(record=True, width=100)
        write_report(folder, console)
        assert print_closing(folder, console)
        text = console.export_text()
        assert {"miou": "mIoU %", "ap_box": "box AP %"}[measure] in text
        assert "search transfer" in text
        page = folder.report.read_text()
    assert {"miou": "mIoU", "ap_box": "box AP"}[measure] in page


def test_killed_again_and_again_it_ends_with_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, "semantic")
    whole = local_run(tmp_path / "whole", settings, monkeypatch)
    assert whole.enter() == "done"
    with whole.record() as record:
        expected = results_of(record)
    broken = local_run(tmp_path / "broken", settings, monkeypatch)
    ends = [broken.enter(kill_after=seconds) for seconds in (3.0, 11.0, 9.0, 8.0, 7.0)]
    assert "killed" in ends
    assert broken.enter() == "done"
    with broken.record() as record:
        assert record.spent(PHASES) <= 60.0 * 1.01
        found = results_of(record)
    alone = [key for key in found if key[1].startswith("train-") and key in expected]
    assert alone
    assert all(found[key] == expected[key] for key in alone)


def test_a_backbone_alone_is_judged_with_statistics_of_its_last_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, "semantic")
    run = local_run(tmp_path / "run", settings, monkeypatch)
    with run.record() as record:
        data = RunFolder(run.folder, record, settings).task_data()
        job = make_dense_job(settings, run.folder, data)
    judged: list[DenseNetwork] = []

    def look(network: DenseNetwork, *_: Any) -> Measured:
        judged.append(network)
        return Measured(total=1.0)

    monkeypatch.setattr(dense_work, "dense_measured", look)
    task = TrialTask(trial_id=1, architecture=architecture(), epochs=1, seed=0)
    train_dense_alone(job, task, 1, lambda _: None)

    (network,) = judged
    found = {name: value.clone() for name, value in network.state_dict().items()}
    assert any(name.endswith("running_mean") for name in found)
    recalibrate(network, calibration_batches(job.open_data().learned, job.recipe))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("task", RECIPES)
def test_a_search_learns_from_a_transfer_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Shared weights and networks that are trained alone; it goes on where the transfer is gone."""
    settings = settings_of(tmp_path, task)
    plain = local_run(tmp_path / "plain", settings, monkeypatch)
    taught_by = transferred(tmp_path, settings)
    settings = replace(settings, taught_by=str(taught_by))
    build = look_for_dense_teacher(settings.taught_by)
    taught = local_run(tmp_path / "taught", settings, monkeypatch)
    taught.settings = settings = keep_mentor(settings, taught.folder, build)
    with taught.record() as record:
        record.set_meta("settings", settings.to_dict())
    shutil.rmtree(taught_by)
    results = []
    for run in (plain, taught):
        assert run.enter(kill_after=9.0) == "killed"
        assert run.enter() == "done"
        with run.record() as record:
            assert record.spent(PHASES) <= 60.0 * 1.01
            results.append(results_of(record))
    together = results[0].keys() & results[1].keys()
    alone = [key for key in together if key[1].startswith("train-")]
    assert alone
    # A loss has the teacher's part.
    assert all(results[1][key].losses != results[0][key].losses for key in alone)


def test_who_cannot_teach_a_search_is_said_before_anything_is_left(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "semantic")
    taught_by = transferred(tmp_path, settings)
    with pytest.raises(ValueError, match="is not the folder of a transfer"):
        look_for_dense_teacher(str(tmp_path / "images"))
    other = replace(settings_of(tmp_path, "detection"), taught_by=str(taught_by))
    with (
        pytest.raises(ValueError, match="learnt --task semantic"),
        create_run(tmp_path / "run", other, teacher=look_for_dense_teacher(str(taught_by))),
    ):
        pass
    assert not (tmp_path / "run").exists()
    coarse = SPACE.replace("patch_size: 4", "patch_size: 2")
    (tmp_path / "tiny.yaml").write_text(coarse)
    fine = replace(settings, taught_by=str(taught_by))
    with (
        pytest.raises(ValueError, match="of the same shapes"),
        create_run(tmp_path / "run", fine, teacher=look_for_dense_teacher(str(taught_by))),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_copy_of_its_transfer(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "semantic")
    taught_by = transferred(tmp_path, settings)
    settings = replace(settings, taught_by=str(taught_by))
    build = look_for_dense_teacher(settings.taught_by)
    with create_run(tmp_path / "run", settings, teacher=build) as run:
        run.record.set_meta("plan", {})
    weights = tmp_path / "run" / MENTOR / "model.safetensors"
    with resume_run(tmp_path / "run", None) as run:
        found = run.dense_mentor()
    assert found is not None
    assert found.name == str(taught_by)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with (
        pytest.raises(ValueError, match="has other weights"),
        resume_run(tmp_path / "run", "2cpu-minutes"),
    ):
        pass


def transferred(tmp_path: Path, settings: RunSettings) -> Path:
    """Train a network as a teacher of the settings' task; return its folder."""
    data = open_dense_data(settings.data, settings.task, unpack_to=tmp_path / "unpacked")
    recipe_file = load_dense_recipe(settings.trial_recipe)
    out = tmp_path / f"teacher-{settings.task}"
    options = TransferOptions(out=out, seed=1, data_source=settings.data, threads=1)
    transfer(architecture(), data, recipe_file, options)
    return out


def results_of(record: Any) -> dict[tuple[str, str], Measured]:
    return {
        (trial.key, trial.fidelity): replace(trial.measured, seconds=0.0)
        for trial in record.trials()
        if trial.state == "done"
    }


def test_backbones_begin_with_the_weights_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = local_run(tmp_path / "first", settings_of(tmp_path, "detection"), monkeypatch)
    assert first.enter() == "done"
    settings = settings_of(tmp_path, "semantic", start=str(tmp_path / "first"))
    second = local_run(tmp_path / "second", settings, monkeypatch)
    with second.record() as record:
        folder = RunFolder(second.folder, record, settings)
        job = make_dense_job(settings, second.folder, folder.task_data())
        with first.record() as other:
            theirs = RunFolder(first.folder, other, first.settings)
            architecture = other.trials()[0].architecture.replace(num_classes=3)
            state = DenseJudgeWorker(
                make_dense_job(first.settings, first.folder, theirs.task_data()), threads=1
            )._evaluator.supernet.state_dict()
    worker = DenseSupernetWorker(job, threads=1)
    own = worker.make_trainer(2).supernet.state_dict()
    names = [name for name in own if name.startswith("backbone.network.stages")]
    assert names
    assert all(own[name].equal(state[name]) for name in names)
    start = job.start_of(architecture)
    assert start is not None
    name = "stages.0.0.mlp.0.weight"
    assert any(key.startswith("stages.0.0") for key in start), name
    kept = second.folder / START / START_FILE
    with second.record() as record:
        folder = RunFolder(second.folder, record, settings)
        folder.check_start()
        kept.write_bytes(kept.read_bytes()[:-100])
        with pytest.raises(ValueError, match="keeps the weights that its backbones begin with"):
            folder.check_start()
        kept.unlink()
        with pytest.raises(ValueError, match="Restore it from a copy, or begin another run"):
            folder.check_start()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "boxes"}, "--task is one of"),
        ({"strategy": "zero-cost"}, "Zero-cost"),
        ({"data": "digits"}, "classes of pixels"),
        ({"objectives": ("top1", "macs")}, "The objectives are miou"),
        ({"task": "classification", "start": "run"}, "--start is for backbones"),
    ],
)
def test_what_does_not_go_together_is_said(changes: dict[str, Any], words: str) -> None:
    values: dict[str, Any] = {"data": "images", "budget": "1cpu-minute", "task": "semantic"}
    with pytest.raises(ValueError, match=words):
        RunSettings(**{**values, **changes})


def test_the_kept_recipe_is_the_one_that_was_given(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "semantic")
    with create_run(tmp_path / "run", settings) as run:
        (tmp_path / "semantic.yaml").unlink()
        kept = yaml.safe_load((tmp_path / "run" / "trial_recipe.yaml").read_text())
        assert kept["name"] == "tiny_cells_semantic"
        assert run.space().num_classes == 3
        with pytest.raises(ValueError, match="search transfer"):
            run.data()
