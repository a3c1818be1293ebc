"""``search run``: the main path from images and a budget to a Pareto front, top to bottom.

A run is one folder. Its record (`search.record`) is the truth; everything here can be killed at any
moment and is entered again from the top: each phase asks the record what is left to do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from search.crew import JudgeCrew, hold_judges
from search.executor import Cluster, WorkerLostError, call, call_all, form_group
from search.heartbeat import Heartbeat
from search.judge_choice import PROXY_SCORES, judge_of, next_predicted, report_of
from search.judging import Judging, make_proposer
from search.listings import plan_table
from search.plan import PHASES, Plan, revise_plan
from search.planning import plan_from_times
from search.progress import ProgressView, StopSignals
from search.promotion import Promotions
from search.results import SUPERNET, front
from search.run_folder import RunFolder
from search.trials import MAX_LOST, Choice, TrialCosts, TrialRunner, fidelity_of
from search.trust import Judge
from search.tune_trials import run_trials
from search.work import StepTimes, Work, is_disk_full
from search.workers import WORK
from searchspace.architecture import Architecture

FULL_DISK = "a full disk"
SAVE_EVERY_SECONDS = 30.0
TRAIN_CALL_SECONDS = 2.0
CALL_LIMIT_FACTOR = 30.0
WORTH_A_JUDGE_SECONDS = 20.0
RESCHEDULE_SHARE = 0.05
PACE_SHARE = 0.2
LOOK_EVERY_SECONDS = 2.0


class Interrupted(Exception):
    """The user asked the run to stop; it can be resumed."""


def run_search(
    run: RunFolder, console: Console, *, ray_address: str | None = None, work: Work = WORK
) -> str | None:
    """Do what is left to do of a run.

    Args:
        run: An open run; see `search.run_folder`.
        console: For what the user sees.
        ray_address: Of a cluster to join; None starts Ray on this machine.
        work: What the devices do.

    Returns:
        What stopped it, the name of a signal or `FULL_DISK`, or None when it is done.
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
        search = _Search(run, cluster, stop, view, work)
        try:
            plan = search.measure_and_train_supernet()
            trust = search.choose_trust_set(plan)
            search.train_trust_set(plan, trust)
            plan = search.revise(plan, after="trust")
            search.judge_proposals(plan, "search", trust)
            plan = search.revise(plan, after="search")
            search.promote(plan)
            search.finish(plan)
            run.record.set_meta("phase", "done")
        except Interrupted:
            pass
        except Exception as error:
            if not is_disk_full(error, run.folder):
                raise
            console.print(f"{error}\nFree some space.", highlight=False, soft_wrap=True)
            return FULL_DISK
        return stop.requested


