"""A whole run in this process: the engine's own phases and record, without Ray, on a virtual clock.

Devices are local objects and work one after the other; what they do is the small work of the fault
suite, whose seconds pass on the clock instead of being waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.faults import small_work
from search.phases import alone, measure, session, supernet
from search.phases.session import Interrupted, Session
from search.record.record import Record
from search.run import search_with
from search.run_folder.creation import prepare_run_data
from search.run_folder.folder import RECORD, RunFolder
from search.run_folder.settings import RunSettings
from search.scheduling.tasks import Judgement
from search.terminal.progress import ProgressView, StopSignals


class Killed(BaseException):
    """The process ends here, as by kill -9."""


class Clock:
    """Seconds that pass when work is done; the process may be killed at one of them."""

    def __init__(self) -> None:
        self.now, self.kill_at = 1000.0, float("inf")

    def __call__(self) -> float:
        return self.now

    def work_for(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        if self.now >= self.kill_at:
            self.kill_at = float("inf")
            raise Killed


class LocalCluster:
    """One device; its actors are objects of this process."""

    devices, free, threads = 1, 1, 1
    meeting_place = None

    @contextmanager
    def actors(self, worker: type, job: Any, count: int) -> Iterator[list[Any]]:
        """Make the objects."""
        yield [worker(job, threads=1) for _ in range(count)]


class LocalCrew:
    """One warm judge, held until it is dismissed; it takes the place of `crew.JudgeCrew`."""

    start_seconds = 0.2

    def __init__(self, run: Session, phase: str) -> None:
        self._record = run.record
        self._attempt = run.record.start_attempt(phase, devices=1)
        self._worker = run.work.judge_worker(run.job, threads=1)

    def __len__(self) -> int:
        return 1

    def call(self, method: str, *arguments: Any, while_waiting: Callable[[], None]) -> Any:
        """Call the judge."""
        return getattr(self._worker, method)(*arguments)

    def call_split(
        self, method: str, items: Sequence[Any], *, while_waiting: Callable[[], None]
    ) -> list[Any]:
        """Call the judge with all of a list."""
        return [self.call(method, items, while_waiting=while_waiting)]

    def stream(self, source: Any, while_waiting: Callable[[], None]) -> None:
        """Judge until the source has no more."""
        while batch := source.ask(4):
            answers = self._worker.judge(batch, source.by)
            source.tell(
                [
                    Judgement(
                        architecture=architecture,
                        outcome="failed" if cause else "done",
                        measured=values,
                        cause=cause,
                    )
                    for architecture, (values, cause) in zip(batch, answers, strict=True)
                ]
            )

    def dismiss_all(self, outcome: Any) -> None:
        """End the charge."""
        self._record.finish_attempt(self._attempt, outcome=outcome)


class LocalRun:
    """A run's folder that is entered again and again, until its budget is spent.

    Args:
        folder: To make.
        settings: Of the run.
        patch: Takes Ray out of the phases.

    Attributes:
        work: What the device does; the small work of the fault suite unless a test replaces it.
    """

    def __init__(self, folder: Path, settings: RunSettings, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.settings, self.clock = folder, settings, Clock()
        self.work = small_work.SMALL_WORK
        folder.mkdir()
        space = settings.load_space()
        prepare_run_data(settings, space, folder)
        (folder / "space.yaml").write_text(space.source)
        (folder / "work.json").write_text('{"step": 0.02, "judge": 0.05, "epoch": 0.6}')
        with Record.create(folder / RECORD, clock=self.clock) as record:
            record.set_meta("settings", settings.to_dict())
        patch.setattr(small_work, "work_for", self.clock.work_for)
        virtual = self.clock
        patch.setattr(Record, "working_time", lambda _, clock=None: (clock or virtual)())
        patch.setattr(alone, "run_trials", _run_trials)
        patch.setattr(session.Session, "crew", _crew)
        for module in (measure, supernet):
            patch.setattr(module, "call", _call)
        patch.setattr(supernet, "call_all", lambda actors, *rest, **more: [_call(*actors, *rest)])
        patch.setattr(supernet, "form_group", lambda actors, **more: None)

    @contextmanager
    def record(self) -> Iterator[Record]:
        """Open the record as after a crash."""
        with Record.open(self.folder / RECORD, clock=self.clock) as record:
            yield record

    def enter(self, *, kill_after: float = float("inf"), stop_after: float = float("inf")) -> str:
        """Do what is left to do; say how it ended: ``done``, ``killed`` or ``stopped``.

        Args:
            kill_after: Seconds until the process is killed.
            stop_after: Seconds until the user asks it to stop.
        """
        start = self.clock.now
        self.clock.kill_at = start + kill_after
        with self.record() as record:
            record.close_orphans()
            stop = _StopAt(self.clock, start + stop_after)
            run = RunFolder(self.folder, record, self.settings)
            view = ProgressView(
                Console(quiet=True), budget_seconds=1.0, devices=1, device="cpu", clock=self.clock
            )
            cluster: Any = LocalCluster()
            try:
                search_with(Session(run, cluster, stop, view, self.work))
            except Killed:
                return "killed"
            except Interrupted:
                return "stopped"
        return "done"


class _StopAt(StopSignals):
    def __init__(self, clock: Clock, when: float) -> None:
        self._clock, self._when = clock, when

    @property
    def requested(self) -> str | None:  # type: ignore[override]
        return "SIGTERM" if self._clock.now >= self._when else None


def _call(actor: Any, method: str, *arguments: Any, **_: Any) -> Any:
    return getattr(actor, method)(*arguments)


def _crew(self: Session, plan: Any, phase: str, *, most: int | None = None) -> Any:
    return LocalCrew(self, phase)


def _run_trials(cluster: Any, work: Any, *, job: Any, folder: Path, source: Any, name: str) -> None:
    """Train one trial after the other, as `tune_trials.run_trials` does on a cluster."""
    while not source.should_stop() and (task := source.next()) is not None:
        values = work.train_alone(job, task, 1, lambda epoch: None)
        source.settle(task, outcome="done", measured=values, cause=None)
