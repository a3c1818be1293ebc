"""``search transfer RUN --arch ID``: members of a run as backbones, charged on their own.

Their results stand in the record at fidelities of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from search.cluster import Cluster
from search.record import Measured, Trial
from search.results import transfer_label, transferred
from search.retraining.finished import Retrained, find_retrained
from search.retraining.training_queue import (
    Job,
    Training,
    TrainingQueue,
    say,
    train_on_cluster,
)
from search.retraining.wanted import assembled
from search.run_folder import RunFolder
from search.terminal import clock_text
from search.transferring.attempt import attempt
from search.transferring.network import TransferOptions, build_network, check_transfer
from search.transferring.result import (
    FOLDER,
    Transferred,
    TransferResult,
    is_transfer,
    open_transferred,
    result_text,
)
from searchspace.architecture import describe
from supernet.data.dense import DenseData
from supernet.dense.distillation import DenseTeacher, check_dense_teacher
from supernet.dense.network import extract_dense
from supernet.dense.shared import load_dense_supernet
from supernet.dense.target import Target
from supernet.dense.timm_backbone import TimmTarget, timm_features
from supernet.dense.training import METRICS_FILE, StepReport, read_csv
from supernet.exchange.published import convert, read_checkpoint
from supernet.network import extract
from supernet.recipes import DenseRecipe, dump_dense_recipe, load_dense_recipe
from supernet.shared_weights import load_supernet
from supernet.training import digest_of

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
        teacher: Whom the networks learn from as well.
        devices: That train one network together.
        workers: Processes that make batches for a device; None for 0 on CPU, 8 on a GPU.
    """

    recipe: DenseRecipe
    data: DenseData
    data_source: str
    seeds: Sequence[int] = (0,)
    start: str | None = None
    teacher: DenseTeacher | None = None
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
        about = f"{dump_dense_recipe(self.recipe)}{self.data.fingerprint}{digest_of(start or {})}"
        taught = []
        if self.teacher is not None:
            about += self.teacher.fingerprint
            taught = ["taught"]
        digest = hashlib.sha256(about.encode()).hexdigest()
        words = [self.recipe.name, self.recipe.length(), start_name, *taught, digest[:8]]
        return "-".join(words)


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
        What kept it from its end, see `train_on_cluster`; or None.

    Raises:
        ValueError: If an id is unknown, a network is no backbone, or there are too few devices.
    """
    starts: dict[int, tuple[dict[str, Tensor] | None, str]] = {}
    for number in dict.fromkeys(ids):
        check_transfer(run.architecture(number), plan.recipe, plan.data.task)
        starts[number] = find_start(run, number, plan.start)
        network = build_network(run.architecture(number), plan.data, plan.recipe, starts[number][0])
        if plan.teacher is not None:
            check_dense_teacher(network, plan.teacher)
    run.record.close_orphans()
    asked = [(number, seed) for number in starts for seed in dict.fromkeys(plan.seeds)]
    trials = [_trial(run, number, seed, plan, starts[number]) for number, seed in asked]
    for trial in trials:
        if trial.state == "done":
            say(console, trial, result_text(trial.measured))
    left = [trial for trial in trials if trial.state != "done"]
    if not left:
        return None

    def work(cluster: Cluster) -> tuple[_Queue, Iterable[Training]]:
        queue = _Queue(run, cluster, plan, starts, console, tasks=len(trials))
        return queue, [queue.training(trial) for trial in left]

    return train_on_cluster(
        run, work, devices=plan.devices, console=console, ray_address=ray_address
    )


def _trial(
    run: RunFolder,
    number: int,
    seed: int,
    plan: TransferPlan,
    start: tuple[dict[str, Tensor] | None, str],
) -> Trial:
    """Find or make the trial of a network and a seed; one that failed may try again."""
    weights, start_name = start
    fidelity = transferred(plan.label(start_name, weights))
    trial_id = run.record.add_trial(number, fidelity=fidelity, seed=seed, origin=PHASE)
    if run.record.trial(trial_id).state != "done":
        run.record.retry(trial_id)
    return run.record.trial(trial_id)


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
        return _weights_of(find_retrained(f"{run.folder}:{number}")), "retrained"
    try:
        return _inherited(run, number), "inherited"
    except FileNotFoundError:
        return None, "fresh"


def _inherited(run: RunFolder, number: int) -> dict[str, Tensor]:
    """Take a network's weights out of the run's supernet; those of a graft are its parts'.

    Raises:
        FileNotFoundError: If it has none.
        ValueError: If the parts of a graft have not learned.
    """
    if run.settings.teacher:
        return dict(assembled(run, number).state_dict())
    folder, space, architecture = run.supernet_folder(), run.space(), run.architecture(number)
    if run.settings.classifies:
        return dict(extract(load_supernet(folder, space), architecture).state_dict())
    recipe = load_dense_recipe(run.settings.trial_recipe)
    supernet = load_dense_supernet(folder, space, recipe, space.num_classes)
    return dict(extract_dense(supernet, architecture).state_dict())


def _weights_of(found: Retrained) -> dict[str, Tensor]:
    """Read the weights of a retraining, unless they are not those that it left."""
    found.check_weights()
    return load_file(found.weights)


def find_dense_teacher(text: str, data: DenseData) -> DenseTeacher:
    """Open the folder of a transfer as a teacher.

    Raises:
        ValueError: If there is none, or it learnt another task or other classes.
    """
    return look_for_dense_teacher(text)(data)


def look_for_dense_teacher(text: str) -> Callable[[DenseData], DenseTeacher]:
    """Look whether there is a teacher, before there are images; see `find_dense_teacher`.

    Returns:
        What builds it, for the images that it is to teach.

    Raises:
        ValueError: If there is none.
    """
    try:
        found = open_transferred(Path(text))
    except (OSError, ValueError) as error:
        raise ValueError(f"--teacher {text}: {error}") from error
    return partial(_taught_by, text, found)


def _taught_by(text: str, found: Transferred, data: DenseData) -> DenseTeacher:
    if (found.result.task, found.result.class_names) != (data.task, data.class_names):
        raise ValueError(
            f"The teacher {text} learnt --task {found.result.task} with the classes "
            f"{', '.join(found.result.class_names[:3])} ..., and these images are for --task "
            f"{data.task} with {', '.join(data.class_names[:3])} .... Name one of the same."
        )
    network = found.network()
    return DenseTeacher(
        network=network,
        name=text,
        fingerprint=digest_of(network.state_dict()),
        target=found.architecture,
        recipe=found.recipe,
        num_classes=len(found.result.class_names),
    )


def load_weights(path: Path, architecture: Target) -> dict[str, Tensor]:
    """Read weights: a file of ours or a published one, or the folder of a retraining or transfer.

    Raises:
        ValueError: If there are none for the architecture.
    """
    if path.is_dir():
        if is_transfer(path):
            return load_file(open_transferred(path).weights())
        return _weights_of(find_retrained(str(path)))
    if isinstance(architecture, TimmTarget):
        state = timm_features(architecture.name, file=path).state_dict()
        return {f"backbone.network.{name}": value for name, value in state.items()}
    state = read_checkpoint(path)
    if any(name.startswith(("stages.", "backbone.network.")) for name in state):
        return state
    return convert(state, architecture)


class _Queue(TrainingQueue[Training]):
    phase = PHASE

    def __init__(
        self,
        run: RunFolder,
        cluster: Cluster,
        plan: TransferPlan,
        starts: Mapping[int, tuple[dict[str, Tensor] | None, str]],
        console: Console,
        *,
        tasks: int,
    ) -> None:
        super().__init__(run, cluster, console, devices=plan.devices, tasks=tasks)
        self.plan, self.starts = plan, starts

    def training(self, trial: Trial) -> Training:
        """Say where a trial's training lies."""
        label = transfer_label(trial.fidelity)
        name = f"{trial.architecture_id}-{label}-s{trial.seed}"
        return Training(trial=trial, out=self.run.folder.resolve() / FOLDER / name)

    def job(self, training: Training) -> Job:
        plan, trial = self.plan, training.trial
        start, start_name = self.starts[trial.architecture_id]
        options = TransferOptions(
            out=training.out,
            seed=trial.seed,
            data_source=plan.data_source,
            device="cuda" if self.is_gpu else "cpu",
            threads=self.threads,
            start=start,
            start_name=start_name,
            teacher=plan.teacher,
            loader_workers=self.loader_workers(plan.workers),
        )
        what = f"{plan.recipe.length()} of {plan.recipe.name}, {start_name} weights"
        return Job(
            function=attempt,
            arguments=(trial.architecture, plan.data, plan.recipe),
            options=options,
            text=f"{describe(trial.architecture)}, {what}",
        )

    def progress(self, training: Training) -> int:
        reports = _reports(training.out)
        return reports[-1].step if reports else 0

    def progress_text(self, training: Training) -> str:
        reports = _reports(training.out)
        last = reports[-1]
        left = sum(r.seconds for r in reports) / last.step * (last.steps - last.step)
        return f"step {last.step} of {last.steps}, loss {last.loss:.3f}, {clock_text(left)} left"

    def measured(self, result: TransferResult) -> Measured:
        return result.measured

    def result_text(self, trial: Trial) -> str:
        return result_text(trial.measured)


def _reports(out: Path) -> Sequence[StepReport]:
    """Read what a training has reported; nothing where the table is damaged."""
    try:
        return read_csv((out / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
