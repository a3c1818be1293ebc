"""Expected hypervolume improvement, exact for independent Gaussian losses.

The region that a front does not dominate is cut into disjoint boxes. In each box the expected
volume that a candidate gains is a product over objectives of differences of one-dimensional
expected improvements (Emmerich et al. 2011, doi:10.1109/CEC.2011.5949880). An objective that is
known is one with no deviation.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from search.results import non_dominated

Matrix = NDArray[np.float64]

# Elements of a temporary array: 64 MiB.
_CHUNK = 8_000_000


def free_boxes(front: Matrix, reference: Matrix) -> tuple[Matrix, Matrix]:
    """Cut what the front leaves free, below the reference, into disjoint boxes.

    Args:
        front: Points of shape (n, m), better than the reference everywhere.
        reference: Of shape (m,).

    Returns:
        Lower and upper corners of shape (boxes, m); lower ones may be -inf.
    """
    if len(reference) == 1:
        upper = np.append(front[:, 0], reference[0]).min()
        return np.full((1, 1), -np.inf), np.full((1, 1), upper)
    front = front[np.argsort(front[:, -1], kind="stable")]
    edges = np.concatenate([[-np.inf], front[:, -1], reference[-1:]])
    if len(reference) == 2:
        free = np.minimum.accumulate(np.append(reference[0], front[:, 0]))
        lower = np.column_stack([np.full(len(free), -np.inf), edges[:-1]])
        return lower, np.column_stack([free, edges[1:]])
    lowers, uppers = [], []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        if low < high:
            before = front[:index, :-1]
            lower, upper = free_boxes(before[non_dominated(before)], reference[:-1])
            lowers.append(np.column_stack([lower, np.full(len(lower), low)]))
            uppers.append(np.column_stack([upper, np.full(len(upper), high)]))
    return np.concatenate(lowers), np.concatenate(uppers)


def expected_improvement(
    mean: Matrix, deviation: Matrix, *, lower: Matrix, upper: Matrix
) -> Matrix:
    """Return how much volume each candidate is expected to add.

    Args:
        mean: Predicted losses of shape (c, m).
        deviation: Their standard deviations, 0 where a loss is known.
        lower: With ``upper``, the boxes from `free_boxes`.

    Returns:
        Of shape (c,).
    """
    total = np.zeros(len(mean))
    step = max(1, _CHUNK // len(lower))
    for start in range(0, len(mean), step):
        part = slice(start, start + step)
        product = np.ones((len(mean[part]), len(lower)))
        for m in range(mean.shape[1]):
            edges, place = np.unique(
                np.concatenate([lower[:, m], upper[:, m]]), return_inverse=True
            )
            below = _expected_below(edges, mean[part, m, None], deviation[part, m, None])
            product *= below[:, place[len(lower) :]] - below[:, place[: len(lower)]]
        total[part] = product.sum(axis=1)
    return total


def _expected_below(edges: Matrix, mean: Matrix, deviation: Matrix) -> Matrix:
    """Return the expectation of max(edge - value, 0), of shape (c, edges); 0 at -inf."""
    finite = np.where(np.isfinite(edges), edges, 0.0)
    deviation = np.maximum(deviation, 1e-12)
    z = np.clip((finite - mean) / deviation, -38.0, None)
    density = np.exp(-0.5 * np.minimum(z, 38.0) ** 2) / np.sqrt(2.0 * np.pi)
    below: Matrix = np.maximum((finite - mean) * ndtr(z) + deviation * density, 0.0)
    below[:, ~np.isfinite(edges)] = 0.0
    return below
