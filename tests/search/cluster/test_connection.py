"""Actors on a real Ray: the loss of one is told at once, and a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster as Nodes

from search.cluster import connection as executor
from search.cluster.connection import Cluster, WorkerLostError, call_all, form_group

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]


class Worker:
    """Holds a device; answers, or dies."""

    def __init__(self, job: Any, *, threads: int) -> None:
        self.job = job

    def answer(self) -> str:
        return f"of {self.job}"

    def die(self, wanted: int) -> int:
        if os.getpid() == wanted:
            os.kill(wanted, signal.SIGKILL)
        return wanted

    def pid(self) -> int:
        return os.getpid()

    def niceness(self) -> int:
        return os.nice(0)

    def address(self, host: str) -> str:
        return f"tcp://{host}:1234"

    def join(self, address: str, rank: int, world_size: int) -> None:
        self.joined = (address, rank, world_size)

    def place(self) -> tuple[str, int, int]:
        return self.joined


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "count_cores", lambda: 2)
        with Cluster(device="cpu") as cluster:
            yield cluster


def comes_free(cluster: Cluster, devices: int) -> bool:
    """Wait until Ray says that so many devices are free; on a busy machine that takes a while."""
    deadline = time.monotonic() + 60
    while cluster.free < devices and time.monotonic() < deadline:
        time.sleep(0.05)
    return cluster.free == devices


# The first test: it connects to a cluster of its own, and a process has one connection at a time.
def test_a_node_with_more_gpus_than_cores_uses_them_all() -> None:
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 3})
    try:
        with Cluster(device="gpu", address=nodes.address) as cluster:
            with cluster.actors(Worker, "job", 3) as workers:
                found = call_all(workers, "answer", while_waiting=lambda: None, limit_seconds=100)
            assert found == ["of job"] * 3
    finally:
        nodes.shutdown()


def test_all_answer_and_give_their_devices_back(cluster: Cluster) -> None:
    with cluster.actors(Worker, "job", 2) as workers:
        assert call_all(workers, "answer", while_waiting=lambda: None) == ["of job"] * 2
        assert cluster.free == 0
        assert executor._count_dead(workers) == 0
    assert comes_free(cluster, 2)


def test_workers_give_way_to_others_no_more_than_their_program(cluster: Cluster) -> None:
    """Ray's own default is 15 more; what a budget holds would then stand still beside any work."""
    with cluster.actors(Worker, "job", 2) as workers:
        assert call_all(workers, "niceness", while_waiting=lambda: None) == [os.nice(0)] * 2
    assert comes_free(cluster, 2)


def test_a_group_over_nodes_meets_where_the_cluster_knows_the_first_worker(
    cluster: Cluster,
) -> None:
    (node,) = executor.ray.nodes()
    with cluster.actors(Worker, "job", 2) as workers:
        form_group(workers, meeting_place=None, while_waiting=lambda: None)
        places = call_all(workers, "place", while_waiting=lambda: None)
    address = f"tcp://{node['NodeManagerAddress']}:1234"
    assert places == [(address, 0, 2), (address, 1, 2)]


def test_one_that_died_is_told_and_not_waited_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster.actors(Worker, "job", 2) as workers:
        pids = call_all(workers, "pid", while_waiting=lambda: None)
        with pytest.raises(WorkerLostError):
            call_all(workers, "die", pids[1], while_waiting=lambda: None)
        assert executor._count_dead(workers) == 1
        # Whoever waits for more than the living has to give up, and here that would never be.
        monkeypatch.setattr(executor, "RELEASE_SECONDS", 1e9)
    assert comes_free(cluster, 2)
