"""Break a running search in every way we know, and check that nothing is lost.

``python benchmarks/bench_faults.py [--only NAME] [--seed S] [--patience FACTOR]``

Every fault happens to a run of the real engine on a real Ray cluster of a head and two nodes with
one fake GPU each, all on this machine, while small work runs on them
(`benchmarks/faults/small_work.py`). After each: the run has ended by itself, every result is there
once, the ledger agrees with a stopwatch that asks Ray which devices are held, no worker is left,
finished trials have left no checkpoints.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
# Ray's workers are nice (15) by default: on a busy machine they get nothing.
os.environ.setdefault("RAY_worker_niceness", "0")

import ray
from ray.cluster_utils import Cluster

from benchmarks.faults.scene import GPUS, NODES, Scene, check, forgiven
from benchmarks.faults.stopwatch import Stopwatch
from tests.postgres import running_server

BUDGET = 180.0
START = ("--budget", f"{BUDGET:.0f}gpu-seconds", "--share", "supernet=.25")


def nothing(scene: Scene) -> dict[str, float]:
    """No fault: what the others are compared with."""
    scene.start(*START)
    assert scene.wait() == 0
    return check(scene, budget=BUDGET)


def supernet_worker(scene: Scene) -> dict[str, float]:
    """kill -9 of one of the workers that train the supernet together."""
    scene.start(*START)
    scene.until(scene.phase("supernet"))
    scene.kill_one("SmallSupernetWorker")
    assert scene.wait() == 0
    assert "going on from the checkpoint" in scene.log()
    return check(scene, budget=BUDGET)


def tune_worker(scene: Scene) -> dict[str, float]:
    """kill -9 of a Ray Tune worker in a trial."""
    scene.start(*START)
    scene.until(scene.phase("trust"))
    time.sleep(2)
    scene.kill_one("train")
    assert scene.wait() == 0
    lost = scene.query("SELECT trial_id FROM attempts WHERE outcome = 'lost' AND devices = 1")
    assert lost
    for (trial,) in lost:
        state = scene.query("SELECT state FROM trials WHERE id = ?", trial)
        assert state == [("done",)], (trial, state)
    return check(scene, budget=BUDGET)


def judge(scene: Scene) -> dict[str, float]:
    """kill -9 of a judge in an evaluation."""
    scene.start(*START)
    scene.until(scene.phase("search"))
    scene.until(lambda: scene.query("SELECT count(*) FROM trials WHERE fidelity='supernet'")[0][0])
    scene.kill_one("SmallJudgeWorker.judge")
    assert scene.wait() == 0
    again = "SELECT count(*) FROM attempts WHERE outcome = 'lost' AND trial_id IS NOT NULL"
    assert scene.query(again)[0][0] > 0
    return check(scene, budget=BUDGET)


def node(scene: Scene, phase: str = "trust", *words: str, after: float = 2.0) -> dict[str, float]:
    """kill -9 of a whole node (its raylet and all its workers) while trials train on it."""
    scene.start(*START, *words)
    scene.until(scene.phase(phase))
    time.sleep(after)
    scene.kill_node()
    assert scene.wait() == 0
    assert scene.query("SELECT id FROM trials WHERE state = 'failed'") == []
    return check(scene, budget=BUDGET)


def node_in_search(scene: Scene) -> dict[str, float]:
    """kill -9 of a whole node while judges work on it."""
    return node(scene, "search")


def node_in_supernet(scene: Scene) -> dict[str, float]:
    """kill -9 of a whole node while the supernet trains on it."""
    return node(scene, "supernet")


def node_in_measuring(scene: Scene) -> dict[str, float]:
    """kill -9 of a whole node while workers start and measure."""
    return node(scene, "measure", after=0.5)


def node_in_promotion(scene: Scene) -> dict[str, float]:
    """kill -9 of a whole node while promoted networks train on it."""
    return node(scene, "promote")


def node_in_finish(scene: Scene) -> dict[str, float]:
    """kill -9 of a whole node while the last phase judges on it."""
    return node(scene, "finish", "--share", "finish=.2", after=1.0)


def node_of_a_group(scene: Scene) -> dict[str, float]:
    """kill -9 of one of the two nodes that train a network together; another one comes."""
    scene.start(*START, "--together", "2")
    scene.until(scene.phase("trust"))
    time.sleep(2)
    scene.kill_node()
    # Ray finds out after some time; a node that came before would take the place of the dead one.
    alone = "SELECT number FROM attempts WHERE trial_id IS NOT NULL AND devices = 1"
    scene.until(lambda: scene.query(alone))
    scene.add_node()
    assert scene.wait() == 0
    lost = "SELECT trial_id FROM attempts WHERE outcome = 'lost' AND devices = 2"
    (trials,) = zip(*scene.query(lost), strict=True)
    for trial in trials:
        assert scene.query("SELECT state FROM trials WHERE id = ?", trial) == [("done",)]
    # On the node that was left they went on alone, later again on two.
    sizes = "SELECT DISTINCT devices FROM attempts WHERE trial_id IS NOT NULL AND outcome = 'done'"
    assert {size for (size,) in scene.query(sizes)} >= {1.0, 2.0}
    assert scene.query("SELECT id FROM trials WHERE state = 'failed'") == []
    return check(scene, budget=BUDGET)


def node_in_retraining(scene: Scene) -> dict[str, float]:
    """kill -9 of one of the two nodes that retrain a network together; another one comes."""
    scene.start(*START)
    assert scene.wait() == 0
    scene.rest()
    before = scene.stopwatch.device_seconds
    query = "SELECT architecture_id FROM trials WHERE state = 'done' ORDER BY id DESC LIMIT 1"
    network = str(scene.query(query)[0][0])
    scene.start("--retrain", network, "--devices", "2")
    scene.until(scene.phase("retrain"))
    scene.until(lambda: [*scene.folder.glob("retrain/*/metrics.csv")])
    time.sleep(5)
    scene.kill_node()
    time.sleep(5)
    scene.add_node()
    assert scene.wait() == 0
    scene.rest()
    held = scene.stopwatch.device_seconds - before
    ends = scene.query("SELECT outcome FROM attempts WHERE phase = 'retrain' ORDER BY number")
    assert ends[0] == ("lost",)
    assert ends[-1] == ("done",)
    (metrics,) = scene.folder.glob("retrain/*/metrics.csv")
    # Every epoch once: what was done before was not done again.
    epochs = [line.split(",")[0] for line in metrics.read_text().splitlines()[1:]]
    assert epochs == [str(epoch + 1) for epoch in range(40)]
    charged = scene.query(
        "SELECT sum((ended - started) * devices) FROM attempts WHERE phase = 'retrain'"
    )[0][0]
    off = charged - held - forgiven(scene)
    allowed = max(0.01 * held, 1.0)
    numbers = {"charged": charged, "stopwatch": held, "off": off, "allowed": allowed}
    assert abs(off) <= allowed, numbers
    return numbers


def driver(scene: Scene) -> dict[str, float]:
    """kill -9 of the driver in trials and in judging; then --resume."""
    scene.start(*START)
    for phase in ("trust", "search"):
        scene.until(scene.phase(phase))
        time.sleep(scene.rng.uniform(0.5, 1.5))
        scene.kill_driver()
        scene.rest()
        scene.start("--resume")
    assert scene.wait() == 0
    return check(scene, budget=BUDGET)


def writer(scene: Scene) -> dict[str, float]:
    """kill -9 of the database's writer, the driver, five times while it writes all the time."""
    work = '{"judge": 0.002}'
    scene.start(*START, "--work", work, "--share", "search=.5")
    for _ in range(5):
        scene.until(scene.phase("search"))
        time.sleep(scene.rng.uniform(0.3, 0.8))
        scene.kill_driver()
        assert scene.query("PRAGMA integrity_check") == [("ok",)]
        scene.rest()
        scene.start("--resume")
    assert scene.wait() == 0
    return check(scene, budget=BUDGET)


