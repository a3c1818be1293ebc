"""``search run``: the main path from images and a budget to a Pareto front, top to bottom.

A run is one folder. Its record (`search.record`) is the truth; everything here can be killed at any
moment and is entered again from the top: each phase asks the record what is left to do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from search.executor import (
    Cluster,
    WorkerDiedError,
    call,
    call_all,
    form_group,
    judge_stream,
    wait_until_ready,
)
from search.heartbeat import Heartbeat
from search.judging import Judging
from search.listings import plan_table
from search.plan import PHASES, Plan
from search.planning import make_job, plan_from_times
from search.progress import ProgressView, StopSignals
from search.promotion import next_promotion
from search.results import SUPERNET, front
from search.run_folder import RunFolder
from search.trials import MAX_ATTEMPTS, TrialRunner, fidelity_of
from search.workers import StepTimes
from searchspace.architecture import Architecture

SAVE_EVERY_SECONDS = 30.0
TRAIN_CALL_SECONDS = 2.0
WORTH_A_JUDGE_SECONDS = 20.0
RESCHEDULE_SHARE = 0.05
PACE_SHARE = 0.2


class Interrupted(Exception):
    """The user asked the run to stop; it can be resumed."""


def run_search(run: RunFolder, console: Console, *, ray_address: str | None = None) -> str | None:
    """Do what is left to do of a run.

    Returns:
        The name of the signal that stopped it, or None when it is done.
    """
    budget = run.settings.parsed_budget
    with (
        Cluster(device=budget.device, address=ray_address) as cluster,
        Heartbeat(run.record),
        StopSignals() as stop,
        ProgressView(
            console,
            budget_seconds=budget.amount_seconds,
            devices=cluster.devices,
            device=budget.device,
        ) as view,
    ):
        search = _Search(run, cluster, stop, view)
        try:
            plan = search.measure_and_train_supernet()
            trust = search.choose_trust_set(plan)
            search.train_trials(plan, "trust", trust)
            search.judge_proposals(plan, "search", trust)
            search.train_trials(plan, "promote", None)
            search.finish(plan)
            run.record.set_meta("phase", "done")
        except Interrupted:
            pass
        return stop.requested


class _Search:
    """The phases of one run; what they know lies in the record."""

    def __init__(
        self, run: RunFolder, cluster: Cluster, stop: StopSignals, view: ProgressView
    ) -> None:
        self.run, self.record, self.settings = run, run.record, run.settings
        self.cluster, self.stop, self.view = cluster, stop, view
        self.budget = self.settings.parsed_budget
        self.job = make_job(self.settings, run.folder, run.data())
        self.space = self.job.space

    def measure_and_train_supernet(self) -> Plan:
        """Measure step times, print the plan, and train the shared weights to the plan's end."""
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._measure_and_train_supernet()
            except WorkerDiedError as error:
                self.view.say(f"A worker died, going on from the checkpoint: {error}")
        return self._measure_and_train_supernet()

    def _measure_and_train_supernet(self) -> Plan:
        if self.record.get_meta(SUPERNET) == "done":
            return self._plan()
        devices = self.cluster.devices
        with self.cluster.supernet_workers(self.job) as workers:
            with self._charged("measure", devices):
                self._measure(workers)
            plan = self._plan()
            self.view.say(plan_table(plan, self.budget.device))
            with self._charged(SUPERNET, devices):
                self._train_supernet(workers, plan)
        self.record.set_meta(SUPERNET, "done")
        return plan

    def _measure(self, workers: list[Any]) -> None:
        """Let the workers find each other; the first time, measure what steps take."""
        tick = self._tick("measure")
        if self.record.get_meta("times") is not None:
            form_group(workers, while_waiting=tick)
            return
        times: StepTimes = call(workers[0], "measure", while_waiting=tick)
        form_group(workers, while_waiting=tick)
        # Together they are slower than one alone is on its share.
        together = call_all(workers, "measure_supernet", while_waiting=tick)
        times = replace(times, supernet_step=max(together))
        self.record.set_meta("times", asdict(times))

    def choose_trust_set(self, plan: Plan) -> list[Architecture]:
        """Name the networks that span the space: each mixer alone, then random ones."""
        rng = random.Random(f"trust/{self.settings.seed}")
        chosen = {
            architecture.key: architecture
            for _, architecture in self.space.single_mixer_architectures()
            if self.space.violation(architecture) is None
        }
        for _ in range(plan.num_trust * 4):
            architecture = self.space.sample(rng)
            chosen.setdefault(architecture.key, architecture)
        return list(chosen.values())[: plan.num_trust]

    def train_trials(self, plan: Plan, phase: str, queue: list[Architecture] | None) -> None:
        """Train networks alone: those of the queue, or the best of the front while budget lasts."""
        if self.record.spent(PHASES) >= plan.until[phase]:
            return
        known = {trial.key for trial in self.record.trials(fidelity=fidelity_of(plan))}
        remaining = [a for a in queue or () if a.key not in known]

        def choose() -> Architecture | None:
            if queue is not None:
                return remaining.pop(0) if remaining else None
            return next_promotion(
                self.record.trials(),
                low=SUPERNET,
                high=fidelity_of(plan),
                objectives=self.settings.objectives,
            )

        runner = TrialRunner(
            record=self.record,
            plan=plan,
            folder=self.run.folder,
            phase=phase,
            seed=self.settings.seed,
            choose=choose,
            limit_seconds=plan.until[phase],
            interrupted=lambda: self.stop.requested is not None,
            on_event=self.view.say,
        )
        with self.view.ticking(lambda: self._show(phase)):
            self.cluster.run_trials(self.job, runner, name=phase)
        self._check_stop()

    def judge_proposals(self, plan: Plan, phase: str, first: list[Architecture]) -> None:
        """Search: judge the sampler's proposals with inherited weights, on warm workers."""
        if self.record.spent(PHASES) >= plan.until[phase]:
            return
        with (
            self.cluster.judges(self.job, self.cluster.devices) as judges,
            self._charged(phase, self.cluster.devices),
        ):
            self._judge(judges, plan, phase, first)
        self._check_stop()

    def finish(self, plan: Plan) -> None:
        """Check that extraction is exact, then spend what is left on judging."""
        left = plan.budget_seconds - self.record.spent(PHASES)
        if left <= 0 and self.record.get_meta("extraction"):
            return  # a finished run, resumed
        devices = self.cluster.devices
        # A judge takes seconds to start: one alone, unless there is work for all.
        number = devices if left > devices * WORTH_A_JUDGE_SECONDS else 1
        with self.cluster.judges(self.job, number) as judges, self._charged("finish", number):
            self._check_extraction(judges[0])
            self._judge(judges, plan, "finish", [])
        self._check_stop()

    def _check_extraction(self, judge: Any) -> None:
        trials = self.record.trials()
        if not any(trial.state == "done" for trial in trials):
            return
        members = front(trials, objectives=self.settings.objectives)
        networks = [member.architecture for member in members]
        errors = call(judge, "extraction_errors", networks, while_waiting=self._tick("finish"))
        found = {str(m.id): error for m, error in zip(members, errors, strict=True)}
        self.record.set_meta("extraction", found)

    def _train_supernet(self, workers: list[Any], plan: Plan) -> None:
        tick = self._tick(SUPERNET)
        total = plan.supernet_steps
        step = call_all(workers, "start", total, while_waiting=tick)[0]
        pace = self.record.get_meta("times")["supernet_step"] / len(workers)  # seconds a step
        saved = time.monotonic()
        while step < total:
            started = time.monotonic()
            steps = max(round(TRAIN_CALL_SECONDS / pace), 1)
            progress = call_all(workers, "train", steps, while_waiting=tick)[0]
            measured = (time.monotonic() - started) / (progress.step - step)
            pace += (measured - pace) * PACE_SHARE
            step = progress.step
            # On a machine that is slower than it was measured, the schedule ends earlier.
            left = (plan.until[SUPERNET] - self.record.spent(PHASES)) / len(workers)
            fitting = min(step + max(int(left / pace), 1), plan.supernet_steps)
            if step < total and abs(fitting - total) > total * RESCHEDULE_SHARE:
                total = fitting
                call_all(workers, "reschedule", total, while_waiting=tick)
            self._show(SUPERNET, f"step {step:,} of {total:,}, loss {progress.loss:.3f}")
            if self.stop.requested or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                call(workers[0], "save", while_waiting=tick)
                saved = time.monotonic()
            self._check_stop()
        if total < plan.supernet_steps:
            self.view.say(
                f"The machine was slower than measured: {total:,} supernet steps instead of "
                f"{plan.supernet_steps:,}."
            )
        call(workers[0], "save", while_waiting=tick)

    def _judge(self, judges: list[Any], plan: Plan, phase: str, first: list[Architecture]) -> None:
        """Keep the judges busy with the first architectures, then with the sampler's proposals."""
        judging = Judging(
            record=self.record,
            space=self.space,
            settings=self.settings,
            phase=phase,
            first=first,
            limit_seconds=plan.until[phase],
            judge_seconds=plan.judge_seconds,
            num_judges=len(judges),
            interrupted=lambda: self.stop.requested is not None,
        )
        wait_until_ready(judges, while_waiting=self._tick(phase))
        judge_stream(judges, judging.ask, judging.tell, self._tick(phase))

    def _plan(self) -> Plan:
        """Make the plan from the measured times; what has been trained keeps its length."""
        stored = self.record.get_meta("times")
        points = tuple((int(macs), float(seconds)) for macs, seconds in stored["trial_steps"])
        plan = plan_from_times(
            self.settings,
            StepTimes(**{**stored, "trial_steps": points}),
            self.run.data(),
            devices=self.cluster.devices,
            measured_seconds=self.record.spent_by_phase().get("measure", 0.0),
        )
        first = self.record.get_meta("plan")
        if first is not None:
            plan = replace(
                plan,
                supernet_steps=first["supernet_steps"],
                trial_epochs=first["trial_epochs"],
                trial_steps=first["trial_steps"],
            )
        self.record.set_meta("plan", plan.to_dict())
        return plan

    @contextmanager
    def _charged(self, phase: str, devices: float) -> Iterator[None]:
        """Charge ``devices`` to a phase for as long as the block runs."""
        attempt = self.record.start_attempt(phase, devices=devices)
        try:
            yield
        except BaseException:
            self.record.finish_attempt(attempt, outcome="interrupted")
            raise
        self.record.finish_attempt(attempt, outcome="done")

    def _tick(self, phase: str) -> Callable[[], None]:
        self.record.set_meta("phase", phase)
        return lambda: self._show(phase)

    def _show(self, phase: str, detail: str = "") -> None:
        self.view.update(phase, self.record.spent(PHASES), detail)

    def _check_stop(self) -> None:
        if self.stop.requested:
            raise Interrupted
