"""`search compare`: architectures side by side, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from search.front.query import trials_of
from search.results import QUALITY_WORDS, Candidate, judged_at, searched_fidelities
from search.run_folder import load_target, open_run, run_and_id
from search.terminal import describe_stages, format_count, format_interval
from searchspace.architecture import Architecture
from searchspace.cost import Cost, count, count_parts
from searchspace.presets import preset
from searchspace.published import PUBLISHED, Published

if TYPE_CHECKING:
    from searchspace.latency_table import Latency


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """An architecture with what is known about it.

    Attributes:
        name: As the user wrote it.
        result: Its accuracy and latency at the run's highest fidelity that judged it, if any.
        taught_by: Whom all trainings of its run learned from; empty for nobody.
        latency: Of its parts and of ``all`` on this machine, one image, where it was measured.
        timed_on: ``cuda``, or ``cpu`` with its threads.
    """

    name: str
    architecture: Architecture
    result: Candidate | None = None
    taught_by: str = ""
    latency: Mapping[str, Latency] = field(default_factory=dict)
    timed_on: str = ""


def with_latencies(compared: Sequence[Compared], device: str) -> list[Compared]:
    """Measure how long each network's parts take for one image, the networks in turn.

    Every round runs all networks once, so that a busy moment does not count against one of them.
    """
    import torch

    from searchspace.latency_table import latency_of
    from supernet.measuring import TIMED_RUNS, time_parts
    from supernet.network import build_subnet

    networks = [build_subnet(one.architecture).to(device).eval() for one in compared]
    times: list[dict[str, list[float]]] = [{} for _ in compared]
    for _ in range(TIMED_RUNS):
        for one, network, found in zip(compared, networks, times, strict=True):
            size = one.architecture.img_size
            images = torch.zeros(1, one.architecture.in_chans, size, size, device=device)
            for part, seconds in time_parts(network, one.architecture, images, runs=1).items():
                found.setdefault(part, []).extend(seconds)
    where = device if device == "cuda" else f"{device}, {torch.get_num_threads()} thread(s)"
    return [
        replace(
            one,
            latency={part: latency_of(seconds) for part, seconds in found.items()},
            timed_on=where,
        )
        for one, found in zip(compared, times, strict=True)
    ]


def load_compared(target: str, *, img_size: int | None = None) -> Compared:
    """Find an architecture and its result, by what `search.run_folder.targets.load_target` takes.

    Args:
        target: A preset, a file or ``RUN:ID``.
        img_size: Count costs at another image size; a result at the run's own is left out then.

    Raises:
        ValueError: If there is no such architecture.
    """
    architecture = load_target(target)
    result, taught_by = _result_of(target)
    if img_size is not None and img_size != architecture.img_size:
        architecture, result = architecture.replace(img_size=img_size), None
    return Compared(name=target, architecture=architecture, result=result, taught_by=taught_by)


def compare_table(compared: Sequence[Compared]) -> Table:
    """Show each stage's mixers, parameters, MACs and share of them, a column for each network.

    What differs from the first network is bold.
    """
    table = Table(title="Side by side", title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for one in compared:
        table.add_column(one.name, overflow="fold", ratio=1)
    for row in _rows(compared):
        if row is None:
            table.add_section()
            continue
        label, *cells = row
        bold = [cell if cell == cells[0] else Text(cell, style="bold") for cell in cells]
        table.add_row(label, *bold)
    notes = ["bold: differs from the first", "share: of the MACs of one image"]
    for where in dict.fromkeys(one.timed_on for one in compared if one.latency):
        notes.append(f"ms: of one image on this machine, {where}, median and its 95 % interval")
    if len({one.taught_by for one in compared if one.result}) > 1:
        notes.append("accuracies with and without a teacher are no comparison of architectures")
    table.caption = "; ".join(notes)
    return table


def compare_json(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Describe the networks with JSON values; the keys are stable."""
    return [_describe(one) for one in compared]


def _describe(one: Compared) -> dict[str, Any]:
    total, parts = count(one.architecture), count_parts(one.architecture)
    result = one.result
    mixers = _stage_mixers(one.architecture)
    return {
        "name": one.name,
        "key": one.architecture.key,
        "img_size": one.architecture.img_size,
        "params": total.params,
        "macs": total.macs,
        "fidelity": result.fidelity if result else None,
        "taught_by": one.taught_by or None,
        result.measure if result else "top1": result.top1 if result else None,
        "latency_ms": _whole_latency(one),
        "parts": [
            {
                "part": part,
                "mixers": mixers.get(part),
                "params": cost.params,
                "macs": cost.macs,
                "share": cost.macs / total.macs,
                "latency_ms": one.latency[part].median_ms if one.latency else None,
            }
            for part, cost in parts.items()
        ],
    }


