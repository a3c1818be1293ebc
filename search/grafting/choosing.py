"""The best network of a graft within a limit, exactly: a mixed-integer programme.

Where a network's score is the sum of those of its blocks, and so is its cost, the network with the
least score within a limit is a multiple-choice knapsack: one option for each block, the sum of the
scores as small as can be, the sum of the costs within the limit. SciPy's HiGHS solves it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.grafting.scores import GraftScores
from searchspace.architecture import Architecture
from searchspace.graft_space import Replacement, with_replacements
from searchspace.space import SearchSpace

# By how much HiGHS lets a constraint be broken.
FEASIBLE = 1e-6

Cost = Callable[[Architecture], float]


@dataclass(frozen=True, slots=True)
class Choosable:
    """The options of all blocks, as rows: what each replaces, its score, its cost beside all else.

    Attributes:
        teacher: What is replaced in.
        blocks: For each block its options, the first of which replaces nothing.
        scores: Of each option, in the order of the blocks, in nats.
        costs: By how much each option changes the cost of the teacher.
        base: The cost of the teacher.
        cost: The function of a network that they are of.
    """

    teacher: Architecture
    blocks: tuple[tuple[tuple[Replacement, ...], ...], ...]
    scores: NDArray[np.float64]
    costs: NDArray[np.float64]
    base: float
    cost: Cost

    @property
    def least(self) -> float:
        """The cost of the cheapest network."""
        start, total = 0, self.base
        for options in self.blocks:
            total += float(self.costs[start : start + len(options)].min())
            start += len(options)
        return total


def choosable(space: SearchSpace, scores: GraftScores, cost: Cost) -> Choosable:
    """List the options of every block whose scores are known.

    Args:
        space: Of the graft.
        scores: Of its replacements.
        cost: Of a network; it must be a sum over blocks, as MACs and the sums of a latency table.
    """
    teacher = scores.teacher
    base = cost(teacher)
    blocks, values, costs = [], [], []
    for index, stage in enumerate(teacher.stages):
        for block in range(stage.depth):
            own = [one for one in scores.singles if (one.stage, one.block) == (index, block)]
            mixers = [one for one in own if one.mixer is not None]
            widths = [one for one in own if one.mixer is None]
            options = [
                tuple(one for one in pair if one is not None)
                for pair in itertools.product([None, *mixers], [None, *widths])
            ]
            blocks.append(tuple(options))
            for option in options:
                values.append(sum(scores.singles[one] for one in option))
                costs.append(cost(with_replacements(teacher, option)) - base)
    return Choosable(teacher, tuple(blocks), np.array(values), np.array(costs), base, cost)


def choose(
    found: Choosable,
    limit: float,
    *,
    without: Sequence[Architecture] = (),
    also: Sequence[tuple[Choosable, float]] = (),
) -> Architecture | None:
    """Choose the network with the least sum of scores within a limit.

    Args:
        found: What there is to choose from.
        limit: Of the cost.
        without: Networks that are known already, and not wanted again.
        also: Further costs of the same options, and their limits.

    Returns:
        None where nothing is within the limit, or all that is is known.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    limits, first = ((found, limit), *also), len(found.blocks)
    number = len(found.scores)
    rows, low, high = [], [], []
    start = 0
    for options in found.blocks:
        row = np.zeros(number)
        row[start : start + len(options)] = 1
        rows.append(row)
        low.append(1.0)
        high.append(1.0)
        start += len(options)
    for limited, most in limits:
        # Costs are scaled: HiGHS takes a millionth for feasible, and MACs are many millions.
        scale = max(float(np.abs(limited.costs).max()), 1e-12)
        rows.append(limited.costs / scale)
        low.append(-np.inf)
        high.append((most - limited.base) / scale)
    known = {network.key for network in without}
    while True:
        answer = milp(
            found.scores,
            integrality=np.ones(number),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(np.array(rows), np.array(low), np.array(high)),
            options={"mip_rel_gap": 0.0},  # else a ten-thousandth more is good enough
        )
        if answer.x is None:
            return None
        picked = np.round(answer.x) == 1
        network = _network(found, picked)
        if any(limited.cost(network) > most for limited, most in limits):
            # Within for HiGHS, and beyond by what it takes for nothing.
            for place in range(first, first + len(limits)):
                high[place] -= 2 * FEASIBLE
            continue
        if network.key not in known:
            return network
        rows.append(picked.astype(float))
        low.append(-np.inf)
        high.append(len(found.blocks) - 1.0)


def limits_between(found: Choosable, number: int, *, most: float = math.inf) -> list[float]:
    """Return limits from the cheapest network to the teacher, evenly, the dearest first.

    Args:
        most: That is wanted at all; where it is below the teacher it is the first limit.
    """
    if most < found.base:
        return [float(x) for x in np.linspace(most, found.least, number)]
    return [float(x) for x in np.linspace(found.base, found.least, number + 1)[1:]]


def _network(found: Choosable, picked: NDArray[np.bool_]) -> Architecture:
    options = [option for block in found.blocks for option in block]
    chosen = [one for option, is_in in zip(options, picked, strict=True) if is_in for one in option]
    return with_replacements(found.teacher, chosen)