def database(scene: Scene) -> dict[str, float]:
    """kill -9 of the PostgreSQL server that has the record, for some seconds; nobody resumes."""
    with running_server() as server:
        scene.start(*START, "--record", server.url)
        for phase in ("trust", "search"):
            scene.until(scene.phase(phase))
            time.sleep(scene.rng.uniform(0.5, 1.5))
            server.stop(signal.SIGKILL)
            time.sleep(scene.rng.uniform(3.0, 8.0))
            server.start()
        assert scene.wait() == 0
        assert scene.log().count("is back after") == 2
        return check(scene, budget=BUDGET)


def hang(scene: Scene) -> dict[str, float]:
    """A trial that hangs: it is ended at its time limit and has failed."""
    scene.start(*START)
    scene.until(scene.phase("supernet"))
    (scene.folder / "hang").touch()
    assert scene.wait() == 0
    causes = scene.query("SELECT cause FROM attempts WHERE outcome = 'failed'")
    assert len(causes) == 1, causes
    assert "within its limit" in causes[0][0]
    return check(scene, budget=BUDGET)


def hanging_judge(scene: Scene) -> dict[str, float]:
    """A judgement that hangs: its judge is replaced, the others of its batch are judged."""
    scene.start(*START)
    scene.until(scene.phase("search"))
    (scene.folder / "hang-judge").touch()
    assert scene.wait() == 0
    assert "no judgement within" in str(scene.query("SELECT cause FROM attempts"))
    return check(scene, budget=BUDGET)


