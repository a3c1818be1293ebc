"""What runs on the devices: measuring, training the supernet, training alone.

Plain classes and functions over `supernet`, without Ray: `search.cluster` turns them into actors
and trials, tests call them directly. Everything that they take and return is small and picklable;
weights and images travel as files: `search.run_folder.storage`.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from search.plan import StepTimes
from search.record import Measured
from search.run_folder import SUPERNET
from search.scheduling import TrialTask, Work, checkpoint_name, ending_spoilt
from search.workers.group import join_group, joined, open_meeting
from search.workers.job import Job, RunJob, for_group, make_job, set_up_process
from search.workers.judge_worker import Evaluator, JudgeWorker, Scorer
from search.workers.measured_costs import device_name
from searchspace.architecture import Architecture
from searchspace.cost import count
from supernet.data import ImageData
from supernet.kernels import library
from supernet.measuring import PROXIES
from supernet.network import Supernet, build_subnet
from supernet.recipes import Recipe, in_shards, with_epochs
from supernet.shared_weights import Progress, SharedTraining, SupernetTrainer, most_devices
from supernet.training import (
    EpochReport,
    Teacher,
    TrainingOptions,
    TrainingResult,
    TrainLoader,
    train,
    train_steps,
)

# Steps that are timed, after as many (of a network alone: after one) that warm kernels and caches.
TIMED_STEPS = {"cpu": 3, "cuda": 20}


class GroupWorker(ABC):
    """Holds a supernet and its trainer on one device; several of them train it together.

    Args:
        job: The run.
        threads: CPU threads to use.

    Attributes:
        num_random: How many random networks are timed, beside the smallest and the largest.
    """

    num_random = 2

    def __init__(self, job: RunJob, *, threads: int) -> None:
        set_up_process(job, threads)
        self._job = job
        self.trainer: SharedTraining | None = None
        self.folder: Path | None = None
        self._store: Store | None = None
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._saving: Future[None] | None = None

    @abstractmethod
    def make_trainer(self, total_steps: int) -> SharedTraining:
        """Make the trainer of the run's supernet."""

    @abstractmethod
    def timed_trainer(self, steps: int, *, is_alone: bool) -> tuple[SharedTraining, int]:
        """Make a trainer whose steps are timed.

        Returns:
            The trainer, and how many times its work a step of a group is.
        """

    @abstractmethod
    def step_sizes(self) -> StepTimes:
        """Tell what steps are of, without the times of networks."""

    def measure_with(
        self,
        time_training: Callable[[Architecture], float],
        time_judging: Callable[[list[Architecture]], float],
    ) -> StepTimes:
        """Time networks by functions that give the seconds of a step alone, and of a judgement."""
        started = time.monotonic()
        space, rng = self._job.space, random.Random(self._job.seed)
        subnets = [space.extreme("macs", largest=largest) for largest in (False, True)]
        subnets += [space.sample(rng) for _ in range(self.num_random)]
        return replace(
            self.step_sizes(),
            trial_steps=tuple((count(subnet).macs, time_training(subnet)) for subnet in subnets),
            judge=time_judging(subnets),
            device_name=device_name(self._job.device),
            versions=f"Python {platform.python_version()}, torch {torch.__version__}",
            measured_seconds=time.monotonic() - started,
        )

    @ending_spoilt()
    def measure_supernet(self) -> float:
        """Time a step of the shared weights, in device-seconds; all workers of a group at once.

        A worker that is alone takes one shard of the batch for all of them.
        """
        steps = TIMED_STEPS[self._job.device]
        trainer, shards = self.timed_trainer(steps, is_alone=not dist.is_initialized())
        return self.time_steps(trainer) * trainer.world_size * shards

    def address(self, host: str) -> str:
        """Open the place where a group meets, in this process, its first worker's.

        Args:
            host: Where the others reach this machine.

        Returns:
            The place's address: with a port that is this process's already.
        """
        meeting = open_meeting(host)
        self._store = meeting.store
        return meeting.address

    @ending_spoilt()
    def join(self, address: str, rank: int, world_size: int) -> None:
        """Join the group of workers that train the supernet together.

        Args:
            address: Of the first one's `address`, or a file that all of them reach.
        """
        self._store = join_group(
            address, rank, world_size, device=self._job.device, store=self._store
        )

    @ending_spoilt()
    def start(self, total_steps: int) -> int:
        """Make the trainer, or continue from the run's checkpoint; return the step it is at."""
        self.trainer = self.make_trainer(total_steps)
        self.folder = self._job.files.fetch(SUPERNET)
        self.trainer.load(self.folder)
        return self.trainer.step

    def reschedule(self, total_steps: int) -> None:
        """Let the schedule end at another step, to keep the budget."""
        assert self.trainer is not None
        self.trainer.total_steps = max(total_steps, self.trainer.step + 1)

    @ending_spoilt()
    def train(self, steps: int) -> Progress:
        """Take so many steps, together with the other workers."""
        assert self.trainer is not None
        return self.trainer.run(steps)

    @ending_spoilt()
    def save(self, goes_on: bool = False) -> None:
        """Write the checkpoint, for all nodes to read.

        Args:
            goes_on: Return when its content is copied; it is written while steps are taken. What
                goes wrong meanwhile is raised by the next call.
        """
        assert self.trainer is not None
        self._wait_until_saved()
        if goes_on:
            self._saving = self._writer.submit(self._write, self.trainer.snapshot().write)
        else:
            self._write(self.trainer.save)

    def _wait_until_saved(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _write(self, write: Callable[[Path], None]) -> None:
        assert self.folder is not None
        write(self.folder)
        self._job.files.publish(SUPERNET, self.folder)

    def time_steps(self, trainer: SharedTraining) -> float:
        """Time a step of a new trainer's, in seconds, with the making of its images."""
        steps = trainer.total_steps
        # The same steps once before: kernels are compiled when an architecture first needs them.
        trainer.run(steps)
        trainer.rewind()
        times, feed = [], 0.0
        for _ in range(steps):
            started = time.monotonic()
            feed += trainer.run(1).feed_seconds / steps
            times.append(time.monotonic() - started)
        return max(statistics.median(times), waiting_seconds(self._job, feed))


class SupernetWorker(GroupWorker):
    """Holds the supernet and its trainer on one device; several of them train it together.

    Args:
        job: The run.
        threads: CPU threads to use.
    """

    def __init__(self, job: Job, *, threads: int) -> None:
        super().__init__(job, threads=threads)
        self.job = job
        self.data = job.open_data()

    @cached_property
    def _mentor(self) -> Teacher | None:
        return self.job.mentor()

    @ending_spoilt()
    def measure(self) -> StepTimes:
        """Time steps and evaluations of the smallest, the largest and two random subnets."""
        return self.measure_with(self._time_training, self._time_judging)

    def step_sizes(self) -> StepTimes:
        """See `GroupWorker`; how fast images are made for a trial is timed here."""
        recipe, images = self.job.trial_recipe, len(self.data.split("train"))
        return StepTimes(
            supernet_step=0.0,  # which the workers of a group measure together
            trial_steps=(),
            judge=0.0,
            steps_per_epoch=max(images // recipe.batch_size, 1),
            batch_size=recipe.batch_size,
            supernet_batch=self.job.supernet_recipe.batch_size,
            judged_images=self.data.sizes["search"],
            feed_rate=self._feed_rate(),
            amp=recipe.amp,
            teacher=self.job.mentor_key,
        )

    def timed_trainer(self, steps: int, *, is_alone: bool) -> tuple[SupernetTrainer, int]:
        """See `GroupWorker`."""
        recipe, shards = self.job.supernet_recipe, 1
        if is_alone:
            images = len(self.data.split("train"))
            shards = most_devices(recipe, images)
            alone = {"batch_size": min(recipe.batch_size, images) // shards, "shard_size": None}
            recipe = recipe if shards == 1 else recipe.model_copy(update=alone)
        return self._new_trainer(steps, recipe), shards

    def make_trainer(self, total_steps: int) -> SupernetTrainer:
        """See `GroupWorker`."""
        return self._new_trainer(total_steps, self.job.supernet_recipe)

    def _new_trainer(self, total_steps: int, recipe: Recipe) -> SupernetTrainer:
        return SupernetTrainer(
            self.job.space,
            self.data,
            recipe,
            strategy=self.job.supernet_strategy,
            total_steps=total_steps,
            seed=self.job.seed,
            sharing=self.job.sharing,
            device=self.job.device,
            loader_workers=self.job.loader_workers,
            teacher=self._mentor,
        )

    def _feed_rate(self) -> float:
        """Time the making of a trial's batch; return images a second of the device's processes."""
        started, images = time.monotonic(), self.data.split("train")
        loader = TrainLoader(images, self.data, self.job.trial_recipe)
        made = sum(map(len, next(loader.epoch(0, self.job.seed))))
        rate = made / max(time.monotonic() - started, 1e-9)
        return rate * max(self.job.loader_workers, 1)

    def _time_training(self, architecture: Architecture) -> float:
        network = build_subnet(architecture, self.job.trial_recipe.drop_path)
        return time_alone(self.job, network, self.data, teacher=self._mentor)

    def _time_judging(self, subnets: list[Architecture]) -> float:
        if self.job.strategy == "proxy":
            return 0.0
        if self.job.strategy == "zero-cost":
            # The dearest score of the largest network: it is not known which one will be used.
            scorer = Scorer(self.job)
            return max(
                median_seconds(partial(scorer.judge, subnets[1], name), self.job.device, runs=1)
                for name in PROXIES
            )
        judge = Evaluator(self.job, supernet=None)
        networks = {subnet: build_subnet(subnet).to(self.job.device) for subnet in subnets[:2]}
        return median_seconds(
            lambda: [judge.measure(network, subnet) for subnet, network in networks.items()],
            self.job.device,
            runs=1,
        ) / len(networks)


def waiting_seconds(job: RunJob, feed_seconds: float) -> float:
    """Return the seconds that a step lasts at least, by what its images take to make.

    In the first steps loaders have a lead, which they lose. Without loaders it is part of the step.
    """
    workers = job.loader_workers
    return feed_seconds / workers if workers else 0.0


def time_alone(job: Job, network: Supernet, data: ImageData, *, teacher: Teacher | None) -> float:
    """Time a step of a network alone as its epochs have them: with images and optimiser."""
    feed: list[float] = []
    images = job.train_split(data)
    options = TrainingOptions(
        train_split=images,
        eval_split=images,  # which nothing is judged on
        seed=job.seed,
        device=job.device,
        loader_workers=job.loader_workers,
        teacher=teacher,
    )
    steps = train_steps(network.to(job.device), data, job.trial_recipe, options)
    seconds = median_seconds(
        lambda: feed.append(sum(s.read_seconds + s.augment_seconds for s in next(steps))),
        job.device,
        runs=TIMED_STEPS[job.device],
    )
    return max(seconds, waiting_seconds(job, statistics.mean(feed)))


def train_alone(
    job: Job, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
) -> Measured | None:
    """Train a task's network from scratch and judge it on the search split.

    Continues from the checkpoint that an earlier attempt left, on whichever node. Of several
    processes that train it together each takes its shards of every batch, so that their number
    changes nothing; the first of them writes, and measures.

    Args:
        job: The run.
        task: What to train, for how many epochs.
        threads: CPU threads to use.
        on_epoch: Called with 0 when all is ready, and with the number of every finished epoch.

    Returns:
        The accuracy, the measured costs of the run's objectives and the loss of every epoch; None
        in all processes of a group but the first.
    """
    set_up_process(job, threads)
    recipe = in_shards(with_epochs(job.trial_recipe, task.epochs), task.micro_batches)
    torch.manual_seed(task.seed)
    network = build_subnet(task.architecture, recipe.drop_path)
    result = train_task(job, task, network, recipe, on_epoch, teacher=job.mentor())
    if result is None:
        return None
    costs = job.measure_costs(network, task.architecture)
    judged = Measured.judged(result.accuracy.correct, result.accuracy.total) | costs
    return replace(judged, losses={epoch.epoch: epoch.loss for epoch in result.history})


def train_task(
    job: Job,
    task: TrialTask,
    network: Supernet,
    recipe: Recipe,
    on_epoch: Callable[[int], None],
    *,
    teacher: Teacher | None = None,
) -> TrainingResult | None:
    """Train a task's network from its checkpoint, if it has one, and judge it.

    Args:
        network: With the weights that a training without a checkpoint begins with.
        recipe: At the length of the task.
        teacher: That it learns from as well.

    Returns:
        None in all processes of a group but the first.
    """
    data, name = job.open_data(), checkpoint_name(task.trial_id)
    out = job.files.fetch(name)
    is_first = task.group is None or task.group[2] == 0

    def report(epoch: EpochReport) -> None:
        if is_first:
            job.files.publish(name, out)
        on_epoch(epoch.epoch)

    options = TrainingOptions(
        train_split=job.train_split(data, task.images),
        eval_split=data.split("search"),
        seed=task.seed,
        device=job.device,
        out=out,
        on_epoch=report,
        loader_workers=job.loader_workers,
        teacher=teacher,
        identity=task.architecture.key,
        # An attempt that ran out of memory had other shards.
        replaces=True,
        recalibrates=True,
    )
    try:
        with joined(task.group, device=job.device):
            on_epoch(0)
            result = train(network.to(job.device), data, recipe, options)
    finally:
        job.files.forget(name)
    return result if is_first else None


def compile_kernels() -> None:
    """Compile the operators' C files, and import what the work imports, before time is charged."""
    library.load(torch.float32)


def median_seconds(work: Callable[[], object], device: str, runs: int = 3) -> float:
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
    prepare=compile_kernels,
    for_group=for_group,
    meet=open_meeting,
)
