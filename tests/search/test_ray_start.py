"""The commands of docs/cluster.md, "By hand": nodes of `ray start`, joined by `search run`."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from search.record import Record
from tests.search.test_run import BUDGET_SECONDS, ENVIRONMENT, SPACE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a node of one core and one more, each as a user starts them; end both."""
    found, nodes = f"127.0.0.1:{free_port()}", []
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(secrets.token_hex(32))
    # The paths of Unix sockets must be short.
    scratch = Path(f"/tmp/r{os.getpid()}")
    head = ["--head", "--port", found.split(":")[1], "--temp-dir", str(scratch)]
    log = (tmp_path / "ray.log").open("w")
    try:
        for words in (head, ["--address", found]):
            command = [str(RAY), "start", *words, "--num-cpus", "1", "--block"]
            nodes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            wait_for_nodes(found, len(nodes), tmp_path / "ray.log")
        yield found
    finally:
        for node in reversed(nodes):
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(60)
        log.close()


def wait_for_nodes(address: str, number: int, log: Path) -> None:
    """Wait until `ray status` counts so many nodes."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        command = [str(RAY), "status", "--address", address]
        status = subprocess.run(command, capture_output=True, text=True, check=False)
        if f"/{number}.0 CPU" in status.stdout:
            return
        time.sleep(1)
    raise AssertionError(f"no {number} nodes: {status.stdout}{status.stderr}{log.read_text()}")


def run(folder: Path, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Search in the folder with the nodes of an address."""
    (folder / "tiny.yaml").write_text(SPACE)
    command = [sys.executable, "-m", "search", "run", "--out", "run", "--space", "tiny.yaml"]
    options = ["--budget", f"{BUDGET_SECONDS}cpu-seconds", "--ray-address", address]
    return subprocess.run(
        [*command, *options],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_joins_nodes_that_were_started_by_hand(address: str, tmp_path: Path) -> None:
    refused = run(tmp_path, address, RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2
    assert "RAY_AUTH_MODE=token" in refused.stderr
    assert not (tmp_path / "run").exists()

    done = run(
        tmp_path, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "on 2 cores" in done.stdout
    with Record.open(tmp_path / "run" / "record.db") as record:
        assert record.spent() <= 1.01 * BUDGET_SECONDS + 1.5
        assert record.trials(state="done")
