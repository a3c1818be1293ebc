"""Curves of runs and retrainings for MLflow and Weights & Biases: ``--track``."""

from search.tracking.curves import RunCurves, epoch_values
from search.tracking.tracker import TRACKERS, End, Tracker, check_tracker, open_tracker

__all__ = [
    "TRACKERS",
    "End",
    "RunCurves",
    "Tracker",
    "check_tracker",
    "epoch_values",
    "open_tracker",
]
