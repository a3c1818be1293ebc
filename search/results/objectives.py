"""What a search weighs: the objectives, and the losses of a trial, which are always minimised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from search.record import QUALITIES, Trial
from searchspace.architecture import Architecture
from searchspace.cost import count

CLOSED_FORM = ("macs", "params")
MEASURED = ("latency_ms", "memory_mib")
# What goes up, one for each task of a run: see `quality_of`.
TASK_QUALITIES = {
    "classification": "top1",
    "semantic": "miou",
    "instance": "ap_mask",
    "detection": "ap_box",
}
OBJECTIVES = ("top1", *CLOSED_FORM, *MEASURED)
# What people read.
QUALITY_WORDS = {
    "top1": "top-1",
    "miou": "mIoU",
    "ap_mask": "mask AP",
    "ap_box": "box AP",
}
# What a user may write instead.
_SHORT = {"latency": "latency_ms", "memory": "memory_mib"}


def parse_objectives(text: str) -> tuple[str, ...]:
    """Read objectives like ``top1,macs,latency``; those who use them check the names."""
    return tuple(_SHORT.get(name.strip(), name.strip()) for name in text.split(","))


def quality_of(objectives: Sequence[str]) -> str | None:
    """Return which of the objectives goes up: top-1, mIoU or an AP; None where none does."""
    return next((name for name in objectives if name in QUALITIES), None)


def losses_of(trial: Trial, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """Return a trial's losses in the units of `loss_row`; None if it is not done.

    Where a zero-cost score was computed instead of an accuracy, its negative stands for the error:
    fidelities are never compared.
    """
    if trial.state != "done":
        return None
    found = trial.measured
    error = -found.score if math.isnan(found.quality) else 100.0 - found.quality
    costs = {name: found.value(name) for name in MEASURED}
    return loss_row(error, trial.macs, trial.params, costs, objectives)


def loss_row(
    error: float,
    macs: float,
    params: float,
    measured: Mapping[str, float | None],
    objectives: Sequence[str],
) -> tuple[float, ...]:
    """Return losses, lower is better.

    The error, which is what top-1, mIoU or AP lacks, is in percent, counts are in millions, latency
    is in milliseconds and memory in MiB; what was not measured is NaN.
    """
    losses = dict.fromkeys(QUALITIES, error) | {"macs": macs / 1e6, "params": params / 1e6}
    for name in MEASURED:
        cost = measured.get(name)
        losses[name] = math.nan if cost is None else cost
    return tuple(losses[objective] for objective in objectives)


def known_losses(architecture: Architecture, objectives: Sequence[str]) -> tuple[float | None, ...]:
    """Return the losses that need no evaluation, in the units of `loss_row`; None for others."""
    cost = count(architecture)
    closed_form = {"macs": cost.macs / 1e6, "params": cost.params / 1e6}
    return tuple(closed_form.get(objective) for objective in objectives)
