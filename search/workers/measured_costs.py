"""Costs that are measured during a search, right after a network was judged, on the same device."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from search.deployed.measuring import run_of
from search.record import Measured
from searchspace.architecture import Architecture
from searchspace.deployment import Deployment
from searchspace.latency_table import LatencyTable, latency_of
from supernet import measuring
from supernet.measuring import clock_of, peak_memory_mib, time_calls

EAGER = Deployment()


def time_latency(
    network: nn.Module, architecture: Architecture, deployment: Deployment = EAGER
) -> Measured:
    """Time one batch in a network as it will be deployed, on the device where it lies.

    A worker with one CPU thread is timed by that thread's processor time: every other core is at
    work during a search, and what the operating system gives to others is none of the network's.
    Several threads or a GPU are timed by the wall.

    Args:
        network: It stays as it is.
        architecture: Of the network.
        deployment: By what it is run, in which precision, how many images at a time.

    Returns:
        The median latency and its 95 % interval.
    """
    images = _images(network, architecture, deployment.batch)
    clock = clock_of(images.device)
    # Other precisions and runtimes change a network.
    timed = network if deployment.target == "eager" else copy.deepcopy(network)
    if deployment.precision != "fp32" and timed is network:
        timed = copy.deepcopy(network)
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(timed, images, deployment, Path(folder))
        found = latency_of(time_calls(run, clock=clock))
    return Measured(
        latency_ms=found.median_ms, latency_low_ms=found.low_ms, latency_high_ms=found.high_ms
    )


def device_name(device: str) -> str:
    """Name a torch device of this machine as its maker does, e.g. for reports."""
    name = measuring.device_name(torch.device(device))
    return name if device == "cuda" else f"{name}, {torch.get_num_threads()} thread(s)"


def measure_costs(
    network: nn.Module,
    architecture: Architecture,
    names: Sequence[str],
    *,
    deployment: Deployment = EAGER,
    table: LatencyTable | None = None,
) -> Measured:
    """Measure the costs of a network that the search weighs.

    Args:
        network: The extracted network of the architecture.
        names: Of `search.results.objectives.MEASURED`.
        deployment: How the network will be run.
        table: Latencies of the parts on another device; the network is not timed here then.
    """
    found = Measured()
    if "memory_mib" in names:
        memory = peak_memory_mib(network.eval(), _images(network, architecture, 1))
        found = Measured(memory_mib=memory)
    if "latency_ms" not in names:
        return found
    if table is not None:
        return found | Measured(latency_ms=table.predict(architecture))
    return found | time_latency(network, architecture, deployment)


def _images(network: nn.Module, architecture: Architecture, batch: int) -> Tensor:
    size = architecture.img_size
    device = next(network.parameters()).device
    return torch.zeros(batch, architecture.in_chans, size, size, device=device)
