"""When the checkpoints of a phase are due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Whatever a checkpoint takes, all devices wait for it: at most a hundredth of the time.
SAVE_EVERY_SECONDS, SAVE_EVERY_SAVES = 30.0, 100.0


class Saves:
    """Spaces checkpoints by what the last one took."""

    def __init__(self) -> None:
        self._ended, self._lasted = time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        waited = time.monotonic() - self._ended
        return waited > max(SAVE_EVERY_SECONDS, SAVE_EVERY_SAVES * self._lasted)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the time of one, which the block waits for."""
        started = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._lasted = self._ended - started
