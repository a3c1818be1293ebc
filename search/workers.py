"""What runs on the devices: measuring, training the supernet, judging with it, training alone.

Plain classes and functions over `supernet`, without Ray: `search.executor` turns them into actors
and trials, tests call them directly. Everything that they take and return is small and picklable;
weights and images travel as files in the run's folder.
"""

from __future__ import annotations

import logging
import random
import socket
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from search.settings import RunSettings
from search.work import StepTimes, TrialTask, Work, checkpoint_folder, last_line
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.space import SearchSpace
from supernet.batches import eval_batches, train_batches
from supernet.calibration import recalibrate
from supernet.data import ImageData, open_data
from supernet.evaluation import evaluate
from supernet.network import Supernet, build_subnet, extract, extraction_error
from supernet.proxies import proxy_scores
from supernet.recipe import Recipe, in_shards, load_recipe, with_epochs
from supernet.supernet_checkpoint import load_supernet
from supernet.supernet_training import (
    Progress,
    SupernetTrainer,
    accumulate_gradients,
)
from supernet.training import TrainingOptions, train

logger = logging.getLogger(__name__)

CALIBRATION_BATCHES = 8
EVAL_BATCH = 256
PROXY_IMAGES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a worker needs to know of a run.

    Attributes:
        folder: The run's folder; ``data/`` and ``supernet/`` lie in it.
        space: The space, with the classes of the data.
        supernet_recipe: For the shared weights.
        trial_recipe: For networks that are trained alone during the search.
        strategy: How the supernet is trained.
        seed: Of the run.
        device: Torch device of one worker, ``cpu`` or ``cuda``.
    """

    folder: Path
    space: SearchSpace
    supernet_recipe: Recipe
    trial_recipe: Recipe
    strategy: str
    seed: int
    device: str

    @property
    def supernet_folder(self) -> Path:
        """Where the supernet's checkpoint lies."""
        return self.folder / "supernet"

    def open_data(self) -> ImageData:
        """Open the prepared images of the run."""
        return open_data(self.folder / "data")


def make_job(settings: RunSettings, folder: Path, data: ImageData) -> Job:
    """Describe a run to its workers; ``folder`` holds the prepared data."""
    stored = folder / "space.yaml"
    space = settings.load_space(stored if stored.is_file() else None)
    return Job(
        folder=folder.resolve(),
        space=space.replace(num_classes=data.num_classes),
        supernet_recipe=load_recipe(settings.supernet_recipe),
        trial_recipe=load_recipe(settings.trial_recipe),
        strategy=settings.strategy,
        seed=settings.seed,
        device="cuda" if settings.parsed_budget.device == "gpu" else "cpu",
    )


