"""What runs on a device. No Ray."""

from search.run_folder import GRAFT, RunSettings
from search.scheduling import Work
from search.workers.dense_work import DENSE_WORK
from search.workers.graft_worker import GRAFT_WORK, GraftJob, make_graft_job, share_name
from search.workers.job import for_group, make_job
from search.workers.supernet_worker import WORK, SupernetWorker, compile_kernels

__all__ = [
    "DENSE_WORK",
    "GRAFT_WORK",
    "WORK",
    "GraftJob",
    "SupernetWorker",
    "compile_kernels",
    "for_group",
    "make_graft_job",
    "make_job",
    "share_name",
    "work_of",
]


def work_of(settings: RunSettings) -> Work:
    """Return what the devices do in a run."""
    if settings.strategy == GRAFT:
        return GRAFT_WORK
    return WORK if settings.classifies else DENSE_WORK
