"""What a search weighs: the objectives, and the losses of a trial, which are always minimised."""

from __future__ import annotations

from collections.abc import Sequence

from search.record import Trial
from searchspace.architecture import Architecture
from searchspace.cost import count

CLOSED_FORM = ("macs", "params")
OBJECTIVES = ("top1", *CLOSED_FORM)


def losses_of(trial: Trial, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """Return a trial's losses, lower is better; None if it is not done.

    The error is in percent, costs are in millions. Where a zero-cost score was computed instead of
    an accuracy, its negative stands for the error: fidelities are never compared.
    """
    if trial.state != "done":
        return None
    values = trial.values
    measured = {
        "top1": 100.0 - values["top1"] if "top1" in values else -values["score"],
        "macs": trial.macs / 1e6,
        "params": trial.params / 1e6,
    }
    return tuple(measured[objective] for objective in objectives)


def known_losses(architecture: Architecture, objectives: Sequence[str]) -> tuple[float | None, ...]:
    """Return the losses that need no evaluation, in the units of `losses_of`; None for others."""
    cost = count(architecture)
    closed_form = {"macs": cost.macs / 1e6, "params": cost.params / 1e6}
    return tuple(closed_form.get(objective) for objective in objectives)
