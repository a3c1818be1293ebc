"""A table of latencies, part by part, whose sums predict whole networks on the same device.

A part is the stem, what joins two stages, a block with its mixer and MLP ratio, or the head. Parts
are timed inside whole networks: hooks note when each has ended, so that everything between two
ends, calls included, belongs to one part and a network's parts add up to the network. On a GPU
the notes are events in its stream, and nothing waits in between.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from searchspace.architecture import Architecture, Stage
from searchspace.cost import count
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import Mixer, mixer_from_dict, mixer_to_dict
from searchspace.space import SearchSpace
from supernet.measuring.latency import Latency, device_name, latency_of
from supernet.network import Supernet, build_subnet

PASSES = 3
ROUNDS = 7
# Networks that are timed in turn fit into this.
PARAMS_AT_A_TIME = 200_000_000

# A network, and its number among those that are measured whole; -1 for those of the parts.
Job: TypeAlias = tuple[Architecture, int]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a network; equal parts take equal time.

    Attributes:
        name: ``stem``, ``join1`` (before stage 1), ``stage0 even`` or ``stage0 odd`` (a block;
            windows are shifted in odd ones), ``encoding0`` (of positions), ``head``.
        dims: The channels of its stage; of what joins two stages, of both.
        mixer: Of a block.
        mlp_ratio: Of a block; of the head, that of the last stage.
    """

    name: str
    dims: tuple[int, ...]
    mixer: Mixer | None = None
    mlp_ratio: float = 0.0

    def __str__(self) -> str:
        mixer = f" {describe_mixer(self.mixer)}" if self.mixer else ""
        ratio = f" m{self.mlp_ratio:g}" if self.mlp_ratio else ""
        return f"{self.name}{mixer}{ratio} c{'-'.join(map(str, self.dims))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """What the parts of a space's networks take on one device.

    Attributes:
        macro: What all networks share, as `macro_of` writes it.
        batch_size: Images at a time.
        device: Name of the processor or GPU; with `threads`, `torch_version` and `measured_on`.
        parts: Milliseconds of each part.
    """

    macro: Mapping[str, Any]
    batch_size: int
    device: str
    threads: int
    torch_version: str
    measured_on: str
    parts: Mapping[Part, Latency]

    def predict(self, architecture: Architecture) -> float:
        """Predict the milliseconds of a batch: the sum of the parts' medians.

        Raises:
            ValueError: If the table does not cover the architecture.
        """
        found = macro_of(architecture)
        for name, value in self.macro.items():
            if found[name] != value:
                raise ValueError(
                    f"The latency table is for networks with {name} = {value}, "
                    f"got {found[name]}. Measure one with `search latency`."
                )
        total = 0.0
        for part in parts_of(architecture):
            if part not in self.parts:
                raise ValueError(
                    f"The latency table does not cover '{part}'. Measure one for a space that "
                    "offers it, with `search latency`."
                )
            total += self.parts[part].median_ms
        return total

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        described = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "parts"
        }
        parts = [
            {
                "part": part.name,
                "dims": part.dims,
                "mixer": mixer_to_dict(part.mixer) if part.mixer else None,
                "mlp_ratio": part.mlp_ratio,
                **dataclasses.asdict(latency),
            }
            for part, latency in self.parts.items()
        ]
        text = json.dumps({**described, "parts": parts}, indent=1)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is no latency table.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            parts = {
                Part(
                    row.pop("part"),
                    tuple(row.pop("dims")),
                    mixer_from_dict(mixer) if (mixer := row.pop("mixer")) else None,
                    row.pop("mlp_ratio"),
                ): Latency(**row)
                for row in data.pop("parts")
            }
            return cls(**data, parts=parts)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a latency table ({error}). Write one with `search latency --out`."
            ) from error


@dataclass(frozen=True, slots=True)
class Checked:
    """A whole network: what the table says and what was measured, milliseconds."""

    architecture: Architecture
    predicted_ms: float
    measured: Latency

    @property
    def error(self) -> float:
        """By how much the prediction is above the measurement, over the measurement."""
        return self.predicted_ms / self.measured.median_ms - 1


def macro_of(architecture: Architecture) -> dict[str, Any]:
    """Describe what `Part` does not name: sizes, and what all blocks of a stage have."""
    described = architecture.to_dict()
    kept = ("norm", "se_reduction", "local_conv")
    stages = [{name: stage[name] for name in kept} for stage in described.pop("stages")]
    return {**described, "stages": stages}


def parts_of(architecture: Architecture) -> list[Part]:
    """List the parts in the order of the forward pass."""
    dims = [stage.dim for stage in architecture.stages]
    parts = [Part("stem", (dims[0],))]
    for index, stage in enumerate(architecture.stages):
        if index:
            parts.append(Part(f"join{index}", (dims[index - 1], stage.dim)))
        for block, mixer in enumerate(stage.mixers):
            parity = "odd" if block % 2 else "even"
            parts.append(Part(f"stage{index} {parity}", (stage.dim,), mixer, stage.mlp_ratio))
            if architecture.family == "twins" and block == 0:
                parts.append(Part(f"encoding{index}", (stage.dim,)))
    return [*parts, Part("head", (dims[-1],), None, architecture.stages[-1].mlp_ratio)]


def covering(space: SearchSpace, rng: random.Random) -> list[Architecture]:
    """Make networks in which every block has each of its choices at least once, at each width.

    All widths of neighbouring stages meet. Else the choices of the stages are paired at random;
    limits on cost do not count.
    """
    options: dict[tuple[int, int], list[Stage]] = {}
    for index, choices in enumerate(space.stages):
        blocks = [space.mixers_of(index, block) for block in range(choices.max_depth)]
        for dim in choices.dims:
            options[index, dim] = [
                choices.chosen(dim, [mixers[number % len(mixers)] for mixers in blocks], ratio)
                for ratio in choices.mlp_ratios
                for number in range(max(map(len, blocks)))
            ]
            rng.shuffle(options[index, dim])
    first, networks = space.first(), list[Architecture]()
    used = Counter[tuple[int, int]]()
    for dims in cycle(_meeting_widths(space, rng)):
        if all(used[place] >= len(stages) for place, stages in options.items()):
            return networks
        stages = [options[place][used[place] % len(options[place])] for place in enumerate(dims)]
        networks.append(first.replace(stages=tuple(stages)))
        used.update(enumerate(dims))
    return networks


def _meeting_widths(space: SearchSpace, rng: random.Random) -> list[tuple[int, ...]]:
    """List widths of all stages in which every two widths of neighbours meet."""
    dims = [stage.dims for stage in space.stages]
    rows = [tuple(own[0] for own in dims)]
    for index, pair in enumerate(pairwise(dims)):
        for wanted in product(*pair):
            if all(row[index : index + 2] != wanted for row in rows):
                row = [rng.choice(own) for own in dims]
                row[index : index + 2] = wanted
                rows.append(tuple(row))
    missing = set(dims[0]) - {row[0] for row in rows}  # where there is one stage alone
    return [*rows, *((dim,) for dim in sorted(missing))]


def measure_table(
    space: SearchSpace,
    *,
    device: torch.device,
    batch_size: int,
    num_checked: int = 0,
    rng: random.Random,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LatencyTable, list[Checked]]:
    """Time every part of a space's networks, and whole random networks between them.

    Networks run in a new random order in every round, each once unmeasured before it counts: what
    else the machine does meets parts and whole networks alike. A part's time is the median over all
    rounds and all networks that have it. The whole networks give no part its time.

    Args:
        space: The space.
        device: Where to run.
        batch_size: Images at a time.
        num_checked: How many random networks are measured whole.
        rng: For the order and the networks.
        progress: Called with the networks that were timed and their number.

    Returns:
        The table, and the whole networks.
    """
    parts: dict[Part, list[float]] = {}
    wholes: dict[int, list[float]] = {}
    jobs: list[Job] = [(network, -1) for network in covering(space, rng)]
    jobs += [(space.sample(rng), number) for number in range(num_checked)]
    done = 0
    for _ in range(PASSES):
        rng.shuffle(jobs)
        for group in _groups(jobs):
            _time_group(group, parts, wholes, device=device, batch_size=batch_size, rng=rng)
            done += len(group)
            progress(done, PASSES * len(jobs))
    table = LatencyTable(
        macro=macro_of(space.first()),
        batch_size=batch_size,
        device=device_name(device),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        measured_on=date.today().isoformat(),
        parts={part: latency_of(parts[part]) for part in sorted(parts, key=str)},
    )
    checked = [
        Checked(network, table.predict(network), latency_of(wholes[number]))
        for network, number in jobs
        if number >= 0
    ]
    return table, checked


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
    batch_size: int,
    rng: random.Random,
) -> None:
    """Run the jobs' networks in turn; add the seconds of their parts, or of the whole."""
    first = jobs[0][0]
    images = torch.randn(batch_size, first.in_chans, first.img_size, first.img_size, device=device)
    runs = []
    for architecture, number in jobs:
        network = build_subnet(architecture).to(device).eval()
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
                seconds = notes.of(partial(network, images))
                if number >= 0:
                    wholes.setdefault(number, []).extend(seconds)
                    continue
                for part, spent in zip(parts_of(architecture), seconds, strict=True):
                    parts.setdefault(part, []).append(spent)


class _Notes:
    """When the parts of a run ended."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.found: list[Any] = []

    def add(self) -> None:
        if self.is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.found.append(event)
        else:
            self.found.append(time.perf_counter())

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
