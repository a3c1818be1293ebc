"""Tables for the terminal: the front of a run, and one architecture stage by stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from searchspace.architecture import Architecture, describe, differ_in_dims
from searchspace.cost import Cost, count, count_parts

if TYPE_CHECKING:
    from search.results import Candidate

_UNITS = "KMGT"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers, and what stands below the table about it."""

    header: str
    cell: Callable[[Candidate], str]
    note: str = ""


def front_table(candidates: Sequence[Candidate], *, retrained: Sequence[Candidate] = ()) -> Table:
    """Show candidates of one fidelity, a row each, in at most 80 columns.

    The mixers are broken between stages where they do not fit in a line.

    Args:
        candidates: In the order of the rows.
        retrained: Results of retraining, shown beside the candidate with the same id.
    """
    fidelities = ", ".join(dict.fromkeys(candidate.fidelity for candidate in candidates))
    table = _table(f"Pareto front ({fidelities})" if fidelities else "Pareto front")
    columns = [
        *_known_columns(candidates),
        *_measured_columns(candidates),
        *_later_columns(candidates, {candidate.id: candidate for candidate in retrained}),
    ]
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=True)
    table.add_column("mixers of the stages", overflow="fold")
    with_dims = differ_in_dims(candidate.architecture for candidate in candidates)
    for one in candidates:
        cells = [column.cell(one) for column in columns]
        table.add_row(*cells, _Mixers(describe(one.architecture, with_dims=with_dims)))
    first, *notes = [column.note for column in columns if column.note]
    notes = ["c: channels of a stage", *notes] if with_dims else notes
    if any(candidate.near_front for candidate in candidates):
        notes.append("~: off the front by no more than noise")
    table.caption = "; ".join([first, *notes])
    return table


def _known_columns(candidates: Sequence[Candidate]) -> Iterator[_Column]:
    """Yield what every candidate has."""
    from search.results import QUALITY_WORDS

    measure = QUALITY_WORDS[candidates[0].measure if candidates else "top1"]
    note = f"±: 95 % interval of the {'accuracy' if measure == 'top-1' else measure}"
    yield _Column("id", lambda c: f"~{c.id}" if c.near_front else str(c.id))
    yield _Column(f"{measure} %", format_interval, note)
    yield _Column("MACs", lambda c: format_count(c.macs))
    yield _Column("params", lambda c: format_count(c.params))


def _measured_columns(candidates: Sequence[Candidate]) -> Iterator[_Column]:
    """Yield the costs that were measured."""
    if any(c.latency_ms for c in candidates):
        yield _Column("ms", lambda c: format_measured(c.latency_ms))
    if any(c.memory_mib for c in candidates):
        yield _Column("MiB", lambda c: format_measured(c.memory_mib))


def _later_columns(
    candidates: Sequence[Candidate], final: Mapping[int, Candidate]
) -> Iterator[_Column]:
    """Yield what is known beyond what was judged: chances, forecasts, retrainings."""
    if any(c.front_probability is not None for c in candidates):
        # Of an interval of the costs it knows nothing.
        exact = ", costs taken as exact" if any(c.latency_low_ms for c in candidates) else ""
        note = f"sure: chance to be truly on the front{exact}"
        yield _Column("sure", lambda c: format_chance(c.front_probability), note)
    epochs = {c.forecast.epochs for c in candidates if c.forecast is not None}
    if epochs:
        note = f"in full: forecast after the recipe's {max(epochs)} epochs"
        yield _Column("in full", format_forecast, note)
    if any(c.id in final for c in candidates):
        from search.results import retraining_label  # `search show` does without its scipy

        labels = {retraining_label(final[c.id].fidelity) for c in candidates if c.id in final}
        note = f"retrained: {', '.join(sorted(labels))}, judged once on the test split"
        yield _Column(
            "retrained", lambda c: format_interval(final[c.id]) if c.id in final else "", note
        )


