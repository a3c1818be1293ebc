"""What a budget buys: the shares of the phases, and the work that fits in each.

Pure arithmetic on measured times (`StepTimes`), so that the
same numbers are printed by ``search plan`` and followed by ``search run``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from search.plan.horizon import choose_horizon
from search.plan.plan import Plan
from search.plan.rungs import choose_rungs, count_trust
from search.plan.shares import MIN_FINISH_SECONDS, BudgetShares, climbing_phase, split_shares
from search.plan.step_times import StepModel, mean_macs

# More judgements hardly move a front; their time is worth more in promotion.
MAX_JUDGED = 20_000
# Shares suit minutes on small sets. Where a budget is larger, the phases get what they need.
# Shared weights have seen enough after as many epochs as a network alone (SPOS takes 120, BigNAS
# 360, AutoFormer 500); small sets need steps, not epochs.
MAX_SUPERNET_EPOCHS = 300
LEAST_CAPPED_STEPS = 20_000
# Of one device, in steps that all take together; beyond the most, large batches cost accuracy.
SUPERNET_SHARD, MAX_SUPERNET_BATCH = 64, 4_096


def make_plan(
    *,
    budget_seconds: float,
    devices: int,
    measured_seconds: float,
    supernet_step: float,
    trial_step_seconds: Sequence[tuple[int, float]],
    judge_seconds: float,
    steps_per_epoch: int,
    max_epochs: int,
    retrain_steps: int,
    fixed_shares: Mapping[str, float] | None = None,
    strategy: str = "supernet",
    train_images: int = 0,
    supernet_batch: int = SUPERNET_SHARD,
    longest_epochs: int | None = None,
    most_trial_devices: int = 1,
    recipe_epochs: int = 0,
) -> Plan:
    """Split a budget.

    Small budgets are split by shares. Where that would give a phase more than it has a use for, or
    trials could be long, the plan comes from what the phases need: a supernet of a few hundred
    epochs, twenty thousand judgements, and what is left for fewer, longer, larger trainings.

    Args:
        budget_seconds: Device-seconds.
        devices: Devices (or cores).
        measured_seconds: Device-seconds that measuring took (or will take).
        supernet_step: Device-seconds of a step of the supernet, where there is one.
        trial_step_seconds: (MACs, seconds) of a training step alone, on one device.
        judge_seconds: Of one evaluation, on one device, where networks are judged untrained.
        steps_per_epoch: Of a network that is trained alone.
        max_epochs: The most epochs that a network is trained during a small search.
        retrain_steps: Steps of a full retraining.
        fixed_shares: Shares of phases that the user fixed.
        strategy: One of `SHARES`.
        train_images: Of an epoch; 0 where that is not known, for a plan by shares alone.
        supernet_batch: Images of a step of the supernet.
        longest_epochs: Likewise where the budget is large; None takes ``max_epochs``.
        most_trial_devices: That may train one network together.
        recipe_epochs: Of the full recipe, towards which a few networks are trained on; 0 for none.

    Raises:
        ValueError: If the budget is too small for one step of each phase, or a share is wrong.
    """
    costs = StepModel(trial_step_seconds)
    epoch_seconds = costs(mean_macs(trial_step_seconds)) * steps_per_epoch
    shares = BudgetShares(
        budget_seconds=budget_seconds,
        measured_seconds=measured_seconds,
        by_phase=split_shares(budget_seconds, fixed_shares or {}, strategy=strategy),
        fixed=set(fixed_shares or {}),
    )
    climb, has_trust = climbing_phase(strategy), "trust" in shares.by_phase
    has_supernet = "supernet" in shares.by_phase
    most_steps = _most_supernet_steps(train_images, supernet_batch) if has_supernet else 0
    if climb == "promote":
        shares = shares.give_spare(_needs(most_steps, supernet_step, judge_seconds), to=climb)
    rungs = choose_rungs(
        climb_seconds=shares.seconds(climb),
        trust_seconds=shares.seconds("trust") if has_trust else None,
        epoch_seconds=epoch_seconds,
        train_images=train_images,
        devices=devices,
        max_epochs=max_epochs,
        longest_epochs=longest_epochs or max_epochs,
        most_trial_devices=most_trial_devices,
    )
    trial_seconds, trust_seconds = (
        epochs * epoch_seconds for epochs in (rungs.epochs[-1], rungs.trust_epochs)
    )
    passes = shares.seconds("trust") / epoch_seconds if has_trust else 0.0
    num_trust = count_trust(rungs, passes, devices=devices)
    if rungs.are_large and has_trust:
        shares = shares.give_spare({"trust": num_trust * trust_seconds}, to=climb)
    horizon = choose_horizon(
        rungs,
        recipe_epochs=recipe_epochs,
        limit_seconds=shares.horizon_limit(climb),
        epoch_seconds=epoch_seconds,
        num_trust=num_trust,
        devices=min(most_trial_devices, devices),
    )
    shares = shares.give_horizon(horizon.seconds if horizon else 0.0, climb=climb)
    least = {"search": judge_seconds, "supernet": 2 * supernet_step, climb: trial_seconds}
    least |= {"library": 2 * supernet_step, "score": judge_seconds}
    _refuse_too_little(shares, least, epoch_seconds=epoch_seconds)
    steps = int(shares.seconds("supernet") / supernet_step) if has_supernet else 0
    macs = [point[0] for point in trial_step_seconds]
    return Plan(
        budget_seconds=budget_seconds,
        devices=devices,
        spent_by_end=shares.ends(),
        supernet_steps=min(steps, most_steps or steps),
        judge_seconds=judge_seconds,
        trial_epochs=rungs.epochs[-1],
        trial_steps=rungs.epochs[-1] * steps_per_epoch,
        rungs=rungs.epochs,
        num_trust=num_trust,
        # Every rung takes the same time: a third as many networks for three times as long.
        num_promoted=int(shares.seconds(climb) / trial_seconds / len(rungs.epochs)),
        num_judged=int(shares.seconds("search") / judge_seconds) if climb == "promote" else 0,
        step_seconds=tuple(trial_step_seconds),
        retrain_seconds=(costs(min(macs)) * retrain_steps, costs(max(macs)) * retrain_steps),
        strategy=strategy,
        rung_images=rungs.images,
        rung_devices=rungs.devices,
        trust_epochs=rungs.trust_epochs,
        train_images=train_images,
        supernet_batch=supernet_batch if train_images else 0,
        most_supernet_steps=most_steps,
        is_large=rungs.are_large,
        horizon_epochs=horizon.epochs if horizon else 0,
        num_horizon=horizon.num_networks if horizon else 0,
        horizon_devices=horizon.devices if horizon else 1,
        recipe_epochs=recipe_epochs,
    )


def _most_supernet_steps(train_images: int, supernet_batch: int) -> int:
    """Return the steps after which shared weights have seen enough; 0: that is not known."""
    if not train_images:
        return 0
    return int(max(MAX_SUPERNET_EPOCHS * train_images / supernet_batch, LEAST_CAPPED_STEPS))


def _needs(most_steps: int, supernet_step: float, judge_seconds: float) -> dict[str, float]:
    """Return the device-seconds beyond which phases have no use for more."""
    judging = max(MAX_JUDGED * judge_seconds, MIN_FINISH_SECONDS)
    # One step more, so that rounding takes none away.
    training = (most_steps + 1) * supernet_step if most_steps else math.inf
    return {"search": judging, "finish": judging, "supernet": training}


def _refuse_too_little(
    shares: BudgetShares, least: Mapping[str, float], *, epoch_seconds: float
) -> None:
    """Refuse a budget that leaves a phase less than one unit of its work.

    Args:
        shares: Of the phases.
        least: Device-seconds of that unit, by phase.
        epoch_seconds: Of a middling network alone.
    """
    if all(shares.seconds(phase) >= least.get(phase, -math.inf) for phase in shares.by_phase):
        return
    needed = max(
        (least.get(phase, 0.0) + shares.measured_in(phase)) / max(share, 1e-9)
        for phase, share in shares.by_phase.items()
    )
    raise ValueError(
        f"A budget of {shares.budget_seconds:.0f} device-seconds is too small: measuring takes "
        f"{shares.measured_seconds:.2g} of them, and an epoch of a network alone takes "
        f"{epoch_seconds:.2g} s here. Give at least {needed:.0f} device-seconds, a smaller "
        "space or a smaller --img-size."
    )


def supernet_batch(devices: int, shard: int = SUPERNET_SHARD) -> int:
    """Return the images of a step of the supernet: a shard a device, within reason."""
    return min(shard * devices, max(MAX_SUPERNET_BATCH, shard))
