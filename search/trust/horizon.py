"""Does the order of short trainings last? Measured on networks of several lengths of training.

People train for hundreds of epochs, and a search for a few: what learns fastest wins. So the run
compares the order of networks at each of its lengths with that at the longest, and says what their
curves foretell of the full recipe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from search.plan import HORIZON
from search.record import Trial
from search.results import (
    CurveModel,
    HeldOut,
    LaterOrder,
    curves_of,
    forecast_held_out,
    learnable,
    trained_alone,
)
from search.trust.ranking import MIN_POINTS, KendallTau, kendall_tau_interval
from searchspace.architecture import Architecture
from searchspace.quantity import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class RungOrder:
    """How the order after some epochs agrees with that after the most.

    Attributes:
        epochs: Of the shorter trainings.
        tau: Over the networks that were trained for both.
    """

    epochs: int
    tau: KendallTau


@dataclass(frozen=True, kw_only=True, slots=True)
class HorizonReport:
    """What a run knows of longer trainings than its search has.

    Attributes:
        longest: Epochs of the longest trainings of enough networks.
        recipe_epochs: Of the full recipe; 0 where they are not known.
        num_kinds: Kinds of mixer in the networks that were trained so long.
        is_of_all: Whether these span the space, and were not chosen by shorter trainings.
        rungs: Of each shorter length, ascending.
        held_out: How good forecasts of the longest trainings are; None with too few.
        order: How the front's order is likely to change by the full recipe; None where that is not
            known.
    """

    longest: int
    recipe_epochs: int
    num_kinds: int
    is_of_all: bool
    rungs: tuple[RungOrder, ...]
    held_out: HeldOut | None
    order: LaterOrder | None

    def sentences(self) -> Iterator[str]:
        """Say all of it, a sentence each; of a length without an interval nothing."""
        chosen = "" if self.is_of_all else ", which shorter trainings had chosen"
        for rung in self.rungs:
            tau = rung.tau
            if tau.tau is not None and tau.low is not None:
                yield (
                    f"The order after {counted(rung.epochs, 'epoch')} agrees with that after "
                    f"{self.longest} by Kendall tau {tau.tau:.2f} (95 % {tau.low:.2f} to "
                    f"{tau.high:.2f}) over {tau.num_points} networks{chosen}."
                )
        yield from self.outlook()

    def outlook(self) -> Iterator[str]:
        """Say what is foretold, a sentence each: how good forecasts are, and the order of later."""
        if self.held_out is not None:
            yield describe_held_out(self.held_out)
        if self.order is not None:
            yield self.order.sentence(self.recipe_epochs)


def horizon_report(
    trials: Sequence[Trial],
    *,
    recipe_epochs: int,
    order: LaterOrder | None,
    rng: np.random.Generator,
) -> HorizonReport | None:
    """Compare the orders at all lengths; None where no two have `MIN_POINTS` networks in common.

    Args:
        trials: Of the run.
        recipe_epochs: Of the full recipe; 0 where they are not known.
        order: How the front's order is likely to change; see `search.results.later_order`.
        rng: Draws the resamples of the intervals.
    """
    curves = {n: {p.epochs: p.top1 for p in c} for n, c in curves_of(trials).items()}
    lengths = sorted({epochs for curve in curves.values() for epochs in curve}, reverse=True)
    for longest in lengths:
        if rungs := _orders(curves.values(), lengths, longest, rng):
            break
    else:
        return None
    there = {n for n, curve in curves.items() if longest in curve}
    origins = {trial.origin for trial in trials if _is_of(trial, longest)}
    return HorizonReport(
        longest=longest,
        recipe_epochs=recipe_epochs,
        num_kinds=len(_kinds(t.architecture for t in trials if t.architecture_id in there)),
        is_of_all=HORIZON in origins and origins <= {"trust", HORIZON},
        rungs=rungs,
        held_out=forecast_held_out(curves_of(trials).values()),
        order=order,
    )


def _orders(
    curves: Collection[Mapping[int, float]],
    lengths: Iterable[int],
    longest: int,
    rng: np.random.Generator,
) -> tuple[RungOrder, ...]:
    """Compare the orders after shorter trainings with that after the longest."""
    found = []
    for epochs in sorted(length for length in lengths if length < longest):
        both = [curve for curve in curves if epochs in curve and longest in curve]
        if len(both) >= MIN_POINTS:
            ends = ([c[epochs] for c in both], [c[longest] for c in both])
            found.append(RungOrder(epochs=epochs, tau=kendall_tau_interval(*ends, rng=rng)))
    return tuple(found)


def describe_held_out(found: HeldOut) -> str:
    """Say how far off forecasts were, beside the plainest one."""
    number = found.num_curves
    what, were = counted(number, "training"), "was" if number == 1 else "were"
    return (
        f"Forecasts of {what} of {counted(found.epochs, 'epoch')} that {were} held out were off "
        f"by {found.error:.1f} points; to take the last value for them, by "
        f"{found.last_error:.1f}. {_of_order(found)}{100 * found.covered:.0f} % were inside of "
        "their 95 % intervals."
    )


def _of_order(found: HeldOut) -> str:
    if math.isnan(found.tau) or math.isnan(found.last_tau):
        return ""
    taus = f"{found.tau:.2f}, that of the last values by {found.last_tau:.2f}"
    return f"Their order agreed with the truth by tau {taus}. "


def promotion_forecast(
    trials: Iterable[Trial], *, recipe_epochs: int
) -> Callable[[Sequence[Trial]], float] | None:
    """Return what foretells a network's accuracy from its trials, if that ranks networks better.

    Only the networks of the trust phase and of the horizon say so, which nothing has chosen, so
    that a run that goes on finds the same.

    Args:
        trials: Of the run.
        recipe_epochs: Of the full recipe.

    Returns:
        None where last values rank as well, where too little is known, or the full recipe is far
        longer than what was trained. The function takes the trials of one network, and returns its
        accuracy in percent; of one that was never trained alone it is what the last of the trials
        has measured.
    """
    curves = curves_of(trial for trial in trials if trial.origin in ("trust", HORIZON))
    several = learnable(curves.values(), epochs=recipe_epochs)
    held_out = forecast_held_out(several)
    if held_out is None or not held_out.ranks_better or not recipe_epochs:
        return None
    model = CurveModel(several)

    def forecast(of_one: Sequence[Trial]) -> float:
        curve = curves_of(of_one).get(of_one[-1].architecture_id)
        if curve is None:
            return of_one[-1].measured.quality
        return model.forecast(curve, recipe_epochs).top1

    return forecast


def _is_of(trial: Trial, epochs: int) -> bool:
    return trial.state == "done" and trial.fidelity == trained_alone(epochs)


def _kinds(architectures: Iterable[Architecture]) -> set[str]:
    return {m.kind for a in architectures for stage in a.stages for m in stage.mixers}
