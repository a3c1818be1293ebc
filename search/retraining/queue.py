"""``search retrain``: the chosen members of a run through the full recipe, charged on their own.

Each network trains on one device or several (CPU: its share of the cores), several networks at a
time, as Ray tasks; the tasks of one network form a group of torch.distributed. Everything that a
training needs to go on lies in its folder, so stopping is dropping the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from configs.files import reading
from search.cluster.connection import Cluster, take_finished
from search.record.heartbeat import Heartbeat
from search.record.record import Trial
from search.results.intervals import wilson_interval
from search.retraining.finished import find_retrained
from search.retraining.network import RetrainOptions, RetrainResult, retrain
from search.run_folder.folder import RunFolder
from search.terminal.progress import StopSignals, clock_text
from searchspace.architecture import Architecture, describe
from searchspace.mixers import Mixer
from supernet.data import ImageData, prepare_data
from supernet.network.supernet import extract
from supernet.recipes.recipe import Recipe, load_recipe, with_epochs
from supernet.shared_weights.checkpoint import load_supernet
from supernet.training.batches import count_shards
from supernet.training.epoch_report import read_csv, starvation
from supernet.training.training import METRICS_FILE

PHASE = "retrain"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrainPlan:
    """What `search retrain` was asked to do with each network.

    Attributes:
        recipe: Name or file; None takes the run's.
        epochs: Instead of the recipe's.
        seeds: Of weights and data order; every network is trained with each of them.
        inherit: Start from the weights that the run's supernet has for the network.
        start: Start from this folder of a retraining, or file of weights, of the same network.
        img_size: Another side of the images.
        taps: Turn windows and kernels of the first size into the second.
        token_labels: Folder of label maps.
        devices: That train one network together.
        workers: Processes that make batches for a device; None for 0 on CPU, 8 on a GPU.
    """

    recipe: str | None = None
    epochs: int | None = None
    seeds: Sequence[int] = (0,)
    inherit: bool = False
    start: Path | None = None
    img_size: int | None = None
    taps: tuple[int, int] | None = None
    token_labels: Path | None = None
    devices: int = 1
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.inherit and self.start is not None:
            raise ValueError("A training has one start: give --inherit or --start, not both.")

    def load_recipe(self) -> Recipe:
        """Read the recipe at its length; `recipe` is a name by now."""
        recipe = load_recipe(self.recipe or "")
        return recipe if self.epochs is None else with_epochs(recipe, self.epochs)

    def label(self, recipe: Recipe) -> str:
        """Name what is done, so that different trainings of a network are told apart."""
        words = [recipe.name, f"{recipe.total_epochs}e"]
        words += ["inherited"] * self.inherit
        words += [] if self.start is None else [f"from-{self.start.name}"]
        words += [] if self.img_size is None else [f"{self.img_size}px"]
        words += [] if self.taps is None else ["{}to{}".format(*self.taps)]
        return "-".join(words)


@dataclass(slots=True)
class _Training:
    trial: Trial
    attempt: int
    out: Path
    epochs: int
    pending: list[Any]
    epochs_shown: int = 0


def retrain_members(
    run: RunFolder,
    ids: Sequence[int],
    plan: RetrainPlan,
    *,
    console: Console,
    ray_address: str | None = None,
) -> str | None:
    """Retrain networks of a run; what was finished before is not repeated, what was begun goes on.

    Args:
        ids: Ids of the run's networks.
        plan: What to do with each.
        ray_address: A Ray cluster to join; None uses this machine.

    Returns:
        The name of the signal that stopped it, or None.

    Raises:
        ValueError: If an id or the recipe is unknown, or there are too few devices.
    """
    plan = replace(plan, recipe=plan.recipe or run.settings.retrain_recipe)
    recipe = plan.load_recipe()
    for number in ids:
        resized(run.architecture(number), plan)
        _start(run, number, plan)
    data = _data(run, plan)
    count_shards(len(data.full_train()), recipe, plan.devices)
    run.record.close_orphans()
    queue = []
    for number in ids:
        for seed in plan.seeds:
            trial_id = run.record.add_trial(
                number, fidelity=f"{PHASE}-{plan.label(recipe)}", seed=seed, origin=PHASE
            )
            trial = run.record.trial(trial_id)
            if trial.state in ("done", "failed"):
                console.print(f"Network {number}, seed {seed}: {_result_text(trial)}")
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
        _Queue(run, cluster, plan, data, console).work_off(queue, stop)
        return stop.requested


def resized(architecture: Architecture, plan: RetrainPlan) -> Architecture:
    """Return the network at the plan's image size, with its windows and kernels.

    Raises:
        ValueError: If no mixer has the size that is to change, or the sizes do not fit.
    """
    if plan.img_size is not None:
        architecture = architecture.replace(img_size=plan.img_size)
    if plan.taps is None:
        return architecture
    old, new = plan.taps
    changed = [
        replace(stage, mixers=tuple(_with_taps(mixer, old, new) for mixer in stage.mixers))
        for stage in architecture.stages
    ]
    if changed == list(architecture.stages):
        raise ValueError(f"No mixer of this network has the size {old}. Leave --taps out.")
    return architecture.replace(stages=tuple(changed))


def _with_taps(mixer: Mixer, old: int, new: int) -> Mixer:
    for name in ("window_size", "kernel_size"):
        if getattr(mixer, name, None) == old:
            return replace(mixer, **{name: new})  # type: ignore[arg-type]
    return mixer


def _data(run: RunFolder, plan: RetrainPlan) -> ImageData:
    data = run.data()
    if plan.img_size is None or plan.img_size == data.img_size:
        return data
    folder = run.folder / f"data-{plan.img_size}"
    return prepare_data(data.source, img_size=plan.img_size, folder=folder)


def _start(run: RunFolder, number: int, plan: RetrainPlan) -> dict[str, Tensor] | None:
    """Load the weights that a network starts from."""
    if plan.inherit:
        try:
            supernet = load_supernet(run.supernet_folder(), run.space())
        except FileNotFoundError as error:
            raise ValueError(
                f"{run.folder} has no trained supernet. Leave --inherit out."
            ) from error
        return dict(extract(supernet, run.architecture(number)).state_dict())
    if plan.start is None:
        return None
    if plan.start.is_file():
        remedy = "Name a file of safetensors, or the folder of a retraining."
        with reading(plan.start, "weights", remedy=remedy, errors=(SafetensorError,)):
            return load_file(plan.start)
    return load_file(find_retrained(str(plan.start)).weights)


class _Queue:
    """Keeps every device busy until all networks are trained or the user stops."""

    def __init__(
        self,
        run: RunFolder,
        cluster: Cluster,
        plan: RetrainPlan,
        data: ImageData,
        console: Console,
    ) -> None:
        self.run, self.cluster, self.plan = run, cluster, plan
        self.data, self.console, self.recipe = data, console, plan.load_recipe()
        self.is_gpu = run.settings.parsed_budget.device == "gpu"
        self.running: list[_Training] = []

    def work_off(self, queue: list[Trial], stop: StopSignals) -> None:
        """Train them all, in order."""
        tasks = len(queue) * self.plan.devices
        threads = 4 if self.is_gpu else max(self.cluster.devices // tasks, 1)
        slots = self.cluster.devices // ((1 if self.is_gpu else threads) * self.plan.devices)
        while (queue or self.running) and not stop.requested:
            while queue and len(self.running) < slots:
                self._hand_out(queue.pop(0), threads)
            pending = [reference for training in self.running for reference in training.pending]
            for reference, result, cause in take_finished(pending):
                self._settle(reference, result, cause)
            for training in self.running:
                _show_epochs(self.console, training)
        for training in self.running:
            self.run.record.finish_attempt(training.attempt, outcome="interrupted")

    def _hand_out(self, trial: Trial, threads: int) -> None:
        plan, recipe, run = self.plan, self.recipe, self.run
        out = run.folder / PHASE / f"{trial.architecture_id}-{plan.label(recipe)}-s{trial.seed}"
        start = _start(run, trial.architecture_id, plan)
        options = RetrainOptions(
            out=out.resolve(),
            seed=trial.seed,
            device="cuda" if self.is_gpu else "cpu",
            threads=threads,
            start=start,
            start_name="inherited" if plan.inherit else f"those of {plan.start}",
            token_labels=plan.token_labels,
            loader_workers=(8 if self.is_gpu else 0) if plan.workers is None else plan.workers,
        )
        held = plan.devices * (1 if self.is_gpu else threads)
        attempt = run.record.start_attempt(PHASE, devices=held, trial_id=trial.id)
        # A file that is new for every attempt: the processes of a group meet in it.
        meeting = run.folder.resolve() / PHASE / f"meeting-{attempt}"
        meeting.parent.mkdir(exist_ok=True)
        groups = [(f"file://{meeting}", plan.devices, rank) for rank in range(plan.devices)]
        architecture = resized(trial.architecture, plan)
        pending = [
            self.cluster.submit(
                retrain,
                architecture,
                self.data,
                recipe,
                options if plan.devices == 1 else replace(options, group=group),
                threads=threads,
            )
            for group in groups
        ]
        self.running.append(_Training(trial, attempt, out, recipe.total_epochs, pending))
        text = f"{describe(architecture)}, {recipe.total_epochs} epochs of {recipe.name}"
        _say(self.console, trial, text)

    def _settle(self, reference: Any, result: RetrainResult | None, cause: str | None) -> None:
        """Take what one process of a training gave; the first failure or the last result counts."""
        (training,) = (t for t in self.running if reference in t.pending)
        training.pending.remove(reference)
        if result is not None and training.pending:
            return
        self.running.remove(training)
        record = self.run.record
        if result is None:
            record.finish_attempt(training.attempt, outcome="failed", cause=cause)
        else:
            accuracy = result.accuracy
            values = {"top1": accuracy.top1, "correct": accuracy.correct, "total": accuracy.total}
            record.finish_attempt(training.attempt, outcome="done", values=values)
        _say(self.console, training.trial, _result_text(record.trial(training.trial.id)))


def _show_epochs(console: Console, training: _Training) -> None:
    """Say where a training stands, when its metrics have grown."""
    metrics = training.out / METRICS_FILE
    if not metrics.is_file():
        return
    epochs = read_csv(metrics.read_text(encoding="utf-8"))
    if len(epochs) == training.epochs_shown:
        return
    training.epochs_shown = len(epochs)
    last = epochs[-1]
    left = clock_text(sum(e.seconds for e in epochs) / len(epochs) * (last.epochs - len(epochs)))
    text = (
        f"epoch {len(epochs)} of {training.epochs}, loss {last.loss:.3f}, "
        f"{last.images_per_second:,.0f} images/s, {left} left"
    )
    _say(console, training.trial, text)
    if (held_up := starvation(last)) and len(epochs) == 1:
        _say(console, training.trial, held_up)


def _say(console: Console, trial: Trial, text: str) -> None:
    console.print(
        f"Network {trial.architecture_id}, seed {trial.seed}: {text}",
        highlight=False,
        soft_wrap=True,
    )


def _result_text(trial: Trial) -> str:
    if trial.state != "done":
        return f"{trial.state}: {trial.cause}"
    values = trial.values
    low, high = wilson_interval(int(values["correct"]), int(values["total"]))
    return (
        f"{values['top1']:.2f} % of {values['total']:,.0f} test images "
        f"(95 % interval {low:.1f} to {high:.1f})"
    )
