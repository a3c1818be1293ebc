"""``search transfer RUN --arch ID``: members of a run as backbones, charged on their own.

The sibling of `search.retraining.queue`: one Ray task for each device of a training, everything
that a training needs to go on in its folder, results in the record at fidelities of their own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from search.cluster import Cluster, take_finished
from search.record import Heartbeat, Trial
from search.results import transfer_label, transferred
from search.retraining.attempt import Ended
from search.retraining.finished import find_retrained
from search.run_folder import RunFolder
from search.terminal import StopSignals, clock_text
from search.transferring.attempt import attempt
from search.transferring.network import TransferOptions, check_transfer
from search.transferring.result import FOLDER, TransferResult, is_transfer, result_text
from search.transferring.target import Target
from searchspace.architecture import describe
from supernet.data.dense import DenseData
from supernet.dense.network import extract_dense
from supernet.dense.shared import load_dense_supernet
from supernet.dense.timm_backbone import TimmTarget, timm_features
from supernet.dense.training import METRICS_FILE, read_csv
from supernet.exchange.published import convert, read_checkpoint
from supernet.network import extract
from supernet.recipes import DenseRecipe, dump_dense_recipe, load_dense_recipe
from supernet.shared_weights import load_supernet
from supernet.training import WEIGHTS_FILE

PHASE = "transfer"
FAILED = "a failed training"
# A training that the machine lost is handed out again so often without a step between.
MAX_AGAIN = 3
LOOK_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferPlan:
    """What `search transfer` was asked to do with each network.

    Attributes:
        recipe: At its length.
        data: The data.
        data_source: What the user named it by.
        seeds: Every network is trained with each of them.
        start: File of weights, folder of a retraining, ``fresh``; None: the retrained network's
            where there is one, else the supernet's, else fresh.
        devices: That train one network together.
        workers: Processes that make batches for a device; None for 0 on CPU, 8 on a GPU.
    """

    recipe: DenseRecipe
    data: DenseData
    data_source: str
    seeds: Sequence[int] = (0,)
    start: str | None = None
    devices: int = 1
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.recipe.num_shards % self.devices or self.devices < 1:
            raise ValueError(
                f"A step of {self.recipe.name} has {self.recipe.num_shards} shards, which "
                f"{self.devices} devices cannot share evenly. Choose --devices that divides them."
            )

    def label(self, start_name: str, start: Mapping[str, Tensor] | None) -> str:
        """Name what is done; a part of the hash of all that decides it tells equal names apart."""
        digest = hashlib.sha256(dump_dense_recipe(self.recipe).encode())
        digest.update(self.data.fingerprint.encode())
        for name, value in sorted((start or {}).items()):
            digest.update(name.encode())
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        words = [self.recipe.name, self.recipe.length(), start_name, digest.hexdigest()[:8]]
        return "-".join(words)


@dataclass(slots=True)
class _Training:
    trial: Trial
    out: Path
    attempt: int = 0
    pending: list[Any] = field(default_factory=list)
    steps_shown: int = 0
    lost: int = 0  # times in a row without a step between
    begun_at: int = 0  # steps that were done when the attempt began
    result: TransferResult | None = None


def transfer_members(
    run: RunFolder,
    ids: Sequence[int],
    plan: TransferPlan,
    *,
    console: Console,
    ray_address: str | None = None,
) -> str | None:
    """Train networks of a run as backbones; what was finished is not repeated, the rest goes on.

    Returns:
        What kept it from its end: the name of a signal or `FAILED`; or None.

    Raises:
        ValueError: If an id is unknown, a network is no backbone, or there are too few devices.
    """
    queue = []
    starts: dict[int, tuple[dict[str, Tensor] | None, str]] = {}
    for number in ids:
        check_transfer(run.architecture(number), plan.recipe, plan.data.task)
        starts[number] = find_start(run, number, plan.start)
    run.record.close_orphans()
    for number in ids:
        for seed in plan.seeds:
            label = plan.label(starts[number][1], starts[number][0])
            trial_id = run.record.add_trial(
                number, fidelity=transferred(label), seed=seed, origin=PHASE
            )
            trial = run.record.trial(trial_id)
            if trial.state == "done":
                _say(console, trial, result_text(dict(trial.values)))
            else:
                run.record.retry(trial_id)
                queue.append(run.record.trial(trial_id))
    if not queue:
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
        work = _Queue(run, cluster, plan, starts, console)
        work.work_off([work.training(trial) for trial in queue], stop)
        return stop.requested or (FAILED if work.num_failed else None)


def find_start(
    run: RunFolder, number: int, wanted: str | None
) -> tuple[dict[str, Tensor] | None, str]:
    """Load the weights that a network of a run starts from, and name them.

    Raises:
        ValueError: If those that were asked for are not there.
    """
    if wanted == "fresh":
        return None, "fresh"
    if wanted is not None:
        return load_weights(Path(wanted), run.architecture(number)), f"from-{Path(wanted).stem}"
    if list((run.folder / "retrain").glob(f"{number}-*/result.json")):
        return load_file(find_retrained(f"{run.folder}:{number}").weights), "retrained"
    try:
        return _inherited(run, number), "inherited"
    except FileNotFoundError:
        return None, "fresh"


def _inherited(run: RunFolder, number: int) -> dict[str, Tensor]:
    """Take a network's weights out of the run's supernet.

    Raises:
        FileNotFoundError: If it has none.
    """
    folder, space, architecture = run.supernet_folder(), run.space(), run.architecture(number)
    if run.settings.classifies:
        return dict(extract(load_supernet(folder, space), architecture).state_dict())
    recipe = load_dense_recipe(run.settings.trial_recipe)
    supernet = load_dense_supernet(folder, space, recipe, space.num_classes)
    return dict(extract_dense(supernet, architecture).state_dict())


def load_weights(path: Path, architecture: Target) -> dict[str, Tensor]:
    """Read weights: a file of ours or a published one, or the folder of a retraining or transfer.

    Raises:
        ValueError: If there are none for the architecture.
    """
    if path.is_dir():
        if is_transfer(path):
            return load_file(path / WEIGHTS_FILE)
        return load_file(find_retrained(str(path)).weights)
    if isinstance(architecture, TimmTarget):
        state = timm_features(architecture.name, file=path).state_dict()
        return {f"backbone.network.{name}": value for name, value in state.items()}
    state = read_checkpoint(path)
    if any(name.startswith(("stages.", "backbone.network.")) for name in state):
        return state
    return convert(state, architecture)


class _Queue:
    """Keeps every device busy until all networks are trained or the user stops."""

    def __init__(
        self,
        run: RunFolder,
        cluster: Cluster,
        plan: TransferPlan,
        starts: Mapping[int, tuple[dict[str, Tensor] | None, str]],
        console: Console,
    ) -> None:
        self.run, self.cluster, self.plan = run, cluster, plan
        self.starts, self.console = starts, console
        self.is_gpu = run.settings.parsed_budget.device == "gpu"
        self.threads = 4 if self.is_gpu else 1
        self.waiting: list[_Training] = []
        self.running: list[_Training] = []
        self.num_failed = 0

    def training(self, trial: Trial) -> _Training:
        """Say where a trial's training lies."""
        label = transfer_label(trial.fidelity)
        name = f"{trial.architecture_id}-{label}-s{trial.seed}"
        return _Training(trial, self.run.folder.resolve() / FOLDER / name)

    def work_off(self, trainings: Sequence[_Training], stop: StopSignals) -> None:
        """Train them all, in order."""
        self.waiting = list(trainings)
        try:
            while (self.waiting or self.running) and not stop.requested:
                # Nodes come and go.
                places = self.cluster.devices // self.plan.devices
                while self.waiting and len(self.running) < places:
                    self._hand_out(self.waiting.pop(0))
                if not self.running:
                    time.sleep(LOOK_SECONDS)
                    continue
                pending = [reference for one in self.running for reference in one.pending]
                for reference, ended, cause in take_finished(pending):
                    self._take(reference, ended or Ended(end="lost", cause=cause))
                for training in self.running:
                    _show_steps(self.console, training)
        finally:
            for training in self.running:
                self._drop(training)
                self.run.record.finish_attempt(training.attempt, outcome="interrupted")

    def _hand_out(self, training: _Training) -> None:
        plan, run, trial = self.plan, self.run, training.trial
        start, start_name = self.starts[trial.architecture_id]
        options = TransferOptions(
            out=training.out,
            seed=trial.seed,
            data_source=plan.data_source,
            device="cuda" if self.is_gpu else "cpu",
            threads=self.threads,
            start=start,
            start_name=start_name,
            loader_workers=(8 if self.is_gpu else 0) if plan.workers is None else plan.workers,
        )
        training.begun_at = _steps_done(training.out)
        number = run.record.start_attempt(PHASE, devices=plan.devices, trial_id=trial.id)
        training.attempt = number
        # A file that is new for every attempt: the processes of a group meet in it.
        meeting = training.out.parent / f"meeting-{number}"
        meeting.parent.mkdir(exist_ok=True)
        groups = [(f"file://{meeting}", plan.devices, rank) for rank in range(plan.devices)]
        self.running.append(training)
        training.pending = [
            self.cluster.submit(
                attempt,
                trial.architecture,
                plan.data,
                plan.recipe,
                options if plan.devices == 1 else replace(options, group=group),
                threads=self.threads,
            )
            for group in groups
        ]
        text = f"{describe(trial.architecture)}, {plan.recipe.length()} of {plan.recipe.name}, "
        _say(self.console, trial, f"{text}{start_name} weights")

    def _take(self, reference: Any, ended: Ended[TransferResult]) -> None:
        """Take what one process of a training gave; the first failure or the last end counts."""
        found = [one for one in self.running if reference in one.pending]
        if not found:
            return  # of a group that has ended meanwhile
        (training,) = found
        training.pending.remove(reference)
        if ended.end == "done":
            training.result = ended.result or training.result
            if training.pending:
                return
        self._drop(training)
        self.running.remove(training)
        self._settle(training, ended)

    def _settle(self, training: _Training, ended: Ended[TransferResult]) -> None:
        """Write how an attempt ended; what was lost is handed out again, a few times."""
        record = self.run.record
        if ended.end == "done" and training.result is not None:
            values = training.result.values
            record.finish_attempt(training.attempt, outcome="done", values=values)
            _say(self.console, training.trial, result_text(values))
            return
        has_failed = ended.end != "lost"
        record.finish_attempt(
            training.attempt, outcome="failed" if has_failed else "lost", cause=ended.cause
        )
        _say(self.console, training.trial, f"{ended.end}: {ended.cause}")
        moved = _steps_done(training.out) > training.begun_at
        training.lost = 1 if moved else training.lost + 1
        if has_failed or training.lost > MAX_AGAIN:
            self.num_failed += 1
            _say(self.console, training.trial, "given up; the same command goes on with it")
        else:
            self.waiting.insert(0, training)

    def _drop(self, training: _Training) -> None:
        """End what is left of a group: its processes would wait for the one that has ended."""
        self.cluster.cancel(training.pending)
        training.pending = []


def _steps_done(out: Path) -> int:
    metrics = out / METRICS_FILE
    return read_csv(metrics.read_text(encoding="utf-8"))[-1].step if metrics.is_file() else 0


def _show_steps(console: Console, training: _Training) -> None:
    """Say where a training stands, when its metrics have grown."""
    metrics = training.out / METRICS_FILE
    if not metrics.is_file():
        return
    reports = read_csv(metrics.read_text(encoding="utf-8"))
    last = reports[-1]
    if last.step == training.steps_shown:
        return
    training.steps_shown = last.step
    left = clock_text(sum(r.seconds for r in reports) / last.step * (last.steps - last.step))
    text = f"step {last.step} of {last.steps}, loss {last.loss:.3f}, {left} left"
    _say(console, training.trial, text)


def _say(console: Console, trial: Trial, text: str) -> None:
    console.print(
        f"Network {trial.architecture_id}, seed {trial.seed}: {text}",
        highlight=False,
        soft_wrap=True,
    )