class SupernetWorker:
    """Holds the supernet and its trainer on one device; several of them train it together.

    Args:
        job: The run.
        threads: CPU threads to use.
    """

    def __init__(self, job: Job, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self.job = job
        self.data = job.open_data()
        self.trainer: SupernetTrainer | None = None

    def address(self) -> str:
        """Return an address where the other workers find this one, the first."""
        try:
            host = socket.gethostbyname(socket.gethostname())
        except socket.gaierror:  # a laptop whose name nobody knows; there is one machine then
            host = "127.0.0.1"
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{host}:{free.getsockname()[1]}"

    def join(self, address: str, rank: int, world_size: int) -> None:
        """Join the group of workers that train the supernet together."""
        backend = "nccl" if self.job.device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world_size)

    def measure(self) -> StepTimes:
        """Time steps and evaluations of the smallest, the largest and two random subnets."""
        job, rng = self.job, random.Random(self.job.seed)
        extremes = tuple(job.space.extreme("macs", largest=largest) for largest in (False, True))
        subnets = [*extremes, job.space.sample(rng), job.space.sample(rng)]
        split = self.data.split("train")
        trial_batch = self._first_batch(job.trial_recipe)
        trial_steps = tuple(
            (count(subnet).macs, self._time_training([subnet], trial_batch, job.trial_recipe))
            for subnet in subnets
        )
        return StepTimes(
            supernet_step=self.measure_supernet(),
            trial_steps=trial_steps,
            judge=self._time_judging(subnets),
            steps_per_epoch=max(len(split) // job.trial_recipe.batch_size, 1),
        )

    def measure_supernet(self) -> float:
        """Time a step of the shared weights, in device-seconds; all workers of a group at once."""
        steps = 3
        trainer = self._new_trainer(total_steps=1 + steps)
        trainer.run(1)
        started = time.monotonic()
        trainer.run(steps)
        return (time.monotonic() - started) / steps * trainer.world_size

    def start(self, total_steps: int) -> int:
        """Make the trainer, or continue from the run's checkpoint; return the step it is at."""
        self.trainer = self._new_trainer(total_steps)
        self.trainer.load(self.job.supernet_folder)
        return self.trainer.step

    def reschedule(self, total_steps: int) -> None:
        """Let the schedule end at another step, to keep the budget."""
        assert self.trainer is not None
        self.trainer.total_steps = max(total_steps, self.trainer.step + 1)

    def train(self, steps: int) -> Progress:
        """Take so many steps, together with the other workers."""
        assert self.trainer is not None
        return self.trainer.run(steps)

    def save(self) -> None:
        """Write the checkpoint."""
        assert self.trainer is not None
        self.trainer.save(self.job.supernet_folder)

    def _new_trainer(self, total_steps: int) -> SupernetTrainer:
        return SupernetTrainer(
            self.job.space,
            self.data,
            self.job.supernet_recipe,
            strategy=self.job.strategy,
            total_steps=total_steps,
            seed=self.job.seed,
            device=self.job.device,
        )

    def _first_batch(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        batches = train_batches(
            self.data.split("train"), self.data, recipe, epoch=0, seed=self.job.seed
        )
        images, labels = next(batches)
        return images.to(self.job.device), labels.to(self.job.device)

    def _time_training(
        self, architectures: list[Architecture], batch: tuple[Tensor, Tensor], recipe: Recipe
    ) -> float:
        networks = [
            build_subnet(architecture).to(self.job.device) for architecture in architectures
        ]

        def step() -> None:
            for network, architecture in zip(networks, architectures, strict=True):
                accumulate_gradients(network, [architecture], *batch, recipe)

        return _median_seconds(step, self.job.device)

    def _time_judging(self, subnets: list[Architecture]) -> float:
        judge = Judge(self.job, supernet=None)
        networks = [build_subnet(subnet).to(self.job.device) for subnet in subnets[:2]]
        return _median_seconds(
            lambda: [judge.measure(network) for network in networks], self.job.device, runs=1
        ) / len(networks)


class Judge:
    """Judges architectures with inherited weights: extract, recalibrate, evaluate.

    The search split and the calibration images are decoded and normalised once. Judging never
    changes the supernet, so results do not depend on their order.

    Args:
        job: The run.
        supernet: The trained supernet; None loads nothing (for measuring time).
    """

    def __init__(self, job: Job, *, supernet: Supernet | None) -> None:
        data = job.open_data()
        self.job, self.supernet = job, supernet
        self.batches = [
            (images.to(job.device), labels.to(job.device))
            for images, labels in eval_batches(data.split("search"), data, EVAL_BATCH)
        ]
        self.calibration = _calibration_images(job, data)
        train = eval_batches(data.split("train"), data, PROXY_IMAGES)
        images, labels = next(iter(train))
        self.labelled = (images.to(job.device), labels.to(job.device))

    def judge(self, architecture: Architecture) -> dict[str, float]:
        """Return top1 (percent), correct, total and the seconds that judging took."""
        started = time.monotonic()
        assert self.supernet is not None
        values = self.measure(extract(self.supernet, architecture))
        return values | {"seconds": time.monotonic() - started}

    def measure(self, network: Supernet) -> dict[str, float]:
        """Recalibrate and evaluate a network on the search split."""
        recalibrate(network, self.calibration)
        accuracy = evaluate(network, self.batches, self.job.device)
        return {"top1": accuracy.top1, "correct": accuracy.correct, "total": accuracy.total}

    def extraction_error(self, architecture: Architecture) -> float:
        """Measure how far the extracted network's logits are from the supernet's."""
        assert self.supernet is not None
        return extraction_error(self.supernet, architecture, self.batches[0][0][:64])


class JudgeWorker:
    """A warm judge: loads the run's supernet once and then only evaluates.

    Args:
        job: The run; its supernet has been trained and saved.
        threads: CPU threads to use.
    """

    def __init__(self, job: Job, *, threads: int) -> None:
        torch.set_num_threads(threads)
        supernet = load_supernet(job.supernet_folder, job.space)
        self._judge = Judge(job, supernet=supernet.to(job.device))

    def judge(
        self, architectures: Iterable[Architecture]
    ) -> list[tuple[dict[str, float], str | None]]:
        """Judge a batch; for each return `Judge.judge`'s values, or none and the cause."""
        return [judge_safely(self._judge.judge, architecture) for architecture in architectures]

    def extraction_errors(self, architectures: Iterable[Architecture]) -> list[float]:
        """Measure `Judge.extraction_error` of several architectures."""
        return [self._judge.extraction_error(architecture) for architecture in architectures]

    def proxy_scores(self, architectures: Iterable[Architecture]) -> dict[str, dict[str, float]]:
        """Score architectures without training, by key (`supernet.proxies`)."""
        images, labels = (part[:PROXY_IMAGES] for part in self._judge.labelled)
        seed = self._judge.job.seed
        return {a.key: proxy_scores(a, images, labels, seed=seed) for a in architectures}


def judge_safely(
    judge: Callable[[Architecture], dict[str, float]], architecture: Architecture
) -> tuple[dict[str, float], str | None]:
    """Judge an architecture; return what was measured, or nothing and the cause.

    An error of one network is its result, and must not cost those that share its batch.
    """
    try:
        return judge(architecture), None
    except Exception as error:
        logger.error("A judgement failed:\n%s", traceback.format_exc())
        return {}, f"{type(error).__name__}: {last_line(str(error))}"


def train_alone(
    job: Job, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
) -> dict[str, float]:
    """Train a task's network from scratch and judge it on the search split.

    Continues from the checkpoint that an earlier attempt left in the run's folder.

    Args:
        job: The run.
        task: What to train, for how many epochs.
        threads: CPU threads to use.
        on_epoch: Called with the number of every finished epoch.

    Returns:
        top1 (percent), correct and total.
    """
    torch.set_num_threads(threads)
    data = job.open_data()
    recipe = in_shards(with_epochs(job.trial_recipe, task.epochs), task.micro_batches)
    torch.manual_seed(task.seed)
    network = build_subnet(task.architecture, recipe.drop_path)
    options = TrainingOptions(
        train_split=data.split("train"),
        eval_split=data.split("search"),
        seed=task.seed,
        device=job.device,
        out=checkpoint_folder(job.folder, task.trial_id),
        on_epoch=lambda report: on_epoch(report.epoch),
    )
    accuracy = train(network.to(job.device), data, recipe, options).accuracy
    return {"top1": accuracy.top1, "correct": accuracy.correct, "total": accuracy.total}


def _calibration_images(job: Job, data: ImageData) -> list[Tensor]:
    recipe = job.trial_recipe
    batches = eval_batches(data.split("train"), data, recipe.batch_size)
    return [
        images.to(job.device)
        for (images, _), _ in zip(batches, range(CALIBRATION_BATCHES), strict=False)
    ]


def _median_seconds(work: Callable[[], object], device: str, runs: int = 3) -> float:
    """Time ``work`` after one unmeasured run."""
    times = []
    for _ in range(runs + 1):
        started = time.monotonic()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return statistics.median(times[1:])


WORK = Work(
    make_job=make_job,
    supernet_worker=SupernetWorker,
    judge_worker=JudgeWorker,
    train_alone=train_alone,
)
