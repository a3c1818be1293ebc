"""What a budget buys: the shares of the phases, and the work that fits in each.

Pure arithmetic on measured times (`StepTimes`), so that the
same numbers are printed by ``search plan`` and followed by ``search run``.
"""

from __future__ import annotations

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
    """

    supernet_step: float
    trial_steps: tuple[tuple[int, float], ...]
    judge: float
    steps_per_epoch: int
    device_name: str = ""
    measured_seconds: float = 0.0


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
) -> Plan:
    """Split a budget.

    Args:
        budget_seconds: Device-seconds.
        devices: Devices (or cores).
        measured_seconds: Device-seconds that measuring took (or will take).
        supernet_step: Device-seconds of a step of the supernet, where there is one.
        trial_step_seconds: (MACs, seconds) of a training step alone, on one device.
        judge_seconds: Of one evaluation, on one device, where networks are judged untrained.
        steps_per_epoch: Of a network that is trained alone.
        max_epochs: The most epochs that a network is trained during the search.
        retrain_steps: Steps of a full retraining.
        fixed_shares: Shares of phases that the user fixed.
        strategy: One of `SHARES`.

    Raises:
        ValueError: If the budget is too small for one step of each phase, or a share is wrong.
    """
    shares = split_shares(budget_seconds, fixed_shares or {}, strategy=strategy)
    climb = climbing_phase(strategy)
    for phase in ("search", "finish") if climb == "promote" else ():
        if phase in shares and not {phase, "promote"} & set(fixed_shares or {}):
            needed = max(MAX_JUDGED * judge_seconds, MIN_FINISH_SECONDS)
            spare = max(shares[phase] - needed / budget_seconds, 0.0)
            shares[phase] -= spare
            shares["promote"] += spare
    epoch_seconds = StepModel(trial_step_seconds)(_mean_macs(trial_step_seconds)) * steps_per_epoch
    seconds = {phase: share * budget_seconds for phase, share in shares.items()}
    seconds[next(iter(shares))] -= measured_seconds
    trials_seconds = seconds.get("trust", 0.0) + seconds[climb]
    fewest = max(MIN_TRUST + MIN_PROMOTED, MIN_WAVES * devices)
    epochs = int(trials_seconds / (fewest * epoch_seconds))
    epochs = max(1, min(epochs, max_epochs))
    trial_seconds = epochs * epoch_seconds
    num_trust = max(int(seconds.get("trust", 0.0) / trial_seconds), 0)
    rungs = _rungs(epochs, seconds[climb] / trial_seconds)
    # Every rung takes the same time: a third as many networks for three times as long.
    num_promoted = int(seconds[climb] / trial_seconds / len(rungs))
    least = {climb: trial_seconds}
    steps = num_judged = 0
    if climb == "promote":
        least["search"] = judge_seconds
        num_judged = int(seconds["search"] / judge_seconds)
    if "supernet" in shares:
        least["supernet"] = 2 * supernet_step
        steps = int(seconds["supernet"] / supernet_step)
    if any(seconds[phase] < unit for phase, unit in least.items()):
        least[next(iter(shares))] = least.get(next(iter(shares)), 0.0) + measured_seconds
        needed = max(unit / max(shares[phase], 1e-9) for phase, unit in least.items())
        raise ValueError(
            f"A budget of {budget_seconds:.0f} device-seconds is too small: measuring takes "
            f"{measured_seconds:.2g} of them, and an epoch of a network alone takes "
            f"{epoch_seconds:.2g} s here. Give at least {needed:.0f} device-seconds, a smaller "
            "space or a smaller --img-size."
        )
    spent, until = 0.0, {}
    for phase, share in shares.items():
        spent += share * budget_seconds
        until[phase] = spent
    costs = StepModel(trial_step_seconds)
    macs = [point[0] for point in trial_step_seconds]
    return Plan(
        budget_seconds=budget_seconds,
        devices=devices,
        until=until,
        supernet_steps=steps,
        judge_seconds=judge_seconds,
        trial_epochs=epochs,
        trial_steps=epochs * steps_per_epoch,
        rungs=rungs,
        num_trust=min(num_trust, max(MAX_TRUST, devices)),
        num_promoted=num_promoted,
        num_judged=num_judged,
        step_seconds=tuple(trial_step_seconds),
        retrain_seconds=(costs(min(macs)) * retrain_steps, costs(max(macs)) * retrain_steps),
        strategy=strategy,
    )


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
