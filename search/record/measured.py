"""`Measured`: what was measured of a network, the one form of a result's values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

# A training's mean loss in epoch 3 is kept beside what was measured, as ``loss@3``.
_LOSS = "loss@"


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Measured:
    """A result's values; NaN is what was not measured, and the record does not keep it.

    The ends ``_low`` and ``_high`` are those of a 95 % interval.

    Attributes:
        top1: Percent of the judged images that are classified correctly.
        correct: Number of those images.
        total: Number of judged images.
        miou: Percent; mean over classes of the intersection over union, of a segmenter.
        pixel_accuracy: Percent of the pixels that a segmenter classifies correctly.
        ap_box: COCO's AP of boxes in percent, of a detector.
        ap_box50: The same where an overlap of one half is enough.
        ap_mask: As for boxes, of masks.
        score: Zero-cost score, where there is no accuracy; more is predicted to be better.
        kl: Of a graft: mean KL divergence of its outputs from the teacher's, in nats.
        seconds: Of the judgement itself; what was charged is the trial's.
        latency_ms: Median time of a batch as the network will be run; by default one image.
        memory_mib: Largest memory for one image.
        micro_batches: Parts into which the batches of a training were split to fit in memory.
        losses: Mean training loss of each epoch, by epoch. The accuracy of an epoch in the middle
            is not kept: at a learning rate that is still high it says little of what a training
            would reach that ends there.
    """

    top1: float = math.nan
    correct: float = math.nan
    total: float = math.nan
    miou: float = math.nan
    miou_low: float = math.nan
    miou_high: float = math.nan
    pixel_accuracy: float = math.nan
    ap_box: float = math.nan
    ap_box_low: float = math.nan
    ap_box_high: float = math.nan
    ap_box50: float = math.nan
    ap_box75: float = math.nan
    ap_mask: float = math.nan
    ap_mask_low: float = math.nan
    ap_mask_high: float = math.nan
    ap_mask50: float = math.nan
    ap_mask75: float = math.nan
    score: float = math.nan
    kl: float = math.nan
    seconds: float = math.nan
    latency_ms: float = math.nan
    latency_low_ms: float = math.nan
    latency_high_ms: float = math.nan
    memory_mib: float = math.nan
    micro_batches: float = math.nan
    losses: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def judged(cls, correct: float, total: float) -> Self:
        """Return the result of a network that classified ``correct`` of ``total`` images right."""
        return cls(top1=100 * correct / total, correct=correct, total=total)

    @classmethod
    def from_json(cls, values: Mapping[str, float]) -> Self:
        """Read what `to_json` wrote; names that are not known are passed over."""
        known = {name: value for name, value in values.items() if name in _NAMES}
        losses = {
            int(name.removeprefix(_LOSS)): loss
            for name, loss in values.items()
            if name.startswith(_LOSS)
        }
        return cls(**known, losses=dict(sorted(losses.items())))

    def to_json(self) -> dict[str, float]:
        """Return what was measured, by name, as the record keeps it."""
        losses = {f"{_LOSS}{epoch}": loss for epoch, loss in sorted(self.losses.items())}
        return self._known() | losses

    def __bool__(self) -> bool:
        """Tell whether anything was measured."""
        return bool(self.losses or self._known())

    def __or__(self, other: Measured) -> Measured:
        """Join what was measured of a network by two; the second one's word counts."""
        found: dict[str, Any] = other._known()
        return replace(self, **found, losses={**self.losses, **other.losses})

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:g}" for name, value in self.to_json().items())
        return f"Measured({values})"

    def value(self, name: str) -> float:
        """Return a value by its name, e.g. that of an objective; NaN if it was not measured."""
        return float(getattr(self, name))

    def has(self, name: str) -> bool:
        """Tell whether a value was measured."""
        return not math.isnan(self.value(name))

    @property
    def measure(self) -> str | None:
        """The first of `QUALITIES` that was measured; None without any."""
        return next((name for name in QUALITIES if self.has(name)), None)

    @property
    def quality(self) -> float:
        """Its value; NaN without any."""
        return math.nan if self.measure is None else self.value(self.measure)

    def _known(self) -> dict[str, float]:
        return {name: value for name in _NAMES if not math.isnan(value := getattr(self, name))}


# What networks are better by, in percent; where a detector has both APs, masks count.
QUALITIES = ("top1", "miou", "ap_mask", "ap_box")
# All but the losses; looked up for every trial that is read.
_NAMES = tuple(one.name for one in fields(Measured) if one.name != "losses")
