"""How far losses in closed form reach: it costs no evaluation to know that."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.sampling.candidates import breed
from search.sampling.design_space import Draw, draw_random
from search.sampling.history import History

Matrix = NDArray[np.float64]

RANDOM_DESIGNS = 64
CLIMBS, CHILDREN = 12, 12


def largest_known(history: History[Any], rng: np.random.Generator) -> Matrix:
    """Find (about) the largest of every loss that is known before evaluation.

    The best of random designs is changed, step by step, for a larger loss.

    Returns:
        Of shape (objectives,), NaN where a loss must be evaluated.
    """
    space = history.space
    draws = [draw_random(space, rng) for _ in range(RANDOM_DESIGNS)]
    draws = [one for one in draws if space.is_allowed(one.design)]
    largest: Matrix = np.full(len(history.signs), np.nan)
    losses = history.known_losses(draws)
    for objective in np.flatnonzero(~np.isnan(losses).any(axis=0)) if draws else ():
        start = draws[int(np.argmax(losses[:, objective]))]
        largest[objective] = _climb(history, start, int(objective), rng)
    return largest


def _climb(
    history: History[Any], best: Draw[Any], objective: int, rng: np.random.Generator
) -> float:
    largest = float(history.known_losses([best])[0, objective])
    for _ in range(CLIMBS):
        children = list(breed(history.space, [best], count=CHILDREN, seen=(), rng=rng).values())
        losses = history.known_losses(children)[:, objective]
        if len(losses) and losses.max() > largest:
            best, largest = children[int(np.argmax(losses))], float(losses.max())
    return largest
