"""Laws of a network's training alone: its epochs, its checkpoint, its shards."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from search.scheduling.tasks import TrialTask, checkpoint_name
from search.workers import supernet_worker
from search.workers.group import open_meeting
from search.workers.job import Job
from search.workers.supernet_worker import train_alone
from supernet.network.supernet import Supernet, build_subnet
from supernet.recipes.recipe import in_shards, with_epochs
from supernet.training.checkpoint import latest_checkpoint
from supernet.training.training import WEIGHTS_FILE, TrainingOptions, train
from tests.tiny_job import BATCH, NUM_SEARCH, PassClock


def task_of(job: Job, **more: Any) -> TrialTask:
    return TrialTask(trial_id=7, architecture=job.space.first(), epochs=2, seed=5, **more)


def trained_by_hand(job: Job, task: TrialTask) -> Any:
    """Train the task's network as its recipe says, from the task's seed."""
    data = job.open_data()
    torch.manual_seed(task.seed)
    recipe = with_epochs(job.trial_recipe, task.epochs)
    network = build_subnet(task.architecture, recipe.drop_path)
    options = TrainingOptions(
        train_split=data.split("train"),
        eval_split=data.split("search"),
        seed=task.seed,
        recalibrates=True,
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


def test_a_network_alone_is_judged_with_statistics_of_its_last_weights(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainingOptions] = []

    def trains(*given: Any) -> Any:
        seen.append(given[-1])
        return train(*given)

    monkeypatch.setattr(supernet_worker, "train", trains)
    train_alone(make(), task_of(make()), 1, lambda _: None)
    assert [options.recalibrates for options in seen] == [True]


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


def stopped_after(epochs: int) -> Callable[[int], None]:
    """Stop a training, as a lack of memory does, after so many epochs."""

    def stop(epoch: int) -> None:
        if epoch == epochs:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(
    "changed", [{"micro_batches": 2}, {"architecture": None}, {"epochs": 3}, {"seed": 6}]
)
def test_a_checkpoint_of_another_training_costs_no_network(
    make: Callable[..., Job], changed: dict[str, Any]
) -> None:
    """Of an attempt that ran out of memory, or of a trial that had this number before."""
    job = make()
    with pytest.raises(KeyboardInterrupt):
        train_alone(job, task_of(job), 1, stopped_after(1))
    task = replace(task_of(job), **changed)
    if task.architecture is None:
        task = replace(task, architecture=job.space.extreme("macs", largest=True))

    found = train_alone(job, task, 1, lambda epoch: None)

    job.files.remove(checkpoint_name(7))
    assert found == train_alone(job, task, 1, lambda epoch: None)


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
    make: Callable[..., Job], clock: PassClock
) -> None:
    job = make()
    train_alone(job, task_of(job, micro_batches=2), 1, lambda epoch: None)
    assert {images for _, images, training in clock.passes if training} == {BATCH // 2}
