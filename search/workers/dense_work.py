"""What runs on the devices of a search for backbones of detectors or segmenters.

The sibling of `supernet_worker` and `judge_worker`: the phases of a run and the cluster know
neither, only `DENSE_WORK`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from search.plan import StepTimes
from search.record import Measured
from search.results import SUPERNET
from search.run_folder import SUPERNET as SUPERNET_FILES
from search.scheduling import TrialTask, Work, checkpoint_name, ending_spoilt
from search.workers.dense_job import DenseJob, dense_for_group, make_dense_job
from search.workers.job import set_up_process
from search.workers.judge_worker import judge_safely
from search.workers.measured_costs import measure_costs
from search.workers.supernet_worker import (
    TIMED_STEPS,
    GroupWorker,
    compile_kernels,
)
from searchspace.architecture import Architecture
from searchspace.space import SearchSpace
from supernet.data.dense import DenseSplit
from supernet.dense.distillation import DenseTeacher
from supernet.dense.judging import judge
from supernet.dense.network import (
    DenseNetwork,
    DenseOptions,
    build_dense,
    extract_dense,
)
from supernet.dense.options import dense_options
from supernet.dense.shared import (
    DenseSupernetTrainer,
    OnImages,
    calibration_batches,
    dense_extraction_error,
    load_dense_supernet,
    steps_per_epoch,
)
from supernet.dense.start import load_start
from supernet.dense.training import DenseTrainingOptions, StepReport, train_dense
from supernet.recipes import DenseRecipe, dense_in_shards, with_length
from supernet.training import ENOUGH_STEPS, recalibrate

# Judging is timed on so many images, and reckoned for all.
TIMED_IMAGES = 8


class DenseSupernetWorker(GroupWorker):
    """Holds shared weights under heads and their trainer on one device, see `GroupWorker`."""

    num_random = 1

    def __init__(self, job: DenseJob, *, threads: int) -> None:
        super().__init__(job, threads=threads)
        self.job = job
        self.data = job.open_data()

    @cached_property
    def _mentor(self) -> DenseTeacher | None:
        return self.job.mentor()

    @ending_spoilt()
    def measure(self) -> StepTimes:
        """Time steps of the smallest, the largest and a random network, and judging the last."""
        return self.measure_with(
            self._time_training, lambda subnets: self._time_judging(subnets[-1])
        )

    def step_sizes(self) -> StepTimes:
        """See `GroupWorker`."""
        recipe = self.job.recipe
        return StepTimes(
            supernet_step=0.0,  # which the workers of a group measure together
            trial_steps=(),
            judge=0.0,
            steps_per_epoch=self._trainer(self.job.space, 1, recipe).order.steps_per_epoch,
            batch_size=recipe.batch_size,
            supernet_batch=recipe.batch_size,
            judged_images=self.data.sizes["search"],
            amp=recipe.amp,
            teacher=self.job.mentor_key,
        )

    def timed_trainer(self, steps: int, *, is_alone: bool) -> tuple[DenseSupernetTrainer, int]:
        """See `GroupWorker`."""
        recipe, shards = self.job.recipe, 1
        if is_alone:
            shards = recipe.num_shards
            recipe = recipe.model_copy(update={"batch_size": recipe.shard_size})
        return self._trainer(self.job.space, steps, recipe), shards

    def make_trainer(self, total_steps: int) -> DenseSupernetTrainer:
        """See `GroupWorker`."""
        started = self.job.start()
        return self._trainer(
            self.job.space,
            total_steps,
            self.job.recipe,
            start=None if started is None else dict(started.state_dict()),
        )

    def _trainer(
        self,
        space: SearchSpace,
        total_steps: int,
        recipe: DenseRecipe,
        start: dict[str, Tensor] | None = None,
    ) -> DenseSupernetTrainer:
        return DenseSupernetTrainer(
            space,
            self.data.learned,
            recipe,
            strategy=self.job.supernet_strategy,
            total_steps=total_steps,
            seed=self.job.seed,
            sharing=self.job.sharing,
            start=start,
            device=self.job.device,
            loader_workers=self.job.loader_workers,
            teacher=self._mentor,
        )

    def _time_training(self, architecture: Architecture) -> float:
        """Time a step of a network alone: shared weights of one network take the same step."""
        steps = TIMED_STEPS[self.job.device]
        return self.time_steps(self._trainer(SearchSpace.of(architecture), steps, self.job.recipe))

    def _time_judging(self, subnet: Architecture) -> float:
        """Time recalibration, and judging a few images, which is reckoned for all."""
        if self.job.strategy == "proxy":
            return 0.0
        every = self.data.judged
        some = every.part(min(TIMED_IMAGES / len(every), 1.0))
        evaluator = DenseEvaluator(self.job, some, supernet=None)
        network = build_dense(SearchSpace.of(subnet), self._options()).to(self.job.device)
        started = time.monotonic()
        recalibrate(network, evaluator.calibration)
        calibrated = time.monotonic()
        dense_measured(network, subnet, self.job, some)
        ended = time.monotonic()
        return calibrated - started + (ended - calibrated) * len(every) / len(some)

    def _options(self) -> DenseOptions:
        return dense_options(self.job.recipe, self.data.num_classes)


class DenseEvaluator:
    """Judges architectures with inherited weights: extract, recalibrate, evaluate.

    Args:
        job: The run.
        judged: The images to judge by.
        supernet: The trained one; None loads nothing (for measuring time).
    """

    def __init__(self, job: DenseJob, judged: DenseSplit, *, supernet: DenseNetwork | None) -> None:
        self.job, self.judged, self.supernet = job, judged, supernet
        learned = job.open_data().learned
        device = torch.device(job.device)
        self.calibration = [one.to(device) for one in calibration_batches(learned, job.recipe)]

    def judge(self, architecture: Architecture) -> Measured:
        """Return AP or mIoU with its interval, measured costs and the seconds of all that."""
        started = time.monotonic()
        assert self.supernet is not None
        measured = self.measure(extract_dense(self.supernet, architecture), architecture)
        return replace(measured, seconds=time.monotonic() - started)

    def measure(self, network: DenseNetwork, architecture: Architecture) -> Measured:
        """Recalibrate and evaluate an architecture's network."""
        recalibrate(network, self.calibration)
        return dense_measured(network, architecture, self.job, self.judged)

    def extraction_error(self, architecture: Architecture) -> float:
        """Measure how far the extracted network's predictions are from the supernet's."""
        assert self.supernet is not None
        return dense_extraction_error(self.supernet, architecture, self.calibration[0])


