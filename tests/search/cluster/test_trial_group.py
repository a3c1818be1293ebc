"""A trial on several devices: a process on each, held and let go together; on a real Ray."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.cluster import connection
from search.cluster.connection import Cluster
from search.cluster.trial_group import Report, _most_telling
from search.cluster.tune_trials import run_trials
from search.record import Measured
from search.scheduling.tasks import Outcome, TrialTask, Work, is_of_others, outcome_of_error
from searchspace.spec_file import load_space
from supernet.training.training import CheckpointsDifferError

SPACE = load_space("digits").replace(num_classes=10)


class Source:
    """Hands out tasks, and notes what becomes of them."""

    def __init__(self, tasks: list[TrialTask]) -> None:
        self.tasks = tasks
        self.ended: dict[int, tuple[Outcome, Measured | None, str | None]] = {}
        self.heard_of: list[int] = []
        self.held: list[int] = []

    def wanted(self, most: int) -> int:
        return self.tasks[0].devices if self.tasks else 0

    def next(self, most: int | None = None) -> TrialTask | None:
        return self.tasks.pop(0) if self.tasks else None

    def started(self, task: TrialTask) -> None: ...

    def heard(self, task: TrialTask) -> None:
        self.heard_of.append(task.trial_id)

    def overdue(self, task: TrialTask) -> str | None:
        return None

    def hold(self, devices: int) -> None:
        self.held.append(devices)

    def settle(
        self, task: TrialTask, *, outcome: Outcome, measured: Measured | None, cause: str | None
    ) -> None:
        self.ended[task.trial_id] = (outcome, measured, cause)

    def has_lost(self) -> bool:
        return False

    def gives_up(self, task: TrialTask) -> bool:
        return False

    def should_stop(self, late_seconds: float = 0.0) -> bool:
        return False


def train(
    folder: Path, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
) -> Measured | None:
    """Write down who trains what; have the accident that the task's seed stands for."""
    rank = None if task.group is None else task.group[2]
    seen = {"group": task.group, "pid": os.getpid()}
    (folder / f"{task.trial_id}-{rank}.json").write_text(json.dumps(seen))
    for epoch in range(task.epochs + 1):
        on_epoch(epoch)
    if task.seed == 1 and rank == 1:
        os._exit(9)
    if task.seed == 2:
        words = "CUDA out of memory" if rank == 1 else "gloo: Connection closed by peer"
        raise RuntimeError(words)
    return None if rank else Measured(top1=50.0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(connection, "count_cores", lambda: 2)
    with Cluster(device="cpu") as cluster:
        yield cluster


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_process_a_device_and_one_result(cluster: Cluster, tmp_path: Path) -> None:
    network = SPACE.sample(random.Random(0))

    def task(number: int, *, seed: int = 0, devices: int = 2) -> TrialTask:
        return TrialTask(
            trial_id=number, architecture=network, epochs=3, seed=seed, devices=devices
        )

    source = Source([task(1), task(2, seed=1), task(3, seed=2), task(4, devices=1)])
    work: Any = Work(
        make_job=object, supernet_worker=object, judge_worker=object, train_alone=train
    )
    run_trials(cluster, work, job=tmp_path, folder=tmp_path, source=source, name="together")

    assert source.ended[1] == ("done", Measured(top1=50.0), None)
    # One of the processes tells all: that it is ready, and each epoch, as one that is alone does.
    assert source.heard_of.count(1) == source.heard_of.count(4) >= 4
    seen = [json.loads((tmp_path / f"1-{rank}.json").read_text()) for rank in range(2)]
    (place, world, first), (other, _, second) = (one["group"] for one in seen)
    assert (place, world, first, second) == (other, 2, 0, 1)
    assert len({one["pid"] for one in seen}) == 2
    # One that dies takes the trial with it, and it is the machine's fault.
    assert source.ended[2][0] == "lost"
    # What one of them says for itself counts, not that the other misses it.
    assert source.ended[3][0] == "out of memory"
    assert source.ended[4] == ("done", Measured(top1=50.0), None)
    assert json.loads((tmp_path / "4-None.json").read_text())["group"] is None
    # Both devices are held for one trial of two, and all are let go.
    assert max(source.held) == 2
    assert source.held[-1] == 0


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_worker_of_a_training_that_is_given_up_takes_up_the_next(
    cluster: Cluster, tmp_path: Path
) -> None:
    network = SPACE.sample(random.Random(0))
    long, short = (
        TrialTask(trial_id=number, architecture=network, epochs=epochs, seed=0)
        for number, epochs in ((1, 50), (2, 1))
    )

    class GivesUp(Source):
        def gives_up(self, task: TrialTask) -> bool:
            if task.trial_id != 1 or self.heard_of.count(1) < 3:
                return False
            self.tasks.append(short)
            return True

        def wanted(self, most: int) -> int | None:  # type: ignore[override]
            return 1 if self.tasks else None if 1 not in self.ended else 0

    source = GivesUp([long])
    work: Any = Work(
        make_job=object, supernet_worker=object, judge_worker=object, train_alone=train
    )
    run_trials(cluster, work, job=tmp_path, folder=tmp_path, source=source, name="given up")

    assert source.ended[1] == ("not begun", None, "stopped before its end")
    assert source.ended[2] == ("done", Measured(top1=50.0), None)
    assert source.heard_of.count(1) == 3  # ready, and two epochs of fifty
    one, two = (json.loads((tmp_path / f"{n}-None.json").read_text()) for n in (1, 2))
    assert one["pid"] == two["pid"]
    assert source.held[-1] == 0


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (["failed", "lost"], "failed"),
        (["lost", "died"], "lost"),
        (["failed", "died"], "lost"),
        (["died", "out of memory"], "out of memory"),
        (["lost", "full disk", "failed"], "full disk"),
        (["done", "failed"], "failed"),
    ],
)
def test_what_happened_is_told_from_what_follows_from_it(
    outcomes: list[Any], expected: str
) -> None:
    reports: list[Report] = [
        Report(outcome="lost" if one == "died" else one, has_died=one == "died") for one in outcomes
    ]
    assert _most_telling(reports).outcome == expected
    assert _most_telling(reports[::-1]).outcome == expected


def test_a_lost_connection_is_no_fault_of_a_network(tmp_path: Path) -> None:
    for text in (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
        "NCCL communicator was aborted on rank 3",
    ):
        assert is_of_others(RuntimeError(text))
    # Network file systems show a node late what another one has written: no fault of the network.
    assert is_of_others(CheckpointsDifferError("[0, 2] epochs"))
    assert not is_of_others(FloatingPointError("The loss is nan in epoch 1 of 3"))
    # Alone there are no others: such words would be the network's.
    assert outcome_of_error(RuntimeError("gloo"), tmp_path) == "failed"
