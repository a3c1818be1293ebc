"""Trainings of a run's networks by one command: several at a time, resumed, charged.

Each network trains on one device or several (CPU: its share of the cores), several networks at a
time, as Ray tasks; the tasks of one network form a group of torch.distributed. Everything that a
training needs to go on lies in its folder, so stopping is dropping the tasks, and an attempt that
the machine lost is followed by another, which goes on from what lies there.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from rich.console import Console

from search.budget import count_cores
from search.cluster import Cluster, Place, take_finished
from search.record import AttemptOutcome, Heartbeat, Measured, Trial
from search.retraining.attempt import Ended
from search.run_folder import FullDiskError, RunFolder, is_disk_full
from search.terminal import StopSignals

# What keeps a command from its end, besides signals.
FAILED = "a failed training"
FULL_DISK = "a full disk"
# A training that is lost is handed out again so often without progress between.
MAX_AGAIN = 3
LOOK_SECONDS = 1.0
# Devices are held from when Ray gives them, which takes a moment.
PLACE_SECONDS = 0.1
SAID_AFTER_LOOKS = 50


@dataclass(slots=True, kw_only=True)
class Training:
    """A trial and the folder that it trains in.

    Attributes:
        trial: Of the record.
        out: Its folder.
        lost: Times in a row that the machine lost it without progress between.
        shown: Progress that was last told to the user.
        attempt: The one that runs.
        begun_at: Progress when that began.
        place: The devices that it has, or waits for.
        pending: Its tasks.
        result: Of that attempt: its first process's.
    """

    trial: Trial
    out: Path
    lost: int = 0
    shown: int = 0
    attempt: int = 0
    begun_at: int = 0
    place: Place | None = None
    pending: list[Any] = field(default_factory=list)
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a device is asked to do.

    Attributes:
        function: Returns `Ended`.
        arguments: Its first ones.
        options: Its last one, a dataclass with a field ``group``.
        text: What the user is told of it.
    """

    function: Callable[..., Ended[Any]]
    arguments: tuple[Any, ...]
    options: Any
    text: str


Kind = TypeVar("Kind", bound=Training)


