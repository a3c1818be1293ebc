"""What runs on a device. No Ray."""

from search.workers.job import for_group, make_job
from search.workers.supernet_worker import WORK, SupernetWorker, compile_kernels

__all__ = [
    "WORK",
    "SupernetWorker",
    "compile_kernels",
    "for_group",
    "make_job",
]
