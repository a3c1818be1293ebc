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

    First the front, by crowding distance. Then one from each slot of costs in turn, so that with
    the front all slots get the same MACs in total: the most accurate of those that are off the
    front by no more than noise (95 % intervals of differences), then its others by non-dominated
    rank and crowding distance (MO-ASHA, Schmucker et al. 2021, https://arxiv.org/abs/2106.12639,
    with NSGA-II's order). Slots with nothing near the front come last, by rank. Where there are no
    accuracies, or no costs, that is the order of all.

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
    slots, work = _slots(costs), [trial.macs for trial in trials]
    spent = {slots[i]: 0.0 for i in np.flatnonzero(on_front | near).tolist()}
    for index in front:
        spent[slots[index]] += work[index]
    nearest = sorted(np.flatnonzero(near).tolist(), key=lambda one: (-top1[one], work[one]))
    others = [index for index in strict if not on_front[index] and not near[index]]
    waiting: dict[int, deque[int]] = {slot: deque() for slot in spent}
    for index in nearest + others:
        if slots[index] in waiting:
            waiting[slots[index]].append(index)
    last = [index for index in others if slots[index] not in waiting]
    return front + _in_turn(waiting, spent=spent, work=work) + last


def _by_rank(losses: NDArray[np.float64]) -> list[int]:
    """Order by non-dominated rank, then by crowding distance, the loneliest first."""
    ranks = non_dominated_rank(losses)
    order: list[int] = []
    for rank in np.unique(ranks):
        members = np.flatnonzero(ranks == rank)
        distances = crowding_distance(losses[members])
        order += members[np.argsort(-distances, kind="stable")].tolist()
    return order


def _slots(costs: NDArray[np.float64]) -> list[int]:
    """Return the slot of each network by its cost, the mean of the logarithms of all costs."""
    place = np.log(np.maximum(costs, 1e-9)).mean(axis=1)
    place -= np.nanmin(place)
    width = max(np.nanmax(place) / MOST_SLOTS, math.log(SLOT_FACTOR))
    numbers: list[int] = (
        np.minimum(np.nan_to_num(place / width), MOST_SLOTS - 1).astype(int).tolist()
    )
    return numbers


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
