"""Laws of judging without training: by inherited weights, or by a score."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from search.record import Measured
from search.workers import judge_worker
from search.workers.job import Job
from search.workers.judge_worker import Evaluator, JudgeWorker, Scorer
from search.workers.supernet_worker import SupernetWorker
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.spec_file import load_space
from supernet.measuring.proxies import PROXIES
from supernet.network.supernet import Supernet, extract
from supernet.training.batches import eval_batches
from supernet.training.calibration import CALIBRATION_BATCHES, recalibrate
from supernet.training.evaluation import evaluate
from tests.tiny_job import BATCH, NUM_SEARCH, NUM_TRAIN


def test_a_judge_counts_the_search_images_that_are_right(make: Callable[..., Job]) -> None:
    job = make()
    worker = SupernetWorker(job, threads=1)
    worker.start(2)
    worker.train(2)
    worker.save()
    judges = JudgeWorker(job, threads=1)
    some = [job.space.first(), job.space.extreme("macs", largest=True)]

    found = judges.judge(some, "supernet")

    assert worker.trainer is not None
    data = job.open_data()
    calibration = [images for images, _ in eval_batches(data.split("train"), data, BATCH)]
    assert len(calibration) == 3 <= CALIBRATION_BATCHES
    judge = Evaluator(job, supernet=worker.trainer.supernet)
    assert sum(len(images) for images in judge.calibration) == NUM_TRAIN
    for architecture, (measured, cause) in zip(some, found, strict=True):
        network = extract(worker.trainer.supernet, architecture)
        recalibrate(network, calibration)
        expected = evaluate(network, eval_batches(data.split("search"), data, 7), "cpu")
        assert cause is None
        assert (measured.correct, measured.total) == (expected.correct, NUM_SEARCH)
        assert measured.top1 == 100 * expected.correct / NUM_SEARCH
        assert measured.seconds > 0
    assert judges.extraction_errors(some) == pytest.approx([0.0, 0.0], abs=1e-5)


def test_a_network_that_cannot_be_judged_costs_the_others_nothing(
    make: Callable[..., Job],
) -> None:
    judges = JudgeWorker(make("zero-cost"), threads=1)
    job = make("zero-cost")
    good = job.space.first()
    bad = good.replace(num_classes=2)  # the labels have three

    (_, cause), (measured, none) = judges.judge([bad, good], "grad_norm")

    assert cause is not None
    assert (none, measured.score > 0) == (None, True)
    scores = judges.proxy_scores([good, bad])
    assert set(scores) == {good.key, bad.key}
    assert scores[good.key]["grad_norm"] == pytest.approx(measured.score)
    # What can be computed is; a score that one network has not is none to judge by.
    assert [name for name in PROXIES if math.isnan(scores[bad.key][name])] == ["grad_norm"]


@pytest.mark.parametrize("name", ["macs", "params"])
def test_a_size_is_a_score(make: Callable[..., Job], name: str) -> None:
    job = make("zero-cost")
    found = Scorer(job).judge(job.space.first(), name)
    assert found.score == getattr(count(job.space.first()), name)
    assert set(found.to_json()) == {"score", "seconds"}


def test_a_judgement_and_a_score_tell_how_long_they_took(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(0, 1000, 5))
    monkeypatch.setattr(judge_worker, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    job = make("zero-cost")
    scorer = Scorer(job)
    assert scorer.judge(job.space.first(), "macs").seconds == 5.0
    supernet = Supernet(make().space)
    found = Evaluator(make(), supernet=supernet).judge(job.space.first())
    assert found.seconds == 5.0


def test_scores_are_those_of_the_first_32_training_images_and_the_runs_seed(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(architecture: Any, images: Tensor, labels: Tensor, **more: Any) -> dict[str, float]:
        seen.append((architecture, images, labels, more))
        return dict.fromkeys(more["names"], 1.5)

    monkeypatch.setattr(judge_worker, "proxy_scores", look)
    job = make("zero-cost", seed=11)
    scorer, data = Scorer(job), job.open_data()

    assert scorer.judge(job.space.first(), PROXIES[0]).score == 1.5
    assert scorer.scores(job.space.first()) == dict.fromkeys(PROXIES, 1.5)

    images, labels = next(eval_batches(data.split("train"), data, 32))
    for architecture, found, targets, _ in seen:
        assert architecture == job.space.first()
        assert torch.equal(found, images)
        assert torch.equal(targets, labels)
    assert [more for *_, more in seen] == [
        {"seed": 11, "names": (PROXIES[0],)},
        {"seed": 11, "names": PROXIES},
    ]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_no_number_says_nothing(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    monkeypatch.setattr(judge_worker, "proxy_scores", lambda *_, names, **__: {names[0]: score})
    job = make("zero-cost")
    with pytest.raises(ValueError, match=f"its {PROXIES[0]} is {score}"):
        Scorer(job).judge(job.space.first(), PROXIES[0])


def test_a_judge_sets_its_process_up_before_it_loads_anything(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, seen = make("zero-cost"), list[object]()
    monkeypatch.setattr(judge_worker, "set_up_process", lambda *given: seen.append(given))
    JudgeWorker(job, threads=3)
    assert seen == [(job, 3)]


def test_a_network_that_spoils_the_process_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        """In the place of the end of this process."""

    def end(status: int) -> None:
        raise Ended

    def spoil(_: Architecture) -> Measured:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(_: Architecture) -> Measured:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("search.scheduling.tasks.os._exit", end)
    architecture = load_space("digits").first()
    with pytest.raises(Ended):
        judge_worker.judge_safely(spoil, architecture)
    measured, cause = judge_worker.judge_safely(fail, architecture)
    assert (measured, cause) == (None, "RuntimeError: shapes cannot be multiplied")
