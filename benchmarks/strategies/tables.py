"""Measures of retrained fronts, as tables in Markdown: arms, and their differences by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
from scipy.stats import kendalltau
from scipy.stats import t as student

from benchmarks.strategies.rows import Row
from benchmarks.strategies.study import ARMS, BASELINE, NUM_CLASSES, SINGLE, SPACE
from search.results.dominance import hypervolume
from searchspace.cost import count
from searchspace.spec_file import load_space

# A single mixer of so many times the MACs is no dearer.
NEAR_COST = 1.1


def tables(rows: Sequence[Row]) -> str:
    """Write all measures as Markdown: arms and differences by seeds."""
    done = {
        place: _tested(members)
        for place, members in _by_place(rows).items()
        if all(member["test_top1"] or not member["key"] for member in members)
    }
    seeds = sorted({int(row["seed"]) for row in rows})
    arms = [arm for arm in ARMS if arm in {row["arm"] for row in rows}]
    measures: dict[str, Callable[[Sequence[Row]], float | None]] = {
        "hypervolume, % of the box": front_hypervolume,
        "hypervolume over log MACs, % of the box": log_hypervolume,
        "best test top-1, %": best_top1,
    }
    found = {
        name: {place: measure(members) for place, members in done.items()}
        for name, measure in measures.items()
    }
    if SINGLE in arms:
        found[f"best test top-1 above the best single mixer of its MACs, % (to {NEAR_COST:g}x)"] = {
            (arm, seed): gain_over_single(members, done.get((SINGLE, seed), []))
            for (arm, seed), members in done.items()
            if arm != SINGLE
        }
    parts = [_table(name, values, arms, seeds) for name, values in found.items()]
    return "\n\n".join([*parts, _agreement(done, arms)] if SINGLE in arms else parts)


def _by_place(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row["arm"], int(row["seed"])), []).append(row)
    return found


def _tested(members: Sequence[Row]) -> list[Row]:
    return [member for member in members if member["test_top1"]]


def front_hypervolume(members: Sequence[Row]) -> float:
    """Return the hypervolume of retrained networks in percent of the box; see the module."""
    return _hypervolume(members, lambda macs: macs)


def log_hypervolume(members: Sequence[Row]) -> float:
    """Return the same over the logarithm of MACs."""
    return _hypervolume(members, math.log)


def _hypervolume(members: Sequence[Row], scale: Callable[[float], float]) -> float:
    if not members:
        return 0.0
    first = members[0]
    num_classes = int(first.get("num_classes") or NUM_CLASSES)
    ends = macs_range(first.get("space") or SPACE, int(first["img_size"]), num_classes)
    least, most = map(scale, map(float, ends))
    chance = 100 * (1 - 1 / num_classes)
    points = [(100 - float(row["test_top1"]), scale(float(row["macs"]))) for row in members]
    losses = np.array(points).reshape(-1, 2) - np.array([0.0, least])
    box = chance * (most - least)
    return 100 * hypervolume(losses, np.array([chance, most - least])) / box


@cache
def macs_range(name: str, img_size: int, num_classes: int) -> tuple[int, int]:
    """Return the MACs of the cheapest and of the dearest network of a space."""
    space = load_space(name).replace(num_classes=num_classes, img_size=img_size)
    ends = (space.extreme("macs", largest=largest) for largest in (False, True))
    least, most = (count(end).macs for end in ends)
    return least, most


def best_top1(members: Sequence[Row]) -> float | None:
    """Return the best test accuracy of retrained networks in percent, if there are any."""
    return max((float(row["test_top1"]) for row in members), default=None)


def gain_over_single(members: Sequence[Row], singles: Sequence[Row]) -> float | None:
    """Return how much more accurate the best network is than single mixers of its cost."""
    best = max(members, key=lambda row: float(row["test_top1"]), default=None)
    if best is None:
        return None
    most = NEAR_COST * float(best["macs"])
    rivals = [float(row["test_top1"]) for row in singles if float(row["macs"]) <= most]
    return float(best["test_top1"]) - max(rivals) if rivals else None


def _table(
    name: str,
    values: Mapping[tuple[str, int], float | None],
    arms: Sequence[str],
    seeds: Sequence[int],
) -> str:
    """Write a measure of fronts as a table; a front that is not done is a dash."""
    by_arm = {arm: [values.get((arm, seed)) for seed in seeds] for arm in arms}
    head = [name, *(f"seed {seed}" for seed in seeds), "mean", "95 % interval"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [_line(arm, found, ".2f") for arm, found in by_arm.items()]
    for arm, found in by_arm.items():
        if arm != BASELINE and BASELINE in by_arm:
            pairs = zip(found, by_arm[BASELINE], strict=True)
            gains = [None if ours is None or its is None else ours - its for ours, its in pairs]
            lines.append(_line(f"{arm} - {BASELINE}", gains, "+.2f"))
    return "\n".join(lines)


def _line(label: str, values: Sequence[float | None], style: str) -> str:
    there = [value for value in values if value is not None]
    half = half_width(there)
    cells = ["-" if value is None else f"{value:{style}}" for value in values]
    cells.append(f"{statistics.fmean(there):{style}}" if there else "-")
    cells.append("-" if math.isnan(half) else f"± {half:.2f}")
    return f"| {' | '.join([label, *cells])} |"


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean (Student's t); NaN for less than two values."""
    if len(values) < 2:
        return math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return float(student.ppf(0.975, len(values) - 1)) * spread


def _agreement(done: Mapping[tuple[str, int], Sequence[Row]], arms: Sequence[str]) -> str:
    """Say how the order of the searched accuracies agrees with that of the retrained ones."""
    lines = ["| order of search and retraining | Kendall's tau, mean over fronts | fronts |"]
    lines.append("|---|---|---|")
    for arm in (name for name in arms if name != SINGLE):
        taus = [_tau(front) for (name, _), front in done.items() if name == arm and len(front) > 2]
        there = [tau for tau in taus if not math.isnan(tau)]
        if there:
            lines.append(f"| {arm} | {statistics.fmean(there):.2f} | {len(there)} |")
    return "\n".join(lines)


def _tau(front: Sequence[Row]) -> float:
    searched, tested = (
        [float(row[name]) for row in front] for name in ("searched_top1", "test_top1")
    )
    return float(kendalltau(searched, tested)[0])
