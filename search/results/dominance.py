"""Pareto fronts of losses (lower is better): domination, ranks, crowding, hypervolume, knee.

Arrays of losses have the shape (n, m): n points, m objectives. A point dominates another when it is
no worse in all objectives and better in one; equal points do not dominate each other. A row with a
NaN (a missing value) is on no front; +inf is an ordinary, very bad value.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray


def non_dominated(losses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates; of equal points all are marked.

    Args:
        losses: Of shape (n, m).

    Returns:
        A mask of shape (n,).

    Raises:
        ValueError: If losses is not a matrix with at least one column.
    """
    points, place = _sort_distinct(losses)
    on_front = _first_front(points)
    mask = np.zeros(len(losses), dtype=bool)
    mask[place >= 0] = on_front[place[place >= 0]]
    return mask


def non_dominated_rank(losses: NDArray[np.float64]) -> NDArray[np.intp]:
    """Number the fronts: 0 for the front, 1 for the front of the rest, and so on.

    Args:
        losses: Of shape (n, m). Rows with a NaN come after all others.

    Returns:
        Ranks of shape (n,).

    Raises:
        ValueError: If losses is not a matrix with at least one column.
    """
    points, place = _sort_distinct(losses)
    ranks = _rank_by_staircases(points) if points.shape[1] <= 3 else _rank_by_peeling(points)
    # The entry that is added at the end is the one that -1, a row with a NaN, refers to.
    return np.append(ranks, ranks.max(initial=-1) + 1)[place]


