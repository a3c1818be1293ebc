"""A table of latencies, part by part, whose sums predict whole networks on one device.

A part is the stem, what joins two stages, a block with its mixer and MLP ratio, or the head. The
table is a file: it may be measured on one machine and searched with on another. It says for which
runtime, precision and batch it holds, on which device it was measured, and how far its sums were
from whole networks there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import cycle, pairwise, product
from math import comb
from pathlib import Path
from typing import Any

from configs.files import reading
from configs.reading import MAX_JSON_BYTES, parse_json, read_text
from searchspace.architecture import Architecture, Stage
from searchspace.deployment import Deployment, runtime_version
from searchspace.mixer_text import describe_mixer
from searchspace.mixers import Mixer, mixer_from_dict, mixer_to_dict
from searchspace.space import SearchSpace

REMEDY = "Write one with `search latency --out`."


@dataclass(frozen=True, slots=True)
class Latency:
    """Median milliseconds and the 95 % interval of the median."""

    median_ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Latency:
        """Read the milliseconds out of a row of a table's file."""
        for name in cls.__slots__:
            check_number(name, row[name], 0.0)
        return cls(**{name: row[name] for name in cls.__slots__})


def latency_of(seconds: Sequence[float]) -> Latency:
    """Summarise runs."""
    low, high = median_interval(seconds)
    return Latency(1000 * statistics.median(seconds), 1000 * low, 1000 * high)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return order statistics that hold the median with 95 % probability, or the extremes."""
    ordered, count = sorted(values), len(values)
    below, outside = 0, 1 / 2**count
    while below < (count - 1) // 2 and outside + comb(count, below + 1) / 2**count <= 0.025:
        below += 1
        outside += comb(count, below) / 2**count
    return ordered[below], ordered[-1 - below]


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

    def to_dict(self) -> dict[str, Any]:
        """Describe the part with JSON values; `from_dict` inverts it."""
        mixer = mixer_to_dict(self.mixer) if self.mixer else None
        return {
            "part": self.name,
            "dims": list(self.dims),
            "mixer": mixer,
            "mlp_ratio": self.mlp_ratio,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Part:
        """Read the part of a row of a file."""
        name, dims, mixer, ratio = (row[key] for key in ("part", "dims", "mixer", "mlp_ratio"))
        if not isinstance(name, str):
            raise ValueError(f"the name of a part must be text, got {name!r:.60}")
        if not isinstance(dims, list) or not all(type(dim) is int and dim > 0 for dim in dims):
            raise ValueError(f"the channels of a part must be positive integers, got {dims!r:.60}")
        check_number("the MLP ratio of a part", ratio, 0.0)
        return cls(name, tuple(dims), None if mixer is None else mixer_from_dict(mixer), ratio)

    def __str__(self) -> str:
        mixer = f" {describe_mixer(self.mixer)}" if self.mixer else ""
        ratio = f" m{self.mlp_ratio:g}" if self.mlp_ratio or self.mixer else ""
        return f"{self.name}{mixer}{ratio} c{'-'.join(map(str, self.dims))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyTable:
    """What the parts of a space's networks take on one device, run in one way.

    Attributes:
        macro: What all networks share, as `macro_of` writes it.
        deployment: By what the networks are run, in which precision, how many images at a time.
        device: Name of the processor or GPU; with `threads`, `versions` and `measured_on`.
        parts: Milliseconds of each part.
        scale, per_network_ms: A network takes ``per_network_ms`` and ``scale`` times its parts.
            Where parts are timed inside whole networks these are 1 and 0; else they are fitted on
            `num_fitted` whole networks.
        num_checked: Whole networks that were measured as well and fitted nothing.
        median_error: Median of the absolute relative errors over these; None where there are none.
    """

    macro: Mapping[str, Any]
    deployment: Deployment
    device: str
    threads: int
    versions: str
    measured_on: str
    parts: Mapping[Part, Latency]
    scale: float = 1.0
    per_network_ms: float = 0.0
    num_fitted: int = 0
    num_checked: int = 0
    median_error: float | None = None

    @classmethod
    def begun(
        cls, macro: Mapping[str, Any], deployment: Deployment, *, device: str, threads: int
    ) -> LatencyTable:
        """Make a table without parts, measured today by the runtime that is installed."""
        return cls(
            macro=macro,
            deployment=deployment,
            device=device,
            threads=threads,
            versions=runtime_version(deployment),
            measured_on=date.today().isoformat(),
            parts={},
        )

    def __str__(self) -> str:
        return (
            f"{self.deployment}, on {self.device}, {self.threads} thread(s), {self.versions}, "
            f"{self.measured_on}"
        )

    def predict(self, architecture: Architecture) -> float:
        """Predict the milliseconds of a batch from the medians of the parts.

        Raises:
            ValueError: If the table does not cover the architecture.
        """
        self._check_macro(architecture, self.macro)
        parts = parts_of(architecture)
        self._check_covered(parts)
        return self.per_network_ms + self.scale * sum(self.parts[part].median_ms for part in parts)

    def check_space(self, space: SearchSpace, *, classes: bool = True) -> None:
        """Refuse a space that has networks which the table does not cover.

        Args:
            space: The space.
            classes: Whether its number of classes is known to be that of the images.

        Raises:
            ValueError: Then.
        """
        networks = covering(space, random.Random(0))
        left_out = () if classes else ("num_classes",)
        wanted = {name: value for name, value in self.macro.items() if name not in left_out}
        self._check_macro(networks[0], wanted)
        found = {part: None for network in networks for part in parts_of(network)}
        self._check_covered(list(found))

    def _check_macro(self, architecture: Architecture, wanted: Mapping[str, Any]) -> None:
        found = macro_of(architecture)
        for name, value in wanted.items():
            if name == "stages" and _are_same_stages(architecture, value):
                continue
            if found.get(name) != value:
                raise ValueError(
                    f"The latency table is for networks with {name} = {value}, "
                    f"got {found.get(name)}. Measure one with `search latency`."
                )

    def _check_covered(self, parts: Sequence[Part]) -> None:
        missing = [part for part in parts if part not in self.parts]
        if missing:
            more = f" and {len(missing) - 1} more parts" if len(missing) > 1 else ""
            raise ValueError(
                f"The latency table does not cover '{missing[0]}'{more}. Measure one for a space "
                "that offers it, with `search latency`."
            )

    def to_dict(self) -> dict[str, Any]:
        """Describe the table with JSON values; `from_dict` inverts it."""
        described = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("parts", "deployment")
        }
        parts = [
            {**part.to_dict(), **dataclasses.asdict(latency)}
            for part, latency in self.parts.items()
        ]
        return {**described, "deployment": dataclasses.asdict(self.deployment), "parts": parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatencyTable:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If it is no table.
        """
        try:
            rows, rest = data["parts"], {k: v for k, v in data.items() if k != "parts"}
            parts = {Part.from_dict(row): Latency.from_dict(row) for row in rows}
            table = cls(**{**rest, "deployment": Deployment(**data["deployment"]), "parts": parts})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a value is missing or of another kind ({error})") from error
        if not parts:
            raise ValueError("it has no parts")
        check_macro(table.macro)
        for name in ("scale", "per_network_ms"):
            check_number(name, getattr(table, name), 0.0)
        if table.median_error is not None:
            check_number("median_error", table.median_error)
        return table

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is no latency table.
        """
        text = read_text(path, limit=MAX_JSON_BYTES)
        with reading(path, "a latency table", remedy=REMEDY):
            data = parse_json(text)
            if not isinstance(data, dict):
                raise ValueError(f"it must be a JSON object, got {data!r:.60}")
            return cls.from_dict(data)


def macro_of_space(space: SearchSpace) -> dict[str, Any]:
    """Describe what all networks of a space have in common, as `macro_of` does."""
    described = macro_of(space.first())
    norms = [{"norm": stage.norm} for stage in space.stages]
    pairs = zip(described["stages"], norms, strict=True)
    return {**described, "stages": [{**stage, **norm} for stage, norm in pairs]}


def check_macro(macro: object) -> None:
    """Refuse what `macro_of` cannot have written.

    Raises:
        ValueError: Then.
    """
    stages = macro.get("stages") if isinstance(macro, dict) else None
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError("it does not say what the networks share, with what their stages have")


def check_number(name: str, value: object, least: float = -math.inf) -> None:
    """Refuse what is no finite number, or below the least.

    Raises:
        ValueError: Then.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number, got {value!r:.60}")


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