def _rows(compared: Sequence[Compared]) -> list[tuple[str, ...] | None]:
    """List the rows of the table; None is a line between two parts."""
    parts = [count_parts(one.architecture) for one in compared]
    totals = [count(one.architecture) for one in compared]
    mixers = [_stage_mixers(one.architecture) for one in compared]
    sizes = [_sizes(one.architecture) for one in compared]
    rows: list[tuple[str, ...] | None] = []
    # The deepest network first, so that its last stages come before the head.
    for name in dict.fromkeys(name for costs in sorted(parts, key=len)[::-1] for name in costs):
        part = name
        costs = [found.get(part) for found in parts]
        if any(part in found for found in mixers):
            rows.append((part, *(found.get(part, "-") for found in mixers)))
            rows.append(("  tokens", *(found.get(part, "-") for found in sizes)))
            part = ""
        rows.extend(_cost_rows(part, costs, totals))
        rows.extend(_latency_rows(compared, name))
        rows.append(None)
    rows.extend(_cost_rows("all", totals, totals)[:-1])
    rows.extend(_latency_rows(compared, "all"))
    rows.extend(_result_rows(compared))
    return rows


def _cost_rows(
    label: str, costs: Sequence[Cost | None], totals: Sequence[Cost]
) -> list[tuple[str, ...]]:
    rows = [
        ("  params", *(format_count(cost.params) if cost else "-" for cost in costs)),
        ("  MACs", *(format_count(cost.macs) if cost else "-" for cost in costs)),
        (
            "  share",
            *(
                f"{cost.macs / total.macs:.1%}" if cost else "-"
                for cost, total in zip(costs, totals, strict=True)
            ),
        ),
    ]
    return [(label, *("" for _ in costs)), *rows] if label else rows


def _latency_rows(compared: Sequence[Compared], part: str) -> list[tuple[str, ...]]:
    if not any(one.latency for one in compared):
        return []
    cells = []
    for one in compared:
        found = one.latency.get(part)
        cells.append(
            f"{found.median_ms:.2f} ({found.low_ms:.2f} to {found.high_ms:.2f})" if found else "-"
        )
    return [("  ms", *cells)]


def _whole_latency(one: Compared) -> float | None:
    if one.latency:
        return one.latency["all"].median_ms
    return one.result.latency_ms if one.result else None


def _result_rows(compared: Sequence[Compared]) -> list[tuple[str, ...]]:
    rows = []
    results = [one.result for one in compared]
    for measure in dict.fromkeys(r.measure for r in results if r):
        cells = (format_interval(r) if r and r.measure == measure else "-" for r in results)
        rows.append((f"  {QUALITY_WORDS[measure]} %", *cells))
    if any(results):
        rows.append(("  judged at", *(r.fidelity if r else "-" for r in results)))
    if any(one.taught_by for one in compared):
        rows.append(("  taught by", *(one.taught_by or "-" for one in compared)))
    known = [_published(one) for one in compared]
    if any(known):
        rows.append(("  ImageNet %", *(f"{p.top1:.1f}" if p else "-" for p in known)))
        rows.append(("  from", *(str(p) if p else "-" for p in known)))
    return rows


def _published(one: Compared) -> Published | None:
    """Return what a paper reports of a preset; at another image size it is another network."""
    found = PUBLISHED.get(one.name)
    return found if found and preset(one.name).key == one.architecture.key else None


def _stage_mixers(architecture: Architecture) -> dict[str, str]:
    return {f"stage{i}": text for i, text in enumerate(describe_stages(architecture))}


def _sizes(architecture: Architecture) -> dict[str, str]:
    stages = zip(architecture.stages, architecture.resolutions, strict=True)
    return {
        f"stage{index}": f"{size}x{size}, {stage.dim} wide, {stage.depth} deep"
        for index, (stage, size) in enumerate(stages)
    }


def _result_of(target: str) -> tuple[Candidate | None, str]:
    """Return the result of RUN:ID at the highest fidelity below retraining that has it.

    Returns:
        That, and whom the trainings of the run learned from.
    """
    named = run_and_id(target)
    if Path(target).exists() or named is None:
        return None, ""
    with open_run(named[0]) as folder:
        trials = [t for t in trials_of(folder) if t.architecture_id == named[1]]
        found = judged_at(trials)[0] if searched_fidelities(trials) else None
        return found, folder.settings.taught_by
