"""What a budget buys: the shares of the phases, and the work that fits in each.

Pure arithmetic on measured times (`StepTimes`), so that the
same numbers are printed by ``search plan`` and followed by ``search run``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

# Shares of the budget by strategy, for the phases that it has. What measuring took comes off the
# first phase's share, what a phase leaves over falls to the next ones; `finish` checks the
# extraction and spends the rest on judging.
SHARES: Mapping[str, Mapping[str, float]] = {
    "supernet": {"supernet": 0.36, "trust": 0.16, "search": 0.12, "promote": 0.33, "finish": 0.03},
    "proxy": {"search": 1.0},
    "zero-cost": {"trust": 0.35, "search": 0.1, "promote": 0.55},
}
# What the budget pays for; retraining has a ledger of its own.
PHASES = ("measure", *SHARES["supernet"])

# The finish starts a worker, which takes seconds however small the budget is.
MIN_FINISH_SECONDS = 12.0
# Starts differ, and the judge works for a moment once it has started.
START_RESERVE = 1.5
# Without a finish, trials that still run near the end are told so much earlier, on each device.
END_SECONDS, END_SHARE = 2.0, 0.01
MIN_PROMOTED = 10
# As many as a ranking of estimators needs (`search.trust.ranking.MIN_POINTS`).
MIN_TRUST = 5
# And as many as there are devices, which would be idle.
MAX_TRUST = 24
# More judgements hardly move a front; their time is worth more in promotion.
MAX_JUDGED = 20_000
# On a large cluster a trial is short enough for this many, one after the other, on each device:
# else most devices would have nothing to do for most of the time.
MIN_WAVES = 2
# Rungs of promotion, each this many times longer than the one below.
ETA = 3
MAX_RUNGS = 3

# Shares suit minutes on small sets. Where a budget is larger, the phases get what they need.
# Shared weights have seen enough after as many epochs as a network alone (SPOS takes 120, BigNAS
# 360, AutoFormer 500); small sets need steps, not epochs.
MAX_SUPERNET_EPOCHS = 300
LEAST_CAPPED_STEPS = 20_000
# Of one device, in steps that all take together; beyond the most, large batches cost accuracy.
SUPERNET_SHARD, MAX_SUPERNET_BATCH = 64, 4_096
# Trials that see so many images together can be long ones: so many networks go to the highest
# rung, for as long as there is time.
LARGE_IMAGES = 1e8
LONG_TOP = 12
MAX_EPOCHS = 300
# What the lowest rung of long trainings sees: fewer images, not smaller ones, because kernels and
# windows of other maps are other choices.
LOWEST_IMAGES = 0.25
# A trial takes at most so much of its phase, on as many devices as that needs.
TRIAL_WALL_SHARE = 0.25
# With fewer epochs than that, inherited weights are hardly trained.
FEW_EPOCHS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTimes:
    """Measured seconds on the machine at hand, with the threads of one worker.

    Attributes:
        supernet_step: One step of the shared weights, all its architectures on the whole batch; 0
            without a supernet.
        trial_steps: (MACs, seconds of one training step alone) of small, large and random subnets.
        judge: Seconds to judge one architecture without training it; 0 where that is not done.
        steps_per_epoch: Of a network that is trained alone.
        device_name: What it was measured on.
        measured_seconds: That measuring took, once the worker was ready.
        batch_size: Images of a training step alone; 0 where that was not written down.
        supernet_batch: Images of the step of the shared weights; 0 likewise.
        judged_images: Images that a judgement reads; 0 likewise.
        feed_rate: Images a second that the processes of one device make for a trial; 0 likewise.
        amp: Precision of a training step alone.
        versions: Of what was measured with, e.g. ``torch 2.11``.
        source: Of times that were not measured: what they are estimated from.
    """

    supernet_step: float
    trial_steps: tuple[tuple[int, float], ...]
    judge: float
    steps_per_epoch: int
    device_name: str = ""
    measured_seconds: float = 0.0
    batch_size: int = 0
    supernet_batch: int = 0
    judged_images: int = 0
    feed_rate: float = 0.0
    amp: str = ""
    versions: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The work that a budget is split into.

    Attributes:
        budget_seconds: Device-seconds asked for.
        devices: Devices (or cores) that work at the same time.
        until: For each phase the device-seconds that may be spent when it ends.
        supernet_steps: Length of the supernet's schedule.
        judge_seconds: Device-seconds of one evaluation with inherited weights.
        trial_epochs: Epochs of a network that is trained alone, on the highest rung.
        trial_steps: Its training steps.
        rungs: Epochs of the rungs of promotion, ascending; the last are ``trial_epochs``.
        num_trust: Expected number of networks in this phase.
        num_judged: Expected number of networks that are judged without training them.
        num_promoted: Expected number on the highest rung.
        rung_images: Share of the training images that each rung sees; empty: all of them.
        rung_devices: Devices that train one network together on each rung; empty: one.
        trust_epochs: Epochs of the rung on which the trust phase trains; 0 takes the highest.
        train_images: Images of an epoch; 0 where that is not known.
        supernet_batch: Images of a step of the supernet, over all devices; 0 likewise.
        most_supernet_steps: What its schedule may grow to; 0: it has no such limit.
        is_large: Whether the phases get what they need, instead of shares that suit minutes.
        step_seconds: Points (MACs, device-seconds of a training step alone), as measured.
        retrain_seconds: Device-seconds of a full retraining of the smallest and the largest.
        strategy: One of `SHARES`.
        shares: `planned`, where ``until`` has been revised.
    """

    budget_seconds: float
    devices: int
    until: Mapping[str, float]
    supernet_steps: int
    judge_seconds: float
    trial_epochs: int
    trial_steps: int
    rungs: tuple[int, ...]
    num_trust: int
    num_promoted: int
    num_judged: int
    step_seconds: tuple[tuple[int, float], ...]
    retrain_seconds: tuple[float, float]
    strategy: str = "supernet"
    shares: Mapping[str, float] = field(default_factory=dict)
    rung_images: tuple[float, ...] = ()
    rung_devices: tuple[int, ...] = ()
    trust_epochs: int = 0
    train_images: int = 0
    supernet_batch: int = 0
    most_supernet_steps: int = 0
    is_large: bool = False

    @property
    def trust_rung(self) -> int:
        """The epochs of a network of the trust phase."""
        return self.trust_epochs or self.trial_epochs

    @property
    def supernet_epochs(self) -> float:
        """How often the supernet sees every image; 0 where that is not known."""
        return self.supernet_steps * self.supernet_batch / max(self.train_images, 1)

    def images_of(self, epochs: int) -> float:
        """Return the share of the training images that the rung of so many epochs sees."""
        return dict(zip(self.rungs, self.rung_images, strict=False)).get(epochs, 1.0)

    def devices_of(self, epochs: int) -> int:
        """Return how many devices train one network of the rung of so many epochs."""
        return dict(zip(self.rungs, self.rung_devices, strict=False)).get(epochs, 1)

    def trial_seconds(self, epochs: int, macs: float | None = None) -> float:
        """Predict the device-seconds of a training on the rung of so many epochs."""
        model = StepModel(self.step_seconds)
        step = model(_mean_macs(self.step_seconds) if macs is None else macs)
        steps = self.trial_steps * epochs / self.trial_epochs
        return step * steps * self.images_of(epochs)

    @property
    def planned(self) -> Mapping[str, float]:
        """The device-seconds that each phase was planned to have in all."""
        if self.shares:
            return self.shares
        limits = self.until.values()
        return {
            name: limit - before
            for name, limit, before in zip(self.until, limits, [0.0, *limits], strict=False)
        }

    @property
    def last_call_seconds(self) -> float:
        """Device-seconds after which trials that still run must end, so that a judge can start."""
        if "finish" not in self.until:
            reserve = min(END_SECONDS * self.devices, END_SHARE * self.budget_seconds)
            return self.budget_seconds - reserve
        *_, before, end = self.until.values()
        return self.budget_seconds - min(end - before, MIN_FINISH_SECONDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class MorePlan:
    """What more budget would buy.

    Attributes:
        budget: How much more, for people.
        plan: As the run was planned.
        more: As it would be planned with so much more.
    """

    budget: str
    plan: Plan
    more: Plan


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

    Raises:
        ValueError: If the budget is too small for one step of each phase, or a share is wrong.
    """
    shares = split_shares(budget_seconds, fixed_shares or {}, strategy=strategy)
    climb, fixed = climbing_phase(strategy), set(fixed_shares or {})
    most_steps = 0
    if "supernet" in shares and train_images:
        epochs_of_steps = MAX_SUPERNET_EPOCHS * train_images / supernet_batch
        most_steps = int(max(epochs_of_steps, LEAST_CAPPED_STEPS))
    needs = {
        "search": max(MAX_JUDGED * judge_seconds, MIN_FINISH_SECONDS),
        "finish": max(MAX_JUDGED * judge_seconds, MIN_FINISH_SECONDS),
        # One step more, so that rounding takes none away.
        "supernet": measured_seconds + (most_steps + 1) * supernet_step if most_steps else math.inf,
    }
    if climb == "promote":
        _give_spare(shares, needs, to=climb, fixed=fixed, budget_seconds=budget_seconds)
    costs = StepModel(trial_step_seconds)
    epoch_seconds = costs(_mean_macs(trial_step_seconds)) * steps_per_epoch
    seconds = {phase: share * budget_seconds for phase, share in shares.items()}
    seconds[next(iter(shares))] -= measured_seconds
    ladder = _ladder(
        climb_seconds=seconds[climb],
        trust_seconds=seconds.get("trust", 0.0),
        epoch_seconds=epoch_seconds,
        train_images=train_images,
        devices=devices,
        max_epochs=max_epochs,
        longest_epochs=longest_epochs or max_epochs,
        most_trial_devices=most_trial_devices,
    )
    passes = (seconds.get("trust", 0.0) + seconds[climb]) / epoch_seconds
    is_large = passes * train_images >= LARGE_IMAGES
    if is_large and "trust" in shares:
        ladder = _trust_on(
            ladder,
            trust_seconds=seconds["trust"],
            epoch_seconds=epoch_seconds,
            most=devices,
        )
    trial_seconds = ladder.epochs[-1] * epoch_seconds
    trust_seconds = ladder.trust_epochs * epoch_seconds
    most_trust = max(MAX_TRUST, devices // ladder.devices_of(ladder.trust_epochs))
    num_trust = min(max(int(seconds.get("trust", 0.0) / trust_seconds), 0), most_trust)
    if is_large and "trust" in shares:
        needs = {"trust": num_trust * trust_seconds}
        if next(iter(shares)) == "trust":
            needs["trust"] += measured_seconds
        _give_spare(shares, needs, to=climb, fixed=fixed, budget_seconds=budget_seconds)
        seconds[climb] = shares[climb] * budget_seconds
    # Every rung takes the same time: a third as many networks for three times as long.
    num_promoted = int(seconds[climb] / trial_seconds / len(ladder.epochs))
    least = {climb: trial_seconds}
    steps = num_judged = 0
    if climb == "promote":
        least["search"] = judge_seconds
        num_judged = int(seconds["search"] / judge_seconds)
    if "supernet" in shares:
        least["supernet"] = 2 * supernet_step
        steps = int(seconds["supernet"] / supernet_step)
        steps = min(steps, most_steps or steps)
    if any(seconds[phase] < unit for phase, unit in least.items()):
        least[next(iter(shares))] = least.get(next(iter(shares)), 0.0) + measured_seconds
        needed = max(unit / max(shares[phase], 1e-9) for phase, unit in least.items())
        raise ValueError(
            f"A budget of {budget_seconds:.0f} device-seconds is too small: measuring takes "
            f"{measured_seconds:.2g} of them, and an epoch of a network alone takes "
            f"{epoch_seconds:.2g} s here. Give at least {needed:.0f} device-seconds, a smaller "
            "space or a smaller --img-size."
        )
    macs = [point[0] for point in trial_step_seconds]
    return Plan(
        budget_seconds=budget_seconds,
        devices=devices,
        until=_ends(shares, budget_seconds),
        supernet_steps=steps,
        judge_seconds=judge_seconds,
        trial_epochs=ladder.epochs[-1],
        trial_steps=ladder.epochs[-1] * steps_per_epoch,
        rungs=ladder.epochs,
        num_trust=num_trust,
        num_promoted=num_promoted,
        num_judged=num_judged,
        step_seconds=tuple(trial_step_seconds),
        retrain_seconds=(costs(min(macs)) * retrain_steps, costs(max(macs)) * retrain_steps),
        strategy=strategy,
        rung_images=ladder.images,
        rung_devices=ladder.devices,
        trust_epochs=ladder.trust_epochs,
        train_images=train_images,
        supernet_batch=supernet_batch if train_images else 0,
        most_supernet_steps=most_steps,
        is_large=is_large,
    )


def _ends(shares: Mapping[str, float], budget_seconds: float) -> dict[str, float]:
    """Return the device-seconds spent when each phase ends."""
    sums = itertools.accumulate(share * budget_seconds for share in shares.values())
    return dict(zip(shares, sums, strict=True))


def _give_spare(
    shares: dict[str, float],
    needs: Mapping[str, float],
    *,
    to: str,
    fixed: Collection[str],
    budget_seconds: float,
) -> None:
    """Move what phases have beyond their needs to another; what the user fixed stays."""
    if to in fixed:
        return
    for phase in (name for name in needs if name in shares and name not in fixed):
        spare = max(shares[phase] - needs[phase] / budget_seconds, 0.0)
        shares[phase] -= spare
        shares[to] += spare


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ladder:
    """The rungs of promotion, ascending; see `Plan`."""

    epochs: tuple[int, ...]
    trust_epochs: int
    images: tuple[float, ...] = ()
    devices: tuple[int, ...] = ()

    def devices_of(self, epochs: int) -> int:
        return dict(zip(self.epochs, self.devices, strict=False)).get(epochs, 1)


def _ladder(
    *,
    climb_seconds: float,
    trust_seconds: float,
    epoch_seconds: float,
    train_images: int,
    devices: int,
    max_epochs: int,
    longest_epochs: int,
    most_trial_devices: int,
) -> _Ladder:
    """Choose the rungs: short trainings where there is little time, else few and long ones."""
    fewest = max(MIN_TRUST + MIN_PROMOTED, MIN_WAVES * devices)
    epochs = int((trust_seconds + climb_seconds) / (fewest * epoch_seconds))
    epochs = max(1, min(epochs, max_epochs))
    longest = 0
    if (trust_seconds + climb_seconds) / epoch_seconds * train_images >= LARGE_IMAGES:
        # Of what the phase takes on the clock, a trial on all the devices that it may have.
        wall = climb_seconds / devices * TRIAL_WALL_SHARE * most_trial_devices / epoch_seconds
        affordable = climb_seconds / (MAX_RUNGS * LONG_TOP * epoch_seconds)
        longest = int(min(affordable, wall, longest_epochs, MAX_EPOCHS))
    if longest <= epochs:
        rungs = _rungs(epochs, climb_seconds / (epochs * epoch_seconds))
        return _Ladder(epochs=rungs, trust_epochs=epochs)
    rungs = _rungs(longest, climb_seconds / (longest * epoch_seconds))
    images, trust_epochs = (1.0,) * len(rungs), longest
    if longest >= ETA**MAX_RUNGS:  # else a part of the images is less than a few epochs of all
        middle = longest // ETA
        rungs = (min(int(longest // ETA**2 / LOWEST_IMAGES), middle - 1), middle, longest)
        images, trust_epochs = (LOWEST_IMAGES, 1.0, 1.0), middle
    limit = climb_seconds / devices * TRIAL_WALL_SHARE
    return _Ladder(
        epochs=rungs,
        trust_epochs=trust_epochs,
        images=images,
        devices=tuple(
            _devices_for(e * share * epoch_seconds, limit, min(most_trial_devices, devices))
            for e, share in zip(rungs, images, strict=True)
        ),
    )


def _trust_on(ladder: _Ladder, *, trust_seconds: float, epoch_seconds: float, most: int) -> _Ladder:
    """Let a large plan rank on the highest rung on which every device has a network.

    Rungs that see a part of the images are none for it: those are to rank other networks by.
    """
    full = [e for e, share in zip(ladder.epochs, ladder.images or (), strict=False) if share == 1]
    rungs = full or list(ladder.epochs)
    fitting = [
        epochs
        for epochs in rungs
        if epochs <= ladder.trust_epochs
        and trust_seconds / (epochs * epoch_seconds) >= most // ladder.devices_of(epochs)
    ]
    return replace(ladder, trust_epochs=max(fitting, default=min(rungs)))


def _devices_for(seconds: float, limit_seconds: float, most: int) -> int:
    """Return the fewest devices, a power of two, on which a training ends within a limit."""
    devices = 1
    while devices * 2 <= most and seconds / devices > limit_seconds:
        devices *= 2
    return devices


def supernet_batch(devices: int, shard: int = SUPERNET_SHARD) -> int:
    """Return the images of a step of the supernet: a shard a device, within reason."""
    return min(shard * devices, max(MAX_SUPERNET_BATCH, shard))


def climbing_phase(strategy: str) -> str:
    """Name the phase in which networks that train alone go up the rungs."""
    return "promote" if "promote" in SHARES[strategy] else "search"


def split_shares(
    budget_seconds: float, fixed: Mapping[str, float], *, strategy: str = "supernet"
) -> dict[str, float]:
    """Return the shares of a strategy's phases: the fixed ones as they are, others in proportion.

    The finish gets more where the budget is small.

    Raises:
        ValueError: For an unknown phase, or shares that leave nothing for the others.
    """
    planned = SHARES[strategy]
    unknown = sorted(set(fixed) - set(planned))
    wrong = {name: share for name, share in fixed.items() if not 0 <= share < 1}
    if unknown or wrong or sum(fixed.values()) >= 1 or set(fixed) == set(planned):
        given = ", ".join(f"{name}={share:g}" for name, share in fixed.items())
        raise ValueError(
            f"With --strategy {strategy}, shares are given to {', '.join(planned)}, each from 0 "
            f"to below 1, and leave something for the other phases; got {given}."
        )
    shares = dict(planned) | dict(fixed)
    left = 1 - sum(fixed.values())
    kept = set(fixed)
    if "finish" in planned and "finish" not in fixed:
        least = max(planned["finish"], MIN_FINISH_SECONDS / budget_seconds)
        shares["finish"] = min(least, left / 2)
        kept.add("finish")
    others = sum(share for phase, share in planned.items() if phase not in kept)
    free = 1 - sum(shares[phase] for phase in kept)
    if not others:
        return shares | {"finish": shares["finish"] + free}
    return {
        phase: share if phase in kept else share * free / others for phase, share in shares.items()
    }


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
    names = list(plan.until)
    coming = names[names.index(after) + 1 :]
    # Of what was planned at first: a plan that was revised has what a phase used before in it.
    wanted = {name: max(plan.planned[name] - spent.get(name, 0.0), 0.0) for name in coming}
    if "finish" in wanted:
        wanted["finish"] = max(wanted["finish"], START_RESERVE * start_seconds)
    total = sum(spent.get(name, 0.0) for name in PHASES)
    left = max(plan.budget_seconds - total, 0.0)
    # The finish needs its seconds, however little is left for the others.
    amounts = _hand_out(left, wanted, kept={*fixed, "finish"})
    until = dict.fromkeys(names[: names.index(after) + 1], total)
    for name in coming:
        total += amounts[name]
        until[name] = total
    numbers: dict[str, Any] = {}
    climb = climbing_phase(plan.strategy)
    if trial_seconds and climb in coming:
        numbers["num_promoted"] = int(amounts[climb] / trial_seconds / len(plan.rungs))
    if judge_seconds and "search" in coming and climb != "search":
        numbers["judge_seconds"] = judge_seconds
        numbers["num_judged"] = int(amounts["search"] / judge_seconds)
    return replace(plan, until=until, shares=plan.planned, **numbers)


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


def _rungs(epochs: int, num_trials: float) -> tuple[int, ...]:
    """Return as many rungs as leave enough networks on the highest, ascending.

    Args:
        epochs: Of the highest rung.
        num_trials: How many full trials there is time for.
    """
    count = 1
    while count < MAX_RUNGS and (
        epochs >= ETA**count and num_trials / (count + 1) >= 2 * MIN_PROMOTED
    ):
        count += 1
    return tuple(epochs // ETA**below for below in reversed(range(count)))


class StepModel:
    """Predict the seconds of a training step from MACs: a line through measured points."""

    def __init__(self, points: Sequence[tuple[int, float]]) -> None:
        macs: tuple[int, ...]
        seconds: tuple[float, ...]
        macs, seconds = zip(*points, strict=True)
        mean_macs, mean_seconds = sum(macs) / len(macs), sum(seconds) / len(seconds)
        spread = sum((m - mean_macs) ** 2 for m in macs)
        shared = sum((m - mean_macs) * (s - mean_seconds) for m, s in points)
        self._slope = max(shared / spread, 0.0) if spread else 0.0
        self._start = mean_seconds - self._slope * mean_macs
        self._least = min(seconds) / 2

    def __call__(self, macs: float) -> float:
        """Return seconds; never less than half of the quickest measured step."""
        return max(self._start + self._slope * macs, self._least)


def _mean_macs(points: Sequence[tuple[int, float]]) -> float:
    return sum(macs for macs, _ in points) / len(points)
