"""Seconds for the front, its ranks and the chance of membership of many points.

Run with ``python benchmarks/bench_front.py``. Prints the median of some runs on one core; whether
the fronts are right is tested in ``tests/search/results/test_dominance.py``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from search.results.certainty import front_probabilities
from search.results.dominance import hypervolume, non_dominated, non_dominated_rank

NUM_POINTS = 50_000
NUM_REPEATS = 3


def main() -> None:
    """Print a line for each shape of the points and number of objectives."""
    print(f"{NUM_POINTS:,} points, median seconds of {NUM_REPEATS} runs")
    print(f"{'points':>18} {'objectives':>10} {'front':>7} {'ranks':>7} {'members':>8}")
    for num_objectives in (2, 3, 4):
        for shape in ("random", "all on the front"):
            _print_row(shape, num_objectives)
    losses = _points("random", 2)
    top1, images, costs = 100 - 5 * losses[:, 0], np.full(NUM_POINTS, 2_000.0), losses[:, 1:]
    seconds = _median(lambda: front_probabilities(top1, images=images, costs=costs))
    print(f"chance to be on the front, 2 objectives: {seconds:.2f}")
    front = losses[non_dominated(losses)]
    print(f"hypervolume of {len(front)} members: {_median(lambda: _volume(front)):.4f}")


def _print_row(shape: str, num_objectives: int) -> None:
    losses = _points(shape, num_objectives)
    front = _median(lambda: non_dominated(losses))
    ranks = _median(lambda: non_dominated_rank(losses))
    members = int(non_dominated(losses).sum())
    print(f"{shape:>18} {num_objectives:>10} {front:7.2f} {ranks:7.2f} {members:>8,}")


def _points(shape: str, num_objectives: int) -> NDArray[np.float64]:
    losses = np.random.default_rng(0).random((NUM_POINTS, num_objectives))
    if shape == "all on the front":
        losses[:, -1] = -losses[:, :-1].sum(axis=1)
    return losses


def _volume(losses: NDArray[np.float64]) -> None:
    hypervolume(losses, np.ones(losses.shape[1]))


def _median(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(NUM_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