def raises(scene: Scene) -> dict[str, float]:
    """A trial that raises: recorded with its cause, never tried again."""
    scene.start(*START)
    scene.until(scene.phase("supernet"))
    (scene.folder / "raise").touch()
    assert scene.wait() == 0
    failed = scene.query("SELECT id FROM trials WHERE state = 'failed'")
    assert len(failed) == 1
    attempts = scene.query("SELECT outcome, cause FROM attempts WHERE trial_id = ?", *failed[0])
    assert [outcome for outcome, _ in attempts] == ["failed"]
    assert "KeyError" in attempts[0][1]
    return check(scene, budget=BUDGET)


def memory(scene: Scene) -> dict[str, float]:
    """A trial that runs out of memory: tried once more with half a batch in memory, and done."""
    scene.start(*START)
    scene.until(scene.phase("supernet"))
    (scene.folder / "memory").touch()
    assert scene.wait() == 0
    query = "SELECT trial_id FROM attempts WHERE cause LIKE 'out of memory%'"
    trials = scene.query(query)
    assert trials
    for (trial,) in trials:
        state, result = scene.query("SELECT state, result FROM trials WHERE id = ?", trial)[0]
        assert state == "done"
        assert '"micro_batches": 2' in result
    return check(scene, budget=BUDGET)


def full_disk(scene: Scene) -> dict[str, float]:
    """A full disk, as an ENOSPC injected into a trial (nothing is mounted); then --resume."""
    scene.start(*START)
    scene.until(scene.phase("supernet"))
    (scene.folder / "full").touch()
    assert scene.wait() == 130
    assert "stopped by a full disk" in scene.log()
    scene.start("--resume")
    assert scene.wait() == 0
    return check(scene, budget=BUDGET)


def sigterm(scene: Scene) -> dict[str, float]:
    """SIGTERM, and kill -9 after 30 seconds if it still lives then; --resume."""
    scene.start(*START)
    scene.until(scene.phase("trust"))
    time.sleep(2)
    assert scene.driver is not None
    scene.driver.send_signal(signal.SIGTERM)
    told = time.time()
    try:
        scene.driver.wait(30)
    except subprocess.TimeoutExpired:
        scene.driver.kill()
        scene.driver.wait()
    ended = scene.query("SELECT max(ended) FROM attempts")[0][0]
    assert scene.query("SELECT id FROM attempts WHERE ended IS NULL") == []
    assert scene.driver.returncode in (130, -signal.SIGKILL)
    exited = scene.driver.returncode
    scene.rest()
    scene.start("--resume")
    assert scene.wait() == 0
    return check(scene, budget=BUDGET) | {"closed after": ended - told, "exit status": exited}


FAULTS: dict[str, Callable[[Scene], dict[str, float]]] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        nothing,
        supernet_worker,
        tune_worker,
        judge,
        node,
        node_in_search,
        node_in_supernet,
        node_in_measuring,
        node_in_promotion,
        node_in_finish,
        node_of_a_group,
        node_in_retraining,
        driver,
        writer,
        database,
        hang,
        hanging_judge,
        raises,
        memory,
        full_disk,
        sigterm,
    )
}


def run_fault(name: str, *, seed: int, folder: Path, patience: float) -> dict[str, float]:
    """Make a cluster, have the fault, check what must hold, take the cluster away."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=2, num_gpus=GPUS) for _ in range(NODES)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        with Stopwatch() as stopwatch:
            scene = Scene(folder, cluster, random.Random(f"{name}/{seed}"), stopwatch, nodes)
            scene.patience = patience
            try:
                return FAULTS[name](scene)
            finally:
                if scene.driver is not None and scene.driver.poll() is None:
                    scene.driver.kill()
                    scene.driver.wait()
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> int:
    """Run the suite; print a line for each fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[*FAULTS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--patience", type=float, default=1.0, help="Wait so many times longer: a busy machine."
    )
    parser.add_argument("--keep", type=Path, help="Folder for runs and logs.")
    options = parser.parse_args()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    broken = 0
    for name in options.only or FAULTS:
        started = time.monotonic()
        try:
            numbers = run_fault(
                name, seed=options.seed, folder=folder / name, patience=options.patience
            )
            text = ", ".join(f"{key} {value:.2f}" for key, value in numbers.items())
        except Exception as error:
            traceback.print_exc()
            broken, text = broken + 1, f"FAILED: {error}"
        print(f"{name:17} {time.monotonic() - started:5.0f} s  {text}", flush=True)
    if not options.keep and not broken:
        shutil.rmtree(folder)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