class TrainingQueue(ABC, Generic[Kind]):
    """Keeps every device busy until all networks are trained or the user stops.

    Args:
        run: Whose networks they are.
        cluster: Where they train.
        console: What is told to the user.
        devices: That train one network together.
        tasks: Networks that were asked for, with those that are trained already: a command that
            goes on has the threads, so the bits, of before.
    """

    phase: ClassVar[str]

    def __init__(
        self, run: RunFolder, cluster: Cluster, console: Console, *, devices: int, tasks: int
    ) -> None:
        self.run, self.cluster, self.console = run, cluster, console
        self.devices = devices
        self.is_gpu = run.settings.parsed_budget.device == "gpu"
        self.threads = 4 if self.is_gpu else self._threads(tasks)
        self.held = devices * (1 if self.is_gpu else self.threads)
        self.waiting: deque[Kind] = deque()
        self.placed: list[Kind] = []  # that wait for their devices, and are charged for none
        self.running: list[Kind] = []
        self.looks_in_vain = 0
        self.num_failed = 0

    @abstractmethod
    def job(self, training: Kind) -> Job:
        """Describe the work of a training, on one device."""

    @abstractmethod
    def progress(self, training: Kind) -> int:
        """Count what lies finished in the folder of a training: epochs or steps."""

    @abstractmethod
    def progress_text(self, training: Kind) -> str:
        """Say where a training stands that has made progress."""

    @abstractmethod
    def measured(self, result: Any) -> Measured:
        """Return what a result measured, for the record."""

    @abstractmethod
    def result_text(self, trial: Trial) -> str:
        """Say what a finished training gave."""

    def on_start(self, training: Kind) -> None:
        """Take note that an attempt begins."""

    def on_progress(self, training: Kind) -> None:
        """Take note of progress."""

    def on_end(self, training: Kind, outcome: AttemptOutcome, measured: Measured | None) -> None:
        """Take note that an attempt has ended."""

    def loader_workers(self, asked: int | None) -> int:
        """Return the processes that make batches for a device: as asked, or by its kind."""
        return (8 if self.is_gpu else 0) if asked is None else asked

    def work_off(self, trainings: Iterable[Kind], stop: StopSignals) -> None:
        """Train them all, in order.

        Raises:
            FullDiskError: If one ended because of a full disk: the others would as well.
        """
        self.waiting.extend(trainings)
        try:
            while (self.waiting or self.placed or self.running) and not stop.requested:
                self._find_places()
                if not self.running:
                    self._say_waiting()
                    time.sleep(PLACE_SECONDS if self.placed else LOOK_SECONDS)
                    continue
                self.looks_in_vain = 0
                pending = [reference for one in self.running for reference in one.pending]
                for reference, result, cause in take_finished(pending):
                    self._take(reference, result or Ended(end="lost", cause=cause))
                for training in self.running:
                    self._show(training)
        finally:
            for training in self.placed:
                self._drop(training)
            for training in self.running:
                self._drop(training)
                self._finish(training, "interrupted")

    def _find_places(self) -> None:
        """Ask for devices for what waits, and begin what has got them."""
        # Nodes come and go.
        most = self.cluster.devices // self.held
        while self.waiting and len(self.placed) + len(self.running) < most:
            training = self.waiting.popleft()
            training.place = self.cluster.reserve(self.devices, threads=self.threads)
            self.placed.append(training)
        for training in [one for one in self.placed if one.place is not None and one.place.is_held]:
            self.placed.remove(training)
            self._hand_out(training)

    def _say_waiting(self) -> None:
        """Say once why nothing happens: devices are missing, which may come."""
        self.looks_in_vain += 1
        if self.looks_in_vain == SAID_AFTER_LOOKS:
            what = f"waits for {self.held} {'devices' if self.is_gpu else 'cores'}"
            self.console.print(
                f"Nothing trains: each network {what} that are free at the same time, of the "
                f"{self.cluster.devices} that there are now.",
                highlight=False,
                soft_wrap=True,
            )

    def _threads(self, tasks: int) -> int:
        threads = max(self.cluster.devices // (tasks * self.devices), 1)
        # A task runs on one node.
        return threads if threads <= count_cores() else min(threads, self.cluster.node_devices)

    def _hand_out(self, training: Kind) -> None:
        job, place = self.job(training), training.place
        assert place is not None
        training.begun_at, training.result = self.progress(training), None
        self.on_start(training)
        training.attempt = self.run.record.start_attempt(
            self.phase, devices=self.held, trial_id=training.trial.id
        )
        # A file that is new for every attempt: the processes of a group meet in it.
        meeting = training.out.parent / f"meeting-{training.attempt}"
        meeting.parent.mkdir(exist_ok=True)
        groups = [(f"file://{meeting}", self.devices, rank) for rank in range(self.devices)]
        self.running.append(training)
        training.pending = [
            self.cluster.submit(
                job.function,
                *job.arguments,
                job.options if self.devices == 1 else replace(job.options, group=group),
                place=place,
            )
            for group in groups
        ]
        say(self.console, training.trial, job.text)

    def _take(self, reference: Any, ended: Ended[Any]) -> None:
        """Take what one process of a training gave; the first failure or the last end counts."""
        found = [one for one in self.running if reference in one.pending]
        if not found:
            return  # of a group that has ended meanwhile
        (training,) = found
        training.pending.remove(reference)
        if ended.end == "done":
            training.result = training.result if ended.result is None else ended.result
            if training.pending:
                return
        self._drop(training)
        self.running.remove(training)
        self._settle(training, ended)

    def _settle(self, training: Kind, ended: Ended[Any]) -> None:
        """Write how an attempt ended; what was lost is handed out again, a few times."""
        if ended.end == "done":
            self._finish(training, "done", self.measured(training.result))
            trial = self.run.record.trial(training.trial.id)
            say(self.console, trial, self.result_text(trial))
            return
        has_failed = ended.end == "failed"
        self._finish(training, "failed" if has_failed else "lost", cause=ended.cause)
        say(self.console, training.trial, f"{ended.end}: {ended.cause}")
        if ended.end == "full disk":
            raise FullDiskError(f"{training.out}: {ended.cause}")
        moved = self.progress(training) > training.begun_at
        training.lost = 1 if moved else training.lost + 1
        if has_failed or training.lost > MAX_AGAIN:
            self.num_failed += 1
            say(self.console, training.trial, "given up; the same command goes on with it")
        else:
            self.waiting.appendleft(training)

    def _finish(
        self,
        training: Kind,
        outcome: AttemptOutcome,
        measured: Measured | None = None,
        cause: str | None = None,
    ) -> None:
        self.on_end(training, outcome, measured)
        self.run.record.finish_attempt(
            training.attempt, outcome=outcome, measured=measured, cause=cause
        )

    def _drop(self, training: Kind) -> None:
        """End what is left of a group: its processes would wait for the one that has ended."""
        training.pending = []
        if training.place is not None:
            self.cluster.release(training.place)
            training.place = None

    def _show(self, training: Kind) -> None:
        """Say where a training stands, when that has changed."""
        now = self.progress(training)
        if now and now != training.shown:
            training.shown = now
            self.on_progress(training)
            say(self.console, training.trial, self.progress_text(training))


def train_on_cluster(
    run: RunFolder,
    work: Callable[[Cluster], tuple[TrainingQueue[Kind], Iterable[Kind]]],
    *,
    devices: int,
    console: Console,
    ray_address: str | None,
) -> str | None:
    """Work off a queue on a cluster that is there for so long.

    Args:
        run: Whose networks are trained.
        work: Makes the queue and finds what it has to do.
        devices: That train one network together.
        console: What is told to the user.
        ray_address: A Ray cluster to join; None uses this machine.

    Returns:
        What kept it from its end: the name of a signal, `FULL_DISK` or `FAILED`; or None.

    Raises:
        ValueError: If a training needs more devices than there are.
    """
    device = run.settings.parsed_budget.device
    with (
        Cluster(device=device, address=ray_address) as cluster,
        Heartbeat(run.record),
        StopSignals() as stop,
    ):
        if devices > cluster.devices:
            raise ValueError(
                f"A network can be trained on the devices that there are, {cluster.devices}, got "
                f"--devices {devices}. Ask for fewer."
            )
        queue, trainings = work(cluster)
        try:
            queue.work_off(trainings, stop)
        except Exception as error:
            if not is_disk_full(error, run.folder):
                raise
            console.print(f"{error}\nFree some space.", highlight=False, soft_wrap=True)
            return FULL_DISK
        return stop.requested or (FAILED if queue.num_failed else None)


def say(console: Console, trial: Trial, text: str) -> None:
    """Tell the user of a training, whatever signs the text has."""
    console.print(
        f"Network {trial.architecture_id}, seed {trial.seed}: {text}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