class DenseJudgeWorker:
    """A warm judge: loads the shared weights once and then only evaluates.

    Args:
        job: The run; its supernet has been trained and saved.
        threads: CPU threads to use.
    """

    def __init__(self, job: DenseJob, *, threads: int) -> None:
        set_up_process(job, threads)
        data, folder = job.open_data(), job.files.fetch(SUPERNET_FILES)
        supernet = load_dense_supernet(folder, job.space, job.recipe, data.num_classes)
        self._evaluator = DenseEvaluator(job, data.judged, supernet=supernet.to(job.device))

    def judge(
        self, architectures: Iterable[Architecture], by: str
    ) -> list[tuple[Measured | None, str | None]]:
        """Judge a batch by the supernet.

        Returns:
            For each what was measured, or None and the cause.
        """
        assert by == SUPERNET, f"detectors and segmenters have no score {by}"
        return [judge_safely(self._evaluator.judge, architecture) for architecture in architectures]

    @ending_spoilt()
    def extraction_errors(self, architectures: Iterable[Architecture]) -> list[float]:
        """Measure `DenseEvaluator.extraction_error` of several architectures."""
        return [self._evaluator.extraction_error(architecture) for architecture in architectures]

    @ending_spoilt()
    def proxy_scores(self, _: Iterable[Architecture]) -> dict[str, dict[str, float]]:
        """Return no scores: zero-cost proxies are of classifiers."""
        return {}


def train_dense_alone(
    job: DenseJob, task: TrialTask, threads: int, on_epoch: Callable[[int], None]
) -> Measured:
    """Train a task's network as a backbone and judge it on the images kept for that.

    Continues from the checkpoint that an earlier attempt left, on whichever node.

    Args:
        job: The run.
        task: What to train, for how many epochs.
        threads: CPU threads to use.
        on_epoch: Called with 0 when all is ready, and with the number of every finished epoch.

    Returns:
        AP or mIoU with its interval, the measured costs of the run's objectives and the loss of
        every epoch.
    """
    set_up_process(job, threads)
    data, name = job.open_data(), checkpoint_name(task.trial_id)
    learned, out = data.learned.part(task.images), job.files.fetch(name)
    recipe = dense_in_shards(with_length(job.recipe, epochs=task.epochs), task.micro_batches)
    torch.manual_seed(task.seed)
    options = dense_options(recipe, data.num_classes)
    network = build_dense(SearchSpace.of(task.architecture), options, recipe.drop_path)
    if (start := job.start_of(task.architecture)) is not None:
        load_start(network, start)
    epoch_steps = steps_per_epoch(learned, recipe)

    def report(steps: StepReport) -> None:
        job.files.publish(name, out)
        on_epoch(round(steps.step / epoch_steps))

    training = DenseTrainingOptions(
        seed=task.seed,
        device=job.device,
        out=out,
        on_report=report,
        loader_workers=job.loader_workers,
        teacher=job.mentor(),
        identity=task.architecture.key,
        # An attempt that ran out of memory had other shards.
        replaces=True,
    )
    on_epoch(0)
    try:
        recipe = recipe.model_copy(update={"checkpoint_steps": epoch_steps})
        history = train_dense(network, learned, recipe, training)
    finally:
        job.files.forget(name)
    losses = {round(steps.step / epoch_steps): steps.loss for steps in history}
    if epoch_steps * task.epochs < ENOUGH_STEPS:
        shown = calibration_batches(learned, recipe)
        recalibrate(network, [one.to(torch.device(job.device)) for one in shown])
    measured = dense_measured(network, task.architecture, job, data.judged)
    return replace(measured, losses=losses)


def dense_measured(
    network: DenseNetwork, architecture: Architecture, job: DenseJob, judged: DenseSplit
) -> Measured:
    """Judge a network; return AP or mIoU with its interval, and the measured costs."""
    found = judge(network, judged, job.recipe, device=job.device)
    qualities: dict[str, Any] = found.values()
    costs = measure_costs(OnImages(network), architecture, job.measured)
    return Measured(total=found.images, **qualities) | costs


DENSE_WORK = Work(
    make_job=make_dense_job,
    supernet_worker=DenseSupernetWorker,
    judge_worker=DenseJudgeWorker,
    train_alone=train_dense_alone,
    prepare=compile_kernels,
    for_group=dense_for_group,
)
