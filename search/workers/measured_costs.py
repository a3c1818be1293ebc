"""Costs that are measured during a search, right after a network was judged, on the same device."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from searchspace.architecture import Architecture
from supernet.measuring import latency, latency_of, peak_memory_mib, time_runs


def time_latency(network: nn.Module, architecture: Architecture) -> dict[str, float]:
    """Time one image in a network, on the device where it lies.

    A worker with one CPU thread is timed by that thread's processor time: every other core is at
    work during a search, and what the operating system gives to others is none of the network's.
    Several threads or a GPU are timed by the wall.

    Returns:
        ``latency_ms`` (median) and the 95 % interval of the median, ``latency_low_ms`` and
        ``latency_high_ms``.
    """
    images = _one_image(network, architecture)
    is_one_thread = images.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if is_one_thread else time.perf_counter
    found = latency_of(time_runs(network.eval(), images, clock=clock))
    return {
        "latency_ms": found.median_ms,
        "latency_low_ms": found.low_ms,
        "latency_high_ms": found.high_ms,
    }


def device_name(device: str) -> str:
    """Name a torch device of this machine as its maker does, e.g. for reports."""
    name = latency.device_name(torch.device(device))
    return name if device == "cuda" else f"{name}, {torch.get_num_threads()} thread(s)"


def measure_costs(
    network: nn.Module,
    architecture: Architecture,
    names: Sequence[str],
) -> dict[str, float]:
    """Measure the costs of a network that the search weighs.

    Args:
        network: The extracted network of the architecture.
        names: Of `search.results.objectives.MEASURED`.
    """
    found = time_latency(network, architecture) if "latency_ms" in names else {}
    if "memory_mib" in names:
        found["memory_mib"] = peak_memory_mib(network.eval(), _one_image(network, architecture))
    return found


def _one_image(network: nn.Module, architecture: Architecture) -> Tensor:
    size = architecture.img_size
    device = next(network.parameters()).device
    return torch.zeros(1, architecture.in_chans, size, size, device=device)
