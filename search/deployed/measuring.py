"""Tables of latencies and whole networks, measured on this machine for any deployment."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from search.deployed.exporting import Wanted, export_kit, image_of, write_file
from search.deployed.fitting import Times, fit_table
from search.deployed.kit import measure_kit
from search.deployed.sessions import open_network
from search.deployed.timing import Job, time_in_turn
from searchspace.architecture import Architecture
from searchspace.deployment import Deployment
from searchspace.latency_table import (
    Checked,
    Latency,
    LatencyTable,
    latency_of,
)
from searchspace.space import SearchSpace
from supernet.measuring import (
    clock_of,
    device_name,
    measure_table,
    modules_of_parts,
    torch_runner,
)
from supernet.network import build_subnet

Progress = Callable[[int, int], None]


def table_of_space(
    space: SearchSpace,
    deployment: Deployment,
    *,
    device: torch.device,
    num_checked: int,
    rng: random.Random,
    progress: Progress,
) -> tuple[LatencyTable, list[Checked]]:
    """Measure a table of a space's parts here, and compare its sums with whole random networks.

    Args:
        space: The space.
        deployment: By what its networks are run.
        device: Where, if torch runs them; else it is the processor.
        num_checked: Whole networks to compare with.
        rng: For the networks and the order.
        progress: Called with what was timed and its number.
    """
    if deployment.target == "eager":
        return measure_table(
            space,
            device=device,
            deployment=deployment,
            whole=[space.sample(rng) for _ in range(num_checked)],
            rng=rng,
            progress=progress,
        )
    wanted = Wanted.of(space, num_checked, rng)
    return table_of(wanted, deployment, device=device, rng=rng, progress=progress)


def table_of(
    wanted: Wanted,
    deployment: Deployment,
    *,
    device: torch.device,
    rng: random.Random,
    progress: Progress,
) -> tuple[LatencyTable, list[Checked]]:
    """Measure a table of parts that are called one by one, and fit it to whole networks."""
    if deployment.in_torch:
        return _table_in_torch(wanted, deployment, device=device, rng=rng, progress=progress)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kit = export_kit(folder, wanted, deployment, progress=progress)
        threads = torch.get_num_threads()
        measured = measure_kit(
            folder, kit, target=deployment.target, threads=threads, rng=rng, progress=progress
        )
    assert measured.table is not None
    return measured.table, measured.checked


def _table_in_torch(
    wanted: Wanted,
    deployment: Deployment,
    *,
    device: torch.device,
    rng: random.Random,
    progress: Progress,
) -> tuple[LatencyTable, list[Checked]]:
    groups, wholes = wanted.groups, [*wanted.fitted, *wanted.checked]
    found = list(modules_of_parts(wanted.networks, groups, batch=deployment.batch, device=device))
    jobs = [_job(nn.Identity(), torch.zeros(deployment.batch, 4, device=device), deployment)]
    jobs += [_job(module, example, deployment) for _, module, example in found]
    jobs += [network_job(one, deployment, device) for one in wholes]
    call, *seconds = time_in_turn(jobs, clock=clock_of(device), rng=rng, progress=progress)
    of_parts, of_wholes = seconds[: len(found)], seconds[len(found) :]
    pairs = list(zip(wholes, of_wholes, strict=True))
    times = Times(
        call=call,
        parts={
            part: runs
            for (first, _, _), runs in zip(found, of_parts, strict=True)
            for part in groups[first]
        },
        fitted=pairs[: len(wanted.fitted)],
        checked=pairs[len(wanted.fitted) :],
    )
    empty = LatencyTable.begun(
        wanted.macro,
        deployment,
        device=device_name(device),
        threads=torch.get_num_threads(),
    )
    return fit_table(empty, times)


def time_networks(
    networks: Mapping[int, Architecture],
    deployment: Deployment,
    *,
    device: torch.device,
    rng: random.Random,
    progress: Progress = lambda done, total: None,
) -> dict[int, Latency]:
    """Time whole networks in turn, by their ids."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [
            network_job(one, deployment, device, folder=Path(folder)) for one in networks.values()
        ]
        found = time_in_turn(jobs, clock=clock_of(device), rng=rng, progress=progress)
    return dict(zip(networks, map(latency_of, found), strict=True))


def network_job(
    architecture: Architecture,
    deployment: Deployment,
    device: torch.device,
    *,
    folder: Path | None = None,
) -> Job:
    """Make what times a network with fresh weights; ``folder`` is for its file, if it has one."""
    network = build_subnet(architecture).to(device)
    example = image_of(architecture, deployment).to(device)
    if folder is None or deployment.in_torch:
        return _job(network, example, deployment)
    return Job(lambda: run_of(network, example, deployment, folder))


def run_of(
    network: nn.Module, example: torch.Tensor, deployment: Deployment, folder: Path
) -> Callable[[], object]:
    """Make what runs a network once as deployed, through an ONNX file where it needs one."""
    if deployment.in_torch:
        return torch_runner(network, example, deployment)
    path = folder / f"{id(network)}.onnx"
    if not path.exists():
        write_file(path, network.cpu(), example.cpu(), deployment)
    return open_network(path, deployment, threads=torch.get_num_threads()).runner()


def _job(module: nn.Module, example: torch.Tensor, deployment: Deployment) -> Job:
    return Job(lambda: torch_runner(module, example, deployment), is_slow_to_open=True)