class _Search:
    """The phases of one run; what they know lies in the record."""

    def __init__(
        self,
        run: RunFolder,
        cluster: Cluster,
        stop: StopSignals,
        view: ProgressView,
        work: Work,
    ) -> None:
        self.run, self.record, self.settings = run, run.record, run.settings
        self.cluster, self.stop, self.view, self.work = cluster, stop, view, work
        self.budget = self.settings.parsed_budget
        self.space = run.space()
        self.job = work.make_job(self.settings, run.folder, run.data())
        self._saved_step = 0

    def measure_and_train_supernet(self) -> Plan:
        """Measure step times, print the plan, and train the shared weights to the plan's end."""
        lost, saved = 0, -1
        while True:
            try:
                return self._measure_and_train_supernet()
            except WorkerLostError as error:
                lost = lost + 1 if self._saved_step == saved else 1
                saved = self._saved_step
                if lost >= MAX_LOST:
                    raise RuntimeError(
                        f"The supernet's workers were lost {lost} times without a step forward; "
                        f"last: {error}. Look into Ray's logs, then go on with --resume."
                    ) from error
                self.view.say(f"A worker was lost, going on from the checkpoint: {error}")

    def _measure_and_train_supernet(self) -> Plan:
        if self.record.get_meta(SUPERNET) == "done":
            return self._plan()
        devices = self._wait_for_devices()
        # What the workers take to start and to end is charged as well.
        with (
            ExitStack() as charges,
            self.cluster.actors(self.work.supernet_worker, self.job, devices) as workers,
        ):
            with self._charged("measure", devices):
                self._measure(workers)
            charges.enter_context(self._charged(SUPERNET, devices))
            plan = self._plan()
            twice = self._plan_of_times(times_budget=2.0)
            self.view.say(plan_table(plan, self.budget.device, twice=twice))
            self._train_supernet(workers, plan)
        self.record.set_meta(SUPERNET, "done")
        return self.revise(plan, after=SUPERNET)

    def _wait_for_devices(self) -> int:
        """Wait until there is a device; nothing is charged meanwhile."""
        told = False
        while not (devices := self.cluster.devices):
            if not told:
                self.view.say("The cluster has no device left; waiting for one.")
                told = True
            self._check_stop()
            time.sleep(1.0)
        return devices

    def _measure(self, workers: list[Any]) -> None:
        """Let the workers find each other; the first time, measure what steps take."""
        tick = self._group_tick("measure", len(workers), may_stop=True)
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

    def train_trust_set(self, plan: Plan, networks: list[Architecture]) -> None:
        """Train networks alone on the highest rung, to compare rankings with."""
        known = {t.key for t in self.record.trials(fidelity=fidelity_of(plan.trial_epochs))}
        remaining = [architecture for architecture in networks if architecture.key not in known]

        def choose() -> Choice | None:
            if not remaining:
                return None
            return Choice(architecture=remaining.pop(0), epochs=plan.trial_epochs)

        self._train_trials(plan, "trust", choose)

    def promote(self, plan: Plan) -> None:
        """Train the best networks alone, up the rungs, while the budget lasts."""
        judge = judge_of(self.record, seed=self.settings.seed)
        if judge != "supernet":
            self._train_trials(plan, "promote", lambda: self._choose_alone(plan, judge))
            return
        epochs = {fidelity_of(rung): rung for rung in plan.rungs}
        promotions = Promotions(
            self.record.trials(),
            base=SUPERNET,
            rungs=list(epochs),
            objectives=self.settings.objectives,
        )

        def choose() -> Choice | None:
            chosen = promotions.next()
            return chosen and Choice(architecture=chosen[0], epochs=epochs[chosen[1]])

        self._train_trials(plan, "promote", choose, promotions)

    def _train_trials(
        self,
        plan: Plan,
        phase: str,
        choose: Callable[[], Choice | None],
        promotions: Promotions | None = None,
    ) -> None:
        if self.record.spent(PHASES) >= plan.until[phase]:
            return
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
            on_end=promotions.note if promotions else None,
        )
        self._tick(phase)
        self._wait_for_devices()
        with self.view.ticking(lambda: self._show(phase)):
            run_trials(
                self.cluster,
                self.work,
                job=self.job,
                folder=self.run.folder,
                source=runner,
                name=phase,
            )
        self._check_stop()

    def judge_proposals(self, plan: Plan, phase: str, first: list[Architecture]) -> None:
        """Search: judge the sampler's proposals with inherited weights, on warm workers."""
        if self.record.spent(PHASES) >= plan.until[phase]:
            return
        with hold_judges(self._crew(plan, phase, most=None)) as crew:
            self._judge(crew, plan, phase, first, proposes=False)
            self._check_stop()
            self._score_without_training(crew, phase, first)
            judge = judge_of(self.record, seed=self.settings.seed)
            if judge == "supernet":
                self._judge(crew, plan, phase, [])
            self.record.set_meta("judge_start", crew.start_seconds)
        self._check_stop()
        if judge != "supernet":
            report = report_of(self.record, seed=self.settings.seed)
            self.view.say(report.verdict if report else "")
            self._train_trials(plan, phase, lambda: self._choose_alone(plan, judge))

    def _score_without_training(
        self, crew: JudgeCrew, phase: str, networks: list[Architecture]
    ) -> None:
        """Compute the zero-cost proxies of the trust set, once."""
        if self.record.get_meta(PROXY_SCORES) is None:
            tick = self._tick(phase, may_stop=True)
            scores = crew.call("proxy_scores", networks, while_waiting=tick)
            self.record.set_meta(PROXY_SCORES, scores)

    def _choose_alone(self, plan: Plan, judge: Judge) -> Choice | None:
        """Choose what to train alone next where the supernet's ranking is not believed."""
        fidelity, trials = fidelity_of(plan.trial_epochs), self.record.trials()
        if judge == "predictor":
            chosen = next_predicted(
                self.space,
                trials,
                high=fidelity,
                objectives=self.settings.objectives,
                seed=self.settings.seed,
            )
        else:
            known = [trial for trial in trials if trial.fidelity == fidelity]
            chosen = make_proposer(self.space, self.settings, known).ask()
        return None if chosen is None else Choice(architecture=chosen, epochs=plan.trial_epochs)

    def finish(self, plan: Plan) -> None:
        """Check that extraction is exact, then spend what is left on judging."""
        left = plan.budget_seconds - self.record.spent(PHASES)
        if left <= 0:
            return  # a finished run, resumed; or one that had nothing left to check with
        devices = self._wait_for_devices()
        # A judge takes seconds to start: one alone, unless there is work for all.
        number = None if left > devices * WORTH_A_JUDGE_SECONDS else 1
        with hold_judges(self._crew(plan, "finish", most=number)) as crew:
            self._check_extraction(crew)
            self._judge(crew, plan, "finish", [])
        self._check_stop()

    def _crew(self, plan: Plan, phase: str, *, most: int | None) -> JudgeCrew:
        return JudgeCrew(
            self.cluster,
            self.work.judge_worker,
            job=self.job,
            record=self.record,
            phase=phase,
            most=most,
            pace_seconds=plan.judge_seconds,
        )

    def _check_extraction(self, crew: JudgeCrew) -> None:
        trials = self.record.trials()
        if not any(trial.state == "done" for trial in trials):
            return
        members = front(trials, objectives=self.settings.objectives)
        networks = [member.architecture for member in members]
        tick = self._tick("finish", may_stop=True)
        errors = crew.call("extraction_errors", networks, while_waiting=tick)
        found = {str(m.id): error for m, error in zip(members, errors, strict=True)}
        self.record.set_meta("extraction", found)

    def _train_supernet(self, workers: list[Any], plan: Plan) -> None:
        tick = self._group_tick(SUPERNET, len(workers), may_stop=False)
        total = plan.supernet_steps
        step = call_all(workers, "start", total, while_waiting=tick)[0]
        self._saved_step = step
        pace = self.record.get_meta("times")["supernet_step"] / len(workers)  # seconds a step
        saved = time.monotonic()
        while step < total:
            started = time.monotonic()
            steps = max(round(TRAIN_CALL_SECONDS / pace), 1)
            limit = CALL_LIMIT_FACTOR * max(steps * pace, TRAIN_CALL_SECONDS)
            progress = call_all(workers, "train", steps, while_waiting=tick, limit_seconds=limit)[0]
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
                self._saved_step, saved = step, time.monotonic()
            self._check_stop()
        if total < plan.supernet_steps:
            self.view.say(
                f"The machine was slower than measured: {total:,} supernet steps instead of "
                f"{plan.supernet_steps:,}."
            )
        call(workers[0], "save", while_waiting=tick)

    def _judge(
        self,
        crew: JudgeCrew,
        plan: Plan,
        phase: str,
        first: list[Architecture],
        *,
        proposes: bool = True,
    ) -> None:
        """Keep the judges busy with the first architectures, then with the sampler's proposals."""
        judging = Judging(
            record=self.record,
            space=self.space,
            settings=self.settings,
            phase=phase,
            first=first,
            limit_seconds=plan.until[phase],
            judge_seconds=plan.judge_seconds,
            count_judges=lambda: len(crew),
            interrupted=lambda: self.stop.requested is not None,
            proposes=proposes,
        )
        crew.stream(judging, self._tick(phase))

    def _plan(self) -> Plan:
        """Make the plan from the measured times; what has been trained keeps its length."""
        plan = self._plan_of_times()
        first = self.record.get_meta("plan")
        if first is not None:
            first = Plan.from_dict(first)
            plan = replace(
                plan,
                supernet_steps=first.supernet_steps,
                trial_epochs=first.trial_epochs,
                trial_steps=first.trial_steps,
                rungs=first.rungs,
            )
        self.record.set_meta("plan", plan.to_dict())
        return plan

    def _plan_of_times(self, *, times_budget: float = 1.0) -> Plan:
        stored = self.record.get_meta("times")
        points = tuple((int(macs), float(seconds)) for macs, seconds in stored["trial_steps"])
        return plan_from_times(
            self.settings,
            StepTimes(**{**stored, "trial_steps": points}),
            self.run.data(),
            devices=max(self.cluster.devices, 1),
            measured_seconds=self.record.spent_by_phase().get("measure", 0.0),
            times_budget=times_budget,
        )

    def revise(self, plan: Plan, *, after: str) -> Plan:
        """Split what is left anew, with what trials and judgements have really cost."""
        done = self.record.trials(state="done")
        macs = sum(macs for macs, _ in plan.step_seconds) / len(plan.step_seconds)
        judged = [t.values["seconds"] for t in done if t.fidelity == SUPERNET]
        plan = revise_plan(
            plan,
            after=after,
            spent=self.record.spent_by_phase(),
            fixed=self.settings.shares,
            trial_seconds=TrialCosts(plan, done).predict(int(macs), plan.trial_epochs),
            judge_seconds=sum(judged) / len(judged) if judged else None,
            start_seconds=self.record.get_meta("judge_start") or 0.0,
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

    def _tick(self, phase: str, *, may_stop: bool = False) -> Callable[[], None]:
        """Return what to do while waiting in a phase: show it, and stop where nothing is lost."""
        self.record.set_meta("phase", phase)

        def tick() -> None:
            self._show(phase)
            if may_stop:
                self._check_stop()

        return tick

    def _group_tick(self, phase: str, workers: int, *, may_stop: bool) -> Callable[[], None]:
        """Like `_tick`; and a group that has lost a device is given up at once."""
        tick, looked = self._tick(phase, may_stop=may_stop), 0.0

        def group_tick() -> None:
            nonlocal looked
            tick()
            if time.monotonic() - looked > LOOK_EVERY_SECONDS:
                looked = time.monotonic()
                if self.cluster.devices < workers:
                    raise WorkerLostError("a node left the cluster")

        return group_tick

    def _show(self, phase: str, detail: str = "") -> None:
        self.view.update(phase, self.record.spent(PHASES), detail)

    def _check_stop(self) -> None:
        if self.stop.requested:
            raise Interrupted