def median_error(checked: Sequence[Checked]) -> float | None:
    """Return the median of the absolute errors, if there are any."""
    return statistics.median(abs(one.error) for one in checked) if checked else None


def macro_of(architecture: Architecture) -> dict[str, Any]:
    """Describe what `Part` does not name: sizes, and what all blocks of a stage have."""
    described = architecture.to_dict()
    kept = ("norm", "se_reduction", "local_conv")
    stages = [{name: stage[name] for name in kept} for stage in described.pop("stages")]
    return {**described, "stages": stages}


def _are_same_stages(architecture: Architecture, wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the stages have what a table says, by whatever name their norms go.

    A stage of attention alone with layer norms is stored with the default, which they are.
    """
    if len(wanted) != len(architecture.stages):
        return False
    pairs = zip(architecture.stages, wanted, strict=True)
    try:
        return all(dataclasses.replace(stage, **about) == stage for stage, about in pairs)
    except (ValueError, TypeError):  # what no stage can have
        return False


def parts_of(architecture: Architecture) -> list[Part]:
    """List the parts in the order of the forward pass."""
    dims = [stage.dim for stage in architecture.stages]
    parts = [Part("stem", (dims[0],))]
    for index, stage in enumerate(architecture.stages):
        if index:
            parts.append(Part(f"join{index}", (dims[index - 1], stage.dim)))
        for block, (mixer, ratio) in enumerate(zip(stage.mixers, stage.ratios, strict=True)):
            parity = "odd" if block % 2 else "even"
            parts.append(Part(f"stage{index} {parity}", (stage.dim,), mixer, ratio))
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
        # A ratio of the block's own goes with each of its mixers: together they are a part.
        own_ratios = choices.block_mlp_ratios or [(None,)] * choices.max_depth
        blocks = [
            list(product(space.mixers_of(index, block), own_ratios[block]))
            for block in range(choices.max_depth)
        ]
        for dim in choices.dims:
            options[index, dim] = []
            for ratio, number in product(choices.mlp_ratios, range(max(map(len, blocks)))):
                mixers, own = zip(*(pairs[number % len(pairs)] for pairs in blocks), strict=True)
                ratios = [one for one in own if one is not None]
                options[index, dim].append(choices.chosen(dim, mixers, ratio, ratios))
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


def processor_name() -> str:
    """Name this machine's processor as its maker does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
