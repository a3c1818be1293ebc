"""What a budget is planned by: what was asked for, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.plan.shares import climbing_phase
from search.plan.step_times import StepModel, mean_macs

# Of one device, in steps that all take together; beyond the most, large batches cost accuracy.
SUPERNET_SHARD, MAX_SUPERNET_BATCH = 64, 4_096
# Shared weights have seen enough after as many epochs as a network alone (SPOS takes 120, BigNAS
# 360, AutoFormer 500); small sets need steps, not epochs.
MAX_SUPERNET_EPOCHS = 300
LEAST_CAPPED_STEPS = 20_000


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanInputs:
    """What a budget is planned by.

    Attributes:
        budget_seconds: Device-seconds.
        devices: Devices (or cores).
        measured_seconds: Device-seconds that measuring took (or will take).
        supernet_step: Device-seconds of a step of the supernet, where there is one.
        trial_step_seconds: (MACs, seconds) of a training step alone, on one device.
        judge_seconds: Of one evaluation, on one device, where networks are judged untrained.
        steps_per_epoch: Of a network that is trained alone.
        max_epochs: The most epochs that a network is trained during a small search.
        retrain_steps: Steps of a full retraining.
        fixed_shares: Shares of phases that the user fixed.
        strategy: One of `SHARES`.
        train_images: Of an epoch; 0 where that is not known, for a plan by shares alone.
        supernet_batch: Images of a step of the supernet.
        longest_epochs: Likewise where the budget is large; None takes ``max_epochs``.
        most_trial_devices: That may train one network together.
        recipe_epochs: Of the full recipe, towards which a few networks are trained on; 0 for none.
        most_scored: Networks that are judged to learn what the parts of a graft are worth; 0 where
            that is not known.
    """

    budget_seconds: float
    devices: int
    measured_seconds: float
    supernet_step: float
    trial_step_seconds: Sequence[tuple[int, float]]
    judge_seconds: float
    steps_per_epoch: int
    max_epochs: int
    retrain_steps: int
    fixed_shares: Mapping[str, float] | None = None
    strategy: str = "supernet"
    train_images: int = 0
    supernet_batch: int = SUPERNET_SHARD
    longest_epochs: int | None = None
    most_trial_devices: int = 1
    recipe_epochs: int = 0
    most_scored: int = 0

    @property
    def costs(self) -> StepModel:
        """Predicts the seconds of a training step alone from MACs."""
        return StepModel(self.trial_step_seconds)

    @property
    def epoch_seconds(self) -> float:
        """Device-seconds of an epoch of a middling network alone."""
        return self.costs(mean_macs(self.trial_step_seconds)) * self.steps_per_epoch

    @property
    def climb(self) -> str:
        """The phase in which networks go up the rungs."""
        return climbing_phase(self.strategy)

    @property
    def enough_supernet_steps(self) -> int:
        """The steps after which shared weights have seen enough; 0: that is not known."""
        if not self.train_images:
            return 0
        epochs = MAX_SUPERNET_EPOCHS * self.train_images / self.supernet_batch
        return int(max(epochs, LEAST_CAPPED_STEPS))


def supernet_batch(devices: int, shard: int = SUPERNET_SHARD) -> int:
    """Return the images of a step of the supernet: a shard a device, within reason."""
    return min(shard * devices, max(MAX_SUPERNET_BATCH, shard))
