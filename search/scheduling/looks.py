"""How late the next look at the budget may come, by how late the latest ones came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

# On a machine that is held up, looks come late for long; a single late one is forgotten.
LATEST = 50
# Of a budget, that is left over for the sake of late looks: no more.
MOST_SHARE = 0.05


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
