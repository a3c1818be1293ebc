"""Wall clocks that are set, forward or back, change no charge."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from search.record.heartbeat import Heartbeat
from search.record.record import Record, SteadyClock
from search.record.schema import Address

DAY = 86_400.0


class Clocks:
    """The machine's two clocks: one that people may set, one that only goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.wall, self.steady = 1.8e9, 500.0
        patch.setattr(time, "time", lambda: self.wall)
        patch.setattr(time, "monotonic", lambda: self.steady)

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def set_by(self, seconds: float) -> None:
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


JUMPS = pytest.mark.parametrize("jump", [DAY, -DAY, 3_600.0, -3_600.0, 0.5, -0.5, -1.9e9])
SEEN = pytest.mark.parametrize("look", [lambda record: None, Record.heartbeat, Record.spent])


@JUMPS
@SEEN
def test_twenty_seconds_on_two_devices_are_forty(
    place: Address, clocks: Clocks, jump: float, look: Callable[[Record], object]
) -> None:
    with Record.create(place) as record:
        attempt = record.start_attempt("supernet", devices=2)
        clocks.pass_(8.0)
        look(record)
        clocks.set_by(jump)
        look(record)
        clocks.pass_(12.0)
        assert record.spent() == pytest.approx(40.0)
        record.finish_attempt(attempt, outcome="done")
        assert record.spent() == pytest.approx(40.0)
    with Record.open(place) as reader:
        assert reader.spent() == pytest.approx(40.0)


@JUMPS
def test_an_orphan_is_charged_until_it_was_last_seen(
    place: Address, clocks: Clocks, jump: float
) -> None:
    with Record.create(place) as killed:
        killed.start_attempt("supernet", devices=2)
        clocks.pass_(5.0)
        clocks.set_by(jump)
        clocks.pass_(5.0)
        killed.heartbeat()
        clocks.pass_(0.5)
    clocks.pass_(100.0)
    clocks.set_by(jump)

    with Record.open(place) as resumed:
        assert resumed.spent() == pytest.approx(20.0)
        resumed.close_orphans()
        assert resumed.spent() == pytest.approx(20.0)
        attempt = resumed.start_attempt("supernet", devices=1)
        clocks.set_by(-jump)
        clocks.pass_(3.0)
        resumed.finish_attempt(attempt, outcome="done")
        assert resumed.spent() == pytest.approx(23.0)


@JUMPS
def test_a_reader_whose_clock_is_wrong_charges_the_same(
    place: Address, clocks: Clocks, jump: float
) -> None:
    with Record.create(place) as record:
        record.start_attempt("search", devices=4)
        clocks.pass_(2.0)
        record.heartbeat()
        clocks.set_by(jump)
        with Record.open(place) as reader:
            assert reader.spent() == pytest.approx(8.0)


def test_a_run_that_is_worked_on_is_not_silent_whatever_the_clock_says(
    place: Address, clocks: Clocks
) -> None:
    with Record.create(place) as record:
        record.claim()
        clocks.set_by(DAY)
        with Record.open(place) as reader:
            assert reader.silent_seconds(time.time()) == 0.0
            assert reader.last_seen() is None


def test_silence_is_never_negative(place: Address, clocks: Clocks) -> None:
    with Record.create(place) as record:
        record.claim()
    clocks.set_by(-DAY)
    with Record.open(place) as reader:
        assert _eventually(lambda: reader.last_seen() is not None)
        assert reader.silent_seconds(time.time()) == 0.0


def _eventually(condition: Callable[[], bool]) -> bool:
    """Wait for what a server needs a moment to notice: the end of a connection."""
    return any(condition() for _ in range(100_000))


def test_a_steady_clock_starts_with_the_wall_clock(clocks: Clocks) -> None:
    clock = SteadyClock()
    assert clock() == pytest.approx(1.8e9)
    clocks.set_by(DAY)
    clocks.pass_(7.0)
    assert clock() == pytest.approx(1.8e9 + 7.0)


def test_the_heart_beats_on_when_the_clock_is_set_back(place: Address, clocks: Clocks) -> None:
    beats, enough = 0, threading.Event()
    with Record.create(place) as record:
        record.start_attempt("supernet", devices=1)
        clocks.set_by(-DAY)
        beat = record.heartbeat

        def counted() -> None:
            nonlocal beats
            clocks.pass_(1.0)
            beat()
            beats += 1
            if beats == 3:
                enough.set()

        record.heartbeat = counted  # type: ignore[method-assign]
        with Heartbeat(record, every_seconds=0.001):
            assert enough.wait(60)
        seen = beats
        with Record.open(place) as reader:
            assert reader.spent() == pytest.approx(float(seen))
