"""Synthetic tables with what makes a search hard: interactions, failures, a flat cheap end.

Every design is a tuple of digits, and the losses of all of them are computed at once, so that the
true front is known. A tenth of the designs hardly learn, because of combinations of two choices.
The cost is known before evaluation and spans two orders of magnitude: most designs are in its
cheapest part, where more cost buys most. What is told has the noise of one training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


FAILED_ERROR, USUAL_ERROR = 85.0, 30.0
NOISE = 0.3
# Points of error: the spread of all effects, what a tenfold cost buys; the variance that interacts.
SPREAD, DECADE, INTERACTING = 3.0, 6.0, 0.65
DECADES = 2.0


@dataclass(frozen=True, slots=True)
class Landscape:
    """All designs of a space of equally many options a choice.

    Attributes:
        sizes: Options of every choice.
        losses: Error and cost of every design, of shape (designs, 2), the last digit fastest.
        noise: What is told is the error plus this, of shape (designs,).
    """

    sizes: tuple[int, ...]
    losses: Matrix
    noise: Matrix

    def place(self, digits: tuple[int, ...]) -> int:
        """Return the row of a design."""
        return int(np.ravel_multi_index(digits, self.sizes))


def rugged(choices: int, options: int, *, seed: int) -> Landscape:
    """Return a landscape where every choice acts together with two others.

    The interactions are a random table a choice, as in Kauffman's NK model; the cost is a sum.
    """
    rng = np.random.default_rng((seed, choices, options))
    digits = _every_design(choices, options)
    alone, together = np.zeros(len(digits)), np.zeros(len(digits))
    for choice in range(choices):
        alone += rng.standard_normal(options)[digits[:, choice]]
        others = rng.permutation(np.delete(np.arange(choices), choice))[:2]
        table = rng.standard_normal((options, options, options))
        together += table[digits[:, choice], digits[:, others[0]], digits[:, others[1]]]
    steps = 10 ** np.linspace(0.0, DECADES, options)
    cost = np.zeros(len(digits))
    for choice in range(choices):
        cost += (rng.permutation(steps) * rng.uniform(0.5, 2.0))[digits[:, choice]]
    return _landscape(digits, (choices, options), alone, together, cost, (0.06, 0.1), rng)


def regimes(choices: int, options: int, *, seed: int) -> Landscape:
    """Return a landscape where the first choice decides what all others are worth.

    Beside that, neighbours act in pairs. The cost is a product, as width times depth is.
    """
    rng = np.random.default_rng((seed, choices, options, 1))
    digits = _every_design(choices, options)
    regime = digits[:, 0]
    alone = rng.standard_normal(options)[regime]
    together = np.zeros(len(digits))
    log_cost = rng.permutation(np.linspace(0.0, 0.3, options))[regime]
    for choice in range(1, choices):
        alone += rng.standard_normal(options)[digits[:, choice]]
        together += rng.standard_normal((options, options))[regime, digits[:, choice]]
        pair = rng.standard_normal((options, options))
        together += pair[digits[:, choice - 1], digits[:, choice]]
        part = 1.5 * DECADES / (choices - 1)
        log_cost += rng.permutation(np.linspace(0.0, part, options))[digits[:, choice]]
    return _landscape(digits, (choices, options), alone, together, 10**log_cost, (0.1, 0.15), rng)


def _every_design(choices: int, options: int) -> NDArray[np.intp]:
    return np.indices((options,) * choices, dtype=np.intp).reshape(choices, -1).T


def _landscape(
    digits: NDArray[np.intp],
    shape: tuple[int, int],
    alone: Matrix,
    together: Matrix,
    cost: Matrix,
    failing: tuple[float, float],
    rng: np.random.Generator,
) -> Landscape:
    """Add up the error: effects, what a larger cost buys, and designs that hardly learn."""
    effects = np.sqrt(1 - INTERACTING) * _unit(alone) + np.sqrt(INTERACTING) * _unit(together)
    log_cost = np.log10(cost / cost.min())
    error = USUAL_ERROR + SPREAD * _unit(effects) - DECADE * (log_cost - log_cost.mean())
    failed = _failed(digits, shape, failing, rng)
    error[failed] = FAILED_ERROR + rng.uniform(-5.0, 5.0, int(failed.sum()))
    return Landscape(
        sizes=(shape[1],) * shape[0],
        losses=np.column_stack([error, cost]),
        noise=NOISE * rng.standard_normal(len(digits)),
    )


def _unit(values: Matrix) -> Matrix:
    scaled: Matrix = (values - values.mean()) / values.std()
    return scaled


def _failed(
    digits: NDArray[np.intp],
    shape: tuple[int, int],
    share: tuple[float, float],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Mark designs that combine some options of two (or three) choices, until there are enough."""
    failed = np.zeros(len(digits), dtype=bool)
    choices, options = shape
    while failed.mean() < share[0]:
        chosen = rng.choice(choices, 2 if options > 3 else 3, replace=False)
        combined = (digits[:, chosen] == rng.integers(options, size=len(chosen))).all(axis=1)
        if (failed | combined).mean() <= share[1]:
            failed |= combined
    return failed
