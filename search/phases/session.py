"""`Session`: what all phases of one run share, while a process works on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from search.budget import format_seconds
from search.cluster import Cluster, JudgeCrew
from search.grafting import num_pairs, single_networks
from search.phases.planning import DAY, MORE_DAYS, plan_from_times
from search.plan import (
    END_SECONDS,
    END_SHARE,
    MAX_TRUST,
    START_RESERVE,
    MorePlan,
    Plan,
    revise_plan,
)
from search.record import Trial
from search.results import (
    SUPERNET,
    ZERO_COST,
    is_trained_alone,
    searched_fidelities,
    trial_fidelities,
)
from search.run_folder import GRAFT, RunFolder
from search.scheduling import BudgetSpent, Looks, TrialCosts, Work, checkpoint_name, late_seconds
from search.terminal import ProgressView, StopSignals, plan_table
from search.trust import Estimator, estimator_of

# Ray gives a dead node up after some ten seconds; until then its devices are not free.
PATIENCE_SECONDS = 30.0


NOTHING_LEFT = (
    "Nothing is left to propose: every network of the space that could be found, and that keeps to "
    "its limits, has been judged. A larger budget trains these for longer, and finds no others."
)


class Interrupted(Exception):
    """The user asked the run to stop; it can be resumed."""


class Session:
    """What the phases work with; what they know lies in the record.

    Args:
        run: An open run.
        cluster: Whose devices work.
        stop: Whether the user asked to stop.
        view: What the user sees.
        work: What the devices do.
    """

    def __init__(
        self,
        run: RunFolder,
        cluster: Cluster,
        stop: StopSignals,
        view: ProgressView,
        work: Work,
    ) -> None:
        self.run, self.record, self.settings = run, run.record, run.settings
        self.state = run.state
        self.cluster, self.stop, self.view, self.work = cluster, stop, view, work
        self.budget = self.settings.parsed_budget
        self.space = run.space()
        self.data = run.task_data()
        self.job = work.make_job(self.settings, run.folder, self.data)
        self._has_said_nothing_left = False

    def wait_for_devices(self) -> int:
        """Wait until there are devices, and a while until all are free; nothing is charged.

        Returns:
            How many are free.
        """
        told, started = False, time.monotonic()
        while True:
            devices = self.cluster.devices
            free = min(self.cluster.free, devices)
            if devices and free == devices:
                return devices
            if free and time.monotonic() - started > PATIENCE_SECONDS:
                self.view.say(f"Others hold {devices - free} of {devices} devices; going on.")
                return free
            if not devices and not told:
                self.view.say("The cluster has no device left; waiting for one.")
                told = True
            self.check_stop()
            time.sleep(0.1 if devices else 1.0)

    def say_nothing_left(self) -> None:
        """Say, once, that the space is used up: a phase may end before its share for it."""
        if not self._has_said_nothing_left:
            self._has_said_nothing_left = True
            self.view.say(NOTHING_LEFT)

    def spent(self) -> float:
        """Return the device-seconds that the budget has paid for."""
        return self.state.spent

    @property
    def end_seconds(self) -> float:
        """Device-seconds after which what is under way is ended, so that the budget is kept."""
        amount = self.budget.amount_seconds
        return amount - min(END_SECONDS * max(self.cluster.devices, 1), END_SHARE * amount)

    @property
    def start_seconds(self) -> float:
        """Seconds that a worker takes to start, by what those before took."""
        return max(self.state.judge_start_seconds, self.state.worker_start_seconds)

    @property
    def judges_warm(self) -> bool:
        """Whether a phase of the run judges networks for its front that are not trained alone."""
        return self.settings.strategy in (SUPERNET, GRAFT)

    @property
    def has_answer(self) -> bool:
        """Whether any network has an accuracy."""
        return bool(searched_fidelities(self.record.trials(state="done")))

    @property
    def owes_answer(self) -> bool:
        """Whether nothing has been judged yet, and warm judges are to do so."""
        return self.judges_warm and not self.has_answer

    @property
    def may_judge(self) -> bool:
        """Whether a judge can still start, and what it is planned by is known."""
        left = self.budget.amount_seconds - self.spent()
        return self.state.times is not None and left > self.start_seconds

    def stop_seconds(self, plan: Plan) -> float:
        """Return the device-seconds after which trainings alone are ended.

        As long as nothing has been judged, that leaves the time in which a judge starts.
        """
        last = plan.last_call_seconds
        if not self.owes_answer:
            return last
        return min(last, plan.budget_seconds - START_RESERVE * self.start_seconds)

    def has_ended(self, plan: Plan, phase: str) -> bool:
        """Tell whether a phase's share is used up; a phase that the plan lacks has ended."""
        return phase not in plan.spent_by_end or self.spent() >= plan.spent_by_end[phase]

    def judge_seconds(self, plan: Plan, phase: str) -> float:
        """Return the device-seconds after which the judges of a phase end.

        The finish has its time; where nothing has been judged yet, it would have no use for it.
        """
        if phase == "finish" or self.owes_answer:
            return self.end_seconds
        return min(self.end_seconds, plan.last_call_seconds)

    def crew(self, plan: Plan, phase: str, *, most: int | None = None) -> JudgeCrew:
        """Make the warm judges of a phase, on at most so many devices; none that does not fit."""
        limit = self.judge_seconds(plan, phase)
        return JudgeCrew(
            self.cluster,
            self.work.judge_worker,
            job=self.job,
            record=self.record,
            phase=phase,
            most=most,
            pace_seconds=plan.judge_seconds,
            left=lambda: limit - self.spent(),
            start_seconds=self.start_seconds,
            budget_seconds=self.budget.amount_seconds,
        )

    def estimator(self) -> Estimator:
        """Return what the run judges networks by; the first call decides."""
        settings = self.settings
        return estimator_of(self.record, seed=settings.seed, strategy=settings.strategy)

    def show_plan(self, plan: Plan) -> None:
        """Print the plan, and what twice the budget would buy."""
        twice = self.plan_of_times(times_budget=2.0)
        times = self.state.times
        self.view.say(plan_table(plan, self.budget.device, twice=twice, times=times))

    def make_plan(self) -> Plan:
        """Make the plan from the measured times; what has been trained keeps its length."""
        plan = self.plan_of_times()
        first = self.state.plan
        if first is not None:
            plan = replace(
                plan,
                supernet_steps=first.supernet_steps,
                trial_epochs=first.trial_epochs,
                trial_steps=first.trial_steps,
                rungs=first.rungs,
                rung_images=first.rung_images,
                rung_devices=first.rung_devices,
                trust_epochs=first.trust_epochs,
                train_images=first.train_images,
                supernet_batch=first.supernet_batch,
                most_supernet_steps=first.most_supernet_steps,
                is_large=first.is_large,
            )
            if first.horizon_epochs:
                plan = replace(
                    plan, horizon_epochs=first.horizon_epochs, num_horizon=first.num_horizon
                )
        self.state.plan = plan
        self._plan_more()
        return plan

    def plan_slower(self, plan: Plan, pace: float, *, phase: str) -> Plan:
        """Make the plan anew for trainings that are so many times slower than measured.

        Args:
            phase: In which that was found; what was spent before it is kept.
        """
        times = self.state.times
        assert times is not None
        slower = tuple((macs, seconds * pace) for macs, seconds in times.trial_steps)
        with self.record.together():  # a run that goes on has all of this or nothing
            self.state.times = replace(times, trial_steps=slower)
            fresh = replace(self.plan_of_times(), supernet_steps=plan.supernet_steps)
            self.state.plan = fresh
            given_up = self._withdraw_others(fresh)
        for trial in given_up:
            self.run.files.remove(checkpoint_name(trial.id))
        self._plan_more()
        self.view.say(
            f"Trainings are {pace:.1f} times slower than measured, so they are planned anew:"
        )
        self.show_plan(fresh)
        phases = list(fresh.spent_by_end)
        before = phases[: phases.index(phase)]
        return self.revise(fresh, after=before[-1]) if before else fresh

    def _withdraw_others(self, plan: Plan) -> list[Trial]:
        """Take back the trials that wait for trainings of other lengths than the plan's."""
        rungs = trial_fidelities(plan)
        others = [
            trial
            for trial in self.record.trials(state="waiting")
            if is_trained_alone(trial.fidelity) and trial.fidelity not in rungs
        ]
        for trial in others:
            self.record.withdraw(trial.id)
        return others

    def _plan_more(self) -> None:
        """Write down what more budget would buy, for those who only look."""
        amount = self.budget.amount_seconds
        seconds = MORE_DAYS * DAY if self.budget.device == "gpu" else amount
        now, more = self.plan_of_times(), self.plan_of_times(times_budget=1 + seconds / amount)
        text = format_seconds(seconds, self.budget.device)
        self.state.more_plan = MorePlan(budget=text, plan=now, more=more)

    def plan_of_times(self, *, times_budget: float = 1.0) -> Plan:
        """Plan a multiple of the budget with the measured times."""
        times = self.state.times
        assert times is not None
        return plan_from_times(
            self.settings,
            times,
            self.data,
            devices=max(self.cluster.devices, 1),
            measured_seconds=self._measured_seconds(),
            times_budget=times_budget,
            most_scored=self._most_scored(),
            supernet_devices=self.state.supernet_devices,
        )

    def _most_scored(self) -> int:
        """Count the networks whose judgement says what the parts of a graft are worth."""
        if self.run.teacher is None:
            return 0
        singles = len(single_networks(self.space, self.run.teacher.architecture))
        return singles + num_pairs(singles) + MAX_TRUST

    def _measured_seconds(self) -> float:
        """Return what measuring took until it was done; what later starts take is no part of it."""
        measured = self.state.measured_seconds
        if measured is None:
            measured = self.record.spent_by_phase().get("measure", 0.0)
            self.state.measured_seconds = measured
        return measured

    def check_start(self, devices: int) -> None:
        """See that the budget pays for another start of the workers on so many devices.

        Raises:
            BudgetSpent: If it does not, going by what the quickest start so far has taken.
        """
        held = [row for row in self.record.ledger() if row[1] == "measure" and row[4]]
        seconds = {
            state: [row[-1] / row[4] for row in held if (row[8] == "done") == state]
            for state in (True, False)
        }
        # One that was killed on the way would have taken longer.
        one = min(seconds[True], default=max(seconds[False], default=0.0))
        # Where nothing has been judged yet, that starts a worker of its own.
        needed, then = one * devices, 0.0 if self.has_answer else max(one, self.start_seconds)
        spent, asked = self.spent(), self.budget.amount_seconds
        if held and spent + needed + then > asked:
            started = sum(row[-1] for row in held)
            raise BudgetSpent(
                f"Of {asked:.0f} device-seconds {spent:.0f} are spent, {started:.0f} of them on "
                f"starting workers {len(held)} times, and another start takes {needed:.0f}"
                + (f", as one that judges then takes {then:.0f}" if then else "")
                + ": nothing is begun that does not fit."
            )

    def revise(self, plan: Plan, *, after: str) -> Plan:
        """Split what is left anew, with what trials and judgements have really cost."""
        done = self.record.trials(state="done")
        macs = sum(macs for macs, _ in plan.step_seconds) / len(plan.step_seconds)
        judged = [t.measured.seconds for t in done if t.fidelity in (SUPERNET, ZERO_COST)]
        plan = revise_plan(
            plan,
            after=after,
            spent=self.record.spent_by_phase(),
            fixed=self.settings.shares,
            trial_seconds=TrialCosts(plan, done).predict(int(macs), plan.trial_epochs),
            judge_seconds=sum(judged) / len(judged) if judged else None,
            start_seconds=self.state.judge_start_seconds,
        )
        self.state.plan = plan
        return plan

    @contextmanager
    def charged(self, phase: str, devices: float) -> Iterator[None]:
        """Charge ``devices`` to a phase for as long as the block runs."""
        attempt = self.record.start_attempt(phase, devices=devices)
        try:
            yield
        except BaseException:
            self.record.finish_attempt(attempt, outcome="interrupted")
            raise
        self.record.finish_attempt(attempt, outcome="done")

    def tick(
        self, phase: str, *, may_stop: bool = False, limit_seconds: float | None = None
    ) -> Callable[[], None]:
        """Return what to do while waiting in a phase: show it, and stop where nothing is lost.

        Args:
            limit_seconds: Where the budget spent passes this, waiting ends with `BudgetSpent`;
                None takes `end_seconds`.
        """
        self.state.phase = phase
        looks = Looks(time.monotonic)

        def tick() -> None:
            self.show(phase)
            limit = limit_seconds
            if limit is None:
                devices, amount = self.cluster.devices, self.budget.amount_seconds
                limit = self.end_seconds
                limit -= late_seconds(looks.seconds(), devices=devices, budget_seconds=amount)
            if self.spent() > limit:
                raise BudgetSpent(f"The budget was spent in the phase {phase}; it ends here.")
            if may_stop:
                self.check_stop()

        return tick

    def show(self, phase: str, detail: str = "") -> None:
        """Show a phase and what is spent."""
        self.view.update(phase, self.spent(), detail)

    def check_stop(self) -> None:
        """Raise `Interrupted` where the user asked to stop."""
        if self.stop.requested:
            raise Interrupted
