"""What runs on the devices of a graft: parts learn, networks of parts are judged and healed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from search.plan import StepTimes
from search.record import Measured
from search.results import SUPERNET
from search.run_folder import LIBRARY, TEACHER, RunSettings, TeacherFiles, read_teacher
from search.scheduling import TrialTask, Work, ending_spoilt
from search.workers.group import open_meeting
from search.workers.job import Job, make_job, set_up_process
from search.workers.judge_worker import Scorer, images_to_judge_by, judge_safely
from search.workers.supernet_worker import (
    SupernetWorker,
    compile_kernels,
    median_seconds,
    time_alone,
    train_task,
)
from searchspace.architecture import Architecture
from searchspace.graft_space import Replacement
from supernet.data import ImageData, Split, with_unlabelled
from supernet.grafting import (
    LibraryTrainer,
    assemble,
    hidden_order,
    load_library,
    part_keys,
)
from supernet.network import Supernet, build_subnet
from supernet.recipes import in_shards, with_epochs
from supernet.training import Teacher, calibration_images, evaluate, recalibrate

TIMED_LIBRARY_STEPS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class GraftJob(Job):
    """A job of a graft.

    Attributes:
        shares: Over how many trainers the parts are split; 0 before that is decided.
        unlabelled: Name of the folder of images without classes, which are learned on as well;
            empty for none.
    """

    shares: int = 0
    unlabelled: str = ""

    def open_data(self) -> ImageData:
        """Open the run's images, normalised as for the teacher."""
        # `super()` knows nothing of a class that was made anew for its slots.
        return self.teacher_files().seen_by(Job.open_data(self))

    def teacher_files(self) -> TeacherFiles:
        """Find the trained network."""
        return read_teacher(self.files.fetch(TEACHER))

    def teacher(self) -> Supernet:
        """Build the trained network, in eval mode on the device."""
        return self.teacher_files().network().to(self.device).eval().requires_grad_(False)

    def mentor(self) -> Teacher:
        """Return the trained network as one that others learn from."""
        return self.teacher_files().mentor()

    def train_split(self, data: ImageData, share: float = 1.0) -> Split:
        """See `Job`; with that share of the images without classes behind them."""
        labelled = Job.train_split(self, data, share)
        if not self.unlabelled:
            return labelled
        return with_unlabelled(labelled, self.files.fetch(self.unlabelled), share=share)

    def library(self) -> dict[str, Tensor]:
        """Read the parts, whichever trainers they come from."""
        return load_library([self.files.fetch(share_name(n)) for n in range(self.shares)])


def share_name(number: int) -> str:
    """Name the folder of the parts that one trainer has."""
    return f"{LIBRARY}/{number}"


def make_graft_job(settings: RunSettings, folder: Path, data: ImageData) -> GraftJob:
    """Describe a graft to its workers; see `job.make_job`."""
    plain = make_job(settings, folder, data)
    names = (name for name in Job.__dataclass_fields__)
    given: dict[str, Any] = {name: getattr(plain, name) for name in names}
    return GraftJob(**given, unlabelled=settings.unlabelled_kept)


class GraftWorker:
    """Holds a share of the parts and trains them on one device; measures as well.

    Args:
        job: The run.
        threads: CPU threads to use.
    """

    def __init__(self, job: GraftJob, *, threads: int) -> None:
        set_up_process(job, threads)
        self._job = job
        self._data = job.open_data()
        self._threads = threads
        self._trainer: LibraryTrainer | None = None
        self._name = ""

    @cached_property
    def _keys(self) -> tuple[Replacement, ...]:
        return part_keys(self._job.space, self._job.teacher_files().architecture)

    @ending_spoilt()
    def measure(self) -> StepTimes:
        """Time a step of all parts, steps of healing, and a judgement."""
        job, started = self._job, time.monotonic()
        plain = SupernetWorker(job, threads=self._threads)
        times = plain.measure_with(self._time_healing, self._time_judging)
        trainer = self._new_trainer(self._keys, total_steps=10**6)
        step = median_seconds(lambda: trainer.run(1), job.device, runs=TIMED_LIBRARY_STEPS)
        return replace(times, supernet_step=step, measured_seconds=time.monotonic() - started)

    @ending_spoilt()
    def start(self, number: int, shares: int, total_steps: int) -> int:
        """Take up a share of the parts; return the step that they are at."""
        self._name = share_name(number)
        self._trainer = self._new_trainer(self._keys[number::shares], total_steps=total_steps)
        self._trainer.load(self._job.files.fetch(self._name))
        # The schedule may have been moved after the checkpoint.
        self.reschedule(total_steps)
        return self._trainer.step

    def reschedule(self, total_steps: int) -> None:
        """Let the schedule end at another step, to keep the budget."""
        assert self._trainer is not None
        self._trainer.total_steps = max(total_steps, self._trainer.step)

    @ending_spoilt()
    def train(self, steps: int) -> tuple[int, float]:
        """Take so many steps; return the step and the mean error of the parts."""
        assert self._trainer is not None
        progress = self._trainer.run(steps)
        return progress.step, progress.error

    @ending_spoilt()
    def save(self) -> None:
        """Write the share's checkpoint, for all nodes to read."""
        assert self._trainer is not None
        folder = self._job.files.fetch(self._name)
        self._trainer.save(folder)
        self._job.files.publish(self._name, folder)

    def _new_trainer(self, keys: Iterable[Replacement], *, total_steps: int) -> LibraryTrainer:
        job, teacher = self._job, self._job.teacher()
        images = calibration_images(
            self._data, job.supernet_recipe.batch_size, job.device, workers=job.loader_workers
        )
        return LibraryTrainer(
            teacher,
            tuple(keys),
            self._data,
            job.supernet_recipe,
            split=job.train_split(self._data),
            total_steps=total_steps,
            seed=job.seed,
            device=job.device,
            order=hidden_order(teacher, images),
            loader_workers=job.loader_workers,
        )

    def _time_healing(self, architecture: Architecture) -> float:
        network = build_subnet(architecture)
        return time_alone(self._job, network, self._data, teacher=self._job.mentor())

    def _time_judging(self, architectures: list[Architecture]) -> float:
        judge = GraftEvaluator(self._job, library=None)
        networks = {a: build_subnet(a).to(self._job.device).eval() for a in architectures[:2]}
        return median_seconds(
            lambda: [judge.measure(network, a) for a, network in networks.items()],
            self._job.device,
            runs=1,
        ) / len(networks)


