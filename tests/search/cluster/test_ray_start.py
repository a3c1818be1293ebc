"""The commands of docs/guide/clusters.md: nodes of `ray start`, a run or a job on them."""

from __future__ import annotations

import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from search.record.record import Record
from tests.search.test_run import BUDGET_SECONDS, ENVIRONMENT, SPACE

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

RAY = Path(sys.executable).with_name("ray")
# The paths of Unix sockets must be short.
SCRATCH = Path(f"/tmp/r{os.getpid()}")
StartNodes = Callable[..., str]
# Of runs that are stopped and start anew; to stop two trials takes seconds on a busy machine.
JOB_SECONDS, STOP_SECONDS = 150.0, 10.0


def free_port() -> int:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def start_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartNodes]:
    """Give a function that starts a node of one core and one more, each as a user starts them.

    It takes further options of the head and returns the address; the nodes end with the test.
    """
    found, nodes = f"127.0.0.1:{free_port()}", []
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text(secrets.token_hex(32))
    log = (tmp_path / "ray.log").open("w")

    def start(*options: str) -> str:
        head = ["--head", "--port", found.split(":")[1], "--temp-dir", str(SCRATCH), *options]
        for words in (head, ["--address", found]):
            command = [str(RAY), "start", *words, "--num-cpus", "1", "--block"]
            nodes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            wait_for_nodes(found, len(nodes), tmp_path / "ray.log")
        return found

    try:
        yield start
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


def test_a_run_joins_nodes_that_were_started_by_hand(
    start_nodes: StartNodes, tmp_path: Path
) -> None:
    address = start_nodes()
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


def test_a_job_runs_is_stopped_and_goes_on(
    start_nodes: StartNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("jobs need Ray's dashboard: pip install 'ray[default]'")
    port = str(free_port())
    start_nodes("--include-dashboard", "true", "--dashboard-port", port)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
    (tmp_path / "tiny.yaml").write_text(SPACE)
    search = [sys.executable, "-m", "search", "run", "--ray-address", "auto"]
    search += ["--out", str(tmp_path / "run")]
    new = ["--space", str(tmp_path / "tiny.yaml"), "--budget", f"{JOB_SECONDS}cpu-seconds"]

    job("submit", "--submission-id", "first", "--no-wait", "--", *search, *new)
    deadline = time.monotonic() + 200
    while "trust" not in spent(tmp_path / "run"):
        assert time.monotonic() < deadline, job("logs", "first")
        time.sleep(0.5)
    job("stop", "first")
    with Record.open(tmp_path / "run" / "record.db") as record:
        assert record.spent() == pytest.approx(sum(spent(tmp_path / "run").values()))
    said = job("submit", "--submission-id", "second", "--", *search, "--resume")

    assert "succeeded" in said
    assert "on 2 cores" in job("logs", "first")
    with Record.open(tmp_path / "run" / "record.db") as record:
        assert record.spent() <= 1.01 * JOB_SECONDS + STOP_SECONDS
        assert record.trials(state="done")


def job(*words: str) -> str:
    """Do something with a job, and return what is said."""
    environment = {**ENVIRONMENT, **{k: v for k, v in os.environ.items() if k.startswith("RAY_")}}
    done = subprocess.run(
        [str(RAY), "job", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def spent(folder: Path) -> dict[str, float]:
    """Return the seconds of each phase that has begun, if the run has."""
    if not (folder / "record.db").exists():
        return {}
    with Record.open(folder / "record.db") as record:
        return record.spent_by_phase()
