"""Time the neighbourhood operators' formulations, in turn, in one process: forward plus backward.

    python benchmarks/bench_kernels.py --repeats 5 --threads 1 [--quick] [--operator aggregate]

Shapes are the stages of Swin-T (batch 8, 224 pixels) and of a small network for 32-pixel images
(batch 64). Every round runs each formulation once, so that a busy machine slows all of them alike;
printed are medians in milliseconds and how many times faster each is than the first one.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.timing import Run, clock_timer, forced, leaves, median_seconds, step
from supernet.kernels import aggregate, depthwise_conv, neighborhood_logits, skew

# (batch, height, width, channels, heads)
SHAPES = ((8, 56, 56, 96, 3), (8, 28, 28, 192, 6), (8, 14, 14, 384, 12))
SMALL_SHAPES = ((64, 16, 16, 32, 2), (64, 8, 8, 64, 4))
IDDW_GROUPS = 32
OPERATORS = ("aggregate", "aggregate_groups", "multiplier", "logits", "skew", "depthwise")

Shape = tuple[int, int, int, int, int]


def main() -> None:
    """Print a table for each operator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median is printed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="leave out the slow unfold")
    parser.add_argument("--operator", choices=OPERATORS, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {platform.machine()}, fp32")
    for operator in arguments.operator or OPERATORS:
        print(f"\n{operator}, forward + backward, ms (times faster than the first)")
        for shape in SHAPES + SMALL_SHAPES:
            for kernel_size in (3, 5, 7):
                runs = dict(candidates(operator, shape, kernel_size, slow=not arguments.quick))
                report(f"{'x'.join(map(str, shape))} K{kernel_size}", runs, arguments.repeats)


def report(label: str, runs: dict[str, Run], repeats: int) -> None:
    """Run all candidates round by round and print their medians."""
    medians = median_seconds(runs, repeats=repeats, timer=clock_timer(time.perf_counter))
    first = next(iter(medians.values()))
    cells = [f"{name} {1e3 * t:8.2f} ({first / t:5.1f}x)" for name, t in medians.items()]
    print(f"{label:22}", "  ".join(cells), flush=True)


def candidates(
    operator: str, shape: Shape, kernel_size: int, *, slow: bool
) -> Iterator[tuple[str, Run]]:
    """Yield each formulation of an operator as a function that runs forward and backward."""
    batch, height, width, channels, heads = shape
    if operator == "aggregate_groups":
        heads = min(IDDW_GROUPS, channels)
    taps = kernel_size**2
    map_ = (batch, height, width, channels)
    if operator in ("aggregate", "aggregate_groups"):
        inputs = leaves((*map_[:3], heads, taps), map_)
        run = step(lambda a, v: aggregate(a, v, kernel_size), inputs)
    elif operator == "multiplier":
        inputs = leaves((*map_[:3], heads, taps), map_, (taps, channels))
        run = step(lambda a, v, m: aggregate(a, v, kernel_size, m), inputs)
    elif operator == "logits":
        run = step(lambda q, k: neighborhood_logits(q, k, heads, kernel_size), leaves(map_, map_))
    elif operator == "skew":
        run = step(lambda t: skew(t, kernel_size), leaves((*map_[:3], heads, taps)))
    else:
        inputs = leaves(map_, (channels, kernel_size, kernel_size), (channels,))
        run = step(depthwise_conv, inputs)
        yield "conv2d default layout", _default_conv(shape, kernel_size)
    names = ("naive", "torch", "c") if slow else ("torch", "c")
    for name in names:
        yield name, forced(name, run)


def _default_conv(shape: Shape, kernel_size: int) -> Run:
    """Convolve as most code does: channels-first in memory."""
    batch, height, width, channels, _ = shape
    weight = (channels, 1, kernel_size, kernel_size)
    return step(
        lambda x, w, b: F.conv2d(x, w, b, padding=kernel_size // 2, groups=channels),
        leaves((batch, channels, height, width), weight, (channels,)),
    )


if __name__ == "__main__":
    main()
