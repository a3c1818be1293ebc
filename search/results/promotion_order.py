"""In which order networks are worth a dearer judgement: the front, and all along its costs.

A cheaper judgement has noise, and where accuracy no longer grows by more than that noise the
cheapest network dominates all others. What costs more may still be the more accurate once it is
trained for long, so an order by ranks alone leaves the dear end of the front untried. Here what
no cheaper network beats beyond noise has its chance as well: the range of costs is cut into slots,
evenly over the logarithm, which get about the same training time each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from search.record import Trial
from search.results.candidates import has_accuracy, near_front, quality_interval
from search.results.dominance import crowding_distance, non_dominated, non_dominated_rank
from search.results.objectives import quality_of

# Slots of the costs, and the least factor in cost that each spans.
MOST_SLOTS, SLOT_FACTOR = 8, 1.25


def promotion_order(
    trials: Sequence[Trial], losses: NDArray[np.float64], objectives: Sequence[str]
) -> list[int]:
    """Order networks of one fidelity; returns indices, the most promising first.

    First the front, by crowding distance. Then what is off it by no more than noise (95 % intervals
    of differences): from each slot of costs its most accurate, in turn, so that with the front all
    slots get the same MACs in total. Then the others by non-dominated rank and crowding distance
    (MO-ASHA, Schmucker et al. 2021, https://arxiv.org/abs/2106.12639, with NSGA-II's order). Where
    there are no accuracies, or no costs, that is the order of all.

    Args:
        trials: Done, each of another network.
        losses: Theirs, shape (trials, objectives), lower is better; a quality may be a forecast.
        objectives: Of the run.
    """
    strict = _by_rank(losses)
    quality = quality_of(objectives)
    if quality is None or len(objectives) < 2 or not all(map(has_accuracy, trials)):
        return strict
    column = list(objectives).index(quality)
    costs, top1 = np.delete(losses, column, axis=1), 100.0 - losses[:, column]
    measured = np.array([trial.measured.quality for trial in trials])
    low, high = np.array([quality_interval(trial) for trial in trials]).T
    on_front = non_dominated(losses)
    near = near_front(top1, top1 - measured + low, top1 - measured + high, costs, on_front)
    front = [index for index in strict if on_front[index]]
    slots, work = _slots(costs, on_front | near), [trial.macs for trial in trials]
    spent = {slot: sum(work[i] for i in front if slots[i] == slot) for slot in set(slots.values())}
    waiting: dict[int, deque[int]] = {}
    for index in sorted(np.flatnonzero(near).tolist(), key=lambda one: (-top1[one], work[one])):
        waiting.setdefault(slots[index], deque()).append(index)
    chosen = _in_turn(waiting, spent=spent, work=work)
    rest = [index for index in strict if not on_front[index] and not near[index]]
    return front + chosen + rest


def _by_rank(losses: NDArray[np.float64]) -> list[int]:
    """Order by non-dominated rank, then by crowding distance, the loneliest first."""
    ranks = non_dominated_rank(losses)
    order: list[int] = []
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        distances = crowding_distance(losses[members])
        order += members[np.argsort(-distances, kind="stable")].tolist()
    return order


def _slots(costs: NDArray[np.float64], members: NDArray[np.bool_]) -> dict[int, int]:
    """Return the slot of each member by its cost, the mean of the logarithms of all costs."""
    indices = np.flatnonzero(members)
    place = np.log(np.maximum(costs[indices], 1e-9)).mean(axis=1)
    place -= np.nanmin(place)
    width = max(np.nanmax(place) / MOST_SLOTS, math.log(SLOT_FACTOR))
    numbers = np.minimum(np.nan_to_num(place / width).astype(int), MOST_SLOTS - 1)
    return dict(zip(indices.tolist(), numbers.tolist(), strict=True))


def _in_turn(
    waiting: Mapping[int, deque[int]], *, spent: Mapping[int, float], work: Sequence[float]
) -> list[int]:
    """Take one after the other from the slot that has had the least work so far.

    Args:
        waiting: Of each slot, the best first; emptied.
        spent: Of each slot, before.
        work: Of each that waits.
    """
    order: list[int] = []
    so_far = dict(spent)
    while left := [slot for slot, queue in waiting.items() if queue]:
        slot = min(left, key=lambda one: (so_far[one], one))
        order.append(waiting[slot].popleft())
        so_far[slot] += work[order[-1]]
    return order
