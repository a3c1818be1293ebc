"""Trials that train: which one is next, whether it fits in the budget, and what became of it."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from search.plan import PHASES, Plan, StepModel
from search.record.record import Outcome as AttemptOutcome
from search.record.record import Record, Trial
from search.results.fidelity import trained_alone
from search.run_folder.disk import FullDiskError
from search.run_folder.storage import Files, SharedFolder, StorageError
from search.scheduling.tasks import START_SECONDS, Outcome, TrialTask, checkpoint_name
from searchspace.architecture import Architecture
from searchspace.cost import count

# A trial (or judgement) that the cluster lost so often has failed.
MAX_LOST = 3
# A trial hangs that takes so many times longer than predicted, or than any other took between two
# epochs, and at least so long. Predictions from measured steps alone may be far off.
HANG_FACTOR = 3.0
HANG_FACTOR_AT_FIRST = 10.0
MIN_KNOWN = 5
LEAST_LIMIT_SECONDS = 120.0
# The latest say most: the machine may be busier than it was.
LATEST = 100
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A network that is worth training alone, and for how long."""

    architecture: Architecture
    epochs: int


@dataclass(slots=True)
class _Running:
    attempt_id: int
    started: float
    expected_seconds: float
    macs: int
    placed: float | None = None  # when it had a device
    begun: float | None = None  # when its training began: the first sign of life
    heard: float = 0.0  # when it last gave one
    longest_silence: float = 0.0


