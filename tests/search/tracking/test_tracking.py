"""Curves at MLflow and Weights & Biases, in their local stores; and trackers that break."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from search.record import Measured, Record, RefusedError
from search.tracking import RunCurves, check_tracker, open_tracker, tracker
from search.tracking.curves import run_values
from searchspace import preset

SETTINGS = {"data": "digits", "budget": "10cpu-minutes"}


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    return uri


@needs("mlflow")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # Its own, of other packages.
def test_mlflow_gets_each_step_once_over_a_resume(mlflow_store: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_store)
    for first, end, status in ((0, "stopped", "KILLED"), (2, "failed", "FAILED"), (4, "done", "")):
        curves = open_tracker("mlflow", identity="a-1", title="a run", settings=SETTINGS)
        assert curves.last_step == first - (first == 0)
        for step in range(first, first + 3):
            curves.log({"loss": 10.0 - step, "best_top1/train-3e": 50.0 + step}, step)
        curves.close(end)
        experiment = client.get_experiment_by_name("ours")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == (status or "FINISHED")
    assert run.info.run_name == "a run"
    assert run.data.params == SETTINGS
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(p.step, p.value) for p in points] == [(n, 10.0 - n) for n in range(7)]
    best = client.get_metric_history(run.info.run_id, "best_top1/train-3e")
    assert [p.value for p in best] == [50.0 + n for n in range(7)]


@needs("wandb")
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_beside_the_run_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    curves = open_tracker("wandb", identity="b-2", title="a run", settings=SETTINGS)
    curves.log({"loss": 3.0}, 0)
    curves.log({"loss": 2.0}, 1)
    curves.close("done")

    (folder,) = tmp_path.glob("wandb/offline-run-*-b-2")
    (events,) = folder.glob("*.wandb")
    # Its service writes the file, and may still be at it.
    deadline = time.monotonic() + 120
    while b"loss" not in events.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Broken:
    """A tracker whose server went away after the first step."""

    last_step = -1

    def __init__(self, *_: Any) -> None:
        self.calls: list[str] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append("log")
        if step > 0:
            raise ConnectionError("no route to host")

    def close(self, end: str) -> None:
        self.calls.append("close")


def test_a_tracker_that_breaks_is_said_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    monkeypatch.setitem(tracker._OPEN, "mlflow", lambda *_: broken)
    curves = open_tracker("mlflow", identity="c", title="c", settings={})
    for step in range(4):
        curves.log({"loss": 1.0}, step)
    curves.close("done")
    assert broken.calls == ["log", "log"]
    assert [r.getMessage() for r in caplog.records] == [
        "mlflow gets no more curves (no route to host); the run goes on."
    ]


def test_a_tracker_that_cannot_be_opened_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError("nobody is logged in")

    monkeypatch.setitem(tracker._OPEN, "wandb", refuse)
    curves = open_tracker("wandb", identity="c", title="c", settings={})
    curves.log({"loss": 1.0}, 0)
    curves.close("done")
    assert "nobody is logged in" in caplog.text


@pytest.mark.parametrize("name", ["", "comet", "MLflow", "mlflow,wandb"])
def test_an_unknown_tracker_is_refused_at_the_door(name: str) -> None:
    with pytest.raises(ValueError, match="one of mlflow, wandb, got --track"):
        check_tracker(name)


def test_a_tracker_that_is_not_installed_is_refused_at_the_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install mlflow-skinny"):
        check_tracker("mlflow")
    check_tracker(None)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    with Record.create(tmp_path / "record.sqlite") as made:
        for number, (fidelity, correct) in enumerate(
            [("supernet", 30), ("supernet", 45), ("train-3e", 80), ("train-3e", 60)]
        ):
            network = preset("swin_t").replace(num_classes=2 + number)
            known = made.add_architecture(network, params=1, macs=1)
            trial = made.add_trial(known, fidelity=fidelity, seed=0, origin="search")
            attempt = made.start_attempt("search", devices=1, trial_id=trial)
            values = Measured.judged(correct, 100)
            made.finish_attempt(attempt, outcome="done", measured=values)
        yield made


def test_the_values_of_a_run_are_its_records(record: Record) -> None:
    assert run_values(record) == {
        "judged/supernet": 2,
        "best_top1/supernet": 45.0,
        "judged/train-3e": 2,
        "best_top1/train-3e": 80.0,
    }


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.last_step = -1
        self.points: list[tuple[int, Mapping[str, float]]] = []
        self.end = ""

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.points.append((step, values))

    def close(self, end: str) -> None:
        self.end = end


@pytest.mark.parametrize(("is_done", "end"), [(True, "done"), (False, "stopped")])
def test_the_end_of_a_run_is_always_told(record: Record, is_done: bool, end: str) -> None:
    listener = Listener()
    with RunCurves(record, listener, is_done=lambda: is_done, every_seconds=1000.0):
        pass
    assert listener.points == [(int(record.spent()), run_values(record))]
    assert listener.end == end


def test_a_record_that_is_busy_costs_a_point_and_not_the_curves(
    record: Record, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listener, trials = Listener(), record.trials
    refusals = [RefusedError("the database is locked")]

    def refuse(**given: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return trials(**given)

    monkeypatch.setattr(record, "trials", refuse)
    with RunCurves(record, listener, is_done=lambda: True, every_seconds=0.01):
        while not listener.points:
            time.sleep(0.01)
    assert "lack a point: the database is locked" in caplog.text
    assert listener.end == "done"


def test_a_run_that_breaks_is_told_as_failed(record: Record) -> None:
    listener = Listener()
    with pytest.raises(RuntimeError), RunCurves(record, listener, is_done=lambda: True):
        raise RuntimeError("a bug")
    assert listener.end == "failed"


def test_a_tracker_that_hangs_does_not_keep_a_run_from_its_end(
    record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that never answers; the last point waits for it."""
    answers = threading.Event()

    class Hanging(Listener):
        def log(self, values: Mapping[str, float], step: int) -> None:
            answers.wait()
            super().log(values, step)

    listener = Hanging()
    curves = RunCurves(
        record, listener, is_done=lambda: True, every_seconds=1000.0, close_seconds=0.01
    )
    with curves:
        pass
    assert "has not answered" in caplog.text
    assert not listener.end
    answers.set()
    curves._thread.join()
    assert listener.end == "done"