def crowding_distance(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Measure the room around each point of one front, as NSGA-II does (Deb et al. 2002, III-B).

    Args:
        losses: Of shape (n, m), finite.

    Returns:
        Distances of shape (n,): over all objectives, the sum of the gap between a point's two
        neighbours as a share of the front's range; infinite for the first and the last.
    """
    distances = np.zeros(len(losses))
    for values in losses.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        if len(values) == 0 or ordered[0] == ordered[-1]:
            continue
        distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
        distances[order[[0, -1]]] = np.inf
    return distances


def hypervolume(losses: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Measure the volume between the points and the reference, exactly.

    It sweeps over the last objective and measures a slice of one dimension less at each point; the
    plane is one vectorised sweep. That is quick for a few thousand points on the front in 3
    dimensions and for a hundred in 4.

    Args:
        losses: Of shape (n, m). Points that are not better than the reference everywhere, and
            those with a NaN, count for nothing.
        reference: Of shape (m,), finite.

    Raises:
        ValueError: If the shapes do not fit, the reference is not finite or a loss is -inf.
    """
    if losses.ndim != 2 or reference.shape != losses.shape[1:]:
        raise ValueError(
            "Losses of shape (n, m) need a reference of shape (m,), "
            f"got {losses.shape} and {reference.shape}."
        )
    if not np.isfinite(reference).all() or np.isneginf(losses).any():
        raise ValueError("A hypervolume needs a finite reference and no loss of -inf.")
    inside = losses[(losses < reference).all(axis=1)]
    return _volume(inside[non_dominated(inside)], reference)


def knee(losses: NDArray[np.float64]) -> int:
    """Find the front's most balanced point: the least sum of losses, each scaled to its range.

    In two dimensions it is the point that is farthest below the line between the front's ends.

    Returns:
        Its index in losses; the first of equal ones.

    Raises:
        ValueError: If no point of the front is finite.
    """
    front = np.flatnonzero(non_dominated(losses) & np.isfinite(losses).all(axis=1))
    if len(front) == 0:
        raise ValueError("A knee needs at least one point whose losses are all finite.")
    points = losses[front]
    ranges = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(ranges > 0, ranges, 1.0)
    return int(front[np.argmin(scaled.sum(axis=1))])


class _Staircase:
    """The lower left boundary of points in the plane; both coordinates are monotone along it."""

    __slots__ = ("_ys", "_zs")

    def __init__(self) -> None:
        self._ys: list[float] = []
        self._zs: list[float] = []

    def covers(self, y: float, z: float) -> bool:
        """Tell whether some point is no larger in both coordinates."""
        index = bisect_right(self._ys, y)
        return index > 0 and self._zs[index - 1] <= z

    def add(self, y: float, z: float) -> None:
        """Add a point that is not covered; it replaces those that it covers."""
        start = end = bisect_left(self._ys, y)
        while end < len(self._zs) and self._zs[end] >= z:
            end += 1
        self._ys[start:end] = [y]
        self._zs[start:end] = [z]


def _sort_distinct(
    losses: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the distinct rows without NaN, sorted, and for each row its place there or -1.

    After sorting, a point is dominated by earlier ones only.
    """
    if losses.ndim != 2 or losses.shape[1] == 0:
        raise ValueError(
            "Losses must have the shape (points, objectives) with at least one objective, "
            f"got {losses.shape}."
        )
    place = np.full(len(losses), -1, dtype=np.intp)
    valid = np.flatnonzero(~np.isnan(losses).any(axis=1))
    order = valid[np.lexsort(losses[valid].T[::-1])]
    rows = losses[order]
    is_new = np.ones(len(rows), dtype=bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    place[order] = np.cumsum(is_new) - 1
    return rows[is_new], place


def _first_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    on_front = np.zeros(len(points), dtype=bool)
    if points.shape[1] <= 3:
        boundary = _Staircase()
        for index, (y, z) in enumerate(_last_two(points)):
            if not boundary.covers(y, z):
                boundary.add(y, z)
                on_front[index] = True
        return on_front
    remaining = np.arange(len(points))
    while len(remaining):
        # The first that remains is dominated by nothing; it takes away what it dominates.
        on_front[first := remaining[0]] = True
        better_somewhere = (points[remaining, 1:] < points[first, 1:]).any(axis=1)
        remaining = remaining[better_somewhere]
    return on_front


def _rank_by_staircases(points: NDArray[np.float64]) -> NDArray[np.intp]:
    fronts: list[_Staircase] = []
    ranks = np.empty(len(points), dtype=np.intp)
    for index, (y, z) in enumerate(_last_two(points)):
        rank = _first_without(fronts, y, z)
        if rank == len(fronts):
            fronts.append(_Staircase())
        fronts[rank].add(y, z)
        ranks[index] = rank
    return ranks


def _first_without(fronts: list[_Staircase], y: float, z: float) -> int:
    """Find the first front that does not cover the point; those behind it do not either."""
    low, high = 0, len(fronts)
    while low < high:
        middle = (low + high) // 2
        if fronts[middle].covers(y, z):
            low = middle + 1
        else:
            high = middle
    return low


def _rank_by_peeling(points: NDArray[np.float64]) -> NDArray[np.intp]:
    ranks = np.empty(len(points), dtype=np.intp)
    remaining, rank = np.arange(len(points)), 0
    while len(remaining):
        on_front = _first_front(points[remaining])
        ranks[remaining[on_front]] = rank
        remaining, rank = remaining[~on_front], rank + 1
    return ranks


def _last_two(points: NDArray[np.float64]) -> list[list[float]]:
    """Return the columns after the first of at most three, filled up with zeros to two."""
    rest = points[:, 1:]
    rows: list[list[float]] = np.pad(rest, ((0, 0), (0, 2 - rest.shape[1]))).tolist()
    return rows


def _volume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    if len(points) == 0:
        return 0.0
    points = points[np.argsort(points[:, -1], kind="stable")]
    heights = np.diff(points[:, -1], append=reference[-1])
    if len(reference) == 1:
        return float(reference[0] - points[0, 0])
    if len(reference) == 2:
        widths = reference[0] - np.minimum.accumulate(points[:, 0])
        return float(heights @ widths)
    return sum(
        float(height) * _volume(points[: index + 1, :-1], reference[:-1])
        for index, height in enumerate(heights)
        if height > 0
    )
