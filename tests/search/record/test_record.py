"""The record: one truth about trials, and a ledger that crashes do not bend; on both databases."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from search.record import Measured
from search.record.record import AttemptOutcome, Record
from search.record.schema import Address, open_database
from searchspace.architecture import Architecture, Stage
from searchspace.mixers import DepthwiseConv
from tests.postgres import Server, new_place

ROOT = Path(__file__).parents[3]


class Clock:
    """Simulated time; steps of a quarter second add up exactly."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def make_architecture(num_classes: int = 10) -> Architecture:
    stage = Stage(dim=8, mixers=(DepthwiseConv(kernel_size=3),))
    return Architecture(img_size=8, patch_size=2, stages=(stage,), num_classes=num_classes)


def add_trial(record: Record, *, seed: int = 0, fidelity: str = "inherited") -> int:
    architecture_id = record.add_architecture(make_architecture(), params=5, macs=7)
    return record.add_trial(architecture_id, fidelity=fidelity, seed=seed, origin="test")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "record.sqlite"


@pytest.fixture
def record(place: Address, clock: Clock) -> Iterator[Record]:
    with Record.create(place, clock=clock) as record:
        yield record


def test_an_existing_file_is_not_overwritten(path: Path) -> None:
    path.write_text("precious")

    with pytest.raises(ValueError, match="never overwritten"):
        Record.create(path)

    assert path.read_text() == "precious"


def test_a_missing_file_is_refused_and_not_made(path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Record.open(path)

    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"no database at all, just some text"])
def test_a_file_that_is_no_record_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    with pytest.raises(ValueError, match="cannot be read as the record of a run"):
        Record.open(path)


def test_a_record_of_another_schema_version_is_refused(record: Record, place: Address) -> None:
    record.set_meta("schema_version", 99)

    with pytest.raises(ValueError, match="schema version 99"):
        Record.open(place)


def test_meta_values_survive_reopening(record: Record, place: Address) -> None:
    record.set_meta("plan", {"phases": ["supernet"], "share": 0.5})
    record.set_meta("plan", {"phases": ["supernet", "search"], "share": 0.25})

    with Record.open(place) as reader:
        assert reader.get_meta("plan") == {"phases": ["supernet", "search"], "share": 0.25}
        assert reader.get_meta("absent") is None


def test_an_architecture_keeps_its_first_id_and_costs(record: Record) -> None:
    first = record.add_architecture(make_architecture(10), params=5, macs=7)
    other = record.add_architecture(make_architecture(11), params=6, macs=8)

    assert record.add_architecture(make_architecture(10), params=50, macs=70) == first != other
    assert record.architecture(first) == make_architecture(10)
    assert record.architecture_id(make_architecture(11).key) == other
    assert record.architecture_id("unknown") is None
    trial = record.trial(add_trial(record))
    assert (trial.key, trial.params, trial.macs) == (make_architecture(10).key, 5, 7)


def test_a_trial_is_one_for_each_architecture_fidelity_and_seed(record: Record) -> None:
    first = add_trial(record)

    assert add_trial(record) == first
    assert len({first, add_trial(record, seed=1), add_trial(record, fidelity="short")}) == 3
    assert [trial.id for trial in record.trials(fidelity="short")] == [3]
    assert [trial.seed for trial in record.trials(fidelity="inherited")] == [0, 1]


def test_what_the_record_does_not_have_is_refused(record: Record) -> None:
    with pytest.raises(ValueError, match="no architecture 7"):
        record.architecture(7)
    with pytest.raises(ValueError, match="no architecture 7"):
        record.add_trial(7, fidelity="short", seed=0, origin="test")
    with pytest.raises(ValueError, match="no trial 7"):
        record.trial(7)
    with pytest.raises(ValueError, match="trial 7 is unknown"):
        record.start_attempt("search", devices=1, trial_id=7)
    with pytest.raises(ValueError, match="no attempt 7"):
        record.finish_attempt(7, outcome="lost")


def test_a_done_trial_has_its_values_its_charge_and_its_time(record: Record, clock: Clock) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=2, trial_id=trial_id)
    assert record.trial(trial_id).state == "running"
    clock.now += 3
    record.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.75))

    trial = record.trial(trial_id)

    assert (trial.state, trial.measured, trial.cause) == ("done", Measured(top1=0.75), None)
    assert (trial.seconds, trial.num_attempts, trial.finished) == (6.0, 1, 1_003.0)
    assert record.trials(state="done") == (trial,)
    assert record.trials(state="waiting") == ()


