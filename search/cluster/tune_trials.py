"""Ray Tune trains a source's trials, on a device or several, and brings every one to an end.

Tune is stateless here: a `Searcher` feeds it, after a crash a new Tuner is started. What Tune does
not do is done by a callback: trials that hang are killed, and so are those that must stop, whose
end Tune would neither hasten nor report.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # search.run has its own
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
# Nothing of an experiment's state is ever read back.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
# A training that is given up ends at its next word; on a busy core that takes a while.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.search import Searcher

from search.cluster.connection import Cluster
from search.cluster.trial_group import Report, TrialWork, report_of, train_together
from search.scheduling import (
    Looks,
    Outcome,
    TrialSource,
    TrialTask,
    Work,
    last_line,
)

# Devices come and go, and so do Tune's holds on them; looks take at most 1 / LOOK_COST of the time.
LOOK_EVERY_SECONDS = 0.2
LOOK_COST = 20
# The part of the newest look in what one is taken to cost: a slow one must not blind the ledger.
LOOK_SHARE = 0.1
# On a busy machine an actor that was killed lives on for seconds, and holds its device.
LINGER_SECONDS = 15.0
STOPPED = "stopped before its end"


def run_trials(
    cluster: Cluster, work: Work, *, job: Any, folder: Path, source: TrialSource, name: str
) -> None:
    """Train the source's trials, each on its devices, until it has no more or says stop.

    Every trial that the source hands out is settled before this returns.

    Args:
        cluster: Where; devices that join it later are used as well.
        work: Whose ``train_alone`` trains.
        job: Passed to it.
        folder: Of the run, to tell whether its disk is full.
        source: Of the trials.
        name: Of the phase.
    """
    # Tune is told that there is no more when the source says so, and then gives devices back. What
    # is lost after that comes up in another round.
    _run_round(cluster, work, job=job, folder=folder, source=source, name=name)
    while source.has_lost() and not source.should_stop():
        _run_round(cluster, work, job=job, folder=folder, source=source, name=name)


def _run_round(
    cluster: Cluster, work: Work, *, job: Any, folder: Path, source: TrialSource, name: str
) -> None:
    round_ = _ROUNDS[name] = _Round(source, cluster)
    # Else Tune starts a few at a time, and each takes seconds.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(cluster.devices, 1))
    trainable = tune.with_resources(
        tune.with_parameters(
            _train_trial,
            job=job,
            work=TrialWork(
                train=work.train_alone,
                meet=work.meet,
                folder=folder,
                threads=cluster.threads,
                needs=cluster.needs,
            ),
        ),
        partial(_bundles, cluster.resource),
    )
    # Nothing of it is ever read back; in the run's folder a kill would leave it to be removed.
    scratch = tempfile.TemporaryDirectory(prefix="mixer-search-", ignore_cleanup_errors=True)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=_Feed(name), num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch.name,
            stop=_Stop(name),
            callbacks=[_Watch(name)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        _ROUNDS.pop(name)
        ends: Outcome = "not begun" if round_.is_torn else "lost"
        for task in round_.tasks.values():
            source.settle(task, outcome=ends, measured=None, cause=STOPPED)
        round_.release()
        scratch.cleanup()
    if round_.problem is not None:
        raise round_.problem


@dataclass(slots=True)
class _Round:
    """What Tune's objects share in one round; keys are Tune's trial ids."""

    source: TrialSource
    cluster: Cluster
    tasks: dict[str, TrialTask] = field(default_factory=dict)
    trials: dict[str, Any] = field(default_factory=dict)  # Tune's, once they hold a device
    overdue: dict[str, str] = field(default_factory=dict)  # and why
    actors: dict[Any, Any] = field(default_factory=dict)  # that trials had, by their id
    problem: Exception | None = None
    is_torn: bool = False  # it has a trial that waits for more devices than there are
    slots: int = 0
    reserved: int = 0
    look_at: float = 0.0
    look_seconds: float = 0.0  # what a look costs
    given_up: set[str] = field(default_factory=set)  # their workers take up others
    looks: Looks = field(default_factory=lambda: Looks(time.monotonic))

    def look(self) -> None:
        """Charge the devices that Tune holds, and see for how many trials there are some.

        A trial is charged from its hand-out on, so it gets none that is neither free nor held: such
        a device may belong to a dead node.
        """
        started = time.monotonic()
        if started < self.look_at:
            return
        devices = self.cluster.devices
        self.reserved = self.cluster.reserved
        self.slots = min(devices, self.cluster.free + self.reserved)
        # Handed out before Ray knew that a node is gone. Tune would wait until another one comes;
        # in another round it takes what there is, and the others go on from their checkpoints.
        waiting = [task.devices for key, task in self.tasks.items() if key not in self.trials]
        self.is_torn = self.is_torn or any(count > devices for count in waiting)
        self.source.hold(self.reserved)
        # What Ray lists grows with the trials of the run.
        now = time.monotonic()
        self.look_seconds += (now - started - self.look_seconds) * LOOK_SHARE
        self.look_at = now + max(LOOK_EVERY_SECONDS, LOOK_COST * self.look_seconds)

    def release(self) -> None:
        """End the actors that Tune has left, wait until it holds no device, charge no longer."""
        for actor in self.actors.values():
            ray.kill(actor)
        deadline = time.monotonic() + LINGER_SECONDS
        while self.cluster.reserved and time.monotonic() < deadline:
            time.sleep(0.02)
        self.source.hold(0)

    def settle(self, trial_id: str, report: Report) -> None:
        """Bring a trial's end to the source; it holds no device any more."""
        task = self.tasks.pop(trial_id)
        self.trials.pop(trial_id, None)
        try:
            self.source.settle(
                task, outcome=report.outcome, measured=report.measured, cause=report.cause
            )
        except Exception as problem:
            # Tune would log it and go on as if the result were recorded.
            self.problem = problem


