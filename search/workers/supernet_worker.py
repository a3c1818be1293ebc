"""What runs on the devices: measuring, training the supernet, training alone.

Plain classes and functions over `supernet`, without Ray: `search.cluster` turns them into actors
and trials, tests call them directly. Everything that they take and return is small and picklable;
weights and images travel as files: `search.run_folder.storage`.
"""

from __future__ import annotations

import random
import socket
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from search.plan import StepTimes
from search.run_folder.storage import SUPERNET
from search.scheduling.tasks import TrialTask, Work, checkpoint_name
from search.workers.job import Job, make_job
from search.workers.judge_worker import Judge, JudgeWorker, Scorer
from search.workers.measured_costs import device_name, measure_costs
from searchspace.architecture import Architecture
from searchspace.cost import count
from supernet.kernels import library
from supernet.measuring.proxies import PROXIES
from supernet.network.supernet import build_subnet
from supernet.recipes.recipe import Recipe, in_shards, with_epochs
from supernet.shared_weights.trainer import (
    Progress,
    SupernetTrainer,
    accumulate_gradients,
)
from supernet.training.batches import train_batches
from supernet.training.epoch_report import EpochReport
from supernet.training.training import TrainingOptions, train


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
        self.folder: Path | None = None

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
        started = time.monotonic()
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
            supernet_step=self.measure_supernet() if job.strategy == "supernet" else 0.0,
            trial_steps=trial_steps,
            judge=self._time_judging(subnets),
            steps_per_epoch=max(len(split) // job.trial_recipe.batch_size, 1),
            device_name=device_name(job.device),
            measured_seconds=time.monotonic() - started,
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
        self.folder = self.job.files.fetch(SUPERNET)
        self.trainer.load(self.folder)
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
        """Write the checkpoint, for all nodes to read."""
        assert self.trainer is not None
        assert self.folder is not None
        self.trainer.save(self.folder)
        self.job.files.publish(SUPERNET, self.folder)

    def _new_trainer(self, total_steps: int) -> SupernetTrainer:
        return SupernetTrainer(
            self.job.space,
            self.data,
            self.job.supernet_recipe,
            strategy=self.job.supernet_strategy,
            total_steps=total_steps,
            seed=self.job.seed,
            sharing=self.job.sharing,
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
        if self.job.strategy == "proxy":
            return 0.0
        if self.job.strategy == "zero-cost":
            # The dearest score of the largest network: it is not known which one will be used.
            scorer = Scorer(self.job)
            return max(
                _median_seconds(partial(scorer.judge, subnets[1], name), self.job.device, runs=1)
                for name in PROXIES
            )
        judge = Judge(self.job, supernet=None)
        networks = {subnet: build_subnet(subnet).to(self.job.device) for subnet in subnets[:2]}
        return _median_seconds(
            lambda: [judge.measure(network, subnet) for subnet, network in networks.items()],
            self.job.device,
            runs=1,
        ) / len(networks)


def train_alone(
    job: Job, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
) -> dict[str, float]:
    """Train a task's network from scratch and judge it on the search split.

    Continues from the checkpoint that an earlier attempt left, on whichever node.

    Args:
        job: The run.
        task: What to train, for how many epochs.
        threads: CPU threads to use.
        on_epoch: Called with 0 when all is ready, and with the number of every finished epoch.

    Returns:
        top1 (percent), correct, total and the measured costs of the run's objectives.
    """
    torch.set_num_threads(threads)
    data = job.open_data()
    recipe = in_shards(with_epochs(job.trial_recipe, task.epochs), task.micro_batches)
    torch.manual_seed(task.seed)
    network = build_subnet(task.architecture, recipe.drop_path)
    name = checkpoint_name(task.trial_id)
    out = job.files.fetch(name)

    def report(epoch: EpochReport) -> None:
        job.files.publish(name, out)
        on_epoch(epoch.epoch)

    options = TrainingOptions(
        train_split=data.split("train"),
        eval_split=data.split("search"),
        seed=task.seed,
        device=job.device,
        out=out,
        on_epoch=report,
    )
    on_epoch(0)
    try:
        accuracy = train(network.to(job.device), data, recipe, options).accuracy
    finally:
        job.files.forget(name)
    return {
        "top1": accuracy.top1,
        "correct": accuracy.correct,
        "total": accuracy.total,
        **measure_costs(network, task.architecture, job.measured),
    }


def compile_kernels() -> None:
    """Compile the operators' C files, and import what the work imports, before time is charged."""
    library.load(torch.float32)


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
    prepare=compile_kernels,
)
