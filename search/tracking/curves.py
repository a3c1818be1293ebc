"""What a tracker is told: of a run what its record holds, of a training its epochs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from search.record import Record, RefusedError
from search.tracking.tracker import End, Tracker

if TYPE_CHECKING:
    from supernet.training import EpochReport

logger = logging.getLogger(__name__)
EVERY_SECONDS, CLOSE_SECONDS = 30.0, 60.0


def run_values(record: Record) -> dict[str, float]:
    """Return how many networks each fidelity has judged, and the best accuracy (percent) of each.

    The names are ``judged/FIDELITY`` and ``best_top1/FIDELITY``, or the task's ``best_miou/...``.
    """
    values: dict[str, float] = {}
    for trial in record.trials(state="done"):
        judged = f"judged/{trial.fidelity}"
        values[judged] = values.get(judged, 0) + 1
        if (measure := trial.measured.measure) is not None:
            best = f"best_{measure}/{trial.fidelity}"
            values[best] = max(values.get(best, 0.0), trial.measured.quality)
    return values


def epoch_values(report: EpochReport) -> dict[str, float]:
    """Return the curves of one epoch of a training; its step is the epoch's number."""
    return {
        "loss": report.loss,
        "lr": report.lr,
        "images_per_second": report.images_per_second,
        "share_of_time_waiting_for_images": report.wait_seconds / report.seconds,
    }


class RunCurves:
    """While it is entered, a thread tells a tracker now and then where a run stands.

    A step is a second of device time, so that the curves of several runs lie over one another.

    Args:
        record: Of the run.
        tracker: Is closed with it.
        is_done: Tells in the end whether the run was done.
        every_seconds: How often a point is added; the last one always is.
        close_seconds: How long the run's end waits for a tracker that does not answer.
    """

    def __init__(
        self,
        record: Record,
        tracker: Tracker,
        *,
        is_done: Callable[[], bool],
        every_seconds: float = EVERY_SECONDS,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._record, self._tracker, self._is_done = record, tracker, is_done
        self._every_seconds, self._close_seconds = every_seconds, close_seconds
        self._end: End = "failed"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="curves", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end = "stopped" if kind is None else "failed"
        with suppress(ValueError):  # of a record that is lost
            self._end = "done" if kind is None and self._is_done() else self._end
        self._stop.set()
        # The thread closes the tracker, too: one that hangs keeps no run from its end.
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            logger.warning(
                "The tracker has not answered for %.0f s, so its last points may be missing.",
                self._close_seconds,
            )

    def _tell(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self._every_seconds)
            try:
                values = run_values(self._record)
                self._tracker.log(values, step=int(self._record.spent()))
            except (RefusedError, ValueError) as error:
                # A busy or lost record: the run's own next call says what is wrong.
                logger.warning("The curves lack a point: %s", error)
        self._tracker.close(self._end)
