"""A run on two nodes that cannot see its folder: what they share goes through a storage.

The driver runs in a mount namespace of its own, in which the run's folder has been mounted under
another name; the nodes' processes find an empty folder there. Each node has its own cache.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from search.plan import PHASES
from search.record.record import Record

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[3]
SPACE = """
name: tiny
img_size: 8
patch_size: 2
mlp_ratio: [1, 0.5, 2]
stages: [{dim: 8, depth: 1}, {dim: 16, depth: 1}]
mixers:
  window_attention: {window_size: 4, num_heads: [1, 2, 4], terms: [qk+bias, qr+bias, rk, bias]}
  depthwise_conv: {kernel_size: [3, 5]}
"""
BUDGET_SECONDS = 150.0
# In a mount namespace: RUN is seen as ALIAS by what comes after, and by nobody else.
HIDDEN = 'mount --bind "$0" "$1" && shift && exec "$@"'


def can_hide() -> bool:
    return not subprocess.run(["unshare", "--mount", "true"], check=False).returncode


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders: ``real``, that of the run; ``alias``, its name for the driver; the storage."""
    if shutil.which("unshare") is None or not can_hide():
        pytest.skip("this user may not make mount namespaces (unshare --mount)")
    place = tmp_path_factory.mktemp("hidden")
    (place / "tiny.yaml").write_text(SPACE)
    for name in ("real", "alias"):
        (place / name).mkdir()
    return place


@contextmanager
def cluster_of_two(place: Path, caches: str) -> Iterator[Any]:
    """Start a head without devices and two nodes of one core, each with its own cache."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for number in range(2):
            patch.setenv("MIXER_SEARCH_CACHE", str(place / f"cache-{caches}-{number}"))
            cluster.add_node(num_cpus=1)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def start(place: Path, cluster: Any, *words: str) -> subprocess.Popen[bytes]:
    """Start the driver, which alone sees the run's folder."""
    command = ["unshare", "--mount", "sh", "-c", HIDDEN, str(place / "real"), str(place / "alias")]
    command += [sys.executable, "-m", "search", "run", "--out", str(place / "alias")]
    command += ["--ray-address", cluster.address, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    with (place / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)


def wait_for_phase(place: Path, phase: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        assert process.poll() is None, (place / "log.txt").read_text()
        if (place / "real" / "record.db").exists():
            with Record.open(place / "real" / "record.db") as record:
                if phase in record.spent_by_phase():
                    return
        time.sleep(0.2)
    raise AssertionError(f"the run never reached the phase {phase}")


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """A run that was interrupted, lost its cluster, and went on with another to its end."""
    storage = ("--storage", str(place / "storage"))
    new = ("--budget", f"{BUDGET_SECONDS}cpu-seconds", "--space", str(place / "tiny.yaml"))
    with cluster_of_two(place, "first") as cluster:
        process = start(place, cluster, *new, *storage)
        try:
            wait_for_phase(place, "trust", process)
            process.send_signal(signal.SIGINT)
            assert process.wait(100) == 130, (place / "log.txt").read_text()
        finally:
            process.kill()
    with cluster_of_two(place, "second") as cluster:
        process = start(place, cluster, "--resume")
        try:
            assert process.wait(900) == 0, (place / "log.txt").read_text()
        finally:
            process.kill()
    return place


def test_the_run_ends_within_its_budget_on_nodes_that_do_not_see_its_folder(
    finished: Path,
) -> None:
    assert not list((finished / "alias").iterdir())
    with Record.open(finished / "real" / "record.db") as record:
        # The last unit of work is a judge's start, seconds on a busy machine.
        assert 0.9 * BUDGET_SECONDS < record.spent(PHASES) <= 1.01 * BUDGET_SECONDS + 10.0
        trials = record.trials()
        assert not [trial for trial in trials if trial.state in ("running", "failed")]
        assert {"supernet", "trust", "search"} <= set(record.spent_by_phase())
        extraction = record.get_meta("extraction")
    # The judges had the supernet that was trained: its members' networks give its logits.
    assert extraction
    assert max(extraction.values()) <= 1e-5


def test_checkpoints_lie_in_the_storage_alone_and_are_few(finished: Path) -> None:
    assert not (finished / "real" / "supernet").exists()
    assert not (finished / "real" / "trials").exists()
    storage = finished / "storage"
    assert {len(list((storage / name).glob("*.json"))) for name in ("data", "supernet")} == {1}
    with Record.open(finished / "real" / "record.db") as record:
        waiting = {str(trial.id) for trial in record.trials(state="waiting")}
    assert {path.name for path in (storage / "trials").glob("*")} <= waiting


def test_every_node_has_one_copy_of_the_images(finished: Path) -> None:
    caches = sorted(finished.glob("cache-second-*"))
    assert len(caches) == 2
    assert [len(list(cache.rglob("train_search_images.npy"))) for cache in caches] == [1, 1]


def test_what_was_inherited_is_fetched_for_the_driver(finished: Path) -> None:
    words = [sys.executable, "-m", "search", "pareto", str(finished / "real"), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["MIXER_SEARCH_CACHE"] = str(finished / "cache-driver")
    shown = subprocess.run(words, env=environment, capture_output=True, check=True, text=True)
    number = json.loads(shown.stdout)[0]["id"]
    words[2:] = ["search", "ladder", f"{finished / 'real'}:{number}", "--step", "extracted"]
    climbed = subprocess.run(words, env=environment, capture_output=True, check=True, text=True)
    assert "extracted" in climbed.stdout
    assert list((finished / "cache-driver").rglob("supernet.json"))
