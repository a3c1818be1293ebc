"""What a budget buys: the shares of the phases, and the work that fits in each.

Pure arithmetic on measured times (`StepTimes` of `search.workers`), so that the same numbers are
printed by ``search plan`` and followed by ``search run``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Shares of the budget. What measuring took comes off the supernet's share, what a phase leaves
# over falls to the next ones; `finish` checks the extraction and spends the rest on judging.
SHARES: Mapping[str, float] = {
    "supernet": 0.36,
    "trust": 0.16,
    "search": 0.12,
    "promote": 0.33,
    "finish": 0.03,
}
# What the budget pays for; retraining has a ledger of its own.
PHASES = ("measure", *SHARES)

# The finish starts a worker, which takes seconds however small the budget is.
MIN_FINISH_SECONDS = 12.0
MIN_PROMOTED = 10
MIN_TRUST = 5
MAX_TRUST = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The work that a budget is split into.

    Attributes:
        budget_seconds: Device-seconds asked for.
        devices: Devices (or cores) that work at the same time.
        until: For each phase the device-seconds that may be spent when it ends.
        supernet_steps: Length of the supernet's schedule.
        judge_seconds: Device-seconds of one evaluation with inherited weights.
        trial_epochs: Epochs of a network that is trained alone.
        trial_steps: Its training steps.
        num_trust, num_promoted, num_judged: Expected numbers of networks in these phases.
        step_seconds: Points (MACs, device-seconds of a training step alone), as measured.
        retrain_seconds: Device-seconds of a full retraining of the smallest and the largest.
    """

    budget_seconds: float
    devices: int
    until: Mapping[str, float]
    supernet_steps: int
    judge_seconds: float
    trial_epochs: int
    trial_steps: int
    num_trust: int
    num_promoted: int
    num_judged: int
    step_seconds: tuple[tuple[int, float], ...]
    retrain_seconds: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Describe the plan with JSON values; `from_dict` inverts it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote (after a detour over JSON)."""
        points = tuple((int(macs), float(seconds)) for macs, seconds in data["step_seconds"])
        smallest, largest = data["retrain_seconds"]
        return cls(**{**data, "step_seconds": points, "retrain_seconds": (smallest, largest)})


def make_plan(
    *,
    budget_seconds: float,
    devices: int,
    measured_seconds: float,
    supernet_step: float,
    trial_step_seconds: Sequence[tuple[int, float]],
    judge_seconds: float,
    steps_per_epoch: int,
    max_epochs: int,
    retrain_steps: int,
) -> Plan:
    """Split a budget.

    Args:
        budget_seconds: Device-seconds.
        devices: Devices (or cores).
        measured_seconds: Device-seconds that measuring took (or will take).
        supernet_step: Device-seconds of a step of the supernet.
        trial_step_seconds: (MACs, seconds) of a training step alone, on one device.
        judge_seconds: Of one evaluation, on one device.
        steps_per_epoch: Of a network that is trained alone.
        max_epochs: The most epochs that a network is trained during the search.
        retrain_steps: Steps of a full retraining.

    Raises:
        ValueError: If the budget is too small for one step of each phase.
    """
    shares = _shares(budget_seconds)
    epoch_seconds = StepModel(trial_step_seconds)(_mean_macs(trial_step_seconds)) * steps_per_epoch
    trials_share = (shares["trust"] + shares["promote"]) * budget_seconds
    epochs = int(trials_share / ((MIN_TRUST + MIN_PROMOTED) * epoch_seconds))
    epochs = max(1, min(epochs, max_epochs))
    trial_seconds = epochs * epoch_seconds
    num_trust = int(shares["trust"] * budget_seconds / trial_seconds)
    steps = int((shares["supernet"] * budget_seconds - measured_seconds) / supernet_step)
    num_judged = int(shares["search"] * budget_seconds / judge_seconds)
    num_promoted = int(shares["promote"] * budget_seconds / trial_seconds)
    if min(steps, num_judged, num_promoted) < 1:
        needed = max(
            (measured_seconds + supernet_step * 2) / shares["supernet"],
            judge_seconds / shares["search"],
            trial_seconds / shares["promote"],
        )
        raise ValueError(
            f"A budget of {budget_seconds:.0f} device-seconds is too small: an epoch of a network "
            f"alone takes {epoch_seconds:.0f} s here. Give at least {needed:.0f} device-seconds, "
            "a smaller space or a smaller --img-size."
        )
    spent, until = 0.0, {}
    for phase, share in shares.items():
        spent += share * budget_seconds
        until[phase] = spent
    costs = StepModel(trial_step_seconds)
    macs = [point[0] for point in trial_step_seconds]
    return Plan(
        budget_seconds=budget_seconds,
        devices=devices,
        until=until,
        supernet_steps=steps,
        judge_seconds=judge_seconds,
        trial_epochs=epochs,
        trial_steps=epochs * steps_per_epoch,
        num_trust=min(num_trust, MAX_TRUST),
        num_promoted=num_promoted,
        num_judged=num_judged,
        step_seconds=tuple(trial_step_seconds),
        retrain_seconds=(costs(min(macs)) * retrain_steps, costs(max(macs)) * retrain_steps),
    )


def _shares(budget_seconds: float) -> dict[str, float]:
    """Return `SHARES`, with more for the finish where the budget is small."""
    finish = min(max(SHARES["finish"], MIN_FINISH_SECONDS / budget_seconds), 0.5)
    others = (1 - finish) / (1 - SHARES["finish"])
    return {phase: share * others for phase, share in SHARES.items()} | {"finish": finish}


class StepModel:
    """Predict the seconds of a training step from MACs: a line through measured points."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        macs: tuple[int, ...]
        seconds: tuple[float, ...]
        macs, seconds = zip(*points, strict=True)
        mean_macs, mean_seconds = sum(macs) / len(macs), sum(seconds) / len(seconds)
        spread = sum((m - mean_macs) ** 2 for m in macs)
        shared = sum((m - mean_macs) * (s - mean_seconds) for m, s in points)
        self._slope = max(shared / spread, 0.0) if spread else 0.0
        self._start = mean_seconds - self._slope * mean_macs
        self._least = min(seconds) / 2

    def __call__(self, macs: float) -> float:
        """Return seconds; never less than half of the quickest measured step."""
        return max(self._start + self._slope * macs, self._least)


def _mean_macs(points: Sequence[tuple[int, float]]) -> float:
    return sum(macs for macs, _ in points) / len(points)
