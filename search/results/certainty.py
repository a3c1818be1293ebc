"""How likely each network is truly on the front, given how few images judged it.

Costs are exact; a true accuracy is known up to its posterior: a Beta distribution with Jeffreys'
prior, after ``images`` images. A network is on the front when no other one that costs no more is
more accurate, so with f and F the density and the distribution of an accuracy

    P(i on front) = integral of f_i(x) * prod_{j costs no more than i} F_j(x) dx.

That is computed by quadrature: it needs no random draws, and it is the limit of drawing all
accuracies many times and counting. Accuracies are taken as independent. They are judged on the same
images, so a difference is really known a little better than this says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.results.dominance import non_dominated

# What is beaten by this many standard deviations has no chance that a table would show.
BEATEN_DEVIATIONS = 5.0
NUM_CELLS = 512
# Networks handled together, so that memory stays below about 200 MB.
BLOCK = 1024
# Of the limits on a cost at which the answer is computed, and of the rivals that are named there.
MAX_LIMITS, MAX_RIVALS = 200, 4
LEAST_SHARE = 0.02
# An order of which so large a part is expected to change is none to rely on.
TURNED_SHARE, NUM_DRAWS = 0.25, 4_000


@dataclass(frozen=True, kw_only=True, slots=True)
class BestWithin:
    """The most accurate network within a limit on one cost, and how sure that is.

    Attributes:
        limit: The least cost from which on this is the answer.
        best: The network.
        chance: That it is truly the most accurate of those within the limit.
        regret: Points of accuracy that it is expected to be below the true best.
        rivals: Others with their chance to be the most accurate, the likeliest first.
    """

    limit: float
    best: int
    chance: float
    regret: float
    rivals: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LaterOrder:
    """How the order of some networks by accuracy is likely to change.

    Attributes:
        num_pairs: Of neighbours in their order now.
        expected_turns: How many of these are expected to have changed places.
        best_stays: The chance that the best of now is still the best.
        num_unknown: Members of the front of which nothing is known later; all else leaves them out.
    """

    num_pairs: int
    expected_turns: float
    best_stays: float
    num_unknown: int = 0

    @property
    def is_likely_to_turn(self) -> bool:
        """Whether more than `TURNED_SHARE` of the neighbours, or the best, change places."""
        return self.expected_turns > TURNED_SHARE * self.num_pairs or self.best_stays < 0.5

    def sentence(self, epochs: int) -> str:
        """Say whether the order of a front is likely to last for so many epochs."""
        pairs = "1 pair" if self.num_pairs == 1 else f"{self.num_pairs} pairs"
        verdict = "turn by" if self.is_likely_to_turn else "last until"
        whose, its, best = "The order of this front", "its", "the most accurate"
        if self.num_unknown:
            known = self.num_pairs + 1
            all_members = known + self.num_unknown
            whose = f"{known} of this front's {all_members} members have a forecast, whose order"
            its, best = "their", "the most accurate of them"
        return (
            f"{whose} is likely to {verdict} the recipe's {epochs} epochs: of {its} "
            f"{pairs} of neighbours {self.expected_turns:.1f} are expected to change places, and "
            f"{best} stays that with a chance of {_in_percent(self.best_stays)}."
        )


def front_probabilities(
    top1: NDArray[np.float64], *, images: NDArray[np.float64], costs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Compute for each network the probability that it is on the front.

    Args:
        top1: Accuracies in percent, of shape (n,).
        images: Of shape (n,): how many images each accuracy is worth.
        costs: Lower is better, of shape (n, m); exact. NaN: a cost was not measured.

    Returns:
        Probabilities of shape (n,); zero where a cost is missing. Networks that cost the same share
        the chance of their place.
    """
    from scipy.special import betainc  # a fifth of a second that only tables of a front need

    probabilities = np.zeros(len(top1))
    share = top1 / 100
    alpha, beta = images * share + 0.5, images * (1 - share) + 0.5
    contenders = _contenders(alpha, beta, costs)
    if len(contenders) == 0:
        return probabilities
    alpha, beta, costs = alpha[contenders], beta[contenders], costs[contenders]
    edges = _edges(alpha, beta)
    below = betainc(alpha[:, None], beta[:, None], edges[None, :])  # (contenders, edges)
    log_below = np.log(np.maximum(below, 1e-300)).astype(np.float32)
    wins = _sum_over_no_dearer(log_below, costs)
    wins -= log_below
    np.exp(wins, out=wins)
    mass = np.diff(below, axis=1)
    probabilities[contenders] = (mass * (wins[:, :-1] + wins[:, 1:]) / 2).sum(axis=1)
    return np.clip(probabilities, 0.0, 1.0)