class GraftEvaluator:
    """Judges networks of parts on the search split: their accuracy, how far from the teacher.

    Args:
        job: The run.
        library: The parts; None loads none (for measuring time).
    """

    def __init__(self, job: GraftJob, library: dict[str, Tensor] | None) -> None:
        data = job.open_data()
        self._job, self._library, self._teacher = job, library, job.teacher()
        self._batches, self._calibration = images_to_judge_by(job, data)
        self._said = self._logits(self._teacher)[1]

    def judge(self, architecture: Architecture) -> Measured:
        """Return top1, correct, total, kl (nats), measured costs and the seconds of all that."""
        started = time.monotonic()
        network = self.assembled(architecture)
        if architecture != self._teacher.only:
            recalibrate(network, self._calibration, amp=self._job.eval_amp)
        measured = self.measure(network, architecture)
        return replace(measured, seconds=time.monotonic() - started)

    def assembled(self, architecture: Architecture) -> Supernet:
        """Build a network of parts, on the device."""
        assert self._library is not None
        network = assemble(architecture, self._teacher, self._library).to(self._job.device)
        return network.requires_grad_(False)

    def measure(self, network: Supernet, architecture: Architecture) -> Measured:
        """Evaluate a network on the search split, beside the teacher."""
        accuracy, logits = self._logits(network)
        costs = self._job.measure_costs(network, architecture)
        measured = Measured.judged(accuracy.correct, accuracy.total) | costs
        return replace(measured, kl=divergence(logits, self._said))

    def difference(self) -> float:
        """Measure the largest difference of logits of the graft with nothing replaced: none."""
        assert self._teacher.only is not None
        _, logits = self._logits(self.assembled(self._teacher.only))
        return float((logits - self._said).abs().max())

    def _logits(self, network: Supernet) -> tuple[Any, Tensor]:
        said: list[Tensor] = []
        accuracy = evaluate(
            network, self._batches, self._job.device, said.append, amp=self._job.eval_amp
        )
        return accuracy, torch.cat(said)


def divergence(student: Tensor, teacher: Tensor) -> float:
    """Return the mean over images of ``KL(teacher || student)`` in nats, from logits (N, classes).

    Infinite where a network's logits are not finite.
    """
    found = F.kl_div(
        F.log_softmax(student.double(), dim=1),
        F.log_softmax(teacher.double(), dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return float(found) if bool(found.isfinite()) else 1e9


class GraftJudge:
    """A warm judge: holds the teacher and all parts, and then only evaluates.

    Args:
        job: The run, whose library has been trained.
        threads: CPU threads to use.
    """

    def __init__(self, job: GraftJob, *, threads: int) -> None:
        set_up_process(job, threads)
        self._scorer = Scorer(job)
        self._evaluator = GraftEvaluator(job, library=job.library())

    def judge(
        self, architectures: Iterable[Architecture], by: str
    ) -> list[tuple[Measured | None, str | None]]:
        """Judge networks of parts as they are, or by a score; see `judge_worker.JudgeWorker`."""

        def judge(architecture: Architecture) -> Measured:
            if by != SUPERNET:
                return self._scorer.judge(architecture, by)
            return self._evaluator.judge(architecture)

        return [judge_safely(judge, architecture) for architecture in architectures]

    @ending_spoilt()
    def difference(self) -> float:
        """See `GraftEvaluator.difference`."""
        return self._evaluator.difference()

    def proxy_scores(self, architectures: Iterable[Architecture]) -> dict[str, dict[str, float]]:
        """Score architectures without training, by key; see `Scorer.scores_of_all`."""
        return self._scorer.scores_of_all(architectures)


def heal(
    job: GraftJob, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
) -> Measured | None:
    """Train a network of parts on, beside the teacher, and judge it on the search split.

    See `supernet_worker.train_alone`; it goes on from a checkpoint likewise.
    """
    set_up_process(job, threads)
    recipe = in_shards(with_epochs(job.trial_recipe, task.epochs), task.micro_batches)
    network = assemble(task.architecture, job.teacher(), job.library())
    result = train_task(job, task, network, recipe, on_epoch, teacher=job.mentor())
    if result is None:
        return None
    costs = job.measure_costs(network, task.architecture)
    return Measured.judged(result.accuracy.correct, result.accuracy.total) | costs


GRAFT_WORK = Work(
    make_job=make_graft_job,
    supernet_worker=GraftWorker,
    judge_worker=GraftJudge,
    train_alone=heal,
    prepare=compile_kernels,
    for_group=lambda job, data, devices: (job, devices),  # each has parts of its own
    meet=open_meeting,
)
