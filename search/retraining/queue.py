"""``search retrain``: the chosen members of a run through the full recipe, charged on their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from search.cluster import Cluster
from search.record import AttemptOutcome, Measured, Record, Trial
from search.results import accuracy_text, retraining_fidelity, retraining_label
from search.retraining.attempt import attempt
from search.retraining.network import RetrainOptions, RetrainResult
from search.retraining.training_queue import (
    Job,
    Training,
    TrainingQueue,
    say,
    train_on_cluster,
)
from search.retraining.wanted import Prepared, RetrainPlan, Wanted, prepare, resized
from search.run_folder import RunFolder, RunState
from search.terminal import clock_text
from search.tracking import End, Tracker, epoch_values, open_tracker
from searchspace.architecture import describe
from searchspace.quantity import counted
from supernet.training import METRICS_FILE, EpochReport, read_csv, starvation

__all__ = ["PHASE", "RetrainPlan", "resized", "retrain_members"]

PHASE = "retrain"
_TRACKED_ENDS: dict[str, End] = {"done": "done", "failed": "failed"}


@dataclass(slots=True, kw_only=True)
class _Retraining(Training):
    network: Wanted
    tracker: Tracker | None = None


def retrain_members(
    run: RunFolder,
    ids: Sequence[int],
    plan: RetrainPlan,
    *,
    console: Console,
    ray_address: str | None = None,
    track: str | None = None,
) -> str | None:
    """Retrain networks of a run; what was finished before is not repeated, what was begun goes on.

    Args:
        ids: Ids of the run's networks.
        plan: What to do with each.
        ray_address: A Ray cluster to join; None uses this machine.
        track: A tracker that gets the curves, one of `search.tracking.TRACKERS`.

    Returns:
        What kept it from its end: the name of a signal, `FULL_DISK` or `FAILED`; or None.

    Raises:
        ValueError: If what was asked for cannot be done; no trial has been made then.
    """
    run.check_classifies()
    prepared = prepare(run, ids, plan)
    if prepared.unlabelled is not None:
        console.print(prepared.unlabelled.line(), highlight=False, soft_wrap=True)
    run.record.close_orphans()
    seeds = tuple(dict.fromkeys(plan.seeds))
    wanted = [(network, seed) for network in prepared.networks for seed in seeds]
    left = [one for one in wanted if not _say_if_done(run.record, prepared, *one, console)]
    if not left:
        return None

    def work(cluster: Cluster) -> tuple[_Queue, Iterable[_Retraining]]:
        queue = _Queue(run, cluster, prepared, console, tasks=len(wanted), track=track)
        return queue, [queue.training(*one) for one in left]

    return train_on_cluster(
        run, work, devices=plan.devices, console=console, ray_address=ray_address
    )


def _say_if_done(
    record: Record, prepared: Prepared, network: Wanted, seed: int, console: Console
) -> bool:
    """Tell whether a training was finished before, and say its result then."""
    fidelity = _fidelity(record, prepared, network)
    for trial in record.trials(fidelity=fidelity, state="done"):
        if (trial.architecture_id, trial.seed) == (network.number, seed):
            say(console, trial, _result_text(trial))
            return True
    return False


def _fidelity(record: Record, prepared: Prepared, network: Wanted) -> str:
    """Name a training: by what was asked for, and where others had that name, by its hash too."""
    fidelity = retraining_fidelity(prepared.plan.label(prepared.recipe))
    owner = RunState(record).retrainings.get(f"{network.number} {fidelity}")
    if owner is None:
        older = record.trials(fidelity=fidelity)
        is_ours = all(trial.architecture_id != network.number for trial in older)
    else:
        is_ours = owner == network.identity
    return fidelity if is_ours else f"{fidelity}-{network.identity[:8]}"


class _Queue(TrainingQueue[_Retraining]):
    phase = PHASE

    def __init__(
        self,
        run: RunFolder,
        cluster: Cluster,
        prepared: Prepared,
        console: Console,
        *,
        tasks: int,
        track: str | None,
    ) -> None:
        super().__init__(run, cluster, console, devices=prepared.plan.devices, tasks=tasks)
        self.track = track
        self.prepared, self.plan, self.recipe = prepared, prepared.plan, prepared.recipe

    def training(self, network: Wanted, seed: int) -> _Retraining:
        """Find or make the trial of a network and a seed; one that failed may try again."""
        record = self.run.record
        with record.together():
            fidelity = _fidelity(record, self.prepared, network)
            self.run.state.add_retraining(network.number, fidelity, network.identity)
            trial_id = record.add_trial(network.number, fidelity=fidelity, seed=seed, origin=PHASE)
            record.retry(trial_id)
        out = self.run.retraining(network.number, retraining_label(fidelity), seed)
        return _Retraining(trial=record.trial(trial_id), out=out, network=network)

    def job(self, training: _Retraining) -> Job:
        plan, network = self.plan, training.network
        options = RetrainOptions(
            out=training.out,
            seed=training.trial.seed,
            device="cuda" if self.is_gpu else "cpu",
            threads=self.threads,
            start=network.start,
            start_name="inherited" if plan.inherit else f"those of {plan.start}",
            token_labels=plan.token_labels,
            teacher=self.prepared.teacher,
            unlabelled=self.prepared.unlabelled,
            search_teacher=self.run.settings.taught_by,
            identity=network.identity,
            loader_workers=self.loader_workers(plan.workers),
        )
        what = f"{counted(self.recipe.total_epochs, 'epoch')} of {self.recipe.name}"
        return Job(
            function=attempt,
            arguments=(network.architecture, self.prepared.data, self.recipe),
            options=options,
            text=f"{describe(network.architecture)}, {what}",
        )

    def progress(self, training: _Retraining) -> int:
        return len(_epochs(training.out))

    def progress_text(self, training: _Retraining) -> str:
        epochs = _epochs(training.out)
        last = epochs[-1]
        seconds = sum(epoch.seconds for epoch in epochs) / len(epochs)
        text = (
            f"epoch {len(epochs)} of {last.epochs}, loss {last.loss:.3f}, "
            f"{last.images_per_second:,.0f} images/s, "
            f"{clock_text(seconds * (last.epochs - len(epochs)))} left"
        )
        held_up = starvation(last) if len(epochs) == 1 else None
        return f"{text}. {held_up}" if held_up else text

    def measured(self, result: RetrainResult) -> Measured:
        return Measured.judged(result.accuracy.correct, result.accuracy.total)

    def result_text(self, trial: Trial) -> str:
        return _result_text(trial)

    def on_start(self, training: _Retraining) -> None:
        network, run = training.network, self.run
        settings = {
            "run": run.folder.name,
            "network": str(network.number),
            "recipe": self.recipe.name,
            "seed": str(training.trial.seed),
            "architecture": describe(network.architecture),
        }
        identity = f"{run.state.tracking_id}-{training.trial.id}" if self.track else ""
        title = f"{run.folder.name}/{training.out.name}"
        training.tracker = open_tracker(
            self.track, identity=identity, title=title, settings=settings
        )

    def on_progress(self, training: _Retraining) -> None:
        if training.tracker is not None:
            for epoch in _epochs(training.out):
                training.tracker.log(epoch_values(epoch), step=epoch.epoch)

    def on_end(
        self, training: _Retraining, outcome: AttemptOutcome, measured: Measured | None
    ) -> None:
        if training.tracker is None:
            return
        self.on_progress(training)
        if measured is not None:
            after = self.recipe.total_epochs + 1
            training.tracker.log({"test_top1": measured.top1}, step=after)
        training.tracker.close(_TRACKED_ENDS.get(outcome, "stopped"))


def _epochs(out: Path) -> list[EpochReport]:
    """Read the epochs that a training has finished; none where the table is damaged."""
    try:
        return read_csv((out / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _result_text(trial: Trial) -> str:
    return accuracy_text(trial.measured.correct, trial.measured.total, "test images")
