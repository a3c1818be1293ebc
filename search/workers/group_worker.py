"""What a device does in a group that trains a supernet together, whatever the supernet is of."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]

from search.run_folder import SUPERNET, Files
from search.scheduling import ending_spoilt
from search.workers.job import set_up_process
from supernet.shared_weights import Progress

# So long workers look for each other, and wait for each other's gradients.
MEETING_TIME = timedelta(minutes=2)
SILENCE_TIME = timedelta(minutes=10)
# Steps that are timed, after as many (of a network alone: after one) that warm kernels and caches.
TIMED_STEPS = {"cpu": 3, "cuda": 20}


class GroupJob(Protocol):
    """What a group needs to know of a run's job."""

    @property
    def files(self) -> Files:
        """Where its devices find the files of a run."""

    @property
    def device(self) -> str:
        """Torch device of one worker."""

    @property
    def loader_workers(self) -> int:
        """Processes that make batches for a worker."""


class SharedTrainer(Protocol):
    """Trains shared weights, together with the other processes of the default group."""

    step: int
    total_steps: int
    world_size: int

    def run(self, steps: int) -> Progress:
        """Take so many steps, or fewer where the schedule ends."""

    def rewind(self) -> None:
        """Go back to the first step with the weights that there are."""

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""

    def load(self, folder: Path) -> bool:
        """Go on from what `save` wrote; False when there is nothing."""


class GroupWorker(ABC):
    """Holds a supernet and its trainer on one device; several of them train it together.

    Args:
        job: The run.
        threads: CPU threads to use.
    """

    def __init__(self, job: GroupJob, *, threads: int) -> None:
        set_up_process(job, threads)
        self._job = job
        self.trainer: SharedTrainer | None = None
        self.folder: Path | None = None
        self._store: Store | None = None

    @abstractmethod
    def make_trainer(self, total_steps: int) -> SharedTrainer:
        """Make the trainer of the run's supernet."""

    def address(self, host: str) -> str:
        """Open the place where a group meets, in this process, its first worker's.

        Args:
            host: Where the others reach this machine.

        Returns:
            The place's address: with a port that is this process's already.
        """
        self._store = TCPStore(
            host, 0, is_master=True, wait_for_workers=False, timeout=MEETING_TIME
        )
        return f"tcp://{f'[{host}]' if ':' in host else host}:{self._store.port}"

    @ending_spoilt()
    def join(self, address: str, rank: int, world_size: int) -> None:
        """Join the group of workers that train the supernet together.

        Args:
            address: Of the first one's `address`, or a file that all of them reach.
        """
        place = urlsplit(address)
        if place.scheme == "file":
            self._store = FileStore(place.path, world_size)
        elif self._store is None:
            assert place.hostname is not None
            assert place.port is not None
            self._store = TCPStore(place.hostname, place.port, timeout=MEETING_TIME)
        is_gpu = self._job.device == "cuda"
        dist.init_process_group(
            "nccl" if is_gpu else "gloo",
            store=self._store,
            rank=rank,
            world_size=world_size,
            timeout=SILENCE_TIME,
            device_id=torch.device("cuda", torch.cuda.current_device()) if is_gpu else None,
        )

    @ending_spoilt()
    def start(self, total_steps: int) -> int:
        """Make the trainer, or continue from the run's checkpoint; return the step it is at."""
        self.trainer = self.make_trainer(total_steps)
        self.folder = self._job.files.fetch(SUPERNET)
        self.trainer.load(self.folder)
        return self.trainer.step

    def reschedule(self, total_steps: int) -> None:
        """Let the schedule end at another step, to keep the budget."""
        assert self.trainer is not None
        self.trainer.total_steps = max(total_steps, self.trainer.step + 1)

    @ending_spoilt()
    def train(self, steps: int) -> Progress:
        """Take so many steps, together with the other workers."""
        assert self.trainer is not None
        return self.trainer.run(steps)

    @ending_spoilt()
    def save(self) -> None:
        """Write the checkpoint, for all nodes to read."""
        assert self.trainer is not None
        assert self.folder is not None
        self.trainer.save(self.folder)
        self._job.files.publish(SUPERNET, self.folder)

    def time_steps(self, trainer: SharedTrainer) -> float:
        """Time a step of a new trainer's, in seconds, with the making of its images."""
        steps = trainer.total_steps
        # The same steps once before: kernels are compiled when an architecture first needs them.
        trainer.run(steps)
        trainer.rewind()
        times, feed = [], 0.0
        for _ in range(steps):
            started = time.monotonic()
            feed += trainer.run(1).feed_seconds / steps
            times.append(time.monotonic() - started)
        return max(statistics.median(times), self.waiting_for(feed))

    def waiting_for(self, feed_seconds: float) -> float:
        """Return the seconds that a step lasts at least, by what its images take to make.

        In the first steps loaders have a lead, which they lose. Without loaders it is part of the
        step.
        """
        workers = self._job.loader_workers
        return feed_seconds / workers if workers else 0.0


def median_seconds(work: Callable[[], object], device: str, runs: int = 3) -> float:
    """Time ``work`` after one unmeasured run."""
    times = []
    for _ in range(runs + 1):
        started = time.monotonic()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return statistics.median(times[1:])
