"""What was measured on a machine, and what that predicts for other networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Measured seconds on the machine at hand, with the threads of one worker.

    Attributes:
        supernet_step: One step of the shared weights, all its architectures on the whole batch; 0
            without a supernet.
        trial_steps: (MACs, seconds of one training step alone) of small, large and random subnets.
        judge: Seconds to judge one architecture without training it; 0 where that is not done.
        steps_per_epoch: Of a network that is trained alone.
        device_name: What it was measured on.
        measured_seconds: That measuring took, once the worker was ready.
        batch_size: Images of a training step alone; 0 where that was not written down.
        supernet_batch: Images of the step of the shared weights; 0 likewise.
        judged_images: Images that a judgement reads; 0 likewise.
        feed_rate: Images a second that the processes of one device make for a trial; 0 likewise.
        amp: Precision of a training step alone.
        versions: Of what was measured with, e.g. ``torch 2.11``.
        source: Of times that were not measured: what they are estimated from.
        teacher: Key of the teacher that the steps learn from; empty for none.
    """

    supernet_step: float
    trial_steps: tuple[tuple[int, float], ...]
    judge: float
    steps_per_epoch: int
    device_name: str = ""
    measured_seconds: float = 0.0
    batch_size: int = 0
    supernet_batch: int = 0
    judged_images: int = 0
    feed_rate: float = 0.0
    amp: str = ""
    versions: str = ""
    source: str = ""
    teacher: str = ""

    def __post_init__(self) -> None:
        numbers = [self.supernet_step, self.judge, self.measured_seconds, self.feed_rate]
        numbers += [one for point in self.trial_steps for one in point]
        if not all(0 <= number < math.inf for number in numbers) or self.steps_per_epoch < 1:
            raise ValueError("times and rates are numbers from 0 on, and an epoch has a step")


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


def mean_macs(points: Sequence[tuple[int, float]]) -> float:
    """Return the mean MACs of measured points."""
    return sum(macs for macs, _ in points) / len(points)
