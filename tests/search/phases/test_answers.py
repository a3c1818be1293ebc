"""A run that was given enough for an answer has one, and keeps its budget, on whatever machine.

The machine of these tests is held up: workers take a minute to start, and epochs and looks at the
budget take many times longer than they did while they were measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.faults.small_work import SMALL_WORK, SmallSupernetWorker, measured_of
from search.phases import alone, measure, saves, supernet
from search.phases.session import Session
from search.plan import PHASES, Plan, StepTimes
from search.results import SUPERNET, is_trained_alone, searched_fidelities
from search.run_folder.settings import RunSettings
from search.run_folder.state import RunState
from search.scheduling import BudgetSpent, Judgement, TrialRunner, TrialTask
from tests.local_run import LocalCrew, LocalRun

START = 60.0
BUDGET = 240
EPOCH = 1.5


class SlowCrew(LocalCrew):
    """A judge that starts where it fits, and ends at the end of what may be spent."""

    start_seconds = START

    def __init__(self, run: Session, phase: str, limit: float) -> None:
        self._run, self._phase, self._limit = run, phase, limit
        self._attempt, self._worker = 0, None

    def _starts(self) -> bool:
        if self._worker is None and self._limit - self._run.spent() >= START:
            self._record = self._run.record
            self._attempt = self._record.start_attempt(self._phase, devices=1)
            self._worker = self._run.work.judge_worker(self._run.job, threads=1)
        return self._worker is not None

    def call(self, method: str, *arguments: Any, while_waiting: Callable[[], None]) -> Any:
        """Call the judge."""
        if not self._starts():
            raise BudgetSpent("less than a judge takes to start")
        return super().call(method, *arguments, while_waiting=while_waiting)

    def stream(self, source: Any, while_waiting: Callable[[], None]) -> None:
        """Judge one after the other."""
        while self._starts() and self._run.spent() < self._limit and (batch := source.ask(1)):
            ((values, _),) = self._worker.judge(batch, source.by)  # type: ignore[union-attr]
            source.tell([Judgement(architecture=batch[0], outcome="done", measured=values)])

    def dismiss_all(self, outcome: Any) -> None:
        """End the charge."""
        if self._worker is not None:
            super().dismiss_all(outcome)


def crew_of(run: Session, plan: Plan, phase: str, *, most: int | None = None) -> SlowCrew:
    """Hold a judge within the limits of `Session.crew`."""
    return SlowCrew(run, phase, run.judge_seconds(plan, phase))


class Slow:
    """A run on a machine that is held up.

    Args:
        factor: How many times longer an epoch takes than it was measured to.
        late: Seconds between two looks at the budget while a training goes on.
    """

    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        *,
        strategy: str,
        factor: float = 1.0,
        late: float = 0.0,
        budget: int = BUDGET,
    ) -> None:
        settings = RunSettings(
            data="digits", budget=f"{budget}cpu-seconds", sampler="random", strategy=strategy
        )
        self.run = run = LocalRun(folder / "run", settings, patch)
        self.factor, self.late, self.budget = factor, late, budget
        self.trained: list[TrialTask] = []
        work = f'{{"step": 0.1, "judge": 1.0, "epoch": {EPOCH}, "start": {START}}}'
        (run.folder / "work.json").write_text(work)
        clock = run.clock

        class Worker(SmallSupernetWorker):
            # As an actor it starts in its first call, which is charged.
            def __init__(self, job: Any, *, threads: int) -> None:
                super().__init__(replace(job, start=0.0), threads=threads)
                self._is_warm = False

            def _begin(self) -> None:
                clock.work_for(0.0 if self._is_warm else START)
                self._is_warm = True

            def start(self, total_steps: int) -> int:
                self._begin()
                return super().start(total_steps)

            def measure(self) -> StepTimes:
                self._begin()
                # 16 steps are an epoch of the digits in batches of 64.
                points = ((100_000, EPOCH / 16), (1_000_000, EPOCH / 16))
                return replace(super().measure(), trial_steps=points, steps_per_epoch=16)

        run.work = replace(SMALL_WORK, supernet_worker=Worker)
        patch.setattr(alone, "TrialRunner", partial(TrialRunner, clock=clock))
        patch.setattr(alone, "run_trials", self.train)
        patch.setattr(Session, "crew", crew_of)
        for module in (measure, saves, supernet):
            patch.setattr(module, "time", SimpleNamespace(monotonic=clock))

    def train(self, cluster: Any, work: Any, *, source: Any, **_: Any) -> None:
        """Train trials in one process, which starts with the first and is warm from then on."""
        clock, is_warm = self.run.clock, False
        while not source.should_stop() and (task := source.next(1)) is not None:
            self.trained.append(task)
            source.started(task)
            clock.work_for(0.0 if is_warm else START)
            is_warm = True
            outcome, values = self.epochs(source, task)
            source.settle(task, outcome=outcome, measured=values, cause="as in this test")

    def epochs(self, source: Any, task: TrialTask) -> tuple[str, Any]:
        """Train one network, looking at the budget now and then; return what came of it."""
        clock, passed = self.run.clock, 0.0
        for epoch in range(task.epochs + 1):
            if epoch:
                left = self.factor * EPOCH
                while left > 1e-9:
                    step = min(left, max(self.late, 1.0) - passed)
                    clock.work_for(step)
                    left, passed = left - step, passed + step
                    if passed >= max(self.late, 1.0):
                        passed = 0.0
                        if source.should_stop(self.late):
                            return "lost", None
            source.heard(task)
            if source.gives_up(task):
                return "not begun", None
        return "done", measured_of(task.architecture, noise=1.0)

    def enter(self) -> None:
        """Go on to the end, or to where nothing more fits."""
        with suppress(BudgetSpent):
            assert self.run.enter() == "done"

    @property
    def spent(self) -> float:
        """Device-seconds that the budget has paid for."""
        with self.run.record() as record:
            return record.spent(PHASES)

    @property
    def fidelities(self) -> tuple[str, ...]:
        """At what networks have accuracies."""
        with self.run.record() as record:
            return searched_fidelities(record.trials(state="done"))


@pytest.mark.parametrize("factor", [1.0, 4.0, 11.0])
@pytest.mark.parametrize("strategy", ["proxy", "zero-cost"])
def test_trainings_that_are_slower_than_measured_have_an_answer(
    strategy: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy=strategy, factor=factor)

    slow.enter()

    # Two workers start, and then there is time for several epochs.
    assert 3 * factor * EPOCH < BUDGET - 2 * START
    assert slow.fidelities
    assert slow.spent <= 1.01 * BUDGET


def test_a_last_training_is_as_long_as_what_is_left_lets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="proxy", factor=11.0)

    slow.enter()

    first, last = slow.trained
    epoch = 11 * EPOCH
    left = 0.99 * BUDGET - 2 * START - epoch
    assert first.epochs * epoch > left  # it could not have ended
    assert last.architecture == first.architecture
    assert last.epochs == int(0.8 * left / epoch) >= 1
    assert slow.fidelities == (f"train-{last.epochs}e",)


def test_with_an_answer_no_training_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="proxy")
    slow.run.enter()
    epochs = {task.epochs for task in slow.trained}

    assert len(epochs) == 1
    assert slow.fidelities == (f"train-{epochs.pop()}e",)


@pytest.mark.parametrize("spent", [150.0, 172.0])
def test_what_is_left_after_a_kill_is_enough_for_a_shorter_training(
    spent: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="proxy")
    charge_start(slow, spent, phase="measure", measured=True)

    slow.enter()

    assert slow.spent <= 1.01 * BUDGET
    assert slow.fidelities
    assert all(is_trained_alone(fidelity) for fidelity in slow.fidelities)


def charge_start(slow: Slow, seconds: float, *, phase: str, measured: bool) -> None:
    """Let starts that were killed have taken a part of the budget."""
    clock = slow.run.clock
    with slow.run.record() as record:
        record.claim()
        first = record.start_attempt("measure", devices=1)
        clock.work_for(START)
        record.finish_attempt(first, outcome="done")
        if measured:
            state = RunState(record)
            points = ((100_000, EPOCH / 16), (1_000_000, EPOCH / 16))
            state.times = StepTimes(
                supernet_step=0.1, trial_steps=points, judge=1.0, steps_per_epoch=16
            )
            state.worker_start_seconds = START
            state.measured_seconds = START
        rest = record.start_attempt(phase, devices=1)
        clock.work_for(seconds - START)
        record.finish_attempt(rest, outcome="interrupted")


@pytest.mark.parametrize("budget", [180, 240, 300])
def test_a_judge_that_takes_its_phases_share_to_start_gives_an_answer(
    budget: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="supernet", budget=budget)

    slow.enter()

    assert slow.fidelities
    assert slow.spent <= 1.05 * budget


def test_a_trust_training_that_does_not_end_leaves_a_judge_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="supernet", factor=40.0, budget=500)

    slow.enter()

    assert [task.epochs for task in slow.trained]  # one began, and was none
    assert SUPERNET in slow.fidelities
    assert slow.spent <= 1.01 * 500


@pytest.mark.parametrize(("spent", "is_enough"), [(130.0, True), (177.0, True), (190.0, False)])
def test_shared_weights_that_cannot_be_trained_on_are_judged_by(
    spent: float, is_enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="supernet")
    charge_start(slow, spent, phase="supernet", measured=True)
    folder = slow.run.folder / "supernet"
    folder.mkdir()
    (folder / "step.txt").write_text("3")
    with slow.run.record() as record:
        record.set_meta("supernet_pace", 0.1)

    if is_enough:
        slow.enter()
        assert slow.fidelities == (SUPERNET,)
        assert (folder / "step.txt").read_text() == "3"  # another start would leave no judge
    else:
        with pytest.raises(BudgetSpent, match="nothing is begun that does not fit"):
            slow.run.enter()
        assert slow.spent == pytest.approx(spent)


def test_without_shared_weights_no_start_is_paid_that_leaves_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="supernet")
    charge_start(slow, 130.0, phase="measure", measured=False)

    with pytest.raises(BudgetSpent, match=r"another start takes 60, as one that judges then takes"):
        slow.run.enter()

    assert slow.spent == pytest.approx(130.0)


@pytest.mark.parametrize("late", [1.0, 4.0, 9.0])
def test_late_looks_do_not_take_a_run_beyond_its_budget(
    late: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="proxy", factor=60.0, late=late)

    slow.enter()

    assert 0.9 * BUDGET <= slow.spent <= 1.01 * BUDGET


@pytest.mark.parametrize("spent", [150.0, 172.0])
def test_a_shorter_training_that_fails_is_followed_by_one_of_another_network(
    spent: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch, strategy="proxy")
    charge_start(slow, spent, phase="measure", measured=True)
    train = slow.epochs

    def fail(source: Any, task: TrialTask) -> tuple[str, Any]:
        if task.architecture != slow.trained[0].architecture:
            return train(source, task)
        return "failed", None

    slow.epochs = fail  # type: ignore[method-assign]

    slow.enter()

    assert slow.fidelities
    assert [one.architecture for one in slow.trained].count(slow.trained[0].architecture) == 1
    assert slow.spent <= 1.01 * BUDGET
