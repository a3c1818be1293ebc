"""``search transfer RUN --arch ID``: members of a run as backbones, charged on their own.

The sibling of `search.retraining.queue`: one Ray task for each device of a training, everything
that a training needs to go on in its folder, results in the record at fidelities of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from search.cluster.connection import Cluster, take_finished
from search.record.heartbeat import Heartbeat
from search.record.record import Trial
from search.retraining.finished import find_retrained
from search.run_folder.folder import RunFolder
from search.terminal.progress import StopSignals, clock_text
from search.transferring.network import TransferOptions, check_transfer, transfer
from search.transferring.result import FOLDER, TransferResult, result_text
from searchspace.architecture import Architecture, describe
from supernet.data.dense import DenseData
from supernet.dense.training import METRICS_FILE, read_csv
from supernet.exchange.published import convert, read_checkpoint
from supernet.network.supernet import extract
from supernet.recipes.dense_recipe import DenseRecipe
from supernet.shared_weights.checkpoint import load_supernet

PHASE = "transfer"


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

    def label(self, start: str) -> str:
        """Name what is done, so that different transfers of a network are told apart."""
        words = [self.recipe.name, self.recipe.length(), self.data.fingerprint[:6], start]
        return "-".join(words)


@dataclass(slots=True)
class _Training:
    trial: Trial
    attempt: int
    out: Path
    pending: list[Any]
    steps_shown: int = 0


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
        The name of the signal that stopped it, or None.

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
            label = plan.label(starts[number][1])
            trial_id = run.record.add_trial(
                number, fidelity=f"{PHASE}-{label}", seed=seed, origin=PHASE
            )
            trial = run.record.trial(trial_id)
            if trial.state in ("done", "failed"):
                _say(console, trial, _outcome_text(trial))
            else:
                queue.append(trial)
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
        _Queue(run, cluster, plan, starts, console).work_off(queue, stop)
        return stop.requested


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
        supernet = load_supernet(run.supernet_folder(), run.space())
    except FileNotFoundError:
        return None, "fresh"
    return dict(extract(supernet, run.architecture(number)).state_dict()), "inherited"


def load_weights(path: Path, architecture: Architecture) -> dict[str, Tensor]:
    """Read weights: a file of ours or a published one, or the folder of a retraining or transfer.

    Raises:
        ValueError: If there are none for the architecture.
    """
    if path.is_dir():
        from search.transferring.result import is_transfer
        from supernet.training.training import WEIGHTS_FILE

        if is_transfer(path):
            return load_file(path / WEIGHTS_FILE)
        return load_file(find_retrained(str(path)).weights)
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
        self.running: list[_Training] = []

    def work_off(self, queue: list[Trial], stop: StopSignals) -> None:
        """Train them all, in order."""
        threads = 4 if self.is_gpu else 1
        slots = self.cluster.devices // self.plan.devices
        while (queue or self.running) and not stop.requested:
            while queue and len(self.running) < slots:
                self._hand_out(queue.pop(0), threads)
            pending = [reference for training in self.running for reference in training.pending]
            for reference, result, cause in take_finished(pending):
                self._settle(reference, result, cause)
            for training in self.running:
                _show_steps(self.console, training)
        for training in self.running:
            self.run.record.finish_attempt(training.attempt, outcome="interrupted")

    def _hand_out(self, trial: Trial, threads: int) -> None:
        plan, run = self.plan, self.run
        start, start_name = self.starts[trial.architecture_id]
        label = trial.fidelity.removeprefix(f"{PHASE}-")
        out = run.folder / FOLDER / f"{trial.architecture_id}-{label}-s{trial.seed}"
        options = TransferOptions(
            out=out.resolve(),
            seed=trial.seed,
            data_source=plan.data_source,
            device="cuda" if self.is_gpu else "cpu",
            threads=threads,
            start=start,
            start_name=start_name,
            loader_workers=(8 if self.is_gpu else 0) if plan.workers is None else plan.workers,
        )
        attempt = run.record.start_attempt(PHASE, devices=plan.devices, trial_id=trial.id)
        # A file that is new for every attempt: the processes of a group meet in it.
        meeting = run.folder.resolve() / FOLDER / f"meeting-{attempt}"
        meeting.parent.mkdir(exist_ok=True)
        groups = [(f"file://{meeting}", plan.devices, rank) for rank in range(plan.devices)]
        pending = [
            self.cluster.submit(
                transfer,
                trial.architecture,
                plan.data,
                plan.recipe,
                options if plan.devices == 1 else replace(options, group=group),
                threads=threads,
            )
            for group in groups
        ]
        self.running.append(_Training(trial, attempt, out, pending))
        text = f"{describe(trial.architecture)}, {plan.recipe.length()} of {plan.recipe.name}, "
        _say(self.console, trial, f"{text}{start_name} weights")

    def _settle(self, reference: Any, result: TransferResult | None, cause: str | None) -> None:
        """Take what one process of a training gave; the first failure, or the result, counts."""
        (training,) = (t for t in self.running if reference in t.pending)
        training.pending.remove(reference)
        record = self.run.record
        if cause is not None:
            self.running.remove(training)
            record.finish_attempt(training.attempt, outcome="failed", cause=cause)
        elif result is not None:
            self.running.remove(training)
            record.finish_attempt(training.attempt, outcome="done", values=result.values)
        else:
            return
        _say(self.console, training.trial, _outcome_text(record.trial(training.trial.id)))


def _show_steps(console: Console, training: _Training) -> None:
    """Say where a training stands, when its metrics have grown."""
    metrics = training.out / METRICS_FILE
    if not metrics.is_file():
        return
    reports = read_csv(metrics.read_text())
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


def _outcome_text(trial: Trial) -> str:
    if trial.state != "done":
        return f"{trial.state}: {trial.cause}"
    return result_text(dict(trial.values))
