"""Small real work for the devices of the engine's benchmarks: it multiplies matrices and waits.

The engine, Ray, Tune, the record and the checkpoints are the real ones; only what the devices do is
short, and its accuracy is a function of the architecture. Faults are switched on by the names of
files in the run's folder, so that each happens once, at a known place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from search.plan import StepTimes
from search.record import Measured
from search.run_folder.files import SUPERNET, Files
from search.run_folder.storage import open_files
from search.scheduling.tasks import TrialTask, Work, checkpoint_name
from searchspace.architecture import Architecture

NUM_IMAGES = 1000
RETRAINING_EPOCH = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallJob:
    """What the devices do, in seconds: read from ``work.json`` of the run's folder.

    Attributes:
        folder: Of the run, where faults are switched on.
        files: Where checkpoints are.
        step: Of a supernet step.
        judge: Of a judgement.
        epoch: Of an epoch of a trial.
        start: Of a worker.
    """

    folder: Path
    files: Files
    step: float = 0.02
    judge: float = 0.05
    epoch: float = 0.25
    start: float = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where the pretended supernet stands."""

    step: int
    loss: float


def make_job(settings: Any, folder: Path, data: Any) -> SmallJob:
    """Describe the work of a run."""
    options = json.loads((folder / "work.json").read_text())
    files = open_files(settings.storage, folder)
    return SmallJob(folder=folder.resolve(), files=files, **options)


class SmallSupernetWorker:
    """Counts steps, and keeps the count in a checkpoint."""

    def __init__(self, job: SmallJob, *, threads: int) -> None:
        self.job, self.step, self.world, self.rank = job, 0, 1, 0
        work_for(job.start)

    def measure(self) -> StepTimes:
        """Return the work's times as measured ones."""
        return StepTimes(
            supernet_step=self.job.step,
            trial_steps=((1_000_000, self.job.epoch), (9_000_000, self.job.epoch)),
            judge=self.job.judge,
            steps_per_epoch=1,
        )

    def address(self, host: str) -> str:
        """Nobody connects."""
        return "nowhere"

    def join(self, address: str, rank: int, world_size: int) -> None:
        """Take part; a step is shared by all."""
        self.rank, self.world = rank, world_size

    def measure_supernet(self) -> float:
        """Return the device-seconds of a step."""
        work_for(self.job.step / self.world)
        return self.job.step

    def start(self, total_steps: int) -> int:
        """Go on from the checkpoint."""
        self.folder = self.job.files.fetch(SUPERNET)
        file = self.folder / "step.txt"
        self.step = int(file.read_text()) if file.is_file() else 0
        return self.step

    def reschedule(self, total_steps: int) -> None:
        """Nothing depends on the end."""

    def train(self, steps: int) -> Progress:
        """Take steps."""
        work_for(self.job.step / self.world * steps)
        self.step += steps
        return Progress(step=self.step, loss=1 / self.step)

    def save(self, goes_on: bool = False) -> None:
        """Write the checkpoint."""
        self.folder.mkdir(exist_ok=True)
        write_whole(self.folder / "step.txt", str(self.step))
        self.job.files.publish(SUPERNET, self.folder)


class SmallJudgeWorker:
    """Judges by a formula, and takes its time."""

    def __init__(self, job: SmallJob, *, threads: int) -> None:
        self.job = job
        work_for(job.start)

    def judge(
        self, architectures: Iterable[Architecture], by: str
    ) -> list[tuple[Measured, str | None]]:
        """Judge a batch by the supernet, or by a score."""
        judged = [(a, self._judge(a)) for a in architectures]
        if by == "supernet":
            return [(measured, None) for _, measured in judged]
        return [
            (Measured(score=score_of(by, a), seconds=measured.seconds), None)
            for a, measured in judged
        ]

    def proxy_scores(self, architectures: Iterable[Architecture]) -> dict[str, dict[str, float]]:
        """Score with one proxy, worse than the supernet."""
        return {a.key: {"nwot": measured_of(a, noise=40.0).top1} for a in architectures}

    def extraction_errors(self, architectures: Iterable[Architecture]) -> list[float]:
        """Nothing is extracted."""
        return [0.0 for _ in architectures]

    def _judge(self, architecture: Architecture) -> Measured:
        if take(self.job.folder / "hang-judge"):
            time.sleep(3600)
        work_for(self.job.judge)
        return replace(measured_of(architecture, noise=5.0), seconds=self.job.judge)


