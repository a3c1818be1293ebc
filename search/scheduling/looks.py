"""Looks at the budget and at what runs: how late the next may come, and what none has seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

# On a machine that is held up, looks come late for long; a single late one is forgotten.
LATEST = 50
# Of a budget, that is left over for the sake of late looks: no more.
MOST_SHARE = 0.05
# However busy a machine is, a process that works looks at a clock again within so many seconds.
MOST_GAP_SECONDS = 30.0


class AwakeClock:
    """Seconds while this process worked, for what it waits for.

    A process is stopped, and goes on hours later, by Ctrl-Z, by Slurm's suspension, with a machine
    that sleeps. What has given no sign of life meanwhile does not hang: nobody has listened, or it
    was stopped as well. From one call to the next at most `MOST_GAP_SECONDS` pass, so it is to be
    called more often than that.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._last = clock, clock()
        self._missed = 0.0

    def __call__(self) -> float:
        """Return the seconds now."""
        now = self._clock()
        self._missed += max(now - self._last - MOST_GAP_SECONDS, 0.0)
        self._last = now
        return now - self._missed


class Looks:
    """Expects the next look to come as late as the latest of the last ones.

    A loop looks at the budget a few times a second. On a core that others want as well it may look
    again after ten seconds only, and until then its devices are charged: what ends at the end of
    the budget must be ended at the look before it.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: float | None = None
        self._gaps: deque[float] = deque([0.0], maxlen=LATEST)

    def seconds(self) -> float:
        """Take note of a look; return the seconds until the next one may come."""
        now = self._clock()
        if self._last is not None:
            self._gaps.append(now - self._last)
        self._last = now
        return max(self._gaps)


def late_seconds(gap: float, *, devices: float, budget_seconds: float) -> float:
    """Return the device-seconds that are kept free for a look that comes after so many seconds."""
    return min(gap * devices, MOST_SHARE * budget_seconds)
