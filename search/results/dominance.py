"""Pareto fronts of losses (lower is better): domination, ranks, crowding, hypervolume, knee.

Arrays of losses have the shape (n, m): n points, m objectives. A point dominates another when it is
no worse in all objectives and better in one; equal points do not dominate each other. A row with a
NaN (a missing value) is on no front; +inf is an ordinary, very bad value.
"""

from __future__ import annotations

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
    import moocore  # a sixth of a second that lists without a front need not take

    valid = _is_known(losses)
    mask = np.zeros(len(losses), dtype=bool)
    mask[valid] = moocore.is_nondominated(_places(losses[valid]), keep_weakly=True)
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
    import moocore

    valid = _is_known(losses)
    known = moocore.pareto_rank(_places(losses[valid]))
    ranks = np.full(len(losses), known.max(initial=-1) + 1, dtype=np.intp)
    ranks[valid] = known
    return ranks


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

    Args:
        losses: Of shape (n, m). Points that are not better than the reference everywhere, and
            those with a NaN, count for nothing.
        reference: Of shape (m,), finite.

    Raises:
        ValueError: If the shapes do not fit, the reference is not finite or a loss is -inf.
    """
    import moocore

    if losses.ndim != 2 or reference.shape != losses.shape[1:]:
        raise ValueError(
            "Losses of shape (n, m) need a reference of shape (m,), "
            f"got {losses.shape} and {reference.shape}."
        )
    if not np.isfinite(reference).all() or np.isneginf(losses).any():
        raise ValueError("A hypervolume needs a finite reference and no loss of -inf.")
    inside = losses[(losses < reference).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0


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


def _is_known(losses: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the rows without a NaN, which to moocore would be neither better nor worse."""
    if losses.ndim != 2 or losses.shape[1] == 0:
        raise ValueError(
            "Losses must have the shape (points, objectives) with at least one objective, "
            f"got {losses.shape}."
        )
    return np.asarray(~np.isnan(losses).any(axis=1))


def _places(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Replace each value by its place in its column, which is all that domination depends on.

    moocore keeps infinities for itself: in three dimensions it crashes on those of others.
    """
    columns = [np.unique(column, return_inverse=True)[1] for column in losses.T]
    return np.array(columns, dtype=float).T.copy()
