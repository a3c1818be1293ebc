"""Laws of the workers that train a supernet together: where they meet, what they save."""

from __future__ import annotations

import multiprocessing as mp
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from search.retraining.network import RetrainOptions, retrain
from search.retraining.together import joined as retraining_joined
from search.workers.group import joined
from search.workers.job import Job, for_group
from search.workers.supernet_worker import SupernetWorker
from supernet.recipes.recipe import load_recipe
from supernet.shared_weights import shared_training


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


@pytest.mark.parametrize("join", [joined, retraining_joined])
@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_who_fails_alone_does_not_wait_for_those_who_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, join: Callable[..., Any], backend: str
) -> None:
    """NCCL's communicators are destroyed by all of a group together, or by nobody."""
    destroy, left = dist.destroy_process_group, []

    def destroyed() -> None:
        left.append(True)
        destroy()

    monkeypatch.setattr(dist, "destroy_process_group", destroyed)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    place = f"file://{tmp_path}/failing"
    try:
        with pytest.raises(MemoryError), join((place, 1, 0), device="cpu"):
            raise MemoryError
        assert left == [True] * (backend == "gloo")
    finally:
        if dist.is_initialized():
            destroy()
    left.clear()
    with join((f"file://{tmp_path}/well", 1, 0), device="cpu"):
        assert dist.is_initialized()
    assert left == [True]


def test_steps_are_taken_while_a_checkpoint_of_before_them_is_written(
    make: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, may_write, published = SupernetWorker(make(), threads=1), threading.Event(), []
    worker.start(9)
    worker.train(2)
    assert worker.trainer is not None
    before = {n: v.clone() for n, v in worker.trainer.supernet.state_dict().items()}
    write = shared_training.save_supernet

    def held(folder: Path, **what: Any) -> None:
        assert may_write.wait(60)
        write(folder, **what)

    monkeypatch.setattr(shared_training, "save_supernet", held)
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
        patch.setattr(shared_training, "save_supernet", fail)
        worker.save(True)
        with pytest.raises(OSError, match="No space left"):
            worker.save()
    worker.save()
    assert SupernetWorker(worker.job, threads=1).start(9) == 1
