"""A cluster on this machine is this program's alone: loopback only, with a token of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from search.cluster import connection
from search.cluster.connection import Cluster, call_all, form_group

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
PUBLIC_TOKEN = "0" * 64


class Worker:
    """Holds a device; says what it was started with, and joins a group."""

    def __init__(self, job: Any, *, threads: int) -> None:
        pass

    def environment(self) -> dict[str, str]:
        return {name: os.environ[name] for name in AUTHENTICATION if name in os.environ}

    def address(self, host: str) -> str:
        raise AssertionError("on one machine nobody needs to listen")

    def join(self, address: str, rank: int, world_size: int) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a cluster in the worst environment: no tokens wanted, and one that everybody knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "count_cores", lambda: 2)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_AUTH_TOKEN", PUBLIC_TOKEN)
        with Cluster(device="cpu") as cluster:
            yield cluster
            token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert not token.parent.exists()
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert os.environ["RAY_AUTH_TOKEN"] == PUBLIC_TOKEN
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def listening() -> set[str]:
    """List the addresses that this process and all that it started listen on."""
    me = psutil.Process()
    return {
        one.laddr.ip.removeprefix("::ffff:")
        for process in (me, *me.children(recursive=True))
        for one in process.net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN
    }


def test_it_listens_on_the_loopback_address_only(cluster: Cluster) -> None:
    with cluster.actors(Worker, "job", 2) as workers:
        form_group(workers, meeting_place=cluster.meeting_place, while_waiting=lambda: None)

        assert listening() == {"127.0.0.1"}


def test_every_process_wants_a_token_that_only_this_user_can_read(cluster: Cluster) -> None:
    with cluster.actors(Worker, "job", 2) as workers:
        found = call_all(workers, "environment", while_waiting=lambda: None)

    assert [one.get("RAY_AUTH_MODE") for one in found] == ["token", "token"]
    assert all("RAY_AUTH_TOKEN" not in one for one in found)
    token = Path(found[0]["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert token.read_text() != PUBLIC_TOKEN
    assert len(token.read_text()) >= 32


def test_who_has_no_token_is_not_let_in(cluster: Cluster) -> None:
    import ray
    from ray._raylet import GcsClient
    from ray.exceptions import AuthenticationError

    address = ray.get_runtime_context().gcs_address
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert GcsClient(address=address).internal_kv_keys(b"", None, timeout=30) is not None
    known = token.read_text()
    token.write_text(PUBLIC_TOKEN)
    connection._read_environment()
    try:
        with pytest.raises((AuthenticationError, ray.exceptions.RpcError)):
            GcsClient(address=address).internal_kv_keys(b"", None, timeout=30)
    finally:
        token.write_text(known)
        connection._read_environment()
