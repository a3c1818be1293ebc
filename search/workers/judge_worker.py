"""Judging without training: with inherited weights, or by a score that needs none."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from search.record import Measured
from search.results import SUPERNET
from search.run_folder import SUPERNET as SUPERNET_FILES
from search.scheduling import end_if_spoilt, ending_spoilt, last_line
from search.workers.job import Job, set_up_process
from searchspace.architecture import Architecture
from searchspace.cost import count
from supernet.data import ImageData
from supernet.measuring import PROXIES, proxy_scores
from supernet.network import Supernet, build_subnet, extract, extraction_error
from supernet.shared_weights import load_supernet
from supernet.training import (
    PixelBatches,
    calibration_images,
    eval_batches,
    evaluate,
    recalibrate,
)

logger = logging.getLogger(__name__)

EVAL_BATCH = 256
PROXY_IMAGES = 32


class Evaluator:
    """Judges architectures with inherited weights: extract, recalibrate, evaluate.

    The search split and the calibration images are decoded once. Judging never
    changes the supernet, so results do not depend on their order.

    Args:
        job: The run.
        supernet: The trained supernet; None loads nothing (for measuring time).
    """

    def __init__(self, job: Job, *, supernet: Supernet | None) -> None:
        data = job.open_data()
        self.job, self.supernet = job, supernet
        self.batches, self.calibration = images_to_judge_by(job, data)

    def judge(self, architecture: Architecture) -> Measured:
        """Return top1 (percent), correct, total, measured costs and the seconds of all that."""
        started = time.monotonic()
        assert self.supernet is not None
        measured = self.measure(extract(self.supernet, architecture), architecture)
        return replace(measured, seconds=time.monotonic() - started)

    def measure(self, network: Supernet, architecture: Architecture) -> Measured:
        """Recalibrate and evaluate an architecture's network on the search split."""
        recalibrate(network, self.calibration, amp=self.job.eval_amp)
        accuracy = evaluate(network, self.batches, self.job.device, amp=self.job.eval_amp)
        costs = self.job.measure_costs(network, architecture)
        return Measured.judged(accuracy.correct, accuracy.total) | costs

    def extraction_error(self, architecture: Architecture) -> float:
        """Measure how far the extracted network's logits are from the supernet's."""
        assert self.supernet is not None
        return extraction_error(self.supernet, architecture, next(iter(self.batches))[0][:64])


def images_to_judge_by(job: Job, data: ImageData) -> tuple[PixelBatches, list[Tensor]]:
    """Read the search split and the calibration images, by the processes that feed the device."""
    images, workers = data.split("search"), job.loader_workers
    batches = PixelBatches.of(images, data, EVAL_BATCH, job.device, workers=workers)
    calibrated = job.trial_recipe.batch_size
    return batches, calibration_images(data, calibrated, job.device, workers=workers)


class Scorer:
    """Scores untrained networks on one batch of images: `measuring.proxies`, and their size.

    Args:
        job: The run.
    """

    def __init__(self, job: Job) -> None:
        data = job.open_data()
        images, labels = next(iter(eval_batches(data.split("train"), data, PROXY_IMAGES)))
        self._job = job
        self._images, self._labels = images.to(job.device), labels.to(job.device)

    def judge(self, architecture: Architecture, name: str) -> Measured:
        """Return the score (more is predicted to be better), measured costs and the seconds.

        Raises:
            ValueError: If the score is not finite: nothing can be said about the network.
        """
        started = time.monotonic()
        if name in PROXIES:
            (score,) = self.scores(architecture, (name,)).values()
        else:
            score = float(getattr(count(architecture), name))
        if not math.isfinite(score):
            raise ValueError(f"its {name} is {score}")
        costs = Measured()
        if self._job.measured:
            network = build_subnet(architecture).to(self._job.device)
            costs = self._job.measure_costs(network, architecture)
        return replace(costs, score=score, seconds=time.monotonic() - started)

    def scores(
        self, architecture: Architecture, names: Sequence[str] = PROXIES
    ) -> dict[str, float]:
        """Score a network with several proxies."""
        return proxy_scores(
            architecture, self._images, self._labels, seed=self._job.seed, names=names
        )

    def scores_of_all(self, architectures: Iterable[Architecture]) -> dict[str, dict[str, float]]:
        """Score architectures with all proxies, by key; NaN where one cannot be computed.

        A score that not all networks have is judged by in no run, which is no reason to end one.
        """
        return {
            one.key: {name: self._or_nan(one, name) for name in PROXIES} for one in architectures
        }

    def _or_nan(self, architecture: Architecture, name: str) -> float:
        try:
            return self.scores(architecture, (name,))[name]
        except Exception as error:
            end_if_spoilt(error)
            logger.error("No %s of %s:\n%s", name, architecture.key, traceback.format_exc())
            return math.nan


class JudgeWorker:
    """A warm judge: loads what it judges with once and then only evaluates.

    Args:
        job: The run; its supernet, if it has one, has been trained and saved.
        threads: CPU threads to use.
    """

    def __init__(self, job: Job, *, threads: int) -> None:
        set_up_process(job, threads)
        self._scorer = Scorer(job)
        self._evaluator: Evaluator | None = None
        if job.strategy == SUPERNET:
            supernet = load_supernet(job.files.fetch(SUPERNET_FILES), job.space)
            self._evaluator = Evaluator(job, supernet=supernet.to(job.device))

    def judge(
        self, architectures: Iterable[Architecture], by: str
    ) -> list[tuple[Measured | None, str | None]]:
        """Judge a batch by the supernet or by a score of `Scorer`.

        Returns:
            For each what was measured, or None and the cause.
        """

        def judge(architecture: Architecture) -> Measured:
            if by != SUPERNET:
                return self._scorer.judge(architecture, by)
            return self._inherited.judge(architecture)

        return [judge_safely(judge, architecture) for architecture in architectures]

    @property
    def _inherited(self) -> Evaluator:
        assert self._evaluator is not None, "this run has no supernet"
        return self._evaluator

    @ending_spoilt()
    def extraction_errors(self, architectures: Iterable[Architecture]) -> list[float]:
        """Measure `Evaluator.extraction_error` of several architectures."""
        return [self._inherited.extraction_error(architecture) for architecture in architectures]

    def proxy_scores(self, architectures: Iterable[Architecture]) -> dict[str, dict[str, float]]:
        """Score architectures without training, by key; see `Scorer.scores_of_all`."""
        return self._scorer.scores_of_all(architectures)


def judge_safely(
    judge: Callable[[Architecture], Measured], architecture: Architecture
) -> tuple[Measured | None, str | None]:
    """Judge an architecture; return what was measured, or None and the cause.

    An error of one network is its result, and must not cost those that share its batch. One that
    spoils the device of this process ends it.
    """
    try:
        return judge(architecture), None
    except Exception as error:
        end_if_spoilt(error)
        logger.error("A judgement failed:\n%s", traceback.format_exc())
        return None, f"{type(error).__name__}: {last_line(str(error))}"
