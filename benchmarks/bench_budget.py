"""Is a budget kept? Runs with random budgets and 1 to 16 concurrent trials: asked, charged, held.

``python benchmarks/bench_budget.py [--runs 20] [--seed 0]`` drives the engine's record, plan,
`Judging`, `TrialRunner` and `Promotions` in virtual time (`benchmarks/simulate_cluster.py`), where
a stopwatch is exact. ``--real 3`` makes so many runs on real Ray instead, on fake GPUs of this
machine, with small work and the stopwatch of the fault suite; each takes minutes.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.simulate_cluster import simulate


def simulated(runs: int, seed: int) -> None:
    """Print a line for each run in virtual time."""
    rng, worst = random.Random(seed), -1.0
    for _ in range(runs):
        devices = rng.randint(1, 16)
        gpu_days = devices * 10 ** rng.uniform(-1.5, 0.0)
        asked, charged, held, unit = simulate(
            devices,
            gpu_days,
            failures=rng.choice([0.0, 6.5, 100.0]),
            seed=rng.randrange(2**31),
            sampler="random",
            quiet=True,
        )
        worst = max(worst, (charged - asked) / max(0.01 * asked, unit))
        print(
            f"{devices:2} devices: asked {asked:11.1f} s, charged {charged:11.1f} s "
            f"({100 * (charged / asked - 1):+.3f} %), stopwatch {held:11.1f} s "
            f"({charged - held:+.2f} s)",
            flush=True,
        )
    print(f"largest overshoot: {worst:.3f} of what is allowed (1 %, or one judgement a device)")


def real(runs: int, seed: int) -> None:
    """Print a line for each run on real Ray."""
    import ray
    from ray.cluster_utils import Cluster

    from benchmarks.faults.scene import Scene, spent_of
    from benchmarks.faults.stopwatch import Stopwatch

    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="budget-"))
    for number in range(runs):
        devices = rng.randint(1, 16)
        asked = round(devices * rng.uniform(60, 120))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": devices})
        try:
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            with Stopwatch() as stopwatch:
                scene = Scene(folder / str(number), cluster, rng, stopwatch)
                scene.start("--budget", f"{asked}gpu-seconds")
                status = scene.wait(900)
                scene.rest()
            charged, held = spent_of(scene.folder), stopwatch.device_seconds
            print(
                f"{devices:2} devices, real Ray: asked {asked} s, charged {charged:.1f} s "
                f"({100 * (charged / asked - 1):+.2f} %), stopwatch {held:.1f} s "
                f"({charged - held:+.2f} s); exit {status}",
                flush=True,
            )
        finally:
            ray.shutdown()
            cluster.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--real", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.real:
        real(options.real, options.seed)
    else:
        simulated(options.runs, options.seed)