def train_small(
    job: SmallJob, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
) -> Measured:
    """Work for a task's epochs, each with a checkpoint; faults come after the first epoch."""
    name = checkpoint_name(task.trial_id)
    folder = job.files.fetch(name)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "checkpoint.bin"
    done = file.read_bytes()[0] if file.is_file() else 0
    on_epoch(0)
    for epoch in range(done + 1, task.epochs + 1):
        work_for(job.epoch)
        write_whole(file, bytes([epoch]) + bytes(100_000))
        job.files.publish(name, folder)
        on_epoch(epoch)
        fail_as_asked(job.folder, task)
    return measured_of(task.architecture, noise=20.0 / task.epochs)


def retrain_small(architecture: Architecture, data: Any, recipe: Any, options: Any) -> Any:
    """Be one process of a retraining: epochs of a second that the first writes down."""
    from search.retraining.attempt import Ended
    from supernet.training import METRICS_FILE, Accuracy, EpochReport
    from supernet.training.epoch_report import read_csv, to_csv

    rank = 0 if options.group is None else options.group[2]
    file = options.out / METRICS_FILE
    epochs = read_csv(file.read_text()) if file.is_file() else ()
    for epoch in range(len(epochs) + 1, recipe.total_epochs + 1):
        work_for(RETRAINING_EPOCH)
        report = EpochReport(
            epoch=epoch,
            epochs=recipe.total_epochs,
            seconds=RETRAINING_EPOCH,
            loss=1 / epoch,
            lr=0.1,
            images=NUM_IMAGES,
            wait_seconds=0.0,
            read_seconds=0.0,
            augment_seconds=0.0,
        )
        epochs = (*epochs, report)
        if rank == 0:
            options.out.mkdir(parents=True, exist_ok=True)
            write_whole(file, to_csv(list(epochs)))
    correct = int(measured_of(architecture, noise=0.0).correct)
    accuracy = Accuracy(correct, correct, NUM_IMAGES)
    return Ended(end="done", result=SimpleNamespace(accuracy=accuracy))  # type: ignore[arg-type]


def fail_as_asked(folder: Path, task: TrialTask) -> None:
    """Have the fault whose file lies in the folder."""
    if take(folder / "hang"):
        time.sleep(3600)
    if take(folder / "raise"):
        raise KeyError("a mistake in this network's code")
    if (folder / "memory").is_file() and task.micro_batches == 1:
        take(folder / "memory")
        raise MemoryError("out of memory: tried to allocate 80 GiB")
    if (folder / "memory-always").is_file():
        raise MemoryError("out of memory: tried to allocate 80 GiB")
    if take(folder / "full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def measured_of(architecture: Architecture, *, noise: float) -> Measured:
    """Return an accuracy that grows with MACs, with noise that depends on the key alone."""
    from searchspace.cost import count

    number = int.from_bytes(hashlib.sha256(architecture.key.encode()).digest()[:4], "big") / 2**32
    top1 = 60 + 4 * math.log(count(architecture).macs / 1e5) + noise * (number - 0.5)
    correct = round(min(max(top1, 0.0), 100.0) / 100 * NUM_IMAGES)
    return Measured.judged(correct, NUM_IMAGES)


def score_of(by: str, architecture: Architecture) -> float:
    """Return a cost, or the one proxy that there is."""
    from searchspace.cost import count

    cost = count(architecture)
    costs = {"macs": float(cost.macs), "params": float(cost.params)}
    return costs[by] if by in costs else measured_of(architecture, noise=40.0).top1


def work_for(seconds: float) -> None:
    """Multiply matrices for a moment, and wait for the rest of ``seconds``."""
    started = time.monotonic()
    matrix = np.full((64, 64), 1e-3)
    for _ in range(3):
        matrix = matrix @ matrix
    time.sleep(max(seconds - (time.monotonic() - started), 0.0))


def take(file: Path) -> bool:
    """Remove a file; return whether this process is the one that did."""
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file that is the old one or the new one."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, file)


SMALL_WORK = Work(
    make_job=make_job,
    supernet_worker=SmallSupernetWorker,
    judge_worker=SmallJudgeWorker,
    train_alone=train_small,
)
