"""What a budget buys: the shares of the phases, and the work that fits in each.

Pure arithmetic on measured times (`StepTimes`), so that the
same numbers are printed by ``search plan`` and followed by ``search run``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from search.plan.horizon import choose_horizon
from search.plan.inputs import PlanInputs
from search.plan.plan import Plan
from search.plan.rungs import Rungs, choose_rungs, count_trust
from search.plan.shares import MIN_FINISH_SECONDS, BudgetShares, split_shares

# More judgements hardly move a front; their time is worth more in promotion.
MAX_JUDGED = 20_000
# What judging takes was measured in a moment; what is not used goes on to the next phases.
SCORE_MARGIN = 2.0


def make_plan(given: PlanInputs) -> Plan:
    """Split a budget.

    Small budgets are split by shares. Where that would give a phase more than it has a use for, or
    trials could be long, the plan comes from what the phases need: a supernet of a few hundred
    epochs, twenty thousand judgements, and what is left for fewer, longer, larger trainings.

    Raises:
        ValueError: If the budget is too small for one step of each phase, or a share is wrong.
    """
    shares = _shares(given)
    rungs = _rungs(given, shares)
    num_trust = _count_trust(given, shares, rungs)
    if rungs.are_large:
        trust_seconds = rungs.trust_epochs * given.epoch_seconds
        shares = shares.give_spare({"trust": num_trust * trust_seconds}, to=given.climb)
    horizon = choose_horizon(
        rungs,
        recipe_epochs=given.recipe_epochs,
        limit_seconds=shares.horizon_limit(given.climb),
        epoch_seconds=given.epoch_seconds,
        num_trust=num_trust,
        devices=min(given.most_trial_devices, given.devices),
    )
    shares = shares.give_horizon(horizon.seconds if horizon else 0.0, climb=given.climb)
    _refuse_too_little(given, shares, rungs)
    plan = _write_down(given, shares, rungs, num_trust)
    if horizon is None:
        return plan
    return replace(
        plan,
        horizon_epochs=horizon.epochs,
        num_horizon=horizon.num_networks,
        horizon_devices=horizon.devices,
    )


def _shares(given: PlanInputs) -> BudgetShares:
    """Split by shares; networks that go up the rungs get what other phases have no use for."""
    fixed_shares = given.fixed_shares or {}
    shares = BudgetShares(
        budget_seconds=given.budget_seconds,
        measured_seconds=given.measured_seconds,
        by_phase=split_shares(given.budget_seconds, fixed_shares, strategy=given.strategy),
        fixed=set(fixed_shares),
    )
    return shares.give_spare(_needs(given), to="promote") if given.climb == "promote" else shares


def _needs(given: PlanInputs) -> dict[str, float]:
    """Return the device-seconds beyond which phases have no use for more."""
    judging = max(MAX_JUDGED * given.judge_seconds, MIN_FINISH_SECONDS)
    most_steps = given.enough_supernet_steps
    # One step more, so that rounding takes none away.
    training = (most_steps + 1) * given.supernet_step if most_steps else math.inf
    scoring = SCORE_MARGIN * given.most_scored * given.judge_seconds
    scoring += MIN_FINISH_SECONDS * given.devices
    return {
        "search": judging,
        "finish": judging,
        "supernet": training,
        "score": scoring if given.most_scored else math.inf,
    }


def _rungs(given: PlanInputs, shares: BudgetShares) -> Rungs:
    return choose_rungs(
        given,
        climb_seconds=shares.seconds(given.climb),
        trust_seconds=shares.seconds("trust") if "trust" in shares.by_phase else None,
    )


def _count_trust(given: PlanInputs, shares: BudgetShares, rungs: Rungs) -> int:
    if "trust" not in shares.by_phase:
        return 0
    passes = shares.seconds("trust") / given.epoch_seconds
    return count_trust(rungs, passes, devices=given.devices)


def _refuse_too_little(given: PlanInputs, shares: BudgetShares, rungs: Rungs) -> None:
    """Refuse a budget that leaves a phase less than one unit of its work."""
    least = {
        "search": given.judge_seconds,
        "score": given.judge_seconds,
        "supernet": 2 * given.supernet_step,
        "library": 2 * given.supernet_step,
    }
    least[given.climb] = rungs.epochs[-1] * given.epoch_seconds
    if all(shares.seconds(phase) >= least.get(phase, -math.inf) for phase in shares.by_phase):
        return
    needed = max(
        (least.get(phase, 0.0) + shares.measured_in(phase)) / max(share, 1e-9)
        for phase, share in shares.by_phase.items()
    )
    raise ValueError(
        f"A budget of {shares.budget_seconds:.0f} device-seconds is too small: measuring takes "
        f"{shares.measured_seconds:.2g} of them, and an epoch of a network alone takes "
        f"{given.epoch_seconds:.2g} s here. Give at least {math.floor(needed) + 1} "
        "device-seconds, a smaller space or a smaller --img-size."
    )


def _write_down(given: PlanInputs, shares: BudgetShares, rungs: Rungs, num_trust: int) -> Plan:
    """Write down the work that fits in the shares."""
    top, macs = rungs.epochs[-1], [point[0] for point in given.trial_step_seconds]
    climbing, judges = shares.seconds(given.climb), given.climb == "promote"
    supernet_steps, most_steps = _supernet_steps(given, shares)
    return Plan(
        budget_seconds=given.budget_seconds,
        devices=given.devices,
        spent_by_end=shares.ends(),
        supernet_steps=supernet_steps,
        judge_seconds=given.judge_seconds,
        trial_epochs=top,
        trial_steps=top * given.steps_per_epoch,
        rungs=rungs.epochs,
        num_trust=num_trust,
        # Every rung takes the same time: a third as many networks for three times as long.
        num_promoted=int(climbing / (top * given.epoch_seconds) / len(rungs.epochs)),
        num_judged=int(shares.seconds("search") / given.judge_seconds) if judges else 0,
        step_seconds=tuple(given.trial_step_seconds),
        retrain_seconds=(
            given.costs(min(macs)) * given.retrain_steps,
            given.costs(max(macs)) * given.retrain_steps,
        ),
        strategy=given.strategy,
        rung_images=rungs.images,
        rung_devices=rungs.devices,
        trust_epochs=rungs.trust_epochs,
        train_images=given.train_images,
        supernet_batch=given.supernet_batch if given.train_images else 0,
        most_supernet_steps=most_steps,
        is_large=rungs.are_large,
        recipe_epochs=given.recipe_epochs,
    )


def _supernet_steps(given: PlanInputs, shares: BudgetShares) -> tuple[int, int]:
    """Return the length of the supernet's schedule, and what it may grow to; 0: no limit."""
    if "supernet" not in shares.by_phase:
        return 0, 0
    steps, most = int(shares.seconds("supernet") / given.supernet_step), given.enough_supernet_steps
    return min(steps, most or steps), most
