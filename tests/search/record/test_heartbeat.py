"""The heartbeat: a thread that keeps what a crash leaves uncharged below a second."""

from __future__ import annotations

import logging
import threading

import pytest

from search.record.heartbeat import Heartbeat
from search.record.record import Record
from search.record.schema import Address, RefusedError


def test_open_attempts_are_charged_without_the_driver_doing_anything(place: Address) -> None:
    beats: list[float] = []
    enough = threading.Event()

    def clock() -> float:
        beats.append(100.0 + len(beats))
        if len(beats) > 4:
            enough.set()
        return beats[-1]

    with Record.create(place, clock=clock) as record:
        record.start_attempt("supernet", devices=1)
        with Heartbeat(record, every_seconds=0.001):
            assert enough.wait(timeout=30)

        with Record.open(place, clock=clock) as reader:
            assert reader.spent() >= 3.0


def test_a_beat_that_the_database_refuses_is_logged_and_the_next_one_comes(
    place: Address, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0
    recovered = threading.Event()

    def clock() -> float:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RefusedError("disk I/O error")
        recovered.set()
        return 100.0

    with (
        Record.create(place, clock=clock) as record,
        caplog.at_level(logging.WARNING),
        Heartbeat(record, every_seconds=0.001),
    ):
        assert recovered.wait(timeout=30)

    assert [entry.message for entry in caplog.records] == [
        "Could not mark the running attempts as alive: disk I/O error."
    ]


def test_the_driver_writes_while_the_heart_beats(place: Address) -> None:
    with (
        Record.create(place) as record,
        Heartbeat(record, every_seconds=0.0001),
    ):
        for _ in range(200):
            record.finish_attempt(record.start_attempt("search", devices=1), outcome="done")

        assert record.spent() == record.spent(["search"]) > 0