class TrialRunner:
    """Hands architectures to the executor as trials while the budget lasts.

    Args:
        record: Of the run; every hand-out and every result is written at once.
        plan: For the expected costs and the rungs.
        folder: Of the run.
        files: Where trials keep their checkpoints; None for ``folder``.
        phase: What the time is charged to.
        seed: Of the trainings.
        choose: The next network, or None when there is none.
        limit_seconds: The budget spent may not pass this for the sake of a new trial.
        interrupted: Whether the user asked to stop.
        on_event: Called with a line of text about each finished trial.
        on_end: Called with every trial that has ended, e.g. to promote by it.
        clock: Seconds; for how long trials have been running.
        start_seconds: That a worker takes to start, for as long as none is warm.
    """

    def __init__(
        self,
        *,
        record: Record,
        plan: Plan,
        folder: Path,
        files: Files | None = None,
        phase: str,
        seed: int,
        choose: Callable[[], Choice | None],
        limit_seconds: float,
        interrupted: Callable[[], bool],
        on_event: Callable[[str], None],
        on_end: Callable[[Trial], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        start_seconds: float = 0.0,
    ) -> None:
        self._start_seconds = start_seconds
        self._record, self._plan, self._folder = record, plan, folder
        self._files = files or SharedFolder(folder)
        self._phase, self._seed, self._choose = phase, seed, choose
        self._limit, self._interrupted, self._on_event = limit_seconds, interrupted, on_event
        self._on_end, self._clock = on_end, clock
        self._running: dict[int, _Running] = {}
        self._held, self._idle, self._idle_attempt = 0, 0, 0
        self._next: Choice | None = None
        self._costs = TrialCosts(plan, record.trials(state="done"))
        self._num_placed = 0
        rungs = {trained_alone(epochs): epochs for epochs in plan.rungs}
        self._waiting = deque(
            (trial, rungs[trial.fidelity])
            for trial in record.trials(state="waiting")
            if trial.fidelity in rungs
        )

    def next(self) -> TrialTask | None:
        """Start the next trial: one that was interrupted before, else a new choice."""
        if self._interrupted():
            return None
        if self._waiting:
            trial, epochs = self._waiting[0]
            if not self._fits(trial.macs, epochs):
                return None
            self._waiting.popleft()
            return self._start(trial, epochs)
        # Kept until it starts, so that a choice that does not fit now is not lost.
        self._next = self._next or self._choose()
        if self._next is None:
            return None
        cost, epochs = count(self._next.architecture), self._next.epochs
        if not self._fits(cost.macs, epochs):
            return None
        with self._record.together():
            architecture_id = self._record.add_architecture(
                self._next.architecture, params=cost.params, macs=cost.macs
            )
            trial_id = self._record.add_trial(
                architecture_id, fidelity=trained_alone(epochs), seed=self._seed, origin=self._phase
            )
            task = self._start(self._record.trial(trial_id), epochs)
        self._next = None
        return task

    def started(self, task: TrialTask) -> None:
        """Take note that a trial has a device, on which its worker starts."""
        self._running[task.trial_id].placed = self._listened()
        self._num_placed += 1

    def heard(self, task: TrialTask) -> None:
        """Take note of a sign of life: a trial's training begins, or has finished an epoch."""
        running, now = self._running[task.trial_id], self._listened()
        if running.begun is None:
            running.begun = now
        else:
            running.longest_silence = max(running.longest_silence, now - running.heard)
        running.heard = now

    def overdue(self, task: TrialTask) -> str | None:
        """Say why a trial is taken to hang, by what trials have taken until now."""
        running, now = self._running[task.trial_id], self._listened()
        if running.begun is None:
            # Imports and images may take longer than a whole training.
            is_late = running.placed is not None and now - running.placed > START_SECONDS
            return f"not ready within {START_SECONDS:.0f} s" if is_late else None
        expected = self._costs.predict_training(running.macs, task.epochs)
        limit = max(self._costs.hang_factor(task.epochs) * expected, LEAST_LIMIT_SECONDS)
        if now - running.begun > limit:
            return f"no end within its limit of {limit:.0f} s"
        silence = self._costs.longest_silence(running.macs, task.epochs)
        limit = max(HANG_FACTOR * silence, LEAST_LIMIT_SECONDS)
        if now - running.heard > limit:
            return f"no epoch within its limit of {limit:.0f} s"
        return None

    def hold(self, devices: int) -> None:
        """Charge devices that are kept without a trial as well, from now on."""
        self._held = devices
        self._charge_idle()

    def settle(
        self, task: TrialTask, *, outcome: Outcome, values: dict[str, float], cause: str | None
    ) -> None:
        """Write a trial's result and the end of its attempt.

        Raises:
            FullDiskError: If the trial ended because of a full disk: nothing else would do better.
            StorageError: If it was lost again and again because the storage does not answer.
        """
        ends, cause = self._judge_end(task, outcome, cause)
        if ends == "done":
            self.heard(task)
        running = self._running.pop(task.trial_id)
        if values and task.micro_batches > 1:
            values = {**values, "micro_batches": task.micro_batches}
        with self._record.together():
            self._record.finish_attempt(
                running.attempt_id, outcome=ends, values=values or None, cause=cause
            )
            self._charge_idle()
        if ends in ("done", "failed"):
            self._files.remove(checkpoint_name(task.trial_id))
        trial = self._record.trial(task.trial_id)
        if ends == "done" and trial.num_attempts == 1:
            self._costs.add(running.macs, task.epochs, trial.seconds)
            if running.begun is not None and running.heard > running.begun:
                lasted = running.heard - running.begun
                self._costs.add_training(running.macs, task.epochs, lasted)
                self._costs.add_silence(running.macs, task.epochs, running.longest_silence)
        elif trial.state == "waiting":
            self._waiting.append((trial, task.epochs))
        if self._on_end is not None:
            self._on_end(trial)
        text = f"{values['top1']:.1f} %" if values else f"{ends}: {cause}"
        self._on_event(
            f"{self._phase}: network {trial.architecture_id} trained alone for "
            f"{task.epochs} epochs: {text}"
        )
        if outcome == "full disk":
            raise FullDiskError(f"{self._folder}: {cause}")
        if outcome == "no storage" and ends == "interrupted" and not self.should_stop():
            raise StorageError(cause)

    def has_lost(self) -> bool:
        """Tell whether a trial that was lost waits to be handed out again, and fits."""
        return bool(self._waiting) and self._fits(self._waiting[0][0].macs, self._waiting[0][1])

    def should_stop(self) -> bool:
        """Tell whether running trials must end: the user says so, or the budget is gone."""
        return self._interrupted() or self._record.spent(PHASES) >= self._plan.last_call_seconds

    def _judge_end(
        self, task: TrialTask, outcome: Outcome, cause: str | None
    ) -> tuple[AttemptOutcome, str | None]:
        """Decide what an outcome means for the attempt: only the cluster's faults are retried."""
        if outcome in ("done", "failed"):
            return ("done", None) if outcome == "done" else ("failed", cause)
        if outcome == "out of memory":
            again = ", with half a batch in memory too" if task.micro_batches > 1 else ""
            cause = f"{OUT_OF_MEMORY}{again}: {cause}"
        if outcome == "full disk" or self.should_stop():
            return "interrupted", cause
        if outcome == "out of memory":
            return ("failed" if task.micro_batches > 1 else "lost"), cause
        lost = self._record.count_lost(task.trial_id) + 1
        if lost >= MAX_LOST and outcome == "no storage":
            return "interrupted", cause  # not the network's fault
        if lost >= MAX_LOST:
            return "failed", f"lost {lost} times; last: {cause}"
        return "lost", cause

    def _start(self, trial: Trial, epochs: int) -> TrialTask:
        expected = self._expected(trial.macs, epochs)
        with self._record.together():
            attempt = self._record.start_attempt(self._phase, devices=1, trial_id=trial.id)
            self._running[trial.id] = _Running(attempt, self._clock(), expected, trial.macs)
            self._charge_idle()
        # Whatever ended later attempts: it will need as much memory again.
        causes = self._record.causes(trial.id)
        needs_less = any(cause.startswith(OUT_OF_MEMORY) for cause in causes)
        return TrialTask(
            trial_id=trial.id,
            architecture=trial.architecture,
            epochs=epochs,
            seed=trial.seed,
            micro_batches=2 if needs_less else 1,
        )

    def _listened(self) -> float:
        """Tell the time by a clock that stands still while the record waits for its database."""
        return self._clock() - self._record.waited_seconds

    def _charge_idle(self) -> None:
        """Keep an attempt open for the devices that are kept and have no trial."""
        idle = max(self._held - len(self._running), 0)
        if idle == self._idle:
            return
        with self._record.together():
            if self._idle:
                self._record.finish_attempt(self._idle_attempt, outcome="done")
            if idle:
                self._idle_attempt = self._record.start_attempt(self._phase, devices=idle)
        self._idle = idle

    def _fits(self, macs: int, epochs: int) -> bool:
        expected = self._expected(macs, epochs)
        return self._record.spent(PHASES) + self._outstanding() + expected <= self._limit

    def _expected(self, macs: int, epochs: int) -> float:
        """Predict the device-seconds of a trial, with its worker's start where none is warm yet."""
        expected = self._costs.predict(macs, epochs)
        if self._num_placed >= max(self._held, 1):
            return expected
        # What earlier trials took has a part of their workers' starts in it.
        return max(expected, self._start_seconds + self._costs.planned(macs, epochs))

    def _outstanding(self) -> float:
        now = self._clock()
        return sum(
            max(running.expected_seconds - (now - running.started), 0.0)
            for running in self._running.values()
        )


class TrialCosts:
    """Predicts the device-seconds of trials, corrected by what finished ones really took.

    Args:
        plan: For the measured step times and the rungs.
        trials: Of any fidelity; those that were done in one attempt teach.
    """

    def __init__(self, plan: Plan, trials: Iterable[Trial]) -> None:
        self._plan, self._model = plan, StepModel(plan.step_seconds)
        self._ratios: dict[int, deque[float]] = {e: deque(maxlen=LATEST) for e in plan.rungs}
        # Without what workers took to start, which the first trials of a phase wait for.
        self._trainings: dict[int, deque[float]] = {e: deque(maxlen=LATEST) for e in plan.rungs}
        self._silences: dict[int, deque[float]] = {e: deque(maxlen=LATEST) for e in plan.rungs}
        self._medians: dict[tuple[int, int], float | None] = {}
        rungs = {trained_alone(epochs): epochs for epochs in plan.rungs}
        for trial in trials:
            if trial.fidelity in rungs and trial.state == "done" and trial.num_attempts == 1:
                self.add(trial.macs, rungs[trial.fidelity], trial.seconds)

    def add(self, macs: int, epochs: int, seconds: float) -> None:
        """Learn from a trial that took ``seconds``."""
        self._ratios[epochs].append(seconds / self.planned(macs, epochs))
        self._medians.clear()

    def add_training(self, macs: int, epochs: int, seconds: float) -> None:
        """Learn from a trial whose training itself took ``seconds``."""
        self._trainings[epochs].append(seconds / self.planned(macs, epochs))
        self._medians.clear()

    def add_silence(self, macs: int, epochs: int, seconds: float) -> None:
        """Learn from a trial that was silent for ``seconds`` at most."""
        self._silences[epochs].append(seconds / self.planned(macs, epochs))

    def predict(self, macs: int, epochs: int) -> float:
        """Return device-seconds; a rung without results goes by the others'."""
        return self.planned(macs, epochs) * (self._median(self._ratios, epochs) or 1.0)

    def predict_training(self, macs: int, epochs: int) -> float:
        """Return the seconds of a training once its worker is ready, for a time limit.

        Without any that was seen from its beginning it is what the device is charged for.
        """
        ratio = self._median(self._trainings, epochs)
        return self.predict(macs, epochs) if ratio is None else self.planned(macs, epochs) * ratio

    def longest_silence(self, macs: int, epochs: int) -> float:
        """Return the longest seconds between two epochs to expect, as seen so far."""
        known = self._silences[epochs]
        if len(known) < MIN_KNOWN:
            return math.inf
        return self.planned(macs, epochs) * max(known)

    def hang_factor(self, epochs: int) -> float:
        """Return how many times longer than predicted a trial of a rung may take."""
        known = len(self._ratios[epochs]) >= MIN_KNOWN
        return HANG_FACTOR if known else HANG_FACTOR_AT_FIRST

    def _median(self, ratios: dict[int, deque[float]], epochs: int) -> float | None:
        """Return the median ratio of a rung, or of all where it has none; None without any."""
        key = (id(ratios), epochs)
        if key not in self._medians:
            known = [ratios[epochs]] if ratios[epochs] else ratios.values()
            found = [ratio for latest in known for ratio in latest]
            self._medians[key] = statistics.median(found) if found else None
        return self._medians[key]

    def planned(self, macs: int, epochs: int) -> float:
        """Return device-seconds by the measured steps alone."""
        return self._model(macs) * self._plan.trial_steps * epochs / self._plan.trial_epochs
