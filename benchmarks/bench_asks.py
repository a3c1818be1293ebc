"""Cpu-seconds that the guided sampler takes for an ask when 1,000 or 5,000 designs are known.

Run as ``python benchmarks/bench_asks.py``. The first ask after a resume reads and encodes them all.
"""

from __future__ import annotations

import time

import numpy as np

from search.bench.problems import problem_by_name
from search.sampling.asking import Asking
from search.sampling.design_space import draw_random

ASKS = 30


def main() -> None:
    """Print a line for each number of known designs."""
    problem = problem_by_name("regimes-8x4")
    rng = np.random.default_rng(0)
    for count in (1_000, 5_000):
        draws = [draw_random(problem.space, rng) for _ in range(2 * count)]
        known = list({one.key: one for one in draws}.values())[:count]
        asking = Asking(
            problem.space,
            sampler="guided",
            seed=0,
            num_losses=2,
            known=[(one, problem.observe(one.design).tolist()) for one in known],
        )
        seconds = []
        for _ in range(ASKS):
            start = time.process_time()
            one = asking.ask()
            seconds.append(time.process_time() - start)
            assert one is not None
            asking.tell(one, problem.observe(one.design).tolist())
        first, *others = seconds
        print(
            f"{count:,} known: first ask {first:.3f} s, "
            f"then {np.mean(others):.3f} s in the mean, {max(others):.3f} s at most"
        )


if __name__ == "__main__":
    main()
