"""Curves of a training for TensorBoard, beside ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from search.tracking import epoch_values
from supernet.training import EpochReport

FOLDER = "tensorboard"


class TensorBoard:
    """Writes the curves of one training; use it as a context manager.

    Args:
        out: The folder of the training; None writes nothing.
    """

    def __init__(self, out: Path | None) -> None:
        self._out = out
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def after(
        self, on_epoch: Callable[[EpochReport], None] | None
    ) -> Callable[[EpochReport], None]:
        """Return what writes an epoch and then calls ``on_epoch``."""

        def write(report: EpochReport) -> None:
            self._add(report)
            if on_epoch is not None:
                on_epoch(report)

        return write

    def _add(self, report: EpochReport) -> None:
        if self._out is None:
            return
        if self._writer is None:
            # What an interrupted attempt wrote of this epoch and later ones does not count.
            self._writer = SummaryWriter(str(self._out / FOLDER), purge_step=report.epoch)
        for name, value in epoch_values(report).items():
            self._writer.add_scalar(name, value, report.epoch)
        self._writer.flush()
