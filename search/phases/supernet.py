"""The first phase: measure step times, print the plan, train the shared weights to its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from search.cluster import WorkerLostError, call, call_all, form_group
from search.phases.measure import bounded, keep_start
from search.phases.saves import Saves
from search.phases.session import Session
from search.plan import Plan, StepTimes
from search.results import SUPERNET
from search.run_folder import SUPERNET as STORED
from search.scheduling import MAX_LOST, START_SECONDS, BudgetSpent
from supernet.shared_weights import check_supernet

TRAIN_CALL_SECONDS = 2.0
CALL_LIMIT_FACTOR = 30.0
RESCHEDULE_SHARE = 0.05
PACE_SHARE = 0.2
LOOK_EVERY_SECONDS = 2.0


def measure_and_train_supernet(session: Session) -> Plan:
    """Do what is left of the phase; a group that lost a worker is formed again."""
    training = _Training(session)
    lost, saved = 0, -1
    while True:
        try:
            return training.run()
        except WorkerLostError as error:
            lost = lost + 1 if training.saved_step == saved else 1
            saved = training.saved_step
            if lost >= MAX_LOST:
                raise RuntimeError(
                    f"The supernet's workers were lost {lost} times without a step forward; "
                    f"last: {error}. Look into Ray's logs, then go on with --resume."
                ) from error
            session.view.say(f"A worker was lost, going on from the checkpoint: {error}")


class _Training:
    def __init__(self, session: Session) -> None:
        self.session, self.record = session, session.record
        self.saved_step, self.saves = 0, Saves()

    def run(self) -> Plan:
        session = self.session
        is_done = session.state.supernet_is_trained
        exists = _check_checkpoint(session, is_done=is_done)
        if is_done:
            return session.make_plan()
        job, devices = self._job_for(session.wait_for_devices())
        try:
            session.check_start(devices)
        except BudgetSpent as spent:
            # Written down before a checkpoint is.
            if not (exists and session.state.supernet_pace and session.may_judge):
                raise
            session.view.say(f"{spent} The shared weights are judged by as they are.")
            return self._end(session.make_plan())
        # What the workers take to start and to end is charged as well.
        with (
            ExitStack() as charges,
            session.cluster.actors(session.work.supernet_worker, job, devices) as workers,
        ):
            with bounded(session) as may_wait, session.charged("measure", devices):
                self._measure(workers, may_wait)
            charges.enter_context(session.charged(SUPERNET, devices))
            plan = session.make_plan()
            session.show_plan(plan)
            self._train(workers, plan)
        return self._end(plan)

    def _end(self, plan: Plan) -> Plan:
        self.session.state.supernet_is_trained = True
        return self.session.revise(plan, after=SUPERNET)

    def _job_for(self, devices: int) -> tuple[Any, int]:
        """Describe the work to so many devices; return it, and how many of them have a part in it.

        The batch and its shards are those of the devices that the run was begun on.
        """
        session = self.session
        if session.work.for_group is None:
            return session.job, devices
        first = session.state.supernet_devices
        if first is None:
            first = session.state.supernet_devices = devices
        job, most = session.work.for_group(session.job, session.data, first)
        if devices > most:
            session.view.say(
                f"The supernet trains on {most} of {devices} devices: its batch has {most} shards, "
                f"as the run was begun on {first}."
            )
        return job, min(devices, most)

    def _measure(self, workers: list[Any], may_wait: Callable[[], None]) -> None:
        """Let the workers find each other; the first time, measure what steps take."""
        place = self.session.cluster.meeting_place
        if self.session.state.times is not None:
            tick = self._group_tick(len(workers), self.session.tick("measure", may_stop=True))
            form_group(workers, meeting_place=place, while_waiting=tick)
            return
        tick, started = self._group_tick(len(workers), may_wait), time.monotonic()
        times: StepTimes = call(workers[0], "measure", while_waiting=tick)
        keep_start(self.session, time.monotonic() - started, times)
        form_group(workers, meeting_place=place, while_waiting=tick)
        # All at once: together they are slower than one alone is on its share.
        together = call_all(workers, "measure_supernet", while_waiting=tick)
        times = replace(times, supernet_step=max(together))
        self.session.state.times = times

    def _train(self, workers: list[Any], plan: Plan) -> None:
        session = self.session
        tick = self._group_tick(len(workers), session.tick(SUPERNET))
        total = plan.supernet_steps
        step = self._start(workers, total, tick)
        self.saved_step, self.saves = step, Saves()
        pace = self._pace() / len(workers)  # seconds a step
        if step:
            total = self._fitting(plan, step, pace, len(workers))
            call_all(workers, "reschedule", total, while_waiting=tick)
        is_first = True
        while step < total:
            started = self.record.working_time()
            steps = max(round(TRAIN_CALL_SECONDS / pace), 1)
            # The first call starts the processes that make batches, and compiles kernels.
            least = START_SECONDS if is_first else TRAIN_CALL_SECONDS * CALL_LIMIT_FACTOR
            limit = max(CALL_LIMIT_FACTOR * steps * pace, least)
            progress = call_all(workers, "train", steps, while_waiting=tick, limit_seconds=limit)[0]
            measured = (self.record.working_time() - started) / (progress.step - step)
            pace += (measured - pace) * (0 if is_first else PACE_SHARE)
            step, is_first = progress.step, False
            # The schedule follows the pace: it ends earlier, or later, than was planned.
            fitting = self._fitting(plan, step, pace, len(workers))
            if step < total and abs(fitting - total) > total * RESCHEDULE_SHARE:
                total = fitting
                call_all(workers, "reschedule", total, while_waiting=tick)
            session.show(SUPERNET, f"step {step:,} of {total:,}, loss {progress.loss:.3f}")
            if session.stop.requested or self.saves.is_due:
                session.state.supernet_pace = pace * len(workers)
                self._save(workers[0], step, tick, goes_on=not session.stop.requested)
            session.check_stop()
        self._say_length(total, plan.supernet_steps)
        self._save(workers[0], step, tick)

    def _start(self, workers: list[Any], total: int, tick: Callable[[], None]) -> int:
        """Let all workers go on from the checkpoint; return the step that they are at.

        Raises:
            WorkerLostError: If some have read another one than the others: together they would
                add up gradients of different weights. Network file systems show a node what
                others have written after a while only.
        """
        steps: list[int] = call_all(workers, "start", total, while_waiting=tick)
        if len(set(steps)) > 1:
            found = ", ".join(f"{step:,}" for step in sorted(set(steps)))
            raise WorkerLostError(
                "workers that train the supernet together have read different checkpoints, of the "
                f"steps {found}. All nodes must see the run's folder as it is now; where they "
                "cannot, give the run a --storage"
            )
        return steps[0]

    def _save(
        self, worker: Any, step: int, tick: Callable[[], None], *, goes_on: bool = False
    ) -> None:
        with self.saves.timed():
            call(worker, "save", goes_on, while_waiting=tick)
        self.saved_step = step

    def _say_length(self, steps: int, planned: int) -> None:
        if abs(steps - planned) > planned * RESCHEDULE_SHARE:
            kind = "slower" if steps < planned else "faster"
            self.session.view.say(
                f"The machine was {kind} than measured: {steps:,} supernet steps instead of "
                f"{planned:,}."
            )

    def _pace(self) -> float:
        """Return the device-seconds of a step: as it was at the last checkpoint, else measured."""
        state = self.session.state
        assert state.times is not None
        known = state.supernet_pace
        return state.times.supernet_step if known is None else known

    def _fitting(self, plan: Plan, step: int, pace: float, workers: int) -> int:
        """Return at which step the schedule ends if what is left of the share goes on like this."""
        left = (plan.spent_by_end[SUPERNET] - self.session.spent()) / workers
        fitting = step + max(int(left / pace), 1)
        return min(fitting, plan.most_supernet_steps or fitting)

    def _group_tick(self, workers: int, tick: Callable[[], None]) -> Callable[[], None]:
        """Like ``tick``; and a group that has lost a device is given up at once."""
        looked = 0.0

        def group_tick() -> None:
            nonlocal looked
            tick()
            if time.monotonic() - looked > LOOK_EVERY_SECONDS:
                looked = time.monotonic()
                if self.session.cluster.devices < workers:
                    raise WorkerLostError("a node left the cluster")

        return group_tick


def _check_checkpoint(session: Session, *, is_done: bool) -> bool:
    """Compare the checkpoint with its checksums before any device is held for it.

    Returns:
        Whether there is one.

    Raises:
        ValueError: If it is damaged, or gone although it was finished.
    """
    if not session.run.files.has(STORED):
        exists = False
    else:
        folder = session.run.supernet_folder()
        exists = check_supernet(folder) or not any(folder.glob("*.safetensors"))
    if is_done and not exists:
        raise ValueError(
            f"The trained supernet of {session.run.folder} is gone. Restore it from a copy, or "
            "start a new run."
        )
    return exists