def best_within_limits(
    top1: NDArray[np.float64], *, images: NDArray[np.float64], cost: NDArray[np.float64]
) -> tuple[BestWithin, ...]:
    """Answer "which network up to this cost?" for every limit.

    Args:
        top1: Accuracies in percent, of shape (n,).
        images: Of shape (n,): how many images each accuracy is worth.
        cost: Of shape (n,); NaN: it was not measured.

    Returns:
        By rising limit. With many networks `MAX_LIMITS` of them: all at which another one is best,
        and others spread evenly in between.
    """
    from scipy.special import betainc

    share = top1 / 100
    alpha, beta = images * share + 0.5, images * (1 - share) + 0.5
    order = _contenders(alpha, beta, cost[:, None])
    order = order[np.argsort(cost[order], kind="stable")]
    if len(order) == 0:
        return ()
    alpha, beta, top1, cost = alpha[order], beta[order], top1[order], cost[order]
    edges = _edges(alpha, beta)
    below = betainc(alpha[:, None], beta[:, None], edges[None, :])  # (contenders, edges)
    log_below = np.log(np.maximum(below, 1e-300))
    answers, start, all_below = [], 0, np.zeros(len(edges))
    for end in _ends(cost, top1):
        all_below += log_below[start:end].sum(axis=0)
        start = end
        # Of equals the cheapest, which comes first.
        best = int(np.argmax(top1[:end]))
        likely = np.argsort(-top1[:end], kind="stable")[: 2 * MAX_RIVALS]
        wins = np.exp(all_below - log_below[likely])
        mass = np.diff(below[likely], axis=1)
        chances = np.clip((mass * (wins[:, :-1] + wins[:, 1:]) / 2).sum(axis=1), 0.0, 1.0)
        found = dict(sorted(zip(likely.tolist(), chances.tolist(), strict=True), key=_by_chance))
        # The mean of the largest is the integral of the chance that not all are below.
        largest = np.trapezoid(1.0 - np.exp(all_below), edges)
        mean = alpha[best] / (alpha[best] + beta[best])
        chance = found.pop(best)
        rivals = [(int(order[i]), share) for i, share in found.items() if share >= LEAST_SHARE]
        answers.append(
            BestWithin(
                limit=float(cost[end - 1]),
                best=int(order[best]),
                chance=chance,
                regret=max(float(100 * (largest - mean)), 0.0),
                rivals=tuple(rivals[:MAX_RIVALS]),
            )
        )
    return tuple(answers)


def order_after(
    now: NDArray[np.float64], *, later: NDArray[np.float64], deviations: NDArray[np.float64]
) -> LaterOrder:
    """Say how much of the order of some networks is likely to be another one later.

    Args:
        now: Accuracies in percent, of shape (n,), n at least 2.
        later: What they are expected to become, of shape (n,).
        deviations: Of these expectations, of shape (n,); taken as normal and independent.
    """
    order = np.argsort(-now, kind="stable")
    mean, deviation = later[order], np.maximum(deviations[order], 1e-9)
    # Fixed draws: the same answer every time.
    draws = np.random.default_rng(0).standard_normal((NUM_DRAWS, len(order)))
    reached = mean + deviation * draws
    turned = (reached[:, 1:] > reached[:, :-1]).mean(axis=0)
    return LaterOrder(
        num_pairs=len(order) - 1,
        expected_turns=float(turned.sum()),
        best_stays=float((reached.argmax(axis=1) == 0).mean()),
    )


def _in_percent(chance: float) -> str:
    """Write a chance that was counted over draws, which is never quite 0 or 1."""
    if chance < 0.01:
        return "less than 1 %"
    return "more than 99 %" if chance > 0.99 else f"{100 * chance:.0f} %"


def _by_chance(found: tuple[int, float]) -> float:
    return -found[1]


def _ends(cost: NDArray[np.float64], top1: NDArray[np.float64]) -> Iterator[int]:
    """Choose how many of the cheapest to look at together; of equal costs all or none."""
    lasts = np.flatnonzero(np.append(cost[1:] > cost[:-1], True))
    best = np.maximum.accumulate(top1)[lasts]
    changes = np.flatnonzero(np.append(True, best[1:] > best[:-1]))
    spread = np.linspace(0, len(lasts) - 1, min(len(lasts), MAX_LIMITS)).astype(int)
    for index in sorted({*changes.tolist(), *spread.tolist()}):
        yield int(lasts[index]) + 1


def _contenders(
    alpha: NDArray[np.float64], beta: NDArray[np.float64], costs: NDArray[np.float64]
) -> NDArray[np.intp]:
    """List what no member of the front beats beyond doubt.

    The others matter for nothing: what they beat is beaten by that member as well.
    """
    mean = alpha / (alpha + beta)
    deviation = np.sqrt(mean * (1 - mean) / (alpha + beta + 1))
    losses = np.column_stack([-mean, costs])
    alive = ~np.isnan(losses).any(axis=1)
    for member in np.flatnonzero(non_dominated(losses)).tolist():
        noise = BEATEN_DEVIATIONS * np.hypot(deviation[member], deviation)
        alive &= ~((mean[member] - mean > noise) & (costs[member] <= costs).all(axis=1))
    return np.flatnonzero(alive)


def _edges(alpha: NDArray[np.float64], beta: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose the edges of the cells: close together where many accuracies may lie."""
    mean = alpha / (alpha + beta)
    deviation = np.sqrt(mean * (1 - mean) / (alpha + beta + 1))
    points = mean[:, None] + deviation[:, None] * np.linspace(-5, 5, 41)
    inner = np.quantile(np.clip(points, 0.0, 1.0), np.linspace(0.0, 1.0, NUM_CELLS - 1))
    return np.unique(np.concatenate([[0.0], inner, [1.0]]))


def _sum_over_no_dearer(
    values: NDArray[np.float32], costs: NDArray[np.float64]
) -> NDArray[np.float32]:
    """For each row, sum the rows of ``values`` whose costs are all no higher (itself included)."""
    if costs.shape[1] == 1:
        order = np.argsort(costs[:, 0], kind="stable")
        ordered = costs[order, 0]
        # The last row of those with the same cost has all of them.
        last = np.searchsorted(ordered, ordered, side="right") - 1
        sums = np.empty_like(values)
        sums[order] = np.cumsum(values[order], axis=0, dtype=np.float64)[last]
        return sums
    sums = np.empty_like(values)
    for start in range(0, len(costs), BLOCK):
        rows = slice(start, start + BLOCK)
        no_dearer = np.ones((len(costs[rows]), len(costs)), dtype=bool)
        for cost in costs.T:
            no_dearer &= cost[None, :] <= cost[rows, None]
        sums[rows] = no_dearer.astype(np.float32) @ values
    return sums
