"""A cluster of several nodes on this machine, a run on it, and what must hold after a fault."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster

from benchmarks.faults.stopwatch import Stopwatch
from search.plan import PHASES
from search.record.record import Record
from search.record.schema import RefusedError, open_database
from search.run_folder.folder import record_address

ROOT = Path(__file__).parents[2]
NODES = 2
GPUS = 1


@dataclass(slots=True)
class Scene:
    """A run on a cluster, and the measurements around it.

    Attributes:
        folder: Of the run.
        cluster: Of `NODES` nodes with `GPUS` fake GPUs each, and a head without.
        rng: Chooses victims.
        stopwatch: Runs all the time.
        unnoticed: From when to when (as `time.time`) Ray had not noticed that a node was dead.
        patience: How many times longer than on an idle machine may be waited.
    """

    folder: Path
    cluster: Cluster
    rng: random.Random
    stopwatch: Stopwatch
    nodes: list[Any] = field(default_factory=list)
    driver: subprocess.Popen[bytes] | None = None
    exit_codes: list[int] = field(default_factory=list)
    crashes: int = 0
    unnoticed: list[tuple[float, float]] = field(default_factory=list)
    patience: float = 1.0
    most_checkpoints: int = 0

    def start(self, *words: str) -> None:
        """Start a driver; its words come after the folder and the address."""
        command = [sys.executable, "-m", "benchmarks.faults.driver", str(self.folder)]
        command += ["--address", self.cluster.address, *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with Path(f"{self.folder}.log").open("ab") as log:
            self.driver = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log
            )

    def wait(self, limit_seconds: float = 240) -> int:
        """Wait for the driver's end; the run must end by itself."""
        assert self.driver is not None
        limit_seconds *= self.patience
        deadline = time.monotonic() + limit_seconds
        while self.driver.poll() is None:
            assert time.monotonic() < deadline, f"no end within {limit_seconds} s"
            folders = list((self.folder / "trials").glob("*"))
            self.most_checkpoints = max(self.most_checkpoints, len(folders))
            time.sleep(0.1)
        self.exit_codes.append(self.driver.returncode)
        return self.driver.returncode

    def until(self, condition: Callable[[], Any], limit_seconds: float = 120) -> Any:
        """Wait until something is true while the driver lives."""
        assert self.driver is not None
        limit_seconds *= self.patience
        deadline = time.monotonic() + limit_seconds
        while not (found := condition()):
            assert self.driver.poll() is None, f"the driver ended: {self.log()[-2000:]}"
            assert time.monotonic() < deadline, f"waited {limit_seconds} s in vain"
            time.sleep(0.05)
        return found

    def phase(self, name: str) -> Callable[[], bool]:
        """Make a condition: something is being charged to a phase."""

        def reached() -> bool:
            query = "SELECT count(*) FROM attempts WHERE phase = ? AND ended IS NULL"
            return bool(self.query(query, name)[0][0])

        return reached

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read the record from outside, as SQL."""
        try:
            with closing(open_database(record_address(self.folder))) as database:
                return database.execute(text, values)
        except (ValueError, RefusedError):
            return [(0,)]  # there is none yet, or it does not answer

    def workers(self, title: str) -> list[psutil.Process]:
        """Find this cluster's worker processes whose title has a word; Ray names them."""
        found = []
        for node in self.cluster.list_all_nodes():
            raylet = node.all_processes["raylet"][0].process
            try:
                children = psutil.Process(raylet.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            for child in children:
                try:
                    line = " ".join(child.cmdline())
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    continue
                if line.startswith("ray::") and title in line:
                    found.append(child)
        return found

    def kill_one(self, title: str) -> None:
        """Kill -9 a worker, chosen by the seed among those with a title."""
        victims = self.until(lambda: self.workers(title))
        self.rng.choice(sorted(victims, key=lambda p: p.pid)).send_signal(signal.SIGKILL)

    def kill_driver(self) -> None:
        """Kill -9 the driver."""
        assert self.driver is not None
        self.driver.send_signal(signal.SIGKILL)
        self.driver.wait()
        self.crashes += 1

    def log(self) -> str:
        """What the drivers have written."""
        return Path(f"{self.folder}.log").read_text(errors="replace")

    def kill_node(self) -> None:
        """Kill -9 a whole node, chosen by the seed, and wait until Ray has noticed."""
        victim = self.rng.choice(self.nodes)
        self.nodes.remove(victim)
        killed, counted = time.time(), ray.cluster_resources()["GPU"]
        self.cluster.remove_node(victim, allow_graceful=False)
        self.until(lambda: ray.cluster_resources().get("GPU", 0) < counted)
        self.unnoticed.append((killed, time.time()))

    def add_node(self) -> None:
        """Let another node join."""
        self.nodes.append(self.cluster.add_node(num_cpus=2, num_gpus=GPUS))

    def rest(self) -> None:
        """Wait until Ray says that nothing is held."""
        limit_seconds = 30 * self.patience
        deadline = time.monotonic() + limit_seconds
        while self.stopwatch.held() > 0:
            held = f"devices are still held {limit_seconds:.0f} s after the end"
            assert time.monotonic() < deadline, held
            time.sleep(0.1)


def spent_of(folder: Path) -> float:
    """Sum the ledger."""
    with Record.open(record_address(folder)) as record:
        return record.spent(PHASES)


def differences(scene: Scene) -> str:
    """List, second by second, where Ray said that other devices are held than were charged."""
    charges = scene.query("SELECT started, ended, devices FROM attempts ORDER BY started")
    moments = [*scene.stopwatch.changes, (charges[-1][1] + 10, 0.0)]
    lines, first, late = [], charges[0][0], 0.0
    for (since, held), (until, _) in pairwise(moments):
        charged = sum(
            devices * max(min(ended, until) - max(started, since), 0.0)
            for started, ended, devices in charges
        )
        off = charged - held * (until - since)
        late += off
        if abs(off) > 0.05:
            span = f"{since - first:7.2f} to {until - first:7.2f}"
            lines.append(f"{span}: {held:.0f} held, charged {off:+.2f} s; so far {late:+.2f}")
    return "\n".join(lines)


def forgiven(scene: Scene) -> float:
    """Sum what was charged otherwise than held while a node was dead and Ray had not noticed it.

    Nobody knows then what is held: a charge for any part of that node's devices and time is right.
    """
    charges = scene.query("SELECT started, ended, devices FROM attempts")
    moments = {moment for started, ended, _ in charges for moment in (started, ended)}
    moments |= {moment for moment, _ in scene.stopwatch.changes}
    moments |= {moment for window in scene.unnoticed for moment in window}
    total = 0.0
    for since, until in pairwise(sorted(moments)):
        middle = (since + until) / 2
        unknown = GPUS * sum(killed < middle < noticed for killed, noticed in scene.unnoticed)
        charged = sum(devices for started, ended, devices in charges if started < middle < ended)
        held = next((h for at, h in reversed(scene.stopwatch.changes) if at < middle), 0.0)
        total += max(min(charged - held, unknown), -unknown) * (until - since)
    return total


def check(scene: Scene, *, budget: float, unfinished: bool = False) -> dict[str, float]:
    """Assert what must hold after every fault; return the numbers.

    Args:
        scene: Whose driver has ended.
        budget: Device-seconds asked for.
        unfinished: The run was stopped and not resumed.
    """
    scene.rest()
    left = [process.cmdline()[0] for process in scene.workers("")]
    # Each raylet keeps these: workers that wait for any job, and its own agents.
    busy = [title for title in left if not re.match(r"ray::(IDLE|\w+Agent)", title)]
    assert not busy, f"left behind: {busy}"
    if isinstance(record_address(scene.folder), Path):
        assert scene.query("PRAGMA integrity_check") == [("ok",)]
    twice = (
        "SELECT architecture_id, fidelity, seed FROM trials GROUP BY 1, 2, 3 HAVING count(*) > 1"
    )
    assert scene.query(twice) == []
    double = (
        "SELECT trial_id FROM attempts WHERE outcome = 'done' AND trial_id IS NOT NULL "
        "GROUP BY 1 HAVING count(*) > 1"
    )
    assert scene.query(double) == [], "a result was counted twice"
    lost = (
        "SELECT id FROM trials WHERE (state = 'done') != (result IS NOT NULL) OR (state = 'done' "
        "AND NOT EXISTS (SELECT 1 FROM attempts WHERE trial_id = trials.id AND outcome = 'done'))"
    )
    assert scene.query(lost) == [], "a result without its attempt, or the reverse"
    assert scene.query("SELECT id FROM attempts WHERE ended IS NULL") == [], "an open attempt"
    spent = spent_of(scene.folder)
    clocked = scene.stopwatch.device_seconds
    off = spent - clocked - forgiven(scene)
    # A crash leaves at most one heartbeat's second a device uncharged.
    allowed = max(0.01 * clocked, 1.0) + scene.crashes * NODES * GPUS * 1.0
    numbers = {
        "asked": budget,
        "charged": spent,
        "stopwatch": clocked,
        "off": off,
        "allowed": allowed,
        "unnoticed": sum(noticed - killed for killed, noticed in scene.unnoticed),
        "checkpoints": scene.most_checkpoints,
    }
    folders = list((scene.folder / "trials").glob("*"))
    assert abs(off) <= allowed, f"{numbers}\n{differences(scene)}"
    assert scene.most_checkpoints <= NODES * GPUS, numbers
    if not unfinished:
        assert spent <= budget * 1.01 + 1.5, numbers
        assert not [
            folder
            for folder in folders
            if scene.query("SELECT state FROM trials WHERE id = ?", int(folder.name))
            not in ([("waiting",)],)
        ], "checkpoints of finished trials"
        assert scene.query("SELECT count(*) FROM trials WHERE state = 'done'")[0][0] > 20
    return numbers
