"""Trials that train: which one is next, whether it fits in the budget, and what became of it."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from search.plan import PHASES, Plan
from search.record import AttemptOutcome, Measured, Record, Trial
from search.results import (
    is_trained_alone,
    searched_fidelities,
    trained_alone,
    trial_fidelities,
)
from search.run_folder import Files, FullDiskError, SharedFolder, StorageError
from search.scheduling.looks import AwakeClock
from search.scheduling.looks import late_seconds as kept_free
from search.scheduling.tasks import START_SECONDS, Outcome, TrialTask, checkpoint_name
from search.scheduling.trial_costs import HANG_FACTOR, TrialCosts
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.quantity import counted

# A trial (or judgement) that the cluster lost so often has failed.
MAX_LOST = 3
# No trial hangs that takes less, whatever was predicted.
LEAST_LIMIT_SECONDS = 120.0
OUT_OF_MEMORY = "out of memory"
# A large plan is made anew where epochs take so many times longer than planned. So many trials are
# to tell, before all the others start, or so large a part of them: one may hang.
OFF_PACE, PROBES, PROBED_SHARE = 1.5, 8, 0.75
# The first epoch of a training has the compilation of kernels in it: where there are several, a
# later one tells more.
SEVERAL_EPOCHS = 4
# The part of the time left that the epochs of a run's last training may take: the network is
# judged then, and epochs differ.
LAST_SHARE = 0.8


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
    wanted: int  # epochs
    devices: int = 1
    waits: bool = False  # for its devices: those that are held are other trials'
    is_held: bool = False  # and was seen to have them
    placed: float | None = None  # when its worker started
    begun: float | None = None  # when its training began: the first sign of life
    heard: float = 0.0  # when it last gave one
    longest_silence: float = 0.0
    epochs: int = 0  # that it has told of in this attempt
    warm: float = 0.0  # when the first of them had ended

    @property
    def epoch_seconds(self) -> float | None:
        """Seconds of its epochs so far; None before the first has ended."""
        return (self.heard - self.begun) / self.epochs if self.begun and self.epochs else None


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
        clock: Seconds; for how long trials have been running. None takes this machine's, and
            counts no silence while this process was stopped, see `AwakeClock`.
        start_seconds: That a worker takes to start, for as long as none is warm.
        probes: Whether a large plan's first trials tell their pace before others start, so that
            it can be made anew (`off_pace`).
        stop_seconds: Of the budget spent, after which running trials must end; None takes the
            plan's last call.
        rescues: Whether a run that has no answer yet gets one from a shorter training, where what
            is left is too little for one of the plan's.
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
        clock: Callable[[], float] | None = None,
        start_seconds: float = 0.0,
        probes: bool = True,
        stop_seconds: float | None = None,
        rescues: bool = False,
    ) -> None:
        self._stop = plan.last_call_seconds if stop_seconds is None else stop_seconds
        self._is_over = False
        self._rescues = rescues
        self._shorter: deque[Choice] = deque()
        self._start_seconds = start_seconds
        self._record, self._plan, self._folder = record, plan, folder
        self._files = files or SharedFolder(folder)
        self._phase, self._seed, self._choose = phase, seed, choose
        self._limit, self._interrupted, self._on_event = limit_seconds, interrupted, on_event
        self._on_end, self._clock = on_end, clock or time.monotonic
        self._listened: Callable[[], float] = lambda: record.working_time(self._clock)
        if clock is None:
            self._listened = AwakeClock(self._listened)
        self._running: dict[int, _Running] = {}
        self._held, self._idle, self._idle_attempt = 0, 0, 0
        self._next: Choice | None = None
        done = record.trials(state="done")
        self._has_answer = bool(searched_fidelities(done))
        # Networks of which a training, of whatever length, has failed.
        self._failed = {
            trial.key for trial in record.trials(state="failed") if is_trained_alone(trial.fidelity)
        }
        self._costs = TrialCosts(plan, done)
        # A large plan is watched until some trainings have told their pace.
        self._is_watched = probes and plan.is_large and not self._costs.has_ended
        self._ended_paces: list[float] = []
        self._num_placed = 0
        self._off_pace: float | None = None
        rungs = trial_fidelities(plan)
        self._waiting = deque(
            (trial, rungs[trial.fidelity])
            for trial in record.trials(state="waiting")
            if trial.fidelity in rungs
        )

    def wanted(self, most: int) -> int | None:
        """Tell how many devices the next trial takes, of ``most`` that there are.

        0 where there is none, and None where it waits for the pace of the first ones.
        """
        if self._interrupted() or self.off_pace is not None:
            return 0
        if self._is_watched and self._num_probing >= PROBES:
            return None
        if self._shorter:
            return self._devices_for(self._shorter[0].epochs, most)
        if self._waiting:
            return self._devices_for(self._waiting[0][1], most)
        # Kept until it starts, so that a choice that does not fit now is not lost.
        self._next = self._next or self._choose()
        return 0 if self._next is None else self._devices_for(self._next.epochs, most)

    def next(self, most: int | None = None) -> TrialTask | None:
        """Start the next trial: one that was interrupted before, else a new choice.

        Args:
            most: Devices that there are; None for as many as the plan has for a trial.
        """
        if self._interrupted() or self.off_pace is not None:
            return None
        if self._shorter:
            return self._begin(self._shorter.popleft(), most)
        while self._waiting:
            trial, epochs = self._waiting[0]
            if self._fits(trial.macs, epochs):
                self._waiting.popleft()
                return self._start(trial, epochs, most)
            if not self._has_failed(trial.key):
                return self._begin_last(trial.architecture, epochs, most)
            self._waiting.popleft()  # a larger budget takes it up
        while (choice := self._next or self._choose()) is not None:
            self._next = None
            if self._fits(count(choice.architecture).macs, choice.epochs):
                return self._begin(choice, most)
            if not self._has_failed(choice.architecture.key):
                self._next = choice
                return self._begin_last(choice.architecture, choice.epochs, most)
        return None

    def _has_failed(self, key: str) -> bool:
        """Tell whether a training of a network has failed, where another one is tried instead."""
        return self._needs_answer and key in self._failed

    def _begin(self, choice: Choice, most: int | None) -> TrialTask:
        cost, epochs = count(choice.architecture), choice.epochs
        with self._record.together():
            architecture_id = self._record.add_architecture(
                choice.architecture, params=cost.params, macs=cost.macs
            )
            trial_id = self._record.add_trial(
                architecture_id,
                fidelity=trained_alone(epochs, self._plan.images_of(epochs)),
                seed=self._seed,
                origin=self._phase,
            )
            # A shorter training that was lost waits as well.
            self._waiting = deque(one for one in self._waiting if one[0].id != trial_id)
            return self._start(self._record.trial(trial_id), epochs, most)

    def _begin_last(
        self, architecture: Architecture, epochs: int, most: int | None
    ) -> TrialTask | None:
        """Begin the longest training of a network that fits, where nothing else has an answer."""
        if not self._needs_answer or self._running:
            return None
        macs = count(architecture).macs
        spare = 1 / LAST_SHARE - 1
        fitting = (
            n
            for n in range(epochs - 1, 0, -1)
            if self._fits(macs, n, spare * self._costs.planned(macs, n))
        )
        found = next(fitting, None)
        if found is None:
            return None
        self._say_shorter(architecture, epochs, found)
        return self._begin(Choice(architecture=architecture, epochs=found), most)

    @property
    def _needs_answer(self) -> bool:
        return self._rescues and not self._has_answer

    def gives_up(self, task: TrialTask) -> bool:
        """Tell, after an epoch, whether a trial ends here, and its worker takes up another one.

        That is so where the run has no answer, no trial under way will end in time, and a shorter
        one of the same network can, which is next then.
        """
        running = self._running[task.trial_id]
        if not self._needs_answer or any(map(self._can_end, self._running.values())):
            return False
        if self._has_failed(task.architecture.key):
            return False
        pace = running.epoch_seconds
        assert pace is not None  # else it could end
        left = LAST_SHARE * self._left_seconds() - (self._listened() - running.heard)
        epochs = min(int(left / max(pace, 1e-9)), task.epochs - 1)
        if epochs < 1:
            return False
        self._say_shorter(task.architecture, task.epochs, epochs)
        self._shorter.append(Choice(architecture=task.architecture, epochs=epochs))
        return True

    def _can_end(self, running: _Running) -> bool:
        """Tell whether a trial can end in time, by its own epochs; one without any can."""
        if running.epoch_seconds is None:
            return True
        left = running.epoch_seconds * (running.wanted - running.epochs)
        return left - (self._listened() - running.heard) <= self._left_seconds()

    def _left_seconds(self) -> float:
        """Return the seconds by the clock until running trials must end."""
        held = max(self._held, sum(one.devices for one in self._running.values()), 1)
        return (self._stop - self._record.spent(PHASES)) / held

    def _say_shorter(self, architecture: Architecture, planned: int, epochs: int) -> None:
        self._on_event(
            f"{self._phase}: what is left of the budget is too little for a training of {planned} "
            f"epochs, and no network has been judged: one is trained for {epochs}."
        )

    def started(self, task: TrialTask) -> None:
        """Take note that a trial has a device, on which its worker starts."""
        running = self._running[task.trial_id]
        running.placed, running.is_held = self._listened(), True
        self._num_placed += 1

    def heard(self, task: TrialTask) -> None:
        """Take note of a sign of life: a trial's training begins, or has finished an epoch."""
        running, now = self._running[task.trial_id], self._listened()
        if running.begun is None:
            running.begun = now
        else:
            running.longest_silence = max(running.longest_silence, now - running.heard)
            # The end of a trial is told after that of its last epoch.
            running.epochs = min(running.epochs + 1, running.wanted)
            running.warm = running.warm or now
        running.heard = now
        if running.begun is not None and running.epoch_seconds is not None:
            start = running.begun - (running.begun if running.placed is None else running.placed)
            self._costs.foresee(
                task.trial_id,
                running.macs,
                task.epochs,
                training=running.epoch_seconds * task.epochs * task.devices,
                start=start * task.devices,
            )

    def overdue(self, task: TrialTask) -> str | None:
        """Say why a trial is taken to hang, by what trials have taken until now."""
        running, now = self._running[task.trial_id], self._listened()
        if running.begun is None:
            # Imports and images may take longer than a whole training.
            is_late = running.placed is not None and now - running.placed > START_SECONDS
            return f"not ready within {START_SECONDS:.0f} s" if is_late else None
        # By the clock: several devices end a training sooner.
        expected = self._costs.predict_training(running.macs, task.epochs) / task.devices
        limit = max(self._costs.hang_factor(task.epochs) * expected, LEAST_LIMIT_SECONDS)
        if now - running.begun > limit:
            return f"no end within its limit of {limit:.0f} s"
        silence = self._costs.longest_silence(running.macs, task.epochs) / task.devices
        limit = max(HANG_FACTOR * silence, LEAST_LIMIT_SECONDS)
        if now - running.heard > limit:
            return f"no epoch within its limit of {limit:.0f} s"
        return None

    def hold(self, devices: int) -> None:
        """Charge devices that are held without a trial as well, from now on.

        A trial that waits for devices which are not there, as those of a node that has just died,
        is charged from when it has them.
        """
        self._held = devices
        left = devices - sum(one.devices for one in self._running.values() if one.is_held)
        for running in self._running.values():
            if running.is_held:
                continue
            running.waits = running.waits or running.devices > left
            if running.devices <= left:
                left -= running.devices
                running.is_held = True
                if running.waits:
                    self._record.restart_attempt(running.attempt_id)
        self._charge_idle()

    def settle(
        self, task: TrialTask, *, outcome: Outcome, measured: Measured | None, cause: str | None
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
        self._costs.forget(task.trial_id, task.epochs)
        if measured and task.micro_batches > 1:
            measured = replace(measured, micro_batches=task.micro_batches)
        with self._record.together():
            self._record.finish_attempt(
                running.attempt_id,
                outcome=ends,
                measured=measured,
                cause=cause,
                was_held=running.is_held or not running.waits,
            )
            self._charge_idle()
        if ends in ("done", "failed"):
            self._files.remove(checkpoint_name(task.trial_id))
        trial = self._record.trial(task.trial_id)
        if ends == "done":
            self._has_answer = True
            self._learn(task, running, trial)
        elif ends == "failed":
            self._failed.add(trial.key)
        elif trial.state == "waiting":
            self._waiting.append((trial, task.epochs))
        if self._on_end is not None:
            self._on_end(trial)
        text = f"{measured.quality:.1f} %" if measured else f"{ends}: {cause}"
        self._on_event(
            f"{self._phase}: network {trial.architecture_id} trained alone for "
            f"{counted(task.epochs, 'epoch')}: {text}"
        )
        if outcome == "full disk":
            raise FullDiskError(f"{self._folder}: {cause}")
        if outcome == "no storage" and ends == "interrupted" and not self.should_stop():
            raise StorageError(cause)

    def _learn(self, task: TrialTask, running: _Running, trial: Trial) -> None:
        """Learn from a trial that is done what others will take."""
        if self._is_watched and running.begun is not None:
            self._ended_paces.append(self._pace(running))
        if trial.num_attempts > 1:
            return
        self._costs.add(running.macs, task.epochs, trial.seconds)
        if running.begun is not None and running.heard > running.begun:
            lasted = (running.heard - running.begun) * task.devices
            self._costs.add_training(running.macs, task.epochs, lasted)
            silence = running.longest_silence * task.devices
            self._costs.add_silence(running.macs, task.epochs, silence)

    def has_lost(self) -> bool:
        """Tell whether a trial that was lost waits to be handed out again, and fits."""
        if self._shorter:
            return True
        return bool(self._waiting) and self._fits(self._waiting[0][0].macs, self._waiting[0][1])

    @property
    def off_pace(self) -> float | None:
        """How many times slower than planned the first trainings are; None where that is near.

        A large plan is made anew then, for shorter trainings: with these one phase would take what
        the others were to have. Where a training has ended, it is too late for that: networks are
        compared at equal lengths.
        """
        if self._is_watched and (pace := self._probed()) is not None:
            self._is_watched = False
            self._off_pace = pace if pace > OFF_PACE else None
        return self._off_pace

    @property
    def _num_probing(self) -> int:
        return len(self._running) + len(self._ended_paces)

    def _probed(self) -> float | None:
        """Return the mean pace of the first trials; None for as long as too few tell it."""
        told = [one for one in self._running.values() if one.epochs]
        warm = sum(one.epochs >= (2 if one.wanted >= SEVERAL_EPOCHS else 1) for one in told)
        warm += len(self._ended_paces)
        if not warm or warm < PROBED_SHARE * min(self._num_probing, PROBES):
            return None
        # The mean, as what all of them cost: a cluster may have devices of several kinds.
        return statistics.mean([*self._ended_paces, *(self._pace(one) for one in told)])

    def _pace(self, running: _Running) -> float:
        """Return how many times longer than planned an epoch takes.

        The first one has the compilation of kernels in it, so it counts where there is no other.
        """
        assert running.begun is not None
        planned = self._costs.planned(running.macs, running.wanted) / running.wanted
        if running.epochs == 1:
            return (running.heard - running.begun) * running.devices / planned
        taken = (running.heard - running.warm) * running.devices
        return taken / (planned * (running.epochs - 1))

    def should_stop(self, late_seconds: float = 0.0) -> bool:
        """Tell whether running trials must end: the user says so, the budget or plan is gone.

        Args:
            late_seconds: In which this may be asked again, see `search.scheduling.looks`.
        """
        if self._interrupted() or self.off_pace is not None:
            return True
        devices = max(self._held, sum(one.devices for one in self._running.values()))
        late = kept_free(late_seconds, devices=devices, budget_seconds=self._plan.budget_seconds)
        # It does not change its mind: what was ended for it would begin again.
        self._is_over = self._is_over or self._record.spent(PHASES) + late >= self._stop
        return self._is_over

    def _judge_end(
        self, task: TrialTask, outcome: Outcome, cause: str | None
    ) -> tuple[AttemptOutcome, str | None]:
        """Decide what an outcome means for the attempt: only the cluster's faults are retried."""
        if outcome in ("done", "failed"):
            return ("done", None) if outcome == "done" else ("failed", cause)
        if outcome == "out of memory":
            again = ", with half a batch in memory too" if task.micro_batches > 1 else ""
            cause = f"{OUT_OF_MEMORY}{again}: {cause}"
        if outcome in ("full disk", "not begun") or self.should_stop():
            return "interrupted", cause
        if outcome == "out of memory":
            return ("failed" if task.micro_batches > 1 else "lost"), cause
        lost = self._record.count_lost(task.trial_id) + 1
        if lost >= MAX_LOST and outcome == "no storage":
            return "interrupted", cause  # not the network's fault
        if lost >= MAX_LOST:
            return "failed", f"lost {lost} times; last: {cause}"
        return "lost", cause

    def _devices_for(self, epochs: int, most: int | None) -> int:
        """Return how many devices train a network of a rung: after a loss there may be fewer."""
        devices = self._plan.devices_of(epochs)
        while most is not None and devices > max(most, 1):
            devices //= 2
        return devices

    def _start(self, trial: Trial, epochs: int, most: int | None) -> TrialTask:
        expected, devices = self._expected(trial.macs, epochs), self._devices_for(epochs, most)
        with self._record.together():
            attempt = self._record.start_attempt(self._phase, devices=devices, trial_id=trial.id)
            self._running[trial.id] = _Running(
                attempt, self._clock(), expected, trial.macs, epochs, devices
            )
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
            images=self._plan.images_of(epochs),
            devices=devices,
        )

    def _charge_idle(self) -> None:
        """Keep an attempt open for the devices that are kept and have no trial."""
        running = sum(one.devices for one in self._running.values() if not one.waits or one.is_held)
        idle = max(self._held - running, 0)
        if idle == self._idle:
            return
        with self._record.together():
            if self._idle:
                self._record.finish_attempt(self._idle_attempt, outcome="done")
            if idle:
                self._idle_attempt = self._record.start_attempt(self._phase, devices=idle)
        self._idle = idle

    def _fits(self, macs: int, epochs: int, spare: float = 0.0) -> bool:
        expected = self._expected(macs, epochs) + spare
        return self._record.spent(PHASES) + self._outstanding() + expected <= self._limit

    def _expected(self, macs: int, epochs: int) -> float:
        """Predict the device-seconds of a trial, with its worker's start where none is warm yet."""
        expected = self._costs.predict(macs, epochs)
        if self._num_placed >= max(self._held, 1):
            return expected
        # What earlier trials took has a part of their workers' starts in it.
        start = self._start_seconds * self._plan.devices_of(epochs)
        return max(expected, start + self._costs.planned(macs, epochs))

    def _outstanding(self) -> float:
        """Predict the device-seconds that running trials will still take, by their own epochs."""
        now, total = self._clock(), 0.0
        for running in self._running.values():
            if running.epoch_seconds is None:
                expected = self._costs.predict(running.macs, running.wanted)
                spent = (now - running.started) * running.devices
                left = max(running.expected_seconds, expected) - spent
            else:
                left = running.epoch_seconds * (running.wanted - running.epochs)
                left = (left - (self._listened() - running.heard)) * running.devices
            total += max(left, 0.0)
        return total