# Tune pickles what it is given when a Tuner is built, so those hold a name and look up here.
_ROUNDS: dict[str, _Round] = {}


class _Feed(Searcher):
    """Feeds a `TrialSource` to Tune, as many at a time as there are devices."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def suggest(self, trial_id: str) -> Any:
        round_ = _ROUNDS[self._name]
        if round_.problem is not None or round_.is_torn or round_.source.should_stop():
            return Searcher.FINISHED
        round_.look()
        held, most = sum(task.devices for task in round_.tasks.values()), round_.cluster.devices
        if held >= round_.slots:
            return None
        try:
            wanted = round_.source.wanted(most)
            if wanted is None or held + wanted > round_.slots:
                return None
            task = round_.source.next(most)
        except Exception as problem:
            # Tune would log it and go on: `run_trials` raises it.
            round_.problem = problem
            return Searcher.FINISHED
        if task is None:
            return Searcher.FINISHED
        round_.tasks[trial_id] = task
        return {"task": task, "place": round_.cluster.meeting_place}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        round_ = _ROUNDS[self._name]
        task = round_.tasks.get(trial_id)
        if task is not None:
            round_.settle(trial_id, _read(round_, trial_id, task, result, error))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the record is the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a new Tuner is started instead."""


class _Stop(tune.Stopper):
    """Ends trials when the source says so: one after an epoch, or all."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Bring a sign of life to the source; Tune asks this before it tells its callbacks."""
        round_ = _ROUNDS[self._name]
        task = round_.tasks.get(trial_id)
        if task is None:
            return False
        round_.source.heard(task)
        # One that has a report is done.
        if "report" not in result and round_.source.gives_up(task):
            round_.given_up.add(trial_id)
        return trial_id in round_.given_up

    def stop_all(self) -> bool:
        round_ = _ROUNDS.get(self._name)
        if round_ is None or round_.problem is not None or round_.is_torn:
            return True
        return round_.source.should_stop()


class _Watch(tune.Callback):
    """Kills the workers of trials that hang, and of all when they must stop."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        round_ = _ROUNDS[self._name]
        round_.trials[trial.trial_id] = trial
        actor = trial.temporary_state.ray_actor
        round_.actors[actor._ray_actor_id] = actor
        round_.source.started(round_.tasks[trial.trial_id])

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        round_ = _ROUNDS[self._name]
        is_over = round_.source.should_stop(round_.looks.seconds())
        stopping = round_.problem is not None or is_over
        for trial_id, trial in list(round_.trials.items()):
            task = round_.tasks.get(trial_id)
            if task is None:
                continue
            cause = round_.source.overdue(task)
            if cause is not None:
                round_.overdue.setdefault(trial_id, cause)
            actor = trial.temporary_state.ray_actor
            if actor is None or not (stopping or trial_id in round_.overdue):
                continue
            ray.kill(actor)
            if stopping and round_.problem is None:
                # Tune takes seconds more to end.
                round_.settle(trial_id, Report(outcome="lost", cause=STOPPED))
        round_.look()


def _read(
    round_: _Round,
    trial_id: str,
    task: TrialTask,
    result: dict[str, Any] | None,
    error: bool,
) -> Report:
    """Tell what became of a trial from Tune's last result and error."""
    text = (result or {}).get("report")
    if not error and text:
        return Report.from_text(text)
    if trial_id in round_.overdue:
        return Report(outcome="failed", cause=round_.overdue[trial_id])
    if round_.is_torn or trial_id in round_.given_up:
        return Report(outcome="not begun", cause=STOPPED)
    trial = round_.trials.get(trial_id)
    problem = trial.get_pickled_error() if error and trial is not None else None
    if problem is None:
        return Report(outcome="lost", cause="its worker died or was stopped")
    is_memory = isinstance(problem, OutOfMemoryError)
    outcome: Outcome = "out of memory" if is_memory else "lost"
    return Report(outcome=outcome, cause=last_line(str(problem)))


def _bundles(resource: str, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Reserve a trial's devices, all at once; near each other where that can be.

    Several of them are held by the processes that train, and none by the one that waits for these.
    """
    devices = config["task"].devices
    bundles = [{resource: 1.0} for _ in range(devices)]
    return tune.PlacementGroupFactory(bundles if devices == 1 else [{}, *bundles])


def _train_trial(config: dict[str, Any], *, job: Any, work: TrialWork) -> None:
    task: TrialTask = config["task"]

    def on_epoch(epoch: int) -> None:
        tune.report({"epoch": epoch})

    if task.devices == 1:
        report = report_of(task, job, work, on_epoch)
    else:
        report = train_together(task, job, work, place=config["place"], on_epoch=on_epoch)
    # As text: Tune would flatten a nested result.
    tune.report({"report": report.to_text()})
