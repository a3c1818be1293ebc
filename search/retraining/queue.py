"""``search retrain``: the chosen members of a run through the full recipe, charged on their own.

Each network trains on one device or several (CPU: its share of the cores), several networks at a
time, as Ray tasks; the tasks of one network form a group of torch.distributed. Everything that a
training needs to go on lies in its folder, so stopping is dropping the tasks, and an attempt that
the machine lost is followed by another, which goes on from the last epoch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from search.budget import count_cores
from search.cluster import Cluster, take_finished
from search.record import AttemptOutcome, Heartbeat, Measured, Record, Trial
from search.results import accuracy_text, retraining_fidelity
from search.retraining.attempt import Ended, attempt
from search.retraining.network import RetrainOptions, RetrainResult
from search.retraining.wanted import Prepared, RetrainPlan, Wanted, prepare, resized
from search.run_folder import FullDiskError, RunFolder, is_disk_full
from search.terminal import StopSignals, clock_text
from search.tracking import End, Tracker, epoch_values, open_tracker
from searchspace.architecture import describe
from supernet.training import METRICS_FILE, EpochReport, read_csv, starvation

__all__ = ["FAILED", "FULL_DISK", "PHASE", "RetrainPlan", "resized", "retrain_members"]

PHASE = "retrain"
# What keeps a command from its end, besides signals.
FAILED = "a failed training"
FULL_DISK = "a full disk"
# A training that is lost is handed out again so often without an epoch between.
MAX_AGAIN = 3
LOOK_SECONDS = 1.0
_TRACKED_ENDS: dict[str, End] = {"done": "done", "failed": "failed"}
# The record's key for what each name of a training stands for, see `identity`.
IDENTITIES = "retrainings"


@dataclass(slots=True)
class _Entry:
    trial: Trial
    network: Wanted
    out: Path
    lost: int = 0  # times in a row without an epoch between
    epochs_shown: int = 0
    # Of the attempt that runs.
    attempt: int = 0
    begun_at: int = 0  # epochs that were done then
    pending: list[Any] = field(default_factory=list)
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
    run.record.close_orphans()
    seeds = tuple(dict.fromkeys(plan.seeds))
    wanted = [(network, seed) for network in prepared.networks for seed in seeds]
    left = [one for one in wanted if not _say_if_done(run.record, prepared, *one, console)]
    if not left:
        return None
    device = run.settings.parsed_budget.device
    with (
        Cluster(device=device, address=ray_address) as cluster,
        Heartbeat(run.record),
        StopSignals() as stop,
    ):
        if plan.devices > cluster.devices:
            raise ValueError(
                f"A network can be trained on the devices that there are, {cluster.devices}, got "
                f"--devices {plan.devices}. Ask for fewer."
            )
        # By all that was asked for: a command that goes on has the threads, so the bits, of before.
        queue = _Queue(run, cluster, prepared, console, tasks=len(wanted), track=track)
        try:
            queue.work_off([queue.training(*one) for one in left], stop)
        except Exception as error:
            if not is_disk_full(error, run.folder):
                raise
            console.print(f"{error}\nFree some space.", highlight=False, soft_wrap=True)
            return FULL_DISK
        return stop.requested or (FAILED if queue.num_failed else None)


def _say_if_done(
    record: Record, prepared: Prepared, network: Wanted, seed: int, console: Console
) -> bool:
    """Tell whether a training was finished before, and say its result then."""
    fidelity = _fidelity(record, prepared, network)
    for trial in record.trials(fidelity=fidelity, state="done"):
        if (trial.architecture_id, trial.seed) == (network.number, seed):
            _say(console, trial, _result_text(trial))
            return True
    return False


def _fidelity(record: Record, prepared: Prepared, network: Wanted) -> str:
    """Name a training: by what was asked for, and where others had that name, by its hash too."""
    fidelity = retraining_fidelity(prepared.plan.label(prepared.recipe))
    known = record.get_meta(IDENTITIES) or {}
    owner = known.get(f"{network.number} {fidelity}")
    if owner is None:
        older = record.trials(fidelity=fidelity)
        is_ours = all(trial.architecture_id != network.number for trial in older)
    else:
        is_ours = owner == network.identity
    return fidelity if is_ours else f"{fidelity}-{network.identity[:8]}"


class _Queue:
    """Keeps every device busy until all networks are trained or the user stops."""

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
        self.track = track
        self.run, self.cluster, self.console = run, cluster, console
        self.prepared, self.plan, self.recipe = prepared, prepared.plan, prepared.recipe
        self.is_gpu = run.settings.parsed_budget.device == "gpu"
        self.threads = 4 if self.is_gpu else self._threads(tasks)
        self.held = self.plan.devices * (1 if self.is_gpu else self.threads)
        self.waiting: deque[_Entry] = deque()
        self.running: list[_Entry] = []
        self.num_failed = 0

    def training(self, network: Wanted, seed: int) -> _Entry:
        """Find or make the trial of a network and a seed; one that failed may try again."""
        record = self.run.record
        with record.together():
            fidelity = _fidelity(record, self.prepared, network)
            known = record.get_meta(IDENTITIES) or {}
            names = {f"{network.number} {fidelity}": network.identity}
            record.set_meta(IDENTITIES, known | names)
            trial_id = record.add_trial(network.number, fidelity=fidelity, seed=seed, origin=PHASE)
            record.retry(trial_id)
        name = f"{network.number}-{fidelity.removeprefix(f'{PHASE}-')}-s{seed}"
        out = self.run.folder.resolve() / PHASE / name
        return _Entry(record.trial(trial_id), network, out)

    def work_off(self, trainings: Iterable[_Entry], stop: StopSignals) -> None:
        """Train them all, in order.

        Raises:
            FullDiskError: If one ended because of a full disk: the others would as well.
        """
        self.waiting.extend(trainings)
        try:
            while (self.waiting or self.running) and not stop.requested:
                # Nodes come and go.
                places = self.cluster.devices // self.held
                while self.waiting and len(self.running) < places:
                    self._hand_out(self.waiting.popleft())
                if not self.running:
                    time.sleep(LOOK_SECONDS)
                    continue
                pending = [reference for one in self.running for reference in one.pending]
                for reference, result, cause in take_finished(pending):
                    self._take(reference, result, cause)
                for training in self.running:
                    self._show_epochs(training)
        finally:
            for training in self.running:
                self._drop(training)
                self._finish(training, "interrupted")

    def _threads(self, tasks: int) -> int:
        threads = max(self.cluster.devices // (tasks * self.plan.devices), 1)
        # A task runs on one node.
        return threads if threads <= count_cores() else min(threads, self.cluster.node_devices)

    def _hand_out(self, training: _Entry) -> None:
        plan, network, trial = self.plan, training.network, training.trial
        options = RetrainOptions(
            out=training.out,
            seed=trial.seed,
            device="cuda" if self.is_gpu else "cpu",
            threads=self.threads,
            start=network.start,
            start_name="inherited" if plan.inherit else f"those of {plan.start}",
            token_labels=plan.token_labels,
            teacher=self.prepared.teacher,
            identity=network.identity,
            loader_workers=(8 if self.is_gpu else 0) if plan.workers is None else plan.workers,
        )
        training.begun_at = len(_epochs(training.out))
        training.tracker = self._open_tracker(training)
        training.attempt = self.run.record.start_attempt(
            PHASE, devices=self.held, trial_id=trial.id
        )
        # A file that is new for every attempt: the processes of a group meet in it.
        meeting = training.out.parent / f"meeting-{training.attempt}"
        meeting.parent.mkdir(exist_ok=True)
        groups = [(f"file://{meeting}", plan.devices, rank) for rank in range(plan.devices)]
        self.running.append(training)
        training.pending = [
            self.cluster.submit(
                attempt,
                network.architecture,
                self.prepared.data,
                self.recipe,
                options if plan.devices == 1 else replace(options, group=group),
                threads=self.threads,
            )
            for group in groups
        ]
        what = f"{self.recipe.total_epochs} epochs of {self.recipe.name}"
        _say(self.console, trial, f"{describe(network.architecture)}, {what}")

    def _open_tracker(self, training: _Entry) -> Tracker:
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
        return open_tracker(self.track, identity=identity, title=title, settings=settings)

    def _take(self, reference: Any, result: Ended[RetrainResult] | None, cause: str | None) -> None:
        """Take what one process of a training gave; the first failure or the last result counts."""
        found = [one for one in self.running if reference in one.pending]
        if not found:
            return  # of a group that has ended meanwhile
        (training,) = found
        ended: Ended[RetrainResult] = result or Ended(end="lost", cause=cause)
        training.pending.remove(reference)
        if ended.end == "done" and training.pending:
            return
        self._drop(training)
        self.running.remove(training)
        self._settle(training, ended)

    def _settle(self, training: _Entry, ended: Ended[RetrainResult]) -> None:
        """Write how an attempt ended; what was lost is handed out again, a few times."""
        if ended.end == "done":
            self._finish(training, "done", ended)
            trial = self.run.record.trial(training.trial.id)
            _say(self.console, trial, _result_text(trial))
            return
        has_failed = ended.end == "failed"
        self._finish(training, "failed" if has_failed else "lost", ended)
        _say(self.console, training.trial, f"{ended.end}: {ended.cause}")
        if ended.end == "full disk":
            raise FullDiskError(f"{training.out}: {ended.cause}")
        moved = len(_epochs(training.out)) > training.begun_at
        training.lost = 1 if moved else training.lost + 1
        if has_failed or training.lost > MAX_AGAIN:
            self.num_failed += 1
            _say(self.console, training.trial, "given up; the same command goes on with it")
        else:
            self.waiting.appendleft(training)

    def _finish(
        self, training: _Entry, outcome: AttemptOutcome, ended: Ended[RetrainResult] | None = None
    ) -> None:
        values = None
        if ended is not None and ended.result is not None:
            accuracy = ended.result.accuracy
            values = Measured.judged(accuracy.correct, accuracy.total).values()
        if training.tracker is not None:
            _track_epochs(training.tracker, _epochs(training.out))
            if values is not None:
                after = self.recipe.total_epochs + 1
                training.tracker.log({"test_top1": values["top1"]}, step=after)
            training.tracker.close(_TRACKED_ENDS.get(outcome, "stopped"))
        cause = None if ended is None else ended.cause
        self.run.record.finish_attempt(
            training.attempt, outcome=outcome, values=values, cause=cause
        )

    def _drop(self, training: _Entry) -> None:
        """End what is left of a group: its processes would wait for the one that has ended."""
        if training.pending:
            self.cluster.cancel(training.pending)
            training.pending = []

    def _show_epochs(self, training: _Entry) -> None:
        """Say where a training stands, when its metrics have grown."""
        epochs = _epochs(training.out)
        if not epochs or len(epochs) == training.epochs_shown:
            return
        training.epochs_shown = len(epochs)
        if training.tracker is not None:
            _track_epochs(training.tracker, epochs)
        last = epochs[-1]
        seconds = sum(epoch.seconds for epoch in epochs) / len(epochs)
        text = (
            f"epoch {len(epochs)} of {last.epochs}, loss {last.loss:.3f}, "
            f"{last.images_per_second:,.0f} images/s, "
            f"{clock_text(seconds * (last.epochs - len(epochs)))} left"
        )
        _say(self.console, training.trial, text)
        if (held_up := starvation(last)) and len(epochs) == 1:
            _say(self.console, training.trial, held_up)


def _track_epochs(tracker: Tracker, epochs: Sequence[EpochReport]) -> None:
    for epoch in epochs:
        tracker.log(epoch_values(epoch), step=epoch.epoch)


def _epochs(out: Path) -> list[EpochReport]:
    """Read the epochs that a training has finished; none where the table is damaged."""
    try:
        return read_csv((out / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _say(console: Console, trial: Trial, text: str) -> None:
    console.print(
        f"Network {trial.architecture_id}, seed {trial.seed}: {text}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _result_text(trial: Trial) -> str:
    return accuracy_text(trial.measured.correct, trial.measured.total, "test images")
