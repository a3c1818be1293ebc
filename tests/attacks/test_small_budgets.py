"""Attacks on small budgets: a cold or busy machine, where everything takes longer than it should.

Nothing is charged while kernels compile, nothing starts that does not fit, and what does not end in
time is ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import search.run as main_path
from search.cluster import crew as crew_module
from search.cluster.connection import WorkerLostError
from search.cluster.crew import JudgeCrew, _Batch, _Judge
from search.phases import finish as finish_phase
from search.phases import measure as measure_phase
from search.phases import supernet as supernet_phase
from search.phases.measure import bounded
from search.phases.session import Session
from search.plan import Plan, StepTimes
from search.record import Measured
from search.record.record import Record
from search.run_folder.settings import RunSettings
from search.run_folder.state import RunState
from search.scheduling.tasks import BudgetSpent, Judgement
from search.scheduling.trials import Choice, TrialRunner
from search.workers.supernet_worker import WORK
from searchspace.spec_file import load_space
from supernet.network.supernet import Supernet
from supernet.shared_weights.checkpoint import save_supernet
from tests.clock import Clock
from tests.local_run import LocalRun

SPACE = load_space("digits").replace(num_classes=10)


def local_run(tmp_path: Path, patch: pytest.MonkeyPatch, strategy: str) -> LocalRun:
    settings = RunSettings(
        space="digits", data="digits", budget="100cpu-seconds", strategy=strategy
    )
    return LocalRun(tmp_path / "run", settings, patch)


@pytest.mark.parametrize(("strategy", "part"), [("supernet", 0.1), ("proxy", 0.5)])
def test_measuring_that_does_not_end_is_ended_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, part: float
) -> None:
    run = local_run(tmp_path, monkeypatch, strategy)

    def never_ends(actor: Any, method: str, *_: Any, while_waiting: Callable[[], None]) -> Any:
        for _ in range(1000):
            run.clock.work_for(1.0)
            while_waiting()
        raise AssertionError("nobody ended it")

    for module in (measure_phase, supernet_phase):
        monkeypatch.setattr(module, "call", never_ends)
    with pytest.raises(ValueError, match=r"budget of 100 device-seconds is too small.*measuring"):
        run.enter()

    with run.record() as record:
        assert part * 100 < record.spent() <= 51.0
        assert record.get_meta("plan") is None


@contextmanager
def session_of(record: Record, budget: str = "100cpu-seconds", **given: Any) -> Iterator[Session]:
    session = Session.__new__(Session)
    session.record, session.state = record, RunState(record)
    session.settings = RunSettings(space="digits", data="digits", budget=budget, **given)
    session.budget = session.settings.parsed_budget
    session.cluster = SimpleNamespace(devices=2)  # type: ignore[assignment]
    session.stop = SimpleNamespace(requested=None)  # type: ignore[assignment]
    said: list[str] = []
    session.view = SimpleNamespace(update=lambda *_: None, say=said.append)  # type: ignore[assignment]
    yield session


def test_waiting_ends_when_the_budget_is_spent(record: Record, clock: Clock) -> None:
    with session_of(record) as session:
        tick = session.tick("search")
        record.start_attempt("search", devices=2)
        clock.now += 49.0
        tick()
        clock.now += 1.0
        with pytest.raises(BudgetSpent, match="in the phase search"):
            tick()


def test_a_measuring_that_goes_on_after_a_kill_has_its_part_again(
    record: Record, clock: Clock
) -> None:
    with session_of(record, strategy="proxy") as session:
        attempt = record.start_attempt("measure", devices=1)
        clock.now += 40.0
        record.finish_attempt(attempt, outcome="interrupted")

        def measure() -> None:
            with bounded(session) as tick:
                record.start_attempt("measure", devices=1)
                clock.now += 49.0
                tick()
                clock.now += 2.0
                tick()

        with pytest.raises(ValueError, match="when 90 of them were spent"):
            measure()


class StubCluster:
    """Devices that are all free; its actors are nothing."""

    def __init__(self, devices: int) -> None:
        self.devices = self.free = devices

    def nodes(self) -> set[str]:
        """Name the nodes."""
        return {"a"}

    def start_actor(self, worker: type, job: Any) -> Any:
        """Return something that can be asked where it lives."""
        return SimpleNamespace(__ray_call__=SimpleNamespace(remote=lambda function: object()))


def crew_of(record: Record, left: Callable[[], float], start: float, devices: int = 4) -> JudgeCrew:
    cluster: Any = StubCluster(devices)
    return JudgeCrew(
        cluster,
        object,
        job=None,
        record=record,
        phase="search",
        most=None,
        pace_seconds=1.0,
        left=left,
        start_seconds=start,
    )


@pytest.mark.parametrize(("left", "judges"), [(1.5, 0), (7.0, 0), (8.5, 1), (25.0, 3), (999.0, 4)])
def test_no_judge_starts_that_does_not_fit(record: Record, left: float, judges: int) -> None:
    crew = crew_of(record, lambda: left, start=8.0)

    crew._recruit()

    assert len(crew) == judges
    assert len(record.ledger()) == judges


def test_a_judge_is_not_waited_for_where_none_fits(record: Record) -> None:
    crew = crew_of(record, lambda: 1.5, start=8.0)

    with pytest.raises(BudgetSpent, match="less than a judge takes to start"):
        crew.call("proxy_scores", while_waiting=lambda: None)
    source: Any = SimpleNamespace(tell=None, ask=None, should_stop=None, by="supernet")
    crew.stream(source, lambda: None)

    assert record.ledger() == []


def test_judges_end_at_once_when_the_budget_is_spent(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [5.0]
    monkeypatch.setattr(crew_module.ray, "kill", lambda actor: None)
    crew = crew_of(record, lambda: left[0], start=1.0)
    network = SPACE.first()
    attempt = record.start_attempt("search", devices=1)
    judge = _Judge(
        actor=None, attempt=attempt, started=0.0, greeting=object(), ready=True, node="a"
    )
    judge.queue.append(_Batch([network], reference=object()))
    judge.busy_since = crew._now()
    crew._judges.append(judge)
    told: list[Judgement] = []

    def spend(*_: object, **__: object) -> tuple[list[Any], list[Any]]:
        left[0] = 0.0
        return [], []

    monkeypatch.setattr(crew_module.ray, "wait", spend)
    source: Any = SimpleNamespace(
        tell=told.extend, ask=lambda count: [], should_stop=lambda: False, by="supernet"
    )

    crew.stream(source, lambda: None)

    assert [(one.architecture, one.outcome) for one in told] == [(network, "lost")]
    assert len(crew) == 0
    assert all(row[7] is not None for row in record.ledger())


def test_the_finish_starts_no_judge_that_does_not_fit(
    record: Record, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish_phase, "unchecked", lambda session: [1])
    RunState(record).worker_start_seconds = 8.0
    with session_of(record) as session:
        attempt = record.start_attempt("promote", devices=1)
        clock.now += 93.0
        record.finish_attempt(attempt, outcome="done")
        plan: Any = SimpleNamespace(budget_seconds=100.0)

        finish_phase.finish(session, plan)

    assert len(record.ledger()) == 1


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("are_ready", [True, False])
def test_what_is_asked_of_many_networks_is_split_over_all_judges(
    record: Record, monkeypatch: pytest.MonkeyPatch, is_lost: bool, are_ready: bool
) -> None:
    """All of them are held meanwhile; where one is lost, another does what was split."""
    crew = crew_of(record, lambda: 999.0, start=1.0)
    crew._recruit()
    for judge in crew._judges:
        judge.ready, judge.node = are_ready, "a" if are_ready else None
    asked: list[list[int]] = []

    def answer(actor: Any, method: str, items: Any, **_: Any) -> list[int]:
        asked.append(list(items))
        return [10 * item for item in items]

    def call_each(actors: list[Any], method: str, parts: list[Any], **more: Any) -> list[Any]:
        found = [answer(actor, method, *part) for actor, part in zip(actors, parts, strict=True)]
        if is_lost:
            raise WorkerLostError("died")
        return found

    monkeypatch.setattr(crew_module, "call", answer)
    monkeypatch.setattr(crew_module, "call_each", call_each)
    monkeypatch.setattr(crew_module.ray, "wait", lambda calls, **_: (calls, []))
    monkeypatch.setattr(crew_module.ray, "get", lambda call: "a")
    found = crew.call_split("scores", range(10), while_waiting=lambda: None)

    assert sorted(number for part in found for number in part) == [10 * n for n in range(10)]
    split = asked[:4] if are_ready else asked[1:5]
    assert [len(part) for part in split] == ([3, 3, 2, 2] if are_ready else [3, 2, 2, 2])
    assert len(asked) == 4 + is_lost + (not are_ready)
    assert crew.call_split("scores", [], while_waiting=lambda: None) == []


@pytest.mark.parametrize(
    ("left", "start", "devices", "most"),
    [
        (64 * 1000.0, 150.0, 64, None),
        (64 * 140.0, 150.0, 64, 29),  # all that is left would be spent on 59 starts
        (320.0, 150.0, 64, 1),
        (100.0, 2.0, 4, None),
        (30.0, 2.0, 4, 1),
    ],
)
def test_the_finish_does_not_spend_what_is_left_on_starting_judges(
    left: float, start: float, devices: int, most: int | None
) -> None:
    asked: list[int | None] = []

    def crew(plan: Plan, phase: str, *, most: int | None) -> Any:
        asked.append(most)
        raise BudgetSpent

    session: Any = SimpleNamespace(
        spent=lambda: 0.0, start_seconds=start, wait_for_devices=lambda: devices, crew=crew
    )
    plan: Any = SimpleNamespace(budget_seconds=left)
    with pytest.raises(BudgetSpent):
        finish_phase.finish(session, plan)
    assert asked == [most]
    if most is not None and left > 2 * start:
        assert most * start <= left / 2


def test_a_workers_start_counts_until_a_trial_has_shown_what_it_takes(
    record: Record, clock: Clock, tmp_path: Path
) -> None:
    plan = Plan(
        budget_seconds=1e9,
        devices=1,
        spent_by_end={"promote": 1e9},
        supernet_steps=0,
        judge_seconds=1.0,
        trial_epochs=2,
        trial_steps=20,
        rungs=(2,),
        num_trust=0,
        num_promoted=1,
        num_judged=0,
        step_seconds=((1_000_000, 0.1), (3_000_000, 0.1)),
        retrain_seconds=(1.0, 1.0),
        strategy="zero-cost",
    )

    def runner(limit: float) -> TrialRunner:
        return TrialRunner(
            record=record,
            plan=plan,
            folder=tmp_path,
            phase="promote",
            seed=0,
            choose=lambda: Choice(architecture=SPACE.first(), epochs=2),
            limit_seconds=limit,
            interrupted=lambda: False,
            on_event=lambda text: None,
            clock=clock,
            start_seconds=10.0,
        )

    # Twenty steps of a tenth of a second, and the start.
    assert runner(11.9).next() is None
    running = runner(12.0)
    task = running.next()
    assert task is not None
    running.started(task)
    clock.now += 2.0
    values = Measured(top1=50.0, correct=5.0, total=10.0)
    running.settle(task, outcome="done", measured=values, cause=None)
    assert running._expected(2_000_000, 2) == pytest.approx(2.0)


def test_nodes_prepare_before_anything_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: Record
) -> None:
    done: list[Any] = []

    class Cluster:
        devices = 1

        def __init__(self, **_: object) -> None: ...
        def __enter__(self) -> Cluster:
            return self

        def __exit__(self, *_: object) -> None: ...
        def on_each_node(self, function: Any, *, while_waiting: Any) -> None:
            done.append((function, record.ledger()))

    monkeypatch.setattr(main_path, "Cluster", Cluster)
    monkeypatch.setattr(main_path, "search_with", lambda session: done.append("search"))
    with session_of(record) as session:
        monkeypatch.setattr(main_path, "Session", lambda *_: session)
        folder: Any = SimpleNamespace(
            share_data=lambda: None,
            mend_data=lambda: SimpleNamespace(lines=list),
            record=record,
            state=session.state,
            folder=tmp_path,
            settings=session.settings,
        )
        session.work, session.run, session.cluster = WORK, folder, Cluster()  # type: ignore[assignment]
        main_path.run_search(session.run, Console(quiet=True))

    assert done == [(WORK.prepare, []), "search"]


def test_a_workers_start_is_what_measuring_took_longer_than_it_measured(record: Record) -> None:
    times = StepTimes(
        supernet_step=1.0, trial_steps=(), judge=1.0, steps_per_epoch=1, measured_seconds=3.0
    )
    with session_of(record) as session:
        measure_phase.keep_start(session, 10.0, times)
        assert session.start_seconds == 7.0
        record.set_meta("judge_start", 9.0)
        assert session.start_seconds == 9.0


@pytest.mark.parametrize("damage", ["flip", "remove", "index"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_damaged_supernet_is_one_message_and_nothing_is_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, is_done: bool
) -> None:
    run = local_run(tmp_path, monkeypatch, "supernet")
    folder = run.folder / "supernet"
    save_supernet(folder, step=3, supernet=Supernet(SPACE), averaged=None, training={})
    if damage == "flip":
        content = bytearray((folder / "weights-3.safetensors").read_bytes())
        content[-5] ^= 4
        (folder / "weights-3.safetensors").write_bytes(content)
    elif damage == "remove":
        (folder / "weights-3.safetensors").unlink()
    else:
        (folder / "supernet.json").write_text("{")
    with run.record() as record:
        if is_done:
            record.set_meta("supernet", "done")

    with pytest.raises(ValueError, match=r"The supernet in .* cannot be read: .*Restore"):
        run.enter()

    with run.record() as record:
        assert record.ledger() == []


def test_a_finished_supernet_that_is_gone_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = local_run(tmp_path, monkeypatch, "supernet")
    with run.record() as record:
        record.set_meta("supernet", "done")

    with pytest.raises(ValueError, match="is gone"):
        run.enter()

    with run.record() as record:
        assert record.ledger() == []
