"""What runs on a device. No Ray."""

from search.scheduling import Work
from search.workers.dense_work import DENSE_WORK
from search.workers.job import for_group, make_job
from search.workers.supernet_worker import WORK, SupernetWorker, compile_kernels

__all__ = [
    "DENSE_WORK",
    "WORK",
    "SupernetWorker",
    "compile_kernels",
    "for_group",
    "make_job",
    "work_of",
]


def work_of(task: str) -> Work:
    """Return what the devices do in a run for a task."""
    return WORK if task == "classification" else DENSE_WORK
