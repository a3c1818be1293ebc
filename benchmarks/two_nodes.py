"""Two nodes: a search from streamed images that loses one, and a retraining on both that does too.

``python benchmarks/two_nodes.py [--minutes 8] [--keep FOLDER]``

Real work on a real Ray cluster of a head and two nodes with a core each, all on this machine. The
set is a folder of JPEGs that is decoded whenever it is read, as a large one would be: nothing of it
is stored. One node is killed while both train the supernet, and another one joins; the search goes
on to its end. Then its best network is retrained on two devices, one of which is lost as well. The
stopwatch asks Ray which cores are held (`benchmarks/faults/stopwatch.py`) and knows no ledger.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
# Ray's workers are nice (15) by default: on a busy machine they get nothing.
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
CLASSES, SIDE = 4, 40
SPACE = """
name: two_nodes
img_size: 32
patch_size: 4
mlp_ratio: [1, 2]
stages: [{dim: 16, depth: 2}]
mixers:
  window_attention: {window_size: 4, num_heads: [1, 2]}
  depthwise_conv: {kernel_size: [3, 5]}
"""
LIMIT_SECONDS = 3600.0


def make_images(folder: Path, count: int) -> None:
    """Write JPEGs of stripes; a class is a direction."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    for number in range(count):
        label = number % CLASSES
        angle = np.pi * label / CLASSES + rng.normal(0, 0.1)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        stripes = np.sin(2 * np.pi * (4 * along + rng.random()))
        pixels = 128 + 50 * stripes[..., None] + rng.normal(0, 60, (SIDE, SIDE, 3))
        file = folder / ("val" if number < count // 10 else "train") / f"{label}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


def be_search(words: list[str]) -> None:
    """Be ``search``, where no set is small enough to be stored."""
    from search.cli.app import main as search
    from supernet.data import prepare_data

    defaults = prepare_data.__kwdefaults__
    assert defaults is not None
    defaults["memory_limit_bytes"] = 0
    sys.argv = ["search", *words]
    search()


@dataclass(slots=True)
class Nodes:
    """A cluster whose nodes come and go, and a command on it."""

    folder: Path
    cluster: Any
    nodes: list[Any] = field(default_factory=list)
    driver: subprocess.Popen[bytes] | None = None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    def add(self) -> None:
        """Let a node of one core join."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def kill(self) -> None:
        """Kill -9 a node and wait until Ray has noticed."""
        import ray

        before = ray.cluster_resources().get("CPU", 0)
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.until(lambda: ray.cluster_resources().get("CPU", 0) < before)

    def start(self, *words: str) -> None:
        """Start a command of ``search`` on this cluster."""
        command = [sys.executable, str(Path(__file__)), "--as-search", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            self.driver = subprocess.Popen(
                [*command, "--ray-address", self.cluster.address],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until something is true while the command lives."""
        assert self.driver is not None
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (found := condition()):
            assert self.driver.poll() is None, self.log()[-2000:]
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.2)
        return found

    def end(self) -> None:
        """Wait for the command's good end."""
        assert self.driver is not None
        assert self.driver.wait(LIMIT_SECONDS) == 0, self.log()[-3000:]

    def log(self) -> str:
        """Return what the commands have written."""
        return (self.folder / "log").read_text(errors="replace")

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Read the record from outside; nothing where it does not answer."""
        from search.record.schema import RefusedError, open_database
        from search.run_folder.folder import record_address

        try:
            with closing(open_database(record_address(self.run))) as database:
                return database.execute(text)
        except (ValueError, RefusedError):
            return []


def search_with_a_loss(nodes: Nodes, minutes: float) -> None:
    """Search; kill a node in the supernet's training, and let another one join."""
    (nodes.folder / "space.yaml").write_text(SPACE)
    given = {
        "--data": nodes.folder / "images",
        "--space": nodes.folder / "space.yaml",
        "--budget": f"{minutes:g}cpu-minutes",
        "--out": nodes.run,
        "--sampler": "random",
    }
    nodes.start("run", *(str(word) for pair in given.items() for word in pair))
    nodes.until((nodes.run / "supernet").is_dir)
    nodes.kill()
    nodes.until(lambda: "going on from the checkpoint" in nodes.log())
    nodes.add()
    nodes.end()


def retrain_with_a_loss(nodes: Nodes, epochs: int) -> None:
    """Retrain the best network on two devices; kill a node after some epochs, and add one."""
    ids = "SELECT architecture_id FROM trials WHERE state = 'done' ORDER BY id DESC LIMIT 1"
    words = ("--arch", str(nodes.query(ids)[0][0]), "--devices", "2", "--epochs", str(epochs))
    nodes.start("retrain", str(nodes.run), *words)
    nodes.until(lambda: [*nodes.run.glob("retrain/*/metrics.csv")])
    nodes.kill()
    nodes.add()
    nodes.end()


def report(nodes: Nodes, held: float) -> None:
    """Print what came of it."""
    ledger = "SELECT phase, outcome, sum((ended - started) * devices), count(*) FROM attempts"
    for phase, outcome, seconds, count in nodes.query(f"{ledger} GROUP BY 1, 2 ORDER BY min(id)"):
        print(f"{phase:9} {outcome:12} {count:4} attempts {seconds:8.1f} s")
    (charged,) = nodes.query("SELECT sum((ended - started) * devices) FROM attempts")[0]
    failed = nodes.query("SELECT count(*) FROM trials WHERE state = 'failed'")[0][0]
    print(f"charged {charged:.1f} s, held {held:.1f} s by the stopwatch; {failed} trials failed")
    lines = [line for line in nodes.log().splitlines() if "going on" in line or "lost:" in line]
    print("\n".join([*lines, nodes.log().strip().splitlines()[-1]]))


def main() -> None:
    """Search and retrain on two nodes that fail."""
    if sys.argv[1:2] == ["--as-search"]:
        be_search(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="Of two cores together.")
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--epochs", type=int, default=12, help="Of the retraining.")
    parser.add_argument("--keep", type=Path, help="Folder for images, run and log.")
    options = parser.parse_args()
    import ray
    from ray.cluster_utils import Cluster

    from benchmarks.faults.stopwatch import Stopwatch

    folder = options.keep or Path(tempfile.mkdtemp(prefix="two-nodes-"))
    make_images(folder / "images", options.images)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = Nodes(folder, cluster)
    try:
        for _ in range(2):
            nodes.add()
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        with Stopwatch("CPU") as stopwatch:
            search_with_a_loss(nodes, options.minutes)
            retrain_with_a_loss(nodes, options.epochs)
            held = stopwatch.device_seconds
        report(nodes, held)
    finally:
        if nodes.driver is not None and nodes.driver.poll() is None:
            nodes.driver.kill()
        ray.shutdown()
        cluster.shutdown()
    if not options.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
