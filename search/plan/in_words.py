"""A plan in words: what each phase does, what more budget would add, and what is not sensible."""

from __future__ import annotations

from collections.abc import Iterator

from search.plan.plan import Plan
from search.plan.rungs import ETA, TRIAL_WALL_SHARE
from search.plan.shares import HORIZON, climbing_phase
from searchspace.quantity import counted

# With fewer epochs than that, inherited weights are hardly trained.
FEW_EPOCHS = 20
# Fewer than that on the highest rung, and the front is drawn by chance.
FEW_PROMOTED = 5
# More of them than that tell nothing new.
MANY_PROMOTED = 1_000
# A device waits where it could work this much faster than its images are made.
FEED_MARGIN = 1.1


def device_rate(plan: Plan) -> float:
    """Return the images a second of one device that trains a middling network alone."""
    seconds = plan.trial_seconds(plan.rungs[-1]) / plan.rungs[-1]
    return plan.train_images / seconds if plan.train_images else 0.0


def wall_seconds(plan: Plan) -> dict[str, float]:
    """Return for each phase the seconds that it takes where all devices have work."""
    return {phase: seconds / plan.devices for phase, seconds in plan.planned.items()}


def idle_devices(plan: Plan) -> dict[str, int]:
    """Return for each phase how many devices can have no part in it."""
    most = {
        "trust": plan.num_trust * plan.devices_of(plan.trust_rung),
        HORIZON: plan.num_horizon * plan.horizon_devices,
        climbing_phase(plan.strategy): sum(
            number * plan.devices_of(epochs) for number, epochs in promoted(plan)
        ),
    }
    if plan.supernet_batch:
        most["supernet"] = plan.supernet_batch
    return {
        phase: max(plan.devices - most.get(phase, plan.devices), 0) for phase in plan.spent_by_end
    }


def promoted(plan: Plan) -> list[tuple[int, int]]:
    """Return for each rung, ascending, how many networks reach it, and its epochs."""
    higher = len(plan.rungs) - 1
    return [
        (plan.num_promoted * ETA ** (higher - rung), epochs)
        for rung, epochs in enumerate(plan.rungs)
    ]


def library_text(plan: Plan) -> str:
    """Say what the parts of a graft learn, and on what images beside those with classes."""
    more = f", also on {plan.num_unlabelled:,} images without classes" * bool(plan.num_unlabelled)
    return f"parts learn to do what the teacher's blocks do{more}"


def supernet_text(plan: Plan) -> str:
    """Say how long the shared weights are trained: in epochs, where the images are known."""
    if not plan.supernet_batch:
        return f"{plan.supernet_steps:,} steps of the shared weights"
    return (
        f"{_number(plan.supernet_epochs)} epochs of the shared weights, batch "
        f"{plan.supernet_batch:,}"
    )


def climbing_text(plan: Plan) -> str:
    """Say how many networks go up the rungs: ``about 90 networks for 10 epochs, 30 for 30``."""
    first, *others = [f"{number:,} {_rung_text(plan, epochs)}" for number, epochs in promoted(plan)]
    head, _, tail = first.partition(" ")
    return ", ".join([f"about {head} networks alone {tail}", *others])


def _rung_text(plan: Plan, epochs: int) -> str:
    share, devices = plan.images_of(epochs), plan.devices_of(epochs)
    part = "" if share == 1 else f" of {100 * share:.0f} % of the images"
    together = "" if devices == 1 else f" on {devices} devices each"
    return f"for {counted(epochs, 'epoch')}{part}{together}"


def horizon_text(plan: Plan) -> str:
    """Say how far networks are trained on: ``5 of them on for 20 epochs, of 80 of the recipe``."""
    which = "of them on" if plan.num_trust else "networks on"
    return (
        f"{plan.num_horizon} {which} for {plan.horizon_epochs} epochs, of {plan.recipe_epochs} of "
        "the full recipe"
    )


def more_text(plan: Plan, more: Plan) -> str:
    """Say what a plan of a larger budget has more, and what stays as it is."""
    pairs = [
        (supernet_text(plan), supernet_text(more)) if plan.supernet_steps else ("", ""),
        (f"{plan.num_judged:,} judged", f"{more.num_judged:,} judged"),
        (climbing_text(plan), climbing_text(more)),
    ]
    grown = [f"{after} instead of {before}" for before, after in pairs if before != after]
    return "; ".join(grown) or "nothing: every phase has what it needs"


def plan_warnings(plan: Plan, *, feed_rate: float = 0.0) -> list[str]:
    """Say what of a plan a researcher would not sign, a sentence each, with the remedy.

    Args:
        plan: As it will be followed.
        feed_rate: Images a second that one device's processes make; 0 where that is not known.
    """
    return list(_warnings(plan, feed_rate))


def _warnings(plan: Plan, feed_rate: float) -> Iterator[str]:
    if plan.supernet_batch and plan.supernet_steps and plan.supernet_epochs < FEW_EPOCHS:
        yield (
            f"The supernet sees every image {_number(plan.supernet_epochs)} times, fewer than "
            f"{FEW_EPOCHS}: its weights will rank networks badly. Give more budget, a smaller "
            "space or smaller images, or --strategy proxy."
        )
    if plan.num_promoted > MANY_PROMOTED:
        yield (
            f"{plan.num_promoted:,} networks are trained for the longest time: these images have "
            "no use for so much. Give less budget."
        )
    idle = idle_devices(plan)
    for phase, number in idle.items():
        # Its few networks are known to leave devices idle on a large machine, for a short time.
        if number and phase != HORIZON:
            yield (
                f"In the phase {phase} {number} of {plan.devices} devices have nothing to do: "
                "there are more devices than work. Use fewer devices, or give more budget."
            )
    if plan.num_promoted < FEW_PROMOTED:
        yield (
            f"Only {plan.num_promoted} networks reach the longest training, fewer than "
            f"{FEW_PROMOTED}: the front will be drawn by chance. Give more budget."
        )
    top = plan.rungs[-1]
    wall = plan.trial_seconds(top) / plan.devices_of(top)
    lasts = wall_seconds(plan)[climbing_phase(plan.strategy)]
    if wall > 2 * TRIAL_WALL_SHARE * lasts:
        yield (
            f"A training of {top} epochs takes {wall / 3600:.1f} h of the {lasts / 3600:.1f} h of "
            "its phase: devices will wait for the last ones. Use fewer devices for longer."
        )
    rate = device_rate(plan)
    if feed_rate and rate > FEED_MARGIN * feed_rate:
        yield (
            f"A device could train on {rate:,.0f} images/s, and its processes make "
            f"{feed_rate:,.0f}: it will wait for images. Use decoded images or more cores."
        )


def _number(epochs: float) -> str:
    return f"{epochs:,.0f}" if epochs >= 10 else f"{epochs:.1f}"
