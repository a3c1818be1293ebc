"""What a device measures and trains: which networks, on how much, counted by a test's clock."""

from __future__ import annotations

import dataclasses
import multiprocessing as mp
import random
import socket
import statistics
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from search.record import Measured
from search.retraining.network import RetrainOptions, retrain
from search.run_folder.settings import RunSettings
from search.run_folder.storage import DATA
from search.scheduling.tasks import TrialTask, checkpoint_name
from search.workers import judge_worker, supernet_worker
from search.workers.group import open_meeting
from search.workers.job import Job, count_gpus, for_group, make_job
from search.workers.judge_worker import Evaluator, JudgeWorker, Scorer
from search.workers.supernet_worker import SupernetWorker, train_alone
from searchspace.architecture import Architecture
from searchspace.cost import count
from searchspace.spec_file import load_space
from supernet.data import prepare_data
from supernet.measuring.proxies import PROXIES
from supernet.network.supernet import Supernet, build_subnet, extract
from supernet.recipes.recipe import in_shards, load_recipe, with_epochs
from supernet.shared_weights import trainer as trainer_module
from supernet.shared_weights.calibration import CALIBRATION_BATCHES, recalibrate
from supernet.training.augmentation import Augmentation
from supernet.training.batches import _ShardMaker, eval_batches
from supernet.training.checkpoint import latest_checkpoint
from supernet.training.evaluation import evaluate
from supernet.training.training import WEIGHTS_FILE, TrainingOptions, train
from tests.tiny_data import noise, write_images

SPACE = """
name: tiny
img_size: 8
patch_size: 4
mlp_ratio: [1, 2]
stages: [{dim: 8, depth: 1}]
mixers:
  window_attention: {window_size: 2, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""
NUM_TRAIN, NUM_SEARCH, BATCH = 144, 36, 64


class Clock:
    """A clock that a network's pass moves on; larger networks take longer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passes: list[tuple[int, int, bool]] = []  # parameters, images, whether it trained

    def monotonic(self) -> float:
        return self.now

    def __call__(self, network: nn.Module, given: tuple[Any, ...]) -> None:
        if isinstance(network, Supernet):
            size = sum(p.numel() for p in network.parameters())
            self.passes.append((size, len(given[0]), network.training))
            self.now += size / 1000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(supernet_worker, "time", SimpleNamespace(monotonic=clock.monotonic))
    hook = nn.modules.module.register_module_forward_pre_hook(clock)
    yield clock
    hook.remove()


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Job]:
    """Describe a tiny run of a strategy."""
    (tmp_path / "space.yaml").write_text(SPACE)
    images = noise(NUM_TRAIN + NUM_SEARCH + 6, 8, num_classes=3)
    source = write_images(tmp_path / "images", *images, num_test=6)
    data = prepare_data(source, img_size=8, folder=tmp_path / DATA)
    assert data.sizes == {"train": NUM_TRAIN, "search": NUM_SEARCH, "test": 6}

    def make(strategy: str = "supernet", **more: Any) -> Job:
        settings = RunSettings(data=source, budget="1cpu-minute", strategy=strategy, **more)
        return make_job(settings, tmp_path, data)

    return make


