"""The attempts that this process holds open, and what they are charged until now."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class OpenAttempt:
    """An attempt that this process holds; times are in seconds."""

    phase: str
    trial_id: int | None
    devices: float
    started: float
    last_seen: float

    def charge(self, now: float) -> float:
        """Return its device-seconds until now, at least until it was last seen."""
        return (max(self.last_seen, now) - self.started) * self.devices


@dataclass(slots=True)
class _Rate:
    """Attempts of one phase: device-seconds charged at a moment, and devices held since."""

    charged: float = 0.0
    devices: float = 0.0


class OpenAttempts:
    """Open attempts by their id.

    The ledger is asked far more often than attempts begin and end, and a cluster holds hundreds of
    them: from one change to the next, each phase's charge is kept as a line in time.
    """

    def __init__(self) -> None:
        self._attempts: dict[int, OpenAttempt] = {}
        self._rates: dict[str, _Rate] | None = None
        self._moment = 0.0

    def __iter__(self) -> Iterator[int]:
        return iter(self._attempts)

    def __contains__(self, attempt_id: object) -> bool:
        return attempt_id in self._attempts

    def values(self) -> Collection[OpenAttempt]:
        """Return all of them."""
        return self._attempts.values()

    def __getitem__(self, attempt_id: int) -> OpenAttempt:
        return self._attempts[attempt_id]

    def add(self, attempt_id: int, attempt: OpenAttempt) -> None:
        """Take in an attempt that has begun."""
        self._attempts[attempt_id] = attempt
        if attempt.devices:
            self._rates = None

    def restart(self, attempt_id: int, now: float) -> None:
        """Let an attempt begin now."""
        attempt = self._attempts[attempt_id]
        attempt.started = attempt.last_seen = now
        self._rates = None

    def remove(self, attempt_id: int) -> None:
        """Forget an attempt that has ended."""
        if self._attempts.pop(attempt_id).devices:
            self._rates = None

    def keep(self, attempt_ids: Collection[int]) -> None:
        """Forget all others."""
        self._attempts = {key: one for key, one in self._attempts.items() if key in attempt_ids}
        self._rates = None

    def see(self, now: float) -> None:
        """Take note that all are alive now; a clock that went back takes nothing off."""
        for attempt in self._attempts.values():
            attempt.last_seen = max(attempt.last_seen, now)
        self._rates = None

    def charges(self, now: float) -> Mapping[str, float]:
        """Sum the device-seconds of each phase; at least until each attempt was last seen."""
        if self._rates is None:
            self._moment = max((one.last_seen for one in self._attempts.values()), default=0.0)
            self._rates = self._rates_at(self._moment)
        rates = self._rates if now >= self._moment else self._rates_at(now)
        since = max(now - self._moment, 0.0)
        return {phase: rate.charged + rate.devices * since for phase, rate in rates.items()}

    def _rates_at(self, moment: float) -> dict[str, _Rate]:
        rates: dict[str, _Rate] = {}
        for attempt in self._attempts.values():
            rate = rates.setdefault(attempt.phase, _Rate())
            rate.charged += attempt.charge(moment)
            rate.devices += attempt.devices
        return rates
