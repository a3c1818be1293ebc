"""What passes between the driver and the devices: tasks, outcomes, and the work itself.

Neither Ray nor torch is imported here, so the engine's rules (`search.scheduling.trials`,
`search.scheduling.judging`) can be driven by anything: Ray, a test, or a simulated cluster.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from search.record import Measured
from search.run_folder import StorageError, is_disk_full
from searchspace.architecture import Architecture

# `lost` is the cluster's fault (worker, node); `failed` is the architecture's own and final. What
# was `not begun` only waited at a worker that was lost with something else.
Outcome = Literal["done", "failed", "lost", "not begun", "out of memory", "full disk", "no storage"]

logger = logging.getLogger(__name__)

# What libraries say for it, in small letters; cuBLAS and cuDNN cannot get their workspace then.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
# And where a device has failed under a process (`spoils_process`).
SPOILT = (
    "cuda error",
    "error [cuda]",
    "acceleratorerror",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "cublas_status_",
    "cudnn_status_internal_error",
    "cudnn_status_execution_failed",
    "cudnn_status_mapping_error",
    "hip error",
)
SPOILT_STATUS = 70
# And what a process says that trains together with others where one of them has gone, or is not at
# the same place.
OTHERS_GONE = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "distbackenderror",
    "distnetworkerror",
    "diststoreerror",
    "checkpointsdiffererror",  # of a node that sees late what another one has written
)
# Starting workers (imports, images, finding each other) takes at most so long.
START_SECONDS = 900.0


class BudgetSpent(Exception):
    """What is under way, or would start, does not fit in the budget any more: the run ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialTask:
    """A network to train alone.

    Attributes:
        trial_id: Of the trial in the record.
        epochs: How long to train.
        seed: Of weights and data order.
        micro_batches: Parts into which every batch is split, to need less memory.
        images: Share of the training images that it sees, a fair sample of them.
        devices: That train it together, a process on each.
        group: Where these processes meet, their number, and which this one is; None for one that
            is alone.
    """

    trial_id: int
    architecture: Architecture
    epochs: int
    seed: int
    micro_batches: int = 1
    images: float = 1.0
    devices: int = 1
    group: tuple[str, int, int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What became of an architecture at a judge."""

    architecture: Architecture
    outcome: Outcome
    measured: Measured | None = None
    cause: str | None = None


class TrialSource(Protocol):
    """Where the executor gets trials from and brings their results to."""

    def wanted(self, most: int) -> int | None:
        """Tell how many devices the next trial takes, of ``most`` that there are.

        0 where there is none, and None where it is not to start yet.
        """

    def next(self, most: int | None = None) -> TrialTask | None:
        """Hand out the next trial, which holds its devices from now on; None ends the phase."""

    def started(self, task: TrialTask) -> None:
        """Take note that a trial has a device, on which its worker starts."""

    def heard(self, task: TrialTask) -> None:
        """Take note of a sign of life: a trial's training begins, or has finished an epoch."""

    def overdue(self, task: TrialTask) -> str | None:
        """Say why a trial is taken to hang and must be ended; None if it does well."""

    def hold(self, devices: int) -> None:
        """Take note of how many devices are kept now; those without a trial are charged as well."""

    def settle(
        self, task: TrialTask, *, outcome: Outcome, measured: Measured | None, cause: str | None
    ) -> None:
        """Take a trial's result; the device is free from now on."""

    def has_lost(self) -> bool:
        """Tell whether a trial that was lost waits to be handed out again, and fits."""

    def gives_up(self, task: TrialTask) -> bool:
        """Tell, after an epoch, whether a trial ends here, and its worker takes up another one."""

    def should_stop(self, late_seconds: float = 0.0) -> bool:
        """Tell whether trials that are running must end now.

        Args:
            late_seconds: In which this may be asked again.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a cluster's devices do; `search.workers.supernet_worker.WORK` is the real thing.

    Attributes:
        make_job: Describes a run, by its settings, folder and data, to the workers.
        supernet_worker: Class of the actors that measure, and train the supernet together.
        judge_worker: Class of the actors that judge without training.
        train_alone: Trains a task's network and returns what was measured, None in all processes
            of a group but the first; calls the last argument with 0 when all is ready, and with the
            number of each finished epoch.
        prepare: Run once on every node before anything is charged, e.g. to compile kernels.
        for_group: Fits a job, with the run's data, to the number of devices that its supernet is
            begun on; returns it, and how many devices can train together at most.
        meet: Opens a place where the processes of a training meet, in the first of them, at its
            machine's address; returns what has the place's ``address`` and keeps it open. None
            where they need none.
    """

    make_job: Callable[..., Any]
    supernet_worker: type
    judge_worker: type
    train_alone: Callable[[Any, TrialTask, int, Callable[[int], None]], Measured | None]
    prepare: Callable[[], None] | None = None
    for_group: Callable[[Any, Any, int], tuple[Any, int]] | None = None
    meet: Callable[[str], Any] | None = None


def checkpoint_name(trial_id: int) -> str:
    """Name the folder of `storage.Files` where a trial keeps its checkpoint until done."""
    return f"trials/{trial_id}"


def outcome_of_error(error: BaseException, folder: Path) -> Outcome:
    """Tell whose fault an error in a trial is; libraries word a full disk each in its own way."""
    if is_disk_full(error, folder):
        return "full disk"
    if isinstance(error, StorageError):
        return "no storage"
    return "out of memory" if _is_out_of_memory(error) else "failed"


def is_of_others(error: BaseException) -> bool:
    """Tell whether an error in one process of a group is the others' or the cluster's."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(words in text for words in OTHERS_GONE)


def spoils_process(error: BaseException) -> bool:
    """Tell whether an error leaves its process without a device that works.

    After an illegal access or a failed assertion on a GPU every later call of the process fails,
    whatever it is for: only a new process gets the device to work again.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = f"{type(cause).__name__}: {cause}".lower()
        if not _is_out_of_memory(cause) and any(words in text for words in SPOILT):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


@contextmanager
def ending_spoilt() -> Iterator[None]:
    """End this process where an error in the block has spoilt it, so that it counts as lost."""
    try:
        yield
    except Exception as error:
        end_if_spoilt(error)
        raise


def end_if_spoilt(error: BaseException) -> None:
    """End this process where an error has spoilt it; whoever started it starts another one."""
    if spoils_process(error):
        logger.critical("This process's device is lost to it, so it ends: %s", error)
        logging.shutdown()
        # No clean-up: it would call the device, and may wait for it for ever.
        os._exit(SPOILT_STATUS)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def last_line(text: str) -> str:
    """Shorten an error to the line that says what happened."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
