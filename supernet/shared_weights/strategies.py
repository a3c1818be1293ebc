"""Which architectures a step of the supernet trains: each strategy is one small function.

All are given the same: the space, a generator that is a function of seed and step, and the largest
and smallest architecture. The step accumulates the gradients of what they name, on one batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from searchspace.architecture import Architecture
from searchspace.space import SearchSpace

NUM_RANDOM = 2
MAX_CYCLES = 100
# Where a quarter of all cycles is allowed, a step of `fair` finds none once in 10^12 steps.
CHECKED_CYCLES, ALLOWED_CYCLES = 20, 5

Extremes: TypeAlias = tuple[Architecture, Architecture]
Strategy: TypeAlias = Callable[[SearchSpace, random.Random, Extremes], list[Architecture]]


def uniform(space: SearchSpace, rng: random.Random, _: Extremes) -> list[Architecture]:
    """Name one random architecture (single path, uniform sampling; Guo et al. 2019)."""
    return [space.sample(rng)]


def fair(space: SearchSpace, rng: random.Random, _: Extremes) -> list[Architecture]:
    """Name architectures that use every mixer kind of every choice equally often.

    Strict fairness (FairNAS, Chu et al. 2021, https://arxiv.org/abs/1907.01845): as many
    architectures as the largest choice has kinds, each choice's kinds in an order of their own.
    Where a choice has fewer kinds, these come again in turn, so that no kind is used more than
    once more than another. Settings inside a kind are uniform. Depths are uniform too, but the same
    for a whole cycle: a block takes part with all its kinds or with none.

    Raises:
        ValueError: If the limits of the space allow no such cycle.
    """
    for _attempt in range(MAX_CYCLES):
        cycle = _fair_cycle(space, rng)
        if cycle is not None:
            return cycle
    raise ValueError(_too_few_cycles(space, found=0, tried=MAX_CYCLES))


def sandwich(space: SearchSpace, rng: random.Random, extremes: Extremes) -> list[Architecture]:
    """Name the largest and the smallest architecture by MACs, and two random ones.

    Yu and Huang 2019 (slimmable networks); with soft targets from the largest (in-place
    distillation) in Yu et al. 2020 (BigNAS).
    """
    return [*extremes, *(space.sample(rng) for _ in range(NUM_RANDOM))]


STRATEGIES: dict[str, Strategy] = {"uniform": uniform, "fair": fair, "sandwich": sandwich}
# Strategies whose first architecture teaches the others of its step.
DISTILLING = frozenset({"sandwich"})


def strategy_named(name: str) -> Strategy:
    """Look a strategy up.

    Raises:
        ValueError: If there is none of this name.
    """
    if name not in STRATEGIES:
        raise ValueError(
            f"Unknown strategy {name!r} for the supernet. Known: {', '.join(STRATEGIES)}."
        )
    return STRATEGIES[name]


def check_strategy(name: str, space: SearchSpace) -> None:
    """Refuse a strategy that would find no architectures in some step of a training.

    Raises:
        ValueError: If it is unknown, or is ``fair`` and the limits of the space forbid most cycles.
    """
    if strategy_named(name) is not fair:
        return
    cycles = (_fair_cycle(space, random.Random(number)) for number in range(CHECKED_CYCLES))
    found = sum(cycle is not None for cycle in cycles)
    if found < ALLOWED_CYCLES:
        raise ValueError(_too_few_cycles(space, found=found, tried=CHECKED_CYCLES))


def _too_few_cycles(space: SearchSpace, *, found: int, tried: int) -> str:
    return (
        f"The limits of the space {space.name!r} leave {'hardly a' if found else 'no'} fair cycle "
        f"over its mixers: {found} of {tried} that were tried. Loosen the limits, or train with "
        "uniform or sandwich."
    )


def _fair_cycle(space: SearchSpace, rng: random.Random) -> list[Architecture] | None:
    """Draw one cycle, or None where settings that the space allows were not found."""
    orders: dict[str, list[Any]] = {}

    def kinds_in_order(name: str, options: Sequence[Any]) -> Any:
        if name.endswith(".mixer"):
            orders[name] = rng.sample(options, len(options))
        elif name.endswith(".depth"):
            orders[name] = [rng.choice(options)]
        return options[0] if name not in orders else orders[name][0]

    # With these depths every walk asks for the same mixers.
    space.build(kinds_in_order)
    length = max((len(order) for order in orders.values()), default=1)
    cycle = []
    for turn in range(length):
        turn_of = {name: order[turn % len(order)] for name, order in orders.items()}
        architecture = _with_answers(space, rng, turn_of)
        if architecture is None:
            return None
        cycle.append(architecture)
    return cycle


def _with_answers(
    space: SearchSpace, rng: random.Random, answers: dict[str, Any]
) -> Architecture | None:
    def choose(name: str, options: Sequence[Any]) -> Any:
        return answers.get(name) or rng.choice(options)

    for _ in range(MAX_CYCLES):
        architecture = space.build(choose)
        if space.violation(architecture) is None:
            return architecture
    return None
