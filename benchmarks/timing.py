"""What the benchmarks share: sides timed in turn in one process, on a CPU or a GPU."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from supernet.kernels.select import VARIABLE

Run = Callable[[], object]
Clock = Callable[[], float]
Timer = Callable[[Run], float]
Name = TypeVar("Name", bound=Hashable)

# Written before each run on a GPU: it empties the second-level cache, and takes about as long (half
# a millisecond on an H200) as Python needs to hand over the run's kernels.
FLUSHED_BYTES = 2 * 2**30


def median_seconds(runs: Mapping[Name, Run], *, repeats: int, timer: Timer) -> dict[Name, float]:
    """Run all sides round by round, so that a busy machine slows all alike; return their medians.

    One round more than ``repeats`` runs: the first one warms up and does not count.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            found = timer(run)
            if round_:
                seconds[name].append(found)
    return {name: statistics.median(found) for name, found in seconds.items()}


def clock_timer(clock: Clock, device: torch.device | None = None) -> Timer:
    """Time with a clock of the host; a GPU has then done its work, launches included."""

    def seconds(run: Run) -> float:
        wait(device)
        start = clock()
        run()
        wait(device)
        return clock() - start

    return seconds


def cpu_timer() -> Timer:
    """Time with the processor time of the process, which a busy machine disturbs little.

    It adds up over threads: with several of them, time is that of the wall's clock.
    """
    return clock_timer(time.process_time if torch.get_num_threads() == 1 else time.perf_counter)


def gpu_timer(device: torch.device) -> Timer:
    """Time kernels alone, with events of the GPU's stream, from a cold second-level cache."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def seconds(run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flushed.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    return seconds


def wait(device: torch.device | None) -> None:
    """Wait until a GPU has done its work."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def step(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Run:
    """Make a function that runs forward and backward."""
    with torch.no_grad():
        grad = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def backward(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Run:
    """Make a function that runs the backward pass alone, of all inputs."""
    y = function(*inputs)
    grad = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, grad, retain_graph=True)


def forced(formulation: str, run: Run) -> Run:
    """Run with a formulation of `supernet.kernels.select`."""

    def forced_run() -> object:
        with forcing(formulation):
            return run()

    return forced_run


@contextlib.contextmanager
def forcing(formulation: str) -> Iterator[None]:
    """Force a formulation of `supernet.kernels.select` for a while."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = formulation
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def leaves(
    *shapes: tuple[int, ...], device: torch.device | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """Make random tensors that require gradients."""
    return tuple(
        torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes
    )


def positive(text: str) -> int:
    """Read a number of rounds, images or threads from a command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
