"""How long networks take on a device, with the interval of the median."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from searchspace.latency_table import processor_name
from supernet.network import Supernet

TIMED_RUNS = 30
WARM_UP_RUNS = 3


def device_name(device: torch.device) -> str:
    """Name a GPU or the processor as its maker does."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor_name()


def time_runs(
    network: nn.Module,
    images: Tensor,
    *,
    runs: int = TIMED_RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the seconds of each of some runs, after a few that do not count."""

    def run() -> None:
        network(images)
        _wait(images)

    with torch.inference_mode():
        return time_calls(run, runs=runs, clock=clock)


def time_calls(
    run: Callable[[], object],
    *,
    runs: int = TIMED_RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the seconds of each of some calls, after a few that do not count."""
    seconds = []
    for _ in range(WARM_UP_RUNS + runs):
        started = clock()
        run()
        seconds.append(clock() - started)
    return seconds[WARM_UP_RUNS:]


def time_parts(
    network: Supernet,
    architecture: Architecture,
    images: Tensor,
    *,
    runs: int = TIMED_RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each run for ``stem``, ``stage0``, ..., ``head`` and ``all``.

    What joins two stages belongs to the later one, as in `searchspace.cost.count_parts`.
    """
    network.eval()
    names = ("stem", *(f"stage{index}" for index in range(len(architecture.stages))), "head")
    found: dict[str, list[float]] = {name: [] for name in (*names, "all")}
    with torch.inference_mode():
        for _ in range(WARM_UP_RUNS + runs):
            for name, seconds in _run_parts(network, architecture, images, clock).items():
                found[name].append(seconds)
    return {name: seconds[WARM_UP_RUNS:] for name, seconds in found.items()}


def _run_parts(
    network: Supernet, architecture: Architecture, images: Tensor, clock: Callable[[], float]
) -> dict[str, float]:
    times = [clock()]

    def passed() -> None:
        _wait(images)
        times.append(clock())

    x = network.stem(images, architecture)
    passed()
    for stage_map in network.maps_behind_stages(x, architecture):
        x = stage_map
        passed()
    network.classify(network.finish(x, architecture), architecture)
    passed()
    spans = [after - before for before, after in pairwise(times)]
    names = ("stem", *(f"stage{index}" for index in range(len(architecture.stages))), "head")
    return dict(zip(names, spans, strict=True)) | {"all": times[-1] - times[0]}


def _wait(images: Tensor) -> None:
    """Wait until a GPU has done what it was told."""
    if images.is_cuda:
        torch.cuda.synchronize()