def architecture_table(architecture: Architecture, *, name: str = "") -> Table:
    """Show an architecture: for each part its map, width, blocks, parameters and MACs."""
    side = architecture.img_size
    table = _table(f"{name} {architecture.key}, {side} x {side} pixels".lstrip())
    for column in ("part", "map", "dim", "blocks"):
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    table.add_column("mixers", overflow="fold")
    for column in ("params", "MACs", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    total = count(architecture)
    stages = zip(
        architecture.stages, architecture.resolutions, describe_stages(architecture), strict=True
    )
    middles = {
        f"stage{index}": (f"{size}x{size}", str(stage.dim), str(stage.depth), mixers)
        for index, (stage, size, mixers) in enumerate(stages)
    }
    for part, cost in count_parts(architecture).items():
        middle = middles.get(part, ("", "", "", ""))
        table.add_row(part, *middle, *_cost_cells(cost, total))
    table.add_section()
    table.add_row("all", "", "", "", "", *_cost_cells(total, total))
    table.caption = "share: of the MACs of one image"
    return table


def architecture_json(architecture: Architecture) -> dict[str, Any]:
    """Describe an architecture and its costs with JSON values; the keys are stable.

    ``architecture`` is what `Architecture.from_dict` reads.
    """
    total, parts = count(architecture), count_parts(architecture)
    described = zip(
        architecture.stages, architecture.resolutions, describe_stages(architecture), strict=True
    )
    stages = [
        {
            "map_size": size,
            "dim": stage.dim,
            "depth": stage.depth,
            "mixers": mixers,
            "params": parts[f"stage{index}"].params,
            "macs": parts[f"stage{index}"].macs,
        }
        for index, (stage, size, mixers) in enumerate(described)
    ]
    return {
        "key": architecture.key,
        "params": total.params,
        "macs": total.macs,
        "img_size": architecture.img_size,
        "num_classes": architecture.num_classes,
        "mixers": describe(architecture),
        "stages": stages,
        "architecture": architecture.to_dict(),
    }


def describe_stages(architecture: Architecture, *, with_dims: bool = False) -> tuple[str, ...]:
    """Write the mixers of each stage compactly, and its channels if asked for."""
    return tuple(describe(architecture, with_dims=with_dims).split(" | "))


def format_count(number: float) -> str:
    """Write a count for people, with three digits: ``28.3M``, ``4.51G``, ``640``."""
    if number < 1000:
        return f"{number:.0f}"
    # Rounded first: 999,960 is 1.00M and not 1000K.
    exponent = min(int(math.log10(float(f"{number:.3g}"))) // 3, len(_UNITS))
    text = f"{number / 1000**exponent:#.3g}".removesuffix(".")
    return text + _UNITS[exponent - 1]


def format_interval(candidate: Candidate) -> str:
    """Write the accuracy in percent with the longer half of its 95 % interval: ``93.1 ±1.2``."""
    half = max(candidate.high - candidate.top1, candidate.top1 - candidate.low)
    return f"{candidate.top1:.1f} ±{half:.1f}"


def format_forecast(candidate: Candidate) -> str:
    """Write the forecast of the full recipe with the longer half of its 95 % interval."""
    found = candidate.forecast
    if found is None:
        return ""
    return f"{found.top1:.1f} ±{max(found.high - found.top1, found.top1 - found.low):.1f}"


def format_chance(chance: float | None) -> str:
    """Write a probability in whole percent; never 0 % or 100 % for what is not quite so."""
    if chance is None:
        return ""
    if 0 < chance < 0.01:
        return "<1%"
    return ">99%" if 0.99 < chance < 1 - 1e-9 else f"{chance:.0%}"


def format_measured(cost: float | None) -> str:
    """Write milliseconds or MiB with three digits, large ones as whole numbers: ``1,031``."""
    if cost is None:
        return ""
    return f"{cost:.3g}" if cost < 999.5 else f"{cost:,.0f}"


def break_stages(mixers: str, width: int) -> str:
    """Break a compact text of mixers into lines, between stages; a longer stage is left as it is.

    A bar at the end of a line says that more stages follow.
    """
    lines: list[str] = []
    for stage in mixers.split(" | "):
        if lines and len(lines[-1]) + len(" | ") + len(stage) + len(" |") <= width:
            lines[-1] += f" | {stage}"
        else:
            lines.append(stage)
    return " |\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Mixers:
    """The mixers of a network, which rich lays out when it knows the width of the column."""

    text: str

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(break_stages(self.text, options.max_width), overflow="fold")

    def __rich_measure__(self, _: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, self.text.split()))
        width = options.max_width
        return Measurement(min(longest, width), min(len(self.text) + 2, width))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", caption_justify="left")


def _cost_cells(cost: Cost, total: Cost) -> tuple[str, str, str]:
    return format_count(cost.params), format_count(cost.macs), f"{cost.macs / total.macs:.1%}"
