"""What is left of a budget, split anew after each phase."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from search.plan.plan import Plan
from search.plan.shares import PHASES, climbing_phase

# Starts differ, and the judge works for a moment once it has started.
START_RESERVE = 1.5


def revise_plan(
    plan: Plan,
    *,
    after: str,
    spent: Mapping[str, float],
    fixed: Collection[str] = (),
    trial_seconds: float | None = None,
    judge_seconds: float | None = None,
    start_seconds: float = 0.0,
) -> Plan:
    """Split what is left anew when a phase has ended earlier or later than planned.

    The phases to come share the difference in proportion; those that the user fixed keep what they
    were given, unless nothing would be left for the others.

    Args:
        plan: As it was.
        after: The phase that has ended.
        spent: Device-seconds spent so far by phase; those to come may have begun before the run
            was resumed or given more budget.
        fixed: Phases whose share the user fixed.
        trial_seconds: Device-seconds that a trial on the highest rung really takes.
        judge_seconds: Device-seconds that a judgement really takes.
        start_seconds: What a judge really takes to start: the finish needs one.
    """
    names = list(plan.spent_by_end)
    if after not in names:  # the plan has no such phase
        return plan
    coming = names[names.index(after) + 1 :]
    # Of what was planned at first: a plan that was revised has what a phase used before in it.
    wanted = {name: max(plan.planned[name] - spent.get(name, 0.0), 0.0) for name in coming}
    if "finish" in wanted:
        wanted["finish"] = max(wanted["finish"], START_RESERVE * start_seconds)
    total = sum(spent.get(name, 0.0) for name in PHASES)
    left = max(plan.budget_seconds - total, 0.0)
    # The finish needs its seconds, however little is left for the others.
    amounts = _hand_out(left, wanted, kept={*fixed, "finish"})
    ends = dict.fromkeys(names[: names.index(after) + 1], total)
    for name in coming:
        total += amounts[name]
        ends[name] = total
    numbers: dict[str, Any] = {}
    climb = climbing_phase(plan.strategy)
    if trial_seconds and climb in coming:
        numbers["num_promoted"] = int(amounts[climb] / trial_seconds / len(plan.rungs))
    if judge_seconds and "search" in coming and climb != "search":
        numbers["judge_seconds"] = judge_seconds
        numbers["num_judged"] = int(amounts["search"] / judge_seconds)
    return replace(plan, spent_by_end=ends, shares=plan.planned, **numbers)


def _hand_out(
    left: float, wanted: Mapping[str, float], *, kept: Collection[str]
) -> dict[str, float]:
    """Split what is left over phases, all of it: those to keep get what they want, where it does.

    The others share the rest in proportion; the last of them has it where none wants any.
    """
    others = [name for name in wanted if name not in kept] or list(wanted)
    needed = sum(seconds for name, seconds in wanted.items() if name not in others)
    if needed >= left:  # nothing would be left for the others
        others, needed = list(wanted), 0.0
    free = sum(wanted[name] for name in others)
    return {
        name: seconds
        if name not in others
        else (left - needed) * (seconds / free if free else name == others[-1])
        for name, seconds in wanted.items()
    }
