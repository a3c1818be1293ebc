"""The ledger: every device-second is charged once, whatever crashes; on both databases."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from search.record import Measured
from search.record.record import AttemptOutcome, Record
from search.record.schema import Address
from tests.clock import Clock
from tests.postgres import Server, new_place
from tests.tiny_record import add_trial


def test_a_reader_charges_live_work_until_it_was_last_seen(
    record: Record, place: Address, clock: Clock
) -> None:
    record.start_attempt("supernet", devices=4)
    clock.now += 2
    record.heartbeat()
    clock.now += 1

    with Record.open(place, clock=clock) as reader:
        assert reader.spent() == 8.0
    assert record.spent() == 12.0


def test_a_run_is_silent_since_its_last_sign_of_life(
    record: Record, place: Address, clock: Clock
) -> None:
    record.start_attempt("supernet", devices=4)
    clock.now += 2
    record.heartbeat()
    last = clock.now
    record.close()

    with Record.open(place, clock=clock, read_only=True) as reader:
        assert reader.last_seen() == last
        assert reader.silent_seconds(last + 7) == 7.0
        assert reader.silent_seconds(last - 7) == 0.0


def test_a_clock_that_is_set_back_takes_no_charge_back(record: Record, clock: Clock) -> None:
    attempt = record.start_attempt("supernet", devices=1)
    clock.now += 5
    record.heartbeat()
    clock.now -= 500
    record.heartbeat()
    assert record.spent() == 5.0

    record.finish_attempt(attempt, outcome="done")

    assert record.spent() == 5.0


class Ledger(RuleBasedStateMachine):
    """Random lives of a run; the model adds up the time for which each attempt was watched."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.place = self.new_place()
        self.clock = Clock()
        self.record = Record.create(self.place, clock=self.clock)
        self.trials = [add_trial(self.record, seed=seed) for seed in range(2)]
        self.held: dict[int, float] = {}
        self.seen: dict[int, float] = {}
        self.devices: dict[int, float] = {}
        self.phases: dict[int, str] = {}
        self.charged = {"supernet": 0.0, "search": 0.0}

    def new_place(self) -> Address:
        return Path(self.folder.name) / "record.db"

    @rule(quarters=st.integers(1, 40))
    def time_passes(self, quarters: int) -> None:
        self.clock.now += quarters / 4
        for attempt in self.held:
            self.held[attempt] += quarters / 4

    @rule(devices=st.sampled_from([0.0, 0.5, 1.0, 8.0]))
    def a_phase_starts(self, devices: float) -> None:
        self._started(self.record.start_attempt("supernet", devices=devices), "supernet", devices)

    @rule(index=st.integers(0, 1), devices=st.sampled_from([0.25, 2.0]))
    def a_trial_starts(self, index: int, devices: float) -> None:
        trial_id = self.trials[index]
        if self.record.trial(trial_id).state == "waiting":
            attempt = self.record.start_attempt("search", devices=devices, trial_id=trial_id)
            self._started(attempt, "search", devices)

    def _started(self, attempt: int, phase: str, devices: float) -> None:
        self.held[attempt] = self.seen[attempt] = 0.0
        self.devices[attempt] = devices
        self.phases[attempt] = phase

    @precondition(lambda self: self.held)
    @rule(data=st.data(), outcome=st.sampled_from(["done", "failed", "interrupted", "lost"]))
    def an_attempt_ends(self, data: st.DataObject, outcome: AttemptOutcome) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.held)))
        values = (
            Measured(top1=0.5) if outcome == "done" and self.phases[attempt] == "search" else None
        )
        self.record.finish_attempt(attempt, outcome=outcome, measured=values, cause="said")
        self.charged[self.phases[attempt]] += self.held.pop(attempt) * self.devices[attempt]

    @rule()
    def the_heart_beats(self) -> None:
        self.record.heartbeat()
        self.seen.update(self.held)

    @rule(quarters=st.integers(0, 400))
    def the_process_is_killed_and_another_resumes(self, quarters: int) -> None:
        self.record.close()
        self.clock.now += quarters / 4
        self.record = Record.open(self.place, clock=self.clock)
        for attempt in self.held:
            self.charged[self.phases[attempt]] += self.seen[attempt] * self.devices[attempt]
        self.held.clear()
        charged_before = self.record.spent()
        self.record.close_orphans()
        assert self.record.spent() == charged_before
        assert self.record.trials(state="running") == ()

    @invariant()
    def every_device_second_is_charged_once(self) -> None:
        expected = dict(self.charged)
        for attempt, seconds in self.held.items():
            expected[self.phases[attempt]] += seconds * self.devices[attempt]
        spent = self.record.spent_by_phase()
        assert {phase: spent.get(phase, 0.0) for phase in expected} == expected
        assert self.record.spent() == sum(expected.values())
        assert self.record.spent(["search"]) == expected["search"]
        assert sum(trial.seconds for trial in self.record.trials()) == expected["search"]

    def teardown(self) -> None:
        self.record.close()
        self.folder.cleanup()


class LedgerOnPostgres(Ledger):
    """The same lives on PostgreSQL."""

    server: Server

    def new_place(self) -> Address:
        return new_place(self.server.url)


