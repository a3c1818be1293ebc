"""Times the parts of networks that torch runs as they are written, for a table of latencies.

Parts are timed inside whole networks: hooks note when each has ended, so that everything between
two ends, calls included, belongs to one part and a network's parts add up to the network. On a GPU
the notes are events in its stream, and nothing waits in between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from searchspace.architecture import Architecture
from searchspace.clocks import undisturbed
from searchspace.cost import count
from searchspace.deployment import Deployment
from searchspace.latency_table import (
    Checked,
    LatencyTable,
    Part,
    covering,
    latency_of,
    macro_of_space,
    median_error,
    parts_of,
)
from searchspace.space import SearchSpace
from supernet.measuring.latency import device_name
from supernet.measuring.running import DTYPES, clock_of
from supernet.network import Supernet, build_subnet

PASSES = 3
ROUNDS = 7
# Networks that are timed in turn fit into this.
PARAMS_AT_A_TIME = 200_000_000

# A network, and its number among those that are measured whole; -1 for those of the parts.
Job: TypeAlias = tuple[Architecture, int]


def measure_table(
    space: SearchSpace,
    *,
    device: torch.device,
    deployment: Deployment,
    whole: Sequence[Architecture] = (),
    rng: random.Random,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LatencyTable, list[Checked]]:
    """Time every part of a space's networks, and whole networks between them.

    Networks run in a new random order in every round, each once unmeasured before it counts: what
    else the machine does meets parts and whole networks alike. A part's time is the median over all
    rounds and all networks that have it. The whole networks give no part its time.

    Args:
        space: The space.
        device: Where to run.
        deployment: An eager one.
        whole: Networks that are measured whole.
        rng: For the order and the networks.
        progress: Called with the networks that were timed and their number.

    Returns:
        The table, and the whole networks.
    """
    parts: dict[Part, list[float]] = {}
    wholes: dict[int, list[float]] = {}
    jobs: list[Job] = [(network, -1) for network in covering(space, rng)]
    jobs += [(network, number) for number, network in enumerate(whole)]
    done = 0
    for _ in range(PASSES):
        rng.shuffle(jobs)
        for group in _groups(jobs):
            _time_group(group, parts, wholes, device=device, deployment=deployment, rng=rng)
            done += len(group)
            progress(done, PASSES * len(jobs))
    begun = LatencyTable.begun(
        macro_of_space(space),
        deployment,
        device=device_name(device),
        threads=torch.get_num_threads(),
    )
    medians = {part: latency_of(parts[part]) for part in sorted(parts, key=str)}
    table = replace(begun, parts=medians)
    checked = [
        Checked(network, table.predict(network), latency_of(wholes[number]))
        for number, network in enumerate(whole)
    ]
    error = median_error(checked)
    return replace(table, num_checked=len(checked), median_error=error), checked


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Split jobs, in their order, into groups whose networks fit into memory together."""
    group: list[Job] = []
    held = 0
    for job in jobs:
        params = count(job[0]).params
        if group and held + params > PARAMS_AT_A_TIME:
            yield group
            group, held = [], 0
        group.append(job)
        held += params
    yield group


def _time_group(
    jobs: Sequence[Job],
    parts: dict[Part, list[float]],
    wholes: dict[int, list[float]],
    *,
    device: torch.device,
    deployment: Deployment,
    rng: random.Random,
) -> None:
    """Run the jobs' networks in turn; add the seconds of their parts, or of the whole."""
    first = jobs[0][0]
    dtype, size = DTYPES[deployment.precision], first.img_size
    images = torch.randn(deployment.batch, first.in_chans, size, size, dtype=dtype, device=device)
    runs = []
    for architecture, number in jobs:
        network = build_subnet(architecture).to(device, dtype).eval()
        notes = _Notes(device)
        if number < 0:
            for module in _modules_of(network):
                module.register_forward_hook(lambda *_, notes=notes: notes.add())
        runs.append((network, notes, architecture, number))
    with torch.inference_mode():
        for _ in range(ROUNDS):
            rng.shuffle(runs)
            for network, notes, architecture, number in runs:
                network(images)
                seconds = undisturbed(partial(notes.of, partial(network, images)), notes.clock)
                if number >= 0:
                    wholes.setdefault(number, []).extend(seconds)
                    continue
                for part, spent in zip(parts_of(architecture), seconds, strict=True):
                    parts.setdefault(part, []).append(spent)


class _Notes:
    """When the parts of a run ended."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.clock = clock_of(device)
        self.found: list[Any] = []

    def add(self) -> None:
        if self.is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.found.append(event)
        else:
            self.found.append(self.clock())

    def of(self, run: Callable[[], object]) -> list[float]:
        """Return the seconds between the notes of a run, its start and its end."""
        if self.is_cuda:
            torch.cuda.synchronize()
        self.found.clear()
        self.add()
        run()
        self.add()
        if not self.is_cuda:
            return [after - before for before, after in pairwise(self.found)]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairwise(self.found)]


def _modules_of(network: Supernet) -> Iterator[nn.Module]:
    """Yield the modules whose ends are those of `parts_of`, but for the head."""
    yield network.patch_embed
    for index, blocks in enumerate(network.stages):
        if index:
            yield network.merges[index - 1]
        for number, block in enumerate(cast(nn.ModuleList, blocks)):
            yield block
            if network.space.family == "twins" and number == 0:
                yield network.encodings[index]