def test_a_failed_trial_keeps_its_cause(record: Record) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    record.finish_attempt(attempt, outcome="failed", cause="the loss is\0 not finite: 100 %s?")

    trial = record.trial(trial_id)

    assert (trial.state, trial.cause, trial.measured) == (
        "failed",
        "the loss is not finite: 100 %s?",
        Measured(),
    )
    assert trial.finished is not None


@pytest.mark.parametrize("outcome", ["interrupted", "lost"])
def test_work_without_a_verdict_waits_again_and_stays_charged(
    record: Record, clock: Clock, outcome: AttemptOutcome
) -> None:
    trial_id = add_trial(record)
    for _ in range(2):
        attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
        clock.now += 2
        record.finish_attempt(attempt, outcome=outcome, cause="a worker was lost")

    trial = record.trial(trial_id)

    assert (trial.state, trial.finished, trial.cause) == ("waiting", None, "a worker was lost")
    assert (trial.seconds, trial.num_attempts) == (4.0, 2)


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_a_settled_trial_is_never_started_again(record: Record, outcome: AttemptOutcome) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    values = Measured(top1=0.5) if outcome == "done" else None
    record.finish_attempt(attempt, outcome=outcome, measured=values, cause="said")

    with pytest.raises(ValueError, match=f"trial {trial_id} is {outcome}"):
        record.start_attempt("search", devices=1, trial_id=trial_id)


def test_a_running_trial_is_not_started_twice(record: Record) -> None:
    trial_id = add_trial(record)
    record.start_attempt("search", devices=1, trial_id=trial_id)

    with pytest.raises(ValueError, match=f"trial {trial_id} is running"):
        record.start_attempt("search", devices=1, trial_id=trial_id)

    assert record.trial(trial_id).num_attempts == 1


def test_an_attempt_ends_once(record: Record, clock: Clock) -> None:
    attempt = record.start_attempt("supernet", devices=1)
    clock.now += 1
    record.finish_attempt(attempt, outcome="done")
    clock.now += 1

    with pytest.raises(ValueError, match="has ended already"):
        record.finish_attempt(attempt, outcome="done")

    assert record.spent() == 1.0


@pytest.mark.parametrize(
    ("outcome", "values", "cause", "message"),
    [
        ("done", None, None, "done has values"),
        ("done", Measured(), None, "done has values"),
        ("interrupted", Measured(top1=0.5), None, "nothing else has"),
        ("failed", None, None, "needs its cause"),
        # What is NaN was not measured.
        ("done", Measured(top1=float("nan")), None, "done has values"),
        ("done", Measured(top1=0.5, score=float("inf")), None, "must be finite"),
        ("done", Measured(top1=0.5, losses={1: float("nan")}), None, "must be finite"),
        ("finished", Measured(top1=0.5), None, "Outcomes are done, failed"),
    ],
)
def test_a_refused_end_changes_nothing(
    record: Record,
    outcome: AttemptOutcome,
    values: Measured | None,
    cause: str,
    message: str,
) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    before = record.trial(trial_id)

    with pytest.raises(ValueError, match=message):
        record.finish_attempt(attempt, outcome=outcome, measured=values, cause=cause)

    assert record.trial(trial_id) == before
    record.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.5))


def test_values_without_a_trial_are_refused(record: Record) -> None:
    attempt = record.start_attempt("supernet", devices=1)

    with pytest.raises(ValueError, match="nothing else has"):
        record.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.5))


@pytest.mark.parametrize("devices", [-1.0, float("nan"), float("inf")])
def test_an_attempt_holds_a_finite_number_of_devices(record: Record, devices: float) -> None:
    with pytest.raises(ValueError, match="finite number >= 0"):
        record.start_attempt("search", devices=devices)


def test_an_attempt_of_an_ended_process_can_only_be_closed_as_lost(
    record: Record, place: Address, clock: Clock
) -> None:
    trial_id = add_trial(record)
    attempt = record.start_attempt("search", devices=1, trial_id=trial_id)
    record.close()

    with Record.open(place, clock=clock) as resumed:
        with pytest.raises(ValueError, match="belongs to a process that ended"):
            resumed.finish_attempt(attempt, outcome="done", measured=Measured(top1=0.5))
        assert [trial.id for trial in resumed.close_orphans()] == [trial_id]
        assert resumed.trial(trial_id).state == "waiting"
        assert resumed.close_orphans() == ()


def test_live_attempts_are_no_orphans(record: Record) -> None:
    trial_id = add_trial(record)
    record.start_attempt("search", devices=1, trial_id=trial_id)

    assert record.close_orphans() == ()
    assert record.trial(trial_id).state == "running"


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


