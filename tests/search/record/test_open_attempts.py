"""The law of open attempts: their charge is the sum of what each has cost by itself."""

from __future__ import annotations

import random

import pytest

from search.record.open_attempts import OpenAttempt, OpenAttempts


@pytest.mark.parametrize("seed", range(5))
def test_the_charge_is_the_sum_over_attempts_even_when_the_clock_goes_back(seed: int) -> None:
    rng, now = random.Random(seed), 1.7e9
    attempts = OpenAttempts()
    started: dict[int, tuple[str, float, float]] = {}
    seen: dict[int, float] = {}
    for number in range(300):
        now += rng.uniform(-1.0, 3.0)
        action = rng.random()
        if action < 0.4 or not started:
            phase, devices = rng.choice(["search", "promote"]), rng.choice([0.0, 1.0, 7.0])
            attempts.add(number, OpenAttempt(phase, None, devices, started=now, last_seen=now))
            started[number], seen[number] = (phase, devices, now), now
        elif action < 0.6:
            gone = rng.choice(list(started))
            attempts.remove(gone)
            del started[gone], seen[gone]
        elif action < 0.7:
            attempts.see(now)
            seen = {one: max(last, now) for one, last in seen.items()}
        wanted = {"search": 0.0, "promote": 0.0}
        for one, (phase, devices, start) in started.items():
            wanted[phase] += (max(seen[one], now) - start) * devices
        found = {"search": 0.0, "promote": 0.0, **attempts.charges(now)}
        assert found == pytest.approx(wanted, abs=1e-5)
        assert set(attempts) == set(started)


def test_attempts_that_are_not_kept_are_charged_no_longer() -> None:
    attempts = OpenAttempts()
    for number, devices in enumerate([1.0, 2.0, 4.0]):
        attempts.add(number, OpenAttempt("search", None, devices, started=10.0, last_seen=10.0))
    assert attempts.charges(12.0) == {"search": 14.0}
    attempts.keep({1})
    assert attempts.charges(12.0) == {"search": 4.0}
    assert 0 not in attempts
