"""Work that one node began and another goes on with, where they share nothing but a storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.faults import small_work
from search.run_folder import create_run
from search.run_folder.files import DATA, SUPERNET, StorageError
from search.run_folder.settings import RunSettings
from search.run_folder.storage import CACHE_VARIABLE
from search.scheduling.tasks import TrialTask, checkpoint_name
from search.workers.job import Job, make_job
from search.workers.judge_worker import JudgeWorker
from search.workers.supernet_worker import SupernetWorker, train_alone
from supernet.data import prepare_data
from tests.local_run import LocalRun

SPACE = """
name: tiny
img_size: 8
patch_size: 2
mlp_ratio: [1]
stages: [{dim: 8, depth: 1}]
mixers:
  depthwise_conv: {kernel_size: [3, 5]}
"""
OnNode = Callable[[str], None]


@pytest.fixture
def on_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnNode:
    """Go to a node: to a cache folder of its own."""

    def go(name: str) -> None:
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / f"cache-{name}"))

    return go


def new_job(tmp_path: Path, storage: str) -> Job:
    """Prepare a run; with a storage, its folder is gone afterwards: only the driver has it."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(
        data="digits",
        budget="1cpu-minute",
        space=str(tmp_path / "tiny.yaml"),
        storage=storage,
    )
    folder = tmp_path / f"run-{bool(storage)}"
    data = prepare_data("digits", img_size=8, folder=folder / DATA)
    job = make_job(settings, folder, data)
    if storage:
        job.files.publish(DATA, folder / DATA)
        folder.rename(tmp_path / "where-no-worker-looks")
    return job


def test_a_supernet_goes_on_and_is_judged_on_other_nodes(tmp_path: Path, on_node: OnNode) -> None:
    job = new_job(tmp_path, str(tmp_path / "storage"))
    on_node("a")
    first = SupernetWorker(job, threads=1)
    assert first.start(6) == 0
    first.train(3)
    first.save()
    first.train(3)  # lost with the node: this is what the other must come to as well
    on_node("b")
    second = SupernetWorker(job, threads=1)
    assert second.start(6) == 3
    second.train(3)
    assert first.trainer is not None
    assert second.trainer is not None
    expected = first.trainer.supernet.state_dict()
    for name, value in second.trainer.supernet.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    second.save()
    assert len(list((tmp_path / "storage" / SUPERNET).glob("*.json"))) == 1
    on_node("c")
    architecture = job.space.first()
    ((measured, cause),) = JudgeWorker(job, threads=1).judge([architecture], SUPERNET)
    assert cause is None
    assert 0 <= measured.top1 <= 100


def test_a_trial_goes_on_on_another_node_and_ends_as_if_it_had_not_moved(
    tmp_path: Path, on_node: OnNode
) -> None:
    job, alone = new_job(tmp_path, str(tmp_path / "storage")), new_job(tmp_path, "")
    task = TrialTask(trial_id=7, architecture=job.space.first(), epochs=2, seed=3)
    expected = train_alone(alone, task, 1, lambda epoch: None)

    def die(epoch: int) -> None:
        if epoch:
            raise KeyboardInterrupt

    on_node("a")
    with pytest.raises(KeyboardInterrupt):
        train_alone(job, task, 1, die)
    on_node("b")
    epochs: list[int] = []
    assert train_alone(job, task, 1, epochs.append) == expected
    assert epochs == [0, 2]
    for node in ("a", "b"):
        assert not list((tmp_path / f"cache-{node}").rglob("checkpoint-*"))
    assert list((tmp_path / "storage").rglob("checkpoint-00002"))
    job.files.remove(checkpoint_name(7))
    assert not list((tmp_path / "storage").rglob("checkpoint-*"))


def test_a_run_goes_on_from_the_storage_after_its_nodes_were_lost(
    tmp_path: Path, on_node: OnNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = RunSettings(
        data="digits",
        budget="300cpu-seconds",
        sampler="random",
        storage=str(tmp_path / "storage"),
    )
    run = LocalRun(tmp_path / "run", settings, monkeypatch)
    starts: list[int] = []
    real_start = small_work.SmallSupernetWorker.start

    def start(worker: small_work.SmallSupernetWorker, total_steps: int) -> int:
        starts.append(real_start(worker, total_steps))
        return starts[-1]

    monkeypatch.setattr(small_work.SmallSupernetWorker, "start", start)
    on_node("a")
    assert run.enter(stop_after=60.0) == "stopped"
    on_node("b")
    assert run.enter(kill_after=60.0) == "killed"
    on_node("c")
    assert run.enter() == "done"
    assert starts[0] == 0
    assert starts[1] > 0
    assert not any((run.folder / name).exists() for name in ("supernet", "trials"))
    assert len(list((tmp_path / "storage" / SUPERNET).glob("*.json"))) == 1
    with run.record() as record:
        assert not record.trials(state="running")
        assert record.trials(state="done")
        waiting = {str(trial.id) for trial in record.trials(state="waiting")}
    assert {path.name for path in (tmp_path / "storage" / "trials").iterdir()} <= waiting


def test_a_storage_that_cannot_be_used_leaves_no_run(tmp_path: Path) -> None:
    settings = RunSettings(data="digits", budget="1cpu-minute", storage="nosuch://bucket")
    with (
        pytest.raises(ValueError, match="nosuch://bucket cannot be used"),
        create_run(tmp_path / "run", settings),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_run_that_never_began_leaves_nothing_in_the_storage(
    tmp_path: Path, on_node: OnNode
) -> None:
    (tmp_path / "tiny.yaml").write_text(SPACE)
    settings = RunSettings(
        data="digits",
        budget="1cpu-minute",
        space=str(tmp_path / "tiny.yaml"),
        storage=str(tmp_path / "storage"),
    )
    on_node("a")

    def begin() -> None:
        with create_run(tmp_path / "run", settings) as run:
            run.share_data()
            assert list((tmp_path / "storage").rglob("data.json"))
            raise ValueError("The budget is too small.")

    with pytest.raises(ValueError, match="too small"):
        begin()
    assert not (tmp_path / "run").exists()
    assert not [path for path in (tmp_path / "storage").rglob("*") if path.is_file()]


def test_a_trial_says_that_its_storage_did_not_answer(
    tmp_path: Path, on_node: OnNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(tmp_path, str(tmp_path / "storage"))
    task = TrialTask(trial_id=7, architecture=job.space.first(), epochs=2, seed=3)
    on_node("a")

    def go_away(epoch: int) -> None:
        if epoch:
            (tmp_path / "storage").rename(tmp_path / "gone")
            (tmp_path / "storage").touch()

    with pytest.raises(StorageError, match=r"NotADirectoryError|FileExistsError"):
        train_alone(job, task, 1, go_away)