def test_an_architecture_is_parsed_once(record: Record) -> None:
    add_trial(record, seed=0)
    add_trial(record, seed=1)

    first, second = record.trials()

    assert first.architecture is second.architecture is record.trials()[0].architecture


def test_only_one_process_writes_attempts(record: Record, place: Address) -> None:
    attempt = record.start_attempt("supernet", devices=1)
    script = (
        "import sys; from search.record.record import Record\n"
        "from tests.postgres import read_place\n"
        "record = Record.open(read_place(sys.argv[1])); print(len(record.spent_by_phase()))\n"
        "record.close_orphans()"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "1\n"
    assert "ValueError: Another process is working on" in done.stderr
    record.finish_attempt(attempt, outcome="done")


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


WRITER = """
import sys
from search.record import Measured
from search.record.record import Record
from tests.postgres import read_place
record = Record.open(read_place(sys.argv[1]))
record.close_orphans()
for trial in record.trials(state="waiting"):
    attempt = record.start_attempt("search", devices=2, trial_id=trial.id)
    record.heartbeat()
    record.finish_attempt(attempt, outcome="done", measured=Measured(top1=trial.seed / 1000))
    print(trial.id, flush=True)
"""


def test_kill_9_loses_no_reported_result_and_counts_nothing_twice(place: Address) -> None:
    with Record.create(place) as record, record.together():
        for seed in range(1_000):
            add_trial(record, seed=seed)
    rng = random.Random(0)
    reported: list[int] = []

    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            reported += [int(writer.stdout.readline()) for _ in range(rng.randrange(5, 40))]
            writer.send_signal(signal.SIGKILL)
            reported += [int(line) for line in writer.stdout if line.endswith("\n")]
        assert writer.returncode == -signal.SIGKILL

    with Record.open(place) as record:
        record.close_orphans()
        done = record.trials(state="done")
        spent = record.spent()
        waiting = record.trials(state="waiting")
    assert len(reported) == len(set(reported))
    assert set(reported) <= {trial.id for trial in done}
    # The last transaction of each life may be durable and not yet reported.
    assert len(done) <= len(reported) + 3
    assert len(done) + len(waiting) == 1_000
    assert all(trial.measured == Measured(top1=trial.seed / 1000) for trial in done)
    database = open_database(place)
    attempts = database.execute("SELECT started, ended, outcome FROM attempts")
    if isinstance(place, Path):
        assert database.execute("PRAGMA integrity_check") == [("ok",)]
    database.close()
    assert [outcome for *_, outcome in attempts].count("done") == len(done)
    assert spent == pytest.approx(sum((ended - started) * 2 for started, ended, _ in attempts))


def test_calls_made_together_are_one_transaction(place: Address) -> None:
    with Record.create(place) as record, Record.open(place) as reader:
        with suppress(KeyError), record.together():
            record.set_meta("one", 1)
            raise KeyError("on the way")
        assert reader.get_meta("one") is None
        with record.together():
            record.set_meta("one", 1)
            assert reader.get_meta("one") is None
        assert reader.get_meta("one") == 1


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


def test_only_what_the_cluster_lost_counts_as_lost(place: Address) -> None:
    stage = Stage(dim=8, mixers=(DepthwiseConv(kernel_size=3),))
    architecture = Architecture(img_size=8, patch_size=2, num_classes=2, stages=(stage,))
    with Record.create(place) as record:
        number = record.add_architecture(architecture, params=1, macs=1)
        trial = record.add_trial(number, fidelity="train-1e", seed=0, origin="trust")
        for outcome in ("lost", "interrupted", "lost"):
            attempt = record.start_attempt("trust", devices=1, trial_id=trial)
            record.finish_attempt(attempt, outcome=outcome, cause="a node failed")
        record.start_attempt("trust", devices=1, trial_id=trial)
    with Record.open(place) as record:
        record.close_orphans()
        assert record.count_lost(trial) == 2
        assert record.trial(trial).num_attempts == 4


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


def test_a_result_is_never_taken_back(record: Record) -> None:
    trial = add_trial(record)
    attempt = record.start_attempt("trust", devices=1, trial_id=trial)
    record.finish_attempt(
        attempt, outcome="done", measured=Measured(top1=50.0, correct=5.0, total=10.0)
    )
    with pytest.raises(ValueError, match="is done"):
        record.withdraw(trial)
    assert record.trial(trial).state == "done"


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
