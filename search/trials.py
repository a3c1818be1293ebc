"""Trials that train: which one is next, whether it fits in the budget, and what became of it."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from search.executor import Outcome, TrialTask, checkpoint_folder
from search.plan import PHASES, Plan, StepModel
from search.record import Record, Trial
from searchspace.architecture import Architecture
from searchspace.cost import count

MAX_ATTEMPTS = 3


@dataclass(slots=True)
class _Running:
    attempt_id: int
    started: float
    expected_seconds: float


class TrialRunner:
    """Hands architectures to the executor as trials of one fidelity while the budget lasts.

    Args:
        record: Of the run; every hand-out and every result is written at once.
        plan: For the fidelity and the expected costs.
        folder: Of the run.
        phase: What the time is charged to.
        seed: Of the trainings.
        choose: The next architecture, or None when there is none.
        limit_seconds: The budget spent may not pass this for the sake of a new trial.
        interrupted: Whether the user asked to stop.
        on_event: Called with a line of text about each finished trial.
    """

    def __init__(
        self,
        *,
        record: Record,
        plan: Plan,
        folder: Path,
        phase: str,
        seed: int,
        choose: Callable[[], Architecture | None],
        limit_seconds: float,
        interrupted: Callable[[], bool],
        on_event: Callable[[str], None],
    ) -> None:
        self._record, self._plan, self._folder = record, plan, folder
        self._phase, self._seed, self._choose = phase, seed, choose
        self._limit, self._interrupted, self._on_event = limit_seconds, interrupted, on_event
        self._running: dict[int, _Running] = {}
        self._next: Architecture | None = None

    def next(self) -> TrialTask | None:
        """Start the next trial: one that was interrupted before, else a new choice."""
        if self._interrupted():
            return None
        trial = self._waiting() or self._new_trial()
        if trial is None:
            return None
        expected = predicted_seconds(self._record, self._plan, trial.macs)
        if self._record.spent(PHASES) + self._outstanding() + expected > self._limit:
            return None
        self._next = None
        attempt = self._record.start_attempt(self._phase, devices=1, trial_id=trial.id)
        self._running[trial.id] = _Running(attempt, time.monotonic(), expected)
        return TrialTask(
            trial_id=trial.id,
            architecture=trial.architecture,
            epochs=self._plan.trial_epochs,
            seed=trial.seed,
        )

    def settle(
        self, task: TrialTask, *, outcome: Outcome, values: dict[str, float], cause: str | None
    ) -> None:
        """Write a trial's result and the end of its attempt."""
        running = self._running.pop(task.trial_id)
        tries = self._record.trial(task.trial_id).num_attempts
        if outcome == "lost" and not self.should_stop() and tries >= MAX_ATTEMPTS:
            outcome, cause = "failed", f"lost {tries} times; last: {cause}"
        self._record.finish_attempt(
            running.attempt_id,
            outcome="interrupted" if outcome == "lost" and self.should_stop() else outcome,
            values=values or None,
            cause=cause,
        )
        if outcome in ("done", "failed"):
            shutil.rmtree(checkpoint_folder(self._folder, task.trial_id), ignore_errors=True)
        trial = self._record.trial(task.trial_id)
        text = f"{values['top1']:.1f} %" if values else f"{outcome}: {cause}"
        self._on_event(
            f"{self._phase}: network {trial.architecture_id} trained alone for "
            f"{self._plan.trial_epochs} epochs: {text}"
        )

    def should_stop(self) -> bool:
        """Tell whether running trials must end: the user says so, or the whole budget is gone."""
        return self._interrupted() or self._record.spent(PHASES) >= self._plan.budget_seconds

    def _waiting(self) -> Trial | None:
        waiting = self._record.trials(fidelity=fidelity_of(self._plan), state="waiting")
        return next(iter(waiting), None)

    def _new_trial(self) -> Trial | None:
        architecture = self._next or self._choose()
        if architecture is None:
            return None
        # Kept until it starts, so that a choice that does not fit now is not lost.
        self._next = architecture
        cost = count(architecture)
        expected = predicted_seconds(self._record, self._plan, cost.macs)
        if self._record.spent(PHASES) + self._outstanding() + expected > self._limit:
            return None
        architecture_id = self._record.add_architecture(
            architecture, params=cost.params, macs=cost.macs
        )
        trial_id = self._record.add_trial(
            architecture_id, fidelity=fidelity_of(self._plan), seed=self._seed, origin=self._phase
        )
        return self._record.trial(trial_id)

    def _outstanding(self) -> float:
        now = time.monotonic()
        return sum(
            max(running.expected_seconds - (now - running.started), 0.0)
            for running in self._running.values()
        )


def fidelity_of(plan: Plan) -> str:
    """Name the fidelity of networks that are trained alone during the search."""
    return f"train-{plan.trial_epochs}e"


def predicted_seconds(record: Record, plan: Plan, macs: int) -> float:
    """Predict the device-seconds of a trial, corrected by what finished trials really took."""
    model = StepModel(plan.step_seconds)
    done = [
        trial
        for trial in record.trials(fidelity=fidelity_of(plan), state="done")
        if trial.num_attempts == 1
    ]
    ratios = [trial.seconds / (model(trial.macs) * plan.trial_steps) for trial in done]
    correction = statistics.median(ratios) if ratios else 1.0
    return model(macs) * plan.trial_steps * correction
