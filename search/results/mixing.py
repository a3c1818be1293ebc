"""Did mixing pay? The best networks of one kind of mixer beside the best mixes as cheap as they.

What is cheap is a matter of MACs here, whatever a run weighs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from search.record import Trial
from search.results.candidates import Candidate, by_macs, candidates
from search.results.limits import keeps_to
from searchspace.architecture import Architecture, describe
from searchspace.single_mixer import is_single_mixer

# As many networks of one mixer are promoted, and one for so many promoted networks.
MOST_PROMOTED, PROMOTED_SHARE = 4, 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingGain:
    """A network of one mixer, and the most accurate mix that costs no more.

    Attributes:
        single: The network of one kind of mixer, whose settings may differ.
        mixed: The mix; None where none that is as cheap was judged.
        difference: Of the accuracies in points, positive where the mix is better; NaN without one.
        low: Lower end of its 95 % interval (Newcombe 1998, method 10: two Wilson intervals joined).
        high: Upper end.
    """

    single: Candidate
    mixed: Candidate | None
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan

    def sentence(self) -> str:
        """Say whether mixing paid, of the most accurate network of one mixer."""
        single = f"network {self.single.id}, {describe(self.single.architecture)}"
        if self.mixed is None:
            return (
                f"Whether mixing paid is not known: no mix with no more MACs than the best "
                f"network of one kind of mixer ({single}) was judged."
            )
        verdict = "Whether mixing paid is within noise"
        if self.low > 0:
            verdict = "Mixing paid"
        elif self.high < 0:
            verdict = "Mixing did not pay"
        return (
            f"{verdict}: beside the best network of one kind of mixer ({single}), the best mix "
            f"with no more MACs, network {self.mixed.id}, has {self.difference:+.1f} points (95 % "
            f"{self.low:+.1f} to {self.high:+.1f}) at "
            f"{100 * self.mixed.macs / self.single.macs:.0f} % of "
            "its MACs."
        )


def best_singles(found: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return the networks of one mixer that no other of them beats in accuracy and MACs.

    The cheapest comes first.
    """
    best: list[Candidate] = []
    for candidate in sorted((c for c in found if is_single_mixer(c.architecture)), key=by_macs):
        if not best or candidate.top1 > best[-1].top1:
            best.append(candidate)
    return tuple(best)


def mixing_gains(found: Sequence[Candidate]) -> tuple[MixingGain, ...]:
    """Compare each of `best_singles` with the best mix that costs no more, the cheapest first.

    Args:
        found: All candidates of a fidelity.
    """
    mixes = [c for c in found if not is_single_mixer(c.architecture)]
    gains = []
    for single in best_singles(found):
        as_cheap = [c for c in mixes if c.macs <= single.macs]
        mixed = max(as_cheap, key=lambda c: (c.top1, -c.macs, -c.id), default=None)
        gains.append(
            MixingGain(single=single, mixed=None) if mixed is None else _gain(single, mixed)
        )
    return tuple(gains)


def singles_to_promote(
    trials: Sequence[Trial],
    *,
    fidelity: str,
    num_promoted: int,
    limits: Mapping[str, float] | None = None,
) -> tuple[Architecture, ...]:
    """Choose the networks of one mixer that go to the highest rung, whatever mixes do.

    Args:
        trials: Of the run.
        fidelity: At which networks were judged first.
        num_promoted: Expected on the highest rung; a quarter of them are of one mixer at most.
        limits: Upper limits of costs; what is beyond them is not promoted.

    Returns:
        Evenly spread over `best_singles`, the most accurate first.
    """
    found = candidates(trials, fidelity=fidelity)
    best = best_singles(c for c in found if keeps_to(c, limits or {}))[::-1]
    number = min(MOST_PROMOTED, num_promoted // PROMOTED_SHARE, len(best))
    places = (round(i * (len(best) - 1) / max(number - 1, 1)) for i in range(number))
    return tuple(best[place].architecture for place in places)


def _gain(single: Candidate, mixed: Candidate) -> MixingGain:
    difference = mixed.top1 - single.top1
    return MixingGain(
        single=single,
        mixed=mixed,
        difference=difference,
        low=difference - math.hypot(mixed.top1 - mixed.low, single.high - single.top1),
        high=difference + math.hypot(mixed.high - mixed.top1, single.top1 - single.low),
    )
