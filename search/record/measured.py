"""`Measured`: what was measured of a network, the one description of a result's values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A result's values; NaN is what was not measured, and the record does not keep it.

    Attributes:
        top1: Percent of the judged images that are classified correctly.
        correct: Number of those images.
        total: Number of judged images.
        miou: Percent; mean over classes of the intersection over union, of a segmenter.
        ap_box: COCO's AP of boxes in percent, of a detector.
        ap_mask: Likewise of masks.
        score: Zero-cost score, where there is no accuracy; more is predicted to be better.
        seconds: Of the judgement itself; what was charged is the trial's.
        latency_ms: Median time of a batch as the network will be run; by default one image.
        latency_low_ms: Lower end of the median's 95 % interval.
        latency_high_ms: Upper end of the median's 95 % interval.
        memory_mib: Largest memory for one image.
        micro_batches: Parts into which the batches of a training were split to fit in memory.
    """

    top1: float = math.nan
    correct: float = math.nan
    total: float = math.nan
    miou: float = math.nan
    ap_box: float = math.nan
    ap_mask: float = math.nan
    score: float = math.nan
    seconds: float = math.nan
    latency_ms: float = math.nan
    latency_low_ms: float = math.nan
    latency_high_ms: float = math.nan
    memory_mib: float = math.nan
    micro_batches: float = math.nan

    @classmethod
    def read(cls, values: Mapping[str, float]) -> Self:
        """Read the values of a record; names that are not of a classification are passed over."""
        return cls(**{name: value for name, value in values.items() if name in _NAMES})

    @classmethod
    def judged(cls, correct: float, total: float, costs: Mapping[str, float] | None = None) -> Self:
        """Return the result of a network that classified ``correct`` of ``total`` images right."""
        return cls(top1=100 * correct / total, correct=correct, total=total, **(costs or {}))

    @property
    def measure(self) -> str | None:
        """The first of `QUALITIES` that was measured; None without any."""
        return next((name for name in QUALITIES if not math.isnan(getattr(self, name))), None)

    @property
    def quality(self) -> float:
        """Its value; NaN without any."""
        return math.nan if self.measure is None else float(getattr(self, self.measure))

    def values(self) -> dict[str, float]:
        """Return what was measured, by name, as the record keeps it; `read` inverts it."""
        return {name: value for name, value in asdict(self).items() if not math.isnan(value)}


# A training's mean loss in epoch 3 is kept beside what was measured, as ``loss@3``.
_LOSS = "loss@"


def curve_values(losses: Mapping[int, float]) -> dict[str, float]:
    """Name the losses of a training's epochs as the record keeps them; `learning_curve` inverts it.

    The accuracy of an epoch in the middle is no part of it: at a learning rate that is still high
    it says little of what a training would reach that ends there.
    """
    return {f"{_LOSS}{epoch}": loss for epoch, loss in sorted(losses.items())}


def learning_curve(values: Mapping[str, float]) -> dict[int, float]:
    """Return the mean training loss of each epoch, of the values of a trial; empty without any."""
    found = {
        int(name.removeprefix(_LOSS)): loss
        for name, loss in values.items()
        if name.startswith(_LOSS)
    }
    return dict(sorted(found.items()))


# What networks are better by, in percent; where a detector has both APs, masks count.
QUALITIES = ("top1", "miou", "ap_mask", "ap_box")
# Looked up for every trial that is read.
_NAMES = frozenset(one.name for one in fields(Measured))
