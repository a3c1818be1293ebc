"""`Heartbeat`: marks the attempts that run as alive, so that a crash is charged rightly."""

from __future__ import annotations

import logging
import threading
from typing import Self

from search.record.record import Record
from search.record.schema import RefusedError

logger = logging.getLogger(__name__)


class Heartbeat:
    """While it is entered, a thread marks the record's open attempts as alive every second.

    A beat that the database refuses (it is busy, the disk is full) is logged; the next one comes.
    """

    def __init__(self, record: Record, *, every_seconds: float = 1.0):
        self._record = record
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(self._every_seconds):
            try:
                self._record.heartbeat()
            except RefusedError as error:
                logger.warning("Could not mark the running attempts as alive: %s.", error)
            except ValueError:
                # The record is lost to this process: its own next call says so.
                return
