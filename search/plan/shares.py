"""How a budget is shared among the phases of a strategy."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

HORIZON = "horizon"
# Shares of the budget by strategy, for the phases that it has. What measuring took comes off the
# first phase's share, what a phase leaves over falls to the next ones; `finish` checks the
# extraction and spends the rest on judging.
SHARES: Mapping[str, Mapping[str, float]] = {
    "supernet": {"supernet": 0.36, "trust": 0.16, "search": 0.12, "promote": 0.33, "finish": 0.03},
    "proxy": {"search": 1.0},
    "zero-cost": {"trust": 0.35, "search": 0.1, "promote": 0.55},
    "graft": {"library": 0.3, "score": 0.12, "trust": 0.2, "search": 0.06, "promote": 0.32},
}
# Phases that may have no share: all but these give what the next ones need.
MAY_BE_EMPTY = ("trust", HORIZON, "finish")
# What the horizon may take of the budget, and of the phase in which networks go up the rungs.
HORIZON_SHARE, HORIZON_CLIMB_SHARE = 0.12, 1 / 3
# What the budget pays for; retraining has a ledger of its own. The horizon has no share above: a
# plan with time for it takes it from the phase in which networks go up the rungs.
PHASES = (
    "measure",
    "library",
    "score",
    "supernet",
    "trust",
    HORIZON,
    "search",
    "promote",
    "finish",
)

# The finish starts a worker, which takes seconds however small the budget is.
MIN_FINISH_SECONDS = 12.0


def climbing_phase(strategy: str) -> str:
    """Name the phase in which networks that train alone go up the rungs."""
    return "promote" if "promote" in SHARES[strategy] else "search"


def split_shares(
    budget_seconds: float, fixed: Mapping[str, float], *, strategy: str = "supernet"
) -> dict[str, float]:
    """Return the shares of a strategy's phases: the fixed ones as they are, others in proportion.

    The finish gets more where the budget is small.

    Raises:
        ValueError: For an unknown phase, shares that leave nothing for the others, or none for a
            phase that a run cannot do without.
    """
    planned = dict(SHARES[strategy])
    if HORIZON in fixed:
        planned = _with_horizon(planned, fixed[HORIZON])
    unknown = sorted(set(fixed) - set(planned))
    wrong = {name: share for name, share in fixed.items() if not 0 <= share < 1}
    if unknown or wrong or sum(fixed.values()) >= 1 or set(fixed) == set(planned):
        given = ", ".join(f"{name}={share:g}" for name, share in fixed.items())
        names = ", ".join(_with_horizon(planned, 0.0))
        raise ValueError(
            f"With --strategy {strategy}, shares are given to {names}, each from 0 "
            f"to below 1, and leave something for the other phases; got {given}."
        )
    if empty := [name for name, share in fixed.items() if not share and name not in MAY_BE_EMPTY]:
        raise ValueError(
            f"A run cannot do without its phase {empty[0]}, got the share {empty[0]}=0. Give it "
            f"more than 0; only {', '.join(MAY_BE_EMPTY)} may have 0."
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


def _with_horizon(shares: Mapping[str, float], share: float) -> dict[str, float]:
    """Put the horizon behind the trust phase, whose networks it trains on; without one at the end.

    There it is behind the climb.
    """
    behind = "trust" if "trust" in shares else next(reversed([*shares]))
    found: dict[str, float] = {}
    for phase, value in shares.items():
        found[phase] = value
        if phase == behind:
            found[HORIZON] = share
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetShares:
    """A budget that is shared among phases.

    Attributes:
        budget_seconds: Device-seconds.
        measured_seconds: Of them, what measuring takes; it comes off the first phase.
        by_phase: The shares, in the order of the phases.
        fixed: Phases whose share the user fixed.
    """

    budget_seconds: float
    measured_seconds: float
    by_phase: Mapping[str, float]
    fixed: Collection[str] = ()

    def measured_in(self, phase: str) -> float:
        """Return what measuring takes of a phase."""
        return self.measured_seconds if phase == next(iter(self.by_phase)) else 0.0

    def seconds(self, phase: str) -> float:
        """Return the device-seconds that a phase works for; none where there is no such phase."""
        return self.by_phase.get(phase, 0.0) * self.budget_seconds - self.measured_in(phase)

    def give_spare(self, needs: Mapping[str, float], *, to: str) -> BudgetShares:
        """Move what phases have beyond their needs to another; what the user fixed stays.

        Args:
            needs: Device-seconds that phases work for.
            to: The phase that gets the rest.
        """
        if to in self.fixed:
            return self
        shares = dict(self.by_phase)
        for phase in (name for name in needs if name in shares and name not in self.fixed):
            needed = (self.measured_in(phase) + needs[phase]) / self.budget_seconds
            spare = max(shares[phase] - needed, 0.0)
            shares[phase] -= spare
            shares[to] += spare
        return replace(self, by_phase=shares)

    def horizon_limit(self, climb: str) -> float:
        """Return the device-seconds that the horizon may take; what the user fixed is that.

        Args:
            climb: The phase that it takes them from.
        """
        if HORIZON in self.by_phase:
            return self.seconds(HORIZON)
        if climb in self.fixed:
            return 0.0
        return min(HORIZON_SHARE * self.budget_seconds, HORIZON_CLIMB_SHARE * self.seconds(climb))

    def give_horizon(self, seconds: float, *, climb: str) -> BudgetShares:
        """Give the horizon its device-seconds; with 0 there is no such phase, and no share of it.

        Args:
            climb: The phase that they come from, unless the user fixed the horizon's share.
        """
        shares = dict(self.by_phase)
        fixed = shares.pop(HORIZON, None)
        if not seconds:
            # What the user fixed stays, and something is left for other phases: see `split_shares`.
            others = [name for name in shares if name not in self.fixed]
            takers = others if climb in self.fixed else [climb]
            whole = sum(shares[name] for name in takers)
            more = {name: shares[name] * (fixed or 0.0) / whole for name in takers}
            by_phase = {name: share + more.get(name, 0.0) for name, share in shares.items()}
            return replace(self, by_phase=by_phase)
        if fixed is not None:
            return self
        share = seconds / self.budget_seconds
        shares[climb] -= share
        return replace(self, by_phase=_with_horizon(shares, share))

    def ends(self) -> dict[str, float]:
        """Return the device-seconds spent when each phase ends."""
        sums = itertools.accumulate(s * self.budget_seconds for s in self.by_phase.values())
        return dict(zip(self.by_phase, sums, strict=True))
