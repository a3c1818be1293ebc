"""What a device measures before there is a plan, counted by a test's clock."""

from __future__ import annotations

import dataclasses
import os
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from search.record import Measured
from search.workers import supernet_worker
from search.workers.graft_worker import GraftWorker
from search.workers.job import Job, count_gpus, for_group
from search.workers.judge_worker import Evaluator, Scorer
from search.workers.supernet_worker import SupernetWorker
from searchspace.architecture import Architecture
from searchspace.cost import count
from supernet.measuring.proxies import PROXIES
from supernet.network.supernet import Supernet, build_subnet
from supernet.training.augmentation import Augmentation
from supernet.training.batches import _EvalMaker, _ShardMaker
from tests.tiny_job import BATCH, NUM_SEARCH, NUM_TRAIN, PassClock


def test_steps_are_timed_of_the_smallest_the_largest_and_two_random_networks(
    make: Callable[..., Job], clock: PassClock
) -> None:
    job = make()
    smallest, largest = (job.space.extreme("macs", largest=large) for large in (False, True))

    times = SupernetWorker(job, threads=1).measure()

    found = [macs for macs, _ in times.trial_steps]
    assert found[:2] == [count(smallest).macs, count(largest).macs]
    rng = random.Random(job.seed)
    assert found[2:] == [count(job.space.sample(rng)).macs for _ in range(2)]
    # A step is one pass, which takes a second for every 1000 parameters.
    expected = [count(a).params / 1000 for a in (smallest, largest)]
    assert [seconds for _, seconds in times.trial_steps[:2]] == pytest.approx(expected)
    assert times.steps_per_epoch == NUM_TRAIN // BATCH == 2
    # All that is timed are whole batches of the trial's recipe, and what a judgement sees.
    trained = {images for _, images, training in clock.passes if training}
    assert trained == {BATCH}


