"""A clock for tests."""

from __future__ import annotations


class Clock:
    """Seconds that pass when a test says so; steps of a quarter second add up exactly."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now
