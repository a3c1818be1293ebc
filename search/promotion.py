"""Which network is worth the next, dearer judgement: by non-dominated rank, then crowding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.front import crowding_distance, non_dominated_rank
from search.record import Trial
from searchspace.architecture import Architecture
from searchspace.cost import count


def losses_of(trial: Trial, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """Return a trial's losses, lower is better; None if it is not done.

    The error is in percent, costs are in millions.
    """
    if trial.state != "done":
        return None
    measured = {
        "top1": 100.0 - trial.values["top1"],
        "macs": trial.macs / 1e6,
        "params": trial.params / 1e6,
    }
    return tuple(measured[objective] for objective in objectives)


def known_losses(architecture: Architecture, objectives: Sequence[str]) -> tuple[float | None, ...]:
    """Return the losses that need no evaluation, in the units of `losses_of`; None for others."""
    cost = count(architecture)
    closed_form = {"macs": cost.macs / 1e6, "params": cost.params / 1e6}
    return tuple(closed_form.get(objective) for objective in objectives)


def next_promotion(
    trials: Sequence[Trial], *, low: str, high: str, objectives: Sequence[str]
) -> Architecture | None:
    """Choose the best network at fidelity ``low`` that was not tried at ``high``.

    The front first, then the next ranks; inside a rank the one with the most room around it.

    Returns:
        None when all were tried.
    """
    tried = {trial.key for trial in trials if trial.fidelity == high}
    judged = [trial for trial in trials if trial.fidelity == low and trial.state == "done"]
    if not judged:
        return None
    points = np.array([losses_of(trial, objectives) for trial in judged], dtype=float)
    ranks = non_dominated_rank(points)
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        distances = crowding_distance(points[members])
        order: list[int] = members[np.argsort(-distances, kind="stable")].tolist()
        for index in order:
            if judged[index].key not in tried:
                return judged[index].architecture
    return None