Ledger.TestCase.settings = settings(max_examples=20, stateful_step_count=25)


TestLedger = Ledger.TestCase


@pytest.fixture
def ledger_server(postgres: Server) -> None:
    LedgerOnPostgres.server = postgres


@pytest.mark.usefixtures("ledger_server")
class TestLedgerOnPostgres(LedgerOnPostgres.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=5, stateful_step_count=25)


def test_what_never_had_its_devices_is_not_charged(place: Address, clock: Clock) -> None:
    with Record.create(place, clock=clock) as record:
        held, promised = (record.start_attempt("search", devices=devices) for devices in (1, 2))
        clock.now += 10
        record.heartbeat()
        assert record.spent() == 30
        record.finish_attempt(promised, outcome="lost", cause="never ran", was_held=False)
        assert record.spent() == 10
        clock.now += 1
        record.finish_attempt(held, outcome="done")
        assert record.spent_by_phase() == {"search": 11}
    with Record.open(place) as record:
        assert record.spent_by_phase() == {"search": 11}


def test_what_was_undone_is_not_charged(place: Address) -> None:
    now = [100.0]
    with Record.create(place, clock=lambda: now[0]) as record:
        ended = record.start_attempt("trust", devices=2)
        now[0] += 1.0
        record.finish_attempt(ended, outcome="done")
        with suppress(KeyError), record.together():
            record.start_attempt("search", devices=3)
            raise KeyError("on the way")
        now[0] += 10.0
        assert record.spent_by_phase() == {"trust": 2.0}


def test_the_writers_sum_is_that_of_any_reader(place: Address) -> None:
    now = [100.0]
    with Record.create(place, clock=lambda: now[0]) as record:
        for number in range(5):
            attempt = record.start_attempt("search" if number % 2 else "trust", devices=number)
            now[0] += 1.5
            assert record.spent() == pytest.approx(sum(1.5 * n for n in range(number + 1)))
            record.finish_attempt(attempt, outcome="done")
            with Record.open(place, clock=lambda: now[0]) as reader:
                assert reader.spent_by_phase() == pytest.approx(record.spent_by_phase())


def test_a_trial_that_is_taken_back_leaves_what_it_has_cost(record: Record, clock: Clock) -> None:
    trial = add_trial(record)
    attempt = record.start_attempt("trust", devices=2, trial_id=trial)
    clock.now += 3
    with pytest.raises(ValueError, match="is running"):
        record.withdraw(trial)
    record.finish_attempt(attempt, outcome="interrupted", cause="too slow")
    record.withdraw(trial)
    assert record.trials() == ()
    assert record.spent() == 6
    assert [(row[2], row[8], row[9]) for row in record.ledger()] == [
        (None, "interrupted", "too slow")
    ]
    # The same may be wanted again.
    assert add_trial(record) is not None
    with pytest.raises(ValueError, match="unknown"):
        record.withdraw(trial + 1_000)


def test_a_closed_record_tells_nothing_that_it_had_remembered(
    record: Record, place: Address, clock: Clock
) -> None:
    attempt = record.start_attempt("search", devices=1)
    clock.now += 5.0
    record.finish_attempt(attempt, outcome="done")
    assert record.spent() == pytest.approx(5.0)
    record.close()
    with Record.open(place, clock=clock) as other:
        attempt = other.start_attempt("search", devices=1)
        clock.now += 7.0
        other.finish_attempt(attempt, outcome="done")
    # A file stays closed; a server is asked again.
    found = 12.0
    with suppress(Exception):
        found = record.spent()
    record.close()
    assert found == pytest.approx(12.0)


def test_what_a_killed_driver_left_open_is_charged_once_it_is_closed(
    record: Record, place: Address, clock: Clock
) -> None:
    trial_id = add_trial(record)
    record.start_attempt("search", devices=2, trial_id=trial_id)
    clock.now += 5
    record.heartbeat()
    record.close()
    with Record.open(place, clock=clock) as resumed:
        assert resumed.spent() == 10.0  # looked at before, which is remembered
        resumed.close_orphans()
        clock.now += 100
        assert resumed.spent() == 10.0
        attempt = resumed.start_attempt("search", devices=1, trial_id=trial_id)
        clock.now += 3
        resumed.finish_attempt(attempt, outcome="done", measured=Measured(top1=1.0))
        assert resumed.spent() == 13.0


def test_an_attempt_that_waited_for_its_devices_is_charged_from_when_it_has_them(
    record: Record, place: Address, clock: Clock
) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=3, trial_id=trial_id)
    clock.now += 50
    record.heartbeat()
    assert record.spent() == 150.0

    record.restart_attempt(attempt)

    assert record.spent() == 0.0
    clock.now += 2
    record.heartbeat()
    with Record.open(place, clock=clock) as reader:
        assert reader.spent() == record.spent() == 6.0
    clock.now += 1
    record.finish_attempt(attempt, outcome="done", measured=Measured(top1=1.0))
    assert record.spent() == record.spent_by_phase()["search"] == 9.0
    with pytest.raises(ValueError, match="has ended already"):
        record.restart_attempt(attempt)
