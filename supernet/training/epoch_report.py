"""What an epoch of training did, as rows of ``metrics.csv``, and what held it up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

# Below this share of an epoch, waiting for images is not worth a word.
WORTH_SAYING = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """What one epoch did.

    Attributes:
        epoch: Counts from 1.
        epochs: How many there will be.
        seconds: Of training, without the checkpoint.
        loss: Mean over the epoch's steps that had one, on augmented images.
        lr: Learning rate of the last step.
        images: That were learnt from, on all devices.
        wait_seconds: That this process's device waited for images.
        read_seconds: That reading and decoding its images took, added up over loader workers.
        augment_seconds: Likewise of augmenting them.
        skipped_steps: Steps that were left out because their loss was not finite.
    """

    epoch: int
    epochs: int
    seconds: float
    loss: float
    lr: float
    images: int
    wait_seconds: float
    read_seconds: float
    augment_seconds: float
    skipped_steps: int = 0

    @property
    def images_per_second(self) -> float:
        """Throughput of the epoch, over all devices."""
        return self.images / self.seconds


def starvation(report: EpochReport) -> str | None:
    """Name what the device waits for and what helps; None where it hardly waits."""
    share = report.wait_seconds / report.seconds
    if share < WORTH_SAYING:
        return None
    reads = report.read_seconds > report.augment_seconds
    slow, rest = (
        ("reading and decoding images", "a faster disk, smaller files")
        if reads
        else ("augmenting images", "a lighter auto_augment")
    )
    return (
        f"the device waited for images {share:.0%} of the epoch; most of their making is {slow} "
        f"({report.read_seconds:.1f} s read, {report.augment_seconds:.1f} s augmented): more "
        f"loader workers, or {rest}"
    )


def to_csv(history: Sequence[EpochReport]) -> str:
    """Write reports as a table with a line of names."""
    names = [field.name for field in fields(EpochReport)]
    rows = [[str(getattr(report, name)) for name in names] for report in history]
    return "\n".join(",".join(row) for row in [names, *rows]) + "\n"


def read_csv(text: str) -> list[EpochReport]:
    """Read what `to_csv` wrote."""
    names, *rows = (line.split(",") for line in text.splitlines())
    kinds = {field.name: int if field.type == "int" else float for field in fields(EpochReport)}
    return [
        EpochReport(**{name: kinds[name](value) for name, value in zip(names, row, strict=True)})  # type: ignore[arg-type]
        for row in rows
    ]