def test_steps_are_timed_of_the_smallest_the_largest_and_two_random_networks(
    make: Callable[..., Job], clock: Clock
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
    make: Callable[..., Job], clock: Clock
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


def test_what_a_strategy_does_not_do_is_not_timed(make: Callable[..., Job], clock: Clock) -> None:
    proxy = SupernetWorker(make("proxy"), threads=1).measure()
    assert (proxy.supernet_step, proxy.judge) == (0.0, 0.0)
    zero_cost = SupernetWorker(make("zero-cost"), threads=1).measure()
    assert zero_cost.supernet_step == 0.0
    assert zero_cost.judge > 0
    # The shared weights are measured by all workers together.
    assert SupernetWorker(make(), threads=1).measure().supernet_step == 0.0


def test_the_dearest_score_of_the_largest_network_is_planned_with(
    make: Callable[..., Job], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = next(job for seed in range(99) if has_four(job := make("zero-cost", seed=seed)))
    largest = job.space.extreme("macs", largest=True)
    costs = {name: 1.0 + index for index, name in enumerate(reversed(PROXIES))}

    def judge(self: Scorer, architecture: Architecture, name: str) -> Measured:
        clock.now += costs[name] if architecture == largest else 100.0
        return Measured()

    monkeypatch.setattr(Scorer, "judge", judge)
    assert SupernetWorker(job, threads=1).measure().judge == pytest.approx(max(costs.values()))


def test_a_median_leaves_the_first_run_out(clock: Clock) -> None:
    lasts = iter([50.0, 1.0, 9.0, 2.0])

    def work() -> None:
        clock.now += next(lasts)

    assert supernet_worker.median_seconds(work, "cpu") == 2.0
    assert next(lasts, None) is None


def test_the_shared_weights_step_is_timed_as_the_median_of_three_of_all_workers(
    make: Callable[..., Job], clock: Clock, monkeypatch: pytest.MonkeyPatch
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
    make: Callable[..., Job], clock: Clock
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
    make: Callable[..., Job], clock: Clock
) -> None:
    job, most = for_group(make(), make().open_data(), 4)
    assert most == 4
    seconds = SupernetWorker(job, threads=1).measure_supernet()
    assert {images for _, images, training in clock.passes if training} == {BATCH // 4}
    sizes = [size / 1000 for size, _, training in clock.passes if training]
    assert seconds == pytest.approx(4 * statistics.median(sizes[-3:]))


def test_steps_are_timed_with_their_images_and_their_optimiser(
    make: Callable[..., Job], clock: Clock, monkeypatch: pytest.MonkeyPatch
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
    make: Callable[..., Job], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "loader_workers", property(lambda job: 2))
    worker = SupernetWorker(make(), threads=1)

    def slow(shard: Any) -> Any:
        return dataclasses.replace(shard, read_seconds=5000.0, augment_seconds=1000.0)

    made = _ShardMaker.__getitem__
    monkeypatch.setattr(_ShardMaker, "__getitem__", lambda maker, place: slow(made(maker, place)))
    assert worker.measure_supernet() == pytest.approx(6000.0 / 2)
    assert worker._time_training(worker.job.space.first()) == pytest.approx(6000.0 / 2)


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
    assert count_gpus(tmp_path / "gpus") == 2
    assert count_gpus(tmp_path / "none") >= 1


def test_a_group_meets_at_an_address_that_the_name_of_the_machine_has_no_part_in(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = for_group(make(), make().open_data(), 2)
    monkeypatch.setattr("socket.gethostbyname", lambda name: "127.0.1.1")
    first = SupernetWorker(job, threads=1)
    address = first.address("127.0.0.1")
    port = int(address.removeprefix("tcp://127.0.0.1:"))
    # It is open already: nobody else can take the port meanwhile.
    socket.create_connection(("127.0.0.1", port), 5).close()
    other = mp.get_context("spawn").Process(target=_join_and_train, args=(job, address))
    other.start()
    try:
        first.join(address, 0, 2)
        first.start(2)
        assert first.train(2).step == 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        other.join(60)
    assert other.exitcode == 0


def _join_and_train(job: Job, address: str) -> None:
    worker = SupernetWorker(job, threads=1)
    worker.join(address, 1, 2)
    worker.start(2)
    worker.train(2)


def test_a_supernet_goes_on_from_its_checkpoint_and_its_end_may_move(
    make: Callable[..., Job],
) -> None:
    job = make()
    first = SupernetWorker(job, threads=1)
    assert first.start(10) == 0
    assert first.train(3).step == 3
    first.save()
    second = SupernetWorker(job, threads=1)
    assert second.start(99) == 3
    assert second.trainer is not None
    assert second.trainer.total_steps == 10  # as it was begun
    second.reschedule(5)
    assert second.trainer.total_steps == 5
    second.reschedule(1)  # a schedule never ends before the step that it is at
    assert second.trainer.total_steps == 4
    assert second.train(100).step == 4
    options = second.trainer
    assert (options.seed, options.strategy, options.recipe) == (
        job.seed,
        "uniform",
        load_recipe("supernet"),
    )


def task_of(job: Job, **more: Any) -> TrialTask:
    return TrialTask(trial_id=7, architecture=job.space.first(), epochs=2, seed=5, **more)


def trained_by_hand(job: Job, task: TrialTask) -> Any:
    """Train the task's network as its recipe says, from the task's seed."""
    data = job.open_data()
    torch.manual_seed(task.seed)
    recipe = with_epochs(job.trial_recipe, task.epochs)
    network = build_subnet(task.architecture, recipe.drop_path)
    options = TrainingOptions(
        train_split=data.split("train"), eval_split=data.split("search"), seed=task.seed
    )
    return train(network, data, recipe, options)


def test_a_network_alone_gets_the_epochs_and_the_seed_of_its_task(
    make: Callable[..., Job],
) -> None:
    job = make()
    heard: list[int] = []

    found = train_alone(job, task_of(job), 1, heard.append)

    result = trained_by_hand(job, task_of(job))
    expected, losses = result.accuracy, [epoch.loss for epoch in result.history]
    assert heard == [0, 1, 2]
    assert found is not None
    assert found.to_json() == {
        "top1": 100 * expected.correct / NUM_SEARCH,
        "correct": expected.correct,
        "total": NUM_SEARCH,
        "loss@1": pytest.approx(losses[0]),
        "loss@2": pytest.approx(losses[1]),
    }


def test_a_network_alone_goes_on_from_its_checkpoint(make: Callable[..., Job]) -> None:
    job = make()
    passes: list[int] = []

    def stop(epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_alone(job, task_of(job), 1, stop)
    assert any((job.files.fetch(checkpoint_name(7))).iterdir())

    def count_passes(network: nn.Module, given: tuple[Tensor, ...]) -> None:
        if isinstance(network, Supernet) and network.training:
            passes.append(len(given[0]))

    hook = nn.modules.module.register_module_forward_pre_hook(count_passes)
    found = train_alone(job, task_of(job), 1, lambda epoch: None)
    hook.remove()

    assert passes == [BATCH] * 2  # the second epoch alone
    result = trained_by_hand(job, task_of(job))
    assert found.correct == result.accuracy.correct
    # The curve has the epochs before the checkpoint as well.
    assert found.losses == {epoch.epoch: pytest.approx(epoch.loss) for epoch in result.history}


def in_two_shards(job: Job) -> Job:
    """Split a trial's batches into the shards of two devices."""
    return replace(job, trial_recipe=in_shards(job.trial_recipe, 2))


def weights_of_trial(job: Job) -> dict[str, Tensor]:
    folder = latest_checkpoint(job.files.fetch(checkpoint_name(7)))
    assert folder is not None
    return load_file(folder / WEIGHTS_FILE)


def _train_as_second(job: Job, task: TrialTask) -> None:
    assert train_alone(job, task, 1, lambda epoch: None) is None


def test_two_devices_train_what_one_does(make: Callable[..., Job]) -> None:
    job = in_two_shards(make())
    alone = train_alone(job, task_of(job), 1, lambda epoch: None)
    expected = weights_of_trial(job)
    job.files.remove(checkpoint_name(7))

    meeting, heard = open_meeting("127.0.0.1"), list[int]()
    first, second = (task_of(job, devices=2, group=(meeting.address, 2, r)) for r in range(2))
    other = mp.get_context("spawn").Process(target=_train_as_second, args=(job, second))
    other.start()
    try:
        together = train_alone(job, first, 1, heard.append)
    finally:
        other.join(120)
    assert other.exitcode == 0
    assert heard == [0, 1, 2]
    assert together is not None
    assert alone is not None
    assert together.to_json() == pytest.approx(alone.to_json())
    found = weights_of_trial(job)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def test_half_a_batch_in_memory_at_a_time_where_the_task_says_so(
    make: Callable[..., Job], clock: Clock
) -> None:
    job = make()
    train_alone(job, task_of(job, micro_batches=2), 1, lambda epoch: None)
    assert {images for _, images, training in clock.passes if training} == {BATCH // 2}


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
    scores = judges.proxy_scores([good])
    assert set(scores) == {good.key}
    assert scores[good.key]["grad_norm"] == pytest.approx(measured.score)


@pytest.mark.parametrize("name", ["macs", "params"])
def test_a_size_is_a_score(make: Callable[..., Job], name: str) -> None:
    job = make("zero-cost")
    found = Scorer(job).judge(job.space.first(), name)
    assert found.score == getattr(count(job.space.first()), name)
    assert set(found.to_json()) == {"score", "seconds"}


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_workers_and_retrainings_meet_over_what_their_devices_need(
    make: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    device: str,
    backend: str,
) -> None:
    class MetError(Exception):
        pass

    met: list[tuple[object, ...]] = []

    def meet(backend: str, *, rank: int, world_size: int, **more: Any) -> None:
        met.append((backend, more.get("init_method"), rank, world_size, more.get("device_id")))
        raise MetError

    monkeypatch.setattr(dist, "init_process_group", meet)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    job = make()
    place = f"file://{tmp_path}/group"
    with pytest.raises(MetError):
        SupernetWorker(replace(job, device=device), threads=1).join(place, 2, 3)
    options = RetrainOptions(out=tmp_path / "out", device=device, group=("tcp://b:2", 5, 4))
    with pytest.raises(MetError):
        retrain(job.space.first(), job.open_data(), load_recipe("quick"), options)
    card = torch.device("cuda", 0) if device == "cuda" else None
    assert met == [(backend, None, 2, 3, card), (backend, "tcp://b:2", 4, 5, None)]


def test_steps_are_taken_while_a_checkpoint_of_before_them_is_written(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, may_write, published = SupernetWorker(make(), threads=1), threading.Event(), []
    worker.start(9)
    worker.train(2)
    assert worker.trainer is not None
    before = {n: v.clone() for n, v in worker.trainer.supernet.state_dict().items()}
    write = trainer_module.save_supernet

    def held(folder: Path, **what: Any) -> None:
        assert may_write.wait(60)
        write(folder, **what)

    monkeypatch.setattr(trainer_module, "save_supernet", held)
    monkeypatch.setattr(type(worker.job.files), "publish", lambda *_: published.append(True))
    worker.save(True)
    worker.train(3)
    assert not published
    may_write.set()
    worker._wait_until_saved()
    assert published
    second = SupernetWorker(worker.job, threads=1)
    assert second.start(9) == 2
    assert second.trainer is not None
    for name, value in second.trainer.supernet.state_dict().items():
        assert torch.equal(value, before[name]), name
    worker.save()
    assert SupernetWorker(worker.job, threads=1).start(9) == 5


def test_what_goes_wrong_while_a_checkpoint_is_written_is_told_by_the_next(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    worker = SupernetWorker(make(), threads=1)
    worker.start(9)
    worker.train(1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "save_supernet", fail)
        worker.save(True)
        with pytest.raises(OSError, match="No space left"):
            worker.save()
    worker.save()
    assert SupernetWorker(worker.job, threads=1).start(9) == 1


def test_workers_of_a_group_time_the_recipe_as_it_is(
    make: Callable[..., Job], clock: Clock, monkeypatch: pytest.MonkeyPatch
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
    make: Callable[..., Job], clock: Clock, monkeypatch: pytest.MonkeyPatch
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
