"""`search select`: which members of the front are worth a retraining, and why.

The balanced one and the most accurate one come first, then those that add most: the farthest from
what is chosen, weighed by the chance to be on the front at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from search.budget import Device, format_seconds
from search.plan import Plan, StepModel
from search.record import QUALITIES
from search.results import QUALITY_WORDS, Candidate, by_macs, candidate_losses, knee
from search.terminal import format_chance, format_count, format_interval

# A network that only noise keeps off the front is worth a look above this chance.
LEAST_CHANCE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Selected:
    """A network to retrain, the reasons, and what it will cost.

    Attributes:
        retrain_seconds: Expected device-seconds of one full retraining; None where the run has no
            plan yet.
    """

    candidate: Candidate
    reason: str
    retrain_seconds: float | None = None


def select_members(
    found: Sequence[Candidate],
    *,
    objectives: Sequence[str],
    top: int,
    budget_seconds: float = math.inf,
    cost_of: Callable[[Candidate], float] | None = None,
    best: str = "the most accurate",
) -> tuple[Selected, ...]:
    """Choose at most ``top`` networks whose retrainings fit in the budget together.

    Args:
        found: All candidates of a fidelity, with probabilities.
        objectives: What the front weighs.
        top: At least 1.
        budget_seconds: Device-seconds for all retrainings together.
        cost_of: Expected device-seconds of retraining a candidate; None: not known.
        best: What the most accurate of them is called.

    Returns:
        In the order in which they were chosen.

    Raises:
        ValueError: If top is below 1, or no retraining fits in the budget.
    """
    if top < 1:
        raise ValueError(f"Select at least one network, got --top {top}.")
    pool = sorted((c for c in found if _is_worth_a_look(c)), key=by_macs)
    places = _scaled(pool, objectives)
    reasons = _leading(pool, objectives, best)
    # What is cheap is what the front weighs first.
    cost = next((name for name in objectives if name not in QUALITIES), "macs")
    chosen: list[Selected] = []
    left, open_ = budget_seconds, list(range(len(pool)))
    while open_ and len(chosen) < top:
        index = _next(open_, reasons, places, [pool.index(c.candidate) for c in chosen], pool)
        open_.remove(index)
        seconds = cost_of(pool[index]) if cost_of else None
        if seconds is not None and seconds > left:
            continue
        left -= seconds or 0.0
        others = [c.candidate for c in chosen]
        reason = reasons.get(index) or _spread_reason(pool[index], others, pool, cost=cost)
        chosen.append(Selected(candidate=pool[index], reason=reason, retrain_seconds=seconds))
    if not chosen and cost_of:
        least = min(cost_of(candidate) for candidate in pool)
        raise ValueError(
            f"No retraining fits in {budget_seconds:,.0f} device-seconds; the cheapest is expected "
            f"to take {math.ceil(least):,}. Give a larger --budget."
        )
    return tuple(chosen)


def retrain_cost(plan: Plan | None) -> Callable[[Candidate], float] | None:
    """Return what predicts the device-seconds of a full retraining, by the run's own plan."""
    if plan is None:
        return None
    step = StepModel(plan.step_seconds)
    largest = max(macs for macs, _ in plan.step_seconds)
    num_steps = plan.retrain_seconds[1] / step(largest)
    return lambda candidate: num_steps * step(candidate.macs)


def select_table(choices: Sequence[Selected], device: Device) -> Table:
    """Show the choices with their reasons, a row each."""
    table = Table(title="Worth retraining", title_justify="left", caption_justify="left")
    measure = QUALITY_WORDS[choices[0].candidate.measure if choices else "top1"]
    for column in ("id", f"{measure} %", "MACs", "sure", "retraining"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why")
    for choice in choices:
        one, seconds = choice.candidate, choice.retrain_seconds
        table.add_row(
            f"~{one.id}" if one.near_front else str(one.id),
            format_interval(one),
            format_count(one.macs),
            format_chance(one.front_probability),
            "" if seconds is None else format_seconds(seconds, device),
            choice.reason,
        )
    table.caption = "sure: chance to be truly on the front; retraining: expected, one seed"
    return table


def choice_json(choice: Selected) -> dict[str, Any]:
    """Describe a choice with JSON values; the keys are stable."""
    one = choice.candidate
    return {
        "id": one.id,
        "reason": choice.reason,
        "retrain_seconds": choice.retrain_seconds,
        one.measure: one.top1,
        "macs": one.macs,
        "params": one.params,
        "on_front": one.on_front,
        "front_probability": one.front_probability,
    }


def _is_worth_a_look(candidate: Candidate) -> bool:
    return candidate.on_front or (
        candidate.near_front and (candidate.front_probability or 0.0) >= LEAST_CHANCE
    )


def _scaled(pool: Sequence[Candidate], objectives: Sequence[str]) -> NDArray[np.float64]:
    """Return losses of shape (n, m), each scaled to its range; a missing one is the worst."""
    losses = candidate_losses(pool, objectives)
    losses = np.where(np.isnan(losses), np.nanmax(losses, axis=0), losses)
    ranges = np.ptp(losses, axis=0)
    scaled: NDArray[np.float64] = losses - losses.min(axis=0)
    return scaled / np.where(ranges > 0, ranges, 1.0)


def _leading(
    pool: Sequence[Candidate], objectives: Sequence[str], name: str = "the most accurate"
) -> dict[int, str]:
    """Name those that are chosen in any case, in this order."""
    members = [index for index, candidate in enumerate(pool) if candidate.on_front]
    on_front = [pool[index] for index in members]
    balanced = members[knee(candidate_losses(on_front, objectives))]
    best = max(members, key=lambda index: (pool[index].top1, -index))
    if balanced == best:
        return {best: f"{name}, and the knee of the front"}
    return {balanced: "balanced: the knee of the front", best: name}


def _next(
    open_: Sequence[int],
    reasons: Mapping[int, str],
    places: NDArray[np.float64],
    chosen: Sequence[int],
    pool: Sequence[Candidate],
) -> int:
    for index in reasons:
        if index in open_:
            return index
    if not chosen:
        return open_[0]

    def gain(index: int) -> float:
        gaps = np.linalg.norm(places[list(chosen)] - places[index], axis=1)
        chance = pool[index].front_probability
        return float(gaps.min()) * (1.0 if chance is None else chance)

    return max(open_, key=gain)


def _spread_reason(
    candidate: Candidate, chosen: Sequence[Candidate], pool: Sequence[Candidate], *, cost: str
) -> str:
    chance = format_chance(candidate.front_probability)
    if candidate.near_front:
        return f"uncertain: only noise keeps it off the front ({chance} that it belongs there)"

    def of(one: Candidate) -> float:
        value: float | None = getattr(one, cost)
        return math.inf if value is None else value

    def nearest(among: Sequence[Candidate]) -> int:
        return min(among, key=lambda one: abs(of(one) - of(candidate))).id

    own, costs = of(candidate), [of(one) for one in pool if one.on_front]
    cheaper, dearer = ([c for c in chosen if sign * of(c) < sign * own] for sign in (1, -1))
    if not cheaper and own == min(costs):
        return "spread: the cheapest end"
    if not dearer and own == max(costs):
        return "spread: the dearest end"
    if cheaper and dearer:
        return f"spread: between {nearest(cheaper)} and {nearest(dearer)}"
    if dearer:
        return f"spread: cheaper than {nearest(dearer)}"
    return f"spread: dearer than {nearest(cheaper)}" if cheaper else "spread: for the same cost"