def test_a_judgement_is_timed_as_the_mean_of_the_smallest_and_the_largest(
    make: Callable[..., Job], clock: PassClock
) -> None:
    job = make()
    extremes = [job.space.extreme("macs", largest=large) for large in (False, True)]

    seconds = SupernetWorker(job, threads=1).measure().judge

    # One batch of search images each; with layer norms alone nothing is calibrated.
    passes = sum(1 for a in extremes for m in build_subnet(a).modules() if _is_batch_norm(m))
    if passes == 0:
        assert seconds == pytest.approx(sum(count(a).params for a in extremes) / 1000 / 2)
    else:
        calibrated = -(-NUM_TRAIN // BATCH)
        sizes = [
            count(a).params * (1 + calibrated * any(map(_is_batch_norm, build_subnet(a).modules())))
            for a in extremes
        ]
        assert seconds == pytest.approx(sum(sizes) / 1000 / 2)


def has_four(job: Job) -> bool:
    """Tell whether the two random networks of a seed are neither the smallest nor the largest."""
    rng = random.Random(job.seed)
    extremes = {job.space.extreme("macs", largest=large) for large in (False, True)}
    return len({job.space.sample(rng), job.space.sample(rng), *extremes}) == 4


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def test_what_a_strategy_does_not_do_is_not_timed(
    make: Callable[..., Job], clock: PassClock
) -> None:
    proxy = SupernetWorker(make("proxy"), threads=1).measure()
    assert (proxy.supernet_step, proxy.judge) == (0.0, 0.0)
    zero_cost = SupernetWorker(make("zero-cost"), threads=1).measure()
    assert zero_cost.supernet_step == 0.0
    assert zero_cost.judge > 0
    # The shared weights are measured by all workers together.
    assert SupernetWorker(make(), threads=1).measure().supernet_step == 0.0


def test_the_dearest_score_of_the_largest_network_is_planned_with(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = next(job for seed in range(99) if has_four(job := make("zero-cost", seed=seed)))
    largest = job.space.extreme("macs", largest=True)
    costs = {name: 1.0 + index for index, name in enumerate(reversed(PROXIES))}

    def judge(self: Scorer, architecture: Architecture, name: str) -> Measured:
        clock.now += costs[name] if architecture == largest else 100.0
        return Measured()

    monkeypatch.setattr(Scorer, "judge", judge)
    assert SupernetWorker(job, threads=1).measure().judge == pytest.approx(max(costs.values()))


def test_a_median_leaves_the_first_run_out(clock: PassClock) -> None:
    lasts = iter([50.0, 1.0, 9.0, 2.0])

    def work() -> None:
        clock.now += next(lasts)

    assert supernet_worker.median_seconds(work, "cpu") == 2.0
    assert next(lasts, None) is None


def test_the_shared_weights_step_is_timed_as_the_median_of_three_of_all_workers(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasts = iter([0.5, 9.0, 0.25])

    class Trainer:
        world_size = 4

        def __init__(self, *_: Any, **more: Any) -> None:
            self.is_warm, self.total_steps = False, more["total_steps"]

        def run(self, steps: int) -> Any:
            # The first steps are slow: they are not counted.
            clock.now += next(lasts) if self.is_warm else 100.0
            return SimpleNamespace(feed_seconds=0.0)

        def rewind(self) -> None:
            self.is_warm = True

    monkeypatch.setattr(supernet_worker, "SupernetTrainer", Trainer)
    assert SupernetWorker(make(), threads=1).measure_supernet() == pytest.approx(0.5 * 4)
    assert next(lasts, None) is None


def test_kernels_that_compile_at_their_first_use_are_no_part_of_a_step(
    make: Callable[..., Job], clock: PassClock
) -> None:
    compiled: set[Architecture] = set()

    def compile_first(network: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(network, Supernet) and given[1] not in compiled:
            compiled.add(given[1])
            clock.now += 1000.0

    job = make()
    expected = SupernetWorker(job, threads=1).measure_supernet()
    hook = nn.modules.module.register_module_forward_pre_hook(compile_first)
    found = SupernetWorker(job, threads=1).measure_supernet()
    hook.remove()
    assert compiled
    assert found == pytest.approx(expected, rel=0.2)


def test_a_worker_that_is_alone_takes_one_of_the_shards(
    make: Callable[..., Job], clock: PassClock
) -> None:
    job, most = for_group(make(), make().open_data(), 4)
    assert most == 4
    seconds = SupernetWorker(job, threads=1).measure_supernet()
    assert {images for _, images, training in clock.passes if training} == {BATCH // 4}
    sizes = [size / 1000 for size, _, training in clock.passes if training]
    assert seconds == pytest.approx(4 * statistics.median(sizes[-3:]))


def test_steps_are_timed_with_their_images_and_their_optimiser(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    worker = SupernetWorker(job, threads=1)
    plain, shared = worker.measure(), worker.measure_supernet()

    def augment(self: Augmentation, *given: Any) -> Any:
        clock.now += 7.0
        return augmented(self, *given)

    def update(self: torch.optim.AdamW, *given: Any) -> Any:
        clock.now += 3.0
        return updated(self, *given)

    augmented, updated = Augmentation.__call__, torch.optim.AdamW.step
    monkeypatch.setattr(Augmentation, "__call__", augment)
    monkeypatch.setattr(torch.optim.AdamW, "step", update)
    found = worker.measure()
    for (_, before), (_, after) in zip(plain.trial_steps, found.trial_steps, strict=True):
        assert after == pytest.approx(before + 10.0)
    assert worker.measure_supernet() == pytest.approx(shared + 10.0)


def test_a_step_lasts_as_long_as_its_loaders_need(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "loader_workers", property(lambda job: 2))
    worker = SupernetWorker(make(), threads=1)

    def slow(shard: Any) -> Any:
        return dataclasses.replace(shard, read_seconds=5000.0, augment_seconds=1000.0)

    made = _ShardMaker.__getitem__
    monkeypatch.setattr(_ShardMaker, "__getitem__", lambda maker, place: slow(made(maker, place)))
    assert worker.measure_supernet() == pytest.approx(6000.0 / 2)
    assert worker._time_training(worker.job.space.first()) == pytest.approx(6000.0 / 2)


def test_a_step_of_healing_lasts_as_long_as_its_loaders_need(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "loader_workers", property(lambda job: 2))
    worker: Any = object.__new__(GraftWorker)
    worker._job, made = make(), _ShardMaker.__getitem__
    worker._data = worker._job.open_data()

    def slow(maker: _ShardMaker, place: Any) -> Any:
        return dataclasses.replace(made(maker, place), read_seconds=9000.0, augment_seconds=0.0)

    monkeypatch.setattr(_ShardMaker, "__getitem__", slow)
    assert worker._time_healing(worker._job.space.first()) == pytest.approx(9000.0 / 2)


def test_the_processes_of_a_device_make_images_side_by_side(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _ShardMaker.__getitem__

    def slow(maker: _ShardMaker, place: Any) -> Any:
        clock.now += 4.0
        return made(maker, place)

    monkeypatch.setattr(_ShardMaker, "__getitem__", slow)
    monkeypatch.setattr(Job, "loader_workers", property(lambda job: 6))
    assert SupernetWorker(make(), threads=1).step_sizes().feed_rate == pytest.approx(6 * BATCH / 4)


def test_the_processes_of_a_device_read_what_its_judge_needs(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All devices wait for their judges to be ready, on ImageNet for the decoding of 25,000."""
    job, made = make(), _EvalMaker.pixels
    here = Evaluator(job, supernet=None)
    readers: set[int] = set()
    monkeypatch.setattr(
        _EvalMaker, "pixels", lambda *given: readers.add(os.getpid()) or made(*given)
    )
    monkeypatch.setattr(Job, "loader_workers", property(lambda job: 2))
    there = Evaluator(job, supernet=None)
    assert not readers
    for found, expected in ((there.batches, here.batches), (there.calibration, here.calibration)):
        assert len(found) == len(expected) > 0
    for (found, labels), (images, classes) in zip(there.batches, here.batches, strict=True):
        assert torch.equal(found, images)
        assert torch.equal(labels, classes)
    assert all(map(torch.equal, there.calibration, here.calibration))


def test_gpus_of_others_take_none_of_the_cores(tmp_path: Path) -> None:
    """A container or a job of Slurm has a part of a machine's GPUs, and of its cores."""
    listed, devices = tmp_path / "gpus", tmp_path / "dev"
    devices.mkdir()
    for number in range(8):
        (listed / f"0000:0{number}:00.0").mkdir(parents=True)
    assert count_gpus(listed, devices) == 8
    for number in range(2):
        (devices / f"nvidia{number}").touch()
    (devices / "nvidia2").symlink_to("nowhere")  # as one that may not be opened
    for name in ("nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        (devices / name).touch()
    assert count_gpus(listed, devices) == 2


def test_a_gpu_is_fed_by_its_part_of_the_cores(
    make: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make().loader_workers == 0
    job = dataclasses.replace(make(), device="cuda")
    for cores, gpus, expected in ((64, 8, 8), (12, 8, 1), (4, 8, 1), (16, 1, 16)):
        monkeypatch.setattr("search.workers.job.count_cores", lambda cores=cores: cores)
        monkeypatch.setattr("search.workers.job.count_gpus", lambda gpus=gpus: gpus)
        assert job.loader_workers == expected
    monkeypatch.undo()
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    assert count_gpus(tmp_path / "gpus", tmp_path) == 2
    assert count_gpus(tmp_path / "none", tmp_path) >= 1


def test_workers_of_a_group_time_the_recipe_as_it_is(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, dict[str, Any]]] = []

    class Trainer:
        world_size = 4

        def __init__(self, space: Any, data: Any, recipe: Any, **more: Any) -> None:
            seen.append((recipe, more))
            self.total_steps = more["total_steps"]

        def run(self, steps: int) -> Any:
            clock.now += 2.0
            return SimpleNamespace(feed_seconds=0.0)

        def rewind(self) -> None:
            pass

    job, _ = for_group(make(), make().open_data(), 4)
    monkeypatch.setattr(supernet_worker, "SupernetTrainer", Trainer)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    # Four devices for two seconds.
    assert SupernetWorker(job, threads=1).measure_supernet() == pytest.approx(8.0)
    ((recipe, options),) = seen
    assert recipe == job.supernet_recipe
    assert (options["strategy"], options["seed"]) == (job.supernet_strategy, job.seed)
    assert options["total_steps"] == supernet_worker.TIMED_STEPS["cpu"]


def test_what_was_measured_says_of_what_and_with_what(
    make: Callable[..., Job], clock: PassClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make()
    made = _ShardMaker.__getitem__

    def slow(maker: _ShardMaker, place: Any) -> Any:
        clock.now += 4.0
        return made(maker, place)

    monkeypatch.setattr(_ShardMaker, "__getitem__", slow)
    began = clock.now

    times = SupernetWorker(job, threads=1).measure()

    assert (times.batch_size, times.supernet_batch) == (BATCH, job.supernet_recipe.batch_size)
    assert times.judged_images == NUM_SEARCH
    assert times.feed_rate == pytest.approx(BATCH / 4.0)
    assert times.measured_seconds == pytest.approx(clock.now - began)
    assert times.amp == job.trial_recipe.amp
    assert times.versions.endswith(f"torch {torch.__version__}")
    assert times.device_name
    assert times.source == ""
