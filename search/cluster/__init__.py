"""Ray, and only here: the connection, warm judges, trials in Ray Tune."""

from search.cluster.connection import (
    Cluster,
    Place,
    WorkerLostError,
    call,
    call_all,
    call_each,
    check_devices,
    form_group,
    take_finished,
)
from search.cluster.crew import JudgeCrew, hold_judges
from search.cluster.tune_trials import run_trials

__all__ = [
    "Cluster",
    "JudgeCrew",
    "Place",
    "WorkerLostError",
    "call",
    "call_all",
    "call_each",
    "check_devices",
    "form_group",
    "hold_judges",
    "run_trials",
    "take_finished",
]
